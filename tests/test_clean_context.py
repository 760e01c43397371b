"""Clean context: two forwards equal one asymmetric pass, for irregular masks; without a context nothing
changes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import triptych.backbones.flux2.model as flux2
from triptych import flow
from triptych.backbones.context import Reference, Window
from triptych.backbones.contract import Backbone
from triptych.backbones.flux.model import pack, position_ids
from triptych.backbones.registry import load_backbone
from triptych.backbones.settings import ContextReading, ModelSettings
from triptych.lora.adapter import FILE_NAME, add_lora
from triptych.lora.file import read_about
from triptych.sampling import token_sets
from triptych.sampling.clean_context import apart, groups_of_canvas, kept_window, read_window
from triptych.sampling.sampler import Canvases, Known, active_tokens, sample_latents
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON
from triptych.training.data import draw_active
from triptych.training.loss import losses_of
from triptych.verbs.generate import GenerateConfig
from triptych.verbs.train import train

from .conftest import JOINT, WIDTH, latent_shape
from .test_train import config, training_set, write_records

Parts = tuple[Backbone, nn.Module]


@pytest.fixture(scope="module")
def parts(tiny: Path) -> Parts:
    backbone = load_backbone(str(tiny), "cpu", "fp32")
    return backbone, backbone.load_transformer()


def text(batch: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(batch, 24, JOINT, generator=generator),
        "pooled_prompt_embeds": torch.randn(batch, WIDTH, generator=generator),
    }


def one_pass_flux(transformer, latents, known, t, words, empty, guidance, apart=()):
    """The reference: all tokens in one sequence, each modulated by its own time and pooled vector, known
    tokens blind to the rest, and those in `first` to the other known ones too. Written from the model's own
    layers, block by block, so that it shares no code with the two-pass way.
    """
    tokens, ids = pack(latents), position_ids(*latents.shape[2:], latents.device)
    count, length = tokens.shape[1], words["prompt_embeds"].shape[1]
    order = torch.cat([known.nonzero().squeeze(1), (~known).nonzero().squeeze(1)])
    kept = int(known.sum())
    hidden, ids = transformer.x_embedder(tokens[:, order]), ids[order]
    states = transformer.context_embedder(words["prompt_embeds"])
    batch = len(tokens)

    def time(value, pooled, scale):
        return transformer.time_text_embed(
            torch.full((batch,), value * 1000), torch.full((batch,), scale * 1000), pooled
        )

    clean = time(0.0, empty["pooled_prompt_embeds"].expand(batch, -1), 1.0)
    noisy = time(t, words["pooled_prompt_embeds"], guidance)
    rotary = transformer.pos_embed(torch.cat([torch.zeros(length, 3), ids]))
    sequence = length + count
    allowed = torch.ones(sequence, sequence, dtype=torch.bool)
    allowed[length : length + kept, :length] = False
    allowed[length : length + kept, length + kept :] = False
    for part in apart:
        own = torch.cat([torch.zeros(length, dtype=torch.bool), (known & part)[order]])
        allowed[own] = own

    def mixed(norm, values, first):
        """A modulation norm with `clean` for the known rows and `noisy` for the others; `first` is their
        first row.
        """
        a, b = norm(values, emb=clean), norm(values, emb=noisy)
        rows = torch.zeros(values.shape[1], 1, dtype=torch.bool)
        rows[first : first + kept] = True
        return [
            torch.where(rows, x if x.ndim == 3 else x[:, None], y if y.ndim == 3 else y[:, None])
            for x, y in zip(a, b, strict=True)
        ]

    for block in transformer.transformer_blocks:
        normed, gate, shift, scale, mlp_gate = mixed(block.norm1, hidden, 0)
        text_normed, text_gate, text_shift, text_scale, text_mlp_gate = block.norm1_context(states, emb=noisy)
        image_out, text_out = block.attn(normed, text_normed, attention_mask=allowed, image_rotary_emb=rotary)
        hidden = hidden + gate * image_out
        hidden = hidden + mlp_gate * block.ff(block.norm2(hidden) * (1 + scale) + shift)
        states = states + text_gate[:, None] * text_out
        states = states + text_mlp_gate[:, None] * block.ff_context(
            block.norm2_context(states) * (1 + text_scale[:, None]) + text_shift[:, None]
        )
    both = torch.cat([states, hidden], dim=1)
    for block in transformer.single_transformer_blocks:
        normed, gate = mixed(block.norm, both, length)
        attention = block.attn(normed, attention_mask=allowed, image_rotary_emb=rotary)
        both = both + gate * block.proj_out(
            torch.cat([attention, block.act_mlp(block.proj_mlp(normed))], dim=2)
        )
    active = both[:, length + kept :]
    return transformer.proj_out(transformer.norm_out(active, noisy))


def one_pass_sd3(transformer, latents, known, t, words, empty, guidance, apart=()):
    """The same for SD3. Its processor takes no mask, so that the mask is given to the attention itself."""
    length, batch, count = words["prompt_embeds"].shape[1], len(latents), len(known)
    hidden, states = transformer.pos_embed(latents), transformer.context_embedder(words["prompt_embeds"])

    def time(value, pooled):
        return transformer.time_text_embed(torch.full((batch,), value * 1000), pooled)

    clean, noisy = (
        time(0.0, empty["pooled_prompt_embeds"].expand(batch, -1)),
        time(t, words["pooled_prompt_embeds"]),
    )
    rows = known[:, None]
    allowed = torch.ones(count + length, count + length, dtype=torch.bool)  # image first, then text
    allowed[:count][known] = torch.cat([known, torch.zeros(length, dtype=torch.bool)])
    for part in apart:
        allowed[:count][known & part] = torch.cat([known & part, torch.zeros(length, dtype=torch.bool)])
    stock = torch.nn.functional.scaled_dot_product_attention

    def masked(query, key, value, **options):
        return stock(query, key, value, attn_mask=allowed[: query.shape[2], : query.shape[2]])

    for block in transformer.transformer_blocks:
        pairs = zip(block.norm1(hidden, emb=clean), block.norm1(hidden, emb=noisy), strict=True)
        mixed = [
            torch.where(rows, x if x.ndim == 3 else x[:, None], y if y.ndim == 3 else y[:, None])
            for x, y in pairs
        ]
        normed, gate, shift, scale, mlp_gate = mixed[:5]
        last = block.context_pre_only
        text_normed, *text = (
            [block.norm1_context(states, noisy)] if last else block.norm1_context(states, emb=noisy)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked)
            image_out, text_out = block.attn(normed, text_normed)
            second = block.attn2(mixed[5]) * mixed[6] if block.use_dual_attention else 0
        hidden = hidden + gate * image_out + second
        hidden = hidden + mlp_gate * block.ff(block.norm2(hidden) * (1 + scale) + shift)
        if not last:
            text_gate, text_shift, text_scale, text_mlp_gate = (one[:, None] for one in text)
            states = states + text_gate * text_out
            states = states + text_mlp_gate * block.ff_context(
                block.norm2_context(states) * (1 + text_scale) + text_shift
            )
    return transformer.proj_out(transformer.norm_out(hidden, noisy))[:, ~known]


def tokens_of_sd3(latents):
    """(B, C, H, W) → (B, N, 4C) as SD3 orders a token's numbers: rows, columns, channels."""
    return pack(latents).unflatten(2, (-1, 2, 2)).permute(0, 1, 3, 4, 2).flatten(2)


