"""The pocket model: a small FLUX-architecture pipeline trained from scratch on rendered garments and people.

Importing this package costs nothing; the parts are separate modules:
`world` and `render` (the pictures), `prompts` (the captions), `raw_catalogue` (a shop's folders),
`oracle` (the judge). The training recipe is in `recipes/pocket` of the repository.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["captioner_path", "checkpoint_path"]


def checkpoint_path() -> Path:
    """Return the folder of the shipped model: an ordinary diffusers `FluxPipeline` folder."""
    return Path(__file__).parent / "checkpoint"


def captioner_path() -> Path:
    """Return the folder of the shipped image-to-text model: an ordinary transformers folder."""
    return Path(__file__).parent / "captioner"
