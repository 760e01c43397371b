"""The options of a verb in groups: its own first, then what several verbs share, the folders last."""

from __future__ import annotations

from copy import copy
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic import create_model

from triptych.config.stage import StageConfig

_OWN = Group("Options", sort_key=0)
_FOLDERS = Group("Folders", sort_key=9)
EVERY_VERB = Group("Every verb", sort_key=8)
_SHARED = {
    "SamplingConfig": Group("Model and sampling", sort_key=2),
    "PictureConfig": Group("Pictures", sort_key=1),
}
"""By the class that defines a field."""


def grouped(model: type[StageConfig]) -> type[StageConfig]:
    """The same settings, each with the group that it stands in; the verb's own come first."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        home = next(cls for cls in reversed(model.__mro__) if name in getattr(cls, "__annotations__", {}))
        group = _FOLDERS if home is StageConfig else _SHARED.get(home.__name__, _OWN)
        kind: Any = field.rebuild_annotation()
        fields[name] = (Annotated[kind, Parameter(group=group)], copy(field))
    return create_model(model.__name__, __base__=model, **fields)


__all__ = ["EVERY_VERB", "grouped"]
