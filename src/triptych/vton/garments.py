"""The garments of a try-on: photos by role, and the panels that show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from triptych.errors import InputError
from triptych.pictures.panels import PanelLayout
from triptych.tasks import dressing
from triptych.tasks.base import words

T = TypeVar("T")


def dressed(layout: PanelLayout, photos: Mapping[str, T]) -> tuple[PanelLayout, dict[str, T]]:
    """The layout with the person's panel as made, and the photo of each given panel, stand-ins included.

    layout: of a canvas for these photos, see `OpenedModel.layout`.

    Raises:
        InputError: the panels are none of a person in garments, the LoRA was trained for another task, or
        photo
            and panels do not match.
    """
    task = dressing(layout)
    layout = task.trained(layout)
    spare = () if task.some else set(task.roles) - set(layout.roles)  # a LoRA may know fewer views
    if strange := [role for role in photos if role not in layout.given and role not in spare]:
        raise InputError(
            f"There is no panel for a photo of {words(strange)}; the panels are {words(layout.roles)}.",
            "`triptych lora inspect` says which panels a LoRA has; the last one is made.",
        )
    filled = task.filled(photos)
    if missing := [role for role in layout.given if role not in filled]:
        raise InputError(
            f"There is no photo of {words(missing)}; the panels are {words(layout.roles)}.",
            f"Give one: --garment {missing[0]}=PHOTO.",
        )
    return layout, {role: filled[role] for role in layout.given}
