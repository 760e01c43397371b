"""FLUX.1-dev in full size on any machine with 10 GB to spare: one training step, two sampling steps, one LoRA
file.

The shapes are FLUX.1-dev's, the weights are random and in NF4 from the start, filled layer by layer: a
rehearsal of memory, of layers' names and of the whole path through `train`, `load_lora` and the sampler, not
of quality. Everything but the random weights and the embeddings is the product's own code.

    python benchmarks/rehearse_12b.py --out work/rehearsal --report docs/rehearsal-12b.md
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from rehearsal import SCHEDULER, Meter, matmul_peak
from triptych.backbones.flux.model import Flux
from triptych.backbones.registry import BACKBONES, load_backbone
from triptych.compute.blocks import linear_layers
from triptych.compute.quantize import NF4Linear, QuantizedLinear
from triptych.compute.swap import place
from triptych.data.embeddings import EMPTY, EmbeddingRecord, save_record, save_text
from triptych.flow import generator_for
from triptych.lora.adapter import load_lora
from triptych.pictures.panels import PanelLayout
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import Canvases, Known, sample_latents
from triptych.store.files import write_json, write_text
from triptych.tasks.tryon import TRY_ON
from triptych.training import results
from triptych.training.config import TrainConfig
from triptych.training.log import peak_memory_gib
from triptych.training.state import TrainState
from triptych.verbs import train as train_stage
from triptych.verbs.lora import LoraInspectConfig, lora_inspect

FLUX_DEV: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
"""transformer/config.json of black-forest-labs/FLUX.1-dev."""


def random_transformer(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """FluxTransformer2DModel of a config: random NF4 codes in the blocks, random float32 elsewhere, one layer
    at a time.

    A layer's outputs are about as large as its inputs, so that nothing overflows in 57 blocks.
    """
    with torch.device("meta"):
        transformer: nn.Module = FluxTransformer2DModel(**config)
    generator = torch.Generator().manual_seed(seed)
    to_quantize = linear_layers(Flux.blocks(transformer)).keys()
    for name, module in list(transformer.named_modules()):
        if name in to_quantize:
            out, width = module.out_features, module.in_features
            # As whole words: a byte at a time takes eight times as long.
            codes = torch.empty(math.ceil(out * width / 16), dtype=torch.int64).random_(
                -(2**63), None, generator=generator
            )
            scale = torch.full((math.ceil(out * width / NF4Linear.BLOCK),), width**-0.5)
            bytes_ = codes.view(torch.uint8)[: out * width // 2, None]
            bias = None if module.bias is None else torch.zeros(out)
            transformer.set_submodule(name, NF4Linear(bytes_, scale, (out, width), bias))
        else:
            for leaf, tensor in module.named_parameters(recurse=False):
                filled = torch.ones(tensor.shape) if leaf == "weight" else torch.zeros(tensor.shape)
                if tensor.ndim == 2:
                    filled = torch.randn(tensor.shape, generator=generator) * tensor.shape[1] ** -0.5
                setattr(module, leaf, nn.Parameter(filled, requires_grad=False))
    return transformer


def write_model(folder: Path, config: dict[str, Any], text_tokens: int) -> None:
    """What of a diffusers folder is read without its weights."""
    write_json(folder / "model_index.json", {"_class_name": "FluxPipeline"})
    write_json(folder / "transformer" / "config.json", {"_class_name": "FluxTransformer2DModel", **config})
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "triptych.json", {"max_sequence_length": text_tokens})


def write_embeddings(
    folder: Path, made_with: str, layout: PanelLayout, config: dict[str, Any], text_tokens: int
) -> None:
    """One random triptych and the empty prompt, as `embed` leaves them."""
    generator = generator_for("rehearsal")

    def text() -> dict[str, Tensor]:
        states = torch.randn(text_tokens, config["joint_attention_dim"], generator=generator) * 0.2
        return {
            "prompt_embeds": states,
            "pooled_prompt_embeds": torch.randn(config["pooled_projection_dim"], generator=generator),
        }

    width, height = layout.size
    mean = torch.randn(config["in_channels"] // 4, height // 8, width // 8, generator=generator)
    record = EmbeddingRecord(
        "random", mean, torch.full_like(mean, 0.05), text(), layout, "random", "random", made_with
    )
    save_record(record, folder / "random.safetensors")
    save_text(text(), made_with, folder / f"{EMPTY}.safetensors")


def rehearse(
    out: Path,
    config: dict[str, Any],
    context: str,
    panel: tuple[int, int],
    text_tokens: int,
    peak_seconds: float = 3.0,
    sample: bool = True,
) -> dict[str, Any]:
    """Train one step, sample two unless `sample` is False, and inspect the LoRA; what was measured.

    panel: width and height in pixels. out: an empty folder for the model's description, embeddings and LoRA.
    """
    meter, layout = Meter(), TRY_ON.layout(*panel)
    peak = matmul_peak(peak_seconds)
    loaded: dict[str, int] = {}

    class RandomFlux(Flux):
        def load_transformer(self) -> nn.Module:
            with meter.phase("fill"):
                transformer = random_transformer(config)
            layers = [module for module in transformer.modules() if isinstance(module, QuantizedLinear)]
            frozen = [*transformer.parameters(), *transformer.buffers()]
            loaded["weight_bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in frozen)
            loaded["quantized_parameters"] = sum(layer.in_features * layer.out_features for layer in layers)
            packed = {id(layer.weight) for layer in layers} | {id(layer.scale) for layer in layers}
            others = sum(tensor.numel() for tensor in frozen if id(tensor) not in packed)
            loaded["parameters"] = loaded["quantized_parameters"] + others
            meter.watch(layers, self.blocks(transformer).values())
            swapped = [*self.blocks(transformer).values()][: self.blocks_to_swap]
            return place(transformer.eval().requires_grad_(False), self.device, swapped)

    write_model(out / "model", config, text_tokens)
    blocks = config["num_layers"] + config["num_single_layers"]
    clean = context == "clean"
    kept = (
        BACKBONES["FluxPipeline"],
        train_stage.losses_of,
        TrainState.update,
        train_stage._accumulate,
        results.save_lora,
    )
    try:
        BACKBONES["FluxPipeline"] = RandomFlux
        train_stage.losses_of = meter.timed("forward", train_stage.losses_of, blocks * (1 + clean))
        train_stage._accumulate = meter.timed("forward and backward", train_stage._accumulate, blocks)
        results.save_lora = meter.timed("save", results.save_lora)
        TrainState.update = meter.timed("optimizer", TrainState.update)  # type: ignore[method-assign]
        backbone = load_backbone(str(out / "model"), "cpu", "fp32", "nf4")
        write_embeddings(
            out / "embeddings" / backbone.name, backbone.encoder_fingerprint, layout, config, text_tokens
        )
        options = {
            "work": out,
            "model": str(out / "model"),
            "device": "cpu",
            "dtype": "fp32",
            "quantize": "nf4",
        }
        settings = TrainConfig(
            **options,
            context=context,
            max_train_steps=1,
            batch_size=1,
            validation_steps=0,
            caption_dropout=0.0,
        )
        with meter.phase("train"):
            train_stage.train(settings).finish()
        finite = None
        if sample:
            transformer = backbone.load_transformer()
            with meter.phase("load lora"):
                load_lora(transformer, settings.train_folder)
            with meter.phase("sample", blocks * (2 + clean)):
                finite = _sample(backbone, transformer, layout, context, config, text_tokens)
    finally:
        (
            BACKBONES["FluxPipeline"],
            train_stage.losses_of,
            TrainState.update,
            train_stage._accumulate,
            results.save_lora,
        ) = kept  # type: ignore[method-assign]
    row = json.loads((settings.train_folder / "train.jsonl").read_text().splitlines()[-1])
    inspected = lora_inspect(LoraInspectConfig(lora=settings.train_folder)).finish()
    meter.seconds["backward"] = meter.seconds["forward and backward"] - meter.seconds["forward"]
    # Recomputed blocks are counted by the hooks; each of their products has one more in the backward pass.
    recomputed = meter.flop.get("forward and backward", 0)
    flop = {"forward": meter.flop["forward"], "backward": 2 * recomputed} | (
        {"sample": meter.flop["sample"]} if sample else {}
    )
    return {
        "context": context,
        "panel": list(panel),
        "image_tokens": layout.size[0] // 16 * (layout.size[1] // 16),
        "text_tokens": text_tokens,
        **loaded,
        "lora_rank": settings.rank,
        "lora_file_bytes": (settings.train_folder / "pytorch_lora_weights.safetensors").stat().st_size,
        "lora_layers": sum(inspected["modules"].values()),
        "lora_inspect": {key: value for key, value in inspected.items() if key not in ("file", "metadata")},
        "loss": row["loss"],
        "grad_norm": row["grad_norm"],
        "sample_is_finite": finite,
        "seconds": {name: round(value, 1) for name, value in meter.seconds.items()},
        "flop": flop,
        "flop_per_second": {name: value / meter.seconds[name] for name, value in flop.items()},
        "matmul_flop_per_second": peak,
        "peak_memory_gib": peak_memory_gib(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
    }


def _sample(
    backbone: Any,
    transformer: nn.Module,
    layout: PanelLayout,
    context: str,
    config: dict[str, Any],
    text_tokens: int,
) -> bool:
    """Two steps of the worn panel beside known ones; whether every latent is finite."""
    shape = (config["in_channels"] // 4, layout.size[1] // 8, layout.size[0] // 8)
    known, mask = torch.randn(1, *shape, generator=generator_for("known")), torch.zeros(shape[1:])
    mask[:, -layout.width // 8 :] = 1.0
    states = torch.zeros(1, text_tokens, config["joint_attention_dim"])
    text = {"prompt_embeds": states, "pooled_prompt_embeds": torch.zeros(1, config["pooled_projection_dim"])}
    sampling = Sampling(num_inference_steps=2, context=context)  # type: ignore[arg-type]
    canvas = Canvases(layout, shape, text, [0], text, Known(known, mask))
    made = sample_latents(backbone, transformer, canvas, sampling)
    return bool(made.isfinite().all()) and torch.equal(
        made[..., : -layout.width // 8], known[..., : -layout.width // 8]
    )


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    seconds, speed, peak = report["seconds"], report["flop_per_second"], report["matmul_flop_per_second"]
    gib = 2**30

    def row(name: str, key: str) -> str:
        if key not in seconds:
            return f"| {name} | not run | | |"
        if key not in speed:
            return f"| {name} | {seconds[key]:.1f} | | |"
        return f"| {name} | {seconds[key]:.1f} | {speed[key] / 1e9:.1f} | {speed[key] / peak:.0%} |"

    width, height = report["panel"]
    sampled = {None: "not run", True: "finite, known panels as given", False: "NOT FINITE"}[
        report["sample_is_finite"]
    ]
    full = report["quantized_parameters"]
    bf16, mib = 2 * report["parameters"] / gib, report["lora_file_bytes"] / 2**20
    forward = "forward pass"
    if report["context"] == "clean":
        forward += ", reading the known panels included"
    return f"""# FLUX.1-dev in full size: a rehearsal

