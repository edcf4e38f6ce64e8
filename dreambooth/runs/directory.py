"""The run directory, and a run that executes here, step by step.

Everything anyone needs to know about a run is in its directory, even that it waits; nothing is kept elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import read_yaml
from dreambooth.errors import ConfigError, DreamBoothError, PhotoError, RunError
from dreambooth.events import Event
from dreambooth.families.words import learned_word, read_words
from dreambooth.files import (
    PATIENCE,
    atomic_file,
    clear_leftovers,
    disk_trouble,
    hidden_name,
    is_held,
    make_folder,
    runs_root,
    sync,
    sync_open,
)
from dreambooth.machine import memory_promised, resolve_device
from dreambooth.models.adapters import is_model
from dreambooth.models.fetch import fingerprint
from dreambooth.photos.captions import sources_of
from dreambooth.photos.folder import join_names
from dreambooth.training.examples import SOURCES
from dreambooth.training.train import train

_TAIL = 4096  # bytes: holds the last line of nearly every run's events

Status = Literal["queued", "running", "interrupted", "finished", "failed", "cancelled"]


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
            make_folder(path)
            clear_leftovers(path.parent)
            with atomic_file(path / "config.yaml") as partial:
                partial.write_text(config.to_yaml(), encoding="utf-8")
        except OSError as error:
            message, hint = disk_trouble(error)
            raise RunError(message, f"{hint}.") from None
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
        """What was asked; raises `ConfigError` where the file is damaged, or of another version."""
        path = self.path / "config.yaml"
        return _read_config(path, path.stat().st_mtime_ns if path.exists() else 0)

    def require(self, config: Config, remedy: str, *, same_photos: bool = True) -> None:
        """Raise `ConfigError` where it can't go on as `config` says, which names what differs; `remedy` is the hint.

        Until it is finished a run takes more steps than it began with, at a constant learning rate; and its folders may
        lie elsewhere. With `same_photos` what is in them must be what the run has copied.
        """
        theirs, ours = _flat(self.config.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
        before, after = self.config.train.steps, config.train.steps
        differing = self.differences(config)
        if differing == ["train.steps"] and before < after:
            if self.status == "finished":
                raise ConfigError(
                    f"{self.path} is finished with train.steps {before}, and keeps no checkpoint to go on from.",
                    f"For {after} steps train anew in another folder (--run-dir; of a study --out).",
                )
            if config.train.lr_schedule == "constant":
                differing = []
            else:
                remedy = f"A {config.train.lr_schedule} learning rate is made for its number of steps. {remedy}"
        if differing:
            told = "; ".join(f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here" for key in differing)
            raise ConfigError(f"{self.path} was made with other settings: {told}.", remedy)
        if same_photos and (changed := self.changed(config)):
            raise ConfigError(f"{self.path} keeps what it began with, and since then {changed}.", remedy)

    def adopt(self, config: Config) -> None:
        """Keep the settings of `config`, which `require` lets pass, as its own."""
        if config != self.config:
            with atomic_file(self.path / "config.yaml") as partial:
                partial.write_text(config.to_yaml(), encoding="utf-8")

    def differences(self, config: Config) -> list[str]:
        """The keys whose settings are others than in `config`; a folder that lies elsewhere is the same if what is in
        it is, as far as that can be told."""
        theirs, ours = _flat(self.config.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
        differing = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
        return [key for key in differing if not self._moved(key, theirs.get(key), ours.get(key))]

    def _moved(self, key: str, theirs: object, ours: object) -> bool:
        """Whether a setting names a folder that lies elsewhere now."""
        if not (isinstance(theirs, str) and isinstance(ours, str) and os.path.isabs(theirs) and os.path.isabs(ours)):
            return False
        old, new = Path(theirs), Path(ours)
        if key.endswith(".photos"):  # `changed` looks at what is in them
            return (self.path / "photos" / SOURCES).is_file() or not (self.path / "photos").is_dir()
        if key == "word.learned":
            return True
        if key not in ("base_model", "evaluation.dino", "evaluation.clip"):
            return False
        if old.exists():
            return key == "base_model" and is_model(old) and is_model(new) and fingerprint(old) == fingerprint(new)
        return old.name == new.name  # of a base model a checkpoint knows the fingerprint

    def changed(self, config: Config) -> str:
        """What of the photos, captions and learned words that `config` names is not what the run copied, in words.

        Empty where all is the same, or not there any more, and of a run that has copied nothing yet.
        """
        said = []
        with contextlib.suppress(OSError, ValueError):  # a run of an earlier version tells nothing of them
            began = json.loads((self.path / "photos" / SOURCES).read_text(encoding="utf-8"))
            for subject, kept in zip(config.subjects, began, strict=True):
                if not subject.photos.is_dir():
                    continue
                try:
                    now = sources_of(subject)
                except PhotoError as error:
                    said.append(f"its photos can't be used any more ({error.message.rstrip('.')})")
                    continue
                if sorted(now.values()) != sorted(kept.values()):  # a name alone changes nothing
                    names = sorted(name for name in now | kept if now.get(name) != kept.get(name))
                    said.append(f"photos or captions in {subject.photos} changed ({join_names(names)})")
        word = learned_word(config) if config.word.learned else None
        if word and word.is_dir() and (self.path / "word").is_dir():
            learned, own = read_words(word), read_words(self.path / "word")
            if any(name not in learned or not learned[name].equal(values) for name, values in own.items()):
                said.append(f"the word in {config.word.learned} was learned again")
        return " and ".join(said)

    def events(self) -> list[Event]:
        """Everything that happened so far, oldest first; a line still being written is left for the next look, and
        damaged ones are left out."""
        return self._read_events()[0]

    def _read_events(self) -> tuple[list[Event], int]:
        """`events`, and how many lines are damaged."""
        try:
            written = (self.path / "events.jsonl").read_bytes()
        except FileNotFoundError:
            return [], 0
        # Bytes: a half-written line may end inside a letter, and a text's lines would also end at U+2028 in a prompt.
        return events.from_lines(written.split(b"\n")[:-1])

    def last_event(self) -> Event | None:
        """The newest event whose line is whole, at the cost of the file's last lines alone."""
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                begin = end = file.seek(0, os.SEEK_END)
                size = _TAIL
                while begin:
                    begin, size = max(0, end - size), 4 * size
                    file.seek(begin)
                    lines = file.read(end - begin).split(b"\n")[:-1]
                    for line in reversed(lines[1:] if begin else lines):
                        with contextlib.suppress(RunError):
                            return events.from_json(line)
        except FileNotFoundError:
            pass
        return None

    def append(self, event: Event) -> None:
        """Add one event, in the place of the half line that a killed process may have left.

        All but the next step or piece of progress waits until the disk has it, and what stands before it.
        """
        with (self.path / "events.jsonl").open("ab+") as file:
            if begun := file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    begun = file.truncate(file.read().rfind(b"\n") + 1)
            file.write(event.to_json().encode() + b"\n")
            if not isinstance(event, events.Step | events.Progress):
                file.flush()
                sync_open(file.fileno())
        if not begun:
            sync(self.path)

    @property
    def began(self) -> float:
        """When it was asked for, in seconds since the epoch: the time of its first event, else of its settings."""
        with contextlib.suppress(FileNotFoundError), (self.path / "events.jsonl").open("rb") as file:
            for line in file:
                with contextlib.suppress(RunError):
                    return events.from_json(line).time
        return (self.path / "config.yaml").stat().st_mtime

    @property
    def status(self) -> Status:
        """Where the run stands; `interrupted` is one that began, did not end, and whose process is gone."""
        ended: dict[type[Event | None], Status] = {
            events.Finished: "finished",
            events.Failed: "failed",
            events.Cancelled: "cancelled",
        }
        while True:
            last = self.last_event()
            if isinstance(last, events.RunQueued):
                return "queued"
            if type(last) in ended:
                return ended[type(last)]
            if is_held(self._lock):
                return "running"
            now = self.last_event()
            if (last and last.to_json()) == (now and now.to_json()):  # else it ended between the two looks
                return "interrupted" if last or self._has_happened else "queued"

    @property
    def _has_happened(self) -> bool:
        """Whether there is a line, be it damaged."""
        file = self.path / "events.jsonl"
        return file.exists() and b"\n" in file.read_bytes()

    @property
    def moving(self) -> bool:
        """Whether it waits or trains."""
        return self.status in ("queued", "running")

    @property
    def published(self) -> bool:
        """Whether its model was given to the Hub: publishing leaves `published.json`, and such a run is kept."""
        return (self.path / "published.json").is_file()

    @property
    def size(self) -> int:
        """Bytes of its files, without the shared class images that it points to."""
        total = 0
        for folder, _, files in os.walk(self.path):
            for name in files:
                with contextlib.suppress(FileNotFoundError):  # it may be training
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def delete(self) -> None:
        """Remove the directory, at once for whoever looks; raises `RunError` while it waits or trains."""
        if self.path.exists() and self.moving:
            raise RunError("This run waits or trains.", "Stop it before you delete it.")
        aside = hidden_name(self.path, "deleted")
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            os.replace(self.path, aside)
            sync(self.path.parent)
        shutil.rmtree(aside, ignore_errors=True)

    def execute(self, *, resume: bool = False, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train, writing each event to `events.jsonl` before yielding it; a failure is written, then raised.

        Raises `RunError` while another process or thread trains this run.
        """
        with self._held():
            yield from self._train(resume, should_stop)

    def _train(self, resume: bool, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """`execute`, for who holds the lock."""
        promised = contextlib.ExitStack()
        try:
            self._drop_leftovers()
            if said := events.lost(self._read_events()[1]):
                yield events.Warning(said)
            if resume and (changed := self.changed(self.config)):
                warning = events.Warning(f"This run goes on with the photos it began with; since then {changed}.")
                self.append(warning)
                yield warning
            for event in train(self.config, self.path, resume=resume, should_stop=should_stop):
                self.append(event)
                match event:
                    case events.Metric("estimated_peak_memory_bytes", size):  # what else is opened leaves room for it
                        promised.enter_context(memory_promised(resolve_device(self.config.device), round(size)))
                yield event
        except DreamBoothError as error:
            self._record_failure(error)
            raise
        except Exception as error:
            if failure := explain(error):
                self._record_failure(failure)
                raise failure from error
            self._record_failure(RunError(f"{type(error).__name__}: {error}", "Please report this; it is a bug."))
            raise
        finally:
            promised.close()

    def _record_failure(self, error: DreamBoothError) -> None:
        with contextlib.suppress(OSError):  # a full or lost disk is the failure being raised
            self.append(events.Failed(type(error).__name__, error.message, error.hint))

    def _drop_leftovers(self) -> None:
        """Remove what a killed process had half written: a checkpoint may be gigabytes."""
        for folder, _, _ in os.walk(self.path):
            clear_leftovers(Path(folder))

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Nobody else trains this run meanwhile; raises `RunError` where somebody does."""
        lock = FileLock(self._lock)  # the system lets go of it when the process dies, however it dies
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise RunError(
                f"{self.id} is being trained by another process.", "Wait for it, or stop it there."
            ) from None
        try:
            yield
        finally:
            lock.release()

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested settings by their dotted keys."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):  # more_subjects
            value = {str(number): one for number, one in enumerate(value)}
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return flat


@functools.lru_cache(maxsize=1000)
def _read_config(path: Path, _changed: int) -> Config:
    """A list of runs is shown again and again, and to read YAML takes milliseconds."""
    return Config.from_record(read_yaml(path), source=str(path))


def explain(error: Exception) -> RunError | None:
    """What the machine lacked, in plain words; None for a failure that is not the machine's."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError | SafetensorError):
        message, hint = disk_trouble(error)
        return RunError(message, f"{hint}, then go on with --resume.")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return RunError(
            "The memory ran out.",
            "Lower train.batch_size or train.resolution, or set train.gradient_checkpointing to true.",
        )
    return None


def list_runs(root: Path) -> list[Run]:
    """The runs in `root`, newest first."""
    made: list[tuple[int, Path]] = []
    for path in root.glob("[!.]*"):  # hidden: half made, or being deleted
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            made.append(((path / "config.yaml").stat().st_mtime_ns, path))
    return [Run(path) for _, path in sorted(made, reverse=True)]
