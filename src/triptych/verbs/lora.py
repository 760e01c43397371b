"""lora convert, lora inspect: convert LoRA files between the names of other programs and ours, and describe
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from triptych.errors import ModelError
from triptych.events import Event, Run
from triptych.lora.file import LoraFile, open_lora
from triptych.lora.flux2_names import FUSED_SINGLE
from triptych.lora.formats import change_norm
from triptych.lora.models import hidden_size
from triptych.lora.names import NAMES, pattern_of
from triptych.lora.targets import not_read
from triptych.pictures.panels import PanelLayout
from triptych.store.files import sha256_file
from triptych.verbs.lora_config import LoraConvertConfig, LoraInspectConfig

OURS_ALONE = (
    "It was trained with clean context, which only triptych samples: in other programs it is of little use. "
    "For those train with --context noisy."
)
REFERENCES = (
    "It was trained with references that are read once: besides triptych, diffusers' Flux2KleinKVPipeline "
    "samples that way; other programs come close to it at best."
)
REFERENCES_READ_WITHOUT = (
    "It was trained with references that are read once, without the LoRA: other programs apply the LoRA "
    "there too, and come close at best. For diffusers' Flux2KleinKVPipeline train with --context-lora."
)
EITHER = (
    "It does not say whether it is for FLUX.1 or FLUX.2, and is written for FLUX.1. ComfyUI reads it for "
    "both; for diffusers write --to diffusers."
)


def lora_convert(config: LoraConvertConfig) -> Run:
    """Write `lora` to `out` with other names; every layer's output stays the same.

    Raises:
        InputError: no file given, or `out` is not possible. ModelError: see `open_lora`; or names that its
            model does not have.
    """
    config.check_early()
    assert config.lora is not None and config.out is not None
    out, file = config.out, open_lora(config.lora, config.transformer_only)
    file.refuse_other_models()
    if config.to != "diffusers" and file.family not in NAMES:
        raise ModelError(
            f"{file.path} is no LoRA for FLUX.1 or FLUX.2, and only theirs are written in other names.",
            "Leave out --to.",
        )
    summary: dict[str, Any] = {
        "lora": str(out),
        "from": _formats(file),
        "to": config.to,
        "layers": len(file.state) // 2,
    }
    summary["warnings"] = [
        *file.warnings,
        *_of_context(file.about),
        *([EITHER] if file.model.either and config.to == "comfyui" else []),
        *not_read(file.diffusers_layers, config.to, file.family),
    ]

    def work() -> Iterator[Event]:
        from triptych.lora.adapter import (
            write_lora,  # not above: it imports peft, which `inspect` has no need of
        )

        about = {**file.about, "family": file.family, "converted_from_sha256": sha256_file(file.path)}
        write_lora(out, file.state, about, config.to, file.metadata)
        summary["text_encoder_tensors_left_out"] = file.left_out
        yield Event(out.name, result=out)

    return Run("lora_convert", 1, work(), summary)


def _of_context(about: Mapping[str, Any]) -> list[str]:
    """What other programs make of the way of sampling that the LoRA was trained for."""
    if about.get("context") != "clean":
        return []
    if about.get("context_placement") != "reference":
        return [OURS_ALONE]
    return [REFERENCES if about.get("context_lora") else REFERENCES_READ_WITHOUT]


def lora_inspect(config: LoraInspectConfig) -> Run:
    """Describe a LoRA file in the run's summary.

    Raises:
        InputError: no file given. ModelError: see `open_lora`.
    """
    config.check_early()
    assert config.lora is not None
    file = open_lora(config.lora)
    summary = describe(file)
    run = Run("lora_inspect", 1, iter([Event(file.path.name, result=summary)]), summary)
    run.text = "\n".join(_lines(file, summary))
    return run


def _lines(file: LoraFile, told: Mapping[str, Any]) -> list[str]:
    """`describe` as lines for people. `--json` shows all of it, the metadata too."""
    wide = f", {told['hidden_size']} wide" if told["hidden_size"] else ""
    change = told["change"]
    lines = [
        f"file: {_printable(told['file'])} ({told['bytes'] / 1e6:.1f} MB)",
        f"format: {told['format']}",
        f"for: {told['architecture']}{wide}; base model: {told['base_model'][:80]}",
        f"layers: {sum(told['modules'].values())}",
        *(f"  {kind}: {count}" for kind, count in told["modules"].items()),
        *(f"{name}: {_each(told[name])}" for name in ("rank", "alpha", "strength", "dtype")),
        f"change: {change['median']:.4g} in a layer (median), at most {change['largest']:.4g} at "
        f"{change['at']}",
    ]
    about = file.about
    if "layout" in about:
        layout = PanelLayout.from_dict(about["layout"])
        lines.append(
            f"panels: {', '.join(layout.roles)}, each {layout.width}×{layout.height} px, {layout.columns} in "
            "a row"
        )
        given = f"from {', '.join(layout.given)}" if layout.given else "all of them"
        lines.append(f"makes: {', '.join(layout.made)}, {given}")
        if "markers" in about:
            lines.append(f"markers: {', '.join(map(_printable, about['markers']))}")
        placed = f", {about['context_placement']} placement" if about.get("context_placement") else ""
        lines.append(f"context: {about.get('context', 'noisy')}{placed}")
    lines.append(f"metadata: {len(file.metadata)} entries; --json shows them")
    return [*lines, *(f"warning: {warning}" for warning in told["warnings"])]


def _each(counts: Mapping[str, int]) -> str:
    """`4`, or `4 (12 layers), 8 (2 layers)`, the most frequent first."""
    if len(counts) == 1:
        return next(iter(counts))
    first = sorted(counts.items(), key=lambda item: -item[1])
    more = f", and {len(first) - 5} others" if len(first) > 5 else ""
    return ", ".join(f"{value} ({count} layers)" for value, count in first[:5]) + more


def describe(file: LoraFile) -> dict[str, Any]:
    """Format, base, layers by kind, ranks, strengths, sizes of change and metadata of a LoRA file."""
    names = [key.removesuffix(".lora_A.weight") for key in file.state if key.endswith(".lora_A.weight")]
    norms = {
        name: change_norm(file.state[f"{name}.lora_A.weight"], file.state[f"{name}.lora_B.weight"])
        for name in names
    }
    largest = max(norms, key=lambda name: norms[name])
    base = (
        file.about.get("base_model")
        or file.metadata.get("modelspec.architecture")
        or file.metadata.get("ss_base_model_version")
    )
    return {
        "file": str(file.path),
        "format": _formats(file),
        "architecture": file.model.title,
        "hidden_size": hidden_size(file.layers),
        "base_model": _printable(str(base)) if base else "not said",
        "modules": dict(sorted(Counter(_kind(name) for name in names).items())),
        "rank": _counted(layer.rank for layer in file.layers),
        "alpha": _counted("none" if layer.alpha is None else f"{layer.alpha:g}" for layer in file.layers),
        "strength": _counted(f"{scale:g}" for scale in file.scales.values()),
        "change": {
            "median": round(float(torch.tensor(list(norms.values())).median()), 6),
            "largest": round(norms[largest], 6),
            "at": largest,
        },
        "dtype": _counted(str(layer.up.dtype).removeprefix("torch.") for layer in file.layers),
        "bytes": file.path.stat().st_size,
        "warnings": list(file.warnings),
        "metadata": {_printable(key): _printable(value) for key, value in file.metadata.items()},
    }


def _printable(text: str) -> str:
    """Text from a file, without characters that control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _formats(file: LoraFile) -> str:
    return ", ".join(sorted({layer.format for layer in file.layers}))


def _counted(values: Any) -> dict[str, int]:
    return {
        str(value): count for value, count in sorted(Counter(values).items(), key=lambda item: str(item[0]))
    }


def _kind(name: str) -> str:
    pattern = pattern_of(name)[0]
    if ".#." not in pattern:
        return "outside the blocks"
    where, part = pattern.split(".#.")
    if pattern in FUSED_SINGLE:
        return f"{where} attention and feed-forward"
    what = "attention" if part.startswith("attn.") else "modulation" if "norm" in part else "feed-forward"
    return f"{where} {what}"
