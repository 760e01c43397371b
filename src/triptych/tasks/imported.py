"""Any other set of panels, known by its layout alone."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.pictures.panels import PanelLayout
from triptych.tasks.base import Panel, Task


def imported(layout: PanelLayout, markers: Sequence[str] = ()) -> Task:
    """A task for panels that belong to no named task. A captioner describes each panel by its role; the order
    of the panels is not checked.
    """
    panels = tuple(Panel(role, f"the panel called {role}") for role in layout.roles)
    return Task("a set of its own", panels, layout.made, layout.columns, markers=tuple(markers))
