"""triptych: virtual try-on by In-Context LoRA, from folders of product photos to try-on pictures.

Every verb is a function here and takes its config: `triptych.clean(triptych.CleanConfig(photos=…)).finish()`.
Names are loaded when first used, so importing the package costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from triptych.verbs import STAGES

__version__ = "0.1.0"

_HOMES = {
    "TriptychError": "triptych.errors",
    "PanelLayout": "triptych.pictures.panels",
    "PolygonMaskAnnotator": "triptych.notebook",
    "generate_triptych": "triptych.sampling.generate",
    "load_models": "triptych.sampling.generate",
    "Sampling": "triptych.sampling.generate",
    "Person": "triptych.tryon.dress",
    "try_on": "triptych.tryon.dress",
    **{stage.name: stage.module for stage in STAGES},
    **{stage.config: stage.config_module for stage in STAGES},
}
__all__ = ["__version__", *sorted(_HOMES)]


class _Package(ModuleType):
    """The package, on which a public name is never the module of the same name.

    Importing `triptych.demo` binds that module to the package, over the function; the module stays in `sys.modules`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'triptych' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
