"""Protocols of `evaluate --pairs`: the YAML files that fix how pictures are compared, and what passes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from triptych.errors import ConfigError
from triptych.store.text import read_text

FOLDER = Path(__file__).parents[1] / "protocols"
MOST = {"lpips", "dists", "colour", "outside"}
"""Measures of which less is better."""
MEASURES = ("ssim", "lpips", "dists", "garment", "colour", "sharpness", "text", "outside")
"""What is measured of an item; `items.measured` says how."""
Setting = Literal["paired", "unpaired"]


class Published(BaseModel):
    """FID of a published method, and where it stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    paired: float
    unpaired: float
    source: str


class Protocol(BaseModel):
    """A protocol; the shipped files explain the fields. sha256: of the file, set when it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    width: int = Field(ge=0, le=8192)
    height: int = Field(ge=0, le=8192)
    filter: Literal["lanczos", "bicubic", "bilinear", "box"]
    most_stretch: float = Field(ge=0, le=1)
    edge: int = Field(ge=0, le=1000)
    lists: dict[Setting, tuple[str, ...]]
    features: str
    n: int = Field(ge=0)
    fid_least: int = Field(ge=2)
    kid_least: int = Field(ge=2)
    kid_subsets: int = Field(ge=1, le=10_000)
    kid_subset: int = Field(ge=2)
    groups: int = Field(ge=2, le=1000)
    seed: int = Field(ge=0)
    passes: dict[str, str]
    published: tuple[Published, ...] = ()
    file: str = ""
    sha256: str = ""

    @field_validator("passes")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for name, rule in value.items():
            sign = "<=" if name in MOST else ">="
            if name not in MEASURES or not re.fullmatch(rf"{sign} \d+(\.\d+)?", rule):
                raise ValueError(f"'{name}: {rule}' is no threshold such as 'ssim: >= 0.8'")
        return value

    def limit(self, name: str) -> float:
        return float(self.passes[name].split()[1])

    def failed(self, values: dict[str, float | None]) -> list[str]:
        """The measures that do not pass; what was not measured is left out."""
        known = [(name, values.get(name)) for name in self.passes]
        return [name for name, value in known if value is not None and self.excess(name, value) > 0]

    def excess(self, name: str, value: float) -> float:
        """How far a value is beyond its threshold, as a share of it; negative if it passes."""
        limit = self.limit(name)
        beyond = value - limit if name in MOST else limit - value
        return beyond / limit if limit else beyond

    def settings(self) -> dict[str, Any]:
        """The fields for the report, without what stands elsewhere in it."""
        return self.model_dump(mode="json", exclude={"published"})


def read_protocol(path: Path | None, layout: str) -> Protocol:
    """The protocol in a file, or the shipped one of a layout.

    Raises:
        InputError: the file cannot be read. ConfigError: it is no protocol.
    """
    path = path or FOLDER / f"{layout}.yaml"
    text = read_text(path, 1 << 20, "The protocol", hint="Check the path given to --protocol.")
    try:
        values = yaml.safe_load(text)
        if not isinstance(values, dict):
            raise ValueError("it holds no settings")
        found = Protocol(**values | {"file": path.name, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path} is no protocol: {where}: {first['msg'].removeprefix('Value error, ')}.",
            f"Start from a copy of a shipped one, such as plain.yaml in {FOLDER.name}/.",
        ) from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is no protocol: {error}.", "It is a YAML file of settings.") from error
    return found
