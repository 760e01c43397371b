"""A script by which bash, zsh or fish completes commands: every verb, option and choice.

The script stands by itself: no Python runs when the key is pressed. It is to be written anew after an update.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cyclopts import App, Parameter

from triptych.verbs import GROUPS, STAGES, Stage

Shell = Literal["bash", "zsh", "fish"]
SHELLS: tuple[str, ...] = get_args(Shell)
Flags = Annotated[bool, Parameter(negative=())]
ConfigFiles = Annotated[
    list[Path] | None,
    Parameter(name=["--config", "-c"], negative=(), consume_multiple=False),
]
"""Parameters that every command has besides its config's fields."""
_HOW = {
    "bash": "triptych completion bash > ~/.local/share/bash-completion/completions/triptych",
    "zsh": "triptych completion zsh > ~/.zfunc/_triptych, with ~/.zfunc in fpath",
    "fish": "triptych completion fish > ~/.config/fish/completions/triptych.fish",
}


def mistake(words: list[str]) -> tuple[str, str] | None:
    """(the problem, a hint) if the words behind `triptych completion` are not the name of one shell."""
    if len(words) == 1 and words[0] in SHELLS:
        return None
    given = f"'{' '.join(words)}' is no shell that is known here." if words else "No shell is named."
    return given, f"Say {', '.join(SHELLS[:-1])} or {SHELLS[-1]}; for bash: `{_HOW['bash']}`."


def script(shell: str) -> str:
    """The script for one of `SHELLS`, to be kept in a file that it reads at its start."""
    assert shell in SHELLS, shell
    app = App(name="triptych")
    groups = {name: App(name=name, help=text, version_flags=()) for name, text in GROUPS.items()}
    for group in groups.values():
        app.command(group)
    for stage in STAGES:
        home = groups[stage.words[0]] if len(stage.words) > 1 else app
        home.command(_named(stage), name=stage.words[-1], help=stage.help)
    app.command(_completion, name="completion")
    written = app.generate_completion(prog_name="triptych", shell=shell)  # type: ignore[arg-type]
    return written if shell == "zsh" else f"# {_HOW[shell]}\n{written}"  # zsh reads the first line


def _completion(shell: Shell, /) -> None:
    """What the shell needs to complete commands."""


def _named(stage: Stage) -> Any:
    """A function that does nothing and takes what the command of a stage takes."""

    def command(
        *, options: Any = None, config: ConfigFiles = None, json: Flags = False, verbose: Flags = False
    ) -> None: ...

    command.__annotations__["options"] = Annotated[stage.config_class() | None, Parameter(name="*")]
    return command


__all__ = ["SHELLS", "ConfigFiles", "Flags", "mistake", "script"]
