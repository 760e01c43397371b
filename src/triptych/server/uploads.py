"""Uploaded pictures, by the hash of their bytes. What a client calls a file never becomes a path."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from triptych.errors import InputError
from triptych.pictures.images import BadImage, load_image

_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Upload:
    """A picture that lies on the server. id: sha256 of its bytes. size: (width, height), upright."""

    id: str
    size: tuple[int, int]


class Uploads:
    """The folder of uploads. Equal bytes are one upload, so that it can be sent again without harm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, data: bytes) -> Upload:
        """Keep a picture.

        Raises:
            InputError: it is no picture that can be read, or too large.
        """
        if not data:
            raise InputError("The upload is empty.", "Send the bytes of a picture.")
        id = hashlib.sha256(data).hexdigest()
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
        aside = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            size = load_image(aside).size
            os.replace(aside, self.folder / id)
        except BadImage as error:
            raise InputError(
                f"The upload is no usable picture: {error.reason}.", "Send a JPEG, PNG or WebP."
            ) from error
        finally:
            aside.unlink(missing_ok=True)
        return Upload(id, size)

    def path(self, id: str, what: str) -> Path:
        """The file of an upload. what: its field, for messages.

        Raises:
            InputError: there is no such upload.
        """
        path = self.folder / id
        if not _ID.fullmatch(id) or not path.is_file():
            raise InputError(
                f"There is no upload '{id[:80]}' for {what}.",
                "Send the picture to /v1/uploads first, and give the id that it answers; or send it with the "
                "request as multipart/form-data.",
            )
        return path
