"""What FirstBlockCache saves, and what it does to the picture, on the embedded model: exact mode, worn panel
from two product photos.

    python benchmarks/step_cache.py

Counts passes through the last block (one is one step of one branch) and compares the worn panel with the one
made without the cache; both are the same on every machine but for rounding. How the pocket model's steps
differ says little about FLUX.1-dev's.
"""

from __future__ import annotations

import argparse
import random
from statistics import median

import numpy as np
from PIL import Image

from triptych.pocket.prompts import sample_triptych, triptych_caption
from triptych.pocket.render import render
from triptych.sampling.generate import generate_triptych
from triptych.sampling.options import Sampling
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB, of 8-bit pictures."""
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.02, 0.05, 0.1, 0.15, 0.3])
    options = parser.parse_args()
    layout, cases = TRY_ON.layout(48, 72), []
    for number in range(options.pictures):
        rng = random.Random(number)
        garment, scenes = sample_triptych(rng)
        front, back, _ = (
            render(garment, scene, number + 10 * place).image for place, scene in enumerate(scenes)
        )
        cases.append((triptych_caption(garment, scenes, rng).text, {"front": front, "back": back}))
    models = load_models("pocket", [prompt for prompt, _ in cases], device="cpu", dtype="fp32")
    ran: list[int] = []
    models.transformer.single_transformer_blocks[-1].attn.register_forward_hook(lambda *_: ran.append(1))  # type: ignore[union-attr,index]

    def make(sampling: Sampling) -> list[Image.Image]:
        ran.clear()
        box = layout.box("worn")
        made = [
            generate_triptych(models, [prompt], layout, [number], sampling, [products])[0]
            for number, (prompt, products) in enumerate(cases)
        ]
        return [canvas.crop(box) for canvas in made]

    sampling = {"guidance_scale": 1.0, "true_cfg_scale": 3.0}
    full = make(Sampling(options.steps, **sampling))  # type: ignore[arg-type]
    passes = len(ran)
    print("| what | passes saved | PSNR, median (least) |\n|---|---|---|")
    for threshold in options.thresholds:
        made = make(Sampling(options.steps, step_cache=threshold, **sampling))  # type: ignore[arg-type]
        values = [psnr(one, other) for one, other in zip(made, full, strict=True)]
        print(
            f"| threshold {threshold:g} | {1 - len(ran) / passes:.0%} | {median(values):.1f} dB "
            f"({min(values):.1f}) |",
            flush=True,
        )
    for steps in (options.steps * 3 // 4, options.steps // 2):
        values = [
            psnr(one, other) for one, other in zip(make(Sampling(steps, **sampling)), full, strict=True)
        ]  # type: ignore[arg-type]
        print(
            f"| {steps} steps, no cache | {1 - len(ran) / passes:.0%} | {median(values):.1f} dB "
            f"({min(values):.1f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
