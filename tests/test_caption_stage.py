"""caption: what is asked, what is written, what is moved,
and that a stopped run loses and repeats nothing.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.caption_server import (
    CAPTION_PROMPT,
    CHECK_PROMPT,
    HOSTILE,
    KEY,
    ORDER,
    Call,
    Desk,
    Reply,
    Server,
    good,
)
from triptych.captioning.captioners import check_upload
from triptych.captioning.prices import image_tokens, read_price
from triptych.data.captions import lint
from triptych.errors import ConfigError, ModelError, WorkError
from triptych.store.files import read_json
from triptych.store.journal import Journal
from triptych.verbs.caption import caption, check_captioner

# --- The ordinary run
# ---------------------------------------------------------------------------------------------------


def test_every_triptych_is_checked_described_and_never_asked_about_again(desk: Desk, server: Server) -> None:
    desk.draw(5)
    summary = desk.caption()
    assert (summary["captioned"], summary["rejected"], summary["kept"], summary["warnings"]) == (5, 0, 0, [])
    for number in range(1, 6):  # brought together by key: every picture got the caption made for it
        assert desk.text(number) == good(number).replace("Acme", "<Brand>") + "\n"
        assert desk.rows()[f"t{number}"]["text"] == desk.text(number).strip()
        assert desk.rows()[f"t{number}"]["caption_by"] == f"server:{server.url}:some-vlm"
    assert server.asked() == Counter(
        {(number, prompt): 1 for number in range(1, 6) for prompt in (CHECK_PROMPT, CAPTION_PROMPT)}
    )
    assert all(call.url.startswith("data:image/jpeg;base64,") for call in server.calls)
    assert all(
        call.headers["authorization"] == f"Bearer {KEY}" and call.body["temperature"] == 0
        for call in server.calls
    )
    before = {path.name: path.read_bytes() for path in desk.folder.iterdir()}
    assert (desk.caption()["kept"], len(server.calls)) == (5, 10)
    assert {path.name: path.read_bytes() for path in desk.folder.iterdir()} == before
    (desk.folder / "t2.txt").unlink()  # even then the answers are at hand
    assert (desk.caption()["captioned"], len(server.calls)) == (1, 10)


def test_without_check_only_captions_are_asked_for(desk: Desk, server: Server) -> None:
    desk.draw(2)
    desk.caption(do_check=False)
    assert [call.question for call in server.calls] == ["caption"] * 2


def test_pictures_without_metadata_are_captioned_too(desk: Desk) -> None:
    desk.draw(1)
    (desk.folder / "metadata.jsonl").unlink()
    assert desk.caption()["captioned"] == 1
    assert desk.rows()["t1"] == {"file_name": "t1.png", "id": "t1", "text": desk.text(1).strip()} | {
        "caption_by": f"server:{desk.server.url}:some-vlm"
    }


def test_no_triptychs(desk: Desk) -> None:
    with pytest.raises(WorkError, match="no triptychs"):
        desk.caption()


# --- Captions of the user's own
# -----------------------------------------------------------------------------------------


def test_own_captions_need_no_captioner_and_keep_their_bytes(
    desk: Desk, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    desk.draw(3)
    own = [
        good(1).replace("Acme", "Someone").encode(),
        "  my own\r\nwords \u202e Acme".encode(),
        b"\xff\xfe broken",
    ]
    for number, data in enumerate(own, 1):
        (desk.folder / f"t{number}.txt").write_bytes(data)
    summary = desk.caption(base_url=None, vlm_model="no-such-model")
    assert (summary["brought"], summary["captioned"], summary["rejected"]) == (3, 0, 0)
    assert [(desk.folder / f"t{number}.txt").read_bytes() for number in (1, 2, 3)] == own
    assert summary["captions_with_warnings"] == 2
    assert [line.split(":")[0] for line in summary["warnings"]] == ["t2.txt", "t3.txt"]
    assert desk.rows()["t2"]["caption_by"] == "user" and desk.rows()["t2"]["text"].startswith("my own words")
    assert server.calls == []


def test_only_what_is_missing_is_asked_for_and_edits_are_respected(desk: Desk, server: Server) -> None:
    desk.draw(3)
    (desk.folder / "t2.txt").write_text(good(99))
    summary = desk.caption()
    assert (summary["brought"], summary["captioned"]) == (1, 2)
    assert {call.number for call in server.calls} == {1, 3}
    (desk.folder / "t1.txt").write_text("edited by hand")
    summary = desk.caption()
    assert (summary["brought"], summary["kept"], desk.text(1)) == (1, 2, "edited by hand")
    Image.new("RGB", (48, 32), (70,) * 3).save(desk.folder / "t2.png")
    summary = desk.caption()
    assert (summary["brought"], summary["kept"], desk.text(2)) == (0, 3, good(99))
    assert [
        warning.split(":")[0] for warning in summary["warnings"] if "may describe the others" in warning
    ] == ["t2.txt"]


def test_caption_brought_while_the_model_was_thinking_wins(desk: Desk, server: Server) -> None:
    desk.draw(1)

    def script(call: Call) -> Reply:
        (desk.folder / "t1.txt").write_text("mine")
        return ORDER if call.question == "check" else good(1)

    server.script = script
    assert desk.caption()["brought"] == 1
    assert desk.text(1) == "mine"


def test_a_picture_made_anew_gets_a_new_caption_of_ours(desk: Desk) -> None:
    desk.draw(1)
    desk.caption()
    Image.new("RGB", (48, 32), (70,) * 3).save(desk.folder / "t1.png")
    assert desk.caption()["captioned"] == 1
    assert desk.text(1).startswith("Shirt 7")


# --- Failed checks and captions
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", HOSTILE)
def test_any_other_answer_fails_the_check(desk: Desk, server: Server, answer: str) -> None:
    desk.draw(2)
    picture = (desk.folder / "t1.png").read_bytes()
    server.script = lambda call: (
        answer
        if (call.number, call.question) == (1, "check")
        else (ORDER, good(2))[call.question == "caption"]
    )
    assert not desk.failed.exists()
    events = list(caption(desk.config()))
    assert [(event.id, event.status) for event in events] == [("t1", "rejected"), ("t2", "done")]
    assert sorted(path.name for path in desk.failed.iterdir()) == ["t1.png", "t1.reason.json"]
    assert (desk.failed / "t1.png").read_bytes() == picture
    reason = read_json(desk.failed / "t1.reason.json")
    assert reason["step"] == "check" and reason["worn_sha256"] == "w1"
    shown = events[0].note + reason["reason"]
    assert shown.isascii() and shown.isprintable() and "<" not in shown
    assert list(desk.rows()) == ["t2"]  # an imagefolder names only what is there
    assert sorted(path.name for path in desk.root.rglob("*") if path.is_dir()) == [
        "failed",
        "triptychs",
        "work",
    ]
    count = len(server.calls)
    assert desk.caption()["kept"] == 1 and len(server.calls) == count


def test_answers_in_other_case_or_with_a_full_stop_pass(desk: Desk, server: Server) -> None:
    desk.draw(1)
    server.script = lambda call: " Garment,garment , PERSON.\n" if call.question == "check" else good(1)
    assert desk.caption()["captioned"] == 1


def test_failures_never_overwrite_each_other(desk: Desk, server: Server) -> None:
    server.script = lambda call: "person, person, person"
    desk.draw(1)
    desk.failed.mkdir()
    (desk.failed / "t1.png").write_bytes(b"precious")
    desk.caption()
    Image.new("RGB", (48, 32), (20,) * 3).save(desk.folder / "t1.png")
    desk.caption()
    assert (desk.failed / "t1.png").read_bytes() == b"precious"
    assert sorted(path.name for path in desk.failed.glob("*.png")) == ["t1-1.png", "t1-2.png", "t1.png"]
    Image.open(desk.failed / "t1-2.png").verify()
    assert read_json(desk.failed / "t1-2.reason.json")["id"] == "t1"


def test_move_cut_short_is_completed(desk: Desk, server: Server) -> None:
    server.script = lambda call: "person, person, person"
    desk.draw(1)
    desk.failed.mkdir()
    (desk.failed / "t1.png").write_bytes(
        (desk.folder / "t1.png").read_bytes()
    )  # killed between copying and removing
    desk.caption()
    assert sorted(path.name for path in desk.failed.iterdir()) == ["t1.png", "t1.reason.json"]
    assert not (desk.folder / "t1.png").exists()


def test_fail_path_must_not_be_the_triptych_folder(desk: Desk) -> None:
    desk.draw(1)
    with pytest.raises(ConfigError, match="fail_path"):
        desk.caption(fail_path=desk.folder)


BAD_CAPTIONS: list[Reply] = [
    "no markers at all",
    good(1).replace("<IMAGE 2>", ""),
    good(1) + " <script>fetch('http://x')</script>",
    good(1) + " ![x](http://127.0.0.1/?q=1)",
    good(1) + " \u202ereversed",
    good(1) + " word" * 60,
    "",
    {"message": {"content": good(1)}, "finish_reason": "length"},
    {"message": {"content": None, "refusal": "I cannot describe people."}, "finish_reason": "stop"},
    {"message": {"content": good(1)}, "finish_reason": "content_filter"},
]


@pytest.mark.parametrize("bad", BAD_CAPTIONS)
def test_unusable_captions_are_asked_for_again_then_rejected(desk: Desk, server: Server, bad: Reply) -> None:
    desk.draw(2)

    def script(call: Call) -> Reply:
        if call.question == "check":
            return ORDER
        return bad if call.number == 1 or call.nth == 0 else good(2)  # 1 never improves, 2 at the second try

    server.script = script
    summary = desk.caption(retries=2)
    assert (summary["captioned"], summary["rejected"], summary["reasons"]) == (1, 1, {"caption": 1})
    assert lint(desk.text(2), brands=["Acme"]) == [] and not (desk.folder / "t1.txt").exists()
    assert (desk.failed / "t1.png").exists() and not (desk.folder / "t1.png").exists()
    prompts = [call.prompt for call in server.calls if call.question == "caption"]
    assert len(prompts) == 5 and len(server.asked()) == 7  # every repetition is a question of its own …
    assert all(
        word not in prompt for prompt in prompts for word in ("script", "127.0.0.1", "reversed", "cannot")
    )  # … of our words only
    assert max(server.asked().values()) == 1
    (desk.folder / "t1.png").write_bytes((desk.failed / "t1.png").read_bytes())
    count = len(server.calls)
    assert (
        desk.caption(retries=2)["rejected"] == 1 and len(server.calls) == count + 4
    )  # what was of no use is asked for anew


def test_length_limit_is_that_of_the_text_encoder(desk: Desk, server: Server) -> None:
    desk.draw(1)
    long = good(1) + " word" * 25  # 19 words, 25 words and the end token: 45 of 40 tokens
    server.script = lambda call: ORDER if call.question == "check" else long if call.nth == 0 else good(1)
    desk.caption()
    assert (
        "45 tokens, the text encoder reads 40" in server.calls[-1].prompt
        and "At most 24 words" in server.calls[-1].prompt
    )
    assert desk.text(1) == good(1).replace("Acme", "<Brand>") + "\n"


# --- Interruptions
# ------------------------------------------------------------------------------------------------------


def _heed_ctrl_c() -> None:
    """What a shell started in the background would have its children ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_all_that_was_paid_for(desk: Desk, server: Server) -> None:
    desk.draw(8)
    process: subprocess.Popen[str] | None = None

    def script(call: Call) -> Reply:
        if len(server.calls) == 7 and process is not None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)  # the answer comes after the interruption
        return ORDER if call.question == "check" else good(call.number)

    server.script = script
    options = {
        "work": desk.root / "work",
        "base-url": server.url,
        "vlm-model": "some-vlm",
        "model": desk.model,
        "concurrency": 2,
    }
    words = [f"--{name}={value}" for name, value in options.items()] + ["--brands=Acme"]
    process = subprocess.Popen(
        [sys.executable, "-m", "triptych", "caption", *words],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_ctrl_c,
    )
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in shown, shown
    process = None
    answers = [row for row in Journal(desk.folder / "caption.jsonl").rows if row["kind"] == "answer"]
    assert 7 <= len(answers) == len(server.calls) < 16
    assert all("text" in row for name, row in desk.rows().items() if (desk.folder / f"{name}.txt").exists())
    desk.caption()
    assert max(server.asked().values()) == 1 and len(server.calls) == 16


