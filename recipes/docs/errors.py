"""Collects every sentence that an error of triptych can say, with its hint, from the source, into
`docs/errors.md`.

    python -m recipes.docs.errors

Nothing is imported: the calls of `TriptychError` and its subclasses are read from the syntax tree. What is
only known when it happens (a path, a number) is shown as …; where a name stands for one of several texts,
each is listed.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from recipes.docs.text import plain, table

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "triptych"
PAGE = ROOT / "docs" / "errors.md"
UNKNOWN = "…"
MOST = 8
"""Most texts that are followed for one sentence or hint; beyond them it is shown as unknown."""
DEEPEST = 4
"""Most names in a row that are followed."""
GROUPS = {
    "config": "Config files and options",
    "data": "Work folders, triptychs, captions",
    "store": "Files and folders",
    "verbs": "Commands",
    "vton": "Try-on",
    "pictures": "Photos, masks, polygons",
    "vision": "Sorting photos, automatic masks",
    "captioning": "Captioners",
    "backbones": "Models",
    "pocket": "The pocket models",
    "lora": "LoRA files",
    "tasks": "Tasks and panels",
    "sampling": "Sampling",
    "training": "Training",
    "compute": "Memory and quantisation",
    "planning": "Plan",
    "evaluation": "Evaluation",
    "session": "In Python",
    "notebook": "In Python",
    "events": "In Python",
    "server": "The server",
    "terminal": "The command line",
    "cli": "The command line",
    "wording": "The command line",
    "flow": "Sampling",
    "signals": "The command line",
}
"""Part of the package → heading, in the order of the page."""
OTHERS = "Commands"
"""The heading of parts that are not named there."""
HEAD = """# Every error

