"""Sets of pairs, a person and a garment: VITON-HD, DressCode, Garments2Look, and a shop's own pairs.csv.

Nothing is trusted by its name: a list is paired if every person of it wears the garment beside it, and
unpaired if none does.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.errors import InputError
from triptych.evaluation.pairs.protocol import Protocol, Setting
from triptych.pictures.images import check_header
from triptych.store.files import digest, parse_json, sha256_file
from triptych.store.text import read_text

NAMES = ("vitonhd", "dresscode", "garments2look")
SOURCES = {
    "vitonhd": "github.com/shadow2496/VITON-HD",
    "dresscode": "github.com/aimagelab/dress-code",
    "garments2look": "huggingface.co/datasets/ArtmeScienceLab/Garments2Look",
}
CATEGORIES = ("upper_body", "lower_body", "dresses")
LIP_TOPS, ATR_WORN = (5, 6, 7), {"upper_body": (4,), "lower_body": (5, 6), "dresses": (7,)}
"""Labels of the garment in VITON-HD's and DressCode's maps."""
_LIST_BYTES = 64 << 20
_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")


@dataclass(frozen=True)
class Pair:
    """A try-on to measure.

    id: names the pair. person: the photo that is redressed. truth: the person in that garment; None if there
    is no such photo. mask: white is repainted. region: where the true photo shows the garment, as a mask
    (`labels` empty: white) or a map with these labels. cloth_mask: the same of the first garment's photo.
    """

    id: str
    person: Path
    garments: tuple[Path, ...]
    truth: Path | None = None
    mask: Path | None = None
    region: Path | None = None
    labels: tuple[int, ...] = ()
    cloth_mask: Path | None = None


@dataclass(frozen=True)
class PairSet:
    """The pairs of one list. truth_sha256: of all its people's photos together, by name and content."""

    setting: Setting
    source: Path
    pairs: tuple[Pair, ...]
    list_sha256: str
    truth_sha256: str = ""

    @property
    def truths(self) -> list[Path]:
        """The photos that the made pictures' distribution is compared with."""
        return [pair.truth or pair.person for pair in self.pairs]


def locate(given: str, work: Path) -> tuple[str, Path]:
    """(layout, folder) of `FOLDER`, `NAME` or `NAME=FOLDER`.

    Raises:
        InputError: no such folder, or its layout is none that is known.
    """
    name, _, where = given.partition("=")
    if name in NAMES and not (where == "" and Path(given).is_dir()):
        folder = Path(where).expanduser() if where else work / "sets" / name
        if not folder.is_dir():
            raise InputError(
                f"There is no folder {folder} with {name}.",
                f"Get it under its own licence ({SOURCES[name]}), and say --pairs {name}=FOLDER.",
            )
        return name, folder
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder.", f"Say --pairs FOLDER, or {'=FOLDER, '.join(NAMES)}=FOLDER."
        )
    return layout_of(folder), folder


def layout_of(folder: Path) -> str:
    """The layout of a folder, by what is in it.

    Raises:
        InputError: none of those that are known.
    """
    if (folder / "pairs.csv").is_file():
        return "plain"
    if any((one / "image").is_dir() and (one / "cloth").is_dir() for one in (folder, folder / "test")):
        return "vitonhd"
    if any((folder / one / "images").is_dir() for one in ("", *CATEGORIES)):
        return "dresscode"
    if any(folder.glob("*_outfit_v*.json")):
        return "garments2look"
    raise InputError(
        f"{folder} is laid out like no set of pairs.",
        "It needs image/ and cloth/ (VITON-HD), images/ (DressCode), *_outfit_v*.json (Garments2Look), or a "
        "pairs.csv with the columns person,garment,truth.",
    )


def read_set(layout: str, folder: Path, setting: Setting, protocol: Protocol, chosen: Path | None) -> PairSet:
    """The pairs of a list, checked: no line twice, no file missing, each person with the right garment, and a
    ground truth of one kind. chosen: the list, if not the protocol's.

    Raises:
        InputError: any of these is wrong.
    """
    reader: dict[str, Callable[[Path, Path], list[Pair]]] = {
        "plain": _plain,
        "vitonhd": _vitonhd,
        "dresscode": _dresscode,
        "garments2look": _garments2look,
    }
    if layout == "garments2look":
        source = chosen or _outfits(folder)
    else:
        source = chosen or _list_of(layout, folder, setting, protocol)
    pairs = reader[layout](folder, source)
    if layout == "vitonhd" and setting == "paired" and not chosen and _is_paired(pairs) is False:
        # VITON-HD comes with a list of swaps alone: papers pair its people with their own garments
        pairs = [_viton_pair(folder, pair.person.name, pair.person.name) for pair in pairs]
    if not pairs:
        raise InputError(f"{source} lists no pair.", "Give another one with --pair-list.")
    _check_twice(pairs, setting, source)
    _check_setting(pairs, setting, source)
    _check_there(pairs)
    found = PairSet(setting, source, tuple(pairs), sha256_file(source, _LIST_BYTES))
    return PairSet(**found.__dict__ | {"truth_sha256": _check_truth(found, protocol)})


