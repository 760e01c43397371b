"""The settings of `caption`; they import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from triptych.config.marks import ASKED, GIVEN, INPUT, OUTPUT, RARE, RESULT, RUNNING, SHARED
from triptych.config.stage import StageConfig


class CaptionConfig(StageConfig):
    vlm_model: Annotated[str, ASKED] = ""
    """Who looks at the triptychs: a model on a server such as gpt-4.1-mini (its key is read from
    OPENAI_API_KEY), the folder of a transformers model, `local:NAME` for one of the hub, or `pocket`, which
    only knows rendered clothes.
    """
    base_url: Annotated[str | None, ASKED] = None
    """Address of an OpenAI-compatible server (vLLM, SGLang, llama.cpp, Ollama …), such as
    http://127.0.0.1:8000/v1; with it vlm_model is the name of a model on that server. Without it, or empty,
    OpenAI's own.
    """
    do_check: Annotated[bool, RESULT] = True
    """Ask first whether the panels are garment, garment, person. Triptychs with a caption of your own are not
    checked.
    """
    fail_path: Annotated[Path | None, OUTPUT] = None
    """Where triptychs go that failed the check or could not be described, if not to WORK/failed."""
    retry_failed: Annotated[bool, RESULT] = False
    """Bring the pictures back that failed before, and ask about them anew."""
    captions: Annotated[Path | None, INPUT] = None
    """Folder with captions of your own, named for the triptych (<id>.txt) or for its item (item1.txt); they
    are copied beside the triptychs, and no model is asked for those. New and changed files win over earlier
    captions and failed checks.
    """
    brands: Annotated[list[str], RESULT, GIVEN] = []
    """Names of brands and makers; every caption says Brand in angle brackets instead."""
    model: Annotated[str, RESULT, GIVEN, SHARED] = ""
    """The diffusion model to be trained; its text encoder limits how long a caption may be."""
    max_caption_tokens: Annotated[int | None, RESULT, RARE] = Field(default=None, ge=8, le=512)
    """Longest caption in T5 tokens; by default what the model reads."""
    max_new_tokens: Annotated[int, RESULT, RARE] = Field(default=600, ge=16)
    """Longest answer in tokens of the vision-language model; raise it for models that think aloud first."""
    retries: Annotated[int, RESULT] = Field(default=2, ge=0, le=10)
    """How often a caption that cannot be used is asked for again, with the reason."""
    attempts: Annotated[int, RUNNING, RARE] = Field(default=5, ge=1, le=20)
    """How often a busy or failing server is tried before the run stops, or, if it fails at one picture only,
    that picture fails.
    """
    timeout: Annotated[float, RUNNING] = Field(default=120, gt=0)
    """Seconds a server may take for one answer."""
    concurrency: Annotated[int, RUNNING] = Field(default=4, ge=1, le=64)
    """Questions a server gets at the same time."""
    anyway: Annotated[bool, RUNNING, RARE, SHARED] = False
    """Show the captioner photographs even if it says that it has never seen any, as `pocket` does; with a
    warning.
    """

    @property
    def fail_folder(self) -> Path:
        return self.fail_path or self.work / "failed"
