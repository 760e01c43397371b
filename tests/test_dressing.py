"""Several people, each with a polygon of their own, in one batch: everybody gets the picture they would get
alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.errors import InputError
from triptych.sampling.clean_context import ContextCache
from triptych.sampling.options import Sampling
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON
from triptych.vton.dress import try_on
from triptych.vton.request import Person

LAYOUT = TRY_ON.layout(48, 64)


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((48, 64), Image.Resampling.BICUBIC)


def person(number: int, box: tuple[int, int, int, int], seeds: list[int]) -> Person:
    left, top, right, bottom = box
    mask = np.zeros((64, 48), dtype=np.float32)
    mask[top:bottom, left:right] = 1
    return Person(picture(10 + number), mask, f"p{number}", seeds)


PEOPLE = [
    person(0, (17, 17, 31, 47), [3]),
    person(1, (1, 1, 47, 47), [4, 5]),
    person(2, (20, 20, 24, 60), [6]),
]


@pytest.mark.parametrize("reading", ["joint", "products"])
@pytest.mark.parametrize(("context", "guidance"), [("noisy", 1.0), ("clean", 1.0), ("clean", 3.0)])
def test_a_batch_makes_what_each_would_get_alone(
    tiny: Path, context: str, guidance: float, reading: str
) -> None:
    models = load_models(str(tiny), [one.prompt for one in PEOPLE], device="cpu", dtype="fp32")
    sampling = Sampling(3, context=context, context_guidance_scale=guidance, context_reading=reading)  # type: ignore[arg-type]
    models.contexts = ContextCache(1 << 30)
    together = try_on(models, picture(1), picture(2), PEOPLE, LAYOUT, sampling, feather=0)
    assert [len(results) for results in together] == [1, 2, 1]
    # Alone, rounded up to the tokens of the one who needs most, a person runs the very tokens that were run
    # in the batch.
    most = 9 if models.backbone.settings.stride == 16 else 36
    alone = dataclasses.replace(sampling, token_bucket=most)
    for one, results in zip(PEOPLE, together, strict=True):
        for seed, result in zip(one.seeds, results, strict=True):
            models.contexts = ContextCache(0)
            ((single,),) = try_on(
                models,
                picture(1),
                picture(2),
                [dataclasses.replace(one, seeds=[seed])],
                LAYOUT,
                alone,
                feather=0,
            )
            difference = np.abs(np.asarray(result.canvas, int) - np.asarray(single.canvas, int))
            assert difference.max() <= 1, "but for the order of summation"
            kept = result.mask == 0
            assert np.array_equal(np.asarray(result.image)[kept], np.asarray(one.photo)[kept])
    assert len({np.asarray(result.image).tobytes() for results in together for result in results}) == 4


def test_the_words_are_each_persons_own(tiny: Path) -> None:
    models = load_models(str(tiny), ["p0"], device="cpu", dtype="fp32")
    two = [PEOPLE[0], dataclasses.replace(PEOPLE[0], prompt="another")]
    (one,), (other,) = try_on(
        models, picture(1), picture(2), two, LAYOUT, Sampling(2, context="clean"), feather=0
    )
    assert (np.asarray(one.image) != np.asarray(other.image)).any()


def test_known_panels_are_encoded_once_and_never_decoded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = load_models(str(tiny), ["p0"], device="cpu", dtype="fp32")
    widths: dict[str, list[int]] = {"encode": [], "decode": []}
    for name, seen in widths.items():
        real = getattr(models.autoencoder, name)
        monkeypatch.setattr(
            models.autoencoder, name, lambda x, real=real, seen=seen: seen.append(x.shape[-1]) or real(x)
        )
    ((result,),) = try_on(models, picture(1), picture(2), PEOPLE[:1], LAYOUT, Sampling(2), feather=0)
    apart = models.backbone.family.references  # its panels are encoded one by one
    encoded = [LAYOUT.width] * 3 if apart else [LAYOUT.size[0]]
    assert widths == {"encode": encoded, "decode": [LAYOUT.width // models.autoencoder.stride]}
    for number, role in ((1, "front"), (2, "back")):
        assert np.array_equal(np.asarray(result.canvas.crop(LAYOUT.box(role))), np.asarray(picture(number)))


def test_a_person_may_be_given_by_polygons_or_by_a_mask_of_any_kind(tiny_flux: Path) -> None:
    """The way of the notebook, `annotator.get_mask()` with 0 and 255, in the second place or by name: the
    polygon's own picture.
    """
    models = load_models(str(tiny_flux), ["p"], device="cpu", dtype="fp32")
    white = np.zeros((64, 48), dtype=np.uint8)
    white[17:47, 17:31] = 255
    outline = [[(17, 17), (31, 17), (31, 47), (17, 47)]]
    people = [
        Person(picture(10), outline, "p"),
        Person(picture(10), white, "p"),
        Person(picture(10), mask=white > 0, prompt="p"),
    ]
    pictures = [
        np.asarray(try_on(models, picture(1), picture(2), [one], LAYOUT, Sampling(1), feather=0)[0][0].image)
        for one in people
    ]
    assert (pictures[0] != np.asarray(picture(10)))[17:47, 17:31].any(axis=-1).mean() > 0.9
    assert all(np.array_equal(pictures[0], other) for other in pictures[1:])
    for wrong, words in (
        (Person(picture(10), prompt="p"), "polygons or a mask"),
        (Person(picture(10), outline, "p", mask=white), "one of the two"),
        (Person(picture(10), [[(0.2, 0.3), (0.6, 0.3), (0.6, 0.8)]], "p"), "fractions"),
    ):
        with pytest.raises(InputError, match=words):
            try_on(models, picture(1), picture(2), [wrong], LAYOUT, Sampling(1))
