"""What questions to a captioner cost, and a captioner that stops before a cap is passed.

Prices are data, `prices.json` beside this file or a file of the user's: the date they were taken, the
currency, and for each model what a million tokens of input and of output cost and how it counts the tokens
of a picture. LiteLLM's list of models (`model_prices_and_context_window.json`) is read as well; it says
nothing of pictures, whose tokens are then counted as our file says.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.captioning.questions import AnswerError, Captioner
from triptych.errors import ConfigError, ModelError
from triptych.store.files import parse_json, read_text

if TYPE_CHECKING:
    from PIL import Image

PRICES = Path(__file__).with_name("prices.json")
LETTERS_PER_TOKEN = 4
"""Letters of English text per token, about."""
USUAL_IMAGE_TOKENS = 1000
"""Tokens of a picture for a model of which the price file says nothing."""
USUAL_ANSWER = {"check": 10, "caption": 350}
"""Tokens of an answer, about: three words, and a caption of 250 words."""
_MOST_BYTES = 16 << 20  # LiteLLM's list has two million


@dataclass(frozen=True)
class Price:
    """The price of a model.

    input, output: money for a million tokens. image: how the tokens of a picture are counted: by `patch`
    pixels, at `most` that many, `times` a factor; or `base` tokens and `each` for every tile of `tile`
    pixels; or `base` tokens alone, whatever the size.
    """

    input: float
    output: float
    image: dict[str, float]
    currency: str
    as_of: str

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


def read_price(model: str, file: Path | None = None) -> Price | None:
    """The price of a model, by its name without a date (`gpt-4.1-mini-2025-04-14` is `gpt-4.1-mini`); None
    if the file has none.

    Raises:
        InputError: the file cannot be read. ConfigError: it is no price file.
    """
    path = file or PRICES
    try:
        data = parse_json(read_text(path, _MOST_BYTES, "The price file"))
        if "models" not in data:
            data = _from_litellm(data, path)
        if not (row := _row_of(model, data["models"])):
            return None
        rule = row["image"] if "image" in row else _usual_rule(model)
        image = {key: float(value) for key, value in (rule or {}).items()}
        price = Price(
            float(row["input"]), float(row["output"]), image, str(data["currency"]), str(data["as_of"])
        )
        if not all(0 <= one < math.inf for one in (price.input, price.output, *image.values())):
            raise ValueError("a price is not a positive number")
        return price
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no price file ({type(error).__name__}: {error}).",
            'Write {"as_of": "2026-01-31", "currency": "USD", "models": {"NAME": {"input": 0.4, "output": '
            "1.6}}} with prices per million tokens.",
        ) from error


def _row_of(model: str, rows: dict[str, Any]) -> dict[str, Any]:
    """The row of a model, whose name may have a provider before it and a date behind it; empty if none."""
    name = model.rsplit("/", 1)[-1].lower()
    known = [
        one
        for one in rows
        if name == (plain := one.rsplit("/", 1)[-1].lower()) or name.startswith(f"{plain}-20")
    ]
    # of one name, the row without a provider
    return dict(rows[max(known, key=lambda one: (len(one.rsplit("/", 1)[-1]), -len(one)))]) if known else {}


def _usual_rule(model: str) -> dict[str, float]:
    """How a model counts the tokens of a picture, by the package's file."""
    return dict(_row_of(model, parse_json(PRICES.read_text("utf-8"))["models"]).get("image") or {})


