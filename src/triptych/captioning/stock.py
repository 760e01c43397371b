"""Takes stock of a folder of triptychs before any captioner is asked: the pictures, those to move back, and
the user's own captions.
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
    """The result of `take_stock`.

    jobs: one for every triptych, those to move back included, in the order of the pictures. returning: failed
    pictures to move back. not_returned: reasons why other failed pictures stay. left_out: files that are no
    triptychs, each with the reason. own: the user's own captions. texts: by id, the caption files to write,
    from the user's folder or from metadata.jsonl.
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
        """The source of a caption: the user's text before any change."""
        return self.own.texts[id][0] if id in self.own.texts else self.texts[id]


def take_stock(folder: TriptychFolder, fail_folder: Path, captions: Path | None, retry_failed: bool) -> Stock:
    """Look at everything and change nothing.

    Args:
        captions: the user's folder of captions. retry_failed: move all failed pictures back; otherwise only
            those for which the user has brought a caption.

    Raises:
        WorkError: a damaged metadata.jsonl. InputError: the folder of captions is missing, or has no caption
            for any of these triptychs.
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
