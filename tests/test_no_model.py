"""Nobody gets the pocket model or its captioner without having named it: the refusals, what they hint at, and
what `init` asks.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from triptych.cli import main
from triptych.data.catalogue import Photo, write_photos
from triptych.errors import ModelError, TriptychError
from triptych.lora.adapter import write_lora
from triptych.sampling.options import SamplingConfig
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.concat import ConcatConfig
from triptych.verbs.evaluate import EvaluateConfig
from triptych.verbs.init import InitConfig, init
from triptych.verbs.run import RunConfig, run


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos, a triptych with its caption, and what else the verbs want to see before they look for
    a model.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("photos/item1/a.png", "human/a.png", "garment/a.png", "front.png", "me.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 72), "white").save(tmp_path / name)
    (tmp_path / "p.json").write_text('{"polygons": [[[4, 4], [40, 4], [40, 60]]]}')
    (tmp_path / "jobs.csv").write_text("front,person,polygon\nfront.png,me.png,p.json\n")
    write_photos(
        tmp_path / "work/catalogue/photos.jsonl",
        [Photo(path="front.png", item="item1", sha256="0", label="garment")],
    )
    triptychs = tmp_path / "work" / "triptychs"
    triptychs.mkdir()
    Image.new("RGB", TRY_ON.layout(48, 72).size).save(triptychs / "a.png")
    return tmp_path


TRYON = ("tryon", "--front", "front.png", "--person", "me.png", "--polygon", "p.json", "--prompt", "a")


@pytest.mark.parametrize(
    "words",
    [
        ("concat",),
        ("concat", "--panel-width", "48", "--panel-height", "72"),
        ("caption", "--vlm-model", "pocket"),
        ("embed",),
        ("train",),
        ("generate", "--prompt", "a"),
        ("generate", "--prompt", "a", "--model", " "),
        TRYON,
        ("tryon", "--batch", "jobs.csv", "--prompt", "a"),
        ("plan",),
        ("plan", "--card", "rtx-4090", "--config", "empty.yaml"),
    ],
    ids=" ".join,
)
def test_a_verb_without_a_model_says_so(
    shop: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "empty.yaml").write_text("model:\ntrain:\n  model:\n")
    before = sorted(shop.rglob("*"))
    assert main(words) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: No model is given."
    assert "--model black-forest-labs/FLUX.2-klein-base-4B (Apache-2.0)" in hint and "`model:`" in hint
    assert sorted(shop.rglob("*")) == before


@pytest.mark.parametrize(
    "text", ["model: pocket\n", "embed:\n  model: pocket\n", "model: pocket\nembed:\n  model:\n"]
)
def test_a_model_in_the_config_counts(shop: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "c.yaml").write_text(text)
    (shop / "work" / "triptychs" / "a.txt").write_text("x <IMAGE 1> x <IMAGE 2> x <IMAGE 3> x")
    assert main(["embed", "--config", "c.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["embedded"] == 1


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("black-forest-labs/FLUX.1-dev", True),
        ("pocket", True),
        ("/home/somebody/model", False),
        ("../FLUX/dev", False),
        ("a/b; rm -rf", False),
        (["a/b"], False),
        ("", False),
    ],
)
def test_the_base_a_lora_names_is_a_hint_and_no_choice(shop: Path, base: Any, told: bool) -> None:
    state = {f"transformer_blocks.0.attn.to_q.lora_{part}.weight": torch.zeros(4, 4) for part in "AB"}
    write_lora(shop / "lora.safetensors", state, {"base_model": base})
    with pytest.raises(ModelError, match="No model is given") as caught:
        SamplingConfig(lora=shop / "lora.safetensors").check_model()
    assert (f"trained on {base}" in caught.value.hint) == told
    assert "--model" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"caption": {"vlm_model": "pocket"}}, "No model is given"),
        (
            {"model": "pocket", "train": {"model": " "}, "caption": {"vlm_model": "pocket"}},
            "No model is given",
        ),
        ({"model": "./nowhere", "caption": {"vlm_model": "pocket"}}, "no diffusers model folder"),
        ({"model": "pocket"}, "No captioner is given"),
        ({"model": "pocket", "caption": {"vlm_model": None}}, "No captioner is given"),
    ],
)
def test_run_refuses_before_any_work(shop: Path, data: dict[str, Any], message: str) -> None:
    before = sorted(shop.rglob("*"))
    folders = {"photos": "photos", "human": "human", "garment": "garment"}
    with pytest.raises(ModelError, match=message) as caught:
        run(RunConfig(), {"clean": folders, **data})
    assert caught.value.hint
    assert sorted(shop.rglob("*")) == before


def test_run_needs_no_captioner_for_captions_of_your_own(shop: Path) -> None:
    run(RunConfig(), {"model": "pocket", "caption": {"captions": "own"}})
    (shop / "work" / "triptychs" / "a.txt").write_text("mine")
    run(RunConfig(), {"model": "pocket"})


def test_caption_needs_a_captioner_only_for_what_nobody_described(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", "--model", "pocket"]) == 1
    assert "No captioner is given" in capsys.readouterr().err
    (shop / "work" / "triptychs" / "a.txt").write_text("x <IMAGE 1> x <IMAGE 2> x <IMAGE 3> x")
    assert main(["caption", "--model", "pocket", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["brought"] == 1


def test_only_what_measures_the_rendered_world_takes_the_pocket_by_itself() -> None:
    assert EvaluateConfig().model == "pocket"
    assert ConcatConfig().model == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_init_asks_for_model_and_captioner(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("stabilityai/stable-diffusion-3.5-large\n gpt-4.1-mini \n"))
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    assert main(["init", "--photos", "photos", "--out", "asked.yaml"]) == 0
    assert "FLUX.2-klein-base-4B" in shown.getvalue(), "what can be answered stands above the question"
    text = (shop / "asked.yaml").read_text()
    assert (
        '\nmodel: "stabilityai/stable-diffusion-3.5-large"\n' in text
        and '\n  vlm_model: "gpt-4.1-mini"\n' in text
    )
    assert "fill in" not in capsys.readouterr().out

    monkeypatch.setattr("sys.stdin", Terminal("\n"))  # nothing, then the end of the input
    assert main(["init", "--photos", "photos", "--out", "nothing.yaml"]) == 0
    assert (
        "next: fill in model, caption.vlm_model in nothing.yaml, then: triptych run"
        in capsys.readouterr().out
    )
    monkeypatch.setattr("sys.stdin", Terminal("x/y\nz\n"))
    shown.truncate(0)
    assert main(["init", "--photos", "photos", "--out", "asked.yaml"]) == 1
    assert "vlm_model" not in shown.getvalue(), "no question before a mistake"
    for given in (["--json"], ["--model", "a/b", "--vlm-model", "c"]):
        monkeypatch.setattr("sys.stdin", Terminal("x/y\nz\n"))
        assert main(["init", "--photos", "photos", "--out", f"{len(given)}.yaml", *given]) == 0
        assert "x/y" not in (shop / f"{len(given)}.yaml").read_text()


def test_init_writes_the_address_of_a_server(shop: Path) -> None:
    out = shop / "own.yaml"
    words = ["init", "--photos", str(shop / "photos"), "--vlm-model", "m", "--out", str(out)]
    assert main([*words, "--base-url", "localhost:8000"]) == 1 and not out.exists()
    assert main([*words, "--base-url", "http://localhost:8000/v1"]) == 0
    assert '\n  base_url: "http://localhost:8000/v1"\n' in out.read_text()


def test_what_init_leaves_open_is_refused_until_it_is_filled_in(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(InitConfig(photos=shop / "photos", out=shop / "t.yaml")).finish()["fill_in"] == [
        "model",
        "caption.vlm_model",
    ]
    text = (shop / "t.yaml").read_text()
    assert "\nmodel:  # fill in: " in text and "\n  vlm_model:  # fill in: " in text
    assert main(["run", "--config", "t.yaml"]) == 1
    assert "No model is given" in capsys.readouterr().err
    assert main(["run", "--config", "t.yaml", "--model", "pocket"]) == 1
    assert "No captioner is given" in capsys.readouterr().err
    with pytest.raises(TriptychError, match="no diffusers model folder"):
        init(InitConfig(photos=shop / "photos", out=shop / "u.yaml", model="./nowhere"))
