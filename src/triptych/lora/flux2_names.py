"""Tables of the names of FLUX.2's layers.

Black Forest Labs' names are those of FLUX.1 where the layers correspond, but their sizes differ: the
feed-forward layers are gated (6 and 3 times the hidden size instead of 4), diffusers keeps the single blocks'
two layers fused as they are, and all blocks share three modulations, which stand outside of them.
"""

from __future__ import annotations

from triptych.lora.tables import ADDED_QKV, QKV, parts_of, split, table

# Black Forest Labs' own names; kohya (musubi-tuner) writes them with underscores.
NATIVE = table(
    "double_blocks",
    {
        "img_attn.qkv": QKV,
        "img_attn.proj": ("attn.to_out.0",),
        "img_mlp.0": ("ff.linear_in",),
        "img_mlp.2": ("ff.linear_out",),
        "txt_attn.qkv": ADDED_QKV,
        "txt_attn.proj": ("attn.to_add_out",),
        "txt_mlp.0": ("ff_context.linear_in",),
        "txt_mlp.2": ("ff_context.linear_out",),
    },
    "single_blocks",
    {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
    {
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
        "guidance_in.in_layer": ("time_guidance_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_guidance_embed.guidance_embedder.linear_2",),
        "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
        "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
        "single_stream_modulation.lin": ("single_stream_modulation.linear",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
)
DIFFUSERS = parts_of(NATIVE)
FUSED = table("transformer_blocks", {"attn.to_qkv": QKV, "attn.to_added_qkv": ADDED_QKV}, "", {}, {})
SPLIT_NATIVE = split(NATIVE)
FUSED_SINGLE = tuple(f"single_transformer_blocks.#.attn.{part}" for part in ("to_qkv_mlp_proj", "to_out"))
"""Layers that hold attention and feed-forward in one, in diffusers too."""

# As in `flux_names`; the modulations that the blocks share show the hidden size too.
SIDES = {
    **{
        f"transformer_blocks.#.{part}": (1, 1)
        for part in (*QKV, *ADDED_QKV, "attn.to_out.0", "attn.to_add_out")
    },
    **{
        f"transformer_blocks.#.{ff}.{part}": s
        for ff in ("ff", "ff_context")
        for part, s in (("linear_in", (6, 1)), ("linear_out", (1, 3)))
    },
    **dict(zip(FUSED_SINGLE, ((9, 1), (1, 4)), strict=True)),
    **{f"double_stream_modulation_{stream}.linear": (6, 1) for stream in ("img", "txt")},
    "single_stream_modulation.linear": (3, 1),
}
