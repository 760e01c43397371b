"""Stage `autoencoder`: an f4, 8-channel AutoencoderKL from scratch, on single panels and whole triptychs.

GroupNorm is global, so half of the batches are three panels wide: a model used on wide pictures must be
trained on them.

Shapes: images_BCHW in [-1, 1]; pictures uint8 (B, H, W, 3); latents_BCHW normalised by shift and scale.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from diffusers.models.resnet import ResnetBlock2D

from recipes.pocket.state import (
    Log,
    autocast,
    load_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
    set_learning_rate,
)
from triptych.pocket.render import render
from triptych.pocket.world import sample_garment, sample_scene

STEPS, BATCH, LEARNING_RATE, POOL, SEED = 1700, 18, 1e-3, 12_000, 101
VIEW_MIX = ("front", "back", "worn", "worn")


def new_autoencoder() -> AutoencoderKL:
    """Return the untrained model (1.46M parameters)."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=72,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )
    start_calm(model, 8)
    return model


def start_calm(model: AutoencoderKL | AutoencoderKLFlux2, channels: int) -> None:
    """Let an untrained autoencoder of that many latent channels start with idle residual blocks, and almost
    without noise: posterior log variance -6.
    """
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            torch.nn.init.zeros_(module.conv2.weight)
    with torch.no_grad():
        model.encoder.conv_out.bias[channels:] = -6.0
        model.encoder.conv_out.weight[channels:] *= 0.1


def random_panel(rng: random.Random, held_out: bool = False) -> np.ndarray:
    """Render one random panel, uint8 (72, 48, 3)."""
    garment = sample_garment(rng, held_out=held_out)
    scene = sample_scene(rng, rng.choice(VIEW_MIX), held_out=held_out)
    return np.asarray(render(garment, scene, rng.getrandbits(31)).image)


def to_images_BCHW(pictures: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Convert uint8 pictures (B, H, W, 3) to images in [-1, 1]."""
    there = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return there.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(images_BCHW: torch.Tensor) -> np.ndarray:
    """Convert images to uint8 pictures (B, H, W, 3)."""
    return ((images_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


class Codec:
    """A trained autoencoder between uint8 pictures and normalised latents."""

    def __init__(self, folder: Path) -> None:
        """Load the autoencoder of a build folder or of a pipeline."""
        self.model = AutoencoderKL.from_pretrained(folder).eval().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        """Return the mean latents of pictures, normalised."""
        images = to_images_BCHW(pictures).to(memory_format=torch.channels_last)
        with autocast():
            mean = self.model.encode(images).latent_dist.mode()
        return (mean.float() - self.model.config.shift_factor) * self.model.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents_BCHW: torch.Tensor) -> np.ndarray:
        """Return the pictures of normalised latents."""
        latents = latents_BCHW / self.model.config.scaling_factor + self.model.config.shift_factor
        with autocast():
            return to_pictures(self.model.decode(latents).sample)


def _psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    return (10 * torch.log10(4 / ((output - target) ** 2).mean((1, 2, 3)))).mean().item()


def train_autoencoder(folder: Path, steps: int = STEPS) -> None:
    """Train, or continue training; writes `folder/vae` and a state every 200 steps."""
    done, state_path, log = folder / "vae", folder / "vae.state.safetensors", Log(folder, "autoencoder")
    if done.exists():
        return
    torch.manual_seed(SEED)
    rng, choose = random.Random(SEED), np.random.default_rng(SEED)
    model = new_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    first = 0
    if state_path.exists():
        tensors, metadata = load_tensors(state_path)
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        restore_optimizer(optimizer, tensors)
        first = metadata["step"]
    pool = np.stack([random_panel(rng) for _ in range(POOL)])
    judges = random.Random(999)
    single = to_images_BCHW(np.stack([random_panel(judges, held_out=True) for _ in range(48)]))
    wide = torch.cat(single.chunk(3), 3)

    @torch.no_grad()
    def evaluate() -> tuple[float, float, torch.Tensor]:
        model.eval()
        with autocast():
            latents = [model.encode(images).latent_dist.mode() for images in (single, wide)]
            outputs = [model.decode(z).sample.float().clamp(-1, 1) for z in latents]
        model.train()
        return _psnr(outputs[0], single), _psnr(outputs[1], wide), latents[1].float()

    for step in range(first, steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / steps)) * 0.98 + 0.02
        set_learning_rate(optimizer, LEARNING_RATE * min(1, (step + 1) / 50) * decay)
        pictures = pool[choose.integers(0, POOL, BATCH)]
        if step % 2:
            pictures = np.concatenate([pictures[0::3], pictures[1::3], pictures[2::3]], 2)
        elif choose.random() < 0.5:
            pictures = pictures[:, :, ::-1]
        images = to_images_BCHW(pictures).to(memory_format=torch.channels_last)
        with autocast():
            posterior = model.encode(images).latent_dist
            output = model.decode(posterior.sample()).sample
        error = output.float() - images
        divergence = posterior.kl().mean() / (posterior.mean.numel() / len(images))
        loss = error.abs().mean() + 3 * (error**2).mean() + 3e-4 * divergence
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            psnr_single, psnr_wide, _ = evaluate()
            log.write(
                step=step + 1, loss=loss.item(), kl=divergence.item(), psnr=psnr_single, psnr_wide=psnr_wide
            )
        if (step + 1) % 200 == 0:
            weights = {f"model.{k}": v for k, v in model.state_dict().items()}
            save_tensors(weights | optimizer_tensors(optimizer), state_path, step=step + 1)
    latents = evaluate()[2]
    model.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
    model.save_pretrained(folder / "vae.part")
    (folder / "vae.part").rename(done)
