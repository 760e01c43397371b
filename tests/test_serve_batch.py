"""`serve --max-batch`: try-ons that share a product are sampled together; each remains a job of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych.errors import InputError
from triptych.evaluation.rendered import held_out_items
from triptych.server.jobs import TRIES, Job, JobStore
from triptych.server.maker import Maker, Tell
from triptych.server.requests import RequestReader, checked, in_words_of_the_api
from triptych.server.uploads import Uploads
from triptych.server.worker import Replica, ReplicaLost, Worker
from triptych.session import Session
from triptych.verbs.tryon import TryonConfig, tryon
from triptych.vton import batch

PROMPT = "one dress <IMAGE 1> its front <IMAGE 2> its back <IMAGE 3> somebody in the dress"


class Bench:
    """A worker without its server: jobs are put into its table before it begins."""

    def __init__(
        self, model: Path, folder: Path, photos: dict[str, Path], size: int, replicas: int = 1
    ) -> None:
        self.model, self.folder, self.photos = str(model), folder, photos
        self.store, self.uploads = JobStore(folder / "jobs.sqlite"), Uploads(folder / "uploads")
        self.own = {"model": self.model, "device": "cpu", "dtype": "fp32"}
        reader = RequestReader(self.own, self.uploads, folder / "results")
        makers = [Maker(reader, lambda: Session(**self.own), size) for _ in range(replicas)]
        self.worker = Worker(self.store, reader, makers, size)

    def post(self, person: str = "person", **changes: Any) -> str:
        ids = {name: self.uploads.add(self.photos[name].read_bytes()).id for name in ("front", person)}
        request = {"person": ids.pop(person), **ids, "prompt": PROMPT, "num_inference_steps": 4}
        return self.store.add("tryon", {**request, "mask": "auto:dress", **changes})[0].id

    def job(self, id: str) -> Job:
        found = self.store.get(id)
        assert found
        return found

    def work(self) -> None:
        """Until no job waits."""
        while jobs := self.worker._next():
            self.worker._do(self.worker.replicas[0], jobs)

    def alone(self, name: str, **options: Any) -> np.ndarray:
        """The picture that the command line makes."""
        out = self.folder / f"{name}.png"
        given = {"front": self.photos["front"], "person": self.photos["person"], "prompt": PROMPT, "out": out}
        mask = {} if "polygon" in options else {"mask": Path("auto:dress")}
        tryon(TryonConfig(**self.own, **{**given, **mask, "num_inference_steps": 4, **options})).finish()
        return np.asarray(Image.open(out), int)

    def picture(self, id: str, number: int = 0) -> np.ndarray:
        return np.asarray(Image.open(self.folder / "results" / id / self.job(id).results[number]), int)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    (item, second), folder = held_out_items(2, seed=9), tmp_path_factory.mktemp("photos")
    drawn = {"front": item.front, "person": item.view(2, item.other()).image, "second": second.worn}
    for name, picture in drawn.items():
        picture.save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in drawn}


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of pictures of each batch that is sampled."""
    counted: list[int] = []
    sample = batch.sample

    def counting(inputs: Any, model: Any) -> Any:
        counted.append(sum(len(seeds) for _, seeds in inputs))
        return sample(inputs, model)

    monkeypatch.setattr(batch, "sample", counting)
    return counted


