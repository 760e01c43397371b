"""How large everything is: the pocket for a card, and a tiny one that runs every line on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

from recipes.pocket.autoencoder import start_calm
from recipes.pocket.klein.model import new_transformer as klein_transformer

SCALE = 2
"""Panels of 96 x 144 pixels: 6 x 9 tokens of 16 x 16 behind an autoencoder that divides sides by eight."""


@dataclass(frozen=True)
class Size:
    """Widths, numbers of pictures and steps, shares of the time."""

    autoencoder: tuple[int, int, int, int] = (32, 64, 96, 128)
    latent_channels: int = 16
    heads: int = 5
    double: int = 2
    single: int = 4
    length: int = 80
    """Tokens of a prompt."""
    shards: int = 1600
    pool: int = 140
    """Shards that the autoencoder learns from; all others are for the transformer."""
    batch: int = 256
    text_batch: int = 128
    autoencoder_batch: int = 96
    items: int = 100
    """Edits of each kind that are measured."""
    steps: dict[str, int] | None = None
    """Steps by stage; None: as many as its share of the time allows."""
    shard_size: str = "14MB"
    """Largest file of the packaged transformer."""


CARD = Size()
TINY = Size(
    autoencoder=(8, 8, 16, 16),
    latent_channels=8,
    heads=1,
    double=1,
    single=1,
    shards=2,
    pool=2,
    batch=8,
    text_batch=8,
    autoencoder_batch=6,
    items=2,
    steps={"text": 2, "autoencoder": 8, "transformer": 12},
    shard_size="500KB",
)


def new_autoencoder(size: Size) -> AutoencoderKLFlux2:
    """Return the untrained autoencoder, f8; its statistics are still 0 and 1."""
    model = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=size.autoencoder,
        layers_per_block=1,
        latent_channels=size.latent_channels,
        norm_num_groups=8,
        sample_size=72 * SCALE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    start_calm(model, size.latent_channels)
    return model


def new_transformer(size: Size) -> Flux2Transformer2DModel:
    """Return the untrained transformer: for a card 12.7M parameters, d = 320, two double and four single
    blocks.
    """
    return klein_transformer(4 * size.latent_channels, size.heads, size.double, size.single)