This page is made from the source by `python -m recipes.docs.errors`. It lists what triptych says when
something in the input, the config or on the machine is not right, and what it suggests. … stands for what is
only known when it happens: a path, a number, a name. Look a message up by a few of its fixed words. For how
to go about a problem see [troubleshooting](troubleshooting.md).
"""


Scope = dict[str, list[ast.expr]]
"""By name: the expressions that are assigned to it."""


class Source:
    """A module of the package, and the names that stand for texts in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.constants = _assigned(self.tree.body)
        self.functions = {node.name: node for node in self.tree.body if isinstance(node, ast.FunctionDef)}
        self.imported = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("triptych.")
            for alias in node.names
        }

    def texts(self, node: ast.expr, scope: Scope, depth: int = 0) -> list[str]:
        """The texts that an expression can be, unknown parts as …; at least one."""
        found = list(dict.fromkeys(self._texts(node, scope, depth)))
        return found if 0 < len(found) <= MOST else [UNKNOWN]

    def _texts(self, node: ast.expr, scope: Scope, depth: int) -> list[str]:
        def inner(part: ast.expr) -> list[str]:
            return self.texts(part, scope, depth + 1)

        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return ["".join(_literal(part) for part in parts)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [a + b for a, b in itertools.product(inner(left), inner(right))]
            case ast.IfExp(body=body, orelse=other):
                return inner(body) + inner(other)
            case ast.BoolOp(op=ast.Or(), values=parts):
                return [text for part in parts for text in inner(part)]
            case ast.Name(id=name) if depth < DEEPEST:
                return self._named(name, scope, depth)
            case ast.Subscript(value=ast.Name(id=name)) if depth < DEEPEST:
                tables = scope.get(name) or self.constants.get(name) or []
                values = [value for table in tables if isinstance(table, ast.Dict) for value in table.values]
                return [text for value in values for text in inner(value)]
            case ast.Call(func=ast.Name(id=name)) if depth < DEEPEST:
                return self._returned(name, depth)
        return [UNKNOWN]

    def _named(self, name: str, scope: Scope, depth: int) -> list[str]:
        if name in scope or name in self.constants:
            values = scope.get(name) or self.constants[name]
            return [text for value in values for text in self.texts(value, scope, depth + 1)]
        home = self._home(name)
        return home.texts(ast.Name(self.imported[name][1]), {}, depth + 1) if home else [UNKNOWN]

    def _returned(self, name: str, depth: int) -> list[str]:
        """What a function of the package returns, as far as it is text."""
        if name in self.functions:
            body = self.functions[name]
            scope = _assigned(ast.walk(body))
            returned = [node.value for node in ast.walk(body) if isinstance(node, ast.Return) and node.value]
            return [text for value in returned for text in self.texts(value, scope, depth + 1)]
        home = self._home(name)
        return home._returned(self.imported[name][1], depth + 1) if home else [UNKNOWN]

    def _home(self, name: str) -> Source | None:
        """The module that an imported name is from."""
        module, _ = self.imported.get(name, ("", ""))
        path = PACKAGE.joinpath(*(module or "").split(".")[1:]).with_suffix(".py")
        return source(path) if module and path.is_file() else None


@cache
def source(path: Path) -> Source:
    """A module, read once."""
    return Source(path)


def _literal(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else UNKNOWN


def _assigned(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Scope:
    """By name: the values that are assigned to it, without those to unpacked tuples."""
    found: Scope = {}
    for node in nodes:
        targets: list[ast.expr] = []
        match node:
            case ast.Assign():
                targets = node.targets
            case ast.AnnAssign(value=ast.expr()) | ast.NamedExpr():
                targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name):
                found.setdefault(target.id, []).append(node.value)  # type: ignore[attr-defined]
    return found


def error_classes() -> set[str]:
    """The names of `TriptychError` and of what is derived from it."""
    names = {"TriptychError"}
    classes = [
        node
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(source(path).tree)
        if isinstance(node, ast.ClassDef)
    ]
    while True:
        more = {
            node.name
            for node in classes
            for base in node.bases
            if isinstance(base, ast.Name) and base.id in names
        }
        if more <= names:
            return names
        names |= more


def collected() -> dict[str, dict[str, set[str]]]:
    """By heading: sentence → its hints; an empty hint is none."""
    classes = error_classes()
    found: dict[str, dict[str, set[str]]] = {title: {} for title in GROUPS.values()}
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        module = source(path)
        for scope, message, hint in _pairs(module, classes):
            suggested = module.texts(hint, scope) if hint else [""]
            for sentence in module.texts(message, scope):
                if re.search(r"\w", sentence):
                    found[GROUPS.get(part, OTHERS)].setdefault(_tidy(sentence), set()).update(
                        map(_tidy, suggested)
                    )
    return found


def _pairs(module: Source, classes: set[str]) -> Iterator[tuple[Scope, ast.expr, ast.expr | None]]:
    """Each sentence of a module with its hint, and what is assigned in the function around it: from what
    makes an error, and in `terminal` from pairs that are returned or stand in a table.
    """
    for scope, node in _scoped(module.tree, {}):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[message, *hints]) if name in classes:
                yield scope, message, hints[0] if hints else None
            case ast.Return(value=ast.Tuple(elts=[message, hint])) if module.path.parent.name == "terminal":
                yield scope, message, hint
            case ast.Dict(values=values) if module.path.name == "faults.py":
                for value in values:
                    if isinstance(value, ast.Tuple):
                        yield scope, value.elts[0], value.elts[1]


def _scoped(node: ast.AST, scope: Scope) -> Iterator[tuple[Scope, ast.AST]]:
    """Each node of a tree, with what is assigned in the functions around it."""
    if isinstance(node, ast.FunctionDef):
        scope = {**scope, **_assigned(ast.walk(node))}
    yield scope, node
    for child in ast.iter_child_nodes(node):
        yield from _scoped(child, scope)


def _tidy(text: str) -> str:
    """One line, without an ellipsis beside another."""
    return re.sub(r"…(\s?…)+", UNKNOWN, " ".join(text.split())).strip()


@cache
def page() -> str:
    """The page as markdown."""
    lines = [HEAD]
    for title, sentences in collected().items():
        if not sentences:
            continue
        rows = []
        for sentence, hints in sorted(sentences.items(), key=lambda item: _order(item[0])):
            known = sorted(hint for hint in hints if hint and hint != UNKNOWN)
            rows.append((plain(sentence), "<br>".join(map(plain, known))))
        lines += [f"## {title}", "", *table(("what it says", "what it suggests"), rows)]
    return "\n".join(lines)


def _order(sentence: str) -> str:
    return sentence.lower().lstrip("…'`. -") or sentence


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
