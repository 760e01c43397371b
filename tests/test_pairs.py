"""`evaluate --pairs` where the answers are known: rendered pairs laid out as VITON-HD, a fault at a time."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.rendered_pairs import COUNT, FAULTS, name, true_photo, write_made, write_viton
from triptych.errors import ConfigError, InputError, ModelError
from triptych.evaluation.pairs.protocol import FOLDER, read_protocol
from triptych.evaluation.pairs.sets import layout_of, locate, read_set
from triptych.verbs.evaluate import EvaluateConfig, evaluate


def small(path: Path) -> Path:
    """VITON-HD's protocol at the pictures' own size."""
    text = (FOLDER / "vitonhd.yaml").read_text().replace("width: 768", "width: 0")
    path.write_text(text.replace("height: 1024", "height: 0"))
    return path


@pytest.fixture(scope="module")
def viton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_viton(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def measured(viton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All faults in one run, each as a folder of made pictures."""
    folder = tmp_path_factory.mktemp("made")
    made = [f"{fault}={write_made(viton, folder / fault, fault)}" for fault in FAULTS]
    protocol, out = small(folder / "protocol.yaml"), folder / "out"
    config = EvaluateConfig(pairs=str(viton), made=made, protocol=protocol, allow_small=True, out=out)
    summary = evaluate(config).finish()
    assert summary["perfect paired"]["passed"] == f"{COUNT} of {COUNT} items"
    return out


def figures(out: Path, fault: str) -> dict[str, dict[str, Any]]:
    report = json.loads((out / "pairs.json").read_text())
    return {row["measure"]: row for row in report["made"][fault]["paired"]["figures"]}


def test_a_perfect_set_scores_as_it_must(measured: Path) -> None:
    found = figures(measured, "perfect")
    exact = {"ssim": 1, "garment": 1, "colour": 0, "sharpness": 1, "outside": 0, "fid": 0}
    for measure, value in exact.items():
        assert found[measure]["value"] == pytest.approx(value, abs=1e-4), measure
        assert found[measure]["n"] == COUNT
    assert found["kid"]["value"] < 0, "unbiased: of equal sets it is below 0"
    for measure in ("fid", "kid", "garment"):
        assert found[measure]["sha256"].startswith("579344248a93"), measure
        assert "efficientnet-lite0" in found[measure]["network"]
    assert found["fid"]["name"] == "FID (efficientnet-lite0)"
    assert "no weights" in found["lpips"]["not_measured"] and "no weights" in found["dists"]["not_measured"]


FAILS = {
    "colour": {"colour"},
    "pattern": {"garment"},
    "blur": {"sharpness"},
    "moved": {"outside"},
    "swapped": {"colour", "outside"},
}
"""What each fault makes fail in every item; nothing else may fail in any. Pictures of other
people may fail in more.
"""


