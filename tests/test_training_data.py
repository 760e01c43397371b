"""What is drawn in training: triptychs, noise, noise levels, what is learned and what is held out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from triptych import flow
from triptych.backbones.registry import load_backbone
from triptych.data.pairing import triptych_id
from triptych.data.triptychs import item_of
from triptych.errors import ConfigError
from triptych.tasks.tryon import TRY_ON
from triptych.training.data import draw_held_out, draw_time, ids_of_step
from triptych.verbs.train import train

from .test_train import LAYOUT, config, training_set, write_records


def rows(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "lora" / "train.jsonl").read_text().splitlines()]


@pytest.fixture
def work(tmp_path: Path, tiny_flux: Path) -> Path:
    write_records(tmp_path, [f"id-{n}" for n in range(1, 5)], tiny_flux)
    return tmp_path


def test_a_step_is_the_same_however_it_is_split_into_passes(work: Path, tiny_flux: Path) -> None:
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    drawn = []
    for size, passes in ((4, 1), (2, 2), (1, 4)):
        data = training_set(work, config(work, tiny_flux, batch_size=size, caption_dropout=0.5))
        batches = [data.draw(backbone, 3, number, passes) for number in range(passes)]
        drawn.append(
            [
                torch.cat([getattr(batch, name) for batch in batches])
                for name in ("clean_BCHW", "noise_BCHW", "t_B")
            ]
        )
        drawn[-1].append(torch.cat([batch.text["prompt_embeds"] for batch in batches]))
    for parts in zip(*drawn, strict=True):
        assert torch.equal(parts[0], parts[1]) and torch.equal(parts[0], parts[2])


def test_each_step_is_of_one_bucket_and_every_id_is_seen_equally_often() -> None:
    buckets = [[f"a{n}" for n in range(5)], [f"b{n}" for n in range(2)], ["c"]]
    steps = [ids_of_step(buckets, 7, step, 3) for step in range(5 * 8)]
    assert all(len({id[0] for id in ids}) == 1 for ids in steps)
    assert set(Counter(id for ids in steps for id in ids).values()) == {15}
    assert len({ids[0][0] for ids in steps[:8]}) == 3, "buckets take turns"
    assert steps != [ids_of_step(buckets, 8, step, 3) for step in range(40)]


def test_canvases_of_two_sizes_train_in_batches_of_one_size(work: Path, tiny_flux: Path) -> None:
    wide = TRY_ON.layout(48, 32)
    write_records(work, ["id-5", "id-6"], tiny_flux, wide)
    options = config(work, tiny_flux)
    backbone, data = load_backbone(str(tiny_flux), "cpu", "fp32"), training_set(work, options)
    layouts = [data.draw(backbone, step, 0, 1).layout for step in range(6)]
    assert Counter(layout.size for layout in layouts) == {LAYOUT.size: 4, wide.size: 2}
    train(options).finish()
    assert len(rows(work)) == 6


def test_noise_levels_keep_to_their_range_and_shift(work: Path, tiny_flux: Path) -> None:
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")

    def times(**changes: Any) -> torch.Tensor:
        options = config(work, tiny_flux, **changes)
        return torch.stack([draw_time(options, backbone, LAYOUT, flow.generator_for(n)) for n in range(400)])

    plain = times(shift=1.0)
    assert plain.median().item() == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(times(shift=3.0), 3 * plain / (1 + 2 * plain))
    assert torch.equal(times(), times(shift=float(np.exp(backbone.mu(2 * 3, 28)))))
    narrow = times(shift=1.0, min_t=0.2, max_t=0.6)
    assert torch.allclose(narrow, 0.2 + 0.4 * plain)


def test_whole_items_are_held_out() -> None:
    ids = [f"dress-{n}-{worn:012x}" for n in range(6) for worn in range(3)] + ["my-own"]
    items = {id: item_of(id, None) for id in ids}  # records of older versions, which name no item
    held = draw_held_out(items, 0, 4)
    assert len(held) in (4, 6)
    assert {items[id] for id in ids if id in held}.isdisjoint(items[id] for id in ids if id not in held)
    assert draw_held_out(items, 0, 0) == []
    assert {tuple(draw_held_out(items, seed, 4)) for seed in range(5)} != {tuple(held)}


LONG = "a-very-long-stock-number-" * 3


NAMES = ["红色连衣裙", "蓝色外套", "ワンピース", "تنورة", "платье-1", "юбка-1", LONG + "a", LONG + "b"]


def test_items_of_any_script_and_length_are_told_apart() -> None:
    items = {triptych_id(name, f"{worn}"): name for name in NAMES for worn in range(2)}
    for count in (1, 2, 3):
        held = draw_held_out(items, 0, count)
        assert len(held) == 2 * -(-count // 2), "whole items of two, and no more of them than asked for"
    alone = {id: item_of(id, None) for id in items if id.startswith("item-")}
    assert len(draw_held_out(alone, 0, 1)) == 1, "where nobody says, names without ASCII are not one item"


def test_training_sees_draws_of_the_posterior_and_not_its_mean(work: Path, tiny_flux: Path) -> None:
    data = training_set(work, config(work, tiny_flux, batch_size=4))
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    batches = [data.draw(backbone, step, 0, 1) for step in range(2)]
    means = {
        float(data.records[id].latent_mean_CHW.mean().round()): data.records[id].latent_mean_CHW
        for id in data.ids
    }
    apart = torch.stack(
        [latents - means[float(latents.mean().round())] for batch in batches for latents in batch.clean_BCHW]
    )
    assert 0.009 < float(apart.std()) < 0.011, "the records' posteriors are 0.01 wide"
    assert len({float(one.sum()) for one in apart}) == 8, "each draw is another"


def test_held_out_triptychs_are_not_trained_on(work: Path, tiny_flux: Path) -> None:
    data = training_set(work, config(work, tiny_flux, num_validation_triptychs=1))
    seen = {id for step in range(20) for id in ids_of_step(data.buckets, 0, step, 4)}
    assert len(data.held_out) == 1
    assert seen == {f"id-{n}" for n in range(1, 5)} - set(data.held_out)
    with pytest.raises(ConfigError, match=r"None of the 4 triptychs is left"):
        training_set(work, config(work, tiny_flux, num_validation_triptychs=4))
