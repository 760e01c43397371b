"""Warn of time shifts that jump: FLUX.2's pipelines change their formula at a number of image tokens."""

from __future__ import annotations

from triptych.pictures.panels import PanelLayout
from triptych.planning.advice import panels
from triptych.planning.shapes import ModelShapes
from triptych.sampling.options import Sampling

NEAR = 0.05
"""Distance from the jump, as a share of its number of tokens, within which a canvas is called near."""


def shift_warning(shapes: ModelShapes, sampling: Sampling, sampled: PanelLayout) -> str | None:
    """A sentence if the image tokens that the time shift counts are near the family's jump or beyond it, with
    what to do; None otherwise. sampled: the panels on the canvas that is sampled.
    """
    jump = shapes.family.family.shift_jumps_at
    panel = PanelLayout(sampled.width, sampled.height, sampled.roles[:1], 1)
    shown = panel if sampling.time_shift == "panel" else sampled
    tokens = shapes.image_tokens(shown)
    if jump is None or tokens < (1 - NEAR) * jump:
        return None
    where = "near" if tokens < (1 + NEAR) * jump else "beyond"
    what = "panel" if len(shown.roles) == 1 else "canvas"
    other = (
        "--time-shift panel counts one panel"
        if what == "canvas" and shapes.image_tokens(panel) < (1 - NEAR) * jump
        else _smaller(shapes, panel, jump)
    )
    return (
        f"The time shift counts the {tokens:,} image tokens of the {what}, {where} {jump:,}, where it drops "
        f"at once and steps move from high noise to low: {other}."
    )


def _smaller(shapes: ModelShapes, panel: PanelLayout, jump: int) -> str:
    """The largest panels of this shape that are well below the jump, in words."""
    for size in panels(panel, shapes.settings.stride):
        width, height = size["panel_width"], size["panel_height"]
        if shapes.image_tokens(PanelLayout(width, height, panel.roles, 1)) < (1 - NEAR) * jump:
            return f"take smaller panels, such as {width}×{height} px"
    return "take smaller panels"
