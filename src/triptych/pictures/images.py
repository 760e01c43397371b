"""Loads every photo of the product.

Photos are untrusted. File type and size are checked from the header before any pixel is decoded, and all
damage becomes a `BadImage` with a reason. Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import errno
import functools
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, features

from triptych.errors import InputError
from triptych.pictures.colours import as_srgb, flat, is_rgb_profile
from triptych.pictures.photo_kinds import EXPORT, RAW_SUFFIXES, look
from triptych.store.files import parse_json, sha256_file

MAX_PIXELS = 64_000_000
"""Limit from the header: 64 megapixels take 192 MB as RGB."""
MAX_BYTES = 1 << 30
"""Limit of the file size, checked before reading: 64 megapixels of 16-bit colours with alpha take half of
that.
"""
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")
SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".avif",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
    }
    | RAW_SUFFIXES
)
"""File endings of photos, also of those that have to be converted first. They only matter in folders: a named
file is judged by its content.
"""
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})
_HINT = (
    "Readable are JPEG, PNG, WebP, AVIF, TIFF, BMP and GIF; open the photo in an image editor and save "
    "it again."
)
_GPS, _XMP, _ORIENTATION = 0x8825, 0x02BC, 0x0112


class BadImage(InputError):
    """A file that is not a usable photo. `reason` is a few words without the path: `truncated or damaged`."""

    def __init__(self, path: Path, reason: str, hint: str = _HINT) -> None:
        super().__init__(f"{path} is not a usable photo: {reason}.", hint)
        self.reason = reason


@dataclass(frozen=True)
class OriginalPhoto:
    """A photo at native size, with all that is needed to save it in the same form.

    `image` is upright RGB. If the file holds RGB, its numbers are unchanged, in the colour space of
    `icc_profile`. `exif` lacks GPS, XMP, orientation and thumbnail; for TIFFs it is None. A photo with
    transparency has its alpha channel in `alpha` (mode L) and its RGB numbers in `under`; `image` is then the
    photo on white.
    """

    image: Image.Image
    icc_profile: bytes | None
    exif: bytes | None
    format: str
    alpha: Image.Image | None = None
    under: Image.Image | None = None


def load_image(path: Path, *, longest: int | None = None) -> Image.Image:
    """A photo as an upright 8-bit sRGB picture of mode RGB, fully decoded, without metadata.

    EXIF orientation and ICC profile are applied, transparent areas become white, and an animation gives its
    first frame. With `longest`, the picture is scaled down so that its longer side is at most that (JPEGs
    then decode several times faster).

    Raises:
        BadImage: missing, not a regular file, not an image, larger than `MAX_PIXELS`, truncated or damaged.
    """
    image = flat(_decode(Path(path), longest))
    if longest is not None and max(image.size) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    image = as_srgb(image)
    image.info = {}  # otherwise Pillow would write the old profile into files saved from it
    return image


def load_original(path: Path) -> OriginalPhoto:
    """A photo for editing: native size, RGB numbers as in the file, profile and EXIF kept.

    Files without RGB numbers (CMYK, grey with a profile, 16-bit grey) are converted to sRGB and have no
    profile.

    Raises:
        BadImage: as `load_image`.
    """
    decoded = _decode(Path(path), None)
    kind, exif = decoded.format or "", _clean_exif(decoded)
    image = flat(decoded)
    profile = image.info.get("icc_profile") or None
    if image.mode == "RGB" and profile is not None and not is_rgb_profile(profile):
        profile = None
    elif image.mode != "RGB":
        image, profile = as_srgb(image), None
    image.info = {}
    alpha, under = _transparency(decoded)
    return OriginalPhoto(image, profile, exif, kind, alpha, under)


def _transparency(decoded: Image.Image) -> tuple[Image.Image | None, Image.Image | None]:
    """(alpha of a photo, its RGB numbers without alpha); (None, None) for an opaque photo."""
    if not decoded.has_transparency_data:
        return None, None
    whole = decoded.convert("RGBA")
    alpha = whole.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return None, None
    if decoded.mode not in ("LA", "La", "L", "1"):
        return alpha, whole.convert("RGB")
    grey = whole.getchannel("R")
    grey.info = decoded.info
    return alpha, as_srgb(grey)


def load_mask(path: Path) -> Image.Image:
    """A mask as an upright picture of mode L: the alpha of a picture with transparent parts, otherwise the
    brightness.

    Raises:
        BadImage: as `load_image`.
    """
    decoded = _decode(Path(path), None)
    if decoded.has_transparency_data:
        alpha = decoded.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] < 255:  # type: ignore[operator]
            return alpha
    return flat(decoded).convert("L")


def check_header(path: Path) -> tuple[int, int]:
    """(width, height) as stored, from the header alone.

    Raises:
        BadImage: missing, not a regular file, not an image, or larger than `MAX_PIXELS`.
    """
    with _open(Path(path)) as image:
        return image.size


def sha256_photo(path: Path) -> str:
    """sha256 (hex) of a photo's file. Its header is checked first, so that no other kind of file is read to
    the end.

    Raises:
        BadImage: as `check_header`.
    """
    check_header(path)
    return sha256_file(path)


SETTINGS = "triptych"
"""Text chunk of a PNG with its settings, as JSON; a JPEG has them in its comment."""


def read_info(path: Path) -> tuple[str, dict[str, Any]]:
    """The format of a picture, and the header data that Pillow finds: text chunks, comment, XMP. The picture
    may come from anybody.

    Raises:
        BadImage: as `check_header`.
    """
    with _open(Path(path)) as image:
        return str(image.format), {str(key): value for key, value in image.info.items()}


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings stored in a picture, or None. The picture may come from anybody, so they need checking.

    Raises:
        BadImage: as `check_header`.
    """
    kind, info = read_info(path)
    value = info.get("comment" if kind == "JPEG" else SETTINGS)
    try:
        data = parse_json(value) if isinstance(value, str | bytes) else None
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


