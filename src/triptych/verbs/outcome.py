"""Checks that a stage produced anything: a command without any result has failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.errors import WorkError

# By stage: counts of which at least one must be positive, the noun for them, and a hint.
_MADE: dict[str, tuple[tuple[str, ...], str, str]] = {
    "clean": (
        ("human", "garment"),
        "photos",
        "Look at the reasons above and at the contact sheet; overrides.txt beside it wins.",
    ),
    "concat": (
        ("triptychs",),
        "items",
        "Look at the reasons above: an item needs a photo of the garment and one of somebody wearing it.",
    ),
    "caption": (
        ("captioned", "kept", "brought"),
        "triptychs",
        "Look at the reasons above, or bring your own: --captions FOLDER.",
    ),
    "import": (("imported", "kept"), "pictures", "Look at the reasons above."),
    "embed": (("embedded", "kept"), "triptychs", "Look at the reasons above and in embed.rejects.jsonl."),
}


def check_made(name: str, summary: Mapping[str, Any]) -> None:
    """Check that the stage produced anything, or had no input.

    Raises:
        WorkError: everything was rejected; names the most frequent reason.
    """
    counts, noun, hint = _MADE.get(name, ((), "", ""))
    if not counts or not any(key in summary for key in counts) or any(summary.get(key) for key in counts):
        return
    tried = summary.get(noun) or summary.get("rejected") or 0
    reasons = summary.get("reasons") or {}
    why = f"; most often: {max(reasons, key=lambda reason: reasons[reason])}" if reasons else ""
    raise WorkError(
        f"`{name}` made nothing: of {tried} {noun} none can be used{why}.", str(summary.get("next") or hint)
    )


__all__ = ["check_made"]
