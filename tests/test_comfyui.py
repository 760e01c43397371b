"""The nodes for ComfyUI: their contract, and the pixels of the command line."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_proposal import PROMPT
from tests.test_proposal import shop as shop
from triptych.verbs.tryon import TryonConfig, tryon

FOLDER = Path(__file__).parents[1] / "comfyui-triptych"


@pytest.fixture(scope="module")
def nodes() -> ModuleType:
    """The folder, imported as ComfyUI does: by its path, as a package."""
    spec = importlib.util.spec_from_file_location(
        "comfyui_triptych", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def image(path: Path) -> torch.Tensor:
    """A picture as ComfyUI's LoadImage gives it."""
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float32) / 255)[None]


def test_every_node_has_the_contract(nodes: ModuleType) -> None:
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        assert {"required"} <= inputs.keys() <= {"required", "optional", "hidden"}
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert node.CATEGORY == "triptych" and node.DESCRIPTION
        called = getattr(node, node.FUNCTION).__code__
        names = called.co_varnames[1 : called.co_argcount]
        assert [*inputs["required"], *inputs.get("optional", {})] != [] and set(names) == {
            *inputs["required"],
            *inputs.get("optional", {}),
        }


def test_the_nodes_make_the_picture_of_the_command_line(
    nodes: ModuleType, tiny_flux: Path, shop: dict[str, Path], tmp_path: Path
) -> None:
    load, region, dress = (node() for node in nodes.NODE_CLASS_MAPPINGS.values())
    (model,) = load.load(str(tiny_flux), dtype="fp32", device="cpu")
    person = image(shop["person"])
    mask, preview = region.region(person, "automatic: dress", grow=2)
    assert preview.shape == person.shape and mask.shape == person.shape[:3]
    assert mask.min() == 0 and mask.max() == 1 and 0.1 < mask.mean() < 0.8
    made, canvas = dress.dress(
        model, person, mask, image(shop["front"]), PROMPT, seed=4, steps=2, back=image(shop["back"])
    )
    assert made.shape == person.shape and made.dtype == torch.float32 and 0 <= made.min() <= made.max() <= 1
    options = {"model": str(tiny_flux), "device": "cpu", "dtype": "fp32", "num_inference_steps": 2}
    options |= {
        "prompt": PROMPT,
        "mask": Path("auto:dress"),
        "grow": 2,
        "seed": 4,
        "out": tmp_path / "new.png",
    }
    tryon(TryonConfig(**shop, **options)).finish()
    assert torch.equal(made, image(tmp_path / "new.png"))
    assert torch.equal(canvas, image(tmp_path / "new-triptych.png"))
    outside = torch.nn.functional.max_pool2d(mask[None], 17, 1, 8)[0] == 0  # 8 pixels: the feather
    assert torch.equal(made[outside], person[outside]) and not torch.equal(made, person)


def test_a_painted_mask_means_what_is_made_anew(nodes: ModuleType, shop: dict[str, Path]) -> None:
    region = nodes.NODE_CLASS_MAPPINGS["TriptychRegion"]()
    person = image(shop["person"])
    painted = torch.zeros(1, person.shape[1] // 2, person.shape[2] // 2)
    painted[:, 4:12, 6:14] = 1
    mask, _ = region.region(person, "mask input", mask=painted)
    assert mask[0, 16, 20] == 1 and mask[0, 40:].max() == 0
    square, _ = region.region(person, "polygons", polygons="[[[8, 8], [24, 8], [24, 24], [8, 24]]]")
    assert square[0, 16, 16] == 1 and square[0, 30, 30] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "mask input"}, "No mask is connected"),
        ({"by": "mask input", "mask": torch.zeros(1, 64, 64)}, "The mask is empty"),
        ({"by": "mask input", "mask": torch.ones(1, 64, 10)}, "another shape"),
        ({"by": "polygons", "polygons": "[[["}, "no JSON"),
        ({"by": "polygons"}, "holds no polygon"),
        ({"by": "points", "points": "3"}, "is no point"),
    ],
)
def test_mistakes_are_sentences(
    nodes: ModuleType, shop: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    region = nodes.NODE_CLASS_MAPPINGS["TriptychRegion"]()
    with pytest.raises(ValueError, match=message):
        region.region(image(shop["person"]), **options)


def test_the_example_of_our_nodes_fits_their_inputs(nodes: ModuleType) -> None:
    graph = json.loads((FOLDER / "examples/try_on.json").read_text())
    for part in graph.values():
        node = nodes.NODE_CLASS_MAPPINGS.get(part["class_type"])
        if node is None:
            continue
        inputs = node.INPUT_TYPES()
        known = inputs["required"] | inputs.get("optional", {})
        assert inputs["required"].keys() <= part["inputs"].keys() <= known.keys()
        for name, value in part["inputs"].items():
            kind = known[name][0]
            if isinstance(value, list):
                source = nodes.NODE_CLASS_MAPPINGS.get(graph[value[0]]["class_type"])
                assert source is None or source.RETURN_TYPES[value[1]] == kind
            elif isinstance(kind, list):
                assert value in kind


def test_every_wire_of_the_examples_has_an_end() -> None:
    for path in (FOLDER / "examples").glob("*.json"):
        graph = json.loads(path.read_text())
        for part in graph.values():
            ends = [value[0] for value in part["inputs"].values() if isinstance(value, list)]
            assert set(ends) <= graph.keys()
