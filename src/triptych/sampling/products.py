"""Product photos as a model is shown them."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from triptych.pictures.panels import PanelLayout
from triptych.tasks import PRODUCTS
from triptych.vision.garment import trimmed


def shown(photos: Mapping[str, Image.Image], layout: PanelLayout) -> dict[str, Image.Image]:
    """Photos by role, those of products trimmed if the layout says so."""
    margin = layout.trim
    if margin is None:
        return dict(photos)
    return {role: trimmed(photo, margin) if role in PRODUCTS else photo for role, photo in photos.items()}
