"""Files and folders that are whole or not there: written under a temporary name, then renamed. And locks of theirs."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dreambooth.errors import ConfigError

PATIENCE = 1.0
"""Seconds to wait for a file lock that is free: a look at it (`is_held`) is over by then."""

_PROBING = threading.Lock()  # two looks at once would take each other for a holder


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A new empty folder to fill, which becomes `final` (replacing it) if the block ends well and vanishes if not."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    partial.chmod(0o755)
    try:
        yield partial
        if final.exists():  # a folder can't be renamed over a full one
            old = partial.with_suffix(".old")
            os.replace(final, old)
            os.replace(partial, final)
            shutil.rmtree(old)
        else:
            os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """A path to write to, which becomes `final` (replacing it) if the block ends well and vanishes if not.

    It keeps `final`'s suffix, since Pillow and others choose the format by it.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{final.stem}.partial.", suffix=final.suffix, dir=final.parent)
    os.close(handle)
    partial = Path(name)
    partial.chmod(0o644)
    try:
        yield partial
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


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
