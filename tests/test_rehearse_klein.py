"""The rehearsal of klein-4B in full size, on a small one; and its arithmetic beside torch's own count."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from triptych.backbones.context import Reference
from triptych.backbones.flux2.model import Flux2
from triptych.backbones.known import known_models
from triptych.backbones.settings import ModelSettings
from triptych.sampling.clean_context import Group, read_window

FULL = known_models()["black-forest-labs/FLUX.2-klein-4B"]["parts"]
SMALL: dict[str, Any] = {
    "transformer": {
        **FULL["transformer"],
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "axes_dims_rope": [4, 4, 4, 4],
        "timestep_guidance_channels": 32,
    },
    "vae": {
        **FULL["vae"],
        "block_out_channels": [8, 8, 8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "text_encoder": {
        **FULL["text_encoder"],
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 64,
        "num_hidden_layers": 28,
    },
}


@pytest.fixture
def rehearse_klein(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("rehearse_klein")


def test_a_small_rehearsal_dresses_and_reports(tmp_path: Path, rehearse_klein: Any) -> None:
    report = rehearse_klein.rehearse(
        tmp_path, SMALL, (64, 96), 8, steps=2, dtype=torch.float32, peak_seconds=0.0
    )
    with torch.device("meta"):
        expected = Flux2Transformer2DModel(**SMALL["transformer"])
    assert report["parameters"] == sum(parameter.numel() for parameter in expected.parameters())
    whole, part = report["runs"]["whole panel"], report["runs"]["35 % of the panel"]
    assert (whole["active"], part["active"]) == (24, 8) and whole["known"] == part["known"] == 24 * 3 - 8
    assert whole["flop"]["steps"] > part["flop"]["steps"] and whole["flop"]["read"] == part["flop"]["read"]
    for run in (whole, part):
        assert run["repainted"][0] > 0.9 and run["repainted"][1] == 0
        parts = [run["seconds"][name] for name in ("encode", "read", "steps", "decode")]
        assert min(parts) > 0 and sum(parts) <= run["seconds"]["all"]
    assert (tmp_path / "polygon.png").is_file()
    painted = (tmp_path / "panel.png").read_bytes()
    file = tmp_path / "so-far.json"
    file.write_text(json.dumps({"35 % of the panel": part}))
    (tmp_path / "panel.png").unlink()
    resumed = rehearse_klein.rehearse(
        tmp_path, SMALL, (64, 96), 8, steps=2, dtype=torch.float32, peak_seconds=0.0
    )["runs"]
    assert resumed["35 % of the panel"] == part and resumed["whole panel"]["known"] == whole["known"]
    assert resumed["whole panel"]["seconds"]["read"] == part["seconds"]["read"]
    assert (tmp_path / "panel.png").read_bytes() == painted
    about = {"bytes": 2**30, "moment": "denoising step", "flop": 6e12, "flop_per_second": 1e11, "seconds": 60}
    page = rehearse_klein.klein_page(json.loads(json.dumps(report | {"plan": about})))
    assert "| 2 steps |" in page and "expects 1.00 GiB (denoising step)" in page
    assert "1.0 minutes for a picture (6 TFLOP" in page and "| **all** |" in page and "100%" in page


@pytest.mark.slow
def test_plan_is_asked_for_such_a_try_on(rehearse_klein: Any) -> None:
    about = rehearse_klein.planned({"matmul_flop_per_second": 1e12})
    whole = rehearse_klein.flop_of_pass(FULL["transformer"], 1728, 512, 3 * 1728)
    assert 4 * whole < about["flop"] < 8 * whole
    assert about["seconds"] == pytest.approx(about["flop"] / 0.7e12)
    assert 8 * 2**30 < about["bytes"] < 16 * 2**30


def test_arithmetic_is_what_torch_counts(rehearse_klein: Any) -> None:
    """torch counts modulation too, which the formula leaves out: it is computed once a run."""
    settings = ModelSettings(stride=16)
    backbone = Flux2.without_files("tiny", torch.float32, settings)
    backbone.device = torch.device("cpu")
    transformer = Flux2Transformer2DModel(**SMALL["transformer"]).eval().requires_grad_(False)
    config = SMALL["transformer"]
    active, text = torch.ones(4, 6, dtype=torch.bool), {"prompt_embeds": torch.randn(1, 8, 48)}
    groups = [Group([Reference(torch.randn(1, 128, 4, 5), None, 1)])]
    # torch knows the arithmetic of attention, but not under its name on a CPU.
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
            q, k, v
        )
    }
    with torch.no_grad():
        with FlopCounterMode(display=False, custom_mapping=attention) as reading:
            window = read_window(backbone, transformer, active, groups, text, True)
        with FlopCounterMode(display=False, custom_mapping=attention) as step:
            latents = torch.randn(1, 128, 4, 6)
            backbone.velocity(transformer, latents, torch.tensor([0.5]), text, None, window)
    width = 32
    modulation = 2 * (32 * width + width * width + 2 * 6 * width**2 + 3 * width**2 + 2 * width**2)
    read = rehearse_klein.flop_of_pass(config, 20, 0, reading=True)
    run = rehearse_klein.flop_of_pass(config, 24, 8, 20)
    assert reading.get_total_flops() - modulation == read
    assert step.get_total_flops() - modulation == run


def test_filled_weights_keep_the_size_of_what_goes_through(rehearse_klein: Any) -> None:
    with torch.device("meta"):
        empty = torch.nn.Sequential(torch.nn.Linear(300, 200, bias=False), torch.nn.RMSNorm(200))
    linear, norm = rehearse_klein.filled(empty, torch.float32)
    assert 0.8 < float(linear(torch.randn(64, 300)).std()) < 1.2
    assert torch.equal(norm.weight, torch.ones(200)) and not linear.weight.requires_grad
    assert len(linear.weight.unique()) > 50_000