def _list_of(layout: str, folder: Path, setting: Setting, protocol: Protocol) -> Path:
    """The protocol's list of that setting. Of VITON-HD's names, `test_pairs.txt` stands for either."""
    names, places = protocol.lists.get(setting, ()), (folder, folder / "test", folder.parent)
    found = [place / name for name in names for place in places if (place / name).is_file()]
    if layout == "vitonhd" and found:
        kinds = {path: _is_paired(_vitonhd(folder, path)) for path in found}
        return next((path for path in found if kinds[path] == (setting == "paired")), found[0])
    if found:
        return found[0]
    if layout == "dresscode":
        parts = [folder / part for part in CATEGORIES if (folder / part).is_dir()]
        found = [part / name for name in names for part in parts if (part / name).is_file()]
        if len(found) == 1:
            return found[0]
    raise InputError(
        f"{folder} has no {setting} list ({', '.join(names) or 'none is known'}).",
        "Give it with --pair-list, or measure another --setting.",
    )


def _is_paired(pairs: Sequence[Pair]) -> bool | None:
    """Whether all pairs are of one item (True), none is (False), or some are (None)."""
    own = [pair.truth is not None for pair in pairs]
    return True if all(own) else False if not any(own) else None


def _check_setting(pairs: Sequence[Pair], setting: Setting, source: Path) -> None:
    paired = _is_paired(pairs)
    if paired is None:
        own = sum(pair.truth is not None for pair in pairs)
        raise InputError(
            f"{source} mixes both kinds: in {own} of {len(pairs)} lines the person wears the garment.",
            "Make two lists of it.",
        )
    if paired != (setting == "paired"):
        wears = "wears the garment beside it" if paired else "wears another garment"
        raise InputError(
            f"{source} is {'paired' if paired else 'unpaired'}: every person {wears}.",
            f"Say --setting {'paired' if paired else 'unpaired'}, or give the right --pair-list.",
        )


def _check_twice(pairs: Sequence[Pair], setting: Setting, source: Path) -> None:
    seen = set[object]()
    for pair in pairs:
        key: object = pair.person if setting == "paired" else (pair.person, pair.garments)
        if key in seen or pair.id in seen:
            raise InputError(f"{source} lists {pair.id} twice.", "Keep one of the lines.")
        seen |= {key, pair.id}


def _check_there(pairs: Sequence[Pair]) -> None:
    needed = {path for pair in pairs for path in (pair.person, *pair.garments, pair.truth) if path}
    if missing := sorted(path for path in needed if not path.is_file()):
        raise InputError(
            f"{len(missing)} of {len(needed)} photos of the list are missing, such as {missing[0]}.",
            "Complete the set, or give a shorter list with --pair-list.",
        )


