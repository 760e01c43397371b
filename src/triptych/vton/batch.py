"""Many try-ons from one CSV file, with models loaded once; what is finished is kept, what fails is noted and
passed over.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

from PIL import Image

from triptych.backbones.registry import load_backbone
from triptych.errors import InputError, ModelError, TriptychError
from triptych.events import Event, Run
from triptych.pictures.images import load_image
from triptych.sampling.opened import load_models
from triptych.store.files import write_text
from triptych.tasks.tryon import TRY_ON
from triptych.vton.job import SUFFIXES, Job, TryonConfig, alike, is_finished, make, prepare
from triptych.vton.lines import Line, read_lines, shortened
from triptych.vton.prompt import PromptWriter

log = logging.getLogger(__name__)

EVENTS: dict[str, Literal["done", "kept", "rejected"]] = {
    "made": "done",
    "kept": "kept",
    "failed": "rejected",
}
WRITE_EVERY = 10.0  # seconds between two writes of results.csv
THUMB = 240  # pixels


@dataclass
class Result:
    """One line of results.csv. `picture` is a name in the same folder; `reason` says why it failed, or what
    to beware of.
    """

    id: str
    seed: int | None
    status: Literal["made", "kept", "failed"]
    picture: str = ""
    reason: str = ""


HEADER = [field.name for field in fields(Result)]


def run_batch(config: TryonConfig) -> Run:
    """Make what the lines of `config.batch` ask for; in the folder `out` also results.csv and index.html.

    Lines of one product are done one after the other. A picture that is there and was made with the same
    settings is kept.

    Raises:
        InputError: the file cannot be used at all, or files that triptych did not write lie in the place of
            the results.
        ModelError: model or LoRA cannot be used; or, in the midst of it, the captioner is out of order.
    """
    assert config.batch
    config.check_model()
    out = config.out or config.work / "tryon"
    if not out.is_dir() and (out.exists() or out.suffix.lower() in SUFFIXES):
        raise InputError(
            f"{out} is {'a file' if out.exists() else 'the name of a picture'}.",
            "With --batch, give a folder with --out.",
        )
    _check_results(out, config.batch)
    lines = read_lines(config.batch, config, out)
    load_backbone(
        config.model, config.device, config.dtype, config.quantize, config.blocks_to_swap
    )  # no weights yet
    TRY_ON.trained(config.layout())
    writer = PromptWriter(config, out)
    summary: dict[str, Any] = {
        "made": 0,
        "kept": 0,
        "failed": 0,
        "results": str(out / "results.csv"),
        "index": str(out / "index.html"),
    }
    results = Results(out / "results.csv")

    def note(number: int, result: Result) -> Event:
        results.add(number, result)
        summary[result.status] += 1
        run.failed = summary["failed"]
        return Event(result.picture or result.id, EVENTS[result.status], result.reason)

    def work() -> Iterator[Event]:
        pending: dict[int, list[int]] = {}
        for number, line in enumerate(lines):
            if line.config is None:
                yield note(number, Result(line.id, None, "failed", reason=line.reason))
                continue
            try:
                lines[number], ready = _looked_at(line, writer)
            except ModelError:  # the captioner is out of order, for every line
                raise
            except Exception as error:
                for seed in line.config.seeds:
                    yield note(number, Result(line.id, seed, "failed", reason=_reason(error)))
                continue
            for seed in (seed for seed, done in ready.items() if done):
                yield note(number, Result(line.id, seed, "kept", line.config.files(seed)[0].name))
            pending[number] = [seed for seed, done in ready.items() if not done]
        writer.close()  # its captioner may hold the memory that the model needs
        pending = {number: seeds for number, seeds in pending.items() if seeds}
        if pending:
            prompts = [_prompt(lines[number]) for number in pending]
            models = load_models(**config.model_source(), prompts=prompts)
        prepared: dict[int, Job] = {}
        for batch in _batches(lines, pending, config.batch_size):
            for number, result in _made(lines, batch, prepared, lambda jobs: make(jobs, models)):
                if result.status == "made" and (cut := models.warnings.get(_prompt(lines[number]))):
                    result.reason = f"{result.reason} {cut}".strip()
                yield note(number, result)
            if models.contexts.limit_bytes and models.contexts.misses:
                summary["context_cache"] = models.contexts.summary()
        write_text(out / "index.html", _page(lines, results.rows, out))

    def recorded() -> Iterator[Event]:
        try:
            yield from work()
        finally:
            results.write()

    run = Run(
        "tryon", sum(len(line.config.seeds) if line.config else 1 for line in lines), recorded(), summary
    )
    return run


def _looked_at(line: Line, writer: PromptWriter) -> tuple[Line, dict[int, bool]]:
    """A line with its prompt, and by seed whether the picture is there.
    Raises what is wrong with its inputs.
    """
    config = cast(TryonConfig, line.config)
    if not config.prompt.strip():
        prepare(config)  # before the captioner is asked: it may cost money
        config = writer.fill(config)
    ready = {seed: is_finished(config, seed) for seed in config.seeds}
    if not all(ready.values()):
        prepare(
            config
        )  # again when its turn comes: here to know all mistakes, and show all masks, beforehand
    return replace(line, config=config), ready


def _prompt(line: Line) -> str:
    return cast(TryonConfig, line.config).prompt


class Results:
    """results.csv, written at the end and now and then before: after a kill the pictures themselves say what
    is done.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[int, int | None], Result] = {}
        self._written = time.monotonic()

    def add(self, number: int, result: Result) -> None:
        self.rows[number, result.seed] = result
        if time.monotonic() - self._written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(HEADER)
        for key in sorted(self.rows, key=lambda key: (key[0], key[1] or 0)):
            writer.writerow([getattr(self.rows[key], name) for name in HEADER])
        write_text(self.path, table.getvalue())
        self._written = time.monotonic()


