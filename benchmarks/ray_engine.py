"""The stages on a Ray cluster beside the same stages in one process: whether the files are equal, seconds,
memory, and what is left after workers and the command itself were killed.

    pip install 'triptych[ray]'
    python benchmarks/ray_engine.py --photos 2000 --out work/ray

A cluster of one machine is started. Every command is a process of its own, `python -m triptych …`. The last
row of seconds is what a cluster of that size costs beside this process alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from PIL import Image

from triptych.pocket.raw_catalogue import write_raw_catalogue
from triptych.store.files import read_jsonl

TIMED = (".lock", "journal.jsonl")
"""Ends of names of files that hold the time of day."""
STAGES = ("clean", "concat", "caption", "embed", "tryon")
RAY = ["--engine", "ray", "--address", "auto"]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
PROMPT = "the person wears the garment of image 1"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=2000, help="about this many")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="sizes of the cluster")
    parser.add_argument("--tryons", type=int, default=16, help="lines of the batch")
    parser.add_argument("--out", type=Path, default=Path("work/ray"))
    args = parser.parse_args()
    shop = args.out / "shop"
    if not shop.exists():
        write_raw_catalogue(shop, items=max(4, round(args.photos / 3.7)), labels=30)
    results: dict[str, object] = {"photos": sum(path.is_file() for path in (shop / "photos").rglob("*"))}
    seconds = {"this process": measured(args.out / "local", shop, [], args.tryons)}
    expected = files_of(args.out / "local")
    for workers in args.workers:
        name = f"ray, {workers} worker{'s' * (workers > 1)}"
        with cluster(workers):
            seconds[name] = measured(args.out / f"ray-{workers}", shop, RAY, args.tryons)
        results[f"differs, {name}"] = differing(expected, files_of(args.out / f"ray-{workers}"))
    with cluster(2):
        for victim in ("worker", "command"):
            results[f"differs, {victim} killed"] = killed(args.out, shop, expected, victim)
    results["seconds and GiB"] = seconds
    (args.out / "ray.json").write_text(json.dumps(results, indent=1))
    print(f"{results['photos']} photos, {os.cpu_count()} cores\n\n| | {' | '.join(STAGES)} |")
    print("|---|" + "---|" * len(STAGES))
    for name, row in seconds.items():
        print(f"| {name} | " + " | ".join(f"{row[s][0]:.1f} s, {row[s][1]:.2f} GiB" for s in STAGES) + " |")
    print(json.dumps({key: value for key, value in results.items() if "differs" in key}, indent=1))


def measured(work: Path, shop: Path, engine: Sequence[str], tryons: int) -> dict[str, tuple[float, float]]:
    """Seconds and the peak memory in GiB, of the command and all workers, by stage."""
    found = {}
    for stage in STAGES:
        if stage == "tryon":
            write_batch(work, tryons)
        found[stage] = timed([*command(stage, work, shop), *engine])
    return found


def command(stage: str, work: Path, shop: Path) -> list[str]:
    own = {
        "clean": f"--photos {shop}/photos --human {shop}/labels/human --garment {shop}/labels/garment",
        "concat": "--model pocket",
        "caption": "--vlm-model pocket --model pocket",
        "embed": "--model pocket",
        "tryon": f"--model pocket-klein --batch {work}/batch.csv --num-inference-steps 4 --out {work}/tryon",
    }
    return [sys.executable, "-m", "triptych", stage, "--work", str(work), *own[stage].split()]


def write_batch(work: Path, count: int) -> None:
    """Lines that dress the people of the first triptychs in their own front photos."""
    (work / "dressed").mkdir(exist_ok=True)
    with (work / "batch.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "front", "person", "mask", "prompt"])
        for row in read_jsonl(work / "triptychs" / "metadata.jsonl")[:count]:
            triptych = Image.open(work / "triptychs" / row["file_name"])
            width, line = triptych.width // 3, [Path(row["file_name"]).stem]
            for place, name in ((0, "front"), (2, "person")):
                line.append(f"dressed/{line[0]}-{name}.png")
                triptych.crop((place * width, 0, (place + 1) * width, triptych.height)).save(work / line[-1])
            writer.writerow([*line, "auto:whole", PROMPT])


def timed(command: Sequence[str]) -> tuple[float, float]:
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            peak[0] = max(peak[0], sum(memory_of(process) for process in ours()))

    threading.Thread(target=watch, daemon=True).start()
    begun = time.monotonic()
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    finally:
        done.set()
    return round(time.monotonic() - begun, 1), round(peak[0] / 2**30, 2)


def ours() -> Iterator[psutil.Process]:
    """The command, and the workers of the cluster."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "triptych" in words or (words and words[0].startswith("ray::")):
            yield process


def memory_of(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


@contextmanager
def cluster(workers: int) -> Iterator[None]:
    tool = str(Path(sys.executable).with_name("ray"))
    subprocess.run([tool, "stop", "--force"], check=False, **QUIET)  # type: ignore[call-overload]
    start = ["start", "--head", "--include-dashboard", "false", "--object-store-memory", str(512 << 20)]
    subprocess.run([tool, *start, "--num-cpus", str(workers)], check=True, **QUIET)  # type: ignore[call-overload]
    try:
        yield
    finally:
        subprocess.run([tool, "stop", "--force"], check=False, **QUIET)  # type: ignore[call-overload]


def killed(out: Path, shop: Path, expected: dict[str, str], victim: str) -> list[str]:
    """Files of `clean` that differ from `expected`, after kill -9 in its middle: of a worker; or of the
    command, which is then given again.
    """
    work = out / f"killed-{victim}"
    words = [*command("clean", work, shop), *RAY]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while running.poll() is None and not (workers := [one for one in ours() if "MapWorker" in said(one)]):
        time.sleep(0.2)
    time.sleep(10)
    assert running.poll() is None, "it was over before anything was killed: more photos"
    os.kill(workers[0].pid if victim == "worker" else running.pid, signal.SIGKILL)
    if running.wait() != 0:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    cleaned = {name: hashed for name, hashed in expected.items() if name.startswith("catalogue/photos")}
    own = files_of(work)
    return differing(cleaned, {name: own.get(name, "") for name in cleaned})


def said(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])


def files_of(folder: Path) -> dict[str, str]:
    """By name, the hash of every file that holds no time and no path of the folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(TIMED)
    }


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


if __name__ == "__main__":
    main()
