"""The settings of `caption`; they import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from triptych.config.engine import EngineConfig
from triptych.config.marks import ASKED, GIVEN, INPUT, OUTPUT, RARE, RESULT, RUNNING, SHARED


class CaptionConfig(EngineConfig):
    vlm_model: Annotated[str, ASKED] = ""
    """The captioner: a model on a server such as gpt-4.1-mini (its key comes from OPENAI_API_KEY), the folder
    of a transformers model, `local:NAME` for a model on the hub, or `pocket`, which only knows rendered
    clothes.
    """
    base_url: Annotated[str | None, ASKED] = None
    """Address of an OpenAI-compatible server (vLLM, SGLang, llama.cpp, Ollama …), such as
    http://127.0.0.1:8000/v1; vlm_model is then the name of a model on that server. Without it, or empty,
    OpenAI's own server.
    """
    do_check: Annotated[bool, RESULT] = True
    """Ask first whether the panels are garment, garment, person. Triptychs with a caption of your own are not
    checked.
    """
    fail_path: Annotated[Path | None, OUTPUT] = None
    """Folder for triptychs that failed the check or could not be described, if not WORK/failed."""
    retry_failed: Annotated[bool, RESULT] = False
    """Move pictures back that failed before, and ask about them again."""
    captions: Annotated[Path | None, INPUT] = None
    """Folder with captions of your own, named after the triptych (<id>.txt) or its item (item1.txt). They are
    copied beside the triptychs, and no model is asked about these. New and changed files win over earlier
    captions and failed checks.
    """
    brands: Annotated[list[str], RESULT, GIVEN] = []
    """Names of brands and makers; captions have Brand in angle brackets instead."""
    model: Annotated[str, RESULT, GIVEN, SHARED] = ""
    """The diffusion model to be trained; its text encoder limits how long a caption may be."""
    max_caption_tokens: Annotated[int | None, RESULT, RARE] = Field(default=None, ge=8, le=512)
    """Longest caption in tokens of the model's text encoder; by default the model's limit."""
    max_new_tokens: Annotated[int, RESULT, RARE] = Field(default=600, ge=16)
    """Longest answer in tokens of the vision-language model; raise it for models that reason first."""
    retries: Annotated[int, RESULT] = Field(default=2, ge=0, le=10)
    """How often a useless caption is asked for again, with the reason."""
    attempts: Annotated[int, RUNNING, RARE] = Field(default=5, ge=1, le=20)
    """How often a busy or failing server is tried. After that the run stops; if the server fails at a single
    picture only, that picture fails.
    """
    timeout: Annotated[float, RUNNING] = Field(default=120, gt=0)
    """Time limit for one answer of a server, in seconds."""
    concurrency: Annotated[int, RUNNING] = Field(default=4, ge=1, le=64)
    """Number of simultaneous questions to a server."""
    allow_upload: Annotated[bool, ASKED, SHARED] = False
    """Send photos of people to a server that is not this machine. Without it such a captioner is refused."""
    estimate: Annotated[bool, RUNNING] = False
    """Say what a run would take, and ask nothing: calls, tokens, cost, and how many photos of people would
    leave this machine.
    """
    max_calls: Annotated[int | None, RUNNING] = Field(default=None, ge=1)
    """Most questions to the captioner in this run; then it stops, and the same command goes on."""
    max_cost: Annotated[float | None, RUNNING] = Field(default=None, gt=0)
    """Most money for this run, in the currency of the price file (dollars); then it stops likewise."""
    prices: Annotated[Path | None, INPUT, RARE] = None
    """Price file of your own, instead of the dated one of the package: docs/captions.md has its form."""
    anyway: Annotated[bool, RUNNING, RARE, SHARED] = False
    """Show the captioner photographs even if it says that it has never seen any, as `pocket` does; it warns.
    """

    @property
    def fail_folder(self) -> Path:
        return self.fail_path or self.work / "failed"
