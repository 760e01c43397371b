"""The docstrings under the fields of a config: its help texts. They are read when they are asked for, because
that takes longer than most commands' own settings.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import cache

from pydantic import BaseModel


def help_texts(model: type[BaseModel]) -> dict[str, str]:
    """The help text of each field, on one line, by name; empty where the source has none."""
    found: dict[str, str] = {}
    for home in reversed(model.__mro__):
        found |= _in_module(home.__module__).get(home.__name__, {})
    return {name: found.get(name, "") for name in model.model_fields}


@cache
def _in_module(name: str) -> Mapping[str, Mapping[str, str]]:
    """For each class of a module: the strings that stand right below its annotated names."""
    try:
        source = inspect.getsource(sys.modules[name])
    except (OSError, TypeError):  # no source beside the compiled file, or a module of C
        return {}
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {each.name: _under_names(each) for each in classes}


def _under_names(node: ast.ClassDef) -> dict[str, str]:
    texts = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            texts[field.target.id] = " ".join(below.value.value.split())
    return texts


__all__ = ["help_texts"]
