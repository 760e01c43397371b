"""train: an In-Context LoRA with the rectified-flow loss. The loop is `_steps`, to be read from top to bottom.

All randomness is a function of (seed, step, id), never of what ran before: a run that was stopped and started again
makes the same LoRA. Legend: B batch, C channels, H and W latent rows and columns.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from triptych import flow
from triptych.backbones.base import Backbone, fingerprint
from triptych.backbones.registry import load_backbone
from triptych.checkpoints import load_newest, save_checkpoint
from triptych.config import StageConfig
from triptych.embeddings import EmbeddingFolder, stack_text
from triptych.errors import WorkError
from triptych.inference import Sampling, read_window, sample_latents, to_images
from triptych.lora import FILE_NAME, add_lora, lora_state, save_lora
from triptych.panels import PanelLayout
from triptych.store import Event, Run, StageFolder, digest, held, read_jsonl, write_jsonl


class TrainConfig(StageConfig):
    model: str = "pocket"
    """`pocket`, a diffusers folder, or a hub id such as black-forest-labs/FLUX.1-dev."""
    max_train_steps: int = Field(default=1000, ge=1)
    """Optimizer steps in all."""
    batch_size: int = Field(default=4, ge=1)
    """Triptychs in one forward pass."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward passes to one optimizer step."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW."""
    lr_warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises; then it falls as a cosine to zero."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    rank: int = Field(default=16, ge=1)
    """Rank of the LoRA."""
    alpha: float = Field(default=16, gt=0)
    """Scale of the LoRA in units of rank; folded into the saved file."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the LoRA's inputs dropped in training."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of samples that see the empty caption, so that the panels are learned and not only the words."""
    context: Literal["noisy", "clean"] = "noisy"
    """noisy: all panels are noised and all are learned, as in the paper. clean: product panels, and in half of the batches
    a part of the worn one, are shown clean and read once; the rest of the worn panel is learned. Sampling is faster that way."""
    context_lora: bool = False
    """Clean context: the LoRA also adapts how known panels are read. Slower: the reading is then part of the backward pass."""
    context_dropout: float = Field(default=0.1, ge=0, le=1)
    """Clean context: share of batches without product panels, so that sampling can be guided by them."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    """Moving average of the LoRA; it is what gets saved and shown. 0 turns it off."""
    guidance_scale: float = 1.0
    """Guidance fed to a guidance-distilled model in training; 1 for FLUX.1-dev."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: a third more time, several times less memory."""
    seed: int = 0
    """Everything random follows from it."""
    checkpointing_steps: int = Field(default=250, ge=1)
    """Save the whole training state every so many steps. Run the same command again to resume."""
    checkpoints_total_limit: int = Field(default=2, ge=1)
    """How many of the newest checkpoints to keep."""
    validation_steps: int = Field(default=250, ge=0)
    """Make validation pictures every so many steps; 0 for none."""
    num_validation_images: int = Field(default=2, ge=0)
    """Triptychs whose worn panel is generated from its product panels as a validation picture."""
    logging_dir: Path | None = None
    """Where TensorBoard files go, if not in the LoRA folder."""
    tracker_name: str = "triptych"
    """Name of the run in TensorBoard."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the frozen model and the matrix products; the LoRA is always float32."""


# What may change between two runs of one training without changing the LoRA it ends with.
_FREE = {
    *StageConfig.model_fields,
    *("checkpointing_steps", "checkpoints_total_limit", "validation_steps", "num_validation_images"),
    *("logging_dir", "tracker_name", "device", "gradient_checkpointing"),
}