def _from_litellm(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """LiteLLM's list in the form of our file. Its prices are of one token; it has no date of its own.

    Raises:
        KeyError: no model has prices, so it is another file.
    """
    costs = ("input_cost_per_token", "output_cost_per_token")
    rows = {
        name: {"input": 1e6 * float(row[costs[0]]), "output": 1e6 * float(row[costs[1]])}
        for name, row in data.items()
        if isinstance(row, dict) and all(isinstance(row.get(key), int | float) for key in costs)
    }
    if not rows:
        raise KeyError("models")
    saved = date.fromtimestamp(path.stat().st_mtime).isoformat()
    return {"models": rows, "currency": "USD", "as_of": f"{saved}, when the file was saved"}


def image_tokens(size: tuple[int, int], price: Price | None) -> int:
    """The tokens of a picture of (width, height) pixels, as OpenAI's guide to images and vision counts
    them.
    """
    rule, (width, height) = price.image if price else {}, size
    if "patch" in rule:
        side, most = max(1.0, rule["patch"]), rule.get("most", math.inf)
        patches = math.ceil(width / side) * math.ceil(height / side)
        return math.ceil(min(patches, most) * rule.get("times", 1))
    if "tile" in rule:
        scale = min(1.0, 2048 / max(size))
        scale *= min(1.0, 768 / (min(size) * scale))
        tiles = [math.ceil(round(side * scale, 3) / max(1.0, rule["tile"])) for side in size]
        return math.ceil(rule.get("base", 0) + rule.get("each", 0) * tiles[0] * tiles[1])
    if "base" in rule:
        return math.ceil(rule["base"])
    return USUAL_IMAGE_TOKENS


def text_tokens(text: str) -> int:
    """The tokens of a text, about."""
    return math.ceil(len(text) / LETTERS_PER_TOKEN)


class Capped:
    """A captioner that asks no question beyond a number of calls or a sum of money.

    Before a call its highest cost is set aside: the question, and the longest answer that is allowed.
    Afterwards the answer's own length counts. Several threads may ask at once.
    """

    def __init__(
        self, captioner: Captioner, price: Price | None, max_calls: int | None, max_cost: float | None
    ) -> None:
        self._captioner, self._price = captioner, price
        self._max_calls, self._max_cost = max_calls, max_cost
        self._calls, self._cost, self._lock = 0, 0.0, threading.Lock()
        self.identity, self.concurrent, self.knows = captioner.identity, captioner.concurrent, captioner.knows

    def ask(self, image: Image.Image, prompt: str, max_new_tokens: int) -> str:
        asked = image_tokens(image.size, self._price) + text_tokens(prompt)
        most = self._price.cost(asked, max_new_tokens) if self._price else 0.0
        with self._lock:
            if self._max_calls is not None and self._calls >= self._max_calls:
                raise _reached(f"{self._max_calls} calls", "--max-calls")
            if self._max_cost is not None and self._cost + most > self._max_cost:
                currency = f" {self._price.currency}" if self._price else ""
                raise _reached(f"{self._max_cost:g}{currency}", "--max-cost")
            self._calls += 1
            self._cost += most
        try:
            answer = self._captioner.ask(image, prompt, max_new_tokens)
        except AnswerError:
            raise  # it may have been paid for: the highest cost stays
        if self._price:
            with self._lock:
                self._cost += self._price.cost(asked, min(max_new_tokens, text_tokens(answer))) - most
        return answer

    def check(self) -> None:
        self._captioner.check()

    def close(self) -> None:
        self._captioner.close()


def _reached(cap: str, option: str) -> ModelError:
    return ModelError(
        f"The cap of {cap} for this run is reached.",
        f"What is answered is kept. The same command goes on with as much again; raise {option} for more.",
    )


def estimate(
    asked: list[tuple[tuple[int, int], dict[str, str]]], price: Price | None, *, local: bool
) -> dict[str, Any]:
    """What questions will take: calls, tokens, cost and the prices' date.

    asked: for every picture its size, and its questions by kind (`check`, `caption`). local: whether the
    model is on this machine, where only time is spent.
    """
    calls = sum(len(questions) for _, questions in asked)
    tokens_in = sum(
        image_tokens(size, price) + text_tokens(prompt)
        for size, questions in asked
        for prompt in questions.values()
    )
    tokens_out = sum(USUAL_ANSWER[kind] for _, questions in asked for kind in questions)
    if local:
        cost, prices = "nothing: the model is on this machine", ""
    elif price is None:
        cost, prices = "unknown: no price for this model; give --prices FILE", ""
    else:
        cost = f"about {price.cost(tokens_in, tokens_out):.2f} {price.currency}"
        prices = f"of {price.as_of}: check them, or give your own with --prices"
    return {"calls": calls, "tokens_in": tokens_in, "tokens_out": tokens_out, "cost": cost, "prices": prices}
