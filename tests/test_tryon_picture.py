"""The picture that tryon writes: native size, crop, metadata, rough edit, masks in words and files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFilter

from triptych.errors import ConfigError, InputError, ModelError
from triptych.pictures import masks
from triptych.pictures.colours import from_srgb, to_srgb
from triptych.pictures.images import OriginalPhoto, load_image, read_settings
from triptych.pictures.originals import with_transparency
from triptych.pictures.panels import fit, split
from triptych.sampling.options import Sampling
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.tryon import TryonConfig, tryon
from triptych.vision.garment import garment_mask
from triptych.vton.dress import try_on
from triptych.vton.request import Person
from triptych.vton.rough_edit import rough_edit

PROMPT = (
    "three pictures <IMAGE 1> the front of a dress <IMAGE 2> the back <IMAGE 3> a person wearing the dress"
)
CORNERS = [[60, 80], [140, 80], [150, 200], [50, 190]]


def photo(path: Path, size: tuple[int, int], seed: int, coarse: int = 4, **save) -> Path:
    pixels = np.random.default_rng(seed).integers(
        0, 255, (size[1] // coarse + 1, size[0] // coarse + 1, 3), dtype=np.uint8
    )
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, **save)
    return path


def garment(path: Path, colour: tuple[int, int, int]) -> Path:
    """A plain garment of one colour on a white ground."""
    picture = Image.new("RGB", (120, 160), "white")
    picture.paste(colour, (30, 30, 90, 130))
    picture.save(path)
    return path


def outline(path: Path, corners: list, **more) -> Path:
    path.write_text(json.dumps({"polygons": [corners], **more}))
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    return {
        "front": garment(tmp_path / "front.png", (200, 30, 40)),
        "person": photo(tmp_path / "person.jpg", (211, 307), 3, quality=93),
        "polygon": outline(tmp_path / "polygon.json", CORNERS),
    }


def options(model: Path, inputs: dict[str, Path], tmp_path: Path, **changes) -> TryonConfig:
    base = {
        "prompt": PROMPT,
        "model": str(model),
        "device": "cpu",
        "dtype": "fp32",
        "out": tmp_path / "out.png",
        "num_inference_steps": 2,
    }
    return TryonConfig(**{**base, **inputs, **changes})


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_photo_of_24_megapixels_keeps_size_profile_exif_and_every_pixel_outside(
    tiny_flux: Path, inputs: dict, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo(inputs["person"], (4000, 6000), 3, coarse=200, quality=90, exif=exif, icc_profile=profile)
    before = pixels(inputs["person"])
    corners = [[1500, 1200], [2600, 1300], [2500, 3000], [1400, 2900]]
    tryon(
        options(tiny_flux, {**inputs, "polygon": outline(tmp_path / "p.json", corners)}, tmp_path, feather=40)
    ).finish()
    with Image.open(tmp_path / "out.png") as made:
        assert made.size == (4000, 6000)
        assert made.info["icc_profile"] == profile
        assert made.getexif()[ExifTags.Base.Artist] == "somebody"
        assert not made.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    after = pixels(tmp_path / "out.png")
    inside = masks.polygon_mask([corners], (4000, 6000))
    outside = masks.grow(inside, 40) == 0
    assert outside.mean() > 0.8
    assert np.array_equal(before[outside], after[outside])
    assert (before[inside == 1] != after[inside == 1]).any(axis=-1).mean() > 0.9


def test_the_panel_shows_the_polygon_and_its_surroundings(tiny_flux: Path, inputs: dict[str, Path]) -> None:
    models = load_models(str(tiny_flux), [PROMPT], device="cpu", dtype="fp32")
    front, person = load_image(inputs["front"]), load_image(inputs["person"])
    layout = TRY_ON.layout(32, 48)

    def run(margin: float | None, start: Image.Image | None = None):
        who = Person(person, [CORNERS], PROMPT, [1], start=start)
        ((result,),) = try_on(models, front, front, [who], layout, Sampling(2), 4, crop_margin=margin)
        return result, np.asarray(split(result.known, layout)[2])

    whole, shown = run(None)
    assert whole.box == (0, 0, 211, 307)
    assert np.array_equal(shown, np.asarray(fit(person, 32, 48)))
    tight, wide = run(0.0)[0].box, run(0.2)[0].box
    assert tight.left > wide.left > 0 and tight.bottom < wide.bottom < 307
    assert tight.left <= 50 - 4 and tight.right >= 150 + 4 and tight.top <= 80 - 4 and tight.bottom >= 200 + 4
    cropped, shown = run(0.2)
    assert np.array_equal(shown, np.asarray(fit(person.crop(cropped.box), 32, 48)))
    assert np.array_equal(np.asarray(cropped.image)[cropped.mask == 0], np.asarray(person)[cropped.mask == 0])
    rough = Image.new("RGB", person.size, (9, 99, 200))
    started, shown = run(0.2, rough)
    assert (shown == (9, 99, 200)).all(), "the model starts from the rough edit"
    assert np.array_equal(np.asarray(started.image)[started.mask == 0], np.asarray(person)[started.mask == 0])


def test_a_jpeg_is_written_when_its_name_says_so(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    photo(inputs["person"], (211, 307), 3, coarse=40, quality=93, exif=exif)
    before = pixels(inputs["person"]).astype(int)
    for name in ("out.png", "out.JPG"):
        tryon(options(tiny_flux, inputs, tmp_path, out=tmp_path / name)).finish()
    with Image.open(tmp_path / "out.JPG") as made:
        assert made.format == "JPEG"
        assert made.getexif()[ExifTags.Base.Artist] == "somebody"
        assert json.loads(made.info["comment"])["prompt"] == PROMPT
    assert (
        np.abs(pixels(tmp_path / "out.JPG").astype(int) - pixels(tmp_path / "out.png").astype(int)).mean() < 2
    )
    outside = masks.grow(masks.polygon_mask([CORNERS], (211, 307)), 16) == 0
    assert np.abs(pixels(tmp_path / "out.JPG").astype(int) - before)[outside].max() < 30
    with pytest.raises(InputError, match="neither a PNG nor a JPEG"):
        tryon(options(tiny_flux, inputs, tmp_path, out=tmp_path / "out.webp"))


def test_the_mask_preview_is_there_before_any_model_is_loaded(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError):
        tryon(options(Path("pocket"), inputs, tmp_path, device="no-such-device", anyway=True))
    assert not (tmp_path / "out.png").exists()
    shown, before = pixels(tmp_path / "out-mask.png"), pixels(inputs["person"])
    assert (shown[150, 100] != before[150, 100]).any()
    assert np.array_equal(shown[20], before[20])


def test_a_polygon_around_the_old_garment_gets_a_warning(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    picture = Image.new("RGB", (211, 307), (200, 190, 180))
    ImageDraw.Draw(picture).polygon([tuple(corner) for corner in CORNERS], fill=(40, 50, 90))
    picture.save(inputs["person"])
    assert "follows an outline" in tryon(options(tiny_flux, inputs, tmp_path)).summary["warnings"][0]
    assert tryon(options(tiny_flux, inputs, tmp_path, grow=12)).summary["warnings"] == []


def display_p3() -> bytes:
    """sRGB's profile with the primaries of Display P3 (SMPTE EG 432-1, adapted to D50) and another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for number in range(struct.unpack(">I", profile[128:132])[0]):
        tag, offset, _ = struct.unpack(">4sII", profile[132 + 12 * number : 144 + 12 * number])
        if tag in primaries:
            profile[offset + 8 : offset + 20] = struct.pack(
                ">3i", *(round(value * 65536) for value in primaries[tag])
            )
    return (
        bytes(profile)
        .replace("sRGB".encode("utf-16-be"), "DiP3".encode("utf-16-be"))
        .replace(b"sRGB", b"DiP3")
    )


