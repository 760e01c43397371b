"""train: trains an In-Context LoRA with the rectified-flow loss. The loop is `_steps`.

All randomness is a function of (seed, step, id) and never of earlier work: a run that was stopped and
restarted gives the same LoRA. `triptych.training` has the parts of the loop.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych import flow, progress
from triptych.backbones.checkpoint import fingerprint
from triptych.backbones.contract import Backbone
from triptych.backbones.registry import load_backbone
from triptych.backbones.settings import model_index
from triptych.compute.attention import sound_gradients
from triptych.compute.devices import forget_peak
from triptych.compute.recompute import recompute_blocks
from triptych.config.stage import seeds_from
from triptych.data.embeddings import EmbeddingFolder
from triptych.errors import WorkError
from triptych.events import Event, Run, held
from triptych.lora.adapter import FILE_NAME, LoraFile, add_lora
from triptych.signals import Request, Stopped, ending_after_this_step
from triptych.store.files import read_jsonl, sha256_file
from triptych.store.folder import StageFolder
from triptych.tasks import DEFAULT, task_of
from triptych.training import asked, distributed
from triptych.training.config import (
    TrainConfig,
    check,
    for_family,
    on_distilled,
    placement_of,
    settings_that_matter,
)
from triptych.training.continuation import begun, check_init_lora, is_done, start_from, steps_of
from triptych.training.data import TrainingSet, steps_of_epochs
from triptych.training.freshness import changes, check_embeddings
from triptych.training.log import mean_loss, peak_memory_gib
from triptych.training.loss import LossMeter, losses_of
from triptych.training.optimizer import learning_rate, make_optimizer, optimizer_class
from triptych.training.results import Results
from triptych.training.state import TrainState
from triptych.training.twin import Twin, open_twin

log = logging.getLogger(__name__)

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
    config = for_family(config, backbone.family)
    if backbone.family.distilled(model_index(config.model)):
        log.warning("%s", on_distilled(config.model))
    records = _embeddings(config, backbone)
    optimizer_class(config.optimizer)
    check_embeddings(config, records)
    data = TrainingSet(records, config)
    check(config, data.layout)
    placement_of(config, backbone.family)
    if config.epochs is not None:
        steps = steps_of_epochs(config.epochs, len(data.ids), config.batch_size * _passes(config))
        config = config.model_copy(update={"max_train_steps": steps, "epochs": None})
    init = check_init_lora(config, backbone)
    twin = open_twin(config, backbone)
    folder = _folder(config, data, init)
    is_done(config)
    summary = _summary(config, data)

    def work() -> Iterator[Event]:
        if is_done(config):
            done = steps_of(config.train_folder)
            rows = [row for row in read_jsonl(folder.path / "train.jsonl") if row["step"] <= done]
            summary.update(train_steps=done, loss=mean_loss(rows))
            yield Event(f"step {done}", "kept", "already trained")
            return
        asked.forget(folder.path)
        distributed.join(backbone.device)
        try:
            yield from _steps(config, backbone, data, init, twin, folder.path, summary)
        finally:
            distributed.leave()

    events = held(folder, work) if distributed.rank() == 0 else work()
    return Run("train", config.max_train_steps, events, summary)


def _embeddings(config: TrainConfig, backbone: Backbone) -> EmbeddingFolder:
    """The embeddings to train on.

    Raises:
        WorkError: there are none, or they were made with another model.
    """
    records = EmbeddingFolder(config.embedding_folder / backbone.name)
    if any(about["model"] != backbone.encoder_fingerprint for about in records.about.values()):
        hint = f"Run `triptych embed --model {config.model}` first."
        raise WorkError(f"The embeddings in {records.path} were made with another model.", hint)
    return records


def _folder(config: TrainConfig, data: TrainingSet, init: LoraFile | None) -> StageFolder:
    """The folder of the LoRA.

    Raises:
        WorkError: it holds a training with other settings, another model or other triptychs.
    """
    identity = {
        **settings_that_matter(config),
        "model": fingerprint(config.model, ["transformer"]),
        "data": data.fingerprint,
        "processes": distributed.world_size(),
        "init_lora": sha256_file(init.path) if init else None,
    }
    return StageFolder(
        config.train_folder,
        "train",
        identity,
        begun=lambda: begun(config.train_folder),
        words={"data": changes},
        retired=("max_train_steps", "epochs"),  # they counted before trainings could be extended
        hint=_HINT,
    )


def _summary(config: TrainConfig, data: TrainingSet) -> dict[str, Any]:
    """The summary as it is before the first step."""
    summary: dict[str, Any] = {"triptychs": len(data.ids), "held_out": len(data.held_out)}
    if data.masks:
        summary |= {"loss_masks": len(data.masks.by_id), "loss_masks_unmatched": data.masks.unmatched}
    summary |= {
        "train_steps": 0,
        "resumed_at": 0,
        "loss": None,
        "validation_loss": None,
        "lora": str(config.train_folder / FILE_NAME),
        "tensorboard": str(config.logging_dir or config.train_folder / "tensorboard"),
    }
    if task_of(data.layout) is not DEFAULT:
        shown = "".join(f" --panel {role}=PHOTO.jpg" for role in data.layout.given)
        summary["next"] = f'triptych generate --lora {config.train_folder / FILE_NAME}{shown} --prompt "…"'
    if config.validation_steps and config.num_validation_images:
        summary["samples"] = str(config.train_folder / "samples")
    return summary


def _steps(
    config: TrainConfig,
    backbone: Backbone,
    data: TrainingSet,
    init: LoraFile | None,
    twin: Twin | None,
    folder: Path,
    summary: dict[str, Any],
) -> Iterator[Event]:
    """The loop: an event for each step. Every step is a function of its number alone; see `_step`."""
    forget_peak(backbone.device)  # of an earlier stage in this process
    state = _newest_state(config, backbone, init, folder)
    clock = time.monotonic()
    results = Results(config, backbone, data, init, twin, state, folder)
    log, start = results.log, results.start
    summary.update(resumed_at=start, train_steps=start, loss=log.mean_loss())
    for step in range(start):
        yield Event(f"step {step + 1}", "kept")
    if config.validation_steps and start == 0:  # the baseline to improve on
        log.draw(0, results.validated())
    with ending_after_this_step() as request, sound_gradients():
        while state.step < config.max_train_steps and not state.out_of_patience(
            config.early_stopping_patience
        ):
            results.answer()
            if distributed.any_of(_ends(request, folder), backbone.device):
                results.save()
                distributed.wait(backbone.device)  # a launcher ends all processes as soon as one has ended
                raise _stopped(request, state.step, start)
            row = _step(config, backbone, data, state, results, clock)
            if "validation/loss" in row:
                summary["validation_loss"] = state.validation_losses[-1]
            log.write(state.step, row)
            summary.update(train_steps=state.step, loss=log.mean_loss())
            if state.step == config.max_train_steps or state.step % config.checkpointing_steps == 0:
                results.save()
            speed = row["seconds_per_step"]
            yield Event(
                f"step {state.step}", note=f"loss {log.mean_loss():.4f}, {speed:.2f} s/step", result=row
            )
        results.finish()
    if request.number is not None:
        raise Stopped(request.number, "stopped; the training was done, and its LoRA is saved")


def _ends(request: Request, folder: Path) -> bool:
    """Whether a signal, or a file in the folder, has asked to stop."""
    if distributed.rank() == 0 and asked.taken(folder, asked.STOP) and request.number is None:
        request.number = signal.SIGINT
    return request.number is not None


def _newest_state(config: TrainConfig, backbone: Backbone, init: LoraFile | None, folder: Path) -> TrainState:
    """The model with the LoRA of the newest checkpoint; without one, that of `init` or one that changes
    nothing.
    """
    sharded = distributed.wants_sharding(config.shard_base)
    # The whole model may fit on no card.
    where = replace(backbone, device=torch.device("cpu")) if sharded else backbone
    progress.doing("loading the model")
    transformer = where.load_transformer()
    if config.gradient_checkpointing:
        recompute_blocks(transformer, random=config.lora_dropout > 0)
    layers = backbone.lora_layers(transformer)
    parameters = add_lora(transformer, layers, config.rank, config.alpha, config.lora_dropout, config.seed)
    if init is not None:
        start_from(init, transformer, config)
    if sharded:
        distributed.shard(transformer, backbone.blocks(transformer), parameters, backbone.device)
    keep_best = bool(config.early_stopping_patience)
    state = TrainState(transformer, parameters, make_optimizer(config, parameters), keep_best)
    state.restore(folder / "checkpoints", config.max_train_steps)
    state.set_length(config.max_train_steps)
    return state


def _step(
    config: TrainConfig,
    backbone: Backbone,
    data: TrainingSet,
    state: TrainState,
    results: Results,
    clock: float,
) -> dict[str, float]:
    """One optimizer step, with a validation if it is due. Returns the step's row of the log. clock: time at
    which the first step of this run began.

    Raises:
        WorkError: a loss or gradient is not finite.
    """
    row, tokens = _accumulate(config, backbone, data, state)
    if not math.isfinite(row["loss"] + row["grad_norm"]):
        raise results.diverged()
    rate = learning_rate(state.step, config)
    state.update(rate, config.ema_decay)
    speed = (time.monotonic() - clock) / (state.step - results.start)
    row |= {"learning_rate": rate, "seconds_per_step": speed, "tokens_per_second": tokens / speed}
    row["peak_memory_gib"] = peak_memory_gib(backbone.device)
    last = state.step == config.max_train_steps
    if config.validation_steps and (last or state.step % config.validation_steps == 0):
        row |= results.validated()
    if "validation/loss" in row:
        loss = distributed.first(row["validation/loss"], backbone.device)
        if not math.isfinite(loss):
            raise results.diverged()
        state.validated(loss)
    return row


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
    with state.dropping():
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
    distributed.sum_gradients(state.parameters)
    norm = nn.utils.clip_grad_norm_(state.parameters, config.max_grad_norm)
    if state.step + 1 < config.max_train_steps:  # while the card is still at this step
        data.draw_ahead(backbone, state.step + 1, distributed.rank(), passes)
    means, length = meter.means(backbone.device, norm)
    return {**means, "grad_norm": length}, tokens


def _passes(config: TrainConfig) -> int:
    """Forward passes per optimizer step, over all processes."""
    return config.gradient_accumulation_steps * distributed.world_size()