def _check_truth(found: PairSet, protocol: Protocol) -> str:
    """The hash of the ground truth.

    Raises:
        InputError: it holds a garment's photo, a photo twice, or photos of several aspects.
    """
    truths = sorted({*found.truths})
    garments = {sha256_file(path): path for path in {one for pair in found.pairs for one in pair.garments}}
    hashes = dict[str, Path]()
    for path in truths:
        sha256 = sha256_file(path)
        if sha256 in garments:
            raise InputError(
                f"The ground truth is mixed: {path} is the garment's photo {garments[sha256].name}.",
                "It may hold photos of people alone; check the columns of the list.",
            )
        if sha256 in hashes:
            raise InputError(
                f"The ground truth holds one photo twice: {hashes[sha256]} and {path}.", "Keep one of them."
            )
        hashes[sha256] = path
    sizes = {path: check_header(path) for path in truths}
    width, height = sorted(sizes.values())[len(sizes) // 2]
    for path, (wide, tall) in sizes.items():
        if abs(wide * height / (tall * width) - 1) > protocol.most_stretch:
            raise InputError(
                f"The ground truth is mixed: {path} has {wide}×{tall} px, most have {width}×{height}.",
                "Crop all photos to one aspect, or leave it out of the list.",
            )
    return digest([[path.name, sha256] for sha256, path in hashes.items()])


# --- the layouts


def _lines(source: Path) -> list[list[str]]:
    text = read_text(source, _LIST_BYTES, "The list of pairs", hint="Check the path given to --pair-list.")
    rows = [line.split() for line in text.split("\n") if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or any("/" in name or "\\" in name for name in row):
            raise InputError(
                f"Line {number} of {source} is no pair.",
                "Each line names a person and a garment: a.jpg b.jpg.",
            )
    return rows


def _root(folder: Path) -> Path:
    """The part of VITON-HD that holds `image/` and `cloth/`."""
    return folder if (folder / "image").is_dir() else folder / "test"


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _vitonhd(folder: Path, source: Path) -> list[Pair]:
    return [_viton_pair(folder, person, garment) for person, garment, *_ in _lines(source)]


def _viton_pair(folder: Path, person: str, garment: str) -> Pair:
    root, stem, cloth = _root(folder), Path(person).stem, Path(garment).stem
    photo = root / "image" / person
    return Pair(
        f"{stem}__{cloth}",
        photo,
        (root / "cloth" / garment,),
        truth=photo if stem == cloth else None,
        mask=_first(root / "agnostic-mask" / f"{stem}_mask.png"),
        region=_first(*(root / one / f"{stem}.png" for one in ("image-parse-v3", "image-parse"))),
        labels=LIP_TOPS,
        cloth_mask=_first(*(root / "cloth-mask" / f"{cloth}{end}" for end in _SUFFIXES)),
    )


def _dresscode(folder: Path, source: Path) -> list[Pair]:
    pairs = []
    for person, garment, *rest in _lines(source):
        part = CATEGORIES[int(rest[0])] if rest and rest[0] in ("0", "1", "2") else source.parent.name
        root = folder if (folder / "images").is_dir() else folder / part
        part = root.name if root.name in CATEGORIES else "upper_body"
        for name, end, what in ((person, "_0", "person"), (garment, "_1", "garment")):
            if not Path(name).stem.endswith(end):
                raise InputError(
                    f"{source} names {name} as a {what}: in DressCode those end in {end}.",
                    "The person stands first in a line, the garment second.",
                )
        number, own = Path(person).stem[:-2], Path(person).stem[:-2] == Path(garment).stem[:-2]
        photo = root / "images" / person
        pairs.append(
            Pair(
                f"{part}-{Path(person).stem}__{Path(garment).stem}",
                photo,
                (root / "images" / garment,),
                truth=photo if own else None,
                mask=_first(root / "agnostic_masks" / f"{number}_0.png"),
                region=_first(root / "label_maps" / f"{number}_4.png"),
                labels=ATR_WORN[part],
            )
        )
    return pairs


def _outfits(folder: Path) -> Path:
    """The newest list of outfits."""
    found = sorted(folder.glob("*_outfit_v*.json"))
    if len({path.name.partition("_")[0] for path in found}) > 1:
        raise InputError(
            f"{folder} holds the outfits of {len(found)} sources.", f"Choose one: --pair-list {found[0]}."
        )
    if not found:
        raise InputError(f"{folder} has no *_outfit_v*.json.", "It is Garments2Look's list of outfits.")
    return found[-1]


def _garments2look(folder: Path, source: Path) -> list[Pair]:
    shop = source.name.partition("_")[0]
    images = sorted(folder.glob(f"{shop}_image_v*.json"))
    if not images:
        raise InputError(f"{folder} has no {shop}_image_v*.json.", "It lists the garments' photos.")
    try:
        outfits, photos = (parse_json(path.read_text(encoding="utf-8")) for path in (source, images[-1]))
        rows = {key: row for key, row in outfits.items() if row.get("section") == "test"}
        return [_outfit(folder / shop, key, row, photos) for key, row in rows.items()]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{source} is no list of outfits: {error}.", "Download it again.") from error


def _outfit(root: Path, key: str, row: dict, photos: dict) -> Pair:
    gender = str(row.get("gender", "unknown"))
    looks = [root / "looks-resized" / gender / f"{key}{end}" for end in (".png", ".jpg")]
    look = _first(*looks) or looks[0]
    garments = []
    for name in map(str, row.get("outfit") or ()):
        about = photos.get(name) or {}
        full = ((about.get("images") or {}).get("product") or {}).get("full") or []
        places = [root / "images" / name / full[0]] if full else []
        places.append(root / "images" / gender / str(about.get("type", "")) / f"{name}.jpg")
        garments += [path for path in places if path.is_file()][:1]
    notes = root / "annotations"
    mask = _first(
        notes / "mask-v3-look-resized" / gender / f"{key}.png",
        notes / "mask-sam3-resized" / gender / key / "merged_mask.png",
    )
    return Pair(re.sub(r"[^\w.-]", "-", key), look, tuple(garments), truth=look, mask=mask, region=mask)


def _plain(folder: Path, source: Path) -> list[Pair]:
    text = read_text(source, _LIST_BYTES, "The list of pairs", hint="Check the path given to --pair-list.")
    known = {"person", "garment", "truth", "mask", "region", "cloth_mask", "id"}
    rows = list(csv.DictReader(io.StringIO(text)))
    header = set(rows[0]) if rows else set()
    if not {"person", "garment"} <= header or not header <= known:
        raise InputError(
            f"{source} has other columns than {', '.join(sorted(known))}.",
            "Give person and garment, and for paired measurements truth.",
        )
    pairs = []
    for row in rows:
        paths = {
            name: source.parent / value.strip()
            for name, value in row.items()
            if name != "id" and value and value.strip()
        }
        if not {"person", "garment"} <= paths.keys():
            raise InputError(f"A line of {source} lacks person or garment.", "Each line needs both.")
        name = (row.get("id") or "").strip() or f"{paths['person'].stem}__{paths['garment'].stem}"
        photos = paths["person"], (paths["garment"],)
        mask, region, cloth = (paths.get(one) for one in ("mask", "region", "cloth_mask"))
        pairs.append(Pair(name, *photos, paths.get("truth"), mask, region, cloth_mask=cloth))
    return pairs
