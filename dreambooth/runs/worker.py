"""The worker: threads that train queued runs, apart from whoever asked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth import events
from dreambooth.errors import DreamBoothError, RunError
from dreambooth.events import Event
from dreambooth.files import (
    clear_leftovers,
)
from dreambooth.runs.directory import Run, list_runs


@dataclass(eq=False)
class _Job:
    """A run that waits or trains in this process."""

    run: Run
    seconds: float | None
    """The estimate of the whole run."""
    stop: threading.Event = field(default_factory=threading.Event)
    began: float = 0.0
    steps: int = 0
    first: tuple[int, float] | None = None
    """The first step that was trained here, and when; by `time.monotonic`, as all times here."""
    last: tuple[int, float] | None = None

    def note(self, event: Event) -> None:
        """Take in what tells how long it will last."""
        match event:
            case events.Metric("estimated_seconds", seconds):
                self.seconds = seconds
            case events.Stage("train", steps):
                self.steps = steps
            case events.Step(step=step):
                self.last = (step, time.monotonic())
                self.first = self.first or self.last

    @property
    def seconds_left(self) -> float | None:
        """By its pace once it steps, sample pictures and all; before by the estimate, and None where there is none."""
        now, first, last = time.monotonic(), self.first, self.last
        if first and last and last[0] > first[0]:
            pace = (last[1] - first[1]) / (last[0] - first[0])
            return max(0.0, pace * (self.steps - last[0]) - (now - last[1]))
        return None if self.seconds is None else max(0.0, self.seconds - (now - self.began))


class Worker:
    """Threads that train the queued runs of `root`, in order, apart from whoever asked for them.

    The queue is what the directories say: a run whose last event is `RunQueued` waits. So whatever ends the process,
    the next worker goes on with them; the run that was being trained is interrupted, and can be submitted again.
    """

    def __init__(
        self,
        root: Path,
        parallel: int = 1,
        *,
        max_seconds: float | None = None,
        after_run: Callable[[Run], None] = lambda run: None,
    ):
        """Queue what waits in `root` and start `parallel` threads.

        A run is stopped after `max_seconds` of training at a time; `after_run` is called with each that ended.
        """
        self.after_run = after_run
        self._max_seconds = max_seconds
        self._changed = threading.Condition()  # guards what follows
        self._waiting: dict[Path, _Job] = {}
        self._running: list[_Job] = []
        self._closed = False
        self._parallel = parallel
        clear_leftovers(root)
        for run, queued in _queued_runs(root):
            self._waiting[run.path] = _Job(run, queued.seconds)
        for number in range(parallel):
            threading.Thread(target=self._work, name=f"dreambooth-worker-{number}", daemon=True).start()

    def submit(self, run: Run, seconds: float | None = None) -> None:
        """Queue a run, `seconds` long by estimate; it goes on from its newest checkpoint, where it has one.

        Nothing happens where it waits already; raises `RunError` while it trains.
        """
        with self._changed:
            if run.path in self._waiting:
                return
            last = run.last_event()
            if not isinstance(last, events.RunQueued):
                if run.status == "running":
                    raise RunError("This run is running.", "Only one that ended can be queued again.")
                last = events.RunQueued(seconds)
                run.append(last)
            self._waiting[run.path] = _Job(run, last.seconds)
            self._changed.notify()

    def stop(self, run: Run) -> None:
        """Take a waiting run out of the queue, or let a running one stop after its current step."""
        with self._changed:
            job = next((job for job in self._running if job.run.path == run.path), None)
            if job and run.path not in self._waiting:
                job.stop.set()
            elif run.status == "queued":  # here, or in another process, which looks again
                run.append(events.Cancelled(0))
                self._waiting.pop(run.path, None)
            elif run.status == "running":
                raise RunError("This run is being trained by another process.", "Stop it there.")

    def close(self, seconds: float) -> None:
        """Let the running ones stop after their current step, start no other, and wait for that, at most `seconds`.

        What waits, waits for the next worker.
        """
        with self._changed:
            self._closed = True
            for job in self._running:
                job.stop.set()
            self._changed.wait_for(lambda: not self._running, seconds)

    @property
    def waiting(self) -> int:
        """How many runs wait."""
        return len(self._waiting)

    def position(self, run: Run) -> int | None:
        """The run's place in the queue, 1 for the next to start; None where it does not wait."""
        with self._changed:
            return next((place for place, path in enumerate(self._waiting, 1) if path == run.path), None)

    def seconds_until_start(self, run: Run) -> float | None:
        """Until a thread has got to a waiting run; None where that can't be told."""
        with self._changed:
            ahead = list(self._waiting.values())
            left = [job.seconds_left for job in self._running]
        running = [seconds for seconds in left if seconds is not None]
        place = next((i for i, job in enumerate(ahead) if job.run.path == run.path), None)
        if place is None or len(running) < len(left) or not self._parallel:
            return None
        free = sorted([*running, *[0.0] * (self._parallel - len(running))])
        for job in ahead[:place]:
            if job.seconds is None:
                return None
            free = sorted([free[0] + job.seconds, *free[1:]])
        return free[0]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting and not self._closed)
                job = self._waiting.pop(next(iter(self._waiting)))
                job.began = time.monotonic()
                self._running.append(job)
            try:
                self._train(job)
            finally:
                with self._changed:
                    self._running.remove(job)
                    self._changed.notify_all()
            try:
                self.after_run(job.run)
            except Exception:
                logging.getLogger(__name__).exception("After run %s something failed.", job.run.id)

    def _train(self, job: _Job) -> None:
        run = job.run
        try:
            with run._held():
                if not isinstance(run.last_event(), events.RunQueued):
                    return  # another process trained it, or its visitor took it back there
                for event in run._train(resume=True, should_stop=job.stop.is_set):
                    job.note(event)
                    if not isinstance(event, events.Finished):
                        self._limit(job)
        except DreamBoothError:
            pass  # it stands in the run's events, where every reader looks
        except Exception:  # a bug in one run must not keep the next ones waiting for ever
            logging.getLogger(__name__).exception("Run %s failed unexpectedly.", run.id)

    def _limit(self, job: _Job) -> None:
        limit = self._max_seconds
        if limit and time.monotonic() - job.began > limit and not job.stop.is_set():
            said = f"{limit / 60:g} minutes at a time are the limit here. Resume goes on from the last step."
            job.run.append(events.Warning(said))
            job.stop.set()


def _queued_runs(root: Path) -> list[tuple[Run, events.RunQueued]]:
    """The runs that wait, first come first; one without any event was made by the command line and does not."""
    found = []
    for run in list_runs(root):
        if isinstance(last := run.last_event(), events.RunQueued):
            found.append((run, last))
    return sorted(found, key=lambda pair: (pair[1].time, pair[0].id))
