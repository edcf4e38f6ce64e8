"""Files and folders: where people's settings say that they are, and what is wrong with one in plain words.

What is written here is whole or not there, after a kill and a power cut too: it is made under a hidden name, synced,
then renamed. Locks of theirs, and texts as people save them.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dreambooth.errors import ConfigError, first_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE = 1.0
"""Seconds to wait for a file lock that is free: a look at it (`is_held`) is over by then."""

_MARKS = {  # in this order: the mark of UTF-32 begins as that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""How editors begin a text that is not UTF-8 (Unicode, section 23.8)."""

_PROBING = threading.Lock()  # two looks at once would take each other for a holder


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What systems say that have no fsync for such a file or folder (fsync(2))."""
_HIDDEN = re.compile(r"\.dreambooth-(?P<kind>partial|old|deleted)-[0-9a-f]{8}-(?P<final>.+)", re.DOTALL)
_ABANDONED = 86400.0  # seconds without a change after which what can't be locked is nobody's


# -------------------------------------------------------------------------------------------------- named by people


def named_path(text: str | Path, where: str) -> Path:
    """The path that somebody gave under `where`, an option, a variable or a key; `~` is the home folder.

    Every such path comes through here, for no shell expands `--out=~/a`, nor a variable's `~` in Docker's files.
    Raises `ConfigError` where it is empty or none.
    """
    text = str(text)
    if not text.strip():
        raise ConfigError(f"{where} is empty.", "Give a path, or leave it out.")
    try:
        if "\0" in text:
            raise RuntimeError("it holds a null byte")
        return Path(text).expanduser()
    except RuntimeError as error:  # the home of an unknown user
        raise ConfigError(f"{where} = {text!r} is not a path ({first_line(error)}).", "Give a folder.") from None


def variable_path(variable: str, default: str | Path) -> Path:
    """The path in an environment variable, of which an empty one counts as unset. Raises as `named_path` does."""
    return named_path(os.environ.get(variable, "").strip() or default, variable)


def cache_home() -> Path:
    """What is made once for all runs is kept in $DREAMBOOTH_CACHE, else in `dreambooth` in the user's cache folder."""
    return variable_path("DREAMBOOTH_CACHE", variable_path("XDG_CACHE_HOME", "~/.cache") / "dreambooth")


def runs_root() -> Path:
    """Where runs are kept unless said otherwise: $DREAMBOOTH_RUNS, else `runs` in the current folder."""
    return variable_path("DREAMBOOTH_RUNS", "runs")


def setting_of(path: str | Path) -> str:
    """The environment variable that leads to where `path` is; empty where none does."""
    hub = "HF_HUB_CACHE" if os.environ.get("HF_HUB_CACHE", "").strip() else "HF_HOME"
    roots: dict[str, Path | str] = {
        "DREAMBOOTH_CACHE": cache_home(),
        "DREAMBOOTH_RUNS": runs_root(),
        hub: variable_path(hub, variable_path("XDG_CACHE_HOME", "~/.cache") / "huggingface"),
        "GRADIO_TEMP_DIR": os.environ.get("GRADIO_TEMP_DIR", "").strip(),
    }
    wanted = Path(os.path.abspath(path))
    leading = {name: Path(os.path.abspath(root)) for name, root in roots.items() if str(root)}
    leading = {name: root for name, root in leading.items() if wanted.is_relative_to(root)}
    return max(leading, key=lambda name: len(leading[name].parts), default="")


def check_writable(folder: Path, setting: str) -> None:
    """Raise `ConfigError` where nothing could be written into `folder`, to which `setting` leads; nothing is made."""
    above = Path(os.path.abspath(folder))
    while not os.path.exists(above) and above != above.parent:
        above = above.parent
    if not above.is_dir():
        why = f"{above} is a file"
    elif not os.access(above, os.W_OK | os.X_OK):
        why = f"you may not write into {above}"
    else:
        return
    raise ConfigError(f"{folder} can't be written: {why}.", f"Give another folder ({setting}).")


