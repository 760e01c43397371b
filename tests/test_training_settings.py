"""Settings of train: what is refused, the presets, the published recipe."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import triptych
from triptych.backbones.families import FLUX, FLUX2, SD3, Family
from triptych.cli import main
from triptych.config.stage import load_config, section, validated
from triptych.errors import ConfigError, WorkError
from triptych.lora.adapter import read_lora
from triptych.training.config import for_family, placement_of
from triptych.verbs import STAGES
from triptych.verbs.run import PIPELINE
from triptych.verbs.train import TrainConfig, train

from .test_train import config, write_records

PRESETS = sorted((Path(triptych.__file__).parent / "presets").glob("*.yaml"))


@pytest.fixture
def work(tmp_path: Path, tiny_flux: Path) -> Path:
    write_records(tmp_path, [f"id-{n}" for n in range(1, 5)], tiny_flux)
    return tmp_path


@pytest.mark.parametrize(("name", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_an_optimizer_that_is_not_installed_is_named_before_any_work(
    work: Path, tiny_flux: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"needs the package {package}, which is not installed") as caught:
        train(config(work, tiny_flux, optimizer=name, learning_rate=1.0))
    assert "triptych[optimizers]" in caught.value.hint
    assert not (work / "lora").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_t": 0.6, "max_t": 0.6}, "No noise level lies between --min-t 0.6 and --max-t 0.6"),
        ({"panel_weights": {"side": 1.0}}, "'side: 1' has no meaning"),
        ({"panel_weights": {"worn": -1.0}}, "'worn: -1' has no meaning"),
        ({"panel_weights": {"worn": 0.0}, "context": "clean"}, "weight 0"),
        ({"noise_levels": 4}, "--noise-levels does nothing with noisy context"),
        ({"context_lora": True}, "--context-lora does nothing with noisy context"),
        ({"context_reading": "products"}, "--context-reading does nothing with noisy context"),
        ({"context_dropout": 0.0}, "--context-dropout does nothing with noisy context"),
        ({"shard_base": True, "quantize": "int8"}, "cannot be quantised or swapped"),
        ({"early_stopping_patience": 2, "num_validation_triptychs": 1}, "nothing is validated"),
        ({"optimizer": "prodigy", "learning_rate": 1e-4}, "0.0001 would learn nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    work: Path, tiny_flux: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(config(work, tiny_flux, **changes))
    assert message in str(caught.value)
    assert caught.value.hint


def test_the_command_line_weighs_panels_and_counts_epochs(
    work: Path, tiny_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--work",
        str(work),
        "--model",
        str(tiny_flux),
        "--device",
        "cpu",
        "--dtype",
        "fp32",
        "--validation-steps",
        "0",
    ]
    options = ["--epochs", "1", "--panel-weights.worn", "2", "--panel-weights.back", "0.5", "--json"]
    assert main(["train", *words, *options]) == 0
    assert json.loads(capsys.readouterr().out)["train_steps"] == 1
    assert read_lora(work)[1]["recipe"]["panel_weights"] == {"worn": 2.0, "back": 0.5}


def test_a_family_has_its_own_defaults_where_nothing_is_given() -> None:
    names = ("rank", "alpha", "learning_rate", "caption_dropout", "context", "batch_size")

    def settings(family: Family, **given: Any) -> tuple[Any, ...]:
        config = for_family(TrainConfig(**given), family)
        return tuple(getattr(config, name) for name in names)

    assert settings(FLUX2) == (32, 32.0, 1e-4, 0.1, "clean", 4)
    assert settings(FLUX2, rank=8) == (8, 8.0, 1e-4, 0.1, "clean", 4)
    assert settings(FLUX2, alpha=16, context="noisy") == (32, 16.0, 1e-4, 0.1, "noisy", 4)
    assert settings(FLUX2, rank=16, caption_dropout=0.05, learning_rate=3e-4)[2:4] == (3e-4, 0.05)
    for family in (FLUX, SD3):
        assert for_family(TrainConfig(rank=32), family) == TrainConfig(rank=32)
        assert settings(family, rank=32)[:2] == (32, 16.0)


def test_the_familys_defaults_are_recorded_and_hold_a_training_together(
    tmp_path: Path, tiny_flux2: Path
) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux2)
    base = {"work": tmp_path, "model": str(tiny_flux2), "device": "cpu", "dtype": "fp32"}
    base |= {"max_train_steps": 1, "batch_size": 1, "validation_steps": 0}
    train(TrainConfig(**base)).finish()
    state, about = read_lora(tmp_path)
    assert (about["context"], about["context_placement"]) == ("clean", "canvas")
    recipe = {name: about["recipe"][name] for name in ("rank", "alpha", "caption_dropout", "learning_rate")}
    assert recipe == {"rank": 32, "alpha": 32.0, "caption_dropout": 0.1, "learning_rate": 1e-4}
    assert {len(tensor) for name, tensor in state.items() if "lora_A" in name} == {32}
    train(TrainConfig(**base, rank=32, context="clean")).finish()  # the same, given
    with pytest.raises(WorkError, match="rank"):
        train(TrainConfig(**base, rank=16)).finish()


@pytest.mark.parametrize("change", [{"is_distilled": True}, {"_class_name": "Flux2KleinKVPipeline"}, {}])
def test_training_on_a_distilled_model_is_warned_of(
    tmp_path: Path, tiny_flux2: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = shutil.copytree(tiny_flux2, tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, **change}))
    write_records(tmp_path, ["id-1", "id-2"], model)
    train(config(tmp_path, model))
    warned = [record.message for record in caplog.records if "base model" in record.message]
    assert len(warned) == bool(change)


def test_defaults_are_the_published_recipe() -> None:
    """ali-vilab's config/movie-shots.yml, which is AdamW in 8 bits besides."""
    options = TrainConfig()
    assert (options.rank, options.alpha, options.learning_rate, options.batch_size) == (16, 16, 1e-4, 4)
    assert (options.ema_decay, options.caption_dropout, options.guidance_scale, options.context) == (
        0.99,
        0.05,
        1.0,
        "noisy",
    )


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_configs_that_every_stage_accepts(preset: Path) -> None:
    klein = preset.stem.startswith("klein-")
    base = Path(__file__).parents[1] / "configs" / ("flux2-klein-4b.yaml" if klein else "flux-dev.yaml")
    data = load_config([base, Path(preset.stem)], STAGES)
    configs: dict[str, Any] = {}
    for stage in PIPELINE:
        _, model = stage.load()
        configs[stage.name] = validated(model, section(data, stage.name, model), stage.name)
    options = configs["train"]
    assert options.batch_size * options.gradient_accumulation_steps == 4, (
        "the recipe's batch, however it is split"
    )
    card = int(preset.stem.removeprefix("klein-").removesuffix("gb"))
    formats = {80: "none", 24: "int8-torchao", 16: "nf4", 12: "nf4"}
    assert options.quantize == ({8: "nf4"}.get(card, "none") if klein else formats[card])
    if klein:
        assert not {"rank", "alpha", "context", "caption_dropout"} & options.model_fields_set
        assert "context_lora" not in options.model_fields_set
    for verb in ("generate", "tryon"):  # with the base the LoRA was trained on
        _, model = next(stage for stage in STAGES if stage.name == verb).load()
        assert validated(model, section(data, verb, model), verb).quantize == options.quantize  # type: ignore[attr-defined]
    assert configs["concat"].panel_width % 16 == configs["concat"].panel_height % 16 == 0


