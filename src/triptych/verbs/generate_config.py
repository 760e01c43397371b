"""The settings of `generate`; they import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import field_validator

from triptych.config.marks import INPUT, OUTPUT
from triptych.config.stage import expanded
from triptych.errors import InputError
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
        """A config file may also have a section, `panel: {worn: photo.jpg}`."""
        if isinstance(value, dict):
            return [f"{role}={path}" for role, path in value.items()]
        return [value] if isinstance(value, str) else value

    @property
    def shows_products(self) -> bool:
        return bool(self.front or self.panel)

    def photos(self) -> dict[str, Path]:
        """The given photos by role.

        Raises:
            InputError: a --panel that is not ROLE=FILE, or two photos of one panel.
        """
        named = [(role, path) for role, path in (("front", self.front), ("back", self.back)) if path]
        for text in self.panel:
            role, equals, path = text.partition("=")
            if not (role.strip() and equals and path.strip()):
                raise InputError(
                    f"--panel {text} is no panel's photo.", "Say ROLE=FILE: --panel worn=photo.jpg."
                )
            named.append((role.strip(), Path(expanded(path.strip()))))
        photos = dict(named)
        if len(photos) < len(named):
            raise InputError("Two photos are given of one panel.", "Give one of each.")
        return photos
