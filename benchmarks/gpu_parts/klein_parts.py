"""FLUX.2-klein against diffusers' pipelines and training script: equality on a small model, seconds and
memory on klein-4B in full size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinKVPipeline, Flux2KleinPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from flux_like import PROMPT, as_diffusers_has_it
from gpu_parts.bench import Bench, Figures, Variant
from gpu_parts.gradients import FLOAT32, WORSE, apart
from gpu_parts.klein import SMALL, TINY, Klein, KleinShop, full, random_klein
from gpu_parts.model import random_lora
from gpu_parts.plans import question
from gpu_parts.training import variant, with_checkpointing
from train import OurStep, same_loss, write_records
from train_flux2 import KleinScriptStep
from triptych.backbones.context import Reference
from triptych.backbones.flux2.model import unpack
from triptych.lora.adapter import load_lora
from triptych.pictures.panels import PanelLayout
from triptych.sampling.canvas import to_pixels
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import Canvases, sample_latents
from tryon_flux2 import SHARE, once
from tryon_parts import PERSONS, person, product

STEPS = 4
KINDS = {
    "references, CFG 1": Sampling(STEPS, None, context="native"),
    "references, CFG 4": Sampling(STEPS, None, 4.0, context="native"),
    "references read once, as the KV pipeline": Sampling(
        STEPS, None, context="clean", context_placement="reference"
    ),
}
"""Ways of showing references that diffusers' pipelines know too."""


def klein_equality(bench: Bench) -> None:
    """FLUX.2-klein with three references against Flux2KleinPipeline and Flux2KleinKVPipeline; "apart" is
    relative. bfloat16: the distance to float32."""
    size = TINY if bench.tiny else SMALL
    exact, rounded = (random_klein(bench, size, dtype) for dtype in (torch.float32, torch.bfloat16))
    models = exact.models()
    for kind, sampling in KINDS.items():
        bench.row(f"{kind}, float32", lambda sampling=sampling: _same(exact, models, sampling))
    for kind, sampling in KINDS.items():
        bench.row(f"{kind}, bfloat16", lambda sampling=sampling: _as_close(rounded, sampling))


def _same(made: Klein, models: OpenedModel, sampling: Sampling) -> Figures:
    far = apart(_ours(made, models, sampling), _pipeline(made, models, sampling))
    return {"apart": far, "equal": far <= FLOAT32}


def _as_close(made: Klein, sampling: Sampling) -> Figures:
    """The same bfloat16 weights, computed in bfloat16 by both and in float32 by diffusers."""
    models = made.models()
    ours, theirs = _ours(made, models, sampling), _pipeline(made, models, sampling)
    whole = replace(models.backbone, dtype=torch.float32)
    nn.Module.float(models.transformer)  # diffusers' own would warn
    exact = OpenedModel(whole, models.transformer, whole.load_autoencoder(), models.texts)
    truth = _pipeline(made, exact, sampling)
    far, stock = apart(ours, truth), apart(theirs, truth)
    return {"apart": far, "diffusers apart": stock, "equal": far <= WORSE * stock + FLOAT32}


def _photos(made: Klein) -> list[Any]:
    return [product(made.size, 0), product(made.size, 1), person(made.size, 0)]


