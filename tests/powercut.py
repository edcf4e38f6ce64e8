"""What a disk may hold after a kill and after a power cut, at random moments of what a process does in one folder.

Everything this process opens, renames or removes below the folder is a moment. At some of them, drawn by a seed, what
is there is remembered, and with it what the disk is known to have: a file's bytes when it was last synced, a folder's
names when that was. A kill leaves what is there. A power cut leaves of each folder the names that are there or those
that were synced, and of each file that was written since it was synced what the dice say: the old bytes, none, half of
the new ones, or zeros. Writes that Python does not see (safetensors) count all the same, since bytes are compared.
"""

from __future__ import annotations

import os
import random
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

Names = dict[str, tuple[int, str | None]]
"""What is in a folder: by name a number for the file or folder, and where a link points to."""


@dataclass(frozen=True)
class Moment:
    """What was in a folder, and what the disk had of it."""

    root: int
    files: dict[int, bytes]
    folders: dict[int, Names]
    synced_files: dict[int, bytes]
    synced_folders: dict[int, Names]
    seen: object
    """What `look` gave."""

    def after_kill(self, folder: Path) -> Path:
        """Write what a killed process leaves."""
        return self._write(self.root, folder, lambda _: False, lambda new, _: new)

    def after_power_cut(self, folder: Path, dice: random.Random) -> Path:
        """Write what a power cut may leave."""

        def damaged(new: bytes | None, old: bytes | None) -> bytes:
            if new == old or new is None:  # it was synced, or removed and is back
                return old or b""
            kept = old if old is not None else b""
            zeros = bytes(max(0, len(new) - len(kept)))
            return dice.choice([kept, b"", new[: len(new) // 2], kept + zeros, bytes(len(new)), new])

        return self._write(self.root, folder, lambda _: dice.random() < 0.5, damaged)

    def _write(self, number: int, target: Path, old_names: Callable, content: Callable) -> Path:
        target.mkdir()
        synced = self.synced_folders.get(number, {})
        now = self.folders.get(number)
        for name, (inside, link) in (synced if now is None or old_names(number) else now).items():
            if link is not None:
                (target / name).symlink_to(link)
            elif inside in self.folders or inside in self.synced_folders:
                self._write(inside, target / name, old_names, content)
            else:
                (target / name).write_bytes(content(self.files.get(inside), self.synced_files.get(inside)))
        return target


class Disk:
    """Remembers `count` moments of what this process does below `root` while the `with` block lasts, and its end.

    What is there at the beginning is on the disk. `look` is called at each of the moments.
    """

    _current: Disk | None = None
    _hooked = False

    def __init__(self, root: Path, count: int, seed: int, look: Callable[[], object] = lambda: None):
        self.root, self.look, self.count = Path(os.path.realpath(root)), look, count
        self.moments: list[Moment] = []
        self.happened = 0
        self._dice = random.Random(seed)
        self._numbers: dict[int, int] = {}  # by inode, which a system gives again when a file is gone
        self._going: list[tuple[Path, int]] = []
        self._last = 0
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, Names] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Disk:
        for place, _, names in os.walk(self.root):
            self._sync(Path(place))
            for name in names:
                if not os.path.islink(path := Path(place, name)):
                    self._sync(path)
        if not Disk._hooked:
            sys.addaudithook(_hook)  # can't be taken off
            Disk._hooked = True
        self._fsync = os.fsync
        os.fsync = self._synced
        Disk._current = self
        return self

    def __exit__(self, *_: object) -> None:
        Disk._current, os.fsync = None, self._fsync
        self.moments.append(self._remember())

    def noticed(self, event: str, arguments: tuple) -> None:
        """What Python is about to do."""
        paths = [path for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
        at = next((number for number in arguments[1:] if isinstance(number, int) and number >= 0), None)
        paths = [self._absolute(path, at if event in ("os.remove", "os.rmdir") else None) for path in paths]
        if any(path == self.root or self.root in path.parents for path in paths):
            with self._lock:
                self._forget_what_is_gone()
                self._perhaps_remember()
                if event in ("os.remove", "os.rmdir", "os.rename"):  # the last one goes, or is written over
                    with suppress(FileNotFoundError):
                        going = os.lstat(paths[-1])
                        if stat.S_ISDIR(going.st_mode) or going.st_nlink == 1:
                            self._going.append((paths[-1], going.st_ino))

    def _forget_what_is_gone(self) -> None:
        going, self._going = self._going, []
        for path, inode in going:
            if os.path.lexists(path) and os.lstat(path).st_ino == inode:
                self._going.append((path, inode))
            else:
                self._numbers.pop(inode, None)

    def _absolute(self, path: str | bytes | os.PathLike, folder: int | None) -> Path:
        around = os.readlink(f"/proc/self/fd/{folder}") if folder is not None else os.getcwd()
        return Path(os.path.normpath(os.path.join(around, os.fsdecode(path))))

    def _synced(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path == self.root or self.root in path.parents:
            with self._lock, _unwatched(), suppress(FileNotFoundError):  # removed meanwhile
                self._perhaps_remember()
                self._sync(path)

    def _sync(self, path: Path) -> None:
        if path.is_dir():
            self._folders[self._number(path)] = self._names(path)
        else:
            self._files[self._number(path)] = path.read_bytes()

    def _number(self, path: str | Path) -> int:
        self._last += 1
        return self._numbers.setdefault(os.lstat(path).st_ino, self._last)

    def _names(self, folder: Path) -> Names:
        return {
            one.name: (self._number(one.path), os.readlink(one.path) if one.is_symlink() else None)
            for one in os.scandir(folder)
        }

    def _perhaps_remember(self) -> None:
        """Each of so many moments is as likely to be kept as any other (Vitter's algorithm R)."""
        self.happened += 1
        place = len(self.moments) if self.happened <= self.count else self._dice.randrange(self.happened)
        if place < self.count:
            moment = self._remember()
            self.moments[place : place + 1] = [moment]

    def _remember(self) -> Moment:
        while True:
            with suppress(FileNotFoundError):  # another thread moved it between two looks
                files, folders = {}, {}
                for place, _, names in os.walk(self.root):
                    folders[self._number(place)] = self._names(Path(place))
                    for name in names:
                        if not os.path.islink(path := Path(place, name)):
                            files[self._number(path)] = path.read_bytes()
                known = dict(self._files), dict(self._folders)
                return Moment(self._number(self.root), files, folders, *known, self.look())


_inside = threading.local()


@contextmanager
def _unwatched() -> Iterator[None]:
    """What is done to look at the folder is not looked at."""
    _inside.now = True
    try:
        yield
    finally:
        _inside.now = False


def _hook(event: str, arguments: tuple) -> None:
    disk = Disk._current
    watched = event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
    if disk is None or not watched or getattr(_inside, "now", False):
        return
    with _unwatched():
        disk.noticed(event, arguments)
