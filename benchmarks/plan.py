"""Predicted against measured peak memory of training steps, on random models of several sizes, on the CPU in
float32.

    python benchmarks/plan.py

Every case runs in a process of its own. What is measured is the allocator: every block of memory that torch
takes and gives back, kernels' temporaries included, as torch's profiler records it (on a card,
torch.cuda.max_memory_allocated says the same). The resident size of the process is shown beside it, for what
it is worth: it also holds MKL's scratch memory and whatever the C library has not given back. Two steps are
run, for the optimizer's state exists from the first on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FLUX = {"patch_size": 1, "in_channels": 64, "guidance_embeds": True}
SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    "qk_norm": "rms_norm",
}


@dataclass(frozen=True)
class Case:
    """One training step. width: of the transformer. layers: (double, single) blocks of FLUX and FLUX.2;
    blocks of SD3, the first of them with a second attention. With clean and native context, FLUX.2 learns a
    small part of the worn panel, which takes the most memory: the rest is run and shown besides.
    """

    family: str
    width: int
    layers: tuple[int, int]
    panel: tuple[int, int]
    batch_size: int
    gradient_checkpointing: bool
    context: str
    rank: int = 16
    gradient_accumulation_steps: int = 1
    context_lora: bool = False


CASES = (
    Case("flux", 128, (4, 8), (128, 192), 1, False, "noisy"),
    Case("flux", 128, (4, 8), (128, 192), 4, False, "noisy"),
    Case("flux", 128, (4, 8), (128, 192), 4, True, "noisy"),
    Case("flux", 256, (3, 6), (192, 256), 1, False, "noisy"),
    Case("flux", 256, (3, 6), (192, 256), 2, True, "noisy"),
    Case("flux", 256, (3, 6), (192, 256), 2, False, "clean"),
    Case("flux", 256, (3, 6), (192, 256), 2, True, "clean"),
    Case("flux", 256, (3, 6), (192, 256), 2, True, "clean", context_lora=True),
    Case("flux", 384, (5, 10), (192, 256), 1, True, "noisy", rank=64),
    Case("flux", 384, (5, 10), (192, 256), 1, True, "noisy", rank=64, gradient_accumulation_steps=2),
    Case("flux", 512, (2, 4), (256, 384), 1, False, "noisy"),
    Case("flux", 512, (2, 4), (256, 384), 2, True, "noisy"),
    Case("flux", 512, (2, 4), (256, 384), 2, True, "clean"),
    Case("sd3", 256, (6, 0), (192, 256), 2, False, "noisy"),
    Case("sd3", 256, (6, 0), (192, 256), 2, True, "noisy"),
    Case("sd3", 256, (6, 0), (192, 256), 2, False, "clean"),
    Case("flux2", 256, (2, 6), (192, 256), 2, False, "noisy"),
    Case("flux2", 256, (2, 6), (192, 256), 2, True, "native"),
    Case("flux2", 256, (2, 6), (192, 256), 2, False, "clean"),
    Case("flux2", 256, (2, 6), (192, 256), 2, True, "clean"),
    Case("flux2", 256, (2, 6), (192, 256), 2, True, "clean", context_lora=True),
)


def write_configs(case: Case, folder: Path) -> Path:
    """A model folder with configs and no weights."""
    heads = max(1, case.width // 64)
    shared = {
        "attention_head_dim": case.width // heads,
        "num_attention_heads": heads,
        "joint_attention_dim": 256,
    }
    vae = {"block_out_channels": [8, 8, 8, 8], "latent_channels": 16, "norm_num_groups": 4}
    vae |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    if case.family == "flux2":
        shared |= {
            "joint_attention_dim": 192,
            "num_layers": case.layers[0],
            "num_single_layers": case.layers[1],
        }
        own = {"patch_size": 1, "in_channels": 128, "timestep_guidance_channels": 64}
        own["axes_dims_rope"] = [case.width // heads // 4] * 4
        pipeline, encoders = "Flux2KleinPipeline", {"text_encoder": _qwen()}
        vae["latent_channels"] = 32
    elif case.family == "flux":
        side = case.width // heads
        rope = [side // 4, side * 3 // 8, side * 3 // 8]
        own = {
            **FLUX,
            "num_layers": case.layers[0],
            "num_single_layers": case.layers[1],
            "axes_dims_rope": rope,
            "pooled_projection_dim": 64,
        }
        pipeline, encoders = "FluxPipeline", {"text_encoder": _clip("CLIPTextModel"), "text_encoder_2": _t5()}
    else:
        own = {
            **SD3,
            "num_layers": case.layers[0],
            "caption_projection_dim": case.width,
            "dual_attention_layers": [0, 1],
        }
        own["pooled_projection_dim"] = 64
        projected = _clip("CLIPTextModelWithProjection")
        pipeline, encoders = (
            "StableDiffusion3Pipeline",
            {"text_encoder": projected, "text_encoder_2": projected, "text_encoder_3": _t5()},
        )
    for name, config in {"transformer": {**shared, **own}, "vae": vae, **encoders}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (folder / "triptych.json").write_text(json.dumps({"max_sequence_length": 128}))
    return folder


def _clip(kind: str) -> dict[str, Any]:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return {"architectures": [kind], "max_position_embeddings": 77, "projection_dim": 32, **sizes}


def _t5() -> dict[str, Any]:
    return {
        "architectures": ["T5EncoderModel"],
        "vocab_size": 64,
        "d_model": 256,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 4,
    }


def _qwen() -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 28,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 64,
    }


def train_config(case: Case, folder: Path) -> Any:
    from triptych.training.config import TrainConfig

    own = {key: value for key, value in asdict(case).items() if key in TrainConfig.model_fields}
    return TrainConfig(model=str(folder), dtype="fp32", alpha=case.rank, num_validation_images=0, **own)


def predict(case: Case, folder: Path) -> float:
    """Bytes, as `triptych plan` computes them, but for what Python and the libraries are assumed to take."""
    import torch

    from triptych.planning.memory import PROCESS_RAM, Machine, train_memory
    from triptych.planning.shapes import model_shapes
    from triptych.tasks.tryon import TRY_ON

    layout = TRY_ON.layout(*case.panel)
    machine = Machine(torch.float32, card=False)
    return (
        train_memory(model_shapes(str(folder)), train_config(case, folder), layout, 128, machine).total
        - PROCESS_RAM
    )


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Two real training steps in this process: peak bytes of torch's allocator, and by how much the process
    grew.
    """
    import torch
    from torch import nn
    from torch.profiler import ProfilerActivity, profile

    from triptych.lora.adapter import add_lora
    from triptych.planning.runs import cells_learned
    from triptych.planning.shapes import model_shapes
    from triptych.tasks.tryon import TRY_ON
    from triptych.training.data import Batch
    from triptych.training.loss import losses_of
    from triptych.training.optimizer import make_optimizer
    from triptych.training.state import TrainState

    shapes, config, layout = model_shapes(str(folder)), train_config(case, folder), TRY_ON.layout(*case.panel)
    backbone = shapes.family(str(folder), torch.device("cpu"), torch.float32)
    backbone.settings = shapes.settings
    before = _resident()
    start = time.monotonic()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as recorded:
        torch.manual_seed(0)
        transformer = (
            backbone.transformer_class.from_config(shapes.configs["transformer"]).eval().requires_grad_(False)
        )
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        parameters = add_lora(
            transformer, backbone.lora_layers(transformer), config.rank, config.alpha, 0.0, 0
        )
        state = TrainState(transformer, parameters, make_optimizer(config, parameters))
        for _ in range(2):
            transformer.train()
            for _ in range(config.gradient_accumulation_steps):
                latents = torch.randn(shapes.latents(layout, case.batch_size).shape)
                _, active = cells_learned(layout, 16, 1 / 3 if case.family == "flux2" else 1)
                text = {
                    name: torch.randn(value.shape)
                    for name, value in shapes.text(128, case.batch_size, torch.float32).items()
                }
                empty = {
                    name: torch.randn(value.shape)
                    for name, value in shapes.text(128, 1, torch.float32).items()
                }
                t_B, learned = torch.rand(case.batch_size), torch.ones_like(latents[:, 0])
                batch = Batch(
                    layout,
                    latents,
                    torch.randn_like(latents),
                    t_B,
                    text,
                    empty,
                    learned,
                    None if case.context == "noisy" else active,
                    run_known=case.family == "flux2",
                )
                losses = losses_of(config, backbone, transformer, batch)
                losses.sample_B.mean().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            state.update(1e-4, 0.99)
    seconds = time.monotonic() - start
    peak = live = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return {"allocated": peak, "resident": _resident(peak=True) - before, "seconds": seconds}


