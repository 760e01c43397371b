"""Proposed masks as polygons, as users draw them: of a parser's label map and the kind of the new garment, or
of the points at which a user says what goes.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.errors import InputError
from triptych.pictures.images import load_image, sha256_photo
from triptych.pictures.outlines import outlines
from triptych.pictures.polygons import Outlines, Polygons
from triptych.pocket.known_worlds import check_pictures
from triptych.vision.parsing import Parser, open_parser
from triptych.vision.pointing import Point, PointSegmenter
from triptych.vton.config import AUTO, POINTS
from triptych.vton.region import KINDS, kind_in, region

Asked = str | tuple[Point, ...]
"""What a proposal is for: a kind of garment (of `region.KINDS`), or points on what goes."""
MAX_POINTS = 100


def asked_for(mask: object, prompt: str) -> Asked:
    """The kind in `auto:KIND`, of `auto` alone the one that the prompt names; the points in `points:X,Y;X,Y`,
    where `!X,Y` is not part of what is meant.

    Raises:
        InputError: an unknown kind, or none, and the prompt names none either; or no points.
    """
    word, colon, kind = str(mask).partition(":")
    if word == POINTS:
        return _points(kind)
    kind = kind.strip().lower() if colon else kind_in(prompt) or ""
    if kind in KINDS:
        return kind
    problem = (
        f"There is no kind of garment '{kind[:40]}'" if colon else "The prompt does not say what is put on"
    )
    raise InputError(f"{problem}.", f"Give --mask {AUTO}:KIND with one of {', '.join(KINDS)}.")


def _points(text: str) -> tuple[Point, ...]:
    points = []
    for word in text.split(";"):
        found = re.fullmatch(r"\s*(!?)\s*(\d{1,6}(?:\.\d{1,6})?)\s*,\s*(\d{1,6}(?:\.\d{1,6})?)\s*", word)
        if not found:
            raise InputError(
                f"'{word[:40]}' is no point.", f"Give --mask {POINTS}:X,Y;X,Y in pixels of the upright photo."
            )
        points.append(Point(float(found[2]), float(found[3]), not found[1]))
    if not any(point.inside for point in points) or len(points) > MAX_POINTS:
        raise InputError(
            f"--mask {POINTS} needs 1 to {MAX_POINTS} points, at least one of them on what is to go.",
            f"Give --mask {POINTS}:X,Y; a point !X,Y says what is to stay.",
        )
    return tuple(points)


def proposed(
    photo: Image.Image, asked: Asked, parser: str = "pocket", *, name: str = "The photo", anyway: bool = False
) -> Outlines:
    """The region that a garment of a kind needs on the person in a photo, or what is at the points.

    Args:
        photo: RGB, upright. parser: for a kind see `open_parser`, for points `PointSegmenter`. name: of the
            photo, for messages. anyway: only warn if the parser has never seen such a photo.

    Raises:
        InputError: no person, a photograph and a parser that knows none, or points that mean nothing.
        ModelError: see `open_parser` and `PointSegmenter`.
    """
    if not isinstance(asked, str):
        return _pointed_at(photo, asked, parser, name)
    parts = opened(parser)
    check_pictures(parts.knows, [(name, photo)], "parser", parser, anyway)
    labels = parts.parts(photo)
    area, holes = region(labels, asked)
    scale = photo.width / labels.shape[1], photo.height / labels.shape[0]

    def polygons(mask: np.ndarray) -> Polygons:
        return [[(x * scale[0], y * scale[1]) for x, y in corners] for corners in outlines(mask)]

    return Outlines(polygons(area), polygons(holes) if holes.any() else [], True)


def _pointed_at(photo: Image.Image, points: tuple[Point, ...], model: str, name: str) -> Outlines:
    outside = [point for point in points if not (point.x < photo.width and point.y < photo.height)]
    if outside or all(max(point.x, point.y) <= 1 for point in points):
        where = (
            f"({outside[0].x:g}, {outside[0].y:g}) lies outside" if outside else "All points are at a corner"
        )
        raise InputError(
            f"{name} has {photo.width} × {photo.height} pixels: {where}.",
            f"Give --mask {POINTS}:X,Y in pixels of the upright photo, not in fractions or percent.",
        )
    if model == "pocket":
        raise InputError(
            "The embedded parser knows parts of people, not points.",
            "Give --parser facebook/sam-vit-base or another SAM model, or --mask auto:KIND.",
        )
    mask = segmenter(model).mask(photo, points)
    if not mask.any():
        raise InputError(
            f"{model} sees nothing at these points of {name}.", "Give other points, or --polygon."
        )
    return Outlines(outlines(mask), [], True)


@functools.lru_cache(maxsize=1)
def segmenter(model: str) -> PointSegmenter:
    """A model that is asked with points, opened once."""
    return PointSegmenter(model)


@functools.lru_cache(maxsize=1)
def opened(parser: str) -> Parser:
    """A parser, opened once."""
    return open_parser(parser)


def proposed_for(path: Path, asked: Asked, parser: str, anyway: bool) -> Outlines:
    """`proposed`, of a file; once for each content."""
    return _proposed_for(path, sha256_photo(path), asked, parser, anyway)


@functools.lru_cache(maxsize=256)
def _proposed_for(path: Path, sha256: str, asked: Asked, parser: str, anyway: bool) -> Outlines:
    return proposed(load_image(path), asked, parser, name=path.name, anyway=anyway)