def train(config: TrainConfig) -> Run:
    """Train a LoRA on the embeddings of `<embeddings>/<backbone>`; leaves `<lora>/pytorch_lora_weights.safetensors`.

    Raises:
        ModelError: the model cannot be opened. WorkError: no embeddings; or the folder holds a training with other settings.
    """
    backbone = load_backbone(config.model, config.device, config.dtype)
    data = EmbeddingFolder(config.embedding_folder / backbone.name)
    if any(about["model"] != backbone.encoder_fingerprint for about in data.about.values()):
        hint = f"Run `triptych embed --model {config.model}` first."
        raise WorkError(f"The embeddings in {data.path} were made with another model.", hint)
    hashes = {id: (about["image_sha256"], about["caption_sha256"], about["model"]) for id, about in data.about.items()}
    model = fingerprint(config.model, ["transformer"])
    settings = {k: v for k, v in config.model_dump(mode="json").items() if k not in _FREE}
    begun = any((config.train_folder / "checkpoints").glob("step-*")) or (config.train_folder / FILE_NAME).exists()
    folder = StageFolder(config.train_folder, "train", {**settings, "model": model, "data": digest(hashes)}, begun=begun)
    if (config.train_folder / FILE_NAME).exists() and not (config.train_folder / "train.jsonl").exists():
        raise WorkError(f"There is a LoRA in {config.train_folder} that was not trained here.", "Choose another --lora-folder.")
    summary: dict[str, Any] = {
        "triptychs": len(data.ids),
        "train_steps": 0,
        "resumed_at": 0,
        "loss": None,
        "lora": str(config.train_folder / FILE_NAME),
    }

    def work() -> Iterator[Event]:
        if (config.train_folder / FILE_NAME).exists():
            summary["train_steps"] = config.max_train_steps
            summary["loss"] = _mean_loss(read_jsonl(folder.path / "train.jsonl"))
            yield Event(f"step {config.max_train_steps}", "kept", "already trained")
        else:
            yield from _steps(config, backbone, data, folder.path, summary)

    return Run("train", config.max_train_steps, held(folder, work), summary)


