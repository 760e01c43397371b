"""clean, concat and init on folders as they come: copies, links, raw files, many garments in one folder, odd
names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_clean import Counting, draw, labels
from triptych.cli import main
from triptych.data.catalogue import read_photos
from triptych.errors import InputError, WorkError
from triptych.store.files import read_jsonl
from triptych.verbs.caption import CaptionConfig, caption
from triptych.verbs.clean import CleanConfig, clean
from triptych.verbs.concat import ConcatConfig, concat
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.init import InitConfig, init
from triptych.vision import features


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr(features, "load_extractor", lambda name: counting.extractor)
    return counting


@pytest.fixture
def shop(tmp_path: Path, counting: Counting) -> CleanConfig:
    """Two items of two garments and a human, and five examples of each."""
    for number in range(5):
        draw(tmp_path / f"human/{number}.png", True, 100 + number)
        draw(tmp_path / f"garment/{number}.png", False, 100 + number)
    for number in range(2):
        draw(tmp_path / f"photos/item{number}/IMG_11.png", True, number)
        draw(tmp_path / f"photos/item{number}/IMG_12.png", False, 10 + number)
        draw(tmp_path / f"photos/item{number}/IMG_13.png", False, 20 + number)
    return CleanConfig(
        photos=tmp_path / "photos",
        human=tmp_path / "human",
        garment=tmp_path / "garment",
        work=tmp_path / "work",
    )


def concat_config(shop: CleanConfig, **options: object) -> ConcatConfig:
    return ConcatConfig(
        work=shop.work, **{"model": "pocket", "panel_width": 48, "panel_height": 72} | options
    )


def shrink(path: Path, name: str, factor: float = 0.6) -> None:
    with Image.open(path) as image:
        image.resize(
            (round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS
        ).save(path.with_name(name))


def reasons(shop: CleanConfig) -> dict[str, str]:
    return {
        Path(row.path).name: row.reason
        for row in read_photos(shop.catalogue_folder / "photos.jsonl")
        if row.reason
    }


# --- Copies
# ------------------------------------------------------------------------------------------------------------


def test_resized_copies_count_once_and_never_become_the_back(shop: CleanConfig, tmp_path: Path) -> None:
    item = tmp_path / "photos/item0"
    for name in ("IMG_12", "IMG_11"):
        shrink(item / f"{name}.png", f"{name}-58x77.png")
        shrink(item / f"{name}.png", f"{name}_small.jpg", 0.8)
    summary = clean(shop).finish()
    assert reasons(shop) == {
        "IMG_12-58x77.png": "smaller copy of IMG_12.png",
        "IMG_12_small.jpg": "smaller copy of IMG_12.png",
        "IMG_11-58x77.png": "smaller copy of IMG_11.png",
        "IMG_11_small.jpg": "smaller copy of IMG_11.png",
    }
    assert summary["reasons"] == {"smaller copy": 4}
    assert concat(concat_config(shop)).finish()["triptychs"] == 2
    for row in read_jsonl(shop.work / "triptychs/metadata.jsonl"):
        assert {Path(row["front"]).name, Path(row["back"]).name} == {"IMG_12.png", "IMG_13.png"}


def test_the_users_word_wins_over_size_and_over_equal_bytes(shop: CleanConfig, tmp_path: Path) -> None:
    item = tmp_path / "photos/item0"
    shrink(item / "IMG_12.png", "web.png")
    shutil.copy(item / "IMG_13.png", item / "A_copy.png")
    shop.catalogue_folder.mkdir(parents=True)
    (shop.catalogue_folder / "overrides.txt").write_text("item0/web.png front\nitem0/IMG_13.png back\n")
    clean(shop).finish()
    assert reasons(shop) == {
        "web.png": "override: front",
        "IMG_12.png": "copy of web.png",
        "IMG_13.png": "override: back",
        "A_copy.png": "duplicate of IMG_13.png",
    }


# --- What is no photo
# ---------------------------------------------------------------------------------------------------


def test_raw_files_beside_their_photos(shop: CleanConfig, tmp_path: Path) -> None:
    item = tmp_path / "photos/item0"
    small, big = (Image.open(item / "IMG_12.png").resize(size) for size in ((24, 32), (96, 128)))
    small.save(item / "IMG_12.NEF", format="TIFF", tiffinfo={254: 1}, save_all=True, append_images=[big])
    (item / "IMG_13.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    clean(shop).finish()
    assert reasons(shop)["IMG_12.NEF"] == "camera RAW: export as JPEG"
    assert reasons(shop)["IMG_13.HEIC"].startswith("HEIC: export as JPEG")


@pytest.mark.parametrize("name", ["clip.mp4", "IMG_99.jpg", "zeros.jpg"])
def test_a_huge_file_is_not_read_to_its_end(name: str, shop: CleanConfig, tmp_path: Path) -> None:
    path = tmp_path / "photos/item0" / name
    if name != "zeros.jpg":
        path.write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2")
    with path.open("ab") as file:
        file.truncate(8 << 30)  # sparse
    started = time.monotonic()
    clean(shop).finish()
    assert time.monotonic() - started < 8, "reading it takes a minute"
    assert labels(shop)[f"item0/{name}"] == "rejected"


def test_links_in_a_circle_end_nothing(shop: CleanConfig, tmp_path: Path) -> None:
    (tmp_path / "photos/item0/l.jpg").symlink_to("l.jpg")
    (tmp_path / "photos/item2").symlink_to("item2")
    (tmp_path / "human/loop.jpg").symlink_to("loop.jpg")
    summary = clean(shop).finish()
    assert (summary["human"], summary["garment"], summary["reasons"]) == (2, 4, {"broken link": 2})


def test_photos_that_are_all_links_say_how_to_copy_them(
    shop: CleanConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").rename(tmp_path / "blobs")
    for path in sorted((tmp_path / "blobs").rglob("*.png")):
        link = tmp_path / "photos" / path.relative_to(tmp_path / "blobs")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    run = clean(shop)
    summary = run.finish()
    assert run.failed == 6
    assert "All 6 photos are links" in summary["next"] and "cp -rL" in summary["next"]
    with pytest.raises(WorkError, match="All 6 photos are links") as caught:
        concat(concat_config(shop))
    assert "cp -rL" in caught.value.hint
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--photos", "photos", "--out", "c.yaml"]) == 1
    assert "All 6 photos are links" in capsys.readouterr().err
    words = ["--human", "human", "--garment", "garment", "--work", "work"]
    assert main(["clean", "--photos", "photos", *words]) == 1
    assert "cp -rL" in capsys.readouterr().err
    subprocess.run(["cp", "-rL", "photos", "copy"], check=True)
    assert main(["clean", "--photos", "copy", *words]) == 0


def test_no_usable_photo_is_no_success(shop: CleanConfig, tmp_path: Path) -> None:
    for path in (tmp_path / "photos").rglob("*.png"):
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    run = clean(shop)
    assert "6 × HEIC" in run.finish()["next"] and run.failed == 6
    with pytest.raises(WorkError, match="6 × HEIC"):
        concat(concat_config(shop))


def test_items_without_a_person_are_no_success(shop: CleanConfig, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"photos/item{number}/IMG_11.png").unlink()
    clean(shop).finish()
    run = concat(concat_config(shop))
    summary = run.finish()
    assert run.failed == 2 and "concat.rejects.jsonl" in summary["next"]
    assert summary["reasons"] == {"no photo of a person wearing it": 2}
    with pytest.raises(WorkError, match="2 × no photo of a person wearing it"):
        caption(CaptionConfig(work=shop.work, model="pocket", vlm_model="pocket"))
    with pytest.raises(WorkError, match="2 × no photo of a person wearing it"):
        embed(EmbedConfig(work=shop.work, model="pocket"))


# --- Whose photo is it?
# -------------------------------------------------------------------------------------------------


def test_a_folder_of_many_garments_makes_no_triptychs(
    shop: CleanConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        draw(tmp_path / f"photos/tops/{number}9_0.png", True, 30 + number)
        draw(tmp_path / f"photos/tops/{number}9_1.png", False, 30 + number)
    summary = clean(shop).finish()
    assert (
        summary["unsure"] == 5
        and "1 items seem to hold several garments" in summary["next"]
        and "tops" in summary["next"]
    )
    made = concat(concat_config(shop)).finish()
    assert made["triptychs"] == 2 and made["reasons"] == {"its item seems to hold several garments": 1}
    (shop.catalogue_folder / "overrides.txt").write_text("tops/19_1.png front\ntops/29_1.png back\n")
    clean(shop).finish()
    assert concat(concat_config(shop)).finish()["items"] == 3


def test_strays_are_told(shop: CleanConfig, tmp_path: Path) -> None:
    (tmp_path / "photos").rename(tmp_path / "coats")
    (tmp_path / "photos").mkdir()
    (tmp_path / "coats").rename(tmp_path / "photos/coats")
    draw(tmp_path / "photos/coats/sizechart.png", False, 9)
    summary = clean(shop).finish()
    assert summary["items"] == 2 and summary["reasons"] == {"not in an item folder": 1}
    assert "Does coats/sizechart.png belong to an item? It lies beside folders of items" in summary["next"]
    for number in range(4):
        draw(tmp_path / f"photos/coats/more{number}.png", False, 20 + number)
    asked = clean(shop).finish()["next"]
    assert "Do these 5 photos belong to items: coats/more0.png, coats/more1.png, coats/more2.png, …?" in asked


# --- Contact sheets
# -----------------------------------------------------------------------------------------------------


def test_the_sheet_says_what_is_front_and_back_and_by_whom(shop: CleanConfig, tmp_path: Path) -> None:
    (tmp_path / "photos/item1/IMG_12.png").rename(tmp_path / "photos/item1/IMG_12_front.png")
    item = tmp_path / "photos/Überwurf 服\x1b[31m"
    (tmp_path / "photos/item0").rename(item)
    summary = clean(shop).finish()
    listing = (shop.catalogue_folder / "contact_sheet.txt").read_text(encoding="utf-8")
    assert "\x1b" not in listing
    lines = [line.split("\t") for line in listing.splitlines()[1:]]
    assert [line[0] for line in lines] == [str(number) for number in range(1, 7)]
    lines = [
        [line[0], line[1].strip('"'), line[2]] for line in lines
    ]  # a name with an escape is written as JSON
    told = {
        Path(path).name if "item1" in path else f"x/{Path(path).name}": verdict.split("; ")[-1]
        for _, path, verdict in lines
    }
    assert told["IMG_12_front.png"] == "front: by its name" and told["IMG_13.png"] == "back: by its name"
    assert told["x/IMG_12.png"] == "front: a guess" and told["x/IMG_13.png"] == "back: a guess"
    assert "guess in 1 item:" in summary["next"] and "overrides.txt" in summary["next"]
    assert "guess" in concat(concat_config(shop)).finish()["next"]


# --- init sees what clean sees
# ------------------------------------------------------------------------------------------


def test_init_and_clean_agree(shop: CleanConfig, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    draw(photos / "gif/a.png", False, 40)
    with Image.open(photos / "gif/a.png") as image:
        image.save(photos / "gif/b.gif")
        image.convert("RGB").resize((48, 60)).save(photos / "gif/c.jfif", "JPEG")
    (photos / "gif/a.png").unlink()
    draw(photos / "coats/i1/1x.png", False, 41)
    draw(photos / "coats/i2/2x.png", False, 42)
    draw(photos / "coats/stray.png", False, 43)
    draw(tmp_path / "outside/o.png", False, 44)
    (photos / "links").mkdir()
    (photos / "links/o.png").symlink_to(tmp_path / "outside/o.png")
    (photos / "item0/clip.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2")
    draw(photos / "item0/@eaDir/t.png", False, 45)
    looked = init(
        InitConfig(
            photos=photos, human=shop.human, garment=shop.garment, work=shop.work, out=tmp_path / "c.yaml"
        )
    ).finish()
    cleaned = clean(shop).finish()
    assert looked["photos"] == cleaned["photos"] - cleaned["rejected"] == 10
    assert looked["reasons"] == cleaned["reasons"]
    assert (
        looked["items"]
        == len(
            {
                row.item
                for row in read_photos(shop.catalogue_folder / "photos.jsonl")
                if row.label != "rejected"
            }
        )
        == 5
    )


@pytest.mark.parametrize(
    ("human", "garment"), [("human", "human"), (".", "garment"), ("human", "human/../human")]
)
def test_examples_that_lie_in_each_other_are_refused(
    human: str, garment: str, shop: CleanConfig, tmp_path: Path
) -> None:
    folders = {"human": tmp_path / human, "garment": tmp_path / garment}
    with pytest.raises(InputError, match=r"--human|--garment"):
        init(InitConfig(photos=shop.photos, out=tmp_path / "c.yaml", **folders))
    with pytest.raises(InputError, match=r"--human|--garment"):
        clean(shop.model_copy(update=folders))


def test_init_without_photos_asks_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 1
    assert "Give --photos" in capsys.readouterr().err


CLOSED = """
import os, sys
from pathlib import Path
from PIL import Image
import triptych.verbs.init as module
from triptych.data.photo_folders import refusal, scan
from triptych.tasks import DEFAULT
root = Path(sys.argv[1])
module.write_text = lambda path, text: None
Image.init()
config = module.InitConfig(photos=root, out=root / "c.yaml")  # pydantic reads files when the first is made
os.setgid(65534), os.setuid(65534)
summary = module.init(config).finish()
found = scan(root, DEFAULT.photo_roles)
refused = [refusal(root, item, path) for item, path in found if path.name == "item0"]
print(summary["photos"], summary["reasons"], refused)
"""


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become somebody else"
)
def test_a_folder_that_may_not_be_read_is_told_and_the_rest_goes_on() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        draw(root / "item0/a.png", False, 1)
        draw(root / "item1/b.png", False, 2)
        (root / "item0").chmod(0o000)
        done = subprocess.run(
            [sys.executable, "-c", CLOSED, folder], capture_output=True, text=True, check=False
        )
        assert done.stdout == "1 {'folder that cannot be read': 1} ['folder that cannot be read']\n", (
            done.stderr
        )


# --- Memory
# ------------------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys, numpy as np
from pathlib import Path
from triptych.pictures.images import load_image, load_original
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_image(Path(sys.argv[1]), longest=512)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(("kind", "decoded_mb"), [("grey16", 32), ("float", 64), ("alpha", 64)])
def test_deep_pictures_take_no_gigabytes(kind: str, decoded_mb: int, tmp_path: Path) -> None:
    """16 megapixels, 4000 × 4000; the largest allowed take four times that."""
    path = tmp_path / ("a.tif" if kind == "float" else "a.png")
    if kind == "alpha":
        Image.new("RGBA", (4000, 4000), (200, 100, 50, 128)).save(path, compress_level=1)
    else:
        ramp = np.tile(np.linspace(0, 1, 4000, dtype=np.float32), (4000, 1))
        Image.fromarray(ramp if kind == "float" else (ramp * 65535).astype(np.uint16)).save(path)
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2.2 * decoded_mb + 40, json.dumps(
        {"peak": done.stdout, "decoded": decoded_mb}
    )
