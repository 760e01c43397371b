"""generate: triptychs from a prompt; or, with two product photos given, a model wearing the garment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triptych import xmp
from triptych.backbones.settings import model_settings
from triptych.errors import InputError
from triptych.images import load_image, save_png
from triptych.panels import split
from triptych.sampling import PictureConfig, text_chunks
from triptych.store import Event, Run, digest


class GenerateConfig(PictureConfig):
    front: Path | None = None
    """Photo of the garment's front. With a product photo given, only the worn panel is generated."""
    back: Path | None = None
    """Photo of its back; without it the front is used twice."""
    out: Path | None = None
    """Folder for the pictures, if not WORK/generated."""


def generate(config: GenerateConfig) -> Run:
    """Write triptychs, and their panels one by one, to `out`.

    Raises:
        InputError: no prompt, or a photo that cannot be read. ModelError: no model, or model or LoRA cannot be loaded.
    """
    from triptych.inference import generate_triptych, load_models  # not above: they import torch, which `--help` can do without

    if not config.prompt.strip():
        raise InputError("There is no prompt.", 'Say what to make: --prompt "… <IMAGE 1> … <IMAGE 2> … <IMAGE 3> …".')
    if config.back and not config.front:
        raise InputError("A back view without a front view.", "Give --front as well; one photo alone is given as --front.")
    config.check_model()
    layout = config.layout()
    products = None
    if config.front:
        front = load_image(config.front)
        products = {"front": front, "back": load_image(config.back) if config.back else front}
    sampling = config.sampling(model_settings(config.model))
    kept = config.context_cache_gib if len(config.seeds) > 1 else 0.0  # one picture has no use for it
    models = load_models(**config.model_source() | {"context_cache_gib": kept}, prompts=[config.prompt])
    out = config.out or config.work / "generated"
    summary: dict[str, Any] = {"images": [], "panels": list(layout.size), "num_inference_steps": sampling.num_inference_steps}

    def work() -> Iterator[Event]:
        out.mkdir(parents=True, exist_ok=True)
        photos = {"front": config.front, "back": config.back}
        for seed in config.seeds:
            (canvas,) = generate_triptych(models, [config.prompt], layout, [seed], sampling, [products] if products else None)
            about = config.settings("generate", seed, photos, sampling, layout)
            name = f"{digest(about)[:10]}-{seed}"
            for role, panel in zip(layout.roles, split(canvas, layout), strict=True):
                made = xmp.packet("trainedAlgorithmicMedia") if role not in (products or {}) else None
                save_png(panel, out / "panels" / f"{name}-{role}.png", text=text_chunks(about, models, role), xmp=made)
            source: xmp.Source = "compositeWithTrainedAlgorithmicMedia" if products else "trainedAlgorithmicMedia"
            save_png(canvas, out / f"{name}.png", text=text_chunks(about, models), xmp=xmp.packet(source))
            summary["images"].append(str(out / f"{name}.png"))
            yield Event(name)

    return Run("generate", len(config.seeds), work(), summary)
