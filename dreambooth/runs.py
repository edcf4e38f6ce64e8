"""The run directory, and where runs execute: here, step by step, or in a worker thread with a queue.

Everything anyone needs to know about a run is in its directory; nothing about it is kept elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from dreambooth import events
from dreambooth.config import Config, read_yaml
from dreambooth.errors import ConfigError, DreamBoothError, RunError
from dreambooth.events import Event
from dreambooth.files import atomic_file
from dreambooth.train import train

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

Status = Literal["queued", "running", "interrupted", "finished", "failed", "cancelled"]


def runs_root() -> Path:
    """Where runs are kept unless said otherwise: $DREAMBOOTH_RUNS, else `runs` in the current folder."""
    return Path(os.environ.get("DREAMBOOTH_RUNS", "runs"))


@dataclass(frozen=True)
class Run:
    """One run's directory."""

    path: Path

    @classmethod
    def create(cls, config: Config, path: Path | None = None) -> Run:
        """Make a new run directory (by default under `runs_root`) with its `config.yaml`.

        Raises `ConfigError` if `path` is there and not empty, `RunError` if it can't be made.
        """
        if path is None:
            words = re.sub(
                r"[^a-z0-9]+", "-", f"{config.subject.identifier} {config.subject.class_noun}".lower()
            ).strip("-")
            path = runs_root() / f"{time.strftime('%Y%m%d-%H%M%S')}-{words[:40]}-{secrets.token_hex(3)}"
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ConfigError(
                    f"{path} is there already and not empty.", "Choose another --run-dir, or go on with --resume."
                )
            path.mkdir(parents=True, exist_ok=True)
            with atomic_file(path / "config.yaml") as partial:
                partial.write_text(config.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"{path} can't be written ({error.strerror}).", "Choose a folder you may write to."
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run directory; raises `RunError` if it is none."""
        if not (path / "config.yaml").is_file():
            raise RunError(f"{path} is not a run: no config.yaml in it.", "Give the directory that `train` made.")
        return cls(path)

    @property
    def id(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def config(self) -> Config:
        """What was asked."""
        return Config.from_dict(read_yaml(self.path / "config.yaml"), source=str(self.path / "config.yaml"))

    def events(self) -> list[Event]:
        """Everything that happened so far, oldest first; a line still being written is left for the next look."""
        try:
            written = (self.path / "events.jsonl").read_bytes()
        except FileNotFoundError:
            return []
        # Bytes: a half-written line may end inside a letter, and a text's lines would also end at U+2028 in a prompt.
        return [events.from_json(line.decode()) for line in written.split(b"\n")[:-1]]

    def append(self, event: Event) -> None:
        """Add one event and flush it."""
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(event.to_json() + "\n")

    @property
    def status(self) -> Status:
        """Where the run stands; `interrupted` is one that began, did not end, and whose process is gone."""
        history = self.events()
        if not history or isinstance(history[-1], events.RunQueued):
            return "queued"
        ended = {events.Finished: "finished", events.Failed: "failed", events.Cancelled: "cancelled"}
        if type(history[-1]) in ended:
            return ended[type(history[-1])]
        return "running" if self._is_locked() else "interrupted"

    def execute(self, *, resume: bool = False, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train, writing each event to `events.jsonl` before yielding it; a failure is written, then raised.

        Raises `RunError` while another process or thread trains this run.
        """
        lock = self._lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{self.id} is being trained by another process.", "Wait for it, or stop it there."
            ) from None
        try:
            self._drop_torn_line()
            for event in train(self.config, self.path, resume=resume, should_stop=should_stop):
                self.append(event)
                yield event
        except DreamBoothError as error:
            self._record_failure(error)
            raise
        except Exception as error:
            if failure := _explain(error):
                self._record_failure(failure)
                raise failure from error
            self._record_failure(RunError(f"{type(error).__name__}: {error}", "Please report this; it is a bug."))
            raise
        finally:
            lock.release()

    def _record_failure(self, error: DreamBoothError) -> None:
        with contextlib.suppress(OSError):  # a full or lost disk is the failure being raised
            self._drop_torn_line()
            self.append(events.Failed(type(error).__name__, error.message, error.hint))

    def _drop_torn_line(self) -> None:
        """Cut off the half line that a killed process may have left."""
        path = self.path / "events.jsonl"
        if path.exists():
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def _lock(self) -> FileLock:
        return FileLock(self.path / ".lock")  # the system lets go of it when the process dies, however it dies

    def _is_locked(self) -> bool:
        lock = self._lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False


def _explain(error: Exception) -> RunError | None:
    """What the machine lacked, in plain words; None for a failure that is not the machine's."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError | SafetensorError):
        # safetensors and shutil.copytree give the system's words but not its number
        if any(number == getattr(error, "errno", None) or os.strerror(number) in text for number in _NO_SPACE):
            return RunError("The disk is full.", "Free some space, then go on with --resume.")
        return RunError(
            f"A file can't be read or written: {text}.", "Check the folder's rights, then go on with --resume."
        )
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return RunError(
            "The memory ran out.",
            "Lower train.batch_size or train.resolution, or set train.gradient_checkpointing to true.",
        )
    return None


def list_runs(root: Path) -> list[Run]:
    """The runs in `root`, newest first."""
    folders = [path for path in root.glob("*") if (path / "config.yaml").is_file()]
    return [Run(path) for path in sorted(folders, key=lambda p: (p / "config.yaml").stat().st_mtime, reverse=True)]


class Worker:
    """One thread that trains queued runs, one at a time, apart from whoever asked for them."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Run, bool, threading.Event]] = queue.Queue()
        self._stops: list[tuple[Path, threading.Event]] = []  # of all that is queued or running
        threading.Thread(target=self._work, name="dreambooth-worker", daemon=True).start()

    def submit(self, run: Run, *, resume: bool = False) -> None:
        """Queue a run; its directory tells what becomes of it."""
        run.append(events.RunQueued())
        stop = threading.Event()
        self._stops.append((run.path, stop))
        self._queue.put((run, resume, stop))

    def stop(self, run: Run) -> None:
        """Ask a queued or running run to stop after its current step."""
        for path, stop in list(self._stops):
            if path == run.path:
                stop.set()

    def _work(self) -> None:
        while True:
            run, resume, stop = self._queue.get()
            try:
                if stop.is_set():
                    run.append(events.Cancelled(0))
                    continue
                for _ in run.execute(resume=resume, should_stop=stop.is_set):
                    pass
            except DreamBoothError:
                pass  # it stands in the run's events, where every reader looks
            except Exception:  # a bug in one run must not keep the next ones waiting for ever
                logging.getLogger(__name__).exception("Run %s failed unexpectedly.", run.id)
            finally:
                self._stops.remove((run.path, stop))
