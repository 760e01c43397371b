"""Train the pocket model from scratch, stage by stage: hours in the background.

Every stage is seeded and logs JSON lines. After an interruption, run the same command again to continue.

    python -m recipes.pocket --work pocket-build                       # every stage
    python -m recipes.pocket transformer --work pocket-build           # one of them
    python -m recipes.pocket --device cuda --out pocket-card           # on a card: recipes.pocket.card
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGES: dict[str, str] = {
    "autoencoder": "train_autoencoder",
    "text": "train_text",
    "bank": "make_bank",
    "transformer": "train_transformer",
    "prints": "train_prints",
    "guidance": "train_guidance",
    "judge": "train_oracle",
    "evaluate": "evaluate",
    "captioner": "train_captioner",
    "parser": "train_parser",
    "package": "package_pipeline",
}
"""The stages in order: the module in this folder, and its function."""


def main(words: list[str] | None = None) -> None:
    """Run one stage, or all; with --device, the pocket that a card trains."""
    words = sys.argv[1:] if words is None else words
    if any(word.split("=")[0] == "--device" for word in words):
        importlib.import_module("recipes.pocket.card.__main__").main(words)
        return
    options = _parser().parse_args(words)
    import torch

    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    for name in STAGES if options.stage == "all" else [options.stage]:
        run(name, options)
        print(f"{name}: done", flush=True)


def run(name: str, options: argparse.Namespace) -> None:
    """Run one stage in the build folder, with the options that it has."""
    stage: Callable[..., Any] = getattr(importlib.import_module(f"recipes.pocket.{name}"), STAGES[name])
    more: dict[str, Any] = {}
    if options.steps is not None and name not in ("bank", "evaluate", "package"):
        more["steps"] = options.steps
    if name in ("transformer", "prints"):
        more["compile_model"] = options.compile
    if name == "transformer":
        from triptych.pocket import checkpoint_path

        more["start_from"] = checkpoint_path() if options.start_from == Path("pocket") else options.start_from
        more["related"] = options.related_boards
    if name == "package":
        more["to"] = options.to or options.work / "checkpoint"
    stage(options.work, **more)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.pocket", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    yes_or_no = argparse.BooleanOptionalAction
    parser.add_argument("stage", nargs="?", choices=["all", *STAGES], default="all", metavar="STAGE")
    parser.add_argument("--work", type=Path, required=True, help="the build folder")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--steps", type=int, help="training steps of the stage, if not the recipe's")
    parser.add_argument(
        "--start-from",
        type=Path,
        help="pipeline folder (`pocket`: the shipped one) whose transformer the training goes on from",
    )
    parser.add_argument(
        "--related-boards",
        action=yes_or_no,
        default=True,
        help="train on boards of three related pictures too; without them is the ablation",
    )
    parser.add_argument(
        "--compile",
        action=yes_or_no,
        default=True,
        help="compile the transformer: minutes at the start, then half as much time again per step saved",
    )
    parser.add_argument("--to", type=Path, help="where `package` writes the pipeline, if not WORK/checkpoint")
    return parser


if __name__ == "__main__":
    main()
