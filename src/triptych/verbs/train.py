"""train: trains an In-Context LoRA with the rectified-flow loss. The loop is `_steps`.

All randomness is a function of (seed, step, id) and never of earlier work: a run that was stopped and
restarted gives the same LoRA. `triptych.training` has the parts of the loop.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych import flow, progress
from triptych.backbones.checkpoint import fingerprint
from triptych.backbones.contract import Backbone
from triptych.backbones.registry import load_backbone
from triptych.config.stage import seeds_from
from triptych.data.embeddings import EmbeddingFolder
from triptych.errors import WorkError
from triptych.events import Event, Run, held
from triptych.lora.adapter import FILE_NAME, LoraFile, add_lora, save_lora
from triptych.signals import Request, Stopped, ending_after_this_step
from triptych.store.files import read_jsonl, sha256_file
from triptych.store.folder import StageFolder
from triptych.tasks import DEFAULT, task_of
from triptych.training import distributed
from triptych.training.about import about_lora
from triptych.training.config import TrainConfig, check, settings_that_matter
from triptych.training.continuation import begun, check_init_lora, is_done, start_from, steps_of
from triptych.training.data import TrainingSet, steps_of_epochs
from triptych.training.freshness import changes, check_embeddings
from triptych.training.log import TrainLog, mean_loss, peak_memory_gib
from triptych.training.loss import LossMeter, losses_of
from triptych.training.optimizer import learning_rate, make_optimizer, optimizer_class
from triptych.training.state import TrainState
from triptych.training.validation import validation_loss, validation_pictures

_HINT = (
    "Put the old settings back, or train in another folder with --lora-folder; with --init-lora it "
    "starts from the LoRA of this one."
)


def train(config: TrainConfig) -> Run:
    """Train a LoRA on the embeddings of `<embeddings>/<backbone>`; leaves
    `<lora>/pytorch_lora_weights.safetensors`.

    Raises:
        ModelError: the model cannot be opened, or its quantisation package is not installed. ConfigError:
            settings that contradict each other or the data, or an optimizer that is not installed.
            InputError: unusable loss masks. WorkError: no embeddings; a training with other settings in the
            folder; or, during training, a loss that is no longer a number.
    """
    seeds_from(config.seed, max(1, config.num_validation_images))
    device = distributed.own_device(config.device)
    backbone = load_backbone(config.model, device, config.dtype, config.quantize, config.blocks_to_swap)
    records = EmbeddingFolder(config.embedding_folder / backbone.name)
    if any(about["model"] != backbone.encoder_fingerprint for about in records.about.values()):
        hint = f"Run `triptych embed --model {config.model}` first."
        raise WorkError(f"The embeddings in {records.path} were made with another model.", hint)
    optimizer_class(config.optimizer)
    check_embeddings(config, records)
    data = TrainingSet(records, config)
    check(config, data.layout)
    if config.epochs is not None:
        steps = steps_of_epochs(config.epochs, len(data.ids), config.batch_size * _passes(config))
        config = config.model_copy(update={"max_train_steps": steps, "epochs": None})
    made_with = {
        "model": fingerprint(config.model, ["transformer"]),
        "data": data.fingerprint,
        "processes": distributed.world_size(),
    }
    init = check_init_lora(config, backbone)
    identity = {
        **settings_that_matter(config),
        **made_with,
        "init_lora": sha256_file(init.path) if init else None,
    }
    about_folder: dict[str, Any] = {
        "begun": lambda: begun(config.train_folder),
        "words": {"data": changes},
        "retired": ("max_train_steps", "epochs"),  # they counted before trainings could be extended
        "hint": _HINT,
    }
    folder = StageFolder(config.train_folder, "train", identity, **about_folder)
    is_done(config)
    summary: dict[str, Any] = {
        "triptychs": len(data.ids),
        "held_out": len(data.held_out),
        **(
            {"loss_masks": len(data.masks.by_id), "loss_masks_unmatched": data.masks.unmatched}
            if data.masks
            else {}
        ),
        "train_steps": 0,
        "resumed_at": 0,
        "loss": None,
        "validation_loss": None,
        "lora": str(config.train_folder / FILE_NAME),
        "tensorboard": str(config.logging_dir or config.train_folder / "tensorboard"),
    }
    if task_of(data.layout) is not DEFAULT:
        shown = " ".join(f"--panel {role}=PHOTO.jpg" for role in data.layout.given)
        summary["next"] = f'triptych generate --lora {config.train_folder / FILE_NAME} {shown} --prompt "…"'
    if config.validation_steps and config.num_validation_images:
        summary["samples"] = str(config.train_folder / "samples")

    def work() -> Iterator[Event]:
        if is_done(config):
            done = steps_of(config.train_folder)
            rows = [row for row in read_jsonl(folder.path / "train.jsonl") if row["step"] <= done]
            summary.update(train_steps=done, loss=mean_loss(rows))
            yield Event(f"step {done}", "kept", "already trained")
            return
        distributed.join(backbone.device)
        try:
            yield from _steps(config, backbone, data, init, folder.path, summary)
        finally:
            distributed.leave()

    events = held(folder, work) if distributed.rank() == 0 else work()
    return Run("train", config.max_train_steps, events, summary)


def _steps(
    config: TrainConfig,
    backbone: Backbone,
    data: TrainingSet,
    init: LoraFile | None,
    folder: Path,
    summary: dict[str, Any],
) -> Iterator[Event]:
    sharded = distributed.wants_sharding(config.shard_base)
    where = (
        replace(backbone, device=torch.device("cpu")) if sharded else backbone
    )  # the whole model may fit on no card
    progress.doing("loading the model")
    transformer = where.load_transformer()
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()  # type: ignore[operator]
    parameters = add_lora(
        transformer,
        backbone.lora_layers(transformer),
        config.rank,
        config.alpha,
        config.lora_dropout,
        config.seed,
    )
    if init is not None:
        start_from(init, transformer, config)
    if sharded:
        distributed.shard(transformer, backbone.blocks(transformer), parameters, backbone.device)
    patience = config.early_stopping_patience
    state = TrainState(transformer, parameters, make_optimizer(config, parameters), keep_best=bool(patience))
    state.restore(folder / "checkpoints", config.max_train_steps)
    state.set_length(config.max_train_steps)
    writes, start, clock = distributed.rank() == 0, state.step, time.monotonic()
    log = TrainLog(
        folder,
        (config.logging_dir or folder / "tensorboard") / config.tracker_name,
        start,
        writes,
        start >= config.max_train_steps,
    )
    summary.update(resumed_at=start, train_steps=start, loss=log.mean_loss())
    for step in range(start):
        yield Event(f"step {step + 1}", "kept")

    saved = start

    def save() -> None:
        """Write a checkpoint with the LoRA of this step, unless that is done."""
        nonlocal saved
        if not state.is_finite():
            raise _diverged(config, state, folder)
        if writes and state.step != saved:
            log.flush()
            state.save(
                folder / "checkpoints",
                config.checkpoints_total_limit,
                lambda part: save_average(part / FILE_NAME, state.average),
            )
        saved = state.step

    def save_average(path: Path, tensors: dict[str, Tensor]) -> None:
        save_lora(
            path, tensors, config.rank, config.alpha, about_lora(config, backbone.name, data, state, init)
        )

    def validated() -> dict[str, float]:
        """The averaged LoRA's losses on held-out triptychs; its pictures are saved."""
        with state.averaged():
            losses = validation_loss(config, backbone, transformer, data) if data.held_out else {}
            if config.num_validation_images and (
                writes or sharded
            ):  # a sharded model runs on all processes or on none
                log.picture(state.step, validation_pictures(config, backbone, transformer, data, state.step))
        return losses

    if config.validation_steps and start == 0:  # the baseline to improve on
        log.draw(0, validated())
    with ending_after_this_step() as request:
        while state.step < config.max_train_steps and not state.out_of_patience(patience):
            if distributed.any_of(request.number is not None, backbone.device):
                save()
                distributed.wait(backbone.device)  # a launcher ends all processes as soon as one has ended
                raise _stopped(request, state.step, start)
            row, tokens = _accumulate(config, backbone, data, state)
            if not math.isfinite(row["loss"] + row["grad_norm"]):
                raise _diverged(config, state, folder, save)
            rate = learning_rate(state.step, config)
            state.update(rate, config.ema_decay)
            speed = (time.monotonic() - clock) / (state.step - start)
            row |= {"learning_rate": rate, "seconds_per_step": speed, "tokens_per_second": tokens / speed}
            row["peak_memory_gib"] = peak_memory_gib(backbone.device)

            last = state.step == config.max_train_steps
            if config.validation_steps and (last or state.step % config.validation_steps == 0):
                row |= validated()
            if "validation/loss" in row:
                loss = distributed.first(row["validation/loss"], backbone.device)
                if not math.isfinite(loss):
                    raise _diverged(config, state, folder, save)
                state.validated(loss)
                summary["validation_loss"] = loss
            log.write(state.step, row)
            summary.update(train_steps=state.step, loss=log.mean_loss())
            if last or state.step % config.checkpointing_steps == 0:
                save()
            yield Event(
                f"step {state.step}", note=f"loss {log.mean_loss():.4f}, {speed:.2f} s/step", result=row
            )
        log.close()
        if writes:
            save_average(folder / FILE_NAME, state.best or state.average)
    if request.number is not None:
        raise Stopped(request.number, "stopped; the training was done, and its LoRA is saved")


