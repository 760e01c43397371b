"""The captioners: servers in trouble, what a name stands for, and a real (tiny) transformers model."""

from __future__ import annotations

import email.utils
import json
import time
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
from triptych.captioning.captioners import load_captioner
from triptych.captioning.questions import AnswerError, quote
from triptych.captioning.replies import ReplyError, read_reply, retry_after
from triptych.data.captions import Caption
from triptych.errors import ConfigError, ModelError
from triptych.store.files import read_jsonl
from triptych.store.journal import Journal
from triptych.verbs.caption import caption

# --- Servers in trouble
# -------------------------------------------------------------------------------------------------

error = {"error": {"message": "busy", "type": "server_error", "code": None, "param": None}}
FAULTS: dict[str, Reply] = {
    "429": (429, {"Retry-After": "0"}, error),
    "429 date in the past": (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, error),
    "429 nonsense": (429, {"Retry-After": "soon"}, error),
    "500": (500, {}, error),
    "502 html": (502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>"),
    "503": (503, {}, b""),
    "408": (408, {}, error),
    "409": (409, {}, error),
    "invalid json": (200, {}, b'{"choices": [{"mess'),
    "html instead of json": (200, {"Content-Type": "text/html"}, b"<html>login</html>"),
    "no choices": (200, {}, {"choices": []}),
    "wrong types": (200, {}, {"choices": [{"message": {"content": 5}}]}),
    "not an object": (200, {}, []),
    "null": (200, {}, b"null"),
    "bad charset": (200, {}, b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'),
    "bad gzip": (200, {"Content-Encoding": "gzip"}, b"this is not gzip"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_passing_faults_cost_one_more_call_and_nothing_else(desk: Desk, server: Server, fault: str) -> None:
    desk.draw(1)
    server.script = lambda call: (
        FAULTS[fault] if len(server.calls) == 1 else ORDER if call.question == "check" else good(1)
    )
    assert desk.caption()["captioned"] == 1
    assert len(server.calls) == 3


def test_connection_that_breaks_in_the_middle(desk: Desk, server: Server) -> None:
    desk.draw(1)
    server.drop = {0}
    assert desk.caption()["captioned"] == 1
    assert len(server.calls) == 3


def test_server_that_is_too_slow(desk: Desk, server: Server) -> None:
    desk.draw(1)

    def script(call: Call) -> Reply:
        time.sleep(1.5 if len(server.calls) == 1 else 0)
        return ORDER if call.question == "check" else good(1)

    server.script = script
    assert desk.caption(timeout=0.5)["captioned"] == 1


def test_retry_after_is_waited_for(desk: Desk, server: Server) -> None:
    desk.draw(1)
    times: list[float] = []

    def script(call: Call) -> Reply:
        times.append(time.monotonic())
        return (
            (429, {"Retry-After": "1"}, error)
            if len(times) == 1
            else ORDER
            if call.question == "check"
            else good(1)
        )

    server.script = script
    assert desk.caption()["captioned"] == 1
    assert times[1] - times[0] >= 1


def test_retry_after_header() -> None:
    assert [retry_after(header) for header in (None, "", "soon", "-3", "nan", "inf", "7")] == [
        0,
        0,
        0,
        0,
        0,
        0,
        7,
    ]
    assert 55 < retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        ((500, {}, error), 3),
        ((429, {"Retry-After": "600"}, error), 1),
        ((429, {}, {"error": {"message": "pay", "code": "insufficient_quota"}}), 1),
        ((401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), 1),
        ((403, {}, {"error": {"message": f"{KEY} may not <b>do</b> this"}}), 1),
        ((404, {}, error), 1),
        ((405, {}, error), 1),
        ((308, {"Location": "http://127.0.0.1:9/v1/chat/completions"}, {}), 1),
        ((200, {}, {"error": {"message": f"No credits left for {KEY}", "code": 402}}), 1),
    ],
)
def test_server_out_of_order_stops_the_run_keeps_the_work_and_leaks_no_key(
    desk: Desk, server: Server, reply: Reply, calls: int
) -> None:
    desk.draw(4)
    server.script = lambda call: (
        reply if call.number >= 3 else ORDER if call.question == "check" else good(call.number)
    )
    run = caption(desk.config(concurrency=1))
    with pytest.raises(ModelError) as caught:
        run.finish()
    shown = f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
    assert caught.value.hint and KEY not in shown and "<b>" not in shown
    assert len(server.calls) == 4 + calls
    assert run.summary["captioned"] == 2 and run.summary["rejected"] == 0 and not desk.failed.exists()
    assert [row.get("text") for row in desk.rows().values()] == [
        desk.text(1).strip(),
        desk.text(2).strip(),
        None,
        None,
    ]
    server.calls.clear()
    server.script = lambda call: ORDER if call.question == "check" else good(call.number)
    assert desk.caption()["captioned"] == 2
    assert sorted((call.number, call.question) for call in server.calls) == [
        (n, q) for n in (3, 4) for q in ("caption", "check")
    ]
    assert all(KEY.encode() not in path.read_bytes() for path in desk.root.rglob("*") if path.is_file())


def test_nobody_listens(desk: Desk) -> None:
    desk.draw(1)
    with pytest.raises(ModelError, match="no connection"):
        desk.caption(base_url="http://127.0.0.1:9/v1")


def test_policy_refusal_is_about_one_picture_only(desk: Desk, server: Server) -> None:
    desk.draw(2)
    policy = {"error": {"message": "flagged", "code": "content_policy_violation"}}
    server.script = lambda call: (
        (400, {}, policy) if call.number == 1 else ORDER if call.question == "check" else good(2)
    )
    summary = desk.caption()
    assert (summary["captioned"], summary["rejected"]) == (1, 1)


def test_options_a_server_does_not_know_are_left_out(desk: Desk, server: Server) -> None:
    desk.draw(4)

    def script(call: Call) -> Reply:
        if "max_tokens" in call.body:
            return (
                400,
                {},
                {
                    "error": {
                        "message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
                    }
                },
            )
        if "temperature" in call.body:
            return 400, {}, {"error": {"message": "Unsupported value: 'temperature' does not support 0."}}
        return ORDER if call.question == "check" else good(call.number)

    server.script = script
    assert desk.caption(concurrency=4, max_new_tokens=321, attempts=5)["captioned"] == 4
    assert server.calls[-1].body["max_completion_tokens"] == 321
    assert len(server.calls) <= 8 + 8  # learnt once per run, not once per question


def test_torn_journal_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "caption.jsonl"
    journal = Journal(path)
    journal.append({"kind": "answer", "answer": "a\u2028b\x85\ud800"})
    path.write_bytes(path.read_bytes() + b'{"kind": "ans')
    journal = Journal(path)
    assert journal.rows == [{"kind": "answer", "answer": "a\u2028b\x85\ud800"}]
    journal.append({"n": 2})
    assert [row.get("n") for row in read_jsonl(path)] == [None, 2]


# --- Which captioner a name means
# ---------------------------------------------------------------------------------------


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert load_captioner("gpt-4.1-mini").identity == "server:https://api.openai.com/v1:gpt-4.1-mini"
    assert (
        load_captioner("/models/qwen", "http://h:8000/v1").identity == "server:http://h:8000/v1:/models/qwen"
    )
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        load_captioner("gpt-4.1-mini")
    with pytest.raises(ModelError, match="no folder"):
        load_captioner("./nowhere")
    for name in (
        str(tmp_path),
        "local:no-such/model",
    ):  # an existing folder without a model; a name the offline hub lacks
        with pytest.raises(ModelError, match=r"cannot be loaded|no-such/model is not on this machine"):
            load_captioner(name)
    for url in (
        "ftp://h/v1",
        "h:8000",
        "http://user:secret@h/v1",
        "http://h/v1?key=secret",
        "file:///etc/passwd",
    ):
        with pytest.raises(ConfigError) as caught:
            load_captioner("m", url)
        assert "secret" not in str(caught.value)
    for name in ("pocket", "local:x/y"):
        with pytest.raises(ConfigError, match="base_url is given"):
            load_captioner(name, "http://h/v1")


def test_quote_is_harmless() -> None:
    for text in [*HOSTILE, "x" * 10_000, "\ud800", "\x00"]:
        shown = quote(text)
        assert shown.isascii() and shown.isprintable() and len(shown) <= 120 and "<" not in shown


# --- A real transformers model
# ------------------------------------------------------------------------------------------

LOCAL_CAPTION = (
    "Three pictures of one Acme shirt. <IMAGE 1> The front. <IMAGE 2> The back. <IMAGE 3> A person."
)


@pytest.fixture(scope="session")
def local_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA in small, which has learnt by heart what to answer to our two questions; saved as any such model
    is.
    """
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for its threads
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    pieces = pre_tokenizers.Split(Regex(r"\s*\S+"), "isolated")
    text = f"{CHECK_PROMPT} {ORDER} {CAPTION_PROMPT} {LOCAL_CAPTION}"
    words = [
        piece
        for part in (CHECK_PROMPT, ORDER, CAPTION_PROMPT, LOCAL_CAPTION, text)
        for piece, _ in pieces.pre_tokenize_str(part)
    ]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pieces, decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else "
        "c['text'] }}{% endfor %}{% endfor %}"
    )
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        pixels, fast, 8, "default", chat_template=template, num_additional_image_tokens=1
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    llama = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=llama,
            image_token_id=vocabulary["<image>"],
            vision_feature_layer=-1,
        )
    )
    batch = []
    for prompt, answer in [(CHECK_PROMPT, ORDER), (CAPTION_PROMPT, LOCAL_CAPTION)]:
        inputs = processor(
            images=Image.new("RGB", (48, 32), "gray"),
            text=f"<image>{prompt} {answer}</s>",
            return_tensors="pt",
        )
        asked = len(
            processor(images=Image.new("RGB", (48, 32)), text="<image>" + prompt, return_tensors="pt")[
                "input_ids"
            ][0]
        )
        labels = inputs["input_ids"].clone()
        labels[:, :asked] = -100
        batch.append(inputs | {"labels": labels})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = sum(model(**inputs).loss for inputs in batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp("captioner")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_local_model_through_the_whole_stage(desk: Desk, local_captioner: Path) -> None:
    desk.draw(2)
    summary = desk.caption(vlm_model=str(local_captioner), base_url=None)
    assert (summary["captioned"], summary["rejected"]) == (2, 0), summary
    assert desk.text(1) == LOCAL_CAPTION.replace("Acme", "<Brand>") + "\n"
    assert Caption.parse(desk.text(1)).panels == ("The front.", "The back.", "A person.")
    by = desk.rows()["t1"]["caption_by"]
    assert by.startswith(f"local:{local_captioner.name}:") and str(local_captioner.parent) not in by
    assert load_captioner(f"local:{local_captioner}").identity == by


def test_local_model_that_is_cut_off_says_so(local_captioner: Path) -> None:
    captioner = load_captioner(str(local_captioner))
    with pytest.raises(AnswerError, match="length limit"):
        captioner.ask(Image.new("RGB", (48, 32), "gray"), CAPTION_PROMPT, 5)
    assert captioner.ask(Image.new("RGB", (48, 32), "gray"), CHECK_PROMPT, 50) == ORDER
    with pytest.raises(ModelError, match="tokens"):
        captioner.ask(Image.new("RGB", (48, 32)), "word " * 300, 5)


def test_local_model_in_pickle_is_refused(local_captioner: Path, tmp_path: Path) -> None:
    for path in local_captioner.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_captioner(str(tmp_path))


@pytest.mark.parametrize("row", [{"id": ["x"]}, {"id": "t1", "image_sha256": {}}, {"id": "t1", "key": 5}])
def test_journal_rows_of_other_kinds_are_passed_over(desk: Desk, row: dict[str, object]) -> None:
    desk.draw(1)
    kinds = ("answer", "caption", "rejected", "returned", "brought")
    (desk.folder / "caption.jsonl").write_text(
        "".join(json.dumps({"kind": kind, **row}) + "\n" for kind in kinds)
    )
    assert desk.caption(retry_failed=True)["captioned"] == 1


def test_fail_path_that_is_a_file_is_refused_before_anybody_is_asked(desk: Desk, server: Server) -> None:
    desk.draw(1)
    desk.failed.touch()
    with pytest.raises(ConfigError, match="is no folder"):
        desk.caption()
    assert server.calls == []


# --- Replies in other wrappings
# -----------------------------------------------------------------------------------------


def completion(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}


def streamed(text: str) -> bytes:
    pieces = [{"choices": [{"delta": {"content": piece}}]} for piece in (text[:9], text[9:])]
    events = [
        *map(
            json.dumps,
            [*pieces, {"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {}}],
        ),
        "[DONE]",
    ]
    return (": PROCESSING\n\n" + "".join(f"data: {event}\n\n" for event in events)).encode()


WRAPPINGS = {
    "events of a stream": streamed,
    "a byte-order mark": lambda text: b"\xef\xbb\xbf" + json.dumps(completion(text)).encode(),
    "line ends that keep it alive": lambda text: b"\n\n  \n" + json.dumps(completion(text)).encode(),
    "a gateway's envelope": lambda text: json.dumps(
        {"code": 0, "msg": "ok", "data": completion(text)}
    ).encode(),
    "text as before chat": lambda text: json.dumps(
        {"choices": [{"text": text, "finish_reason": "stop"}]}
    ).encode(),
    "another encoding": lambda text: json.dumps(completion(text), ensure_ascii=False).encode("cp1252"),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_completion_in_another_wrapping_is_read(wrapping: str) -> None:
    assert read_reply(WRAPPINGS[wrapping]("A café – with “quotes”.")) == "A café – with “quotes”."


def test_events_that_are_an_error_or_cut_off_are_said_as_such() -> None:
    with pytest.raises(ReplyError, match="model crashed"):
        read_reply(b'data: {"error": {"message": "model crashed"}}\n\n')
    with pytest.raises(AnswerError, match="cut off"):
        read_reply(streamed("A").replace(b'"stop"', b'"length"'))
    with pytest.raises(ReplyError, match=r"no chat completion|no answer"):
        read_reply(b"data: [DONE]\n\n")


def test_too_short_a_context_is_named(desk: Desk, server: Server) -> None:
    desk.draw(1)
    server.script = lambda call: (
        400,
        {},
        {"error": {"message": "This model's maximum context length is 512 tokens."}},
    )
    with pytest.raises(ModelError, match="maximum context length") as caught:
        desk.caption()
    assert "--ctx-size" in caught.value.hint
