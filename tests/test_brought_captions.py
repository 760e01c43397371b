"""Captions of the user's own: which triptych a file is for, that later ones win, how they are encoded, and
what counts their words.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.caption_server import ORDER, Desk, Server, good
from triptych.captioning.brought import match_captions
from triptych.captioning.captioners import check_captioner, load_captioner
from triptych.captioning.jobs import Job
from triptych.captioning.prompt_tokens import prompt_tokenizer
from triptych.captioning.write import linter
from triptych.data.captions import read_caption
from triptych.errors import ConfigError, InputError, ModelError

JOBS = [
    Job(Path("coats__item06-0a1b.png"), {"item": "coats__item06", "worn": "photos/coats/item06/IMG_1.jpg"}),
    Job(Path("item02-2c3d.png"), {"item": "item02", "worn": "photos/item02/IMG_2.jpg"}),
    Job(Path("item02-4e5f.png"), {"item": "item02", "worn": "photos/item02/IMG_3.jpg"}),
    Job(Path("hats__red-6a7b.png"), {"item": "hats__red", "worn": "photos/hats/red/IMG_9.jpg"}),
    Job(Path("bags__red-8c9d.png"), {"item": "bags__red", "worn": "photos/bags/red/IMG_9.jpg"}),
]
IDS = [job.id for job in JOBS]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("item02-2c3d.txt", [IDS[1]]),
        ("item02-2c3d.png.txt", [IDS[1]]),
        ("item02-2c3d.caption", [IDS[1]]),
        ("ITEM02-2C3D.TXT", [IDS[1]]),
        ("item02-2c3d.txt.txt", [IDS[1]]),  # Windows hides the ending that is there already
        ("item02.TXT", [IDS[1], IDS[2]]),
        ("Item02.txt", [IDS[1], IDS[2]]),
        ("coats__item06.txt", [IDS[0]]),
        ("coats/item06.txt", [IDS[0]]),
        ("Coats item06.txt", [IDS[0]]),
        ("item06.txt", [IDS[0]]),
        ("IMG_1.txt", [IDS[0]]),
        ("IMG_9.txt", []),  # of two items
        ("red.txt", []),  # of two items
        ("hats__red.txt", [IDS[3]]),
        ("item99.txt", []),
        ("item02-2c3d.json", []),
    ],
)
def test_files_find_their_triptychs(tmp_path: Path, name: str, ids: list[str]) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(good(1))
    brought = match_captions(tmp_path, JOBS)
    assert sorted(brought.texts) == sorted(ids) and len(brought.unmatched) == (not ids)


def test_photo_captions_are_no_triptych_captions(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.txt").write_text("a photo of a coat")
    brought = match_captions(tmp_path, JOBS)
    assert brought.texts == {} and "named for a photo" in brought.unmatched[0]


def test_what_matches_nothing_is_said_before_anybody_is_asked(
    desk: Desk, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    desk.draw(2)
    folder = desk.root / "own"
    folder.mkdir()
    (folder / "item99.txt").write_text(good(1))
    with pytest.raises(InputError, match=r"item99\.txt: no triptych or item has that name.*such as t1\.txt"):
        desk.caption(captions=folder)
    assert server.calls == []
    (folder / "T1.TXT").write_text(good(7))
    server.script = lambda call: (
        (ORDER, good(2))[call.question == "caption"] if "item99.txt" in caplog.text else "too early"
    )
    summary = desk.caption(captions=folder)
    assert (summary["brought"], summary["captioned"]) == (1, 1) and len(
        summary["captions_without_triptych"]
    ) == 1


def test_files_that_cannot_be_read_as_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "item06.txt").symlink_to("nowhere")
    (tmp_path / "item02-2c3d.txt").symlink_to("item02-2c3d.txt")
    os.mkfifo(tmp_path / "IMG_1.txt")
    (tmp_path / "item99.txt").mkdir()
    brought = match_captions(tmp_path, JOBS)
    assert (brought.texts, brought.files) == ({}, 3)
    assert [line.split(":")[0] for line in brought.unmatched] == [
        "IMG_1.txt",
        "item02-2c3d.txt",
        "item06.txt",
    ]


def test_captions_brought_later_win(desk: Desk, server: Server) -> None:
    desk.draw(3)
    folder = desk.root / "own"
    folder.mkdir()
    (folder / "i1.txt").write_text(good(10))
    server.script = lambda call: (
        "person, person, person"
        if call.number == 3
        else (ORDER, good(call.number))[call.question == "caption"]
    )
    summary = desk.caption(captions=folder)
    assert (summary["brought"], summary["captioned"], summary["rejected"]) == (1, 1, 1)
    summary = desk.caption(captions=folder)
    assert (summary["brought"], summary["kept"], summary["rejected"], summary["still_failed"]) == (0, 2, 0, 1)
    (folder / "i1.txt").write_text(good(11))  # edited
    (folder / "i2.txt").write_text(good(12))  # for one that the model has described
    (folder / "i3.txt").write_text(good(13))  # for one that failed
    count = len(server.calls)
    summary = desk.caption(captions=folder, vlm_model="")
    assert (summary["brought"], summary["returned"], len(server.calls)) == (3, 1, count)
    assert [f"Shirt {number}" in desk.text(number - 10) for number in (11, 12, 13)] == [True] * 3
    assert desk.rows()["t3"]["item"] == "i3" and list(desk.failed.iterdir()) == []
    (desk.folder / "t1.txt").write_text("edited beside the picture")
    assert (
        desk.caption(captions=folder, vlm_model="")["brought"] == 1
        and desk.text(1) == "edited beside the picture"
    )
    (folder / "i1.txt").write_text(good(14))
    os.utime(folder / "i1.txt")
    desk.caption(captions=folder, vlm_model="")
    assert (
        "Shirt 14" in desk.text(1)
        and "edited beside the picture" in (desk.folder / "caption.jsonl").read_text()
    )


@pytest.mark.parametrize(
    "data", [b"It\x92s", "Hemd".encode("utf-16"), "Hemd".encode("utf-16-le"), b"x" * 10_000_000]
)
def test_captions_in_other_encodings_name_the_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t1.txt").write_bytes(data)
    with pytest.raises(InputError, match=r"t1\.txt cannot be read") as caught:
        read_caption(tmp_path / "t1.txt")
    assert ("UTF-8" in str(caught.value)) == (len(data) < 100)


def test_byte_order_marks_and_line_ends_are_no_part_of_a_caption(tmp_path: Path) -> None:
    (tmp_path / "t1.txt").write_bytes(b"\xef\xbb\xbf" + good(1).replace(". ", ".\r\n").encode())
    assert read_caption(tmp_path / "t1.txt") == good(1)


@pytest.mark.parametrize("text", ["A shirt. <IMAGE 1> a <IMAGE 2> b <IMAGE 3> c"])
def test_words_are_counted_as_the_text_encoder_counts_them(tiny: Path, text: str) -> None:
    from triptych.backbones.registry import load_backbone

    encoder = load_backbone(str(tiny), "cpu", "fp32").load_text_encoder()
    tokenizer = prompt_tokenizer(str(tiny))
    assert tokenizer and tokenizer.count(text) == encoder.count_tokens(text) > 3
    assert tokenizer.unknown_share(text) == 0
    if load_backbone(str(tiny), "cpu", "fp32").name == "flux2":  # Qwen3 reads every script
        assert tokenizer.unknown_share("Рубашка серая a") == 0
        return
    assert tokenizer.unknown_share("衬衫 " + text) < 0.2 < tokenizer.unknown_share("Рубашка серая a")
    chinese = "三张图片 <IMAGE 1> 正面 <IMAGE 2> 背面 <IMAGE 3> 男人"
    assert [one for one in linter(str(tiny), 512)(chinese, 3) if "write it in English" in one]
    assert torch.is_grad_enabled()  # no model was run for it


# --- Proxies
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "proxy",
    ["socks://127.0.0.1:7890", "socks5://127.0.0.1:7890", "http://127.0.0.1:9", "http://[::1", "x://y"],
)
@pytest.mark.parametrize("name", ["ALL_PROXY", "http_proxy"])
def test_loopback_needs_no_proxy(desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str, proxy: str) -> None:
    desk.draw(1)
    monkeypatch.setenv(name, proxy)
    assert desk.caption()["captioned"] == 1


@pytest.mark.parametrize(
    "proxy",
    ["socks://127.0.0.1:7890", "socks5://127.0.0.1:7890", "socks4://h:1", "http://h:notaport", "x://y"],
)
def test_proxy_that_cannot_be_used_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    for ask in (load_captioner, check_captioner):
        with pytest.raises(ConfigError, match="environment variable ALL_PROXY") as caught:
            ask("m", "http://example.invalid/v1")
        assert "7890" not in str(caught.value)
    monkeypatch.setenv("NO_PROXY", "example.invalid")
    assert load_captioner("m", "http://example.invalid/v1").identity == "server:http://example.invalid/v1:m"


def test_certificates_that_are_missing_are_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with pytest.raises(ConfigError, match="environment variable SSL_CERT_FILE cannot be read"):
        load_captioner("m", "https://example.invalid/v1")


def test_why_there_is_no_connection_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="is it http:// instead of https://"):
        load_captioner("m", server.url.replace("http:", "https:")).check()
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="refused: nothing listens") as caught:
        load_captioner("m", "http://192.0.2.1/v1").check()
    assert "the proxy in HTTP_PROXY" in caught.value.hint
    for ending in ("/chat/completions", "/models/"):
        with pytest.raises(ConfigError, match="one of the server's endpoints") as refused:
            load_captioner("m", server.url + ending)
        assert refused.value.hint.endswith(f"{server.url}.")
