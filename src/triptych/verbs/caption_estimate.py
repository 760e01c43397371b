"""What a run of `caption` would take, before anything is asked, sent or written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from triptych.captioning import prices
from triptych.captioning.answers import Answers
from triptych.captioning.captioners import far_server, no_captioner, server_of
from triptych.captioning.jobs import last_captions, state_of
from triptych.captioning.questions import questions_about
from triptych.captioning.stock import Stock
from triptych.data.triptychs import TriptychFolder
from triptych.events import Event, Run
from triptych.pictures.images import BadImage, check_header
from triptych.store.files import digest, sha256_file
from triptych.verbs.caption_config import CaptionConfig


def estimate(config: CaptionConfig, folder: TriptychFolder, stock: Stock) -> Run:
    """What a run would take. Nothing is asked and nothing written."""
    if not config.vlm_model.strip():
        raise no_captioner()
    server = server_of(config.vlm_model, config.base_url)
    far = far_server(config.vlm_model, config.base_url)
    price = prices.read_price(config.vlm_model, config.prices)
    ours = last_captions(folder.journal_rows())
    jobs = [
        job
        for job in stock.jobs
        if job.id not in stock.texts and state_of(job, ours.get(job.id))[0] == "asked"
    ]
    known = Answers.known_in(folder.journal_rows())
    summary: dict[str, Any] = {"triptychs": len(stock.jobs), "to_describe": len(jobs), "answers_at_hand": 0}

    def work() -> Iterator[Event]:
        asked: list[tuple[tuple[int, int], dict[str, str]]] = []
        for job in jobs:
            questions = questions_about(job.layout)
            prompts = {"check": questions.check if config.do_check else "", "caption": questions.caption}
            sha256, by = sha256_file(job.picture), f"server:{(server or '').rstrip('/')}:{config.vlm_model}"
            wanted = {
                kind: prompt
                for kind, prompt in prompts.items()
                if prompt and digest([sha256, prompt, by, config.max_new_tokens]) not in known
            }
            summary["answers_at_hand"] += sum(map(bool, prompts.values())) - len(wanted)
            with contextlib.suppress(BadImage):  # the run will reject it
                asked += [(check_header(job.picture), wanted)] if wanted else []
            yield Event(job.id, "kept", f"{len(wanted)} questions")
        summary.update(prices.estimate(asked, price, local=far is None and config.prices is None))
        summary["photos_of_people_sent_away"] = len(asked) if far else 0
        summary["server"] = server or "this machine"
        summary["next"] = "A question is asked again where its answer is of no use: up to "
        summary["next"] += f"{1 + config.retries} times a caption. --max-calls and --max-cost set a cap." + (
            " To send the photos, give --allow-upload." if far and not config.allow_upload else ""
        )

    return Run("caption", len(jobs), work(), summary)
