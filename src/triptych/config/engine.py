"""Where the items of a stage are made: on this machine, or on a Ray cluster."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from triptych.config.marks import MACHINE, RARE, RUNNING
from triptych.config.stage import StageConfig
from triptych.execution import Engine


class EngineConfig(StageConfig):
    """The settings of a stage that can spread its work."""

    engine: Annotated[Literal["local", "ray"], RUNNING, RARE, MACHINE] = "local"
    """Who makes the items: local, this process; or ray, the workers of a Ray cluster, which see the same
    folders (pip install 'triptych[ray]'). What is written is the same, and written here.
    """
    address: Annotated[str | None, RUNNING, RARE, MACHINE] = None
    """With --engine ray: the cluster, such as auto or ray://head:10001. Without it, one is started on this
    machine for as long as the command runs.
    """
    object_store_gib: Annotated[float, RUNNING, RARE, MACHINE] = Field(default=1.0, ge=0.1, le=4096)
    """With --engine ray: most memory, in GiB, for items on their way between the workers and this process."""

    @property
    def on(self) -> Engine | None:
        """The cluster; None for this process."""
        if self.engine == "local":
            return None
        return Engine(
            self.address, int(self.object_store_gib * 2**30), getattr(self, "device", "cpu") != "cpu"
        )
