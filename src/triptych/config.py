"""Configs: one frozen pydantic model per verb, and the YAML file that fills them.

A config file has shared keys at the top (`work`, `model`, folders) and one section per verb. The docstring under a
field is its help text everywhere. The two flat files of the original project are read as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from triptych.errors import ConfigError, InputError
from triptych.text_files import read_text

MAX_BYTES = 1 << 20
"""Largest config file that is read; one with every setting has some 5 KB."""


Seed = Annotated[int, Field(ge=0, lt=2**64)]
"""A seed, as PyTorch's generators take it. What counts on from one is checked by `seeds_from`."""


def seeds_from(first: int, count: int) -> list[int]:
    """The seeds of `count` pictures, counting up.

    Raises:
        ConfigError: the last one has more than 64 bits.
    """
    if first + count > 2**64:
        raise ConfigError(
            f"{count} pictures from seed {first} on need seeds of more than 64 bits.", f"The largest seed is {2**64 - count}."
        )
    return list(range(first, first + count))


class StageConfig(BaseModel):
    """What every verb takes. Folders left empty lie under `work`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    work: Path = Path("work")
    """Work folder; every stage keeps its results in a folder of its own below it."""
    catalogue: Path | None = None
    """Where `clean` keeps its result, if not in WORK/catalogue."""
    triptychs: Path | None = None
    """Where triptychs and their captions lie, if not in WORK/triptychs."""
    embeddings: Path | None = None
    """Where latents and text embeddings lie, if not in WORK/embeddings."""
    lora_folder: Path | None = None
    """Where `train` keeps LoRA, checkpoints and logs, if not in WORK/lora."""

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """`~` in a config file means the home folder, as it does in a shell."""
        return value.expanduser() if isinstance(value, Path) else value

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


# The original's flat keys → (section, key); section "" is the shared top. None: understood, and not needed any more.
ORIGINAL_KEYS: dict[str, tuple[str, str] | None] = {
    "training_data_human": ("clean", "human"),
    "training_data_object": ("clean", "garment"),
    "all_data": ("clean", "photos"),
    "paired_data_path": ("", "catalogue"),
    "concat_data_path": ("", "triptychs"),
    "max_concat_n": ("concat", "max_concat_n"),
    "do_check": ("caption", "do_check"),
    "fail_path": ("caption", "fail_path"),
    "vlm_model": ("caption", "vlm_model"),
    "data_path": ("", "triptychs"),
    "embedded_data_path": ("", "embeddings"),
    "pretrained_model_name_or_path": ("", "model"),
    "output_dir": ("", "lora_folder"),
    "lr_warmup_steps": ("train", "lr_warmup_steps"),
    "max_train_steps": ("train", "max_train_steps"),
    "gradient_accumulation_steps": ("train", "gradient_accumulation_steps"),
    "learning_rate": ("train", "learning_rate"),
    "batch_size": ("train", "batch_size"),
    "checkpoints_total_limit": ("train", "checkpoints_total_limit"),
    "logging_dir": ("train", "logging_dir"),
    "tracker_name": ("train", "tracker_name"),
    "upcast_before_saving": None,  # LoRA weights are always kept and saved in 32 bit
    "vae_config_path": None,  # the autoencoder's constants come with the model
    "negative_prompt_emb_path": None,  # the empty prompt is embedded beside the captions
}
_ORIGINAL_ONLY = set(ORIGINAL_KEYS) - {"max_concat_n", "do_check", "fail_path", "vlm_model"}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file (UTF-8, safe tags only).

    Raises:
        ConfigError: missing file, YAML that does not parse (with its line), or something other than a mapping.
    """
    try:
        text = read_text(path, MAX_BYTES, "The config file", hint="Check the path given to --config.")
    except InputError as error:
        raise ConfigError(error.args[0], error.hint) from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{path} is not valid YAML{where}: {problem}.", "Indent with spaces, write 'key: value'.") from error
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path} does not hold 'key: value' pairs.", "Start from the file that `triptych init` writes.")
    return data


def is_original(data: Mapping[str, Any]) -> bool:
    """True for the original's `data_clean_config.yaml` (flat) and `model_config.yaml` (sections data and model)."""
    nested = isinstance(data.get("model"), dict) or isinstance(data.get("data"), dict)
    return nested or bool(_ORIGINAL_ONLY & set(data))


def from_original(data: Mapping[str, Any]) -> dict[str, Any]:
    """The original's config as ours: shared keys at the top, sections by verb.

    Raises:
        ConfigError: a key that neither of the original's two files has.
    """
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat.update(value if isinstance(value, dict) and key in ("data", "model") else {key: value})
    ours: dict[str, Any] = {}
    for key, value in flat.items():
        if key not in ORIGINAL_KEYS:
            raise unknown_key(key, ORIGINAL_KEYS, "the config")
        target = ORIGINAL_KEYS[key]
        if target is not None:
            section, name = target
            (ours.setdefault(section, {}) if section else ours)[name] = value
    return ours


def unknown_key(key: str, known: Iterable[str], where: str) -> ConfigError:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'?" if near else "Known keys: " + ", ".join(sorted(known)) + "."
    return ConfigError(f"Unknown key '{key}' in {where}.", hint)


def load_config(paths: Iterable[Path], verbs: Iterable[str]) -> dict[str, Any]:
    """Config files, later ones winning, as one mapping of shared keys and sections.

    Raises:
        ConfigError: see `read_yaml`; or an unknown key at the top of a file.
    """
    verbs, merged = set(verbs), dict[str, Any]()
    shared = {"work", "catalogue", "triptychs", "embeddings", "lora_folder", "model", "quantize", "blocks_to_swap", "seed"}
    for path in paths:
        data = read_yaml(path)
        data = from_original(data) if is_original(data) else data
        for key, value in data.items():
            if key in verbs:
                if value is not None and not isinstance(value, dict):
                    raise ConfigError(f"Section '{key}' of {path} is not a mapping.", f"Write '{key}:' and indent its keys below.")
                merged.setdefault(key, {}).update(value or {})
            elif key in shared:
                merged[key] = value
            else:
                raise unknown_key(key, verbs | shared, str(path))
    return merged


def section(data: Mapping[str, Any], verb: str, model: type[BaseModel]) -> dict[str, Any]:
    """The keys of one verb: its section, and the shared keys it knows. A key without a value (`model:`) is as if left out.

    Raises:
        ConfigError: a key the verb does not have.
    """
    known = set(model.model_fields)
    own = data.get(verb) or {}
    for key in own:
        if key not in known:
            raise unknown_key(key, known, f"section '{verb}'")
    shared = {k: v for k, v in data.items() if k in known and not isinstance(v, dict)}
    return {key: value for given in (shared, own) for key, value in given.items() if value is not None}


def validated(model: type[StageConfig], values: Mapping[str, Any], verb: str) -> StageConfig:
    """A config from plain values.

    Raises:
        ConfigError: a value of the wrong kind or range, named with its key.
    """
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"'{key}' in section '{verb}': {first['msg']}.", f"See `triptych {verb} --help`.") from error
