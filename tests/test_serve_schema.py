"""The HTTP API against its own OpenAPI document: schemathesis makes requests that fit it, and others.

Half of the cases come from the document as it is, where ids are of nothing that exists; the other half from
one that names uploads and jobs of this server, so that pictures are asked for. `make test-api` runs 2,000.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup

from tests.serving import PROMPT, png, served
from triptych.evaluation.rendered import held_out_items
from triptych.server.api import Server

HERE = "http://127.0.0.1"
_HEALTH = list(hypothesis.HealthCheck)


def narrowed(document: dict[str, Any], server: Server, done: str) -> dict[str, Any]:
    """The document with ids of this server, and pictures that take little time."""
    found = copy.deepcopy(document)
    schemas = found["components"]["schemas"]
    uploads = sorted(path.name for path in server.uploads.folder.iterdir())
    unknown = "0" * 64
    for name in ("TryonRequest", "GenerateRequest"):
        text = json.dumps(schemas[name])
        own = {"enum": [*uploads, unknown], "type": "string"}
        text = text.replace('"pattern": "^[0-9a-f]{64}$", "type": "string"', json.dumps(own)[1:-1])
        schemas[name] = made = json.loads(text)
        made["required"] = [
            *made.get("required", []),
            *("front", "num_inference_steps", "panel_width", "panel_height", "prompt"),
        ]
        few = {"num_inference_steps": [1, 2], "num_images_per_prompt": [1, 2], "panel_width": [32, 64, 33]}
        few |= {"panel_height": [64, 1], "prompt": [PROMPT, "…"], "refine": [0, 0.5]}
        for field, values in few.items():
            if field in made["properties"]:
                made["properties"][field] = {"enum": values}
    tryon = schemas["TryonRequest"]
    tryon["properties"]["mask"] = {"enum": ["auto", "auto:dress", "points:1,1", *uploads]}
    tryon["required"].append("mask")
    for contradiction in ("polygons", "mask_free", "garments"):  # the whole document has them
        del tryon["properties"][contradiction]
    for path in found["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "id":
                    parameter["schema"] = {"type": "string", "enum": [done, "0" * 32]}
    return found


class Cases:
    """Cases that were asked, and what was answered."""

    def __init__(self, app: Any) -> None:
        self.app, self.asked, self.statuses = app, 0, Counter[int]()
        self.failures: dict[str, str] = {}
        """The first case of each kind of failure."""
        load_all_checks()
        # What fits the document may still be refused: an id of no upload, a prompt without words.
        self.without = CHECKS.get_by_names(["positive_data_acceptance"])

    def ask(self, operation: Any, mode: GenerationMode, count: int, seed: int) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=_HEALTH,
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            self.asked += 1
            answer = case.call(base_url=HERE, app=self.app)
            self.statuses[answer.status_code] += 1
            try:
                case.validate_response(answer, excluded_checks=self.without)
            except FailureGroup as found:
                titles = ", ".join(sorted(failure.title for failure in found.exceptions))
                self.failures.setdefault(f"{operation.label} {answer.status_code}: {titles}", str(found))

        with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing in this request can be wrong
            one()


FEW, FIRST, SECOND = (100, 0), (1000, 1000), (1000, 2000)


@pytest.mark.parametrize(
    ("cases", "seed"), [FEW, *(pytest.param(*half, marks=pytest.mark.slow) for half in (FIRST, SECOND))]
)
def test_every_answer_is_as_documented(tiny_flux: Path, tmp_path: Path, cases: int, seed: int) -> None:
    with served(tiny_flux, tmp_path) as (server, app):
        item = held_out_items(1, seed=9)[0]
        front, person = (server.uploads.add(png(image)).id for image in (item.front, item.worn))
        asked = {
            "person": person,
            "front": front,
            "prompt": PROMPT,
            "mask": "auto:dress",
            "num_inference_steps": 1,
        }
        done, _ = server.store.add("tryon", asked)
        server.worker.wake()
        document = app.app.openapi()
        found = Cases(app)
        while found.asked < cases:
            for schema in (document, narrowed(document, server, done.id)):
                loaded = schemathesis.openapi.from_dict(copy.deepcopy(schema))
                for result in loaded.get_all_operations():
                    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                        found.ask(result.ok(), mode, max(2, cases // 100), seed)
            print(f"{found.asked} cases, {len(found.failures)} kinds of failures", flush=True)
            seed += 1
        while server.store.waiting(1) or server.worker.moments:
            time.sleep(0.1)
        jobs = server.store.newest(10_000)
        faults = [job.error for job in jobs if "could not be made" in job.error.get("message", "")]
        print(f"\n{found.asked} cases: {dict(sorted(found.statuses.items()))}; jobs {server.store.counts()}")
    assert found.failures == {}, "\n\n".join(f"{what}\n{how}" for what, how in found.failures.items())
    assert max(found.statuses) < 500 and {200, 201, 202, 404, 422} <= found.statuses.keys()
    assert found.asked >= cases and faults == []
