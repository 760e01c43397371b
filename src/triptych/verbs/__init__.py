"""The stage table, for all code that needs every verb: command line, package names, pipeline and docs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triptych.config.stage import StageConfig
    from triptych.events import Run


@dataclass(frozen=True)
class Stage:
    """A verb: the function `name` in `module`, and the config class `config` in `config_module`, which
    imports nothing heavy.

    Both are imported at first use. A name of two words is a verb in a group; its function has `_` between
    them.
    """

    name: str
    module: str
    config: str
    help: str
    example: str
    in_run: bool = False
    config_home: str = ""
    """The module of the config class, if not `module` plus `_config`."""
    positional: tuple[str, ...] = ()
    """Fields that may be given without an option name, in this order, right after the verb."""
    ask: tuple[str, ...] = ()
    """Fields that the command line asks for at a terminal if they are missing; an empty answer leaves them
    empty.
    """
    function: str = ""
    """The name of the function, if `name` is a Python keyword or builtin."""
    whole_config: bool = False
    """Whether the function also gets the loaded config files (shared keys and all sections), which it passes
    on to other stages.
    """

    @property
    def words(self) -> list[str]:
        """The words to type: `lora_convert` is `triptych lora convert`."""
        return self.name.split("_")

    @property
    def public_name(self) -> str:
        """The function's name in Python."""
        return self.function or self.name

    @property
    def config_module(self) -> str:
        return self.config_home or f"{self.module}_config"

    def config_class(self) -> type[StageConfig]:
        """The config class: enough for `--help` and for checking settings, without torch."""
        found: type[StageConfig] = getattr(importlib.import_module(self.config_module), self.config)
        return found

    def load(self) -> tuple[Callable[..., Run], type[StageConfig]]:
        return getattr(importlib.import_module(self.module), self.public_name), self.config_class()


STAGES: tuple[Stage, ...] = (
    Stage(
        "init",
        "triptych.verbs.init",
        "InitConfig",
        "Look at a folder of photos and write a config to start from.",
        "triptych init --photos photos --human examples/human --garment examples/garment",
        ask=("model", "vlm_model"),
    ),
    Stage(
        "clean",
        "triptych.verbs.clean",
        "CleanConfig",
        "Tell human photos from garment photos.",
        "triptych clean --photos photos --human examples/human --garment examples/garment --work work",
        in_run=True,
    ),
    Stage(
        "roles",
        "triptych.verbs.roles",
        "RolesConfig",
        "Ask a captioner which product photo is the front, the back, the top …",
        "triptych roles --config triptych.yaml --vlm-model gpt-4.1-mini",
    ),
    Stage(
        "report",
        "triptych.verbs.report",
        "ReportConfig",
        "Write a page about the photos: items, verdicts, why each was left out, missing views.",
        "triptych report --config triptych.yaml",
    ),
    Stage(
        "concat",
        "triptych.verbs.concat",
        "ConcatConfig",
        "Put front, back and worn photo side by side.",
        "triptych concat --config triptych.yaml --max-concat-n 3",
        in_run=True,
    ),
    Stage(
        "caption",
        "triptych.verbs.caption",
        "CaptionConfig",
        "Check the order of the panels and describe them.",
        "triptych caption --config triptych.yaml --vlm-model gpt-4.1-mini --brands Acme",
        in_run=True,
    ),
    Stage(
        "import",
        "triptych.verbs.import_set",
        "ImportConfig",
        "Take a data set: In-Context pictures with captions, VITON-HD, DressCode or Garments2Look.",
        'triptych import movie-shots --layout 3x1 --marker "[SCENE-{n}]" --work shots',
        positional=("folder",),
        function="import_set",
    ),
    Stage(
        "embed",
        "triptych.verbs.embed",
        "EmbedConfig",
        "Compute latents and text embeddings once.",
        "triptych embed --work work --model black-forest-labs/FLUX.2-klein-base-4B",
        in_run=True,
    ),
    Stage(
        "train",
        "triptych.verbs.train",
        "TrainConfig",
        "Train an In-Context LoRA.",
        "triptych train --config triptych.yaml --max-train-steps 2000 --checkpointing-steps 250",
        in_run=True,
        config_home="triptych.training.config",
    ),
    Stage(
        "generate",
        "triptych.verbs.generate",
        "GenerateConfig",
        "Make triptychs from a prompt or from two product photos.",
        "triptych generate --config triptych.yaml --front front.jpg --back back.jpg --lora work/lora "
        '--prompt "… <IMAGE 1> …"',
    ),
    Stage(
        "tryon",
        "triptych.verbs.tryon",
        "TryonConfig",
        "Dress a given person: only the polygon is regenerated.",
        "triptych tryon --config triptych.yaml --front f.jpg --back b.jpg --person me.jpg --polygon me.json "
        '--lora work/lora --prompt "…"',
        config_home="triptych.vton.config",
    ),
    Stage(
        "serve",
        "triptych.server.verb",
        "ServeConfig",
        "Make pictures on request, over HTTP.",
        "triptych serve --model black-forest-labs/FLUX.2-klein-4B --lora work/lora",
        config_home="triptych.server.config",
    ),
    Stage(
        "app",
        "triptych.server.verb",
        "AppConfig",
        "Open a page for try-ons in the browser.",
        "triptych app --model black-forest-labs/FLUX.2-klein-4B --lora work/lora",
        config_home="triptych.server.config",
    ),
    Stage(
        "evaluate",
        "triptych.verbs.evaluate",
        "EvaluateConfig",
        "Measure how well garments are carried over: in the rendered world, or on pairs of photos.",
        "triptych evaluate --pocket --lora demo/lora",
    ),
    Stage(
        "reproduce",
        "triptych.verbs.reproduce",
        "ReproduceConfig",
        "Make a picture again from the settings it carries, pixel for pixel.",
        "triptych reproduce out.png --photos photos --photos work/lora",
        positional=("image",),
    ),
    Stage(
        "run",
        "triptych.verbs.run",
        "RunConfig",
        "All stages from clean to train, from one config.",
        "triptych run --config triptych.yaml",
        whole_config=True,
    ),
    Stage(
        "plan",
        "triptych.verbs.plan",
        "PlanConfig",
        "Say what memory, disk and time a config needs, before anything is downloaded.",
        "triptych plan --config triptych.yaml --card rtx-4090",
        whole_config=True,
    ),
    Stage(
        "sync",
        "triptych.verbs.sync",
        "SyncConfig",
        "Copy photos from an object store, or results into one.",
        "triptych sync s3://shop/photos photos",
        positional=("source", "target"),
    ),
    Stage(
        "doctor",
        "triptych.verbs.doctor",
        "DoctorConfig",
        "Look at this machine and the work folder, and say what to mend.",
        "triptych doctor --work work",
    ),
    Stage(
        "demo",
        "triptych.verbs.demo",
        "DemoConfig",
        "Everything on the embedded model, with a report.",
        "triptych demo --out demo",
    ),
    Stage(
        "lora_convert",
        "triptych.verbs.lora",
        "LoraConvertConfig",
        "Write a LoRA of any known format in the names diffusers, ComfyUI or kohya read.",
        "triptych lora convert theirs.safetensors ours.safetensors --to diffusers",
        positional=("lora", "out"),
    ),
    Stage(
        "lora_inspect",
        "triptych.verbs.lora",
        "LoraInspectConfig",
        "Say what is in a LoRA file: its format, layers, ranks, strengths and metadata.",
        "triptych lora inspect work/lora",
        positional=("lora",),
    ),
)

GROUPS = {"lora": "Read, convert and explain LoRA files."}
"""Help for words that precede several verbs."""
