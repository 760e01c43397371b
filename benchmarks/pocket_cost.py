"""What a picture of the embedded klein costs, by the way in which it is shown the products.

    OMP_NUM_THREADS=1 python benchmarks/pocket_cost.py --work FOLDER

FOLDER is that of `benchmarks/pocket.py --model pocket-klein`, with its LoRAs. PyTorch counts the FLOP of
the transformer, readings included, without autoencoder and text encoder. Seconds are processor seconds of a
whole picture without its text; the ways take turns, and the table shows medians. Results: FOLDER/costs.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from pocket import SAMPLING, klein_ways, trained
from triptych.evaluation.rendered import dressed, held_out_items, prompt_of, worn_panels
from triptych.session import load_models
from triptych.store.files import write_json
from triptych.verbs.evaluate import EvaluateConfig

MODEL, ITEMS = "pocket-klein", 4
OURS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    ),
    torch.ops.mkldnn._linear_pointwise: lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0],
}
"""Operations on a CPU whose arithmetic PyTorch does not count by itself."""
AUTOENCODER = ("Encoder", "Decoder")


def ways(work: Path) -> dict[str, tuple[Path | None, str]]:
    """By name: the LoRA's folder, and the guidance."""
    loras = {name: trained(work, MODEL, **options, seed=0) for name, options in klein_ways().items()}
    return {
        "untrained, references at every step": (None, "text"),
        "noisy canvas": (loras["noisy"], "text"),
        "references at every step": (loras["native"], "text"),
        "references at every step, guided by the photos": (loras["native"], "context"),
        "clean on the canvas": (loras["canvas"], "context"),
        "clean references": (loras["references"], "context"),
    }


def flop_of(draw: Callable[[], object]) -> float:
    """FLOP of the transformer in one call."""
    with FlopCounterMode(display=False, custom_mapping=OURS) as counter:
        draw()
    counts = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
    return counts["Global"] - sum(counts.get(f"Global.{name}", counts.get(name, 0)) for name in AUTOENCODER)


def drawing(work: Path, mode: str) -> dict[str, Callable[[], object]]:
    """By way: a function that draws the same pictures."""
    items = held_out_items(ITEMS)
    found: dict[str, Callable[[], object]] = {}
    for name, (lora, guidance) in ways(work).items():
        sampling = {k: v for k, v in SAMPLING[guidance].items() if k != "guidance_scale"}
        config = EvaluateConfig(pocket=True, model=MODEL, lora=lora, mode=mode, **sampling)
        prompts = [prompt_of(item, config.describes_panels) for item in items]
        model = load_models(**config.model_source(), prompts=prompts)
        numbers = model.resolved(config, config.strength if mode == "tryon" else 1.0)
        draw = worn_panels if mode == "generate" else dressed
        found[name] = lambda draw=draw, model=model, numbers=numbers: draw(model, numbers, items, 0)
    return found


def measure(work: Path, mode: str, rounds: int) -> dict[str, dict[str, float]]:
    """GFLOP and processor seconds of one picture, by way."""
    draws = drawing(work, mode)
    flop = {name: flop_of(draw) / ITEMS for name, draw in draws.items()}
    seconds: dict[str, list[float]] = {name: [] for name in draws}
    for _ in range(rounds):
        for name, draw in draws.items():
            started = time.process_time()
            draw()
            seconds[name].append((time.process_time() - started) / ITEMS)
    return {
        name: {"gflop": round(flop[name] / 1e9, 1), "seconds": round(statistics.median(seconds[name]), 3)}
        for name in draws
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="the folder of benchmarks/pocket.py")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    costs: dict[str, Any] = {
        mode: measure(options.work, mode, options.rounds) for mode in ("generate", "tryon")
    }
    write_json(options.work / "costs.json", costs)
    print("| way | mode | GFLOP | seconds |\n|---|---|---|---|")
    for mode, by_way in costs.items():
        for name, cost in by_way.items():
            print(f"| {name} | {mode} | {cost['gflop']} | {cost['seconds']} |")


if __name__ == "__main__":
    main()
