"""TrainConfig: all settings of `train`, and which of them may change between two runs of one training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from triptych.backbones.families import Family
from triptych.backbones.settings import ContextMode, ContextPlacement, ContextReading, resolve_model
from triptych.config.marks import (
    AMOUNT,
    CLEAN_ONLY,
    GIVEN,
    GOT,
    INPUT,
    MACHINE,
    OUTPUT,
    RARE,
    RESULT,
    RUNNING,
    SHARED,
    TRACED,
    marked,
)
from triptych.config.stage import Seed, TransformerConfig
from triptych.errors import ConfigError

if TYPE_CHECKING:  # it imports numpy, which `--help` can do without
    from triptych.pictures.panels import PanelLayout


class TrainConfig(TransformerConfig):
    how = "trained"

    task: Annotated[str | None, RESULT, GIVEN, SHARED] = None
    """Task of the LoRA: try-on (front and back are given, worn is made) or try-off (worn is given, front and
    back are made), from the same triptychs; or outfit, from those of `concat --task outfit`. By default the
    panels that metadata.jsonl marks as made, else the last panel.
    """
    max_train_steps: Annotated[int, AMOUNT] = Field(default=1000, ge=1)
    """Total number of optimizer steps. A larger number continues a finished training, at the learning rate of
    the new schedule at that step.
    """
    epochs: Annotated[float | None, AMOUNT] = Field(default=None, gt=0)
    """Passes over the triptychs, instead of max_train_steps."""
    batch_size: Annotated[int, RESULT, TRACED] = Field(default=4, ge=1)
    """Triptychs in one forward pass (of each process)."""
    gradient_accumulation_steps: Annotated[int, RESULT, TRACED] = Field(default=1, ge=1)
    """Forward passes per optimizer step."""
    optimizer: Annotated[Literal["adamw", "adamw8bit", "prodigy"], RESULT] = "adamw"
    """adamw8bit (package bitsandbytes) keeps its state in a quarter of the memory; prodigy (package
    prodigyopt) finds the learning rate itself and needs --learning-rate 1.
    """
    learning_rate: Annotated[float, RESULT] = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    lr_warmup_steps: Annotated[int, RESULT, RARE] = Field(default=20, ge=0)
    """Steps over which the learning rate rises; afterwards it falls to zero along a cosine."""
    weight_decay: Annotated[float, RESULT, RARE] = Field(default=1e-4, ge=0)
    """The optimizer's decoupled weight decay."""
    max_grad_norm: Annotated[float, RESULT, RARE] = Field(default=1.0, gt=0)
    """Largest norm of the gradients; larger ones are scaled down to it."""
    init_lora: Annotated[Path | None, INPUT] = None
    """LoRA file or folder to start from, also with other triptychs. Needs another --lora-folder. By default
    the LoRA starts from no change at all.
    """
    rank: Annotated[int, RESULT, TRACED] = Field(default=16, ge=1)
    """Rank of the LoRA; for FLUX.2 32 by default."""
    alpha: Annotated[float, RESULT] = Field(default=16, gt=0)
    """Scale of the LoRA in units of rank, for FLUX.2 the rank by default; folded into the saved file."""
    lora_dropout: Annotated[float, RESULT, RARE, TRACED] = Field(default=0.0, ge=0, lt=1)
    """Share of the LoRA's inputs dropped in training."""
    caption_dropout: Annotated[float, RESULT] = Field(default=0.05, ge=0, le=1)
    """Share of samples trained with the empty caption, so that the LoRA learns from the panels and not only
    from the words; for FLUX.2 0.1 by default.
    """
    shift: Annotated[float | None, RESULT, RARE] = Field(default=None, gt=0)
    """Shift of the noise levels towards noise: t → shift·t / (1 + (shift − 1)·t); by default the model's own
    shift for one panel. 1 is no shift.
    """
    min_t: Annotated[float, RESULT, RARE] = Field(default=0.0, ge=0, lt=1)
    """Lowest noise level to learn; levels are drawn from (0, 1) and scaled to (min_t, max_t)."""
    max_t: Annotated[float, RESULT, RARE] = Field(default=1.0, gt=0, le=1)
    """Highest noise level to learn."""
    panel_weights: Annotated[dict[str, float], RESULT, RARE] = {}
    """Weight of each panel's mean loss by role, e.g. {logo: 0.5, poster: 1}; 1 by default."""
    loss_masks: Annotated[Path | None, INPUT] = None
    """Folder of loss masks: pictures of the triptychs' size and name. White (or opaque) is learned, black (or
    transparent) is not. A triptych without a mask is learned whole.
    """
    context: Annotated[ContextMode, RESULT, TRACED] = "noisy"
    """noisy: all panels are noised and learned, as in the paper. clean: the given panels (product photos),
    and in half of the batches a part of the made panels, are shown without noise and read once; the rest of
    the made panels is learned. Sampling is then faster; the default for FLUX.2. native: they are run at every
    step, as FLUX.2 sees references.
    """
    context_placement: Annotated[Literal["auto", "canvas", "reference"], RESULT, CLEAN_ONLY, TRACED] = "auto"
    """Clean context: canvas: the given panels stand beside the made ones; reference: each is a picture of its
    own, for models that know references. auto: what was measured to carry more: references for outfits on
    such a model, else the canvas. The LoRA's file records it.
    """
    context_lora: Annotated[bool, RESULT, CLEAN_ONLY, TRACED] = False
    """Clean context: the LoRA also adapts how known panels are read. Slower, because reading is then part of
    the backward pass.
    """
    context_reading: Annotated[ContextReading, RESULT, CLEAN_ONLY, TRACED] = "joint"
    """Clean context: joint: all clean tokens attend to each other; products: the product panels attend only
    to each other, so that tryon can reuse them for the next person; each: every picture only to itself, so
    that tryon can reuse a garment in the next outfit; the default for outfits on FLUX.2. The LoRA's file
    records it.
    """
    context_dropout: Annotated[float, RESULT, RARE, CLEAN_ONLY] = Field(default=0.1, ge=0, le=1)
    """Clean context: share of batches without product panels, which sampling with guidance on them needs."""
    noise_levels: Annotated[int, RESULT, CLEAN_ONLY, TRACED] = Field(default=1, ge=1, le=64)
    """Clean context: noise levels per triptych in one pass;
    its known panels are read once for all of them.
    """
    ema_decay: Annotated[float, RESULT, RARE] = Field(default=0.99, ge=0, lt=1)
    """Decay of the LoRA's moving average, which is saved and used for validation. 0 turns it off."""
    guidance_scale: Annotated[float, RESULT, RARE] = 1.0
    """Guidance fed to a guidance-distilled model in training; 1 for FLUX.1-dev. Other models ignore it."""
    gradient_checkpointing: Annotated[bool, RUNNING, TRACED] = True
    """Recompute activations in the backward pass: a third more time, several times less memory."""
    seed: Annotated[Seed, RESULT, SHARED] = 0
    """Seed of everything random."""
    checkpointing_steps: Annotated[int, OUTPUT] = Field(default=250, ge=1)
    """Steps between two checkpoints of the whole training state. Run the same command again to resume."""
    checkpoints_total_limit: Annotated[int, OUTPUT] = Field(default=2, ge=1)
    """Number of newest checkpoints to keep."""
    validation_steps: Annotated[int, RESULT, GOT] = Field(default=250, ge=0)
    """Steps between two validations (loss and pictures); 0: none."""
    num_validation_triptychs: Annotated[int, RESULT] = Field(default=0, ge=0)
    """Least number of triptychs held out for the validation loss; an item's triptychs are held out together.
    0 trains on all.
    """
    num_validation_images: Annotated[int, OUTPUT] = Field(default=2, ge=0)
    """Number of triptychs in validation pictures, held-out ones first: their made panels are generated from
    the given ones.
    """
    validation_model: Annotated[str | None, OUTPUT] = None
    """A second model for validation pictures, such as FLUX.2-klein-4B in a training on FLUX.2-klein-base-4B:
    each is also made with that model and the averaged LoRA, in the number of steps that it is made for. It is
    loaded only meanwhile, and has to have the base's layers and text encoder.
    """
    early_stopping_patience: Annotated[int, RESULT] = Field(default=0, ge=0)
    """Stop after this many validations in a row without a lower loss, and keep the LoRA of the lowest; 0:
    never.
    """
    logging_dir: Annotated[Path | None, OUTPUT] = None
    """Folder of TensorBoard files; by default the LoRA folder."""
    tracker_name: Annotated[str, OUTPUT] = "triptych"
    """Name of the run in TensorBoard."""
    shard_base: Annotated[bool, RUNNING] = False
    """With several processes, each keeps only a part of the frozen model and gathers each block while it runs
    (FSDP). Slower; for cards that cannot hold the whole model.
    """
    dtype: Annotated[Literal["auto", "bf16", "fp32"], RESULT, MACHINE] = "auto"
    """Precision of the frozen model and of matrix products; the LoRA is always float32."""

    def check_early(self) -> None:
        """Raise ModelError if no model is named, or the folder holds none."""
        resolve_model(self.model)


