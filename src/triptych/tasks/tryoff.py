"""Try-off: from a photo of a worn garment to its front and back. It uses the same triptychs as try-on."""

from __future__ import annotations

from triptych.tasks.base import Task
from triptych.tasks.tryon import OTHER_PANELS, PANELS

TRY_OFF = Task("try-off", PANELS, made=("front", "back"), columns=3, other_panels=OTHER_PANELS)
