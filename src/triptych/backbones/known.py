"""Hub models whose configs come with the package (`models.yaml`): what they are is known without a network.
Imports no torch.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml


@lru_cache(maxsize=1)
def known_models() -> dict[str, dict[str, Any]]:
    """Pipeline class and part configs by hub id. Not to be changed."""
    return dict(yaml.safe_load((files("triptych.backbones") / "models.yaml").read_text(encoding="utf-8")))


def known_index(model: str) -> dict[str, Any]:
    """What the model_index.json of a known hub model says of its kind; empty for any other name."""
    about = known_models().get(model)
    if about is None:
        return {}
    return {"_class_name": about["pipeline"], "is_distilled": about.get("is_distilled", False)}
