"""Every registered family keeps the contract: what is done to its blocks is done to nearly all of the model.

A family that names its blocks wrongly would make `--quantize`, `--blocks-to-swap`, a LoRA or sharding do
nothing in silence. The last tests give such families, and see them refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from triptych.backbones.context import Reference, Window
from triptych.backbones.contract import Backbone
from triptych.backbones.families import FAMILIES
from triptych.backbones.flux.model import Flux
from triptych.backbones.known import known_models
from triptych.backbones.registry import BACKBONES, load_backbone
from triptych.captioning.prompt_tokens import prompt_tokenizer
from triptych.compute import swap
from triptych.compute.blocks import linear_layers, share_of
from triptych.compute.modulation import _Made
from triptych.compute.quantize import QuantizedLinear
from triptych.errors import ModelError
from triptych.lora.adapter import add_lora
from triptych.lora.models import TITLES
from triptych.planning.shapes import model_shapes
from triptych.tasks.tryon import TRY_ON

from .conftest import latent_shape
from .test_clean_context import text

CPU = torch.device("cpu")


@pytest.fixture(params=[*dict.fromkeys(family.name for family in BACKBONES.values())])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """The tiny checkpoint of each registered family: `tiny_<family>` in conftest.py."""
    return request.getfixturevalue(f"tiny_{request.param}")


def opened(checkpoint: Path, **changes: object) -> tuple[Backbone, nn.Module]:
    backbone = load_backbone(str(checkpoint), "cpu", "fp32", **changes)  # type: ignore[arg-type]
    return backbone, backbone.load_transformer()


def velocity(backbone: Backbone, transformer: nn.Module, t: float = 0.7) -> Tensor:
    latents = torch.randn(1, *latent_shape(backbone), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.velocity(transformer, latents, torch.tensor([t]), text(1, 0), 3.5)


def quantized(transformer: nn.Module) -> set[str]:
    return {name for name, module in transformer.named_modules() if isinstance(module, QuantizedLinear)}


def swapped(transformer: nn.Module, blocks: dict[str, nn.Module]) -> set[str]:
    """Blocks whose tensors are fetched when they are called."""
    return {path for path, block in blocks.items() if "forward" in vars(block)}


@pytest.mark.parametrize("model", known_models())
def test_blocks_hold_nearly_all_linear_weights(model: str) -> None:
    shapes = model_shapes(model)
    transformer = shapes.build("transformer", torch.float32)
    assert share_of(transformer, shapes.family.blocks(transformer)) >= 0.9


def test_the_blocks_of_every_family_are_known_in_full_size() -> None:
    assert {model_shapes(model).family for model in known_models()} == {*BACKBONES.values()}


def test_blocks_are_those_that_run_in_their_order(checkpoint: Path) -> None:
    backbone, transformer = opened(checkpoint)
    blocks, ran = backbone.blocks(transformer), []
    for path, block in blocks.items():
        block.register_forward_pre_hook(lambda *_, path=path: ran.append(path))
    velocity(backbone, transformer)
    assert ran == [*blocks] and len(ran) >= 3


def test_quantise_reaches_every_linear_layer_of_the_blocks(checkpoint: Path) -> None:
    (full, whole), (backbone, transformer) = opened(checkpoint), opened(checkpoint, quantize="int8")
    assert quantized(transformer) == linear_layers(full.blocks(whole)).keys() != set()

    def size(module: nn.Module) -> int:
        return sum(tensor.nbytes for tensor in module.state_dict().values())

    assert size(transformer) < 0.7 * size(whole)
    assert not torch.equal(velocity(backbone, transformer), velocity(full, whole))


def test_swap_takes_as_many_blocks_as_were_asked_for(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, transformer = opened(checkpoint, blocks_to_swap=2)
    blocks, fetched, fetch = backbone.blocks(transformer), [], swap.fetch
    assert swapped(transformer, blocks) == {*list(blocks)[:2]}
    monkeypatch.setattr(swap, "fetch", lambda tensor, device: fetched.append(tensor) or fetch(tensor, device))
    made = velocity(backbone, transformer)
    pieces = [
        [p.untyped_storage().data_ptr() for p in blocks[path].parameters()] for path in list(blocks)[:2]
    ]
    assert [[piece.data_ptr()] * len(all_of) for piece, all_of in zip(fetched, pieces, strict=True)] == pieces
    torch.testing.assert_close(made, velocity(*opened(checkpoint)), rtol=1e-5, atol=1e-5)


def test_a_lora_adapts_every_block_and_most_of_it(checkpoint: Path) -> None:
    backbone, transformer = opened(checkpoint)
    before = velocity(backbone, transformer)
    blocks, layers = backbone.blocks(transformer), backbone.lora_layers(transformer)
    assert all(any(layer.startswith(f"{path}.") for layer in layers) for path in blocks)
    linear = linear_layers(blocks)
    assert sum(linear[name].weight.numel() for name in layers) > 0.5 * sum(
        layer.weight.numel() for layer in linear.values()
    )
    assert all(map(backbone.is_lora_layer, layers)) and not backbone.is_lora_layer("proj_out")
    for parameter in add_lora(transformer, layers, 4, 4, 0.0, 0):
        parameter.data += 0.1  # lora_B is zero otherwise
    assert not torch.equal(velocity(backbone, transformer), before)


def test_modulation_of_every_block_is_computed_beforehand(checkpoint: Path) -> None:
    backbone, transformer = opened(checkpoint)
    expected, calls = velocity(backbone, transformer), []
    with torch.no_grad():
        run = backbone.premodulated(transformer, [0.9, 0.7], text(1, 0), 3.5)
    embedding = transformer.get_submodule(backbone.time_embedding)
    embedding.register_forward_hook(lambda *_: calls.append(1))
    shown = run.at(0.7)
    shared = [shown.get_submodule(name) for name in backbone.shared_modulation]
    for path, block in backbone.blocks(shown).items():
        assert any(isinstance(module, _Made) for module in (*block.modules(), *shared)), path
    torch.testing.assert_close(velocity(backbone, shown), expected, rtol=1e-5, atol=1e-5)
    assert not calls, "the time is not embedded at every step"
    assert not any(isinstance(module, _Made) for module in transformer.modules())


def test_text_is_as_large_as_the_family_says(checkpoint: Path) -> None:
    """`plan` asks for the shapes; the tokens are those that attention is given."""
    backbone, transformer = opened(checkpoint)
    words = backbone.load_text_encoder().encode(["a dress", "b"], 24)
    said = backbone.text_shapes(transformer, 24)
    assert {name: tuple(value.shape[1:]) for name, value in words.items()} == said
    mask = {"mask": torch.ones(2, 5, dtype=torch.bool), "count": torch.tensor([3, 4])}
    moved = backbone.to_device({**words, **mask})
    assert {name: value.dtype for name, value in moved.items()} == {
        **dict.fromkeys(words, torch.float32),
        "mask": torch.bool,
        "count": torch.int64,
    }
    shapes = model_shapes(str(checkpoint))
    assert shapes.text_tokens(24) == backbone.text_tokens(words) > 0
    assert {name: value.shape for name, value in shapes.text(24, 2, torch.float32).items()} == {
        name: value.shape for name, value in words.items()
    }


def test_text_tokens_are_those_that_attention_is_given(checkpoint: Path) -> None:
    backbone, transformer = opened(checkpoint)
    words, active = text(1, 0), torch.zeros(3, 6, dtype=torch.bool)
    active[0, :4] = True
    latents = torch.zeros(1, *latent_shape(backbone))
    context = backbone.read(transformer, [Reference(latents, ~active)], text(1, 1))
    key, _ = next(iter(context.kept.values()))
    assert key.shape[context.sequence_dim] == 3 * 6 - 4, "known tokens are read without words"
    given = []

    class Spy(type(context)):  # type: ignore[misc]
        def join(self, layer: object, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            given.append(key.shape[self.sequence_dim])
            return super().join(layer, key, value)

    window = Window(active, Spy(context.sequence_dim, context.kept))
    with torch.no_grad():
        backbone.velocity(transformer, latents, torch.tensor([0.5]), words, 3.5, window)
    assert max(given) == 4 + backbone.text_tokens(words)


def test_tokens_are_counted_without_weights(checkpoint: Path) -> None:
    encoder, tokenizer = opened(checkpoint)[0].load_text_encoder(), prompt_tokenizer(str(checkpoint))
    assert tokenizer is not None
    for prompt in ("", "a dress", "three pictures <IMAGE 1> the front of a dress"):
        assert tokenizer.count(prompt) == encoder.count_tokens(prompt)


def test_a_token_is_as_large_as_the_family_says(checkpoint: Path) -> None:
    backbone = load_backbone(str(checkpoint), "cpu", "fp32")
    autoencoder, family = backbone.load_autoencoder(), backbone.family
    assert backbone.settings.stride == autoencoder.stride * family.latents_per_token
    assert model_shapes(str(checkpoint)).latent_stride == autoencoder.stride
    assert all(FAMILIES[pipeline] is family for pipeline in family.pipelines)
    assert TITLES[backbone.name] == family.title


def test_plan_knows_every_part_that_has_weights(checkpoint: Path) -> None:
    shapes, backbone = model_shapes(str(checkpoint)), load_backbone(str(checkpoint), "cpu", "fp32")
    parts = {path.parent.name for path in checkpoint.rglob("*.safetensors")}
    assert shapes.configs.keys() == shapes.parameters.keys() == parts
    assert {*shapes.text_encoders} == parts - {"transformer", "vae"}
    assert shapes.latents(TRY_ON.layout(32, 48), 1).shape == (1, *latent_shape(backbone))


# --- the tests bite


@pytest.fixture
def z_image(tiny_flux: Path, tmp_path: Path) -> Path:
    """A checkpoint whose transformer calls its blocks otherwise: `layers`, `noise_refiner`,
    `context_refiner`.
    """
    from diffusers import ZImageTransformer2DModel

    folder = tmp_path / "z-image"
    shutil.copytree(tiny_flux, folder)
    shutil.rmtree(folder / "transformer")
    ZImageTransformer2DModel(
        in_channels=16,
        dim=64,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 12, 12],
        axes_lens=[64, 64, 64],
    ).save_pretrained(folder / "transformer")
    return folder


def z_image_family(lists: tuple[str, ...]) -> type[Backbone]:
    from diffusers import ZImageTransformer2DModel

    return type(
        "ZImage",
        (Flux,),
        {"name": "z-image", "transformer_class": ZImageTransformer2DModel, "block_lists": lists},
    )


@pytest.mark.parametrize("options", [("nf4", 0), ("none", 1), ("none", 0)], ids=["nf4", "swap", "plain"])
@pytest.mark.parametrize(
    ("lists", "words"),
    [
        (Flux.block_lists, "ZImageTransformer2DModel has no blocks transformer_blocks"),
        ((), "of which none is named"),
        (("noise_refiner",), "of its linear weights only"),
    ],
    ids=["another family's", "none", "few"],
)
def test_a_family_with_the_wrong_blocks_is_refused(
    z_image: Path, lists: tuple[str, ...], words: str, options: tuple[str, int]
) -> None:
    backbone = z_image_family(lists)(str(z_image), CPU, torch.float32, *options)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=words) as error:
        backbone.load_transformer()
    assert "z-image" in error.value.message and "block_lists" in error.value.hint


def test_helpers_know_no_names(z_image: Path) -> None:
    """With the right lists, what is done to blocks works on a model that none of the helpers was
    written for.
    """
    family = z_image_family(("noise_refiner", "context_refiner", "layers"))
    backbone = family(str(z_image), CPU, torch.float32, "int8", 2)
    transformer = backbone.load_transformer()
    blocks = backbone.blocks(transformer)
    assert [*blocks][:3] == ["noise_refiner.0", "context_refiner.0", "layers.0"] and len(blocks) == 6
    assert quantized(transformer) == linear_layers(blocks).keys()
    assert swapped(transformer, blocks) == {"noise_refiner.0", "context_refiner.0"}
