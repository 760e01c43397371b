"""A richer world for larger pockets: more motifs, at more places, necklines, hoods, pockets, second garments
of the world, hats, bags and light.

Its garments and scenes are those of `world` with more attributes, so that whatever draws, words or judges
these takes those too. `enriched` adds the attributes to panels that the samplers of `world` drew. What is
held out depends on what `world` knows and on the motif alone: a pocket of this world may be measured on
`world`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

from triptych.pocket.prompts import Panel
from triptych.pocket.wardrobe import BOTTOMS, TOPS
from triptych.pocket.world import (
    COLOURS,
    NONE,
    PRINTABLE,
    PRINTS,
    Garment,
    Scene,
    is_held_out,
    sample_garment,
)

MOTIFS = (*PRINTS, "star", "heart", "ring")
PLACES = ("back", "chest", "hem")
NECKLINES = ("round", "v-neck", "high neck")
NECKED, HOODED = ("t-shirt", "sweater", "dress"), ("sweater", "jacket")
POCKETED = ("sweater", "jacket", "dress", "skirt")
SHARES = {"hood": 0.4, "pockets": 0.4, "companion": 0.6, "hat": 0.25, "bag": 0.3, "shaded": 0.6, "print": 0.5}
"""How often a garment or scene that can have it does; `print`: a plain garment without a back print."""
PLAIN_SHARE = 0.25
"""Share of the sets that stay as `world` has them."""


@dataclass(frozen=True)
class RichGarment(Garment):
    """A garment with one of six motifs at one of three places, a neckline, perhaps a hood and pockets."""

    place: str = "back"
    neckline: str = "round"
    hood: bool = False
    pockets: bool = False

    def __post_init__(self) -> None:
        """Refuse a garment that the renderer cannot draw."""
        replace(_plain(self), print=NONE)
        assert self.print == NONE or (
            self.print in MOTIFS and self.type in PRINTABLE and self.pattern == "plain"
        ), self
        assert self.place in PLACES and self.neckline in NECKLINES, self

    @property
    def cut(self) -> dict[str, str]:
        """What words can say of the cut beyond the type."""
        cut = {"neckline": self.neckline} if self.neckline != "round" else {}
        return cut | {name: "yes" for name in ("hood", "pockets") if getattr(self, name)}

    @property
    def called(self) -> str:
        """The type, with the words for the cut: `hooded pocket sweater`."""
        words = [self.neckline.replace("high neck", "high-neck")] if self.neckline != "round" else []
        return " ".join([*words, *["hooded"] * self.hood, *["pocket"] * self.pockets, self.type])

    @property
    def print_phrase(self) -> str:
        """The words for the print, and for its place where that is not the back."""
        return f"a {self.print} print" + (f" on the {self.place}" if self.place != "back" else "")

    def shows_print(self, scene: Scene) -> bool:
        """True if there is a print, on the side that the scene shows."""
        return self.print != NONE and scene.shows_back == (self.place == "back")

    @property
    def held_out(self) -> bool:
        """True for one look of a type in six, whatever its cut."""
        return is_held_out((self.type, *self.look))


@dataclass(frozen=True)
class RichScene(Scene):
    """A scene whose person wears a second garment of the world, a hat, a bag; in a light of its own."""

    top: Garment | None = None
    bottom: Garment | None = None
    hat: str = NONE
    bag: str = NONE
    shaded: bool = False

    def companion(self, garment: Garment) -> Garment | None:
        """Return the second garment of the world that the person wears with this one."""
        return self.bottom if garment.type in TOPS else self.top if garment.type in BOTTOMS else None

    def besides(self, garment: Garment) -> dict[str, tuple[str, str]]:
        """Return what else the person wears that words can tell."""
        found = {}
        if other := self.companion(garment):
            found["beside"] = (other.colour, f" and a {other.colour} {other.type}")
        for name in ("hat", "bag"):
            if (colour := getattr(self, name)) != NONE:
                found[name] = (colour, f" and a {colour} {name}")
        return found

    @property
    def held_out(self) -> bool:
        """True for one person of `world` in six, whatever else they wear."""
        return Scene(**{one.name: getattr(self, one.name) for one in fields(Scene)}).held_out


def enriched(panels: Sequence[Panel], rng: random.Random) -> tuple[Panel, ...]:
    """Give panels of `world` the attributes of this one: equal looks, garments and scenes stay equal, and
    what is held out stays so.
    """
    if rng.random() < PLAIN_SHARE:
        return tuple(panels)
    garments = list(dict.fromkeys(garment for garment, _ in panels))
    while True:
        looks = {garment.look: _motif(garment, rng) for garment in garments}
        rich = [_cut(garment, *looks[garment.look], rng) for garment in garments]
        if [one.held_out for one in rich] == [one.held_out for one in garments]:
            break
    by_garment = dict(zip(garments, rich, strict=True))
    lit = rng.random() < SHARES["shaded"]
    by_scene = {scene: _scene(scene, lit, rng) for scene in dict.fromkeys(scene for _, scene in panels)}
    return tuple((by_garment[garment], by_scene[scene]) for garment, scene in panels)


def _plain(garment: Garment) -> Garment:
    return Garment(garment.type, garment.colour, garment.pattern, garment.colour2)


def _motif(garment: Garment, rng: random.Random) -> tuple[str, str]:
    """Draw motif and place of a look. A look with a back print keeps a print there: its pictures show it."""
    if garment.print != NONE:
        return rng.choice(MOTIFS), "back"
    if garment.pattern == "plain" and rng.random() < SHARES["print"]:
        return rng.choice(MOTIFS), rng.choice(PLACES[1:])
    return NONE, "back"


def _cut(garment: Garment, motif: str, place: str, rng: random.Random) -> RichGarment:
    hood = garment.type in HOODED and rng.random() < SHARES["hood"]
    neckline = rng.choice(NECKLINES) if garment.type in NECKED and not hood else "round"
    pockets = garment.type in POCKETED and place != "hem" and rng.random() < SHARES["pockets"]
    if garment.type not in PRINTABLE:
        motif, place = NONE, "back"
    type_, colour, pattern, colour2, _ = astuple(garment)
    return RichGarment(type_, colour, pattern, colour2, motif, place, neckline, hood, pockets)


def _scene(scene: Scene, lit: bool, rng: random.Random) -> RichScene:
    rich = RichScene(**vars(scene), shaded=lit)
    if not scene.worn:
        return rich
    if rng.random() < SHARES["companion"]:
        top, bottom = (
            sample_garment(rng, print_share=0.0, type=rng.choice(types)) for types in (TOPS, BOTTOMS)
        )
        rich = replace(rich, top=top, bottom=bottom)
    hat, bag = (
        rng.choice(tuple(COLOURS)) if rng.random() < SHARES[name] else NONE for name in ("hat", "bag")
    )
    return replace(rich, hat=hat, bag=bag)
