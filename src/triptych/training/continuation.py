"""Going on: where a training in a folder stands, whether it is done,
and the LoRA that a new one starts from.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.backbones.contract import Backbone
from triptych.data.embeddings import read_about
from triptych.errors import ConfigError, ModelError, WorkError
from triptych.lora.adapter import FILE_NAME, TITLES, LoraFile, lora_state, open_lora
from triptych.training.checkpoints import steps_saved
from triptych.training.config import TrainConfig

log = logging.getLogger(__name__)


def begun(folder: Path) -> bool:
    """Whether a training has left something in the folder that another one must not go on from."""
    return bool(steps_saved(folder / "checkpoints")) or (folder / FILE_NAME).exists()


def is_done(config: TrainConfig) -> bool:
    """Whether the folder's training has the length that is asked for. A longer one goes on from the newest
    checkpoint; a shorter one ends at the checkpoint of just that step, as long as no LoRA of more steps is
    there.

    Raises:
        WorkError: it has gone further than that, or there is no checkpoint to go on from; or a LoRA that was
            not trained here.
    """
    folder, wanted = config.train_folder, config.max_train_steps
    steps = steps_saved(folder / "checkpoints")
    if not (folder / FILE_NAME).exists():
        if steps and wanted < steps[-1] and wanted not in steps:
            raise WorkError(f"The training in {folder} is at step {steps[-1]} already.", _ways(folder, steps))
        return False
    if not (folder / "train.jsonl").exists():
        raise WorkError(
            f"There is a LoRA in {folder} that was not trained here.", "Choose another --lora-folder."
        )
    about = read_about(folder / FILE_NAME) or {}
    done, asked = steps_of(folder), about.get("recipe", {}).get("max_train_steps")
    if wanted in (done, asked):
        return True
    if wanted < done:
        raise WorkError(f"The LoRA in {folder} is of {done} steps already.", _ways(folder, steps))
    if not steps:
        hint = (
            f"Give --init-lora {folder} and another --lora-folder: a new training then starts from this LoRA."
        )
        raise WorkError(f"There is no checkpoint in {folder} to go on from.", hint)
    return False


def steps_of(folder: Path) -> int:
    """Of how many steps the LoRA in the folder is."""
    return int((read_about(folder / FILE_NAME) or {}).get("steps", 0))


def _ways(folder: Path, steps: list[int]) -> str:
    there = ", ".join(map(str, steps)) or "none"
    return (
        f"Give --max-train-steps {steps[-1] if steps else 'as before'} or more, choose another "
        "--lora-folder, or use the LoRA of a "
        f"checkpoint, {folder / 'checkpoints'}/step-…; steps there: {there}."
    )


def check_init_lora(config: TrainConfig, backbone: Backbone) -> LoraFile | None:
    """The LoRA to start from, if there is one to be.

    Raises:
        ModelError: no LoRA file, or one for another family, or for layers that are not trained. ConfigError:
            a larger rank.
    """
    if config.init_lora is None:
        return None
    file = open_lora(config.init_lora)
    file.refuse_other_models()
    names = _modules(file.state)
    others = [name for name in names if not backbone.is_lora_layer(name)]
    if file.family != backbone.name or others:
        other = TITLES.get(file.family, "another model")
        what = (
            f"is one for {other}"
            if file.family != backbone.name
            else f"changes '{others[0]}', which is not trained here"
        )
        raise ModelError(
            f"The LoRA {file.path} {what}.",
            "Start from a LoRA of the same kind of model, or leave out --init-lora.",
        )
    rank = max(file.state[f"{name}.lora_A.weight"].shape[0] for name in names)
    if rank > config.rank:
        raise ConfigError(
            f"The LoRA {file.path} has rank {rank}, and --rank is {config.rank}.", f"Give --rank {rank}."
        )
    if file.about.get("context", config.context) != config.context:
        log.warning(
            "The LoRA %s was trained with %s context, and goes on with %s.",
            file.path,
            file.about["context"],
            config.context,
        )
    return file


def start_from(file: LoraFile, transformer: nn.Module, config: TrainConfig) -> None:
    """Give the LoRA in `transformer` the very change that a file makes; ranks beyond the file's begin as in a
    new LoRA.

    Raises:
        ModelError: a layer of another size.
    """
    state = lora_state(transformer)
    with torch.no_grad():
        for name in _modules(file.state):
            down, up = (f"{name}.lora_{side}.weight" for side in "AB")
            rank = file.state[down].shape[0]
            fits = down in state and (state[down].shape[1], state[up].shape[0]) == (
                file.state[down].shape[1],
                file.state[up].shape[0],
            )
            if not fits:
                raise ModelError(
                    f"The LoRA {file.path} does not fit this model at '{name}'.",
                    "Use one that was trained on this model.",
                )
            state[down][:rank].copy_(file.state[down])
            state[up][:, :rank].copy_(file.state[up].float() * (config.rank / config.alpha))


def _modules(state: dict[str, Tensor]) -> list[str]:
    return [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