@pytest.mark.parametrize("after", [3, 8])
def test_kill_minus_nine_repeats_nothing_but_what_was_in_flight(
    desk: Desk, server: Server, after: int
) -> None:
    desk.draw(8)
    process: subprocess.Popen[bytes] | None = None

    def script(call: Call) -> Reply:
        if len(server.calls) == after and process is not None:
            process.send_signal(signal.SIGKILL)
        return ORDER if call.question == "check" else good(call.number)

    server.script = script
    code = (
        "from triptych.verbs.caption import *; "
        f"caption(CaptionConfig.model_validate_json({desk.config().model_dump_json()!r})).finish()"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait(60) == -9
    process = None
    done = {path.name for path in desk.folder.glob("t*.txt")}
    assert all(
        desk.text(int(name[1:-4])) == good(int(name[1:-4])).replace("Acme", "<Brand>") + "\n" for name in done
    )
    summary = desk.caption()
    assert summary["captioned"] + summary["kept"] == 8 and summary["brought"] == 0
    assert len(server.calls) <= 16 + 2  # concurrency is 2
    assert all(desk.rows()[f"t{n}"]["text"] == good(n).replace("Acme", "<Brand>") for n in range(1, 9))


# --- Money and photos, before they are spent and sent
# ----------------------------------------------------------------------------------------------------------


def _prices(desk: Desk) -> Path:
    path = desk.root / "prices.json"
    row = {"input": 10.0, "output": 100.0, "image": {"patch": 32, "most": 1536, "times": 2}}
    told = {"as_of": "2026-01-31", "currency": "EUR", "models": {"some-vlm": row}}
    path.write_text(json.dumps(told))
    return path


def test_an_estimate_asks_nothing_and_counts_what_a_run_asks(desk: Desk, server: Server) -> None:
    desk.draw(4)
    (desk.folder / "t4.txt").write_text(good(4))
    before = sorted(path.name for path in desk.folder.iterdir())
    told = desk.caption(estimate=True, prices=_prices(desk))
    assert server.calls == [] and sorted(path.name for path in desk.folder.iterdir()) == before
    assert (told["to_describe"], told["calls"], told["photos_of_people_sent_away"]) == (3, 6, 0)
    with Image.open(desk.folder / "t1.png") as picture:
        patches = math.ceil(picture.width / 32) * math.ceil(picture.height / 32)
    words = math.ceil(len(CHECK_PROMPT) / 4) + math.ceil(len(CAPTION_PROMPT) / 4)
    assert told["tokens_in"] == 3 * (2 * 2 * patches + words) and told["tokens_out"] == 3 * 360
    cost = (told["tokens_in"] * 10 + told["tokens_out"] * 100) / 1e6
    assert told["cost"] == f"about {cost:.2f} EUR" and "2026-01-31" in told["prices"]
    assert desk.caption()["captioned"] == 3 and len(server.calls) == told["calls"]
    (desk.folder / "t1.txt").unlink()
    again = desk.caption(estimate=True)
    assert (again["calls"], again["answers_at_hand"]) == (0, 2)


def test_caps_stop_a_run_that_the_same_command_finishes(desk: Desk, server: Server) -> None:
    desk.draw(3)
    with pytest.raises(ModelError, match="cap of 4 calls for this run is reached"):
        desk.caption(max_calls=4, concurrency=1)
    assert len(server.calls) == 4
    summary = caption(desk.config(max_calls=4, concurrency=1)).finish()
    assert summary["captioned"] + summary["kept"] == 3 and len(server.calls) == 6
    desk.draw(4)
    with pytest.raises(ModelError, match=r"cap of 0\.001 EUR"):
        desk.caption(max_cost=0.001, prices=_prices(desk))
    assert len(server.calls) == 6
    with pytest.raises(ConfigError, match="is no price file"):
        desk.caption(max_cost=1, prices=desk.folder / "metadata.jsonl")


def test_photos_of_people_leave_this_machine_only_with_leave(desk: Desk) -> None:
    desk.draw(2)
    far = "http://captions.invalid/v1"
    with pytest.raises(ConfigError, match=r"of people would be sent to http://captions\.invalid") as told:
        desk.caption(base_url=far)
    assert "--allow-upload" in told.value.hint
    with pytest.raises(ConfigError, match="would be sent"):  # `triptych run` asks this before `clean` begins
        check_captioner(desk.config(base_url=far))
    assert desk.caption(base_url=far, estimate=True)["photos_of_people_sent_away"] == 2
    with pytest.raises(ModelError, match=r"No captioner answers at http://captions\.invalid"):
        desk.caption(base_url=far, allow_upload=True, attempts=1)
    check_upload("local:some/model", None, False)
    check_upload("m", "http://localhost:8000/v1", False)


def test_the_dated_prices_of_the_package() -> None:
    mini = read_price("gpt-4.1-mini-2025-04-14")
    assert mini is not None and mini == read_price("openai/gpt-4.1-mini") and mini.as_of
    assert image_tokens((2304, 1024), mini) == math.ceil(1536 * 1.62)
    assert image_tokens((2048, 1024), read_price("gpt-4.1")) == 85 + 170 * 3 * 2
    assert image_tokens((1024, 1024), read_price("claude-haiku-4-5")) == 37 * 37
    assert image_tokens((2304, 1024), read_price("google/gemini-3-flash-preview")) == 1100
    assert read_price("some-vlm") is None


def test_prices_from_the_list_of_litellm(tmp_path: Path) -> None:
    path = tmp_path / "model_prices_and_context_window.json"
    row = {"input_cost_per_token": 3e-7, "output_cost_per_token": 1.2e-06, "mode": "chat"}
    rows = {"sample_spec": {"mode": "chat"}, "gpt-4.1-mini": row, "dashscope/a-vlm": row}
    path.write_text(json.dumps(rows | {"azure/gpt-4.1-mini": row | {"input_cost_per_token": 9e-7}}))
    mini = read_price("gpt-4.1-mini-2025-04-14", path)
    assert mini is not None and mini.input == pytest.approx(0.3) and mini.output == pytest.approx(1.2)
    assert image_tokens((2304, 1024), mini) == math.ceil(1536 * 1.62)  # which that list does not say
    other = read_price("a-vlm", path)
    assert other is not None and image_tokens((64, 64), other) == 1000
    path.write_text(json.dumps({"sample_spec": {"mode": "chat"}}))
    with pytest.raises(ConfigError, match="no price file"):
        read_price("gpt-4.1-mini", path)
