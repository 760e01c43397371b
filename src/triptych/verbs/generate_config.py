"""The settings of `generate`; they import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import field_validator

from triptych.config.marks import INPUT, OUTPUT
from triptych.config.role_photos import as_list, by_role, pair
from triptych.sampling.options import PictureConfig


class GenerateConfig(PictureConfig):
    front: Annotated[Path | None, INPUT] = None
    """Photo of the garment's front. With a product photo, only the worn panel is generated."""
    back: Annotated[Path | None, INPUT] = None
    """Photo of its back; without it the front is used twice."""
    panel: Annotated[list[str], INPUT] = []
    """Photo of any panel, ROLE=FILE, such as worn=photo.jpg for a LoRA of try-off; may be repeated. The
    panels without a photo are generated. `triptych lora inspect` says which panels a LoRA has.
    """
    out: Annotated[Path | None, OUTPUT] = None
    """Folder for the pictures, if not WORK/generated."""

    @field_validator("panel", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        return as_list(value)

    @property
    def shows_products(self) -> bool:
        return bool(self.front or self.panel or self.reference)

    def photos(self) -> dict[str, Path]:
        """The given photos by role.

        Raises:
            InputError: a --panel that is not ROLE=FILE, or two photos of one panel.
        """
        named = [pair(text, "panel", "worn=photo.jpg") for text in self.panel]
        return by_role([("front", self.front), ("back", self.back), *named], "panel")
