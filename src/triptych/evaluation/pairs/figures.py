"""The figures of `evaluate --pairs`: means with intervals, FID and KID, and what one folder has over another.

A figure is a row of the report: name, value, 95 % interval, n, and the network, if one was used, with its
sha256.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from triptych.evaluation.metrics.distributions import Interval, bootstrap, frechet, jackknife, kid
from triptych.evaluation.metrics.features import FeatureNet
from triptych.evaluation.pairs.items import Instruments
from triptych.evaluation.pairs.protocol import Protocol, Setting

Values = Mapping[str, Mapping[str, float | None]]
"""Values by measure, by id of the pair."""
TITLES = {
    "ssim": "SSIM",
    "garment": "garment similarity",
    "colour": "colour ΔE00",
    "sharpness": "sharpness",
    "text": "print agreement",
    "outside": "pixels changed outside the mask",
}
BOOTSTRAP, JACKKNIFE = "bootstrap over items", "jackknife over {groups} groups"


def item_figures(values: Values, why: Mapping[str, str], tools: Instruments) -> list[dict[str, Any]]:
    """The mean of every measure over the items that have it; why: reasons of those that no item has."""
    figures = []
    for name in tools.protocol.passes:
        own = [row[name] for row in values.values() if row.get(name) is not None]
        network = {"garment": tools.garment, "lpips": tools.lpips, "dists": tools.dists}.get(name)
        title = TITLES.get(name) or (network.name if network else name.upper())
        named = {"measure": name, "name": title}
        if network:
            named |= {"network": network.name, "sha256": network.sha256}
        if name == "text" and tools.reader:
            named["network"] = tools.reader.name
        if not own:
            if name in why:
                figures.append(named | {"not_measured": why[name]})
            continue
        found = bootstrap(np.array(own), seed=tools.protocol.seed)
        figures.append(named | _numbers(found, len(own), BOOTSTRAP))
    return figures


def distances(
    made_ND: np.ndarray, true_ND: np.ndarray, network: FeatureNet, protocol: Protocol, *, allow_small: bool
) -> list[dict[str, Any]]:
    """FID and KID (× 1000) of made and true pictures, or the sentence why one is refused."""
    n = len(made_ND)
    kernel = functools.partial(
        kid, subsets=protocol.kid_subsets, size=protocol.kid_subset, seed=protocol.seed
    )
    figures = []
    for name, least, statistic, times in (
        ("FID", protocol.fid_least, frechet, 1.0),
        ("KID", protocol.kid_least, kernel, 1000.0),
    ):
        unit = " × 1000" if times != 1 else ""
        named = {"measure": name.lower(), "name": f"{name} ({network.name}){unit}"}
        named |= {"network": network.name, "sha256": network.sha256}
        if n < least and (n < 4 or not allow_small):
            figures.append(named | {"not_measured": _refusal(name, n, least), "n": n})
            continue
        found = jackknife(statistic, made_ND, true_ND, protocol.groups, protocol.seed)
        scaled = Interval(*(times * value for value in found))
        groups = min(protocol.groups, n)
        figures.append(named | _numbers(scaled, n, JACKKNIFE.format(groups=groups)))
    return figures


def _refusal(name: str, n: int, least: int) -> str:
    if n < 4:
        return f"{name} of {n} pictures is none."
    return f"{name} of {n} pictures says too little: {least} are needed, or --allow-small."


def _numbers(found: Interval, n: int, interval: str) -> dict[str, Any]:
    low, high = (None if math.isnan(value) else round(value, 5) for value in found[1:])
    return {"value": round(found.value, 5), "low": low, "high": high, "n": n, "interval": interval}


def differences(
    first: tuple[str, Values], second: tuple[str, Values], protocol: Protocol
) -> list[dict[str, Any]]:
    """What the second folder has more than the first one, item by item, with its interval."""
    rows = []
    for name in protocol.passes:
        pairs = [
            (row[name], second[1][key][name])
            for key, row in first[1].items()
            if row.get(name) is not None and second[1].get(key, {}).get(name) is not None
        ]
        if pairs:
            changes = np.array([float(b or 0) - float(a or 0) for a, b in pairs])
            found = bootstrap(changes, seed=protocol.seed)
            named = {"measure": name, "of": second[0], "less": first[0]}
            rows.append(named | _numbers(found, len(pairs), BOOTSTRAP))
    return rows


def published(
    protocol: Protocol, setting: Setting, network: FeatureNet, n: int
) -> tuple[list[dict[str, Any]], str]:
    """Published FID of the same set and network to stand beside; or the sentence why none can."""
    if not protocol.published:
        return [], ""
    if not network.published:
        return [], (
            f"Published figures do not stand here: they are FID of Inception-v3 of 2015-12-05, not of "
            f"{network.name}."
        )
    if n != protocol.n:
        return [], f"Published figures do not stand here: they are of {protocol.n} pictures, not {n}."
    rows = [
        {"name": one.name, "fid": getattr(one, setting), "source": one.source} for one in protocol.published
    ]
    return rows, ""


def worst(values: Values, protocol: Protocol, count: int) -> list[str]:
    """The ids of the worst items: those that fail in most measures, then those that are furthest beyond."""

    def badness(key: str) -> tuple[int, float]:
        row = {
            name: value
            for name, value in values[key].items()
            if value is not None and name in protocol.passes
        }
        beyond = [min(protocol.excess(name, value), 10.0) for name, value in row.items()]
        return len(protocol.failed(dict(values[key]))), sum(one for one in beyond if one > 0)

    return sorted(values, key=lambda key: (*(-part for part in badness(key)), key))[:count]


def counts(values: Values, protocol: Protocol) -> dict[str, Any]:
    """How many items pass in everything that was measured, and by measure how many fail."""
    failed = {key: protocol.failed(dict(row)) for key, row in values.items()}
    by_measure = {name: sum(name in names for names in failed.values()) for name in protocol.passes}
    return {
        "items": len(failed),
        "passed": sum(not names for names in failed.values()),
        "failed": {name: count for name, count in by_measure.items() if count},
    }
