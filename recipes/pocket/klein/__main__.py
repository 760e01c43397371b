"""Train the klein pocket from scratch, stage by stage: hours in the background.

Every stage is seeded and logs JSON lines. After an interruption, run the same command again to continue.

    python -m recipes.pocket.klein --work klein-build                  # every stage
    python -m recipes.pocket.klein transformer --work klein-build      # one of them
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGES: dict[str, str] = {
    "text": "train_text",
    "bank": "make_bank",
    "transformer": "train_transformer",
    "evaluate": "evaluate",
    "package": "package_pipeline",
}
"""The stages in order: the module in this folder, and its function."""


def main(words: list[str] | None = None) -> None:
    """Run one stage, or all."""
    options = _parser().parse_args(words)
    import torch

    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    for name in STAGES if options.stage == "all" else [options.stage]:
        stage: Callable[..., Any] = getattr(
            importlib.import_module(f"recipes.pocket.klein.{name}"), STAGES[name]
        )
        more: dict[str, Any] = {}
        if options.steps is not None and name in ("text", "transformer"):
            more["steps"] = options.steps
        if name == "transformer":
            more["compile_model"] = options.compile
            from triptych.pocket import checkpoint_path

            shipped = options.start_from == Path("pocket-klein")
            more["start_from"] = checkpoint_path("pocket-klein") if shipped else options.start_from
        if name == "package":
            more["to"] = options.to or options.work / "checkpoint"
        stage(options.work, **more)
        print(f"{name}: done", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.pocket.klein",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("stage", nargs="?", choices=["all", *STAGES], default="all", metavar="STAGE")
    parser.add_argument("--work", type=Path, required=True, help="the build folder")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--steps", type=int, help="training steps of the stage, if not the recipe's")
    parser.add_argument(
        "--start-from",
        type=Path,
        help="pipeline folder (`pocket-klein`: the shipped one) whose transformer the training goes on from",
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="compile the transformer"
    )
    parser.add_argument("--to", type=Path, help="where `package` writes the pipeline, if not WORK/checkpoint")
    return parser


if __name__ == "__main__":
    main()
