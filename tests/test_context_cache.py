"""Keys and values of known panels are kept: the same pictures, less reading, a bounded memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.sampling import clean_context
from triptych.sampling.clean_context import (
    ContextCache,
    apart,
    groups_of_canvas,
    kept_window,
    read_window,
)
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.tryon import TryonConfig, tryon
from triptych.vton.dress import try_on
from triptych.vton.request import Person

from .conftest import latent_shape
from .test_tryon import inputs as inputs
from .test_tryon import options

LAYOUT = TRY_ON.layout(32, 48)
CLEAN = Sampling(2, context="clean", context_reading="products")


@pytest.fixture(scope="module")
def models(tiny: Path) -> OpenedModel:
    return load_models(str(tiny), ["p"], device="cpu", dtype="fp32")


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((32, 48), Image.Resampling.BICUBIC)


def dress(
    models: OpenedModel, cache: ContextCache, person: int, seeds: list[int], sampling: Sampling, back: int = 2
) -> list[np.ndarray]:
    models.contexts = cache
    mask = np.zeros((48, 32), dtype=np.float32)
    mask[10:40, 4:14] = 1
    (made,) = try_on(
        models,
        picture(1),
        picture(back),
        [Person(picture(person), mask, "p", seeds)],
        LAYOUT,
        sampling,
        feather=0,
    )
    return [np.asarray(one.image) for one in made]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("reading", ["joint", "products", "each"])
def test_what_is_kept_changes_no_picture(models: OpenedModel, reading: str, guidance: float) -> None:
    sampling = dataclasses.replace(CLEAN, context_reading=reading, context_guidance_scale=guidance)
    cache = ContextCache(1 << 30)
    for person, seed in ((10, 0), (11, 0), (10, 1), (10, 0)):
        (fresh,) = dress(models, ContextCache(0), person, [seed], sampling)
        (kept,) = dress(models, cache, person, [seed], sampling)
        assert np.array_equal(fresh, kept)
    assert cache.hits > 0
    (other,) = dress(models, cache, 10, [0], sampling, back=3)
    assert (other != kept).any(), "another product is not taken for this one"


def test_a_product_is_read_once_for_all_persons_and_seeds(models: OpenedModel) -> None:
    # Panels that are encoded alone have latents of their own anyway; else the products' are kept as well.
    own = 0 if models.backbone.family.references else 1
    cache = ContextCache(1 << 30)
    dress(models, cache, 10, [0], CLEAN)
    assert (cache.hits, cache.misses) == (0, own + 2), "product tokens, what is known of the person"
    dress(models, cache, 11, [0, 1], CLEAN)
    assert (cache.hits, cache.misses) == (own + 1, own + 3), "only the other person, once for both seeds"
    dress(models, cache, 11, [5], CLEAN)
    assert (cache.hits, cache.misses) == (2 * own + 3, own + 3)
    dress(models, cache, 10, [0], dataclasses.replace(CLEAN, context_lora=True))
    assert cache.misses == own + 5, "read with the LoRA is something else"
    summary = cache.summary()
    assert summary["held"] == len(cache) == own + 5
    assert summary["held_gib"] == round(cache.nbytes / 2**30, 3)


def test_the_limit_holds_and_the_longest_unused_goes_first() -> None:
    cache = ContextCache(100)
    entries = {name: torch.zeros(10) for name in "abc"}  # 40 bytes each
    for name in ("a", "b", "a", "c"):
        assert cache.get(name, lambda name=name: entries[name]) is entries[name]
    assert (cache.nbytes, cache.hits, cache.misses) == (80, 1, 3)
    cache.get("a", lambda: pytest.fail("a was used last"))
    cache.get("b", lambda: entries["b"])
    assert (cache.misses, cache.nbytes) == (4, 80)
    large = torch.zeros(26)
    assert cache.get("large", lambda: large) is large
    assert len(cache) == 2, "what is larger than the limit drives nothing out"
    exact = ContextCache(80)
    for name in "ab":
        exact.get(name, lambda name=name: entries[name])
    assert exact.nbytes == 80, "what just fits stays"
    whole = ContextCache(40)
    whole.get("a", lambda: entries["a"])
    assert whole.nbytes == 40


def test_the_summary_is_in_gib() -> None:
    cache = ContextCache(1 << 31)
    cache.get("key", lambda: SimpleNamespace(nbytes=1_234_567_890))
    assert cache.summary() == {"reused": 0, "read": 1, "held": 1, "held_gib": 1.15}


def test_reading_with_room_is_reading(models: OpenedModel) -> None:
    """Rows of a batch are read one by one, equal ones once, and what the joint pass over the batch gives
    comes out.
    """
    backbone, transformer = models.backbone, models.transformer
    latents = torch.randn(3, *latent_shape(backbone), generator=torch.Generator().manual_seed(0))
    latents[2] = latents[0]
    active = torch.zeros(3, 6, dtype=torch.bool)
    active[:2, 4:] = True
    text, empty, t = models.text(["p"] * 3), models.text([""] * 3), torch.full((3,), 0.6)
    cache = ContextCache(1 << 30)
    for reading in ("joint", "products", "each"):
        cache.misses = 0
        groups = groups_of_canvas(latents, active, None, apart(LAYOUT, 16, reading))
        about = backbone, transformer, active, groups, empty, True
        plain = read_window(*about)
        roomy = kept_window(*about, batch=3, room=4 + 24 + 77, cache=cache)
        with torch.no_grad():
            one, other = (
                backbone.velocity(transformer, latents, t, text, 3.5, window) for window in (plain, roomy)
            )
        assert (one - other).abs().max() < 1e-6
        assert cache.misses == {"joint": 2, "products": 4, "each": 6}[reading]
    assert roomy.context is not None and roomy.context.filled == 14
    assert not any(value.requires_grad for pair in roomy.context.kept.values() for value in pair)


def test_what_was_read_with_nothing_to_find_again_is_not_hashed(
    models: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan's tensors have no data to hash."""
    monkeypatch.setattr(clean_context, "_key", lambda *_: pytest.fail("one canvas and no cache: no key"))
    (active,) = apart(LAYOUT, 16, "products")
    groups = groups_of_canvas(torch.zeros(1, *latent_shape(models.backbone)), active)
    for cache in (None, ContextCache(0)):
        window = kept_window(
            models.backbone, models.transformer, active, groups, models.text([""]), True, room=1, cache=cache
        )
        assert window.context is not None and window.context.filled == 6


