"""Loss masks: match the pictures in a folder to triptychs, and tell which area of each triptych is learned.

All errors in the masks are found before the first step.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.pictures.images import SUFFIXES, load_mask
from triptych.pictures.panels import PanelLayout
from triptych.store.files import sha256_file

log = logging.getLogger(__name__)

_ENDS = ("", "-masklabel", "_masklabel", "-mask", "_mask", ".mask", "-loss-mask", "_loss_mask")
_BEGINS = ("mask_", "mask-")
_BLACK = 16
"""Pixels below this value (of 255) count as black, because black in a JPEG is not exactly 0."""


class LossMasks:
    """The loss masks of some triptychs.

    A mask has the name of its triptych, in any picture format and case, optionally followed by `-masklabel`
    (OneTrainer), `_mask` or the like. It may have the name of the item instead, if the item has a single
    triptych.
    """

    def __init__(
        self,
        folder: Path,
        layouts: Mapping[str, PanelLayout],
        items: Mapping[str, str],
        learned: Sequence[str],
    ) -> None:
        """
        Args:
            layouts, items: by id. learned: roles of the panels that count in the loss.

        Raises:
            InputError: the folder is missing; no mask belongs to a triptych; a triptych has two masks; or a
                mask is damaged, of another size, or leaves nothing to learn.
        """
        if not folder.is_dir():
            raise InputError(
                f"The folder of loss masks {folder} is missing.", "Give a folder with <id>.png files."
            )
        files = sorted(
            path
            for path in folder.iterdir()
            if path.is_file() and not path.name.startswith(".") and _is_picture(path)
        )
        self.by_id, strangers = _matched(files, list(layouts), items)
        if not self.by_id:
            names = ", ".join(path.name for path in strangers[:3]) or "no picture at all"
            hint = f"Name them <id>.png, like {min(layouts)}.png."
            raise InputError(f"No loss mask in {folder} belongs to a triptych: {names} is there.", hint)
        if strangers:
            names = ", ".join(path.name for path in strangers[:5]) + (" …" if len(strangers) > 5 else "")
            log.warning(
                "%d of the loss masks in %s belong to no triptych here: %s", len(strangers), folder, names
            )
        self.unmatched = len(strangers)
        black = []
        for id, path in self.by_id.items():
            mask, layout = np.asarray(load_mask(path)), layouts[id]
            if mask.shape[::-1] != layout.size:
                sizes = ["{}×{}".format(*pair) for pair in (mask.shape[::-1], layout.size)]
                raise InputError(
                    f"The loss mask {path} is {sizes[0]} px, its triptych {sizes[1]}.",
                    "Make them of one size.",
                )
            if not (mask[layout.mask([role for role in learned if role in layout.roles])] >= _BLACK).any():
                black.append(path.name)
        if black:
            names = ", ".join(black[:5]) + (" …" if len(black) > 5 else "")
            hint = (
                "Paint the area to learn white, or delete the mask: a triptych without one is learned whole."
            )
            raise InputError(
                f"{len(black)} loss masks are black where there is something to learn: {names}.", hint
            )

    def sha256(self, id: str) -> str | None:
        """The hash of a triptych's mask; None without one."""
        return sha256_file(self.by_id[id]) if id in self.by_id else None

    def learned(self, id: str, size: Sequence[int]) -> Tensor | None:
        """(H, W): the mean of the mask's pixels under each latent, in [0, 1]; None without a mask."""
        if id not in self.by_id:
            return None
        pixels = torch.from_numpy(np.asarray(load_mask(self.by_id[id]), dtype=np.float32) / 255.0)
        return nn.functional.adaptive_avg_pool2d(pixels[None, None], (size[0], size[1]))[0, 0]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _matched(
    files: Sequence[Path], ids: Sequence[str], items: Mapping[str, str]
) -> tuple[dict[str, Path], list[Path]]:
    """The masks by id, and the files that belong to no triptych.

    Raises:
        InputError: a triptych has two masks.
    """
    known = {id.casefold(): id for id in ids}
    alone = Counter(items.values())
    known |= {
        items[id].casefold(): id for id in ids if alone[items[id]] == 1 and items[id].casefold() not in known
    }
    found: dict[str, Path] = {}
    strangers = []
    for file in files:
        name = file.stem.casefold()
        names = [name.removesuffix(end) for end in _ENDS if name.endswith(end)]
        names += [name.removeprefix(begin) for begin in _BEGINS if name.startswith(begin)]
        owner = next((known[name] for name in names if name in known), None)
        if owner is None:
            strangers.append(file)
        elif owner in found:
            raise InputError(
                f"The triptych {owner} has two loss masks: {found[owner].name} and {file.name}.",
                "Keep one of them.",
            )
        else:
            found[owner] = file
    return found, strangers
