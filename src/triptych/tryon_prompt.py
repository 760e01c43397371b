"""The prompt of a try-on, written by a captioner that sees the two product photos beside the person."""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import Image

from triptych.answers import Answers, Journal
from triptych.backbones.settings import model_settings
from triptych.captioners import load_captioner
from triptych.describe import linter, usable_caption
from triptych.images import load_image, sha256_photo
from triptych.panels import concatenate
from triptych.questions import Captioner
from triptych.store import digest
from triptych.tryon_job import TryonConfig

RETRIES, MAX_NEW_TOKENS = 2, 600
JOURNAL = "prompts.jsonl"


class PromptWriter:
    """Fills in prompts. Answers are kept in a journal in `folder`, so the same photos are never asked about twice."""

    def __init__(self, config: TryonConfig, folder: Path) -> None:
        """Raises ModelError or ConfigError if the captioner cannot be loaded."""
        self._folder = folder
        self._captioner: Captioner | None = load_captioner(config.vlm_model, config.base_url) if config.vlm_model else None

    @functools.cached_property
    def _answers(self) -> Answers:
        self._folder.mkdir(parents=True, exist_ok=True)
        return Answers(Journal(self._folder / JOURNAL))

    def fill(self, config: TryonConfig) -> TryonConfig:
        """The config with a prompt; as it is if it has one.

        Raises:
            InputError: a photo that cannot be read. AnswerError: no usable caption came. ModelError: the captioner is out of order.
        """
        if config.prompt.strip():
            return config
        assert self._captioner and config.front and config.person, "check() was passed"
        layout, limit = config.layout(), model_settings(config.model).max_sequence_length
        photos = {"front": config.front, "back": config.back or config.front, "worn": config.person}

        def picture() -> Image.Image:
            return concatenate([load_image(photos[role]) for role in layout.roles], layout)

        problems = linter(config.model, limit)
        sha256 = digest([layout.to_dict(), *(sha256_photo(photos[role]) for role in layout.roles)])
        ask = functools.partial(self._answers.ask, self._captioner, config.picture.stem, picture, sha256)
        prompt = usable_caption(
            functools.partial(ask, max_new_tokens=MAX_NEW_TOKENS), lambda text: problems(text, len(layout.roles)), (), limit, RETRIES
        )
        return config.model_copy(update={"prompt": prompt})
