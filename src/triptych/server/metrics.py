"""Measures for Prometheus, read from the table of jobs when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest

if TYPE_CHECKING:
    from triptych.server.api import Server


class Metrics:
    """Jobs by state, and whether the worker is alive and its model open."""

    def __init__(self, server: Server) -> None:
        self.server, self.registry = server, CollectorRegistry()
        self.jobs = Gauge("triptych_jobs", "Jobs by state.", ["state"], registry=self.registry)
        self.alive = Gauge("triptych_worker_alive", "1 while the worker runs.", registry=self.registry)
        self.open = Gauge("triptych_model_open", "1 once the model is loaded.", registry=self.registry)

    def text(self) -> bytes:
        """All measures, as Prometheus reads them."""
        for state, number in self.server.store.counts().items():
            self.jobs.labels(state).set(number)
        self.alive.set(self.server.worker.is_alive())
        self.open.set(self.server.worker.opened)
        return generate_latest(self.registry)