def _resident(peak: bool = False) -> int:
    """Bytes of this process in RAM, now or at most (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def run_case(case: Case) -> dict[str, float]:
    """Measured in a fresh process, and predicted there afterwards."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(asdict(case))],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"error": found["predicted"] / found["allocated"] - 1}


def table(rows: list[tuple[Case, dict[str, float]]]) -> str:
    lines = [
        "| model | width | blocks | panels | batch × passes | checkpointing | context | rank "
        "| predicted MiB | measured MiB | error | RSS MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, found in rows:
        blocks = f"{case.layers[0]} + {case.layers[1]}" if case.layers[1] else str(case.layers[0])
        batch = f"{case.batch_size} × {case.gradient_accumulation_steps}"
        context = case.context + (", LoRA reads" if case.context_lora else "")
        sizes = [f"{found[name] / 2**20:.1f}" for name in ("predicted", "allocated")]
        cells = [case.family, case.width, blocks, f"3 × {case.panel[0]}×{case.panel[1]}", batch]
        cells += ["on" if case.gradient_checkpointing else "off", context, case.rank, *sizes]
        cells += [f"{found['error']:+.1%}", f"{found['resident'] / 2**20:.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    values = parser.parse_args().case
    if values:
        case = Case(**{**values, "layers": tuple(values["layers"]), "panel": tuple(values["panel"])})
        with tempfile.TemporaryDirectory() as work:
            folder = write_configs(case, Path(work) / "model")
            print(json.dumps({**measure(case, folder), "predicted": predict(case, folder)}))
        return
    rows = []
    for case in CASES:
        rows.append((case, run_case(case)))
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
    print(table(rows))
    worst = max(abs(found["error"]) for _, found in rows)
    print(f"\nLargest error over {len(rows)} cases: {worst:.1%}")
    sys.exit(worst > 0.15)


if __name__ == "__main__":
    main()