def test_jobs_of_one_product_are_one_batch_and_their_pictures_those_made_alone(
    tiny_flux: Path, tmp_path: Path, pictures: dict[str, Path], sizes: list[int]
) -> None:
    bench = Bench(tiny_flux, tmp_path, pictures, 4)
    area = [[[10, 20], [40, 20], [40, 60], [10, 60]]]
    first, other = bench.post(seed=1), bench.post(seed=5, strength=0.5)
    two = bench.post("second", seed=2, num_images_per_prompt=2)
    drawn = bench.post(seed=3, mask=None, polygons=area)
    broken = bench.post(mask=None, polygons=[[[0, 0], [1, 0]]])
    bench.work()
    assert sizes == [4, 1], "four pictures of three jobs; another strength is another batch"
    failed = bench.job(broken)
    assert failed.state == "failed" and failed.error["message"] and failed.error["hint"]
    assert [bench.job(id).state for id in (first, two, drawn, other)] == ["done"] * 4
    assert len(bench.job(two).results) == 2 and not bench.worker.moments
    (tmp_path / "area.json").write_text(f'{{"polygons": {area}}}')
    second = {"person": pictures["second"]}
    for made, alone in (
        (bench.picture(first), bench.alone("first", seed=1)),
        (bench.picture(two, 1), bench.alone("two", seed=3, **second)),
        (bench.picture(drawn), bench.alone("drawn", seed=3, polygon=tmp_path / "area.json")),
    ):
        assert np.abs(made - alone).max() <= 1, "as far as a batch of `tryon`: rounding of 8 bits"
    assert np.array_equal(bench.picture(other), bench.alone("other", seed=5, strength=0.5))


def test_without_a_batch_every_job_is_made_alone(
    tiny_flux: Path, tmp_path: Path, pictures: dict[str, Path], sizes: list[int]
) -> None:
    bench = Bench(tiny_flux, tmp_path, pictures, 1)
    ids = [bench.post(seed=seed) for seed in range(2)]
    bench.work()
    assert sizes == [1, 1] and [bench.job(id).state for id in ids] == ["done"] * 2
    assert np.array_equal(bench.picture(ids[1]), bench.alone("one", seed=1))


def test_one_that_fails_in_a_batch_fails_alone(
    tiny_flux: Path, tmp_path: Path, pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tiny_flux, tmp_path, pictures, 8)
    ids = [bench.post(seed=seed) for seed in range(3)]
    sample = batch.sample

    def limited(inputs: Any, model: Any) -> Any:
        if any(1 in seeds for _, seeds in inputs):
            raise MemoryError("CUDA out of memory in /secret/path")
        return sample(inputs, model)

    monkeypatch.setattr(batch, "sample", limited)
    bench.work()
    assert [bench.job(id).state for id in ids] == ["done", "failed", "done"]
    assert bench.job(ids[1]).error == {
        "message": "The device has too little memory for this picture.",
        "hint": "Ask for smaller panels.",
    }


def test_one_that_is_cancelled_leaves_its_batch(
    tiny_flux: Path, tmp_path: Path, pictures: dict[str, Path], sizes: list[int]
) -> None:
    """Cancelled in the middle of the batch it ends at once; the progress of the others goes on."""
    bench = Bench(tiny_flux, tmp_path, pictures, 8)
    ids = [bench.post(seed=seed, num_inference_steps=60) for seed in range(3)]
    thread = threading.Thread(target=bench.work)
    thread.start()
    while not (now := bench.worker.moments.get(ids[1])) or now.done < 3:
        assert thread.is_alive()
    assert now.share > 0 and bench.worker.moments[ids[0]].of == now.of
    bench.store.cancel(ids[1])
    while bench.job(ids[1]).state == "running":
        assert thread.is_alive()
    assert bench.job(ids[1]).state == "cancelled" and bench.job(ids[0]).state == "running"
    thread.join()
    assert [bench.job(id).state for id in ids] == ["done", "cancelled", "done"] and sizes == [3]


def test_one_that_ended_a_server_gets_no_companions(
    tiny_flux: Path, tmp_path: Path, pictures: dict[str, Path], sizes: list[int]
) -> None:
    bench = Bench(tiny_flux, tmp_path, pictures, 8)
    ids = [bench.post(seed=seed) for seed in range(3)]
    bench.store.begin(ids[1:2])
    bench.store.recover()
    bench.work()
    assert sizes == [2, 1] and bench.job(ids[1]).tries == 2


