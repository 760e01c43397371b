"""Loads the vision-language model that the user names, to describe triptychs.

A captioner answers one question about one picture. There are three kinds, with the contract of
`questions.Captioner`: the embedded `pocket` model, any `transformers` image-text-to-text model on this
machine, and any server with OpenAI's chat completions API.
"""

from __future__ import annotations

import os
from pathlib import Path

from triptych.captioning.local import LocalCaptioner, look_up
from triptych.captioning.questions import Captioner
from triptych.captioning.replies import is_loopback
from triptych.captioning.server import OPENAI, ServerCaptioner
from triptych.errors import ConfigError, ModelError
from triptych.pocket import captioner_path


def no_captioner() -> ModelError:
    """The error for an empty name."""
    hint = (
        "Give --vlm-model, or `vlm_model:` under `caption:` in the config: a model on a server such as "
        "gpt-4.1-mini, or the folder "
    )
    hint += (
        "of a transformers model; --vlm-model pocket only describes rendered clothes. With captions of "
        "your own none is needed."
    )
    return ModelError("No captioner is given.", hint)


def captioner_folder(vlm_model: str, base_url: str | None = None) -> Path | None:
    """The folder of a captioner on this machine (also of `pocket`); None for all others."""
    if vlm_model == "pocket":
        return captioner_path()
    local = vlm_model.removeprefix("local:")
    folder = Path(local).expanduser()
    on_server = local == vlm_model and (base_url or os.environ.get("OPENAI_BASE_URL"))
    return folder if local.strip() and not on_server and folder.is_dir() else None


def server_of(vlm_model: str, base_url: str | None = None) -> str | None:
    """The address of the server that a captioner would be asked at; None for a model on this machine, or no
    name.
    """
    if not vlm_model.strip() or vlm_model.startswith("local:") or captioner_folder(vlm_model, base_url):
        return None
    return base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI


def far_server(vlm_model: str, base_url: str | None = None) -> str | None:
    """The same, if that server is not this machine."""
    server = server_of(vlm_model, base_url)
    return None if server is None or is_loopback(server) else server


def check_upload(vlm_model: str, base_url: str | None, allowed: bool) -> None:
    """Refuse to send photos of people to a server that is not this machine, unless the user allows it.

    Raises:
        ConfigError: it would, and is not allowed.
    """
    server = far_server(vlm_model, base_url)
    if server is not None and not allowed:
        raise ConfigError(
            f"The captioner {vlm_model} is not on this machine: photos of people would be sent to {server}.",
            "If that is all right, give --allow-upload (`allow_upload: true` in a config); "
            "`caption --estimate` says how many. A server on this machine, local:NAME or a folder needs no "
            "leave.",
        )


def load_captioner(
    vlm_model: str,
    base_url: str | None = None,
    *,
    timeout: float = 120.0,
    attempts: int = 5,
    device: str = "auto",
) -> Captioner:
    """Load the captioner that a name stands for. The first rule that fits decides:

    1. `pocket`: the embedded model.
    2. `local:NAME`: the `transformers` model in folder NAME, or the hub's NAME.
    3. with `base_url` (or OPENAI_BASE_URL set): the name of a model on that server.
    4. an existing folder: the `transformers` model in it.
    5. any other name, such as `gpt-4.1-mini`: a model of OpenAI's own server.

    The key for a server comes only from OPENAI_API_KEY. `timeout` is in seconds for each request; `attempts`
    is the number of tries before a server counts as down. `device`: where a model on this machine runs, see
    `usable_device`.

    Raises:
        ConfigError: name and `base_url` do not go together.
        ModelError: no name; the model cannot be loaded, or no key is set for OpenAI's server. A server is not
            contacted yet.
    """
    if not vlm_model.strip():
        raise no_captioner()
    if base_url is not None and (vlm_model == "pocket" or vlm_model.startswith("local:")):
        raise ConfigError(
            f"base_url is given, but vlm_model is {vlm_model}.",
            "Give vlm_model the name of a model on that server, or take base_url out (--base-url '').",
        )
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
    if vlm_model == "pocket":
        return LocalCaptioner(str(captioner_path()), device)
    if vlm_model.startswith("local:"):
        return LocalCaptioner(vlm_model.removeprefix("local:"), device)
    if base_url is None and Path(vlm_model).expanduser().is_dir():
        return LocalCaptioner(vlm_model, device)
    if base_url is None and vlm_model.startswith((".", "/", "~")):
        hint = "Give a folder saved by transformers, or the name of a model on a server."
        raise ModelError(f"There is no folder {vlm_model} with a captioner in it.", hint)
    return ServerCaptioner(vlm_model, base_url, timeout=timeout, attempts=attempts)


def check_captioner(vlm_model: str, base_url: str | None = None, *, timeout: float = 120.0) -> None:
    """Check a captioner without loading it and free of charge: its name, key, folder or server.

    Raises:
        ConfigError, ModelError: as `load_captioner`, or `Captioner.check`.
    """
    server = base_url or os.environ.get("OPENAI_BASE_URL")
    if base_url is None and vlm_model == "pocket":
        return
    if base_url is None and vlm_model.startswith("local:"):
        look_up(vlm_model.removeprefix("local:"))
    elif not server and vlm_model.strip() and Path(vlm_model).expanduser().is_dir():
        look_up(vlm_model)
    else:
        load_captioner(vlm_model, base_url, timeout=timeout).check()
