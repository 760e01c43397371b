"""Does an installed triptych work by itself? Draws a shop, dresses somebody with each embedded model, and
looks at the pictures. `make wheel` runs it in an empty environment.

    env/bin/python -I benchmarks/wheel_check.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import triptych
from triptych.evaluation.rendered import held_out_items

COMMAND = Path(sys.executable).with_name("triptych")
PROMPT = "one dress <IMAGE 1> its front <IMAGE 2> its back <IMAGE 3> a woman in the dress"


def main() -> int:
    print(f"triptych {triptych.__version__} in {Path(triptych.__file__).parent}")
    item = held_out_items(1)[0]
    with tempfile.TemporaryDirectory() as folder:
        photos = {"front": item.front, "back": item.back, "person": item.view(2, item.other()).image}
        paths = {name: Path(folder) / f"{name}.png" for name in photos}
        for name, photo in photos.items():
            photo.save(paths[name])
        for model in ("pocket", "pocket-klein"):
            out = Path(folder) / f"{model}.png"
            words = [word for name, path in paths.items() for word in (f"--{name}", path)]
            options = ["--model", model, "--mask", "auto:dress", "--prompt", PROMPT, "--out", out]
            subprocess.run([COMMAND, "tryon", *words, *options], check=True, cwd=folder)
            before, after = (np.asarray(Image.open(path).convert("RGB")) for path in (paths["person"], out))
            moved = float((before != after).any(-1).mean())
            print(f"{model}: {100 * moved:.0f} % of the photo is made anew")
            if not 0.05 < moved < 0.95:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
