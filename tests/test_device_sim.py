"""Commands on a pretended card make what the CPU makes, without waits in their loops, and hold only what they
need there; a defect of each kind is found.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from triptych.backbones import contract, streams
from triptych.backbones.flux.model import Flux
from triptych.backbones.flux.text import FluxText
from triptych.backbones.registry import load_backbone
from triptych.compute.blocks import linear_layers
from triptych.data.embeddings import EmbeddingFolder
from triptych.session import Session
from triptych.verbs.embed import embed
from triptych.verbs.train import train

from . import test_embed, test_train
from .device_sim import Card

PROMPT = "dress <IMAGE 1> front <IMAGE 2> back <IMAGE 3> worn"
OUTLINE = [[(10.0, 12.0), (30.0, 12.0), (30.0, 50.0)]]
EMBEDDING = 24 * 48 * 4
"""Bytes of a prompt's states in the tiny models."""

contexts = pytest.mark.parametrize("context", ["noisy", "clean"])


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def opened(model: Path, device: str) -> Session:
    return Session(str(model), device=device, dtype="fp32", context_cache_gib=0.0)


def made(session: Session, **changes: Any) -> np.ndarray:
    """A triptych in three steps."""
    (result,) = session.generate(picture(1), picture(2), PROMPT, num_inference_steps=3, **changes)
    return np.asarray(result.triptych).astype(int)


def dressed(session: Session, **changes: Any) -> np.ndarray:
    """A try-on's picture in three steps."""
    (result,) = session.try_on(
        *map(picture, (1, 2, 3)), polygons=OUTLINE, prompt=PROMPT, num_inference_steps=3, **changes
    )
    return np.asarray(result.image).astype(int)


def waits_between_steps(card: Card, session: Session, context: str = "noisy") -> Counter[str]:
    """The waits from the end of the first step to the end of the last."""
    after: list[Counter[str]] = []
    made(session, context=context, on_step=lambda *_: after.append(card.waits.copy()))
    assert len(after) == 3
    return after[-1] - after[0]


def bytes_of(*modules: nn.Module) -> int:
    """Memory of the modules' tensors."""
    tensors = [one for module in modules for one in (*module.parameters(), *module.buffers())]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


def memory(model: Path, prompts: int) -> dict[str, int]:
    """Bytes on the card with that many prompts: at most while they are encoded; besides the weights when the
    model is loaded; and at most besides the weights while one picture is made.
    """
    texts = [PROMPT, *(f"{number} {PROMPT}" for number in range(1, prompts))]
    with Card() as card:
        session = opened(model, "cuda")
        session.encode(texts)
        encoding = card.peak
        session.load()
        weights = bytes_of(session.transformer, session.autoencoder.vae)  # type: ignore[attr-defined]
        card.peak = kept = card.live
        made(session)
        return {"encoding": encoding, "kept": kept - weights, "sampling": card.peak - weights}


def trained(work: Path, model: Path, **changes: Any) -> tuple[list[float], Counter[str], Card]:
    """The losses of two steps, and the waits of the second, which saves nothing."""
    test_train.write_records(work, ["id-0", "id-1", "id-2"], model)
    options = test_train.config(work, model, max_train_steps=3, checkpointing_steps=9, **changes)
    card, losses, waits = Card(), [], []
    with card if options.device == "cuda" else nullcontext(), train(options) as run:
        for event in itertools.islice(run, 2):
            losses.append(event.result["loss"])
            waits.append(card.waits.copy())
    return losses, waits[1] - waits[0], card


def one_dtype_each(card: Card) -> bool:
    """Whether queries, keys and values had the same dtype in every call of attention."""
    assert card.attention
    return all(len({*dtypes}) == 1 for dtypes in card.attention)


@contexts
def test_pictures(tiny: Path, context: str) -> None:
    usual = opened(tiny, "cpu")
    expected = made(usual, context=context), dressed(usual, context=context)
    with Card() as card:
        session = opened(tiny, "cuda")
        session.encode([PROMPT])
        got = made(session, context=context), dressed(session, context=context)
        assert not waits_between_steps(card, session, context)
    for one, other in zip(got, expected, strict=True):
        assert abs(one - other).max() <= 1
    assert card.attention.total() > 20


@contexts
def test_training(tiny: Path, context: str, tmp_path: Path) -> None:
    """One wait in a step: all losses and the gradients' norm are asked for together."""
    expected, _, _ = trained(tmp_path / "cpu", tiny, context=context)
    got, waits, _ = trained(tmp_path / "card", tiny, context=context, device="cuda")
    assert got == pytest.approx(expected, rel=1e-4)
    assert [line.partition(":")[0] for line in waits.elements()] == ["loss.py"], waits


