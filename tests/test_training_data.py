"""What is drawn in training: triptychs, noise, noise levels, what is learned and what is held out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triptych import flow
from triptych.backbones.registry import load_backbone
from triptych.data.embeddings import load_record, save_record
from triptych.data.pairing import triptych_id
from triptych.data.triptychs import item_of
from triptych.errors import ConfigError, InputError
from triptych.tasks.tryoff import TRY_OFF
from triptych.tasks.tryon import TRY_ON
from triptych.training.data import (
    draw_active,
    draw_held_out,
    draw_time,
    ids_of_batch,
    ids_of_step,
    steps_of_epochs,
)
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
    assert data.layout == LAYOUT, "that of the first"
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
    with pytest.MonkeyPatch.context() as patch:  # no family here shifts by the number of steps
        patch.setattr(type(backbone), "mu", lambda _, tokens, steps: tokens / steps)
        assert torch.allclose(times(), times(shift=float(np.exp(2 * 3 / 4))))


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
    with pytest.raises(ConfigError, match=r"None of the 4 triptychs is left") as caught:
        training_set(work, config(work, tiny_flux, num_validation_triptychs=4))
    assert caught.value.hint


def test_epochs_are_rounded_up_to_whole_steps() -> None:
    assert [steps_of_epochs(*sizes) for sizes in ((2, 40, 4), (0.5, 3, 4), (1, 5, 4), (0.01, 3, 4))] == [
        20,
        1,
        2,
        1,
    ]


# --- Draws that a resumed training has to repeat
# ----------------------------------------------------------------------------------------------------------


def test_the_order_of_triptychs_stays_what_it_was() -> None:
    """Written down, since a training that began with an older version goes on with this one."""
    letters = list("abcde")
    assert ids_of_batch(letters, 0, 0, 7) == list("adecbea")
    assert ids_of_batch(letters, 0, 1, 7) == list("bcdaecb")
    assert ids_of_batch(letters, 3, 1, 4) == list("cdeb")
    steps = [ids_of_step([["a", "b", "c"], ["x", "y"]], 0, step, 3) for step in range(7)]
    assert ["".join(ids) for ids in steps] == ["yxx", "cba", "cab", "yyx", "bca", "cab", "yxy"]
    items = {f"i{n}-{k}": f"item {n}" for n in range(5) for k in range(2)}
    assert draw_held_out(items, 0, 1) == ["i3-0", "i3-1"]
    assert draw_held_out(items, 0, 3) == draw_held_out(items, 0, 4) == ["i1-0", "i1-1", "i3-0", "i3-1"]
    assert draw_held_out(items, 1, 3) == ["i1-0", "i1-1", "i4-0", "i4-1"]
    assert draw_held_out(items, 0, 100) == sorted(items), "no more than there are"


def box_of(active: torch.Tensor) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the learned tokens, which fill that box."""
    rows_, columns = (active.any(side).nonzero().flatten() for side in (1, 0))
    box = int(columns[0]), int(rows_[0]), int(columns[-1]) + 1, int(rows_[-1]) + 1
    assert active.sum() == (box[2] - box[0]) * (box[3] - box[1])
    return box


def test_what_is_learned_with_clean_context_stays_what_it_was() -> None:
    """One panel of 10 × 15 tokens: whole, or a box in it."""
    layout = TRY_ON.layout(160, 240)
    drawn = [draw_active(layout, 16, flow.generator_for(number)) for number in range(8)]
    assert all(made == layout and active.shape == (15, 30) for made, active in drawn)
    whole, boxes = (20, 0, 30, 15), [(20, 4, 30, 11), (22, 5, 29, 11), (26, 4, 29, 12), (20, 3, 27, 14)]
    assert [box_of(active) for _, active in drawn] == [
        boxes[0],
        whole,
        boxes[1],
        whole,
        boxes[2],
        boxes[3],
        (25, 4, 30, 14),
        whole,
    ]


def test_boxes_are_of_a_third_to_all_of_a_panel_and_lie_anywhere_in_it() -> None:
    layout = TRY_ON.layout(96, 144)
    boxes = [box_of(draw_active(layout, 16, flow.generator_for("box", n))[1]) for n in range(2000)]
    widths, heights = (Counter(box[side + 2] - box[side] for box in boxes) for side in (0, 1))
    assert set(widths) == {2, 3, 4, 5, 6} and set(heights) == set(range(3, 10))
    assert 0.4 < boxes.count((12, 0, 18, 9)) / 2000 < 0.6, "half of them are whole panels"
    narrow = Counter(box[0] for box in boxes if box[2] - box[0] == 2)
    assert set(narrow) == {12, 13, 14, 15, 16}, "from the left edge of the panel to the right one"
    assert {box[1] for box in boxes if box[3] - box[1] == 3} == set(range(7))
    below = replace(layout, columns=1)
    assert all(
        np.array_equal(
            draw_active(below, 16, flow.generator_for("box", n))[1][18:],
            draw_active(layout, 16, flow.generator_for("box", n))[1][:, 12:],
        )
        for n in range(20)
    ), "wherever the panel lies"
    tiny = {box_of(draw_active(TRY_ON.layout(16, 16), 16, flow.generator_for(n))[1]) for n in range(20)}
    assert tiny == {(2, 0, 3, 1)}, "never less than a token"


