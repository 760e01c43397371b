"""train: an In-Context LoRA with the rectified-flow loss. The loop is `_steps`, to be read from top to bottom.

All randomness is a function of (seed, step, id), never of what ran before: a run that was stopped and started again
makes the same LoRA. The parts of the loop lie in `triptych.training`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych import flow
from triptych.backbones.base import Backbone, fingerprint
from triptych.backbones.registry import load_backbone
from triptych.config import seeds_from
from triptych.embeddings import EmbeddingFolder
from triptych.errors import WorkError
from triptych.images import save_png
from triptych.lora import FILE_NAME, add_lora, save_lora
from triptych.store import Event, Run, StageFolder, digest, held, read_jsonl
from triptych.training import distributed
from triptych.training.config import TrainConfig, check, settings_that_matter
from triptych.training.data import TrainingSet, steps_of_epochs
from triptych.training.log import TrainLog, duration, mean_loss, peak_memory_gib
from triptych.training.loss import LossMeter, losses_of
from triptych.training.optimizer import learning_rate, make_optimizer, optimizer_class
from triptych.training.state import TrainState
from triptych.training.validation import validation_loss, validation_pictures


def train(config: TrainConfig) -> Run:
    """Train a LoRA on the embeddings of `<embeddings>/<backbone>`; leaves `<lora>/pytorch_lora_weights.safetensors`.

    Raises:
        ModelError: the model cannot be opened, or what quantises it is not installed. ConfigError: settings that contradict each
        other or the data, or an optimizer that is not installed. InputError: loss masks that cannot be used. WorkError: no
        embeddings; or the folder holds a training with other settings; or, in the midst of it, a loss that is no longer a number.
    """
    seeds_from(config.seed, max(1, config.num_validation_images))
    device = distributed.own_device(config.device)
    backbone = load_backbone(config.model, device, config.dtype, config.quantize, config.blocks_to_swap)
    records = EmbeddingFolder(config.embedding_folder / backbone.name)
    if any(about["model"] != backbone.encoder_fingerprint for about in records.about.values()):
        hint = f"Run `triptych embed --model {config.model}` first."
        raise WorkError(f"The embeddings in {records.path} were made with another model.", hint)
    check(config, records[records.ids[0]].layout.roles)
    optimizer_class(config.optimizer)
    data = TrainingSet(records, config)
    if config.epochs is not None:
        steps = steps_of_epochs(config.epochs, len(data.ids), config.batch_size * _passes(config))
        config = config.model_copy(update={"max_train_steps": steps, "epochs": None})
    made_with = {"model": fingerprint(config.model, ["transformer"]), "data": data.fingerprint, "processes": distributed.world_size()}
    identity = {**settings_that_matter(config), **made_with}
    folder = StageFolder(config.train_folder, "train", identity, begun=lambda: _begun(config.train_folder))
    if (config.train_folder / FILE_NAME).exists() and not (config.train_folder / "train.jsonl").exists():
        raise WorkError(f"There is a LoRA in {config.train_folder} that was not trained here.", "Choose another --lora-folder.")
    summary: dict[str, Any] = {
        "triptychs": len(data.ids),
        "held_out": len(data.held_out),
        "train_steps": 0,
        "resumed_at": 0,
        "loss": None,
        "validation_loss": None,
        "lora": str(config.train_folder / FILE_NAME),
    }

    def work() -> Iterator[Event]:
        if (config.train_folder / FILE_NAME).exists():
            rows = read_jsonl(folder.path / "train.jsonl")
            summary.update(train_steps=rows[-1]["step"], loss=mean_loss(rows))
            yield Event(f"step {rows[-1]['step']}", "kept", "already trained")
            return
        distributed.join(backbone.device)
        try:
            yield from _steps(config, backbone, data, folder.path, summary)
        finally:
            distributed.leave()

    events = held(folder, work) if distributed.rank() == 0 else work()
    return Run("train", config.max_train_steps, events, summary)


def _begun(folder: Path) -> bool:
    """Whether a training has left something in the folder that another one must not go on from."""
    return any((folder / "checkpoints").glob("step-*")) or (folder / FILE_NAME).exists()


def _steps(config: TrainConfig, backbone: Backbone, data: TrainingSet, folder: Path, summary: dict[str, Any]) -> Iterator[Event]:
    sharded = distributed.wants_sharding(config.shard_base)
    where = replace(backbone, device=torch.device("cpu")) if sharded else backbone  # the whole of it may fit into no card
    transformer = where.load_transformer()
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()  # type: ignore[operator]
    parameters = add_lora(transformer, backbone.lora_targets, config.rank, config.alpha, config.lora_dropout, config.seed)
    if sharded:
        distributed.shard(transformer, parameters, backbone.device)
    patience = config.early_stopping_patience
    state = TrainState(transformer, parameters, make_optimizer(config, parameters), keep_best=bool(patience))
    state.restore(folder / "checkpoints")
    writes, start, clock = distributed.rank() == 0, state.step, time.monotonic()
    log = TrainLog(folder, (config.logging_dir or folder / "tensorboard") / config.tracker_name, start, writes)
    summary.update(resumed_at=start, train_steps=start, loss=log.mean_loss())
    for step in range(start):
        yield Event(f"step {step + 1}", "kept")

    while state.step < config.max_train_steps and not state.out_of_patience(patience):
        row, tokens = _accumulate(config, backbone, data, state)
        if not math.isfinite(row["loss"] + row["grad_norm"]):
            raise _diverged(config, state, folder, writes)
        rate = learning_rate(state.step, config)
        state.update(rate, config.ema_decay)
        speed = (time.monotonic() - clock) / (state.step - start)
        row |= {"learning_rate": rate, "seconds_per_step": speed, "tokens_per_second": tokens / speed}
        row["peak_memory_gib"] = peak_memory_gib(backbone.device)

        last = state.step == config.max_train_steps
        if config.validation_steps and (last or state.step % config.validation_steps == 0):
            with state.averaged():
                if data.held_out:
                    row |= validation_loss(config, backbone, transformer, data)
                if config.num_validation_images and (writes or sharded):  # a sharded model runs on all or not at all
                    sheet = validation_pictures(config, backbone, transformer, data)
                    if writes:
                        save_png(sheet, folder / "samples" / f"step-{state.step:06d}.png")
        if "validation/loss" in row:
            loss = distributed.first(row["validation/loss"], backbone.device)
            if not math.isfinite(loss):
                raise _diverged(config, state, folder, writes)
            state.validated(loss)
            summary["validation_loss"] = loss
        log.write(state.step, row)
        summary.update(train_steps=state.step, loss=log.mean_loss())
        if last or state.step % config.checkpointing_steps == 0:
            if not state.is_finite():
                raise _diverged(config, state, folder, writes)
            if writes:
                log.flush()
                state.save(folder / "checkpoints", config.checkpoints_total_limit)
        left = duration(speed * (config.max_train_steps - state.step))
        yield Event(f"step {state.step}", note=f"loss {log.mean_loss():.4f}, {speed:.2f} s/step, {left} left")
    log.close()
    if writes:
        save_lora(
            folder / FILE_NAME, state.best or state.average, config.rank, config.alpha, _about(config, backbone.name, data, state.step)
        )


def _accumulate(config: TrainConfig, backbone: Backbone, data: TrainingSet, state: TrainState) -> tuple[dict[str, float], int]:
    """Leave the gradients of one step in the parameters, clipped; its losses and gradient norm, and its tokens in all."""
    passes, processes, tokens, meter = _passes(config), distributed.world_size(), 0, LossMeter()
    state.transformer.train()
    for number in range(distributed.rank(), passes, processes):
        torch.manual_seed(flow.generator_for(config.seed, "dropout", state.step, number).initial_seed() & 0xFFFFFFFF)
        batch = data.draw(backbone, state.step, number, passes)
        losses = losses_of(config, backbone, state.transformer, batch)
        (losses.sample_B.mean() / passes).backward()
        meter.add(batch, losses)
        tokens += batch.tokens(backbone.settings.stride) * processes
    state.transformer.eval()
    distributed.sum_gradients(state.parameters)
    norm = float(nn.utils.clip_grad_norm_(state.parameters, config.max_grad_norm))
    return {**meter.means(backbone.device), "grad_norm": norm}, tokens


def _passes(config: TrainConfig) -> int:
    """Forward passes to one optimizer step, over all processes."""
    return config.gradient_accumulation_steps * distributed.world_size()


def _diverged(config: TrainConfig, state: TrainState, folder: Path, writes: bool) -> WorkError:
    """The end of a training whose loss or gradient is no number: its last good state is saved, the error says where."""
    if writes and state.step and state.is_finite():
        state.save(folder / "checkpoints", config.checkpoints_total_limit)
    hint = (
        f"The last good state is in {folder / 'checkpoints'}. Lower --learning-rate and start in another --lora-folder; "
        "if the first steps fail already, run `triptych embed` again."
    )
    return WorkError(f"The loss or its gradient is not finite after step {state.step}; nothing of it was saved.", hint)


def _about(config: TrainConfig, family: str, data: TrainingSet, steps: int) -> dict[str, Any]:
    """What the LoRA file says about itself. A folder's place on this machine is nobody else's business."""
    recipe = {k: v for k, v in settings_that_matter(config).items() if k not in {"model", "context", "context_lora", "context_reading"}}
    return {
        "family": family,
        "base_model": Path(config.model).resolve().name if Path(config.model).exists() else config.model,
        "layout": data.records[data.ids[0]].layout.to_dict(),
        "context": config.context,
        "context_lora": config.context_lora,
        "context_reading": config.context_reading,
        "steps": steps,
        "triptychs": len(data.ids),
        "recipe": recipe,
        "data_sha256": digest(sorted((row["image_sha256"], row["caption_sha256"]) for row in data.records.about.values())),
    }
