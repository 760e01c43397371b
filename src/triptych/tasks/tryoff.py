"""Try-off: who wears a garment is given, its front and back are made. The triptychs are those of try-on."""

from __future__ import annotations

from triptych.tasks.base import Task
from triptych.tasks.tryon import OTHER_PANELS, PANELS

TRY_OFF = Task("try-off", PANELS, made=("front", "back"), columns=3, other_panels=OTHER_PANELS)