def test_of_several_panels_one_or_more_are_learned() -> None:
    layout = TRY_OFF.on(TRY_ON.layout(160, 240))
    drawn = [draw_active(layout, 16, flow.generator_for(number)) for number in range(10)]
    assert [(made.made, box_of(active)) for made, active in drawn if made.made != layout.made] == [
        (("back",), (10, 4, 20, 11)),
        (("front",), (0, 3, 7, 14)),
        (("front",), (5, 4, 10, 14)),
        (("front",), (0, 3, 9, 14)),
    ]
    assert {box_of(active) for made, active in drawn if made.made == layout.made} == {(0, 0, 20, 15)}
    three = replace(layout, made=layout.roles)
    drawn = [draw_active(three, 16, flow.generator_for("three", number)) for number in range(300)]
    counts = Counter(len(made.made) for made, _ in drawn)
    assert set(counts) == {1, 2, 3} and counts[3] > 150, "all in half of the cases, and by chance"
    pairs = [(made, active) for made, active in drawn if len(made.made) == 2]
    assert {frozenset(made.made) for made, _ in pairs} == {
        frozenset(pair) for pair in (("front", "back"), ("front", "worn"), ("back", "worn"))
    }
    assert all(np.array_equal(active, made.mask(made.made, 16)) for made, active in pairs), "and whole"


def test_a_batch_with_clean_context_stays_what_it_was(work: Path, tiny_flux: Path) -> None:
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    options = config(work, tiny_flux, context="clean", noise_levels=3, caption_dropout=0.5, shift=1.0, seed=7)
    data = training_set(work, options)
    batch = data.draw(backbone, 5, 1, 2)
    ids = ids_of_step(data.buckets, 7, 5, 4)[2:]
    assert batch.levels == 3 and batch.clean_BCHW.shape == batch.noise_BCHW.shape == (6, 16, 6, 12)
    assert batch.tokens(16) == 6 * 3 * 6
    assert [round(float(mean)) for mean in batch.clean_BCHW.mean((1, 2, 3))] == [
        int(id[-1]) for id in ids for _ in range(3)
    ]
    place = 2  # the first of the second pass of two triptychs
    generator = flow.generator_for(7, "sample", 5, place, ids[0])
    assert torch.equal(batch.clean_BCHW[0], data.records[ids[0]].draw(generator))
    assert torch.equal(batch.clean_BCHW[0], batch.clean_BCHW[2]), "one triptych in three levels of noise"
    assert torch.equal(batch.noise_BCHW[0], torch.randn(16, 6, 12, generator=generator))
    assert torch.equal(batch.t_B[0], draw_time(options, backbone, LAYOUT, generator))
    empty = [float(text[0, 0]) == 0 for text in batch.text["prompt_embeds"]]
    assert empty[0] == (float(torch.rand((), generator=generator)) < 0.5) and len(set(empty)) == 2
    assert batch.empty["prompt_embeds"].shape[0] == 1 and (batch.empty["prompt_embeds"] == 0).all()
    assert batch.active is not None
    expected = draw_active(LAYOUT, 16, flow.generator_for(7, "window", 5, 1))
    assert batch.layout == expected[0] and torch.equal(batch.active, expected[1])
    assert torch.equal(batch.learned_BHW, torch.ones(6, 6, 12))
    assert training_set(work, config(work, tiny_flux)).draw(backbone, 0, 0, 1).active is None
    data = training_set(work, config(work, tiny_flux, context="clean", task="try-off"))
    made = {data.draw(backbone, step, 0, 1).layout.made for step in range(20)}
    assert made == {("front", "back"), ("front",), ("back",)}


def test_a_share_of_batches_is_without_product_panels(work: Path, tiny_flux: Path) -> None:
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")

    def withheld(**changes: Any) -> list[bool]:
        data = training_set(work, config(work, tiny_flux, context="clean", batch_size=1, **changes))
        batches = [data.draw(backbone, step, 0, 1) for step in range(40)]
        made = torch.from_numpy(LAYOUT.mask(["worn"], 16))
        assert all(batch.within is None or torch.equal(batch.within, made) for batch in batches)
        return [batch.within is not None for batch in batches]

    some = withheld(context_dropout=0.25)
    assert [step for step, without in enumerate(some) if without] == [5, 11, 12, 15, 17, 23, 26, 28, 31, 36]
    assert not any(withheld(context_dropout=0.0)) and all(withheld(context_dropout=1.0))


