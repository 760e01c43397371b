"""Task: what an In-Context LoRA does, as data. A task is one file beside this one and a row in `TASKS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from triptych.errors import InputError
from triptych.pictures.panels import PanelLayout

T = TypeVar("T")


@dataclass(frozen=True)
class Panel:
    """One panel of a task, and what a captioner is told about it.

    role: its name, which becomes part of file names. shows: what the captioner is told that it shows. asks:
    what the caption says of it. kind: what the order check expects there; empty: nothing is checked. called:
    words that an answer may use for it in place of its number.
    """

    role: str
    asks: str
    shows: str = ""
    kind: Literal["", "garment", "person"] = ""
    called: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What is given, what is made, and how both stand on one canvas.

    name: for the command line. panels: in reading order, `columns` to a row. made: the roles that are made;
    photos are given of the others. stand_ins: by role, the role whose photo also stands in its place if it
    has none of its own. markers: of the caption, one for each panel; empty for `<IMAGE 1>`, `<IMAGE 2>` ….
    other_panels: what is wrong with panels that are not of this task, with a hint.
    """

    name: str
    panels: tuple[Panel, ...]
    made: tuple[str, ...]
    columns: int
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    markers: tuple[str, ...] = ()
    other_panels: tuple[str, str] = ("they are not those of this task", "Use another LoRA.")

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(panel.role for panel in self.panels)

    def layout(self, width: int, height: int) -> PanelLayout:
        """All panels of the task, each `width` × `height` pixels."""
        return PanelLayout(width, height, self.roles, self.columns, self.made)

    def fits(self, layout: PanelLayout) -> bool:
        """Whether all panels of a layout are of this task: some are made, and some given if it gives any."""
        roles = {*layout.roles}
        made, given = roles & {*self.made}, roles - {*self.made}
        gives = {*self.roles} > {*self.made}
        return roles <= {*self.roles} and bool(made) and bool(given) == gives

    def on(self, layout: PanelLayout, whose: str = "The") -> PanelLayout:
        """The same panels, those made that this task makes. whose: they are, for the error.

        Raises:
            InputError: they are not the panels of this task.
        """
        if not self.fits(layout):
            problem, hint = self.other_panels
            raise InputError(f"{whose} panels are {names(layout.roles)}: {problem}.", hint)
        return replace(layout, made=tuple(role for role in layout.roles if role in self.made))

    def trained(self, layout: PanelLayout) -> PanelLayout:
        """`on` the layout of a LoRA, which has learned to make what this task makes.

        Raises:
            InputError: they are not the panels of this task, or the LoRA was trained for another one.
        """
        wanted = self.on(layout, "The LoRA's")
        if {*wanted.made} <= {*layout.made}:
            return wanted
        given = [f"--panel {role}=PHOTO" for role in layout.given]
        raise InputError(
            f"The LoRA's panels are {names(layout.roles)}; it was trained to make {words(layout.made)} from "
            f"{words(layout.given)}, and {self.name} needs one that makes {words(wanted.made)}.",
            f"Give it what it was trained for, `triptych generate {' '.join(given)}`, or train one with "
            f"`triptych train --task {self.name}`.",
        )

    def filled(self, photos: Mapping[str, T]) -> dict[str, T]:
        """By role the photos that are given, stand-ins among them."""
        extra = {
            role: photos[other]
            for role, other in self.stand_ins.items()
            if role not in photos and other in photos
        }
        return {**photos, **extra}

    def panels_of(self, layout: PanelLayout) -> tuple[Panel, ...]:
        """The panels that a layout has of this task, in the layout's order."""
        by_role = {panel.role: panel for panel in self.panels}
        return tuple(by_role[role] for role in layout.roles)


def words(roles: Sequence[str]) -> str:
    """Roles in a sentence, harmless to show: `front`, `front and back`, `a, b and c`."""
    *most, last = [_plain(role) for role in roles[:9]] or ["nothing"]
    return f"{', '.join(most)} and {last}" if most else last


def names(roles: Sequence[str]) -> str:
    """Roles that may come from a file, harmless to show."""
    return ", ".join(map(_plain, roles[:9]))


def _plain(role: str) -> str:
    return ascii(role)[1:-1][:40]
