"""Stable Diffusion 3 and 3.5 without torch."""

from triptych.backbones.family import Family

FAMILY = Family(
    "sd3",
    "Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    prompt_tokenizer="tokenizer_3",
    # 480 × 640 makes three panels of 0.92 megapixels together: SD3.5 was trained on one.
    recommended={
        "panel_width": 480,
        "panel_height": 640,
        "max_sequence_length": 256,
        "guidance_scale": None,
        "true_cfg_scale": 3.5,
    },
)
