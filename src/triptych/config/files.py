"""Config files: shared keys at the top, one section per verb; also the two flat files of the original
project.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from triptych.config.marks import SHARED, marked
from triptych.config.yaml_text import parse
from triptych.errors import ConfigError, InputError
from triptych.store.text import read_text
from triptych.wording.settings import shown

MAX_BYTES = 1 << 20
"""Largest config file that is read, in bytes; a file with every setting has about 5 KB."""


class Verb(Protocol):
    """The parts of a verb that this module needs: its name and its config class."""

    @property
    def name(self) -> str: ...

    def config_class(self) -> type[BaseModel]: ...


class Values(dict[str, Any]):
    """Settings by name, with the place of each in a file: `triptych.yaml, line 3`."""

    def __init__(self, values: Mapping[str, Any] = {}, places: Mapping[str, str] = {}) -> None:
        super().__init__(values)
        self.places = dict(places)

    def changed(self, other: Mapping[str, Any]) -> Values:
        """These values updated with `other`; the new values have no place in a file."""
        return Values(
            {**self, **other}, {key: place for key, place in self.places.items() if key not in other}
        )

    def put(self, key: str, value: Any, place: str) -> None:
        self[key], self.places[key] = value, place


# The original's flat keys → (section, key); section "" is the shared top. None: accepted, but no longer
# needed.
ORIGINAL_KEYS: dict[str, tuple[str, str] | None] = {
    "training_data_human": ("clean", "human"),
    "training_data_object": ("clean", "garment"),
    "all_data": ("clean", "photos"),
    "paired_data_path": ("", "catalogue"),
    "concat_data_path": ("concat", "triptychs"),
    "max_concat_n": ("concat", "max_concat_n"),
    "do_check": ("caption", "do_check"),
    "fail_path": ("caption", "fail_path"),
    "vlm_model": ("caption", "vlm_model"),
    "data_path": ("embed", "triptychs"),
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
    "upcast_before_saving": None,  # LoRA weights are always kept and saved in 32 bits
    "vae_config_path": None,  # the autoencoder's constants come with the model
    "negative_prompt_emb_path": None,  # the empty prompt is embedded beside the captions
}
_ORIGINAL_ONLY = set(ORIGINAL_KEYS) - {"max_concat_n", "do_check", "fail_path", "vlm_model"}


def read_yaml(path: Path) -> Values:
    """The mapping in a YAML file (UTF-8); sections are `Values` too.

    Raises:
        ConfigError: the file is missing, is not valid YAML (with the line), or holds something other than a
            mapping.
    """
    path = packaged(path)
    try:
        text = read_text(path, MAX_BYTES, "The config file", hint="Check the path given to --config.")
    except InputError as error:
        raise ConfigError(error.message, error.hint) from error
    data, lines = parse(text, shown_path(path))
    if data is None:
        return Values()
    if not isinstance(data, dict):
        raise ConfigError(
            f"{shown_path(path)} does not hold 'key: value' pairs.",
            "Start from the file that `triptych init` writes.",
        )
    values = Values()
    for key, value in data.items():
        if isinstance(value, dict):
            value = Values(value, {inner: f"{shown_path(path)}, line {lines[key, inner]}" for inner in value})
        values.put(key, value, f"{shown_path(path)}, line {lines[key,]}")
    return values


def packaged(path: Path) -> Path:
    """The file of a preset that is given by its name, such as `12gb`; any other path unchanged."""
    preset = Path(__file__).parent.parent / "presets" / f"{path.name}.yaml"
    return preset if path.name == str(path) and not path.exists() and preset.is_file() else path


def shown_path(path: Path) -> str:
    """A path without characters that control a terminal."""
    return "".join(c if c.isprintable() else "�" for c in str(path))


def is_original(data: Mapping[str, Any]) -> bool:
    """True for the original's `data_clean_config.yaml` (flat) and `model_config.yaml` (sections data and
    model).
    """
    nested = isinstance(data.get("model"), dict) or isinstance(data.get("data"), dict)
    return nested or bool(_ORIGINAL_ONLY & set(data))


def from_original(data: Values) -> Values:
    """Convert the original's config to ours: shared keys at the top, sections by verb.

    Raises:
        ConfigError: a key that is in neither of the original's two files.
    """
    flat = Values()
    for key, value in data.items():
        inner = (
            value
            if isinstance(value, Values) and key in ("data", "model")
            else Values({key: value}, data.places)
        )
        for name, given in inner.items():
            flat.put(name, given, inner.places[name])
    ours = Values()
    for key, value in flat.items():
        if key not in ORIGINAL_KEYS:
            foreign = (
                "A config of the original project takes its own keys alone: write the others into a second "
                "file, and give both with --config."
            )
            raise unknown_key(key, ORIGINAL_KEYS, "the config", flat.places[key], foreign)
        target = ORIGINAL_KEYS[key]
        if target is not None:
            verb, name = target
            home = ours.setdefault(verb, Values()) if verb else ours
            home.put(name, value, flat.places[key])
    return ours


def unknown_key(
    key: str, known: Iterable[str], where: str, place: str = "", otherwise: str = ""
) -> ConfigError:
    """The error for a key that nobody knows. otherwise: the hint where no known key is nearly the same; by
    default the known keys are listed.
    """
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.75 if otherwise else 0.5)
    hint = otherwise or "Known keys: " + ", ".join(sorted(known)) + "."
    hint = f"Did you mean '{near[0]}'?" if near else hint
    return ConfigError(f"Unknown key '{shown(key)}' in {where}{f' ({place})' if place else ''}.", hint)


def load_config(paths: Iterable[Path], verbs: Sequence[Verb]) -> Values:
    """Merge config files, later ones winning, into one mapping of shared keys and sections. A key may stand
    at the top if a verb has a field of that name that is marked as shared.

    Raises:
        ConfigError: see `read_yaml`; or an unknown key at the top of a file.
    """
    names, merged, original = {verb.name for verb in verbs}, Values(), False
    for path in paths:
        data = read_yaml(path)
        if is_original(data):
            data, original = from_original(data), True
        for key, value in data.items():
            place = data.places.get(key, "")
            if key in names:
                if value is not None and not isinstance(value, Values):
                    where = f"Section '{key}' of {shown_path(path)} is not a mapping"
                    raise ConfigError(f"{where} ({place}).", f"Write '{key}:' and indent its keys below.")
                section = merged.setdefault(key, Values())
                own = value or Values()
                for name, given in own.items():
                    section.put(name, given, own.places[name])
            elif any(key in marked(verb.config_class(), SHARED) for verb in verbs):
                merged.put(key, value, place)
            else:
                shared = {name for verb in verbs for name in marked(verb.config_class(), SHARED)}
                homes = [verb.name for verb in verbs if key in verb.config_class().model_fields]
                if homes:
                    raise ConfigError(
                        f"The key '{shown(key)}' cannot stand at the top ({place}).",
                        f"Write it below its verb: {', '.join(f'`{home}:`' for home in homes)}.",
                    )
                raise unknown_key(key, names | shared, shown_path(path), place)
    return _with_data_folders(merged) if original else merged


def _with_data_folders(data: Values) -> Values:
    """Handle the original's folders. `clean` puts photos into item/human and item/garment of
    `paired_data_path`. There are two folders of triptychs, in either order of its files. `concat` and
    `caption` work in `concat_data_path`; `embed` and `train` read `data_path` (`triptych run` copies
    captioned triptychs there). If only one is given, it serves as both.
    """
    if "catalogue" in data:
        clean = data.setdefault("clean", Values())
        if "sorted_folders" not in clean:
            clean.put("sorted_folders", True, data.places.get("catalogue", ""))
    for source, others in (("concat", ("caption", "embed")), ("embed", ("train", "concat", "caption"))):
        if "triptychs" in data.get(source, {}):
            for other in others:
                section = data.setdefault(other, Values())
                if "triptychs" not in section:
                    section.put("triptychs", data[source]["triptychs"], data[source].places["triptychs"])
    return data
