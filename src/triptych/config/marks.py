"""Marks on a config's fields: the kind of each setting, as in `strength: Annotated[float, RESULT] = 0.9`.

Code that treats settings differently reads the marks: the settings stored in a picture, those that a resumed
training must keep, those that a line of a batch may give, and the groups of `--help`. There are no separate
lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel


class Group(Enum):
    """The groups of options in `--help`, in their order. {how} is the config's participle: made, sampled,
    trained.

    A group is also a mark, for a field outside the group of its nature.
    """

    GIVEN = "What you give"
    GOT = "What you get"
    HOW = "How it is {how}"
    MACHINE = "The machine"
    RARE = "Rarely needed"
    FOLDERS = "Folders"


class Nature(Enum):
    """The effect of a setting. Every field has one nature."""

    RESULT = "result"
    """It changes the result: the pixels of a picture, the weights of a LoRA, the rows of a catalogue."""
    AMOUNT = "amount"
    """It sets the number or the duration. Existing results stay, and more are added."""
    INPUT = "input"
    """A file or folder to read. Its content matters, never its path."""
    OUTPUT = "output"
    """The place of the results, and additional files to write."""
    ASKED = "asked"
    """The captioner or parser to ask, over the network or on this machine: its name or address."""
    RUNNING = "running"
    """It changes how the work runs on this machine, but not the result."""
    FOLDER = "folder"
    """A folder with the results of stages."""


class Trait(Enum):
    """Another property of a field."""

    SHARED = "shared"
    """It may be at the top of a config file, for every verb that has such a field."""
    EACH = "each"
    """It may differ between the pictures of a batch that is sampled at once."""
    CLEAN_ONLY = "clean only"
    """It has an effect only with clean context."""
    TRACED = "traced"
    """It decides the operations of a training step and their sizes, which `plan` counts."""


@dataclass(frozen=True)
class Alone:
    """The value of an option that stands on the command line without one."""

    value: Any


RESULT, AMOUNT, INPUT, OUTPUT = Nature.RESULT, Nature.AMOUNT, Nature.INPUT, Nature.OUTPUT
ASKED, RUNNING, FOLDER = Nature.ASKED, Nature.RUNNING, Nature.FOLDER
SHARED, EACH, CLEAN_ONLY, TRACED = Trait.SHARED, Trait.EACH, Trait.CLEAN_ONLY, Trait.TRACED
GIVEN, GOT, MACHINE, RARE = Group.GIVEN, Group.GOT, Group.MACHINE, Group.RARE

_USUAL = {
    RESULT: Group.HOW,
    AMOUNT: Group.HOW,
    INPUT: Group.GIVEN,
    OUTPUT: Group.GOT,
    ASKED: Group.GIVEN,
    RUNNING: Group.MACHINE,
    FOLDER: Group.FOLDERS,
}


def marked(model: type[BaseModel], *marks: Nature | Trait) -> frozenset[str]:
    """The names of the fields that carry one of these marks."""
    return frozenset(
        name for name, field in model.model_fields.items() if any(mark in field.metadata for mark in marks)
    )


def nature(model: type[BaseModel], name: str) -> Nature:
    """The nature of a field."""
    (found,) = (mark for mark in model.model_fields[name].metadata if isinstance(mark, Nature))
    return found


def alone(model: type[BaseModel], name: str) -> Any:
    """The value of a field's option that stands without one; None if it needs one."""
    metadata = model.model_fields[name].metadata
    return next((mark.value for mark in metadata if isinstance(mark, Alone)), None)


def group(model: type[BaseModel], name: str) -> Group:
    """The group of a field in `--help`."""
    own = [mark for mark in model.model_fields[name].metadata if isinstance(mark, Group)]
    return own[0] if own else _USUAL[nature(model, name)]


__all__ = [
    "AMOUNT",
    "ASKED",
    "CLEAN_ONLY",
    "EACH",
    "FOLDER",
    "GIVEN",
    "INPUT",
    "MACHINE",
    "GOT",
    "OUTPUT",
    "RARE",
    "RESULT",
    "RUNNING",
    "SHARED",
    "TRACED",
    "Alone",
    "Group",
    "Nature",
    "alone",
    "group",
    "marked",
    "nature",
]
