"""Stage `evaluate`: single pictures, boards, and edits with references, on held-out garments and people.

The judge is the first pocket's (`triptych.pocket.oracle`). For edits it looks at the target: the garment's
colour, pattern and print must be those of the reference (or of the words), and for `dress` and `look` the
rest of the person must be the person of the reference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import Flux2Transformer2DModel

from recipes.pocket.evaluate import draw_single, looks_alike, obeyed, save_grid, share
from recipes.pocket.klein.captions import edit_caption
from recipes.pocket.klein.codec import KleinCodec
from recipes.pocket.klein.model import sample
from recipes.pocket.klein.sets import Edit, PictureSet, Place, draw_edit, sample_look, sample_quad
from recipes.pocket.klein.text import TextEncoder
from recipes.pocket.state import Log
from triptych.pocket.oracle import judge
from triptych.pocket.prompts import BOARD_SUMMARIES, Panel, join_captions, panel_caption, sample_board
from triptych.pocket.world import VIEWS

BATCH, SINGLES, BOARDS, EDITS, STEPS, CFG = 25, 200, 50, 100, 8, 3.0
EDIT_KINDS = {"scene": "one", "scene, two references": "two", "dress": "two", "look": "one"} | {
    "matching, one reference": "one",
    "matching, two references": "two",
}
SHEET = 12
"""Pictures of a row of the sheet of edits: references, the true picture and the drawn one, several times."""
PERSON = ("facing", "hair", "hairstyle", "background")


def held_out_sets(count: int, seed: int) -> dict[str, list[PictureSet]]:
    """Draw sets of held-out garments and people."""
    rng = random.Random(seed)
    return {
        "quad": [sample_quad(rng, held_out=True) for _ in range(count)],
        "look": [sample_look(rng, held_out=True) for _ in range(count)],
    }


def judged(panels: Sequence[Panel], pictures: Sequence[np.ndarray], kind: str) -> dict[str, float]:
    """Return shares of pictures that show the target's garment, its print where there is one, its person."""
    seen = judge(list(pictures), [garment.type for garment, _ in panels])
    untold = judge(list(pictures))
    pairs = list(zip(seen, panels, strict=True))
    result = {
        "type": share([one.type == garment.type for one, (garment, _) in zip(untold, panels, strict=True)]),
        "colour": share([one.colour == garment.colour for one, (garment, _) in pairs]),
        "pattern": share([one.pattern == garment.pattern for one, (garment, _) in pairs]),
        "both": share([(one.colour, one.pattern) == (g.colour, g.pattern) for one, (g, _) in pairs]),
    }
    printed = [one.print == g.print for one, (g, s) in pairs if g.shows_print(s)]
    if printed:
        result |= {"print": share(printed), "with a print": float(len(printed))}
    if kind in ("dress", "look"):
        person = [
            all(getattr(one, name) == getattr(scene, name) for name in PERSON) for one, (_, scene) in pairs
        ]
        result["person"] = share(person)
    return result


