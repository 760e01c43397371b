"""The stages that train: text encoder, autoencoder, transformer.

Shapes: images_BCHW in [-1, 1]; latents_BCHW (B, C, 9, 6 per panel), normalised; t in [0, 1] with 1 = noise.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

from recipes.pocket.autoencoder import to_images_BCHW
from recipes.pocket.card.bank import CardBank, draw_captions, pictures_of, wide
from recipes.pocket.card.size import Size, new_autoencoder, new_transformer
from recipes.pocket.card.timed import Clock, Stage, TimedRun
from recipes.pocket.klein.model import velocity
from recipes.pocket.klein.text import ATTRIBUTES, Reader, TextEncoder, make_tokenizer
from recipes.pocket.klein.transformer import EMPTY_PROMPTS, SHARES, SINGLES_FIRST, stratified_time
from recipes.pocket.state import Log, autocast
from triptych import flow
from triptych.backbones.flux2.autoencoder import patchify
from triptych.pocket.rich import MOTIFS, NECKLINES, PLACES
from triptych.pocket.world import COLOURS

RICH_ATTRIBUTES = ATTRIBUTES | {
    "print": MOTIFS,
    "place": PLACES,
    "neckline": NECKLINES,
    **dict.fromkeys(("hood", "pockets"), ("yes",)),
    **dict.fromkeys(("beside", "hat", "bag"), tuple(COLOURS)),
}
"""What a panel's words can state."""
CAPTIONS = 7500
"""Captions that the tokenizer is learned from."""
COMPILE_SECONDS = 120
"""A stage of at least so long is compiled: that takes about half a minute."""


def train_text(work: Path, size: Size, clock: Clock, device: torch.device) -> None:
    """Train the text encoder on captions alone; writes `tokenizer` and `text_encoder`."""
    if not (work / "tokenizer").exists():
        texts, number = list[str](), 0
        while len(texts) < (CAPTIONS if size.steps is None else 500):
            texts += [caption.text for caption in draw_captions(number)]
            number += 1
        make_tokenizer(work, texts)
    if (work / "text_encoder").exists():
        return
    torch.manual_seed(31)
    encoder = TextEncoder(work, size.length).to(device)
    reader = Reader(RICH_ATTRIBUTES).to(device)
    waiting: dict[int, list[Any]] = {}
    facts: dict[str, Any] = {}

    def loss_of(rng: random.Random, noise: torch.Generator) -> torch.Tensor:
        part = run.step // 2  # two batches of one drawing
        if part not in waiting:
            waiting.clear()
            waiting[part] = draw_captions(10**5 + part)
        captions = rng.sample(waiting[part], size.text_batch)
        tell = (run.step + 1) % 100 == 0 or size.steps is not None
        with autocast(device):
            states = encoder([caption.text for caption in captions])
        loss, right = reader.loss(states.float(), captions, tell)
        if tell:
            facts["right"] = right
        return loss

    run = TimedRun(
        work, Stage("text", torch.nn.ModuleList([encoder, reader]), 2e-3, 31, loss_of, facts=facts)
    )
    run.go(work, clock, clock.allot("text"), (size.steps or {}).get("text"))
    encoder.model.save_pretrained(work / "text_encoder.part")
    (work / "text_encoder.part").rename(work / "text_encoder")


def train_autoencoder(work: Path, size: Size, clock: Clock, device: torch.device) -> None:
    """Train the autoencoder on the first shards, panels alone and three side by side; writes `vae`."""
    if (work / "vae").exists():
        return
    torch.manual_seed(101)
    pool = torch.cat([pictures for pictures, _ in pictures_of(work, range(size.pool))]).to(device)
    model = new_autoencoder(size).to(device, memory_format=torch.channels_last)
    count = size.autoencoder_batch

    def images_of(step: int, rng: random.Random, noise: torch.Generator) -> torch.Tensor:
        panels = pool[torch.randint(len(pool), (count,), generator=noise).to(device)]
        images = panels.permute(0, 3, 1, 2).float() / 127.5 - 1
        if step % 2:
            images = torch.cat([images[0::3], images[1::3], images[2::3]], 3)
        elif rng.random() < 0.5:
            images = images.flip(3)
        return images.contiguous(memory_format=torch.channels_last)

    def loss_of(rng: random.Random, noise: torch.Generator) -> torch.Tensor:
        images = images_of(run.step, rng, noise)
        with autocast(device):
            posterior = model.encode(images).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=noise).to(device)
            output = model.decode(z).sample
        error = output.float() - images
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return error.abs().mean() + 3 * (error**2).mean() + 3e-4 * divergence

    run = TimedRun(work, Stage("autoencoder", model, 1e-3, 101, loss_of))
    run.go(work, clock, clock.allot("autoencoder"), (size.steps or {}).get("autoencoder"))
    _measure_channels(model, pool, count)
    model.eval().save_pretrained(work / "vae.part")
    (work / "vae.part").rename(work / "vae")