@pytest.mark.parametrize("fault", FAILS)
def test_a_planted_fault_fails_in_its_measure_and_in_no_other(measured: Path, fault: str) -> None:
    with (measured / "pairs-items.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["made"] == fault]
    assert len(rows) == COUNT
    for row in rows:
        failed = set(row["fails"].split())
        allowed = FAILS[fault] | ({"ssim", "garment", "sharpness"} if fault == "swapped" else set())
        assert FAILS[fault] <= failed <= allowed, (fault, row)
        assert row["passed"] == "no"


def test_distributions_do_not_see_a_wrong_pairing_and_see_what_is_wrong_with_all(measured: Path) -> None:
    assert figures(measured, "swapped")["fid"]["value"] == pytest.approx(0, abs=1e-4)
    assert figures(measured, "swapped")["ssim"]["value"] < 0.8
    for fault in ("colour", "pattern", "moved"):
        assert figures(measured, fault)["fid"]["value"] > 1, fault
    report = json.loads((measured / "pairs.json").read_text())
    (change,) = [
        row
        for row in report["differences"]["paired"]
        if (row["of"], row["less"], row["measure"]) == ("colour", "perfect", "colour")
    ]
    assert change["low"] > 5 and change["n"] == COUNT


def test_the_report_says_what_it_follows_from(measured: Path) -> None:
    text = (measured / "pairs.md").read_text()
    for word in (
        "sha256 579344248a93",
        "n = 4",
        "FID (efficientnet-lite0)",
        "test_pairs.txt",
        "protocol.yaml",
    ):
        assert word in text, word
    assert "Published figures do not stand here" in text and "8.20" not in text
    with Image.open(measured / "worst-pattern-paired.png") as sheet:
        assert sheet.width > 900 and len(set(sheet.convert("RGB").resize((60, 40)).getdata())) > 100


def viton_copy(viton: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(viton, tmp_path / "viton"))


def run(root: Path, made: Path, **options: Any) -> dict[str, Any]:
    given = {"pairs": str(root), "made": [str(made)], "out": made.parent / "out"} | options
    return evaluate(EvaluateConfig(**given)).finish()


def test_wrong_lists_are_refused(viton: Path, tmp_path: Path) -> None:
    protocol, lists = read_protocol(None, "vitonhd"), tmp_path / "list.txt"

    def refused(lines: list[str], setting: Any, match: str, root: Path = viton) -> None:
        lists.write_text("\n".join(lines))
        with pytest.raises(InputError, match=match):
            read_set("vitonhd", root, setting, protocol, lists)

    own = [f"{name(n)}.jpg {name(n)}.jpg" for n in range(3)]
    swapped = [f"{name(n)}.jpg {name(n + 1)}.jpg" for n in range(3)]
    refused(swapped, "paired", "is unpaired: every person wears another")
    refused(own, "unpaired", "is paired: every person wears the garment")
    refused([own[0], swapped[1]], "paired", "mixes both kinds: in 1 of 2")
    refused([own[0], own[0]], "paired", "lists 00000_00__00000_00 twice")
    refused([swapped[0], swapped[0]], "unpaired", "twice")
    refused(["99_00.jpg 99_00.jpg"], "paired", "2 of 2 photos of the list are missing")
    refused(["one"], "paired", "Line 1")
    refused(["../a.jpg b.jpg"], "paired", "Line 1")
    root = viton_copy(viton, tmp_path)
    image = root / "test" / "image"
    shutil.copy(image / f"{name(0)}.jpg", image / f"{name(1)}.jpg")
    refused(own, "paired", "holds one photo twice", root)
    shutil.copy(root / "test" / "cloth" / f"{name(2)}.jpg", image / f"{name(1)}.jpg")
    refused(own, "paired", "is mixed: .* is the garment's photo", root)
    true_photo(viton, 1).resize((192, 192)).save(image / f"{name(1)}.jpg")
    refused(own, "paired", "is mixed: .* has 192×192 px", root)


def test_wrong_folders_and_options_are_refused(viton: Path, tmp_path: Path) -> None:
    made = write_made(viton, tmp_path / "made", "perfect")
    (made / f"{name(3)}.png").unlink()
    with pytest.raises(InputError, match="1 of 4 paired pictures are missing"):
        run(viton, made)
    with pytest.raises(InputError, match="folder of the set itself"):
        run(viton, viton / "test" / "image", out=tmp_path)
    with pytest.raises(InputError, match="4 of 4 paired pictures are missing"):
        run(viton, made, setting="both")  # named for the person alone, they could be either
    shutil.copy(made / f"{name(2)}.png", made / f"{name(2)}.jpg")
    with pytest.raises(InputError, match="holds 2 pictures called 00002_00"):
        run(viton, made)
    with pytest.raises(ConfigError, match="--items has no effect with --pairs"):
        run(viton, made, items=12)
    with pytest.raises(ConfigError, match="--made has no effect without --pairs"):
        evaluate(EvaluateConfig(made=["x"], pocket=True))
    with pytest.raises(ConfigError, match="No made pictures"):
        evaluate(EvaluateConfig(pairs=str(viton)))
    with pytest.raises(InputError, match=r"There is no folder .*sets/vitonhd with vitonhd"):
        locate("vitonhd", tmp_path)
    with pytest.raises(InputError, match="laid out like no set"):
        layout_of(tmp_path)
    (tmp_path / "p.yaml").write_text((FOLDER / "plain.yaml").read_text().replace('">= 0.8"', '"0.8"'))
    with pytest.raises(ConfigError, match=r"'text: 0.8' is no threshold"):
        read_protocol(tmp_path / "p.yaml", "plain")
    whole = write_made(viton, tmp_path / "whole", "perfect")
    with pytest.raises(ModelError, match="is no file"):
        run(viton, whole, lpips_weights=tmp_path / "none.safetensors")


def test_few_pictures_give_no_fid_and_unpaired_ones_are_held_against_the_garment(
    viton: Path, tmp_path: Path
) -> None:
    """Unpaired, from the results.csv of a batch whose file was written here."""
    batch, made = tmp_path / "batch.csv", tmp_path / "made"
    summary = run(viton, made, setting="unpaired", write_batch=batch)
    assert summary["lines"] == COUNT and "tryon --batch" in summary["next"]
    lines = list(csv.DictReader(batch.open()))
    assert lines[0]["id"] == f"{name(0)}__{name(1)}"
    assert all(Path(line[one]).is_file() for line in lines for one in ("person", "front", "mask"))
    made.mkdir()
    for number in range(COUNT):
        true_photo(viton, number).save(made / f"p{number}.png")
    rows = [f"{line['id']},0,made,p{number}.png," for number, line in enumerate(lines)]
    (made / "results.csv").write_text("\n".join(["id,seed,status,picture,reason", *rows]) + "\n")
    words = run(viton, made, setting="unpaired", protocol=small(tmp_path / "p.yaml"))["made unpaired"]
    assert words["FID (efficientnet-lite0)"].startswith(
        "not measured: FID of 4 pictures says too little: 1000"
    )
    assert "SSIM" not in words and float(words["colour ΔE00"].split()[0]) > 15, "they wear their own garment"
    assert words["pixels changed outside the mask"].startswith("0.000")


def test_dresscode_garments2look_and_a_plain_folder_are_read(tmp_path: Path) -> None:
    def photo(path: Path, colour: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 32), colour).save(path)

    dress = tmp_path / "dress"
    for number, colour in enumerate(("red", "green", "blue", "pink")):
        photo(dress / "dresses" / "images" / f"00000{number // 2}_{number % 2}.jpg", colour)
    (dress / "test_pairs_paired.txt").write_text(
        "000000_0.jpg\t000000_1.jpg\t2\n000001_0.jpg\t000001_1.jpg\t2\n"
    )
    (dress / "test_pairs_unpaired.txt").write_text("000000_0.jpg\t000001_1.jpg\t2\n")
    protocol = read_protocol(None, "dresscode")
    assert layout_of(dress) == "dresscode"
    found = read_set("dresscode", dress, "paired", protocol, None)
    assert found.pairs[0].id == "dresses-000000_0__000000_1" and found.pairs[0].labels == (7,)
    assert read_set("dresscode", dress, "unpaired", protocol, None).pairs[0].truth is None
    (dress / "wrong.txt").write_text("000000_1.jpg 000000_0.jpg 2\n")
    with pytest.raises(InputError, match=r"names 000000_1\.jpg as a person"):
        read_set("dresscode", dress, "paired", protocol, dress / "wrong.txt")

    looks = tmp_path / "looks"
    photo(looks / "mytheresa" / "looks-resized" / "women" / "A-B.png", "red")
    photo(looks / "mytheresa" / "images" / "P1" / "P1_full.jpg", "green")
    outfit = {
        "A-B": {"section": "test", "gender": "women", "outfit": {"P1": "a top"}},
        "C": {"section": "train"},
    }
    (looks / "mytheresa_outfit_v1.0_2512.json").write_text(json.dumps(outfit))
    images = {"P1": {"images": {"product": {"full": ["P1_full.jpg"]}}}}
    (looks / "mytheresa_image_v1.0_2512.json").write_text(json.dumps(images))
    assert layout_of(looks) == "garments2look"
    (pair,) = read_set("garments2look", looks, "paired", read_protocol(None, "garments2look"), None).pairs
    assert pair.id == "A-B" and [path.name for path in pair.garments] == ["P1_full.jpg"]

    plain = tmp_path / "plain"
    for file, colour in (("before.png", "red"), ("shirt.png", "green"), ("after.png", "blue")):
        photo(plain / file, colour)
    (plain / "pairs.csv").write_text("person,garment,truth\nbefore.png,shirt.png,after.png\n")
    assert layout_of(plain) == "plain"
    (pair,) = read_set("plain", plain, "paired", read_protocol(None, "plain"), None).pairs
    assert pair.truth and pair.truth.name == "after.png"
