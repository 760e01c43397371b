"""todo · make · record: who makes the items, in which order, and that all of it can travel to a worker."""

from __future__ import annotations

import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.caption_server import Desk, Server, serve, write_model
from tests.test_clean import Counting, draw
from tests.test_concat import Shop
from tests.test_embed import config as embed_config
from tests.test_embed import write_triptychs
from triptych.captioning.failed import Rejected
from triptych.data.triptychs import JOURNAL
from triptych.execution import PerWorker, execute, in_process, using
from triptych.store.journal import Journal, journal_rows
from triptych.verbs.caption import caption
from triptych.verbs.clean import CleanConfig, clean
from triptych.verbs.concat import concat
from triptych.verbs.embed import PictureTools, TextTools, embed
from triptych.verbs.evaluate import EvaluateConfig, evaluate
from triptych.verbs.tryon import TryonConfig, tryon
from triptych.vision import features


class Counted:
    """Tools that know how often they were built, and whether they are closed."""

    built = 0

    def __init__(self, factor: int) -> None:
        type(self).built += 1
        self.factor, self.closed = factor, threading.Event()

    def close(self) -> None:
        self.closed.set()


def times(item: int, tools: Counted) -> int:
    time.sleep(0.01 * (item % 3))  # later ones are often ready first
    return item * tools.factor


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_items_are_made_in_their_order_with_tools_that_are_built_once(threads: int) -> None:
    Counted.built = 0
    tools = PerWorker(Counted, 2)
    assert list(execute(times, range(10), tools, threads)) == [2 * item for item in range(10)]
    assert Counted.built == 1
    assert not list(execute(times, [], PerWorker(Counted, 2), threads)) and Counted.built == 1, "none needed"


def test_no_more_is_begun_than_the_window_holds() -> None:
    begun: list[int] = []

    def make(item: int, tools: Counted) -> int:
        begun.append(item)
        return item

    tools = PerWorker(Counted, 1)
    results = execute(make, iter(range(100)), tools, 2)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(begun) <= 4
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 4 and tools().closed.is_set()


def test_the_first_mistake_ends_all_and_is_the_one_that_is_told() -> None:
    def make(item: int, tools: Counted) -> int:
        if item == 1:
            raise ValueError("the first")
        if item > 1:
            raise RuntimeError("came later" if tools.closed.wait(5) else "nobody closed the tools")
        return item

    for threads in (0, 3):
        seen: list[int] = []
        with pytest.raises(ValueError, match="the first"):
            seen.extend(execute(make, range(50), PerWorker(Counted, 1), threads))


def test_tools_travel_as_their_recipe() -> None:
    Counted.built = 0
    tools = PerWorker(Counted, 3)
    assert tools().factor == 3
    there: PerWorker[Counted] = pickle.loads(pickle.dumps(tools))
    assert Counted.built == 1
    assert there().factor == 3 and Counted.built == 2


class Cluster:
    """An executor elsewhere: what goes to its workers and comes back is bytes, and each has tools of its
    own.
    """

    def __init__(self, workers: int = 2) -> None:
        self.workers, self.made, self.largest = workers, 0, 0

    def __call__(
        self,
        make: Callable[[Any, Any], Any],
        items: Iterable[Any],
        tools: PerWorker[Any],
        threads: int = 0,
    ) -> Iterator[Any]:
        recipe = pickle.dumps((make, tools))
        workers = [pickle.loads(recipe) for _ in range(self.workers)]
        for number, item in enumerate(items):
            parcel = pickle.dumps(item)
            self.largest = max(self.largest, len(parcel))
            there, its_tools = workers[number % self.workers]
            back = pickle.dumps(next(iter(in_process(there, [pickle.loads(parcel)], its_tools))))
            self.made += 1
            yield pickle.loads(back)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_concat_elsewhere_is_concat_here(shop: Shop) -> None:
    shop.full("a", 3)
    shop.full("b")
    shop.full("broken")
    (shop.root / "raw/broken/front.png").write_bytes(b"no picture")
    here = shop.concat()
    expected = files_of(shop.folder)
    cluster = Cluster()
    with using(cluster):
        there = concat(shop.config(triptychs=shop.root / "there")).finish()
    assert cluster.made == 5 and cluster.largest < 10_000
    assert files_of(shop.root / "there") == expected
    assert {key: there[key] for key in ("made", "rejected", "reasons")} == {
        key: here[key] for key in ("made", "rejected", "reasons")
    }


