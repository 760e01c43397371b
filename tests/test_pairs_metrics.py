"""The arithmetic of `evaluate --pairs`: published tables, other libraries' numbers, and definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from triptych.errors import ModelError
from triptych.evaluation.metrics import distributions
from triptych.evaluation.metrics.colour import ciede2000, lab_of
from triptych.evaluation.metrics.features import open_features
from triptych.evaluation.metrics.inception import Inception
from triptych.evaluation.metrics.perceptual import BACKBONES, HanningPool, open_dists, open_lpips
from triptych.evaluation.metrics.reading import agreement
from triptych.evaluation.metrics.similarity import pixels, ssim


def test_ssim_fid_and_kid_are_those_of_torchmetrics() -> None:
    """The numbers are torchmetrics 1.9.0's for the same arrays, in float64: its structural similarity with
    data_range 1, and the functions behind its FID and KID.
    """
    rng = np.random.default_rng(5)
    a = rng.integers(0, 256, (60, 48, 3), dtype=np.uint8)
    b = np.clip(a.astype(int) + rng.integers(-60, 60, a.shape), 0, 255).astype(np.uint8)
    x, y = rng.normal(size=(40, 12)), rng.normal(0.3, 1.2, size=(50, 12))
    assert ssim(Image.fromarray(a), Image.fromarray(b)) == pytest.approx(0.9040754932705, abs=1e-12)
    assert distributions.frechet(x, y) == pytest.approx(4.614212974904358, abs=1e-10)
    assert distributions.frechet(x[:6], y[:8]) == pytest.approx(22.06701606759878, abs=1e-6)
    assert distributions.kernel_distance(x, y[:40]) == pytest.approx(0.4335194115218246, abs=1e-12)
    assert distributions.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_kid_of_subsets_and_the_jackknife_hold_what_they_estimate() -> None:
    rng = np.random.default_rng(0)
    made, true = rng.normal(size=(120, 8)), rng.normal(0.5, 1, size=(120, 8))
    whole = distributions.kernel_distance(made, true)
    assert distributions.kid(made, true, subsets=60, size=40) == pytest.approx(whole, rel=0.2)
    assert distributions.kid(made, true, size=40) == distributions.kid(made, true, size=40)
    found = distributions.jackknife(distributions.kernel_distance, made, true)
    again = [
        distributions.kernel_distance(rng.normal(size=(120, 8)), rng.normal(0.5, 1, size=(120, 8)))
        for _ in range(40)
    ]
    assert 0.5 < (found.high - found.low) / (4 * np.std(again)) < 2
    mean = distributions.bootstrap(np.arange(100.0))
    assert mean.low == pytest.approx(49.5 - 5.7, abs=0.8) and mean.high == pytest.approx(49.5 + 5.7, abs=0.8)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, 2.5, 0), (58, 24, 15), 19.4535),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_ciede2000_is_that_of_its_authors_table(first: tuple, second: tuple, distance: float) -> None:
    """Sharma, Wu and Dalal 2005, table 1."""
    for one, other in ((first, second), (second, first)):
        assert ciede2000(np.array(one), np.array(other)) == pytest.approx(distance, abs=5e-5)


def test_lab_of_white_grey_and_red() -> None:
    found = lab_of(np.array([[255, 255, 255], [119, 119, 119], [255, 0, 0]]))
    assert found[0] == pytest.approx([100, 0, 0], abs=0.01) and found[1, 0] == pytest.approx(50.03, abs=0.01)
    assert found[2] == pytest.approx([53.24, 80.09, 67.2], abs=0.01)


def _two(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(a), Image.fromarray((a // 2 + 40).astype(np.uint8))


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_is_its_definition(tmp_path: Path, net: str) -> None:
    """With the names of the published files, and random weights."""
    torch.manual_seed(0)
    build, taps = BACKBONES[net]
    network, (made, true) = build(), _two(70, 65)
    outputs, x, y = [], 2 * pixels(made) - 1, 2 * pixels(true) - 1
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    with torch.no_grad():
        x, y = (x - shift) / scale, (y - shift) / scale
        for number, layer in enumerate(network):
            x, y = layer(x), layer(y)
            outputs += [(x, y)] * (number in taps)
    heads = [torch.rand(1, a.shape[1], 1, 1) for a, _ in outputs]
    wanted = 0.0
    for (a, b), head in zip(outputs, heads, strict=True):
        unit = [one / one.pow(2).sum(1, keepdim=True).sqrt().clamp_min(1e-10) for one in (a, b)]
        wanted += float(((unit[0] - unit[1]).pow(2) * head).sum(1).mean())
    names = {f"net.slice1.{name}": tensor for name, tensor in network.state_dict().items()}
    heads_by_name = {f"lin{n}.model.1.weight": head for n, head in enumerate(heads)}
    save_file(names | heads_by_name, tmp_path / "w.safetensors")
    metric = open_lpips(tmp_path / "w.safetensors")
    assert metric.name == f"LPIPS ({net})" and len(metric.sha256) == 64
    assert metric.distance(made, true) == pytest.approx(wanted, rel=1e-4)
    assert metric.distance(made, made) == 0
    save_file(names, tmp_path / "headless.safetensors")
    with pytest.raises(ModelError, match=r"lin0\.model\.1\.weight is missing"):
        open_lpips(tmp_path / "headless.safetensors")


def test_dists_is_its_definition(tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, taps = BACKBONES["vgg"]
    network, (made, true) = build(), _two(32, 32)
    alpha, beta = torch.rand(1, 1475, 1, 1), torch.rand(1, 1475, 1, 1)
    save_file(
        {f"features.{name}": tensor for name, tensor in network.state_dict().items()}
        | {"alpha": alpha, "beta": beta},
        tmp_path / "w.safetensors",
    )
    metric = open_dists(tmp_path / "w.safetensors")
    mean, deviation = (
        torch.tensor(v)[None, :, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    features: list[tuple[torch.Tensor, torch.Tensor]] = [(pixels(made), pixels(true))]
    with torch.no_grad():
        x, y = ((one - mean) / deviation for one in features[0])
        for number, layer in enumerate(network):
            layer = HanningPool() if isinstance(layer, torch.nn.MaxPool2d) else layer
            x, y = layer(x), layer(y)
            features += [(x, y)] * (number in taps)
    total, place, alike = float(alpha.sum() + beta.sum()), 0, 0.0
    for x, y in features:
        for a, b in zip(x[0].double(), y[0].double(), strict=True):
            c = ((a - a.mean()) * (b - b.mean())).mean()
            texture = (2 * a.mean() * b.mean() + 1e-6) / (a.mean() ** 2 + b.mean() ** 2 + 1e-6)
            structure = (2 * c + 1e-6) / (a.var(correction=0) + b.var(correction=0) + 1e-6)
            alike += float(alpha[0, place] * texture + beta[0, place] * structure) / total
            place += 1
    assert metric.distance(made, true) == pytest.approx(1 - alike, abs=1e-4)
    assert metric.distance(made, made) == pytest.approx(0, abs=1e-5)


def test_inception_is_named_for_its_file_and_published_only_if_the_file_says_its_origin(
    tmp_path: Path,
) -> None:
    tensors = Inception().state_dict()
    save_file(tensors, tmp_path / "mine.safetensors")
    save_file(tensors, tmp_path / "fid.safetensors", {"source_sha256": "6726825d0af5f729"})
    ours, theirs = (open_features(f"inception:{tmp_path}/{name}.safetensors") for name in ("mine", "fid"))
    assert (ours.name, ours.published) == ("Inception-v3, mine.safetensors", False)
    assert (theirs.name, theirs.published) == ("Inception-v3, pt_inception-2015-12-05", True)
    assert ours.features([Image.new("RGB", (40, 60), "red")]).shape == (1, 2048)
    with pytest.raises(ModelError, match="inception:FILE"):
        open_features("inception")
    (tmp_path / "no.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelError, match="no safetensors file"):
        open_features(f"inception:{tmp_path}/no.safetensors")


def test_readings_agree_by_their_letters() -> None:
    assert agreement("Hello,  World", "HELLO world") == 1
    assert agreement("HELO", "HELLO") == pytest.approx(0.8)
    assert agreement("", "HELLO") == 0 and agreement("anything", "- x") is None
