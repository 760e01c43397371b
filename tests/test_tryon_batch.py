"""tryon --batch: many lines, models loaded once, resumable, and one failure never stops the rest."""

from __future__ import annotations

import contextlib
import csv
import json
import multiprocessing
import os
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych.backbones.contract import Backbone
from triptych.captioning.captioners import LocalCaptioner
from triptych.cli import main
from triptych.errors import ConfigError, InputError, ModelError
from triptych.evaluation.rendered import held_out_items
from triptych.pictures import saving
from triptych.pictures.saving import save_png
from triptych.sampling.opened import OpenedModel
from triptych.store import files
from triptych.verbs.tryon import TryonConfig, tryon
from triptych.vton import batch
from triptych.vton import results as results_csv
from triptych.vton.lines import read_lines

PROMPT = "dress <IMAGE 1> front <IMAGE 2> back <IMAGE 3> worn"  # no longer than the tiny model reads


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two products, a person with a name that is markup, a polygon, a caption and a batch of five lines."""
    for name, colour in (("red", (200, 30, 40)), ("blue", (30, 40, 200))):
        product = Image.new("RGB", (120, 160), "white")
        product.paste(colour, (30, 30, 90, 130))
        product.save(tmp_path / f"{name}.png")
    noise = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((120, 160), Image.Resampling.BICUBIC).save(tmp_path / "me.jpg")
    (tmp_path / "p.json").write_text(json.dumps({"polygons": [[[40, 40], [80, 40], [85, 100], [35, 100]]]}))
    (tmp_path / "c.txt").write_text("a " + PROMPT)
    write(
        tmp_path,
        "id,front,person,seed,num_images_per_prompt,caption,strength",
        "a,red.png,me.jpg,3,2,,",
        "b,blue.png,me.jpg,,,,",
        "c,red.png,<img src=x>.jpg,,,,",
        "d,red.png,me.jpg,,,c.txt,",
        "e,red.png,me.jpg,,,,lots",
    )
    return tmp_path


def write(folder: Path, *lines: str) -> None:
    (folder / "jobs.csv").write_text("\n".join(lines) + "\n")


def options(model: Path, folder: Path, **changes) -> TryonConfig:
    base = {
        "batch": folder / "jobs.csv",
        "polygon": folder / "p.json",
        "prompt": PROMPT,
        "model": str(model),
        "out": folder / "out",
    }
    return TryonConfig(**{**base, "device": "cpu", "dtype": "fp32", "num_inference_steps": 2, **changes})


def results(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(folder / "out" / "results.csv", newline="") as file:
        return {(row["id"], row["seed"]): row for row in csv.DictReader(file)}


def test_a_batch_makes_what_it_can_and_says_what_it_cannot(
    tiny_flux: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[Path] = []
    load_transformer = Backbone.load_transformer
    monkeypatch.setattr(
        Backbone, "load_transformer", lambda self: loads.append(Path(self.model)) or load_transformer(self)
    )
    words = [
        "tryon",
        "--batch",
        str(folder / "jobs.csv"),
        "--polygon",
        str(folder / "p.json"),
        "--prompt",
        PROMPT,
        "--json",
    ]
    words += [
        "--model",
        str(tiny_flux),
        "--out",
        str(folder / "out"),
        "--num-inference-steps",
        "2",
        "--device",
        "cpu",
        "--dtype",
        "fp32",
    ]
    assert main(words) == 1, "two lines have failed"
    summary = json.loads(capsys.readouterr().out)
    assert (summary["made"], summary["kept"], summary["failed"]) == (4, 0, 2)
    assert len(loads) == 1
    table = results(folder)
    assert list(table) == [("a", "3"), ("a", "4"), ("b", "0"), ("c", "0"), ("d", "0"), ("e", "")]
    assert "there is no such file" in table["c", "0"]["reason"]
    assert "strength" in table["e", ""]["reason"]
    for key, name in {
        ("a", "3"): "a-3.png",
        ("a", "4"): "a-4.png",
        ("b", "0"): "b.png",
        ("d", "0"): "d.png",
    }.items():
        assert table[key]["picture"] == name
        assert Image.open(folder / "out" / name).size == (120, 160)
        assert table[key]["reason"] == ""
    assert json.loads(Image.open(folder / "out" / "d.png").text["triptych"])["prompt"].startswith("a dress")
    page = (folder / "out" / "index.html").read_text()
    assert "<script" not in page and "<img src=x>" not in page and "&lt;img src=x&gt;" in page
    assert page.count('<a href="') == 4 and "http" not in page.replace("http-equiv", "")

    before = {path: path.read_bytes() for path in (folder / "out").glob("*.png")}
    assert main(words) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["made"], summary["kept"], summary["failed"]) == (0, 4, 2)
    assert len(loads) == 1, "nothing to do: no model is loaded"
    assert all(path.read_bytes() == data for path, data in before.items())


def test_lines_of_one_product_follow_each_other_and_a_stopped_batch_goes_on(
    tiny_flux: Path, folder: Path
) -> None:
    write(folder, "front,person", "red.png,me.jpg", "blue.png,me.jpg", "red.png,me.jpg", "blue.png,me.jpg")
    run = iter(tryon(options(tiny_flux, folder)))
    assert [next(run).id for _ in range(2)] == ["001.png", "003.png"]
    run.close()  # type: ignore[attr-defined]
    first = (folder / "out" / "001.png").stat().st_mtime_ns
    summary = tryon(options(tiny_flux, folder)).finish()
    assert (summary["made"], summary["kept"], summary["failed"]) == (2, 2, 0)
    assert (folder / "out" / "001.png").stat().st_mtime_ns == first
    write(
        folder,
        "front,person,grow",
        "red.png,me.jpg,4",
        "blue.png,me.jpg,",
        "red.png,me.jpg,",
        "blue.png,me.jpg,",
    )
    whole = (folder / "out" / "004.png").read_bytes()
    (folder / "out" / "004.png").write_bytes(whole[: len(whole) // 2])
    summary = tryon(options(tiny_flux, folder)).finish()
    assert (summary["made"], summary["kept"]) == (2, 2), "other settings and a broken file are made again"
    alone = folder / "alone.png"
    one = {"front": folder / "red.png", "person": folder / "me.jpg", "grow": 4, "out": alone, "batch": None}
    tryon(options(tiny_flux, folder, **one)).finish()
    assert np.array_equal(np.asarray(Image.open(alone)), np.asarray(Image.open(folder / "out" / "001.png")))


def test_lines_are_sampled_together_and_what_is_wrong_fails_alone(
    tiny_flux: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        folder,
        "front,person,seed,strength",
        *["red.png,me.jpg,0,", "blue.png,me.jpg,1,", "red.png,me.jpg,2,", "red.png,me.jpg,3,0.5"],
    )
    tryon(options(tiny_flux, folder, out=folder / "alone")).finish()
    sizes: list[int] = []
    sample = batch.sample

    def counted(jobs, models):
        sizes.append(len(jobs))
        if any(job.config.picture.stem == "003" for job, _ in jobs):
            raise MemoryError("too much for one")
        return sample(jobs, models)

    monkeypatch.setattr(batch, "sample", counted)
    summary = tryon(options(tiny_flux, folder, batch_size=8)).finish()
    assert sizes == [2, 1, 1, 1, 1], (
        "001 and 003 together, then each alone; 004 has another strength; 002 is another product"
    )
    assert (summary["made"], summary["failed"]) == (3, 1)
    assert "too much" in results(folder)["003", "2"]["reason"]
    monkeypatch.setattr(batch, "sample", sample)
    summary = tryon(options(tiny_flux, folder, batch_size=8)).finish()
    assert (summary["made"], summary["kept"]) == (1, 3), "the batch size is no setting of the picture"
    for name in ("001", "002", "003", "004"):
        one, other = (
            np.asarray(Image.open(folder / where / f"{name}.png"), int) for where in ("alone", "out")
        )
        assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize(
    ("lines", "error", "words"),
    [
        (["front,person"], InputError, "no line"),
        (["front,front", "a,b"], InputError, "'front' twice"),
        (["front,persn", "a,b"], ConfigError, "persn"),
        (["front,model", "red.png,other"], ConfigError, "model"),
        (["front,out", "red.png,x.png"], ConfigError, "same for all lines"),
        (['"front,person', "red.png,me.jpg"], InputError, "header"),
        (["front,per\0son", "red.png,me.jpg"], InputError, "header"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_a_model_is_loaded(
    tiny_flux: Path, folder: Path, lines: list[str], error: type, words: str
) -> None:
    write(folder, *lines)
    with pytest.raises(error, match=words) as caught:
        tryon(options(tiny_flux, folder, device="no-such-device"))
    assert caught.value.hint


def test_odd_lines_fail_alone(tiny_flux: Path, folder: Path) -> None:
    words = {
        "../up,red.png,me.jpg": "no name for a file",
        "long,red.png,me.jpg,,,,more": "7 cells",
        "short,red.png": "--person",
        '"quote,red.png,me.jpg': "cannot be read",
        'inside,re"d".png"x,me.jpg': "there is no such file",
        '"end"x,red.png,me.jpg': "cannot be read",
        f"huge,{'x' * 200_000},me.jpg": "cannot be read",
        f"name,{'x' * 5_000},me.jpg": "there is no such file",
        "nul,re\0d.png,me.jpg": "NUL",
        "home,~nobody-lives-here/red.png,me.jpg": "home",
        "wide,red.png,me.jpg,80000": "panel_width",
        "canvas,red.png,me.jpg,8192,8192": "megapixels",
        "seed,red.png,me.jpg,,,18446744073709551616": "seed",
        "ok,red.png,me.jpg": "same picture as line ok",
        "blue,red.png,me.jpg": "overwrite a photo of the batch",
        "own,red.png,me.jpg": "triptych did not write it",
        "device,/dev/zero,me.jpg": "not a regular file",
        "void,red.png,me.jpg,8,8": "grid",
    }
    (folder / "out").mkdir()
    (folder / "out" / "own.png").write_bytes((folder / "red.png").read_bytes())
    save_png(Image.open(folder / "blue.png"), folder / "out" / "blue.png", text={"Software": "triptych"})
    lines = ["ok,red.png,me.jpg", *words, "last,out/blue.png,me.jpg"]
    write(folder, "id,front,person,panel_width,panel_height,seed", *lines)
    run = tryon(options(tiny_flux, folder, num_inference_steps=1))
    summary = run.finish()
    assert (summary["made"], summary["failed"], run.failed) == (2, len(words), len(words))
    with open(folder / "out" / "results.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "failed"]
    for number, (line, reason) in enumerate(words.items(), 2):
        told = [row["reason"] for row in rows if row["id"] in (f"{number:03d}", line.split(",")[0])]
        assert any(reason in one for one in told), (line[:60], told)
    assert not (folder / "up.png").exists()
    assert (folder / "out" / "own.png").read_bytes() == (folder / "red.png").read_bytes()


def test_a_batch_killed_at_any_picture_goes_on_to_the_same_pictures(tiny_flux: Path, folder: Path) -> None:
    """`kill -9` while a picture is half written and between two: nothing torn stands under a final name,
    nothing is made twice.
    """
    write(
        folder,
        "front,person,num_images_per_prompt",
        "red.png,me.jpg,2",
        "blue.png,me.jpg,2",
        "red.png,me.jpg,",
    )
    whole = tryon(options(tiny_flux, folder, out=folder / "whole")).finish()
    assert whole["made"] == 5
    names = sorted(path.name for path in (folder / "whole").glob("*.png"))
    context = multiprocessing.get_context("forkserver")
    for saves in (1, 2, 5, 6):  # of the 4 masks and, for each picture, its triptych and itself
        process = context.Process(target=killed_at_save, args=(saves, options(tiny_flux, folder)))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        for path in (folder / "out").glob("*.png"):
            Image.open(path).load()
    before = {
        path: path.stat().st_mtime_ns
        for path in (folder / "out").glob("*.png")
        if not path.stem.endswith(("mask", "triptych"))
    }
    summary = tryon(options(tiny_flux, folder)).finish()
    assert (
        summary["failed"] == 0 and summary["kept"] == len(before) > 0 and summary["made"] == 5 - len(before)
    )
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert sorted(path.name for path in (folder / "out").glob("*.png")) == names
    for name in names:
        one, other = (np.asarray(Image.open(folder / where / name), int) for where in ("whole", "out"))
        assert np.abs(one - other).max() <= 1, f"{name}, but for another process's number of threads"


def killed_at_save(saves: int, config: TryonConfig) -> None:
    """Run a batch, and die in the midst of the n-th picture file after the masks."""
    publish, count = files.publish, 0

    @contextlib.contextmanager
    def publish_or_die(path: Path) -> Iterator[Path]:
        nonlocal count
        with publish(path) as part:
            yield part
            count += path.suffix == ".png" and "mask" not in path.name
            if count == saves:
                os.truncate(part, part.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

    files.publish = saving.publish = publish_or_die  # type: ignore[assignment]
    tryon(config).finish()


def test_a_captioner_writes_the_prompts_that_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked once: the journal answers a second time. A prompt that is there is left alone."""
    item = held_out_items(1, seed=3)[0]
    for name, image in (("front", item.front), ("back", item.back), ("me", item.worn)):
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "p.json").write_text(json.dumps({"polygons": [[[40, 60], [150, 60], [150, 200], [40, 200]]]}))
    words = [
        "tryon",
        "--front",
        f"{tmp_path}/front.png",
        "--back",
        f"{tmp_path}/back.png",
        "--person",
        f"{tmp_path}/me.png",
    ]
    words += [
        "--polygon",
        f"{tmp_path}/p.json",
        "--num-inference-steps",
        "1",
        "--out",
        f"{tmp_path}/new.png",
        "--json",
    ]
    words += (model := ["--model", "pocket"])
    assert main(words) == 1
    assert "--vlm-model" in capsys.readouterr().err
    assert main([*words, "--vlm-model", "pocket"]) == 0
    prompt = json.loads(capsys.readouterr().out)["prompt"]
    assert item.garment.type in prompt and item.garment.colour in prompt and "<IMAGE 3>" in prompt
    assert json.loads(Image.open(tmp_path / "new.png").text["triptych"])["prompt"] == prompt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalCaptioner, "ask", lambda *args: pytest.fail("asked again"))
        assert main([*words, "--vlm-model", "pocket"]) == 0
        assert main([*words, "--vlm-model", "pocket", "--prompt", PROMPT]) == 0
    capsys.readouterr()
    write(
        tmp_path,
        "id,front,back,person,prompt",
        "own,front.png,back.png,me.png,a b <IMAGE 1> c <IMAGE 2> d <IMAGE 3> e",
        "x,front.png,back.png,me.png,",
    )
    batch = [
        "tryon",
        "--batch",
        f"{tmp_path}/jobs.csv",
        "--polygon",
        f"{tmp_path}/p.json",
        *model,
        "--vlm-model",
        "pocket",
        "--json",
    ]
    assert main([*batch, "--num-inference-steps", "1", "--out", f"{tmp_path}/out"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 2
    prompts = [
        json.loads(Image.open(tmp_path / "out" / f"{name}.png").text["triptych"])["prompt"]
        for name in ("own", "x")
    ]
    assert prompts == ["a b <IMAGE 1> c <IMAGE 2> d <IMAGE 3> e", prompt]


def test_what_triptych_did_not_write_is_never_replaced(tiny_flux: Path, folder: Path) -> None:
    write(folder, "front,person", "red.png,me.jpg")
    for name, content in (
        ("results.csv", "my,own\n"),
        ("index.html", "<html>mine"),
        ("results.csv", "front,person\nred.png,me.jpg\n"),
    ):
        out = folder / "mine"
        out.mkdir(exist_ok=True)
        (out / name).write_text(content)
        batch = out / name if "me.jpg" in content else folder / "jobs.csv"
        with pytest.raises(InputError, match=r"would be overwritten|did not write it"):
            tryon(options(tiny_flux, folder, out=out, batch=batch, device="no-such-device"))
        assert (out / name).read_text() == content
        (out / name).unlink()
    (folder / "mine" / "prompts.jsonl").write_text('{"my": "own"}\n{"without": "a line end"}')
    with pytest.raises(InputError, match="did not write it"):
        tryon(options(tiny_flux, folder, out=folder / "mine", prompt="", vlm_model="pocket"))
    assert (folder / "mine" / "prompts.jsonl").read_text().endswith('end"}')


def test_a_batch_stops_when_its_captioner_is_down(
    tiny_flux: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `caption` does: each line would wait for minutes.
    What was found out by then stands in results.csv.
    """
    asked: list[str] = []

    def down(self: LocalCaptioner, *args: Any) -> str:
        asked.append("asked")
        raise ModelError("The captioner is down.", "Start it.")

    monkeypatch.setattr(LocalCaptioner, "ask", down)
    write(folder, "front,person", "red.png,nobody.jpg", "red.png,me.jpg", "blue.png,me.jpg")
    with pytest.raises(ModelError, match="down"):
        tryon(options(tiny_flux, folder, prompt="", vlm_model="pocket", anyway=True)).finish()
    assert len(asked) == 1
    assert [row["status"] for row in results(folder).values()] == ["failed"]


def test_a_captioner_here_is_gone_before_the_model_is_loaded(
    tiny_flux: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[LocalCaptioner]] = []
    load = OpenedModel.load

    def ask(self: LocalCaptioner, *args: Any) -> str:
        alive.append(weakref.ref(self))
        return PROMPT

    def loaded(self: OpenedModel) -> None:
        assert alive and all(captioner() is None for captioner in alive)
        load(self)

    monkeypatch.setattr(LocalCaptioner, "ask", ask)
    monkeypatch.setattr(OpenedModel, "load", loaded)
    write(folder, "front,person", "red.png,me.jpg")
    assert (
        tryon(
            options(tiny_flux, folder, prompt="", vlm_model="pocket", anyway=True, num_inference_steps=1)
        ).finish()["made"]
        == 1
    )


def test_results_are_written_now_and_then_and_at_the_end(
    tiny_flux: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for every picture: a finished batch of ten thousand lines would write ten thousand tables."""
    written: list[str] = []
    write_text = results_csv.write_text
    monkeypatch.setattr(
        results_csv, "write_text", lambda path, text: written.append(path.name) or write_text(path, text)
    )
    write(folder, "front,person", *["red.png,nobody.jpg"] * 40)
    tryon(options(tiny_flux, folder)).finish()
    assert written.count("results.csv") == 1 and len(results(folder)) == 40
    run = iter(tryon(options(tiny_flux, folder)))
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert len(results(folder)) == 1, "a batch that was stopped has its table too"


@pytest.mark.parametrize(
    "lines",
    [
        ("front;person;prompt", f'red.png;me.jpg;"{PROMPT}, with a comma"'),
        ("sep=;", "front;person;prompt", f'red.png;me.jpg;"{PROMPT}, with a comma"'),
        ("front,person,prompt,,", f'red.png,me.jpg,"{PROMPT}, with a comma",,', ",,,,"),
    ],
    ids=["semicolons", "Excel's own line", "columns that are empty"],
)
def test_a_table_of_a_spreadsheet_is_read(tiny_flux: Path, folder: Path, lines: tuple[str, ...]) -> None:
    write(folder, *lines)
    found = read_lines(folder / "jobs.csv", options(tiny_flux, folder, prompt=""), folder / "out")
    (config,) = [line.config for line in found]
    assert config and config.prompt.endswith("with a comma")


def test_cells_below_no_name_are_refused(tiny_flux: Path, folder: Path) -> None:
    write(folder, "front,person,", "red.png,me.jpg,what")
    with pytest.raises(ConfigError, match="Unknown key"):
        read_lines(folder / "jobs.csv", options(tiny_flux, folder), folder / "out")
    write(folder, "front,person,", "red.png,me.jpg,,what")
    (line,) = read_lines(folder / "jobs.csv", options(tiny_flux, folder), folder / "out")
    assert "3 cells" in line.reason


def test_a_batch_makes_no_folder_with_the_name_of_a_picture(tiny_flux: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="name of a picture"):
        tryon(options(tiny_flux, folder, out=folder / "new.png"))
