"""50 clients at one server for two minutes: is anything lost or done twice, does its memory grow, how long do
answers take?

The server is `triptych serve` on the embedded model, a process of its own. Each client is a thread with the
standard library's HTTP and does what clients do: post a try-on, wait for it by events or by asking, fetch the
picture; send a request twice with one idempotency key; cancel; go away in the middle of the events.

    python benchmarks/soak.py --seconds 120 --clients 50 --out work/soak.json
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.evaluation.rendered import held_out_items, prompt_of

SIZE, QUEUE = 8, 60
"""Most pictures of one batch, and most jobs that wait: further requests are told to come again."""
STEPS = 2
ENDED = ("done", "failed", "cancelled")


@dataclass
class Told:
    """What the clients were told. posts: job by the client's own name of the request. times: seconds by kind
    of request; whole: from a request to its picture. busy: requests that were told to come again.
    """

    posts: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    times: dict[str, list[float]] = field(default_factory=dict)
    whole: list[float] = field(default_factory=list)
    replayed: int = 0
    left: int = 0
    busy: int = 0
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client(threading.Thread):
    """One client, until `end`."""

    def __init__(self, number: int, port: int, uploads: dict[str, list[str]], told: Told, end: float) -> None:
        super().__init__(daemon=True)
        self.number, self.port, self.uploads, self.told, self.end = number, port, uploads, told, end
        self.chance = random.Random(number)

    def run(self) -> None:
        while time.monotonic() < self.end:
            try:
                self._one()
            except Exception as error:
                with self.told.lock:
                    self.told.faults.append(f"{type(error).__name__}: {error}")

    def ask(
        self, what: str, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        begun = time.monotonic()
        try:
            line.request(method, path, body, headers)
            answer = line.getresponse()
            data = answer.read()
        finally:
            line.close()
        with self.told.lock:
            self.told.times.setdefault(what, []).append(time.monotonic() - begun)
        if answer.status >= 500:
            raise AssertionError(f"{method} {path}: {answer.status}")
        return answer.status, data, {name.lower(): value for name, value in answer.getheaders()}

    def _one(self) -> None:
        """A request and what becomes of it."""
        front, prompt = self.uploads["front"][0], self.uploads["prompt"][0]
        settings = {"front": front, "person": self.chance.choice(self.uploads["person"]), "prompt": prompt}
        settings |= {
            "mask": "auto:dress",
            "num_inference_steps": STEPS,
            "seed": self.chance.randrange(1 << 30),
        }
        name, begun = f"{self.number}-{uuid.uuid4().hex}", time.monotonic()
        job = self._post(name, settings)
        if job is None:
            return
        if self.chance.random() < 0.3:  # the answer was lost, says the network: the same once more
            again = self._post(name, settings)
            with self.told.lock:
                self.told.replayed += 1
                if again != job:
                    self.told.faults.append(f"the key of {job} gave {again}")
        turn, pause = self.chance.random(), self.chance.uniform(0.5, 3.0)
        if turn < 0.15:
            self.ask("cancel", "DELETE", f"/v1/jobs/{job}")
            with self.told.lock:
                self.told.cancelled.add(job)
            time.sleep(pause)
            return
        if turn < 0.30:
            self._leave(job)
            time.sleep(pause)
            return
        shown = self._events(job) if turn < 0.65 else self._wait(job)
        if shown["state"] == "done":
            status, data, _ = self.ask("result", "GET", shown["results"][0])
            assert status == 200 and data.startswith(b"\x89PNG"), status
            with self.told.lock:
                self.told.whole.append(time.monotonic() - begun)

    def _post(self, name: str, settings: dict[str, Any]) -> str | None:
        body = json.dumps(settings).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": name}
        status, data, _ = self.ask("post", "POST", "/v1/tryon", body, **headers)
        if status == 429:
            with self.told.lock:
                self.told.busy += 1
            time.sleep(1)
            return None
        assert status == 202, data
        id = str(json.loads(data)["id"])
        with self.told.lock:
            self.told.posts[name] = id
        return id

    def _wait(self, job: str) -> dict[str, Any]:
        while True:
            _, data, _ = self.ask("job", "GET", f"/v1/jobs/{job}")
            shown: dict[str, Any] = json.loads(data)
            if shown["state"] in ENDED:
                return shown
            time.sleep(0.5)

    def _events(self, job: str) -> dict[str, Any]:
        _, data, _ = self.ask("events, to the end", "GET", f"/v1/jobs/{job}/events")
        shown: dict[str, Any] = json.loads(data.decode().rstrip().rpartition("data: ")[2])
        assert shown["state"] in ENDED, shown
        return shown

    def _leave(self, job: str) -> None:
        """Hang up after the first event."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        line.request("GET", f"/v1/jobs/{job}/events")
        line.getresponse().readline()
        line.close()
        with self.told.lock:
            self.told.left += 1


