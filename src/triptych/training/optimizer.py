"""Optimizers by name, the learning rate's schedule, and an optimizer's state as tensors and numbers."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from triptych.errors import ConfigError
from triptych.training.config import TrainConfig

# Package, class, and extra settings. Prodigy's are those that its authors recommend for diffusion models.
_OPTIMIZERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adamw": ("torch.optim", "AdamW", {}),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", {}),
    "prodigy": ("prodigyopt", "Prodigy", {"use_bias_correction": True, "safeguard_warmup": True}),
}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of an optimizer.

    Raises:
        ConfigError: its package is not installed.
    """
    module, kind, _ = _OPTIMIZERS[name]
    try:
        return getattr(importlib.import_module(module), kind)
    except ImportError as error:
        hint = "pip install 'triptych[optimizers]', or use --optimizer adamw."
        raise ConfigError(
            f"The optimizer {name} needs the package {module.partition('.')[0]}, which is not installed.",
            hint,
        ) from error


def make_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a config over the LoRA's parameters; see `optimizer_class`."""
    shared: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (0.9, 0.99),
        "weight_decay": config.weight_decay,
    }
    with contextlib.redirect_stdout(sys.stderr):  # prodigy prints a greeting, but stdout is for the summary
        return optimizer_class(config.optimizer)(parameters, **shared, **_OPTIMIZERS[config.optimizer][2])


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine decay to zero, as a function of the step alone."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    progress = (step - config.lr_warmup_steps) / max(1, config.max_train_steps - config.lr_warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The whole state of an optimizer, per parameter and global, as tensors and plain numbers."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    of_parameters = {
        f"{n}.{name}": v for n, p in enumerate(parameters) for name, v in optimizer.state[p].items()
    }
    of_groups = {
        f"group{n}.{name}": v for n, group in enumerate(optimizer.param_groups) for name, v in group.items()
    }
    numbers = {name: v for name, v in {**of_parameters, **of_groups}.items() if type(v) in (int, float)}
    return {name: v for name, v in of_parameters.items() if isinstance(v, Tensor)}, numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]
) -> None:
    """Restore the result of `optimizer_state` into an optimizer over the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in {**tensors, **numbers}.items():
        owner, _, key = name.partition(".")
        if owner.startswith("group"):
            optimizer.param_groups[int(owner.removeprefix("group"))][key] = value
        else:
            parameter = parameters[int(owner)]
            # Tensors of one number stay on the CPU, where torch keeps the step count.
            on_device = value.to(parameter.device) if isinstance(value, Tensor) and value.ndim else value
            optimizer.state[parameter][key] = on_device
