"""FLUX.2-klein-4B in full size on a processor: one try-on as the distilled model makes it, with the whole
worn panel active and with 35 % of the panel.

The shapes are klein-4B's, the weights are random: a rehearsal of time, memory and of the whole path through
`try_on`, not of quality. Everything but the random weights and embeddings is the product's own code. The text
encoder is gone before the transformer comes, so it is timed apart: one of its layers, times their number.

    OMP_NUM_THREADS=2 python benchmarks/rehearse_klein.py --out work/rehearsal --report work/klein.md

Seconds of the processor are told besides those of the clock, for machines that others use too; waiting
threads must sleep then (OMP_WAIT_POLICY=PASSIVE). `--plan` runs nothing: it compares an existing report with
what `triptych plan` says now.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from flux_like import PROMPT, Size, processor
from rehearsal import SCHEDULER, Meter, matmul_peak
from rehearsal_report import klein_page
from triptych.backbones.context import Context, Reference
from triptych.backbones.flux2.attention import install
from triptych.backbones.flux2.model import Flux2
from triptych.backbones.flux2.text import LAYERS
from triptych.backbones.known import known_models
from triptych.backbones.registry import load_backbone
from triptych.compute import cpu
from triptych.compute.quantize import FORMATS
from triptych.planning.cards import MEASURED_EFFICIENCY
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.store.files import write_json, write_text
from triptych.tasks.tryon import TRY_ON
from triptych.training.log import peak_memory_gib
from triptych.verbs.plan import plan
from triptych.verbs.plan_config import PlanConfig
from triptych.vton.dress import try_on
from triptych.vton.request import Person
from tryon_parts import person, polygon, product

MODEL = "black-forest-labs/FLUX.2-klein-4B"
SHARE = 0.35
CASES = {"35 % of the panel": "polygon", "whole panel": "panel"}
"""What is active, and the name of that choice in `Sampling.active_tokens`."""
POOL = (1 << 22) + 11
"""Random numbers that are made once and repeated; no multiple of a layer's width, so that rows differ."""


