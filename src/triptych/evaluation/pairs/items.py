"""What is measured of one made picture: against its true photo, or unpaired against the garment's photo."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from triptych.errors import InputError
from triptych.evaluation.metrics.colour import base_colour, ciede2000, lab_of
from triptych.evaluation.metrics.features import FeatureNet, cosine
from triptych.evaluation.metrics.perceptual import Perceptual
from triptych.evaluation.metrics.reading import Reader, agreement
from triptych.evaluation.metrics.similarity import ssim
from triptych.evaluation.pairs.protocol import Protocol
from triptych.evaluation.pairs.sets import Pair
from triptych.pictures.images import check_header, load_image, load_mask, load_original
from triptych.vision.garment import garment_mask

CROP = 256
"""Longer side in pixels of a garment's crop."""
LEAST = 64
"""Pixels of a garment that are needed to compare it."""


@dataclass(frozen=True)
class Instruments:
    """What measures; None where there is none."""

    protocol: Protocol
    garment: FeatureNet
    lpips: Perceptual | None = None
    dists: Perceptual | None = None
    reader: Reader | None = None
    crops: dict[str, np.ndarray] = field(default_factory=dict)
    """Features of true garments' crops by pair, which several folders share."""


@dataclass(frozen=True)
class Measured:
    """The values of an item by measure, None where there is none, and why. made, true: both pictures at the
    protocol's size, for features.
    """

    values: dict[str, float | None]
    why: dict[str, str] = field(default_factory=dict)
    made: Image.Image | None = None
    true: Image.Image | None = None


class Garment(NamedTuple):
    """A picture, and where it shows the garment, (H, W) bool."""

    image: Image.Image
    inside: np.ndarray


def measured(pair: Pair, made_path: Path, tools: Instruments) -> Measured:
    """Everything that can be measured of a made picture.

    ssim, lpips, dists: of whole pictures, paired alone. garment: cosine of the features of the garments'
    crops, the made one's base colour moved to the true one's, so that a wrong colour counts once, as colour:
    ΔE00 of the base colours. sharpness: variance of the Laplacian in the garment, by the true one's (Pech-
    Pacheco et al. 2000). text: agreement of what is read. outside: pixels beyond the mask that are not the
    person photo's own. Unpaired, garment, colour and text are compared with the garment's photo.

    Raises:
        InputError: an unusable picture, or one of another aspect.
    """
    protocol, why = tools.protocol, dict[str, str]()
    values: dict[str, float | None] = {}
    target = load_image(pair.truth or pair.person)
    size = (protocol.width, protocol.height) if protocol.width and protocol.height else target.size
    made, true = (
        sized(load_image(made_path), size, protocol, made_path),
        sized(target, size, protocol, pair.person),
    )
    if pair.truth:
        values["ssim"] = ssim(made, true)
        for name, network in (("lpips", tools.lpips), ("dists", tools.dists)):
            if network:
                values[name] = network.distance(made, true)
            else:
                values[name], why[name] = None, f"no weights are given: --{name}-weights FILE.safetensors"
    both, reason = _garments(pair, made, true)
    if both is None:
        why |= dict.fromkeys(("garment", "colour", "sharpness", "text"), reason)
    else:
        values |= _garment_values(*both, tools, why, pair.id, paired=pair.truth is not None)
    values["outside"], reason = changed_outside(pair, made_path, protocol)
    if reason:
        why["outside"] = reason
    return Measured({name: values.get(name) for name in protocol.passes}, why, made, true)


def sized(image: Image.Image, size: tuple[int, int], protocol: Protocol, path: Path) -> Image.Image:
    """A picture at a size.

    Raises:
        InputError: it would be stretched by more than the protocol allows.
    """
    if image.size == size:
        return image
    stretch = abs(image.width * size[1] / (image.height * size[0]) - 1)
    if stretch > protocol.most_stretch:
        raise InputError(
            f"{path} has {image.width}×{image.height} px, which is another aspect than {size[0]}×{size[1]}.",
            "Crop it, or give a --protocol with another size.",
        )
    return image.resize(size, Image.Resampling[protocol.filter.upper()])


