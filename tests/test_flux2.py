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

from triptych import flow
from triptych.backbones.context import Reference, Window
from triptych.backbones.flux2.autoencoder import patchify, unpatchify
from triptych.backbones.flux2.model import empirical_mu, pack, position_ids, unpack
from triptych.backbones.settings import model_settings
from triptych.captioning.write import prompt_problems
from triptych.cli import main
from triptych.data.embeddings import EmbeddingFolder
from triptych.errors import ConfigError
from triptych.lora.file import read_about
from triptych.pictures.images import read_settings
from triptych.pictures.panels import PanelLayout
from triptych.sampling.canvas import to_pixels
from triptych.sampling.clean_context import ContextCache, groups_of_canvas, read_window
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling, recommended
from triptych.sampling.references import reference_size, references_of
from triptych.sampling.sampler import Canvases, Known, sample_latents
from triptych.session import Session, load_models
from triptych.tasks.tryon import TRY_ON
from triptych.training.loss import losses_of
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.generate_config import GenerateConfig
from triptych.verbs.train import train
from triptych.vton.dress import try_on
from triptych.vton.request import Person

from .test_families import write_triptychs
from .test_resume import finish, rows_of, start
from .test_train import config, training_set, write_records

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


@pytest.mark.parametrize("context", ["clean", "native"])
@pytest.mark.parametrize("run_known", [False, True])
def test_training_shows_references_as_sampling_does(
    tiny_flux2: Path, tmp_path: Path, context: str, run_known: bool
) -> None:
    """The loss of a part of the worn panel is that of the velocity which `tryon` computes for it."""
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux2)
    options = config(tmp_path, tiny_flux2, context=context)
    data = training_set(tmp_path, options)
    opened = load_models(str(tiny_flux2), [], device="cpu", dtype="fp32")
    backbone, transformer = opened.backbone, opened.transformer
    batch = data.fixed(backbone, "id-1", 0.6)
    clean = torch.randn(batch.clean_BCHW.shape, generator=seeded(3)) * 3
    active = torch.zeros(3, 6, dtype=torch.bool)
    active[:2, 4:] = True
    batch = replace(batch, clean_BCHW=clean, active=active, run_known=run_known)
    shown = tuple(Reference(clean[..., start : start + 2], None, 1 + start // 2) for start in (0, 2))
    person = Reference(clean[..., 4:], ~active[:, 4:], 3)
    x = flow.interpolate(clean, batch.noise_BCHW, batch.t_B)[..., 4:]
    run = torch.ones(3, 2, dtype=torch.bool) if run_known else active[:, 4:]
    with torch.no_grad():
        window = Window(run, beside=(*shown, person))
        if context == "clean":
            window = read_window(backbone, transformer, run, [[*shown, person]], batch.empty, False)
        made = backbone.velocity(transformer, x, batch.t_B, batch.text, 1.0, window)
        loss = losses_of(options, backbone, transformer, batch).sample_B
        alone = losses_of(options, backbone, transformer, replace(batch, within=active)).sample_B
    error = made - (batch.noise_BCHW - clean)[..., 4:]
    assert loss.item() == pytest.approx(error[:, :, :2].square().mean().item(), rel=1e-5)
    assert loss.item() != pytest.approx(alone.item(), rel=1e-5), "without products it is something else"


def test_a_lora_remembers_where_its_panels_stood(tiny_flux2: Path, tmp_path: Path) -> None:
    cases = (
        ({"context": "clean"}, "reference"),
        ({"context": "native"}, "reference"),
        ({"context": "clean", "context_placement": "canvas"}, "canvas"),
        ({}, "reference"),
        ({"context": "noisy"}, None),
    )
    for number, (changes, placement) in enumerate(cases):
        work = tmp_path / str(number)
        write_records(work, ["id-1", "id-2"], tiny_flux2)
        train(config(work, tiny_flux2, max_train_steps=1, **changes)).finish()
        about = read_about(work / "lora")
        assert about.get("context_placement") == placement
        sampling = recommended(model_settings(str(tiny_flux2)), about)
        assert sampling.context == changes.get("context", "clean")
        assert sampling.context_placement == (placement or "canvas")


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("tiny_flux", {"context": "native"}, "do not know reference pictures"),
        ("tiny_sd3", {"context": "clean", "context_placement": "reference"}, "do not know reference"),
        ("tiny_flux2", {"context": "native", "context_placement": "canvas"}, "exclude each other"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, changes: dict, message: str
) -> None:
    folder = request.getfixturevalue(model)
    write_records(tmp_path, ["id-1", "id-2"], folder)
    with pytest.raises(ConfigError, match=message):
        train(config(tmp_path, folder, **changes))


def test_embed_stores_the_pipelines_latents_panel_by_panel(tiny_flux2: Path, tmp_path: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 2)
    options = {"device": "cpu", "dtype": "fp32", "columns": 3}
    summary = embed(EmbedConfig(work=tmp_path, model=str(tiny_flux2), **options)).finish()
    data, pipe = EmbeddingFolder(Path(summary["folder"])), pipeline(tiny_flux2)
    for id in data.ids:
        canvas = Image.open(tmp_path / "triptychs" / f"{id}.png")
        for left in (0, 32, 64):
            pixels = to_pixels([canvas.crop((left, 0, left + 32, 48))])
            cells = data[id].latent_mean_CHW[None, :, :, left // 16 : left // 16 + 2]
            torch.testing.assert_close(cells, pipe._encode_vae_image(pixels, None), **CLOSE)
        caption = (tmp_path / "triptychs" / f"{id}.txt").read_text()
        words, _ = pipe.encode_prompt(caption, max_sequence_length=LENGTH)
        torch.testing.assert_close(data[id].text["prompt_embeds"], words[0], **CLOSE)


def test_without_a_lora_any_sentence_will_do(tiny_flux2: Path, tiny_flux: Path) -> None:
    for model, lora in ((tiny_flux2, None), (tiny_flux2, Path("lora")), (tiny_flux, None)):
        described = GenerateConfig(model=str(model), lora=lora).describes_panels
        assert described == (lora is not None or model is tiny_flux)
    assert prompt_problems(str(tiny_flux2), "a person in the dress of image 1", 0) == []
    assert "marker" in prompt_problems(str(tiny_flux2), "a person in the dress of image 1", 3)[0]
    assert "markdown" in prompt_problems(str(tiny_flux2), "# a person", 0)[0]


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, Path]:
    for name, size in (("front", (60, 80)), ("back", (90, 70)), ("person", (120, 160))):
        photo(len(name), size).save(tmp_path / f"{name}.png")
    (tmp_path / "polygon.json").write_text(json.dumps({"polygons": [[[30, 40], [90, 40], [90, 120]]]}))
    return {path.stem: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize("more", [[], ["--context", "clean", "--active-tokens", "polygon"]])
def test_people_are_dressed_before_anything_is_trained(
    tiny_flux2: Path,
    tmp_path: Path,
    shop: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    more: list[str],
) -> None:
    words = ["tryon", "--model", tiny_flux2, "--prompt", "the dress", "--out", tmp_path / "t.png", *more]
    words += [f"--{name}" if not at else shop[name] for name in shop for at in (0, 1)]
    assert main([*map(str, words), "--json"]) == 0
    assert "marker" not in capsys.readouterr().err
    before, after = (np.asarray(Image.open(path)) for path in (shop["person"], tmp_path / "t.png"))
    assert (
        np.array_equal(before[:, :10], after[:, :10]) and (before[60:90, 55:65] != after[60:90, 55:65]).any()
    )
    recorded = read_settings(tmp_path / "t.png")
    assert recorded["context_placement"] == "reference" and recorded["context"] in ("native", "clean")
    photos = [word for name in shop for word in ("--photos", shop[name])]
    again = ["reproduce", tmp_path / "t.png", "--model", tiny_flux2, *photos, "--json"]
    assert main([*map(str, again)]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True


def test_a_photos_shape_is_seen_and_the_worn_panel_is_made(tiny_flux2: Path, shop: dict[str, Path]) -> None:
    """`generate` in memory: wide and tall products, in the triptych fitted into their panels."""
    session = Session(str(tiny_flux2), device="cpu", dtype="fp32")
    front, back = (Image.open(shop[name]).convert("RGB") for name in ("front", "back"))
    (picture,) = session.generate(front, back, "a person in the dress", num_inference_steps=2)
    assert picture.image.size == (32, 48) and picture.triptych.size == (96, 48) and picture.made == ("worn",)
    squeezed = back.resize((32, 48))
    (other,) = session.generate(front, squeezed, "a person in the dress", num_inference_steps=2)
    assert np.any(np.asarray(other.image) != np.asarray(picture.image))


def test_a_lora_of_references_makes_our_picture_in_diffusers(tiny_flux2: Path, tmp_path: Path) -> None:
    """With a LoRA that also reads the references, Flux2KleinKVPipeline makes the same picture."""
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux2)
    options = {"context": "clean", "context_lora": True, "learning_rate": 0.05, "ema_decay": 0.0}
    train(config(tmp_path, tiny_flux2, **options, max_train_steps=4)).finish()
    lora = tmp_path / "lora"
    opened = load_models(str(tiny_flux2), [PROMPT], lora, device="cpu", dtype="fp32")
    sampling = opened.sampling(num_inference_steps=4, true_cfg_scale=1.0)
    assert (sampling.context, sampling.context_placement) == ("clean", "reference") and sampling.context_lora
    photos = {"front": photo(1, (64, 64)), "back": photo(2, (64, 64))}
    shown = references_of(opened, [photos], TRY_ON.layout(64, 64), sampling)
    ours = sampled(opened, PANEL, [3], sampling, None, shown)
    pipe = pipeline(tiny_flux2, Flux2KleinKVPipeline)
    options = {"prompt": PROMPT, "height": 64, "width": 64, "max_sequence_length": LENGTH}
    options |= {"image": list(photos.values()), "num_inference_steps": 4, "output_type": "latent"}
    bare = normal(opened, pipe(generator=seeded(3), **options).images)
    pipe.load_lora_weights(lora)
    theirs = normal(opened, pipe(generator=seeded(3), **options).images)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (theirs - bare).abs().max() > 1e-2, "the LoRA does something"


def test_two_processes_learn_from_references_as_one(tiny_flux2: Path, tmp_path: Path) -> None:
    options = {"context": "clean", "context_lora": True, "max_train_steps": 3, "batch_size": 1}
    one, two = tmp_path / "one", tmp_path / "two"
    for work in (one, two):
        write_records(work, ["id-1", "id-2", "id-3"], tiny_flux2)
    finish(start(two, tiny_flux2, options, processes=2))
    train(config(one, tiny_flux2, **options, gradient_accumulation_steps=2)).finish()
    ones, twos = rows_of(one), rows_of(two)
    assert len(ones) == len(twos) == 3
    for row, other in zip(ones, twos, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("active", ["panel", "polygon"])
@pytest.mark.parametrize("reading", ["joint", "products"])
def test_people_dressed_together_are_dressed_as_alone(models: OpenedModel, active: str, reading: str) -> None:
    """Two polygons of equal size in one batch; the products' reading serves both persons."""
    sampling = Sampling(2, None, context="clean", context_placement="reference", active_tokens=active)
    sampling = replace(sampling, context_reading=reading, context_guidance_scale=3.0)
    layout, people = TRY_ON.layout(32, 48), []
    for number in range(2):
        mask = np.zeros((48, 32), dtype=np.float32)
        mask[16 * number : 16 * number + 32] = 1
        people.append(Person(photo(10 + number, (32, 48)), mask, PROMPT, [number]))

    def dressed(persons: list[Person], cache: ContextCache) -> list[np.ndarray]:
        models.contexts = cache
        made = try_on(models, photo(1, (40, 48)), photo(2, (64, 32)), persons, layout, sampling, feather=0)
        return [np.asarray(results[0].image, int) for results in made]

    cache = ContextCache(1 << 30)
    together = dressed(people, cache)
    alone = [dressed([person], ContextCache(0))[0] for person in people]
    assert all(np.abs(one - other).max() <= 1 for one, other in zip(together, alone, strict=True))
    assert np.abs(together[0][:8] - np.asarray(people[0].photo, int)[:8]).max() > 0
    dressed([replace(people[0], photo=photo(20, (32, 48)))], cache)
    assert cache.hits == (1 if reading == "products" else 0), "another person finds the products there"


def test_plain_background_of_a_reference_is_left_out(models: OpenedModel) -> None:
    product = Image.new("RGB", (160, 160), "white")
    product.paste(photo(1, (32, 32)), (64, 64))
    layout, sampling = TRY_ON.layout(160, 160), Sampling(2, None, context="native", drop_background=True)
    shown = references_of(models, [{"front": product, "back": photo(2, (160, 160))}], layout, sampling)
    assert [reference.frame for reference in shown] == [1, 2]
    front, back = (reference.known for reference in shown)
    assert front[4:6, 4:6].all() and not front[0].any() and not front[:, 0].any() and back.all()
    whole = references_of(
        models, [{"front": product, "back": product}], layout, replace(sampling, drop_background=False)
    )
    assert whole[0].known is None and torch.equal(whole[0].latents_BCHW, shown[0].latents_BCHW)
    made = [sampled(models, PANEL, [1], sampling, None, (reference,)) for reference in (shown[0], whole[0])]
    assert 1e-6 < (made[0] - made[1]).abs().max() < 1
