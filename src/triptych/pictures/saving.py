"""Saves every picture of the product, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from triptych.store.files import publish


def save_png(
    image: Image.Image,
    path: Path,
    *,
    text: Mapping[str, str] | None = None,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
) -> None:
    """Save a PNG, whole or not at all; `text` becomes its text chunks (keys: 1 to 79 Latin-1 characters)."""
    chunks = PngInfo()
    for key, value in (text or {}).items():
        assert 0 < len(key) < 80, key
        chunks.add_text(key, value)
    if xmp:
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8"))
    with publish(Path(path)) as temporary:
        # Passed even when None: otherwise Pillow would take the profile in the picture's `info`.
        image.save(temporary, "PNG", pnginfo=chunks, icc_profile=icc_profile, exif=exif or b"")


def save_jpeg(
    image: Image.Image,
    path: Path,
    *,
    comment: str = "",
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
) -> None:
    """Save a JPEG (quality 95, full colour resolution), whole or not at all. `comment`: ASCII; left out if
    longer than 64 KB.
    """
    more: dict[str, Any] = {"xmp": xmp} if xmp else {}
    if 0 < len(comment) < 65_000:
        more["comment"] = comment.encode("ascii")
    with publish(Path(path)) as temporary:
        image.save(
            temporary, "JPEG", quality=95, subsampling=0, icc_profile=icc_profile, exif=exif or b"", **more
        )
