"""The tasks that are known by name. A new one is a file here and a row in `TASKS`."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.errors import ConfigError
from triptych.pictures.panels import PanelLayout
from triptych.tasks.base import Task
from triptych.tasks.imported import imported
from triptych.tasks.tryoff import TRY_OFF
from triptych.tasks.tryon import TRY_ON

TASKS = {task.name: task for task in (TRY_ON, TRY_OFF)}

DEFAULT = TRY_ON
"""What a model without a LoRA is used for, and what three panels in a row are where nobody says it."""


def task_of(layout: PanelLayout, markers: Sequence[str] = ()) -> Task:
    """The task whose panels a layout has, made as the task makes them; else a set of its own."""
    known = (task for task in TASKS.values() if task.fits(layout) and task.on(layout) == layout)
    return next(known, None) or imported(layout, markers)


def task_named(name: str) -> Task:
    """Raises ConfigError if there is no such task."""
    if name not in TASKS:
        raise ConfigError(f"There is no task '{name}'.", f"Tasks: {', '.join(TASKS)}.")
    return TASKS[name]
