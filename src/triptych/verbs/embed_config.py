"""The settings of `embed`; they import nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from triptych.backbones.settings import resolve_model
from triptych.config.engine import EngineConfig
from triptych.config.marks import GIVEN, MACHINE, OUTPUT, RARE, RESULT, RUNNING
from triptych.config.stage import ModelConfig, PhotoConfig


class EmbedConfig(ModelConfig, PhotoConfig, EngineConfig):
    max_sequence_length: Annotated[int | None, RESULT] = Field(default=None, ge=1, le=512)
    """Text tokens kept of a caption; by default the model's recommendation. Longer captions are cut, and
    counted in the summary.
    """
    batch_size: Annotated[int, RUNNING] = Field(default=4, ge=1)
    """Triptychs that go through the autoencoder at once."""
    shard_gib: Annotated[float, OUTPUT, RARE] = Field(default=0.0, ge=0, le=64)
    """Pack the embeddings into files of this size, in GiB, for very many triptychs: a file system slows down
    with millions of files. 0: a file for each triptych and each caption.
    """
    dtype: Annotated[Literal["auto", "bf16", "fp32"], RESULT, MACHINE] = "auto"
    """Precision of the text encoders; the autoencoder always works in float32, where its latents are exact.
    """
    columns: Annotated[int | None, RESULT, GIVEN] = Field(default=None, ge=1)
    """Panels in a row, for all pictures without a layout in metadata.jsonl. Without it, and without --roles,
    three panels in a row are assumed if the picture's shape allows it.
    """
    roles: Annotated[list[str] | None, RESULT, GIVEN] = None
    """Roles of the panels of those pictures, in reading order; the last one is generated. Default: front,
    back, worn.
    """

    def check_early(self) -> None:
        """Raises ModelError if no model is named, or a folder that holds none."""
        resolve_model(self.model)