`make rehearse-12b` writes this page; the numbers are also in `rehearsal-12b.json`. The transformer has
FLUX.1-dev's exact shapes
({report["parameters"] / 1e9:.2f} billion parameters), but random weights, in NF4 from the start: what is
rehearsed is memory, names and
the whole path, not quality. `triptych train` ran one optimizer step on it (`context: {report["context"]}`,
rank {report["lora_rank"]},
gradient checkpointing), left a LoRA file, which is loaded again for two sampling steps.

Machine: {report["threads"]} CPU threads ({report["machine"]}), no GPU, torch {report["torch"]},
float32.{report.get("note", "")}

| | |
|---|---|
| parameters, those in NF4 | {report["parameters"]:,}, {full:,} |
| frozen weights in memory | {report["weight_bytes"] / gib:.2f} GiB ({bf16:.1f} in bf16) |
| peak memory of the process, all of it | {report["peak_memory_gib"]:.2f} GiB |
| LoRA file, read by `triptych lora inspect` | {mib:.0f} MiB, {report["lora_layers"]} layers |
| loss and gradient norm of the step | {report["loss"]:.4g}, {report["grad_norm"]:.4g} |
| sampled latents | {sampled} |

| phase | seconds | GFLOP/s | of the machine's matmul peak |
|---|---|---|---|
{row("filling the weights" + (", twice" if "sample" in seconds else ""), "fill")}
{row(forward, "forward")}
{row("backward pass, recomputation included", "backward")}
{row("optimizer and moving average", "optimizer")}
{row("saving the LoRA", "save")}
{row("loading the LoRA", "load lora")}
{row("two sampling steps", "sample")}

