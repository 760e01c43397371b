"""A loopback server that speaks OpenAI's chat completions,
and a work folder with triptychs to ask it about.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from triptych.captioning.questions import questions_about
from triptych.store.files import read_jsonl
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.caption import CaptionConfig, caption

CHECK_PROMPT = questions_about(TRY_ON.layout(1, 1)).check
CAPTION_PROMPT = questions_about(TRY_ON.layout(1, 1)).caption
ORDER = "garment, garment, person"
KEY = "sk-canary-9f2d7c"


def good(number: int) -> str:
    return (
        f"Shirt {number} in three pictures. <IMAGE 1> The front. <IMAGE 2> The back. <IMAGE 3> Worn by "
        "Acme's model."
    )


Reply = str | tuple[int, dict[str, str], Any] | dict[str, Any]
Script = Callable[["Call"], Reply]


class Call:
    """One request as the server saw it; `number` is the grey level that the picture carries,
    divided by 10.
    """

    def __init__(self, body: dict[str, Any], headers: dict[str, str], before: list[Call]) -> None:
        self.body, self.headers = body, headers
        text, image = body["messages"][0]["content"]
        self.prompt, self.url = text["text"], image["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(self.url.split(",", 1)[1])))
        self.number = round(picture.convert("L").resize((1, 1)).getpixel((0, 0)) / 10)
        self.question = "caption" if self.prompt.startswith(CAPTION_PROMPT) else "check"
        self.nth = sum(
            (call.number, call.question) == (self.number, self.question) for call in before
        )  # 0 is the first


class Server:
    """Chat completions on 127.0.0.1. `script` answers: text, a whole choice, or (status, headers, body)."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.script: Script = lambda call: ORDER if call.question == "check" else good(call.number)
        self.models: tuple[int, dict[str, str], Any] = (
            404,
            {},
            {},
        )  # what GET answers, which every server does for its models
        self.drop: set[int] = set()  # calls (counted from 0) that are answered with half a body
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    count = len(outer.calls)
                    call = Call(
                        body, {name.lower(): value for name, value in self.headers.items()}, outer.calls
                    )
                    outer.calls.append(call)
                reply = outer.script(call)
                if isinstance(reply, str):
                    reply = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
                if isinstance(reply, dict):
                    reply = (
                        200,
                        {},
                        {"id": "x", "object": "chat.completion", "choices": [{"index": 0} | reply]},
                    )
                status, headers, content = reply
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in (
                    {"Content-Type": "application/json", "Content-Length": str(len(data))} | headers
                ).items():
                    self.send_header(name, value)
                self.end_headers()
                if count in outer.drop:
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self.wfile.write(data)

            def do_GET(self) -> None:
                status, headers, content = outer.models
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in (
                    {"Content-Type": "application/json", "Content-Length": str(len(data))} | headers
                ).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # clients may hang up
                    super().handle()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def asked(self) -> Counter[tuple[int, str]]:
        return Counter((call.number, call.prompt) for call in self.calls)


def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server; the key is set, and retries do not wait."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def write_model(folder: Path) -> Path:
    """A diffusers folder as far as captions need one: settings, and a tokenizer that counts words plus an end
    token.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "word": 2}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(
        Regex("[!-~]+"), "word"
    )  # it knows every word in ASCII, and no other
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(
        folder / "tokenizer_2"
    )
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (folder / "triptych.json").write_text('{"max_sequence_length": 40}')
    return folder


HOSTILE = [
    "garment, garment",
    "garment, garment, person, person",
    "true",
    "I'm sorry, I can't help with identifying people.",
    "garment, garment, person\n<script>alert(1)</script>",
    "../../../../etc/passwd",
    "garment, garment, person\x1b[2J",
    "\u202egarment, garment, person",
    "garment, garment, person? Or person, garment, garment",
    "garment, garment, person\nActually: person, garment, garment",
    "garment, garment, not a person",
    "garment, garment, cat",
    '{"panels": ["garment", "garment"]}',
    "[" * 3000,
]


class Desk:
    """A work folder with grey triptychs t1, t2 …"""

    def __init__(self, root: Path, server: Server, model: Path) -> None:
        self.root, self.server, self.model = root, server, model
        self.folder, self.failed = root / "work" / "triptychs", root / "work" / "failed"
        self.folder.mkdir(parents=True)

    def draw(self, count: int) -> None:
        layout = TRY_ON.layout(16, 32)
        rows = []
        for number in range(1, count + 1):
            Image.new("RGB", layout.size, (10 * number,) * 3).save(self.folder / f"t{number}.png")
            rows.append(
                {
                    "file_name": f"t{number}.png",
                    "id": f"t{number}",
                    "item": f"i{number}",
                    "worn_sha256": f"w{number}",
                }
            )
        (self.folder / "metadata.jsonl").write_text(
            "".join(json.dumps(row | {"layout": layout.to_dict()}) + "\n" for row in rows)
        )

    def config(self, **options: Any) -> CaptionConfig:
        defaults = {
            "work": self.root / "work",
            "model": str(self.model),
            "vlm_model": "some-vlm",
            "base_url": self.server.url,
        }
        return CaptionConfig(
            **defaults | {"brands": ["Acme"], "timeout": 5, "concurrency": 2, "attempts": 3} | options
        )

    def caption(self, **options: Any) -> dict[str, Any]:
        return caption(self.config(**options)).finish()

    def text(self, number: int) -> str:
        return (self.folder / f"t{number}.txt").read_text()

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in read_jsonl(self.folder / "metadata.jsonl")}
