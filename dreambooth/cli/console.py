"""How a command tells of its progress, and how it is stopped."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from tqdm import tqdm

from dreambooth import events
from dreambooth.events import Event

if TYPE_CHECKING:
    from dreambooth.config.settings import Config


class Console:
    """Shows events: bars on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.bar: tqdm[NoReturn] | None = None
        self.stage, self.total, self.tenth = "", 0, 0
        self.recent: list[events.Step] = []

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case events.Stage(name, total):
                self._close()
                self.stage, self.total, self.tenth, self.recent = name, total, 0, []
                if self.terminal and total:
                    unit = {"train": "step", "upload": "B"}.get(name, "")
                    self.bar = tqdm(total=total, desc=name, unit=unit, unit_scale=unit == "B", leave=True)
                else:
                    click.echo(f"{name} …", err=True)
            case events.Progress(done):
                self._advance(done, "")
            case events.Step(step=step):
                self.recent = [*self.recent[-19:], event]
                loss = f"instance loss {self._mean('instance_loss'):.4f}"
                if event.prior_loss is not None:
                    loss += f", prior loss {self._mean('prior_loss'):.4f}"
                if event.drift is not None:
                    loss += f", drift {event.drift:.3g}"
                self._advance(step, loss)
            case events.Metric("estimated_peak_memory_bytes", value):
                self._line(f"estimated peak memory {value / 2**30:.1f} GiB")
            case events.Metric("estimated_seconds", value):
                self._line(f"estimated time roughly {value:.0f} s")
            case events.Metric("peak_memory_bytes", value):
                self._line(f"peak memory {value / 2**30:.2f} GiB")
            case events.Warning(message):
                self._line(f"advice: {message}")
            case events.Checkpoint(path):
                self._line(f"checkpoint {path}")
            case events.Cancelled(step):
                self._close()
                click.echo(f"Stopped after step {step}; go on with --resume.", err=True)
            case events.Finished(seconds=seconds):
                self._close()
                click.echo(f"Finished in {seconds:.0f} s.", err=True)

    def headline(self, text: str) -> None:
        """End what is shown, and say something."""
        self._close()
        click.echo(text, err=True)

    def _mean(self, name: str) -> float:
        return float(sum(getattr(e, name) for e in self.recent) / len(self.recent))

    def _advance(self, done: int, note: str) -> None:
        if self.bar is not None:
            self.bar.n = done
            self.bar.set_postfix_str(note)
        elif self.total and (tenth := 10 * done // self.total) > self.tenth:
            self.tenth = tenth
            share = f"{done / 1e6:.1f}/{self.total / 1e6:.1f} MB" if self.stage == "upload" else f"{done}/{self.total}"
            click.echo(f"{self.stage} {share} {note}".rstrip(), err=True)

    def _line(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@contextlib.contextmanager
def stopped_by_signal() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C was pressed, or SIGTERM came as Slurm, Docker and spot machines send
    it before they end a program; a second one ends it at once."""
    stop = threading.Event()

    def stop_after_this_step(*_: object) -> None:
        stop.set()
        as_before()

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, stop_after_this_step) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop.is_set
    finally:
        as_before()


def suggestion(config: Config, model: Path, *options: object) -> str:
    """A command that draws with what was trained as `config` says."""
    prompt = f"{config.instance_prompt} on a beach"
    words = ["python", "-m", "dreambooth", "generate", model, "--prompt", prompt, *options]
    return f"Try: {shlex.join(map(str, words))}"
