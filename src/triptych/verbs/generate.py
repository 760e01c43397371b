"""generate: triptychs from a prompt; or, with two product photos given, a model wearing the garment."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triptych.backbones.settings import model_settings
from triptych.captioning.write import prompt_problems
from triptych.errors import InputError
from triptych.events import Event, Run
from triptych.pictures import xmp
from triptych.pictures.images import load_image, save_png
from triptych.pictures.overwrite import check_overwrites
from triptych.pictures.panels import PanelLayout, split
from triptych.sampling.options import PictureConfig, text_chunks
from triptych.store.files import digest

log = logging.getLogger(__name__)


PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
"""Endings of a name that is meant for a picture, not a folder."""


class GenerateConfig(PictureConfig):
    front: Path | None = None
    """Photo of the garment's front. With a product photo given, only the worn panel is generated."""
    back: Path | None = None
    """Photo of its back; without it the front is used twice."""
    out: Path | None = None
    """Folder for the pictures, if not WORK/generated."""

    @property
    def shows_products(self) -> bool:
        return self.front is not None


def generate(config: GenerateConfig) -> Run:
    """Write triptychs, and their panels one by one, to `out`.

    Raises:
        InputError: no prompt, or a photo that cannot be read. ModelError: no model, or model or LoRA cannot
            be loaded.
    """
    # Not above: they import torch, which `--help` can do without.
    from triptych.sampling.generate import generate_triptych
    from triptych.sampling.opened import load_models

    if not config.prompt.strip():
        raise InputError(
            "There is no prompt.", 'Say what to make: --prompt "… <IMAGE 1> … <IMAGE 2> … <IMAGE 3> …".'
        )
    if config.back and not config.front:
        raise InputError(
            "A back view without a front view.", "Give --front as well; one photo alone is given as --front."
        )
    config.check_model()
    layout = config.layout()
    products = None
    warnings = [
        f"The prompt: {problem}."
        for problem in prompt_problems(config.model, config.prompt, len(layout.roles))
    ]
    if config.front:
        front = load_image(config.front)
        both = {"front": front, "back": load_image(config.back) if config.back else front}
        config.check_known({config.front: front} | ({config.back: both["back"]} if config.back else {}))
        products = {role: photo for role, photo in both.items() if role in layout.check_roles().roles}
        if config.back and "back" not in products:
            warnings.append("The LoRA has no back panel: the back photo is not used.")
    sampling = config.sampling(model_settings(config.model))
    out, photos = config.out or config.work / "generated", {"front": config.front, "back": config.back}
    abouts = {seed: config.settings("generate", seed, photos, sampling, layout) for seed in config.seeds}
    names = {seed: f"{digest(about)[:10]}-{seed}" for seed, about in abouts.items()}
    if not out.is_dir() and (out.exists() or out.suffix.lower() in PICTURES):
        hint = "generate names its pictures itself, triptych and panels: give a folder with --out."
        raise InputError(f"{out} is {'a file' if out.exists() else 'the name of a picture'}.", hint)
    check_overwrites(file for name in names.values() for file in _files(out, name, layout).values())
    kept = config.context_cache_gib if len(config.seeds) > 1 else 0.0  # one picture has no use for it
    models = load_models(**config.model_source() | {"context_cache_gib": kept}, prompts=[config.prompt])
    warnings += models.warnings.values()
    for warning in warnings:
        log.warning(warning)
    summary: dict[str, Any] = {
        "images": [],
        "panels": list(layout.size),
        "num_inference_steps": sampling.num_inference_steps,
    }
    summary["warnings"] = warnings

    def work() -> Iterator[Event]:
        for seed, name in names.items():
            (canvas,) = generate_triptych(
                models, [config.prompt], layout, [seed], sampling, [products] if products else None
            )
            about, files = abouts[seed], _files(out, name, layout)
            for role, panel in zip(layout.roles, split(canvas, layout), strict=True):
                made = xmp.packet("trainedAlgorithmicMedia") if role not in (products or {}) else None
                save_png(panel, files[role], text=text_chunks(about, models, role), xmp=made)
            source: xmp.Source = (
                "compositeWithTrainedAlgorithmicMedia" if products else "trainedAlgorithmicMedia"
            )
            save_png(canvas, files["canvas"], text=text_chunks(about, models), xmp=xmp.packet(source))
            summary["images"].append(str(files["canvas"]))
            yield Event(name, result=files["canvas"])

    return Run("generate", len(config.seeds), work(), summary)


def _files(out: Path, name: str, layout: PanelLayout) -> dict[str, Path]:
    """Where a picture goes, `canvas`, and its panels, by role."""
    # Roles come from a LoRA's file: one that is no plain word is not made part of a path.
    words = {
        role: role if re.fullmatch(r"\w{1,40}", role) else f"panel{number}"
        for number, role in enumerate(layout.roles, 1)
    }
    return {
        "canvas": out / f"{name}.png",
        **{role: out / "panels" / f"{name}-{word}.png" for role, word in words.items()},
    }
