"""The nodes: open a model with its LoRA, say what is repainted, dress somebody.

Pictures are ComfyUI's: IMAGE is a float tensor (B, H, W, 3) in [0, 1], MASK is (B, H, W) in [0, 1], 1 where
the picture is made anew. The work is done by `triptych.Session`, as on the command line: the same inputs and
seed give the same pixels.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from triptych.errors import InputError, TriptychError
from triptych.pictures.masks import mask_image
from triptych.session import Session
from triptych.vton.area import Area, area_of
from triptych.vton.config import is_proposed
from triptych.vton.proposal import asked_for, proposed
from triptych.vton.region import KINDS

CATEGORY = "triptych"
AUTOMATIC = "automatic: "
BY_HAND, BY_POLYGONS, BY_POINTS = "mask input", "polygons", "points"


class LoadModel:
    """Open a diffusion model and its In-Context LoRA. Nothing is read before the first picture."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("TRIPTYCH_MODEL",)
    RETURN_NAMES = ("model",)
    FUNCTION = "load"
    DESCRIPTION = "Opens a model in diffusers' layout, and a LoRA of its family from any trainer."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        words = {"multiline": False}
        return {
            "required": {
                "model": (
                    "STRING",
                    words
                    | {
                        "default": "black-forest-labs/FLUX.2-klein-4B",
                        "tooltip": "A hub name or a diffusers folder; pocket and pocket-klein are embedded.",
                    },
                ),
                "lora": ("STRING", words | {"default": "", "tooltip": "A LoRA file or a folder with one."}),
                "lora_scale": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}),
            },
            "optional": {
                "quantize": (["none", "nf4", "int8", "int8-torchao"],),
                "dtype": (["auto", "bf16", "fp32"],),
                "device": ("STRING", words | {"default": "auto"}),
            },
        }

    def load(
        self,
        model: str,
        lora: str = "",
        lora_scale: float = 1.0,
        quantize: str = "none",
        dtype: str = "auto",
        device: str = "auto",
    ) -> tuple[Session]:
        with _sentences():
            options = {"lora_scale": lora_scale, "dtype": dtype, "device": device, "quantize": quantize}
            return (Session(model.strip(), lora.strip() or None, **options),)  # type: ignore[arg-type]


