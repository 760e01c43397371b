"""What lies in a folder of triptychs, and beside it, before anybody is asked: the pictures, those that come
back, and captions of the user's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triptych.captioning.brought import Brought, newer_captions, own_captions
from triptych.captioning.failed import Failed, find_failed
from triptych.captioning.jobs import Job, last_captions, read_jobs, state_of
from triptych.data.triptychs import TriptychFolder


@dataclass(frozen=True)
class Stock:
    """What `take_stock` finds.

    jobs: a job for every triptych, those that come back among them, in the order of their pictures.
    returning: pictures that failed before and come back. not_returned: why others cannot.
    left_out: pictures that are no triptychs, each with the reason. own: captions of the user's own.
    texts: by id, the caption files that are to be written, from the user's folder or from metadata.jsonl.
    """

    jobs: list[Job]
    returning: list[Failed]
    not_returned: list[str]
    left_out: list[tuple[Path, str]]
    own: Brought
    texts: dict[str, str]
    asks: bool
    """Whether any triptych has no caption, so that a captioner is needed."""

    def source(self, id: str) -> str:
        """The text that a caption was taken from."""
        return self.own.texts[id][0] if id in self.own.texts else self.texts[id]


def take_stock(folder: TriptychFolder, fail_folder: Path, captions: Path | None, retry_failed: bool) -> Stock:
    """Look at everything; nothing is changed.

    Args:
        captions: the user's folder of captions. retry_failed: whether all that failed before come back; else
            those do that the user has brought a caption for.

    Raises:
        WorkError: a metadata.jsonl that is damaged. InputError: a folder of captions that is missing, or has
            none for any of these triptychs.
    """
    known, here = folder.journal_rows(), read_jobs(folder)
    failed, left = find_failed(fail_folder, folder.path, known) if retry_failed or captions else ([], [])
    own = own_captions(captions, folder.path, [*here, *(one.job for one in failed)])
    returning = [one for one in failed if retry_failed or one.job.id in own.texts]
    there = {job.id for job in here}
    jobs = [*here, *(one.job for one in returning if one.job.id not in there)]
    jobs.sort(key=lambda job: job.picture)
    told = {
        job.id: job.told_caption + "\n" for job in jobs if job.told_caption and not job.text_file.exists()
    }
    texts, ours = told | newer_captions(own, jobs, known), last_captions(known)
    asks = any(job.id not in texts and state_of(job, ours.get(job.id))[0] == "asked" for job in jobs)
    return Stock(jobs, returning, left, folder.left_out(), own, texts, asks)
