"""The base of all configs: one frozen pydantic model per verb, filled from a YAML file.

A config file has shared keys at the top (`work`, `model`, folders) and one section per verb. The docstring
under a field is its help text everywhere, its marks (`config.marks`) give the kind of the setting. The two
flat files of the original project are accepted as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from triptych.config.files import Values, load_config, unknown_key
from triptych.config.marks import FOLDER, GIVEN, MACHINE, RARE, RESULT, RUNNING, SHARED, marked
from triptych.errors import ConfigError
from triptych.wording.settings import allowed, first_mistake, misread, shown

Seed = Annotated[int, Field(ge=0, lt=2**64)]
"""A seed in the range of PyTorch's generators. `seeds_from` checks the seeds counted up from it."""
Quantize = Literal["none", "nf4", "int8", "int8-torchao"]
"""Formats of a transformer's weights; see `compute/quantize.py`."""
Config = TypeVar("Config", bound="StageConfig")


def seeds_from(first: int, count: int) -> list[int]:
    """The seeds of `count` pictures, counting up.

    Raises:
        ConfigError: the last one has more than 64 bits.
    """
    if first + count > 2**64:
        raise ConfigError(
            f"{count} pictures from seed {first} on need seeds of more than 64 bits.",
            f"The largest seed is {2**64 - count}.",
        )
    return list(range(first, first + count))


def expanded(path: str) -> str:
    """A path with `~` replaced by the home folder; unchanged if there is none."""
    try:
        return str(Path(path).expanduser())
    except RuntimeError:  # `~nobody`: a folder of this name, or a mistake that is reported on opening
        return path


class StageConfig(BaseModel):
    """The settings of every verb. Unset folders are below `work`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    how: ClassVar[str] = "made"
    """A participle for the verb's result: made, sampled, trained."""

    work: Annotated[Path, FOLDER, SHARED] = Path("work")
    """Work folder; every stage keeps its results in a folder of its own below it."""
    catalogue: Annotated[Path | None, FOLDER, SHARED] = None
    """Where `clean` keeps its result, if not in WORK/catalogue."""
    triptychs: Annotated[Path | None, FOLDER, SHARED] = None
    """Where triptychs and their captions lie, if not in WORK/triptychs."""
    embeddings: Annotated[Path | None, FOLDER, SHARED] = None
    """Where latents and text embeddings lie, if not in WORK/embeddings."""
    lora_folder: Annotated[Path | None, FOLDER, SHARED] = None
    """Where `train` keeps LoRA, checkpoints and logs, if not in WORK/lora."""

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """Expand `~` in a config file to the home folder, as a shell does; also in a model's name, if it is a
        path.
        """
        if "\0" in str(value) or (isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)):
            raise ValueError("text and names of files without NUL and without half characters")
        if isinstance(value, str) and value.removeprefix("local:").startswith("~"):
            kind = "local:" if value.startswith("local:") else ""
            return kind + expanded(value.removeprefix("local:"))
        return Path(expanded(str(value))) if isinstance(value, Path) and str(value).startswith("~") else value

    @field_validator("base_url", mode="before", check_fields=False)
    @classmethod
    def _no_address(cls, value: Any) -> Any:
        """An empty address counts as none, so the command line can clear the config's."""
        return None if isinstance(value, str) and not value.strip() else value

    def check_early(self) -> None:
        """Raise the errors that can be found without torch. The command line calls this before it imports the
        verb, which may take seconds; the verb finds all others.
        """

    @property
    def catalogue_folder(self) -> Path:
        return self.catalogue or self.work / "catalogue"

    @property
    def triptych_folder(self) -> Path:
        return self.triptychs or self.work / "triptychs"

    @property
    def embedding_folder(self) -> Path:
        return self.embeddings or self.work / "embeddings"

    @property
    def train_folder(self) -> Path:
        return self.lora_folder or self.work / "lora"


class ModelConfig(StageConfig):
    """The settings of every verb that runs a diffusion model."""

    model: Annotated[str, RESULT, GIVEN, SHARED] = ""
    """A hub id such as black-forest-labs/FLUX.2-klein-base-4B, a diffusers folder, `pocket` or
    `pocket-klein`, which only know rendered clothes.
    """
    device: Annotated[str, RUNNING] = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    dtype: Annotated[Literal["auto", "bf16", "fp32"], RESULT, MACHINE] = "auto"
    """Precision of the model."""


class TransformerConfig(ModelConfig):
    """What every verb takes that runs its transformer."""

    quantize: Annotated[Quantize, RESULT, MACHINE, SHARED] = "none"
    """Weights of the model's blocks: nf4 (4.5 bits) and int8 need the package bitsandbytes, int8-torchao (8.5
    bits, a little closer to the full model) torchao. Together in `pip install 'triptych[quantization]'`.
    """
    blocks_to_swap: Annotated[int, RUNNING, SHARED] = Field(default=0, ge=0)
    """Transformer blocks kept in RAM and moved to the device only while they run: less memory there, more
    time.
    """


class PhotoConfig(StageConfig):
    """What every verb takes that shows photos to a diffusion model."""

    anyway: Annotated[bool, RUNNING, RARE, SHARED] = False
    """Show the model photographs even if it says that it has never seen any, as `pocket` does; with a
    warning.
    """


def section(data: Mapping[str, Any], verb: str, model: type[BaseModel]) -> Values:
    """The keys of one verb: its section, and the shared keys that it has. A key without a value (`model:`)
    counts as missing.

    Raises:
        ConfigError: a key the verb does not have.
    """
    known = set(model.model_fields)
    own = data.get(verb) or {}
    places = getattr(own, "places", {})
    for key in own:
        if key not in known:
            raise unknown_key(key, known, f"section '{verb}'", places.get(key, ""))
    shared = {key: value for key, value in data.items() if key in marked(model, SHARED)}
    values = {key: value for given in (shared, own) for key, value in given.items() if value is not None}
    return Values(values, {**getattr(data, "places", {}), **places})


def validated(model: type[Config], values: Mapping[str, Any], verb: str) -> Config:
    """A config from plain values. `Values` know their place in a file; error messages name it.

    Raises:
        ConfigError: a value of the wrong type or range; it names the key, the value and the accepted values.
    """

    def refused(key: str, value: str, allowed: str) -> ConfigError:
        place = getattr(values, "places", {}).get(key)
        where = f" ({place})" if place else ""
        if key not in model.model_fields:
            return unknown_key(key, model.model_fields, f"section '{verb}'", place or "")
        hint = f"See `triptych {verb.replace('_', ' ')} --help`."
        return ConfigError(f"'{key}' in section '{verb}'{where} is {value}; it takes {allowed}.", hint)

    try:
        config = model(**values)
    except ValidationError as error:
        raise refused(*first_mistake(error, model)) from error
    if isinstance(values, Values):
        for key, given in values.items():
            if misread(given, taken := getattr(config, key)):
                raise refused(key, shown(given), f"{allowed(model.model_fields[key])}, such as {taken:g}")
    return config


__all__ = [
    "ModelConfig",
    "PhotoConfig",
    "Quantize",
    "Seed",
    "StageConfig",
    "TransformerConfig",
    "Values",
    "expanded",
    "load_config",
    "section",
    "seeds_from",
    "unknown_key",
    "validated",
]
