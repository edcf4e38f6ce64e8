"""Files and folders are where people say, whole or not there, and what is wrong with one is told with what helps."""

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from filelock import FileLock
from PIL import Image

from dreambooth import files
from dreambooth.errors import ConfigError
from dreambooth.files import (
    atomic_file,
    atomic_folder,
    cache_home,
    check_writable,
    clear_leftovers,
    copy_or_link,
    disk_trouble,
    hidden_name,
    is_held,
    named_path,
    read_text,
    refuse_taken,
    runs_root,
    setting_of,
)


def write_and_fail(place, final: Path, failure: BaseException) -> None:
    """Begin to write at `final` with `place`, and fail half way."""
    with place(final) as partial:
        (partial / "a" if partial.is_dir() else partial).write_text("ha")
        raise failure


FAILURES = [ValueError("stop"), KeyboardInterrupt("stop"), GeneratorExit("stop"), OSError(28, "No space left")]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- One file


def test_weights_in_the_hubs_cache_are_linked_and_all_else_is_copied(tmp_path, monkeypatch):
    blobs, snapshot, own = tmp_path / "blobs", tmp_path / "snapshots" / "1", tmp_path / "own"
    for folder in (blobs, snapshot, own):
        folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (blobs / name[:5]).write_text(name)
        (snapshot / name).symlink_to(blobs / name[:5])
        (own / name).write_text(name)
    for number, source in enumerate((snapshot, own)):
        shutil.copytree(source, tmp_path / str(number), copy_function=copy_or_link)
        for file in (tmp_path / str(number)).iterdir():
            assert file.read_text() == file.name
            linked = source == snapshot and file.suffix == ".safetensors"
            assert os.path.samefile(file, source / file.name) == linked
            assert not file.is_symlink()
    monkeypatch.setattr(os, "link", mock.Mock(side_effect=OSError("another disk")))
    shutil.copytree(snapshot, tmp_path / "copied", copy_function=copy_or_link)
    assert not os.path.samefile(tmp_path / "copied" / "model.safetensors", snapshot / "model.safetensors")


def test_a_file_appears_with_its_content(tmp_path):
    with atomic_file(tmp_path / "new" / "a.txt") as partial:
        partial.write_text("all")
        assert names(tmp_path / "new") == [partial.name], "not under its own name yet"
    assert (tmp_path / "new" / "a.txt").read_text() == "all"
    assert names(tmp_path / "new") == ["a.txt"]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path, failure):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(failure), match=r"stop|No space"):
        write_and_fail(atomic_file, tmp_path / "a.txt", failure)
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_is_replaced(tmp_path):
    for text in ("old", "new"):
        with atomic_file(tmp_path / "a.txt") as partial:
            partial.write_text(text)
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_reader_of_the_old_file_keeps_it_whole(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with (tmp_path / "a.txt").open() as reader:
        with atomic_file(tmp_path / "a.txt") as partial:
            partial.write_text("new")
        assert reader.read() == "old"


def test_pillow_knows_the_format_while_it_writes(tmp_path):
    for name in ("a.png", "b.jpg", "c.webp"):
        with atomic_file(tmp_path / name) as partial:
            Image.new("RGB", (8, 8)).save(partial)
        with Image.open(tmp_path / name) as image:
            assert image.format in ("PNG", "JPEG", "WEBP")


def test_others_may_read_a_file_and_a_folder(tmp_path):
    """Unlike the temporary ones they were, which are the owner's alone."""
    with atomic_file(tmp_path / "a.txt") as partial:
        partial.write_text("x")
    with atomic_folder(tmp_path / "b"):
        pass
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o755


def test_where_no_file_can_be_written_nothing_is(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deep" / "a.txt"):
        with pytest.raises(OSError, match=r"[Nn]ot a directory|File exists"), atomic_file(target):
            pytest.fail("the block ran")
        with pytest.raises(OSError, match=r"[Nn]ot a directory|File exists"), atomic_folder(target):
            pytest.fail("the block ran")
    assert names(tmp_path) == ["file"]


# ---- One folder


def test_a_folder_appears_with_all_its_files(tmp_path):
    with atomic_folder(tmp_path / "deep" / "model") as partial:
        (partial / "a").write_text("1")
        (partial / "sub").mkdir()
        (partial / "sub" / "b").write_text("2")
        assert not (tmp_path / "deep" / "model").exists()
    assert names(tmp_path / "deep") == ["model"]
    assert (tmp_path / "deep" / "model" / "sub" / "b").read_text() == "2"


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("old", [True, False])
def test_a_folder_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path, failure, old):
    final = tmp_path / "model"
    if old:
        final.mkdir()
        (final / "a").write_text("old")
    with pytest.raises(type(failure), match=r"stop|No space"):
        write_and_fail(atomic_folder, final, failure)
    assert names(tmp_path) == (["model"] if old else [])
    if old:
        assert (final / "a").read_text() == "old"


def test_a_folder_is_replaced_with_no_old_file_left_in_it(tmp_path):
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "model") as partial:
            (partial / name).write_text("x")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["second"]


