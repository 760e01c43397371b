"""The rehearsal of the full-size model, on a small one; and what can be known of the full one without its
weights.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from triptych.backbones.flux.model import Flux
from triptych.compute.quantize import NF4Linear
from triptych.lora.adapter import read_lora
from triptych.training.loss import losses_of
from triptych.verbs import train as train_stage

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
rehearse_12b = importlib.import_module("rehearse_12b")

SMALL = {
    **rehearse_12b.FLUX_DEV,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}


@pytest.mark.parametrize("context", ["clean", "noisy"])
def test_a_small_rehearsal_trains_samples_and_reports(tmp_path: Path, context: str) -> None:
    report = rehearse_12b.rehearse(tmp_path / "work", SMALL, context, (32, 48), 8, peak_seconds=0.0)
    assert report["sample_is_finite"] and 0 < report["loss"] < 1e3 and report["grad_norm"] > 0
    with torch.device("meta"):
        expected = FluxTransformer2DModel(**SMALL)
    assert report["parameters"] == sum(parameter.numel() for parameter in expected.parameters())
    state, about = read_lora(tmp_path / "work")
    assert {key.rpartition(".lora_")[0] for key in state} == set(Flux.lora_layers(expected))
    assert about["recipe"]["quantize"] == "nf4" and about["context"] == context
    assert report["lora_layers"] == len(state) // 2
    # Counted by hand: 18 image and 8 text tokens through one double block's text or image half, both through
    # two single blocks.
    if context == "noisy":
        image, text, both, width = 18, 8, 26, 32
        attention, feedforward, modulation = 4 * width * width, 8 * width * width, 6 * width * width
        double = (image + text) * (attention + feedforward) + 2 * modulation
        single = both * (3 * width * width + 4 * width * width + 5 * width * width) + 3 * width * width
        assert report["flop"]["forward"] == 2 * (double + 2 * single)
        assert report["flop"]["backward"] == 2 * report["flop"]["forward"]
        assert report["flop"]["sample"] == 2 * report["flop"]["forward"]
    page = rehearse_12b.markdown(json.loads(json.dumps(report)))
    assert "finite, known panels as given" in page and f"{report['parameters']:,}" in page
    assert train_stage.losses_of is losses_of, "the product is as it was"


def test_random_weights_keep_their_size_and_are_the_same_again() -> None:
    first, second = (rehearse_12b.random_transformer(SMALL) for _ in range(2))
    layers = [module for module in first.modules() if isinstance(module, NF4Linear)]
    others = [module for module in second.modules() if isinstance(module, NF4Linear)]
    assert all(torch.equal(one.weight, other.weight) for one, other in zip(layers, others, strict=True))
    for layer in layers:
        x = torch.randn(64, layer.in_features)
        assert 0.3 < float(layer(x).std()) < 1.0
    assert not any(parameter.is_meta for parameter in first.parameters())


def test_the_shapes_are_those_of_flux_dev() -> None:
    with torch.device("meta"):
        full = FluxTransformer2DModel(**rehearse_12b.FLUX_DEV)
    assert sum(parameter.numel() for parameter in full.parameters()) == 11_901_408_320
