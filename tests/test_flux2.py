"""FLUX.2-klein equals diffusers: its three ways of seeing references, known tokens put back, its text."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinKVPipeline, Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image
from torch import Tensor

from triptych.backbones.context import Reference, Window
from triptych.backbones.flux2.autoencoder import patchify, unpatchify
from triptych.backbones.flux2.model import empirical_mu, pack, position_ids, unpack
from triptych.backbones.settings import model_settings
from triptych.pictures.panels import PanelLayout
from triptych.sampling.canvas import to_pixels
from triptych.sampling.clean_context import groups_of_canvas, read_window
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.references import reference_size, references_of
from triptych.sampling.sampler import Canvases, Known, sample_latents
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON

PROMPT, LENGTH = "three pictures of one <Brand> item <IMAGE 1> a red dress", 24
PANEL = PanelLayout(64, 64, ("worn",), 1, ("worn",))
CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def models(tiny_flux2: Path) -> OpenedModel:
    return load_models(str(tiny_flux2), [PROMPT], device="cpu", dtype="fp32")


def pipeline(folder: Path, kind: type = Flux2KleinPipeline):
    opened = kind.from_pretrained(folder)
    opened.set_progress_bar_config(disable=True)
    return opened


def normal(models: OpenedModel, cells: Tensor) -> Tensor:
    """Latents as the pipelines return them → as the transformer sees them."""
    return (patchify(cells) - models.autoencoder.mean) / models.autoencoder.std


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def sampled(
    models: OpenedModel,
    layout: PanelLayout,
    seeds: list[int],
    sampling: Sampling,
    known: Known | None = None,
    references: tuple[Reference, ...] = (),
) -> Tensor:
    shape = 16, layout.size[1] // 16, layout.size[0] // 16
    text, empty = models.text([PROMPT] * len(seeds)), models.text([""] * len(seeds))
    canvases = Canvases(layout, shape, text, seeds, empty, known, references)
    return sample_latents(models.backbone, models.transformer, canvases, sampling)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_prompts_are_those_of_the_pipeline_bit_for_bit(models: OpenedModel, tiny_flux2: Path) -> None:
    encoder, pipe = models.backbone.load_text_encoder(), pipeline(tiny_flux2)
    for prompt in (PROMPT, "", "a dress " * 40):
        theirs, _ = pipe.encode_prompt(prompt, max_sequence_length=LENGTH)
        assert torch.equal(encoder.encode([prompt], LENGTH)["prompt_embeds"], theirs)
    assert encoder.count_tokens("") > 10, "the chat template counts"


def test_latents_are_normalised_as_in_the_pipeline(models: OpenedModel, tiny_flux2: Path) -> None:
    pipe, pixels = pipeline(tiny_flux2), to_pixels([photo(1, (96, 64))])
    mean, std = models.autoencoder.encode(pixels)
    torch.testing.assert_close(mean, pipe._encode_vae_image(pixels, None), **CLOSE)
    cells = unpatchify(mean * models.autoencoder.std + models.autoencoder.mean)
    shown = pipe.vae.decode(cells).sample.clamp(-1, 1)
    torch.testing.assert_close(models.autoencoder.decode(mean), shown, **CLOSE)
    assert std.shape == mean.shape == (1, 16, 4, 6) and (std > 0).all()


@pytest.mark.parametrize("tokens", [64, 1728, 4300, 4301, 9216])
@pytest.mark.parametrize("steps", [4, 28, 50])
def test_the_time_shift_is_the_pipelines(tokens: int, steps: int) -> None:
    assert empirical_mu(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps), abs=1e-9)


@pytest.mark.parametrize("references", [0, 1, 3])
@pytest.mark.parametrize(("guidance", "steps"), [(1.0, 4), (4.0, 5)])
def test_native_references_equal_flux2_klein(
    models: OpenedModel, tiny_flux2: Path, guidance: float, steps: int, references: int
) -> None:
    """Photos of their own sizes, at every step."""
    photos = [photo(number, size) for number, size in enumerate([(64, 64), (96, 64), (64, 80)][:references])]
    options = {"prompt": PROMPT, "height": 64, "width": 64, "max_sequence_length": LENGTH}
    options |= {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
    theirs = pipeline(tiny_flux2)(image=photos or None, generator=seeded(3), **options).images
    shown = tuple(
        Reference(models.autoencoder.encode(to_pixels([image]))[0], None, number)
        for number, image in enumerate(photos, 1)
    )
    ours = sampled(models, PANEL, [3], Sampling(steps, None, guidance, context="native"), None, shown)
    torch.testing.assert_close(ours, normal(models, theirs), **CLOSE)


def test_references_are_seen_by_each_sample_of_a_batch(models: OpenedModel) -> None:
    sampling, layout = Sampling(3, None, 2.0, context="native"), TRY_ON.layout(64, 64)
    own = [{"front": photo(1, (64, 64)), "back": photo(2, (64, 64))} for _ in range(2)]
    own[1]["back"] = photo(5, (64, 64))
    shown = references_of(models, own, layout, sampling)
    together = sampled(models, PANEL, [4, 5], sampling, None, shown)
    for number, seed in enumerate((4, 5)):
        alone = references_of(models, own[number : number + 1], layout, sampling)
        torch.testing.assert_close(
            together[number : number + 1], sampled(models, PANEL, [seed], sampling, None, alone), **CLOSE
        )
    assert (together - sampled(models, PANEL, [4, 5], sampling)).abs().max() > 1e-3


@pytest.mark.parametrize("context", ["native", "clean"])
def test_guidance_on_references_leads_away_from_what_is_made_without_them(
    models: OpenedModel, context: str
) -> None:
    """In a single step what is made is linear in the velocity: v = silent + scale · (shown − silent)."""
    sampling = Sampling(1, None, 4.0, context=context, context_placement="reference")  # type: ignore[arg-type]
    photos = {"front": photo(1, (64, 64)), "back": photo(2, (64, 64))}
    shown = references_of(models, [photos], TRY_ON.layout(64, 64), sampling)
    guided = sampled(models, PANEL, [3], replace(sampling, context_guidance_scale=3.0), None, shown)
    plain = replace(sampling, true_cfg_scale=1.0)
    led = sampled(models, PANEL, [3], plain, None, shown)
    empty = models.text([""])
    silent = sample_latents(
        models.backbone, models.transformer, Canvases(PANEL, (16, 4, 4), empty, [3], empty), plain
    )
    assert (led - silent).abs().max() > 1e-3
    torch.testing.assert_close(guided, silent + 3 * (led - silent), **CLOSE)


def test_known_tokens_are_put_back_as_by_a_callback(models: OpenedModel, tiny_flux2: Path) -> None:
    layout, known, mask = (
        TRY_ON.layout(32, 48),
        torch.randn(1, 16, 3, 6, generator=seeded(8)),
        torch.zeros(3, 6),
    )
    mask[1:, 4:] = 1
    noise = torch.randn(1, 16, 3, 6, generator=seeded(21))

    def put_back(pipe, step, t, given):
        after = float(pipe.scheduler.sigmas[step + 1])
        level = (1 - after) * pack(known) + after * pack(noise)
        return {"latents": torch.where(pack(mask[None, None]) > 0, given["latents"], level)}

    options = {"prompt": PROMPT, "height": 48, "width": 96, "max_sequence_length": LENGTH}
    options |= {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = pipeline(tiny_flux2)(generator=seeded(21), callback_on_step_end=put_back, **options).images
    sampling = Sampling(5, None, 3.0, time_shift="canvas")
    ours = sampled(models, layout, [21], sampling, Known(known, mask))
    torch.testing.assert_close(ours, normal(models, theirs), **CLOSE)


def test_references_read_once_equal_flux2_klein_kv(models: OpenedModel, tiny_flux2: Path) -> None:
    photos = [photo(number, size) for number, size in enumerate([(64, 64), (96, 64)])]
    pipe = pipeline(tiny_flux2, Flux2KleinKVPipeline)
    options = {"prompt": PROMPT, "height": 64, "width": 64, "max_sequence_length": LENGTH}
    theirs = pipe(
        image=photos, num_inference_steps=4, generator=seeded(3), output_type="latent", **options
    ).images
    shown = tuple(
        Reference(models.autoencoder.encode(to_pixels([image]))[0], None, number)
        for number, image in enumerate(photos, 1)
    )
    sampling = Sampling(4, None, context="clean", context_placement="reference")
    ours = sampled(models, PANEL, [3], sampling, None, shown)
    torch.testing.assert_close(ours, normal(models, theirs), **CLOSE)
    products = sampled(models, PANEL, [3], replace(sampling, context_reading="products"), None, shown)
    assert torch.equal(ours, products), "without a known person both readings are one"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_clean_context_on_the_canvas_equals_diffusers_own_pass(
    models: OpenedModel, tiny_flux2: Path, share: float
) -> None:
    """The KV model's `extract`: all tokens in one pass, known ones at t = 0 and blind to the rest."""
    backbone, kv = models.backbone, pipeline(tiny_flux2, Flux2KleinKVPipeline).transformer
    known = torch.rand(3, 6, generator=seeded(4)) < share
    known[0, 0], known[2, 5] = True, False
    latents = torch.randn(2, 16, 3, 6, generator=seeded(5))
    text = {"prompt_embeds": torch.randn(2, 24, 48, generator=seeded(6))}
    with torch.no_grad():
        groups = groups_of_canvas(latents, ~known)
        window = read_window(backbone, models.transformer, ~known, groups, text, True)
        ours = backbone.velocity(models.transformer, latents, torch.full((2,), 0.7), text, None, window)
        flat, ids = known.flatten(), position_ids(3, 6, 0, latents.device)
        order = torch.cat([flat.nonzero()[:, 0], (~flat).nonzero()[:, 0]])
        words = torch.zeros(24, 4)
        words[:, 3] = torch.arange(24)
        theirs = kv(
            hidden_states=pack(latents)[:, order],
            encoder_hidden_states=text["prompt_embeds"],
            timestep=torch.full((2,), 0.7),
            img_ids=ids[order],
            txt_ids=words,
            kv_cache_mode="extract",
            num_ref_tokens=int(flat.sum()),
            return_dict=False,
        )[0]
    torch.testing.assert_close(pack(ours)[:, ~flat], theirs, **CLOSE)
    assert (pack(ours)[:, flat] == 0).all()


