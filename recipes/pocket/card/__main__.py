"""Train a pocket on a card within a budget of seconds, and measure it beside today's.

    python benchmarks/gpu_wheels.py --python 3.12        # before, where there is a network
    python -m recipes.pocket --device cuda --budget 480 --out pocket-card

All cores render while the card trains the text encoder and the autoencoder, then the transformer. The work
folder holds the pictures and whole states: run the same command again after a stop, and it goes on with what
is left of the budget. `--out` gets what is to be brought home, files of at most 16 MB: the pipeline folder
`checkpoint` (a provisional one from the first minute of the transformer on), results.json, results.md, sheets
and logs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

BEGUN = time.monotonic()
ROOT = Path(__file__).parents[3]


def main(words: Sequence[str] | None = None) -> None:
    """Unpack what this Python lacks, then run the stages."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.pocket", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --tiny")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds in all, of all runs together")
    parser.add_argument("--out", type=Path, default=Path("work/pocket-card"), help="what is brought home")
    parser.add_argument("--work", type=Path, help="states and pictures (12 GB), if not build/pocket-card")
    parser.add_argument("--tiny", action="store_true", help="every line in a few steps, on a CPU")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="wheels-") as wheels:
        _put_on_path(Path(wheels))
        from recipes.pocket.card.run import run

        run(options.out, options.work, options.device, options.budget, options.tiny, BEGUN)


def _put_on_path(wheels: Path) -> None:
    """Find packages and sources, for this process and for those that render."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu_wheels

    gpu_wheels.unpack(gpu_wheels.FOLDER, wheels)
    ours = [str(ROOT / "src"), str(ROOT)]
    sys.path[1:1] = ours
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), *ours]))
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")


if __name__ == "__main__":
    main()
