"""What a few minutes on a machine with a card can prove: equality with diffusers, time, memory. `make gpu`
runs it.

    python benchmarks/gpu.py --budget 480 --out work/gpu
    python benchmarks/gpu.py --no-plans --out work/gpu      # and later, on any machine:
    python benchmarks/gpu.py --plans work/gpu/results.json --out work/gpu
    python benchmarks/gpu.py --tiny                  # every part on the CPU, on shapes that mean nothing:
    does it run at all?

The most telling parts come first; none starts once the budget (seconds) is spent, and each has a limit of its
own. results.json and results.md in --out hold what has been measured so far, from the first row on: an
interrupted run leaves its figures. What cannot be measured is there as "skipped: why". Exits with 1 if
something failed or is not equal that should be.

Wheels that `gpu_wheels.py` fetched are put on the path first; the weights are random and made on the card:
nothing is downloaded.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import gpu_wheels

BEGUN = time.monotonic()
SOURCE = Path(__file__).parents[1] / "src"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("work/gpu"), help="folder for results.json and results.md"
    )
    parser.add_argument(
        "--budget", type=float, default=480.0, help="seconds in all, the start of Python included"
    )
    parser.add_argument("--only", default="", help="these parts alone, in this order, with commas between")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument(
        "--wheels",
        type=Path,
        default=gpu_wheels.FOLDER,
        help="what gpu_wheels.py fetched; no folder, no matter",
    )
    parser.add_argument(
        "--no-plans",
        action="store_true",
        help="leave what `triptych plan` says to `--plans`: it takes a minute in which a card idles",
    )
    parser.add_argument(
        "--plans", type=Path, help="measure nothing: put the plans into an earlier run's results.json"
    )
    options = parser.parse_args(words)
    end = (BEGUN if words is None else time.monotonic()) + options.budget
    with tempfile.TemporaryDirectory(prefix="gpu-") as work:
        used = gpu_wheels.unpack(options.wheels, Path(work) / "wheels")
        sys.path.insert(1 if used else 0, str(SOURCE))
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):  # bars would fill the log
            os.environ.setdefault(name, "1")
        if options.plans:
            from gpu_parts.plans import answer_file

            return answer_file(options.plans, options.out)
        return measure(options, Path(work), end, used)


def measure(options: argparse.Namespace, work: Path, end: float, wheels: list[str]) -> int:
    """Run the parts; the exit status."""
    import torch

    from gpu_parts import PARTS
    from gpu_parts.bench import Bench, Part
    from gpu_parts.plans import answer_all

    if not options.tiny and not torch.cuda.is_available():
        print("PyTorch sees no card here. --tiny runs every part on the CPU.", file=sys.stderr)
        return 1
    bench = Bench(options.out, work, torch.device("cpu" if options.tiny else "cuda"), options.tiny, end)
    bench.results["about"] = {"torch": torch.__version__, "CUDA": torch.version.cuda, "wheels": len(wheels)}
    bench.results["wheels"] = wheels
    names = [name for name in options.only.split(",") if name] or list(PARTS)
    for name in names:
        seconds, home = PARTS[name]
        bench.run(Part(name, options.budget if options.tiny else seconds, home))
        part = bench.results["parts"][name]
        print(f"{name}: {part['state']} ({part.get('seconds', 0)} s)", file=sys.stderr, flush=True)
    if not options.no_plans:
        answer_all(bench.results)
        bench.save()
    print((options.out / "results.md").read_text(encoding="utf-8"))
    for failure in bench.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return int(bool(bench.failures))


if __name__ == "__main__":
    logging.getLogger("triptych").setLevel(logging.ERROR)  # its warnings would stand between the rows
    sys.exit(main())
