"""The kinds of pictures a model knows. Most models know photographs; one that knows only a small world states
it in its `triptych.json`:

    {"knows": "rendered"}

Such a model gets no pictures of another world unless the user insists, because its results would be useless.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from triptych.errors import InputError, ModelError

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

WORLDS = ("", "rendered")
"""Valid values of `knows`; empty for all pictures."""
OTHER = {
    "model": "Give another --model, such as black-forest-labs/FLUX.2-klein-base-4B; "
    "--anyway goes on all the same.",
    "captioner": "Give another --vlm-model, such as gpt-4.1-mini; --anyway goes on all the same.",
    "parser": "Draw the outline and give --polygon, or give another --parser, such as "
    "mattmdjaga/segformer_b2_clothes; --anyway goes on all the same.",
}


def check_pictures(
    knows: str,
    pictures: Iterable[tuple[str, Image.Image]],
    kind: Literal["model", "captioner", "parser"],
    name: str,
    anyway: bool,
) -> None:
    """Refuse pictures of a kind that a model has never seen; with `anyway`, only warn.

    Args:
        knows: the world it knows, of `WORLDS`. pictures: each with a name for messages; a whole picture or
            one panel. kind, name: whether it is a model, a captioner or a parser, and its name as given.

    Raises:
        InputError: names the first such picture, and the number of others.
    """
    strange = strangers(knows, pictures)
    if not strange:
        return
    more = len(strange) - 1
    others = f" (and so {'does' if more == 1 else 'do'} {more} more)" if more else ""
    who = f"the {Path(name).name} {kind}"
    message = f"{strange[0]} looks like a photograph{others}, and {who} has only seen drawings."
    if not anyway:
        raise InputError(message, OTHER[kind])
    log.warning("%s Expect nothing of use.", message)


def strangers(knows: str, pictures: Iterable[tuple[str, Image.Image]]) -> list[str]:
    """The names of the pictures outside the world that a model knows, each once."""
    if not knows:
        return []
    belongs = _judge(knows)
    return list(dict.fromkeys(called for called, image in pictures if not belongs(image)))


def known_by(folder: Path) -> str:
    """The world that the model in a folder knows, from its `triptych.json`.

    Raises:
        ModelError: the file cannot be read, or names no known world.
    """
    file = folder / "triptych.json"
    try:
        knows = json.loads(file.read_text(encoding="utf-8")).get("knows", "") if file.is_file() else ""
        if knows not in WORLDS:
            raise ValueError(f"nothing is known of the world {str(knows)[:40]!r}")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(
            f"The settings of {folder} cannot be used: {error}.", f"Mend {file}, or delete it."
        ) from error
    return str(knows)


def _judge(knows: str) -> Callable[[Image.Image], bool]:
    assert knows == "rendered", knows
    from triptych.pocket.drawings import is_drawing

    return is_drawing
