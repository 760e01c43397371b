"""What a million photos, 100,000 triptychs and a million try-ons a day take: seconds, bytes, money.

    python benchmarks/scale.py                        # the tables
    python benchmarks/scale.py --write docs/scale.md  # into the page, between its marks
    python benchmarks/scale.py --figures mine.yaml

Arithmetic from the figures in scale.yaml, each with its source; and a simulation of the busiest hour of
try-ons: orders arrive at random (Poisson) for garments of which few are asked for often (Zipf), wait in one
queue, and a card that becomes free takes the oldest order and up to seven others of the same garment, as
`serve` does.
"""

from __future__ import annotations

import argparse
import heapq
import random
from bisect import bisect
from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
BEGIN, END = "<!-- benchmarks/scale.py begins -->", "<!-- benchmarks/scale.py ends -->"
TOGETHER = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figures", type=Path, default=HERE / "scale.yaml")
    parser.add_argument("--write", type=Path, help="a page with the marks")
    args = parser.parse_args()
    made = page(yaml.safe_load(args.figures.read_text()))
    if args.write is None:
        print(made)
        return
    text = args.write.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    args.write.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")


def page(figures: dict[str, Any]) -> str:
    """The tables in markdown."""
    return "\n\n".join([stages_table(figures), queue_table(figures), sources(figures)])


def stages_table(figures: dict[str, Any]) -> str:
    """Core hours, card hours, bytes and dollars of each stage."""
    seconds, size, price, demand = (figures[name] for name in ("seconds", "bytes", "prices", "demand"))
    photos, triptychs, tryons = (demand[name] for name in ("photos", "triptychs", "tryons_a_day"))
    rows = [
        ("clean", photos, seconds["clean"], "photo", photos * size["photo"]["mib"]),
        ("concat", triptychs, seconds["concat"], "triptych", triptychs * size["triptych"]["mib"]),
        ("caption", triptychs, seconds["caption"], "triptych", triptychs * 0.002),
        ("embed", triptychs, seconds["embed"], "triptych", triptychs * size["embedding"]["mib"]),
        ("train, one LoRA", figures["train_steps"], seconds["train_step"], "step", 200.0),
        ("try-ons of a day, on cards", tryons, seconds["tryon_alone"], "picture", 0.0),
        ("the same, on cores", tryons, seconds["put_back"], "picture", tryons * size["picture"]["mib"]),
    ]
    head = "| stage | number | seconds each | core hours | card hours | GiB read or written | dollars |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for name, number, each, unit, mib in rows:
        hours = {kind: number * each.get(kind, 0.0) / 3600 for kind in ("core", "card")}
        dollars = hours["core"] * price["core_hour"] + hours["card"] * price["card_hour"]
        cells = [name, f"{number:,} {unit}s", f"{each.get('core', each.get('card'))}"]
        cells += [words(hours["core"]), words(hours["card"]), words(mib / 1024), words(dollars)]
        lines.append("| " + " | ".join(cells) + " |")
    each = size["triptych"]["mib"] + size["embedding"]["mib"]
    kept = (photos * size["photo"]["mib"] + triptychs * each) / 1024
    monthly = words(kept * price["gib_month"])
    lines += ["", f"Photos, triptychs and embeddings kept: {words(kept)} GiB, {monthly} dollars a month."]
    return "\n".join(lines)


def words(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value else ""


@dataclass(frozen=True)
class Hour:
    """An hour of try-ons. waits: seconds from order to picture, sorted. busy: share of the cards' time.
    batch: mean number of pictures made together.
    """

    waits: list[float]
    busy: float
    batch: float

    def share(self, of: float) -> float:
        """The wait that this share of orders does not exceed."""
        return self.waits[min(len(self.waits) - 1, int(of * len(self.waits)))]


def simulated(
    cards: int, rate: float, garments: int, alone: float, together: float, most: int, seed: int = 0
) -> Hour:
    """One hour of orders, `rate` a second, for `garments` whose demand falls as 1 / rank, on `cards`.

    A batch of n pictures takes as long as n times the seconds of one alone, falling in equal parts to n times
    `together` at the largest batch. most: pictures in a batch.
    """
    rng, now, orders = random.Random(seed), 0.0, list[tuple[float, int]]()
    steps = list(accumulate(1 / rank for rank in range(1, garments + 1)))
    while (now := now + rng.expovariate(rate)) < 3600:
        orders.append((now, bisect(steps, rng.random() * steps[-1])))
    waiting: deque[int] = deque()
    of_garment: dict[int, deque[int]] = defaultdict(deque)
    taken, free, waits = [False] * len(orders), [0.0] * cards, list[float]()
    at = batches = 0
    busy = 0.0
    while at < len(orders) or waiting:
        card = heapq.heappop(free)
        while at < len(orders) and (orders[at][0] <= card or not waiting):
            card = max(card, orders[at][0]) if not waiting else card
            waiting.append(at)
            of_garment[orders[at][1]].append(at)
            at += 1
        oldest = waiting.popleft()
        if taken[oldest]:
            heapq.heappush(free, card)
            continue
        alike = of_garment[orders[oldest][1]]
        batch = [alike.popleft() for _ in range(min(most, len(alike)))]
        for number in batch:
            taken[number] = True
        each = alone + (together - alone) * (len(batch) - 1) / max(1, TOGETHER - 1)
        done = card + each * len(batch)
        waits += [done - orders[number][0] for number in batch]
        busy, batches = busy + each * len(batch), batches + 1
        heapq.heappush(free, done)
    return Hour(sorted(waits), busy / (cards * 3600), len(waits) / batches)


def queue_table(figures: dict[str, Any]) -> str:
    """The busiest hour with several numbers of cards, one by one and in batches of one garment."""
    demand, seconds = figures["demand"], figures["seconds"]
    rate = demand["tryons_a_day"] / 86400 * demand["busiest_hour"]
    alone, together = seconds["tryon_alone"]["card"], seconds["tryon_together"]["card"]
    least = int(rate * alone) + 1
    lines = [
        f"The busiest hour, {rate:.0f} try-ons a second:",
        "",
        "| cards | in a batch, at most | made together | cards busy | median wait, s | 95 % | 99 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for cards in (least - 2, least, least + 2):
        for most in (1, TOGETHER):
            hour = simulated(cards, rate, demand["garments_shown"], alone, together, most)
            waits = [f"{hour.share(of):.1f}" for of in (0.5, 0.95, 0.99)]
            lines.append(
                f"| {cards} | {most} | {hour.batch:.1f} | {min(1.0, hour.busy):.0%} | "
                + " | ".join(waits)
                + " |"
            )
    return "\n".join(lines)


def sources(figures: dict[str, Any]) -> str:
    """Where each figure comes from."""
    lines = ["| figure | value | where from |", "|---|---|---|"]
    for kind in ("seconds", "bytes"):
        for name, about in figures[kind].items():
            unit = next(key for key in about if key != "how")
            value = f"{about[unit]} {'s of a ' + unit if kind == 'seconds' else 'MiB'}"
            lines.append(f"| {name.replace('_', ' ')} | {value} | {about['how']} |")
    prices = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures["prices"].items())
    lines.append(f"| prices | {prices} | assumed, 2026-11 |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
