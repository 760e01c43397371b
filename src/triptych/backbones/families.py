"""Facts about the model families that need no torch, one row per family. Each family's code has its own
folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def kl_stride(config: Mapping[str, Any]) -> int:
    """Side of a latent cell in pixels, for an AutoencoderKL with this config: each level but one halves."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def flux2_stride(config: Mapping[str, Any]) -> int:
    """The same for an AutoencoderKLFlux2, whose 2×2 patches of cells count as one cell here."""
    return 2 * kl_stride(config)


@dataclass(frozen=True)
class Family:
    """Facts about a family, for its `Backbone` and for code that loads no torch."""

    name: str
    """Short lower-case name, in LoRA files and as the folder name of embeddings."""
    title: str
    """Its name for people."""
    pipelines: tuple[str, ...]
    """diffusers' pipeline classes, as model_index.json names them. The first is the usual one."""
    prompt_tokenizer: str
    """Subfolder of the tokenizer whose tokens `max_sequence_length` counts."""
    prompt_text: Callable[[Any, str], str] = lambda tokenizer, prompt: prompt
    """The text that the encoder reads for a prompt, from its tokenizer and the prompt."""
    latents_per_token: int = 2
    """Side of a token in latent cells."""
    latent_stride: Callable[[Mapping[str, Any]], int] = kl_stride
    """Side of a latent cell in pixels, from the autoencoder's config."""
    recommended: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelSettings` that differ from the defaults, which are those of FLUX.1-dev."""
    of_this_model: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda index: {}
    """Further such fields for one model, from its model_index.json."""
    distilled: Callable[[Mapping[str, Any]], bool] = lambda index: False
    """Whether one model is distilled to few steps, from its model_index.json. A LoRA is better trained on
    its base then.
    """
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig` that a training of this family has where they are not given, if they differ
    from FLUX.1's. With a rank among them, alpha is the rank where it is not given.
    """
    shift_jumps_at: int | None = None
    """Number of image tokens above which the pipeline's time shift follows another formula, with a jump."""
    references: bool = False
    """Whether the model knows reference pictures: clean pictures beside the canvas, each with positions of
    its own. The panels of a triptych are then encoded one by one.
    """


FLUX = Family("flux", "FLUX.1", pipelines=("FluxPipeline",), prompt_tokenizer="tokenizer_2")
SD3 = Family(
    "sd3",
    "Stable Diffusion 3",
    pipelines=("StableDiffusion3Pipeline",),
    prompt_tokenizer="tokenizer_3",
    # Three panels of 480 × 640 have 0.92 megapixels together; SD3.5 was trained at one megapixel.
    recommended={
        "panel_width": 480,
        "panel_height": 640,
        "max_sequence_length": 256,
        "guidance_scale": None,
        "true_cfg_scale": 3.5,
    },
)


def _distilled_klein(index: Mapping[str, Any]) -> bool:
    return index.get("is_distilled") is True or index.get("_class_name") == "Flux2KleinKVPipeline"


def _klein(index: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of one FLUX.2-klein: base models need guidance and many steps, distilled ones neither.
    Models of the KV pipeline are distilled, and were trained to read references once.
    """
    reads_once = index.get("_class_name") == "Flux2KleinKVPipeline"
    few = {"num_inference_steps": 4, "true_cfg_scale": 1.0}
    return {
        **(few if _distilled_klein(index) else {}),
        **({"context": "clean"} if reads_once else {}),
    }


def klein_chat(tokenizer: Any, prompt: str) -> str:
    """A prompt as FLUX.2-klein's text encoder reads it: one message of a chat, without thinking. The template
    alone takes 12 tokens.
    """
    message = [{"role": "user", "content": prompt}]
    return str(
        tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    )


FLUX2 = Family(
    "flux2",
    "FLUX.2",
    pipelines=("Flux2KleinPipeline", "Flux2KleinKVPipeline"),
    prompt_tokenizer="tokenizer",
    prompt_text=klein_chat,
    latents_per_token=1,
    latent_stride=flux2_stride,
    recommended={
        "guidance_scale": None,
        "true_cfg_scale": 4.0,
        "context": "native",
        "context_placement": "reference",
    },
    of_this_model=_klein,
    distilled=_distilled_klein,
    # Trainers use rank 32 for klein, whose LoRAs are reported weak. The base samples with classifier-free
    # guidance, so it has to know the empty caption. Clean photos carried most where it was measured.
    training={"rank": 32, "learning_rate": 1e-4, "caption_dropout": 0.1, "context": "clean"},
    shift_jumps_at=4300,
    references=True,
)

FAMILIES = {pipeline: family for family in (FLUX, SD3, FLUX2) for pipeline in family.pipelines}
"""The families by the pipeline class that model_index.json names."""
