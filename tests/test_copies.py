"""Copies of a photo count once, and a garment's front is never taken for its back."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from triptych.pictures.copies import Seen, find_copies, same_picture, signature
from triptych.pictures.images import load_image
from triptych.pocket.render import render
from triptych.pocket.world import sample_garment, sample_scene


def seen(image: Image.Image, name: str = "x.jpg", first: bool = False) -> Seen:
    return Seen(name, image.size, signature(image.convert("RGB")), first)


def picture(seed: int = 0, view: str = "front", scale: int = 6) -> Image.Image:
    rng = random.Random(seed)
    return render(sample_garment(rng), replace(sample_scene(rng, "front"), view=view), seed, scale).image


def saved(image: Image.Image, kind: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer).convert("RGB")


MADE = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "a third, strongly compressed": lambda image: saved(
        image.resize((image.width // 3, image.height // 3)), "JPEG", quality=40
    ),
    "thumbnail of 100 px": lambda image: image.resize((100, 150), Image.Resampling.BOX),
    "compressed anew": lambda image: saved(image, "JPEG", quality=60),
    "another format": lambda image: saved(image, "WEBP", quality=70),
    "twice as large": lambda image: image.resize(
        (image.width * 2, image.height * 2), Image.Resampling.BICUBIC
    ),
    "sharpened": lambda image: image.resize((image.width // 2, image.height // 2)).filter(
        ImageFilter.UnsharpMask(1, 80, 2)
    ),
    "256 colours": lambda image: saved(image.resize((144, 216)).quantize(256).convert("RGB"), "PNG"),
}


@pytest.mark.parametrize("kind", MADE)
def test_copies_are_found(kind: str) -> None:
    for seed in range(2):
        image = picture(seed)
        assert same_picture(seen(image), seen(MADE[kind](image))), seed


def test_no_front_is_a_back_in_the_rendered_world() -> None:
    """Skirts, where front and back differ least: their fronts and backs in one scene with the same noise, and
    all together.
    """
    rng = random.Random(5)
    skirts = [garment for garment in (sample_garment(rng) for _ in range(150)) if garment.type == "skirt"][
        :14
    ]
    together: list[Seen] = []
    for number, garment in enumerate(skirts):
        scene, elsewhere = sample_scene(rng, "front"), sample_scene(rng, "back")
        front = seen(render(garment, scene, number, 3).image)
        scales = (3, 2) if garment.pattern == "plain" else (3,)
        backs = [seen(render(garment, replace(scene, view="back"), number, scale).image) for scale in scales]
        assert not any(same_picture(front, back) for back in backs), garment
        together += [front, seen(render(garment, elsewhere, number, 3).image)]
    assert not find_copies(together)


@pytest.mark.photos
def test_no_real_photo_is_a_copy_of_another(photos: Path) -> None:
    """Front and back of plain leggings and trousers among them."""
    for item in sorted((photos / "catalogue").iterdir()):
        pictures = [load_image(path, longest=512) for path in sorted(item.iterdir())]
        assert not find_copies([seen(picture) for picture in pictures])
        thumbnails = [
            saved(picture.resize((picture.width // 3, picture.height // 3)), "JPEG", quality=50)
            for picture in pictures
        ]
        assert find_copies([seen(picture) for picture in (*pictures, *thumbnails)]) == {3: 0, 4: 1, 5: 2}


def test_the_largest_stays_and_the_users_word_wins() -> None:
    front, back = picture(1), picture(2)
    sizes = [front.resize((144, 216)), front, back, front.resize((96, 144)), back.resize((144, 216))]
    assert find_copies([seen(image, f"{n}.jpg") for n, image in enumerate(sizes)]) == {0: 1, 3: 1, 4: 2}
    told = [seen(image, f"{n}.jpg", first=n == 3) for n, image in enumerate(sizes)]
    assert find_copies(told) == {0: 3, 1: 3, 4: 2}
    assert find_copies([seen(front, "a.jpg"), seen(saved(front, "JPEG", quality=90), "b.jpg")]) == {1: 0}
    assert find_copies([]) == {}


def test_colours_tell_pictures_apart() -> None:
    image = picture(3)
    red, green, blue = image.split()
    assert not same_picture(seen(image), seen(Image.merge("RGB", (blue, green, red)).resize((144, 216))))
    assert not same_picture(seen(image), seen(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    assert not same_picture(
        seen(image), seen(image.resize((image.width, image.height // 2)))
    )  # another shape


def cut(size: tuple[int, int]) -> Image.Image:
    """A cut-out of a photo, as shops' systems make for lists: no measure of the whole picture finds it."""
    return picture(4).crop((45, 70, 195, 220)).resize(size)


@pytest.mark.parametrize(
    ("name", "size", "copy"),
    [
        ("coat-300x300.jpg", (300, 300), True),
        ("coat_150x150_crop_center.jpg", (150, 150), True),
        ("coat-scaled-300x300.jpg", (300, 300), True),
        ("coat-300x300.jpg", (310, 310), False),  # the name does not speak of this file
        ("coat-thumb.jpg", (150, 150), True),
        ("thumb_coat.jpg", (150, 150), True),
        ("coat-thumb.jpg", (900, 900), False),
        ("other-300x300.jpg", (300, 300), False),
        ("coat-2.jpg", (300, 300), False),
    ],
)
def test_names_tell_cut_outs(name: str, size: tuple[int, int], copy: bool) -> None:
    assert find_copies([seen(cut(size), name), seen(picture(4), "coat.jpg")]) == ({0: 1} if copy else {})


def test_of_sizes_without_an_original_the_largest_stays() -> None:
    group = [
        seen(cut((150, 150)), "coat-150x150.jpg"),
        seen(picture(4).resize((240, 360)), "coat-240x360.jpg"),
    ]
    assert find_copies(group) == {0: 1}
