"""The settings of `serve` and `app`; they import nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from triptych.config.engine import EngineConfig
from triptych.config.marks import ASKED, GIVEN, MACHINE, RARE, RESULT, RUNNING, SHARED
from triptych.sampling.options import LoadedConfig


class ServeConfig(LoadedConfig, EngineConfig):
    host: Annotated[str, RUNNING] = "127.0.0.1"
    """Address to listen at. Any other than this machine's own needs a token, in the environment variable
    TRIPTYCH_TOKEN.
    """
    port: Annotated[int, RUNNING] = Field(default=7860, ge=0, le=65535)
    """Port to listen at; 0 takes a free one and says which."""
    parser: Annotated[str, ASKED] = "pocket"
    """The human parser, or SAM model, that requests with `mask: auto` or `points` ask, see `tryon`."""
    vlm_model: Annotated[str | None, ASKED] = None
    """The captioner that writes the prompts of try-ons that come without one."""
    base_url: Annotated[str | None, ASKED] = None
    """Address of an OpenAI-compatible server for vlm_model."""
    allow_upload: Annotated[bool, ASKED, SHARED] = False
    """Send photos of people to a captioner on a server that is not this machine. Without it such a captioner
    is refused.
    """
    keep_text_encoder: Annotated[bool, RUNNING, MACHINE] = False
    """Keep the text encoder beside the model, if the card has room for both: otherwise the model waits in RAM
    while a new prompt is read, a few seconds each time.
    """
    max_batch: Annotated[int, RUNNING] = Field(default=1, ge=1, le=256)
    """Most pictures of waiting try-ons with the same product and settings that are sampled at once, as
    --batch-size of tryon; a picture may then differ slightly from one made alone.
    """
    max_queue: Annotated[int, RUNNING, RARE] = Field(default=1000, ge=1, le=1_000_000)
    """Most jobs that may wait; further requests are told to come again."""
    max_upload_mb: Annotated[int, RUNNING, RARE] = Field(default=20, ge=1, le=500)
    """Largest upload in megabytes."""
    keep_days: Annotated[float, RUNNING, RARE] = Field(default=7.0, gt=0, le=3650)
    """Days after which finished jobs and their pictures are deleted."""
    allow_origin: Annotated[list[str], RUNNING, RARE, MACHINE] = []
    """Web pages, such as https://shop.example, that may call the server from a browser."""
    engine: Annotated[Literal["local", "ray"], RUNNING, RARE, MACHINE] = "local"
    """Who makes the pictures: local, this process; or ray, replicas of the model on a Ray cluster, by Ray
    Serve, which see the same folders (pip install 'triptych[ray]'). The queue stays here.
    """
    address: Annotated[str | None, RUNNING, RARE, MACHINE] = None
    """With --engine ray: the cluster: auto on one of its machines, or HOST:PORT of its head. Without it, one
    is started on this machine for as long as the server runs.
    """
    replicas: Annotated[int | None, RUNNING, RARE, MACHINE] = Field(default=None, ge=1, le=1024)
    """With --engine ray: how many replicas; by default one for each card of the cluster, else one.
    """


class AppConfig(ServeConfig):
    model: Annotated[str, RESULT, GIVEN, SHARED] = "pocket-klein"
    """The model: a hub id or a diffusers folder. By default the embedded one, which knows rendered people and
    garments alone and needs no LoRA.
    """
    open_browser: Annotated[bool, RUNNING] = False
    """Open the page in this machine's browser."""
