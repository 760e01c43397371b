"""Any other set of panels: its layout says everything that is known of it."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.pictures.panels import PanelLayout
from triptych.tasks.base import Panel, Task


def imported(layout: PanelLayout, markers: Sequence[str] = ()) -> Task:
    """The task of a set whose panels are of no task here. A captioner describes each panel by its role; which
    panel shows what is not checked.
    """
    panels = tuple(Panel(role, f"the panel called {role}") for role in layout.roles)
    return Task("a set of its own", panels, layout.made, layout.columns, markers=tuple(markers))
