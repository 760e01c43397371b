"""Writes the reference: every command with its options, every config with its fields, every public name.

All of it is read from the product: options from the configs and their marks, names from the docstrings, with
griffe, which reads the source and runs none of it. `recipes.docs.site` calls it; the pages are not committed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import griffe

import triptych
from recipes.docs.text import plain, table
from triptych.config.marks import Group, Nature, alone, group, nature
from triptych.config.stage import StageConfig
from triptych.terminal.help import EVERY_VERB
from triptych.verbs import STAGES, Stage
from triptych.wording.docstrings import help_texts
from triptych.wording.settings import allowed, option

SOURCE = Path(triptych.__file__).parents[1]
IN_PYTHON = (
    "Session",
    "Picture",
    "Sampling",
    "Fit",
    "PanelLayout",
    "PolygonMaskAnnotator",
    "load_models",
    "generate_triptych",
    "try_on",
    "Person",
    "TryOnResult",
    "Run",
    "Event",
)
"""What is described first, in this order; verbs and errors follow."""
ELSEWHERE = {
    "Picture": "triptych.sampling.picture",
    "Fit": "triptych.vton.request",
    "TryOnResult": "triptych.vton.fit",
    "Run": "triptych.events",
    "Event": "triptych.events",
}
"""Classes that public functions take or return and that are not exported themselves: their modules."""
SECTIONS = ("Args", "Raises", "Returns", "Yields")


def write(folder: Path) -> None:
    """Write the pages of the reference into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("commands", commands()), ("configs", configs()), ("python", python())):
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def commands() -> str:
    """Every command with every option, in the groups of its `--help`."""
    lines = [
        "# Commands",
        "",
        "What `triptych VERB --help` says, of all verbs. In a config file the same names stand with `_`: see "
        "[configs](configs.md).",
        "",
        "## Every verb",
        "",
        *table(("option", "help"), [(f"`{name}`", plain(text)) for name, text in EVERY_VERB]),
    ]
    for stage in STAGES:
        words = " ".join(stage.words)
        given = "".join(f" {name.upper()}" for name in stage.positional)
        lines += [f"## triptych {words}", "", plain(stage.help), "", "```bash", stage.example, "```", ""]
        lines += [f"`triptych {words}{given} [OPTIONS]`", ""]
        model = stage.config_class()
        for each in Group:
            rows = [_option_row(model, name) for name in _fields(model) if group(model, name) is each]
            if rows:
                lines += [f"### {words}: {each.value.format(how=model.how).lower()}", ""]
                lines += table(("option", "takes", "default", "help"), rows)
    return "\n".join(lines)


def configs() -> str:
    """Every config class with every field."""
    natures = ", ".join(f"*{each.value}*" for each in Nature)
    lines = [
        "# Configs",
        "",
        "Every verb takes a config: `triptych.clean(triptych.CleanConfig(photos=…))`. In a config file the "
        f"fields stand in a section named for the verb. Kinds are {natures}: what changes a result, how "
        "much is made, what is read and written, who is asked, how it runs, where results lie.",
        "",
    ]
    for stage in STAGES:
        model = stage.config_class()
        lines += [
            f"## {model.__name__}",
            "",
            f"Of [`triptych {' '.join(stage.words)}`]({_anchor(stage)}).",
            "",
        ]
        texts = help_texts(model)
        rows = [
            (
                f"`{name}`",
                plain(allowed(model.model_fields[name])),
                _default(model, name),
                nature(model, name).value,
                plain(texts[name]),
            )
            for name in _fields(model)
        ]
        lines += table(("field", "takes", "default", "kind", "help"), rows)
    return "\n".join(lines)


def python() -> str:
    """Every public name with its signature and its docstring."""
    package = griffe.load("triptych", search_paths=[str(SOURCE)], resolve_aliases=False)
    assert isinstance(package, griffe.Module)
    lines = [
        "# Python",
        "",
        "`import triptych` costs nothing: names are loaded when they are used. Photos and pictures are PIL "
        "images.",
        "",
    ]
    for name in IN_PYTHON:
        found = package[_inside(ELSEWHERE.get(name) or triptych._HOMES[name])][name]
        lines += _described(found, "##")
    lines += ["## Verbs", "", "Each takes its config and returns a [`Run`](#run).", ""]
    for stage in STAGES:
        function = package[_inside(stage.module)][stage.public_name]
        config = f"[`{stage.config}`](configs.md#{stage.config.lower()})"
        lines += [f"### {stage.public_name}", "", f"Takes {config}.", "", *_docstring(function)]
    lines += ["## Errors", ""]
    for error in package["errors"].classes.values():
        lines += _described(error, "###")
    return "\n".join(lines)