def _steps(config: TrainConfig, backbone: Backbone, data: EmbeddingFolder, folder: Path, summary: dict[str, Any]) -> Iterator[Event]:
    transformer = backbone.load_transformer()
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()  # type: ignore[operator]
    parameters = add_lora(transformer, backbone.lora_targets, config.rank, config.alpha, config.lora_dropout, config.seed)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    average = {name: tensor.clone() for name, tensor in lora_state(transformer).items()}
    start = _restore(folder, transformer, optimizer, parameters, average)
    summary["resumed_at"] = start
    summary["train_steps"] = start
    log = TrainLog(folder, config.logging_dir or folder / "tensorboard", config.tracker_name, start)
    summary["loss"] = log.mean_loss() if start else None
    clock = time.monotonic()
    for step in range(start, config.max_train_steps):
        rate = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = []
        transformer.train()
        for pass_ in range(config.gradient_accumulation_steps):
            torch.manual_seed(flow.generator_for(config.seed, "dropout", step, pass_).initial_seed() & 0xFFFFFFFF)
            loss = batch_loss(config, backbone, transformer, data, step, pass_)
            (loss / config.gradient_accumulation_steps).backward()
            losses.append(loss.item())
        norm = float(nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        loss_value = sum(losses) / len(losses)
        if not math.isfinite(loss_value + norm):
            hint = "Lower --learning-rate and start in another --lora-folder; the last checkpoint is intact."
            raise WorkError(f"The loss is no longer a number at step {step + 1}.", hint)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            for name, tensor in lora_state(transformer).items():
                average[name].lerp_(tensor, 1.0 - decay)
        transformer.eval()

        done = step + 1
        speed = (time.monotonic() - clock) / (done - start)
        log.write(done, loss=loss_value, learning_rate=rate, grad_norm=norm, seconds_per_step=speed)
        summary.update(train_steps=done, loss=log.mean_loss())
        last = done == config.max_train_steps
        if last or done % config.checkpointing_steps == 0:
            log.flush()
            save_checkpoint(
                folder / "checkpoints", done, _state(transformer, optimizer, parameters, average), config.checkpoints_total_limit
            )
        if config.validation_steps and config.num_validation_images and (last or done % config.validation_steps == 0):
            _validate(config, backbone, transformer, data, average, folder / "samples" / f"step-{done:06d}.png")
        yield Event(f"step {done}", note=f"loss {log.mean_loss():.4f}, {speed:.2f} s/step")
    log.flush()
    about = {
        "base_model": config.model,
        "layout": data[data.ids[0]].layout.to_dict(),
        "context": config.context,
        "context_lora": config.context_lora,
        "steps": config.max_train_steps,
        "triptychs": len(data.ids),
    }
    save_lora(folder / FILE_NAME, average, config.rank, config.alpha, about)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to zero, as a function of the step alone."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    progress = (step - config.lr_warmup_steps) / max(1, config.max_train_steps - config.lr_warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def ids_of_batch(ids: list[str], seed: int, number: int, size: int) -> list[str]:
    """The ids of batch `number`: consecutive samples of an endless stream that shuffles anew each epoch and drops none."""
    chosen = []
    for sample in range(number * size, (number + 1) * size):
        epoch, position = divmod(sample, len(ids))
        order = torch.randperm(len(ids), generator=flow.generator_for(seed, "order", epoch))
        chosen.append(ids[int(order[position])])
    return chosen


def ids_of_one_layout(data: EmbeddingFolder, seed: int, number: int, size: int) -> list[str]:
    """As `ids_of_batch`; where canvases differ in size, each batch comes from one size, drawn by its share of triptychs."""
    pick = torch.randint(len(data.ids), (), generator=flow.generator_for(seed, "bucket", number))
    return ids_of_batch(data.buckets[data.ids[int(pick)]], seed, number, size)


def batch_loss(config: TrainConfig, backbone: Backbone, transformer: nn.Module, data: EmbeddingFolder, step: int, pass_: int) -> Tensor:
    """Mean squared error of the velocity over one batch: E‖v(x_t, t) − (noise − data)‖² (arXiv 2209.03003, eq. 1)."""
    ids = ids_of_one_layout(data, config.seed, step * config.gradient_accumulation_steps + pass_, config.batch_size)
    clean, noise, times, texts = [], [], [], []
    for place, id in enumerate(ids):
        record = data[id]
        generator = flow.generator_for(config.seed, "sample", step, pass_, place, id)
        clean.append(record.draw(generator))
        noise.append(torch.randn(clean[-1].shape, generator=generator))
        tokens = (record.layout.width // backbone.settings.stride) * (record.layout.height // backbone.settings.stride)
        times.append(flow.logit_normal_time(generator, backbone.shift_mu(tokens)))
        dropped = float(torch.rand((), generator=generator)) < config.caption_dropout
        texts.append(data.empty if dropped else record.text)
    clean_BCHW, noise_BCHW, t_B = (torch.stack(part).to(backbone.device) for part in (clean, noise, times))
    text = backbone.to_device(stack_text(texts))
    latents_BCHW = flow.interpolate(clean_BCHW, noise_BCHW, t_B)
    target_BCHW = flow.velocity_target(clean_BCHW, noise_BCHW)
    with backbone.autocast():
        window = None
        if config.context == "clean":
            generator = flow.generator_for(config.seed, "window", step, pass_)
            layout = data[ids[0]].layout
            active = draw_active(layout, backbone.settings.stride, generator).to(backbone.device)
            dropped = float(torch.rand((), generator=generator)) < config.context_dropout
            worn = torch.from_numpy(layout.mask(layout.roles[-1:], backbone.settings.stride)).to(backbone.device)
            within = worn if dropped else None
            empty = backbone.to_device(stack_text([data.empty]))
            window = read_window(backbone, transformer, clean_BCHW, active, empty, config.context_lora, within)
        predicted = backbone.velocity(transformer, latents_BCHW, t_B, text, config.guidance_scale, window)
    if window is None:
        return nn.functional.mse_loss(predicted.float(), target_BCHW)
    scale = (target_BCHW.shape[2] // window.active.shape[0], target_BCHW.shape[3] // window.active.shape[1])
    learned = window.active.repeat_interleave(scale[0], 0).repeat_interleave(scale[1], 1).expand_as(target_BCHW)
    return nn.functional.mse_loss(predicted.float()[learned], target_BCHW[learned])


def draw_active(layout: PanelLayout, stride: int, generator: torch.Generator) -> Tensor:
    """Clean context: the tokens to learn, (rows, columns) bool. Half of the time the whole worn panel, else a box of a
    third to all of its width and height, as a polygon in `tryon` would be."""
    active = torch.from_numpy(layout.mask(layout.roles[-1:], stride))
    whole, *share, x, y = torch.rand(5, generator=generator).tolist()
    if whole < 0.5:
        return active
    box = layout.box(layout.roles[-1], stride)
    sides = box.right - box.left, box.bottom - box.top
    width, height = (max(1, round(side * (1 + 2 * part) / 3)) for side, part in zip(sides, share, strict=True))
    left, top = box.left + round(x * (sides[0] - width)), box.top + round(y * (sides[1] - height))
    active = torch.zeros_like(active)
    active[top : top + height, left : left + width] = True
    return active


def _state(
    transformer: nn.Module, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], average: dict[str, Tensor]
) -> dict[str, Tensor]:
    state = {f"lora.{name}": tensor for name, tensor in lora_state(transformer).items()}
    state |= {f"ema.{name}": tensor for name, tensor in average.items()}
    for number, parameter in enumerate(parameters):
        state |= {f"adamw.{number}.{name}": value for name, value in optimizer.state[parameter].items()}
    return state


def _restore(
    folder: Path, transformer: nn.Module, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], average: dict[str, Tensor]
) -> int:
    """Put the newest whole checkpoint back; the number of steps done, 0 if there is none."""
    found = load_newest(folder / "checkpoints")
    if found is None:
        return 0
    step, state = found
    with torch.no_grad():
        for name, tensor in lora_state(transformer).items():
            tensor.copy_(state[f"lora.{name}"])
            average[name].copy_(state[f"ema.{name}"])
    for number, parameter in enumerate(parameters):
        names = ("step", "exp_avg", "exp_avg_sq")
        optimizer.state[parameter] = {
            name: state[f"adamw.{number}.{name}"].to(parameter.device if name != "step" else "cpu") for name in names
        }
    return step


class TrainLog:
    """`train.jsonl` and TensorBoard. Rows after a checkpoint that was lost are dropped when the run resumes there."""

    def __init__(self, folder: Path, tensorboard: Path, name: str, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "train.jsonl"
        self._rows = [row for row in (read_jsonl(self._path) if self._path.exists() else []) if row["step"] <= start]
        write_jsonl(self._path, self._rows)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        self._board = SummaryWriter(str(tensorboard / name), purge_step=start + 1)

    def write(self, step: int, **values: float) -> None:
        row = {"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}}
        self._rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, step)

    def mean_loss(self) -> float:
        return _mean_loss(self._rows)

    def flush(self) -> None:
        self._board.flush()


def _mean_loss(rows: list[dict[str, Any]]) -> float:
    """Mean over the last 50 steps: the loss of a single step says little, since t is drawn anew each time."""
    return sum(row["loss"] for row in rows[-50:]) / max(1, len(rows[-50:]))


def _validate(
    config: TrainConfig, backbone: Backbone, transformer: nn.Module, data: EmbeddingFolder, average: dict[str, Tensor], path: Path
) -> None:
    """Worn panels generated from known product panels with the averaged LoRA and fixed seeds: truth above, made below."""
    from PIL import Image

    now = {name: tensor.clone() for name, tensor in lora_state(transformer).items()}
    settings = backbone.settings
    autoencoder = backbone.load_autoencoder()
    try:
        _copy(transformer, average)
        rows = []
        for number, id in enumerate(data.ids[: config.num_validation_images]):
            record = data[id]
            layout, known = record.layout, record.latent_mean_CHW[None].to(backbone.device)
            mask = torch.from_numpy(layout.mask(layout.roles[-1:], autoencoder.stride)).float()
            sampling = Sampling(
                settings.num_inference_steps,
                settings.guidance_scale,
                settings.true_cfg_scale,
                context=config.context,
                context_lora=config.context_lora,
                context_guidance_scale=settings.context_guidance_scale,
            )
            text, empty = (backbone.to_device(stack_text([part])) for part in (record.text, data.empty))
            seeds = [config.seed + number]
            with backbone.autocast():
                made = sample_latents(backbone, transformer, layout, known.shape[1:], text, empty, seeds, sampling, known, mask)
            rows += to_images(autoencoder.decode(torch.cat([known, made])))
    finally:
        _copy(transformer, now)
    sheet = Image.new("RGB", (max(image.width for image in rows), sum(image.height for image in rows)))
    top = 0
    for image in rows:
        sheet.paste(image, (0, top))
        top += image.height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _copy(transformer: nn.Module, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in lora_state(transformer).items():
            tensor.copy_(values[name])
