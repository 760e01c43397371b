"""What the tabs of the page are built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.server.api import Server
from triptych.server.config import AppConfig
from triptych.server.jobs import JobStore
from triptych.server.uploads import Uploads
from triptych.server.worker import Worker

if TYPE_CHECKING:  # it imports torch
    from triptych.session import Session


@dataclass(frozen=True)
class Context:
    """The server behind the page. session: the open model; the worker makes one picture at a time on it.
    config: the settings of `triptych app`; config.work is the work folder, which may be missing or empty.
    """

    server: Server
    session: Session
    config: AppConfig

    @property
    def store(self) -> JobStore:
        return self.server.store

    @property
    def uploads(self) -> Uploads:
        return self.server.uploads

    @property
    def worker(self) -> Worker:
        return self.server.worker

    @property
    def results(self) -> Path:
        """The folder that holds a folder of pictures for each job."""
        return self.server.results

    @property
    def knows(self) -> str:
        """The world of pictures that the model knows, see `known_worlds`; empty for all photos."""
        return self.session.settings.knows

    @property
    def mask_free(self) -> bool:
        """Whether the model can dress somebody without a region."""
        return self.session.sampling().context_placement == "reference"

    @property
    def work(self) -> Path:
        return self.config.work
