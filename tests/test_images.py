"""The one image loader against good, odd and hostile files. All of them are made here."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from triptych.errors import InputError
from triptych.pictures import images
from triptych.pictures.images import BadImage, check_header, load_image, load_original
from triptych.pictures.saving import save_png
from triptych.pictures.sheets import contact_sheet

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 40), (20, 40, 210)


def scene(width: int = 60, height: int = 40) -> Image.Image:
    """Red left half, green upper right, blue lower right: every flip and turn of it differs."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(GREEN, (width // 2, 0, width, height // 2))
    picture.paste(BLUE, (width // 2, height // 2, width, height))
    return picture


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def near(picture: Image.Image, x: int, y: int, colour: tuple[int, int, int], by: int = 12) -> bool:
    return max(abs(a - b) for a, b in zip(picture.getpixel((x, y)), colour, strict=True)) <= by


def is_scene(picture: Image.Image) -> bool:
    w, h = picture.size
    return (
        near(picture, 5, h // 2, RED) and near(picture, w - 5, 5, GREEN) and near(picture, w - 5, h - 5, BLUE)
    )


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and then holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(b"\0" * 1000)
    )
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


# --- Good, if odd
# -------------------------------------------------------------------------------------------------------

GOOD = {
    "jpeg": ("a.jpg", lambda: encoded(scene(), "JPEG", quality=95)),
    "progressive jpeg": ("a.jpg", lambda: encoded(scene(), "JPEG", quality=95, progressive=True)),
    "upper-case suffix": ("A.JPG", lambda: encoded(scene(), "JPEG", quality=95)),
    "png named jpg": ("a.jpg", lambda: encoded(scene(), "PNG")),
    "no suffix": ("photo", lambda: encoded(scene(), "PNG")),
    "odd name": ("fo to\n\N{PILE OF POO}.png", lambda: encoded(scene(), "PNG")),
    "webp": ("a.webp", lambda: encoded(scene(), "WEBP", lossless=True)),
    "avif": ("a.avif", lambda: encoded(scene(), "AVIF", quality=95)),
    "bmp": ("a.bmp", lambda: encoded(scene(), "BMP")),
    "tiff lzw": ("a.tif", lambda: encoded(scene(), "TIFF", compression="tiff_lzw")),
    "palette png": ("a.png", lambda: encoded(scene().quantize(16), "PNG")),
    "animated gif": (
        "a.gif",
        lambda: encoded(scene(), "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40), "white")]),
    ),
    "animated webp": (
        "a.webp",
        lambda: encoded(
            scene(), "WEBP", save_all=True, append_images=[Image.new("RGB", (60, 40))], lossless=True
        ),
    ),
    "multi-picture jpeg": (
        "a.jpg",
        lambda: encoded(
            scene(), "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40))], quality=95
        ),
    ),
    "opaque rgba": ("a.png", lambda: encoded(scene().convert("RGBA"), "PNG")),
    "damaged profile": ("a.png", lambda: encoded(scene(), "PNG", icc_profile=b"not a profile" * 20)),
    "damaged exif": (
        "a.jpg",
        lambda: encoded(scene(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"),
    ),
    "trailing bytes": ("a.jpg", lambda: encoded(scene(), "JPEG", quality=95) + b"<html>" * 100),
}


@pytest.mark.parametrize("kind", GOOD)
def test_reads(kind: str, tmp_path: Path) -> None:
    name, data = GOOD[kind]
    path = tmp_path / name
    path.write_bytes(data())
    picture = load_image(path)
    assert picture.mode == "RGB"
    assert picture.size == (60, 40)
    assert picture.info == {}
    assert is_scene(picture)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of what the tag asks for
    stored = scene() if orientation == 1 else scene().transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.jpg").write_bytes(encoded(stored, "JPEG", quality=95, exif=exif))
    assert load_image(tmp_path / "a.jpg").size == (60, 40)
    assert is_scene(load_image(tmp_path / "a.jpg"))
    original = load_original(tmp_path / "a.jpg")
    assert is_scene(original.image)
    assert original.exif is None


def test_sixteen_bit_grey_keeps_its_middle(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (
        128,
        128,
        128,
    )  # Pillow's own conversion says 255


def test_float_tiff_with_nan(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.5, np.nan], [1.0, np.inf]], np.float32)).save(tmp_path / "a.tif")
    picture = load_image(tmp_path / "a.tif")
    assert [picture.getpixel(at)[0] for at in ((0, 0), (1, 0), (0, 1))] == [128, 0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_white_not_the_hidden_colour(mode: str, tmp_path: Path) -> None:
    picture = Image.new("RGBA", (8, 8), (10, 10, 10, 0))
    picture.paste((10, 10, 10, 255), (4, 0, 8, 8))
    if mode == "P":
        palette = Image.new("P", (8, 8), 0)
        palette.putpalette([10, 10, 10] * 2 + [0] * 762)
        palette.paste(1, (4, 0, 8, 8))
        palette.save(tmp_path / "a.png", transparency=0)
    else:
        picture.convert(mode).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.getpixel((1, 1)) == (255, 255, 255)
    assert loaded.getpixel((6, 6)) == (10, 10, 10)


def test_one_bit_and_grey(tmp_path: Path) -> None:
    Image.new("1", (8, 8), 1).save(tmp_path / "one.png")
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    assert load_image(tmp_path / "one.png").getpixel((0, 0)) == (255, 255, 255)
    assert load_image(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    scene().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert is_scene(load_image(tmp_path / "a.jpg"))
    assert load_original(tmp_path / "a.jpg").icc_profile is None


def swapped_profile() -> bytes:
    """The sRGB profile with red and blue colorants exchanged, renamed so that it is not taken for sRGB."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = (
        data[blue + 4 : blue + 12],
        data[red + 4 : red + 12],
    )
    return bytes(data).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


def test_profile_is_applied_for_looking_and_kept_for_editing(tmp_path: Path) -> None:
    profile = swapped_profile()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "a.png", icc_profile=profile)
    red, _, blue = load_image(tmp_path / "a.png").getpixel((0, 0))
    assert red < 20 < 180 < blue
    original = load_original(tmp_path / "a.png")
    assert original.image.getpixel((0, 0)) == (200, 0, 0)
    assert original.icc_profile == profile


def test_original_is_bit_identical_and_loses_the_place(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x8825] = "Maker", {1: "N", 2: (48.0, 51.0, 29.0)}
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    (tmp_path / "a.jpg").write_bytes(encoded(scene(), "JPEG", exif=exif))
    original = load_original(tmp_path / "a.jpg")
    assert np.array_equal(np.asarray(original.image), np.asarray(Image.open(tmp_path / "a.jpg")))
    assert original.format == "JPEG"
    save_png(original.image, tmp_path / "b.png", exif=original.exif)
    kept = Image.open(tmp_path / "b.png").getexif()
    assert kept[0x010F] == "Maker"
    assert kept.get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"
    assert not kept.get_ifd(0x8825)
    assert b"\x00\x30\x00\x00\x00\x01" not in (original.exif or b"")  # 48/1, the latitude


def test_longest_shrinks_and_matches(tmp_path: Path) -> None:
    scene(1200, 800).save(tmp_path / "a.jpg", quality=95)
    small = load_image(tmp_path / "a.jpg", longest=100)
    assert small.size == (100, 67)
    assert is_scene(small)
    assert load_image(tmp_path / "a.jpg", longest=5000).size == (1200, 800)


# --- Bad
# ------------------------------------------------------------------------------------------------------------


def noise(kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind, **options)


def text_bomb() -> bytes:
    info = PngInfo()
    info.add_text("Comment", "A" * 50_000_000, zip=True)
    return encoded(scene(), "PNG", pnginfo=info)


BAD = {
    "empty": lambda: b"",
    "zero bytes": lambda: bytes(5000),
    "random bytes": lambda: np.random.default_rng(1).bytes(5000),
    "html": lambda: b"<!doctype html><html><body>404 not found</body></html>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
    "pdf": lambda: encoded(scene(), "PDF"),
    "zip": lambda: b"PK\x03\x04" + bytes(100),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "ppm (a format not asked for)": lambda: encoded(scene(), "PPM"),
    "heic signature": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "only a jpeg marker": lambda: b"\xff\xd8\xff\xe0",
    "only a png signature": lambda: b"\x89PNG\r\n\x1a\n",
    "png bomb 30000×30000": lambda: png_header(30_000, 30_000),
    "png just over the limit": lambda: png_header(8001, 8001),
    "png 0×0": lambda: png_header(0, 0),
    "png with too few pixels": lambda: png_header(500, 500),
    "png text bomb": text_bomb,
    **{
        f"{kind} cut at {part:.0%}": lambda k=kind, p=part: noise(k)[: int(len(noise(k)) * p)]
        for kind in ("JPEG", "PNG")
        for part in (0.3, 0.6, 0.9)
    },
    **{
        f"{kind} cut at half": lambda k=kind: noise(k)[: len(noise(k)) // 2]
        for kind in ("WEBP", "AVIF", "BMP", "GIF")
    },
    "lzw tiff cut at half": lambda: noise("TIFF", compression="tiff_lzw")[:6000],
    "png with a broken byte": lambda: (
        (d := bytearray(noise("PNG"))).__setitem__(4000, d[4000] ^ 0xFF) or bytes(d)
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_refuses(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(BAD[kind]())
    started = time.monotonic()
    for load in (load_image, load_original):
        with pytest.raises(BadImage) as caught:
            load(path)
        error = caught.value
        assert isinstance(error, InputError)
        assert error.hint
        assert error.reason
        assert str(error).count("\n") == 0
        assert str(path) in str(error)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"])
def test_any_damage_gives_a_picture_or_a_bad_image(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = noise(
        kind, **({"exif": exif, "icc_profile": swapped_profile()} if kind not in ("BMP", "GIF") else {})
    )
    random = np.random.default_rng(7)
    seen = set()
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(
            0, min(len(data), random.choice([64, 1000, len(data)])), random.integers(1, 8)
        ):
            data[place] = random.integers(0, 256)
        (tmp_path / "a").write_bytes(data)
        for load in (load_image, load_original):
            try:
                load(tmp_path / "a")
                seen.add("read")
            except BadImage:
                seen.add("refused")
    assert "refused" in seen


def test_too_large_is_known_from_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(30_000, 30_000))
    with pytest.raises(BadImage, match="megapixels"):
        check_header(tmp_path / "a.png")


def test_limit_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene().save(tmp_path / "a.png")
    assert check_header(tmp_path / "a.png") == (60, 40)
    monkeypatch.setattr(images, "MAX_PIXELS", 60 * 40 - 1)
    with pytest.raises(BadImage, match="too large: 60×40"):
        load_image(tmp_path / "a.png")


def test_things_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name in (
        "pipe.jpg",
        "folder.jpg",
        "dangling.jpg",
        "loop.jpg",
        "missing.jpg",
        "a" * 300 + ".jpg",
        "nul\0.jpg",
    ):
        with pytest.raises(BadImage):
            load_image(tmp_path / name)
    with pytest.raises(BadImage, match="regular"):
        load_image(Path("/dev/zero"))


# --- Writing
# ------------------------------------------------------------------------------------------------------------


def test_save_png_keeps_what_it_is_given_and_only_that(tmp_path: Path) -> None:
    picture = scene()
    picture.info["icc_profile"] = b"left over from somewhere"
    save_png(picture, tmp_path / "new" / "a.png", text={"prompt": "a <Brand> coat — größe"})
    with Image.open(tmp_path / "new" / "a.png") as back:
        assert back.text == {"prompt": "a <Brand> coat — größe"}
        assert "icc_profile" not in back.info
        assert np.array_equal(np.asarray(back), np.asarray(scene()))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_save_png_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    save_png(scene(), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(Exception):  # noqa: B017  # a mode PNG cannot hold
        save_png(Image.new("CMYK", (4, 4)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_contact_sheet(tmp_path: Path) -> None:
    cells = [
        (scene(), "one"),
        (None, "two\nlines of which this is far too long to be drawn in full"),
        (scene(20, 300), "\N{PILE OF POO}\x07"),
    ]
    sheet = contact_sheet(cells, columns=2, thumb=64)
    assert sheet.width == 2 * (64 + 16)
    assert near(sheet, 20, 40, RED)
    assert near(sheet, 80 + 12, 12, (0xD8, 0xD8, 0xD8))  # unreadable
    assert contact_sheet([]).size[1] >= 1
    assert contact_sheet(cells[:1]).width == 128 + 16  # no empty columns
