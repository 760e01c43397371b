"""Parsers: any semantic segmentation model of transformers whose labels are parts of a person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from triptych.errors import ModelError
from triptych.pocket.parts import PARTS as WORLD
from triptych.vision.parsing import licence_of, open_parser
from triptych.vision.parsing_labels import PART, PARTS, parts_of

ATR = (
    "Background Hat Hair Sunglasses Upper-clothes Skirt Pants Dress Belt Left-shoe Right-shoe Face Left-leg "
    "Right-leg Left-arm Right-arm Bag Scarf"
)
LIP = (
    "Background Hat Hair Glove Sunglasses Upper-clothes Dress Coat Socks Pants Jumpsuits Scarf Skirt Face "
    "Left-arm Right-arm Left-leg Right-leg Left-shoe Right-shoe"
)
FASHN = (
    "background face hair top dress skirt pants belt bag hat scarf glasses arms hands legs feet torso jewelry"
)


@pytest.mark.parametrize(
    ("labels", "hands", "count"),
    [(ATR, False, 18), (LIP, True, 20), (FASHN, True, 18), (" ".join(WORLD), True, 12)],
)
def test_the_label_maps_of_published_parsers_are_known(labels: str, hands: bool, count: int) -> None:
    found = parts_of(dict(enumerate(labels.split())), "x")
    named = {PARTS[part] for part in found}
    assert len(found) == count
    assert {"background", "hair", "face", "arm", "leg", "shoe", "top", "dress", "skirt", "trousers"} <= named
    assert ("hand" in named) == hands
    assert (
        found[labels.split().index("Left-arm" if "Left" in labels else "arms" if "arms" in labels else "arm")]
        == (PART["arm"])
    )


@pytest.mark.parametrize(
    "labels", ["LABEL_0 LABEL_1", "wall building sky person", "background face hair arm"]
)
def test_another_label_map_is_refused(labels: str) -> None:
    with pytest.raises(ModelError, match="no parser of people and clothes"):
        parts_of(dict(enumerate(labels.split())), "some/model")


@pytest.fixture(scope="module")
def atr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained SegFormer with the labels of ATR, and a first bias that makes all of it one part."""
    folder = tmp_path_factory.mktemp("atr")
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=(1, 1, 1, 1),
        hidden_sizes=(8, 8, 8, 8),
        num_attention_heads=(1, 1, 1, 1),
        decoder_hidden_size=8,
        id2label=dict(enumerate(ATR.split())),
    )
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        model.decode_head.classifier.bias[6] = 100.0  # Pants
    model.save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_any_folder_of_a_segmentation_model_is_opened(atr: Path) -> None:
    parser = open_parser(str(atr))
    assert parser.knows == ""
    for size, shape in (((60, 90), (90, 60)), ((3000, 2000), (683, 1024))):
        parts = parser.parts(Image.new("RGB", size, "white"))
        assert parts.dtype == np.uint8 and parts.shape == shape
        assert (parts == PART["trousers"]).all()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nothing", "there is no such folder"),
        ("someone/a-parser-that-is-nowhere", "hub cannot be reached"),
    ],
)
def test_a_parser_that_is_not_there(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=says):
        open_parser(name)


def test_a_folder_that_holds_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="no parser of people and clothes"):
        open_parser(str(tmp_path))


def test_the_licence_is_told_as_the_card_states_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    card = tmp_path / "README.md"
    card.write_text("---\nlicense: other\nlicense_name: some-research-licence\ntags:\n- x\n---\n# A parser\n")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(card))
    assert '"some-research-licence" (SegFormers are nearly all' in licence_of("a/b", "segformer")
    card.write_text("---\nlicense: mit\n---\n")
    assert licence_of("a/b", "mask2former") == 'The parser a/b: licence by its card: "mit".'
    card.unlink()
    assert '"none stated"' in licence_of("a/b", "mask2former")
