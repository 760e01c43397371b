"""Product photos cut to the garment: where, in which pictures, and that a LoRA remembers it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from triptych.data.triptychs import TriptychFolder
from triptych.errors import ModelError
from triptych.lora.file import checked_layout
from triptych.pictures.panels import PanelLayout, fit, split
from triptych.pocket.prompts import sample_triptych
from triptych.pocket.render import render
from triptych.session import Session
from triptych.tasks.tryon import TRY_ON
from triptych.vision.garment import trimmed

from .test_concat import Shop
from .test_tasks import write_lora_of

PROMPT = "A shirt. <IMAGE 1> the front <IMAGE 2> the back <IMAGE 3> somebody wears it"


def product(size: tuple[int, int], garment: tuple[int, int, int, int], seed: int = 0) -> Image.Image:
    image = Image.new("RGB", size, (230, 228, 224))
    ImageDraw.Draw(image).rectangle(garment, (40 + seed, 60, 140))
    return image


def test_the_garment_and_a_margin_stay() -> None:
    photo = product((300, 500), (50, 200, 249, 399))
    assert trimmed(photo, 0.0).size == (200, 200)
    assert trimmed(photo, 0.1).tobytes() == photo.crop((30, 180, 270, 420)).tobytes()
    large = product((2000, 3000), (500, 1000, 1499, 1999))
    width, height = trimmed(large, 0.0).size
    assert 1000 <= width <= 1014 and 1000 <= height <= 1014, "looked at small, cut in full"
    assert trimmed(photo, 1.0).size == (300, 500), "never beyond the photo"


def test_what_cannot_be_told_from_its_background_stays_whole() -> None:
    white = Image.new("RGB", (60, 90), "white")
    assert trimmed(white, 0.05) is white


def test_no_rendered_garment_is_cut_into() -> None:
    rng = random.Random(0)
    for _ in range(20):
        garment, scenes = sample_triptych(rng)
        drawn = render(garment, scenes[0], rng.getrandbits(30), 4)
        rows, columns = (np.flatnonzero(np.asarray(drawn.mask).any(axis=axis)) for axis in (1, 0))
        small = trimmed(drawn.image, 0.0)
        assert small.width >= columns[-1] - columns[0] and small.height >= rows[-1] - rows[0]
        assert small.width * small.height < drawn.image.width * drawn.image.height


def test_concat_cuts_products_and_says_so(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.full("a")
    whole = shop.concat()
    assert whole["made"] == 1
    (plain,) = [row["layout"] for row in TriptychFolder(shop.folder).rows()]
    assert "trim" not in plain
    shop.concat(trim=0.05)
    (row,) = TriptychFolder(shop.folder).rows()
    assert row["layout"]["trim"] == 0.05 and PanelLayout.from_dict(row["layout"]).trim == 0.05


@pytest.mark.parametrize("family", ["flux", "flux2"])
def test_what_a_lora_was_trained_on_is_what_it_is_shown(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    layout = replace(TRY_ON.layout(32, 48), trim=0.05)
    model = request.getfixturevalue(f"tiny_{family}")
    session = Session(str(model), write_lora_of(model, tmp_path, layout, "noisy"), device="cpu", dtype="fp32")
    front, back = product((200, 300), (60, 90, 139, 209)), product((200, 300), (20, 90, 179, 209), 60)
    person = product((200, 300), (80, 60, 119, 239), 120)
    (made,) = session.generate(front, back, PROMPT, num_inference_steps=1)
    shown = split(made.triptych, layout)
    for panel, photo in zip(shown, (front, back), strict=False):
        assert panel.tobytes() == fit(trimmed(photo, 0.05), 32, 48).tobytes() != fit(photo, 32, 48).tobytes()
    (worn,) = session.try_on(
        front,
        back,
        person,
        polygons=[[(80, 60), (120, 60), (120, 240)]],
        prompt=PROMPT,
        crop="none",
        num_inference_steps=1,
    )
    assert split(worn.triptych, layout)[0].tobytes() == shown[0].tobytes()
    assert worn.image.size == person.size, "a person is never cut"


@pytest.mark.parametrize("trim", ["0.05", -0.1, 2, True])
def test_a_file_that_trims_by_no_share_is_refused(trim: object) -> None:
    data = TRY_ON.layout(32, 48).to_dict() | {"trim": trim}
    with pytest.raises(ValueError, match="trim"):
        PanelLayout.from_dict(data)
    with pytest.raises(ModelError, match="trimmed by no share"):
        checked_layout(data)
