"""Collects remarks for the summary of `caption`: problems of captions that are used nevertheless, and the
brands replaced in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from triptych.captioning.jobs import Job
from triptych.data.brands import MANY
from triptych.data.captions import UNREADABLE, in_house, read_caption
from triptych.errors import InputError

MOST = 20
"""Most warnings in a summary; further ones are only counted."""


class Remarks:
    """Counts in `summary`. problems: returns the problems of a caption, given its number of panels."""

    def __init__(self, summary: dict[str, Any], problems: Callable[[str, int], list[str]]) -> None:
        self._summary, self._problems = summary, problems

    def of(self, job: Job, changed: str = "") -> str:
        """The problems of an existing caption as a sentence; `changed` comes first."""
        try:
            caption = in_house(read_caption(job.text_file), job.markers)
            found = self._problems(caption, len(job.layout.roles))
        except InputError as error:
            found = [str(error)]
        note = "; ".join([changed] * bool(changed) + found)
        if note:
            self._summary["captions_with_warnings"] += 1
            self._summary["captions_unreadable"] += UNREADABLE in found
            self._warn(f"{job.text_file.name}: {note}")
        return note

    def count_brands(self, job: Job, replaced: Counter[str]) -> None:
        """Note how often each brand was replaced in a caption; a high number may mean a common word."""
        counts = self._summary["brands_replaced"]
        for name, number in replaced.items():
            counts[name] = counts.get(name, 0) + number
            if number > MANY:
                self._warn(
                    f"{job.text_file.name}: the brand {name} was replaced {number} times; is it also a "
                    "common word?"
                )

    def _warn(self, warning: str) -> None:
        self._summary["warnings"] += [warning] if len(self._summary["warnings"]) < MOST else []