class Region:
    """Say which part of the person's photo is made anew."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("MASK", "IMAGE")
    RETURN_NAMES = ("mask", "preview")
    FUNCTION = "region"
    DESCRIPTION = (
        "1 in the mask is made anew. From a mask (painted, or a picture's transparency), polygons as JSON, a "
        "human parser that knows what the new garment needs, or points for a SAM model."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        automatic = [f"{AUTOMATIC}{kind}" for kind in KINDS]
        return {
            "required": {
                "person": ("IMAGE",),
                "by": ([BY_HAND, BY_POLYGONS, *automatic, BY_POINTS],),
                "grow": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "Pixels it is widened by."}),
                "expand": (["none", "hull"],),
            },
            "optional": {
                "mask": ("MASK",),
                "polygons": (
                    "STRING",
                    {"multiline": True, "default": "[]", "tooltip": "[[[x, y], …], …] in pixels."},
                ),
                "points": (
                    "STRING",
                    {"default": "", "tooltip": "X,Y;X,Y in pixels; !X,Y is not part of it."},
                ),
                "parser": (
                    "STRING",
                    {"default": "pocket", "tooltip": "A human parser or SAM model: hub name or folder."},
                ),
            },
        }

    def region(
        self,
        person: Tensor,
        by: str,
        grow: int = 0,
        expand: str = "none",
        mask: Tensor | None = None,
        polygons: str = "[]",
        points: str = "",
        parser: str = "pocket",
    ) -> tuple[Tensor, Tensor]:
        photo = _picture(person, "person")
        with _sentences():
            if by == BY_HAND:
                if mask is None:
                    raise InputError("No mask is connected.", "Connect one, or choose another way.")
                area = area_of(photo.size, None, _resized(mask, photo.size))
            elif by == BY_POLYGONS:
                try:
                    drawn = json.loads(polygons)
                except ValueError as error:
                    raise InputError("The polygons are no JSON.", "Write [[[x, y], …], …].") from error
                area = area_of(photo.size, drawn.get("polygons") if isinstance(drawn, dict) else drawn, None)
            else:
                word = f"points:{points}" if by == BY_POINTS else f"auto:{by.removeprefix(AUTOMATIC)}"
                assert is_proposed(word)
                area = Area(proposed(photo, asked_for(word, ""), parser), None)
            white = area.repainted(photo.size, grow, expand)  # type: ignore[arg-type]
        shown = Image.composite(Image.new("RGB", photo.size, (255, 60, 60)), photo, mask_image(white * 0.5))
        return torch.from_numpy(np.asarray(white, np.float32))[None], _tensor(shown)


class Dress:
    """Dress the person in the garment of the product photos."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "IMAGE")
    RETURN_NAMES = ("image", "triptych")
    FUNCTION = "dress"
    DESCRIPTION = "Only what the mask shows is made anew; every other pixel stays the photo's own."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("TRIPTYCH_MODEL",),
                "person": ("IMAGE",),
                "mask": ("MASK",),
                "front": ("IMAGE",),
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "dynamicPrompts": False,
                        "default": "… <IMAGE 1> the front … <IMAGE 2> the back … <IMAGE 3> …",
                        "tooltip": "With a LoRA: all panels, as in its captions. Without one: any sentence.",
                    },
                ),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
                "steps": (
                    "INT",
                    {"default": 0, "min": 0, "max": 200, "tooltip": "0: as the model recommends."},
                ),
                "strength": ("FLOAT", {"default": 0.9, "min": 0.01, "max": 1.0, "step": 0.01}),
                "feather": ("INT", {"default": 8, "min": 0, "max": 500}),
            },
            "optional": {
                "back": ("IMAGE",),
                "refine": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05}),
            },
        }

    def dress(
        self,
        model: Session,
        person: Tensor,
        mask: Tensor,
        front: Tensor,
        prompt: str,
        seed: int = 0,
        steps: int = 0,
        strength: float = 0.9,
        feather: int = 8,
        back: Tensor | None = None,
        refine: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        photo = _picture(person, "person")
        own: dict[str, Any] = {"feather": feather, "refine": refine}
        own |= {"num_inference_steps": steps} if steps else {}
        _make_room(model)
        with _sentences():
            (made,) = model.try_on(
                _picture(front, "front"),
                None if back is None else _picture(back, "back"),
                photo,
                mask=_resized(mask, photo.size),
                prompt=prompt,
                seeds=[seed],
                strength=strength,
                on_step=_progress(),
                **own,
            )
        return _tensor(made.image), _tensor(made.triptych)


NODE_CLASS_MAPPINGS = {"TriptychLoadModel": LoadModel, "TriptychRegion": Region, "TriptychDress": Dress}
NODE_DISPLAY_NAME_MAPPINGS = {
    "TriptychLoadModel": "Triptych: load model + LoRA",
    "TriptychRegion": "Triptych: region to repaint",
    "TriptychDress": "Triptych: dress",
}


def _picture(image: Tensor, name: str) -> Image.Image:
    """The one picture of an IMAGE (1, H, W, C)."""
    if image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"{name}: one picture at a time, not {image.shape[0]}.")
    pixels = (image[0, ..., :3].detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGB")


def _tensor(picture: Image.Image) -> Tensor:
    """IMAGE (1, H, W, 3) of a picture."""
    return torch.from_numpy(np.array(picture.convert("RGB"), np.float32) / 255)[None]


def _resized(mask: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A MASK (1, H, W) or (H, W) as (H, W) float32 of a photo's size; masks drawn on a smaller copy are
    scaled. ComfyUI's empty mask of 64 × 64 is no mask.
    """
    one = mask[0] if mask.ndim == 3 else mask
    if not one.any():
        raise ValueError("The mask is empty: paint what is to be made anew.")
    values = one.detach().cpu().float().clamp(0, 1).numpy()
    if values.shape[::-1] != size:
        shape = values.shape[1] / values.shape[0], size[0] / size[1]
        if abs(shape[0] / shape[1] - 1) > 0.02:
            raise ValueError("The mask has another shape than the person's photo.")
        drawn = Image.fromarray((values * 255).round().astype(np.uint8))
        values = np.asarray(drawn.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    return values


@contextlib.contextmanager
def _sentences() -> Any:
    """Mistakes as ComfyUI shows them: one sentence and the hint, without a traceback of ours."""
    try:
        yield
    except TriptychError as error:
        raise ValueError(f"{error.message} {error.hint}".strip()) from None


def _comfy(name: str) -> Any:
    """A module of ComfyUI; None outside of it."""
    try:
        return importlib.import_module(f"comfy.{name}")
    except ImportError:
        return None


def _make_room(model: Session) -> None:
    """ComfyUI's own models leave the card before ours is loaded."""
    management = _comfy("model_management")
    if management is not None and not model.loaded:
        management.unload_all_models()
        management.soft_empty_cache()


def _progress() -> Any:
    """A callback for each step: ComfyUI's bar, and its cancel button. None outside of ComfyUI."""
    utils, management = _comfy("utils"), _comfy("model_management")
    if utils is None:
        return None
    bars: list[Any] = []

    def on_step(done: int, of: int, *_: Any) -> None:
        if management is not None:
            management.throw_exception_if_processing_interrupted()
        if not bars:
            bars.append(utils.ProgressBar(of))
        bars[0].update_absolute(done, of)

    return on_step