def disk_trouble(error: Exception) -> tuple[str, str]:
    """What is wrong with a file or the disk, and what to do about it, for an error of the system or of a library that
    met it."""
    said = " ".join(str(error).split())
    number, path = getattr(error, "errno", None), getattr(error, "filename", None)
    path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    # safetensors and shutil.copytree give the system's words but not its number
    number = number or next((code for code in (*NO_SPACE, *_HINTS) if os.strerror(code) in said), None)
    setting = setting_of(path) if path else ""
    elsewhere = f"choose another folder ({setting})" if setting else "choose another folder"
    if number in NO_SPACE:
        where, other = (f" ({path})", f", or {elsewhere}") if path else ("", "")
        return f"The disk is full{where}.", f"Free some space{other}"
    if number is None:  # a library's own words for what a file holds
        return f"A file is damaged or of another kind: {said}.", "Put a whole one in its place, or remove it"
    if number in (errno.ENOTDIR, errno.EEXIST) and (blocking := _file_above(path)):
        return f"{path} can't be read or written: {blocking} is a file.", f"Move it away, or {elsewhere}"
    reason = getattr(error, "strerror", None) or os.strerror(number)
    hint = _HINTS.get(number, "See what is there, or {elsewhere}").format(elsewhere=elsewhere)
    return f"{path or 'A file'} can't be read or written ({reason}).", hint


