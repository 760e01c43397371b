"""The tables of `benchmarks/pocket.py`, in markdown."""

from __future__ import annotations

from typing import Any

from triptych.evaluation.outfits import GARMENTS


def cell(value: dict[str, Any]) -> str:
    return f"{value['share']:.2f} ({value['low']:.2f}-{value['high']:.2f})"


def cells(made: dict[str, Any], name: str) -> str:
    """The cell of an attribute: of the worn panel, or of try-off's two panels."""
    if name in made:
        return cell(made[name])
    return ", ".join(
        f"{side} {cell(made[f'{side} {name}'])}" for side in ("front", "back") if f"{side} {name}" in made
    )


def garments_table(results: dict[str, Any]) -> str:
    """All measured rows as a markdown table."""
    head = [
        "group",
        "LoRA",
        "sampling",
        "n",
        "type",
        "colour",
        "pattern",
        "both",
        "print",
        "named",
        "ceiling colour / pattern",
        "ΔE",
        "seam",
        "sharpness",
        "difference",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in results.values():
        made, ceiling = row["result"], row["ceiling"]
        lora = ", ".join(f"{k} {v}" for k, v in row["lora"].items()) or "base"
        how = ", ".join([row["mode"], *(f"{k} {v}" for k, v in row["sampling"].items())])
        shares = [cells(made, name) for name in ("type", "colour", "pattern", "both", "print", "named")]
        top = f"{ceiling['colour']['share']:.2f} / {ceiling['pattern']['share']:.2f}"
        lines.append(
            "| "
            + " | ".join(
                [
                    row["group"],
                    lora,
                    how,
                    str(row["n"]),
                    *shares,
                    top,
                    f"{made['colour_distance']:.1f}",
                    *(f"{made.get(name, '')}" for name in ("seam", "sharpness", "difference")),
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def outfits_table(results: dict[str, Any]) -> str:
    """The measured rows of outfits as a markdown table, and the judge's ceilings."""
    names = [
        "outfit",
        *(f"{role} {what}" for role in GARMENTS for what in ("colour", "pattern", "both")),
        "bag",
    ]
    head = ["LoRA", "runs", "n", *names, "seam", "outside", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    ceilings: list[str] = []
    for row in results.values():
        made, n = row["result"], str(row["n"])
        lora = ", ".join(f"{k} {v}" for k, v in row["lora"].items()) or "untrained"
        ends = [f"{made['seam']:.1f}", str(made["outside"]), f"{made['picture_seconds']:.2f}"]
        lines.append(_line([lora, row["mode"], n, *_cells(made, names), *ends]))
        for name, found in row["ceiling"].items():
            key = f"the judge on true pictures, {name}"
            ceilings.append(_line([key, "", n, *_cells(found, names), "", "", ""]))
    return "\n".join([*lines, *dict.fromkeys(ceilings)])


def _line(words: list[str]) -> str:
    return "| " + " | ".join(words) + " |"


def _cells(found: dict[str, Any], names: list[str]) -> list[str]:
    return [cell(found[name]) if name in found else "" for name in names]