def one_pass_flux2(transformer, latents, known, t, words, empty, guidance, apart=()):
    """The same for FLUX.2, whose blocks take a modulation per token."""
    length, batch, count = words["prompt_embeds"].shape[1], len(latents), len(known)
    ids = torch.zeros(length, 4)
    ids[:, 3] = torch.arange(length)
    places = flux2.position_ids(*latents.shape[2:], 0, latents.device)
    rotary = transformer.pos_embed(torch.cat([ids, places]))
    allowed = torch.ones(length + count, length + count, dtype=torch.bool)
    blind = torch.zeros(length, dtype=torch.bool)
    allowed[length:][known] = torch.cat([blind, known])
    for part in apart:
        allowed[length:][known & part] = torch.cat([blind, known & part])
    hidden = transformer.x_embedder(flux2.pack(latents))
    states = transformer.context_embedder(words["prompt_embeds"])
    clean, noisy = (transformer.time_guidance_embed(torch.full((batch,), at * 1000), None) for at in (0.0, t))

    def modulation(of):
        return torch.where(known[:, None], of(clean)[:, None], of(noisy)[:, None])

    mask = {"attention_mask": allowed}
    of_image = modulation(transformer.double_stream_modulation_img)
    of_text = transformer.double_stream_modulation_txt(noisy)
    for block in transformer.transformer_blocks:
        states, hidden = block(hidden, states, of_image, of_text, rotary, mask)
    of_both = transformer.single_stream_modulation
    both = torch.cat([of_both(noisy)[:, None].expand(-1, length, -1), modulation(of_both)], dim=1)
    joint = torch.cat([states, hidden], dim=1)
    for block in transformer.single_transformer_blocks:
        joint = block(joint, None, both, rotary, mask)
    return transformer.proj_out(transformer.norm_out(joint[:, length:][:, ~known], noisy))