def test_a_photo_in_display_p3_comes_back_in_its_own_colours(tiny_flux: Path) -> None:
    """The same photo in P3 and in sRGB: what is made is the same to the eye, so other numbers, and the rest
    is the photo's own.
    """
    models = load_models(str(tiny_flux), [PROMPT], device="cpu", dtype="fp32")
    profile, shirt = display_p3(), Image.new("RGB", (211, 307), (230, 40, 30))
    wide = Image.new("RGB", (211, 307), (150, 110, 60))
    plain = to_srgb(wide, profile)
    assert (
        np.abs(
            np.asarray(from_srgb(Image.new("RGB", (1, 1), (255, 0, 0)), profile), int)[0, 0] - [234, 51, 35]
        ).max()
        <= 2
    ), "red in P3"

    def made(photo: Image.Image, icc_profile: bytes | None) -> np.ndarray:
        start = from_srgb(shirt, icc_profile)
        who = Person(photo, [CORNERS], PROMPT, [1], icc_profile, start)
        return np.asarray(
            try_on(models, shirt, shirt, [who], TRY_ON.layout(32, 48), Sampling(1, strength=0.3), 0)[0][
                0
            ].image,
            int,
        )

    there, here = made(wide, profile), made(plain, None)
    inside = masks.polygon_mask([CORNERS], wide.size) == 1
    seen = np.asarray(to_srgb(Image.fromarray(there.astype(np.uint8)), profile), int)
    assert np.abs(seen - here)[inside].mean() < 2
    assert np.abs(there - here)[inside].mean() > 4
    assert (there[masks.polygon_mask([CORNERS], wide.size) == 0] == (150, 110, 60)).all()