@torch.no_grad()
def _measure_channels(model: AutoencoderKLFlux2, pool: torch.Tensor, batch: int) -> None:
    """Set the statistics of a token's channels, as the batch norm in FLUX.2's class keeps them."""
    parts = []
    for start in range(0, min(len(pool), 4000), batch):
        images = pool[start : start + batch].permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append(patchify(model.encode(images).latent_dist.mode().float().contiguous()))
    latents = torch.cat(parts)
    model.bn.running_mean.copy_(latents.mean((0, 2, 3)))
    model.bn.running_var.copy_(latents.var((0, 2, 3)))


def psnr(model: AutoencoderKLFlux2, pictures: np.ndarray) -> dict[str, float]:
    """Return the mean PSNR in dB of panels, alone and three side by side."""
    results = {}
    for name, shown in (("alone", pictures), ("side by side", wide(pictures))):
        images = to_images_BCHW(shown).to(model.device)
        with torch.no_grad():
            output = model.decode(model.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        results[name] = (10 * torch.log10(4 / ((output - images) ** 2).mean((1, 2, 3)))).mean().item()
    return results


def flow_loss(
    model: Any, bank: CardBank, kind: str, batch: int, noise: torch.Generator, device: torch.device
) -> torch.Tensor:
    """Return the mean squared error of the targets' velocity; noise levels of a batch are spread evenly."""
    prompts, data, references = bank.batch(kind, torch.randint(2**40, (batch,), generator=noise))
    prompts = torch.where((torch.rand(batch, generator=noise) < EMPTY_PROMPTS).to(device), 0, prompts)
    t = stratified_time(batch, noise).to(device)
    on_card = torch.Generator(device).manual_seed(noise.initial_seed())
    start = torch.randn(data.shape, device=device, generator=on_card)
    with autocast(device):
        predicted = velocity(model, flow.interpolate(data, start, t), t, bank.states[prompts], references)
    return F.mse_loss(predicted.float(), flow.velocity_target(data, start))


def train_transformer(
    work: Path, size: Size, clock: Clock, bank: CardBank, on_save: Any
) -> Flux2Transformer2DModel:
    """Train the transformer on pictures, boards and edits; returns its moving average. on_save: called with
    it whenever the state is saved.
    """
    device = bank.states.device
    torch.manual_seed(15)
    model, averaged = new_transformer(size).to(device), new_transformer(size).to(device)
    seconds = clock.allot("transformer")
    used: dict[str, Any] = {"model": model}

    def loss_of(rng: random.Random, noise: torch.Generator) -> torch.Tensor:
        first = max(0.0, 1 - run.step / 500) * SINGLES_FIRST
        kind = "singles" if rng.random() < first else rng.choices(list(SHARES), list(SHARES.values()))[0]
        return flow_loss(used["model"], bank, kind, size.batch, noise, device)

    def saved() -> None:
        averaged.load_state_dict(run.averaged())
        on_save(averaged)

    run = TimedRun(work, Stage("transformer", model, 1.5e-3, 15, loss_of, ema=0.999, on_save=saved))
    began = time.monotonic()
    if device.type == "cuda" and seconds >= COMPILE_SECONDS and size.steps is None:
        used["model"] = compiled_or_not(work, model, bank, size.batch)
    run.go(work, clock, seconds - (time.monotonic() - began), (size.steps or {}).get("transformer"))
    averaged.load_state_dict(run.averaged())
    return averaged.eval().requires_grad_(False)


def compiled_or_not(work: Path, model: Any, bank: CardBank, batch: int) -> Any:
    """Compile the blocks, if they compile and are then faster; the log says which and why."""

    def step_seconds() -> float:
        for kind in ("one", "two"):  # lengths that may each need a kernel
            _step(kind)
        begun = time.monotonic()
        for _ in range(3):
            _step("two")
        return (time.monotonic() - begun) / 3

    def _step(kind: str) -> None:
        noise = torch.Generator().manual_seed(1)
        flow_loss(model, bank, kind, batch, noise, bank.states.device).backward()
        model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    log, plain = Log(work, "transformer"), step_seconds()
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    try:
        for block in blocks:
            block.compile(dynamic=True)
        compiled = step_seconds()
        log.write(seconds_per_step=plain, compiled=compiled)
        if compiled < plain:
            return model
    except Exception as error:  # a compiler fails in many ways, and training goes on without it
        log.write(seconds_per_step=plain, compile_failed=str(error)[:300])
    for block in blocks:
        block._compiled_call_impl = None
    return model