def _check_results(out: Path, batch: Path) -> None:
    """Raises InputError if results.csv or index.html in `out` are files that triptych did not write, or the
    batch file itself.
    """
    for name, beginning in (("results.csv", ",".join(HEADER)), ("index.html", _HEAD.split("\n", 1)[0])):
        path = out / name
        if not path.exists():
            continue
        if path.resolve() == batch.resolve():
            raise InputError(
                f"The batch file {batch} would be overwritten by the results.",
                "Give another folder with --out.",
            )
        if not path.is_file() or (
            path.stat().st_size and not path.read_bytes()[: len(beginning)] == beginning.encode()
        ):
            raise InputError(
                f"{path} is there already, and triptych did not write it.", "Give another folder with --out."
            )


def _batches(
    lines: Sequence[Line], pending: Mapping[int, Sequence[int]], size: int
) -> list[list[tuple[int, int]]]:
    """(line, seed) of the pictures to make, up to `size` together if they can be sampled at once; products
    one after another.
    """
    batches: list[list[tuple[int, int]]] = []
    for number in _by_product(lines, pending):
        for seed in pending[number]:
            last = batches[-1] if batches else []
            if last and len(last) < size and _alike(lines[last[0][0]]) == _alike(lines[number]):
                last.append((number, seed))
            else:
                batches.append([(number, seed)])
    return batches


def _alike(line: Line) -> Any:
    return alike(cast(TryonConfig, line.config))