@pytest.mark.parametrize("change", ["places", "grid", "values", "before", "lora"])
def test_everything_that_was_read_is_in_the_key(models: OpenedModel, change: str) -> None:
    """Latents of one colour, so that what stands under the known tokens is the same wherever they are."""
    backbone, transformer, empty = models.backbone, models.transformer, models.text([""])
    channels, *size = latent_shape(backbone)
    latents = torch.full((1, channels, *size), 0.25)
    known = torch.zeros(3, 6, dtype=torch.bool)
    known[0, :2] = True
    other_latents, other_known, with_lora, first = latents, known, True, []
    if change == "places":
        other_known = known.flip(1)
    elif change == "grid":
        other_latents, other_known = (
            latents.reshape(1, channels, *size[::-1]),
            torch.zeros(6, 3, dtype=torch.bool),
        )
        other_known[0, :2] = True
    elif change == "values":
        other_latents = latents.clone()
        other_latents[0, 3, 0, 1] = 0.5
    elif change == "before":
        first = [torch.zeros(3, 6, dtype=torch.bool)]
        first[0][0, 0] = True
    elif change == "lora":
        with_lora = False
    cache = ContextCache(1 << 30)
    groups = groups_of_canvas(latents, ~known)
    kept_window(backbone, transformer, ~known, groups, empty, True, room=1, cache=cache)
    others = groups_of_canvas(other_latents, ~other_known, None, first)
    about = backbone, transformer, ~other_known, others, empty, with_lora
    window = kept_window(*about, room=1, cache=cache)
    fresh = kept_window(*about, room=1)
    assert cache.hits == 0, f"read before with other {change}"
    assert window.context is not None and fresh.context is not None
    for kept, made in zip(window.context.kept.values(), fresh.context.kept.values(), strict=True):
        count = int(other_known.sum())
        for one, other in zip(kept, made, strict=True):
            dim = window.context.sequence_dim
            assert torch.equal(one.narrow(dim, 0, count), other.narrow(dim, 0, count))


def test_the_verb_says_how_much_it_keeps(tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    def run(**changes) -> dict:
        config: TryonConfig = options(
            tiny_flux, inputs, tmp_path, context="clean", num_images_per_prompt=2, **changes
        )
        return tryon(config).finish()["context_cache"]

    kept = run()
    assert kept["reused"] == kept["read"] == kept["held"] == 1, "the second seed reads nothing"
    none = run(context_cache_gib=0, out=tmp_path / "other.png")
    assert (none["reused"], none["held"], none["held_gib"]) == (0, 0, 0)
    alone = options(tiny_flux, inputs, tmp_path, context="clean", out=tmp_path / "alone.png")
    assert tryon(alone).finish()["context_cache"]["held"] == 0, "one picture keeps nothing"
    names = [(tmp_path / f"{stem}-1.png") for stem in ("out", "other")]
    assert np.array_equal(*(np.asarray(Image.open(name)) for name in names))
