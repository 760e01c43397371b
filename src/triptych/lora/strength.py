"""The strength of a LoRA: the factor alpha/rank of each layer's change, from any place where a program
records it.

There are four places: an `.alpha` tensor beside the layer's matrices, peft's config inside the file
(diffusers writes it as `lora_adapter_metadata`), peft's `adapter_config.json` beside it, and plain entries of
the file's metadata (kohya's `ss_network_alpha`, others' `lora_alpha`). A file in which two of them disagree
is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.errors import ModelError
from triptych.lora.formats import Layer
from triptych.lora.names import shown
from triptych.lora.patterns import Matcher, PatternError, peft_matchers
from triptych.lora.refused import EXTRACT

_AGAIN = "Save or download the file again."
_EXPORT = "Export it again from the program that trained it."
LONGEST_JSON = 4_000_000
"""Limit of characters in a metadata entry that is parsed as JSON."""

# Keys of a peft config that mean more than adding B·A·scale to linear layers. A file that sets one is
# refused.
_MORE_THAN_LORA = {
    "use_dora": "is a DoRA, which is more than a LoRA",
    "lora_bias": "changes biases too (lora_bias in its peft config)",
    "modules_to_save": "holds whole layers too (modules_to_save in its peft config)",
    "layer_replication": "was trained on a model with repeated layers (layer_replication in its peft config)",
    "use_qalora": "is a QALoRA, whose matrices are pooled (use_qalora in its peft config)",
    "alora_invocation_tokens": "is an aLoRA, which acts on some tokens only (alora_invocation_tokens in its "
    "peft config)",
    "target_parameters": "changes parameters that are no layers (target_parameters in its peft config)",
    "trainable_token_indices": "changes single tokens' embeddings (trainable_token_indices in its peft "
    "config)",
    "use_bdlora": "is a BD-LoRA of block-diagonal matrices (use_bdlora in its peft config)",
    "arrow_config": "is a router among LoRAs (arrow_config in its peft config)",
    "kasa_config": "is a KaSA, which is more than a LoRA (kasa_config in its peft config)",
    "monteclora_config": "is a MonteCLoRA, which draws its matrices (monteclora_config in its peft config)",
}
# Keys about training or the origin of a file, which do not change the meaning of its matrices.
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
}
_HARMLESS |= {
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
}
_HARMLESS |= {
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
}
_HARMLESS |= {
    "alpha_pattern",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
_HARMLESS |= {"use_rslora", "velora_config"}
# Initialisations that leave the base model unchanged. PiSSA, OLoRA, LoftQ, CorDA and LoRA-GA change it, so
# what they save is the change of a base model that nobody else has.
_PLAIN_BEGINNINGS = {"gaussian", "eva", "orthogonal", "mica", "true", "false"}
_NAMES = {"pissa": "PiSSA", "olora": "OLoRA", "loftq": "LoftQ", "corda": "CorDA", "lora_ga": "LoRA-GA"}


@dataclass(frozen=True)
class PeftConfig:
    """The entries of a peft config about strength."""

    where: str
    rank: int | None
    alpha: float | None
    rslora: bool
    ranks: Sequence[tuple[str, Matcher, float]]
    alphas: Sequence[tuple[str, Matcher, float]]

    def scale(self, layer: Layer) -> float:
        """
        Raises:
            ModelError: the layer's rank differs from the config's, or the config gives no alpha.
        """
        rank = next(iter(self._fitting(self.ranks, layer)), self.rank)
        alpha = next(iter(self._fitting(self.alphas, layer)), self.alpha)
        if rank is not None and rank != layer.rank:
            raise ModelError(
                f"gives {shown(layer.name)} the rank {rank:g} by its {self.where}, and matrices of rank "
                f"{layer.rank}",
                _EXPORT,
            )
        if alpha is None:
            raise ModelError(f"has no usable alpha for {shown(layer.name)} in its {self.where}", _AGAIN)
        return alpha / (math.sqrt(layer.rank) if self.rslora else layer.rank)

    def is_ambiguous(self, layer: Layer) -> bool:
        """Whether two patterns give a layer different numbers. peft sorts patterns when it saves them, so
        their order is lost.
        """
        return any(
            len(set(self._fitting(rows, layer))) > 1 for rows in (self.ranks, self.alphas) if len(rows) > 1
        )

    def _fitting(self, rows: Sequence[tuple[str, Matcher, float]], layer: Layer) -> list[float]:
        name = (
            layer.name.removeprefix("base_model.model.")
            if layer.name.startswith("base_model.model.")
            else layer.path
        )
        try:
            return [value for _, fits, value in rows if fits(name)]
        except PatternError as error:
            raise ModelError(
                f"has patterns in its {self.where} that cannot be followed: one {error}", _EXPORT
            ) from error


def peft_config(config: Mapping[str, Any], where: str) -> PeftConfig | None:
    """Read a peft config; None if it has neither rank nor alpha. `where`: its name in messages.

    Raises:
        ModelError: it describes more than a LoRA, or a changed base model; or a value is invalid.
    """
    kind = config.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind.upper().rpartition(".")[2] != "LORA":
        raise ModelError(f"is no LoRA but {shown(str(kind))} of peft, by its {where}", EXTRACT)
    for key, what in _MORE_THAN_LORA.items():
        if config.get(key):
            raise ModelError(what, EXTRACT)
    if config.get("bias", "none") not in ("none", None, False):
        raise ModelError(f"changes biases too (bias in its {where})", EXTRACT)
    beginning = config.get("init_lora_weights", True)
    word = str(beginning).lower()
    if beginning is not None and word not in _PLAIN_BEGINNINGS:
        name = next(
            (title for start, title in _NAMES.items() if word.startswith(start)), shown(str(beginning))
        )
        problem = f"was begun by {name} (init_lora_weights in its {where}), which changed the base model too"
        hint = (
            "Convert it to a plain LoRA with peft: save_pretrained(…, "
            "path_initial_model_for_weight_conversion=…)."
        )
        raise ModelError(problem, hint)
    for key, value in config.items():
        if (
            key not in _HARMLESS
            and key not in _MORE_THAN_LORA
            and (value is True or (isinstance(value, (dict, list)) and value))
        ):
            raise ModelError(
                f"has the setting {shown(str(key))} in its {where}, whose meaning is not known here", EXTRACT
            )
    if not {"r", "lora_alpha", "rank_pattern", "alpha_pattern"} & config.keys():
        return None
    rank = _number(config["r"], f"rank in its {where}") if "r" in config else None
    alpha = _number(config["lora_alpha"], f"alpha in its {where}") if "lora_alpha" in config else None
    rslora = config.get("use_rslora", False)
    if rslora not in (True, False, None):
        raise ModelError(f"has no usable use_rslora in its {where}", _AGAIN)
    patterns = {key: _patterns(config.get(key), key, where) for key in ("rank_pattern", "alpha_pattern")}
    whole = None if rank is None else int(rank)
    return PeftConfig(where, whole, alpha, bool(rslora), patterns["rank_pattern"], patterns["alpha_pattern"])


def _patterns(value: Any, key: str, where: str) -> list[tuple[str, Matcher, float]]:
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"has no usable {key} in its {where}", _AGAIN)
    try:
        matchers = peft_matchers(value or {})
    except PatternError as error:
        raise ModelError(
            f"has a pattern in the {key} of its {where} that cannot be followed: {error}", _EXPORT
        ) from error
    return [
        (name, fits, _number((value or {})[name], f"alpha or rank for {shown(name)} in its {where}"))
        for name, fits in matchers
    ]


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ModelError(f"has no usable {what}", _AGAIN)
    return float(value)


def json_object(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A JSON object from a file's metadata; empty if the entry is missing.

    Raises:
        ModelError: the entry is not a JSON object.
    """
    try:
        text = metadata.get(key, "{}")
        value = json.loads(text) if len(text) <= LONGEST_JSON else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelError(f"has damaged metadata under {shown(key)}", _AGAIN)
    return value


