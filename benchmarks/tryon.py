"""How much faster try-on is than diffusers' FluxInpaintPipeline, end to end, on a random model with FLUX.1's
proportions: as diffusers has it ("stock"), and on triptych's kernels for the CPU ("same kernels"). The second
ratio is what the method gains, the first also contains what the kernels gain on this processor.

    OMP_NUM_THREADS=2 python benchmarks/tryon.py --out tryon.json

Random weights: only the time is measured; that exact mode paints what the pipeline paints is what
tests/test_equals_diffusers.py shows. Before every run of ours both pipelines run once, in the same process;
ratios are to these two, and the table shows medians over rounds. Results are added to the JSON file as they
come: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxInpaintPipeline
from PIL import Image

from flux_like import FULL, PROMPT, QUICK, Size, as_diffusers_has_it, flux_like, matmul_peak, processor
from triptych.backbones.flux.attention import install
from triptych.backbones.flux.model import pack, unpack
from triptych.compute.attention import attention
from triptych.compute.cpu import linear
from triptych.pictures.panels import concatenate
from triptych.sampling.canvas import decoded_panel
from triptych.sampling.clean_context import ContextCache
from triptych.sampling.options import Sampling
from triptych.tasks.tryon import TRY_ON
from triptych.vton.dress import try_on
from triptych.vton.request import Person

PERSONS = 8
BEYOND_CACHE = 64 << 20
"""Bytes of weights that no processor cache of these machines holds."""


def product(size: Size, seed: int) -> Image.Image:
    """A patterned garment over half of a white panel."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (size.width, size.height), "white")
    pattern = Image.fromarray(random.integers(0, 200, (12, 9, 3), dtype=np.uint8))
    cloth = pattern.resize((round(size.width * 0.6), round(size.height * 0.65)), Image.Resampling.BICUBIC)
    image.paste(cloth, ((size.width - cloth.width) // 2, (size.height - cloth.height) // 2))
    return image


def person(size: Size, seed: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(100 + seed).integers(0, 255, (24, 18, 3), dtype=np.uint8)
    ).resize((size.width, size.height))


def polygon(size: Size, share: float) -> np.ndarray:
    """A mask of that share of the panel, on the token grid so that the pipeline's nearest-neighbour mask is
    the same.
    """
    mask = np.zeros((size.height, size.width), dtype=np.float32)
    rows, columns = size.height // 16, size.width // 16
    tall, wide = round(rows * share**0.5), round(columns * share**0.5)
    top, left = (rows - tall) // 2, (columns - wide) // 2
    mask[top * 16 : (top + tall) * 16, left * 16 : (left + wide) * 16] = 1
    return mask


class Bench:
    """The model, the pipeline around the same weights, and the pictures."""

    def __init__(self, size: Size, dtype: torch.dtype, folder: Path) -> None:
        self.size, self.layout = size, TRY_ON.layout(size.width, size.height)
        self.models = flux_like(size, dtype, folder)
        backbone = self.models.backbone
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(backbone.scheduler_config)
        vae = self.models.autoencoder.vae  # type: ignore[attr-defined]
        own = self.models.transformer
        install(own)  # as every velocity of ours does
        self.pipeline, self.with_kernels = (
            FluxInpaintPipeline(scheduler, vae, None, None, None, None, transformer)
            for transformer in (as_diffusers_has_it(own), own)
        )
        for pipeline in (self.pipeline, self.with_kernels):
            pipeline.set_progress_bar_config(disable=True)
        self.front, self.back = product(size, 0), product(size, 1)
        self.words = self.models.text([PROMPT])

    def stock(self, steps: int, share: float, output_type: str = "pil", kernels: bool = False) -> Any:
        """What a user of diffusers writes: the canvas, a mask, strength 1. One picture; or its packed latents
        (1, N, 64). kernels: on triptych's layers and attention.
        """
        canvas = concatenate([self.front, self.back, person(self.size, 0)], self.layout)
        white = Image.new("L", canvas.size)
        white.paste(
            Image.fromarray((polygon(self.size, share) * 255).astype(np.uint8)), self.layout.box("worn")[:2]
        )
        shape = (1, 16, canvas.height // 8, canvas.width // 8)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.models.backbone.dtype)
        return (self.with_kernels if kernels else self.pipeline)(
            prompt_embeds=self.words["prompt_embeds"],
            pooled_prompt_embeds=self.words["pooled_prompt_embeds"],
            image=canvas,
            mask_image=white,
            latents=noise,
            height=canvas.height,
            width=canvas.width,
            strength=1.0,
            num_inference_steps=steps,
            guidance_scale=3.5,
            output_type=output_type,
        ).images[0 if output_type == "pil" else slice(None)]

    def difference(self) -> int:
        """Largest difference of a channel, of 255, between exact mode's worn panel and the pipeline's, both
        decoded alone; two steps.
        """
        packed, (width, height) = self.stock(2, 0.36, "latent"), self.layout.size
        (theirs,) = decoded_panel(
            self.models, unpack(packed, height // 8, width // 8).float(), self.layout, "worn"
        )
        (ours,) = self.ours(Sampling(2, time_shift="canvas"), 0.36)
        return int(np.abs(np.asarray(ours.crop(self.layout.box("worn")), int) - np.asarray(theirs)).max())

    def ours(
        self, sampling: Sampling, share: float, persons: int = 1, cache_gib: float = 0.0
    ) -> list[Image.Image]:
        """`try_on` of `persons` people in one batch, the whole photo in the panel; the canvases."""
        self.models.contexts = ContextCache(int(cache_gib * 2**30))
        people = [
            Person(person(self.size, number), polygon(self.size, share), PROMPT, [number])
            for number in range(persons)
        ]
        made = try_on(self.models, self.front, self.back, people, self.layout, sampling, feather=0)
        return [result.canvas for results in made for result in results]


@dataclass(frozen=True)
class Row:
    """One line of the table; `targets` are the ratios to the pipeline on the same kernels that are aimed at,
    in float32 and in bfloat16.
    """

    name: str
    steps: int
    share: float
    run: Callable[[Bench], list[Image.Image]]
    targets: tuple[float, float]
    pictures: int = 1


def rows() -> list[Row]:
    exact, clean = Sampling(time_shift="canvas"), Sampling(context="clean", time_shift="canvas")
    products = replace(clean, context_reading="products")
    table = []
    aims = {
        28: ((1.0, 1.0), (2.2, 2.3), (3.7, 4.1), (4.2, 5.0)),
        8: ((1.0, 1.0), (2.0, 2.1), (2.9, 3.3), (3.6, 4.3)),
    }
    for steps, targets in aims.items():
        kinds = [
            ("exact", exact, 1.0),
            ("clean context, whole panel", clean, 1.0),
            ("clean context, 36 % of the panel", clean, 0.36),
            ("the same, product background left out", replace(clean, drop_background=True), 0.36),
        ]
        for (name, sampling, share), target in zip(kinds, targets, strict=True):
            sampling = replace(sampling, num_inference_steps=steps)
            table.append(Row(name, steps, share, lambda bench, s=sampling, a=share: bench.ours(s, a), target))
    sampling = replace(products, num_inference_steps=8)
    many = Row(
        f"{PERSONS} persons, one product kept, 36 %",
        8,
        0.36,
        lambda bench: bench.ours(sampling, 0.36, PERSONS, 4.0),
        (3.7, 4.2),
        PERSONS,
    )
    return [*table, many]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def timed_twice(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the clock, and of the processor: on a shared machine the second says what the first would be
    alone.
    """
    start = time.process_time()
    seconds, result = timed(run)
    return seconds, time.process_time() - start, result


# --- how much of the machine is used
# ----------------------------------------------------------------------------------


def best(run: Callable[[], Any], seconds: float) -> float:
    """The shortest time of one call, of as many as fit into `seconds`."""
    run()
    times = [timed(run)[0]]
    while sum(times) < seconds:
        times.append(timed(run)[0])
    return min(times)


@torch.no_grad()
def share_of_peak(bench: Bench, share: float, seconds: float) -> dict[str, float]:
    """Of a step's time, how much its matrix products and its attention take alone, at the speed measured for
    them here.

    Both are timed with the functions that the model calls, in their own shapes, the products with one weight
    after another as in a step, so that none is in the cache. Whatever else a step does (norms, activations,
    rotary embedding, copies, Python) is what is missing to 1. Beside it, the step's speed as a share of a
    square product's: by `torch.mm`, and by the model's own function.
    """
    from triptych.backbones.context import Window
    from triptych.sampling.clean_context import groups_of_canvas, kept_window
    from triptych.sampling.sampler import active_tokens

    models, layout, size = bench.models, bench.layout, bench.size
    backbone, transformer = models.backbone, models.transformer
    dtype, dim = backbone.dtype, 64 * size.heads
    latents = torch.randn(1, 16, layout.size[1] // 8, layout.size[0] // 8)
    mask = torch.zeros(latents.shape[2:])
    box = layout.box("worn", 8)
    mask[box.top : box.bottom, box.left : box.right] = torch.from_numpy(polygon(size, share)[::8, ::8].copy())
    active = active_tokens(mask, layout, 16)
    empty, t = models.text([""]), torch.tensor([0.5])
    queries, keys = int(active.sum()) + size.words, pack(latents).shape[1] + size.words
    windows: list[Window | None] = [None]
    if share:
        groups = groups_of_canvas(latents, active)
        windows = [kept_window(backbone, transformer, active, groups, empty, True, room=queries)]
    else:
        queries = keys
    levels = backbone.sigmas(8, keys)[:-1]
    run = backbone.premodulated(transformer, levels, bench.words, 3.5)
    step = best(
        lambda: backbone.velocity(run.at(levels[4]), latents, t, bench.words, 3.5, windows[0]), seconds
    )

    def product(rows: int, inside: int, outside: int) -> float:
        a, many = (
            torch.randn(rows, inside, dtype=dtype),
            1 + BEYOND_CACHE // (inside * outside * dtype.itemsize),
        )
        weights = [torch.randn(outside, inside, dtype=dtype) for _ in range(many)]
        return best(lambda: [linear(a, weight) for weight in weights], seconds / 8) / many

    text, image = size.words, queries - size.words
    double = sum(
        4 * product(n, dim, dim) + product(n, dim, 4 * dim) + product(n, 4 * dim, dim) for n in (text, image)
    )
    single = 3 * product(queries, dim, dim) + product(queries, dim, 4 * dim) + product(queries, 5 * dim, dim)
    q, k, v = (torch.randn(1, n, size.heads, 64, dtype=dtype) for n in (queries, keys, keys))
    products = size.double * double + size.single * single
    attend = (size.double + size.single) * best(lambda: attention(q, k, v), seconds / 8)
    square = torch.randn(2048, 2048, dtype=dtype)
    own_peak = 2 * 2048**3 / best(lambda: linear(square, square), seconds / 8)
    flops = (size.double + size.single) * 24 * dim * dim * queries
    attention_flops = (size.double + size.single) * 4 * dim * queries * keys
    return {
        "step_s": step,
        "products_s": products,
        "attention_s": attend,
        "share": (products + attend) / step,
        "of_square_peak": (flops + attention_flops) / step / 1e9 / matmul_peak(dtype=dtype),
        "of_own_square_peak": (flops + attention_flops) / step / own_peak,
        "matmul_gflops": flops / products / 1e9,
        "queries": queries,
        "keys": keys,
    }


# --- what it scales with
# ----------------------------------------------------------------------------------------------


@torch.no_grad()
def scaling(size: Size, dtype: torch.dtype, seconds: float) -> list[dict[str, Any]]:
    """One step and the reading before it, for other polygons, numbers of known panels and resolutions."""
    from triptych.sampling.clean_context import groups_of_canvas, kept_window

    settings = [("polygon", share, 2, 1.0) for share in (0.1, 0.25, 0.36, 0.5, 1.0)]
    settings += [("panels", 0.36, known, 1.0) for known in (1, 3)]
    settings += [("resolution", 0.36, 2, scale) for scale in (0.5, 0.75)]
    made = []
    with tempfile.TemporaryDirectory() as folder:
        models = flux_like(size, dtype, Path(folder))
        backbone, transformer, empty, words = (
            models.backbone,
            models.transformer,
            models.text([""]),
            models.text([PROMPT]),
        )
        for kind, share, known, scale in settings:
            width, height = (round(side * scale / 16) * 16 for side in (size.width, size.height))
            rows, columns = height // 16, width // 16
            latents = torch.randn(1, 16, rows * 2, columns * 2 * (known + 1))
            part = polygon(replace(size, width=width, height=height), share)[::16, ::16]
            active = torch.zeros(rows, columns * (known + 1), dtype=torch.bool)
            active[:, columns * known :] = torch.from_numpy(part > 0)
            room, t = int(active.sum()) + size.words, torch.tensor([0.5])
            run = backbone.premodulated(transformer, [0.5], words, 3.5)
            full = best(lambda: backbone.velocity(run.at(0.5), latents, t, words, 3.5), 0)  # noqa: B023
            groups = groups_of_canvas(latents, active)
            reading = partial(kept_window, backbone, transformer, active, groups, empty, True, room=room)
            read, window = timed(reading)
            step = best(lambda: backbone.velocity(run.at(0.5), latents, t, words, 3.5, window), seconds)  # noqa: B023
            context = window.context
            held = (
                context.nbytes
                * (active.numel() - int(active.sum()))
                / (active.numel() - int(active.sum()) + room)
                if context
                else 0
            )
            row = {
                "kind": kind,
                "share": round(float(part.mean()), 3),
                "known_panels": known,
                "panel": f"{width}x{height}",
            }
            row |= {"full_step_s": full, "read_s": read, "step_s": step, "held_mb": held / 1e6}
            made.append(row | {f"ratio_{n}": n * full / (read + n * step) for n in (8, 28)})
    return made


# --- the runs
# ----------------------------------------------------------------------------------------------------------


def ratio(run: dict[str, Any], pipeline: str, clock: str = "_s") -> float:
    """How many times as long a pipeline took, `stock` or `kernels`. clock: `_s`, or `_cpu_s` for CPU time."""
    return float(run[pipeline + clock] / run["ours" + clock])


def measure(bench: Bench, row: Row, number: int) -> dict[str, Any]:
    """Both pipelines, then this row; seconds per picture."""
    made: dict[str, Any] = {"name": row.name, "steps": row.steps, "round": number}
    for who, run, pictures in (
        ("stock", lambda: bench.stock(row.steps, 1.0), 1),
        ("kernels", lambda: bench.stock(row.steps, 1.0, kernels=True), 1),
        ("ours", lambda: row.run(bench), row.pictures),
    ):
        seconds, cpu_seconds, _ = timed_twice(run)
        made |= {f"{who}_s": seconds / pictures, f"{who}_cpu_s": cpu_seconds / pictures}
    return made


def warm_up(bench: Bench) -> None:
    """Each once: the first call allocates."""
    bench.ours(Sampling(1, context="clean", context_reading="products"), 0.36)
    bench.stock(1, 1.0)
    bench.stock(1, 1.0, kernels=True)


# --- results
# ----------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    bf16 = results["about"]["dtype"] == "bf16"
    lines = [
        f"{results['about']['processor']}, {results['about']['threads']} threads, "
        f"{results['about']['dtype']}.",
        "",
        "| steps | what | stock pipeline | on the same kernels | here, per picture | × same kernels "
        "| in CPU time | aimed at | × stock |",
        "|" + "---|" * 9,
    ]
    for row in rows():
        runs = [run for run in results["runs"] if (run["name"], run["steps"]) == (row.name, row.steps)]
        if runs:
            seconds = [f"{median(r[f'{who}_s'] for r in runs):.1f} s" for who in ("stock", "kernels", "ours")]
            gain, processor_gain, stock_gain = (
                median(ratio(run, *which) for run in runs)
                for which in (("kernels", "_s"), ("kernels", "_cpu_s"), ("stock", "_s"))
            )
            cells = [row.steps, row.name, *seconds, f"{gain:.2f}", f"{processor_gain:.2f}"]
            cells += [row.targets[bf16], f"{stock_gain:.2f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    for name, peak in results.get("peak", {}).items():
        lines += [
            "",
            f"Of a step ({name}; {peak['queries']} queries, {peak['keys']} keys) {peak['share']:.0%} is "
            "matrix products and attention",
        ]
        lines[-1] += f" at their own measured speed ({peak['matmul_gflops']:.0f} GFLOP/s for the products)."
        lines[-1] += f" Its speed is {peak['of_square_peak']:.0%} of torch.mm's for 2048 × 2048,"
        lines[-1] += (
            f" and {peak['of_own_square_peak']:.0%} of that product's by the function that the model calls."
        )
    if results.get("scaling"):
        lines += [
            "",
            "| active | known panels | panel | full step | read once | step | x at 8 | x at 28 | held |",
            "|" + "---|" * 9,
        ]
        for r in results["scaling"]:
            cells = [
                f"{r['share']:.0%}",
                r["known_panels"],
                r["panel"],
                *(f"{r[k]:.2f} s" for k in ("full_step_s", "read_s", "step_s")),
            ]
            lines.append(
                "| "
                + " | ".join(
                    map(
                        str, [*cells, f"{r['ratio_8']:.2f}", f"{r['ratio_28']:.2f}", f"{r['held_mb']:.0f} MB"]
                    )
                )
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("tryon.json"), help="JSON file with all measurements"
    )
    parser.add_argument(
        "--only", nargs="*", default=["8", "28", "peak", "scaling"], help="8, 28 (steps), peak, scaling"
    )
    parser.add_argument(
        "--rounds", type=int, default=0, help="rounds in all; by default 3 of 8 steps and 2 of 28"
    )
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--quick", action="store_true", help="a small model, one round: does it run at all?")
    options = parser.parse_args()
    size, dtype = (
        QUICK if options.quick else FULL,
        torch.bfloat16 if options.dtype == "bf16" else torch.float32,
    )
    about = {
        "model": size.__dict__,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor(),
    }
    results: dict[str, Any] = {"about": about, "runs": []}
    if options.out.exists():
        results = json.loads(options.out.read_text())

    def save() -> None:
        options.out.write_text(json.dumps(results, indent=1))

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(size, dtype, Path(folder))
        for steps, wanted in ((8, 3), (28, 2)):
            if str(steps) not in options.only:
                continue
            if "difference" not in results:
                warm_up(bench)
                results["difference"] = bench.difference()
            for number in range(options.rounds or (1 if options.quick else wanted)):
                done = {
                    run["name"] for run in results["runs"] if (run["steps"], run["round"]) == (steps, number)
                }
                for row in rows():
                    if row.steps != steps or row.name in done:
                        continue
                    run = measure(bench, row, number)
                    results["runs"].append(run)
                    save()
                    gains = f"{ratio(run, 'kernels'):.2f} × same kernels, {ratio(run, 'stock'):.2f} × stock"
                    print(f"{steps} steps, round {number + 1}: {row.name}: {gains}", flush=True)
        seconds = 0.1 if options.quick else 8.0
        if "peak" in options.only and "peak" not in results:
            results["peak"] = {
                "36 % active": share_of_peak(bench, 0.36, seconds),
                "whole panel": share_of_peak(bench, 1.0, seconds),
            }
            save()
    if "scaling" in options.only and "scaling" not in results:
        results["scaling"] = scaling(size, dtype, seconds / 8)
        save()
    print(table(results))


if __name__ == "__main__":
    main()
