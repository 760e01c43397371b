"""Options that change nothing are an error with the reason; values that ask for nothing never are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from triptych.backbones.settings import model_settings
from triptych.cli import main
from triptych.errors import ConfigError
from triptych.lora.file import read_about
from triptych.sampling.options import SamplingConfig
from triptych.verbs.generate import GenerateConfig


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 128), f"{name}.lora_B.weight": torch.zeros(128, 1)}
    save_file(tensors, tmp_path / "clean.safetensors", {"triptych": json.dumps({"context": "clean"})})
    return tmp_path / "clean.safetensors"


def sampled(kind: type[SamplingConfig] = SamplingConfig, model: str = "pocket", **given: Any) -> Any:
    """What the options become for this model and the LoRA that they name."""
    return resolved(kind(model=model, **given))


def resolved(config: SamplingConfig) -> Any:
    about = read_about(config.lora) if config.lora else {}
    return config.resolve(model_settings(config.model), 1.0, about)[0]


NOISY = [
    ("drop_background", True),
    ("token_bucket", 8),
    ("context_reading", "products"),
    ("context_cache_gib", 2.0),
    ("context_guidance_scale", 3.0),
]


@pytest.mark.parametrize(("name", "value"), NOISY)
def test_options_for_clean_context(name: str, value: Any, clean: Path) -> None:
    with pytest.raises(ConfigError, match="this is noisy context") as caught:
        sampled(**{name: value})
    assert "--" + name.replace("_", "-") in str(caught.value)
    with pytest.raises(ConfigError, match="this is noisy context"):
        sampled(lora=clean, context="noisy", **{name: value})
    with pytest.raises(ConfigError, match="none is given"):
        sampled(GenerateConfig, lora=clean, **{name: value})
    sampled(lora=clean, **{name: value})
    sampled(GenerateConfig, lora=clean, front=Path("front.png"), **{name: value})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lora_scale": 0.5}, "there is no LoRA"),
        ({"guidance_stop": 0.5, "true_cfg_scale": 1.0}, "no guidance runs a second pass"),
    ],
)
def test_other_options(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sampled(**given)


def test_guidance_on_the_photos_takes_the_place_of_the_others(clean: Path) -> None:
    for name in ("guidance_scale", "true_cfg_scale"):
        with pytest.raises(ConfigError, match="takes its place"):
            sampled(lora=clean, **{name: 2.0})
        sampled(lora=clean, context_guidance_scale=1.0, **{name: 2.0})
        sampled(GenerateConfig, lora=clean, **{name: 2.0})  # without photos the words guide


def test_what_a_model_does_not_have(tmp_path: Path, tiny_flux: Path, tiny_sd3: Path) -> None:
    with pytest.raises(ConfigError, match="takes no distilled guidance"):
        sampled(model=str(tiny_sd3), guidance_scale=2.0)
    with pytest.raises(ConfigError, match=r"time shift .* is fixed"):
        sampled(model=str(tiny_sd3), time_shift="canvas")
    sampled(model=str(tiny_flux), time_shift="canvas", guidance_scale=2.0)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_bytes((tiny_flux / "model_index.json").read_bytes())
    about = json.loads((tiny_flux / "transformer" / "config.json").read_text()) | {
        "guidance_embeds": False
    }  # as FLUX.1-schnell
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="takes no distilled guidance"):
        sampled(model=str(tmp_path), guidance_scale=2.0)


def test_values_that_ask_for_nothing_are_no_mistake(clean: Path) -> None:
    """`reproduce` gives every setting of a picture, the model's recommendations among them."""
    plain = model_settings("pocket")
    off = {
        "drop_background": False,
        "token_bucket": 1,
        "context_reading": "joint",
        "time_shift": "panel",
        "guidance_stop": 1.0,
    }
    off |= {"lora_scale": 1.0, "context_cache_gib": 0.0}
    sampled(**off, context_guidance_scale=plain.context_guidance_scale, true_cfg_scale=plain.true_cfg_scale)
    sampled(**off, context_guidance_scale=1.0)
    sampled(lora=clean, **off, true_cfg_scale=plain.true_cfg_scale, guidance_scale=plain.guidance_scale)


def test_the_base_of_a_comparison_leaves_out_what_needs_the_lora(clean: Path) -> None:
    config = SamplingConfig(
        model="pocket",
        lora=clean,
        lora_scale=0.5,
        drop_background=True,
        true_cfg_scale=2.0,
        num_inference_steps=3,
    )
    base = config.without_lora()
    assert (
        base.lora,
        base.lora_scale,
        base.drop_background,
        base.true_cfg_scale,
        base.num_inference_steps,
    ) == (None, 1.0, False, 2.0, 3)
    resolved(base)


def test_the_command_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "generate",
        "--model",
        "pocket",
        "--prompt",
        "x",
        "--work",
        str(tmp_path),
        "--token-bucket",
        "16",
    ]
    assert main(words) == 1
    assert "--token-bucket 16 has no effect here" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "c.yaml").write_text("generate: {drop_background: true}")
    assert main([*words[:7], "--config", str(tmp_path / "c.yaml")]) == 1
    assert "--drop-background True has no effect" in " ".join(capsys.readouterr().err.split())
