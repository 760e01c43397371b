"""plan: exact counts, a memory model that agrees with what is measured, and advice that holds; without
network and weights.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import triptych
from triptych.backbones.registry import load_backbone
from triptych.cli import main
from triptych.errors import ConfigError, InputError, ModelError
from triptych.lora.adapter import add_lora
from triptych.pictures.panels import PanelLayout
from triptych.planning import cards, runs
from triptych.planning.advice import for_run, for_training, smallest_change
from triptych.planning.memory import Machine, held_weights, train_memory
from triptych.planning.shapes import model_shapes
from triptych.planning.trace import runs_of_blocks
from triptych.tasks.tryon import TRY_ON
from triptych.training.config import TrainConfig
from triptych.verbs.plan import PlanConfig, plan

from .conftest import latent_shape

FLUX = "black-forest-labs/FLUX.1-dev"
LAYOUT = TRY_ON.layout(576, 768)
GIB = 2**30


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("plan went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "benchmark_plan", Path(__file__).parents[1] / "benchmarks" / "plan.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def configs_alone(tiny: Path, tmp_path: Path) -> Path:
    """A tiny checkpoint's folder with every weight left out."""

    def heavy(_: str, names: list[str]) -> list[str]:
        return [
            name
            for name in names
            if name.endswith((".safetensors", ".model")) or name.startswith("tokenizer")
        ]

    shutil.copytree(tiny, tmp_path / "configs", ignore=heavy)
    assert not list((tmp_path / "configs").rglob("*.safetensors"))
    return tmp_path / "configs"


@pytest.mark.parametrize(
    ("model", "counts"),
    [
        (
            FLUX,
            {
                "transformer": 11_901_408_320,
                "vae": 83_819_683,
                "text_encoder": 123_060_480,
                "text_encoder_2": 4_762_310_656,
            },
        ),
        (
            "stabilityai/stable-diffusion-3.5-large",
            {
                "transformer": 8_056_627_520,
                "text_encoder": 123_650_304,
                "text_encoder_2": 694_659_840,
                "text_encoder_3": 4_762_310_656,
            },
        ),
    ],
)
def test_published_counts(model: str, counts: dict[str, int]) -> None:
    assert counts.items() <= model_shapes(model).parameters.items()


def test_counts_of_a_folder_equal_the_loaded_model(tiny: Path, configs_alone: Path) -> None:
    shapes, backbone = model_shapes(str(configs_alone)), load_backbone(str(tiny), "cpu", "fp32")
    transformer, text = backbone.load_transformer(), backbone.load_text_encoder()
    names = ("clips", "clip", "t5", "model")
    found = [getattr(text, name) for name in names if hasattr(text, name)]
    encoders = [part for one in found for part in (one if isinstance(one, list) else [one])]
    loaded = dict(zip(shapes.text_encoders, encoders, strict=True))
    loaded |= {"transformer": transformer, "vae": backbone.load_autoencoder().vae}  # type: ignore[attr-defined]
    assert shapes.parameters == {
        part: sum(p.numel() for p in module.parameters()) for part, module in loaded.items()
    }
    assert held_weights(shapes, Machine(torch.float32)).device == sum(
        tensor.nbytes for tensor in transformer.state_dict().values()
    )
    lora = add_lora(transformer, backbone.lora_layers(transformer), 5, 5, 0.0, 0)
    assert shapes.lora_parameters(5) == sum(p.numel() for p in lora) > 0


def test_tokens_of_canvas_and_text(configs_alone: Path) -> None:
    assert model_shapes(FLUX).image_tokens(LAYOUT) == 3 * 36 * 48
    assert model_shapes(FLUX).text_tokens(512) == 512
    assert model_shapes("stabilityai/stable-diffusion-3.5-medium").text_tokens(256) == 77 + 256
    shapes = model_shapes(str(configs_alone))
    assert shapes.image_tokens(TRY_ON.layout(32, 48)) == 3 * 2 * 3
    tiny_backbone = shapes.backbone(torch.float32)
    assert shapes.latents(TRY_ON.layout(32, 48), 2).shape == (2, *latent_shape(tiny_backbone))