def _noise(made: Klein) -> Tensor:
    shape = 1, 128, made.size.height // 16, made.size.width // 16
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _pipeline(made: Klein, models: OpenedModel, sampling: Sampling) -> Tensor:
    """Latents of diffusers' pipeline (1, C, H, W)."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(models.backbone.scheduler_config)
    vae, stock = models.autoencoder.vae, as_diffusers_has_it(models.transformer)  # type: ignore[attr-defined]
    kept: list[Tensor] = []

    def keep(_: Any, step: int, t: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.append(given["latents"])
        return {}

    options: dict[str, Any] = {"num_inference_steps": STEPS, "callback_on_step_end": keep}
    if sampling.context == "native":
        pipe: Any = Flux2KleinPipeline(scheduler, vae, None, None, stock)
        options |= {"guidance_scale": sampling.true_cfg_scale}
        options["negative_prompt_embeds"] = models.text([""])["prompt_embeds"]
    else:
        pipe = Flux2KleinKVPipeline(scheduler, vae, None, None, stock)
    pipe.set_progress_bar_config(disable=True)
    pipe(
        image=_photos(made),
        prompt_embeds=models.text([PROMPT])["prompt_embeds"],
        latents=_noise(made),
        height=made.size.height,
        width=made.size.width,
        output_type="latent",
        **options,
    )
    return unpack(kept[-1], made.size.height // 16, made.size.width // 16).float()


def _ours(made: Klein, models: OpenedModel, sampling: Sampling) -> Tensor:
    shown = tuple(
        Reference(models.autoencoder.encode(to_pixels([photo]))[0], None, number)
        for number, photo in enumerate(_photos(made), 1)
    )
    layout = PanelLayout(made.size.width, made.size.height, ("worn",), 1, ("worn",))
    shape, text, empty = _noise(made).shape[1:], models.text([PROMPT]), models.text([""])
    canvases = Canvases(layout, shape, text, [0], empty, None, shown)
    return sample_latents(models.backbone, models.transformer, canvases, sampling)


def klein_sampling(bench: Bench) -> None:
    """A try-on with FLUX.2-klein-4B, pixels to pixels, against Flux2KleinPipeline with the same three
    references (front, back, person) in the same moment; panels of 576 × 768, seconds per picture. 4 steps
    are without guidance, 28 with CFG 4."""
    made = random_klein(bench, full(bench))
    models = made.models()
    shop = KleinShop(made, models)
    bench.row("native references against the pipeline, 2 steps", lambda: {"of 255": shop.difference()})
    few, long = once(4, 1.0), once(2 if bench.tiny else 28, 4.0)
    many = once(4, 1.0, context_reading="products")
    rounds = 1 if bench.tiny else 4
    variants = {
        "pipeline, 4 steps": Variant(lambda: shop.stock(4, guidance=1.0)),
        "whole panel, 4 steps": _ours_of(made, shop, few),
        "35 %, 4 steps": _ours_of(made, shop, _fast(few)),
        "native, 4 steps": Variant(lambda: shop.native(Sampling(4, None, context="native"))),
        f"{PERSONS} persons, 35 %, 4 steps": Variant(
            lambda: shop.ours(_fast(many), PERSONS, 4.0), units=PERSONS
        ),
    }
    bench.compare("pipeline, 4 steps", variants, rounds, sharing=2)
    guided = {
        "pipeline, 28 steps": Variant(
            lambda: shop.stock(long.num_inference_steps, guidance=4.0),
            first=lambda: shop.stock(2, guidance=4.0),
        ),
        "whole panel, 28 steps": _ours_of(made, shop, long),
        "35 %, 28 steps": _ours_of(made, shop, _fast(long)),
    }
    bench.compare("pipeline, 28 steps", guided, min(rounds, 3), sharing=2)
    file = random_lora(bench.work / "klein-lora", models, made.family)
    load_lora(models.transformer, file)
    shop.pipeline.transformer.load_lora_adapter(load_file(file), prefix="transformer")
    adapted = {
        "pipeline with LoRA, 4 steps": Variant(lambda: shop.stock(4, guidance=1.0)),
        "whole panel with LoRA, 4 steps": _ours_of(made, shop, few, rank=16),
        "35 % with LoRA, 4 steps": _ours_of(made, shop, _fast(few), rank=16),
    }
    bench.compare("pipeline with LoRA, 4 steps", adapted, rounds, sharing=2)


def _fast(sampling: Sampling) -> Sampling:
    return replace(sampling, active_tokens="polygon")


def _ours_of(made: Klein, shop: KleinShop, sampling: Sampling, rank: int = 0) -> Variant:
    first = replace(sampling, num_inference_steps=min(sampling.num_inference_steps, 4))
    asked = question(made, "sampling", sampling, rank=rank, repainted=SHARE)
    return Variant(lambda: shop.ours(sampling), plan=asked, first=lambda: shop.ours(first))


SETTINGS: dict[str, dict[str, Any]] = {
    "noisy": {},
    "clean on the canvas, whole panel": {"share": 1.0, "context_placement": "canvas"},
    "clean on the canvas, 35 %": {"share": 0.35, "context_placement": "canvas"},
    "clean as references, whole panel": {"share": 1.0, "context_placement": "reference"},
    "clean as references, 35 %": {"share": 0.35, "context_placement": "reference"},
    "noisy, no checkpointing": {"gradient_checkpointing": False},
    "clean as references, 35 %, no checkpointing": {
        "share": 0.35,
        "context_placement": "reference",
        "gradient_checkpointing": False,
    },
}
"""As in `training`."""


def klein_training(bench: Bench) -> None:
    """Seconds per triptych and noise level of a step of FLUX.2-klein-4B with gradient checkpointing and
    AdamW, against train_dreambooth_lora_flux2_klein.py's."""
    made = random_klein(bench, full(bench))
    models, work = made.models(), bench.work / "klein-steps"
    write_records(models, made.size, work)
    first = OurStep(models, work)
    script = KleinScriptStep(models, work)
    bench.row("loss apart from the script's", lambda: {"apart": same_loss(first, script)})
    script.latents, script.optimizer = None, first.state.optimizer
    variants = {"script": Variant(with_checkpointing(script, script.transformer, True))}
    variants |= {
        name: variant(bench, made, models, first, work, **settings) for name, settings in SETTINGS.items()
    }
    bench.compare("script", variants, 1 if bench.tiny else 6, sharing=3)
