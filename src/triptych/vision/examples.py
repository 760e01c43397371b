"""The examples that `clean` learns from: two folders of photos, one of people and one of garments."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from triptych.data.photo_folders import is_managed, natural
from triptych.errors import InputError
from triptych.pictures.images import BadImage, sha256_photo
from triptych.vision.classifier import MIN_EXAMPLES


def given_folder(folder: Path | None, option: str, what: str) -> Path:
    """Check the folder given by an option, and return it.

    Raises:
        InputError: no folder is given, or it is not a folder.
    """
    if folder is None or not str(folder).strip():
        raise InputError(f"No folder given for --{option}.", f"Give a folder of {what}.")
    if not folder.is_dir():
        raise InputError(
            f"The folder {folder} given for --{option} does not exist or is not a folder.",
            f"Give a folder of {what}.",
        )
    return folder


def read_examples(human: Path | None, garment: Path | None) -> dict[str, tuple[Path, str]]:
    """{sha256: (path, "human" | "garment")} of all example files that look like images.

    Raises:
        InputError: a folder is missing or has too few examples, or a photo is an example of both kinds.
    """

    examples: dict[str, tuple[Path, str]] = {}
    for option, named in (("human", human), ("garment", garment)):
        folder = given_folder(
            named,
            option,
            f"photos that show {'a person' if option == 'human' else 'a garment alone'}",
        )
        count = 0
        refused: Counter[str] = Counter()
        for path in sorted(folder.rglob("*"), key=lambda path: natural(str(path))):
            if path.is_dir() or any(
                part.startswith(".") or is_managed(part) for part in path.relative_to(folder).parts
            ):
                continue
            try:
                key = sha256_photo(path)
            except BadImage as error:
                refused[error.reason] += 1
                continue
            except OSError:
                refused["it may not be read"] += 1
                continue
            if examples.get(key, (path, option))[1] != option:
                other = examples[key][0]
                raise InputError(
                    f"{path} is the same photo as {other}, an example of the other kind.",
                    "Delete one of the two.",
                )
            examples.setdefault(key, (path, option))
            count += 1
        if count < MIN_EXAMPLES:
            what = "no photos" if count == 0 else f"only {count} photos"
            hint = f"At least {MIN_EXAMPLES} are needed; a few dozen make a good classifier."
            others = (
                f" ({'; '.join(f'{n} × {reason}' for reason, n in refused.most_common(3))})"
                if refused
                else ""
            )
            raise InputError(f"There are {what} in {folder} given for --{option}{others}.", hint)
    return examples