def test_a_polygon_is_repainted_with_the_person_as_a_reference(models: OpenedModel) -> None:
    """Known cells come back exactly; the tokens under the polygon are never shown, and the rest of the person
    is.
    """
    layout = TRY_ON.layout(64, 64)
    garment = {"front": photo(1, (64, 64)), "back": photo(2, (64, 96))}
    mask = torch.zeros(4, 4)
    mask[1:3, 1:3] = 1

    def made(person: Tensor, **changes: object) -> Tensor:
        sampling = replace(Sampling(3, None, 2.0, context="native"), **changes)
        shown = references_of(models, [garment], layout, sampling)
        return sampled(models, PANEL, [7], sampling, Known(person, mask), shown)

    person = torch.randn(1, 16, 4, 4, generator=seeded(9))
    under, beside = person.clone(), person.clone()
    under[:, :, 1:3, 1:3] += 1
    beside[:, :, 0] += 1
    clean = {"context": "clean", "context_placement": "reference"}
    for changes in ({}, clean, {"active_tokens": "polygon"}, {**clean, "active_tokens": "polygon"}):
        first = made(person, **changes)
        assert torch.equal(first[:, :, 0], person[:, :, 0])
        assert (first - person)[:, :, 1:3, 1:3].abs().min() > 1e-4
        inside = made(under, **changes)[:, :, 1:3, 1:3] - first[:, :, 1:3, 1:3]
        assert inside.abs().max() < 1e-5, "strength 1 forgets what lay under the polygon"
        assert (made(beside, **changes)[:, :, 1:3, 1:3] - first[:, :, 1:3, 1:3]).abs().max() > 1e-4
    fast, whole = (made(person, **clean, active_tokens=which) for which in ("polygon", "panel"))
    assert (fast - whole).abs().max() > 1e-4


