"""A journal of captioners' answers, so that no question is asked, and paid for, twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, get_args

from triptych.captioning.questions import AnswerError, Captioner, Fault
from triptych.store.files import digest
from triptych.store.journal import Journal

if TYPE_CHECKING:
    from PIL import Image


class Answers:
    """Earlier answers of captioners, by (picture, prompt, captioner, length limit).

    The journal also keeps useless answers, for the record; `Dialogue.forget` makes the next question go to
    the captioner again. A row of the kind `returned` says that a picture was moved back: all earlier answers
    about it are forgotten.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known = self.known_in(journal.rows)
        self._earlier = set(self._known)

    @staticmethod
    def known_in(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """{key of a question: its row}, from the rows of a journal."""
        known: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row.get("kind") == "answer" and isinstance(row.get("key"), str):
                known[row["key"]] = row
            elif row.get("kind") == "returned":
                known = {key: one for key, one in known.items() if one.get("id") != row.get("id")}
        return known

    def dialogue(
        self,
        captioner: Captioner,
        id: str,
        picture: Callable[[], Image.Image],
        sha256: str,
        max_new_tokens: int,
    ) -> Dialogue:
        """The questions about one picture. `picture` opens it if the captioner has to see it; `sha256` is the
        hash of its content.
        """
        return Dialogue(self, captioner, id, picture, sha256, max_new_tokens)


class Dialogue:
    """Answers a question, from the journal or from the captioner.

    Raises:
        InputError: the picture cannot be opened. AnswerError, ModelError: see `Captioner.ask`.
    """

    def __init__(
        self,
        answers: Answers,
        captioner: Captioner,
        id: str,
        picture: Callable[[], Image.Image],
        sha256: str,
        max_new_tokens: int,
    ) -> None:
        self._answers, self._captioner, self._id, self._picture = answers, captioner, id, picture
        self._sha256, self._max_new_tokens = sha256, max_new_tokens
        self._replayed: set[str] = set()

    def __call__(self, prompt: str) -> str:
        known = self._answers._known
        key = digest([self._sha256, prompt, self._captioner.identity, self._max_new_tokens])
        row = known.get(key)
        if row is not None and key in self._answers._earlier:
            self._replayed.add(key)
        if row is None:
            row = {"kind": "answer", "key": key, "id": self._id, "captioner": self._captioner.identity}
            try:
                row["answer"] = self._captioner.ask(self._picture(), prompt, self._max_new_tokens)
            except AnswerError as error:
                if error.fault == "server":
                    raise  # the server failed, which is no answer to keep
                row |= {"failure": error.message, "hint": error.hint, "fault": error.fault}
            self._answers._journal.append(row)
            known[key] = row
        if "failure" in row:
            fault: Fault = row["fault"] if row.get("fault") in get_args(Fault) else "model"
            raise AnswerError(str(row["failure"]), str(row.get("hint", "")), fault)
        return str(row.get("answer", ""))

    def forget(self) -> bool:
        """Forget the answers that an earlier run got about this picture; False if none of them was used.

        Call it when those answers were useless: the model, a setting or the server may have been mended
        since.
        """
        for key in self._replayed:
            self._answers._known.pop(key, None)
            self._answers._earlier.discard(key)
        found, self._replayed = bool(self._replayed), set()
        return found
