"""A session: one model with its LoRA, opened once. Pictures go in and come out in memory, as PIL images.

The commands `generate` and `tryon` make their pictures the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triptych import progress
from triptych.backbones.registry import load_backbone
from triptych.backbones.settings import model_settings, no_model
from triptych.config.stage import Quantize
from triptych.errors import InputError
from triptych.lora.file import read_header
from triptych.lora.match import check_lora_fits
from triptych.pictures.panels import PanelLayout
from triptych.pictures.polygons import Polygons
from triptych.sampling.generate import generate_triptych
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.picture import Picture, ran_on, record
from triptych.sampling.repaint import layout_of, repaint_triptych, repainted_panels
from triptych.sampling.sampler import OnStep
from triptych.tasks import task_of
from triptych.tasks.tryon import TRY_ON
from triptych.vton.area import Area, area_of, whole
from triptych.vton.config import is_proposed
from triptych.vton.dress import dress
from triptych.vton.garments import dressed
from triptych.vton.proposal import asked_for, proposed
from triptych.vton.request import Fit, repainted, request_of
from triptych.vton.tiles import nothing_finer


class Session(OpenedModel):
    """A model with its LoRA, ready for any number of pictures.

        session = Session("black-forest-labs/FLUX.2-klein-base-4B", lora="work/lora")
        (picture,) = session.try_on(front, back, person, polygons=[[(x, y), …]], prompt="… <IMAGE 1> …")
        picture.image.save("new.png")

    Opening a session reads the model's settings and the LoRA's header only. The device is chosen and the
    weights are loaded at first use. The prompts of the first picture are encoded before the transformer is
    loaded, and the text encoder is then unloaded unless `keep_text_encoder` is set. A prompt that is new
    later loads the encoder again, beside the transformer: where memory is short, `encode` all prompts first.

    Several threads may share a session; it makes one picture at a time.
    """

    def __init__(
        self,
        model: str,
        lora: Path | str | None = None,
        *,
        lora_scale: float = 1.0,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Quantize = "none",
        blocks_to_swap: int = 0,
        context_cache_gib: float = 4.0,
        keep_text_encoder: bool = False,
    ) -> None:
        """
        Args:
            model: `pocket`, a diffusers folder or a hub id. lora: a LoRA file, or a folder that holds one.
            lora_scale: strength of the LoRA; 1 is the strength it was trained at.
            device, dtype, quantize, blocks_to_swap: see `load_backbone`.
            context_cache_gib: device memory, in GiB, that keeps the keys and values of known panels for the
                next pictures (clean context only).
            keep_text_encoder: keep the text encoder on the device, 9.5 GB for FLUX.1-dev.

        Raises:
            ModelError: the model or the LoRA does not exist, or they do not fit each other.
        """
        progress.doing("opening the model")
        header = read_header(Path(lora)) if lora is not None else None
        if not model.strip():
            raise no_model(header.about.get("base_model") if header else None)
        warning = check_lora_fits(model, header.path) if header else ""
        super().__init__(
            lambda: load_backbone(model, device, dtype, quantize, blocks_to_swap),
            settings=model_settings(model),
            lora=header,
            lora_scale=lora_scale,
            options={
                "model": Path(model).name if Path(model).exists() else model,
                "dtype": dtype,
                "quantize": quantize,
            },
            context_cache_gib=context_cache_gib,
            keep_text_encoder=keep_text_encoder,
        )
        if warning:
            self.warn(warning)

    def generate(
        self,
        front: Image.Image | None = None,
        back: Image.Image | None = None,
        prompt: str = "",
        seeds: Sequence[int] = (0,),
        *,
        panels: Mapping[str, Image.Image] | None = None,
        references: Sequence[Image.Image] = (),
        layout: PanelLayout | None = None,
        sampling: Sampling | None = None,
        sha256: Mapping[str, str] | None = None,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> list[Picture]:
        """Make triptychs: somebody wearing the garment in two photos, or all panels from the prompt alone.

        Each picture's `image` is the generated panel, or the whole triptych if several panels are generated.

        Args:
            front, back: photos of the garment; without `back`, the front photo is used twice.
            prompt: the caption of the whole triptych. seeds: one per picture.
            panels: photos by the role of their panel, such as {"worn": photo} for a try-off LoRA.
            references: further pictures that the model sees after these, for models that know references.
            layout, sampling: default to the LoRA's training, else to the model's recommendation.
            sha256: hashes of the photo files by option name, to be recorded in the pictures' settings.
            changes: fields of `Sampling` to override, such as num_inference_steps=20.

        Raises:
            ConfigError: the model would not see further references.
            InputError: the prompt is missing, there is a back without a front, or the panels are not those of
                try-on.
            ModelError: a part of the model cannot be loaded, or the result is not finite.
        """
        _check_prompt(prompt)
        _check_photos({"front": front, "back": back})
        _check_photos(panels or {})
        sampling = sampling or self.sampling(**changes)
        if back is not None and front is None:
            raise InputError("A back view without a front view.", "Give one photo alone as the front.")
        views = {role: view for role, view in (("front", front), ("back", back)) if view is not None}
        given = dict(panels or {}) | views
        layout = layout or self.layout(photos=given)
        if views and not task_of(layout).some:
            layout = TRY_ON.trained(layout)
            given |= {role: view for role, view in TRY_ON.filled(views).items() if role in layout.roles}
            given = {role: view for role, view in given.items() if role in layout.roles or role not in views}
        made = []
        for seed in seeds:
            products = [given] if given else None
            (canvas,) = generate_triptych(
                self, [prompt], layout, [seed], sampling, products, on_step, references=references
            )
            about = record(self, "generate", layout, sampling, sha256, prompt=prompt, seed=seed)
            roles = tuple(role for role in layout.roles if role not in given)
            image = canvas.crop(layout.box(roles[0])) if len(roles) == 1 else canvas
            whole = np.ones((image.height, image.width), np.float32)
            made.append(Picture(image, whole, canvas, roles, {**about, "made_on": ran_on(self)}))
        return made

    def try_on(
        self,
        front: Image.Image | None = None,
        back: Image.Image | None = None,
        person: Image.Image | None = None,
        *,
        garments: Mapping[str, Image.Image] | None = None,
        polygons: Polygons | Path | str | None = None,
        mask: np.ndarray | Image.Image | Path | str | None = None,
        parser: str = "pocket",
        prompt: str = "",
        references: Sequence[Image.Image] = (),
        seeds: Sequence[int] = (0,),
        strength: float = 0.9,
        fit: Fit | None = None,
        icc_profile: bytes | None = None,
        sampling: Sampling | None = None,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> list[Picture]:
        """Show the person wearing the garments; only the area inside the polygons or the mask is regenerated.

        Each picture's `image` is the re-dressed photo at its own size. Where `mask` is 0 it equals the photo
        bit for bit.

        Args:
            front, back: photos of the garment; if `back` is None, the front photo is used twice.
            garments: instead of them or besides, photos by role, such as {"top": …, "bottom": …}.
            person: the photo. polygons: corners (x, y) in its pixels, or a file as for `tryon --polygon`.
                mask: instead of polygons, a picture or an (H, W) array of the photo's size; bool, uint8 (0 or
                255) or float in [0, 1]; white = repaint; or a file, or `auto`, `auto:KIND` or
                `points:X,Y` as for `tryon --mask`. parser: the model that these ask.
            prompt, references: as in `generate`. seeds: one per picture.
            strength: noise level in (0, 1] that the repainted area starts from; 1 forgets its old content.
            fit: how the photo is cropped and scaled for the model. icc_profile: the photo's colour profile,
                by default the embedded profile.
            sampling, changes: as in `generate`; `changes` may also hold fields of `Fit`, such as feather=16,
                or mask_free=True: then neither polygons nor a mask are needed, and they are limits; or
                refine=0.2, a second pass of this strength at twice the resolution, see `refined`.

        Raises:
            ConfigError: the model would not see further references.
            InputError: the prompt, the person or a garment is missing, both or neither of polygons and mask
                are given, or the given one is unusable.
            ModelError: a part of the model cannot be loaded, or the result is not finite.
        """
        _check_prompt(prompt)
        _check_photos({"front": front, "back": back, "person": person, **(garments or {})})
        views = {role: view for role, view in (("front", front), ("back", back)) if view is not None}
        photos = views | {**(garments or {})}
        if person is None or not photos:
            raise InputError(
                "A try-on needs a person and a garment.", "Give person=…, and front=… or garments=…."
            )
        own = {name: changes.pop(name) for name in list(changes) if name in Fit.__dataclass_fields__}
        fit = fit or Fit(**own)
        photo = Path(str(getattr(person, "filename", ""))).name
        if is_proposed(mask) and polygons is None:
            asked = asked_for(mask, prompt)
            given = Area(proposed(person.convert("RGB"), asked, parser, name=photo or "The photo"), None)
        elif fit.mask_free and polygons is None and mask is None:
            given = whole(person.size)
        else:
            given = area_of(person.size, polygons, mask, photo=photo, labels=fit.polygon_label)
        for warning in given.warnings:
            self.warn(warning)
        area = given.repainted(person.size, fit.grow, fit.expand)
        profile = icc_profile or person.info.get("icc_profile")
        layout, photos = dressed(self.layout(photos=photos), photos)
        request = request_of(photos, person, fit, area, prompt, seeds, profile, references)
        for warning in nothing_finer(request, layout):
            self.warn(warning)
        chosen = sampling or self.sampling(**{"strength": 1.0 if fit.mask_free else strength, **changes})
        (pictures,) = dress(self, [request], layout, chosen, on_step=on_step)
        return pictures

    def repaint(
        self,
        canvas: Image.Image,
        *,
        polygons: Polygons | None = None,
        mask: np.ndarray | Image.Image | None = None,
        prompt: str = "",
        seeds: Sequence[int] = (0,),
        strength: float = 0.9,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> list[Picture]:
        """Regenerate the area inside the polygons or the mask of a triptych that you concatenated yourself.
        Everything else stays the canvas, bit for bit.

        Args:
            canvas: the panels side by side, all of one size, in the order of the LoRA's training set.
            polygons: corners (x, y) in pixels of the canvas. mask: a mask of the canvas's size, such as
                `PolygonMaskAnnotator(canvas).get_mask()`.
            prompt, seeds, strength, changes: as in `try_on`.

        Raises:
            InputError: the prompt is missing, both or neither of polygons and mask are given, or the canvas
                cannot be cut into the panels. ModelError: a part of the model cannot be loaded, or the result
                is not finite.
        """
        _check_prompt(prompt)
        _check_photos({"canvas": canvas})
        area = repainted(canvas.size, polygons, mask)
        sampling = self.sampling(**{"strength": strength, **changes})
        layout = layout_of(self, area)
        made = []
        for seed in seeds:
            (image,) = repaint_triptych(self, canvas, area, prompt, [seed], sampling, on_step)
            about = record(
                self,
                "repaint",
                layout,
                sampling,
                prompt=prompt,
                seed=seed,
                strength=sampling.strength,
            )
            roles = tuple(repainted_panels(area, layout))
            made.append(Picture(image, area, image, roles, {**about, "made_on": ran_on(self)}))
        return made


def load_models(
    model: str,
    prompts: Sequence[str],
    lora: Path | str | None = None,
    lora_scale: float = 1.0,
    device: str = "auto",
    dtype: str = "auto",
    quantize: Quantize = "none",
    blocks_to_swap: int = 0,
    *,
    context_cache_gib: float = 0.0,
) -> Session:
    """A session with everything loaded and these prompts encoded.

    Raises:
        ModelError: see `Session` and `OpenedModel.load`.
    """
    session = Session(
        model,
        lora,
        lora_scale=lora_scale,
        device=device,
        dtype=dtype,
        quantize=quantize,
        blocks_to_swap=blocks_to_swap,
        context_cache_gib=context_cache_gib,
    )
    session.encode(prompts)
    session.load()
    return session


def _check_photos(photos: Mapping[str, Image.Image | None]) -> None:
    """Raises InputError for a photo that is no PIL image."""
    for name, photo in photos.items():
        if photo is not None and not isinstance(photo, Image.Image):
            given = type(photo).__name__
            raise InputError(f"{name} is a {given}, not a PIL image.", "Open it: Image.open(PATH).")


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise InputError(
            "There is no prompt.", "Say what the whole triptych shows: prompt='… <IMAGE 1> … <IMAGE 2> …'."
        )
