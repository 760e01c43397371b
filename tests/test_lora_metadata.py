"""Where a LoRA's metadata say its strength, and what they may hold."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import torch

from tests.test_lora_strength import NAMES, PLAIN
from triptych.errors import ModelError
from triptych.lora.formats import Layer
from triptych.lora.patterns import PatternError, peft_matchers
from triptych.lora.strength import LONGEST_JSON, LOST, is_about_strength, peft_config, strengths


def layer(alpha: float | None = None, prefix: str = "transformer.", rank: int = 16) -> Layer:
    """A layer as a file holds it; the strength depends on its name, rank and alpha alone."""
    path = "x_embedder"
    return Layer(prefix + path, path, "diffusers", (path,), torch.zeros(rank, 4), torch.zeros(4, rank), alpha)


def scale_of(metadata: dict[str, str], alpha: float | None = None) -> float:
    (scale,) = strengths([layer(alpha)], metadata, None)[0].values()
    return scale


@pytest.mark.parametrize("said", ["rs_lora", "use_rslora", "rslora"])
def test_rslora_is_read_under_each_of_its_names(said: str) -> None:
    assert scale_of({"ss_network_alpha": "8", "ss_network_args": json.dumps({said: "True"})}) == 2.0
    assert scale_of({"ss_network_alpha": "8", "ss_network_args": json.dumps({said: "False"})}) == 0.5
    for yes in ("1", " yes", "True"):
        assert scale_of({"lora_alpha": "8", said: yes}) == 2.0
    assert scale_of({"lora_alpha": "8", said: "0"}) == 0.5


@pytest.mark.parametrize(
    "metadata",
    [
        {"config": '{"lora_alpha": 8}'},
        {"config": ' \n{"lora_alpha": 8}'},
        {"config": '{"lora": {"lora_alpha": 8}, "lora_alpha": 1}'},
        {"config": '{"network": {"lora_alpha": 8}, "lora": {"lora_alpha": 1}}'},
        {"format": "pt", "training_args": "{a remark", "config": '{"lora_alpha": 8}'},
        {"rank": "16", "config": '{"lora_alpha": 8}'},
        {"lora_alpha": ' "8" '},
        {"lora_adapter_metadata": '{"lora_alpha": 8, "text_encoder.use_newthing": true}'},
    ],
)
def test_alpha_is_found_wherever_a_trainer_puts_it(metadata: dict[str, str]) -> None:
    assert scale_of(metadata) == 0.5


def test_a_rank_alone_says_nothing_of_the_strength() -> None:
    assert scale_of({"config": '{"rank": "high"}'}) == 1.0
    assert not is_about_strength("config", '{"rank": 8}')
    assert is_about_strength("config", '{"rank": 8, "lora_alpha": 8}')
    assert is_about_strength("ss_network_args", "what") and not is_about_strength("ss_epoch", "8")


def test_a_file_s_single_alpha_is_compared_with_its_layers_own() -> None:
    assert scale_of({"lora_alpha": "8"}, 8.0) == 0.5
    assert scale_of({"lora_alpha": "8.004"}, 8.0) == 0.5, "rounded"
    assert scale_of({"lora_alpha": "2", "use_rslora": "True"}, 8.0) == 0.5, "by the root of the rank"
    with pytest.raises(ModelError, match=r"0\.5 by its alpha, 0\.0625 by its metadata under 'lora_alpha'"):
        scale_of({"lora_alpha": "1"}, 8.0)
    with pytest.raises(ModelError, match="rank 8 by its metadata under 'config: lora_alpha' and 'rank'"):
        scale_of({"rank": "8", "config": '{"lora_alpha": 8}'})
    with pytest.raises(ModelError, match="rank 8 by its peft config"):
        scale_of({"lora_adapter_metadata": '{"r": 8, "lora_alpha": 8}'})


def test_two_strengths_of_one_layer_are_both_named() -> None:
    peft = {"lora_adapter_metadata": '{"r": 16, "lora_alpha": 4}'}
    assert scale_of(peft, 4.001) == pytest.approx(0.25, abs=1e-3), "rounded"
    with pytest.raises(ModelError, match=r"two strengths: 0\.5 by its alpha, 0\.25 by its peft config"):
        scale_of(peft, 8.0)
    several = peft_config({"lora_alpha": 16, "alpha_pattern": {".*": 8, "x_.*": 4}}, "config")
    assert strengths([layer()], {}, several) == ({"transformer.x_embedder": 0.5}, [LOST])


def test_metadata_up_to_a_limit_is_parsed() -> None:
    padded = {"lora_adapter_metadata": '{"r": 16, "lora_alpha": 8}'.ljust(LONGEST_JSON)}
    assert scale_of(padded) == 0.5
    with pytest.raises(ModelError, match="damaged metadata under 'lora_adapter_metadata'"):
        scale_of({key: text + " " for key, text in padded.items()})


def test_entries_that_say_nothing_hide_no_others() -> None:
    assert scale_of({"use_rslora": "True", "ss_network_dim": "none", "lora_alpha": "8"}) == 2.0
    assert scale_of({"lora_config": ' \n{"r": 16, "lora_alpha": 8}'}) == 0.5
    assert is_about_strength("lora_adapter_metadata", "{}")


def test_what_a_peft_config_may_hold() -> None:
    more = {"peft_type": "PeftType.LORA", "bias": False, "new_number": 3, "new_word": "x", "new_list": []}
    config = peft_config(PLAIN | more, "config")
    assert config is not None and config.scale(layer(rank=4)) == 2.0
    assert peft_config({"peft_type": "LORA"}, "config") is None, "nothing about the strength"
    for key in ("rank_pattern", "alpha_pattern"):
        assert peft_config({key: {"x_embedder": 8}}, "config") is not None
    config = peft_config({"alpha_pattern": {"^transformer.x_embedder": 8}}, "config")
    assert config is not None
    assert config.scale(layer(prefix="base_model.model.transformer.")) == 0.5, "by the name that peft knows"
    for change, words in (
        ({"r": 0}, "rank in its config"),
        ({"r": 1e9}, "rank in its config"),
        ({"lora_alpha": 0}, "alpha in its config"),
        ({"alpha_pattern": {"x": "2"}}, "for 'x' in its config"),
        ({"bias": True}, "biases"),
        ({"alpha_pattern": {"(": 1}}, "pattern in the alpha_pattern of its config"),
        ({"rank_pattern": 1}, "no usable rank_pattern in its config"),
    ):
        with pytest.raises(ModelError, match=words):
            peft_config(PLAIN | change, "config")


EXPRESSIONS = [
    "to_q",
    "^to_q",
    ".",
    "",
    ".*",
    r".*blocks\.0\..*",
    r"x_embedder|proj_out",
    r"[^.]+",
    r"\w+\.\d{1,2}\..*?",
]
EXPRESSIONS += [
    r"(x_embedder)?",
    r"(.{3}){2,5}",
    r"(.{7}){1,}",
    r"(?:a|b)*",
    r"(a?){3}x_embedder",
    r"proj_out$",
    r"[a-z_\d]*",
    r"\D+",
    r"(?P<n>x).*",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_patterns_mean_what_peft_takes_them_for(expression: str) -> None:
    from peft.utils.other import get_pattern_key

    ((_, fits),) = peft_matchers([expression])
    for name in (*NAMES, "", "to_q", "a.b", "proj_out.x"):
        assert fits(name) == (get_pattern_key([expression], name) is expression), name


@pytest.mark.parametrize(
    "expression",
    [
        "(a*)*b",
        "(.*.*)*x",
        ".*" * 140,
        "(((((.+)+)+)+)+)+x",
        "((.?){50}){50}",
        "(.|.|.)*" * 30,
        "(.?){60}" * 30,
    ],
)
def test_no_pattern_hangs(expression: str) -> None:
    begun = time.process_time()
    with contextlib.suppress(PatternError):  # "takes too many steps" is an answer too
        matchers = peft_matchers([expression] * 20)
        for name in [f"single_transformer_blocks.{n}.attn.to_q.and.something.more" for n in range(500)]:
            any(fits(name) and False for _, fits in matchers)
    assert time.process_time() - begun < 20
