"""Colours of photos: every mode of Pillow to opaque 8 bits, and every colour space to sRGB and back."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageCms


def flat(image: Image.Image) -> Image.Image:
    """Any mode → opaque 8-bit L, RGB or CMYK, in the file's own colour space; keeps `info`."""
    info = dict(image.info)
    if image.mode in _DEEP:
        image = _eight_bit(image)
    if image.has_transparency_data:
        image = _in_strips(image, "L" if image.mode in ("LA", "La", "L", "1") else "RGB", _on_white)
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image.info = info
    return image


_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# Pixels per strip: 64 megapixels of floats at once would take gigabytes.
_STRIP = 4_000_000


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(upper edge, strip of the picture) from top to bottom."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))


def _in_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Apply `convert` strip by strip; `mode` is the mode of its results."""
    whole = Image.new(mode, image.size)
    for top, strip in _strips(image):
        strip.info = image.info  # it may name the transparent colour
        whole.paste(convert(strip), (0, top))
    return whole


def _on_white(strip: Image.Image) -> Image.Image:
    white = Image.new("RGBA", strip.size, "white")
    white.alpha_composite(strip.convert("RGBA"))
    return white.convert("L" if strip.mode in ("LA", "La", "L", "1") else "RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits → L. Pillow's own conversion clips all values above 255, which turns 16-bit
    photos white.
    """

    def finite(strip: Image.Image) -> np.ndarray:
        values = np.asarray(strip)
        return np.nan_to_num(values, posinf=0.0, neginf=0.0) if image.mode == "F" else values

    def scaled(strip: Image.Image) -> Image.Image:
        values = finite(strip) * (scale if image.mode == "F" else np.float64(scale))
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))

    top = max(float(finite(strip).max(initial=0)) for _, strip in _strips(image))
    if image.mode == "F":
        scale = 255.0 if top <= 1.0 else 1.0 if top <= 255.0 else 1 / 257
    else:
        scale = 1 / 257 if image.mode != "I" or top > 255 else 1.0
    return _in_strips(image, "L", scaled)


def as_srgb(image: Image.Image) -> Image.Image:
    """L, RGB or CMYK with or without a profile → RGB in sRGB. A damaged or unsuitable profile is ignored."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if (
                "srgb" not in ImageCms.getProfileDescription(source).lower()
            ):  # sRGB to sRGB would only add rounding errors
                converted = ImageCms.profileToProfile(
                    image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
                return converted if converted is not None else image
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return image.convert("RGB")


def to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """RGB pixels in the colour space of a profile → sRGB, which models expect."""
    return _between(image, icc_profile, to_profile=False)


def from_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """sRGB → RGB pixels in the colour space of a profile, to be put back into the original photo."""
    return _between(image, icc_profile, to_profile=True)


def _between(image: Image.Image, icc_profile: bytes | None, *, to_profile: bool) -> Image.Image:
    if not icc_profile or not is_rgb_profile(icc_profile):
        return image
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)), ImageCms.createProfile("sRGB")
        if "srgb" in ImageCms.getProfileDescription(own).lower():
            return image
        first, second = (srgb, own) if to_profile else (own, srgb)
        converted = ImageCms.profileToProfile(image, first, second, outputMode="RGB")
        return converted if converted is not None else image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


def is_rgb_profile(profile: bytes) -> bool:
    return profile[16:20] == b"RGB "  # the colour space field of the ICC header
