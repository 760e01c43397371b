"""How many steps a card should make in its minutes: counted operations, an assumed share of its peak.

    python -m recipes.pocket.card.estimate

Floating point operations and kernels of a step are counted at the real shapes, on tensors without data. A
step is taken to last as long as the operations at `EFFICIENCY` of the peak, and as the launches of its
kernels, one after the other. Not counted: memory traffic of small operations, the optimizer, the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from recipes.pocket.card.size import CARD, new_autoencoder, new_transformer
from recipes.pocket.card.timed import SHARES
from recipes.pocket.klein.model import velocity
from recipes.pocket.klein.sets import LAYOUTS
from recipes.pocket.klein.text import WIDTH
from recipes.pocket.klein.transformer import SHARES as KINDS

PEAK, EFFICIENCY, LAUNCH, BUDGET = 990e12, 0.35, 5e-6, 480
"""An H100's bfloat16 operations a second, the share of them, seconds per kernel, seconds in all."""


class _Kernels(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def step_of(call: Callable[[], torch.Tensor]) -> tuple[float, int]:
    """Return the operations and the kernels of a step: forward and backward."""
    with FlopCounterMode(display=False) as flop, _Kernels() as kernels:
        call().sum().backward()
    return flop.get_total_flops(), kernels.count


def steps() -> dict[str, tuple[float, float]]:
    """Return the mean operations and kernels of a step, by stage."""
    rows, columns, channels = 9, 6, 4 * CARD.latent_channels
    with torch.device("meta"):
        model, autoencoder = new_transformer(CARD), new_autoencoder(CARD)
        states, t = torch.empty(CARD.batch, CARD.length, WIDTH), torch.empty(CARD.batch)
        panel = torch.empty(CARD.batch, channels, rows, columns)
        board = torch.empty(CARD.batch, channels, rows, 3 * columns)
        images = torch.empty(CARD.autoencoder_batch, 3, 144, 96)
    found = [0.0, 0.0]
    for kind, share in KINDS.items():
        references = [panel] * min(len(LAYOUTS.get(kind, ())), 3)
        data = board if kind == "boards" else panel
        counted = step_of(partial(velocity, model, data, t, states, references))
        found = [total + share / sum(KINDS.values()) * one for total, one in zip(found, counted, strict=True)]
    encoded = step_of(lambda: autoencoder.decode(autoencoder.encode(images).latent_dist.mode()).sample)
    return {"autoencoder": encoded, "transformer": (found[0], found[1])}


def main() -> None:
    """Print a table."""
    print("| stage | TFLOP a step | kernels | ms a step | seconds | steps | examples |\n" + "|---" * 7 + "|")
    batches = {"autoencoder": CARD.autoencoder_batch, "transformer": CARD.batch}
    for name, (flop, kernels) in steps().items():
        seconds = flop / (PEAK * EFFICIENCY) + kernels * LAUNCH
        count = BUDGET * SHARES[name] / seconds
        figures = f"{flop / 1e12:.2f} | {kernels:.0f} | {seconds * 1e3:.0f} | {BUDGET * SHARES[name]:.0f}"
        print(f"| {name} | {figures} | {count:,.0f} | {count * batches[name]:,.0f} |")


if __name__ == "__main__":
    main()