def test_arithmetic_of_a_training_step_follows_the_known_formula() -> None:
    """Every block multiplies S tokens with 12·d² numbers, forward, again for checkpointing, and for the
    gradient of its input (2·m·k·n operations a product), and attends with 4·S²·d, two and a half times that
    backwards.
    """
    d, blocks, tokens = 3072, 19 + 38, 3 * 36 * 48 + 512
    linear, attention = 2 * 12 * d**2 * tokens * blocks, 4 * tokens**2 * d * blocks
    run = runs.training_pass(model_shapes(FLUX), TrainConfig(batch_size=1), LAYOUT, 512, torch.bfloat16)
    assert run.flops == pytest.approx(3 * linear + 4.5 * attention, rel=0.02)
    without = runs.training_pass(
        model_shapes(FLUX),
        TrainConfig(batch_size=1, gradient_checkpointing=False),
        LAYOUT,
        512,
        torch.bfloat16,
    )
    assert without.flops == pytest.approx(2 * linear + 3.5 * attention, rel=0.02)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(
    ("family", "context"),
    [(name, way) for name in ("flux", "sd3", "flux2") for way in ("noisy", "clean")] + [("flux2", "native")],
)
def test_three_blocks_of_a_kind_tell_of_all(
    family: str,
    checkpointing: bool,
    context: str,
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = (6, 0) if family == "sd3" else (5, 7)
    case = benchmark.Case(family, 64, layers, (64, 96), 2, checkpointing, context)
    shapes = model_shapes(str(benchmark.write_configs(case, tmp_path / "model")))
    config = benchmark.train_config(case, tmp_path / "model")
    some = runs.training_pass(shapes, config, TRY_ON.layout(64, 96), 32, torch.bfloat16)
    monkeypatch.setattr(
        runs,
        "thinned",
        lambda transformer, blocks: {block: 1 for run in runs_of_blocks(blocks) for block in run},
    )
    runs._training_pass.cache_clear()
    assert runs.training_pass(shapes, config, TRY_ON.layout(64, 96), 32, torch.bfloat16) == some
    runs._training_pass.cache_clear()


@pytest.mark.slow
def test_more_needs_more() -> None:
    shapes, machine = model_shapes(FLUX), Machine()

    def size(layout: PanelLayout = LAYOUT, **settings: object) -> float:
        config = TrainConfig(**{"batch_size": 1, "num_validation_images": 0, **settings})
        return train_memory(shapes, config, layout, 512, machine).total

    least = size()
    assert (
        size(optimizer="adamw8bit")
        < least
        < size(batch_size=2)
        < size(batch_size=4)
        < size(batch_size=4, gradient_checkpointing=False)
    )
    assert size(TRY_ON.layout(384, 512)) < least < size(TRY_ON.layout(768, 1024))
    assert least < size(rank=32) < size(rank=64)
    assert least < size(optimizer="prodigy")
    assert least < size(early_stopping_patience=1, num_validation_triptychs=1)


def test_fused_attention_is_counted_without_a_matrix_of_all_pairs() -> None:
    """Twice the tokens, about twice the activations; with the matrix it would be four times."""
    config = TrainConfig(batch_size=1)
    small, large = (
        runs.training_pass(model_shapes(FLUX), config, TRY_ON.layout(576, height), 512, torch.bfloat16)
        for height in (768, 1536)
    )
    assert 1.7 < large.peak / small.peak < 2.1


def test_quantising_and_swapping_take_weights_off_the_card() -> None:
    shapes, machine = model_shapes(FLUX), Machine()
    full = held_weights(shapes, machine)
    eight, four = (held_weights(shapes, machine, name) for name in ("int8", "nf4"))
    assert full.device == 2 * 11_901_408_320
    assert 0.5 < eight.device / full.device < 0.51
    assert 0.28 < four.device / full.device < 0.29
    swapped = held_weights(shapes, machine, "nf4", 10)
    assert four.device - swapped.device == pytest.approx(8 / 10 * swapped.swapped)
    assert eight.dequantised == four.dequantised == 2 * shapes.weights.largest, "in one pass"
    on_cpu = Machine(torch.float32, card=False)
    assert held_weights(shapes, on_cpu, "int8").dequantised == 8 * shapes.weights.largest
    assert held_weights(shapes, on_cpu, "none", 10) == held_weights(shapes, on_cpu)


def test_what_other_programs_hold_of_this_machine_s_card_is_not_planned_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Named cards are planned whole."""
    monkeypatch.setattr(cards, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(cards, "default_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(cards, "_matmul_speed", lambda *_: 1e13)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (6 * GIB, 12 * GIB))
    run = plan(PlanConfig(model="pocket"))
    run.finish()
    assert run.summary["memory_gib"] == 6.4 and "a card (6.4 of 12 GiB)" in run.text
    named = plan(PlanConfig(model="pocket", card="rtx-4060"))
    named.finish()
    assert "on rtx-4060-8gb (8 GiB)" in named.text


def test_smallest_change_is_the_first_that_fits_and_no_more() -> None:
    choices = [[{"a": 1}], [{"b": 1}, {"b": 2}, {"b": 3}], [{"c": 1}]]
    weights = {"a": 10, "b": 20, "c": 100}
    asked: list[dict[str, int]] = []

    def size(change: dict[str, int]) -> float:
        asked.append(change)
        return 200 - sum(weights[name] * value for name, value in change.items())

    assert smallest_change(choices, size, 195) == {"a": 1}
    assert smallest_change(choices, size, 170) == {"a": 1, "b": 1}
    assert smallest_change(choices, size, 160) == {"b": 2}, "a is not needed beside it"
    assert smallest_change(choices, size, 110) == {"c": 1}
    assert smallest_change(choices, size, 29) is None
    assert len(asked) < 40


@pytest.mark.parametrize(("room", "expected"), [(16, {"quantize"}), (8, {"quantize", "blocks_to_swap"})])
def test_what_is_proposed_for_training_fits_and_less_does_not(room: int, expected: set[str]) -> None:
    shapes, config = model_shapes(FLUX), TrainConfig(batch_size=1, num_validation_images=0)

    def size(change: dict[str, object]) -> float:
        return train_memory(shapes, config.model_copy(update=change), LAYOUT, 512, Machine()).total / GIB

    change = smallest_change(for_training(config, LAYOUT, 16, 57), size, room)
    assert change is not None
    assert set(change) == expected
    assert size(change) <= room < size({})
    if "blocks_to_swap" in change:
        assert size({**change, "blocks_to_swap": change["blocks_to_swap"] - 1}) > room


@pytest.mark.parametrize("row", [0, 1, 2, 3], ids=["flux", "sd3", "flux2 clean", "flux2 native"])
def test_prediction_agrees_with_measured_steps(row: int, benchmark: ModuleType) -> None:
    """Real steps in a fresh process, by what torch's allocator gave out; see benchmarks/plan.py for many
    more.
    """
    cases = (
        benchmark.Case("flux", 128, (4, 6), (96, 128), 2, True, "clean"),
        benchmark.Case("sd3", 128, (5, 0), (96, 128), 2, False, "noisy"),
        benchmark.Case("flux2", 256, (2, 4), (96, 128), 2, True, "clean"),
        benchmark.Case("flux2", 256, (2, 4), (96, 128), 2, False, "native"),
    )
    found = benchmark.run_case(cases[row])
    assert abs(found["error"]) <= 0.15, found
    assert found["allocated"] > 10 * 2**20, "large enough for the error to mean something"


def test_cli_for_flux_on_24_and_80_gb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {FLUX}\ntrain:\n  batch_size: 1\n  max_train_steps: 10\ngenerate:\n  num_inference_steps: "
        "8\n"
    )
    assert main(["plan", "-c", str(config), "--card", "rtx-4090", "--json"]) == 0
    small = json.loads(capsys.readouterr().out)
    assert small["parameters"]["transformer"] == 11_901_408_320
    assert not small["train"]["fits"]
    assert 26 * GIB < small["train"]["total_bytes"] < 30 * GIB
    assert small["train"]["change"] == {"quantize": "int8"}
    assert small["train"]["bytes_with_change"] <= 24 * GIB
    assert "--quantize int8" in small["verdict"] and small["verdict"].startswith(
        "It does not fit on rtx-4090"
    )
    assert small["train"]["number"] == 10
    assert small["train"]["seconds"] == pytest.approx(10 * small["train"]["seconds_each"])
    assert main(["plan", "-c", str(config), "--card", "a100-80gb"]) == 0
    text = capsys.readouterr().out
    assert text.rstrip().endswith("It fits on a100-80gb (80 GiB).")
    for words in (
        "weights",
        "optimizer state",
        "activations kept for the backward pass",
        "embeddings",
        "checkpoints",
        "a step",
    ):
        assert words in text
    assert not list(tmp_path.glob("work*")), "planning leaves nothing behind"


def test_the_plan_follows_the_sections_of_the_config(configs_alone: Path, tmp_path: Path) -> None:
    data = {
        "model": str(configs_alone),
        "concat": {"panel_width": 64, "panel_height": 96},
        "embed": {"max_sequence_length": 10},
        "train": {"epochs": 3, "batch_size": 2, "gradient_accumulation_steps": 2, "rank": 4},
    }
    plan = triptych.plan(triptych.PlanConfig(card="rtx-3090", num_triptychs=10, work=tmp_path), data).finish()
    assert plan["canvas"] == [192, 96]
    shapes = model_shapes(str(configs_alone))
    tokens = {"image": 4 * 3 * 6, "references": 0, "text": shapes.text_tokens(10)}
    assert plan["tokens"] == tokens
    assert plan["train"]["number"] == 8, "30 triptychs, four to a step"
    assert plan["lora_parameters"] == plan["disk_bytes"]["LoRA"] / 4 == shapes.lora_parameters(4)
    (tmp_path / "triptychs").mkdir()
    for name in ("a", "b"):
        (tmp_path / "triptychs" / f"{name}.png").touch()
    assert triptych.plan(triptych.PlanConfig(card="rtx-3090", work=tmp_path), data).finish()["triptychs"] == 2
    with pytest.raises(InputError, match="grid"):
        triptych.plan(triptych.PlanConfig(card="rtx-3090"), {**data, "generate": {"panel_width": 65}})


@pytest.mark.parametrize("card", ["rtx-4090", "rtx-3060-12gb"])
def test_every_change_the_verdict_names_fits(card: str) -> None:
    data = {"model": FLUX, "train": {"batch_size": 4, "gradient_checkpointing": False}}
    plan = triptych.plan(triptych.PlanConfig(card=card), data).finish()
    for stage in ("embed", "train", "generate"):
        assert plan[stage]["fits"] or plan[stage]["bytes_with_change"] <= plan["memory_gib"] * GIB
    assert plan["train"]["change"]["gradient_checkpointing"] is True
    assert "--gradient-checkpointing" in plan["verdict"]
    options, *preset = plan["for_run"].removeprefix("for `run`: ").split(", or ")
    typed = [word[2:].replace("-", "_") for word in options.split() if word.startswith("--")]
    assert typed and set(typed) <= set(triptych.RunConfig.model_fields)
    assert (
        preset
        == {"rtx-4090": ["--config 24gb"], "rtx-3060-12gb": ["--config 12gb (smaller panels, rank 8)"]}[card]
    )


def test_cli_plans_a_folder_of_configs_on_the_cpu(
    configs_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "plan",
        "--model",
        str(configs_alone),
        "--work",
        str(tmp_path),
        "--card",
        "cpu",
        "--num-triptychs",
        "7",
        "--json",
    ]
    assert main(words) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["disk_bytes"]["model download"] == 0
    assert plan["train"]["fits"] and plan["train"]["ram_bytes"] == 0
    assert plan["triptychs"] == plan["embed"]["number"] == 7


def test_an_unknown_card_or_model_is_an_error_with_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--card", "voodoo-2", "--work", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "voodoo-2" in error and "rtx-4090" in error and "a100-80gb" in error
    assert main(["plan", "--card", "rtx-4090", "--model", "somebody/unheard-of"]) == 1
    assert FLUX in capsys.readouterr().err
    with pytest.raises(ModelError, match="are unknown"):
        model_shapes("somebody/unheard-of")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ModelError, match=r"config\.json"):
        model_shapes(str(folder))
    config = tmp_path / "c.yaml"
    config.write_text("train:\n  bach_size: 2\n")
    assert main(["plan", "-c", str(config), "--card", "rtx-4090"]) == 1
    assert "Did you mean 'batch_size'" in capsys.readouterr().err


def test_clean_context_and_several_noise_levels_are_planned_to_the_end(tiny_flux: Path) -> None:
    """Its generate stage is sampled with the LoRA's context, from what was read once."""
    totals = {}
    for levels in (1, 4):
        train = {"context": "clean", "noise_levels": levels, "gradient_checkpointing": False, "batch_size": 1}
        summary = plan(PlanConfig(model=str(tiny_flux), card="rtx-4090"), {"train": train}).finish()
        totals[levels] = summary["train"]
        assert summary["generate"]["flops"] > 0
    assert totals[4]["flops"] < 4 * totals[1]["flops"], "the known panels are read once"
    assert totals[4]["flops"] > 2 * totals[1]["flops"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "card"),
    [
        ("12gb", "rtx-3060-12gb"),
        ("16gb", "rtx-4080-16gb"),
        ("24gb", "rtx-4090"),
        ("80gb", "a100-80gb"),
        ("klein-8gb", "rtx-4060"),
        ("klein-12gb", "rtx-3060"),
        ("klein-16gb", "rtx-4080"),
        ("klein-24gb", "rtx-4090"),
    ],
)
def test_presets_fit_their_cards(preset: str, card: str, capsys: pytest.CaptureFixture[str]) -> None:
    configs = Path(__file__).parents[1] / "configs"
    model = "flux2-klein-4b" if preset.startswith("klein") else "flux-dev"
    words = ["--config", str(configs / f"{model}.yaml"), "--config", preset]
    assert main(["plan", *words, "--card", card, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["verdict"].startswith("It fits on")
    assert "tight" not in summary["verdict"]


def test_one_change_for_run_holds_those_of_its_stages() -> None:
    changes = {
        "embed": {"batch_size": 3},
        "train": {"quantize": "nf4"},
        "generate": {"panel_width": 384, "panel_height": 512},
    }
    panels = {"panel_width": 384, "panel_height": 512}
    merged = {"batch_size": 2, "gradient_accumulation_steps": 2, "quantize": "nf4"}
    assert for_run(changes, TrainConfig(batch_size=4)) == merged | panels
    assert for_run({"embed": None, "train": None}, TrainConfig()) == {}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("12gb", "For a card of 12 GB: rtx-3060-12gb, rtx-4070-12gb."),
        ("16 GiB", "For a card of 16 GB: rtx-4080-16gb."),
        ("3060", "Did you mean rtx-3060-12gb?"),
        ("RTX 4090 Ti", "Did you mean rtx-4090?"),
        ("a100", "Did you mean a100-40gb or a100-80gb?"),
        ("voodoo-2", "Known: auto, cpu,"),
        ("", "Known: auto, cpu,"),
    ],
)
def test_an_unknown_card_is_told_which_was_meant(given: str, meant: str) -> None:
    with pytest.raises(ConfigError) as refused:
        triptych.PlanConfig(card=given)
    assert refused.value.hint.startswith(meant)


def test_an_unknown_card_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; from triptych.cli import main; assert main(['plan', '--card', '12gb']) == 1; assert "
        "'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
