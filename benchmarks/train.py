"""What a training step costs beside the step of diffusers' FLUX LoRA script, on a random model with FLUX.1's
proportions.

    OMP_NUM_THREADS=2 python benchmarks/train.py --out train.json

d = 768, 4 + 8 blocks, three panels of 288 × 384 px (432 tokens each), 128 text tokens, float32, batch 1, the
same LoRA on the same layers, no gradient checkpointing. One process; a round runs every variant once, one
after the other; the table shows medians over rounds and the ratio to the script's step of the same round.
Random weights: only time and memory are measured, and that the plain step has the script's loss.

The script is diffusers' examples/dreambooth/train_dreambooth_lora_flux.py; `ScriptStep` does what one
iteration of its loop does, with the functions it calls. It encodes the picture at every step unless
--cache_latents is given: both are shown.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from flux_like import FULL, QUICK, Size, as_diffusers_has_it, flux_like, matmul_peak, peak_memory
from triptych.backbones.contract import Backbone
from triptych.data.embeddings import EMPTY, EmbeddingFolder, EmbeddingRecord, save_record, save_text
from triptych.lora.adapter import add_lora
from triptych.pictures.panels import PanelLayout
from triptych.sampling.opened import OpenedModel
from triptych.tasks.tryon import TRY_ON
from triptych.training.config import TrainConfig
from triptych.training.data import Batch, TrainingSet
from triptych.training.loss import losses_of
from triptych.training.optimizer import make_optimizer
from triptych.training.state import TrainState
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.train import _accumulate

SHARE = 0.35
"""Part of the worn panel that is learned where a polygon is shown."""


CPU_FLOPS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
    torch.ops.mkldnn._linear_pointwise: lambda x, w, *_, **__: 2 * prod(x) * w[0],
}
"""torch counts the products and the attention of cards only."""


class FixedWindow(TrainingSet):
    """The product's training set, but every batch has the same active tokens (None: what it draws)."""

    active: Tensor | None = None

    def draw(self, backbone: Backbone, step: int, number: int, passes: int) -> Batch:
        batch = super().draw(backbone, step, number, passes)
        if self.active is None:
            return batch
        return replace(batch, active=self.active, within=None, run_known=False)


class OurStep:
    """One optimizer step of `triptych train`: forward and backward passes, clipping, AdamW,
    moving average.
    """

    def __init__(
        self,
        models: OpenedModel,
        work: Path,
        share: float | None = None,
        noise_levels: int = 1,
        **settings: Any,
    ) -> None:
        """share: of the worn panel that is learned; None: noisy context. settings: more of TrainConfig; the
        device is the models'.
        """
        self.backbone = models.backbone
        usual = {"batch_size": 1, "gradient_checkpointing": False, "noise_levels": noise_levels}
        context = "noisy" if share is None else "clean"
        self.config = TrainConfig(
            work=work, model=models.backbone.model, context=context, **(usual | settings)
        )
        self.data = FixedWindow(EmbeddingFolder(work / "embeddings" / self.backbone.name), self.config)
        layout = self.data.records[self.data.ids[0]].layout
        if share is not None:
            self.data.active = window(layout, share)
        self.transformer = models.transformer
        self.parameters = lora_of(models, self.config.rank)
        self.state = TrainState(
            self.transformer, self.parameters, make_optimizer(self.config, self.parameters)
        )

    def __call__(self) -> float:
        row, _ = _accumulate(self.config, self.backbone, self.data, self.state)
        self.state.update(1e-4, self.config.ema_decay)
        return row["loss"]


