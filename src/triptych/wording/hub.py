"""The error for a model that is not on this machine while the Hugging Face hub cannot be reached."""

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
    """Our error in place of the hub client's; None if `error` has another cause.

    Args:
        name: the model's name on the hub.
        instead: the option that takes a folder, such as "--model FOLDER".
        part: only a part of the model is missing.
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
