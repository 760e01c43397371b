"""Reads what is printed on a garment, and compares two readings."""

from __future__ import annotations

import io
import shutil
import subprocess
from typing import Protocol

from PIL import Image

LEAST = 3
"""Letters and digits that a true garment must show before agreement says anything."""
_SECONDS = 60


class Reader(Protocol):
    """Reads the text in a picture."""

    name: str

    def read(self, image: Image.Image) -> str: ...


class Tesseract:
    """The program tesseract, if it is installed."""

    def __init__(self, program: str) -> None:
        self._program = program
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_SECONDS)
        self.name = (told.stdout or told.stderr).split("\n", 1)[0].strip() or "tesseract"

    def read(self, image: Image.Image) -> str:
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG")
        command = [self._program, "stdin", "stdout", "--psm", "11"]  # sparse text in no order
        done = subprocess.run(command, input=file.getvalue(), capture_output=True, timeout=_SECONDS)
        return done.stdout.decode("utf-8", errors="replace")


def open_reader() -> Reader | None:
    """The reader that is installed here; None if there is none."""
    program = shutil.which("tesseract")
    return Tesseract(program) if program else None


def letters(text: str) -> str:
    """The letters and digits of a reading, in small letters."""
    return "".join(filter(str.isalnum, text.casefold()))


def agreement(made: str, true: str) -> float | None:
    """1 minus the edit distance (Levenshtein 1966) of two readings by the longer one's length; None if the
    true garment shows fewer than `LEAST` letters.
    """
    made, true = letters(made), letters(true)
    if len(true) < LEAST:
        return None
    row = list(range(len(true) + 1))
    for number, one in enumerate(made, 1):
        before, row = row, [number]
        for place, other in enumerate(true, 1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (one != other)))
    return 1 - row[-1] / max(len(made), len(true))
