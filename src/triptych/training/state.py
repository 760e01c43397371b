"""The state of a training between two steps, with saving and loading."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.lora.adapter import lora_parameters, put_into
from triptych.training.checkpoints import load_newest, save_checkpoint
from triptych.training.optimizer import optimizer_state, restore_optimizer

log = logging.getLogger(__name__)


class TrainState:
    """The LoRA in `transformer`, its moving average, the optimizer, and the validation losses so far.

    step: optimizer steps done. lora: the LoRA's parameters by diffusers name, looked up once, because that is
    a walk over the whole model. average: their moving average. best: the average at the lowest validation
    loss, kept only if `keep_best`. lengths: total number of steps, by the step from which
    it applied; it has several entries if a training continued with another --max-train-steps. threads: number
    of CPU threads, 0 on a card; the last bits of sums depend on it.
    """

    def __init__(
        self,
        transformer: nn.Module,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        keep_best: bool = False,
    ) -> None:
        self.transformer, self.parameters, self.optimizer, self.keep_best = (
            transformer,
            parameters,
            optimizer,
            keep_best,
        )
        self.step = 0
        self.lora = lora_parameters(transformer)
        self.average = _copy_of(self.lora)
        self._random = [one for one in transformer.modules() if isinstance(one, nn.Dropout) and one.p > 0]
        self.best: dict[str, Tensor] = {}
        self.validation_losses: list[float] = []
        self.lengths: dict[int, int] = {}
        self.threads = torch.get_num_threads() if parameters[0].device.type == "cpu" else 0

    def set_length(self, steps: int) -> None:
        """Record the total number of steps, valid from the current step on."""
        if not self.lengths or self.lengths[max(self.lengths)] != steps:
            self.lengths[self.step] = steps

    def update(self, rate: float, ema_decay: float) -> None:
        """Do one optimizer step with the current gradients, and update the average, faster in the first
        steps.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            now: list[Tensor] = [*self.lora.values()]
            torch._foreach_lerp_([self.average[name] for name in self.lora], now, 1.0 - decay)
        self.step += 1

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Switch dropout on for the passes of a step. Nothing else in a transformer asks whether it is
        trained, and a walk over all of its modules takes as long as a tenth of a pass.
        """
        for layer in self._random:
            layer.train()
        try:
            yield
        finally:
            for layer in self._random:
                layer.eval()

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The transformer with the average as its LoRA. The trained weights are restored afterwards."""
        now = _copy_of(self.lora)
        try:
            put_into(self.lora, self.average)
            yield self.transformer
        finally:
            put_into(self.lora, now)

    def validated(self, loss: float) -> None:
        """Record a validation loss; with `keep_best`, keep the average if the loss is the lowest so far."""
        if self.keep_best and loss < min(self.validation_losses, default=math.inf):
            self.best = _copy_of(self.average)
        self.validation_losses.append(loss)

    def out_of_patience(self, patience: int) -> bool:
        """Whether the last `patience` validations gave no lower loss; always False with patience 0."""
        losses = self.validation_losses
        return bool(patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= patience

    def is_finite(self) -> bool:
        """Whether the LoRA and the optimizer's tensors hold no infinity and no NaN."""
        found: dict[torch.device, list[Tensor]] = {}
        for tensor in self._parts()[0].values():
            found.setdefault(tensor.device, []).append(tensor.isfinite().all())
        return all(bool(torch.stack(each).all()) for each in found.values())  # one question for each device

    def save(self, folder: Path, keep: int, add: Callable[[Path], None] = lambda part: None) -> None:
        """Publish a checkpoint; see `save_checkpoint`."""
        tensors, numbers = self._parts()
        lengths = {f"length.{step}": float(length) for step, length in self.lengths.items()}
        save_checkpoint(
            folder, self.step, tensors, {**numbers, **lengths, "threads": self.threads}, keep, add
        )

    def restore(self, folder: Path, at_most: int | None = None) -> None:
        """Continue from the newest intact checkpoint up to step `at_most`, or from the beginning if there is
        none.
        """
        found = load_newest(folder, at_most)
        if found is None:
            return
        self.step, tensors, numbers = found
        threads = numbers.pop("threads", self.threads)
        if threads != self.threads:
            before, now = (
                f"{int(number)} CPU threads" if number else "a card" for number in (threads, self.threads)
            )
            log.warning(
                "This training ran on %s before and continues with %s: the last bits of its LoRA depend on "
                "that.",
                before,
                now,
            )
        lengths = {name: numbers.pop(name) for name in list(numbers) if name.startswith("length.")}
        self.lengths = {int(name.removeprefix("length.")): int(length) for name, length in lengths.items()}
        put_into(self.lora, _below("lora", tensors))
        for name, tensor in _below("ema", tensors).items():
            self.average[name].copy_(tensor)
        self.best = {
            name: tensor.to(self.average[name].device) for name, tensor in _below("best", tensors).items()
        }
        self.validation_losses = tensors["validation"].tolist()
        restore_optimizer(self.optimizer, _below("optimizer", tensors), numbers)

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        remembered, numbers = optimizer_state(self.optimizer)
        groups = {
            "lora": {name: parameter.detach() for name, parameter in self.lora.items()},
            "ema": self.average,
            "best": self.best,
            "optimizer": remembered,
        }
        tensors = {
            f"{group}.{name}": tensor for group, part in groups.items() for name, tensor in part.items()
        }
        return {**tensors, "validation": torch.tensor(self.validation_losses, dtype=torch.float64)}, numbers


def _below(group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(group + "."): tensor
        for name, tensor in tensors.items()
        if name.startswith(group + ".")
    }


def _copy_of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in values.items()}
