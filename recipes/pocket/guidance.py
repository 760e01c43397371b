"""Stage `guidance`: distil classifier-free guidance into the guidance embedding, as FLUX.1-dev was distilled
from FLUX.1-pro.

The student sees a guidance scale w. In one pass it must return what its teacher, the trained transformer
itself, returns in two: u + w (c - u) (Ho & Salimans 2022, arXiv 2207.12598; distilled as in Meng et al. 2023,
arXiv 2210.03142). Only the embedder of w is trained, a perceptron of 131,000 parameters whose output is added
to the time embedding. Its output at w = 1 is pinned to the original. So at guidance 1, where LoRAs are
trained, the model is unchanged, and it learns no relation between panels.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel

from recipes.pocket.bank import Bank
from recipes.pocket.flux import velocity
from recipes.pocket.prints import printed_transformer
from recipes.pocket.state import autocast, load_tensors, save_tensors, train_steps
from recipes.pocket.text import SINGLE_LENGTH, TRIPTYCH_LENGTH, TextEncoders
from recipes.pocket.transformer import noised, sample_batch

STEPS, LEARNING_RATE, SEED = 400, 2e-3, 11
BOARD_SHARE = 0.4
LARGEST = 5.0
"""w is uniform from 1 to this value."""
SAVE_EVERY = 100


class PinnedEmbedder(torch.nn.Module):
    """A guidance embedder whose output at w = 1 always equals the original one; its second bias follows from
    that.
    """

    def __init__(self, embedder: torch.nn.Module, sinusoid: torch.Tensor) -> None:
        """`sinusoid` (1, D): the input for w = 1."""
        super().__init__()
        self.embedder, self.sinusoid = embedder, sinusoid
        with torch.no_grad():
            self.pinned = embedder(sinusoid)

    def forward(self, sinusoids_BD: torch.Tensor) -> torch.Tensor:
        """The embedding (B, D) of guidance scales."""
        return (
            self.embedder(sinusoids_BD)
            - self.embedder(self.sinusoid.to(sinusoids_BD))
            + self.pinned.to(sinusoids_BD)
        )

    @torch.no_grad()
    def unwrapped(self) -> torch.nn.Module:
        """The equivalent ordinary embedder."""
        self.embedder.linear_2.bias += (self.pinned - self.embedder(self.sinusoid))[0]  # type: ignore[union-attr]
        return self.embedder


def pin(student: FluxTransformer2DModel) -> PinnedEmbedder:
    """Freeze everything but the guidance embedder, and put the pinned one in its place."""
    embed = student.requires_grad_(False).time_text_embed
    sinusoid = embed.time_proj(
        torch.tensor([1000.0])
    )  # FluxTransformer2DModel multiplies guidance by 1000, as it does t
    embed.guidance_embedder = PinnedEmbedder(embed.guidance_embedder.requires_grad_(True), sinusoid)
    return embed.guidance_embedder


def train_guidance(folder: Path, steps: int = STEPS) -> None:
    """Train, or continue training; writes `folder/guidance.safetensors`, the embedder to be packaged."""
    done = folder / "guidance.safetensors"
    if done.exists():
        return
    teacher, student = printed_transformer(folder), printed_transformer(folder)
    pinned = pin(student)
    bank, encoders = Bank(folder), TextEncoders.trained(folder)

    def loss_of(rng: random.Random, noise: torch.Generator) -> tuple[str, torch.Tensor]:
        name = "boards" if rng.random() < BOARD_SHARE else "singles"
        prompts, latents = sample_batch(bank, name, rng)
        half = len(prompts) // 2  # enough for so few parameters
        return name, guidance_loss(student, teacher, encoders, prompts[:half], latents[:half], noise)

    def rate(step: int) -> float:
        return (
            LEARNING_RATE * min(1, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        )

    train_steps(
        folder,
        "guidance",
        pinned.embedder,
        steps,
        SEED,
        rate,
        loss_of,
        weight_decay=0.0,
        save_every=SAVE_EVERY,
    )
    save_tensors(dict(pinned.unwrapped().state_dict()), done, steps=steps)


def guidance_loss(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    encoders: TextEncoders,
    prompts: list[str],
    latents_BCHW: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared difference between the student at guidance w and the teacher's guided velocity."""
    length = SINGLE_LENGTH if latents_BCHW.shape[-1] == latents_BCHW.shape[-2] * 2 // 3 else TRIPTYCH_LENGTH
    mixed, t, _ = noised(latents_BCHW, generator)
    scales = 1 + (LARGEST - 1) * torch.rand(len(prompts), generator=generator)
    with torch.no_grad(), autocast():
        text, empty = encoders(prompts, length), encoders([""] * len(prompts), length)
        with_text, without = (
            velocity(teacher, mixed, t, text).float(),
            velocity(teacher, mixed, t, empty).float(),
        )
    target = without + scales.view(-1, 1, 1, 1) * (with_text - without)
    with autocast():
        predicted = velocity(student, mixed, t, text, scales)
    return F.mse_loss(predicted.float(), target)


def guided_transformer(folder: Path) -> FluxTransformer2DModel:
    """The transformer to package, with the distilled guidance embedder if that stage has run."""
    model, path = printed_transformer(folder), folder / "guidance.safetensors"
    if path.exists():
        model.time_text_embed.guidance_embedder.load_state_dict(load_tensors(path)[0])
    return model
