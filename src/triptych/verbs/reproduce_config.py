"""The settings of `reproduce`; in their own module, because the stages import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from triptych.config.marks import GIVEN, INPUT, OUTPUT, RESULT, RUNNING, SHARED
from triptych.config.stage import StageConfig
from triptych.errors import InputError


class ReproduceConfig(StageConfig):
    image: Annotated[Path | None, INPUT] = None
    """The picture to make again, as `tryon` or `generate` wrote it."""
    photos: Annotated[list[Path], INPUT] = []
    """Files and folders that contain its inputs: photos, polygon and LoRA, under any name."""
    model: Annotated[str | None, RESULT, GIVEN, SHARED] = None
    """The base model. Needed if the picture names a folder, or a hub model that is not well known: a picture
    stores only the name.
    """
    device: Annotated[str, RUNNING] = "auto"
    """auto, cpu, cuda, cuda:1 … Pixels are identical only on the same kind of device as before."""
    out: Annotated[Path | None, OUTPUT] = None
    """Where to write it. For tryon a file, if not NAME-again beside the picture; for generate a folder, if
    not WORK/reproduced.
    """

    def check_early(self) -> None:
        """Raises InputError if no picture is given, or it is not there."""
        if self.image is None:
            raise InputError(
                "There is no picture to reproduce.",
                "Give it right after the verb: triptych reproduce out.png --photos FOLDER.",
            )
        from triptych.pictures.images import read_settings  # not above: it imports numpy

        read_settings(self.image)
