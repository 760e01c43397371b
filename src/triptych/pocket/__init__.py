"""The pocket models: small pipelines trained from scratch on rendered garments and people.

`pocket` is a tiny FLUX.1, `pocket-klein` a tiny FLUX.2-klein, which edits with reference pictures.

Importing this package costs nothing; the parts are separate modules:
`world` and `render` (the pictures), `outfits` (people in two garments), `prompts` (the captions),
`raw_catalogue` (a shop's folders), `parts` (label maps), `oracle` (the judge). The training recipe is in
`recipes/pocket` of the repository.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["POCKETS", "captioner_path", "checkpoint_path", "parser_path"]

POCKETS = {"pocket": "checkpoint", "pocket-klein": "checkpoint-klein"}
"""The shipped models by name, and their folders beside this file."""


def checkpoint_path(name: str = "pocket") -> Path:
    """Return the folder of a shipped model: an ordinary diffusers pipeline folder (`FluxPipeline`; of
    `pocket-klein`: `Flux2KleinPipeline`).
    """
    return Path(__file__).parent / POCKETS[name]


def captioner_path() -> Path:
    """Return the folder of the shipped image-to-text model: an ordinary transformers folder."""
    return Path(__file__).parent / "captioner"


def parser_path() -> Path:
    """Return the folder of the shipped human parser: an ordinary transformers folder."""
    return Path(__file__).parent / "parser"
