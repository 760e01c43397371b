"""Automatic masks: a parser's label map and the kind of the new garment make polygons, as users draw them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.errors import InputError
from triptych.pictures.images import load_image, sha256_photo
from triptych.pictures.outlines import outlines
from triptych.pictures.polygons import Outlines, Polygons
from triptych.pocket.known_worlds import check_pictures
from triptych.vision.parsing import Parser, open_parser
from triptych.vton.config import AUTO
from triptych.vton.region import KINDS, kind_in, region


def kind_of(mask: object, prompt: str) -> str:
    """The kind in `auto:KIND`; of `auto` alone, the one that the prompt names.

    Raises:
        InputError: an unknown kind, or none, and the prompt names none either.
    """
    _, colon, kind = str(mask).partition(":")
    kind = kind.strip().lower() if colon else kind_in(prompt) or ""
    if kind in KINDS:
        return kind
    problem = (
        f"There is no kind of garment '{kind[:40]}'" if colon else "The prompt does not say what is put on"
    )
    raise InputError(f"{problem}.", f"Give --mask {AUTO}:KIND with one of {', '.join(KINDS)}.")


def proposed(
    photo: Image.Image, kind: str, parser: str = "pocket", *, name: str = "The photo", anyway: bool = False
) -> Outlines:
    """The region that a garment of a kind needs on the person in a photo.

    Args:
        photo: RGB, upright. kind: of `region.KINDS`. parser: see `open_parser`. name: of the photo, for
            messages. anyway: only warn if the parser has never seen such a photo.

    Raises:
        InputError: no person, or a photograph and a parser that knows none. ModelError: see `open_parser`.
    """
    parts = opened(parser)
    check_pictures(parts.knows, [(name, photo)], "parser", parser, anyway)
    labels = parts.parts(photo)
    area, holes = region(labels, kind)
    scale = photo.width / labels.shape[1], photo.height / labels.shape[0]

    def polygons(mask: np.ndarray) -> Polygons:
        return [[(x * scale[0], y * scale[1]) for x, y in corners] for corners in outlines(mask)]

    return Outlines(polygons(area), polygons(holes) if holes.any() else [], True)


@functools.lru_cache(maxsize=1)
def opened(parser: str) -> Parser:
    """A parser, opened once."""
    return open_parser(parser)


def proposed_for(path: Path, kind: str, parser: str, anyway: bool) -> Outlines:
    """`proposed`, of a file; once for each content."""
    return _proposed_for(path, sha256_photo(path), kind, parser, anyway)


@functools.lru_cache(maxsize=256)
def _proposed_for(path: Path, sha256: str, kind: str, parser: str, anyway: bool) -> Outlines:
    return proposed(load_image(path), kind, parser, name=path.name, anyway=anyway)