_PLAIN = re.compile(
    r"(?:ss_|(?:transformer|diffusion_model|denoiser|dit|model|lora|network|training|config)\.)?"
    r"(?:(?P<alpha>(?:lora_|network_|linear_|lora_network_)?alphas?)"
    r"|(?P<rank>linear|network_linear|lora_rank|lora_dim|network_dim|network_rank|rank|dim|r)"
    r"|(?P<rslora>use_rslora|rs_lora|rslora))",
    re.IGNORECASE,
)
# Keys of JSON that trainers write about their own settings, where `alpha` alone may mean anything.
_TRAINERS = re.compile(
    r"(ss_)?(config|(train(ing)?|network|lora)_?(config|args|params|settings)|network|lora|args"
    r"|hyper_?param(eter)?s)",
    re.IGNORECASE,
)
_CONFIGS = ("adapter_config", "peft_config", "lora_config")
_NOTHING = {"", "none", "null", "dynamic", "nan"}


def is_about_strength(key: str, text: str) -> bool:
    """Whether a metadata entry is about ranks or alphas, and so becomes false when these are folded into the
    matrices.
    """
    return (
        key in (*_CONFIGS, "lora_adapter_metadata")
        or _PLAIN.fullmatch(key) is not None
        or key.startswith("ss_network_")
        or bool(_trainers_words({key: text}))
    )


