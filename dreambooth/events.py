"""Progress as a stream of records: frozen dataclasses, each one JSON line and back.

`train` yields them; whoever drives it appends them to the run's `events.jsonl`, and every reader (page, command line,
remote machine) reads the same lines.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from dreambooth.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened, `time` in seconds since the epoch."""

    time: float = field(default_factory=time.time)

    def to_json(self) -> str:
        """One line of JSON, `event` first; a number that is not finite becomes a string, since JSON has none."""
        values = {k: _plain(v) for k, v in dataclasses.asdict(self).items()}
        return json.dumps({"event": _NAMES[type(self)]} | values, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class RunQueued(Event):
    """The run waits for its turn; it takes about `seconds` in all, None where that is unknown."""

    seconds: float | None = None


@dataclass(frozen=True)
class Stage(Event):
    """A part of the run begins; `total` items of work, 0 where unknown."""

    name: str
    total: int = 0


@dataclass(frozen=True)
class Progress(Event):
    """`done` items of the stage are finished (training steps have their own event)."""

    done: int


@dataclass(frozen=True)
class Step(Event):
    """One optimiser step: losses are means over its examples, `seconds` is its wall time."""

    step: int
    loss: float
    instance_loss: float
    prior_loss: float | None
    lr: float
    """The denoiser's learning rate; of a word that is trained alone, the word's."""
    seconds: float
    drift: float | None = None
    """The squared distance of the trained weights from the base model's, where it is penalised."""
    text_lr: float | None = None
    """The text side's learning rate, where it is trained beside the denoiser."""


@dataclass(frozen=True)
class Image(Event):
    """A picture was written; `path` is relative to the run directory."""

    path: str
    prompt: str
    seed: int
    step: int


@dataclass(frozen=True)
class Checkpoint(Event):
    """A resumable checkpoint was written; `path` is relative to the run directory."""

    path: str
    step: int


@dataclass(frozen=True)
class Metric(Event):
    """A measured figure, such as peak memory in bytes."""

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class Warning(Event):
    """Advice in plain words; nothing stopped."""

    message: str


@dataclass(frozen=True)
class Finished(Event):
    """The model is saved and loads; `path` is relative to the run directory, `seconds` is this process's share."""

    path: str
    seconds: float


@dataclass(frozen=True)
class Failed(Event):
    """The run stopped with an error of `kind` (its class name)."""

    kind: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Cancelled(Event):
    """The run was stopped on request after `step` steps; it can be resumed."""

    step: int


@dataclass(frozen=True)
class Published(Event):
    """The model is on the Hub, whole, at `url`, as the commit with that hash; never in a run's `events.jsonl`."""

    url: str
    commit: str


_KINDS: dict[str, type[Event]] = {
    "run_queued": RunQueued,
    "stage": Stage,
    "progress": Progress,
    "step": Step,
    "image": Image,
    "checkpoint": Checkpoint,
    "metric": Metric,
    "warning": Warning,
    "finished": Finished,
    "failed": Failed,
    "cancelled": Cancelled,
    "published": Published,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


_TYPES = {"str": (str,), "int": (int,), "float": (int, float), "float | None": (int, float, type(None))}


def from_json(line: str | bytes) -> Event:
    """The event in one line of `events.jsonl`; raises `RunError` if it is none."""
    try:
        values = json.loads(line.decode() if isinstance(line, bytes) else line)
        kind = _KINDS[values.pop("event")]
        for field_ in dataclasses.fields(kind):
            if field_.type in ("float", "float | None") and isinstance(values.get(field_.name), str):
                values[field_.name] = float(values[field_.name])  # nan, inf or -inf, see `to_json`
            if field_.name in values and not isinstance(values[field_.name], _TYPES[str(field_.type)]):
                raise TypeError(f"{field_.name} is no {field_.type}")
        return kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"events.jsonl: not an event: {line[:200]!r} ({error}).") from None


def from_lines(lines: Iterable[bytes]) -> tuple[list[Event], int]:
    """The events in lines of `events.jsonl`, and how many lines are left out: what a power cut damaged, or a newer
    version wrote."""
    found, lost = [], 0
    for line in lines:
        try:
            found.append(from_json(line))
        except RunError:
            lost += 1
    return found, lost


def lost(lines: int) -> str:
    """What to say of so many lines that were left out; nothing of none."""
    what = "1 line of events.jsonl is" if lines == 1 else f"{lines} lines of events.jsonl are"
    return f"{what} damaged, or of a newer version, and left out." if lines else ""
