"""What must not stay on a card, shown where it can be without one: by references and by equality. What a
whole command holds there is counted in `test_device_sim.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.backbones.registry import load_backbone
from triptych.compute.convolutions import exact_convolutions
from triptych.compute.quantize import Int8Linear, TorchaoInt8Linear
from triptych.sampling import opened
from triptych.session import load_models
from triptych.vton import batch
from triptych.vton.batch import Job, PictureTools, _sampled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_unpacked_in_one_pass_to_the_same_bits(dtype: torch.dtype) -> None:
    from torchao.quantization import Int8Tensor

    weight = torch.randn(96, 192, generator=torch.Generator().manual_seed(0))
    codes, scale = Int8Linear.pack(weight)
    made = Int8Linear.unpack(codes, scale, weight.shape, dtype)
    assert made.dtype == dtype and torch.equal(made, codes.to(dtype).mul_((scale / 127.0)[:, None]))
    codes, scale = TorchaoInt8Linear.pack(weight)
    made = TorchaoInt8Linear.unpack(codes, scale, weight.shape, dtype)
    group = codes.shape[1] // scale.shape[1]
    assert torch.equal(made, Int8Tensor(codes, scale, [1, group], dtype).dequantize())


def test_a_batch_that_is_too_large_is_gone_before_its_pictures_are_tried_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error of the failed batch holds its frames, and they hold its tensors."""
    alive: list[weakref.ref[torch.Tensor]] = []
    given_back = []

    class Tools:
        def __init__(self) -> None:
            self.model = self

        def read(self, jobs: Sequence[Job]) -> list[Job]:
            return list(jobs)

        def give_back(self) -> None:
            given_back.append(True)

    def sample(inputs: Sequence[Any], model: Any) -> Any:
        if len(inputs) > 1:
            large = torch.ones(1000)
            alive.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert all(one() is None for one in alive), "the tensors of the batch are still there"
        raise ValueError("alone")

    monkeypatch.setattr(batch, "sample", sample)
    jobs = [Job(number, None, (0,)) for number in range(3)]  # type: ignore[arg-type]
    made = _sampled(jobs, Tools())  # type: ignore[arg-type]
    assert [one.reason for one in made] == ["alone"] * 3 and alive and given_back == [True]
    assert PictureTools is not Tools


def test_the_autoencoder_codes_a_batch_as_it_codes_each_picture(tiny: Path) -> None:
    autoencoder = load_backbone(str(tiny), "cpu", "fp32").load_autoencoder()
    assert autoencoder.vae.use_slicing  # type: ignore[attr-defined]
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, _ = autoencoder.encode(pixels)
    alone = torch.cat([autoencoder.encode(one[None])[0] for one in pixels])
    assert torch.equal(mean, alone)
    decoded = autoencoder.decode(mean)
    assert torch.equal(decoded, torch.cat([autoencoder.decode(one[None]) for one in mean]))


def test_convolutions_are_exact_inside_and_as_they_were_outside() -> None:
    before = torch.backends.cudnn.allow_tf32
    with exact_convolutions():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_the_model_waits_in_ram_while_a_later_prompt_is_read(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card that has no room for both; on a CPU nothing moves."""
    moved: list[Any] = []

    @contextmanager
    def aside(module: torch.nn.Module) -> Iterator[None]:
        moved.append(module)
        yield
        moved.append("back")

    monkeypatch.setattr(opened, "aside", aside)
    session = load_models(str(tiny), ["one"], device="cpu", dtype="fp32")
    session.encode(["one"])
    assert moved == []
    session.encode(["two", "three"])
    assert moved == [session.transformer, "back"]
    session.forget_texts(1)
    assert [*session.texts] == ["", "three"]
    session.forget_texts(0)
    assert [*session.texts] == [""]
