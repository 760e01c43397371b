"""The question which role a product photo has, and the answer."""

from __future__ import annotations

import re

from triptych.captioning.questions import NOT_AN_ORDER
from triptych.captioning.undress import bare
from triptych.tasks.base import Task

OTHER = "other"
"""The answer about a photo that has none of the roles."""


def question(task: Task) -> str:
    """The question about one product photo, for a task whose photos have roles."""
    shown = {panel.role: panel.shows for panel in task.panels}
    kinds = "; ".join(f"{role}: {shown[role]}" for role in task.photo_roles.names)
    return (
        f"This is one product photo of a shop. Which of these does it show? {kinds}; {OTHER}: a label, a "
        f"size chart, a swatch, or anything else. Answer with that one word, nothing else. {NOT_AN_ORDER}"
    )


def read_role(answer: str, task: Task) -> str | None:
    """The role that an answer names, or `OTHER`; None if it names none or several."""
    words = set(re.findall(r"[a-z]+", bare(answer).lower()))
    said = [word for word in (*task.photo_roles.names, OTHER) if word in words]
    return said[0] if len(said) == 1 else None
