"""Many try-ons from one CSV file, with models loaded once; what is finished is kept, what fails is noted and passed over."""

from __future__ import annotations

import base64
import csv
import html
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

from PIL import Image

from triptych.backbones.registry import load_backbone
from triptych.config import StageConfig, unknown_key, validated
from triptych.errors import InputError, TriptychError
from triptych.images import load_image
from triptych.inference import load_models
from triptych.sampling import MODEL_FIELDS
from triptych.store import Event, Run, read_text, write_text
from triptych.tryon_job import Job, TryonConfig, alike, check, is_finished, make, prepare
from triptych.tryon_prompt import PromptWriter

log = logging.getLogger(__name__)

_SHARED = {*StageConfig.model_fields, *MODEL_FIELDS, "vlm_model", "base_url", "batch", "batch_size", "out"}
COLUMNS = sorted({"id", *TryonConfig.model_fields} - _SHARED)
"""What a line may set; the model is the same for all."""
EVENTS: dict[str, Literal["done", "kept", "rejected"]] = {"made": "done", "kept": "kept", "failed": "rejected"}
MAX_LINES = 100_000
MAX_BYTES = 64 << 20
THUMB = 240  # pixels


@dataclass(frozen=True)
class Line:
    """One line of the file: a try-on, or the reason why it is none."""

    id: str
    config: TryonConfig | None
    reason: str = ""


@dataclass
class Result:
    """One line of results.csv. `picture` is a name in the same folder; `reason` says why it failed, or what to beware of."""

    id: str
    seed: int | None
    status: Literal["made", "kept", "failed"]
    picture: str = ""
    reason: str = ""


def read_lines(path: Path, base: TryonConfig, out: Path) -> list[Line]:
    """The try-ons of a CSV file (UTF-8, with a header). Paths in it are relative to its folder, empty cells are as in `base`.

    Raises:
        InputError: not such a file, or two lines that would write the same picture. A mistake in one line only fails that line.
    """
    text = read_text(path, MAX_BYTES, "The batch file", hint="Check the path given to --batch.")
    try:
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header, *body = [row for row in rows if any(cell.strip() for cell in row)] or [[]]
    except csv.Error as error:
        raise InputError(f"The batch file {path} cannot be read: {error}.", "Give a CSV file, saved as UTF-8, with commas.") from error
    header = [name.strip().lower().removeprefix("--").replace("-", "_") for name in header]
    for name in header:
        if name not in COLUMNS:
            raise unknown_key(name, COLUMNS, str(path))
    if not body or len(body) > MAX_LINES or len(set(header)) < len(header):
        raise InputError(f"{path} has no line, more than {MAX_LINES}, or a column twice.", "Write one try-on per line below one header.")
    lines = [_line(dict(zip(header, row, strict=False)), f"{number:03d}", path, base, out) for number, row in enumerate(body, 1)]
    lines = [
        Line(line.id, None, f"it has {len(row)} cells, the header has {len(header)}") if len(row) > len(header) else line
        for line, row in zip(lines, body, strict=True)
    ]
    made: set[Path] = set()
    inputs: set[Path] = set()
    for line in lines:
        if line.config:
            inputs |= {photo.resolve() for photo in line.config.photos().values() if photo}
            files = {line.config.preview, *(file for seed in line.config.seeds for file in line.config.files(seed))}
            if made & files:
                raise InputError(f"{path}: line {line.id} would write the same picture as one before.", "Give each line an id of its own.")
            made |= files
    if inputs & {file.resolve() for file in made}:
        raise InputError(f"{out} holds photos of the batch that would be overwritten.", "Give another folder with --out.")
    return lines


def _line(cells: Mapping[str, str], number: str, path: Path, base: TryonConfig, out: Path) -> Line:
    given: dict[str, Any] = {name: cell.strip() for name, cell in cells.items() if cell.strip()}
    name = given.pop("id", number)
    if not re.fullmatch(r"\w[\w.-]{0,79}", name):
        return Line(number, None, "its id is no name for a file: use letters, digits, - and _")
    if "caption" in given and "prompt" not in given:
        given["prompt"] = ""
    for key in ("front", "back", "person", "polygon", "caption"):
        if key in given:
            given[key] = path.parent / Path(given[key]).expanduser()
    values = {**base.model_dump(), **given, "batch": None, "out": out / f"{name}.png"}
    try:
        return Line(name, check(cast(TryonConfig, validated(TryonConfig, values, "tryon"))))
    except TriptychError as error:
        return Line(name, None, str(error))


