"""Every family goes the whole way by the command line: embed, train, generate, tryon; and LoRA files know
whose they are.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from triptych.backbones import settings
from triptych.backbones.families import FAMILIES
from triptych.backbones.registry import BACKBONES, load_backbone
from triptych.backbones.settings import model_settings
from triptych.cli import main
from triptych.errors import ModelError
from triptych.lora.adapter import FILE_NAME, load_lora, open_lora

PROMPT = (
    "three pictures <IMAGE 1> the front of a dress <IMAGE 2> the back <IMAGE 3> a person wearing the dress"
)


def write_triptychs(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"item-{number}.png")
        (folder / f"item-{number}.txt").write_text(f"{PROMPT} {number}")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main([*map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for name, size in (("front", (60, 80)), ("person", (120, 160))):
        Image.fromarray(np.random.default_rng(7).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    (tmp_path / "polygon.json").write_text(
        json.dumps({"polygons": [[[30, 40], [90, 40], [90, 120], [30, 120]]]})
    )
    return {name: tmp_path / f"{name}.png" for name in ("front", "person")} | {
        "polygon": tmp_path / "polygon.json"
    }


@pytest.mark.parametrize("context", ["noisy", "clean"])
def test_embed_train_generate_tryon(
    tiny: Path, tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str], context: str
) -> None:
    work, name = tmp_path / "work", load_backbone(str(tiny), "cpu", "fp32").name
    write_triptychs(work / "triptychs", 3)
    common = ("--work", work, "--model", tiny, "--device", "cpu", "--dtype", "fp32")
    assert run(capsys, "embed", *common, "--columns", 3)["folder"] == str(work / "embeddings" / name)
    steps = ("--max-train-steps", 2, "--batch-size", 2, "--num-validation-images", 1, "--validation-steps", 2)
    assert run(capsys, "train", *common, *steps, "--context", context)["train_steps"] == 2
    assert open_lora(work).family == name

    pictures = (*common, "--lora", work, "--prompt", PROMPT, "--num-inference-steps", 2)
    made = run(capsys, "generate", *pictures, "--front", files["front"])["images"]
    assert Image.open(made[0]).size == (96, 48)
    photos = ("--front", files["front"], "--person", files["person"], "--polygon", files["polygon"])
    (out,) = run(capsys, "tryon", *pictures, *photos, "--feather", 4)["images"]
    before, after = (np.asarray(Image.open(path).convert("RGB")) for path in (files["person"], out))
    assert np.array_equal(before[:, :20], after[:, :20])
    assert (before[60:100, 50:70] != after[60:100, 50:70]).mean() > 0.5


@pytest.fixture
def sd3_lora(tiny_sd3: Path, tmp_path: Path) -> Path:
    """A LoRA for SD3 as diffusers' trainers write one: no word about whose it is, but it adapts a second
    attention.
    """
    names = ("transformer_blocks.0.attn2.to_q", "transformer_blocks.1.attn.to_q")
    sides = {"lora_A": (2, 32), "lora_B": (32, 2)}
    tensors = {
        f"transformer.{name}.{side}.weight": torch.ones(shape)
        for name in names
        for side, shape in sides.items()
    }
    save_file(tensors, tmp_path / FILE_NAME)
    return tmp_path / FILE_NAME


def test_a_lora_of_sd3_is_read_and_never_written_in_names_of_flux(
    tiny_sd3: Path, tiny_flux: Path, sd3_lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_lora(load_backbone(str(tiny_sd3), "cpu", "fp32").load_transformer(), sd3_lora)
    with pytest.raises(ModelError, match=r"does not fit this model at 'transformer_blocks\.0\.attn2"):
        load_lora(load_backbone(str(tiny_flux), "cpu", "fp32").load_transformer(), sd3_lora)
    assert run(capsys, "lora", "inspect", sd3_lora)["architecture"] == "Stable Diffusion 3"
    for target in ("comfyui", "kohya"):
        assert main(["lora", "convert", str(sd3_lora), str(tmp_path / "no.safetensors"), "--to", target]) == 1
        assert "no LoRA for FLUX.1" in capsys.readouterr().err
    assert not (tmp_path / "no.safetensors").exists()
    run(capsys, "lora", "convert", sd3_lora, tmp_path / "again.safetensors")
    with safe_open(tmp_path / "again.safetensors", "pt") as stream:
        assert stream.metadata()["modelspec.architecture"] == "stable-diffusion-3/lora"
    again, first = load_file(tmp_path / "again.safetensors"), load_file(sd3_lora)
    assert again.keys() == first.keys()
    assert all(torch.equal(again[key], first[key]) for key in first)


def test_settings_follow_the_family(tiny_sd3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name: backbone.family for name, backbone in BACKBONES.items()} == FAMILIES
    own = model_settings(str(tiny_sd3))
    assert (own.guidance_scale, own.true_cfg_scale) == (None, 3.5)
    assert (own.panel_width, own.max_sequence_length) == (32, 24), "the folder's own triptych.json wins"
    monkeypatch.setattr(settings, "model_index", lambda model: {"_class_name": "StableDiffusion3Pipeline"})
    of_hub = model_settings("stabilityai/stable-diffusion-3.5-large")
    assert (of_hub.panel_width, of_hub.panel_height, of_hub.max_sequence_length, of_hub.stride) == (
        480,
        640,
        256,
        16,
    )
