"""Files that are whole or absent, and folders that do not mix two configs."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from triptych.errors import InputError, WorkError
from triptych.store import files
from triptych.store.files import (
    digest,
    parse_json,
    publish,
    read_json,
    read_jsonl,
    read_text,
    sha256_file,
    write_json,
    write_jsonl,
    write_text,
)
from triptych.store.folder import StageFolder

# A file system as network and FUSE drives have them: by the name of the call, what it answers.
ODD = {
    "fsync of folders": ("fsync", errno.EINVAL),
    "chmod": ("chmod", errno.EPERM),
    "locks": ("flock", errno.ENOTSUP),
    "locks unknown": ("flock", errno.ENOSYS),
}


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize(
    "write", [lambda path: save_file({"a": torch.ones(2)}, path), lambda path: path.write_bytes(b"a")]
)
def test_files_get_the_permissions_that_the_umask_gives(
    tmp_path: Path, umask: int, write: Callable[[Path], object]
) -> None:
    before = os.umask(umask)
    try:
        for _ in range(2):  # a new file, and one in place of an old one
            with publish(tmp_path / "a.safetensors") as temporary:
                write(temporary)
            assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("call", ODD)
def test_odd_file_systems_are_written_to(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, number = ODD[call]
    module = fcntl if name == "flock" else os
    real = getattr(module, name)

    def refuse(target, *more, **named):
        if name == "fsync" and not stat.S_ISDIR(os.fstat(target).st_mode):
            return real(target, *more, **named)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            StageFolder(tmp_path / "s", "stage", {}).open() as folder,
            publish(folder / "a.safetensors") as temporary,
        ):
            save_file({"a": torch.ones(2)}, temporary)
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") == [
        "a.safetensors",
        "stage.manifest.json",
    ]
    assert (
        len({stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.suffix != ".lock"}) == 1
    )


def test_a_drive_that_cannot_rename_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WorkError, match="cannot rename") as caught:
        write_text(tmp_path / "a.txt", "new")
    assert caught.value.hint.startswith("Use a --work folder on a local disk")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_rename_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(WorkError, match=r"The disk is full: .*a\.txt could not be written"):
        write_text(tmp_path / "a.txt", "new")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (SafetensorError("I/O error: No space left (os error 28)"), WorkError, "The disk is full: new could"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), PermissionError, "new"),
        (SafetensorError("header too large"), SafetensorError, "header too large"),
        (ValueError("not ours (os error 28)"), ValueError, "not ours"),
    ],
)
def test_what_the_system_answered_is_found_in_the_words_of_safetensors(
    error: Exception, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words), files.explained(Path("new")):
        raise error


@pytest.mark.parametrize(
    "write", ["save_file({'a': torch.zeros(100_000)}, t)", "t.write_bytes(bytes(400_000))"]
)
def test_a_full_disk_is_a_sentence_for_every_writer(tmp_path: Path, write: str) -> None:
    """A limit on the size of files is what a test can have of a full disk; safetensors answers both in its
    own way.
    """
    code = (
        "import resource, sys, torch; from pathlib import Path; from safetensors.torch import save_file\n"
        "from triptych.store.files import publish; from triptych.errors import WorkError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"try:\n    with publish(Path(sys.argv[1])) as t: {write}\n"
        "except WorkError as error: print(error, error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.safetensors")],
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert "disk is full" in done.stdout and "a.safetensors" in done.stdout and "Make room" in done.stdout, (
        done.stderr
    )
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(RuntimeError), publish(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


def test_a_folder_that_can_never_be_made_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "link" / "a.txt", "x")
    write_text(tmp_path / "new" / "folder" / "a.txt", "x")


def test_a_killed_write_is_invisible_to_whoever_lists_the_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from triptych.store.files import publish\n"
        "with publish(Path(sys.argv[1])) as t: t.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], timeout=60)
    assert done.returncode == -9
    assert list(tmp_path.glob("*.png")) == []
    with publish(tmp_path / "b.png") as at_work:  # what the killed one left goes, what is being written stays
        write_text(tmp_path / "c.txt", "x")
        at_work.write_bytes(b"b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "c.txt"]


def test_many_writers_in_one_folder(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda n=n: [write_text(tmp_path / f"{n}-{k}.txt", "x") for k in range(25)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.glob("*.txt"))) == 200
    assert not (tmp_path / ".part").exists()


def test_a_folder_refuses_other_settings_and_a_second_writer(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "s", "stage", {"rank": 4})
    with folder.open():
        with (
            pytest.raises(WorkError, match="Another run"),
            StageFolder(tmp_path / "s", "stage", {"rank": 4}).open(),
        ):
            pass
        with pytest.raises(WorkError, match="rank"):
            StageFolder(tmp_path / "s", "stage", {"rank": 8})
    with StageFolder(tmp_path / "s", "stage", {"rank": 8}, begun=lambda: False).open():
        pass
    StageFolder(tmp_path / "s", "stage", {"rank": 8})


def test_settings_are_compared_again_when_the_folder_is_held(tmp_path: Path) -> None:
    first, second = (StageFolder(tmp_path, "stage", {"seed": seed}) for seed in (0, 1))
    with first.open():
        pass
    with pytest.raises(WorkError, match="seed"), second.open():
        pass
    assert '"seed": 0' in (tmp_path / "stage.manifest.json").read_text()


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": "x\u2028y"}\n{"a": ', encoding="utf-8")
    assert read_jsonl(file) == [{"a": 1}, {"a": "x\u2028y"}]
    file.write_text('{"a": \n{"a": 2}\n')
    with pytest.raises(WorkError, match="line 1"):
        read_jsonl(file)


def test_rows_are_one_line_each_in_the_users_own_script(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [{"b": "ä\n"}, {"a": Path("p")}])
    assert file.read_bytes() == '{"b": "ä\\n"}\n{"a": "p"}\n'.encode()
    write_json(file, {"ä": 1})
    assert file.read_bytes() == '{\n  "ä": 1\n}\n'.encode()
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": 2}\n')
    assert read_jsonl(file) == [{"a": 1}, {"a": 2}]


def test_json_up_to_a_limit_is_parsed() -> None:
    assert parse_json("[1]", 3) == [1]
    with pytest.raises(ValueError, match="longer than 3"):
        parse_json("[12]", 3)


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("embed.settings.json", "embed"),
        ("embed.old.settings.json", "embed"),
        ("summary.json", "run --config triptych.yaml"),
        ("caption.jsonl", "caption"),
    ],
)
def test_a_file_that_cannot_be_read_says_why_and_which_verb_writes_it(
    tmp_path: Path, name: str, verb: str
) -> None:
    file = tmp_path / name
    file.mkdir()
    with pytest.raises(WorkError, match=r"cannot be read: Is a directory\.") as caught:
        read_json(file)
    assert caught.value.hint == f"Run `triptych {verb}` again."
    file.rmdir()
    file.write_text("[")
    with pytest.raises(WorkError, match=r"cannot be read: Expecting value: line 1 column 2 \(char 1\)\. Run"):
        read_json(file)
    file.write_text("1\n")
    with pytest.raises(WorkError, match="line 1") as caught:
        read_jsonl(file)
    assert caught.value.hint == f"Mend that line, or run `triptych {verb}` again."
    assert files._why(ValueError("..so it is.")) == "..so it is"


def test_a_lock_is_waited_for_only_where_that_is_asked(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert files._lock(first, wait=False) and not files._lock(second, wait=False)
    threading.Timer(0.05, os.close, [first]).start()
    assert files._lock(second, wait=True)
    os.close(second)


def test_stray_files_of_killed_writers_go_too(tmp_path: Path) -> None:
    (tmp_path / ".part" / "folder").mkdir(parents=True)
    (tmp_path / ".part" / "file").write_text("x")
    files.sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_digest_does_not_depend_on_key_order() -> None:
    assert digest({"a": Path("p")}) == digest({"a": "p"})
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_path_is_written_as_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": Path("p")})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": "p"\n}\n'


def test_a_users_text_file_is_read_without_its_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(file, 13, "The file") == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("name", "content", "words", "help"),
    [
        ("gone.txt", None, "does not exist", "Look here"),
        (".", None, "it is a folder", "Look here"),
        ("a\0b", None, "is no path", "Look here"),
        ("a\ud800b", None, "is no path", "Look here"),
        ("/dev/zero", None, "not a regular file", "pipe or device"),
        ("fifo", None, "not a regular file", "pipe or device"),
        ("long.txt", b"12345678901", "larger than", "right file"),
        ("cp1252.txt", b"It\x92s", "not UTF-8", "save it as UTF-8"),
        ("utf16.txt", "text".encode("utf-16"), "not UTF-8", "save it as UTF-8"),
        ("utf16be.txt", "text".encode("utf-16-be"), "NUL", "save it as UTF-8"),
    ],
)
def test_what_is_no_small_text_file_is_refused(
    tmp_path: Path, name: str, content: bytes | None, words: str, help: str
) -> None:
    path = tmp_path / name
    if name == "fifo":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_text(path, 10, "The file", hint="Look here")
    assert help in caught.value.hint


def test_a_hash_is_taken_of_files_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="regular file"):
        sha256_file(Path("/dev/zero"))
    (tmp_path / "large").write_bytes(b"123")
    with pytest.raises(InputError, match="too large"):
        sha256_file(tmp_path / "large", 2)
    assert sha256_file(tmp_path / "large", 3).startswith("a665a459")


def test_a_file_that_is_missing_says_which_verb_writes_it(tmp_path: Path) -> None:
    for name, verb in (("photos.jsonl", "clean"), ("metadata.jsonl", "concat"), ("caption.jsonl", "caption")):
        with pytest.raises(
            WorkError, match=rf"{name} cannot be read: it does not exist\. Run `triptych {verb}` first\."
        ):
            read_jsonl(tmp_path / name)


def test_what_differs_is_said_in_the_words_for_it(tmp_path: Path) -> None:
    before = {"rank": 4, "folder": Path("a"), "data": [1, 2], "steps": 10}
    with StageFolder(tmp_path, "stage", before).open():
        pass
    after = {"rank": 8, "data": [1, 2, 3], "folder": "a"}
    words = {"data": lambda old, new: f"{len(new) - len(old)} new of {old}"}
    with pytest.raises(WorkError) as caught:
        StageFolder(tmp_path, "stage", after, words=words, retired=("steps",))
    problem = f"{tmp_path} was made with other settings (1 new of [1, 2], rank)."
    assert str(caught.value) == f"{problem} {caught.value.hint}"
    assert caught.value.hint == (
        "Put the old settings back, or use another folder: --work, or the one option that names this folder "
        "alone."
    )
    with pytest.raises(WorkError, match="rank, steps") as caught:
        StageFolder(tmp_path, "stage", before | {"rank": 8, "steps": 20}, hint="Another way.")
    assert caught.value.hint == "Another way."
    StageFolder(tmp_path, "stage", {k: before[k] for k in ("rank", "folder", "data")}, retired=["steps"])


def test_a_folder_whose_settings_are_not_there_has_other_ones(tmp_path: Path) -> None:
    write_json(tmp_path / "stage.manifest.json", {})
    StageFolder(tmp_path, "stage", {})
    with pytest.raises(WorkError, match=r"other settings \(rank\)"):
        StageFolder(tmp_path, "stage", {"rank": 4})


def test_settings_are_written_once_there_is_a_result(tmp_path: Path) -> None:
    begun: list[int] = []
    manifest = tmp_path / "a" / "stage.manifest.json"

    def hold(rank: int) -> None:
        with StageFolder(tmp_path / "a", "stage", {"rank": rank}, begun=lambda: bool(begun)).open() as path:
            assert path == tmp_path / "a"
            assert read_json(manifest) == {"stage": "stage", "identity": {"rank": rank}}

    hold(4)
    hold(8)  # nothing is begun, so another setting takes its place
    hold(4)
    begun.append(1)
    before = manifest.stat().st_mtime_ns
    hold(4)
    assert manifest.stat().st_mtime_ns == before, "it stays as it is"
    with pytest.raises(WorkError, match="rank"):
        hold(8)


def test_a_folder_is_free_again_however_the_work_in_it_ends(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "of" / "a" / "stage", "stage", {})
    with pytest.raises(ValueError, match="in the midst"), folder.open():
        raise ValueError("in the midst")
    held = folder.open()
    held.__enter__()
    with pytest.raises(WorkError, match="Another run"), folder.open():
        pass
    closing = threading.Thread(
        target=held.__exit__, args=(None, None, None)
    )  # a run may be closed from there
    closing.start()
    closing.join()
    with folder.open() as path:
        (path / ".part").mkdir()
        (path / ".part" / "half").write_text("half a file")
    with folder.open():
        assert not (path / ".part").exists(), "what a killed writer left"