class ScriptStep:
    """One iteration of train_dreambooth_lora_flux.py: `cached` with --cache_latents, otherwise the picture is
    encoded.
    """

    def __init__(self, models: OpenedModel, work: Path, cached: bool) -> None:
        self.cached, self.parameters, self.backbone = cached, lora_of(models), models.backbone
        self.transformer = as_diffusers_has_it(models.transformer)
        self.vae = models.autoencoder.vae  # type: ignore[attr-defined]
        records = EmbeddingFolder(work / "embeddings" / models.backbone.name)
        record = records[records.ids[0]]
        kind = {"device": self.backbone.device, "dtype": self.backbone.dtype}
        self.latents = record.latent_mean_CHW[None].to(**kind)
        self.text = self.backbone.to_device({name: value[None] for name, value in record.text.items()})
        self.pixels = (torch.rand(1, 3, record.layout.size[1], record.layout.size[0]) * 2 - 1).to(**kind)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(models.backbone.scheduler_config)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4)

    def loss(self, noise: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        if self.cached:
            model_input = self.latents
        else:
            model_input = self.vae.encode(self.pixels).latent_dist.sample()
            model_input = (model_input - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        b, c, h, w = model_input.shape
        ids = FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, model_input.device, model_input.dtype)
        noise = torch.randn_like(model_input) if noise is None else noise
        if t is None:
            u = compute_density_for_timestep_sampling("none", b, 0.0, 1.0, 1.29)
            t = self.scheduler.timesteps[(u * self.scheduler.config.num_train_timesteps).long()] / 1000
        t = t.to(model_input)
        sigmas = t.view(-1, 1, 1, 1)
        noisy = (1.0 - sigmas) * model_input + sigmas * noise
        packed = FluxPipeline._pack_latents(noisy, b, c, h, w)
        with self.backbone.autocast():  # as accelerate has it with --mixed_precision bf16
            predicted = self.transformer(
                hidden_states=packed,
                timestep=t,
                guidance=torch.ones(b, device=t.device),
                pooled_projections=self.text["pooled_prompt_embeds"],
                encoder_hidden_states=self.text["prompt_embeds"],
                txt_ids=torch.zeros(self.text["prompt_embeds"].shape[1], 3, device=t.device),
                img_ids=ids,
                return_dict=False,
            )[0]
        predicted = FluxPipeline._unpack_latents(predicted, h * 8, w * 8, vae_scale_factor=8)
        weighting = compute_loss_weighting_for_sd3("none", sigmas)
        target = noise - model_input
        return ((weighting.float() * (predicted.float() - target.float()) ** 2).reshape(b, -1)).mean(1).mean()

    def __call__(self) -> float:
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def lora_of(models: OpenedModel, rank: int = 16) -> list[nn.Parameter]:
    """The LoRA's parameters; the model gets one LoRA, which all variants train."""
    trained = [p for p in models.transformer.parameters() if p.requires_grad]
    layers = models.backbone.lora_layers(models.transformer)
    return trained or list(add_lora(models.transformer, layers, rank, rank, 0.0, 0))


def window(layout: PanelLayout, share: float) -> Tensor:
    """(rows, columns) bool on the token grid: the worn panel, or a box in its middle of that share."""
    active = torch.from_numpy(layout.mask(layout.roles[-1:], 16))
    if share == 1.0:
        return active
    box = layout.box("worn", 16)
    height, width = (round(side * share**0.5) for side in (box.bottom - box.top, box.right - box.left))
    top, left = box.top + (box.bottom - box.top - height) // 2, box.left + (box.right - box.left - width) // 2
    active = torch.zeros_like(active)
    active[top : top + height, left : left + width] = True
    return active


def write_records(models: OpenedModel, size: Size, work: Path) -> None:
    """Embeddings of two random triptychs."""
    backbone, layout = models.backbone, TRY_ON.layout(size.width, size.height)
    made_with, folder = backbone.encoder_fingerprint, work / "embeddings" / backbone.name
    unit = backbone.settings.stride // backbone.family.latents_per_token
    shape = backbone.latent_channels(models.transformer), layout.size[1] // unit, layout.size[0] // unit
    for number in range(2):
        mean = torch.randn(shape)
        record = EmbeddingRecord(
            f"id-{number}",
            mean,
            torch.zeros_like(mean),
            dict(models.texts["p"]),
            layout,
            str(number),
            "c",
            made_with,
        )
        save_record(record, folder / f"{record.id}.safetensors")
    save_text(models.texts[""], made_with, folder / f"{EMPTY}.safetensors")


def same_loss(ours: OurStep, script: ScriptStep) -> float:
    """Largest relative difference of the two losses over a few noise levels,
    on the same latents and noise.
    """
    batch = ours.data.draw(ours.backbone, 0, 0, 1)
    script.latents = batch.clean_BCHW
    worst = 0.0
    with torch.no_grad():
        for t in (0.2, 0.6, 0.95):
            level = torch.tensor([t], device=batch.t_B.device)
            text = {name: value[None] for name, value in ours.data.records[ours.data.ids[0]].text.items()}
            at = replace(batch, t_B=level, text=ours.backbone.to_device(text))
            script.text = at.text
            mine = float(losses_of(ours.config, ours.backbone, ours.transformer, at).sample_B.mean())
            theirs = float(script.loss(batch.noise_BCHW, level))
            worst = max(worst, abs(mine - theirs) / theirs)
    return worst


def embed_twice(work: Path) -> dict[str, float]:
    """Seconds of `embed` on 40 rendered triptychs, and of the same command again with nothing changed (median
    of three).
    """
    sys.path.insert(0, str(Path(__file__).parent))
    from pocket import write_triptychs

    write_triptychs(work, 40)
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        embed(EmbedConfig(work=work, model="pocket", batch_size=8, columns=3)).finish()
        seconds.append(time.perf_counter() - begun)
    again = median(seconds[1:])
    return {"first": seconds[0], "second": again, "ratio": seconds[0] / again}


def run(size: Size, rounds: int, path: Path, with_embed: bool) -> dict[str, Any]:
    """Measure everything; the result is written to `path` after each round."""
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models = flux_like(size, torch.float32, work / "model")
        write_records(models, size, work)
        steps: dict[str, Callable[[], float]] = {
            "script": ScriptStep(models, work, cached=False),
            "script, latents cached": ScriptStep(models, work, cached=True),
            "noisy": OurStep(models, work),
            "clean, whole panel": OurStep(models, work, 1.0),
            "clean, 35 % of it": OurStep(models, work, SHARE),
            "clean, 35 %, 4 noise levels": OurStep(models, work, SHARE, 4),
        }
        levels = {"clean, 35 %, 4 noise levels": 4}
        plain, script = steps["noisy"], steps["script, latents cached"]
        assert isinstance(plain, OurStep) and isinstance(script, ScriptStep)
        results["loss_difference"] = same_loss(plain, script)
        results["matmul_peak_gflops"] = matmul_peak()
        rows: dict[str, Any] = {name: {"seconds": [], "levels": levels.get(name, 1)} for name in steps}
        for name, step in steps.items():  # warm up; count the work
            with FlopCounterMode(display=False, custom_mapping=CPU_FLOPS) as counter:
                step()
            rows[name]["gflop"] = counter.get_total_flops() / 1e9
            rows[name]["peak_memory_mib"] = peak_memory(step) / 2**20
            print(
                f"{name}: {rows[name]['gflop']:.0f} GFLOP, {rows[name]['peak_memory_mib']:.0f} MiB",
                file=sys.stderr,
                flush=True,
            )
        for number in range(rounds):
            for name, step in steps.items():
                begun = time.perf_counter()
                step()
                rows[name]["seconds"].append((time.perf_counter() - begun) / rows[name]["levels"])
            results["matmul_peak_gflops"] = max(results["matmul_peak_gflops"], matmul_peak())
            print(
                f"round {number + 1} of {rounds}: "
                + ", ".join(f"{r['seconds'][-1]:.2f} s" for r in rows.values()),
                file=sys.stderr,
                flush=True,
            )
            results["rows"] = rows
            path.write_text(json.dumps(results, indent=1))
        if with_embed:
            results["embed"] = embed_twice(work / "again")
            path.write_text(json.dumps(results, indent=1))
    return results


def table(results: dict[str, Any]) -> str:
    rows = results["rows"]
    lines = [
        "| step | s per level | × script | × script, cached | peak memory | share of matmul peak |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        against = [
            median(a / b for a, b in zip(rows[base]["seconds"], row["seconds"], strict=True))
            for base in list(rows)[:2]
        ]
        share = row["gflop"] / row["levels"] / median(row["seconds"]) / results["matmul_peak_gflops"]
        cells = [
            name,
            f"{median(row['seconds']):.2f}",
            *(f"{x:.2f}" for x in against),
            f"{row['peak_memory_mib']:.0f} MiB",
            f"{share:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if "embed" in results:
        first, second = results["embed"]["first"], results["embed"]["second"]
        lines += [
            "",
            f"`embed` of 40 triptychs: {first:.1f} s, and again with nothing changed {second:.3f} s "
            f"({first / second:.0f}×).",
        ]
    lines += [
        "",
        f"Loss of `noisy` against the script's, same noise: {results['loss_difference']:.1e} apart at most.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("train.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small model, to see that everything runs")
    parser.add_argument("--no-embed", action="store_true", help="leave out the two runs of embed")
    options = parser.parse_args()
    print(table(run(QUICK if options.quick else FULL, options.rounds, options.out, not options.no_embed)))


if __name__ == "__main__":
    main()
