"""Decides whether a failed caption is the picture's fault or the captioner's. Until the captioner is known to
work, pictures that may have failed because of it are not moved away.
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
"""After this many pictures in a row without a usable answer, the captioner is at fault."""


@dataclass(frozen=True)
class Described:
    """A captioner's result for a triptych: a caption, or the reason why there is none.

    image_sha256: hash of the picture that it saw. captioner: its identity. replaced: how often each brand in
    the caption was replaced.
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
    """The same results, in an order in which each can be recorded. A failure that may be the captioner's
    fault waits for the captioner's next success.

    Args:
        is_settled: whether a triptych has got a caption elsewhere meanwhile, so that its failure no longer
            matters.
        before: the journal's rows about captions; they show whether the captioner worked in an earlier run.
        name: the captioner's name as the user wrote it.

    Raises:
        ModelError: no usable answer about `STREAK` pictures in a row; or none at all, now or in earlier runs.
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
    """The error for a captioner that gives no usable answer."""
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
    """The jobs, reordered so that the first few come from all over the set: neighbouring pictures are alike
    and may fail for the same reason.
    """
    if len(jobs) <= STREAK:
        return jobs
    first, rest = jobs[: STREAK // 2], jobs[STREAK // 2 :]
    chosen = [rest[(2 * number + 1) * len(rest) // STREAK] for number in range(STREAK // 2)]
    return [*first, *chosen, *(job for job in rest if job not in chosen)]
