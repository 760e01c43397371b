"""What people give as a model: each thing that is no model folder, or holds weights that cannot be read
right, is a sentence.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.backbones import checkpoint
from triptych.backbones.registry import load_backbone
from triptych.backbones.settings import model_settings
from triptych.errors import ModelError

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
T5 = "text_encoder_2/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
LAYER = "transformer_blocks.0.attn.to_q"


def edited(file: str, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, {"format": "pt"})

    return edit


def put(key: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({key: tensor})


def told(part: str, **about: object) -> Callable[[Path], None]:
    def tell(folder: Path) -> None:
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | about))

    return tell


def renamed(part: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / part / old).rename(folder / part / new) and None


def in_int8(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}.weight"] = (tensors[f"{LAYER}.weight"] * 100).to(torch.int8)


def to_fp8(tensors: dict[str, Tensor]) -> None:
    tensors.update(
        {
            key: tensor.to(torch.float8_e4m3fn)
            for key, tensor in tensors.items()
            if key.endswith("attn.to_q.weight")
        }
    )


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            told("transformer", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
            "bitsandbytes, 8 bit",
        ),
        (told("transformer", quantization_config={"quant_method": "torchao"}), "torchao"),
        (edited(TRANSFORMER, in_int8), rf"{LAYER}\.weight holds I8"),
        (
            edited(TRANSFORMER, put(f"{LAYER}.weight_scale", torch.ones(1))),
            rf"scales \({LAYER}\.weight_scale",
        ),
        (edited(TRANSFORMER, put("scaled_fp8", torch.ones(0))), "scaled_fp8"),
        (edited(TRANSFORMER, put(f"{LAYER}.scale_weight", torch.ones(()))), "scale_weight"),
        (edited(TRANSFORMER, put(f"{LAYER}.SCB", torch.ones(32))), "SCB"),
        (edited(TRANSFORMER, put(f"{LAYER}.weight.absmax", torch.ones(4))), "absmax"),
        (
            edited(TRANSFORMER, put("guidance.weight", torch.ones(4, 4))),
            r"guidance\.weight, which is no part of the model",
        ),
        (edited(TRANSFORMER, lambda tensors: tensors.pop("proj_out.weight")), r"lacks proj_out\.weight"),
        (edited(TRANSFORMER, put("proj_out.weight", torch.ones(2, 2))), "2×2"),
    ],
)
def test_a_transformer_that_is_not_plain_and_whole_is_refused(
    tmp_path: Path, tiny_flux: Path, quantize: str, damage, words: str
) -> None:
    shutil.copytree(tiny_flux, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=words) as caught:
        load_backbone(str(tmp_path / "model"), "cpu", "fp32", quantize).load_transformer()
    assert "memory" not in str(caught.value)


def test_unscaled_fp8_is_read(tmp_path: Path, tiny_flux: Path) -> None:
    shutil.copytree(tiny_flux, tmp_path / "model")
    edited(TRANSFORMER, to_fp8)(tmp_path / "model")
    small = (
        load_backbone(str(tmp_path / "model"), "cpu", "fp32").load_transformer().get_submodule(LAYER).weight
    )
    full = load_backbone(str(tiny_flux), "cpu", "fp32").load_transformer().get_submodule(LAYER).weight
    assert small.dtype == torch.float32
    assert 0 < (small - full).abs().max() < 0.07 * full.abs().max()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            told(
                "text_encoder_2", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
            ),
            "this is the CPU",
        ),
        (
            edited(T5, put("encoder.block.0.layer.0.SelfAttention.q.weight_scale", torch.ones(1))),
            "weight_scale",
        ),
        (
            edited(
                T5,
                put("encoder.block.0.layer.0.SelfAttention.q.weight", torch.ones(32, 32, dtype=torch.int8)),
            ),
            "holds I8",
        ),
        (
            edited(T5, lambda tensors: tensors.pop("encoder.final_layer_norm.weight")),
            "lacks encoder.final_layer_norm.weight",
        ),
        (
            edited("text_encoder/model.safetensors", lambda tensors: tensors.pop(sorted(tensors)[0])),
            "lacks .*it is incomplete",
        ),
        (edited(VAE, lambda tensors: tensors.pop("decoder.conv_in.bias")), r"lacks decoder\.conv_in\.bias"),
        (
            renamed(
                "transformer",
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model.fp16.safetensors",
            ),
            "the variant fp16",
        ),
        (
            renamed("text_encoder_2", "model.safetensors", "model.bf16-00001-of-00002.safetensors"),
            "the variant bf16",
        ),
        (renamed("vae", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"), "pickle file"),
        (renamed("text_encoder", "model.safetensors", "pytorch_model.bin"), "pickle file"),
    ],
)
def test_other_parts_that_are_not_plain_and_whole_are_refused(
    tmp_path: Path, tiny_flux: Path, damage, words: str
) -> None:
    shutil.copytree(tiny_flux, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=words) as caught:
        backbone = load_backbone(str(tmp_path / "model"), "cpu", "fp32")
        backbone.load_text_encoder()
        backbone.load_autoencoder()
    assert caught.value.hint


def single(folder: Path, name: str, *keys: str, dtype: torch.dtype = torch.bfloat16) -> None:
    save_file({key: torch.ones(2, 2).to(dtype) for key in keys}, folder / name)


PLACES = {
    "flux1-dev.safetensors": (
        "single file in the names of Black Forest Labs",
        ["double_blocks.0.img_attn.qkv.weight"],
    ),
    "fp8.safetensors": ("single file in fp8", ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"]),
    "all-in-one.safetensors": (
        "with text encoders and autoencoder",
        ["double_blocks.0.x", "vae.decoder.x", "text_encoders.t5xxl.x"],
    ),
    "diffusers.safetensors": ("a transformer alone", ["transformer_blocks.0.attn.to_q.weight"]),
    "sd3.5.safetensors": (r"Stable Diffusion 3\)", ["joint_blocks.0.x_block.attn.qkv.weight"]),
    "sdxl.safetensors": ("older Stable Diffusion", ["model.diffusion_model.input_blocks.0.0.weight"]),
    "chroma.safetensors": (
        "Chroma",
        ["distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.qkv.weight"],
    ),
    "lora.safetensors": ("but a LoRA", ["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"]),
    "other.safetensors": ("of an unknown kind", ["x"]),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_single_file_is_told_what_it_is(tmp_path: Path, name: str) -> None:
    words, keys = PLACES[name]
    single(tmp_path, name, *keys, dtype=torch.float8_e4m3fn if name.startswith("fp8") else torch.bfloat16)
    with pytest.raises(ModelError, match=words) as caught:
        load_backbone(str(tmp_path / name))
    assert ("from_single_file" in caught.value.hint) == name.startswith(("flux1", "fp8", "all-in", "sd3.5"))


def test_other_things_that_are_no_model_folder(tmp_path: Path, tiny_flux: Path) -> None:
    (tmp_path / "q8.gguf").write_bytes(b"GGUF")
    (tmp_path / "model.ckpt").write_bytes(b"\x80")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 40)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    shutil.copytree(tiny_flux / "transformer", tmp_path / "transformer")
    (tmp_path / "files").mkdir()
    single(tmp_path / "files", "flux1-dev.safetensors", "double_blocks.0.x")
    (tmp_path / "models--a--b" / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "models--a--b" / "snapshots" / "abc" / "model_index.json").write_text("{}")
    cases = {
        "q8.gguf": "GGUF",
        "model.ckpt": "pickle",
        "broken.safetensors": "cannot be read",
        "lora": "--lora",
    }
    cases |= {
        "transformer": "a transformer alone",
        "files": "single files",
        "models--a--b": "snapshots/abc",
        "nowhere": "nothing at that path",
    }
    for name, words in cases.items():
        with pytest.raises(ModelError, match=words):
            load_backbone(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FluxFillPipeline", "FLUX.1-dev it was made from"),
        ("FluxKontextPipeline", "extra tokens"),
        ("FluxControlPipeline", "control picture"),
        ("FluxInpaintPipeline", r"FluxPipeline\.from_pretrained"),
        ("StableDiffusion3Img2ImgPipeline", r"StableDiffusion3Pipeline\.from_pretrained"),
        ("ChromaPipeline", "another model"),
        ("Flux2KleinInpaintPipeline", "FLUX.2-klein.s own parts"),
        ("Flux2Pipeline", "the large FLUX.2"),
        ("QwenImagePipeline", "Known: .*, FluxPipeline"),
        ("x\x1b[31m", "unknown kind"),
    ],
)
def test_another_pipeline_is_told_what_it_is(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ModelError, match=words):
        load_backbone(str(tmp_path))


def test_the_memory_is_blamed_only_where_it_may_be_at_fault() -> None:
    for error, blamed in (
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("CUDA out of memory"), True),
        (OSError("no file"), False),
    ):
        with pytest.raises(ModelError) as caught, checkpoint.opening("m"):
            raise error
        assert ("too little memory" in caught.value.hint) == blamed


@pytest.mark.parametrize(
    "own",
    [
        '{"panel_width": "x"}',
        '{"panel_height": 0}',
        '{"guidance_scale": [1]}',
        '{"num_inference_steps": 1.5}',
        "[1]",
    ],
)
def test_settings_of_a_folder_that_no_model_has_are_a_sentence(
    tiny_flux: Path, tmp_path: Path, own: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_flux, folder)
    (folder / "triptych.json").write_text(own)
    with pytest.raises(ModelError, match="settings of"):
        model_settings(str(folder))
    (folder / "triptych.json").write_text('{"guidance_scale": null, "panel_width": 64}')
    assert model_settings(str(folder)).panel_width == 64
