"""Config files: the original's two files as they are, misspelt keys that get a suggestion, and the ways YAML
goes wrong.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.backbones.settings import model_class, model_settings
from triptych.cli import main
from triptych.config.files import ORIGINAL_KEYS
from triptych.config.stage import load_config, section, validated
from triptych.errors import ConfigError, ModelError, WorkError
from triptych.pictures import overwrite
from triptych.planning.advice import in_words
from triptych.store.files import read_jsonl
from triptych.verbs import STAGES
from triptych.verbs import run as run_module
from triptych.verbs.run import PIPELINE, RunConfig, run
from triptych.wording.docstrings import help_texts

VERBS = STAGES
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
    data = load_config(
        [write(tmp_path, DATA_CLEAN, "data_clean_config.yaml"), write(tmp_path, MODEL, "model_config.yaml")],
        VERBS,
    )
    got = configs(data)
    assert (got["clean"].human, got["clean"].garment, got["clean"].photos) == (
        Path("human"),
        Path("object"),
        Path("paired_dataset"),
    )
    assert got["concat"].catalogue_folder == Path("cleaned_paired_dataset")
    assert got["clean"].sorted_folders, "item/human and item/garment, as its users expect"
    assert got["concat"].max_concat_n == 3
    assert (got["caption"].do_check, got["caption"].fail_path, got["caption"].vlm_model) == (
        True,
        Path("problem_data"),
        "gpt-4.1-mini",
    )
    assert got["embed"].triptych_folder == Path("final_data"), (
        "the model config's own data_path wins, as it stands last"
    )
    assert got["embed"].embedding_folder == Path("embedded_data_flux")
    train = got["train"]
    assert (train.learning_rate, train.max_train_steps, train.batch_size) == (1e-4, 10000, 4)
    assert (train.lr_warmup_steps, train.checkpoints_total_limit) == (100, 5)
    assert (train.train_folder, train.logging_dir) == (Path("output_flux"), Path("log_flux"))
    assert train.model == "black-forest-labs/FLUX.1-dev"


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_originals_two_folders_of_triptychs_in_either_order(tmp_path: Path, order: list[int]) -> None:
    """Pictures are made and described in concat_data_path; embed reads data_path."""
    files = [write(tmp_path, DATA_CLEAN, "a.yaml"), write(tmp_path, MODEL, "b.yaml")]
    got = configs(load_config([files[index] for index in order], VERBS))
    assert [got[name].triptych_folder for name in ("concat", "caption")] == [Path("data")] * 2
    assert [got[name].triptych_folder for name in ("embed", "train")] == [Path("final_data")] * 2
    alone = configs(load_config([files[1]], VERBS))
    assert {alone[name].triptych_folder for name in ("concat", "caption", "embed", "train")} == {
        Path("final_data")
    }


def test_captioned_triptychs_are_handed_over_and_edits_there_stay(tmp_path: Path) -> None:
    data, final = tmp_path / "data", tmp_path / "final"
    data.mkdir()
    for name in ("a.png", "a.txt", "b.png"):
        (data / name).write_text(name)
    (data / "metadata.jsonl").write_text('{"id": "a", "layout": 1}\n{"id": "b", "layout": 2}\n')
    assert run_module.hand_over(data, final) == 1
    assert {path.name for path in final.iterdir()} == {"a.png", "a.txt", "metadata.jsonl"}, "b has no caption"
    assert read_jsonl(final / "metadata.jsonl") == [{"id": "a", "layout": 1}]
    (final / "a.txt").write_text("mine")
    assert run_module.hand_over(data, final) == 0
    assert (final / "a.txt").read_text() == "mine"


def test_words_are_what_they_look_like(tmp_path: Path) -> None:
    """Norway, octal folders and times of day are text where text is asked for; numbers in every usual
    spelling are numbers.
    """
    text = (
        "clean: {photos: 010, min_side: 64}\ncaption: {brands: [no, 'yes', \"1:30\"], do_check: "
        "off}\ntrain: {learning_rate: 1e-4}\n"
    )
    got = configs(load_config([write(tmp_path, text)], VERBS))
    assert got["clean"].photos == Path("010")
    assert got["caption"].brands == ["no", "yes", "1:30"]
    assert got["caption"].do_check is False
    assert got["train"].learning_rate == 1e-4


def test_home_is_meant_by_a_tilde_in_every_kind_of_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "model: ~/flux\nwork: ~/w\ncaption: {vlm_model: 'local:~/qwen', captions: ~nobody-here/c}\n"
    got = configs(load_config([write(tmp_path, text)], VERBS))
    assert got["embed"].model == str(tmp_path / "flux")
    assert got["embed"].work == tmp_path / "w"
    assert got["caption"].vlm_model == f"local:{tmp_path / 'qwen'}"
    assert got["caption"].captions == Path("~nobody-here/c")


def test_the_first_file_alone_keeps_the_triptychs_where_it_says(tmp_path: Path) -> None:
    got = configs(load_config([write(tmp_path, DATA_CLEAN)], VERBS))
    assert (
        got["concat"].triptych_folder
        == got["caption"].triptych_folder
        == got["embed"].triptych_folder
        == Path("data")
    )


def test_every_original_key_is_placed_where_it_exists() -> None:
    models = {stage.name: stage.load()[1] for stage in PIPELINE}
    for key, target in ORIGINAL_KEYS.items():
        if target is None:
            continue
        name, field = target
        owners = (
            [models[name]] if name else [model for model in models.values() if field in model.model_fields]
        )
        assert owners, key
        assert all(field in model.model_fields for model in owners), key


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("clean:\n  humn: x\n", "humn", "human"),
        ("clena:\n  human: x\n", "clena", "clean"),
        ("max_concat: 3\nall_data: x\n", "max_concat", "max_concat_n"),
        ("model: pocket\nall_data: x\n", "Unknown key 'model'", "second file"),
        ("base_url: http://127.0.0.1:8000/v1\n", "cannot stand at the top", "`caption:`"),
        ("train:\n\tbatch_size: 4\n", "line 2", "spaces"),
        ("- a\n- b\n", "key: value", "init"),
        ("train: 4\n", "not a mapping", "indent"),
        ("clean: !!python/object/apply:os.system ['echo x']\n", "not valid YAML", "key: value"),
        ("a: [1, 2\n", "not valid YAML", ""),
        ("tryon:\n  prompt: a coat: black\n", "line 2: mapping values", "quotes"),
        ('work: "C:\\Users\\me"\n', "line 1: expected escape sequence", "single quotes"),
        ('work: "D:\\mine"\n', "line 1: found unknown escape", "single quotes"),
        ("clean: {min_side: " + "[" * 100_000 + "}", "line 1: too deeply nested", "plain values"),
        ("? " + "[" * 900 + "\n: 1\n", "line 1: a key is not a word", "key: value"),
        ("".join(f"{' ' * n}a:\n" for n in range(1000)), "too deeply nested", "plain values"),
        ("{b: " * 100_000, "too deeply nested", "plain values"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "line 1: anchors", "quotes"),
        ("clean: !!int x\n", "line 1: tags", "quotes"),
        ('work: "a\\0b"\n', "line 1: a character", "escape"),
        ('caption:\n  vlm_model: "\\ud800"\n', "line 2: a character", "escape"),
        ('work: "\\UFFFFFFFF"\n', "not valid YAML", ""),
        ("work: a\x07b\n", "line 1", "key: value"),
        ("work: a\n---\nwork: b\n", "line 2: a second document", "---"),
        (
            "clean:\n  photos: a\ntrain: {}\nclean:\n  human: b\n",
            "'clean' stands twice in .*, at lines 1 and 4",
            "Keep one",
        ),
        ("train:\n  rank: 4\n  rank: 8\n", "'rank' stands twice in .*, at lines 2 and 3", "Keep one"),
        (
            "work: {a: b}\n",
            r"'work' in section 'clean' .*line 1\) is '\{'a': 'b'\}'; it takes a path",
            "--help",
        ),
        ("clean:\n  min_side: " + "9" * 5000, r"line 2\) is 9{40}…; it takes a whole number", "--help"),
        ("clean:\n  min_side: 010\n", r"line 2\) is 010; it takes a whole number .*such as 10", "--help"),
        ("clean:\n  min_side: 1:30\n", r"line 2\) is 1:30; it takes a whole number", "--help"),
        ("clean:\n  min_side: yes\n", r"line 2\) is yes; it takes a whole number", "--help"),
        ("clean:\n  min_side: true\n", r"line 2\) is yes; it takes a whole number", "--help"),
        ("train:\n  learning_rate: .inf\n", "it takes a number above 0", "--help"),
        ("train:\n  learning_rate: 1e999\n", "it takes a number above 0", "--help"),
        ("train:\n  context: dirty\n", "is dirty; it takes noisy, clean or native", "--help"),
        ("caption:\n  brands: Acme\n", "is Acme; it takes a list", "--help"),
        ("cl\x1b[31mean: 1\n", "not valid YAML", ""),
        ('"cl\\e[31m": 1\n', "Unknown key 'cl�", ""),
        ("", "needs a config", "init"),
        ("train:\n  batch_size: many\n", "batch_size", "--help"),
        ("train:\n  learning_rate: -1\n", "learning_rate", "--help"),
        ("caption:\n  do_check: perhaps\n", "do_check", "--help"),
    ],
)
def test_a_wrong_config_gets_one_sentence_and_a_hint(
    tmp_path: Path, text: str, words: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        run(RunConfig(), load_config([write(tmp_path, text)], VERBS))
    assert hint in caught.value.hint
    assert str(caught.value).isprintable()
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "text", ["\ufefftrain:\n  rank: 8\n", "train:\r\n  rank: 8\r\n", "train:\n  rank: 4\n"]
)
def test_byte_order_marks_and_line_ends_do_no_harm(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8"))
    assert load_config([path], VERBS)["train"]["rank"] in (4, 8)


def test_a_section_wins_over_shared_keys_and_an_option_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which seed each stage would get: seen at the first stage's call, before any work."""
    path = write(tmp_path, "seed: 1\ntrain:\n  seed: 5\nclean:\n  photos: nowhere\n")
    seen: list[dict] = []
    monkeypatch.setattr(
        run_module,
        "validated",
        lambda model, values, verb: seen.append({verb: values.get("seed")}) or model(**values),
    )
    assert main(["run", "--config", str(path)]) == 1
    assert {"concat": 1} in seen
    assert {"train": 5} in seen
    seen.clear()
    assert main(["run", "--config", str(path), "--seed", "7"]) == 1
    assert {"concat": 7} in seen
    assert {"train": 7} in seen