def _plain_config(metadata: Mapping[str, str]) -> PeftConfig | None:
    """Alpha and rank from plain metadata entries."""
    found: dict[str, dict[float, str]] = {"alpha": {}, "rank": {}}
    rslora = _says_yes(_network_args(metadata), "rs_lora", "use_rslora", "rslora")
    entries = dict(metadata)
    if not any((match := _PLAIN.fullmatch(key)) and match["alpha"] for key in metadata):
        entries |= _trainers_words(metadata)
    for key, text in entries.items():
        match = _PLAIN.fullmatch(key.rpartition(": ")[2])
        if not match or text.strip().lower() in _NOTHING:
            continue
        if match["rslora"]:
            rslora = rslora or text.strip().lower() in ("true", "1", "yes")
            continue
        what = "alpha" if match["alpha"] else "rank"
        try:
            number = _number(float(text.strip().strip('"')), "")
        except (ValueError, ModelError) as error:
            raise ModelError(f"has no usable {what} in its metadata under {shown(key)}", _AGAIN) from error
        found[what][number] = key
    for what, values in found.items():
        if len(values) > 1:
            raise ModelError(
                f"has more than one {what} in its metadata: {', '.join(map(shown, values.values()))}", _EXPORT
            )
    if not found["alpha"]:
        return None
    rank = next(iter(found["rank"]), None)
    if rank is not None and not rank.is_integer():
        raise ModelError(f"has no usable rank in its metadata under {shown(found['rank'][rank])}", _AGAIN)
    (alpha,) = found["alpha"]
    keys = " and ".join(shown(key) for key in (found["alpha"][alpha], *found["rank"].values()))
    return PeftConfig(f"metadata under {keys}", None if rank is None else int(rank), alpha, rslora, (), ())


def _trainers_words(metadata: Mapping[str, str]) -> dict[str, str]:
    """Entries about alpha and rank in a trainer's settings, which metadata holds as JSON: `config:
    lora_alpha` → `8`.
    """
    found = {}
    for key in metadata:
        if key in _CONFIGS or not _TRAINERS.fullmatch(key) or not metadata[key].lstrip().startswith("{"):
            continue
        try:
            settings = json_object(metadata, key)
        except ModelError:  # a trainer's own entry, which need not be JSON
            continue
        inner = next(
            (value for name in ("network", "lora") if isinstance(value := settings.get(name), dict)), settings
        )
        for name, value in inner.items():
            match = _PLAIN.fullmatch(name)
            if match and isinstance(value, int | float | str) and name != "alpha":
                found[f"{key}: {name}"] = str(value)
    return found if any("alpha" in name for name in found) else {}