def test_two_replicas_share_the_queue(tiny_flux: Path, tmp_path: Path, pictures: dict[str, Path]) -> None:
    """Each job is begun once; both replicas work, and at the same time."""
    bench = Bench(tiny_flux, tmp_path, pictures, 1, replicas=2)
    for replica in bench.worker.replicas:  # transformers does not load in two threads at once
        bench.post()
        bench.worker._do(replica, bench.worker._next())
    made: dict[int, list[str]] = {0: [], 1: []}
    both = threading.Barrier(2)

    def noted(number: int, replica: Replica) -> Replica:
        def make(jobs: Sequence[Job], tell: Tell) -> None:
            if not made[number]:
                both.wait(60)  # until the other one has a job as well
            made[number].extend(job.id for job in jobs)
            replica(jobs, tell)

        return make

    replicas = [noted(number, each) for number, each in enumerate(bench.worker.replicas)]
    worker = Worker(bench.store, bench.worker.reader, replicas)
    ids = [bench.post(seed=seed) for seed in range(6)]
    worker.start()
    while bench.store.counts()["done"] < 8:
        assert worker.is_alive() and not bench.store.counts()["failed"]
    worker.stop()
    assert sorted(made[0] + made[1]) == sorted(ids) and made[0] and made[1]
    assert [bench.job(id).tries for id in ids] == [1] * 6 and not worker.moments
    assert np.array_equal(bench.picture(ids[5]), bench.alone("one", seed=5))


def test_jobs_of_a_replica_that_is_lost_are_made_again(
    tiny_flux: Path, tmp_path: Path, pictures: dict[str, Path]
) -> None:
    """Those that ended before it was lost are not; one that loses replicas again and again is given up."""
    bench = Bench(tiny_flux, tmp_path, pictures, 8)
    maker = bench.worker.replicas[0]

    def lost(jobs: Sequence[Job], tell: Tell) -> None:
        if jobs[0].request.get("seed") == 9:
            raise ReplicaLost("killed")
        maker(jobs[:1], tell)
        if len(jobs) > 1:
            raise ReplicaLost("killed")

    worker = Worker(bench.store, bench.worker.reader, [lost], 8)
    ids = [bench.post(seed=seed) for seed in (1, 2)]
    bad = bench.post(seed=9, strength=0.5)
    worker.start()
    while bench.store.counts()["failed"] + bench.store.counts()["done"] < 3:
        assert worker.is_alive()
    worker.stop()
    assert [(bench.job(id).state, bench.job(id).tries) for id in ids] == [("done", 1), ("done", 2)]
    assert "ended 3 times" in bench.job(bad).error["message"] and bench.job(bad).tries == TRIES


def test_hints_speak_the_words_of_the_api() -> None:
    said = in_words_of_the_api("Lower --lora-scale, draw a --polygon, or use --expand hull and --mask-out.")
    assert said == "Lower the server's --lora-scale, draw a polygons, or use expand hull and --mask-out."
    hint = 'Describe: --prompt "…", give a --caption file, or let a --vlm-model write it.'
    told = in_words_of_the_api(hint)
    assert told == 'Describe: prompt "…", or let the server\'s --vlm-model write it.'
    assert in_words_of_the_api(told) == told


@pytest.mark.parametrize(
    ("asked", "said", "hint"),
    [
        ({"seed": "x"}, "The setting seed is x; it takes", "lists all settings"),
        ({"guidence_scale": 3}, "There is no setting guidence_scale.", "Did you mean guidance_scale?"),
        ({"model": "other"}, "model is the server's own setting.", "another server"),
        ({"person": "me.jpg"}, "person is no id of an upload.", "POST /v1/uploads"),
        ({"polygons": [3]}, "polygons holds no outlines.", "corners [x, y]"),
        ({"person": None}, "person is no id of an upload.", "POST /v1/uploads"),
    ],
)
def test_a_wrong_setting_is_told_as_the_command_line_tells_it(
    asked: dict[str, object], said: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        checked("tryon", {"person": "0" * 64, "front": "1" * 64, **asked})
    assert caught.value.message.startswith(said) and hint in caught.value.hint
    with pytest.raises(InputError, match="The setting person is missing"):
        checked("tryon", {"front": "1" * 64})