def test_a_checkpoint_waits_a_few_times_and_the_peak_is_this_stage_s(tiny_flux: Path, tmp_path: Path) -> None:
    test_train.write_records(tmp_path, ["id-0", "id-1"], tiny_flux)
    options = test_train.config(
        tmp_path,
        tiny_flux,
        device="cuda",
        max_train_steps=2,
        checkpointing_steps=1,
        gradient_checkpointing=True,
    )
    with Card() as card:
        torch.zeros(100 << 20, dtype=torch.uint8).to("cuda")  # an earlier stage has taken more
        assert card.peak == 100 << 20
        (row, *_) = [event.result for event in train(options)]
    assert 0 < row["peak_memory_gib"] * 2**30 < 50 << 20
    saved = {
        line: count for line, count in card.waits.items() if line.startswith(("checkpoints.py", "state.py"))
    }
    assert 0 < sum(saved.values()) <= 2 * 4, (
        "of each checkpoint: whether all is finite, and a copy for each dtype"
    )


def test_quantising_sends_the_file_s_bytes(tiny_flux: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_flux, tmp_path / "model")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(halves, weights)
    with Card() as card:
        backbone = load_backbone(str(tmp_path / "model"), "cuda", "bf16", "int8", blocks_to_swap=99)
        linear = linear_layers(backbone.blocks(backbone.load_transformer()))
    read = sum(2 * layer.in_features * layer.out_features for layer in linear.values())
    assert read < sum(card.sent) <= weights.stat().st_size


def test_dtypes_under_autocast(tiny: Path, tmp_path: Path) -> None:
    """With clean context, so that kept keys and values are joined with those of the active tokens."""
    _, _, card = trained(tmp_path, tiny, context="clean", device="cuda", dtype="bf16")
    assert one_dtype_each(card), card.attention


def test_embedding(tiny: Path, tmp_path: Path) -> None:
    records = []
    for device in ("cpu", "cuda"):
        work = tmp_path / device
        test_embed.write_triptychs(work / "triptychs", 1)
        config = test_embed.config(work, tiny).model_copy(update={"device": device})
        with Card() as card:
            made_in = embed(config).finish()["folder"]
        assert (card.peak > 0) == (device == "cuda")
        assert card.given_back == [0] * (device == "cuda"), (
            "the text encoder goes before the autoencoder comes"
        )
        data = EmbeddingFolder(Path(made_in))
        record = data["item-0"]
        records.append([record.latent_mean_CHW, record.latent_std_CHW, *record.text.values()])
    for one, other in zip(*records, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-5)


def test_prompts_take_no_memory_of_the_card(tiny: Path) -> None:
    """Embeddings wait on the CPU, and the encoders are gone before the transformer comes."""
    one, many = memory(tiny, 1), memory(tiny, 9)
    assert all(many[name] - one[name] < EMBEDDING for name in one), (one, many)
    assert many["kept"] < EMBEDDING


def test_an_operand_left_on_the_cpu_is_found(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "sent", lambda tensor, device, dtype: tensor.to(dtype))
    with Card(), pytest.raises(RuntimeError, match=r"same device.* cuda:0 and cpu"):
        made(opened(tiny_flux, "cuda"))


def test_a_question_in_the_loop_is_found(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    velocity = Flux.velocity

    def asking(*args: Any, **kwargs: Any) -> Tensor:
        made = velocity(*args, **kwargs)
        assert made.sum().item() != 0
        return made

    monkeypatch.setattr(Flux, "velocity", asking)
    line = asking.__code__.co_firstlineno + 2
    with Card() as card:
        waits = waits_between_steps(card, opened(tiny_flux, "cuda"))
    assert waits == {f"test_device_sim.py:{line} aten._local_scalar_dense": 2}


def test_an_embedding_kept_alive_is_found(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, kept = FluxText.encode, []

    def keeping(*args: Any) -> Any:
        kept.append(encode(*args))
        return kept[-1]

    monkeypatch.setattr(FluxText, "encode", keeping)
    one, many = memory(tiny_flux, 1), memory(tiny_flux, 9)
    assert all(many[name] - one[name] >= 8 * EMBEDDING for name in one), (one, many)


def test_a_float32_key_is_found(tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = streams.mixed

    def keyed(processor: Any, query: Tensor, key: Tensor, *rest: Any) -> Tensor:
        return mixed(processor, query, key.float(), *rest)

    monkeypatch.setattr(streams, "mixed", keyed)
    _, _, card = trained(tmp_path, tiny_flux, device="cuda", dtype="bf16")
    assert not one_dtype_each(card)