@pytest.mark.parametrize("context", ["noisy", "clean"])
def test_a_validation_batch_is_the_mean_and_always_the_same(
    work: Path, tiny_flux: Path, context: str
) -> None:
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    data = training_set(work, config(work, tiny_flux, context=context, caption_dropout=1.0, seed=3))
    batch = data.fixed(backbone, "id-2", 0.75)
    assert torch.equal(batch.clean_BCHW[0], data.records["id-2"].latent_mean_CHW)
    noise = torch.randn(16, 6, 12, generator=flow.generator_for(3, "validation", "id-2"))
    assert torch.equal(batch.noise_BCHW[0], noise)
    assert batch.t_B.tolist() == [0.75] and (batch.text["prompt_embeds"] == 2).all()
    assert (batch.layout, batch.levels, batch.within) == (LAYOUT, 1, None)
    if context == "clean":
        assert batch.active is not None
        assert torch.equal(batch.active, torch.from_numpy(LAYOUT.mask(["worn"], 16)))
    else:
        assert batch.active is None


# --- The triptychs of a training
# ----------------------------------------------------------------------------------------------------------


def test_a_training_is_told_by_each_part_of_its_triptychs(work: Path, tiny_flux: Path) -> None:
    options = config(work, tiny_flux)
    folder = work / "embeddings" / "flux"
    record = replace(load_record(folder / "id-1.safetensors"), model="a model", dtype="fp32")
    save_record(record, folder / "id-1.safetensors")
    before = training_set(work, options).fingerprint
    assert before["id-1"] == "62946f7332e32b6b", "written in the folders of trainings that may go on"
    changes = {
        "image_sha256": "other",
        "caption_sha256": "other",
        "model": "other",
        "dtype": "bf16",
        "layout": TRY_OFF.on(LAYOUT),
    }
    for name, value in changes.items():
        save_record(replace(record, **{name: value}), folder / "id-1.safetensors")
        after = training_set(work, options).fingerprint
        assert {id for id in before if before[id] != after[id]} == {"id-1"}, name
    save_record(replace(record, item="coat", layout_by="guess"), folder / "id-1.safetensors")
    assert training_set(work, options).fingerprint == before, "names are free"
    data = training_set(work, config(work, tiny_flux, num_validation_triptychs=1))
    assert {id for id in before if before[id] != data.fingerprint[id]} == set(data.held_out)


def test_the_task_says_which_panels_are_made(work: Path, tiny_flux: Path) -> None:
    assert training_set(work, config(work, tiny_flux)).layout.made == ("worn",)
    data = training_set(work, config(work, tiny_flux, task="try-off"))
    assert {layout.made for layout in data.layouts.values()} == {("front", "back")}
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    assert data.draw(backbone, 0, 0, 1).layout.made == ("front", "back")
    assert data.markers == (), "those of the house"


def test_layout_and_markers_are_those_of_the_first_triptych_that_is_learned(
    work: Path, tiny_flux: Path
) -> None:
    folder = work / "embeddings" / "flux"
    (first,) = draw_held_out({f"id-{n}": f"{n}" for n in range(1, 5)}, 0, 1)
    for number in range(1, 5):
        path = folder / f"id-{number}.safetensors"
        record = replace(
            load_record(path), item=f"{number}", markers=tuple(f"[{number}{panel}]" for panel in "abc")
        )
        save_record(record, path)
    data = training_set(work, config(work, tiny_flux, num_validation_triptychs=1))
    assert data.held_out == [first] and data.layout == LAYOUT
    second = data.ids[0][-1]
    assert data.markers == (f"[{second}a]", f"[{second}b]", f"[{second}c]")


def test_triptychs_of_one_item_by_name_are_held_out_together(work: Path, tiny_flux: Path) -> None:
    folder = work / "embeddings" / "flux"
    for number in (1, 3):
        path = folder / f"id-{number}.safetensors"
        save_record(replace(load_record(path), item="coat"), path)
    for seed in range(8):
        data = training_set(work, config(work, tiny_flux, num_validation_triptychs=1, seed=seed))
        assert ("id-1" in data.held_out) == ("id-3" in data.held_out)
        assert sorted([*data.ids, *data.held_out]) == [f"id-{n}" for n in range(1, 5)]
        assert data.held_out == draw_held_out(data.items, seed, 1)


@pytest.mark.parametrize(("context", "learned"), [("noisy", "front"), ("clean", "worn")])
def test_loss_masks_weigh_what_is_learned(work: Path, tiny_flux: Path, context: str, learned: str) -> None:
    """A mask that leaves nothing of the learned panels is refused; it may be black elsewhere."""
    (work / "masks").mkdir()
    options = config(work, tiny_flux, context=context, loss_masks=work / "masks", batch_size=4)
    pixels = (LAYOUT.mask([learned]) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(work / "masks" / "id-2.png")
    data = training_set(work, options)
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    shown = ids_of_step(data.buckets, 0, 0, 4)
    for id, area in zip(shown, data.draw(backbone, 0, 0, 1).learned_BHW, strict=True):
        truth = torch.from_numpy(LAYOUT.mask([learned], 8)).float() if id == "id-2" else torch.ones(6, 12)
        assert torch.equal(area, truth)
    if context == "clean":
        Image.fromarray(255 - pixels).save(work / "masks" / "id-2.png")
        with pytest.raises(InputError, match="black where there is something to learn"):
            training_set(work, options)
