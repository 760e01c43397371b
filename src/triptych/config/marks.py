"""What a setting is, marked on its field: `strength: Annotated[float, RESULT] = 0.9`.

Whatever treats settings differently asks for the marks: what a picture carries, what a training must keep
to be resumed, what a line of a batch may set, where an option stands in `--help`. No lists are kept beside
them.
"""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel


class Group(Enum):
    """Where an option stands in `--help`, in this order. {how} is the config's word: made, sampled, trained.

    A mark for a field that does not stand where its nature puts it.
    """

    GIVEN = "What you give"
    GOT = "What you get"
    HOW = "How it is {how}"
    MACHINE = "The machine"
    RARE = "Rarely needed"
    FOLDERS = "Folders"


class Nature(Enum):
    """What a setting changes. Every field has one."""

    RESULT = "result"
    """What is made changes with it: the pixels of a picture, the weights of a LoRA, the rows of a catalogue.
    """
    AMOUNT = "amount"
    """How many are made, or for how long. What is there stays; more is added to it."""
    INPUT = "input"
    """A file or folder that is read. Its content counts, never its path."""
    OUTPUT = "output"
    """Where what is made goes, and what else is written beside it."""
    ASKED = "asked"
    """Who is asked over the network or on this machine: the name of a captioner, an address."""
    RUNNING = "running"
    """How the work runs on this machine. What is made is the same."""
    FOLDER = "folder"
    """Where stages keep what they make."""


class Trait(Enum):
    """What else is special about a field."""

    SHARED = "shared"
    """May stand at the top of a config file; every verb that has it takes it from there."""
    EACH = "each"
    """May be another one for each picture of a batch that is sampled at once."""
    CLEAN_ONLY = "clean only"
    """Has an effect with clean context only."""
    TRACED = "traced"
    """Decides which operations a training step consists of, and how large they are: `plan` counts them."""


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


def group(model: type[BaseModel], name: str) -> Group:
    """Where a field stands in `--help`."""
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
    "Group",
    "Nature",
    "group",
    "marked",
    "nature",
]
