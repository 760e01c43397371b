"""doctor: looks at this machine and the work folder in a few seconds. Every finding says what to do about it.

It downloads nothing, and loads no model. `warn` is no mistake: something is slower, or missing that only some
verbs need.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from triptych import __version__
from triptych.errors import TriptychError
from triptych.events import Event, Run
from triptych.verbs.doctor_config import DoctorConfig

GIB = 2**30
State = Literal["ok", "warn", "fail"]
EXTRAS = {
    "app": ("gradio",),
    "serve": ("fastapi", "uvicorn", "prometheus_client", "python_multipart"),
    "notebook": ("anywidget",),
    "optimizers": ("bitsandbytes", "prodigyopt"),
    "quantization": ("bitsandbytes", "torchao"),
}
"""By extra: the modules that it installs."""
LOW_DISK, LOW_RAM = 40, 15
"""GiB that FLUX.1-dev or klein-4B and its embeddings want on the disk; and in RAM, for klein-4B."""


@dataclass(frozen=True)
class Finding:
    """What was found about one thing, and the remedy; `fix` is empty if there is nothing to do."""

    name: str
    state: State
    detail: str
    fix: str = ""


def doctor(config: DoctorConfig) -> Run:
    """Look at Python, packages, memory, disk, card, hub and work folder; fails if something is to mend."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _torch,
        _torchvision,
        _packages,
        *(lambda extra=extra: _extra(extra) for extra in EXTRAS),
        _card,
        _precision,
        _memory,
        lambda: _disk(config.work),
        lambda: _folder(config.work),
        lambda: _lock(config.work),
        _clock,
        _hub,
        _pocket,
    ]
    checks += [lambda: _model(config.model)] if config.model else []
    checks += [lambda: _server(str(config.base_url))] if config.base_url else []
    summary: dict[str, Any] = {"version": __version__, "findings": [], "failed": 0, "warned": 0}

    def work() -> Iterator[Event]:
        for check in checks:
            found = _looked(check)
            summary["findings"].append(vars(found))
            summary["failed"] += found.state == "fail"
            summary["warned"] += found.state == "warn"
            yield Event(found.name, "rejected" if found.state == "fail" else "done", found.detail)
        run.failed = summary["failed"]
        run.text = _text(summary)

    run = Run("doctor", len(checks), work(), summary)
    return run


def _looked(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # whatever is broken here is what is looked for
        name = getattr(check, "__name__", "check").strip("_<>")
        return Finding(name, "fail", f"{type(error).__name__}: {error}"[:200], "Install triptych anew.")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("Python", "ok" if good else "fail", version, "" if good else "Use Python 3.11 or newer.")


def _torch() -> Finding:
    import torch

    built = torch.version.cuda
    detail = f"{torch.__version__}, {f'for CUDA {built}' if built else 'for CPUs'}"
    if built is None and shutil.which("nvidia-smi"):
        fix = "Install PyTorch for CUDA, see pytorch.org; this machine has an NVIDIA driver."
        return Finding("PyTorch", "warn", detail, fix)
    return Finding("PyTorch", "ok", detail)


def _torchvision() -> Finding:
    """Not needed; but one built for another PyTorch breaks the import of transformers."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "ok", "not installed, and not needed")
    try:
        import torchvision
    except Exception as error:
        fix = "pip uninstall torchvision, or install the one of this PyTorch."
        return Finding("torchvision", "fail", f"cannot be imported: {error}"[:160], fix)
    return Finding("torchvision", "ok", str(torchvision.__version__))


def _packages() -> Finding:
    """The versions that this triptych asks for."""
    from packaging.requirements import Requirement

    wrong = []
    for line in importlib.metadata.requires("triptych") or []:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version} is not {wanted.specifier}")
    if wrong:
        return Finding("packages", "fail", "; ".join(wrong[:5]), "pip install --upgrade triptych")
    return Finding("packages", "ok", "all that are needed, in versions that fit")


def _extra(extra: str) -> Finding:
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        fix = f"If you want it: pip install 'triptych[{extra}]'"
        return Finding(f"extra {extra}", "ok", f"not installed ({', '.join(missing)})", fix)
    return Finding(f"extra {extra}", "ok", "installed")


def _card() -> Finding:
    import torch

    if not torch.cuda.is_available():
        fix = "FLUX.2-klein makes a picture in minutes on a CPU; training needs a card."
        return Finding("card", "warn", "none that PyTorch can use", fix)
    free, total = torch.cuda.mem_get_info()
    detail = f"{torch.cuda.get_device_name()}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < 0.85 * total:
        return Finding("card", "warn", detail, "Close other programs that use it, see nvidia-smi.")
    return Finding("card", "ok", detail)


def _precision() -> Finding:
    import torch

    from triptych.compute.devices import default_device, default_dtype

    dtype = str(default_dtype(default_device())).removeprefix("torch.")
    if dtype == "float32" and torch.cuda.is_available():
        return Finding("bfloat16", "warn", "this card has none; float32 takes twice the memory", "--quantize")
    return Finding("dtype", "ok", f"auto means {dtype} here")


def _memory() -> Finding:
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = _available() or pages * size / GIB
    detail = f"{free:.0f} GiB of RAM available, {os.cpu_count()} processors"
    if free < LOW_RAM:
        fix = (
            f"Models of real size want {LOW_RAM} GiB and more while they load; `triptych plan` says how much."
        )
        return Finding("RAM", "warn", detail, fix)
    return Finding("RAM", "ok", detail)


def _available() -> float | None:
    """GiB that programs can have, caches counted; None where Linux does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 2**20
    except (OSError, ValueError):
        pass
    return None


def _home(work: Path) -> Path:
    """The work folder, or the nearest folder above it that exists."""
    work = work.absolute()
    return next(path for path in (work, *work.parents) if path.is_dir())


def _disk(work: Path) -> Finding:
    free = shutil.disk_usage(_home(work)).free / GIB
    if free < LOW_DISK:
        fix = f"A model of real size and its embeddings want {LOW_DISK} GiB: `triptych plan` says how much."
        return Finding("disk", "warn" if free > 2 else "fail", f"{free:.1f} GiB free", fix)
    return Finding("disk", "ok", f"{free:.0f} GiB free")


def _folder(work: Path) -> Finding:
    """What the stages do there: write aside, rename, flush."""
    home = _home(work)
    try:
        with tempfile.TemporaryDirectory(dir=home, prefix=".doctor-") as folder:
            aside = Path(folder) / "a.part"
            with open(aside, "wb") as file:
                file.write(b"x")
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, Path(folder) / "a")
    except OSError as error:
        return Finding("work folder", "fail", f"{home}: {error.strerror}", "Choose another one with --work.")
    return Finding("work folder", "ok", f"{home} can be written")


