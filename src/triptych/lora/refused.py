"""Explain files whose keys are in no table of LoRA names: another kind of adapter, or another model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from triptych.errors import ModelError
from triptych.lora.names import is_known, shown

TEXT_ENCODER = re.compile(
    r"(base_model\.model\.)?(lora_te|text_encoder|text_encoders\.|clip_[lg]\.|t5(xxl)?\.|te[0-9]?\."
    r"|bundle_emb\.)"
)
TRANSFORMER_ONLY = (
    "`triptych lora convert IN OUT --transformer-only` writes a file without that part, which "
    "may then look different."
)
READ_TITLES = "FLUX.1, FLUX.2 or Stable Diffusion 3"
READ_MODELS = (
    "Only LoRAs for FLUX.1, FLUX.2 and Stable Diffusion 3 are read; look for one that was trained on the "
    "model in use."
)
EXTRACT = "Merge it into the base model with the program that made it, and extract a plain LoRA there."
_BEFORE = "Give the file as it was before that conversion; kohya's and diffusers' names are read."

# Rows by priority: pattern of a key, what the file is, hint.
_ROWS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), what, hint)
    for pattern, what, hint in (
        (
            r".*(lokr_|hada_|\.lora_mid|\.on_input)",
            "is a LoKr, LoHa or other LyCORIS file, not a LoRA",
            EXTRACT,
        ),
        (
            r"(.*[._])?(oft_unet|oft_blocks|oft_diag|oft_[rRs](\.|$)|b?oft_)",
            "is an OFT (orthogonal finetuning), not a LoRA",
            EXTRACT,
        ),
        (r".*(\.glora|\.(a|b|bm)[12]\.weight$)", "is a GLoRA of LyCORIS, not a LoRA", EXTRACT),
        (
            r".*(dora_scale|lora_magnitude_vector|\.magnitude)",
            "is a DoRA, which is more than a LoRA",
            EXTRACT,
        ),
        (
            r".*(vera_lambda|ia3_l|hra_u|lora_E$|ranknum|vblora_|fourierft_|randlora_|c3a_|bone_|miss_"
            r"|shira_)",
            "is a VeRA, IA3, AdaLoRA or other adapter of peft, not a LoRA",
            EXTRACT,
        ),
        (
            r".*(_norm\.scale|norm_(added_)?[qk]\.weight|\.bias|\.diff_b|\.diff|reshape_weight|\.[wb]_norm"
            r"|norm[^.]*\.(w|b)_norm)$",
            "changes biases or norms too, or whole weights",
            EXTRACT,
        ),
        (
            r".*(\.(qweight|wscales|smooth|smooth_factor)$|\.lora_(down|up)$|[._](qkv_proj|mlp_fc[12]"
            r"|mlp_context_fc[12])\.lora_)",
            "is in nunchaku's names",
            "nunchaku's `to_diffusers` writes it back in diffusers' names.",
        ),
        (r".*distilled_guidance_layer", "is for Chroma", READ_MODELS),
        (
            r".*(double|single)_blocks(\.\d+\.(img|txt)_(attn_(qkv|proj)|mlp\.fc[12]|mod\.linear)|_\d+_(img"
            r"|txt)_(mlp_fc|mod_linear)"
            r"|[._]\d+[._]modulation[._]linear)",
            "is in HunyuanVideo's names, which musubi-tuner's convert_lora also writes",
            f"{READ_MODELS} If it was trained on FLUX.1 or FLUX.2: {_BEFORE[0].lower()}{_BEFORE[1:]}",
        ),
        (
            r".*(mode_blocks[._]|(early|single)_stream_modulations[._]"
            r"|single_transformer_blocks[._]\d+[._]ff[._]linear_(in|out)"
            r"|single_blocks[._]\d+[._]([qkv]_proj|attn_out|mlp_(in|out)))",
            "is for FLUX 3",
            READ_MODELS,
        ),
        (r".*(double|single)_stream_blocks[._]", "is for HiDream", READ_MODELS),
        (
            r"(.*\.|(lora_unet|lycoris|lora_transformer)_)?(layers[._]\d+[._](attention|attn|feed_forward"
            r"|adaLN)|(noise|context)_refiner[._])",
            "is for Z-Image or Lumina",
            READ_MODELS,
        ),
        (r".*transformer_blocks[._]\d+[._](img|txt)_m(lp|od)", "is for Qwen-Image", READ_MODELS),
        (
            r".*joint_blocks[._]",
            "is for Stable Diffusion 3 in that model's own names",
            "Export it again in diffusers' names.",
        ),
        (
            r".*((down|up|input|output)_blocks?|mid_block|middle_block)[._]",
            "is for Stable Diffusion",
            READ_MODELS,
        ),
        (r".*(?<!_)blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]", "is for Wan", READ_MODELS),
        (
            r".*transformer_blocks[._]\d+[._]attn1[._]",
            "is for a model with cross attention, such as LTX-Video or PixArt",
            READ_MODELS,
        ),
        (TEXT_ENCODER.pattern, "also adapts a text encoder, which is not supported", TRANSFORMER_ONLY),
    )
)


def refusal(keys: Sequence[str]) -> ModelError:
    """The error for a file with these keys, none of which is in a table. The first row of `_ROWS` that fits
    any key gives the message.
    """
    for pattern, what, hint in _ROWS:
        for key in keys:
            if pattern.match(key) and (
                pattern.pattern == TEXT_ENCODER.pattern or not TEXT_ENCODER.match(key)
            ):
                return ModelError(f"{what} (it has the key {shown(key)})", hint)
        if what.startswith("is a DoRA"):  # all other kinds of adapter are excluded by now
            for key in keys:
                if key.endswith(".weight") and is_known(key.removesuffix(".weight")):
                    hint = "Give a model with --model, and a LoRA with --lora."
                    return ModelError(
                        f"holds whole weights of a model, not a LoRA (it has the key {shown(key)})", hint
                    )
    problem = f"has the key {shown(keys[0])}, which no known LoRA format for {READ_TITLES} has"
    return ModelError(problem, "docs/lora.md lists the formats that are read.")


def whole_changes() -> ModelError:
    """The error for a file with one matrix per layer instead of a LoRA's two."""
    return ModelError(
        "holds one whole matrix for each layer (a full-rank training), not the two of a LoRA", EXTRACT
    )
