"""Whose fault it is that a picture got no caption: while nothing shows that the captioner is well, pictures
that may have failed through it are not moved away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triptych.captioning.failed import Rejected
from triptych.captioning.jobs import Job
from triptych.errors import ModelError

STREAK = 8
"""So many pictures in a row without one usable answer are not the pictures' fault."""


@dataclass(frozen=True)
class Described:
    """What a captioner made of a triptych: a caption, or why there is none.

    image_sha256: of the picture that it saw. captioner: its identity. replaced: how often each brand in the
    caption was replaced.
    """

    job: Job
    image_sha256: str
    captioner: str
    text: str = ""
    replaced: Counter[str] = field(default_factory=Counter)
    rejected: Rejected | None = None


def proven(
    described: Iterable[Described],
    is_settled: Callable[[Job], bool],
    before: Iterable[Mapping[str, Any]],
    name: str,
) -> Iterator[Described]:
    """The same, in an order in which each may be written down: a failure that may be the captioner's waits
    for the next caption that it can make.

    Args:
        is_settled: whether a triptych has got a caption from elsewhere, so that it does not matter here.
        before: the journal's rows about captions, which show that a captioner was well once.
        name: what the user calls the captioner.

    Raises:
        ModelError: it gave no usable answer about `STREAK` pictures in a row, or about any, and never before.
    """
    waiting: list[Described] = []
    worked = False
    for one in described:
        if is_settled(one.job):
            yield one
        elif one.rejected is None:
            worked = True
            yield from waiting
            waiting.clear()
            yield one
        elif one.rejected.fault == "picture" or (one.rejected.fault == "policy" and worked):
            yield one
        else:
            waiting.append(one)
            if len(waiting) >= STREAK:
                break
    well = worked or not waiting or any(row.get("captioner") == waiting[0].captioner for row in before)
    if not well or len(waiting) >= STREAK:
        raise _at_fault([one.rejected for one in waiting if one.rejected], name, worked)
    yield from waiting


def _at_fault(reasons: Sequence[Rejected], name: str, worked: bool) -> ModelError:
    """The end of a run whose captioner is of no use."""
    reason = Counter(str(reason) for reason in reasons).most_common(1)[0][0]
    first = next(one for one in reasons if str(one) == reason)
    which = (
        f"the last {len(reasons)} pictures"
        if worked
        else f"any of the {len(reasons)} pictures it was asked about"
    )
    if len(reasons) == 1 and not worked:
        which = "the one picture it was asked about"
    hints = {
        "policy": "Use another --vlm-model, or bring captions of your own with --captions.",
        "server": "Check vlm_model and base_url, and that this model can see pictures.",
        "model": "Use a --vlm-model that sees pictures and follows instructions, or bring captions of your "
        "own with --captions.",
    }
    return ModelError(
        f"The captioner {name} gave no usable answer about {which}, so none of them was moved: {reason}.",
        first.hint or hints.get(first.fault, hints["model"]),
    )


def spread(jobs: list[Job]) -> list[Job]:
    """The jobs, so that the first few are from all over the set: alike pictures, which lie together, may fail
    alike.
    """
    if len(jobs) <= STREAK:
        return jobs
    first, rest = jobs[: STREAK // 2], jobs[STREAK // 2 :]
    chosen = [rest[(2 * number + 1) * len(rest) // STREAK] for number in range(STREAK // 2)]
    return [*first, *chosen, *(job for job in rest if job not in chosen)]