def test_what_another_process_left_half_written_goes_when_something_is_written_there(tmp_path):
    hidden_name(tmp_path / "model", "partial").mkdir()
    hidden_name(tmp_path / "a.png", "partial").write_text("ha")
    with atomic_folder(tmp_path / "model") as partial:
        (partial / "a").write_text("whole")
        assert names(tmp_path) == [partial.name]
    assert (tmp_path / "model" / "a").read_text() == "whole"
    assert names(tmp_path) == ["model"]


# ---- A power cut


class Disk:
    """In which order names are given and the disk is waited for; paths are those below `root`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.happened, self._waits, self._renames = root, [], os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "replace", self.replace)

    def _known(self, path: str | Path) -> str:
        name = str(Path(path).relative_to(self.root))
        return re.sub(r"\.dreambooth-(\w+)-[0-9a-f]{8}-", r"\1 ", name)

    def fsync(self, descriptor: int) -> None:
        self.happened.append(f"wait {self._known(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        self._waits(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        self.happened.append(f"{self._known(source)} -> {self._known(target)}")
        self._renames(source, target)


def test_a_file_gets_its_name_when_the_disk_has_it_and_the_disk_has_the_name_at_the_end(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch)
    with atomic_file(tmp_path / "new" / "a.txt") as partial:
        partial.write_text("all")
    assert disk.happened == ["wait .", "wait new/partial a.txt", "new/partial a.txt -> new/a.txt", "wait new"]


def test_so_does_a_folder_with_all_that_is_in_it(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    disk = Disk(tmp_path, monkeypatch)
    with atomic_folder(tmp_path / "model") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_text("1")
        (partial / "gone").symlink_to(tmp_path / "nowhere")
    assert disk.happened == [
        "wait partial model/sub/a",
        "wait partial model/sub",
        "wait partial model",
        "model -> old model",
        "partial model -> model",
        "wait .",
    ]
    assert names(tmp_path) == ["model"], "the old one goes last"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_where_nothing_can_be_synced_all_goes_on(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(code, os.strerror(code))))
    with atomic_folder(tmp_path / "deep" / "model") as partial:
        (partial / "a").write_text("1")
    assert (tmp_path / "deep" / "model" / "a").read_text() == "1"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_at_last_is_told_and_the_old_file_stays(tmp_path, monkeypatch, code):
    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(code, os.strerror(code))))
    with pytest.raises(OSError, match=re.escape(os.strerror(code))), atomic_file(tmp_path / "a.txt") as partial:
        partial.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


# ---- What a killed process leaves

WRITER = """
import sys
from pathlib import Path
from dreambooth.files import atomic_file, atomic_folder, scratch_folder

root = Path(sys.argv[1])
with atomic_folder(root / "model") as folder, atomic_file(root / "a.txt") as file, scratch_folder(root) as scratch:
    for path in (folder / "a", file, scratch / "a"):
        path.write_text("half")
    print("writes", flush=True)
    sys.stdin.read()