def test_tokens_run_beside_the_active_ones_are_not_returned(models: OpenedModel) -> None:
    backbone, transformer = models.backbone, models.transformer
    latents, text = torch.randn(1, 16, 4, 4), models.text([PROMPT])
    reference = Reference(torch.randn(1, 16, 4, 6), torch.rand(4, 6) < 0.5, 1)
    active = torch.zeros(4, 4, dtype=torch.bool)
    active[1:3] = True
    with torch.no_grad():
        ours = backbone.velocity(
            transformer, latents, torch.tensor([0.6]), text, None, Window(active, beside=(reference,))
        )
        ids = torch.cat(
            [
                position_ids(4, 4, 0, latents.device)[active.flatten()],
                position_ids(4, 6, 1, latents.device)[reference.known.flatten()],
            ]
        )
        words = torch.zeros(24, 4)
        words[:, 3] = torch.arange(24)
        tokens = [
            pack(latents)[:, active.flatten()],
            pack(reference.latents_BCHW)[:, reference.known.flatten()],
        ]
        theirs = transformer(
            hidden_states=torch.cat(tokens, 1),
            encoder_hidden_states=text["prompt_embeds"],
            timestep=torch.tensor([0.6]),
            img_ids=ids,
            txt_ids=words,
            return_dict=False,
        )[0][:, :8]
    torch.testing.assert_close(pack(ours)[:, active.flatten()], theirs, **CLOSE)
    assert (ours[:, :, 0] == 0).all() and unpack(pack(latents), 4, 4).equal(latents)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((576, 768), (576, 768)),
        ((1152, 1536), (576, 768)),
        ((768, 576), (768, 576)),
        ((1000, 1000), (656, 656)),
    ],
)
def test_a_reference_keeps_its_shape_at_the_area_of_a_panel(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert reference_size(size, TRY_ON.layout(576, 768), 16) == expected


def test_base_distilled_and_kv_differ_in_their_settings(tiny_flux2: Path, tmp_path: Path) -> None:
    def settings(**changes: object) -> tuple[object, ...]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(tiny_flux2, folder, ignore=shutil.ignore_patterns("triptych.json"))
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, **changes}))
        own = model_settings(str(folder))
        return own.num_inference_steps, own.true_cfg_scale, own.context, own.context_placement

    assert settings() == (28, 4.0, "native", "reference")
    assert settings(is_distilled=True) == (4, 1.0, "native", "reference")
    assert settings(_class_name="Flux2KleinKVPipeline") == (4, 1.0, "clean", "reference")
