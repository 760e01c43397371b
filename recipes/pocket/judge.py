"""Stage `oracle`: train the judge on renders and autoencoder round trips, and measure it on held-out
garments and people.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from recipes.pocket.autoencoder import VIEW_MIX, Codec
from recipes.pocket.state import Log, set_learning_rate
from triptych.pocket.oracle import HEADS, OracleNetwork, judge, shown
from triptych.pocket.render import render
from triptych.pocket.world import NONE, sample_garment, sample_printed, sample_scene

STEPS, BATCH, LEARNING_RATE, SEED = 2400, 96, 2e-3, 8123
PICTURES, ROUND_TRIPS, HELD_OUT = 12_000, 3000, 600


def _panel(rng: random.Random, held_out: bool) -> tuple[np.ndarray, dict[str, str]]:
    """Draw one panel and the truth about it; backs and back prints are more frequent than in the world, so
    that the judge learns them well.
    """
    garment = (
        sample_printed(rng, held_out=held_out)
        if rng.random() < 0.2
        else sample_garment(rng, held_out=held_out)
    )
    scene = sample_scene(rng, rng.choice(VIEW_MIX), behind_share=0.45, held_out=held_out)
    return np.asarray(render(garment, scene, rng.getrandbits(31)).image), shown(garment, scene)


def _round_trip(codec: Codec, pictures: np.ndarray) -> np.ndarray:
    """Encode and decode panels three at a time, side by side, the width at which they are used."""
    parts = []
    for start in range(0, len(pictures), 48):
        panels = pictures[start : start + 48]
        wide = codec.decode(codec.encode(np.concatenate([panels[0::3], panels[1::3], panels[2::3]], 2)))
        back = np.empty_like(panels)
        back[0::3], back[1::3], back[2::3] = np.split(wide, 3, axis=2)
        parts.append(back)
    return np.concatenate(parts)


def train_oracle(folder: Path, steps: int = STEPS) -> None:
    """Train and measure; writes `folder/oracle/oracle.safetensors` and `oracle.json`."""
    if (folder / "oracle" / "oracle.json").exists():
        return
    torch.manual_seed(SEED)
    rng, log, codec = random.Random(SEED), Log(folder, "oracle"), Codec(folder / "vae")
    drawn = [_panel(rng, held_out=False) for _ in range(PICTURES)]
    pictures, labels = np.stack([p for p, _ in drawn]), _labels([y for _, y in drawn])
    seen = torch.from_numpy(np.concatenate([pictures, _round_trip(codec, pictures[-ROUND_TRIPS:])]))
    truth = torch.cat([labels, labels[-ROUND_TRIPS:]])
    log.write(rendered=PICTURES, round_trips=ROUND_TRIPS)
    network = OracleNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.02)
    for step in range(steps):
        set_learning_rate(optimizer, LEARNING_RATE * (1 - step / steps) + 1e-5)
        index = torch.randint(0, len(seen), (BATCH,))
        index[: BATCH // 3] = torch.randint(PICTURES, len(seen), (BATCH // 3,))
        images = seen[index].permute(0, 3, 1, 2).float() / 127.5 - 1
        images = images + torch.randn(BATCH, 1, 1, 1).abs() * 0.08 * torch.randn_like(images)
        if step % 2:
            blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
            images = 0.6 * blurred + 0.4 * images
        answers = network(images, truth[index][:, list(HEADS).index("type")])
        loss = torch.stack(
            [F.cross_entropy(answers[name], truth[index][:, number]) for number, name in enumerate(HEADS)]
        ).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 200 == 0:
            log.write(step=step + 1, loss=loss.item())
    network.eval()
    drawn = [_panel(rng, held_out=True) for _ in range(HELD_OUT)]
    pictures = np.stack([p for p, _ in drawn])
    accuracy = {
        "renders": measure_judge(network, pictures, [y for _, y in drawn]),
        "round trips": measure_judge(network, _round_trip(codec, pictures), [y for _, y in drawn]),
    }
    log.write(**accuracy)
    out = folder / "oracle"
    out.mkdir(exist_ok=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_file(half, out / "oracle.safetensors")
    (out / "oracle.safetensors").chmod(0o644)
    record = {"accuracy": accuracy, "held_out": HELD_OUT, "seed": SEED, "heads": HEADS}
    (out / "oracle.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _labels(said: list[dict[str, str]]) -> torch.Tensor:
    return torch.tensor([[values.index(one[name]) for name, values in HEADS.items()] for one in said])


def measure_judge(
    network: OracleNetwork, pictures: np.ndarray, truth: list[dict[str, str]]
) -> dict[str, float]:
    """Return the share of right answers per head; `printed`: the share of right motifs among the panels with
    one.
    """
    seen = judge(list(pictures), [one["type"] for one in truth], network)
    said = [asdict(one) | {"person": "yes" if one.person else "no"} for one in seen]
    right = {name: [a[name] == b[name] for a, b in zip(said, truth, strict=True)] for name in HEADS}
    right["printed"] = [hit for hit, one in zip(right["print"], truth, strict=True) if one["print"] != NONE]
    return {name: round(sum(hits) / len(hits), 4) for name, hits in right.items()}
