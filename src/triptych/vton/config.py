"""The settings of `tryon`, and the files that follow from them; they import nothing heavy."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from triptych.config.engine import EngineConfig
from triptych.config.marks import ASKED, EACH, GIVEN, INPUT, OUTPUT, RESULT, RUNNING, SHARED, Alone
from triptych.config.role_photos import as_list, by_role, pair
from triptych.sampling.options import PictureConfig

if TYPE_CHECKING:  # it imports numpy, which `--help` can do without
    from triptych.vton.request import Fit


USUAL_REFINE = 0.2
"""Strength of the second pass, if --refine stands alone."""
GARMENT = "garment "
"""Prefix of a role among the hashes in a picture, for a photo given with --garment."""
AUTO, POINTS = "auto", "points"
"""Given in place of a mask that is to be proposed: `auto:KIND` says what the new garment is, and
`points:X,Y;X,Y` where the old one is."""


def is_proposed(mask: object) -> bool:
    """Whether a mask is to be proposed."""
    return isinstance(mask, str | Path) and str(mask).partition(":")[0] in (AUTO, POINTS)


class TryonConfig(PictureConfig, EngineConfig):
    front: Annotated[Path | None, INPUT] = None
    """Photo of the garment's front. This or --garment is needed."""
    back: Annotated[Path | None, INPUT] = None
    """Photo of its back; without it the front is used twice."""
    garment: Annotated[list[str], INPUT] = []
    """Photo of one garment of an outfit, ROLE=FILE, such as top=shirt.jpg; repeated, it dresses somebody in
    several at once. Roles: front, back, detail, top, bottom, shoes, bag.
    """
    person: Annotated[Path | None, INPUT, EACH] = None
    """Photo of the person; you may have painted a rough edit on it. Needed."""
    polygon: Annotated[Path | None, INPUT, EACH] = None
    """JSON with {"polygons": [[[x, y], …], …]} in pixels of the person photo: their inside is repainted,
    except inside its "holes", which have the same form. Or a file of LabelMe, COCO, Label Studio or YOLO.
    This or --mask is needed.
    """
    polygon_label: Annotated[str, RESULT, EACH, GIVEN] = ""
    """The shapes to repaint, if the polygon file has several labels: dress, or top,skirt."""
    mask: Annotated[Path | None, INPUT, EACH] = None
    """A picture in place of --polygon: white is repainted or, if it is transparent in places, what is opaque.
    Or auto: the region that the garment named in the prompt will need on this person; auto:dress says which
    kind it is (docs/tryon.md lists them). Or points:X,Y;X,Y in pixels: what is there, by a SAM model, which
    --parser names; !X,Y is not part of it.
    """
    mask_free: Annotated[bool, RESULT] = False
    """For FLUX.2: no --polygon and no --mask are needed. The whole panel is made anew with the person as a
    reference, and what differs from the photo by more than noise is put into it. What changed is written
    beside the picture, as <name>-mask.png and .json. A --polygon or --mask is then a limit.
    """
    parser: Annotated[str, ASKED] = "pocket"
    """The human parser for --mask auto: a hub id such as mattmdjaga/segformer_b2_clothes, a transformers
    folder, or `pocket`, which only knows rendered people. For --mask points: facebook/sam-vit-base, say.
    """
    caption: Annotated[Path | None, INPUT, EACH] = None
    """Text file with the prompt, such as the `<id>.txt` that `caption` writes; used if there is no --prompt.
    """
    vlm_model: Annotated[str | None, ASKED] = None
    """The captioner that writes the prompt from the three photos, if there is no --prompt and no --caption:
    names as for `caption`, such as gpt-4.1-mini.
    """
    base_url: Annotated[str | None, ASKED] = None
    """Address of an OpenAI-compatible server for --vlm-model."""
    allow_upload: Annotated[bool, ASKED, SHARED] = False
    """Send the person's photo to a captioner on a server that is not this machine. Without it such a
    captioner is refused.
    """
    crop: Annotated[Literal["polygon", "none"], RESULT] = "polygon"
    """The part of the photo that the model sees: the polygon and its surroundings, in full detail, or (none)
    the whole photo, scaled down.
    """
    crop_margin: Annotated[float, RESULT] = Field(default=0.5, ge=0, le=100)
    """Margin of the person that stays visible around the polygon,
    as a fraction of the polygon's longer side.
    """
    expand: Annotated[Literal["none", "hull"], RESULT, EACH] = "none"
    """hull: repaint the convex hull of each polygon, so that the outline of the old garment does not show
    through.
    """
    grow: Annotated[int, RESULT, EACH] = Field(default=0, ge=0, le=10_000)
    """Pixels by which the polygons are widened."""
    feather: Annotated[int, RESULT] = Field(default=8, ge=0, le=10_000)
    """Width in pixels of the soft edge around the polygon. Beyond it every pixel is the photo's own."""
    rough: Annotated[Literal["none", "paint", "paste"], RESULT, EACH] = "none"
    """The start of sampling inside the polygon: the photo (none), the garment's colours (paint), or the
    garment cut out of its front photo (paste).
    """
    strength: Annotated[float, RESULT] = Field(default=0.9, gt=0, le=1)
    """Share of noise inside the polygon at the start: 1 forgets the photo; low values keep its shapes and,
    with most LoRAs, its colours.
    """
    refine: Annotated[float, RESULT, Alone(USUAL_REFINE)] = Field(default=0, ge=0, le=1)
    """A second pass over the polygon at twice the resolution, for logos and texture: what was made is cut
    into tiles of half the side lengths and sampled again at this strength (alone: 0.2; 0: no second pass),
    and its detail is taken. It is for photos that are much larger than a panel.
    """
    out: Annotated[Path | None, OUTPUT] = None
    """Picture to write, .png or .jpg, if not WORK/tryon.png; several pictures have the seed in their names.
    In a PNG every pixel beyond the feather is the photo's own; a JPEG is encoded after that, at quality 95.
    With --batch: the folder to write to.
    """
    mask_out: Annotated[Path | None, OUTPUT] = None
    """JSON file for the repainted area as polygons, before --grow and --expand: to correct in a notebook, and
    to give back with --polygon. With --batch: a folder, with a file for each line. With --mask auto, if not
    beside the picture.
    """
    batch: Annotated[Path | None, INPUT] = None
    """CSV file with one try-on per line and columns named like these options; empty cells take the values of
    the options.
    """
    batch_size: Annotated[int, RUNNING] = Field(default=1, ge=1, le=256)
    """With --batch: number of pictures of one product that are sampled at once. Faster if a single picture
    leaves the device idle; a picture may then differ slightly from one made alone.
    """

    def photos(self) -> dict[str, Path | None]:
        """The input files, by option."""
        names = ("front", "back", "person", "polygon", *(() if self.proposes else ("mask",)))
        garments = self.garments()
        usual = {name: garments.pop(name, None) or getattr(self, name) for name in names}
        named = {f"{GARMENT}{role}": path for role, path in garments.items()}
        return usual | named | self.named_references()

    @field_validator("garment", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        return as_list(value)

    def garments(self) -> dict[str, Path]:
        """The photos of garments by role.

        Raises:
            InputError: a --garment that is not ROLE=FILE, or two photos of one role.
        """
        named = [pair(text, "garment", "top=shirt.jpg") for text in self.garment]
        return by_role([("front", self.front), ("back", self.back), *named], "garment")

    @property
    def proposes(self) -> bool:
        """Whether the mask is proposed by a parser."""
        return is_proposed(self.mask)

    @property
    def noise(self) -> float:
        """Share of noise that sampling starts from: mask-free, noise alone."""
        return 1.0 if self.mask_free else self.strength

    def fit(self) -> Fit:
        """How the photo is shown to the model."""
        from triptych.vton.request import Fit

        return Fit(**{field.name: getattr(self, field.name) for field in fields(Fit)})

    def files(self, seed: int) -> tuple[Path, Path]:
        """The paths of the picture of a seed and of its triptych."""
        out = self.picture
        path = out if len(self.seeds) == 1 else out.with_stem(f"{out.stem}-{seed}")
        return path, path.with_name(f"{path.stem}-triptych.png")

    @property
    def picture(self) -> Path:
        out = self.out or self.work / "tryon.png"
        return out if out.suffix or not out.name else out.with_suffix(".png")

    @property
    def preview(self) -> Path:
        """The path of the preview, which shows the repainted area."""
        return self.picture.with_name(f"{self.picture.stem}-mask.png")

    @property
    def sheet(self) -> Path:
        return self.picture.with_name(f"{self.picture.stem}-sheet.png")