REFERENCES = {
    "flux": (one_pass_flux, pack),
    "sd3": (one_pass_sd3, tokens_of_sd3),
    "flux2": (one_pass_flux2, flux2.pack),
}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.67, 0.9])
def test_two_passes_equal_one_asymmetric_pass(parts: Parts, share: float) -> None:
    backbone, transformer = parts
    one_pass, tokens_of = REFERENCES[backbone.name]
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(2, *latent_shape(backbone), generator=generator)
    known = torch.rand(3, 6, generator=generator) < share
    known[0, 0], known[2, 5] = True, False
    words, empty = text(2, 1), text(1, 2)
    with torch.no_grad():
        context = backbone.read(transformer, [Reference(latents, known)], empty)
        ours = backbone.velocity(
            transformer, latents, torch.full((2,), 0.7), words, 3.5, Window(~known, context)
        )
        reference = one_pass(transformer, latents, known.flatten(), 0.7, words, empty, 3.5)
    flat = tokens_of(ours)
    assert (flat[:, ~known.flatten()] - reference).abs().max() < 1e-5
    assert (flat[:, known.flatten()] == 0).all()
    with torch.no_grad():
        alone = backbone.velocity(transformer, latents, torch.full((2,), 0.7), words, 3.5, Window(~known))
    assert (alone - ours).abs().max() > 1e-3, "the context is really read"


@pytest.mark.parametrize("with_room", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("reading", ["products", "each"])
def test_products_that_do_not_read_all_equal_one_pass(
    parts: Parts, reading: ContextReading, share: float, with_room: bool
) -> None:
    backbone, transformer = parts
    one_pass, tokens_of = REFERENCES[backbone.name]
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, *latent_shape(backbone), generator=generator)
    layout = TRY_ON.layout(32, 48)
    (products,), parts = apart(layout, 16, "products"), apart(layout, 16, reading)
    assert len(parts) == (1 if reading == "products" else 3)
    active = (torch.rand(3, 6, generator=generator) > share) & ~products
    active[2, 5], active[0, 4] = True, False
    words, empty, t = text(2, 1), text(1, 2), torch.full((2,), 0.7)
    about = (backbone, transformer, active, groups_of_canvas(latents, active, None, parts), empty, True)
    with torch.no_grad():
        window = (
            kept_window(*about, batch=2, room=int(active.sum()) + 24) if with_room else read_window(*about)
        )
        made = [backbone.velocity(transformer, latents, t, words, 3.5, window) for _ in range(2)]
        sets = [part.flatten() for part in parts]
        reference = one_pass(transformer, latents, ~active.flatten(), 0.7, words, empty, 3.5, sets)
        groups = groups_of_canvas(latents, active)
        window = read_window(backbone, transformer, active, groups, empty, True)
        joint = backbone.velocity(transformer, latents, t, words, 3.5, window)
    assert torch.equal(made[0], made[1]), "a step leaves nothing behind in the room"
    assert (tokens_of(made[0])[:, active.flatten()] - reference).abs().max() < 1e-5
    assert (made[0] - joint).abs().max() > 1e-5, "joint reading is something else"


def test_known_tokens_are_read_with_the_lora_or_without_and_only_where_told(tiny: Path) -> None:
    backbone = load_backbone(str(tiny), "cpu", "fp32")
    transformer = backbone.load_transformer()
    latents = torch.randn(1, *latent_shape(backbone), generator=torch.Generator().manual_seed(1))
    (products,) = apart(TRY_ON.layout(32, 48), 16, "products")
    assert products.tolist() == [[True] * 4 + [False] * 2] * 3
    words, t, empty, active = text(1, 1), torch.tensor([0.7]), text(1, 2), ~products
    groups = groups_of_canvas(latents, active)
    about = (backbone, transformer, active, groups, empty)
    kept = functools.partial(kept_window, room=6 + 24)

    def velocity(window: Window) -> torch.Tensor:
        return backbone.velocity(transformer, latents, t, words, 3.5, window)

    with torch.no_grad():
        bare = read_window(*about, True)
        for parameter in add_lora(transformer, backbone.lora_layers(transformer), 4, 4, 0.0, 0):
            nn.init.normal_(parameter, std=0.2)
        for read in (read_window, kept):
            without, with_lora = (velocity(read(*about, lora)) - velocity(bare) for lora in (False, True))
            assert without.abs().max() < 1e-6 and with_lora.abs().max() > 1e-4
            none = groups_of_canvas(latents, active, within=~products)
            window = read(backbone, transformer, active, none, empty, True)
            assert window.context is None and window.active is active, "of the worn panel nothing is known"


