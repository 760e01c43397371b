"""The measure of the rendered world: the judge's verdicts, their intervals, and the verb that makes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from triptych.cli import main
from triptych.errors import ConfigError
from triptych.evaluation.rendered import (
    Share,
    colour_distances,
    held_out_items,
    mean_distance,
    outline,
    product_verdicts,
    summary_of,
    verdicts,
)
from triptych.pocket.world import COLOURS, Garment
from triptych.verbs.evaluate import EvaluateConfig, evaluate


def test_true_pictures_pass_and_others_do_not() -> None:
    items = held_out_items(40, seed=1)
    truth = summary_of(verdicts([item.worn for item in items], items))
    assert all(truth[name]["share"] >= 0.95 for name in ("type", "colour", "pattern", "named"))
    swapped = [item.view(2, recoloured(item.garment)).image for item in items]
    wrong = verdicts(swapped, items)
    assert sum(wrong["colour"]) <= 2, "another colour is seen"
    assert sum(wrong["hair"]) >= 38, "what stayed is seen too"
    distances = [
        mean_distance(colour_distances(panels, items)) for panels in ([i.worn for i in items], swapped)
    ]
    assert distances[0] < 1 < 20 < distances[1]


def test_true_product_photos_pass_and_others_do_not() -> None:
    items = held_out_items(40, seed=1)
    fronts, backs = [item.front for item in items], [item.back for item in items]
    truth = summary_of(product_verdicts(fronts, backs, items))
    assert len(truth) == 10 and all(row["share"] >= 0.95 for row in truth.values())
    worn = product_verdicts([item.worn for item in items], backs, items)
    assert sum(worn["front alone"]) == 0 and sum(worn["back alone"]) >= 38
    swapped = [item.view(1, recoloured(item.garment)).image for item in items]
    assert sum(product_verdicts(fronts, swapped, items)["back colour"]) <= 2


def recoloured(garment: Garment) -> Garment:
    others = [colour for colour in COLOURS if colour not in (garment.colour, garment.colour2)]
    return replace(garment, colour=others[0])


def test_items_are_held_out_and_follow_from_the_seed() -> None:
    items = held_out_items(30, seed=5)
    assert all(item.garment.held_out and item.scenes[2].held_out for item in items)
    assert [item.garment for item in held_out_items(30, seed=5)] == [item.garment for item in items]
    assert {item.scenes[2].facing for item in items} == {"front", "behind"}
    assert all(item.other().colour != item.garment.colour and not item.other().held_out for item in items)
    words = " ".join(item.prompt for item in items).replace(",", "").split()
    assert not {"stripes", "dots", "check", "plain", "print"} & set(words), (
        "captions are silent about the look"
    )


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (285, 300, 0.9191, 0.9694)]
)
def test_the_interval_is_wilsons(hits: int, n: int, low: float, high: float) -> None:
    assert Share(hits, n).interval == pytest.approx((low, high), abs=5e-4)  # tabulated values


def test_the_polygon_holds_the_garment() -> None:
    from triptych.pictures.masks import polygon_mask

    for item in held_out_items(6, seed=2):
        worn = np.asarray(item.view(2).mask) > 127
        inside = polygon_mask([outline(worn, margin=6)], item.worn.size) > 0.5
        assert inside[worn].mean() > 0.99
        assert inside.mean() < 0.7


def test_evaluate_measures_base_and_lora_on_the_same_items_and_keeps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        "--pocket",
        "--items",
        "4",
        "--mode",
        "both",
        "--num-inference-steps",
        "2",
        "--work",
        str(tmp_path),
        "--json",
    ]
    assert main(words) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {"generate/base", "tryon/base", "ceiling"} <= set(summary)
    results = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert results["generate/base"]["colour"]["n"] == 4
    assert results["tryon/base"]["outside"] == 0, "pixels outside the polygon are the photo's own"
    assert results["ceiling"]["colour"]["share"] >= 0.75
    for name in ("generate.png", "tryon.png"):
        assert (tmp_path / "evaluation" / name).stat().st_size > 2000
    run = evaluate(EvaluateConfig(pocket=True, items=4, mode="both", num_inference_steps=2, work=tmp_path))
    assert {event.status for event in run} == {"kept"}


def test_try_off_is_measured_on_the_product_photos(tmp_path: Path) -> None:
    run = evaluate(EvaluateConfig(pocket=True, items=3, mode="tryoff", num_inference_steps=2, work=tmp_path))
    assert len(list(run)) == 1
    results = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    made, ceiling = results["tryoff/base"], results["ceiling"]
    assert {"front type", "front alone", "back both"} <= set(made) & set(ceiling)
    assert "named" not in made and made["back colour"]["n"] == 3
    with Image.open(tmp_path / "evaluation" / "tryoff.png") as sheet:
        assert sheet.size == (5 * 96, 3 * 144), "worn, two panels made, two true ones"


def test_mask_free_try_on_is_measured(tmp_path: Path) -> None:
    what = {"items": 3, "mode": "tryon", "masks": "free", "model": "pocket-klein"}
    evaluate(EvaluateConfig(pocket=True, num_inference_steps=4, work=tmp_path, **what)).finish()
    made = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["tryon/base"]
    assert made["outside"] == 0 and 0 <= made["left"] < 0.1 and made["seam"] > 0


def test_of_photos_no_truth_is_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rendered world, or on pairs"):
        evaluate(EvaluateConfig(work=tmp_path))


def test_a_base_alone_is_measured_with_the_options_given(tmp_path: Path) -> None:
    """A model that reads references is guided by them without a LoRA."""
    distances = []
    for scale in (1.0, 5.0):
        config = EvaluateConfig(
            pocket=True,
            model="pocket-klein",
            items=2,
            num_inference_steps=1,
            context_guidance_scale=scale,
            out=tmp_path / f"{scale}",
        )
        evaluate(config).finish()
        results = json.loads((tmp_path / f"{scale}" / "evaluation.json").read_text())
        distances.append(results["generate/base"]["colour_distance"])
    assert distances[0] != distances[1]
    with pytest.raises(ConfigError, match=r"--context-guidance-scale 3.0 has no effect .* noisy context"):
        evaluate(EvaluateConfig(pocket=True, context_guidance_scale=3.0, out=tmp_path))


def test_what_the_base_beside_a_lora_does_without_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 256), f"{name}.lora_B.weight": torch.zeros(256, 1)}
    save_file(tensors, tmp_path / "lora.safetensors", {"triptych": json.dumps({"context": "clean"})})
    given = {
        "pocket": True,
        "lora": tmp_path / "lora.safetensors",
        "drop_background": True,
        "context_guidance_scale": 3.0,
        "token_bucket": 1,
        "lora_scale": 0.5,
    }
    run = evaluate(EvaluateConfig(**given))
    told = "The base model is measured without --context-guidance-scale 3.0, --drop-background True."
    assert run.summary["warnings"] == caplog.messages == [told]
    assert evaluate(EvaluateConfig(**given, base=False)).summary["warnings"] == []
    klein = EvaluateConfig(**given | {"model": "pocket-klein"}).without_lora()
    assert klein.drop_background and klein.context_guidance_scale == 3.0, "it needs no LoRA for these"
