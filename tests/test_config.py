"""Config files: the original's two files as they are, misspelt keys that get a suggestion, and the ways YAML goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych import pipeline
from triptych.cli import main
from triptych.config import ORIGINAL_KEYS, load_config, section
from triptych.errors import ConfigError
from triptych.pipeline import PIPELINE, RunConfig, run, validated
from triptych.stages import STAGES

VERBS = [stage.name for stage in STAGES]
DATA_CLEAN = """\
training_data_human: "./human"
training_data_object: "./object"
all_data: "./paired_dataset"
paired_data_path: "./cleaned_paired_dataset"
concat_data_path: "./data"
max_concat_n: 3
do_check: True
fail_path: "./problem_data"
vlm_model: "gpt-4.1-mini"
"""
MODEL = """\
data:
  data_path: ./final_data
  embedded_data_path: ./embedded_data_flux
model:
  tracker_name: ic_lora_cloth_model_flux
  lr_warmup_steps: 100
  max_train_steps: 10000
  pretrained_model_name_or_path: black-forest-labs/FLUX.1-dev
  gradient_accumulation_steps: 1
  learning_rate: 1e-4
  batch_size: 4
  output_dir: "./output_flux"
  logging_dir: "./log_flux"
  upcast_before_saving: False
  checkpoints_total_limit: 5
  vae_config_path: "./vae_config_flux.pkl"
  negative_prompt_emb_path: "./negative_prompt.pkl"
"""


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def configs(data: dict) -> dict:
    loaded = {stage.name: stage.load()[1] for stage in PIPELINE}
    return {name: validated(model, section(data, name, model), name) for name, model in loaded.items()}


def test_the_originals_files_are_read_as_they_are(tmp_path: Path) -> None:
    data = load_config([write(tmp_path, DATA_CLEAN, "data_clean_config.yaml"), write(tmp_path, MODEL, "model_config.yaml")], VERBS)
    got = configs(data)
    assert (got["clean"].human, got["clean"].garment, got["clean"].photos) == (Path("human"), Path("object"), Path("paired_dataset"))
    assert got["concat"].catalogue_folder == Path("cleaned_paired_dataset")
    assert got["concat"].max_concat_n == 3
    assert (got["caption"].do_check, got["caption"].fail_path, got["caption"].vlm_model) == (True, Path("problem_data"), "gpt-4.1-mini")
    assert got["embed"].triptych_folder == Path("final_data"), "the model config's own data_path wins, as it stands last"
    assert got["embed"].embedding_folder == Path("embedded_data_flux")
    train = got["train"]
    assert (train.learning_rate, train.max_train_steps, train.batch_size) == (1e-4, 10000, 4)
    assert (train.lr_warmup_steps, train.checkpoints_total_limit) == (100, 5)
    assert (train.train_folder, train.logging_dir) == (Path("output_flux"), Path("log_flux"))
    assert train.model == "black-forest-labs/FLUX.1-dev"


def test_the_first_file_alone_keeps_the_triptychs_where_it_says(tmp_path: Path) -> None:
    got = configs(load_config([write(tmp_path, DATA_CLEAN)], VERBS))
    assert got["concat"].triptych_folder == got["caption"].triptych_folder == got["embed"].triptych_folder == Path("data")


def test_every_original_key_is_placed_where_it_exists() -> None:
    models = {stage.name: stage.load()[1] for stage in PIPELINE}
    for key, target in ORIGINAL_KEYS.items():
        if target is None:
            continue
        name, field = target
        owners = [models[name]] if name else [model for model in models.values() if field in model.model_fields]
        assert owners, key
        assert all(field in model.model_fields for model in owners), key


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("clean:\n  humn: x\n", "humn", "human"),
        ("clena:\n  human: x\n", "clena", "clean"),
        ("max_concat: 3\nall_data: x\n", "max_concat", "max_concat_n"),
        ("train:\n\tbatch_size: 4\n", "line 2", "spaces"),
        ("- a\n- b\n", "key: value", "init"),
        ("train: 4\n", "not a mapping", "indent"),
        ("clean: !!python/object/apply:os.system ['echo x']\n", "not valid YAML", "key: value"),
        ("a: [1, 2\n", "not valid YAML", ""),
        ("", "needs a config", "init"),
        ("train:\n  batch_size: many\n", "batch_size", "--help"),
        ("train:\n  learning_rate: -1\n", "learning_rate", "--help"),
        ("caption:\n  do_check: perhaps\n", "do_check", "--help"),
    ],
)
def test_a_wrong_config_gets_one_sentence_and_a_hint(tmp_path: Path, text: str, words: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        run(RunConfig(), load_config([write(tmp_path, text)], VERBS))
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["\ufefftrain:\n  rank: 8\n", "train:\r\n  rank: 8\r\n", "train:\n  rank: 4\n"])
def test_byte_order_marks_and_line_ends_do_no_harm(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8"))
    assert load_config([path], VERBS)["train"]["rank"] in (4, 8)


def test_a_section_wins_over_shared_keys_and_an_option_over_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which seed each stage would get: seen at the first stage's call, before any work."""
    path = write(tmp_path, "seed: 1\ntrain:\n  seed: 5\nclean:\n  photos: nowhere\n")
    seen: list[dict] = []
    monkeypatch.setattr(pipeline, "validated", lambda model, values, verb: seen.append({verb: values.get("seed")}) or model(**values))
    assert main(["run", "--config", str(path)]) == 1
    assert {"concat": 1} in seen
    assert {"train": 5} in seen
    seen.clear()
    assert main(["run", "--config", str(path), "--seed", "7"]) == 1
    assert {"concat": 7} in seen
    assert {"train": 7} in seen


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config([tmp_path / "none.yaml"], VERBS)


def test_every_field_explains_itself() -> None:
    for stage in STAGES:
        for name, field in stage.load()[1].model_fields.items():
            assert field.description, f"{stage.name}.{name} has no help text"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configs_are_valid(path: Path) -> None:
    data = load_config([path], VERBS)
    for stage in PIPELINE:
        _, model = stage.load()
        validated(model, section(data, stage.name, model), stage.name)


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        ("generate", {"model": "pocket", "prompt": "p", "num_images_per_prompt": 2}),
        ("tryon", {"model": "pocket", "prompt": "p", "num_images_per_prompt": 2, "front": "f.png", "person": "f.png", "polygon": "p.json"}),
        ("train", {"model": "pocket", "num_validation_images": 2}),
        ("evaluate", {"pocket": True, "items": 2}),
        ("demo", {"garments": 24}),
    ],
)
def test_seeds_have_64_bits_up_to_the_last(verb: str, values: dict) -> None:
    """ComfyUI's largest seed is the largest there is; a second picture from there on is refused at the call."""
    function, model = next(stage for stage in STAGES if stage.name == verb).load()
    with pytest.raises(ConfigError, match="64 bits"):
        function(model(**values, seed=2**64 - 1))
    for seed in (2**64, -1):
        with pytest.raises(ConfigError, match="seed"):
            validated(model, {"seed": seed}, verb)
