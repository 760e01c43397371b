"""The page of `rehearse_klein.py`."""

from __future__ import annotations

from typing import Any

GIB = 2**30


def alone(run: dict[str, Any], part: str, threads: int) -> float:
    """Seconds that a part takes if nothing else runs: its processor seconds by thread."""
    return float(run["cpu_seconds"].get(part, 0.0)) / threads


def speed(run: dict[str, Any], threads: int) -> float:
    """FLOP/s of reading and steps, alone."""
    seconds = alone(run, "read", threads) + alone(run, "steps", threads)
    return float(sum(run["flop"].values())) / max(seconds, 1e-9)


def klein_page(report: dict[str, Any]) -> str:
    """The report for people."""
    threads, runs = report["threads"], report["runs"]
    width, height = report["panel"]
    text, block = report["text_encoder"], report["block"]
    first, *_ = runs.values()
    sizes = f"{first['known']} known tokens of references"
    measured = {name: speed(run, threads) for name, run in runs.items()}
    peak, held = report["matmul_flop_per_second"], report["peak_memory_gib"]
    tflop = _cells(runs, lambda run: f"{sum(run['flop'].values()) / 1e12:.1f}")
    return f"""# FLUX.2-klein-4B in full size on a processor: a rehearsal

`make rehearse-klein` writes this page; the numbers are also in `rehearsal-klein.json`. The transformer has
klein-4B's exact shapes ({report["parameters"] / 1e9:.2f} billion parameters in {report["dtype"]}), but random
weights: what is rehearsed is time, memory and the whole path of `tryon`, not quality. One person is dressed
as the distilled model does it: panels of {width} × {height} px, {report["steps"]} steps, no guidance, front,
back and person read once as references ({sizes}; {report["panel_tokens"]} tokens in
the worn panel, {report["text_tokens"]} of text).

Machine: {report["threads"]} CPU threads ({report["processor"]}, {report["machine"]}), no GPU, torch
{report["torch"]}. {report.get("note", "")}
"Alone" is processor seconds divided by threads: what the clock would say if nothing else ran. Encoding and
reading are the same in both cases, so they ran once, in the first. With 35 % of the panel active
(`--active-tokens polygon`) a LoRA is needed.

| part | {" | ".join(f"{name}: alone | by the clock | of all" for name in runs)} |
|---|{"---|---|---|" * len(runs)}
{_rows(report)}

| | {" | ".join(runs)} |
|---|{"---|" * len(runs)}
| TFLOP, reading and steps | {tflop} |
| GFLOP/s of reading and steps, alone | {" | ".join(f"{one / 1e9:.0f}" for one in measured.values())} |
| of the machine's matmul peak, {peak / 1e9:.0f} GFLOP/s | {_shares(report, measured)} |
| pixels that changed in the polygon, outside | {_cells(runs, _changed)} |
| peak memory of the process | {_cells(runs, lambda run: f"{run['peak_memory_gib']:.2f} GiB")} |

Memory: {report["weight_bytes"] / GIB:.2f} GiB are the weights, **{held:.2f} GiB the whole process at its
peak**. The text encoder has gone by then: the 27 of Qwen3's layers that are needed take
{text["bytes"] / GIB:.1f} GiB and, by the time of one of them, {text["seconds"]:.0f} s for two prompts;
embeddings are kept, so a second picture does not need them.

`--quantize` is for memory, not for speed. The products of one single block for a step with 35 % active:
{_formats(block)}. {_verdict(block)}

{_plan(report)}
"""


def _cells(runs: dict[str, Any], cell: Any) -> str:
    return " | ".join(cell(run) for run in runs.values())


def _changed(run: dict[str, Any]) -> str:
    inside, outside = run["repainted"]
    return f"{inside:.0%}, {outside:.0%}"


def _shares(report: dict[str, Any], measured: dict[str, float]) -> str:
    return " | ".join(f"{one / report['matmul_flop_per_second']:.0%}" for one in measured.values())


def _rows(report: dict[str, Any]) -> str:
    threads, runs = report["threads"], report["runs"]
    titles = {
        "encode": "encoding three photos",
        "read": "reading the references",
        "steps": f"{report['steps']} steps",
        "decode": "decoding",
        "all": "**all**",
    }
    lines = []
    for part, title in titles.items():
        cells = []
        for run in runs.values():
            whole = max(alone(run, "all", threads), 1e-9)
            seconds = alone(run, part, threads)
            cells += [f"{seconds:.0f} s", f"{run['seconds'].get(part, 0.0):.0f} s", f"{seconds / whole:.0%}"]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _formats(block: dict[str, dict[str, float]]) -> str:
    names = {"none": "bfloat16", "int8": "int8", "int8-torchao": "int8-torchao"}
    return ", ".join(
        f"{names[name]} {one['seconds']:.2f} s ({one['bytes'] / 2**20:.0f} MiB)"
        for name, one in block.items()
    )


def _verdict(block: dict[str, dict[str, float]]) -> str:
    fastest = min(block, key=lambda name: block[name]["seconds"])
    if fastest == "none":
        return "Weights are dequantised before each product: int8 saves half of the memory, and costs time."
    return f"Fastest here: {fastest}."


def _plan(report: dict[str, Any]) -> str:
    """What `plan` says, beside what was measured."""
    about = report.get("plan")
    if about is None:
        return ""
    memory = about["bytes"] / (report["peak_memory_gib"] * GIB)
    run = report["runs"]["whole panel"]
    seconds = alone(run, "all", report["threads"]) + report["text_encoder"]["seconds"]
    return (
        f"`triptych plan --card cpu` expects {about['bytes'] / GIB:.2f} GiB ({about['moment']}): "
        f"**{memory:.2f} times** what was measured. At the speed of products measured here it expects "
        f"{about['flop_per_second'] / 1e9:.0f} GFLOP/s in all and {about['seconds'] / 60:.1f} minutes for a "
        f"picture ({about['flop'] / 1e12:.0f} TFLOP, whole panel, text included): **"
        f"{about['seconds'] / seconds:.2f} times** the {seconds / 60:.1f} minutes measured."
    )
