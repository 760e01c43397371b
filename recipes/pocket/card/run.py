"""All stages in order, within the budget."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel

from recipes.pocket.card.bank import CardBank, Renderers, write_facts
from recipes.pocket.card.evaluate import evaluation_of, measure
from recipes.pocket.card.size import CARD, SCALE, TINY, Size
from recipes.pocket.card.stages import train_autoencoder, train_text, train_transformer
from recipes.pocket.card.timed import Clock
from recipes.pocket.klein.codec import KleinCodec
from recipes.pocket.klein.package import CARD as README
from recipes.pocket.klein.package import SETTINGS, write_pipeline
from recipes.pocket.klein.text import TextEncoder
from recipes.pocket.state import Log

BUILD = Path(__file__).parents[3] / "build"
PROVISIONAL_SECONDS = 60
"""Seconds between two packages of a transformer that is still trained."""


def run(out: Path, work: Path | None, where: str, budget: float, tiny: bool, begun: float) -> None:
    """Train, package and measure; goes on where an earlier run of the work folder stopped."""
    device = torch.device(where)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no card here. --device cpu --tiny runs every stage on the CPU.")
    size = TINY if tiny else CARD
    work = work or BUILD / ("pocket-card-tiny" if tiny else "pocket-card")
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((work / "inductor").resolve()))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    clock, log = Clock(work, budget, begun), Log(work, "card")
    cores = 0 if tiny else max(1, len(os.sched_getaffinity(0)) - 1)
    with Renderers(work, size.shards, cores) as renderers:
        train_text(work, size, clock, device)
        log.write(stage="text", spent=clock.spent)
        renderers.wait(size.pool)
        train_autoencoder(work, size, clock, device)
        note = work / "shards.json"
        if not note.exists():  # what is rendered by now is the bank, of later runs too
            write_facts(note, shards=renderers.ready())
        shards = int(json.loads(note.read_text())["shards"])
        renderers.wait(shards)
        log.write(stage="autoencoder", spent=clock.spent, shards=shards)
    model = _transformer(out, work, size, clock, device, shards)
    log.write(stage="transformer", spent=clock.spent)
    measure(work, out, evaluation_of(work, model, size.length), size)
    clock.save()
    log.write(stage="evaluate", spent=clock.spent)
    _bring_logs(work, out)
    print((out / "results.md").read_text(encoding="utf-8"))


def _transformer(
    out: Path, work: Path, size: Size, clock: Clock, device: torch.device, shards: int
) -> Flux2Transformer2DModel:
    """Encode the bank and train; the pipeline is packaged now and then, and at the end."""
    packaged = [time.monotonic()]

    def package(model: Flux2Transformer2DModel, last: bool = False) -> None:
        if last or time.monotonic() - packaged[0] > PROVISIONAL_SECONDS:
            packaged[0] = time.monotonic()
            write_pipeline(work, copy.deepcopy(model).cpu(), out / "checkpoint", *_described(size))
            _bring_logs(work, out)

    codec, encoder = KleinCodec.trained(work), TextEncoder.trained(work, size.length).to(device)
    codec.model.to(device)
    bank = CardBank(work, shards, codec, encoder, size.batch)
    counts = {kind: len(rows) for kind, rows in bank.examples.items()}
    Log(work, "card").write(stage="bank", spent=clock.spent, prompts=len(bank.states), **counts)
    model = train_transformer(work, size, clock, bank, package)
    package(model, last=True)
    return model


def _described(size: Size) -> tuple[dict[str, object], str, str]:
    """Return the pipeline's settings, its README, and its largest file."""
    sides = {"panel_width": 48 * SCALE, "panel_height": 72 * SCALE}
    readme = README.replace("48 x 72", "96 x 144")
    readme = readme.replace("recipes.pocket.klein --work FOLDER", "recipes.pocket --device cuda")
    return SETTINGS | sides | {"max_sequence_length": size.length}, readme, size.shard_size


def _bring_logs(work: Path, out: Path) -> None:
    for path in work.glob("*.jsonl"):
        shutil.copy(path, out)
