"""A run's events, summed up for people: where it stands, how fast it goes, its curves, pictures and warnings."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dreambooth import events
from dreambooth.runs import Run, Status

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
PHOTOS, CLASS = "the photos (instance)", "class images (prior)"
COLOURS = {PHOTOS: "#e2562b", CLASS: "#1f8a84"}
SMOOTHED = 20
"""Steps that a point of the curves averages: single steps differ by their timestep more than by what was learned."""
POINTS = 200
"""Points of a curve at most: more can't be told apart on a screen."""


@dataclass(frozen=True)
class Report:
    """What a run's directory says at one moment."""

    status: Status
    stage: str
    done: int
    total: int
    per_second: float | None
    """Steps, or class images, a second in this stage."""
    steps: tuple[events.Step, ...]
    pictures: tuple[events.Image, ...]
    warnings: tuple[str, ...]
    failure: str

    @classmethod
    def of(cls, run: Run) -> Report:
        """Read the run; steps repeated after a crash count once, as they went the last time."""
        history = run.events()
        starts = [i for i, event in enumerate(history) if isinstance(event, events.Stage)]
        since = history[starts[-1] :] if starts else [events.Stage("prepare")]
        stage, last = since[0], history[-1] if history else None
        return cls(
            status=run.status,
            stage=stage.name,
            done=max((_count(event) for event in since), default=0),
            total=stage.total,
            per_second=_speed(since),
            steps=tuple({e.step: e for e in history if isinstance(e, events.Step)}.values()),
            pictures=tuple({e.path: e for e in history if isinstance(e, events.Image)}.values()),
            warnings=tuple(dict.fromkeys(e.message for e in history if isinstance(e, events.Warning))),
            failure=f"{last.message} {last.hint}".strip() if isinstance(last, events.Failed) else "",
        )

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
        if self.status != "running":
            return self.failure or ENDINGS[self.status]
        parts = [STAGES.get(self.stage, self.stage)]
        if self.total:
            parts.append(f"{'step' if self.stage == 'train' else 'picture'} {self.done} of {self.total}")
        if self.per_second:
            parts.append(f"{self.per_second:.1f} a second")
            parts.append(f"{_duration(self.seconds_left)} left")
        return " · ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """For API callers."""
        return {
            "status": self.status, "stage": self.stage, "done": self.done, "total": self.total, "text": self.text,
            "per_second": self.per_second, "seconds_left": self.seconds_left, "warnings": list(self.warnings),
            "loss": self.steps[-1].loss if self.steps else None,
        }  # fmt: skip

    def as_html(self, title: str) -> str:
        """The headline: title, status, a progress bar and the sentence; warnings below."""
        share = 100 if self.status == "finished" else 100 * self.done / self.total if self.total else 0
        notes = "".join(f"<li class='tip'><strong>Note</strong> {html.escape(text)}</li>" for text in self.warnings)
        return f"""<section class="live" aria-live="polite">
<h3>{html.escape(title)} {chip(self.status)}</h3>
<div class="bar {self.status}" role="progressbar" aria-label="Progress of this stage" aria-valuemin="0"
 aria-valuemax="100" aria-valuenow="{share:.0f}"><span style="width:{share:.1f}%"></span></div>
<p>{html.escape(self.text)}</p>
{f"<ul class='findings'>{notes}</ul>" if notes else ""}</section>"""

    def curves(self) -> pd.DataFrame:
        """Columns step, loss, part: the running means of both losses, thinned to `POINTS` steps."""
        frame = pd.DataFrame(
            [(e.step, e.instance_loss, e.prior_loss) for e in self.steps], columns=["step", PHOTOS, CLASS]
        )
        means = frame.astype({PHOTOS: float, CLASS: float}).set_index("step").rolling(SMOOTHED, min_periods=1).mean()
        thinned = means.iloc[:: -(-len(means) // POINTS) or 1].reset_index()
        return thinned.melt("step", var_name="part", value_name="loss").dropna()


def history_html(runs: Sequence[Run]) -> str:
    """A table of runs: subject, status, model and the settings that were chosen."""
    if not runs:
        return "<div class='empty'>Your runs will be listed here.</div>"
    rows = []
    for run in runs:
        config = run.config
        prior = f"{config.prior.num_images} class images" if config.prior.active else "no PPL"
        what = f"{config.subject.identifier} {config.subject.class_noun}"
        model = Path(config.base_model).name
        facts = f"{config.train.steps} steps at {config.train.learning_rate:g} · {prior} · {model}"
        rows.append(f"<li>{chip(run.status)} <strong>{html.escape(what)}</strong> {html.escape(facts)}</li>")
    return f"<ul class='history'>{''.join(rows)}</ul>"


def chip(status: Status) -> str:
    """A status as a small label."""
    return f"<span class='chip {status}'>{status}</span>"


def _count(event: events.Event) -> int:
    return event.step if isinstance(event, events.Step) else event.done if isinstance(event, events.Progress) else 0


def _speed(since: list[events.Event]) -> float | None:
    """Steps a second by the clock of the last steps alone, else pictures a second of the stage."""
    if recent := [e.seconds for e in since if isinstance(e, events.Step)][-SMOOTHED:]:
        return len(recent) / max(sum(recent), 1e-6)
    if drawn := [e for e in since if isinstance(e, events.Progress)][1:]:
        first = next(e for e in since if isinstance(e, events.Progress))
        return (drawn[-1].done - first.done) / max(drawn[-1].time - first.time, 1e-6) or None
    return None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
