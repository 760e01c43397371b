"""Finds out once and within seconds whether the Hugging Face hub can be reached; its client would try for
minutes.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 4.0
_ID = re.compile(r"[\w.-]+/[\w.-]+")


def look(config: Any, data: Mapping[str, Any]) -> None:
    """If a model's name is a hub id and the hub cannot be reached, keep the hub's client offline.

    Models on this machine open as always; the error for any other model then comes at once.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return
    if any(map(is_hub_id, _names(config, data))) and not reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"


def _names(config: Any, data: Mapping[str, Any]) -> Iterator[str]:
    whole = (
        [data, *(section for section in data.values() if isinstance(section, dict))]
        if type(config).__name__ == "RunConfig"
        else []
    )
    for values in (vars(config), *whole):
        for key in ("model", "vlm_model", "parser"):
            name = str(values.get(key) or "")
            yield name.removeprefix("local:") if key != "vlm_model" or name.startswith("local:") else ""


def is_hub_id(name: str) -> bool:
    return bool(_ID.fullmatch(name)) and not Path(name).exists()


def reachable() -> bool:
    """Whether the hub's address accepts connections, or the proxy in front of it."""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxies = urllib.request.getproxies()
    if not urllib.request.proxy_bypass(address.hostname or ""):
        address = urlsplit(proxies.get(address.scheme) or proxies.get("all") or address.geturl())
    found: list[bool] = []

    def knock() -> None:
        try:
            port = address.port or (443 if address.scheme == "https" else 80)
            socket.create_connection((address.hostname or "", port), timeout=TIMEOUT).close()
            found.append(True)
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=knock, daemon=True)  # the system decides how long a name look-up takes
    thread.start()
    thread.join(TIMEOUT + 1)
    return bool(found)


__all__ = ["is_hub_id", "look", "reachable"]