def _stopped(request: Request, step: int, start: int) -> Stopped:
    """The exception for a signal to this process or another one, after all finished work is saved."""
    where = f"step {step}" if step else "the beginning"
    done = "is saved" if step > start else "was saved before"
    message = (
        f"stopped at {where}, which {done}; the same command goes on from there"
        if step
        else "stopped before the first step"
    )
    return Stopped(request.number or signal.SIGTERM, message)


def _accumulate(
    config: TrainConfig, backbone: Backbone, data: TrainingSet, state: TrainState
) -> tuple[dict[str, float], int]:
    """Compute the clipped gradients of one step in the parameters. Returns losses with gradient norm, and the
    number of tokens.
    """
    passes, processes, tokens, meter = _passes(config), distributed.world_size(), 0, LossMeter()
    state.transformer.train()
    for number in range(distributed.rank(), passes, processes):
        torch.manual_seed(
            flow.generator_for(config.seed, "dropout", state.step, number).initial_seed() & 0xFFFFFFFF
        )
        batch = data.draw(backbone, state.step, number, passes)
        losses = losses_of(config, backbone, state.transformer, batch)
        (losses.sample_B.mean() / passes).backward()
        meter.add(batch, losses)
        tokens += batch.tokens(backbone.settings.stride) * processes
        progress.step("pass", number + 1, passes)
    state.transformer.eval()
    distributed.sum_gradients(state.parameters)
    norm = float(nn.utils.clip_grad_norm_(state.parameters, config.max_grad_norm))
    return {**meter.means(backbone.device), "grad_norm": norm}, tokens


def _passes(config: TrainConfig) -> int:
    """Forward passes per optimizer step, over all processes."""
    return config.gradient_accumulation_steps * distributed.world_size()


def _diverged(
    config: TrainConfig, state: TrainState, folder: Path, save: Callable[[], None] | None = None
) -> WorkError:
    """The error for a loss or gradient that is no number. The last good state is saved, and the message gives
    its place.
    """
    if save is not None and state.step and state.is_finite():
        save()
    hint = (
        f"The last good state is in {folder / 'checkpoints'}. Lower --learning-rate and start in another "
        "--lora-folder; "
        "if the first steps fail already, run `triptych embed` again."
    )
    return WorkError(
        f"The loss or its gradient is not finite after step {state.step}; nothing of it was saved.", hint
    )