def test_clean_elsewhere_is_clean_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "load_extractor", lambda name: Counting().extractor)
    monkeypatch.setattr("triptych.verbs.clean.BATCH", 3)
    for number in range(5):
        draw(tmp_path / f"human/{number}.png", True, 100 + number)
        draw(tmp_path / f"garment/{number}.png", False, 100 + number)
    for number in range(7):
        draw(tmp_path / f"photos/item{number % 2}/{number}.png", number % 3 == 0, number)
        draw(tmp_path / f"photos/item{number % 2}/same_as_{number}.png", number % 3 == 0, number)
    (tmp_path / "photos/item1/broken.jpg").write_bytes(b"no picture")
    folders = {name: tmp_path / name for name in ("photos", "human", "garment")}
    runs = [clean(CleanConfig(work=tmp_path / name, **folders)) for name in ("here", "there")]
    here = list(runs[0])
    cluster = Cluster()
    with using(cluster):
        there = list(runs[1])
    assert here == there and cluster.made > 8 and cluster.largest < 10_000
    assert {event.result.label for event in here} >= {"human", "garment", "rejected"}
    made = [files_of(tmp_path / name / "catalogue") for name in ("here", "there")]
    for name in made[0].keys() - {"features.safetensors"}:  # features lie there in the order they came in
        assert made[0][name] == made[1][name], name


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    yield from serve(monkeypatch)


def test_caption_elsewhere_is_caption_here_and_pays_once(tmp_path: Path, server: Server) -> None:
    model = write_model(tmp_path / "model")
    desks = [Desk(tmp_path / name, server, model) for name in ("here", "there")]
    for desk in desks:
        desk.draw(4)
        (desk.folder / "t2.png").write_bytes(b"no picture")
    here = desks[0].caption()
    asked = len(server.calls)
    cluster = Cluster()
    with using(cluster):
        there = caption(desks[1].config()).finish()
    assert cluster.made == 4 and len(server.calls) == 2 * asked
    assert (here["captioned"], here["rejected"]) == (there["captioned"], there["rejected"]) == (3, 1)
    made = [files_of(desk.folder) for desk in desks]
    assert made[0].keys() == made[1].keys()
    assert all(made[0][name] == made[1][name] for name in made[0] if name != JOURNAL)
    kinds = [sorted(row["kind"] for row in journal_rows(desk.folder / JOURNAL)) for desk in desks]
    assert kinds[0] == kinds[1]


def test_embed_elsewhere_is_embed_here(tmp_path: Path, tiny_flux: Path) -> None:
    for name in ("here", "there"):
        write_triptychs(tmp_path / name / "triptychs", 5)
        (tmp_path / name / "triptychs" / "item-1.png").write_bytes(
            (tmp_path / name / "triptychs" / "item-1.png").read_bytes()[:-60]
        )
    here = embed(embed_config(tmp_path / "here", tiny_flux, batch_size=2)).finish()
    cluster = Cluster()
    with using(cluster):
        there = embed(embed_config(tmp_path / "there", tiny_flux, batch_size=2)).finish()
    assert cluster.made == 1 + 3 and cluster.largest < 10_000
    assert (here["embedded"], here["rejected"]) == (there["embedded"], there["rejected"]) == (4, 1)
    made = [files_of(tmp_path / name / "embeddings") for name in ("here", "there")]
    reasons = [files.pop("flux/embed.rejects.jsonl") for files in made]
    assert made[0] == made[1]
    assert reasons[0].replace(b"/here/", b"/there/") == reasons[1]


def test_evaluate_elsewhere_is_evaluate_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.evaluation.rendered.BATCH", 3)
    configs = [
        EvaluateConfig(pocket=True, items=4, mode="both", num_inference_steps=2, work=tmp_path / name)
        for name in ("here", "there")
    ]
    here = evaluate(configs[0]).finish()
    cluster = Cluster()
    with using(cluster):
        there = evaluate(configs[1]).finish()
    assert cluster.made == 3 * 2 and cluster.largest < 10_000, "two modes and the ceiling"
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")
    del here["results"], there["results"]
    assert here == there and here["ceiling"]["type"].startswith("1.00")


