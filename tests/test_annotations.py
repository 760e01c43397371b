"""Files of annotation programs: the same shirt in every format, and in every unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych.errors import InputError
from triptych.pictures import masks
from triptych.pictures.annotations import read_annotations
from triptych.pictures.polygons import Polygons

WIDTH, HEIGHT = SIZE = (600, 800)
SHIRT = [(150.0, 200.0), (450.0, 200.0), (420.0, 640.0), (180.0, 640.0)]
UNITS = {"fractions": (1 / WIDTH, 1 / HEIGHT), "percent": (100 / WIDTH, 100 / HEIGHT), "pixels": (1, 1)}


def scaled(units: str) -> list[list[float]]:
    across, down = UNITS[units]
    return [[x * across, y * down] for x, y in SHIRT]


def own(points: Any) -> Any:
    return {"polygons": [points]}


def labelme(points: Any, label: str = "dress", **about: Any) -> Any:
    shape = {"label": label, "points": points, "shape_type": "polygon"} | about
    return {"version": "5.5.0", "shapes": [shape], "imagePath": "me.jpg", "imageData": None} | {
        "imageWidth": WIDTH,
        "imageHeight": HEIGHT,
    }


def coco(points: Any, **about: Any) -> Any:
    flat = [[side for corner in points for side in corner]]
    return {
        "images": [{"id": 7, "file_name": "a/me.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "dress"}],
        "annotations": [{"id": 3, "image_id": 7, "category_id": 1, "segmentation": flat, **about}],
    }


def result(points: Any, label: str = "dress") -> dict[str, Any]:
    value = {"points": points, "polygonlabels": [label], "closed": True}
    return {"type": "polygonlabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}


def label_studio(points: Any, name: str = "/data/upload/1/5f2a1b3c-me.jpg", **about: Any) -> Any:
    return [{"id": 1, "data": {"image": name}, "annotations": [{"result": [result(points) | about]}]}]


def yolo(points: Any) -> str:
    return "0 " + " ".join(f"{side:.6f}" for corner in points for side in corner) + "\n"


FORMATS = {"own": own, "labelme": labelme, "coco": coco, "label_studio": label_studio, "yolo": yolo}


def saved(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(folder: Path, content: Any, size: tuple[int, int] = SIZE, **options: Any) -> Polygons:
    (polygons, holes, _), warnings = read_annotations(
        saved(folder / "drawn.json", content), size, **{"photo": "me.jpg", **options}
    )
    assert holes == [] and warnings == []
    return polygons


@pytest.mark.parametrize(
    ("name", "units"), [(name, units) for name in FORMATS for units in UNITS], ids=lambda value: value
)
def test_every_format_in_every_unit(tmp_path: Path, name: str, units: str) -> None:
    """The units of a format give the shirt; others are named, and never taken for those of the format."""
    content = FORMATS[name](scaled(units))
    if units == {"yolo": "fractions", "label_studio": "percent"}.get(name, "pixels"):
        assert np.allclose(read(tmp_path, content), [SHIRT], atol=1e-3)
        return
    with pytest.raises(InputError, match=f"these look like {units}") as caught:
        read(tmp_path, content)
    assert caught.value.hint


@pytest.mark.parametrize("units", UNITS)
def test_our_own_file_may_say_its_units(tmp_path: Path, units: str) -> None:
    assert np.allclose(read(tmp_path, own(scaled(units)) | {"units": units}), [SHIRT])
    with pytest.raises(InputError, match="units"):
        read(tmp_path, own(scaled("pixels")) | {"units": "inches"})
    if units != "pixels":
        with pytest.raises(InputError, match=f"look like pixels, and the file says {units}"):
            read(tmp_path, own(scaled("pixels")) | {"units": units})


@pytest.mark.parametrize(
    ("name", "units"), [("labelme", "pixels"), ("coco", "pixels"), ("label_studio", "percent")]
)
def test_a_photo_of_another_size_but_the_same_shape(tmp_path: Path, name: str, units: str) -> None:
    content = FORMATS[name](scaled(units))
    assert np.allclose(read(tmp_path, content, (301, 401)), [np.array(SHIRT) / 2], atol=2)
    with pytest.raises(InputError, match="was drawn on a picture of 600×800 px, this photo has 600×600"):
        read(tmp_path, content, (600, 600))
    with pytest.raises(InputError, match="sides are exchanged"):
        read(tmp_path, content, (800, 600))


BOX = [(150.0, 200.0), (450.0, 200.0), (450.0, 600.0), (150.0, 600.0)]


@pytest.mark.parametrize(
    "content",
    [
        labelme([[450, 600], [150, 200]], shape_type="rectangle"),
        coco([], bbox=[150, 200, 300, 400]),
        label_studio([], value={"x": 25, "y": 25, "width": 50, "height": 50, "rotation": 0, "labels": ["a"]}),
        "0 0.5 0.5 0.5 0.5\n",
        "\n3 0.5 0.5 0.5 0.5 0.97\n",
    ],
)
def test_boxes(tmp_path: Path, content: Any) -> None:
    (box,) = read(tmp_path, content)
    assert np.allclose(sorted(box), sorted(BOX))


@pytest.mark.parametrize(
    "content",
    [
        labelme([[300, 400], [400, 400]], shape_type="circle"),
        label_studio([], value={"x": 50, "y": 50, "radiusX": 100 / 6, "radiusY": 12.5, "rotation": 30}),
    ],
)
def test_circles(tmp_path: Path, content: Any) -> None:
    (circle,) = read(tmp_path, content)
    assert np.allclose(np.hypot(*(np.array(circle) - (300, 400)).T), 100)


def test_a_rectangle_that_was_turned(tmp_path: Path) -> None:
    """A quarter clockwise about its top left corner: its width now goes down the picture."""
    value = {"x": 50, "y": 25, "width": 25, "height": 25, "rotation": 90, "rectanglelabels": ["dress"]}
    (box,) = read(tmp_path, label_studio([], value=value))
    assert np.allclose(box, [(300, 200), (300, 350), (100, 350), (100, 200)])


def test_runs_of_a_coco_mask(tmp_path: Path) -> None:
    mask = masks.polygon_mask([SHIRT], SIZE) >= 0.5
    mask[300:400, 250:300] = False
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    content = coco([])
    content["annotations"][0] |= {"segmentation": {"counts": runs, "size": [HEIGHT, WIDTH]}, "iscrowd": 1}
    filled = masks.polygon_mask(read(tmp_path, content), SIZE) >= 0.5
    assert (filled & mask).sum() / (filled | mask).sum() >= 0.995
    content["annotations"][0]["segmentation"]["counts"] = "abc1"
    with pytest.raises(InputError, match=r"compressed mask \(RLE\), which is not read") as caught:
        read(tmp_path, content)
    assert "--mask" in caught.value.hint


def several(kind: str) -> Any:
    """Two pictures, of which `me.jpg` is the second."""
    if kind == "coco":
        content = coco(scaled("pixels"))
        content["images"].insert(0, {"id": 8, "file_name": "you.jpg", "width": 9, "height": 9})
        content["annotations"].append({"id": 4, "image_id": 8, "segmentation": [[1, 1, 2, 2, 3, 1]]})
        return content
    return label_studio([[1, 1], [2, 2], [3, 1]], "/data/local-files/?d=a%20b/you.jpg") + label_studio(
        scaled("percent")
    )


@pytest.mark.parametrize("kind", ["coco", "label_studio"])
def test_the_picture_is_found_by_the_name_of_the_photo(tmp_path: Path, kind: str) -> None:
    for photo in ("me.jpg", "ME.JPG", "me.png"):
        assert np.allclose(read(tmp_path, several(kind), photo=photo), [SHIRT])
    with pytest.raises(InputError, match=r"holds nothing about her\.jpg.* It holds you\.jpg, me\.jpg"):
        read(tmp_path, several(kind), photo="her.jpg")
    with pytest.raises(InputError, match="2 pictures, and the photo has no name"):
        read(tmp_path, several(kind), photo="")
    twice = several(kind)
    if kind == "coco":
        twice["images"].append({**twice["images"][1], "file_name": "b/me_jpg.rf.0a1b.jpg"})
    with pytest.raises(InputError, match=r"holds me\.jpg 2 times"):
        read(tmp_path, twice if kind == "coco" else twice + label_studio(scaled("percent")))


def test_a_single_picture_of_another_name_is_taken_with_a_warning(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.json", labelme(scaled("pixels")))
    (polygons, _, _), warnings = read_annotations(path, SIZE, "you.jpg")
    assert polygons == [SHIRT]
    assert [("me.jpg" in one, "you.jpg" in one) for one in warnings] == [(True, True)]
    assert read_annotations(path, SIZE)[1] == []


def test_labels(tmp_path: Path) -> None:
    content = labelme(scaled("pixels"))
    content["shapes"].append({"label": "Skirt", "points": [[10, 10], [300, 10], [300, 300]]})
    content["shapes"].append({"label": "hat", "points": [[400, 10], [500, 10], [500, 30]]})
    with pytest.raises(
        InputError, match=r"several labels: dress \(1\), Skirt \(1\), hat \(1\).*polygon-label"
    ):
        read(tmp_path, content)
    assert read(tmp_path, content, labels="dress") == [SHIRT]
    assert len(read(tmp_path, content, labels="skirt, DRESS")) == 2
    with pytest.raises(InputError, match=r"no label shoe\. It has dress"):
        read(tmp_path, content, labels="dress,shoe")
    with pytest.raises(InputError, match="has no labels"):
        read(tmp_path, own(scaled("pixels")), labels="dress")
    assert np.allclose(
        read(tmp_path, yolo(scaled("fractions")) + "1 0.1 0.1 0.1 0.1", labels="0"), [SHIRT], atol=1e-3
    )


def test_points_and_lines_are_counted(tmp_path: Path) -> None:
    content = labelme(scaled("pixels"))
    content["shapes"] += [{"label": "x", "points": [[1, 1]], "shape_type": "point"}]
    (polygons, _, _), warnings = read_annotations(saved(tmp_path / "a.json", content), SIZE, "me.jpg")
    assert polygons == [SHIRT]
    assert [one.endswith("1 point or lines enclose nothing, and are left out.") for one in warnings] == [True]


def test_other_forms_of_label_studio(tmp_path: Path) -> None:
    points = scaled("percent")
    short = {"id": 1, "image": "/data/upload/1/5f2a1b3c-me.jpg", "annotator": 1}
    short["label"] = [result(points)["value"] | {"original_width": WIDTH, "original_height": HEIGHT}]
    assert np.allclose(read(tmp_path, [short]), [SHIRT])
    (task,) = label_studio(points)
    assert np.allclose(read(tmp_path, task), [SHIRT]), "one task without a list"
    task["annotations"][0:0] = [{"result": [result([[1, 1], [2, 2], [3, 1]])]}]
    task["annotations"].append({"result": [], "was_cancelled": True})
    assert np.allclose(read(tmp_path, [task]), [SHIRT]), "the last one that was not cancelled"
    bare = {**result(points), "id": "x", "value": {"points": points}}
    task["annotations"][1]["result"] = [bare, {**result(points), "id": "x"}]
    assert np.allclose(read(tmp_path, [task]), [SHIRT]), "the polygon, and its label"
    task["predictions"] = task.pop("annotations")
    assert np.allclose(read(tmp_path, [task]), [SHIRT])
    with pytest.raises(InputError, match=r"brush strokes \(RLE\)"):
        read(tmp_path, label_studio(points, value={"format": "rle", "rle": [0, 1], "brushlabels": ["dress"]}))
    with pytest.raises(InputError, match="turned there"):
        read(tmp_path, label_studio(points, image_rotation=90))


DEEP: Any = [[[[1]]]]


@pytest.mark.parametrize(
    "content",
    [
        labelme(None),
        labelme([["1", "2"]]),
        labelme(DEEP),
        labelme([[1, 2], [3, float("inf")], [5, 6]]),
        labelme(scaled("pixels")) | {"imageWidth": "wide"},
        labelme(scaled("pixels")) | {"shapes": [3]},
        coco(scaled("pixels"), segmentation=[[1, 2, 3, 4, 5]]),
        coco(scaled("pixels"), segmentation="x"),
        coco(scaled("pixels"), segmentation={"counts": [1 << 80], "size": [HEIGHT, WIDTH]}),
        coco(scaled("pixels"), segmentation={"counts": [5], "size": [1 << 40, 1 << 40]}),
        coco([], bbox=[1, 2, 3]),
        coco(scaled("pixels")) | {"images": [None]},
        coco(scaled("pixels")) | {"categories": [{}]},
        label_studio(DEEP),
        label_studio(scaled("percent"), original_width=-4),
        [{"data": {"image": "me.jpg"}, "annotations": [3]}],
        [{"data": [], "annotations": []}],
        "0 0.1 0.2 0.3 0.4\n0 0.1 x\n",
        "0 0.1 0.2 0.3 0.4\n0 nan 0.2 0.3 0.4\n",
    ],
)
def test_garbage_is_one_sentence(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputError, match=r"looks like a .* file, but cannot be read as one"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (labelme([]) | {"shapes": []}, "holds no polygon on me.jpg"),
        (coco([]) | {"annotations": []}, "holds no polygon on me.jpg"),
        (coco([]) | {"images": []}, "names no picture"),
        ([{"data": {"image": "me.jpg"}, "annotations": []}], "holds no polygon on me.jpg"),
        (labelme(scaled("pixels")) | {"shapes": [{}] * 2001}, "more than 2000 shapes"),
        (labelme([[1, 1], [200, 2]] * 50_001), "more than 100000 corners"),
        (labelme([[1, 2], [3, 4]], shape_type="mask"), "holds a mask, which is not read"),
        ("hello", "is not JSON"),
        ("0 1 2\n", "is not JSON"),
        ({"regions": []}, "VGG"),
        ([], "has no 'polygons'"),
    ],
)
def test_what_holds_nothing_to_repaint(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read(tmp_path, content)
    assert caught.value.hint
