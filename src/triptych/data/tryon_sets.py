"""Reads the layouts of try-on data sets: VITON-HD, DressCode and Garments2Look.

Each becomes items: photos of garments, one of a person who wears them, and whether the set's own lists keep
the item for testing. An item is one for testing if any list for testing names its person or one of its
garments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import InputError
from triptych.pictures.images import SUFFIXES
from triptych.store.files import parse_json, read_text

PARTS = ("upper_body", "lower_body", "dresses")
"""DressCode's folders, in the order of the numbers in its lists."""
_MOST_BYTES = 256 << 20
_TYPES = (
    ("shoes", "shoe|boot|sneaker|sandal|heel|loafer|footwear|pump|flats"),
    ("bag", r"\bbag|handbag|purse|clutch|backpack|tote"),
    ("bottom", "pant|trouser|jean|skirt|short|legging|bottom"),
    ("top", "top|shirt|blouse|sweater|jacket|coat|knit|hoodie|cardigan|dress|vest|blazer|suit|jumpsuit"),
)
"""Words of a garment's type in Garments2Look, and the role of the outfit task that they mean."""


@dataclass(frozen=True)
class SetItem:
    """An item of a set. garments: photo by role. missing: files that the set names and does not have."""

    name: str
    garments: dict[str, Path]
    worn: Path
    test: bool
    missing: tuple[str, ...] = ()


def set_kind(folder: Path) -> str:
    """viton-hd, dresscode or garments2look, by what lies in a folder; "" for anything else."""
    if any((one / "image").is_dir() and (one / "cloth").is_dir() for one in (folder, *_splits(folder))):
        return "viton-hd"
    if any((folder / part / "images").is_dir() for part in PARTS):
        return "dresscode"
    return "garments2look" if any(folder.glob("*_outfit_v*.json")) else ""


def read_items(folder: Path, kind: str) -> list[SetItem]:
    """All items of a set, in the order of their names.

    Raises:
        InputError: a list that cannot be read, or no item.
    """
    found = {"viton-hd": _viton_hd, "dresscode": _dresscode, "garments2look": _garments2look}[kind](folder)
    items = sorted(found, key=lambda item: item.name)
    if not items:
        raise InputError(f"{folder} is laid out like {kind}, and has no item.", "Is it complete?")
    return items


def _splits(folder: Path) -> list[Path]:
    return [folder / name for name in ("train", "test") if (folder / name).is_dir()]


def _photos(folder: Path) -> dict[str, Path]:
    """{name without ending: photo}."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.stem: path for path in files if path.suffix.lower() in SUFFIXES and path.is_file()}


def _tested(folder: Path) -> set[str]:
    """All names that the lists for testing in a folder have, without ending."""
    names: set[str] = set()
    for path in sorted(folder.glob("test_*pair*.txt")):
        text = read_text(path, _MOST_BYTES, "The list of pairs")
        for line in text.split("\n"):
            names |= {Path(word).stem for word in line.split()[:2]}
    return names


def _viton_hd(folder: Path) -> Iterator[SetItem]:
    """`image/N.jpg` wears `cloth/N.jpg`, in `train/` and `test/`, or in one folder without lists."""
    for root in _splits(folder) or [folder]:
        people, cloths = _photos(root / "image"), _photos(root / "cloth")
        tested = _tested(folder) | _tested(root)
        for name, worn in people.items():
            test = root.name == "test" or name in tested
            garments = {"front": cloths[name]} if name in cloths else {}
            yield SetItem(name, garments, worn, test, () if garments else (f"cloth/{name}",))


def _dresscode(folder: Path) -> Iterator[SetItem]:
    """`images/N_0.jpg` wears `images/N_1.jpg`, in a folder for each part of the body."""
    for part in PARTS:
        photos = _photos(folder / part / "images")
        tested = _tested(folder / part) | {
            name for name in _tested(folder) if not (folder / part / "test_pairs_paired.txt").is_file()
        }
        for stem, worn in photos.items():
            if not stem.endswith("_0"):
                continue
            cloth = photos.get(f"{stem[:-2]}_1")
            garments = {"front": cloth} if cloth else {}
            test = stem in tested or f"{stem[:-2]}_1" in tested
            missing = () if cloth else (f"{part}/images/{stem[:-2]}_1",)
            yield SetItem(f"{part}__{stem[:-2]}", garments, worn, test, missing)


def _garments2look(folder: Path) -> Iterator[SetItem]:
    """`SHOP_outfit_v*.json` lists looks and their garments, `SHOP_image_v*.json` the garments' photos."""
    shops = {path.name.partition("_outfit_v")[0] for path in folder.glob("*_outfit_v*.json")}
    for shop in sorted(shops):
        outfits = _table(sorted(folder.glob(f"{shop}_outfit_v*.json")))
        photos = _table(sorted(folder.glob(f"{shop}_image_v*.json")))
        tested = {
            str(name)
            for row in outfits.values()
            if _section(row) != "train"
            for name in _words(row.get("outfit"))
        }
        for key, row in outfits.items():
            yield _outfit(folder / shop, shop, key, row, photos, tested)


def _outfit(
    root: Path, shop: str, key: str, row: dict[str, Any], photos: dict[str, Any], tested: set[str]
) -> SetItem:
    gender = str(row.get("gender", "unknown"))
    names = _words(row.get("outfit"))
    garments, missing = dict[str, Path](), list[str]()
    for name in names:
        about = photos.get(name)
        about = about if isinstance(about, dict) else {}
        kind = str(about.get("type", "")).lower()
        role = next((role for role, words in _TYPES if re.search(words, kind)), "")
        if role and role not in garments:
            path = _first(_garment_places(root, gender, name, about))
            if path is None:
                missing.append(name)
            else:
                garments[role] = path
    places = [root / "looks-resized" / gender / f"{key}{end}" for end in (".png", ".jpg")]
    worn = _first(places)
    if worn is None:
        missing.append(f"{key} (the look)")
    test = _section(row) != "train" or not tested.isdisjoint(names)
    clean = re.sub(r"[^\w.-]+", "-", f"{shop}__{key}").lstrip(".")
    return SetItem(clean, garments if worn else {}, worn or places[0], test, tuple(missing))


def _garment_places(root: Path, gender: str, name: str, about: dict[str, Any]) -> list[Path]:
    images = about.get("images")
    product = images.get("product") if isinstance(images, dict) else None
    full = _words(product.get("full")) if isinstance(product, dict) else []
    places = [root / "images" / name / full[0]] if full else []
    return [*places, root / "images" / gender / str(about.get("type", "")) / f"{name}.jpg"]


def _section(row: dict[str, Any]) -> str:
    return str(row.get("section", "train"))


def _words(value: Any) -> list[str]:
    """Plain names of a list; none that would leave its folder."""
    names = [str(one) for one in value] if isinstance(value, list) else []
    return [
        name for name in names if ".." not in name and not name.startswith(("/", "\\")) and "\0" not in name
    ]


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _table(paths: list[Path]) -> dict[str, Any]:
    """The rows of the newest of several JSON files, by key."""
    if not paths:
        return {}
    try:
        table = parse_json(read_text(paths[-1], _MOST_BYTES, "The list"), _MOST_BYTES)
        rows = {str(key): row for key, row in table.items() if isinstance(row, dict)}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{paths[-1]} is no list of outfits or photos: {error}.", "Get it anew.") from error
    return {key: row for key, row in rows.items() if key and "/" not in key and ".." not in key}
