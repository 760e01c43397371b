"""The build of the pocket model, stage by stage: ``python -m triptych.pocket.build all --out FOLDER``.

Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def _autoencoder(folder: Path, options: argparse.Namespace) -> None:
    from triptych.pocket.recipe.autoencoder import STEPS, train_autoencoder

    train_autoencoder(folder, options.steps or STEPS)


def _text(folder: Path, options: argparse.Namespace) -> None:
    from triptych.pocket.recipe.text import STEPS, make_tokenizers, train_text

    if not (folder / "tokenizer_2").exists():
        make_tokenizers(folder)
    train_text(folder, options.steps or STEPS)


def _bank(folder: Path, options: argparse.Namespace) -> None:
    from triptych.pocket.recipe.bank import make_bank

    make_bank(folder)


def _transformer(folder: Path, options: argparse.Namespace) -> None:
    from triptych.pocket.recipe.transformer import STEPS, train_transformer

    train_transformer(folder, options.steps or STEPS, compile_model=not options.eager)


def _oracle(folder: Path, options: argparse.Namespace) -> None:
    from triptych.pocket.recipe.judge import STEPS, train_oracle

    train_oracle(folder, options.steps or STEPS)


def _package(folder: Path, options: argparse.Namespace) -> None:
    from triptych.pocket.recipe.package import package_pipeline

    package_pipeline(folder, options.to or folder / "checkpoint")


def _evaluate(folder: Path, options: argparse.Namespace) -> None:
    from triptych.pocket.recipe.evaluate import evaluate

    evaluate(folder)


def _captioner(folder: Path, options: argparse.Namespace) -> None:
    from triptych.pocket.recipe.captioner import STEPS, train_captioner

    train_captioner(folder, options.steps or STEPS)


STAGES: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "autoencoder": _autoencoder,
    "text": _text,
    "bank": _bank,
    "transformer": _transformer,
    "oracle": _oracle,
    "evaluate": _evaluate,
    "captioner": _captioner,
    "package": _package,
}


def main() -> None:
    """Run one stage of the build, or all of them in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--out", type=Path, required=True, help="the build folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="another number of steps than the recipe's")
    parser.add_argument("--to", type=Path, help="where the package stage writes the pipeline")
    parser.add_argument("--eager", action="store_true", help="do not compile the transformer")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    for stage in STAGES if options.stage == "all" else [options.stage]:
        STAGES[stage](options.out, options)


if __name__ == "__main__":
    main()
