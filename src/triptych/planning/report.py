"""A plan as text: a table, and the verdict in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.backbones.families import FLUX2
from triptych.config.files import read_yaml
from triptych.pictures.panels import PanelLayout
from triptych.planning.advice import Change, in_words
from triptych.planning.memory import KEPT_PANELS
from triptych.wording.amounts import duration, number

STAGES = {"embed": "triptych", "train": "step", "generate": "picture", "tryon": "picture"}
"""Planned stages in order, with the unit of work of each."""

TIGHT = 0.95
"""Above this share of the memory a plan is called tight: the estimate may be off by a few per cent, and a
desktop needs memory too.
"""
PRESETS = (("80gb", 79), ("24gb", 23.5), ("16gb", 15.5), ("12gb", 11.5))
"""Presets in the package (`triptych/presets`), and the memory in GiB of the cards they are for, largest
first.
"""
KLEIN_PRESETS = (("klein-24gb", 23.5), ("klein-16gb", 15.5), ("klein-12gb", 11.5), ("klein-8gb", 7.5))
"""The same for FLUX.2-klein-4B."""
KLEIN_4B = 5e9
"""More parameters than the transformer of FLUX.2-klein-4B has, and fewer than that of 9B."""


def in_gib(size: float) -> float:
    return round(size / 2**30, 2)


def verdict(plan: Mapping[str, Any]) -> str:
    """One sentence: every stage fits, or which does not and the smallest change that makes it fit."""
    of = plan["memory_total_gib"]
    room = f"{plan['memory_gib']:g}{f' of {of:g}' if of > plan['memory_gib'] else ''} GiB"
    where = f"{plan['card']} ({room})"
    failing = [name for name in STAGES if not plan[name]["fits"]]
    if not failing:
        name, most = max(((name, plan[name]["total_bytes"]) for name in STAGES), key=lambda pair: pair[1])
        if most > TIGHT * plan["memory_gib"] * 2**30:
            return (
                f"It fits on {where}, but it is tight: {name} takes {in_gib(most)} GiB, and the system "
                f"and other programs need some too.{_relief(name, plan)}"
            )
        return f"It fits on {where}."
    parts = []
    for name in failing:
        stage = plan[name]
        need = f"{name} needs {in_gib(stage['total_bytes'])} GiB"
        if stage["change_words"] is None:
            parts.append(f"{need}, and nothing planned here makes it fit")
        else:
            tight = ", tight" if stage["bytes_with_change"] > TIGHT * plan["memory_gib"] * 2**30 else ""
            with_change = (
                f"{in_gib(stage['bytes_with_change'])} GiB{tight}, "
                f"{duration(stage['seconds_each_with_change'])} a {STAGES[name]}"
            )
            parts.append(f"{need} and would fit with {stage['change_words']} ({with_change})")
    return f"It does not fit on {where}: {'; '.join(parts)}.{_tight_beside(plan)}"


def _tight_beside(plan: Mapping[str, Any]) -> str:
    """A sentence on the largest of the stages that fit, if it is tight."""
    fitting = {name: plan[name]["total_bytes"] for name in STAGES if plan[name]["fits"]}
    name = max(fitting, key=lambda name: fitting[name], default=None)
    if name is None or fitting[name] <= TIGHT * plan["memory_gib"] * 2**30:
        return ""
    return f" {name} fits, but it is tight with {in_gib(fitting[name])} GiB.{_relief(name, plan)}"


def _relief(name: str, plan: Mapping[str, Any]) -> str:
    """What frees some memory of a stage that fits."""
    kept = plan[name]["bytes"].get(KEPT_PANELS, 0)
    return f" --context-cache-gib 0 saves {in_gib(kept)} GiB of it." if kept else ""


def run_line(plan: Mapping[str, Any], change: Change, layout: PanelLayout, rank: int) -> str:
    """The options after `triptych run` that make its stages fit, and the preset for such a card; empty if
    they fit already.

    change: the change that makes all stages fit, see `advice.for_run`. layout, rank: those of the plan.
    """
    failing = [plan[name] for name in ("embed", "train") if not plan[name]["fits"]]
    if not failing and not change:
        return ""
    ways = [] if not change or any(stage["change"] is None for stage in failing) else [in_words(change)]
    preset = next((name for name, gib in _presets(plan) if plan["memory_total_gib"] >= gib), None)
    if preset and plan["is_card"]:
        ways.append(f"--config {preset}{_preset_words(preset, layout, rank)}")
    return f"for `run`: {', or '.join(ways)}" if ways else ""


def _presets(plan: Mapping[str, Any]) -> Sequence[tuple[str, float]]:
    """The presets for the plan's model."""
    if plan["family"] != FLUX2.name:
        return PRESETS
    return KLEIN_PRESETS if plan["parameters"]["transformer"] < KLEIN_4B else ()


def _preset_words(preset: str, layout: PanelLayout, rank: int) -> str:
    """The preset's differences from the plan in panel size and rank, in parentheses."""
    data = read_yaml(Path(preset))
    concat, train = data.get("concat", {}), data.get("train", {})
    words = []
    if (
        pixels := concat.get("panel_width", layout.width) * concat.get("panel_height", layout.height)
    ) != layout.width * layout.height:
        words.append("smaller panels" if pixels < layout.width * layout.height else "larger panels")
    if train.get("rank", rank) != rank:
        words.append(f"rank {train['rank']}")
    return f" ({', '.join(words)})" if words else ""


def _canvas(plan: Mapping[str, Any]) -> str:
    """The canvas that is sampled, its tokens and those of references, in words."""
    (width, height), tokens = plan["sampled_canvas"], plan["tokens"]
    beside = f", {tokens['references']} of reference pictures" if tokens["references"] else ""
    return f"canvas {width}×{height} px: {tokens['image']} tokens{beside}"


def text_of(plan: Mapping[str, Any]) -> str:
    """The whole plan as lines of text."""
    lines = [
        f"{plan['model']} on {plan['card']}: {plan['parameters']['transformer']:,} parameters in the "
        "transformer, "
        f"{plan['lora_parameters']:,} in the LoRA",
        f"{_canvas(plan)}, and {plan['tokens']['text']} of text",
    ]
    for name, unit in STAGES.items():
        stage = plan[name]
        lines += ["", f"{name}: {in_gib(stage['total_bytes']):.2f} GiB at most ({stage['moment']})"]
        lines += [f"  {in_gib(size):8.2f} GiB  {what}" for what, size in stage["bytes"].items() if size]
        if stage["ram_bytes"]:
            lines.append(f"  {in_gib(stage['ram_bytes']):8.2f} GiB  plus system RAM")
        total = f", {duration(stage['seconds'])} for {stage['number']}" if stage["number"] > 1 else ""
        lines.append(
            f"  {duration(stage['seconds_each'])} a {unit} "
            f"({number(float(format(stage['flops'] / 1e12, '.3g')))} TFLOP){total}"
        )
    lines += ["", "disk"]
    lines += [f"  {in_gib(size):8.2f} GiB  {what}" for what, size in plan["disk_bytes"].items()]
    lines += [line for warning in plan["warnings"] for line in ("", f"Warning: {warning}")]
    return "\n".join([*lines, "", plan["verdict"], *([plan["for_run"]] if plan["for_run"] else [])])
