"""Puts a file under a second name without using space twice."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from triptych.store.files import explained, publish, rename


def link_or_copy(source: Path, target: Path) -> bool:
    """Make `target` a hard link to a file, or a copy where the disk has no links between the two places. An
    existing target is replaced, unless it is that file already. Returns whether it is a link now.

    Raises:
        WorkError: the folder cannot be written to, or the disk is full.
    """
    real = Path(os.path.realpath(source))  # a link to a symbolic link would be none to the photo
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        if os.path.samefile(real, target) and not target.is_symlink():
            return True
    aside = target.with_name(f".{secrets.token_hex(6)}.part")
    try:
        os.link(real, aside)
    except OSError:  # another disk, or one without hard links
        with publish(target) as temporary:
            shutil.copyfile(real, temporary)
        return False
    with explained(target):
        rename(aside, target)
    return True
