"""The stage table: everything that knows "all verbs" (command line, package names, pipeline, docs) reads it from here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triptych.config import StageConfig
    from triptych.store import Run


@dataclass(frozen=True)
class Stage:
    """A verb: the function `name` and the config class `config`, both in `module` (imported when first used)."""

    name: str
    module: str
    config: str
    help: str
    in_run: bool = False

    def load(self) -> tuple[Callable[..., Run], type[StageConfig]]:
        module = importlib.import_module(self.module)
        return getattr(module, self.name), getattr(module, self.config)


STAGES: tuple[Stage, ...] = (
    Stage("init", "triptych.stages.init", "InitConfig", "Look at a folder of photos and write a config to start from."),
    Stage("clean", "triptych.stages.clean", "CleanConfig", "Tell human photos from garment photos.", in_run=True),
    Stage("concat", "triptych.stages.concat", "ConcatConfig", "Put front, back and worn photo side by side.", in_run=True),
    Stage("caption", "triptych.stages.caption", "CaptionConfig", "Check the order of the panels and describe them.", in_run=True),
    Stage("embed", "triptych.stages.embed", "EmbedConfig", "Compute latents and text embeddings once.", in_run=True),
    Stage("train", "triptych.stages.train", "TrainConfig", "Train an In-Context LoRA.", in_run=True),
    Stage("generate", "triptych.stages.generate", "GenerateConfig", "Make triptychs from a prompt or from two product photos."),
    Stage("tryon", "triptych.stages.tryon", "TryonConfig", "Dress a given person: only the polygon is regenerated."),
    Stage("run", "triptych.pipeline", "RunConfig", "All stages from clean to train, from one config."),
    Stage("demo", "triptych.demo", "DemoConfig", "Everything on the embedded pocket model, with a report."),
)
