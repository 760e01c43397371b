"""What is no LoRA for a known model is refused in a sentence, whatever else the file holds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.lora_files import (
    GOOD,
    HIDDEN,
    Q,
    pair,
    save,
)
from triptych.errors import ModelError
from triptych.lora.adapter import (
    open_lora,
    read_about,
    read_lora,
)
from triptych.lora.names import pattern_of, shown

NAN = {f"{Q}.lora_A.weight": torch.full((2, HIDDEN), math.nan), f"{Q}.lora_B.weight": torch.ones(HIDDEN, 2)}
W = torch.ones(HIDDEN, 2)
SINGLE = pair("transformer.single_transformer_blocks.0.attn.to_q")
LOKR = {
    "lycoris_transformer_blocks_0_attn_to_q.lokr_w1": torch.ones(2, 2),
    "lycoris_transformer_blocks_0_attn_to_q.alpha": torch.ones(()),
}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (GOOD | {"nonsense.weight": torch.ones(1)}, "nonsense.weight"),
        (GOOD | pair("transformer.transformer_blocks.0.attn.to_z"), "to_z"),
        (GOOD | pair("lora_unet_img_out", peft=False), "lora_unet_img_out"),
        (GOOD | pair("lora_unet_double_blocks_x_img_attn_proj", peft=False), "blocks_x"),
        (GOOD | pair("transformer.\x1b[31mred"), r"\\x1b\[31mred"),
        (LOKR, "LoKr"),  # gap 7
        ({"transformer.x_embedder.hada_w1_a": torch.ones(2, 2)}, "LoHa"),
        (GOOD | {f"{Q}.dora_scale": torch.ones(HIDDEN)}, "DoRA"),  # gap 8
        (GOOD | {f"{Q}.lora_magnitude_vector": torch.ones(HIDDEN)}, "DoRA"),
        (GOOD | {f"{Q}.magnitude": torch.ones(HIDDEN)}, "DoRA"),  # ai-toolkit's
        # ai-toolkit's full rank: one matrix a layer
        (
            {
                f"transformer.transformer_blocks.{n}.attn.to_q.lora_A.weight": torch.ones(HIDDEN, HIDDEN)
                for n in (0, 1)
            },
            "full-rank",
        ),
        (
            {
                "oft_unet_double_blocks_0_img_attn_proj.alpha": torch.zeros(()),
                "oft_unet_double_blocks_0_img_attn_proj.oft_blocks": W,
            },
            "OFT",
        ),
        ({"lycoris_x_embedder.alpha": torch.zeros(()), "lycoris_x_embedder.oft_blocks": W}, "OFT"),
        ({"transformer.x_embedder.oft_R.weight": W, "transformer.x_embedder.alpha": torch.ones(())}, "OFT"),
        ({f"lycoris_x_embedder.{part}.weight": W.clone() for part in ("a1", "a2", "b1", "b2")}, "GLoRA"),
        (GOOD | {"lycoris_transformer_blocks_0_norm1_norm.w_norm": W}, "biases or norms"),
        (GOOD | {f"{Q}.diff": W}, "whole weights"),
        ({f"base_model.model.{Q}.vera_lambda_b": W}, "VeRA"),
        ({f"{Q}.weight": W}, "whole weights of a model"),
        ({f"{Q}.qweight": W}, "nunchaku"),
        (pair("diffusion_model.double_blocks.0.img_attn_proj"), "HunyuanVideo"),  # musubi's convert_lora
        (pair("lora_unet_double_blocks_0_img_mod_linear", peft=False), "HunyuanVideo"),
        (pair("lora_unet_layers_0_attention_qkv", peft=False), "Lumina"),
        (pair("transformer.noise_refiner.0.attn.to_q"), "Lumina"),
        (pair("diffusion_model.blocks.0.cross_attn.k"), "Wan"),
        (pair("transformer.transformer_blocks.0.attn1.to_q"), "cross attention"),
        (GOOD | pair("diffusion_model.distilled_guidance_layer.in_proj"), "Chroma"),
        (GOOD | {"bundle_emb.token.clip_l": W}, "text encoder"),
        # what more than a text encoder stands in the way is said first: to leave the encoder out would not
        # help
        (LOKR | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", peft=False), "LoKr"),
        (pair("diffusion_model.content_mode_blocks.0.q_proj"), "FLUX 3"),  # gap 11
        (pair("lora_unet_single_blocks_0_q_proj", peft=False), "FLUX 3"),
        (pair("diffusion_model.layers.0.attention.to_q"), "Z-Image"),
        (pair("diffusion_model.joint_blocks.0.x_block.attn.qkv"), "own names"),
        (pair("transformer.transformer_blocks.0.img_mlp.net.0.proj"), "Qwen-Image"),
        (
            pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", peft=False),
            "Stable Diffusion",
        ),
        ({"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(16)}, "biases or norms"),
        ({"double_blocks.0.img_attn.proj.lora_B.bias": torch.ones(HIDDEN)}, "biases or norms"),
        (GOOD | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", peft=False), "text encoder"),
        (GOOD | pair("text_encoder.text_model.encoder.layers.0.mlp.fc1"), "text encoder"),
        (GOOD | pair("diffusion_model.double_blocks.0.img_attn.qkv", up=(3 * HIDDEN, 2)), "twice"),
        (GOOD | {f"{Q}.lora_down.weight": torch.ones(2, HIDDEN)}, "twice"),
        (NAN, "finite"),
        (GOOD | {f"{Q}.alpha": torch.tensor(math.inf)}, "finite"),
        (GOOD | {f"{Q}.alpha": torch.tensor(0.0)}, "one number above 0"),
        (GOOD | {f"{Q}.alpha": torch.ones(3)}, "one number above 0"),
        ({k: v * 3e38 for k, v in GOOD.items()} | {f"{Q}.alpha": torch.tensor(3e38)}, "beyond all bounds"),
        ({k: v * 1e30 for k, v in GOOD.items()}, "beyond all bounds"),
        ({k: v * 3e6 for k, v in GOOD.items()}, "beyond all bounds"),
        (GOOD | {f"{Q}.lora_A.weight": torch.full((2, HIDDEN), 1e10)}, "beyond all bounds"),
        (GOOD | {f"{Q}.alpha": torch.tensor(1e38)}, "beyond all bounds"),
        ({k: (v * 60000).half() for k, v in GOOD.items()}, "beyond all bounds"),
        (
            pair("transformer.transformer_blocks.0.norm1.linear", up=(9 * HIDDEN, 2)) | SINGLE,
            "FLUX.1 and of Stable Diffusion 3",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(2, HIDDEN)}, "lacks the up"),
        ({f"{Q}.alpha": torch.ones(())}, "lacks the up"),
        (pair(Q, down=(3, HIDDEN)), "rank 3 going down and 2 going up"),
        (pair(Q, down=(2, HIDDEN, 1, 1)), "2×32×1×1"),
        (pair(Q, down=(0, HIDDEN), up=(HIDDEN, 0)), "0×32"),
        (GOOD | {f"{Q}.lora_A.weight": torch.tensor(1.0)}, "of the shape a single number, not a matrix"),
        (pair(Q, up=(HIDDEN + 1, 2)), "33×32"),
        (pair("lora_unet_double_blocks_0_img_attn_qkv", up=(HIDDEN, 2), peft=False), "32×32"),
        (pair("transformer.norm_out.linear", up=(7, 2)), "7×32"),
        (
            GOOD | pair("transformer.transformer_blocks.0.attn.to_k", down=(2, 64), up=(64, 2)),
            "different width",
        ),
        ({key: tensor.to(torch.int8) for key, tensor in GOOD.items()}, "int8"),
        ({}, "empty"),
    ],
)
def test_what_is_no_lora_for_flux_1_is_refused_in_a_sentence(
    tmp_path: Path, tensors: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read_lora(save(tmp_path, tensors))
    sentence = str(caught.value)
    assert sentence.startswith(str(tmp_path))
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "\x1b" not in sentence
    assert caught.value.hint.endswith(".")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"lora_adapter_metadata": "[1]"}, "lora_adapter_metadata"),
        ({"lora_adapter_metadata": "[" * 100_000}, "lora_adapter_metadata"),
        ({"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": "much"}'}, "alpha"),
        ({"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": NaN}'}, "alpha"),
        (
            {"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": 1' + "0" * 400 + "}"},
            "alpha",
        ),
        ({"lora_adapter_metadata": '{"transformer.r": 2, "transformer.alpha_pattern": [1]}'}, "alpha"),
        ({"lora_adapter_metadata": '{"transformer.r": 2, "transformer.use_dora": true}'}, "DoRA"),
        ({"triptych": "{"}, "triptych"),
        ({"triptych": '{"layout": {"width": 1e999, "height": 1, "roles": ["a"], "columns": 1}}'}, "panels"),
        ({"triptych": '{"layout": {"width": 8, "height": 8, "roles": [["a"]], "columns": 1}}'}, "panels"),
        ({"triptych": '{"context": "murky"}'}, "panels"),
        *(
            (
                {
                    "triptych": json.dumps(
                        {
                            "layout": {"width": 32, "height": 48, "roles": ["front", "worn"], "columns": 2}
                            | change
                        }
                    )
                },
                "panels",
            )
            for change in (
                {"width": 10**9, "height": 10**9},
                {"width": 0},
                {"width": True},
                {"width": "32"},
                {"columns": 3},
                {"columns": 0},
                {"columns": 1.0},
                {"roles": ["../../x", "worn"]},
                {"roles": ["front\n", "worn"]},
                {"roles": ["worn", "worn"]},
                {"roles": []},
                {"roles": "ab"},
                {"roles": ["front", 1]},
                {"roles": [f"r{n}" for n in range(1000)], "columns": 1000},
            )
        ),
        ({"triptych": '{"layout": [1]}'}, "panels"),
        ({"triptych": '{"family": "../x"}'}, "family"),
        ({"triptych": '{"family": ["flux"]}'}, "family"),
        ({"triptych": '{"family": {}}'}, "family"),
        ({"triptych": '{"context_lora": "yes"}'}, "triptych"),
    ],
)
def test_damaged_metadata_is_refused_in_a_sentence(
    tmp_path: Path, metadata: dict[str, str], words: str
) -> None:
    file = save(tmp_path, GOOD, **metadata)
    with pytest.raises(ModelError, match=words) as caught:
        read_lora(file)
    with pytest.raises(ModelError, match=words):
        read_about(file)
    assert len(str(caught.value)) < 400
    assert caught.value.hint


def test_names_in_messages_are_short_and_block_numbers_are_counted_once() -> None:
    assert shown("a" * 120) == repr("a" * 120)
    assert shown("a" * 121) == repr("a" * 117 + "…")
    assert pattern_of("blocks.3.blocks.4.proj") == ("blocks.#.blocks.4.proj", "3")
    assert pattern_of("proj_out") == ("proj_out", "")


@pytest.mark.parametrize(("side", "missing"), [("A", "up (lora_B)"), ("B", "down (lora_A)")])
def test_the_side_that_is_missing_is_named(tmp_path: Path, side: str, missing: str) -> None:
    half = {key: tensor for key, tensor in GOOD.items() if f"lora_{side}" in key}
    with pytest.raises(ModelError) as caught:
        open_lora(save(tmp_path, half))
    assert f"lacks the {missing} weight of " in str(caught.value)


def test_two_strengths_that_disagree_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path, GOOD | {f"{Q}.alpha": torch.tensor(1.0)}, {"r": 2, "lora_alpha": 2})
    with pytest.raises(ModelError, match="two strengths"):
        read_lora(file)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>Sign in</title>", "web page"),
        (b"", "download it again"),
        ((4000).to_bytes(8, "little") + b'{"a":', "download it again"),
        (b"PK\x03\x04" + bytes(60), "pickle"),
    ],
)
def test_a_download_that_went_wrong_is_told_by_its_first_bytes(
    tmp_path: Path, content: bytes, hint: str
) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_about(tmp_path / "a.safetensors")
    assert hint in caught.value.hint


def test_a_lora_one_folder_further_down_is_named(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    save_file(GOOD, tmp_path / "transformer" / "adapter_model.safetensors")
    with pytest.raises(ModelError) as caught:
        read_about(tmp_path)
    assert str(tmp_path / "transformer") in caught.value.hint


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    import pickle

    class Canary:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "canary",))

    for name in ("a.safetensors", "a.pt", "a.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Canary()))
        torch.save({"x": torch.ones(1)}, tmp_path / ("torch-" + name))
        for file in (name, "torch-" + name):
            with pytest.raises(ModelError, match="no safetensors file"):
                read_lora(tmp_path / file)
    assert not (tmp_path / "canary").exists()