def for_family(config: TrainConfig, family: Family) -> TrainConfig:
    """The config with the family's own defaults for settings that are not given, see `Family.training`. An
    outfit's references are read each by itself, which was measured to carry as much and can be kept.
    """
    usual = dict(family.training)
    if _stand_apart(config, family):
        usual["context_reading"] = "each"
    own = {name: value for name, value in usual.items() if name not in config.model_fields_set}
    config = config.model_copy(update=own)
    if "rank" in family.training and "alpha" not in config.model_fields_set:
        return config.model_copy(update={"alpha": float(config.rank)})
    return config


def _prefers_references(config: TrainConfig, family: Family) -> bool:
    from triptych.tasks import task_named  # not at the top: it imports numpy, which `--help` can do without

    return config.task is not None and family.references and task_named(config.task).references


def _stand_apart(config: TrainConfig, family: Family) -> bool:
    """Whether clean photos of several garments stand in reference pictures."""
    is_there = config.context == "clean" and config.context_placement != "canvas"
    return is_there and _prefers_references(config, family)


def on_distilled(model: str) -> str:
    """The warning for a training on a distilled model."""
    return (
        f"{model} is distilled to a few steps, and training harms that: train on its base model instead "
        "(FLUX.2-klein-base-4B for FLUX.2-klein-4B); the LoRA then works on the distilled model too."
    )