@pytest.mark.parametrize("kind", ["rgba.png", "rgba.webp", "la.png", "palette.png", "trns.png"])
def test_transparency_outside_the_polygon_is_the_photos_own(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """A person cut out of the background: alpha, and the colours hidden below it, are kept bit for bit;
    inside all is opaque.
    """
    mode, suffix = kind.split(".")
    colours = Image.open(inputs["person"]).convert("RGB")
    alpha = Image.new("L", colours.size)
    ImageDraw.Draw(alpha).ellipse((20, 20, 190, 290), fill=255)
    alpha = alpha.filter(ImageFilter.BoxBlur(6)) if mode in ("rgba", "la") else alpha
    cut = Image.merge("RGBA", [*colours.split(), alpha])
    if mode == "la":
        cut = Image.merge("LA", [colours.convert("L"), alpha])
    elif mode == "palette":
        cut = cut.quantize(32)
    options_ = {"lossless": True, "exact": True} if suffix == "webp" else {}
    if mode == "trns":
        cut, options_ = (
            colours.point(lambda v: v & 0xF0),
            {"transparency": colours.point(lambda v: v & 0xF0).getpixel((100, 10))},
        )
    cut.save(tmp_path / kind, **options_)
    inputs["person"] = tmp_path / kind
    with Image.open(tmp_path / kind) as photo:
        before = np.asarray(photo.convert("RGBA"))
    assert 0 < (before[:, :, 3] < 255).mean() < 1
    assert tryon(options(tiny_flux, inputs, tmp_path)).finish()["warnings"] == []
    with Image.open(tmp_path / "out.png") as made:
        assert made.mode == "RGBA"
        after = np.asarray(made)
    soft = masks.feather(masks.polygon_mask([CORNERS], colours.size), 8)
    assert np.array_equal(before[soft == 0], after[soft == 0])
    assert (after[:, :, 3][soft == 1] == 255).all() and (after[:, :, 3] >= before[:, :, 3]).all()
    run = tryon(options(tiny_flux, inputs, tmp_path, out=tmp_path / "out.jpg"))
    assert "laid on white" in run.summary["warnings"][0]


def test_transparency_is_blended_along_the_feather() -> None:
    """Half transparent red, half repainted with blue: 3/4 opaque, of which blue is two thirds."""
    red, alpha = Image.new("RGB", (2, 1), (255, 0, 0)), Image.new("L", (2, 1), 128)
    photo = OriginalPhoto(Image.new("RGB", (2, 1), (255, 127, 127)), None, None, "PNG", alpha, red)
    edited = Image.new("RGB", (2, 1), (128, 64, 191))  # (1 - .5) · (255, 127, 127) + .5 · (0, 0, 255)
    made = np.asarray(with_transparency(photo, edited, np.array([[0, 0.5]], np.float32)), int)
    assert made[0, 0].tolist() == [255, 0, 0, 128]
    assert np.abs(made[0, 1] - [85, 0, 170, 191]).max() <= 2


def test_exif_that_no_jpeg_can_hold_is_left_out_with_a_warning(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + b"x" * 70_000
    photo(tmp_path / "large.png", (211, 307), 3, exif=exif)
    inputs["person"] = tmp_path / "large.png"
    run = tryon(options(tiny_flux, inputs, tmp_path, out=tmp_path / "out.jpg"))
    assert "EXIF of 70" in run.summary["warnings"][0], "known before anything is sampled"
    run.finish()
    assert not Image.open(tmp_path / "out.jpg").getexif()
    assert read_settings(tmp_path / "out.jpg")
    assert tryon(options(tiny_flux, inputs, tmp_path)).finish()["warnings"] == []
    with Image.open(tmp_path / "out.png") as made:
        assert made.getexif()[ExifTags.Base.Artist] == "somebody"


# --- The rough edit
# -----------------------------------------------------------------------------------------------------


def test_garment_mask_tells_cloth_from_ground_but_not_white_from_white(tmp_path: Path) -> None:
    picture = Image.new("RGB", (120, 160), (246, 244, 240))
    picture.paste((20, 90, 60), (30, 30, 90, 130))
    picture.paste((246, 244, 240), (50, 60, 70, 80))  # a print in the ground's own colour
    expected = np.zeros((160, 120), bool)
    expected[30:130, 30:90] = True
    assert np.array_equal(garment_mask(picture), expected)
    with pytest.raises(InputError, match="cannot be told") as caught:
        garment_mask(Image.new("RGB", (120, 160), "white"))
    assert "--rough none" in caught.value.hint


def test_paint_puts_each_colour_at_its_height_and_stays_inside() -> None:
    product = Image.new("RGB", (200, 300), "white")
    product.paste((200, 30, 40), (50, 50, 150, 150))
    product.paste((20, 40, 160), (50, 150, 150, 250))
    product.paste((250, 220, 60), (90, 100, 96, 110))  # a button does not dominate
    person = Image.new("RGB", (400, 500), (128, 128, 128))
    mask = masks.polygon_mask([[(100, 100), (300, 100), (300, 400), (100, 400)]], person.size)
    made = np.asarray(rough_edit(person, product, mask, "paint"))
    assert (made[mask == 0] == 128).all()
    assert (made[105:245, 100:300] == (200, 30, 40)).all()
    assert (made[255:395, 100:300] == (20, 40, 160)).all()


def test_paste_fits_the_garment_into_the_polygon() -> None:
    product = Image.new("RGB", (2000, 3000), "white")
    product.paste((200, 30, 40), (500, 500, 1500, 2500))
    product.paste((20, 40, 160), (500, 500, 1500, 700))  # a blue collar
    person = Image.new("RGB", (400, 500), (128, 128, 128))
    mask = masks.polygon_mask([[(50, 100), (350, 100), (350, 400), (50, 400)]], person.size)
    made = np.asarray(rough_edit(person, product, mask, "paste"))
    assert (made[mask == 0] == 128).all()
    assert np.abs(made[110, 200].astype(int) - (20, 40, 160)).max() < 3, (
        "the collar, at the top, in the middle"
    )
    assert np.abs(made[200, 200].astype(int) - (200, 30, 40)).max() < 3
    assert not (made[mask == 1] == 128).all(axis=-1).any(), "nothing of the old garment is left beside it"


def test_the_rough_edit_is_where_the_model_starts(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """With a little noise only, the result is the rough edit through the autoencoder: it must differ from
    that without.
    """
    for rough in ("none", "paint", "paste"):
        tryon(
            options(tiny_flux, inputs, tmp_path, rough=rough, strength=0.5, out=tmp_path / f"{rough}.png")
        ).finish()
    none, paint = pixels(tmp_path / "none.png"), pixels(tmp_path / "paint.png")
    assert (none != paint).any()
    soft = masks.feather(masks.polygon_mask([CORNERS], (211, 307)), 8)
    assert np.array_equal(none[soft == 0], paint[soft == 0])
    shown = pixels(tmp_path / "paint-mask.png")
    assert shown[150, 100, 0] > shown[150, 100, 2], "the preview shows the rough edit"


# --- The prompt
# ---------------------------------------------------------------------------------------------------------


def test_the_prompt_may_come_from_a_caption_file_and_is_linted(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    caption = tmp_path / "item1.txt"
    caption.write_text(PROMPT.replace(" <IMAGE 2>", "\n<IMAGE 2>"))
    run = tryon(options(tiny_flux, inputs, tmp_path, prompt="", caption=caption))
    assert run.summary["warnings"] == []
    run.finish()
    about = read_settings(tmp_path / "out.png")
    assert about is not None and about["prompt"] == PROMPT
    assert tryon(options(tiny_flux, inputs, tmp_path, prompt="a red dress", caption=caption)).summary[
        "warnings"
    ] == [f"The prompt: marker <IMAGE {number}> is missing." for number in (1, 2, 3)]
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        tryon(options(tiny_flux, inputs, tmp_path, prompt=" ", caption=tmp_path / "none.txt"))


@pytest.mark.parametrize("verb", ["tryon", "serve"])
def test_a_person_is_sent_to_no_other_machine_without_leave(
    verb: str, tmp_path: Path, inputs: dict[str, Path], tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for `caption`: the captioner sees the person."""
    from triptych.server.verb import ServeConfig, serve

    monkeypatch.setenv("OPENAI_API_KEY", "key")
    far = {"vlm_model": "a-model", "base_url": "http://captions.example/v1"}
    with pytest.raises(ConfigError, match=r"sent to http://captions\.example/v1") as caught:
        if verb == "tryon":
            tryon(options(tiny_flux, inputs, tmp_path, prompt="", **far)).finish()
        else:
            serve(ServeConfig(model=str(tiny_flux), work=tmp_path, port=0, **far))
    assert "--allow-upload" in caught.value.hint
