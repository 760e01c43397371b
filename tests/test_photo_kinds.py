"""What a file is, by its bytes: raw files and previews, phones' formats, and everything that lies about in
photo folders.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.pictures import images
from triptych.pictures.images import BadImage, check_header, load_image, load_original

RAW, HEIC = "camera RAW: export as JPEG", "HEIC: export as JPEG (or install pillow-heif)"


def tiff(*pages: tuple[tuple[int, int], dict[int, int]], **options: object) -> bytes:
    """A TIFF of several pages, each of a size and with tags; every page is a scene in its own brightness."""
    made = [Image.linear_gradient("L").resize(size).convert("RGB") for size, _ in pages]
    buffer = io.BytesIO()
    with Image.new("RGB", (1, 1)):
        from PIL.TiffImagePlugin import AppendingTiffWriter

        with AppendingTiffWriter(buffer, True) as writer:
            for image, (_, tags) in zip(made, pages, strict=True):
                image.save(writer, "TIFF", tiffinfo=tags, **options)
                writer.newFrame()
    return buffer.getvalue()


def directory(order: str, tags: dict[int, list[int]], at: int) -> bytes:
    """One TIFF directory at an offset, with numbers of 4 bytes; the next one is none."""
    entries, more = b"", b""
    after = at + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        data = struct.pack(f"{order}{len(values)}I", *values)
        place = data if len(values) == 1 else struct.pack(order + "I", after + len(more))
        more += b"" if len(values) == 1 else data
        entries += struct.pack(order + "HHI", tag, 4, len(values)) + place
    return struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0) + more


def with_sub_directories(order: str, first: dict[int, list[int]], *subs: dict[int, list[int]]) -> bytes:
    """What cameras write: a first directory that is small, the others below it."""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    place = 8 + len(directory(order, first | {330: [0] * len(subs)}, 8))
    offsets, bodies = list[int](), b""
    for sub in subs:
        offsets.append(place + len(bodies))
        bodies += directory(order, sub, offsets[-1])
    return start + directory(order, first | {330: offsets}, 8) + bodies + bytes(200)


SMALL, SENSOR = {254: [1], 256: [160], 257: [120]}, {254: [0], 256: [6000], 257: [4000], 262: [32803]}
RAWS = {
    "a Nikon's first page is a thumbnail": (
        "DSC_1.NEF",
        lambda: tiff(((160, 120), {254: 1}), ((1200, 900), {})),
    ),
    "any TIFF with a raw ending": ("a.pef", lambda: tiff(((300, 200), {}))),
    "a sensor's picture in a sub-directory, under a wrong name": (
        "a.tif",
        lambda: with_sub_directories("<", SMALL, SENSOR),
    ),
    "the same the other way round": (
        "a.jpg",
        lambda: with_sub_directories(">", SMALL, {256: [1600], 257: [1200]}, SENSOR),
    ),
    "linear raw": (
        "a.tiff",
        lambda: with_sub_directories("<", {256: [1616], 257: [1080]}, {**SENSOR, 262: [34892]}),
    ),
    "DNG by its version": ("a.tif", lambda: with_sub_directories("<", {**SMALL, 50706: [0x00000401]})),
    "Canon": ("a.bin", lambda: b"II*\0\x10\0\0\0CR\2\0" + bytes(200)),
    "Canon, new": ("a.CR3", lambda: b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(200)),
    "Canon, first": ("a.crw", lambda: b"II\x1a\0\0\0HEAPCCDR" + bytes(200)),
    "Fujifilm": ("a.raf", lambda: b"FUJIFILMCCD-RAW 0201" + bytes(200)),
    "Olympus": ("a.orf", lambda: b"IIRO\x08\0\0\0" + bytes(200)),
    "Panasonic": ("a.rw2", lambda: b"IIU\0\x18\0\0\0" + bytes(200)),
    "Sigma": ("a.x3f", lambda: b"FOVb" + bytes(200)),
}


@pytest.mark.parametrize("kind", RAWS)
def test_raw_files_are_named_and_never_read_as_their_thumbnail(kind: str, tmp_path: Path) -> None:
    name, data = RAWS[kind]
    (tmp_path / name).write_bytes(data())
    for read in (check_header, load_image, load_original):
        with pytest.raises(BadImage) as caught:
            read(tmp_path / name)
        assert (caught.value.reason, bool(caught.value.hint)) == (RAW, True)


@pytest.mark.parametrize(
    ("pages", "size"),
    [
        ([((160, 120), {254: 1}), ((1200, 900), {})], (1200, 900)),
        ([((160, 120), {255: 2}), ((1200, 900), {})], (1200, 900)),  # the old tag
        (
            [((160, 120), {}), ((1200, 900), {})],
            (1200, 900),
        ),  # a preview that does not say so, in the photo's shape
        ([((160, 120), {254: 1}), ((640, 480), {254: 1}), ((1200, 900), {})], (1200, 900)),
        ([((300, 200), {}), ((1200, 900), {254: 4})], (300, 200)),  # a mask is no photo
        ([((1200, 900), {}), ((160, 120), {254: 1})], (1200, 900)),  # a pyramid
        ([((300, 200), {}), ((200, 300), {}), ((600, 100), {})], (300, 200)),  # several scans: the first
    ],
)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_of_a_tiff_the_photo_is_read_not_its_preview(
    pages: list, size: tuple[int, int], compression: str | None, tmp_path: Path
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(*pages, compression=compression))
    assert (
        check_header(tmp_path / "a.tif")
        == load_image(tmp_path / "a.tif").size
        == load_original(tmp_path / "a.tif").image.size
        == size
    )


def test_a_photo_that_only_a_sub_directory_holds_is_not_replaced_by_its_preview(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(with_sub_directories("<", SMALL, {256: [1600], 257: [1200], 262: [2]}))
    with pytest.raises(BadImage, match="begins with a small preview"):
        load_image(tmp_path / "a.tif")


def test_damaged_and_looping_directories_end(tmp_path: Path) -> None:
    whole = bytearray(tiff(((160, 120), {254: 1}), ((1200, 900), {})))
    random = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        for place in random.integers(0, 400, 4):
            data[place] = random.integers(0, 256)
        (tmp_path / "a.tif").write_bytes(
            bytes(data[: random.integers(8, len(data))]) if random.random() < 0.5 else data
        )
        try:
            check_header(tmp_path / "a.tif")
        except BadImage as error:
            assert error.reason  # noqa: PT017
    loop = with_sub_directories("<", SMALL, SMALL)
    (tmp_path / "b.tif").write_bytes(loop.replace(struct.pack("<I", 0), struct.pack("<I", 8), 1))
    with pytest.raises(BadImage):
        load_image(tmp_path / "b.tif")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.jpg", b"x")
    return buffer.getvalue()


OTHERS = {
    "iPhone": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIC"),
    "iPhone, by a compatible brand": (b"\0\0\0\x1cftypmif1\0\0\0\0mif1miafheix" + bytes(200), "HEIC"),
    "burst": (b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc" + bytes(200), "HEIC"),
    "mp4": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(200), "video"),
    "live photo": (b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(200), "video"),
    "webm": (b"\x1a\x45\xdf\xa3" + bytes(200), "video"),
    "avi": (b"RIFF\0\0\0\0AVI LIST" + bytes(200), "video"),
    "pdf": (b"%PDF-1.7\n" + bytes(200), "PDF"),
    "svg": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG drawing"),
    "photoshop": (b"8BPS\0\1" + bytes(200), "Photoshop file"),
    "zip": (zipped(), "zip archive"),
    "gzip": (gzip.compress(b"x"), "archive"),
    "jpeg xl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200), "JPEG XL"),
    "web page": (b"\n<!DOCTYPE html><html>404 not found</html>", "web page"),
    "note": ("größe: 36 \N{DRESS}\n".encode() * 400, "text"),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "placeholder of Git LFS, DVC or git-annex",
    ),
    "git annex": (b"/annex/objects/SHA256E-s1--0.jpg\n", "placeholder of Git LFS, DVC or git-annex"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_photo_is_called_by_its_kind(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_reads_heif", lambda: False)
    data, reason = OTHERS[kind]
    (tmp_path / "IMG_1.jpg").write_bytes(data)  # the ending says nothing
    with pytest.raises(BadImage) as caught:
        load_image(tmp_path / "IMG_1.jpg")
    assert caught.value.reason.split(":")[0] == reason
    if reason == "HEIC":
        assert caught.value.reason == HEIC


def test_avif_is_read_whatever_its_name(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.avif")
    (tmp_path / "a.avif").rename(tmp_path / "a.heic")
    assert load_image(tmp_path / "a.heic").size == (64, 48)


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is optional")
    images._reads_heif.cache_clear()
    heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(tmp_path / "a.jpg", format="HEIF")
    assert load_image(tmp_path / "a.jpg").getpixel((5, 5))[0] > 200


def test_a_huge_file_is_refused_from_its_header(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("r+b") as file:
        file.truncate(8 << 30)  # sparse
    with pytest.raises(BadImage, match="too large: the file has 8 GB"):
        images.sha256_photo(tmp_path / "a.jpg")