def _made(
    lines: Sequence[Line],
    batch: Sequence[tuple[int, int]],
    prepared: dict[int, Job],
    run: Callable[[list[tuple[Job, Sequence[int]]]], object],
) -> Iterator[tuple[int, Result]]:
    """(line, result) of each picture of a batch. What cannot be made together is tried one by one: only what
    is wrong fails.

    prepared: the jobs of the batch before, which may go on in this one; then those of this batch.
    """
    seeds: dict[int, list[int]] = {}
    for number, seed in batch:
        seeds.setdefault(number, []).append(seed)
    try:
        jobs = {
            number: prepared.get(number) or prepare(cast(TryonConfig, lines[number].config))
            for number in seeds
        }
        prepared.clear()
        prepared.update(jobs)
        run([(jobs[number], of_job) for number, of_job in seeds.items()])
    except Exception as error:
        if len(batch) > 1:
            for one in batch:
                yield from _made(lines, [one], prepared, run)
            return
        ((number, seed),) = batch
        yield number, Result(lines[number].id, seed, "failed", reason=_reason(error))
        return
    for number, seed in batch:
        job = jobs[number]
        yield (
            number,
            Result(lines[number].id, seed, "made", job.config.files(seed)[0].name, " ".join(job.warnings)),
        )


def _by_product(lines: Sequence[Line], numbers: Mapping[int, Any]) -> list[int]:
    """The numbers of lines, those of one product together,
    products in the order in which they first appear.
    """
    first: dict[Any, int] = {}
    return sorted(numbers, key=lambda number: (first.setdefault(_product(lines[number]), number), number))


def _product(line: Line) -> tuple[Path | None, Path | None]:
    return (line.config.front, line.config.back) if line.config else (None, None)


def _reason(error: Exception) -> str:
    if not isinstance(error, TriptychError | OSError):
        log.warning("A try-on failed: %s", error, exc_info=error)
    return shortened(f"{error}") or type(error).__name__


# --- index.html
# -------------------------------------------------------------------------------------------------------

_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>try-on</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><style>
body{font:15px/1.4 system-ui,sans-serif;margin:2em;max-width:80em}section{border-top:1px solid
#ccc;padding:1em 0}
div{display:flex;flex-wrap:wrap;gap:1em;align-items:flex-end}figure{margin:0;max-width:15em}img{max-width:100%;display:block}
figcaption{overflow-wrap:anywhere}.failed{color:#a00;border:1px solid #a00;padding:.5em}</style>
"""


def _page(lines: Sequence[Line], results: Mapping[tuple[int, int | None], Result], out: Path) -> str:
    """One self-contained page, without scripts: every result beside its product."""
    counts = ", ".join(
        f"{sum(r.status == status for r in results.values())} {status}"
        for status in ("made", "kept", "failed")
    )
    parts = [_HEAD, f"<h1>Try-on</h1><p>{counts}</p>"]
    groups: dict[Any, list[int]] = {}
    for number, line in enumerate(lines):
        groups.setdefault(_product(line), []).append(number)
    for (front, _), numbers in groups.items():
        parts.append("<section><div>")
        if front:
            parts.append(_figure(front, f"product: {front.name}"))
        for key in sorted(
            (key for key in results if key[0] in numbers), key=lambda key: (key[0], key[1] or 0)
        ):
            result = results[key]
            words = result.id if result.seed is None else f"{result.id}, seed {result.seed}"
            if result.status == "failed":
                parts.append(
                    '<figure class="failed"><figcaption>'
                    f"{html.escape(f'{words} failed: {result.reason}')}</figcaption></figure>"
                )
            else:
                parts.append(_figure(out / result.picture, words, result.picture))
        parts.append("</div></section>")
    return "".join(parts) + "</html>\n"


def _figure(path: Path, words: str, link: str = "") -> str:
    caption = f"<figcaption>{html.escape(words)}</figcaption>"
    try:
        small = load_image(path, longest=THUMB)
    except InputError:
        return f"<figure>{caption}</figure>"
    picture = f'<img alt="{html.escape(words)}" src="data:image/jpeg;base64,{_jpeg(small)}">'
    picture = f'<a href="{quote(link)}">{picture}</a>' if link else picture
    return f"<figure>{picture}{caption}</figure>"


def _jpeg(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return base64.b64encode(data.getvalue()).decode()
