"""The roles of product photos that a captioner has told: `roles.jsonl` in the catalogue, a journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from triptych.data.catalogue import Photo
from triptych.store.journal import journal_rows

TOLD = "roles.jsonl"
"""Catalogue file with the answers."""
KIND = "role"
"""Kind of a row that says a photo's role; the other rows are the captioner's answers."""


def row_of(photo: Photo, role: str, captioner: str) -> dict[str, Any]:
    """The row that says a photo's role."""
    return {"kind": KIND, "id": photo.sha256, "path": photo.path, "role": role, "captioner": captioner}


def told_in(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """By sha256 of a photo's file, the role that was told last."""
    return {
        str(row["id"]): row["role"]
        for row in rows
        if row.get("kind") == KIND and "id" in row and isinstance(row.get("role"), str)
    }


def told_roles(catalogue: Path) -> dict[str, str]:
    """What `roles.jsonl` of a catalogue says; nothing if there is none."""
    return told_in(journal_rows(catalogue / TOLD))
