"""Try-on on a random model with FLUX.1's proportions, beside diffusers' FluxInpaintPipeline: `tryon.py`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxInpaintPipeline
from PIL import Image

from flux_like import FULL, PROMPT, QUICK, Size, as_diffusers_has_it, flux_like, matmul_peak
from triptych.backbones.context import Window
from triptych.backbones.flux.attention import install
from triptych.backbones.flux.model import pack, unpack
from triptych.compute.attention import attention
from triptych.compute.cpu import linear
from triptych.pictures.panels import concatenate
from triptych.sampling.canvas import decoded_panel
from triptych.sampling.clean_context import ContextCache, groups_of_canvas, kept_window
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import active_tokens
from triptych.tasks.tryon import TRY_ON
from triptych.vton.dress import try_on
from triptych.vton.request import Person
from tryon_parts import PERSONS, Row, best, person, polygon, product, timed

SIZES = {"full": FULL, "quick": QUICK}
ROUNDS = {8: 3, 28: 2}
"""Numbers of steps, and how often each is measured."""
STEPS = 8, 28
"""Numbers of steps that the table of scaling has ratios for."""
BEYOND_CACHE = 64 << 20
"""Bytes of weights that no processor cache of these machines holds."""


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

    def stock(
        self, steps: int, share: float = 1.0, output_type: str = "pil", *, kernels: bool = False
    ) -> Any:
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

    def warm_up(self) -> None:
        self.ours(Sampling(1, context="clean", context_reading="products"), 0.36)
        self.stock(1)
        self.stock(1, kernels=True)

    def peaks(self, seconds: float) -> dict[str, dict[str, float]]:
        return {
            "36 % active": share_of_peak(self, 0.36, seconds),
            "whole panel": share_of_peak(self, 1.0, seconds),
        }


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
            table.append(Row(name, steps, lambda bench, s=sampling, a=share: bench.ours(s, a), target))
    sampling = replace(products, num_inference_steps=8)
    many = Row(
        f"{PERSONS} persons, one product kept, 36 %",
        8,
        lambda bench: bench.ours(sampling, 0.36, PERSONS, 4.0),
        (3.7, 4.2),
        PERSONS,
    )
    return [*table, many]


@torch.no_grad()
def share_of_peak(bench: Bench, share: float, seconds: float) -> dict[str, float]:
    """Of a step's time, how much its matrix products and its attention take alone, at the speed measured for
    them here.

    Both are timed with the functions that the model calls, in their own shapes, the products with one weight
    after another as in a step, so that none is in the cache. Whatever else a step does (norms, activations,
    rotary embedding, copies, Python) is what is missing to 1. Beside it, the step's speed as a share of a
    square product's: by `torch.mm`, and by the model's own function.
    """
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


@torch.no_grad()
def scaling(size: Size, dtype: torch.dtype, seconds: float) -> list[dict[str, Any]]:
    """One step and the reading before it, for other polygons, numbers of known panels and resolutions."""
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
            row |= {"active": room - size.words}
            made.append(row | {f"ratio_{n}": n * full / (read + n * step) for n in STEPS})
    return made
