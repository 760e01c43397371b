"""pocket build: the embedded model from nothing, stage by stage. Each stage is resumable, logs JSON lines and
is seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from triptych.config.stage import StageConfig
from triptych.events import Event, Run

Name = Literal[
    "autoencoder",
    "text",
    "bank",
    "transformer",
    "prints",
    "guidance",
    "oracle",
    "evaluate",
    "captioner",
    "package",
]


class PocketBuildConfig(StageConfig):
    stage: Name | Literal["all"] = "all"
    """One stage of the build, or all of them in order; WORK is the build folder."""
    threads: int = Field(default=2, ge=1)
    """Processor threads."""
    steps: int | None = Field(default=None, ge=1)
    """Training steps of the stage, if not the recipe's."""
    start_from: Path | None = None
    """Pipeline folder (`pocket`: the shipped one) whose transformer the training goes on from, in place of
    nothing.
    """
    related_boards: bool = True
    """Train on boards of three related pictures too; without them is the ablation."""
    compile: bool = True
    """Compile the transformer: minutes at the start, then half as much time again per step saved."""
    to: Path | None = None
    """Where the package stage writes the pipeline, if not WORK/checkpoint."""


def pocket_build(config: PocketBuildConfig) -> Run:
    """Run one stage, or all; an event per finished stage. Run the same command again to go on after an
    interruption.
    """
    names: list[str] = list(STAGES) if config.stage == "all" else [config.stage]

    def work() -> Iterator[Event]:
        import torch

        torch.set_num_threads(config.threads)
        config.work.mkdir(parents=True, exist_ok=True)
        for name in names:
            STAGES[name](config.work, config)
            yield Event(name)

    summary: dict[str, Any] = {"folder": str(config.work), "stages": names}
    return Run("pocket_build", len(names), work(), summary)


def _autoencoder(folder: Path, config: PocketBuildConfig) -> None:
    from triptych.pocket.recipe.autoencoder import STEPS, train_autoencoder

    train_autoencoder(folder, config.steps or STEPS)


def _text(folder: Path, config: PocketBuildConfig) -> None:
    from triptych.pocket.recipe.text import STEPS, make_tokenizers, train_text

    if not (folder / "tokenizer_2").exists():
        make_tokenizers(folder)
    train_text(folder, config.steps or STEPS)


def _bank(folder: Path, config: PocketBuildConfig) -> None:
    from triptych.pocket.recipe.bank import make_bank

    make_bank(folder)


def _transformer(folder: Path, config: PocketBuildConfig) -> None:
    from triptych.pocket import checkpoint_path
    from triptych.pocket.recipe.transformer import STEPS, train_transformer

    start = checkpoint_path() if config.start_from == Path("pocket") else config.start_from
    train_transformer(folder, config.steps or STEPS, config.compile, start, config.related_boards)


def _prints(folder: Path, config: PocketBuildConfig) -> None:
    from triptych.pocket.recipe.prints import STEPS, train_prints

    train_prints(folder, config.steps or STEPS, config.compile)


def _guidance(folder: Path, config: PocketBuildConfig) -> None:
    from triptych.pocket.recipe.guidance import STEPS, train_guidance

    train_guidance(folder, config.steps or STEPS)


def _oracle(folder: Path, config: PocketBuildConfig) -> None:
    from triptych.pocket.recipe.judge import STEPS, train_oracle

    train_oracle(folder, config.steps or STEPS)


def _package(folder: Path, config: PocketBuildConfig) -> None:
    from triptych.pocket.recipe.package import package_pipeline

    package_pipeline(folder, config.to or folder / "checkpoint")


def _evaluate(folder: Path, config: PocketBuildConfig) -> None:
    from triptych.pocket.recipe.evaluate import evaluate

    evaluate(folder)


def _captioner(folder: Path, config: PocketBuildConfig) -> None:
    from triptych.pocket.recipe.captioner import STEPS, train_captioner

    train_captioner(folder, config.steps or STEPS)


STAGES: dict[str, Callable[[Path, PocketBuildConfig], None]] = {
    "autoencoder": _autoencoder,
    "text": _text,
    "bank": _bank,
    "transformer": _transformer,
    "prints": _prints,
    "guidance": _guidance,
    "oracle": _oracle,
    "evaluate": _evaluate,
    "captioner": _captioner,
    "package": _package,
}
