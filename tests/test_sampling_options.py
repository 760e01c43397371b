"""How the settings of a picture are resolved: what the user asked for, else the LoRA, else the model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.backbones.settings import ModelSettings, model_settings
from triptych.errors import InputError, ModelError
from triptych.lora.adapter import write_lora
from triptych.pictures.panels import PanelLayout
from triptych.sampling.options import Sampling, SamplingConfig, panels_of, unusual
from triptych.session import Session

RECOMMENDED = replace(
    model_settings("pocket"),
    num_inference_steps=9,
    guidance_scale=2.5,
    true_cfg_scale=1.5,
    context_guidance_scale=4.0,
)


def resolved(trained: dict[str, Any] | None = None, strength: float = 1.0, **asked: Any) -> dict[str, Any]:
    """What `resolve` makes of these options and of what a LoRA says about its training."""
    config = SamplingConfig(model="pocket", lora=Path("a.safetensors") if trained else None, **asked)
    sampling, _ = config.resolve(RECOMMENDED, strength, trained or {})
    return asdict(sampling)


def test_what_nobody_asks_for_comes_from_the_model() -> None:
    expected = Sampling(
        num_inference_steps=9, guidance_scale=2.5, true_cfg_scale=1.5, context_guidance_scale=4.0
    )
    assert resolved() == asdict(expected)
    assert (expected.context, expected.context_reading, expected.context_lora) == ("noisy", "joint", False)


def test_what_is_asked_for_wins_over_the_model_and_reaches_the_sampler() -> None:
    asked = {"num_inference_steps": 3, "guidance_scale": 0.0, "true_cfg_scale": 2.0, "time_shift": "canvas"}
    asked |= {"step_cache": 0.1, "guidance_stop": 0.5}
    made = resolved(strength=0.7, **asked)
    assert {name: made[name] for name in asked} == asked, "0 is a number that was asked for"
    assert made["strength"] == 0.7


def test_the_lora_says_how_known_panels_are_shown() -> None:
    learned = {"context": "clean", "context_lora": True, "context_reading": "products"}
    assert {name: resolved(learned)[name] for name in learned} == learned
    asked = {"drop_background": True, "token_bucket": 16, "context_guidance_scale": 1.0}
    made = resolved(learned, context_reading="joint", **asked)
    assert {name: made[name] for name in asked} == asked
    assert made["context_reading"] == "joint"
    assert resolved({"context": "clean"})["context_lora"] is False
    assert resolved({"context": "clean"})["context_reading"] == "joint"
    assert resolved(learned, context="noisy")["context"] == "noisy"


@pytest.mark.parametrize(
    ("sampling", "trained", "words"),
    [
        (Sampling(), {}, None),
        (Sampling(context="clean"), {"context": "clean"}, None),
        (Sampling(), {"context_reading": "products"}, None),
        (Sampling(context_lora=True), {}, None),
        (
            Sampling(context="native", active_tokens="polygon"),
            {},
            "Without a LoRA the model has never seen the polygon's tokens alone",
        ),
        (Sampling(context="clean"), {}, "Clean context without a LoRA trained for it is an approximation"),
        (Sampling(), {"context": "clean"}, "trained with clean context; with noisy context"),
        (
            Sampling(context="clean", context_reading="products"),
            {"context": "clean"},
            "the context reading 'joint'; 'products' is an approximation",
        ),
        (
            Sampling(context="clean", context_reading="products"),
            {"context": "clean", "context_reading": "products"},
            None,
        ),
        (Sampling(context="clean"), {"context": "clean", "context_lora": True}, "context_lora=True"),
        (Sampling(context="clean", context_lora=True), {"context": "clean"}, "context_lora=False"),
    ],
)
def test_sampling_otherwise_than_in_training_is_warned_of(
    sampling: Sampling, trained: dict[str, Any], words: str | None
) -> None:
    warnings = unusual(sampling, trained, ModelSettings())
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


def test_clean_context_and_a_second_pass_need_the_empty_prompt() -> None:
    assert not Sampling().needs_empty_prompt
    assert Sampling(true_cfg_scale=2.0).needs_empty_prompt
    assert Sampling(context="clean").needs_empty_prompt


def test_panels_come_from_the_option_the_lora_and_the_model_in_this_order(tmp_path: Path) -> None:
    own = model_settings("pocket")
    assert Session("pocket").layout().size == (3 * own.panel_width, own.panel_height)
    layout = PanelLayout(64, 96, ("a", "b"), 2, made=("a",))
    file = tmp_path / "lora.safetensors"
    name = "transformer_blocks.0.attn.to_q"
    width = 256  # of the pocket model
    state = {f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(width, 2)}
    write_lora(file, state, {"family": "flux", "base_model": "pocket", "layout": layout.to_dict()})
    session = Session("pocket", file)
    assert session.layout() == layout
    assert session.layout(height=48) == replace(layout, height=48)
    assert session.layout(width=48) == replace(layout, width=48)


def test_panels_stay_on_the_grid_and_within_the_largest_canvas() -> None:
    base = PanelLayout(64, 96, ("a", "b"), 2)
    assert panels_of(base, None, None, 16) == base
    with pytest.raises(InputError, match=r"multiple|grid"):
        panels_of(base, 70, None, 16)
    with pytest.raises(InputError, match="16000×8000 px; at most 64 megapixels"):
        panels_of(base, 8000, 8000, 16)


def test_the_base_model_is_sampled_without_what_only_a_lora_has() -> None:
    config = SamplingConfig(
        model="pocket", lora=Path("a"), lora_scale=0.5, context="clean", drop_background=True, seed=4
    )
    alone = config.without_lora()
    assert alone == SamplingConfig(model="pocket", seed=4)
    assert alone.model_fields_set == {"model", "seed"}


def test_only_settings_of_loading_reach_the_session() -> None:
    given = SamplingConfig(model="pocket", lora_scale=0.5, quantize="nf4", blocks_to_swap=2).model_source()
    assert given == {
        "model": "pocket",
        "lora": None,
        "lora_scale": 0.5,
        "device": "auto",
        "dtype": "auto",
        "quantize": "nf4",
        "blocks_to_swap": 2,
        "context_cache_gib": 4.0,
    }


def test_a_session_warns_once_of_the_options_it_resolves(caplog: pytest.LogCaptureFixture) -> None:
    session, config = Session("pocket"), SamplingConfig(model="pocket", context="clean")
    assert session.resolved(config).strength == 1.0
    assert session.resolved(config, 0.6).strength == 0.6
    assert caplog.messages == unusual(session.resolved(config), {}, session.settings)


def test_a_model_of_the_hub_is_asked_for_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    SamplingConfig(model="pocket").check_model()
    with pytest.raises(ModelError, match="No model is given"):
        SamplingConfig(model=" ").check_model()
    with pytest.raises(ModelError, match="nobody/nothing"):
        SamplingConfig(model="nobody/nothing").check_model()
    (tmp_path / "nobody" / "nothing").mkdir(parents=True)
    SamplingConfig(model="nobody/nothing").check_model()  # a folder: what is in it is looked at later
