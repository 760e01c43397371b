"""`--mask points:X,Y`: polygons of what a SAM model sees at the points."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from tests.test_proposal import PROMPT
from tests.test_proposal import shop as shop
from triptych.errors import InputError, ModelError
from triptych.pictures.masks import grow, repaint_mask
from triptych.pictures.polygons import read_outlines
from triptych.session import load_models
from triptych.verbs.tryon import TryonConfig, tryon
from triptych.vision.pointing import Point, PointSegmenter
from triptych.vton.proposal import asked_for, proposed

WIDE = (96, 64)


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SAM with random weights, in a folder as SAM's are."""
    folder, side = tmp_path_factory.mktemp("sam"), {"image_size": 64, "patch_size": 8}
    torch.manual_seed(1)
    vision = SamVisionConfig(
        **side,
        hidden_size=16,
        output_channels=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        mlp_dim=16,
        window_size=4,
        global_attn_indexes=[0],
        num_pos_feats=4,
    )
    prompts = SamPromptEncoderConfig(**side, hidden_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_dim=16, iou_head_hidden_dim=8
    )
    parts = {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": decoder}
    model = SamModel(SamConfig(**{name: part.to_dict() for name, part in parts.items()}))
    model.save_pretrained(folder)
    pixels = SamImageProcessorPil(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    SamProcessor(pixels).save_pretrained(folder)
    return folder


def photo(size: tuple[int, int] = WIDE) -> Image.Image:
    noise = np.random.default_rng(2).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_the_mask_is_the_best_of_the_models_own(sam: Path) -> None:
    points = Point(20, 30), Point(80, 10, False)
    made = PointSegmenter(str(sam)).mask(photo(), points)
    processor, model = SamProcessor.from_pretrained(sam), SamModel.from_pretrained(sam)
    inputs = processor(
        photo(), input_points=[[[[20.0, 30.0], [80.0, 10.0]]]], input_labels=[[[1, 0]]], return_tensors="pt"
    )
    inputs["input_points"] = inputs["input_points"].float()
    with torch.no_grad():
        outputs = model(**{k: v for k, v in inputs.items() if not k.endswith("sizes")})
    masks = processor.post_process_masks(
        outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )[0][0]
    assert made.shape == (64, 96) and made.dtype == bool
    assert 0.01 < made.mean() < 0.99
    assert np.array_equal(made, masks[outputs.iou_scores[0, 0].argmax()].numpy())


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("points:3,4", (Point(3, 4),)),
        ("points: 3.5,4 ; !10,20", (Point(3.5, 4), Point(10, 20, False))),
    ],
)
def test_points_are_read(text: str, points: tuple[Point, ...]) -> None:
    assert asked_for(Path(text), "") == points


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("points", "'' is no point"),
        ("points:", "'' is no point"),
        ("points:3", "'3' is no point"),
        ("points:3,4,5", "is no point"),
        ("points:-3,4", "'-3,4' is no point"),
        ("points:50%,40%", r"is no point.*in pixels of the upright photo"),
        ("points:nan,1", "is no point"),
        ("points:!3,4", "at least one of them on what is to go"),
        ("points:" + ";".join(["3,4"] * 101), "1 to 100 points"),
    ],
)
def test_what_are_no_points_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        asked_for(text, "")


def test_points_beside_the_photo_and_in_fractions_are_refused(sam: Path) -> None:
    for points, message in (
        ((Point(96, 3),), r"96 × 64 pixels: \(96, 3\) lies outside"),
        ((Point(0.4, 0.5),), "not in fractions"),
    ):
        with pytest.raises(InputError, match=message):
            proposed(photo(), points, str(sam))
    with pytest.raises(InputError, match=r"knows parts of people, not points.*--parser facebook"):
        proposed(photo(), (Point(3, 4),))


def test_other_models_are_refused(tiny_flux: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    with pytest.raises(ModelError, match="makes no masks from points"):
        PointSegmenter(str(tmp_path))
    with pytest.raises(ModelError, match="cannot be loaded"):
        PointSegmenter(str(tiny_flux))
    with pytest.raises(ModelError, match="there is no such folder"):
        PointSegmenter("./no-such-folder")


def test_tryon_repaints_what_is_at_the_points(
    tiny_flux: Path, sam: Path, shop: dict[str, Path], tmp_path: Path
) -> None:
    person, out = Image.open(shop["person"]).convert("RGB"), tmp_path / "new.png"
    points = f"points:{person.width // 2},{person.height // 2};!2,2"
    tiny = {"model": str(tiny_flux), "device": "cpu", "dtype": "fp32", "num_inference_steps": 2}
    config = TryonConfig(**shop, **tiny, prompt=PROMPT, mask=points, parser=str(sam), out=out)
    tryon(config).finish()
    outlines, holes, _ = read_outlines(tmp_path / "new-mask.json", person.size)
    mask = PointSegmenter(str(sam)).mask(person, asked_for(points, ""))  # type: ignore[arg-type]
    area = repaint_mask(outlines, person.size, holes=holes)
    assert ((area > 0.5) & mask).sum() / ((area > 0.5) | mask).sum() > 0.97
    before, after = np.asarray(person), np.asarray(Image.open(out).convert("RGB"))
    assert np.array_equal(before[grow(area, 8) == 0], after[grow(area, 8) == 0])
    assert not np.array_equal(before, after)
    session = load_models(str(tiny_flux), [PROMPT], device="cpu", dtype="fp32")
    views = {name: Image.open(shop[name]).convert("RGB") for name in ("front", "back")}
    asked = {"mask": points, "parser": str(sam), "prompt": PROMPT, "num_inference_steps": 2}
    (made,) = session.try_on(**views, person=person, **asked)
    assert np.array_equal(np.asarray(made.image), after)
