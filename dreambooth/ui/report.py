"""A run's events, summed up for people: where it stands, how fast it goes, its curves, pictures and warnings."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import OrderedDict, deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth import events
from dreambooth.config.sections import LEARNS_WORD
from dreambooth.config.settings import Config
from dreambooth.errors import RunError
from dreambooth.methods import get_method
from dreambooth.metrics.measures import Measures, read_measures
from dreambooth.metrics.metrics import METRICS
from dreambooth.rehearsal import gib
from dreambooth.runs.directory import Run, Status

STAGES = {
    "prepare": "Checking photos and memory",
    "load model": "Loading the base model",
    "class images": "Drawing class images",
    "encode": "Encoding pictures",
    "train": "Training",
    "save": "Saving the model",
}
ENDINGS = {
    "queued": "Waiting for its turn.",
    "finished": "The model is ready: make pictures with it.",
    "cancelled": "Stopped. Resume goes on from the step it reached.",
    "interrupted": "Cut off when the program ended. Resume goes on from the last checkpoint.",
}
SPEED_OF = 20
"""Steps whose mean speed is told."""
KEPT = 64
"""Runs whose digests are remembered: what is looked at at one time; each takes 16 bytes a step."""


@dataclass(frozen=True)
class Report:
    """What a run's directory says at one moment."""

    config: Config
    status: Status
    stage: str
    done: int
    total: int
    per_second: float | None
    """Steps, or class images, a second in this stage."""
    losses: np.ndarray
    """(3, steps) float32: instance and prior loss of each step and its drift penalty, without the weight; NaN where
    there is none."""
    pictures: tuple[events.Image, ...]
    measures: Measures | None
    """What the sample pictures say; None where nothing was measured."""
    warnings: tuple[str, ...]
    failure: str
    peak_bytes: float | None
    """Measured; known at the end."""
    seconds: float | None
    """How long the last part of it took; known at the end."""
    began: float
    """When it was queued first, in seconds since the epoch."""
    size: int
    """Bytes of events that this sums up."""

    @property
    def name(self) -> str:
        """What the page calls the run."""
        return title_of(self.config)

    @property
    def facts(self) -> str:
        """The settings that were chosen, in words."""
        config = self.config
        method, adapter = get_method(config.method).title, config.method != "full"
        kept = [f"{config.prior.num_images} class images"] if config.prior.active else []
        kept += [] if kept or config.method == "textual_inversion" else ["no PPL"]  # it has nothing that could drift
        kept += [f"drift penalty {config.drift.weight:g}"] if config.drift.weight else []
        frozen = not (config.train.text_encoder or config.method in LEARNS_WORD)
        parts = [
            *([method] if adapter else []),
            f"{counted(config.train.steps, 'step')} at {config.train.learning_rate:g}",
            *kept,
            *(["text encoder frozen"] if frozen else []),
            Path(config.base_model).name,
        ]
        return " · ".join(parts)

    @property
    def measured(self) -> int:
        """At how many steps its sample pictures were measured."""
        return len(self.measures.measures) if self.measures else 0

    @property
    def moving(self) -> bool:
        """Whether it waits or trains."""
        return self.status in ("queued", "running")

    @property
    def resumable(self) -> bool:
        """Whether it ended early."""
        return self.status in ("interrupted", "failed", "cancelled")

    @property
    def seconds_left(self) -> float | None:
        """Until this stage is done, at its present speed."""
        return (self.total - self.done) / self.per_second if self.per_second and self.status == "running" else None

    @property
    def text(self) -> str:
        """Where it stands, in a sentence."""
        if self.failure:
            said = self.failure.replace("go on with --resume", "choose Resume")  # the command line's words
            return re.sub(r"/(?:[^\s/'\"]+/)+", "…/", said)  # where the server keeps its files is nobody's business
        if self.status == "finished" and self.seconds and self.peak_bytes:
            took = f"It took {duration(self.seconds)} and {gib(self.peak_bytes)} of memory at most."
            steps, asked = self.losses.shape[1], self.config
            early = bool(asked.evaluation.patience) and steps < asked.train.steps
            why = f" It ended at step {steps}, as no later one had been better." if early else ""
            return f"{ENDINGS['finished']}{why} {took}"
        if self.status != "running":
            return ENDINGS[self.status]
        parts = [STAGES.get(self.stage, self.stage)]
        if self.total:
            parts.append(f"{'step' if self.stage == 'train' else 'picture'} {self.done} of {self.total}")
        if self.per_second and self.seconds_left is not None:
            speed = f"{self.per_second:.1f}" if self.per_second >= 1 else f"{self.per_second:.2g}"
            parts.append(f"{speed} a second")
            parts.append(f"{duration(self.seconds_left)} left")
        return " · ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """For API callers."""
        last = self.losses[:, -1] if self.losses.size else (math.nan, math.nan, math.nan)
        measures = self.measures
        instance, prior, drift = (float(value) if math.isfinite(value) else None for value in last)
        return {
            "title": self.name,
            "settings": self.facts,
            "status": self.status,
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "text": self.text,
            "per_second": self.per_second,
            "seconds_left": self.seconds_left,
            "warnings": list(self.warnings),
            "instance_loss": instance,
            "prior_loss": prior,
            "drift": drift,
            "sample_pictures": len(self.pictures),
            "best_step": measures.best or None if measures else None,
            "dino_of_photos": measures.ceiling if measures else None,
            "measures": [asdict(measure) for measure in measures.measures] if measures else [],
            "encoders": measures.encoders if measures else {},
        }


class Digest:
    """What a run's events come to so far; each look reads only what was appended since the last one."""

    def __init__(self, run: Run):
        self.run = run
        self._config = run.config
        self._lock = threading.Lock()  # several pages may look at once
        self._report: Report | None = None
        self._read = 0  # bytes
        self._began: float | None = None
        self._last: events.Event | None = None
        self._losses = np.full((3, 1024), math.nan, np.float32)
        self._step = 0  # the highest
        self._pictures: dict[str, events.Image] = {}
        self._warnings: dict[str, None] = {}
        self._metrics: dict[str, float] = {}
        self._measures: Measures | None = None
        self._measured = False  # something since the last look
        self._damage = ""
        self._lost = 0  # lines
        self._enter(events.Stage("prepare"))

    def report(self) -> Report:
        """Where the run stands; the same object while nothing was appended."""
        with self._lock:
            path = self.run.path / "events.jsonl"
            size = path.stat().st_size if path.exists() else 0
            if self._report and size == self._read:
                return self._report
            if size > self._read:
                with path.open("rb") as file:
                    file.seek(self._read)
                    whole = file.read().rpartition(b"\n")[0]  # a line still being written is left for the next look
                new, lost = events.from_lines(whole.split(b"\n") if whole else ())
                for event in new:
                    self._take(event)
                self._lost += lost
                self._read += len(whole) + 1 if whole else 0
            self._report = self._sum_up()
            return self._report

    def _enter(self, stage: events.Stage) -> None:
        self._stage, self._done = stage, 0
        self._seconds: deque[float] = deque(maxlen=SPEED_OF)
        self._drawn: list[events.Progress] = []  # the first and the last

    def _take(self, event: events.Event) -> None:
        self._last = event
        if self._began is None:
            self._began = event.time
        match event:
            case events.Stage():
                self._enter(event)
            case events.Step():
                self._keep_losses(event)
                self._done = event.step
                self._seconds.append(event.seconds)
            case events.Progress():
                self._done = event.done
                self._drawn = [*self._drawn[:1], event]
            case events.Image():
                self._pictures[event.path] = event
            case events.Warning():
                self._warnings[event.message] = None
            case events.Metric():
                self._metrics[event.name] = event.value
                self._measured |= event.name in METRICS

    def _keep_losses(self, event: events.Step) -> None:
        """Steps repeated after a crash count once, as they went the last time."""
        if event.step > self._losses.shape[1]:
            self._losses = np.pad(self._losses, ((0, 0), (0, event.step)), constant_values=math.nan)
        prior, drift = (math.nan if value is None else value for value in (event.prior_loss, event.drift))
        self._losses[:, event.step - 1] = event.instance_loss, prior, drift
        self._step = max(self._step, event.step)

    def _per_second(self) -> float | None:
        """Steps a second by the clock of the last steps alone, else pictures a second of the stage."""
        if self._seconds:
            return len(self._seconds) / max(sum(self._seconds), 1e-6)
        if len(self._drawn) == 2:
            first, last = self._drawn
            return (last.done - first.done) / max(last.time - first.time, 1e-6) or None
        return None

    def _look_at_measures(self) -> None:
        """They are in a file of their own, written before the events that tell of them."""
        self._measured, self._damage = False, ""
        try:
            self._measures = read_measures(self.run.path)
        except RunError as error:
            self._measures, self._damage = None, str(error)

    def _sum_up(self) -> Report:
        last = self._last
        if self._measured:
            self._look_at_measures()
        return Report(
            config=self._config,
            status=self.run.status,
            stage=self._stage.name,
            done=self._done,
            total=self._stage.total,
            per_second=self._per_second(),
            losses=self._losses[:, : self._step].copy(),
            pictures=tuple(self._pictures.values()),
            measures=self._measures,
            warnings=(*self._warnings, *filter(None, [events.lost(self._lost), self._damage])),
            failure=f"{last.message} {last.hint}".strip() if isinstance(last, events.Failed) else "",
            peak_bytes=self._metrics.get("peak_memory_bytes"),
            seconds=last.seconds if isinstance(last, events.Finished) else None,
            began=self._began or time.time(),
            size=self._read,
        )


class Digests:
    """The digests of the runs that were looked at last."""

    def __init__(self) -> None:
        self._digests: OrderedDict[Path, Digest] = OrderedDict()
        self._lock = threading.Lock()

    def report(self, run: Run) -> Report:
        """Where the run stands, at the cost of what is new."""
        with self._lock:
            digest = self._digests.pop(run.path, None) or Digest(run)
            self._digests[run.path] = digest
            while len(self._digests) > KEPT:
                self._digests.popitem(last=False)
        return digest.report()


def title_of(config: Config) -> str:
    """What the page calls a run: its subjects."""
    return " and ".join(subject.fill("{identifier} {class_noun}") for subject in config.subjects)


def counted(number: int, what: str) -> str:
    """A number of things in words: 1 step, 2 steps."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds in words: 2 min 5 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
