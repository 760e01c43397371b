"""A captioner at fault moves no picture, one picture's trouble is its own, and whatever was moved comes back
with one command.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from tests.caption_server import KEY, ORDER, Call, Desk, Reply, Server, good
from triptych.errors import ModelError, WorkError
from triptych.store.files import read_jsonl
from triptych.verbs.caption import caption, check_captioner


def well(call: Call) -> Reply:
    return ORDER if call.question == "check" else good(call.number)


def said(**message: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": None} | message, "finish_reason": "stop"}


# --- The captioner's fault
# ----------------------------------------------------------------------------------------------

CUT_OFF = {"message": {"content": None, "reasoning_content": "Let me look"}, "finish_reason": "length"}
USELESS: dict[str, tuple[Reply, str]] = {
    "chatter": ("The picture shows three views of a shirt.", "cannot be read"),
    "cut off while thinking": (CUT_OFF, "raise --max-new-tokens, or switch the model's thinking off"),
    "empty": (said(content=""), "the answer is empty"),
    "refusal": (said(refusal="I cannot look at people"), "refused the picture"),
    "blind": (
        (400, {}, {"error": {"message": "image input is not supported"}}),
        "image input is not supported",
    ),
    "broken": ((200, {}, {"error": {"message": "model crashed"}}), "model crashed"),
}


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("fault", USELESS)
def test_captioner_that_is_useless_for_all_moves_nothing(
    desk: Desk, server: Server, fault: str, count: int
) -> None:
    desk.draw(count)
    reply, words = USELESS[fault]
    server.script = lambda call: reply
    for _ in range(2):  # again and again
        with pytest.raises(ModelError) as caught:
            desk.caption()
        assert (
            words.lower() in str(caught.value).lower()
            and "some-vlm" in caught.value.message
            and "\n" not in str(caught.value)
        )
    assert len(list(desk.folder.glob("*.png"))) == count and not desk.failed.exists()
    assert len({call.number for call in server.calls}) < 20  # it is not asked about all twenty first
    server.script = well
    assert desk.caption()["captioned"] == count  # nothing that could not be read is kept as an answer


def test_captions_that_are_all_useless_move_nothing_although_the_order_was_read(
    desk: Desk, server: Server
) -> None:
    desk.draw(3)
    server.script = lambda call: ORDER if call.question == "check" else "no markers"
    with pytest.raises(ModelError, match="no usable caption"):
        desk.caption()
    assert len(list(desk.folder.glob("*.png"))) == 3


def test_wrong_order_fails_its_picture_even_if_the_rest_is_the_captioners_fault(
    desk: Desk, server: Server
) -> None:
    desk.draw(3)
    server.script = lambda call: "person, person, person" if call.number == 1 else "hm"
    with pytest.raises(ModelError):
        desk.caption()
    assert sorted(path.name for path in desk.folder.glob("*.png")) == ["t2.png", "t3.png"]


def test_all_in_the_wrong_order_is_no_success(desk: Desk, server: Server) -> None:
    desk.draw(3)
    server.script = lambda call: "person, person, person"
    run = caption(desk.config())
    assert run.finish()["rejected"] == 3 and run.failed == 3


def test_answer_that_cannot_be_read_is_asked_for_once_more_in_plain_words(desk: Desk, server: Server) -> None:
    desk.draw(1)
    server.script = lambda call: (
        good(1) if call.question == "caption" else ORDER if call.nth else "Three views of a shirt."
    )
    assert desk.caption()["captioned"] == 1
    assert [call.question for call in server.calls] == ["check", "check", "caption"]


# --- One picture's trouble
# ----------------------------------------------------------------------------------------------

INSPECTION = (
    "<400> InternalError.Algo.DataInspectionFailed: Input image data may contain inappropriate content."
)
TROUBLE: dict[str, tuple[Reply, str]] = {
    "200 with an error": (
        (200, {}, {"error": {"message": "No endpoints found that support image input", "code": 404}}),
        "No endpoints",
    ),
    "200 with a text for an error": ((200, {}, {"error": "the runner has ended"}), "the runner has ended"),
    "no choices": ((200, {}, {"choices": [], "usage": {"completion_tokens": 0}}), "no answer"),
    "choice with an error": (
        {"error": {"message": "Provider returned error"}, "finish_reason": "error"},
        "Provider returned error",
    ),
    "no message": ({"finish_reason": "stop"}, "no chat completion"),
    "blocked prompt": (
        (200, {}, {"choices": None, "promptFeedback": {"blockReason": "SAFETY"}}),
        "content policy",
    ),
    "DashScope": (
        (400, {}, {"error": {"code": "data_inspection_failed", "message": INSPECTION}}),
        "inappropriate content",
    ),
    "Azure": (
        (400, {}, {"error": {"code": "content_filter", "message": "content management policy"}}),
        "content management policy",
    ),
    "OpenRouter": (
        (403, {}, {"error": {"code": 403, "message": "flagged", "metadata": {"reasons": ["sexual"]}}}),
        "flagged",
    ),
    "LiteLLM": (
        (500, {}, {"error": {"message": "litellm.ContentPolicyViolationError: safety system"}}),
        "safety system",
    ),
    "SAFETY": (said(content="") | {"finish_reason": "SAFETY"}, "content policy"),
    "content_filter: …": (said(content="x") | {"finish_reason": "content_filter: sexual"}, "content policy"),
    "PROHIBITED_CONTENT": (
        said(content="x") | {"native_finish_reason": "PROHIBITED_CONTENT"},
        "content policy",
    ),
    "too large": ((413, {}, b"<html><h1>Request Entity Too Large</h1></html>"), "Request Entity Too Large"),
    "unprocessable": ((422, {}, {"detail": [{"msg": "bad image", "type": "value_error"}]}), "bad image"),
    "wrong types": ((200, {}, {"choices": [{"message": {"content": 5}}]}), "no chat completion"),
    "web page": ((200, {"Content-Type": "text/html"}, b"<html>login</html>"), "web page"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_with_one_picture_fails_that_picture(desk: Desk, server: Server, trouble: str) -> None:
    desk.draw(3)
    reply, words = TROUBLE[trouble]
    server.script = lambda call: reply if call.number == 1 else well(call)
    events = {event.id: event for event in caption(desk.config(concurrency=1))}
    assert [events[name].status for name in ("t1", "t2", "t3")] == ["rejected", "done", "done"]
    note = events["t1"].note
    assert words in note and KEY not in note and "<" not in note and note.isascii()


def test_server_error_at_one_picture_is_that_pictures_if_the_server_is_well(
    desk: Desk, server: Server
) -> None:
    desk.draw(2)
    server.models = (200, {}, {"data": [{"id": "some-vlm"}]})
    server.script = lambda call: (
        (500, {}, {"error": {"message": "failed to process image"}}) if call.number == 1 else well(call)
    )
    assert desk.caption()["reasons"] == {"check": 1}


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "garment, garment, "}, {"type": "text", "text": "person"}],
        [{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": ORDER}],
        [ORDER],
        {"type": "text", "text": {"value": ORDER}},
    ],
)
def test_content_in_parts_is_read(desk: Desk, server: Server, content: Any) -> None:
    desk.draw(1)
    server.script = lambda call: said(content=content) if call.question == "check" else good(1)
    assert desk.caption()["captioned"] == 1 and len(server.calls) == 2


@pytest.mark.parametrize("reasoning", ["Two products, then somebody.\n\n" + ORDER, "hm</think>\n" + ORDER])
def test_answer_that_landed_in_the_reasoning_is_read(desk: Desk, server: Server, reasoning: str) -> None:
    desk.draw(1)
    server.script = lambda call: said(reasoning_content=reasoning) if call.question == "check" else good(1)
    assert desk.caption()["captioned"] == 1 and len(server.calls) == 2


# --- The way back
# -------------------------------------------------------------------------------------------------------


def test_failed_pictures_come_back_with_one_command(desk: Desk, server: Server) -> None:
    desk.draw(2)
    rows = desk.rows()
    server.script = lambda call: "person, person, person"
    desk.caption()
    with pytest.raises(WorkError, match=r"`triptych caption --retry-failed` brings them back"):
        desk.caption()
    server.script = well
    summary = desk.caption(retry_failed=True)
    assert (summary["returned"], summary["captioned"], summary["rejected"]) == (2, 2, 0)
    assert list(desk.failed.iterdir()) == []
    after = desk.rows()
    assert {name: {key: row[key] for key in rows[name]} for name, row in after.items()} == rows and all(
        "text" in row for row in after.values()
    )


def test_only_pictures_of_ours_come_back_and_the_later_of_two(desk: Desk, server: Server) -> None:
    server.script = lambda call: "person, person, person"
    for grey in (10, 40):
        desk.draw(1)
        Image.new("RGB", (48, 32), (grey,) * 3).save(desk.folder / "t1.png")
        desk.caption()
    (desk.failed / "holiday.png").write_bytes(b"mine")
    (desk.failed / "evil.png").write_bytes(b"x")
    (desk.failed / "evil.reason.json").write_text('{"id": "../evil", "image_sha256": "' + "0" * 64 + '"}')
    server.script = well
    summary = desk.caption(retry_failed=True)
    assert summary["captioned"] == 1 and "Shirt 4" in desk.text(1)
    assert sorted(path.name for path in desk.failed.glob("*.png")) == ["evil.png", "holiday.png", "t1.png"]
    assert len(summary["not_returned"]) == 3


def test_moved_back_by_hand_it_is_asked_anew_and_has_its_item_again(desk: Desk, server: Server) -> None:
    desk.draw(2)
    server.script = lambda call: (200, {}, {"choices": []}) if call.number == 1 else well(call)
    desk.caption()
    (desk.failed / "t1.png").rename(desk.folder / "t1.png")
    server.script = well
    assert desk.caption()["captioned"] == 1
    assert desk.rows()["t1"]["item"] == "i1"


# --- Before anything is paid
# --------------------------------------------------------------------------------------------


def test_captioner_is_looked_at_before_the_long_run(
    desk: Desk, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.models = (200, {}, {"data": [{"id": "another-vlm"}]})
    check_captioner(desk.config())
    assert "lists no model 'some-vlm'; it has: another-vlm" in caplog.text
    server.models = (401, {}, {"error": {"message": f"bad {KEY}"}})
    with pytest.raises(ModelError, match="OPENAI_API_KEY") as caught:
        check_captioner(desk.config())
    assert KEY not in str(caught.value)
    server.models = (200, {}, {"error": "Unexpected endpoint or method. (GET /models)"})
    with pytest.raises(ModelError, match="usually ends in /v1"):
        check_captioner(desk.config(base_url=server.url.removesuffix("/v1")))
    with pytest.raises(ModelError, match="no connection"):
        check_captioner(desk.config(base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(ModelError, match=r"lacks config\.json"):
        check_captioner(desk.config(base_url=None, vlm_model=str(desk.root)))
    assert server.calls == []


@pytest.mark.parametrize(
    "body", [{"error": "Unexpected endpoint or method. (POST /chat/completions)"}, b"<html>hello</html>"]
)
def test_address_without_v1_is_said_at_once(desk: Desk, server: Server, body: Any) -> None:
    desk.draw(2)
    server.script = lambda call: (200, {}, body)
    with pytest.raises(ModelError, match="usually ends in /v1"):
        desk.caption(base_url=server.url.removesuffix("/v1"), concurrency=1, attempts=2)
    assert len(server.calls) <= 2


# --- Pictures of other kinds and other people's folders
# -----------------------------------------------------------------


def test_pictures_of_every_ending_are_captioned_fail_and_come_back(desk: Desk, server: Server) -> None:
    desk.draw(4)
    for number, name in enumerate(("t1.png", "t2.jpg", "t3.JPEG", "t4.webp"), 1):
        Image.open(desk.folder / f"t{number}.png").save(
            desk.folder / "x", {"jpg": "JPEG", "JPEG": "JPEG", "webp": "WEBP"}.get(name[3:], "PNG")
        )
        (desk.folder / f"t{number}.png").unlink()
        (desk.folder / "x").rename(desk.folder / name)
    Image.new("RGB", (48, 32)).save(desk.folder / "t2.png")  # a second picture of that name
    Image.new("RGB", (48, 32)).save(desk.folder / "t9.bmp")
    server.script = lambda call: (
        "person, person, person" if call.question == "check" and call.number in (2, 4) else well(call)
    )
    run = caption(desk.config())
    events = {event.id: (event.status, event.note) for event in run}
    assert (run.summary["captioned"], run.summary["rejected"]) == (2, 2)
    assert run.summary["left_out"] == ["t2.png: t2.jpg has the same name", "t9.bmp: no PNG, JPEG or WebP"]
    assert events["t9.bmp"][0] == "rejected" and "stays where it is" in events["t9.bmp"][1]
    assert sorted(path.name for path in desk.failed.iterdir()) == [
        "t2.jpg",
        "t2.reason.json",
        "t4.reason.json",
        "t4.webp",
    ]
    assert {path.name for path in desk.folder.glob("*.*")} >= {
        "t1.png",
        "t1.txt",
        "t2.png",
        "t3.JPEG",
        "t3.txt",
        "t9.bmp",
    }
    (desk.folder / "t2.png").unlink()
    server.script = well
    summary = desk.caption(retry_failed=True)
    assert (summary["returned"], summary["captioned"], list(desk.failed.iterdir())) == (2, 2, [])
    assert (desk.text(2), desk.text(4)) == tuple(
        good(number).replace("Acme", "<Brand>") + "\n" for number in (2, 4)
    )
    assert {row["file_name"] for row in desk.rows().values()} == {"t1.png", "t2.jpg", "t3.JPEG", "t4.webp"}


def test_captions_in_rows_and_in_capital_endings_are_the_users(desk: Desk, server: Server) -> None:
    desk.draw(3)
    (desk.folder / "t2.TXT").write_text(good(22))
    rows = [
        {"file_name": "t1.png", "text": f" {good(11)}"},
        {"file_name": "t3.png", "text": 3},
        {"file_name": "notes.pdf", "text": "mine"},
    ]
    (desk.folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (desk.folder / "notes.pdf").touch()
    summary = desk.caption()
    assert (summary["brought"], summary["captioned"], {call.number for call in server.calls}) == (2, 1, {3})
    assert (desk.text(1), (desk.folder / "t2.TXT").read_text()) == (good(11) + "\n", good(22))
    stored = {row["file_name"]: row for row in read_jsonl(desk.folder / "metadata.jsonl")}
    assert stored["notes.pdf"] == rows[2] and not (desk.folder / "t2.txt").exists()
    assert [stored[f"t{number}.png"]["caption_by"] == "user" for number in (1, 2, 3)] == [True, True, False]
    (desk.folder / "t1.txt").unlink()  # and so it can be asked for
    assert desk.caption()["captioned"] == 1
