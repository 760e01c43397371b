"""Try-on on a random model with FLUX.2-klein's proportions, beside diffusers' Flux2KleinPipeline with the
same three references (front, back, person): `tryon.py --family flux2`.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from PIL import Image

from flux2_like import FULL, QUICK, flux2_like
from flux_like import PROMPT, Size, as_diffusers_has_it
from triptych.backbones.context import Reference, Window
from triptych.backbones.flux2.attention import install
from triptych.pictures.panels import PanelLayout
from triptych.sampling.clean_context import ContextCache, groups_of_references, kept_window
from triptych.sampling.generate import generate_triptych
from triptych.sampling.options import Sampling
from triptych.tasks.tryon import TRY_ON
from triptych.vton.dress import try_on
from triptych.vton.request import Person
from tryon_parts import PERSONS, Row, best, person, polygon, product, timed

SIZES = {"full": FULL, "quick": QUICK}
ROUNDS = {4: 5, 28: 2}
"""Numbers of steps, and how often each is measured."""
STEPS = 4, 28
"""Numbers of steps that the table of scaling has ratios for."""
GUIDANCE = {4: 1.0, 28: 4.0}
"""true_cfg_scale by number of steps: distilled models take few steps without guidance, base models need
it.
"""
SHARE = 0.35


class Bench:
    """The model, the pipeline around the same weights, and the pictures."""

    def __init__(self, size: Size, dtype: torch.dtype, folder: Path) -> None:
        self.size, self.layout = size, TRY_ON.layout(size.width, size.height)
        self.models = flux2_like(size, dtype, folder)
        backbone = self.models.backbone
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(backbone.scheduler_config)
        vae = self.models.autoencoder.vae  # type: ignore[attr-defined]
        own = self.models.transformer
        install(own)  # as every velocity of ours does
        self.pipeline, self.with_kernels = (
            Flux2KleinPipeline(scheduler, vae, None, None, transformer)
            for transformer in (as_diffusers_has_it(own), own)
        )
        for pipeline in (self.pipeline, self.with_kernels):
            pipeline.set_progress_bar_config(disable=True)
        self.front, self.back = product(size, 0), product(size, 1)

    def stock(self, steps: int, *, guidance: float | None = None, kernels: bool = False) -> Image.Image:
        """What a user of diffusers writes: three references, and one picture. kernels: on triptych's layers
        and attention.
        """
        noise = torch.randn(1, 128, self.size.height // 16, self.size.width // 16, generator=seeded(0))
        made = (self.with_kernels if kernels else self.pipeline)(
            image=[self.front, self.back, person(self.size, 0)],
            prompt_embeds=self.models.text([PROMPT])["prompt_embeds"],
            negative_prompt_embeds=self.models.text([""])["prompt_embeds"],
            latents=noise.to(self.models.backbone.dtype),
            height=self.size.height,
            width=self.size.width,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE[steps] if guidance is None else guidance,
        )
        return made.images[0]

    def native(self, sampling: Sampling) -> list[Image.Image]:
        """The pipeline's own work: the three references whole and at every step."""
        roles = ("front", "back", "person", "worn")
        layout = PanelLayout(self.size.width, self.size.height, roles, 4, ("worn",))
        given = {"front": self.front, "back": self.back, "person": person(self.size, 0)}
        canvas = generate_triptych(self.models, [PROMPT], layout, [0], sampling, [given])[0]
        return [canvas.crop(layout.box("worn"))]

    def difference(self) -> int:
        """Largest difference of a channel, of 255, between native references and the pipeline; two steps with
        guidance.
        """
        (ours,) = self.native(Sampling(2, None, 4.0, context="native"))
        theirs = self.stock(2, guidance=4.0)
        return int(np.abs(np.asarray(ours, int) - np.asarray(theirs)).max())

    def ours(self, sampling: Sampling, persons: int = 1, cache_gib: float = 0.0) -> list[Image.Image]:
        """`try_on` of `persons` people in one batch, a third of the worn panel repainted; the canvases."""
        self.models.contexts = ContextCache(int(cache_gib * 2**30))
        people = [
            Person(person(self.size, number), polygon(self.size, SHARE), PROMPT, [number])
            for number in range(persons)
        ]
        made = try_on(self.models, self.front, self.back, people, self.layout, sampling, feather=0)
        return [result.canvas for results in made for result in results]

    def warm_up(self) -> None:
        self.ours(once(1, 1.0, context_reading="products"))
        self.native(Sampling(1, None, context="native"))
        self.stock(1, guidance=1.0)
        self.stock(1, guidance=1.0, kernels=True)

    def peaks(self, seconds: float) -> dict[str, dict[str, float]]:
        return {}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def once(steps: int, guidance: float, **changes: Any) -> Sampling:
    """Sampling with references read once."""
    made = Sampling(steps, None, guidance, context="clean", context_placement="reference")
    return replace(made, **changes)


