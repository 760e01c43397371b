"""The options that a suggested command must repeat from the current one, and a hint to a config that the user
forgot to name.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.config.stage import load_config, section
from triptych.errors import ConfigError, ModelError, TriptychError
from triptych.verbs import STAGES
from triptych.wording.commands import Same

REPEATED = (
    *(
        "work",
        "catalogue",
        "triptychs",
        "embeddings",
        "lora_folder",
        "fail_path",
        "task",
        "model",
        "vlm_model",
        "base_url",
    ),
    *("device", "dtype", "quantize", "panel_width", "panel_height"),
)
"""Options for places, and others that must stay the same from verb to verb."""
NEEDED = {
    "clean": ("photos", "human", "garment"),
    "concat": ("model",),
    "caption": ("model", "vlm_model"),
    "embed": ("model",),
    "train": ("model",),
    "generate": ("model",),
    "tryon": ("model",),
}
"""Options that a verb requires; a name in capitals stands for an unknown value."""
USUAL_CONFIG = "triptych.yaml"


def same_options(files: Sequence[Path], data: Mapping[str, Any], given: Mapping[str, Any]) -> Same:
    """Return a function that gives the options to repeat for a verb. given: the typed options, by name."""

    def same(verb: str) -> list[str]:
        fields = next(stage for stage in STAGES if stage.name == verb).config_class().model_fields
        repeated = [f"--config {shlex.quote(str(file))}" for file in files]
        own = [name for name in REPEATED if name in fields and given.get(name) not in (None, "")]
        repeated += [f"--{name.replace('_', '-')} {shlex.quote(str(given[name]))}" for name in own]
        said = set(own) | {
            key for key, value in {**data, **(data.get(verb) or {})}.items() if value not in (None, "")
        }
        missing = [name for name in NEEDED.get(verb, ()) if name not in said]
        return repeated + [f"--{name.replace('_', '-')} {name.upper()}" for name in missing]

    return same


def forgotten_config(error: BaseException, verb: str, work: Path) -> str:
    """The hint that a config nearby holds the missing name and was not given; otherwise empty."""
    missing = {
        "No model is given.": "model",
        "No captioner is given.": "vlm_model",
        "`triptych run` needs a config.": "model",
    }
    wanted = missing.get(error.message, "") if isinstance(error, ModelError | ConfigError) else ""
    for path in (Path(USUAL_CONFIG), work / USUAL_CONFIG) if wanted else ():
        with contextlib.suppress(TriptychError, OSError):
            stage = next(stage for stage in STAGES if stage.name == verb)
            data = load_config([path], STAGES) if path.is_file() else {}
            if section({verb: {}} | dict(data), verb, stage.config_class()).get(wanted) or (
                verb == "run" and data
            ):
                return f"{path} lies here: add --config {shlex.quote(str(path))}."
    return ""


__all__ = ["forgotten_config", "same_options"]