def _lock(work: Path) -> Finding:
    home = _home(work)
    path = home / f".doctor-{os.getpid()}.lock"
    try:
        with FileLock(path, timeout=2):
            pass
    except (OSError, Timeout, NotImplementedError) as error:
        fix = "This file system has no locks: let only one command work in a folder at a time."
        return Finding("locks", "warn", f"{type(error).__name__}", fix)
    finally:
        path.unlink(missing_ok=True)
    return Finding("locks", "ok", "two runs cannot work in one folder by mistake")


def _clock() -> Finding:
    good = time.time() > 1_700_000_000
    return Finding(
        "clock", "ok" if good else "fail", time.strftime("%Y-%m-%d %H:%M"), "" if good else "Set the clock."
    )


def _hub() -> Finding:
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    kept = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    detail = f"{kept} models in {cache}, {'a token' if get_token() else 'no token'}"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "ok", f"{detail}; offline, nothing is fetched")
    fix = (
        "" if get_token() else "FLUX.1-dev and klein-9B want one: accept their licence, then `hf auth login`."
    )
    return Finding("hub", "ok", detail, fix)


def _pocket() -> Finding:
    from triptych.backbones.settings import model_settings

    model_settings("pocket"), model_settings("pocket-klein")
    return Finding("embedded models", "ok", "pocket and pocket-klein are there: `triptych demo` shows them")


def _model(model: str) -> Finding:
    from triptych.backbones.settings import model_settings

    try:
        settings = model_settings(model)
    except TriptychError as error:
        return Finding("model", "fail", error.message, error.hint)
    return Finding("model", "ok", f"{model}: panels of {settings.panel_width} × {settings.panel_height}")


def _server(url: str) -> Finding:
    from triptych.captioning.replies import check_url

    try:
        check_url(url)
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=3):
            pass
    except TriptychError as error:
        return Finding("captioner", "fail", error.message, error.hint)
    except OSError as error:
        return Finding("captioner", "fail", f"{url}: {error}", "Is the server running there?")
    return Finding("captioner", "ok", f"{url} answers")


def _text(summary: dict[str, Any]) -> str:
    """The findings as lines, those that want something first."""
    order = {"fail": 0, "warn": 1, "ok": 2}
    lines = [f"triptych {summary['version']}"]
    for one in sorted(summary["findings"], key=lambda one: order[one["state"]]):
        lines.append(f"{one['state']:4}  {one['name']}: {one['detail']}")
        lines += [f"      → {one['fix']}"] if one["fix"] else []
    failed, warned = summary["failed"], summary["warned"]
    lines.append(
        f"{failed} to mend, {warned} to know" if failed or warned else "Everything that is needed is there."
    )
    return "\n".join(lines)
