"""generate: makes triptychs from a prompt; with photos of some panels, it makes the others."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.captioning.write import prompt_problems
from triptych.errors import InputError
from triptych.events import Event, Run
from triptych.pictures import xmp
from triptych.pictures.images import load_image, sha256_photo
from triptych.pictures.overwrite import check_overwrites
from triptych.pictures.panels import PanelLayout, split
from triptych.pictures.saving import save_png
from triptych.sampling.options import Sampling
from triptych.store.files import digest
from triptych.tasks import task_of
from triptych.tasks.base import words
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.generate_config import GenerateConfig

if TYPE_CHECKING:  # they import torch, which `--help` can do without
    from triptych.sampling.picture import Picture
    from triptych.session import Session

log = logging.getLogger(__name__)

PANEL = "panel "
"""Prefix of a role among the hashes in a picture, for a photo given with --panel."""
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
"""Endings that mean a picture, not a folder."""


def generate(config: GenerateConfig) -> Run:
    """Write triptychs and their single panels to `out`.

    Raises:
        InputError: no prompt, or a photo that cannot be read. ModelError: no model, or model or LoRA cannot
            be loaded.
    """
    check_asked(config)  # before a model is opened
    from triptych.session import Session  # not at the top: it imports torch, and `--help` must not

    kept = config.context_cache_gib if len(config.seeds) > 1 else 0.0  # useless for a single picture
    return generate_on(Session(**config.model_source() | {"context_cache_gib": kept}), config)


def generate_on(session: Session, config: GenerateConfig) -> Run:
    """`generate` on a model that is open.

    Raises:
        InputError, ModelError: see `generate`.
    """
    from triptych.sampling.picture import record  # not at the top: it imports torch

    check_asked(config)
    layout = session.layout(config.panel_width, config.panel_height, config.photos())
    sampling = session.resolved(config)
    given, warnings = _given(config, layout, sampling)
    markers = tuple(session.trained.get("markers", ()))
    described = len(layout.roles) if config.describes_panels else 0
    problems = prompt_problems(config.model, config.prompt, described, markers)
    warnings += [f"The prompt: {problem}." for problem in problems]
    opened = {path: load_image(path) for path in (*given.values(), *config.reference)}
    config.check_known(opened)
    panels = {role: opened[path] for role, path in given.items()}
    references = [opened[path] for path in config.reference]
    sha256 = {name: sha256_photo(path) for name, path in _sources(config).items() if path}
    out, names = config.out or config.work / "generated", dict[int, str]()
    for seed in config.seeds:
        about = record(session, "generate", layout, sampling, sha256, prompt=config.prompt, seed=seed)
        names[seed] = f"{digest(about)[:10]}-{seed}"
    if not out.is_dir() and (out.exists() or out.suffix.lower() in PICTURES):
        hint = "generate names its pictures itself, triptych and panels: give a folder with --out."
        raise InputError(f"{out} is {'a file' if out.exists() else 'the name of a picture'}.", hint)
    check_overwrites(file for name in names.values() for file in _files(out, name, layout).values())
    session.encode([config.prompt])
    warnings += filter(None, [session.warnings.get(config.prompt)])
    for warning in warnings:
        log.warning(warning)
    session.load()
    steps = sampling.num_inference_steps
    summary: dict[str, Any] = {"images": [], "canvas": list(layout.size), "num_inference_steps": steps}
    summary["warnings"] = warnings

    def work() -> Iterator[Event]:
        for seed, name in names.items():
            (picture,) = session.generate(
                prompt=config.prompt,
                seeds=[seed],
                panels=panels,
                references=references,
                layout=layout,
                sampling=sampling,
                sha256=sha256,
            )
            files = _files(out, name, layout)
            _write(picture, layout, files)
            summary["images"].append(str(files["canvas"]))
            yield Event(name, result=files["canvas"])

    return Run("generate", len(config.seeds), work(), summary)


def check_asked(config: GenerateConfig) -> None:
    """Raises InputError without a prompt, or for a back view alone; ModelError without a model."""
    if not config.prompt.strip():
        raise InputError(
            "There is no prompt.", 'Say what to make: --prompt "… <IMAGE 1> … <IMAGE 2> … <IMAGE 3> …".'
        )
    if config.back and "front" not in config.photos():
        raise InputError(
            "A back view without a front view.", "Give --front as well; one photo alone is given as --front."
        )
    config.check_model()


def _write(picture: Picture, layout: PanelLayout, files: Mapping[str, Path]) -> None:
    """Write the panels, then the triptych: an existing triptych means that the picture is complete."""
    from triptych.sampling.picture import text_chunks  # not at the top: it imports torch

    for role, panel in zip(layout.roles, split(picture.triptych, layout), strict=True):
        made = xmp.packet("trainedAlgorithmicMedia") if role in picture.made else None
        save_png(panel, files[role], text=text_chunks(picture.settings, role), xmp=made)
    whole = len(picture.made) == len(layout.roles)
    source: xmp.Source = "trainedAlgorithmicMedia" if whole else "compositeWithTrainedAlgorithmicMedia"
    save_png(picture.triptych, files["canvas"], text=text_chunks(picture.settings), xmp=xmp.packet(source))


def _given(
    config: GenerateConfig, layout: PanelLayout, sampling: Sampling
) -> tuple[dict[str, Path], list[str]]:
    """(the photos to show by role, stand-ins included, and warnings).

    Raises:
        InputError: photos of unknown panels, of all panels, or of other panels than the LoRA was trained
            with.
    """
    photos, warnings = config.photos(), list[str]()
    if (config.front or config.back) and not task_of(layout).some:
        layout = TRY_ON.trained(layout)
        if config.back and "back" not in layout.roles:
            warnings.append("The LoRA has no back panel: the back photo is not used.")
            del photos["back"]
    if strange := [role for role in photos if role not in layout.roles]:
        raise InputError(
            f"There is no panel {words(strange)}; the panels are {words(layout.roles)}.",
            "`triptych lora inspect` says which panels a LoRA has, and which of them it makes.",
        )
    shown = {role: path for role, path in task_of(layout).filled(photos).items() if role in layout.roles}
    made = [role for role in layout.roles if role not in shown]
    if not made:
        raise InputError("There are photos of all panels, and nothing to make.", "Leave one out.")
    if shown and config.lora and not {*made} <= {*layout.made}:
        problem = (
            f"The LoRA was trained to make {words(layout.made)} from {words(layout.given)}, "
            f"not {words(made)} from {words([*shown])}."
        )
        if sampling.context == "clean":
            raise InputError(problem, "Give photos of what it was trained on, or use a LoRA of this task.")
        warnings.append(problem)
    return shown, warnings


def _sources(config: GenerateConfig) -> dict[str, Path | None]:
    """The photos, by the names that their hashes have in a picture."""
    photos = config.photos()
    usual = {role: photos.pop(role, None) for role in ("front", "back")}
    return usual | {f"{PANEL}{role}": path for role, path in photos.items()} | config.named_references()


def _files(out: Path, name: str, layout: PanelLayout) -> dict[str, Path]:
    """The paths of a picture (`canvas`) and of its panels, by role."""
    # Roles come from a LoRA's file: a role that is not a plain word must not enter a path.
    words = {
        role: role if re.fullmatch(r"\w{1,40}", role) else f"panel{number}"
        for number, role in enumerate(layout.roles, 1)
    }
    return {
        "canvas": out / f"{name}.png",
        **{role: out / "panels" / f"{name}-{word}.png" for role, word in words.items()},
    }
