"""What to say of a model that is not on this machine when the Hugging Face hub cannot be reached."""

from __future__ import annotations

import re

from triptych.errors import ModelError

_UNREACHABLE = {
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
    "ReadTimeout",
}
_REACHED = {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "RemoteEntryNotFoundError"}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def hub_unreachable(
    name: str, error: BaseException, instead: str, *, part: bool = False
) -> ModelError | None:
    """The sentence in place of the hub client's own; None if `error` says something else.

    Args:
        name: the model, as the hub calls it.
        instead: the option that takes a folder, such as "--model FOLDER".
        part: only a part of the model was not found.
    """
    kinds = set[str]()
    cause: BaseException | None = error
    while cause is not None:
        kinds.add(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    if kinds & _REACHED or not kinds & _UNREACHABLE:
        return None
    download = f" (`hf download {name}`)" if HUB_NAME.fullmatch(name) else ""
    return ModelError(
        f"{name} is not {'whole ' if part else ''}on this machine and the hub cannot be reached.",
        f"Download it where there is internet{download}, or give {instead}.",
    )
