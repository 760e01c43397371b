"""reproduce: makes a picture again from its stored settings and its source photos, which are found by hash.

A picture may come from anybody. Only the settings that decide pixels (those marked RESULT) are taken from it,
after a check of type and range; every path, the device and any model that is not well known come from
the user.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from triptych.backbones.known import known_models
from triptych.config.marks import RESULT, marked
from triptych.config.stage import validated
from triptych.errors import InputError
from triptych.events import Event, Run
from triptych.pictures import polygons
from triptych.pictures.images import JPEG_SUFFIXES, check_header, load_original, read_settings
from triptych.pictures.panels import PLAIN_ROLE
from triptych.pocket import POCKETS
from triptych.sampling.options import REFERENCE, PictureConfig
from triptych.store.files import sha256_file
from triptych.verbs.generate import PANEL, GenerateConfig, generate
from triptych.verbs.reproduce_config import ReproduceConfig
from triptych.verbs.tryon import TryonConfig, tryon
from triptych.vton.config import GARMENT

WORDS = {
    "front": "front photo",
    "back": "back photo",
    "person": "person photo",
    "polygon": "polygon file",
    "mask": "mask",
    "lora": "LoRA file",
}
VERBS: dict[str, tuple[type[PictureConfig], Callable[[Any], Run]]] = {
    "tryon": (TryonConfig, tryon),
    "generate": (GenerateConfig, generate),
}
INPUTS = {"tryon": {*WORDS}, "generate": {"front", "back", "lora"}}
_ROLE_PHOTO = {
    "generate": re.compile(rf"{PANEL}{PLAIN_ROLE.pattern}"),
    "tryon": re.compile(rf"{GARMENT}{PLAIN_ROLE.pattern}"),
}
_FURTHER = re.compile(rf"{REFERENCE}[1-9]\d{{0,3}}")
NEEDED = {"tryon": ("person",), "generate": ()}
MADE_ON = ("device", "dtype", "torch", "threads")
_AS_WRITTEN = "Give a picture as tryon or generate wrote it, never edited."


def reproduce(config: ReproduceConfig) -> Run:
    """Make the picture again. In the summary, `identical` says whether every pixel is the same; if not,
    `differs` lists possible causes.

    Raises:
        InputError: no picture of ours, a setting that ours never have, or an input that is not among the
            given files.
        ModelError: the model cannot be loaded.
    """
    config.check_early()
    assert config.image is not None
    about = about_of(config.image)
    verb, made_on = about["verb"], _made_on(about["made_on"], config.image)
    kind, stage = VERBS[verb]
    settings = picture_settings(about, kind, config.image)
    settings["model"] = config.model or _known(settings.get("model"), config.image)
    settings |= {
        "dtype": {"float32": "fp32", "bfloat16": "bf16"}.get(str(made_on.get("dtype")), "auto"),
        "device": config.device,
    }
    hashes = hashes_in(about["sha256"], verb, config.image, mask_free=settings.get("mask_free", False))
    files = _found(hashes, config.photos)
    for option, prefix in (("panel", PANEL), ("garment", GARMENT)):
        if named := [name for name in files if name.startswith(prefix)]:
            settings[option] = [f"{name.removeprefix(prefix)}={files.pop(name)}" for name in named]
    if further := sorted((name for name in files if name.startswith(REFERENCE)), key=_number):
        settings["reference"] = [files.pop(name) for name in further]
    settings |= files
    again = (
        config.image.with_stem(f"{config.image.stem}-again")
        if verb == "tryon"
        else config.work / "reproduced"
    )
    run = stage(
        validated(kind, {**settings, "anyway": True, "work": config.work, "out": config.out or again}, verb)
    )
    summary: dict[str, Any] = {"made_on": made_on}

    def work() -> Iterator[Event]:
        assert config.image is not None
        yield from run
        (made,) = run.summary["images"]
        before, after = (np.asarray(load_original(Path(path)).image) for path in (config.image, made))
        summary.update(image=made, identical=bool(np.array_equal(before, after)))
        if not summary["identical"]:
            now = (read_settings(Path(made)) or {}).get("made_on", {})
            summary["differs"] = differences(made_on, now)
            if (then := _format(config.image)) != _format(Path(made)):  # JPEG compression changes pixels
                summary["differs"].insert(0, f"format: {then} then, {_format(Path(made))} now")

    return Run("reproduce", len(run), work(), summary)


def about_of(image: Path) -> dict[str, Any]:
    """All that a picture says about its making, with a known verb, hashes and a machine.

    Raises:
        InputError: one of these is missing, or the picture is only a part of the result.
    """
    about = read_settings(image) or {}
    verb = about.get("verb")
    if (
        not isinstance(verb, str)
        or verb not in VERBS
        or not isinstance(about.get("sha256"), dict)
        or not isinstance(about.get("made_on"), dict)
    ):
        raise InputError(f"{image} does not say how it was made.", _AS_WRITTEN)
    if about.get("part"):
        raise InputError(
            f"{image} only lies beside a picture.",
            "Give the picture itself, without the word at the end of its name.",
        )
    return about


def _format(path: Path) -> str:
    return "JPEG" if path.suffix.lower() in JPEG_SUFFIXES else "PNG"


def picture_settings(about: Mapping[str, Any], kind: type[PictureConfig], image: Path) -> dict[str, Any]:
    """The settings in a picture without verb, hashes and machine; all must be settings that
    `PictureConfig.settings` writes.

    Raises:
        InputError: an unknown key, a value of the wrong type or range, or no prompt.
    """
    settings = {
        key: value for key, value in about.items() if key not in ("verb", "sha256", "made_on", "part")
    }
    for key in settings:
        if key not in marked(kind, RESULT):
            raise InputError(
                f"{image} has the setting {_shown(key)}, which no picture of triptych's has.", _AS_WRITTEN
            )
    try:
        # Strictly as JSON: a string is no number, and half of a surrogate pair is no text.
        checked = kind.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "its settings"
        raise InputError(
            f"{image} has an impossible setting, {where}: {first['msg'][:200]}.", _AS_WRITTEN
        ) from error
    if "\0" in checked.prompt:
        raise InputError(f"{image} has an impossible setting, prompt: it holds a NUL character.", _AS_WRITTEN)
    if not checked.prompt.strip():
        raise InputError(f"{image} carries no prompt.", _AS_WRITTEN)
    return {key: getattr(checked, key) for key in settings}


def _known(model: Any, image: Path) -> str:
    if model not in {*POCKETS, *known_models()}:
        raise InputError(
            f"{image} was made with the model {_shown(model)}, which is a folder or not well known.",
            "If you trust it, say where it lies: --model FOLDER, or --model with its name on the hub.",
        )
    return str(model)


def _made_on(made_on: Mapping[Any, Any], image: Path) -> dict[str, Any]:
    """The machine that a picture was made on: short words and a number, for people."""
    words = {key: made_on[key] for key in ("device", "dtype", "torch") if key in made_on}
    good = all(isinstance(word, str) and len(word) < 80 and word.isprintable() for word in words.values())
    if not good or set(made_on) - set(MADE_ON) or type(made_on.get("threads", 1)) is not int:
        raise InputError(f"{image} does not say properly what it was made on.", _AS_WRITTEN)
    return dict(made_on)


def hashes_in(
    hashes: Mapping[Any, Any], verb: str, image: Path, *, mask_free: bool = False
) -> dict[str, str]:
    """The sha256 of each input, by option."""
    for name, value in hashes.items():
        known = name in INPUTS[verb] or any(
            pattern.fullmatch(str(name)) for pattern in (_ROLE_PHOTO[verb], _FURTHER)
        )
        if not known or not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
            raise InputError(
                f"{image} names an input {_shown(name)} as no picture of triptych's does.", _AS_WRITTEN
            )
    for name in NEEDED[verb]:
        if name not in hashes:
            raise InputError(f"{image} does not name its {WORDS[name]}.", _AS_WRITTEN)
    if verb == "tryon" and not any(name == "front" or name.startswith(GARMENT) for name in hashes):
        raise InputError(f"{image} does not name its {WORDS['front']}.", _AS_WRITTEN)
    drawn = ("polygon" in hashes, "mask" in hashes)
    if verb == "tryon" and (all(drawn) or not (any(drawn) or mask_free)):
        raise InputError(f"{image} names no polygon file or mask, or both.", _AS_WRITTEN)
    return dict(hashes)


def _number(name: str) -> int:
    """The number of a further reference."""
    return int(name.removeprefix(REFERENCE))


def _shown(value: Any) -> str:
    """A foreign word, safe to print."""
    return ascii(str(value)[:60])


def differences(made_on: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between this machine and the one a picture was made on, in words."""
    told = [
        f"{key}: {made_on.get(key, 'not recorded')} then, {now.get(key)} now"
        for key in MADE_ON
        if made_on.get(key) != now.get(key)
    ]
    return told or [
        "nothing that pictures record: the kind of processor or card, or a version of another package"
    ]


