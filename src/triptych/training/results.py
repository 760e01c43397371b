"""What a training leaves in its folder: checkpoints, the LoRA, the log, validation pictures."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from triptych.backbones.contract import Backbone
from triptych.errors import WorkError
from triptych.lora.adapter import FILE_NAME, LoraFile, save_lora
from triptych.training import asked, distributed
from triptych.training.about import about_lora
from triptych.training.config import TrainConfig
from triptych.training.data import TrainingSet
from triptych.training.log import TrainLog
from triptych.training.state import TrainState
from triptych.training.twin import Twin
from triptych.training.validation import validation_loss, validation_pictures

log = logging.getLogger(__name__)


class Results:
    """The files of one training. With several processes, only the first one writes.

    log: the rows of numbers. start: number of steps that were done before this run.
    """

    def __init__(
        self,
        config: TrainConfig,
        backbone: Backbone,
        data: TrainingSet,
        init: LoraFile | None,
        twin: Twin | None,
        state: TrainState,
        folder: Path,
    ) -> None:
        self._config, self._backbone, self._data, self._init = config, backbone, data, init
        self._twin, self._state, self._folder = twin, state, folder
        self._writes = distributed.rank() == 0
        self.start = self._saved = state.step
        self.log = TrainLog(
            folder,
            (config.logging_dir or folder / "tensorboard") / config.tracker_name,
            state.step,
            self._writes,
            state.step >= config.max_train_steps,
        )

    def save(self) -> None:
        """Write a checkpoint with the LoRA of this step, unless that is done.

        Raises:
            WorkError: the state holds a number that is not finite.
        """
        if not self._state.is_finite():
            raise self._not_finite()
        if self._writes and self._state.step != self._saved:
            self.log.flush()
            self._state.save(
                self._folder / "checkpoints",
                self._config.checkpoints_total_limit,
                lambda part: self._save_lora(part / FILE_NAME, self._state.average),
            )
        self._saved = self._state.step

    def answer(self) -> None:
        """Keep the LoRA of this step if somebody asks for it, see `asked`.

        Raises:
            WorkError: the state holds a number that is not finite.
        """
        if self._writes and asked.taken(self._folder, asked.SAVE):
            if not self._state.is_finite():
                raise self._not_finite()
            path = asked.saved_folder(self._folder, self._state.step) / FILE_NAME
            self._save_lora(path, self._state.average)
            log.warning("The LoRA of step %d is in %s.", self._state.step, path.parent)

    def diverged(self) -> WorkError:
        """The error for a loss or gradient that is not finite. The last good state is saved, and the message
        gives its place.
        """
        if self._state.step and self._state.is_finite():
            self.save()
        return self._not_finite()

    def finish(self) -> None:
        """Close the log and write the LoRA: the one of the lowest validation loss if such are kept, else the
        last one.
        """
        self.log.close()
        if self._writes:
            self._save_lora(self._folder / FILE_NAME, self._state.best or self._state.average)

    def validated(self) -> dict[str, float]:
        """The averaged LoRA's losses on held-out triptychs; its pictures are saved."""
        config, state = self._config, self._state
        sharded = distributed.wants_sharding(config.shard_base)
        with state.averaged() as transformer:
            losses = (
                validation_loss(config, self._backbone, transformer, self._data)
                if self._data.held_out
                else {}
            )
            # A sharded model runs on all processes or on none.
            if config.num_validation_images and (self._writes or sharded):
                pictures = validation_pictures(
                    config, self._backbone, transformer, self._data, state, self._twin
                )
                self.log.picture(state.step, pictures)
        return losses

    def _save_lora(self, path: Path, tensors: dict[str, Tensor]) -> None:
        config = self._config
        metadata = about_lora(config, self._backbone.family, self._data, self._state, self._init)
        save_lora(path, tensors, config.rank, config.alpha, metadata)

    def _not_finite(self) -> WorkError:
        hint = (
            f"The last good state is in {self._folder / 'checkpoints'}. Lower --learning-rate and start in "
            "another --lora-folder; if the first steps fail already, run `triptych embed` again."
        )
        return WorkError(
            f"The loss or its gradient is not finite after step {self._state.step}; nothing of it was saved.",
            hint,
        )