"""


def test_leftovers_are_removed_when_their_process_is_gone_and_not_before(tmp_path):
    writer = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(writer, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "writes\n"
            before = names(tmp_path)
            for path in tmp_path.iterdir():
                os.utime(path, (1000, 1000))
            clear_leftovers(tmp_path)
            assert names(tmp_path) == before
            assert len(before) == 3
        finally:
            process.kill()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_what_was_to_be_replaced_comes_back_where_the_new_one_did_not_come(tmp_path):
    for final in ("model", "photos"):
        old = hidden_name(tmp_path / final, "old")
        old.mkdir()
        (old / "a").write_text("old")
    (tmp_path / "photos").mkdir()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["model", "photos"]
    assert (names(tmp_path / "model"), names(tmp_path / "photos")) == (["a"], [])


def test_hidden_files_of_others_are_let_be(tmp_path):
    theirs = [".x.deleted", ".model.abc.partial", ".dreambooth-partial-notes", ".dreambooth-other-0123abcd-x"]
    for name in theirs:
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    hidden_name(tmp_path / "x", "deleted").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    before = names(tmp_path)
    clear_leftovers(tmp_path)
    clear_leftovers(tmp_path / "nowhere")
    assert names(tmp_path) == before


def test_where_nothing_can_be_locked_a_leftover_is_what_has_not_changed_for_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    fresh, stale, removed = (hidden_name(tmp_path / "x", kind) for kind in ("partial", "partial", "deleted"))
    for path in (fresh, stale, removed):
        path.mkdir()
        (path / "a").write_text("half")
    os.utime(stale / "a", (1000, 1000))
    for path in (stale, fresh):
        os.utime(path, (1000, 1000))
    clear_leftovers(tmp_path)
    assert names(tmp_path) == [fresh.name]
    with atomic_folder(tmp_path / "y") as folder:
        (folder / "a").write_text("whole")
    assert (tmp_path / "y" / "a").read_text() == "whole"


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    with atomic_file(tmp_path / "a.txt") as one, atomic_file(tmp_path / "a.txt") as other:
        one.write_text("one" * 1000)
        other.write_text("two")
    assert (tmp_path / "a.txt").read_text() == "one" * 1000, "the one that ended last"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_lock_is_held_while_somebody_has_it_and_a_look_makes_none(tmp_path):
    assert not is_held(tmp_path / "gone" / ".lock")
    lock = FileLock(tmp_path / ".lock")
    with lock:
        assert is_held(tmp_path / ".lock")
    assert not is_held(tmp_path / ".lock")
    assert not (tmp_path / "gone").exists()


# ---- Names that are taken


def test_a_name_that_is_taken_is_refused_and_a_new_or_empty_folder_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    for free in ("new", "empty", "new/in/new"):
        refuse_taken(tmp_path / free)
    with pytest.raises(ConfigError, match=r"full is there already and not empty\. Give another name"):
        refuse_taken(tmp_path / "full")
    with pytest.raises(ConfigError, match=r"a\.txt is there already\. Give another name"):
        refuse_taken(tmp_path / "full" / "a.txt")


# ---- Where people say


def test_every_folder_is_read_alike_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for variable, folder, usual in (
        ("DREAMBOOTH_RUNS", runs_root, Path("runs")),
        ("DREAMBOOTH_CACHE", cache_home, tmp_path / ".cache" / "dreambooth"),
    ):
        monkeypatch.setenv(variable, "~/mine")
        assert folder() == tmp_path / "mine"
        for empty in ("", " "):
            monkeypatch.setenv(variable, empty)
            assert folder() == usual
        monkeypatch.setenv(variable, "~nobody-at-all/x")
        with pytest.raises(ConfigError, match=f"{variable} = '~nobody-at-all/x' is not a path"):
            folder()
    monkeypatch.delenv("DREAMBOOTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_home() == tmp_path / ".cache" / "dreambooth"


@pytest.mark.parametrize(("text", "said"), [("", "is empty"), (" ", "is empty"), ("a\0b", "is not a path")])
def test_what_is_no_path_is_told_with_where_it_stands(text, said):
    with pytest.raises(ConfigError, match=f"--out .*{said}"):
        named_path(text, "--out")


def test_the_setting_that_leads_to_a_folder_is_known(tmp_path, monkeypatch):
    for variable in ("DREAMBOOTH_CACHE", "DREAMBOOTH_RUNS", "HF_HOME", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        assert setting_of(tmp_path / variable / "a" / "b") == variable
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "models"))
    assert setting_of(tmp_path / "models" / "x") == "HF_HUB_CACHE"
    assert setting_of(tmp_path / "elsewhere") == ""


def test_a_folder_that_can_not_be_written_to_is_refused_with_its_setting_and_nothing_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"a/b can't be written: .*/file is a file\. Give another folder \(--out\)\."):
        check_writable(tmp_path / "file" / "a" / "b", "--out")
    check_writable(tmp_path / "new" / "a", "--out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ConfigError, match="you may not write into"):
        check_writable(tmp_path / "new" / "a", "--out")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError(errno.ENOSPC, "No space", "CACHE/a"),
            "The disk is full (CACHE/a). Free some space, or choose another folder (DREAMBOOTH_CACHE)",
        ),
        (OSError("copy: No space left on device"), "The disk is full. Free some space"),
        (
            OSError(errno.EACCES, "Permission denied", "CACHE/a"),
            "CACHE/a can't be read or written (Permission denied). "
            "Get the right to it, or choose another folder (DREAMBOOTH_CACHE)",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/a"),
            "/a can't be read or written (Read-only file system). It "
            "is on a disk that is read alone: choose another folder",
        ),
        (
            OSError(errno.ENOTDIR, "Not a directory", "FILE/a"),
            "FILE/a can't be read or written: FILE is a file. Move it away, or choose another folder",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "/a"),
            "/a can't be read or written (Too many open files). Raise the limit of open files (`ulimit -n 4096`)",
        ),
        (
            OSError(errno.EIO, "Input/output error", "/a"),
            "/a can't be read or written (Input/output error). The disk fails: choose another folder on another one",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "/a"),
            "/a can't be read or written (File name too long). Give a shorter name",
        ),
        (
            OSError("image file is truncated"),
            "A file is damaged or of another kind: image file is truncated. Put a whole one in its place, or remove it",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_trouble_with_the_disk_is_told_with_what_helps(tmp_path, monkeypatch, error, told):
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("x")
    for word, path in (("CACHE", tmp_path / "cache"), ("FILE", tmp_path / "file")):
        if error.filename:
            error.filename = error.filename.replace(word, str(path))
        told = told.replace(f"{word}/", f"{path}/").replace(f"{word} ", f"{path} ")
    assert " ".join(disk_trouble(error)) == told


# ---- Texts

SAVED = {
    "plain": str.encode,
    "Notepad, UTF-8 with BOM": lambda text: text.encode("utf-8-sig"),
    "Notepad, UTF-16 LE": lambda text: text.encode("utf-16"),
    "UTF-16 BE": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "two marks": lambda text: b"\xef\xbb\xbf" + text.encode("utf-8-sig"),
    "old Mac": lambda text: text.replace("\r\n", "\r").encode(),
}
"""How editors save a text."""


@pytest.mark.parametrize("encode", SAVED.values(), ids=SAVED)
def test_a_text_is_read_as_every_editor_saves_it(tmp_path, encode):
    (tmp_path / "a.txt").write_bytes(encode("Ünï 犬 🐶\r\nsks\r\n"))
    assert read_text(tmp_path / "a.txt") == "Ünï 犬 🐶\nsks\n"


def test_files_that_were_joined_leave_no_mark_inside(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\n".encode("utf-8-sig") + "two\n".encode("utf-8-sig"))
    assert read_text(tmp_path / "a.txt") == "one\ntwo\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("sks\ndéjà".encode("cp1252"), "line 2 is not UTF-8 text; save the file as UTF-8"),
        ("собака".encode("cp1251"), "line 1 is not UTF-8 text"),
        ("sks".encode("utf-16-le"), "it holds zero bytes"),
        ("sks".encode("utf-16-be"), "it holds zero bytes"),
        (b"\xff\xfea", "line 1 is not UTF-16 text"),
        (b"\x89PNG\r\n\x1a\n", "line 1 is not UTF-8 text"),
    ],
)
def test_a_text_of_an_encoding_that_can_only_be_guessed_is_refused(tmp_path, data, said):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        read_text(tmp_path / "a.txt")
