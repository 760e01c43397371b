"""How much faster try-on is than diffusers' pipeline, end to end, on a random model with the proportions of
FLUX.1 (FluxInpaintPipeline) or FLUX.2-klein (Flux2KleinPipeline with the same references): as diffusers has
it ("stock"), and on triptych's kernels for the CPU ("same kernels"). The second ratio is what the method
gains, the first also contains what the kernels gain on this processor.

    OMP_NUM_THREADS=2 python benchmarks/tryon.py --out tryon.json
    OMP_NUM_THREADS=2 python benchmarks/tryon.py --family flux2 --out tryon-flux2.json

Random weights: only the time is measured; that ours paints what the pipeline paints is what
tests/test_equals_diffusers.py and tests/test_flux2.py show. Before every run of ours both pipelines run once,
in the same process; ratios are to these two, and the table shows medians over rounds. Results are added to
the JSON file as they come: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch

import tryon_flux
import tryon_flux2
from flux_like import processor
from tryon_parts import Row, line, measure, ratio

FAMILIES: dict[str, ModuleType] = {"flux": tryon_flux, "flux2": tryon_flux2}


def table(results: dict[str, Any], rows: list[Row], steps: tuple[int, ...]) -> str:
    """The results for people. steps: those of the table of scaling."""
    about = results["about"]
    lines = [
        f"{about['processor']}, {about['threads']} threads, {about['dtype']}.",
        "",
        "| steps | what | stock pipeline | on the same kernels | here, per picture | × same kernels "
        "| in CPU time | aimed at | × stock |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        runs = [run for run in results["runs"] if (run["name"], run["steps"]) == (row.name, row.steps)]
        if runs:
            seconds = [f"{median(r[f'{who}_s'] for r in runs):.1f} s" for who in ("stock", "kernels", "ours")]
            gain, processor_gain, stock_gain = (
                median(ratio(run, *which) for run in runs)
                for which in (("kernels", "_s"), ("kernels", "_cpu_s"), ("stock", "_s"))
            )
            cells = [row.steps, row.name, *seconds, f"{gain:.2f}", f"{processor_gain:.2f}"]
            cells += [row.targets[about["dtype"] == "bf16"], f"{stock_gain:.2f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    for name, peak in results.get("peak", {}).items():
        lines += ["", peak_line(name, peak)]
    if results.get("scaling"):
        lines += ["", *scaling_lines(results["scaling"], steps)]
    return "\n".join(lines)


def peak_line(name: str, peak: dict[str, Any]) -> str:
    return (
        f"Of a step ({name}; {peak['queries']} queries, {peak['keys']} keys) {peak['share']:.0%} is matrix "
        f"products and attention at their own measured speed ({peak['matmul_gflops']:.0f} GFLOP/s for the "
        f"products). Its speed is {peak['of_square_peak']:.0%} of torch.mm's for 2048 × 2048, and "
        f"{peak['of_own_square_peak']:.0%} of that product's by the function that the model calls."
    )


def scaling_lines(rows: list[dict[str, Any]], steps: tuple[int, ...]) -> list[str]:
    """The table, and the straight line of a step's seconds by its active tokens."""
    few, many = steps
    lines = [
        f"| active | known panels | panel | full step | read once | step | x at {few} | x at {many} | held |",
        "|" + "---|" * 9,
    ]
    for r in rows:
        seconds = (f"{r[k]:.2f} s" for k in ("full_step_s", "read_s", "step_s"))
        ratios = (f"{r[f'ratio_{n}']:.2f}" for n in steps)
        cells = [f"{r['share']:.0%}", r["known_panels"], r["panel"], *seconds, *ratios]
        lines.append("| " + " | ".join(map(str, [*cells, f"{r['held_mb']:.0f} MB"])) + " |")
    same = [r for r in rows if r["kind"] == "polygon"]
    fit = line([r["active"] for r in same], [r["step_s"] for r in same])
    return [
        *lines,
        "",
        f"A step takes {1000 * fit['start_s']:.0f} ms (text) and {1000 * fit['per_token_s']:.3f} ms for each "
        f"active token; no polygon is further than {fit['off']:.0%} from that line.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("tryon.json"), help="JSON file with all measurements"
    )
    parser.add_argument("--family", choices=[*FAMILIES], default="flux")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="8 and 28 (steps; with FLUX.2 4 and 28), peak, scaling",
    )
    parser.add_argument("--rounds", type=int, default=0, help="rounds in all; by default 2 of 28 steps")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--quick", action="store_true", help="a small model, one round: does it run at all?")
    options = parser.parse_args()
    family = FAMILIES[options.family]
    size = family.SIZES["quick" if options.quick else "full"]
    about = {
        "family": options.family,
        "model": size.__dict__,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor(),
    }
    results: dict[str, Any] = {"about": about, "runs": []}
    if options.out.exists():
        results = json.loads(options.out.read_text())
    run_all(family, size, options, results)
    print(table(results, family.rows(), family.STEPS))


def run_all(family: ModuleType, size: Any, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Measure what `results` lack, and write the file after every measurement."""
    only = options.only or [*map(str, family.ROUNDS), "peak", "scaling"]
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32

    def save() -> None:
        options.out.write_text(json.dumps(results, indent=1))

    with tempfile.TemporaryDirectory() as folder:
        scene = family.Bench(size, dtype, Path(folder))
        for steps, wanted in family.ROUNDS.items():
            if str(steps) not in only:
                continue
            if "difference" not in results:
                scene.warm_up()
                results["difference"] = scene.difference()
            for number in range(options.rounds or (1 if options.quick else wanted)):
                done = {
                    run["name"] for run in results["runs"] if (run["steps"], run["round"]) == (steps, number)
                }
                for row in family.rows():
                    if row.steps != steps or row.name in done:
                        continue
                    run = measure(scene, row, number)
                    results["runs"].append(run)
                    save()
                    gains = f"{ratio(run, 'kernels'):.2f} × same kernels, {ratio(run, 'stock'):.2f} × stock"
                    print(f"{steps} steps, round {number + 1}: {row.name}: {gains}", flush=True)
        seconds = 0.1 if options.quick else 8.0
        if "peak" in only and "peak" not in results:
            results["peak"] = scene.peaks(seconds)
            save()
    if "scaling" in only and "scaling" not in results:
        results["scaling"] = family.scaling(size, dtype, seconds / 8)
        save()


if __name__ == "__main__":
    main()
