"""The published In-Context LoRAs (arXiv 2410.23775): their layers and their size, and one of their shape in
use.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
from diffusers import FluxTransformer2DModel

from tests.lora_files import (
    PEFT,
    check_outputs,
    dotted,
    save,
    write,
)
from triptych.cli import main
from triptych.lora.adapter import (
    load_lora,
)

PUBLISHED_DOUBLE = (
    *(
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    ),
    *(
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
        "norm1.linear",
        "norm1_context.linear",
    ),
)
PUBLISHED_SINGLE = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out", "norm.linear")


def published_names(double: int, single: int) -> list[str]:
    """The layers of the ten In-Context LoRAs of arXiv 2410.23775: all linear layers inside the blocks, none
    outside.
    """
    return [f"transformer_blocks.{n}.{part}" for n in range(double) for part in PUBLISHED_DOUBLE] + [
        f"single_transformer_blocks.{n}.{part}" for n in range(single) for part in PUBLISHED_SINGLE
    ]


def test_the_published_key_set_has_the_published_size() -> None:
    """couple-profile.safetensors is 171,969,352 bytes: rank 16 in float16,
    with some 400 bytes of metadata.
    """
    sides = {
        "ff.net.0.proj": (4, 1),
        "ff.net.2": (1, 4),
        "norm1.linear": (6, 1),
        "norm1_context.linear": (6, 1),
    }
    sides |= {
        "ff_context.net.0.proj": (4, 1),
        "ff_context.net.2": (1, 4),
        "proj_mlp": (4, 1),
        "proj_out": (1, 5),
        "norm.linear": (3, 1),
    }
    header, offset = {}, 0
    for key in sorted(
        f"transformer.{name}.lora_{s}.weight" for name in published_names(19, 38) for s in "AB"
    ):
        out, into = next((side for part, side in sides.items() if f".{part}." in key), (1, 1))
        shape = [16, into * 3072] if "lora_A" in key else [out * 3072, 16]
        header[key] = {
            "dtype": "F16",
            "shape": shape,
            "data_offsets": [offset, offset := offset + 2 * math.prod(shape)],
        }
    size = 8 + len(json.dumps(header, separators=(",", ":"))) + offset
    assert 300 < 171_969_352 - size < 600


def test_a_published_in_context_lora_loads_and_runs(
    tmp_path: Path, tiny_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their exact key set on a model with fewer blocks, in float16 as they are;
    from the file to a picture.
    """
    transformer = FluxTransformer2DModel.from_pretrained(tiny_flux, subfolder="transformer")
    names = {name: (name,) for name in published_names(1, 2)}
    tensors, change = write(transformer, names, dotted("transformer.", *PEFT), rank=16)
    file = save(tmp_path, {key: tensor.half() for key, tensor in tensors.items()})
    assert len(tensors) == 2 * (14 + 2 * 6)
    plain = copy.deepcopy(transformer)
    load_lora(transformer, file)
    check_outputs(transformer, plain, change, tolerance=2e-2)  # float16 keeps three digits
    words = [
        "generate",
        "--model",
        str(tiny_flux),
        "--prompt",
        "a dress <IMAGE 1> <IMAGE 2> <IMAGE 3>",
        "--num-inference-steps",
        "2",
    ]
    words += ["--device", "cpu", "--dtype", "fp32"]
    assert main([*words, "--out", str(tmp_path / "with"), "--lora", str(file), "--json"]) == 0
    assert main([*words, "--out", str(tmp_path / "without"), "--json"]) == 0
    ours, none = (
        Path(json.loads(line)["images"][0]).read_bytes() for line in capsys.readouterr().out.splitlines()
    )
    assert ours != none
