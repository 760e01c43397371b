"""reproduce: make a picture again from the settings it carries and the photos it was made from, found by their hash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from triptych.config import StageConfig, validated
from triptych.errors import InputError
from triptych.images import load_original, read_settings
from triptych.stages.generate import GenerateConfig, generate
from triptych.stages.tryon import TryonConfig, tryon
from triptych.store import Event, Run, sha256_file

WORDS = {"front": "front photo", "back": "back photo", "person": "person photo", "polygon": "polygon file", "lora": "LoRA file"}


class ReproduceConfig(StageConfig):
    image: Path | None = None
    """The picture to make again, as `tryon` or `generate` wrote it."""
    photos: list[Path] = []
    """Files and folders among which its inputs lie: photos, polygon and LoRA, under any name."""
    model: str | None = None
    """The base model, if it is a folder or lies elsewhere now; a picture only knows its name."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 … Pixels are identical only on a device of the kind the picture was made on."""
    out: Path | None = None
    """Where to write it: tryon, a file, if not NAME-again beside the picture; generate, a folder, if not WORK/reproduced."""


def reproduce(config: ReproduceConfig) -> Run:
    """Make the picture again; the summary's `identical` says whether every pixel is the same.

    Raises:
        InputError: no picture of ours, or one of its inputs is not among the files given. ModelError: the model cannot be loaded.
    """
    if config.image is None:
        raise InputError("There is no picture to reproduce.", "Give it right after the verb: triptych reproduce out.png --photos FOLDER.")
    about = read_settings(config.image) or {}
    verb, hashes, made_on = about.get("verb"), about.get("sha256"), about.get("made_on")
    if verb not in ("tryon", "generate") or not isinstance(hashes, dict) or not isinstance(made_on, dict):
        raise InputError(f"{config.image} does not say how it was made.", "Give a picture as tryon or generate wrote it, never edited.")
    if about.get("part"):
        raise InputError(f"{config.image} only lies beside a picture.", "Give the picture itself, without the word at the end of its name.")
    settings = {key: value for key, value in about.items() if key not in ("verb", "sha256", "made_on")}
    settings |= {"dtype": {"float32": "fp32", "bfloat16": "bf16"}.get(str(made_on.get("dtype")), "auto"), "device": config.device}
    settings |= _found({str(name): str(value) for name, value in hashes.items() if name in WORDS}, config.photos)
    settings |= {"work": config.work} | ({"model": config.model} if config.model else {})
    if verb == "tryon":
        settings["out"] = config.out or config.image.with_stem(f"{config.image.stem}-again")
        run = tryon(cast(TryonConfig, validated(TryonConfig, settings, verb)))
    else:
        settings["out"] = config.out or config.work / "reproduced"
        run = generate(cast(GenerateConfig, validated(GenerateConfig, settings, verb)))
    summary: dict[str, Any] = {"made_on": made_on}

    def work() -> Iterator[Event]:
        assert config.image is not None
        yield from run
        (made,) = run.summary["images"]
        before, after = (np.asarray(load_original(Path(path)).image) for path in (config.image, made))
        summary.update(image=made, identical=bool(np.array_equal(before, after)))

    return Run("reproduce", len(run), work(), summary)


def _found(hashes: dict[str, str], places: Iterable[Path]) -> dict[str, Path]:
    """The files that have these hashes, by the same names; places are looked through in order, until all are found.

    Raises:
        InputError: a place that does not exist, or an input that is in none of them.
    """
    wanted, found = set(hashes.values()), dict[str, Path]()
    for place in places:
        if not place.exists():
            raise InputError(f"{place} is not there.", "Check the paths given to --photos.")
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if wanted <= found.keys():
                break
            if path.is_file():
                found.setdefault(sha256_file(path), path)
    for name, value in hashes.items():
        if value not in found:
            raise InputError(
                f"The {WORDS[name]} this picture was made from (sha256 {value[:12]}…) is not among the files given.",
                "Give the file, or a folder that holds it, with --photos.",
            )
    return {name: found[value] for name, value in hashes.items()}
