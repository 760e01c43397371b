"""Modulation of a whole run at once: every step's velocity as before, its layers read once, the model itself
left as it is.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from triptych.backbones.contract import Backbone
from triptych.backbones.registry import load_backbone
from triptych.compute.modulation import MODULATED, PremodulatedTransformer
from triptych.sampling.clean_context import groups_of_canvas, read_window
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import Canvases, sample_latents
from triptych.tasks.tryon import TRY_ON

from .conftest import latent_shape
from .test_clean_context import text

TIMES = [1.0, 0.7, 0.31, 0.05]


@pytest.fixture
def parts(tiny: Path) -> tuple[Backbone, nn.Module]:
    backbone = load_backbone(str(tiny), "cpu", "fp32")
    return backbone, backbone.load_transformer()


def run_of(backbone: Backbone, transformer: nn.Module, words: dict[str, Tensor]) -> PremodulatedTransformer:
    with torch.no_grad():
        return backbone.premodulated(transformer, TIMES, words, 3.5)


def compare(
    backbone: Backbone, transformer: nn.Module, words: dict[str, Tensor], windowed: bool = False
) -> None:
    """Velocities of a few steps, in another order than they were made in."""
    latents = torch.randn(len(words["prompt_embeds"]), *latent_shape(backbone))
    run = run_of(backbone, transformer, words)
    window = None
    if windowed:
        active = torch.zeros(3, 6, dtype=torch.bool)
        active[:2, 4:] = True
        empty = text(1, 9)
        window = read_window(
            backbone,
            transformer,
            active,
            groups_of_canvas(latents, active),
            {name: value[:, :0] if value.ndim == 3 else value for name, value in empty.items()},
            True,
        )
    with torch.no_grad():
        for t in TIMES[::-1]:
            about = latents, torch.full((len(latents),), t), words, 3.5, window
            plain = backbone.velocity(transformer, *about)
            torch.testing.assert_close(backbone.velocity(run.at(t), *about), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("prompts", [1, 2])
def test_velocities_are_the_models(parts: tuple[Backbone, nn.Module], prompts: int, windowed: bool) -> None:
    compare(*parts, text(prompts, 0), windowed)


def test_equal_prompts_share_their_rows(parts: tuple[Backbone, nn.Module]) -> None:
    words = {name: value.expand(3, *value.shape[1:]) for name, value in text(1, 0).items()}
    compare(*parts, words)
    run = run_of(*parts, words)
    embedding = run.at(0.7).get_submodule(parts[0].time_embedding)
    assert embedding.made.shape[:2] == (len(TIMES), 1)


def test_a_run_reads_each_layer_once_and_leaves_the_model_as_it_is(parts: tuple[Backbone, nn.Module]) -> None:
    backbone, transformer = parts
    latents, words, t = torch.randn(1, *latent_shape(backbone)), text(1, 0), torch.tensor([0.5])
    with torch.no_grad():
        before = backbone.velocity(transformer, latents, t, words, 3.5)
    calls: dict[str, int] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, MODULATED) or name in backbone.shared_modulation:
            module.linear.register_forward_hook(
                lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1})
            )
    canvas = Canvases(TRY_ON.layout(32, 48), latents.shape[1:], words, [0], text(1, 1))
    sample_latents(backbone, transformer, canvas, Sampling(5))
    assert len(calls) >= 4 and set(calls.values()) == {1}
    with torch.no_grad():
        assert torch.equal(backbone.velocity(transformer, latents, t, words, 3.5), before)
    assert calls and set(calls.values()) == {2}


def test_a_block_whose_weights_come_when_it_is_called_runs_as_it_is(tiny: Path) -> None:
    backbone = load_backbone(str(tiny), "cpu", "fp32", blocks_to_swap=1)
    transformer = backbone.load_transformer()
    compare(backbone, transformer, text(1, 0))
    blocks, shown = (
        one.transformer_blocks for one in (transformer, run_of(backbone, transformer, text(1, 0)).at(0.7))
    )
    assert [ours is own for own, ours in zip(blocks, shown, strict=True)] == [True] + [False] * (
        len(blocks) - 1
    )


def test_a_lora_of_the_modulation_is_in_it(parts: tuple[Backbone, nn.Module]) -> None:
    backbone, transformer = parts
    latents, words, t = torch.randn(1, *latent_shape(backbone)), text(1, 0), torch.tensor([0.7])
    with torch.no_grad():
        before = backbone.velocity(transformer, latents, t, words, 3.5)
        name = "double_stream_modulation_img.linear" if backbone.shared_modulation else "norm1.linear"
        inject_adapter_in_model(LoraConfig(target_modules=[name], r=2, init_lora_weights=False), transformer)
        assert (backbone.velocity(transformer, latents, t, words, 3.5) - before).abs().max() > 1e-4
    compare(backbone, transformer, words)