def run_batch(config: TryonConfig) -> Run:
    """Make what the lines of `config.batch` ask for; in the folder `out` also results.csv and index.html.

    Lines of one product are done one after the other. A picture that is there and was made with the same settings is kept.

    Raises:
        InputError: the file cannot be used at all. ModelError: model or LoRA cannot be used.
    """
    assert config.batch
    config.check_model()
    out = config.out or config.work / "tryon"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file.", "With --batch, give a folder with --out.")
    lines = read_lines(config.batch, config, out)
    load_backbone(config.model, config.device, config.dtype, config.quantize, config.blocks_to_swap)  # no weights yet
    config.layout()
    writer = PromptWriter(config, out)
    summary: dict[str, Any] = {"made": 0, "kept": 0, "failed": 0, "results": str(out / "results.csv"), "index": str(out / "index.html")}

    def work() -> Iterator[Event]:
        results: dict[tuple[int, int | None], Result] = {}

        def note(number: int, result: Result) -> Event:
            results[number, result.seed] = result
            summary[result.status] += 1
            _write_results(out / "results.csv", [results[key] for key in sorted(results, key=lambda key: (key[0], key[1] or 0))])
            return Event(result.picture or result.id, EVENTS[result.status], result.reason)

        pending: dict[int, list[int]] = {}
        for number, line in enumerate(lines):
            if line.config is None:
                yield note(number, Result(line.id, None, "failed", reason=line.reason))
                continue
            job_config = line.config
            try:
                job_config = writer.fill(job_config)
                lines[number] = replace(line, config=job_config)
                ready = {seed: is_finished(job_config, seed) for seed in job_config.seeds}
                if not all(ready.values()):
                    prepare(job_config)  # again when its turn comes: here to know all mistakes, and show all masks, beforehand
            except Exception as error:
                for seed in job_config.seeds:
                    yield note(number, Result(line.id, seed, "failed", reason=_reason(error)))
                continue
            for seed in (seed for seed, done in ready.items() if done):
                yield note(number, Result(line.id, seed, "kept", job_config.files(seed)[0].name))
            pending[number] = [seed for seed, done in ready.items() if not done]
        pending = {number: seeds for number, seeds in pending.items() if seeds}
        if pending:
            prompts = [cast(TryonConfig, lines[number].config).prompt for number in pending]
            models = load_models(**config.model_source(), prompts=prompts)
        prepared: dict[int, Job] = {}
        for batch in _batches(lines, pending, config.batch_size):
            for result in _made(lines, batch, prepared, lambda jobs: make(jobs, models)):
                yield note(*result)
            if models.contexts.limit_bytes and models.contexts.misses:
                summary["context_cache"] = models.contexts.summary()
        write_text(out / "index.html", _page(lines, results, out))

    return Run("tryon", sum(len(line.config.seeds) if line.config else 1 for line in lines), work(), summary)


def _batches(lines: Sequence[Line], pending: Mapping[int, Sequence[int]], size: int) -> list[list[tuple[int, int]]]:
    """(line, seed) of the pictures to make, up to `size` together if they can be sampled at once; products one after another."""
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
    """(line, result) of each picture of a batch. What cannot be made together is tried one by one: only what is wrong fails.

    prepared: the jobs of the batch before, which may go on in this one; then those of this batch.
    """
    seeds: dict[int, list[int]] = {}
    for number, seed in batch:
        seeds.setdefault(number, []).append(seed)
    try:
        jobs = {number: prepared.get(number) or prepare(cast(TryonConfig, lines[number].config)) for number in seeds}
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
        yield number, Result(lines[number].id, seed, "made", job.config.files(seed)[0].name, " ".join(job.warnings))


def _by_product(lines: Sequence[Line], numbers: Mapping[int, Any]) -> list[int]:
    """The numbers of lines, those of one product together, products in the order in which they first appear."""
    first: dict[Any, int] = {}
    return sorted(numbers, key=lambda number: (first.setdefault(_product(lines[number]), number), number))


def _product(line: Line) -> tuple[Path | None, Path | None]:
    return (line.config.front, line.config.back) if line.config else (None, None)


def _reason(error: Exception) -> str:
    if not isinstance(error, TriptychError | OSError):
        log.warning("A try-on failed: %s", error, exc_info=error)
    return " ".join(f"{error}".split()) or type(error).__name__


def _write_results(path: Path, results: Sequence[Result]) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([field.name for field in fields(Result)])
    writer.writerows([result.id, result.seed, result.status, result.picture, result.reason] for result in results)
    write_text(path, table.getvalue())


# --- index.html -------------------------------------------------------------------------------------------------------

_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>try-on</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><style>
body{font:15px/1.4 system-ui,sans-serif;margin:2em;max-width:80em}section{border-top:1px solid #ccc;padding:1em 0}
div{display:flex;flex-wrap:wrap;gap:1em;align-items:flex-end}figure{margin:0;max-width:15em}img{max-width:100%;display:block}
figcaption{overflow-wrap:anywhere}.failed{color:#a00;border:1px solid #a00;padding:.5em}</style>
"""


def _page(lines: Sequence[Line], results: Mapping[tuple[int, int | None], Result], out: Path) -> str:
    """One self-contained page, without scripts: every result beside its product."""
    counts = ", ".join(f"{sum(r.status == status for r in results.values())} {status}" for status in ("made", "kept", "failed"))
    parts = [_HEAD, f"<h1>Try-on</h1><p>{counts}</p>"]
    groups: dict[Any, list[int]] = {}
    for number, line in enumerate(lines):
        groups.setdefault(_product(line), []).append(number)
    for (front, _), numbers in groups.items():
        parts.append("<section><div>")
        if front:
            parts.append(_figure(front, f"product: {front.name}"))
        for key in sorted((key for key in results if key[0] in numbers), key=lambda key: (key[0], key[1] or 0)):
            result = results[key]
            words = result.id if result.seed is None else f"{result.id}, seed {result.seed}"
            if result.status == "failed":
                parts.append(f'<figure class="failed"><figcaption>{html.escape(f"{words} failed: {result.reason}")}</figcaption></figure>')
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