def test_installed_processors_change_nothing_without_a_context(parts: Parts) -> None:
    backbone, transformer = parts
    stock = backbone.load_transformer()
    latents, words, t = torch.randn(1, *latent_shape(backbone)), text(1, 3), torch.tensor([0.4])
    with torch.no_grad():
        backbone.read(transformer, [Reference(latents, torch.ones(3, 6, dtype=torch.bool))], text(1, 2))
        assert torch.equal(
            backbone.velocity(transformer, latents, t, words, 1.0),
            backbone.velocity(stock, latents, t, words, 1.0),
        )
        everything = Window(torch.ones(3, 6, dtype=torch.bool))
        windowed = backbone.velocity(transformer, latents, t, words, 1.0, everything)
        assert (windowed - backbone.velocity(stock, latents, t, words, 1.0)).abs().max() < 1e-6


def test_a_lora_trained_clean_is_sampled_clean_and_keeps_what_is_known(tiny: Path, tmp_path: Path) -> None:
    layout = TRY_ON.layout(32, 48)
    write_records(tmp_path, ["id-1", "id-2", "id-3"], tiny)
    options = {"context": "clean", "context_placement": "canvas", "context_dropout": 0.5}
    options["max_train_steps"] = 8
    train(config(tmp_path, tiny, **options)).finish()
    lora = tmp_path / "lora"
    options = GenerateConfig(model=str(tiny), lora=lora, prompt="p")
    sampling, _ = options.resolve(ModelSettings(num_inference_steps=3), 1.0, read_about(lora))
    assert sampling.context == "clean"
    models = load_models(str(tiny), ["a dress"], lora, device="cpu", dtype="fp32")
    known = torch.randn(1, *latent_shape(models.backbone))
    mask = torch.zeros(known.shape[2:])
    worn = 2 * mask.shape[1] // 3
    mask[1:2, worn + 1 :] = 1
    words, empty = models.text(["a dress"]), models.text([""])
    for guidance in (1.0, 3.0):
        sampling = dataclasses.replace(sampling, context_guidance_scale=guidance)
        canvas = Canvases(layout, known.shape[1:], words, [1], empty, Known(known, mask))
        made = sample_latents(models.backbone, models.transformer, canvas, sampling)
        outside = (mask == 0).expand_as(made)
        assert torch.equal(made[outside], known[outside])
        assert (made - known)[~outside].abs().min() > 0
    other = torch.randn_like(known)
    other[..., worn:] = known[..., worn:]
    canvas = Canvases(layout, known.shape[1:], words, [1], empty, Known(other, mask))
    moved = sample_latents(models.backbone, models.transformer, canvas, sampling)
    inside = (mask == 1).expand_as(made)
    assert (made[inside] - moved[inside]).abs().max() > 1e-4, "other product panels make another picture"


def test_a_stopped_clean_run_resumes_to_the_same_lora(tiny: Path, tmp_path: Path) -> None:
    options = {"context": "clean", "context_dropout": 0.3, "context_lora": True, "max_train_steps": 5}
    for work in (tmp_path / "whole", tmp_path / "stopped"):
        write_records(work, ["id-1", "id-2"], tiny)
    train(config(tmp_path / "whole", tiny, **options)).finish()
    run = train(config(tmp_path / "stopped", tiny, **options))
    for _ in range(3):
        next(run)
    run.close()
    assert train(config(tmp_path / "stopped", tiny, **options)).finish()["resumed_at"] == 2
    whole, stopped = (load_file(tmp_path / name / "lora" / FILE_NAME) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


@pytest.mark.parametrize("reading", ["joint", "products", "each"])
def test_the_lora_says_what_its_products_attended_to(tiny: Path, tmp_path: Path, reading: str) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny)
    options = config(tmp_path, tiny, context="clean", max_train_steps=1, context_reading=reading)
    train(options).finish()
    about = read_about(tmp_path / "lora")
    chosen = GenerateConfig(model=str(tiny), lora=tmp_path / "lora", prompt="p", front=tmp_path / "front.png")
    sampling, warnings = chosen.resolve(ModelSettings(), 1.0, about)
    assert sampling.context_reading == reading
    assert not warnings
    other = "joint" if reading == "products" else "products"
    chosen = chosen.model_copy(update={"context_reading": other})
    sampling, warnings = chosen.resolve(ModelSettings(), 1.0, about)
    assert sampling.context_reading == other
    assert f"trained with the context reading '{reading}'" in warnings[0]


