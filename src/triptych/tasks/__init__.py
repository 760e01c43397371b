"""The tasks with a name. A new task is one file here and one row in `TASKS`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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


PRODUCTS = frozenset(name for task in TASKS.values() for name in task.photo_roles.names)
"""All roles of photos that show a garment alone."""


def task_of(layout: PanelLayout, markers: Sequence[str] = ()) -> Task:
    """The task with the panels of a layout and the same generated ones; if there is none,
    an imported task.
    """
    known = (task for task in TASKS.values() if task.fits(layout) and task.on(layout) == layout)
    return next(known, None) or imported(layout, markers)


def task_of_all(roles: Collection[str]) -> Task | None:
    """The task of canvases that have some of these panels each, if there is one."""
    return next((task for task in TASKS.values() if task.some and {*roles} <= {*task.roles}), None)


def layout_with(layout: PanelLayout, photos: Collection[str], *, trained: bool) -> PanelLayout:
    """The layout of a canvas with photos of these roles. The layout itself if it lacks one of them.

    layout: the panels of a LoRA (trained), or those of a model without one; then all tasks will do.
    """
    if not trained and not {*photos} <= {*layout.roles}:
        fitting = (task for task in TASKS.values() if {*photos} <= {*task.roles})
        layout = next((task.layout(layout.width, layout.height) for task in fitting), layout)
    return task_of(layout).seen(layout, photos) if {*photos} <= {*layout.roles} else layout


def dressing(layout: PanelLayout) -> Task:
    """The task that dresses a person in the photos of a layout; the default task if none does."""
    return next((task for task in TASKS.values() if task.dresses and task.fits(layout)), DEFAULT)


def task_named(name: str) -> Task:
    """Find a task by name. Raises ConfigError if there is none."""
    if name not in TASKS:
        raise ConfigError(f"There is no task '{name}'.", f"Tasks: {', '.join(TASKS)}.")
    return TASKS[name]