def runnable(tmp_path: Path, **more: str) -> Path:
    keys = {"work": str(tmp_path / "w"), "model": "pocket", **more}
    text = "".join(f"{key}: {value}\n" for key, value in keys.items())
    return write(tmp_path, text + "caption: {vlm_model: pocket}\nclean: {photos: nowhere}\n")


def test_what_plan_advises_can_be_typed_into_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, dict] = {}
    monkeypatch.setattr(
        run_module, "validated", lambda model, values, verb: given.update({verb: values}) or model(**values)
    )
    change = {
        "gradient_checkpointing": True,
        "batch_size": 1,
        "gradient_accumulation_steps": 4,
        "quantize": "nf4",
    }
    change |= {"blocks_to_swap": 8, "panel_width": 384, "panel_height": 512}
    assert main(["run", "--config", str(runnable(tmp_path)), *in_words(change).split()]) == 1, (
        "no photos there"
    )
    for verb, own in given.items():
        known = next(stage for stage in STAGES if stage.name == verb).config_class().model_fields
        assert {key: own[key] for key in change if key in known} == {
            key: value for key, value in change.items() if key in known
        }
    assert given["train"]["quantize"] == "nf4" and given["concat"]["panel_width"] == 384


def test_folders_are_tried_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for folder in ("file", "file/below"):
        with pytest.raises(WorkError, match=r"cannot be a folder: .*file is a file"):
            run(RunConfig(), load_config([runnable(tmp_path, embeddings=str(tmp_path / folder))], VERBS))
    monkeypatch.setattr(overwrite.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(WorkError, match="cannot be written to"):
        run(RunConfig(), load_config([runnable(tmp_path)], VERBS))


def test_a_model_is_opened_before_any_work(tmp_path: Path) -> None:
    """Offline, a model of the hub that is not here is refused before `clean` looks at a photo."""
    data = load_config([runnable(tmp_path, model="nobody/nothing")], VERBS)
    with pytest.raises(ModelError, match="nobody/nothing is not on this machine"):
        run(RunConfig(), data)


def test_presets_come_with_the_package_and_go_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12gb", "16gb", "24gb", "80gb"):
        assert load_config([Path(name)], VERBS)["train"]["rank"] > 0
    write(tmp_path, "work: mine\n", "12gb")
    assert load_config([Path("12gb")], VERBS) == {"work": "mine"}, "a file of one's own wins"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config([tmp_path / "none.yaml"], VERBS)


def test_every_field_explains_itself() -> None:
    for stage in STAGES:
        for name, text in help_texts(stage.config_class()).items():
            assert text, f"{stage.name}.{name} has no help text"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a: [" + "b," * 300_000 + "]", "- " * 100_000, "? " * 100_000, "a: {" * 50_000]
)
def test_no_yaml_takes_long_or_ends_in_a_traceback(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config([write(tmp_path, text)], VERBS)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_shipped_configs_are_valid(path: Path) -> None:
    data = load_config([path], VERBS)
    for stage in PIPELINE:
        _, model = stage.load()
        validated(model, section(data, stage.name, model), stage.name)


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        ("generate", {"model": "pocket", "prompt": "p", "num_images_per_prompt": 2}),
        (
            "tryon",
            {
                "model": "pocket",
                "prompt": "p",
                "num_images_per_prompt": 2,
                "front": "f.png",
                "person": "f.png",
                "polygon": "p.json",
            },
        ),
        ("train", {"model": "pocket", "num_validation_images": 2}),
        ("evaluate", {"pocket": True, "items": 2}),
        ("demo", {"garments": 24}),
    ],
)
def test_seeds_have_64_bits_up_to_the_last(verb: str, values: dict) -> None:
    """ComfyUI's largest seed is the largest there is; a second picture from there on is refused at
    the call.
    """
    function, model = next(stage for stage in STAGES if stage.name == verb).load()
    with pytest.raises(ConfigError, match="64 bits"):
        function(model(**values, seed=2**64 - 1))
    for seed in (2**64, -1):
        with pytest.raises(ConfigError, match="seed"):
            validated(model, {"seed": seed}, verb)


@pytest.mark.parametrize("text", ["[1]", "{", "", "{}", '{"_class_name": 3}', "[" * 100_000])
def test_a_damaged_model_index_is_said_to_be_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    for look in (model_class, model_settings):
        with pytest.raises(ModelError, match=r"model_index\.json is damaged: it .*Copy or download"):
            look(str(tmp_path))
