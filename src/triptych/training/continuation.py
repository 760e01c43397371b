"""Continue trainings: the progress of a training in a folder, whether it is done, and the LoRA that a new one
starts from.
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
    """Whether the folder has checkpoints or a LoRA of a training,
    which another training must not continue.
    """
    return bool(steps_saved(folder / "checkpoints")) or (folder / FILE_NAME).exists()


def is_done(config: TrainConfig) -> bool:
    """Whether the folder's training has the requested length. For a longer one, training continues from the
    newest checkpoint. For a shorter one, it ends at the checkpoint of exactly that step, if the folder has no
    LoRA of more steps.

    Raises:
        WorkError: the training is already longer, there is no checkpoint to continue from, or the LoRA was
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
    """The number of steps that the LoRA in the folder was trained for."""
    return int((read_about(folder / FILE_NAME) or {}).get("steps", 0))


def _ways(folder: Path, steps: list[int]) -> str:
    there = ", ".join(map(str, steps)) or "none"
    return (
        f"Give --max-train-steps {steps[-1] if steps else 'as before'} or more, choose another "
        "--lora-folder, or use the LoRA of a "
        f"checkpoint, {folder / 'checkpoints'}/step-…; steps there: {there}."
    )


def check_init_lora(config: TrainConfig, backbone: Backbone) -> LoraFile | None:
    """Read and check the LoRA to start from, if the config names one.

    Raises:
        ModelError: the LoRA cannot be read, is for another family, or adapts layers that are not trained.
            ConfigError: its rank is larger than the config's.
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
            "The LoRA %s was trained with %s context, and continues with %s.",
            file.path,
            file.about["context"],
            config.context,
        )
    return file


def start_from(file: LoraFile, transformer: nn.Module, config: TrainConfig) -> None:
    """Initialise the LoRA in `transformer` to exactly the change of a LoRA file; ranks beyond the file's
    begin as in a new LoRA.

    Raises:
        ModelError: a layer has another size.
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