def _network_args(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        return json_object(metadata, "ss_network_args")
    except ModelError:  # kohya's arguments are informal, and not always JSON
        return {}


def _says_yes(args: Mapping[str, Any], *names: str) -> bool:
    return any(str(args.get(name, "")).lower() == "true" for name in names)


def _own_config(metadata: Mapping[str, str]) -> list[PeftConfig]:
    """The peft configs inside a file. diffusers' pipelines prefix each key with `transformer.`; its models do
    not.
    """
    adapter = json_object(metadata, "lora_adapter_metadata")
    prefixed = {
        key.removeprefix("transformer."): value
        for key, value in adapter.items()
        if key.startswith("transformer.")
    }
    configs = [(prefixed or {k: v for k, v in adapter.items() if "." not in k}, "peft config")]
    for name in _CONFIGS:
        if metadata.get(name, "").lstrip().startswith("{"):
            configs.append((json_object(metadata, name), f"metadata under {shown(name)}"))
    return [found for config, where in configs if config and (found := peft_config(config, where))]


UNKNOWN = (
    "The file does not say how strong it is: peft keeps alpha in adapter_config.json, which is not "
    "beside it. It is taken for alpha = rank."
)
LOST = (
    "Several patterns of its peft config give one layer different numbers. The first counts, as in peft; but "
    "peft sorts them when it "
    "saves, so that the training may have meant another."
)
SPLIT = (
    "It was trained with split_qkv: kohya's own file gives the fused layers a part of the strength they were "
    "trained at, "
    "and they are read as kohya reads them."
)


def strengths(
    layers: Sequence[Layer], metadata: Mapping[str, str], beside: PeftConfig | None
) -> tuple[dict[str, float], list[str]]:
    """The factor of each layer's change, by the layer's name; and warnings for the user.

    beside: the adapter_config.json beside the file, if it belongs to the file.

    Raises:
        ModelError: strengths disagree or are invalid. The message lacks the file's name.
    """
    peft = [*_own_config(metadata), *([beside] if beside else [])]
    plain = _plain_config(metadata)
    own = {layer.name: layer.alpha / layer.rank for layer in layers if layer.alpha is not None}
    if plain and own:
        # A trainer's single number is the default for layers, and a layer may have its own. So it is wrong
        # only if no layer agrees with it.
        _compare_with_plain([layer for layer in layers if layer.name in own], own, plain)
    scales: dict[str, float] = {}
    for layer in layers:
        told = [("its alpha", own[layer.name])] if layer.name in own else []
        told += [(f"its {config.where}", config.scale(layer)) for config in peft]
        told += [(f"its {plain.where}", plain.scale(layer))] if plain and layer.name not in own else []
        for where, scale in told[1:]:
            if not math.isclose(scale, told[0][1], rel_tol=1e-3):
                both = f"{told[0][1]:g} by {told[0][0]}, {scale:g} by {where}"
                raise ModelError(f"gives {shown(layer.name)} two strengths: {both}", _EXPORT)
        scales[layer.name] = told[0][1] if told else 1.0
    warnings = []
    if not (own or peft or plain) and any(layer.name.startswith("base_model.model.") for layer in layers):
        warnings.append(UNKNOWN)
    if any(config.is_ambiguous(layer) for config in peft for layer in layers):
        warnings.append(LOST)
    if _says_yes(_network_args(metadata), "split_qkv"):
        warnings.append(SPLIT)
    return scales, warnings


def _compare_with_plain(layers: Sequence[Layer], own: Mapping[str, float], plain: PeftConfig) -> None:
    assert plain.alpha is not None
    told = {
        layer.name: plain.alpha / (math.sqrt(layer.rank) if plain.rslora else layer.rank) for layer in layers
    }
    if not any(math.isclose(own[name], scale, rel_tol=1e-3) for name, scale in told.items()):
        first = layers[0].name
        both = f"{own[first]:g} by its alpha, {told[first]:g} by its {plain.where}"
        raise ModelError(f"gives {shown(first)} two strengths: {both}", _EXPORT)