The matmul peak measured here is {peak / 1e9:.0f} GFLOP/s. FLOP are those of the base model's layers, counted
while they ran, without
attention and LoRA, which are below 2 % at this size; the backward pass counts recomputation and one product
more.

Panels are {width} × {height} px: {report["image_tokens"]} tokens in all and {report["text_tokens"]} of text,
so that a CPU is done in
minutes. A real triptych of 1728 × 768 px has 5184 and 512. With so few tokens a large part of the time goes
into
dequantising the weights, which is why the share of the peak is low. The weights' memory does not depend on
it, that of activations does.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="an empty folder for embeddings, checkpoint and LoRA (2 GB)"
    )
    parser.add_argument(
        "--report", type=Path, required=True, help="markdown file to write; JSON goes beside it"
    )
    parser.add_argument("--context", choices=["clean", "noisy"], default="clean")
    parser.add_argument(
        "--panel", type=int, nargs=2, default=(64, 96), metavar=("WIDTH", "HEIGHT"), help="pixels"
    )
    parser.add_argument("--text-tokens", type=int, default=32)
    parser.add_argument(
        "--note", default="", help="a sentence for the report, such as what else ran on the machine"
    )
    parser.add_argument("--no-sampling", action="store_true", help="train only, in half the time")
    options = parser.parse_args()
    report = rehearse(
        options.out,
        FLUX_DEV,
        options.context,
        tuple(options.panel),
        options.text_tokens,
        sample=not options.no_sampling,
    )
    report |= {"note": f" {options.note}"} if options.note else {}
    write_json(options.report.with_suffix(".json"), report)
    write_text(options.report, markdown(report))


if __name__ == "__main__":
    main()