def settings_that_matter(config: TrainConfig) -> dict[str, Any]:
    """The settings that the LoRA depends on, as JSON values. They may not change between two runs of one
    training. The validation interval is among them only if validation may end the training. Input files, such
    as loss masks, are compared by content elsewhere.
    """
    matter = set(marked(TrainConfig, RESULT))
    if not config.early_stopping_patience:
        matter.remove("validation_steps")
    return config.model_dump(mode="json", include=matter)


def check(config: TrainConfig, layout: PanelLayout) -> None:
    """Refuse settings that contradict each other or the panels at hand.

    Raises:
        ConfigError: settings contradict each other or the panels.
    """
    if config.min_t >= config.max_t:
        raise ConfigError(
            f"No noise level lies between --min-t {config.min_t:g} and --max-t {config.max_t:g}.",
            "Swap or widen them.",
        )
    roles = layout.roles
    for role, weight in config.panel_weights.items():
        if role not in roles or not 0 <= weight < float("inf"):
            hint = f"Roles here: {', '.join(roles)}; weights are 0 or more."
            raise ConfigError(f"The panel weight '{role}: {weight:g}' has no meaning.", hint)
    if not learned_roles(config, layout):
        could = ", ".join(roles if config.context == "noisy" else layout.made)
        raise ConfigError(
            "All panels that would be learned have weight 0.",
            f"Give one of {could} a --panel-weights above 0.",
        )
    if config.context == "noisy":
        _check_noisy(config)
    if config.early_stopping_patience and not (config.validation_steps and config.num_validation_triptychs):
        hint = (
            "Give --num-validation-triptychs and --validation-steps, or leave --early-stopping-patience at 0."
        )
        raise ConfigError("Stopping early needs a validation loss, and nothing is validated.", hint)
    if config.validation_model and not (config.validation_steps and config.num_validation_images):
        hint = "Give --validation-steps and --num-validation-images, or leave --validation-model out."
        raise ConfigError("Pictures of another model are validation pictures, and none are made.", hint)
    if config.validation_model and config.shard_base:
        hint = "Leave --shard-base or --validation-model out."
        raise ConfigError("A second model for validation pictures is not sharded over processes.", hint)
    if config.shard_base and (config.blocks_to_swap or config.quantize != "none"):
        hint = "Give --shard-base alone, or leave it out."
        raise ConfigError("A base model that is sharded over processes cannot be quantised or swapped.", hint)
    if config.blocks_to_swap and not config.gradient_checkpointing:
        hint = "Turn --gradient-checkpointing on, or leave --blocks-to-swap at 0."
        raise ConfigError(
            "Without gradient checkpointing the backward pass keeps every swapped block on the device.", hint
        )
    if config.optimizer == "prodigy" and config.learning_rate < 0.1:
        hint = "Give --learning-rate 1."
        raise ConfigError(
            f"With prodigy the learning rate is a factor, and {config.learning_rate:g} would learn nothing.",
            hint,
        )


def placement_of(config: TrainConfig, family: Family) -> ContextPlacement:
    """Where known panels stand in this training.

    Raises:
        ConfigError: the model knows no references, or the context needs another placement.
    """
    fixed: ContextPlacement | None = None
    if config.context != "clean":
        fixed = "reference" if config.context == "native" else "canvas"
    wanted = config.context_placement
    usual: ContextPlacement = "reference" if _prefers_references(config, family) else "canvas"
    placement = fixed or (usual if wanted == "auto" else wanted)
    if placement == "reference" and not family.references:
        raise ConfigError(
            f"{family.title} models do not know reference pictures.",
            "Give --context clean without --context-placement reference, or a FLUX.2-klein model.",
        )
    if wanted not in ("auto", placement):
        raise ConfigError(
            f"--context {config.context} and --context-placement {wanted} exclude each other.",
            "Leave one of them out.",
        )
    return placement


def learned_roles(config: TrainConfig, layout: PanelLayout) -> list[str]:
    """The panels that count in the loss: with clean or native context only those that are made."""
    return [
        role
        for role in (layout.roles if config.context == "noisy" else layout.made)
        if config.panel_weights.get(role, 1.0)
    ]


def _check_noisy(config: TrainConfig) -> None:
    """Raise ConfigError for changed settings of clean context, which have no effect with noisy context."""
    for name in marked(TrainConfig, CLEAN_ONLY):
        if getattr(config, name) != TrainConfig.model_fields[name].default:
            option = f"--{name.replace('_', '-')}"
            hint = f"Give --context clean, or leave out {option}."
            raise ConfigError(
                f"{option} does nothing with noisy context: there all panels are noised, and none is read.",
                hint,
            )
