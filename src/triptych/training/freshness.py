"""Check that the embeddings match the current triptychs: none missing,
none of an older caption or picture.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from triptych.data.embeddings import REJECTS, EmbeddingFolder
from triptych.data.triptychs import METADATA, TriptychFolder
from triptych.errors import ConfigError, WorkError
from triptych.store.files import read_jsonl, sha256_file
from triptych.training.config import TrainConfig

log = logging.getLogger(__name__)


def check_embeddings(config: TrainConfig, records: EmbeddingFolder) -> None:
    """Compare the records with the folder of triptychs. Without that folder, only log a warning.

    Raises:
        WorkError: a captioned triptych has no record, or a record's picture or caption has changed or is
            gone.
        ConfigError: clean context is on, and the layout of some triptychs was only guessed.
    """
    guessed = [id for id, about in records.about.items() if about.get("layout_by") == "guess"]
    if config.context != "noisy" and guessed:
        problem = (
            f"Of {len(guessed)} triptychs ({guessed[0]} …) the panels' positions were only guessed, "
            "and clean context depends on them."
        )
        raise ConfigError(
            problem,
            f"Run `triptych embed` again with --columns 3, or write their layouts into {METADATA}.",
        )
    folder = TriptychFolder(config.triptych_folder)
    if not folder.pictures():
        log.warning(
            "There are no triptychs in %s, so the embeddings cannot be compared with them.",
            folder.path,
        )
        return
    captioned = folder.captioned()
    if not captioned.keys() & set(records.ids):
        log.warning("The triptychs in %s are not those of the embeddings in %s.", folder.path, records.path)
        return
    missing = changed = 0
    left_out = _left_out(records)
    for id, (picture, caption) in captioned.items():
        hashes = sha256_file(picture), hashlib.sha256(caption.encode()).hexdigest()
        about = records.about.get(id)
        if about is None:
            missing += left_out.get(id) != hashes
        else:
            changed += hashes != (about["image_sha256"], about["caption_sha256"])
    gone = len(set(records.ids) - captioned.keys())
    if missing or changed or gone:
        counts = ((missing, "not embedded"), (changed, "changed since"), (gone, "gone or without a caption"))
        said = ", ".join(f"{count} {'is' if count == 1 else 'are'} {what}" for count, what in counts if count)
        said = said.replace(" is changed", " has changed").replace(" are changed", " have changed")
        problem = (
            f"The embeddings in {records.path} are not those of the {len(captioned)} captioned "
            f"triptychs in {folder.path}: {said}."
        )
        raise WorkError(problem, "Run `triptych embed` first, with the same --work and --model.")


def _left_out(records: EmbeddingFolder) -> dict[str, tuple[Any, Any]]:
    """By id, the hashes of triptychs that `embed` read and left out."""
    path = records.path / REJECTS
    rows = read_jsonl(path) if path.exists() else []
    return {str(row.get("id")): (row.get("image_sha256"), row.get("caption_sha256")) for row in rows}


def changes(before: Any, now: dict[str, str]) -> str:
    """Describe how the triptychs of a training differ from those it began with."""
    if not isinstance(before, dict):
        return "other triptychs"
    both = before.keys() & now.keys()
    counts = (
        (len(now.keys() - both), "new"),
        (len(before.keys() - both), "gone"),
        (sum(before[id] != now[id] for id in both), "changed"),
    )
    return "triptychs: " + ", ".join(f"{count} {what}" for count, what in counts if count)