def rows() -> list[Row]:
    table = []
    aims = {28: (2.2, 3.5), 4: (1.5, 2.0)}
    for steps, (whole, part) in aims.items():
        guided = f", CFG {GUIDANCE[steps]:g}" if GUIDANCE[steps] != 1 else ""
        read = once(steps, GUIDANCE[steps])
        fast = replace(read, active_tokens="polygon")
        table += [
            Row(f"read once, whole panel{guided}", steps, lambda b, s=read: b.ours(s), (whole, whole)),
            Row(f"read once, 35 % of it{guided}", steps, lambda b, s=fast: b.ours(s), (part, part)),
        ]
    native = Sampling(4, None, context="native")
    many = once(4, 1.0, context_reading="products")
    fast = replace(many, active_tokens="polygon")
    each, kept = f"{PERSONS} persons, one product kept", (2.5, 2.5)
    table += [
        Row("native references: equal work", 4, lambda b: b.native(native), (1.0, 1.0)),
        Row(f"{each}, whole panel", 4, lambda b: b.ours(many, PERSONS, 4.0), kept, PERSONS),
        Row(f"{each}, 35 % of it", 4, lambda b: b.ours(fast, PERSONS, 4.0), kept, PERSONS),
    ]
    return table


@torch.no_grad()
def scaling(size: Size, dtype: torch.dtype, seconds: float) -> list[dict[str, Any]]:
    """One step and the reading before it, for other polygons, numbers of references and resolutions; the full
    step runs all references beside the whole panel.
    """
    settings = [("polygon", share, 2, 1.0) for share in (0.1, 0.25, SHARE, 0.5, 1.0)]
    settings += [("references", SHARE, count, 1.0) for count in (1, 4)]
    settings += [("resolution", SHARE, 2, scale) for scale in (0.5, 0.75)]
    made = []
    with tempfile.TemporaryDirectory() as folder:
        models = flux2_like(size, dtype, Path(folder))
        backbone, own, words, t = models.backbone, models.transformer, models.text([PROMPT]), 0.5
        at = torch.tensor([t])
        for kind, share, count, scale in settings:
            width, height = (round(side * scale / 16) * 16 for side in (size.width, size.height))
            h, w = height // 16, width // 16
            active = torch.from_numpy(
                polygon(replace(size, width=width, height=height), share)[::16, ::16] > 0
            )
            latents = torch.randn(1, 128, h, w)
            shown = tuple(Reference(torch.randn(1, 128, h, w), None, 1 + n) for n in range(count))
            person_ = () if active.all() else (Reference(latents, ~active, count + 1),)
            everything = Window(torch.ones_like(active), beside=(*shown, Reference(latents, None, count + 1)))
            run = backbone.premodulated(own, [t], words, None)
            full = best(lambda: backbone.velocity(run.at(t), latents, at, words, None, everything), 0)  # noqa: B023
            groups, room = groups_of_references(shown, person_, "joint"), int(active.sum()) + size.words
            reading = partial(kept_window, backbone, own, active, groups, words, True, room=room)
            read, window = timed(reading)
            step = best(lambda: backbone.velocity(run.at(t), latents, at, words, None, window), seconds)  # noqa: B023
            known = sum(h * w if one.known is None else int(one.known.sum()) for one in (*shown, *person_))
            row = {"kind": kind, "share": round(float(active.float().mean()), 3), "known_panels": count}
            row |= {"panel": f"{width}x{height}", "full_step_s": full, "read_s": read, "step_s": step}
            row |= {"active": room - size.words}
            row |= {"held_mb": window.context.nbytes * known / (known + room) / 1e6 if window.context else 0}
            made.append(row | {f"ratio_{n}": n * full / (read + n * step) for n in STEPS})
    return made
