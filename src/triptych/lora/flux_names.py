"""Tables of the names of FLUX.1's layers. Stable Diffusion 3 is in them too: for it only diffusers' names are
read, and it shares nearly all of them.

diffusers has separate layers to_q, to_k, to_v and proj_mlp; Black Forest Labs' own code, and with it ComfyUI
and kohya, fuses them.
"""

from __future__ import annotations

from triptych.lora.tables import ADDED_QKV, QKV, parts_of, split, table

# Black Forest Labs' own names; kohya writes them with underscores.
NATIVE = table(
    "double_blocks",
    {
        "img_attn.qkv": QKV,
        "img_attn.proj": ("attn.to_out.0",),
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "img_mod.lin": ("norm1.linear",),
        "txt_attn.qkv": ADDED_QKV,
        "txt_attn.proj": ("attn.to_add_out",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
        "txt_mod.lin": ("norm1_context.linear",),
    },
    "single_blocks",
    {"linear1": (*QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",)},
    {
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
)
# Layers of Stable Diffusion 3 that FLUX.1 lacks: the second attention, over image tokens alone, in some
# blocks of SD3.5 medium.
SD3_ONLY = tuple(f"transformer_blocks.#.attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0"))
DIFFUSERS = parts_of(NATIVE) | {part: (part,) for part in SD3_ONLY}
# diffusers' names after `fuse_projections`, used by SimpleTuner with --fuse_qkv_projections.
FUSED = table(
    "transformer_blocks",
    {"attn.to_qkv": QKV, "attn.to_added_qkv": ADDED_QKV},
    "single_transformer_blocks",
    {"attn.to_qkv": QKV},
    {},
)
# A former format of OneTrainer, which calls the first layer by another name.
SPLIT_NATIVE = {"img_in.proj" if name == "img_in" else name: part for name, part in split(NATIVE).items()}
XLABS = table(
    "double_blocks",
    {
        "processor.qkv_lora1": QKV,
        "processor.proj_lora1": ("attn.to_out.0",),
        "processor.qkv_lora2": ADDED_QKV,
        "processor.proj_lora2": ("attn.to_add_out",),
    },
    "single_blocks",
    {"processor.qkv_lora": QKV, "processor.proj_lora": ("proj_out",)},
    {},
)
DIFFSYNTH = table(
    "blocks",
    {
        "attn.a_to_qkv": QKV,
        "attn.a_to_out": ("attn.to_out.0",),
        "ff_a.0": ("ff.net.0.proj",),
        "ff_a.2": ("ff.net.2",),
        "norm1_a.linear": ("norm1.linear",),
        "attn.b_to_qkv": ADDED_QKV,
        "attn.b_to_out": ("attn.to_add_out",),
        "ff_b.0": ("ff_context.net.0.proj",),
        "ff_b.2": ("ff_context.net.2",),
        "norm1_b.linear": ("norm1_context.linear",),
    },
    "single_blocks",
    {"to_qkv_mlp": (*QKV, "proj_mlp"), "proj_out": ("proj_out",), "norm.linear": ("norm.linear",)},
    {},
)

# Rows and columns of a layer's weight, in multiples of the hidden size. Layers outside the blocks are not
# listed: their sizes depend on the encoders.
SIDES = {
    **{
        f"transformer_blocks.#.{part}": (1, 1)
        for part in (*QKV, *ADDED_QKV, "attn.to_out.0", "attn.to_add_out")
    },
    **dict.fromkeys(SD3_ONLY, (1, 1)),
    **{
        f"transformer_blocks.#.{ff}.net.{part}": s
        for ff in ("ff", "ff_context")
        for part, s in (("0.proj", (4, 1)), ("2", (1, 4)))
    },
    **{f"transformer_blocks.#.{norm}.linear": (6, 1) for norm in ("norm1", "norm1_context")},
    **{f"single_transformer_blocks.#.{part}": (1, 1) for part in QKV},
    "single_transformer_blocks.#.proj_mlp": (4, 1),
    "single_transformer_blocks.#.proj_out": (1, 5),
    "single_transformer_blocks.#.norm.linear": (3, 1),
}
# Some modulations of Stable Diffusion 3 have other sizes: wider in blocks with a second attention, narrower
# in the last block.
SD3_ROWS = {"transformer_blocks.#.norm1.linear": 9, "transformer_blocks.#.norm1_context.linear": 2}
