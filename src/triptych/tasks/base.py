"""Task: the job of an In-Context LoRA, as data. A task is one file beside this one and one row in `TASKS`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeVar

from triptych.data.roles import PhotoRoles, Role
from triptych.errors import InputError
from triptych.pictures.panels import PanelLayout
from triptych.tasks.product_photos import PART, SIDE

T = TypeVar("T")


@dataclass(frozen=True)
class Panel:
    """One panel of a task, and the instructions about it for a captioner.

    role: its name, also used in file names. shows: its content, as the captioner is told. asks: the points
    that the caption must describe. kind: the content that the order check expects; empty: no check. called:
    words that an answer may use for the panel instead of its number. words, endings: what the name of a photo
    has if it is this panel's: any of these words, or one of these as its last word or number. over: of
    several panels that a name says, those of the highest number count.
    """

    role: str
    asks: str
    shows: str = ""
    kind: Literal["", "garment", "person"] = ""
    called: tuple[str, ...] = ()
    words: frozenset[str] = frozenset()
    endings: frozenset[str] = frozenset()
    over: int = 0


@dataclass(frozen=True)
class Task:
    """The given panels, the generated panels, and their arrangement on one canvas.

    name: its name on the command line. panels: in reading order, `columns` per row. made: the roles that are
    generated; the others need photos. stand_ins: by role, the role whose photo is used if it has none of its
    own. markers: the caption's markers, one per panel; empty for `<IMAGE 1>`, `<IMAGE 2>` …. other_panels:
    the error and hint for panels of another task. side, part: words in names of product photos that rank
    behind the others. some: any of the given panels may be missing, but not all; a canvas then has no place
    for them. references: clean photos are better shown as references than on the canvas, to models that know
    references, as far as it was measured.
    """

    name: str
    panels: tuple[Panel, ...]
    made: tuple[str, ...]
    columns: int
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    markers: tuple[str, ...] = ()
    other_panels: tuple[str, str] = ("they are not those of this task", "Use another LoRA.")
    side: frozenset[str] = SIDE
    part: frozenset[str] = PART
    some: bool = False
    references: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(panel.role for panel in self.panels)

    @property
    def dresses(self) -> bool:
        """Whether it makes nothing but a person in the given garments."""
        return [panel.kind for panel in self.panels if panel.role in self.made] == ["person"]

    @cached_property
    def photo_roles(self) -> PhotoRoles:
        """The roles of an item's photos: panels of kind `garment`, and one of kind `person`."""
        roles = {
            kind: tuple(
                Role(one.role, one.words, one.endings, one.over) for one in self.panels if one.kind == kind
            )
            for kind in ("garment", "person")
        }
        (person,) = roles["person"]
        return PhotoRoles(roles["garment"], person, self.side, self.part, self.some)

    def layout(self, width: int, height: int) -> PanelLayout:
        """All panels of the task, each `width` × `height` pixels."""
        return PanelLayout(width, height, self.roles, self.columns, self.made)

    def seen(self, layout: PanelLayout, given: Collection[str]) -> PanelLayout:
        """The layout of a canvas with photos of these roles. If any may be missing, only they have a place
        beside what is made; without any photo, all keep theirs.
        """
        if not self.some or not {*given} & {*layout.given}:
            return layout
        return layout.among([*given, *layout.made])

    def fits(self, layout: PanelLayout) -> bool:
        """Whether all panels of a layout belong to this task, with at least one made and, if the task has
        given panels, one given.
        """
        roles = {*layout.roles}
        made, given = roles & {*self.made}, roles - {*self.made}
        gives = {*self.roles} > {*self.made}
        return roles <= {*self.roles} and bool(made) and bool(given) == gives

    def on(self, layout: PanelLayout, whose: str = "The") -> PanelLayout:
        """The layout with this task's panels as `made`. whose: owner of the layout, for the error message.

        Raises:
            InputError: the panels are not those of this task.
        """
        if not self.fits(layout):
            problem, hint = self.other_panels
            raise InputError(f"{whose} panels are {names(layout.roles)}: {problem}.", hint)
        return replace(layout, made=tuple(role for role in layout.roles if role in self.made))

    def trained(self, layout: PanelLayout) -> PanelLayout:
        """As `on`, for the layout of a LoRA, which must have been trained to make the panels of this task.

        Raises:
            InputError: the panels are not those of this task, or the LoRA was trained for another task.
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
        """The given photos by role, with stand-ins filled in."""
        extra = {
            role: photos[other]
            for role, other in self.stand_ins.items()
            if role not in photos and other in photos
        }
        return {**photos, **extra}

    def panels_of(self, layout: PanelLayout) -> tuple[Panel, ...]:
        """The task's panels that occur in a layout, in the layout's order."""
        by_role = {panel.role: panel for panel in self.panels}
        return tuple(by_role[role] for role in layout.roles)


def words(roles: Sequence[str]) -> str:
    """Roles as words of a sentence, safe to show: `front`, `front and back`, `a, b and c`."""
    *most, last = [_plain(role) for role in roles[:9]] or ["nothing"]
    return f"{', '.join(most)} and {last}" if most else last


def names(roles: Sequence[str]) -> str:
    """Roles that may come from a file, made safe to show."""
    return ", ".join(map(_plain, roles[:9]))


def _plain(role: str) -> str:
    return ascii(role)[1:-1][:40]
