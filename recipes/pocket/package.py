"""Stage `package`: combine the trained parts into an ordinary `FluxPipeline` folder in bfloat16."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline

from recipes.pocket.guidance import guided_transformer
from recipes.pocket.state import load_tensors
from recipes.pocket.text import TRIPTYCH_LENGTH, TextEncoders
from triptych.pocket.canvas import PANEL_HEIGHT, PANEL_WIDTH

SETTINGS = {
    "panel_width": PANEL_WIDTH,
    "panel_height": PANEL_HEIGHT,
    "max_sequence_length": TRIPTYCH_LENGTH,
    "guidance_scale": 1.0,
    "true_cfg_scale": 3.0,
    "context_guidance_scale": 5.0,
    "num_inference_steps": 8,
    "knows": "rendered",
}
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The triptych pocket model

A `FluxPipeline` of ordinary diffusers and transformers classes, trained from nothing on pictures that
`triptych.pocket.render` drew: garments lying flat and people who wear them, panels of 48 x 72 pixels, boards
of three. No photograph, no person and no other model's output is in its data. It has never seen front, back
and worn views of one garment together: that is left to a LoRA. Recipe: `python -m recipes.pocket
--work FOLDER`, in triptych's repository.
"""


def package_pipeline(folder: Path, to: Path) -> None:
    """Write the pipeline folder `to` from a build folder, replacing any old one."""
    transformer, text = guided_transformer(folder), TextEncoders.trained(folder)
    scheduler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=text.clip,
        tokenizer=text.clip_tokenizer,
        text_encoder_2=text.t5,
        tokenizer_2=text.t5_tokenizer,
        transformer=transformer,
    )
    pipeline.to(torch.bfloat16)
    aside = to.with_name(to.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.save_pretrained(aside)
    (aside / "triptych.json").write_text(json.dumps(SETTINGS, indent=2) + "\n", encoding="utf-8")
    _, state = load_tensors(folder / "transformer.state.safetensors")
    done = (folder / "transformer.done").exists()
    card = (
        CARD + f"\nTraining, last leg: {state['step']} steps, pictures seen {state['seen']}, "
        f"{'final' if done else 'provisional'}.\n"
    )
    (aside / "README.md").write_text(card, encoding="utf-8")
    for config in aside.rglob("config.json"):  # remove the path from which a part was loaded
        values = json.loads(config.read_text(encoding="utf-8"))
        if values.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in aside.rglob("*.safetensors"):
        file.chmod(0o644)
    shutil.rmtree(to, ignore_errors=True)
    os.replace(aside, to)
