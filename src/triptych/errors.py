"""What can go wrong because of a user's input: one sentence, and a hint what to do about it.

A programmer's mistake is an `assert` or an ordinary exception; only these classes are shown to users as they
are.
"""


class TriptychError(Exception):
    """A mistake the user can mend. `message` is one sentence, `hint` says what to try,
    `str(error)` is both.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        """The sentence and the hint: a notebook and a log file show nothing else."""
        return f"{self.message} {self.hint}".rstrip()


class ConfigError(TriptychError):
    """A config file that cannot be read, or a key or value in it that has no meaning."""


class InputError(TriptychError):
    """A file or folder that is missing, unreadable or not what it should be."""


class ModelError(TriptychError):
    """A model, LoRA or captioner that cannot be loaded or does not fit."""


class WorkError(TriptychError):
    """A work folder that is locked, was made with another config, or lacks what an earlier stage writes."""


def sentence_of(error: BaseException) -> str:
    """The sentence of an error without its hint, for a longer sentence or a row that names a reason."""
    return error.message if isinstance(error, TriptychError) else str(error)