def _region(path: Path, labels: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """Where a mask is white, or a map has one of the labels: (H, W) bool at a size."""
    if not labels:
        return np.asarray(load_mask(path).resize(size, Image.Resampling.BOX)) > 127
    check_header(path)
    with Image.open(path) as image:  # a palette's numbers are the labels
        numbers = image if image.mode in ("P", "L") else image.convert("L")
        return np.isin(np.asarray(numbers.resize(size, Image.Resampling.NEAREST)), labels)


def _garments(pair: Pair, made: Image.Image, true: Image.Image) -> tuple[tuple[Garment, Garment] | None, str]:
    """The garment in the made picture and the one it is compared with; or the reason why there is none."""
    where, labels = (pair.region, pair.labels) if pair.truth and pair.region else (pair.mask, ())
    if where is None:
        return None, "the set does not say where the garment is (no label map, no mask)"
    inside = _region(where, labels, made.size)
    if inside.sum() < LEAST:
        return None, f"the garment covers fewer than {LEAST} pixels"
    if pair.truth:
        return (Garment(made, inside), Garment(true, inside)), ""
    product = load_image(pair.garments[0], longest=max(made.size))
    try:
        shape = _region(pair.cloth_mask, (), product.size) if pair.cloth_mask else garment_mask(product)
    except InputError as error:
        return None, error.message
    return (Garment(made, inside), Garment(product, shape)), ""


def _garment_values(
    made: Garment, true: Garment, tools: Instruments, why: dict[str, str], key: str, *, paired: bool
) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    colours = [base_colour(np.asarray(one.image)[one.inside]) for one in (made, true)]
    values["colour"] = float(ciede2000(*map(lab_of, colours)))
    moved = np.clip(np.asarray(made.image, dtype=np.float64) + (colours[1] - colours[0]), 0, 255)
    recoloured = made._replace(image=Image.fromarray(moved.round().astype(np.uint8)))
    if key not in tools.crops:
        tools.crops[key] = tools.garment.features([crop(true, colours[1])])[0]
    (features,) = tools.garment.features([crop(recoloured, colours[1])])
    values["garment"] = cosine(features, tools.crops[key])
    if paired:
        values["sharpness"] = sharpness(made, true)
    else:
        why["sharpness"] = "the garment's photo shows it at another size"
    if tools.reader is None:
        why["text"] = "no reader is installed (tesseract)"
    else:
        read = [tools.reader.read(crop(one, colours[1], 0)) for one in (made, true)]
        values["text"] = agreement(*read)
        if values["text"] is None:
            why["text"] = "nothing is printed on the true garment"
    return values


def crop(garment: Garment, ground: np.ndarray, longest: int = CROP) -> Image.Image:
    """The box around a garment, with `ground` (3,) in place of all that is none; scaled so that the longer
    side is `longest`, 0: as it is.
    """
    rows, columns = np.flatnonzero(garment.inside.any(1)), np.flatnonzero(garment.inside.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    pixels = np.where(garment.inside[box][..., None], np.asarray(garment.image)[box], ground.round())
    image = Image.fromarray(pixels.astype(np.uint8))
    if not longest:
        return image
    scale = longest / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def sharpness(made: Garment, true: Garment) -> float:
    """The variance of the Laplacian inside the garment, by that of the true one, at most 2: 1 is as sharp,
    less is blurred. One pixel at the edge is left out. Without any structure in the true one it is 1.
    """
    inside = ndimage.binary_erosion(true.inside)
    found, wanted = (
        float(ndimage.laplace(np.asarray(one.image.convert("L"), float))[inside].var())
        if inside.any()
        else 0.0
        for one in (made, true)
    )
    return min(2.0, found / wanted) if wanted > 1e-9 else 1.0


def changed_outside(pair: Pair, made_path: Path, protocol: Protocol) -> tuple[float | None, str]:
    """How many pixels beyond the mask, widened by the protocol's edge, are not exactly the person photo's;
    or None and the reason.
    """
    if pair.mask is None:
        return None, "the set has no masks"
    made, person = load_original(made_path), load_original(pair.person)
    if made.format == "JPEG":
        return None, "the made pictures are JPEGs, which keep no pixel exactly"
    if made.image.size != person.image.size:
        return None, "the made pictures have another size than the photos"
    mask = np.asarray(load_mask(pair.mask).resize(person.image.size, Image.Resampling.BOX)) > 0
    if protocol.edge:
        mask = ndimage.distance_transform_edt(~mask) <= protocol.edge if mask.any() else mask
    different = (np.asarray(made.image) != np.asarray(person.image)).any(axis=2)
    return float((different & ~mask).sum()), ""
