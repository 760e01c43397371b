"""Score of `make mutants`: how many of the mutants of each module the tests notice, and every mutant that
they do not.

`tests/equivalent_mutants.yaml` lists survivors that change nothing anybody could see, with the reason:
module → function → {"old → new": reason}, where old and new are as much of the line as tells it from others.
They count as neither killed nor survived.

    python tests/mutation_score.py            # a line per module, then the survivors; exit code 1 below 80 %
    python tests/mutation_score.py flow lora  # only modules with these words in their names
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import yaml
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

GOAL = 0.8
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
NOTICED = ("killed", "timeout", "segfault", "caught by type check")


def change(name: str, path: Path) -> str:
    """The mutated line of a mutant: `old → new`, without indentation."""
    lines = [line for line in get_diff_for_mutant(name, path=path).split("\n")[2:] if line[:1] in "+-"]
    sides = {sign: " ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+"}
    return f"{sides['-']} → {sides['+']}"


def function_of(name: str) -> str:
    """`triptych.pictures.panels.xǁPanelLayoutǁbox__mutmut_3` → `PanelLayout.box`."""
    return (
        name.rpartition(".")[2]
        .partition("__mutmut")[0]
        .removeprefix("x_")
        .removeprefix("xǁ")
        .replace("ǁ", ".")
    )


def listed(text: str, known: Iterable[str]) -> bool:
    """Whether one of the known replacements, "old → new", turns the old line of `text` into the new one."""
    line, mutated = (" ".join(side.split()) for side in text.split(" → "))
    for entry in known:
        old, new = (" ".join(side.split()) for side in entry.split(" → "))
        for place in range(len(line)):
            if line.startswith(old, place) and line[:place] + new + line[place + len(old) :] == mutated:
                return True
    return False


def _guard(text: str) -> bool:
    """Whether only the `strict` of a `zip` differs (it guards against a programmer's mistake, and nothing
    reaches it), or the letters of a sentence for people: four words or more.
    """
    old, new = text.split(" → ")
    if re.search(r'"(?:[^" ]+ ){3,}[^" ]+"', old):
        old, new = (side.replace("XX", "").lower() for side in (old, new))
    return re.sub(r", strict=\w+", "", old) == re.sub(r", strict=\w+", "", new).replace(", )", ")")


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts[1:])


def main(words: list[str]) -> int:
    equivalent = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or {}
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    survivors: list[str] = []
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        module = module_of(Path(path))
        if words and not any(word in module for word in words):
            continue
        for name, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            if status in NOTICED:
                counts[module]["killed"] += 1
            elif status == "not checked":
                counts[module]["not checked"] += 1
            elif _guard(text := change(name, path)) or listed(
                text, (equivalent.get(module) or {}).get(function_of(name), {})
            ):
                counts[module]["equivalent"] += 1
            else:
                counts[module]["survived"] += 1
                survivors.append(f"{name.rpartition('.')[2]}  [{status}]\n    {text}")
    total: Counter[str] = Counter()
    for module, count in counts.items():
        total.update(count)
        print(_row(module, count))
    print(_row("all", total), *survivors, sep="\n")
    return 0 if total["killed"] >= GOAL * (total["killed"] + total["survived"]) else 1


def _row(module: str, count: Counter[str]) -> str:
    judged = count["killed"] + count["survived"]
    share = f"{count['killed'] / judged:.0%}" if judged else "–"
    unchecked = f", {count['not checked']} not checked" if count["not checked"] else ""
    return (
        f"{module:32} {share:>5}  {count['killed']} of {judged} killed, {count['equivalent']} "
        f"equivalent{unchecked}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
