"""Stage ``oracle``: train the judge on renders and autoencoder round trips, and measure it on held-out ones."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from triptych.pocket.oracle import HEADS, OracleNetwork, judge
from triptych.pocket.recipe.autoencoder import VIEW_MIX, Codec
from triptych.pocket.recipe.state import Log, set_learning_rate
from triptych.pocket.render import render
from triptych.pocket.world import TYPES, sample_garment, sample_scene

STEPS, BATCH, LEARNING_RATE, SEED = 1800, 96, 2e-3, 8123
PICTURES, ROUND_TRIPS, HELD_OUT = 9000, 2400, 600


def _labels(rng: random.Random) -> tuple[np.ndarray, list[int]]:
    garment, scene = sample_garment(rng), sample_scene(rng, rng.choice(VIEW_MIX))
    if not scene.worn and rng.random() < 0.2:
        scene = replace(scene, zoom=rng.uniform(0.6, 0.9))
    said = asdict(garment) | {"person": "yes" if scene.worn else "no"}
    return np.asarray(render(garment, scene, rng.getrandbits(31)).image), [HEADS[name].index(said[name]) for name in HEADS]


def _round_trip(codec: Codec, pictures: np.ndarray) -> np.ndarray:
    """Encode and decode panels three at a time, side by side, as they are used."""
    parts = []
    for start in range(0, len(pictures), 48):
        panels = pictures[start : start + 48]
        wide = codec.decode(codec.encode(np.concatenate([panels[0::3], panels[1::3], panels[2::3]], 2)))
        back = np.empty_like(panels)
        back[0::3], back[1::3], back[2::3] = np.split(wide, 3, axis=2)
        parts.append(back)
    return np.concatenate(parts)


def train_oracle(folder: Path, steps: int = STEPS) -> None:
    """Train and measure; writes ``folder/oracle/oracle.safetensors`` and ``oracle.json``."""
    if (folder / "oracle" / "oracle.json").exists():
        return
    torch.manual_seed(SEED)
    rng, log = random.Random(SEED), Log(folder, "oracle")
    drawn = [_labels(rng) for _ in range(PICTURES)]
    pictures, labels = np.stack([p for p, _ in drawn]), torch.tensor([y for _, y in drawn])
    returned = _round_trip(Codec(folder / "vae"), pictures[-ROUND_TRIPS:])
    log.write(rendered=PICTURES, round_trips=ROUND_TRIPS)
    shown = torch.from_numpy(np.concatenate([pictures[:-HELD_OUT], returned[:-HELD_OUT]]))
    truth = torch.cat([labels[:-HELD_OUT], labels[-ROUND_TRIPS:-HELD_OUT]])
    network = OracleNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.02)
    for step in range(steps):
        set_learning_rate(optimizer, LEARNING_RATE * (1 - step / steps) + 1e-5)
        index = torch.randint(0, len(shown), (BATCH,))
        index[: BATCH // 3] = torch.randint(PICTURES - HELD_OUT, len(shown), (BATCH // 3,))
        images = shown[index].permute(0, 3, 1, 2).float() / 127.5 - 1
        images = images + torch.randn(BATCH, 1, 1, 1).abs() * 0.08 * torch.randn_like(images)
        if step % 2:
            blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
            images = 0.6 * blurred + 0.4 * images
        answers = network(images, truth[index][:, list(HEADS).index("type")])
        loss = torch.stack([F.cross_entropy(answers[name], truth[index][:, number]) for number, name in enumerate(HEADS)]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 200 == 0:
            log.write(step=step + 1, loss=loss.item())
    network.eval()
    held_out = labels[-HELD_OUT:]
    types = [TYPES[index] for index in held_out[:, list(HEADS).index("type")].tolist()]
    accuracy = {}
    for name, panels in (("renders", pictures[-HELD_OUT:]), ("round trips", returned[-HELD_OUT:])):
        seen = judge(list(panels), types, network)
        said = [asdict(one) | {"person": "yes" if one.person else "no"} for one in seen]
        accuracy[name] = {
            head: sum(one[head] == HEADS[head][y] for one, y in zip(said, held_out[:, number].tolist(), strict=True)) / HELD_OUT
            for number, head in enumerate(HEADS)
        }
    log.write(**accuracy)
    out = folder / "oracle"
    out.mkdir(exist_ok=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_file(half, out / "oracle.safetensors")
    (out / "oracle.safetensors").chmod(0o644)
    record = {"accuracy": accuracy, "held_out": HELD_OUT, "seed": SEED, "heads": HEADS}
    (out / "oracle.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