def test_training_reads_as_sampling_does(
    parts: Parts, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a part of the person known the readings differ, and training's loss is that of sampling's
    velocity.
    """
    backbone, transformer = parts
    write_records(tmp_path, ["id-1", "id-2"], tiny)
    errors, predicted, velocity = [], [], backbone.velocity
    monkeypatch.setattr(
        backbone, "velocity", lambda *about: predicted.append(velocity(*about)) or predicted[-1]
    )
    for reading in ("joint", "products", "each"):
        on_canvas = {"context": "clean", "context_placement": "canvas"}
        options = config(tmp_path, tiny, **on_canvas, context_reading=reading)
        batch = training_set(tmp_path, options).fixed(backbone, "id-1", 0.6)
        generator = torch.Generator().manual_seed(3)  # tokens that differ more than those of the records
        batch = dataclasses.replace(
            batch, clean_BCHW=torch.randn(batch.clean_BCHW.shape, generator=generator) * 3
        )
        active = torch.zeros(3, 6, dtype=torch.bool)
        active[:2, 4:] = True
        groups = groups_of_canvas(batch.clean_BCHW, active, None, apart(batch.layout, 16, reading))
        with torch.no_grad():
            window = kept_window(backbone, transformer, active, groups, batch.empty, False, room=200)
            x = flow.interpolate(batch.clean_BCHW, batch.noise_BCHW, batch.t_B)
            error = backbone.velocity(transformer, x, batch.t_B, batch.text, 1.0, window) - (
                batch.noise_BCHW - batch.clean_BCHW
            )
            loss = losses_of(
                options, backbone, transformer, dataclasses.replace(batch, active=active)
            ).sample_B
        cells = backbone.family.latents_per_token
        assert loss.item() == pytest.approx(
            error[:, :, : 2 * cells, 4 * cells :].square().mean().item(), rel=1e-5
        )
        sampled, trained = predicted[-2:]
        assert (sampled - trained).abs().max() < 1e-6
        errors.append(error)
    for one, other in itertools.combinations(errors, 2):
        assert (one - other).abs().max() > 1e-5


def test_active_tokens_cover_every_latent_of_the_mask() -> None:
    layout = TRY_ON.layout(32, 48)
    mask = torch.zeros(6, 12)
    mask[3, 9] = 1
    active = active_tokens(mask, layout, 16)
    assert active.shape == (3, 6)
    assert active.sum() == 1
    assert active[1, 4]
    for seed in range(50):
        _, drawn = draw_active(layout, 16, torch.Generator().manual_seed(seed))
        assert drawn[:, 4:].any()
        assert not drawn[:, :4].any()


def test_compiled_models_meet_few_sizes(tiny: Path) -> None:
    """The transformer compiles as one graph with its context, and polygons rounded up to one number of tokens
    share it.
    """
    from torch._dynamo.utils import counters

    backbone = load_backbone(str(tiny), "cpu", "fp32")
    transformer = backbone.load_transformer()
    layout, generator = TRY_ON.layout(64, 96), torch.Generator().manual_seed(7)
    words, empty, t = text(1, 1), text(1, 2), torch.tensor([0.6])
    _, *size = latent_shape(backbone)
    allowed = layout.mask(layout.roles[-1:], 16)
    windows, expected, shown = [], [], []
    for rows in (2, 3, 5):
        active = np.zeros_like(allowed)
        active[:rows, 8:10] = True
        active = torch.from_numpy(token_sets.rounded_up(active[None], allowed, 8)[0])
        shown.append(torch.randn(1, 16, *(2 * side for side in size), generator=generator))
        with torch.no_grad():
            windows.append(
                kept_window(
                    backbone,
                    transformer,
                    active,
                    groups_of_canvas(shown[-1], active),
                    empty,
                    True,
                    room=int(active.sum()) + 24,
                )
            )
            expected.append(backbone.velocity(transformer, shown[-1], t, words, 3.5, windows[-1]))
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        for block in transformer.transformer_blocks:
            block.compile(backend="eager", fullgraph=True)
        graphs = []
        for latents, window, plain in zip(shown, windows, expected, strict=True):
            assert (backbone.velocity(transformer, latents, t, words, 3.5, window) - plain).abs().max() < 1e-6
            graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert [int(window.active.sum()) for window in windows] == [8, 8, 16]
    assert graphs[1] == graphs[0] < graphs[2], "8 and 8 tokens share their graphs, 16 want others"