def started(work: Path) -> tuple[subprocess.Popen[str], int]:
    """The server, and the port it listens at."""
    command = [
        sys.executable,
        "-m",
        "triptych",
        "serve",
        "--model",
        "pocket",
        "--dtype",
        "fp32",
        "--device",
        "cpu",
    ]
    command += ["--work", str(work), "--port", "0", "--max-batch", str(SIZE), "--max-queue", str(QUEUE)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if found := re.match(r"Listening at http://127.0.0.1:(\d+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, int(found[1])
    raise SystemExit("The server does not start.")


def resident(process: int) -> float:
    """The memory of a process in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def uploaded(first: Client) -> dict[str, list[str]]:
    """Ids of the pictures that all clients use."""
    item = held_out_items(1, seed=9)[0]

    def sent(image: Any) -> str:
        file = io.BytesIO()
        image.save(file, "PNG")
        _, data, _ = first.ask(
            "upload", "POST", "/v1/uploads", file.getvalue(), **{"Content-Type": "image/png"}
        )
        return str(json.loads(data)["upload"])

    persons = [held_out_items(number + 1, seed=5)[number].worn for number in range(3)]
    front, person = sent(item.front), [sent(image) for image in persons]
    return {"front": [front], "person": person, "prompt": [prompt_of(item, describes_panels=True)]}


def measured(seconds: float, clients: int, warm_up: float, work: Path) -> dict[str, Any]:
    """The figures of one soak, which begins when a first batch is made and the model is loaded."""
    process, port = started(work)
    try:
        told = Told()
        first = Client(0, port, {}, told, 0.0)
        uploads = uploaded(first)
        _first_batch(first, uploads)
        told.times.clear()
        known = {job["id"] for job in _all_jobs(first)}
        begun = time.monotonic()
        threads = [Client(number, port, uploads, told, begun + seconds) for number in range(clients)]
        for thread in threads:
            thread.start()
        samples: list[tuple[float, float]] = []
        while any(thread.is_alive() for thread in threads) or _unfinished(first):
            samples.append((time.monotonic() - begun, resident(process.pid)))
            time.sleep(1)
        jobs = [job for job in _all_jobs(first) if job["id"] not in known]
        spent = time.monotonic() - begun
        missing = sum(not _has_picture(first, job) for job in jobs if job["state"] == "done")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    about = {"clients": clients, "seconds": seconds, "until_the_last_job_ended": round(spent, 1)}
    memory = _memory(samples, warm_up)
    return about | figures(told, jobs, spent, missing) | {"memory_mib": memory}


def _first_batch(client: Client, uploads: dict[str, list[str]]) -> None:
    own = {"front": uploads["front"][0], "prompt": uploads["prompt"][0], "mask": "auto:dress"}
    for seed in range(SIZE):
        own |= {"person": uploads["person"][seed % 3], "seed": seed, "num_inference_steps": STEPS}
        client.ask(
            "post", "POST", "/v1/tryon", json.dumps(own).encode(), **{"Content-Type": "application/json"}
        )
    while _unfinished(client):
        time.sleep(0.2)


def _memory(samples: list[tuple[float, float]], warm_up: float) -> dict[str, float]:
    """The memory after the warm-up and at the end in MiB, and its growth as a share."""
    warm = next((memory for at, memory in samples if at >= warm_up), samples[-1][1])
    end = statistics.median(memory for _, memory in samples[-5:])
    return {"warm": round(warm, 1), "end": round(end, 1), "growth": round(end / warm - 1, 4)}


def _has_picture(client: Client, job: dict[str, Any]) -> bool:
    return client.ask("result", "GET", job["results"][0])[1].startswith(b"\x89PNG")


def _unfinished(client: Client) -> int:
    counts = json.loads(client.ask("list", "GET", "/v1/jobs?limit=1")[1])["counts"]
    return int(counts["queued"] + counts["running"])


def _all_jobs(client: Client) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    while True:
        before = f"&before={jobs[-1]['number']}" if jobs else ""
        more = json.loads(client.ask("list", "GET", f"/v1/jobs?limit=500{before}")[1])["jobs"]
        if not more:
            return jobs
        jobs += more


def figures(told: Told, jobs: list[dict[str, Any]], spent: float, missing: int) -> dict[str, Any]:
    """What was lost, what was doubled, and the times. missing: jobs that are done and have no picture."""
    known, posted = {job["id"]: job for job in jobs}, set(told.posts.values())
    states = Counter(job["state"] for job in jobs)
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
        "requests": sum(map(len, told.times.values())),
        "jobs": dict(states),
        "pictures_a_minute": round(60 * states["done"] / spent, 1),
        "replayed": told.replayed,
        "hung_up": told.left,
        "refused_429": told.busy,
        "lost": len(posted - known.keys()) + sum(job["state"] not in ENDED for job in jobs) + missing,
        "doubled": len(known.keys() - posted) + len(told.posts) - len(posted),
        "failed": states["failed"],
        "cancelled_by_nobody": len(
            {id for id, job in known.items() if job["state"] == "cancelled"} - told.cancelled
        ),
        "faults": told.faults[:20],
        "seconds_of": {what: _spread(times) for what, times in sorted(told.times.items())}
        | {"from request to picture": _spread(told.whole)},
    }


def _spread(times: list[float]) -> dict[str, float]:
    ordered = sorted(times) or [0.0]
    places = {"median": 0.5, "p95": 0.95, "p99": 0.99}
    found = {name: round(ordered[int(place * (len(ordered) - 1))], 3) for name, place in places.items()}
    return {"number": len(times), **found, "most": round(ordered[-1], 3)}


def table(found: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    memory = found["memory_mib"]
    load = found["machine"]["load"]
    rows = [f"{found['clients']} clients, {found['seconds']:g} s; load of the machine {load:.1f}"]
    rows += ["", "| | |", "|---|---|"]
    rows += [
        f"| {name} | {found[name]} |"
        for name in ("requests", "jobs", "pictures_a_minute", "replayed", "hung_up")
    ]
    rows += [f"| {name} | {found[name]} |" for name in ("lost", "doubled", "failed", "cancelled_by_nobody")]
    rows.append(
        f"| memory, warm | {memory['warm']} MiB, at the end {memory['end']} ({memory['growth']:+.1%}) |"
    )
    rows += ["", "| seconds | number | median | p95 | p99 | most |", "|---|---|---|---|---|---|"]
    for what, spread in found["seconds_of"].items():
        rows.append(f"| {what} | " + " | ".join(str(value) for value in spread.values()) + " |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--warm-up", type=float, default=30.0, help="seconds until the memory is looked at")
    parser.add_argument("--out", type=Path, default=Path("work/soak.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measured(options.seconds, options.clients, options.warm_up, Path(work))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    kept = not (
        found["lost"]
        or found["doubled"]
        or found["failed"]
        or found["cancelled_by_nobody"]
        or found["faults"]
    )
    return 0 if kept and found["memory_mib"]["growth"] < 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
