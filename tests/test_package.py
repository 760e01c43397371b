"""The package as a library: every public name, at the first look-up and after its module was imported."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import triptych
from triptych.errors import InputError, TriptychError
from triptych.verbs import STAGES

NAMES = [name for name in triptych.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_what_its_home_defines(name: str) -> None:
    home = importlib.import_module(triptych._HOMES[name])
    for _ in range(2):
        assert getattr(triptych, name) is getattr(home, name)
    assert inspect.isclass(getattr(triptych, name)) == name[0].isupper()
    assert name in dir(triptych)


def test_every_verb_is_a_function_in_every_spelling_of_an_import() -> None:
    """In a new process, where the import of a module binds it to the package for the first time."""
    verbs = [stage.public_name for stage in STAGES]
    code = (
        "import importlib, inspect, triptych\n"
        f"for name in {verbs}:\n"
        "    assert inspect.isfunction(getattr(triptych, name)), name\n"
        "    exec(f'from triptych import {name} as found')\n"
        "    assert inspect.isfunction(found), name\n"
        "import triptych.verbs.demo, triptych.verbs.run, triptych.events\n"
        "assert inspect.isfunction(triptych.demo) and inspect.isfunction(triptych.run)\n"
        "names = {}\n"
        "exec('from triptych import *', names)\n"
        "assert set(triptych.__all__) <= set(names)\n"
        f"assert all(inspect.isfunction(names[name]) for name in {verbs})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_error_says_its_hint_wherever_it_is_shown() -> None:
    error = InputError("There is no photo at a.jpg.", "Check --front.")
    assert str(error) == "There is no photo at a.jpg. Check --front."
    assert (error.message, error.hint) == ("There is no photo at a.jpg.", "Check --front.")
    assert str(TriptychError("Only a sentence.")) == "Only a sentence."
