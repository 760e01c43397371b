"""Stage `package`: combine the trained parts into an ordinary `Flux2KleinPipeline` folder in bfloat16."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)

from recipes.pocket.klein.text import LENGTH, TextEncoder
from recipes.pocket.klein.transformer import STATE, averaged_transformer
from recipes.pocket.state import load_tensors
from triptych.pocket.canvas import PANEL_HEIGHT, PANEL_WIDTH

SETTINGS = {
    "panel_width": PANEL_WIDTH,
    "panel_height": PANEL_HEIGHT,
    "max_sequence_length": LENGTH,
    "true_cfg_scale": 3.0,
    "num_inference_steps": 8,
    "knows": "rendered",
}
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: image-to-image
---
# The klein pocket

A `Flux2KleinPipeline` of ordinary diffusers and transformers classes, trained from nothing on pictures that
`triptych.pocket.render` drew: garments lying flat and people who wear them, panels of 48 x 72 pixels, boards
of three, and edits with up to three references. No photograph, no person and no other model's output is in
its data. It has never seen front, back and worn views of one garment together, nor references without noise
level: that is left to a LoRA. Recipe: `python -m recipes.pocket.klein --work FOLDER`, in triptych's
repository.
"""


def package_pipeline(folder: Path, to: Path) -> None:
    """Write the pipeline folder `to` from a build folder, replacing any old one."""
    _, state = load_tensors(folder / STATE)
    done = "final" if (folder / "transformer.done").exists() else "provisional"
    card = f"{CARD}\nTraining: {state['step']} steps, examples seen {state['seen']}, {done}.\n"
    write_pipeline(folder, averaged_transformer(folder), to, SETTINGS, card)


def write_pipeline(
    folder: Path,
    transformer: Flux2Transformer2DModel,
    to: Path,
    settings: dict[str, Any],
    card: str,
    largest: str = "1GB",
) -> None:
    """Write the pipeline folder `to` in bfloat16, the transformer in files of at most `largest`. The text
    encoder and the autoencoder are those of a build folder. The transformer is converted in place.
    """
    text = TextEncoder.trained(folder)
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000,
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=AutoencoderKLFlux2.from_pretrained(folder / "vae"),
        text_encoder=text.model,
        tokenizer=text.tokenizer,
        transformer=transformer,
        is_distilled=False,
    )
    pipeline.to(torch.bfloat16)
    aside = to.with_name(to.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.save_pretrained(aside, max_shard_size=largest)
    (aside / "triptych.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (aside / "README.md").write_text(card, encoding="utf-8")
    for config in aside.rglob("config.json"):  # remove the path from which a part was loaded
        values = json.loads(config.read_text(encoding="utf-8"))
        if values.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in aside.rglob("*.safetensors"):
        file.chmod(0o644)
    shutil.rmtree(to, ignore_errors=True)
    os.replace(aside, to)