def _inside(module: str) -> str:
    return module.removeprefix("triptych.")


def _anchor(stage: Stage) -> str:
    return f"commands.md#triptych-{'-'.join(stage.words)}"


def _fields(model: type[StageConfig]) -> list[str]:
    """A verb's own fields first, those that all share last."""
    order = list(StageConfig.model_fields)
    return sorted(model.model_fields, key=lambda name: name in order)


def _option_row(model: type[StageConfig], name: str) -> tuple[str, ...]:
    field = model.model_fields[name]
    shown = option(name)
    if alone(model, name) is not None:
        shown += f" [{alone(model, name):g}]"
    return f"`{shown}`", plain(allowed(field)), _default(model, name), plain(help_texts(model)[name])


def _default(model: type[StageConfig], name: str) -> str:
    default = model.model_fields[name].get_default(call_default_factory=True)
    if default is None or default == "" or str(default) == "PydanticUndefined":
        return ""
    return f"`{'on' if default is True else 'off' if default is False else default}`"


def _described(found: griffe.Object | griffe.Alias, mark: str) -> list[str]:
    """A class with its public parts, or a function."""
    lines = [f"{mark} {found.name}", ""]
    if found.is_function:
        return [*lines, *_signature(found), *_docstring(found)]
    made = found.members.get("__init__")
    lines += [*(_signature(made, found.name) if made is not None else []), *_docstring(found)]
    lines += _docstring(made) if made is not None else []
    fields = [
        (f"`{part.name}`", f"`{part.annotation}`".replace("|", r"\|"), _first_line(part))
        for part in found.members.values()
        if isinstance(part, griffe.Attribute)
        and not part.name.startswith("_")
        and "property" not in part.labels
    ]
    if fields:
        lines += table(("field", "type", "what it is"), fields)
    for part in _methods(found):
        lines += [f"{mark}# {found.name}.{part.name}", ""]
        lines += [*([] if "property" in part.labels else _signature(part)), *_docstring(part)]
    return lines


def _methods(found: griffe.Object | griffe.Alias) -> Iterator[griffe.Object | griffe.Alias]:
    """The public methods and properties that have a docstring, inherited ones of the package behind."""
    for part in {**found.inherited_members, **found.members}.values():
        told = part.is_function or "property" in part.labels
        if told and not part.name.startswith("_") and part.docstring:
            yield part


def _signature(function: griffe.Object | griffe.Alias, name: str = "") -> list[str]:
    assert isinstance(function, griffe.Function | griffe.Alias)
    parts, bare = [], False
    for parameter in function.parameters:
        if parameter.name == "self":
            continue
        if parameter.kind is griffe.ParameterKind.keyword_only and not bare:
            parts.append("*")
            bare = True
        star = "**" if parameter.kind is griffe.ParameterKind.var_keyword else ""
        told = f": {parameter.annotation}" if parameter.annotation else ""
        default = f" = {parameter.default}" if parameter.default and not star else ""
        parts.append(f"{star}{parameter.name}{told}{default}")
    inside = "".join(f"\n    {part}," for part in parts) + ("\n" if parts else "")
    returned = f" -> {function.returns}" if function.returns and not name else ""
    return ["```python", f"{name or function.name}({inside}){returned}", "```", ""]


def _docstring(found: griffe.Object | griffe.Alias) -> list[str]:
    """A docstring as markdown. Sections become lists, whose items are as they stand there: one may explain
    several parameters.
    """
    lines: list[str] = []
    section = ""
    for line in dedent(found.docstring.value if found.docstring else "").splitlines():
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            section = line.rstrip(":")
            lines += ["", f"*{section}*", ""]
        elif not section:
            lines.append(line if line.startswith("    ") else plain(line))
        elif line.startswith("    ") and not line.startswith("     "):
            head, colon, rest = line.strip().partition(":")
            lines.append(f"- `{head}`: {plain(rest.strip())}" if colon else f"- {plain(head)}")
        else:
            lines.append(f"  {plain(line.strip())}")
    return [*lines, ""]


def _first_line(found: griffe.Object | griffe.Alias) -> str:
    return plain(" ".join(found.docstring.value.split())) if found.docstring else ""
