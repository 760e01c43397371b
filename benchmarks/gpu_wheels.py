"""The packages that `gpu.py` needs on a machine with a card and no network: fetched here as wheels, put on
the path there.

    python benchmarks/gpu_wheels.py --out build/gpu-wheels          # pip downloads them, pinned by
    constraints.txt python benchmarks/gpu_wheels.py --out build/gpu-wheels --cuda 126 --python 3.12

Two folders, so that a machine that has the usual packages around PyTorch needs only the first, small one:

    always   what such a machine lacks, or has in other versions: goes before what is installed there
    bare     what a machine with nothing but PyTorch lacks as well: used only where it is missing

PyTorch and what it brings itself are in neither. What no part of the benchmark uses is left out of the wheels
(`LEFT_OUT`), of bitsandbytes all libraries but the one for the CPU and the one for the card's CUDA. `gpu.py`
unpacks the folders it finds into a temporary one: no pip is needed there, and nothing is written to where
packages are installed. Linux on x86-64.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gpu-wheels"
LIMIT = 64 << 20
"""Bytes that both folders may have together."""

ALWAYS = (
    *("bitsandbytes", "diffusers", "importlib_metadata", "lazy-importer", "peft", "prodigyopt", "torchao"),
    *("annotated-types", "pydantic", "pydantic_core", "typing-inspection", "typing_extensions"),
)
BARE = (
    *(
        "absl-py",
        "accelerate",
        "anyio",
        "certifi",
        "charset-normalizer",
        "click",
        "h11",
        "httpcore2",
        "httpx2",
        "huggingface_hub",
    ),
    *(
        "idna",
        "numpy",
        "packaging",
        "pillow",
        "protobuf",
        "psutil",
        "PyYAML",
        "regex",
        "requests",
        "safetensors",
        "scipy",
    ),
    *("tensorboard", "tokenizers", "tqdm", "transformers", "truststore", "urllib3", "zipp"),
)

TRANSFORMERS = "auto|bloom|clip|dinov2_with_registers|encoder_decoder|qwen2|qwen3|siglip|t5|vit_mae"
"""The models that diffusers, peft and triptych import; of the others configs and tokenizers are asked for."""
LEFT_OUT = {
    "*": r"(^|/)tests?/",
    "bitsandbytes": r"/libbitsandbytes_(?!cpu\.|cuda{cuda}\.)",
    "diffusers": r"^diffusers/pipelines/(?!(flux|flux2|stable_diffusion|stable_diffusion_3)/)[^/]+/",
    "pillow": r"avif",
    "tensorboard": r"/webfiles\.zip$",
    "torchao": r"\.so$",  # for another PyTorch; its int8 tensors are written in Python
    "transformers": rf"^transformers/models/(?!({TRANSFORMERS})/)[^/]+/"
    r"(?!__init__|configuration_|tokenization_)",
}
"""By package, and for all: paths in the wheel that nothing here opens."""

PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17, 12, 5)] + [
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
]


def pins() -> dict[str, str]:
    """Versions by package name, as constraints.txt has them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {plain(name): version for name, _, version in (line.partition("==") for line in lines)}


def plain(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def fetch(names: Sequence[str], python: str, folder: Path, cuda: str) -> None:
    """Download the wheels of these packages for a version of Python, and keep of them what is needed."""
    wanted, known = (
        [f"{name}=={pins()[plain(name)]}" for name in names],
        ["--only-binary=:all:", "--implementation=cp"],
    )
    known += [f"--platform={name}" for name in PLATFORMS]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as aside:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            *known,
            f"--python-version={python}",
        ]
        subprocess.run([*command, "--dest", aside, *wanted], check=True)
        for wheel in sorted(Path(aside).glob("*.whl")):
            trim(wheel, folder / wheel.name, cuda)


def trim(wheel: Path, out: Path, cuda: str) -> None:
    """Write a wheel without what `LEFT_OUT` names, and packed closer. cuda: CUDA's version in digits, such
    as 130."""
    name = plain(wheel.name.partition("-")[0])
    unused = re.compile(
        "|".join(LEFT_OUT[key].replace("{cuda}", cuda) for key in ("*", name) if key in LEFT_OUT)
    )
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(out, "w") as kept:
        for entry in source.infolist():
            if not unused.search(entry.filename):
                kept.writestr(entry, source.read(entry), zipfile.ZIP_LZMA)


def unpack(folder: Path, into: Path) -> list[str]:
    """Unpack what this Python needs of the fetched wheels, and put it on the path before all else; the names
    of the wheels.

    Call it before anything else is imported from outside the standard library.
    """
    used = []
    for wheel in sorted([*(folder / "always").glob("*.whl"), *(folder / "bare").glob("*.whl")]):
        name, *_, python, abi, _ = wheel.stem.split("-")
        fits = abi in ("none", "abi3") or python == f"cp{sys.version_info.major}{sys.version_info.minor}"
        if fits and (wheel.parent.name == "always" or not installed(name)):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(into)
            used.append(wheel.name)
    if used:
        sys.path.insert(0, str(into))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(into), os.environ.get("PYTHONPATH")]))
    return used


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument(
        "--python",
        default=here,
        help="version of Python on the machine with the card",
    )
    parser.add_argument(
        "--also", nargs="*", default=[], help="further versions of Python that 'always' has to suit"
    )
    parser.add_argument(
        "--cuda", default="130", help="CUDA that its PyTorch was built for, in digits: 126, 128, 130, 132"
    )
    options = parser.parse_args()
    for old in options.out.glob("*/*.whl"):
        old.unlink()
    fetch(ALWAYS, options.python, options.out / "always", options.cuda)
    for python in set(options.also) - {options.python}:
        fetch(["pydantic_core"], python, options.out / "always", options.cuda)
    fetch(BARE, options.python, options.out / "bare", options.cuda)
    sizes = {
        part: sum(wheel.stat().st_size for wheel in (options.out / part).glob("*.whl"))
        for part in ("always", "bare")
    }
    print(", ".join(f"{part}: {size / 2**20:.1f} MiB" for part, size in sizes.items()), f"in {options.out}")
    if sum(sizes.values()) > LIMIT:
        sys.exit(f"That is more than {LIMIT >> 20} MiB together.")


if __name__ == "__main__":
    main()