class Evaluation:
    """A transformer with its encoder and autoencoder."""

    scale = 1

    def __init__(
        self,
        model: Flux2Transformer2DModel,
        encoder: TextEncoder,
        codec: KleinCodec,
    ) -> None:
        """Measure a model that draws panels of 48 x 72 pixels times `scale`."""
        self.model, self.encoder, self.codec = model, encoder, codec

    @classmethod
    def of(cls, folder: Path, model: Flux2Transformer2DModel) -> Evaluation:
        """Use the text encoder and the autoencoder of a build folder."""
        return cls(model, TextEncoder.trained(folder), KleinCodec.trained(folder))

    def draw(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[np.ndarray]] = (),
        panels: int = 1,
        *,
        steps: int = STEPS,
        cfg: float = CFG,
    ) -> np.ndarray:
        """Draw pictures uint8 (B, 72, 48 per panel, 3); references: pictures, by place in the order."""
        parts = []
        for start in range(0, len(prompts), BATCH):
            end = start + BATCH
            shown = [self.codec.encode(np.stack(column[start:end])) for column in references]
            latents = sample(
                self.model, self.encoder, prompts[start:end], shown, panels, steps=steps, cfg=cfg, seed=start
            )
            parts.append(self.codec.decode(latents))
        return np.concatenate(parts)

    def singles(self, count: int = SINGLES, **options: Any) -> tuple[dict[str, float], np.ndarray]:
        """Return how well single panels follow prompts with every attribute, and the pictures."""
        rng = random.Random(909)
        panels = [draw_single(rng, VIEWS[index % 3]) for index in range(count)]
        captions = [panel_caption(*panel, rng, details=1.0, varied=True) for panel in panels]
        pictures = self.draw([caption.text for caption in captions], **options)
        return obeyed(panels, [caption.said[0] for caption in captions], list(pictures)), pictures

    def boards(self, named: bool, count: int = BOARDS, **options: Any) -> tuple[dict[str, float], np.ndarray]:
        """Return how often panels 2 and 3 of matching boards look like panel 1, and the pictures."""
        rng = random.Random(910)
        boards = [sample_board(rng, "matching") for _ in range(count)]
        prompts = []
        for board in boards:
            captions = [panel_caption(*panel, rng, named=named and not i) for i, panel in enumerate(board)]
            prompts.append(join_captions(BOARD_SUMMARIES["matching"][0], captions, "matching").text)
        pictures = self.draw(prompts, panels=3, **options)
        seen = [
            judge(list(panel), [board[index][0].type for board in boards])
            for index, panel in enumerate(np.split(pictures, 3, axis=2))
        ]
        return looks_alike(seen[1] + seen[2], seen[0] * 2), pictures

    def edits(
        self, name: str, count: int = EDITS, *, references: bool = True, **options: Any
    ) -> tuple[dict[str, float], np.ndarray]:
        """Return how right edits of one kind are, and rows of references and result for a sheet.

        The words are silent about the look, except for `look`. references False: the same prompts and noise
        without pictures to look at (what the words alone give).
        """
        kind, layout = name.split(",")[0], EDIT_KINDS[name]
        sets, rng = held_out_sets(2 * count, 911), random.Random(912)
        edits: list[Edit] = []
        while len(edits) < count:
            edit = draw_edit(layout, sets, rng, kind)
            if _held_out(edit, sets):
                edits.append(edit)
        pictures = [[self._picture(sets, place) for place in edit.references] for edit in edits]
        panels = [_panel(sets, edit.target) for edit in edits]
        prompts = [
            edit_caption(
                kind,
                panel,
                [_panel(sets, place) for place in edit.references],
                edit.garment_from,
                edit.person_from,
                rng,
                named=False,
                house=False,
                varied=False,
                details=1.0,
            ).text
            for edit, panel in zip(edits, panels, strict=True)
        ]
        columns = list(zip(*pictures, strict=True)) if references else []
        drawn = self.draw(prompts, columns, **options)
        rows = [
            np.stack([*shown, truth, one])
            for shown, truth, one in zip(
                pictures, (self._picture(sets, edit.target) for edit in edits), drawn, strict=True
            )
        ]
        return judged(panels, list(drawn), kind), np.concatenate(rows)

    def _picture(self, sets: dict[str, list[PictureSet]], place: Place) -> np.ndarray:
        return sets[place[0]][place[1]].picture(place[2], self.scale)


def _panel(sets: dict[str, list[PictureSet]], place: Place) -> Panel:
    return sets[place[0]][place[1]].panels[place[2]]


def _held_out(edit: Edit, sets: dict[str, list[PictureSet]]) -> bool:
    garment, scene = _panel(sets, edit.target)
    return garment.held_out and (scene.held_out or not scene.worn)


def evaluate(
    folder: Path, evaluation: Evaluation | None = None, count: int = EDITS, to: Path | None = None
) -> dict[str, Any]:
    """Measure the current model, or another; writes sheets and a line of `evaluate.jsonl` into the build
    folder or `to`.
    """
    if evaluation is None:
        from recipes.pocket.klein.transformer import averaged_transformer

        evaluation = Evaluation.of(folder, averaged_transformer(folder))
    folder = to or folder
    log = Log(folder, "evaluate")
    results: dict[str, Any] = {}
    results["singles"], pictures = evaluation.singles(2 * count)
    save_grid(pictures[:36], 12, folder / "singles.png")
    for named in (True, False):
        name = f"boards, {'panel 1 named' if named else 'silent'}"
        results[name], pictures = evaluation.boards(named, max(2, count // 2))
        save_grid(pictures[:15], 3, folder / f"boards-{'named' if named else 'silent'}.png")
    sheet = []
    for name in EDIT_KINDS:
        results[name], pictures = evaluation.edits(name, count)
        sheet.append(pictures[:SHEET])
    save_grid(np.concatenate(sheet), SHEET, folder / "edits.png")
    log.write(**results)
    return results
