"""Errors that a user can mend: one sentence, and a hint.

A programming error is an `assert` or an ordinary exception. Only the classes here are shown to users as they
are.
"""


class TriptychError(Exception):
    """A mistake that the user can mend. `message` is one sentence, `hint` suggests a remedy, and `str(error)`
    is both.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        """The sentence and the hint, because notebooks and log files show nothing else."""
        return f"{self.message} {self.hint}".rstrip()


class ConfigError(TriptychError):
    """A config file that cannot be read, or an invalid key or value in it."""


class InputError(TriptychError):
    """A file or folder that is missing, unreadable or of the wrong kind."""


class ModelError(TriptychError):
    """A model, LoRA or captioner that cannot be loaded or does not fit."""


class WorkError(TriptychError):
    """A work folder that is locked, was made with another config, or lacks results of an earlier stage."""


def sentence_of(error: BaseException) -> str:
    """An error's sentence without its hint, to be part of a longer sentence or of a row with a reason."""
    return error.message if isinstance(error, TriptychError) else str(error)