_HINTS = {
    errno.EACCES: "Get the right to it, or {elsewhere}",
    errno.EPERM: "Get the right to it, or {elsewhere}",
    errno.EROFS: "It is on a disk that is read alone: {elsewhere}",
    errno.ENOENT: "Put back what is missing there, or {elsewhere}",
    errno.ENAMETOOLONG: "Give a shorter name",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n 4096`)",
    errno.ENFILE: "Close other programs, which hold all files open that the machine allows",
    errno.EIO: "The disk fails: {elsewhere} on another one",
    errno.EISDIR: "A folder is where a file belongs: move it away",
}
"""What helps, by the system's error."""


def _file_above(path: str) -> str:
    """The file that is where a folder of the path should be; empty where there is none."""
    return next((str(part) for part in (Path(path), *Path(path).parents) if part.is_file()), "")


# --------------------------------------------------------------------------------------------------- whole or not there


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A new empty folder to fill, which becomes `final` (replacing it) if the block ends well and vanishes if not.

    Whoever sees it under its name sees it whole, and so does who looks after a power cut.
    """
    with _temporary(final, Path.mkdir, 0o755) as partial:
        yield partial
        sync_all(partial)
        if final.exists():  # a folder can't be renamed over a full one
            old = hidden_name(final, "old")
            with contextlib.ExitStack() as held:
                with contextlib.suppress(BlockingIOError):  # another thread has just put it there
                    held.enter_context(_locked(final))
                os.replace(final, old)
                os.replace(partial, final)
            sync(final.parent)
            shutil.rmtree(old)
        else:
            os.replace(partial, final)
            sync(final.parent)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """A path to write to, which becomes `final` (replacing it) if the block ends well and vanishes if not.

    It keeps `final`'s suffix, since Pillow and others choose the format by it. As lasting as a folder is.
    """
    with _temporary(final, Path.touch, 0o644) as partial:
        yield partial
        sync(partial)
        os.replace(partial, final)
        sync(final.parent)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new empty folder in `parent` that vanishes at the end of the block, or when the next process finds it."""
    with _temporary(parent / "scratch", Path.mkdir, 0o700) as folder:
        yield folder


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, as lasting as what will be written into it."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync(made.parent)


def sync(path: Path) -> None:
    """Wait until the disk has a file's bytes, or a folder's names: before that a power cut may take them back.

    Where the system can't do that (folders on Windows, some network mounts) it is left to it. Raises `OSError` where
    the disk fails or is full.
    """
    if os.name == "nt" and path.is_dir():
        return
    try:
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except PermissionError:  # a folder that may be written to and not listed
        return
    try:
        sync_open(descriptor)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int) -> None:
    """`sync` of an open file."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync_all(folder: Path) -> None:
    """`sync` of all that is in a folder, and of itself; what it links to is another's."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            if not os.path.islink(path := Path(place, name)):
                sync(path)
        sync(Path(place))


# ------------------------------------------------------------------------------------- what a killed process leaves


def hidden_name(final: Path, kind: str) -> Path:
    """A name beside `final` for what is not whole yet (`partial`), to be replaced (`old`), or to be removed
    (`deleted`)."""
    return final.with_name(f".dreambooth-{kind}-{secrets.token_hex(4)}-{final.name}")


def clear_leftovers(folder: Path) -> None:
    """Remove what processes that are gone had half written into `folder`, or half removed from it.

    What a live one writes is locked by it, and the lock ends with the process. Where nothing can be locked (Windows,
    some network mounts) a leftover is what has not changed for a day. Files and folders of other names are let be.
    """
    for name in os.listdir(folder) if folder.is_dir() else ():
        known, path = _HIDDEN.fullmatch(name), folder / name
        if known and not path.is_symlink():
            with contextlib.suppress(OSError):  # somebody else's, or removed at this moment
                _clear(path, known["kind"], folder / known["final"])


def _clear(path: Path, kind: str, final: Path) -> None:
    with _locked(path) as lock:
        if lock is None and kind != "deleted" and time.time() - _last_change(path) < _ABANDONED:
            return
        if kind == "old" and not final.exists():  # killed between the two renames of `atomic_folder`
            os.replace(path, final)
            sync(final.parent)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _last_change(path: Path) -> float:
    return max(os.lstat(one).st_mtime for one in (path, *path.rglob("*")))


@functools.lru_cache(maxsize=10_000)
def _clear_once(folder: str) -> None:
    """`clear_leftovers`, once a process: a folder may hold thousands of pictures, each written by itself."""
    clear_leftovers(Path(folder))


@contextmanager
def _temporary(final: Path, make: Callable[[Path], None], mode: int) -> Iterator[Path]:
    """A hidden file or folder beside `final`, which vanishes at the end of the block if it still has its name then."""
    make_folder(final.parent)
    _clear_once(os.path.abspath(final.parent))
    with contextlib.ExitStack() as held:
        while True:
            partial = hidden_name(final, "partial")
            make(partial)
            with contextlib.suppress(FileNotFoundError, BlockingIOError):  # cleared before it was locked
                held.enter_context(_locked(partial))
                if partial.exists():
                    break
        partial.chmod(mode)
        try:
            yield partial
        finally:
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Tell other processes that this one is at work on `path`; gives None where that can't be told.

    Raises `BlockingIOError` where another is, and `FileNotFoundError`.
    """
    descriptor = None
    try:
        if fcntl is not None:
            with contextlib.suppress(PermissionError):
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # a network mount without locks of folders, say
                os.close(descriptor)
                descriptor = None
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


# ------------------------------------------------------------------------------------------------- texts, names, locks


def read_text(path: Path) -> str:
    """A text that a person saved, without its byte order mark and with plain line ends: UTF-8, or UTF-16 and UTF-32 by
    their marks.

    Any other encoding is a guess, so it is refused. Raises `OSError`, and `ValueError` with the line and what to do.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not {encoding.upper()} text; save the file as UTF-8") from None
    if "\0" in text:  # UTF-16 without its mark is UTF-8 with zeros
        raise ValueError("it holds zero bytes, so it is no UTF-8 text; save the file as UTF-8")
    return text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")  # joined files have marks inside, too


def copy_or_link(source: str, target: str) -> str:
    """Copy a file for `shutil.copytree`, or give weights that lie in the Hub's cache a second name there.

    That costs no disk; the cache's files are named by their contents and never written again. Where the system can't
    do it, say across disks, they are copied.
    """
    real = Path(source).resolve()
    if real.parent.name == "blobs" and Path(source).suffix in (".safetensors", ".bin"):
        with contextlib.suppress(OSError):
            os.link(real, target)
            return target
    return shutil.copy2(source, target)


def refuse_taken(path: Path) -> None:
    """Raise `ConfigError` where a file, or a folder that is not empty, is at `path`: what is asked for writes over
    nothing."""
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(f"{path} is there already and not empty.", "Give another name (--out).")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is there already.", "Give another name (--out).")


def is_held(lock: Path) -> bool:
    """Whether a thread or process holds the file lock `lock`; a dead one holds none."""
    if not lock.exists():  # to look would make it, and the folder it is in
        return False
    probe = FileLock(lock)
    with _PROBING:
        try:
            probe.acquire(timeout=0)
        except Timeout:
            return True
        probe.release()
    return False


def shown_size(size: float) -> str:
    """Bytes in words: 3.2 kB, 45.1 MB, 512 MB."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:.{0 if size >= 100 * unit else 1}f} {name}"