def _found(hashes: dict[str, str], places: Iterable[Path]) -> dict[str, Path]:
    """The files with these hashes, by the same names. Places are searched in order, until all files are
    found.

    Raises:
        InputError: a place does not exist, or no place contains an input.
    """
    wanted, found = set(hashes.values()), dict[str, Path]()
    for place in places:
        if not place.exists():
            raise InputError(f"{place} is not there.", "Check the paths given to --photos.")
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if wanted <= found.keys():
                break
            try:
                if _may_be_one(path, hashes):
                    found.setdefault(sha256_file(path), path)
            # an unreadable file is no candidate; if it was an input, it is reported missing below
            except OSError:
                continue
    for name, value in hashes.items():
        if value not in found:
            what = WORDS.get(name) or f"photo of the {name}"
            raise InputError(
                f"The {what} this picture was made from (sha256 {value[:12]}…) is not among the files given.",
                "Give the file, or a folder that holds it, with --photos.",
            )
    return {name: found[value] for name, value in hashes.items()}


def _may_be_one(path: Path, hashes: Iterable[str]) -> bool:
    """Whether a file can be an input, from its first bytes: films and archives are not worth hashing."""
    if not path.is_file():
        return False
    if "polygon" in hashes and path.stat().st_size <= polygons.MAX_BYTES:
        return True
    with open(path, "rb") as file:
        start = file.read(9)
    if (
        "lora" in hashes
        and len(start) == 9
        and start[8:] == b"{"
        and int.from_bytes(start[:8], "little") < 1 << 27
    ):
        return True  # safetensors: the length of its header, then the header, which is JSON
    try:
        check_header(path)
    except InputError:
        return False
    return True
