"""tryon: this person, that garment. Only what lies inside the polygon is regenerated; the photo keeps its
size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from PIL import Image

from triptych.events import Event, Run
from triptych.pictures import xmp
from triptych.pictures.images import save_png
from triptych.pictures.sheets import contact_sheet
from triptych.sampling.opened import load_models
from triptych.vton.batch import run_batch
from triptych.vton.job import TryonConfig, check, make, prepare, with_prompt
from triptych.vton.prompt import PromptWriter

log = logging.getLogger(__name__)

THUMB = 320  # pixels; side of a picture on the contact sheet


def tryon(config: TryonConfig) -> Run:
    """Write the re-dressed photo; before that, and before a model is loaded, a preview of the mask; beside it
    the model's triptych.

    Several seeds also get a contact sheet. With `batch`, see `run_batch`.

    Raises:
        InputError: a photo or polygon that is missing or cannot be used. ModelError: no model, or model or
            LoRA cannot be loaded.
    """
    if config.batch:
        return run_batch(config)
    config = check(config)
    config.check_model()
    job = prepare(config)  # before a captioner is asked: it may cost money
    if not config.prompt.strip():
        config = PromptWriter(config, config.picture.parent).fill(config)
        job = with_prompt(job, config.prompt)
    for warning in job.warnings:
        log.warning(warning)
    kept = config.context_cache_gib if len(config.seeds) > 1 else 0.0  # one picture has no use for it
    models = load_models(**config.model_source() | {"context_cache_gib": kept}, prompts=[config.prompt])
    for warning in models.warnings.values():
        log.warning(warning)
        job.warnings.append(warning)
    size = list(job.person.image.size)
    summary: dict[str, Any] = {"images": [], "mask": str(config.preview), "size": size}
    summary |= {
        "prompt": config.prompt,
        "feather": config.feather,
        "strength": config.strength,
        "warnings": job.warnings,
    }

    def work() -> Iterator[Event]:
        thumbs: list[tuple[Image.Image | None, str]] = []
        for seed in config.seeds:
            image = make([(job, [seed])], models)[0].image
            path, _ = config.files(seed)
            image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
            thumbs.append((image, f"seed {seed}"))
            summary["images"].append(str(path))
            if job.sampling.context == "clean":
                summary["context_cache"] = models.contexts.summary()
            yield Event(path.name, result=path)
        if len(thumbs) > 1:
            packet = xmp.packet("compositeWithTrainedAlgorithmicMedia")
            save_png(
                contact_sheet(thumbs, columns=4, thumb=THUMB),
                config.sheet,
                text={"Software": "triptych"},
                xmp=packet,
            )
            summary["sheet"] = str(config.sheet)

    return Run("tryon", len(config.seeds), work(), summary)


__all__ = ["TryonConfig", "tryon"]
