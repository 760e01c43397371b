"""Is it diffusers' mathematics on the card too? Sampling, training steps, quantised codes; and the CPU's
results beside the card's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxInpaintPipeline, FluxPipeline
from torch import Tensor, nn

from flux_like import PROMPT, as_diffusers_has_it
from gpu_parts.bench import Bench, Figures
from gpu_parts.gradients import FLOAT32, WORSE, apart
from gpu_parts.model import SMALL, TINY, Random, random_model
from triptych.backbones.flux.model import unpack
from triptych.compute.quantize import FORMATS
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import Canvases, Known, sample_latents

STEPS = 4


def equality(bench: Bench) -> None:
    """Our sampling against diffusers' on the same weights; "apart" is relative.
    bfloat16: the distance to float32."""
    size = TINY if bench.tiny else SMALL
    exact = random_model(bench, size, torch.float32)
    models = exact.models()
    truth = {kind: _pipeline(models, exact, kind) for kind in KINDS}
    for kind in KINDS:
        bench.row(f"{kind}, float32", lambda kind=kind: _same(_ours(models, exact, kind), truth[kind]))
    rounded = random_model(bench, size, torch.bfloat16)
    if bench.device.type == "cuda" or bench.tiny:
        for kind in KINDS:
            bench.row(f"{kind}, bfloat16", lambda kind=kind: _as_close(rounded, kind))
    if bench.card:
        there = random_model(bench, size, torch.float32, torch.device("cpu"))
        weights = models.transformer.state_dict()
        bench.row(
            "text to image, float32, card and CPU",
            lambda: _card_and_cpu(there, weights, truth["text to image"]),
        )
    for format in FORMATS:
        bench.row(f"{format}: codes of the card and the CPU", lambda format=format: _codes(bench, format))
    bench.row("TF32 in the autoencoder's convolutions", lambda: _tf32(models, exact))


KINDS = ("text to image", "inpainting", "inpainting at strength 0.6")


def _inputs(made: Random, models: OpenedModel) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, known latents (B, C, H, W), and the mask (H, W) of a box in the worn panel."""
    width, height = (side // 8 for side in made.layout.size)
    known = torch.randn(1, 16, height, width, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1, 16, height, width, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(height, width)
    mask[height // 4 : height * 3 // 4, -width // 4 :] = 1
    device, dtype = models.backbone.device, models.backbone.dtype
    return noise.to(device, dtype), known.to(device, dtype), mask


def _pipeline(models: OpenedModel, made: Random, kind: str) -> Tensor:
    """Latents of diffusers' pipeline."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(models.backbone.scheduler_config)
    parts = scheduler, models.autoencoder.vae, None, None, None, None, as_diffusers_has_it(models.transformer)  # type: ignore[attr-defined]
    noise, known, mask = _inputs(made, models)
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 3.5, "output_type": "latent"}
    options |= {"width": made.layout.size[0], "height": made.layout.size[1], **models.text([PROMPT])}
    if kind == "text to image":
        pipe: Any = FluxPipeline(*parts)
        options["latents"] = FluxPipeline._pack_latents(noise, *noise.shape)
    else:
        pipe = FluxInpaintPipeline(*parts)
        pixels = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)[None, None]
        options |= {
            "image": known,
            "masked_image_latents": known,
            "mask_image": pixels,
            "latents": noise,
            "strength": _strength(kind),
        }
        if _strength(kind) < 1:  # the pipeline takes given latents for noised ones
            del options["latents"]
            options["generator"] = torch.Generator().manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    return unpack(pipe(**options).images, noise.shape[2], noise.shape[3]).float()


def _ours(models: OpenedModel, made: Random, kind: str) -> Tensor:
    noise, known, mask = _inputs(made, models)
    sampling = Sampling(STEPS, strength=_strength(kind), time_shift="canvas")
    shown = None if kind == "text to image" else Known(known, mask)
    canvas = Canvases(made.layout, noise.shape[1:], models.text([PROMPT]), [0], known=shown)
    return sample_latents(models.backbone, models.transformer, canvas, sampling)


def _strength(kind: str) -> float:
    return 0.6 if kind.endswith("0.6") else 1.0


def _same(ours: Tensor, theirs: Tensor, within: float = FLOAT32) -> Figures:
    far = apart(ours, theirs)
    return {"apart": far, "equal": far <= within}


def _as_close(rounded: Random, kind: str) -> Figures:
    """The same bfloat16 weights, computed in bfloat16 by both and in float32 by diffusers."""
    models = rounded.models()
    ours, theirs = _ours(models, rounded, kind), _pipeline(models, rounded, kind)
    backbone = models.backbone
    full = replace(backbone, dtype=torch.float32)
    nn.Module.float(models.transformer)  # diffusers' own would warn
    truth = _pipeline(OpenedModel(full, models.transformer, models.autoencoder, models.texts), rounded, kind)
    far, stock = apart(ours, truth), apart(theirs, truth)
    return {"apart": far, "diffusers apart": stock, "equal": far <= WORSE * stock + FLOAT32}


def _card_and_cpu(there: Random, weights: dict[str, Tensor], truth: Tensor) -> Figures:
    transformer = there.transformer()
    transformer.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()})
    return _same(_ours(there.models(transformer), there, "text to image"), truth.cpu(), 1e-3)


def _codes(bench: Bench, format: str) -> Figures:
    """Equal but for ties, which fall to either side: no code differs by more than one, and what comes back
    loses as much.

    torchao's scale is a 127.5th of a group's largest number, which is a tie itself: 127.5. A device that
    divides by multiplying with the reciprocal gets -127 for one of two negative ones, where another gets
    -128.
    """
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(3))
    kind = FORMATS[format]
    (here, scale), (there, scale_there) = kind.pack(weight), kind.pack(weight.to(bench.device))
    there, scale_there = there.cpu(), scale_there.cpu()
    back, back_there = (
        kind.unpack(*packed, weight.shape, torch.float32) for packed in ((here, scale), (there, scale_there))
    )
    lost, lost_there = apart(back, weight), apart(back_there, weight)
    most = int((here.int() - there.int()).abs().max())
    exact = format == "nf4"  # two codes of four bits in a byte
    same = (torch.equal(here, there) if exact else most <= 1) and abs(lost_there - lost) <= 1e-3 * lost
    return {
        "apart": float((here != there).float().mean()),
        "codes apart at most": most,
        "equal": same,
        "lost by the format": lost,
        "lost on the card": lost_there,
    }


def _tf32(models: OpenedModel, made: Random) -> Figures:
    """As PyTorch comes, convolutions may keep 10 bits of mantissa on a card."""
    pixels = (
        torch.rand(1, 3, made.size.height, made.size.width, generator=torch.Generator().manual_seed(4)) * 2
        - 1
    )
    usual, _ = models.autoencoder.encode(pixels)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact, _ = models.autoencoder.encode(pixels)
    return {"apart": apart(usual, exact)}
