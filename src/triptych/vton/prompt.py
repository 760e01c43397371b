"""Writes the prompt of a try-on with a captioner, which sees the product photos beside the person."""

from __future__ import annotations

import functools
import gc
import json
from pathlib import Path

from PIL import Image

from triptych.captioning.answers import Answers
from triptych.captioning.captioners import check_upload, load_captioner
from triptych.captioning.questions import AnswerError, Captioner, questions_about
from triptych.captioning.write import linter, usable_caption
from triptych.errors import InputError
from triptych.pictures.images import load_image, sha256_photo
from triptych.pictures.panels import PanelLayout, concatenate
from triptych.pocket.known_worlds import check_pictures
from triptych.store.files import digest
from triptych.store.journal import Journal
from triptych.vton.files import TryonConfig
from triptych.vton.garments import dressed

RETRIES, MAX_NEW_TOKENS = 2, 600
JOURNAL = "prompts.jsonl"


class PromptWriter:
    """Fills in prompts. A journal in `folder` keeps the answers, so that no question about the same photos is
    asked twice.
    """

    def __init__(self, config: TryonConfig, folder: Path) -> None:
        """Raises ModelError or ConfigError if the captioner cannot be loaded, InputError if a foreign file
        has the journal's name.
        """
        self._folder = folder
        if config.vlm_model:
            check_upload(config.vlm_model, config.base_url, config.allow_upload)
            _check_journal(folder / JOURNAL)
        self._device = config.device
        self._captioner: Captioner | None = (
            load_captioner(config.vlm_model, config.base_url, device=config.device)
            if config.vlm_model
            else None
        )

    @functools.cached_property
    def _answers(self) -> Answers:
        self._folder.mkdir(parents=True, exist_ok=True)
        return Answers(Journal(self._folder / JOURNAL))

    def fill(self, config: TryonConfig, layout: PanelLayout, limit: int) -> TryonConfig:
        """Return the config with a prompt; unchanged if it has one. limit: tokens that the model reads.

        Raises:
            InputError: an unreadable photo. AnswerError: no usable caption. ModelError: the captioner fails.
        """
        if config.prompt.strip():
            return config
        assert self._captioner and config.person, "check() was passed"
        photos = dressed(layout, config.garments())[1] | dict.fromkeys(layout.made, config.person)
        shown = {path: load_image(path) for path in photos.values()} if self._captioner.knows else {}
        named = [(path.name, image) for path, image in shown.items()]
        check_pictures(self._captioner.knows, named, "captioner", str(config.vlm_model), config.anyway)

        def picture() -> Image.Image:
            return concatenate([load_image(photos[role]) for role in layout.roles], layout)

        problems = linter(config.model, limit)
        sha256 = digest([layout.to_dict(), *(sha256_photo(photos[role]) for role in layout.roles)])
        ask = self._answers.dialogue(self._captioner, config.picture.stem, picture, sha256, MAX_NEW_TOKENS)
        questions = questions_about(layout)
        panels = len(layout.roles)
        while True:
            try:
                prompt, _ = usable_caption(
                    ask, questions, lambda text: problems(text, panels), (), limit, RETRIES
                )
                return config.model_copy(update={"prompt": prompt})
            except AnswerError:
                if not ask.forget():  # useless answers of an earlier run are asked for once more
                    raise

    def close(self) -> None:
        """Release the captioner, which may hold gigabytes on this machine. Ask nothing after this."""
        self._captioner = None
        gc.collect()
        from triptych.compute.devices import give_back, usable_device

        give_back(usable_device(self._device))


def _check_journal(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        if not path.is_file():
            raise ValueError
        with open(path, "rb") as file:
            first = file.readline(1 << 20)
        ours = json.loads(first).get("kind") == "answer"
    except (ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise InputError(
            f"{path} is there already, and triptych did not write it.",
            "Move it away, or give another place with --out.",
        )
