"""triptych: virtual try-on by In-Context LoRA, from folders of product photos to try-on pictures.

Every verb is a function here and takes its config: `triptych.clean(triptych.CleanConfig(photos=…)).finish()`.
Names are loaded when first used, so importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

from triptych.verbs import STAGES

__version__ = "0.1.0"

_HOMES = {
    "TriptychError": "triptych.errors",
    "PanelLayout": "triptych.pictures.panels",
    "PolygonMaskAnnotator": "triptych.notebook",
    "generate_triptych": "triptych.sampling.generate",
    "load_models": "triptych.session",
    "Session": "triptych.session",
    "Sampling": "triptych.sampling.options",
    "Person": "triptych.vton.request",
    "try_on": "triptych.vton.dress",
    **{stage.public_name: stage.module for stage in STAGES},
    **{stage.config: stage.config_module for stage in STAGES},
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'triptych' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