def test_a_batch_of_try_ons_elsewhere_is_one_here(tmp_path: Path, tiny_flux: Path) -> None:
    for name, size in (("red", (120, 160)), ("blue", (90, 160)), ("me", (120, 160))):
        Image.new("RGB", size, name if name != "me" else "grey").save(tmp_path / f"{name}.png")
    Image.new("LA", (120, 160), (200, 100)).save(tmp_path / "clear.png")
    (tmp_path / "p.json").write_text('{"polygons": [[[40, 40], [80, 40], [85, 100], [35, 100]]]}')
    lines = ["red,me,2", "blue,me,1", "red,clear,1", "red,nobody,1", "red,me,many"]
    rows = [
        f"{front}.png,{person}.png,{count}" for front, person, count in (line.split(",") for line in lines)
    ]
    (tmp_path / "jobs.csv").write_text("\n".join(["front,person,num_images_per_prompt", *rows]))
    configs = [
        TryonConfig(
            batch=tmp_path / "jobs.csv",
            polygon=tmp_path / "p.json",
            prompt="dress <IMAGE 1> front <IMAGE 2> back <IMAGE 3> worn",
            model=str(tiny_flux),
            out=tmp_path / name,
            device="cpu",
            dtype="fp32",
            num_inference_steps=2,
            batch_size=2,
        )
        for name in ("here", "there")
    ]
    here = list(tryon(configs[0]))
    cluster = Cluster()
    with using(cluster):
        there = tryon(configs[1])
        assert [replace(event, result=None) for event in there] == [
            replace(event, result=None) for event in here
        ]
    assert cluster.made == 5 + 3 and cluster.largest < 10_000, "five lines and three batches"
    assert (there.summary["made"], there.failed) == (4, 2)
    made = [files_of(tmp_path / name) for name in ("here", "there")]
    assert made[0] == made[1] and len(made[0]) == 3 + 2 * 4 + 2, "masks, pictures with triptychs, two tables"


def test_the_text_encoder_is_gone_before_the_autoencoder_comes(
    tmp_path: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: list[weakref.ref[Any]] = []
    text, picture = TextTools.__init__, PictureTools.__init__

    def read_texts(self: TextTools, *given: Any) -> None:
        text(self, *given)
        encoders.append(weakref.ref(self))

    def read_pictures(self: PictureTools, *given: Any) -> None:
        assert [encoder() for encoder in encoders] == [None]
        picture(self, *given)

    monkeypatch.setattr(TextTools, "__init__", read_texts)
    monkeypatch.setattr(PictureTools, "__init__", read_pictures)
    write_triptychs(tmp_path / "triptychs", 2)
    assert embed(embed_config(tmp_path, tiny_flux)).finish()["embedded"] == 2


def test_a_stopped_embed_does_not_read_its_captions_again(
    tmp_path: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_triptychs(tmp_path / "triptychs", 3)
    with embed(embed_config(tmp_path, tiny_flux, batch_size=1)) as run:
        assert next(run).status == "done"
    from triptych.sampling import prompts

    encode, asked = prompts.encode_texts, list[str]()
    monkeypatch.setattr(
        prompts,
        "encode_texts",
        lambda encoder, texts, length: asked.extend(texts) or encode(encoder, texts, length),
    )
    assert embed(embed_config(tmp_path, tiny_flux)).finish()["embedded"] == 2
    assert asked == []


def test_a_journal_travels_and_leaves_a_row_alone_that_is_being_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"kind": "answer", "id": "a"})
    with open(journal.path, "ab") as file:
        file.write(b'{"kind": "an')
    there: Journal = pickle.loads(pickle.dumps(journal))
    assert there.rows == journal.rows and journal.path.read_bytes().endswith(b'{"kind": "an')
    assert Journal(journal.path).rows == journal.rows and journal.path.read_bytes().endswith(b"}\n")


def test_a_rejection_travels() -> None:
    there = pickle.loads(pickle.dumps(Rejected("check", "the panels show cats", "model", "Look.")))
    assert (there.step, str(there), there.fault, there.hint) == (
        "check",
        "the panels show cats",
        "model",
        "Look.",
    )