# --- Decoding
# -----------------------------------------------------------------------------------------------------------


def _open(path: Path) -> Image.Image:
    """Open the picture at `path`: the header is read, the pixels are not."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        missing = (
            isinstance(error, FileNotFoundError | NotADirectoryError)
            or getattr(error, "errno", None) == errno.ENAMETOOLONG
        )
        reason = "there is no such file" if missing else "it may not be read"
        raise BadImage(path, reason, "Check the path and who may read it.") from error
    if not stat.S_ISREG(mode):  # a pipe or device would block for ever
        raise BadImage(path, "it is not a regular file", "Give the path of an image file.")
    if path.stat().st_size == 0:
        raise BadImage(path, "the file is empty", "Copy the photo again.")
    try:
        with path.open("rb") as file:
            foreign, page = look(file, path.suffix, heif=_reads_heif())
        if foreign is not None:
            raise BadImage(path, foreign.reason, foreign.hint)
        if path.stat().st_size > MAX_BYTES:
            raise BadImage(
                path,
                f"too large: the file has {path.stat().st_size / (1 << 30):.0f} GB",
                "Save it again as JPEG.",
            )
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(path, formats=(*FORMATS, "HEIF") if _reads_heif() else FORMATS)
            if page:
                image.seek(page)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "far over") from error
    except PermissionError as error:
        raise BadImage(path, "it may not be read", "Check who may read the file.") from error
    except Exception as error:  # damaged headers make the parsers raise almost any exception
        if path.suffix.lower() in (".avif", ".avifs") and not features.check("avif"):
            raise BadImage(path, "AVIF: this Pillow cannot read it, export as JPEG", EXPORT) from error
        raise BadImage(path, "not an image (or its header is damaged)") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path, f"{image.width}×{image.height} px,")
    if min(image.size) < 1:
        raise BadImage(path, "it has no pixels")
    return image


@functools.cache
def _reads_heif() -> bool:
    """Whether pillow-heif is installed, with which Pillow reads HEIC."""
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return False
    register_heif_opener()
    return True


def _too_large(path: Path, what: str) -> BadImage:
    return BadImage(
        path, f"too large: {what} more than {MAX_PIXELS / 1e6:g} megapixels", "Scale it down first."
    )


def _decode(path: Path, longest: int | None) -> Image.Image:
    """All pixels of the first frame, upright, in the file's own mode; keeps `format` and `info`."""
    with _open(path) as image:
        kind = image.format
        try:
            with warnings.catch_warnings(action="ignore"):
                if longest is not None:
                    image.draft(None, (2 * longest, 2 * longest))
                image.load()
        except Exception as error:  # damaged data makes the decoders raise almost any exception
            raise BadImage(path, "truncated or damaged") from error
        try:
            with warnings.catch_warnings(action="ignore"):
                ImageOps.exif_transpose(image, in_place=True)  # a copy would double the memory
        except Exception:  # unreadable EXIF gives no orientation
            pass
    image.format = kind
    return image


def _clean_exif(image: Image.Image) -> bytes | None:
    """EXIF of an upright picture, without GPS position, orientation and thumbnail of the unedited photo."""
    try:
        with warnings.catch_warnings(action="ignore"):
            exif = image.getexif()
            for tag in (_GPS, _XMP, _ORIENTATION):  # XMP may contain the position too
                exif.pop(tag, None)
            return exif.tobytes() if len(exif) else None
    except Exception:  # leave damaged EXIF out
        return None
