"""A plan as people read it: a table, and the verdict in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STAGES = {"embed": "triptych", "train": "step", "generate": "picture"}
"""Planned stages in order, and what they do one of at a time."""


def in_gib(size: float) -> float:
    return round(size / 2**30, 2)


def verdict(plan: Mapping[str, Any]) -> str:
    """Whether every stage fits, or what does not and the smallest change that would make it fit. One sentence."""
    where = f"{plan['card']} ({plan['memory_gib']:g} GiB)"
    failing = [name for name in STAGES if not plan[name]["fits"]]
    if not failing:
        return f"It fits on {where}."
    parts = []
    for name in failing:
        stage = plan[name]
        need = f"{name} needs {in_gib(stage['total_bytes'])} GiB"
        if stage["change_words"] is None:
            parts.append(f"{need}, and nothing planned here makes it fit")
        else:
            with_change = f"{in_gib(stage['bytes_with_change'])} GiB, {_time(stage['seconds_each_with_change'])} a {STAGES[name]}"
            parts.append(f"{need} and would fit with {stage['change_words']} ({with_change})")
    return f"It does not fit on {where}: {'; '.join(parts)}."


def text_of(plan: Mapping[str, Any]) -> str:
    """The whole plan as lines of text."""
    lines = [
        f"{plan['model']} on {plan['card']}: {plan['parameters']['transformer']:,} parameters in the transformer, "
        f"{plan['lora_parameters']:,} in the LoRA",
        f"canvas {plan['canvas'][0]}×{plan['canvas'][1]} px: {plan['tokens']['image']} tokens, and {plan['tokens']['text']} of text",
    ]
    for name, unit in STAGES.items():
        stage = plan[name]
        lines += ["", f"{name}: {in_gib(stage['total_bytes']):.2f} GiB at most ({stage['moment']})"]
        lines += [f"  {in_gib(size):8.2f} GiB  {what}" for what, size in stage["bytes"].items() if size]
        if stage["ram_bytes"]:
            lines.append(f"  {in_gib(stage['ram_bytes']):8.2f} GiB  of RAM beside")
        total = f", {_time(stage['seconds'])} for {stage['number']}" if stage["number"] > 1 else ""
        lines.append(f"  {_time(stage['seconds_each'])} a {unit} ({stage['flops'] / 1e12:.3g} TFLOP){total}")
    lines += ["", "disk"]
    lines += [f"  {in_gib(size):8.2f} GiB  {what}" for what, size in plan["disk_bytes"].items()]
    return "\n".join([*lines, "", plan["verdict"]])


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