def test_there_is_a_preset_for_each_size_of_card() -> None:
    klein = {"klein-8gb", "klein-12gb", "klein-16gb", "klein-24gb"}
    assert {path.stem for path in PRESETS} == {"12gb", "16gb", "24gb", "80gb", *klein}


def test_clean_photos_stand_where_they_were_measured_to_carry_more() -> None:
    def placed(family: Family, **changes: Any) -> str:
        return placement_of(TrainConfig(context="clean", **changes), family)

    assert (placed(FLUX2), placed(FLUX2, task="try-on"), placed(FLUX2, task="outfit")) == (
        *("canvas", "canvas", "reference"),
    )
    assert placed(FLUX2, task="outfit", context_placement="canvas") == "canvas"
    assert placed(FLUX, task="outfit") == "canvas", "it knows no references"


def test_garments_of_an_outfit_are_read_each_by_itself() -> None:
    def read(family: Family, **changes: Any) -> str:
        return for_family(
            TrainConfig(**{"context": "clean", "task": "outfit"} | changes), family
        ).context_reading

    assert read(FLUX2) == "each"
    assert read(FLUX2, context_reading="joint") == "joint"
    others = ({"context_placement": "canvas"}, {"task": "try-on"}, {"context": "native"})
    assert {read(FLUX2, **changes) for changes in others} == {"joint"} == {read(FLUX)}