def filled(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module on the meta device gets random weights in RAM, layer by layer, that leave a layer's outputs
    about as large as its inputs; vectors are 1. Frozen, in eval mode.
    """
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).to(dtype)
    for owner in list(module.modules()):
        for name, tensor in owner.named_parameters(recurse=False):
            made = torch.ones(tensor.shape, dtype=dtype)
            if tensor.ndim > 1:
                flat, scale = made.view(-1), tensor[0].numel() ** -0.5
                for start in range(0, flat.numel(), POOL):
                    part = flat[start : start + POOL]
                    torch.mul(pool[: part.numel()], scale, out=part)
            setattr(owner, name, nn.Parameter(made, requires_grad=False))
    return module.eval()


def random_transformer(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """Flux2Transformer2DModel of a config, as `Backbone.load_transformer` leaves it on a CPU."""
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**config)
    return cpu.install(filled(transformer, dtype))


def write_model(folder: Path, parts: dict[str, Any], words: int) -> None:
    """A diffusers folder of a distilled klein, with a random autoencoder and no other weights."""
    write_json(folder / "model_index.json", {"_class_name": "Flux2KleinPipeline", "is_distilled": True})
    transformer = {"_class_name": "Flux2Transformer2DModel", **parts["transformer"]}
    write_json(folder / "transformer" / "config.json", transformer)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "triptych.json", {"max_sequence_length": words})
    torch.manual_seed(0)
    AutoencoderKLFlux2(**parts["vae"]).to(torch.bfloat16).save_pretrained(folder / "vae")


def flop_of_pass(
    config: dict[str, Any], image: int, words: int, known: int = 0, *, reading: bool = False
) -> int:
    """Floating-point operations of one pass of the transformer, a product and a sum counted as two: its
    projections by token, and attention of every token to all and to the `known` ones. reading: the last block
    computes keys and values alone.
    """
    width = config["attention_head_dim"] * config["num_attention_heads"]
    blocks, tokens = config["num_layers"] + config["num_single_layers"], image + words
    # q, k, v and out; SwiGLU with three times the width: two projections in, one out.
    linear, attention = 13 * width * width * tokens, 2 * width * tokens * (tokens + known)
    total = blocks * (linear + attention)
    if reading:
        total -= 11 * width * width * tokens + attention
    ends = image * width * 2 * config["in_channels"] + words * width * config["joint_attention_dim"]
    return 2 * (total + ends)


def rehearse(
    out: Path,
    parts: dict[str, Any],
    panel: tuple[int, int],
    words: int,
    steps: int = 4,
    dtype: torch.dtype = torch.bfloat16,
    peak_seconds: float = 3.0,
    cases: dict[str, str] = CASES,
) -> dict[str, Any]:
    """Dress one person twice, once for each of `cases`; what was measured.

    panel: width and height in pixels. out: a folder for the model's description and the pictures, empty or
    of a rehearsal that was stopped: its finished cases are kept.
    """
    text = text_encoder(parts["text_encoder"], words, dtype)
    blocks = weight_formats(parts["transformer"], words, panel, dtype)
    peak = matmul_peak(peak_seconds, dtype, cpu=True)
    filling = Meter()
    write_model(out / "model", parts, words)
    backbone = load_backbone(str(out / "model"), "cpu", "bf16" if dtype == torch.bfloat16 else "fp32")
    with filling.phase("fill"):
        transformer = random_transformer(parts["transformer"], dtype)
    joint = parts["transformer"]["joint_attention_dim"]
    texts = {prompt: {"prompt_embeds": torch.randn(words, joint)} for prompt in (PROMPT, "")}
    models = OpenedModel(backbone, transformer, backbone.load_autoencoder(), texts)
    so_far, size = out / "so-far.json", Size(0, 0, 0, *panel, words)
    made: dict[str, Any] = json.loads(so_far.read_text(encoding="utf-8")) if so_far.exists() else {}
    install(transformer)
    shared = Shared(out / "read.safetensors", transformer, made)
    for name, active in cases.items():
        if name not in made:
            made[name] = dressed(models, size, active, steps, out / f"{active}.png", shared)
            write_json(so_far, made)
    numbers = sum(parameter.numel() for parameter in transformer.parameters())
    return {
        "panel": list(panel),
        "panel_tokens": panel[0] * panel[1] // 256,
        "text_tokens": words,
        "steps": steps,
        "parameters": numbers,
        "weight_bytes": numbers * dtype.itemsize,
        "dtype": str(dtype).removeprefix("torch."),
        "fill_seconds": filling.seconds["fill"],
        "text_encoder": text,
        "block": blocks,
        "runs": made,
        "matmul_flop_per_second": peak,
        "peak_memory_gib": max(run["peak_memory_gib"] for run in made.values()),
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
    }


class Shared:
    """What the cases have in common, which the first of them does for all: encoding photos and reading
    references. Keys and values wait in a file, so that they take no memory beside the product's own.
    """

    def __init__(self, file: Path, transformer: nn.Module, made: dict[str, Any]) -> None:
        """made: what earlier cases measured, perhaps in a process that was stopped."""
        first: dict[str, Any] = next(iter(made.values()), {})
        self.file, self.known = file, first.get("known", 0)
        self.seconds, self.cpu_seconds = (
            {name: first[clock][name] for name in ("encode", "read")} if first else {}
            for clock in ("seconds", "cpu_seconds")
        )
        self._encoded: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._layers = [block.attn.processor for block in Flux2.blocks(transformer).values()]

    def encoder(self, encode: Any) -> Any:
        def encoded(pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
            key = hashlib.sha256(pixels_BCHW.numpy().tobytes()).digest()
            if key not in self._encoded:
                self._encoded[key] = encode(pixels_BCHW)
            return self._encoded[key]

        return encoded

    def reader(self, read: Any) -> Any:
        def reading(transformer: nn.Module, references: Sequence[Reference], *rest: Any) -> Context:
            if self.file.exists():
                tensors = load_file(self.file)
                pairs = ((tensors[f"{n}.k"], tensors[f"{n}.v"]) for n in range(len(self._layers)))
                return Context(1, dict(zip(self._layers, pairs, strict=True)))
            self.known = sum(
                one.latents_BCHW[0, 0].numel() if one.known is None else int(one.known.sum())
                for one in references
            )
            context: Context = read(transformer, references, *rest)
            return context

        return reading

    def keep(self, context: Context) -> None:
        """Write what was read, once."""
        if not self.file.exists():
            pairs = enumerate(context.kept[layer] for layer in self._layers)
            tensors = {f"{n}.{name}": one for n, pair in pairs for name, one in zip("kv", pair, strict=True)}
            part = self.file.with_suffix(".part")
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
            part.replace(self.file)


def dressed(
    models: OpenedModel, size: Size, active: str, steps: int, picture: Path, shared: Shared
) -> dict[str, Any]:
    """One try-on, and where its time goes."""
    meter, backbone, autoencoder = Meter(), models.backbone, models.autoencoder
    config = models.transformer.config
    timed_read = meter.timed("read", shared.reader(backbone.read))

    def read(*inputs: Any) -> Context:
        context: Context = timed_read(*inputs)
        shared.keep(context)
        return context

    autoencoder.encode, autoencoder.decode = (  # type: ignore[method-assign]
        meter.timed("encode", shared.encoder(autoencoder.encode)),
        meter.timed("decode", autoencoder.decode),
    )
    backbone.read = read  # type: ignore[method-assign]
    velocity = meter.timed("steps", backbone.velocity)
    backbone.velocity = velocity  # type: ignore[method-assign]
    sampling = Sampling(steps, None, context="clean", context_placement="reference")
    sampling = replace(sampling, active_tokens=active)  # type: ignore[arg-type]
    layout, mask = TRY_ON.layout(size.width, size.height), polygon(size, SHARE)
    whom = Person(person(size, 0), mask, PROMPT, [0])
    try:
        ((result,),) = try_on(models, product(size, 0), product(size, 1), [whom], layout, sampling, feather=0)
    finally:
        del autoencoder.encode, autoencoder.decode, backbone.read, backbone.velocity
    result.image.save(picture)
    for name in ("encode", "read"):
        shared.seconds.setdefault(name, meter.seconds[name])
        shared.cpu_seconds.setdefault(name, meter.cpu_seconds[name])
    image = mask.size // 256 if active == "panel" else int((mask[::16, ::16] > 0).sum())
    seconds, cpu_seconds = meter.seconds | shared.seconds, meter.cpu_seconds | shared.cpu_seconds
    return {
        "active": image,
        "known": shared.known,
        "seconds": {**seconds, "all": sum(seconds.values())},
        "cpu_seconds": {**cpu_seconds, "all": sum(cpu_seconds.values())},
        "flop": {
            "read": flop_of_pass(config, shared.known, 0, reading=True),
            "steps": steps * flop_of_pass(config, image, size.words, shared.known),
        },
        "repainted": changed_share(result.image, whom.photo, mask),
        "peak_memory_gib": peak_memory_gib(torch.device("cpu")),
    }


def changed_share(made: Image.Image, photo: Image.Image, mask: np.ndarray) -> list[float]:
    """The share of pixels that differ from the photo, inside the polygon and outside."""
    differs = (np.asarray(made) != np.asarray(photo)).any(-1)
    return [float(differs[mask > 0].mean()), float(differs[mask == 0].mean())]


def text_encoder(config: dict[str, Any], words: int, dtype: torch.dtype) -> dict[str, float]:
    """What the prompt costs: bytes of the layers that are needed, and seconds of one layer times their
    number, for the prompt and the empty prompt.
    """
    one = dict(config, num_hidden_layers=1, vocab_size=64, layer_types=None)
    with torch.device("meta"):
        whole = Qwen3Model(Qwen3Config(**dict(config, num_hidden_layers=max(LAYERS), layer_types=None)))
    layer = Qwen3Model(Qwen3Config(**{k: v for k, v in one.items() if v is not None})).to(dtype).eval()
    states = torch.randn(1, words, config["hidden_size"], dtype=dtype)

    def run() -> Tensor:
        return layer(inputs_embeds=states, use_cache=False).last_hidden_state

    with torch.no_grad():
        run()
        begun = time.process_time()
        run()
    seconds = (time.process_time() - begun) / torch.get_num_threads()
    numbers = sum(parameter.numel() for parameter in whole.parameters())
    return {"bytes": float(numbers * dtype.itemsize), "seconds": 2 * max(LAYERS) * seconds}


def weight_formats(
    config: dict[str, Any], words: int, panel: tuple[int, int], dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Seconds of the products of one single block, for the tokens of a step with 35 % active, by the format
    of the weights; processor seconds by thread, the better of two.
    """
    width = config["attention_head_dim"] * config["num_attention_heads"]
    tokens = round(SHARE * panel[0] * panel[1] / 256) + words
    layers = nn.ModuleList([nn.Linear(width, 9 * width, bias=False), nn.Linear(4 * width, width, bias=False)])
    layers = cpu.install(filled(layers.to(dtype), dtype))  # type: ignore[assignment]
    inputs = [torch.randn(tokens, layer.in_features, dtype=dtype) for layer in layers]  # type: ignore[arg-type]
    made = {}
    for name in ("none", "int8", "int8-torchao"):
        if name != "none":
            kind = FORMATS[name]
            shown = [kind(*kind.pack(layer.weight.float()), layer.weight.shape, None) for layer in layers]  # type: ignore[arg-type,union-attr,operator]
        else:
            shown = list(layers)
        seconds = []
        with torch.no_grad():
            for _ in range(3):
                begun = time.process_time()
                for layer, states in zip(shown, inputs, strict=True):
                    layer(states)
                seconds.append((time.process_time() - begun) / torch.get_num_threads())
        held = sum(
            one.numel() * one.element_size()
            for layer in shown
            for one in (*layer.parameters(), *layer.buffers())
        )
        made[name] = {"seconds": min(seconds[1:]), "bytes": float(held)}
    return made


def planned(report: dict[str, Any]) -> dict[str, Any]:
    """What `triptych plan --card cpu` says of such a try-on by `whole panel`. Its time is by the speed of
    products in the report: that by the clock, which it measures itself, is too low while other programs run.
    """
    settings = {"tryon": {"context": "clean", "context_cache_gib": 0}}
    stage = plan(PlanConfig(model=MODEL, card="cpu"), settings).finish()["tryon"]
    speed = report["matmul_flop_per_second"] * MEASURED_EFFICIENCY
    return {
        "bytes": stage["total_bytes"],
        "moment": stage["moment"],
        "flop": stage["flops"],
        "flop_per_second": speed,
        "seconds": stage["flops"] / speed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("work/rehearsal-klein"), help="an empty folder (2 GB)"
    )
    parser.add_argument("--report", type=Path, required=True, help="markdown file; JSON goes beside it")
    parser.add_argument(
        "--panel", type=int, nargs=2, default=(576, 768), metavar=("WIDTH", "HEIGHT"), help="pixels"
    )
    parser.add_argument("--text-tokens", type=int, default=512)
    parser.add_argument("--plan", action="store_true", help="only compare the report with plan again")
    parser.add_argument("--note", default="", help="a sentence for the report: what else ran on the machine")
    options = parser.parse_args()
    if options.plan:
        report = json.loads(options.report.with_suffix(".json").read_text(encoding="utf-8"))
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        parts = known_models()[MODEL]["parts"]
        report = rehearse(options.out, parts, tuple(options.panel), options.text_tokens)
        report |= {"note": options.note} if options.note else {}
        write_json(options.report.with_suffix(".json"), report)
    report["plan"] = planned(report)
    write_json(options.report.with_suffix(".json"), report)
    write_text(options.report, klein_page(report))


if __name__ == "__main__":
    main()
