"""The tasks with a name. A new task is one file here and one row in `TASKS`."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.errors import ConfigError
from triptych.pictures.panels import PanelLayout
from triptych.tasks.base import Task
from triptych.tasks.imported import imported
from triptych.tasks.outfit import OUTFIT
from triptych.tasks.tryoff import TRY_OFF
from triptych.tasks.tryon import TRY_ON

TASKS = {task.name: task for task in (TRY_ON, TRY_OFF, OUTFIT)}

DEFAULT = TRY_ON
"""The task of a model without a LoRA, and of three panels in a row without any other information."""


def task_of(layout: PanelLayout, markers: Sequence[str] = ()) -> Task:
    """The task with the panels of a layout and the same generated ones; if there is none,
    an imported task.
    """
    known = (task for task in TASKS.values() if task.fits(layout) and task.on(layout) == layout)
    return next(known, None) or imported(layout, markers)


def task_named(name: str) -> Task:
    """Find a task by name. Raises ConfigError if there is none."""
    if name not in TASKS:
        raise ConfigError(f"There is no task '{name}'.", f"Tasks: {', '.join(TASKS)}.")
    return TASKS[name]
