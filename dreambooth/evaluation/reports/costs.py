"""What models cost: weights that were trained, bytes on disk, seconds and memory, by what their runs' events say."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np

from dreambooth import events
from dreambooth.evaluation.evaluate import Evaluation
from dreambooth.evaluation.reports.tables import (
    AVERAGE,
    capital,
    conditions,
    escape,
    figure,
    heads,
    markdown_table,
    summary,
)
from dreambooth.events import Event
from dreambooth.files import atomic_file, shown_size
from dreambooth.metrics.metrics import METRICS

FILE = "costs.csv"


@dataclass(frozen=True)
class Cost:
    """What one training took; None for what its events, of an earlier version, do not tell."""

    subject: str
    condition: str
    seed: int
    trainable_parameters: float | None
    """Weights that the optimiser changed."""
    model_bytes: float | None
    """All files of the saved model: a whole pipeline, or an adapter alone."""
    step_seconds: float
    """Of the optimiser steps, each counted once."""
    class_image_seconds: float
    """Spent on drawing class images; none where another run had drawn them."""
    run_seconds: float
    """In all, samples and their measures among it, over every process that worked on the run."""
    memory_before_bytes: float | None
    """In use when the run began: by the program, and by what it did before."""
    peak_memory_bytes: float | None
    """The most in use until the model was saved."""

    @property
    def memory_bytes(self) -> float | None:
        """What the training needed beside the program: the peak without what was in use before."""
        if self.peak_memory_bytes is None or self.memory_before_bytes is None:
            return None
        return max(0.0, self.peak_memory_bytes - self.memory_before_bytes)


def cost_of(subject: str, condition: str, seed: int, happened: Sequence[Event]) -> Cost:
    """What the events of one run, oldest first, say of its costs."""
    told = {event.name: event.value for event in happened if isinstance(event, events.Metric)}
    steps = {event.step: event.seconds for event in happened if isinstance(event, events.Step)}
    measured = {
        name: told.get(name)
        for name in ("trainable_parameters", "model_bytes", "memory_before_bytes", "peak_memory_bytes")
    }
    return Cost(
        subject,
        condition,
        seed,
        step_seconds=sum(steps.values()),
        class_image_seconds=_seconds(happened, "class images"),
        run_seconds=_seconds(happened),
        **measured,
    )


def _seconds(happened: Sequence[Event], only: str | None = None) -> float:
    """From event to event, but not to where a process began to work on the run; in one stage alone, or in all."""
    seconds, stage = 0.0, ""
    for event, following in pairwise(happened):
        stage = event.name if isinstance(event, events.Stage) else stage
        began = isinstance(following, events.Stage) and following.name == "prepare"
        seconds += 0.0 if began or only not in (None, stage) else following.time - event.time
    return seconds


def write_costs(costs: Sequence[Cost], out: Path) -> Path:
    """Write `costs.csv`: a row per training, then the average of each condition; returns its path."""
    names = [*(field.name for field in fields(Cost)), "memory_bytes"]
    rows = [asdict(cost) | {"memory_bytes": cost.memory_bytes} for cost in costs]
    for condition in dict.fromkeys(cost.condition for cost in costs):
        rows.append({"subject": AVERAGE, "condition": condition, "seed": ""} | _means(costs, condition, names[3:]))
    with atomic_file(out / FILE) as partial, partial.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(rows)
    return out / FILE


def cost_table(evaluations: Sequence[Evaluation], costs: Sequence[Cost]) -> str:
    """Markdown: a row per condition with each metric's mean and what it costs on average."""
    rows = []
    for condition in conditions(evaluations):
        quality = summary(evaluations, condition)
        mean = _means(costs, condition, ("trainable_parameters", "model_bytes", "step_seconds", "memory_bytes"))
        rows.append(
            [
                escape(capital(condition)),
                *(figure(quality[name].value) for name in METRICS),
                _shown(mean["trainable_parameters"], "{:,.0f}"),
                _bytes(mean["model_bytes"]),
                _shown(mean["step_seconds"], "{:,.0f} s"),
                _bytes(mean["memory_bytes"]),
            ]
        )
    return markdown_table(["", *heads(), "trained weights", "file", "training", "memory"], rows)


def cost_words(costs: Sequence[Cost]) -> str:
    """Markdown: what the columns of `cost_table` hold."""
    drawing = [cost.class_image_seconds for cost in costs if cost.class_image_seconds > 1]
    drawn = (
        f" Drawing class images took {np.mean(drawing):,.0f} s on average in the {len(drawing)} trainings that found "
        "none; runs of the same class share them."
        if drawing
        else ""
    )
    return (
        "Means over the trainings of each. *Trained weights* is how many numbers the optimiser changes, *file* all "
        "that is saved of the model, *training* the seconds of its optimiser steps alone, *memory* its peak beyond "
        f"what the program held before, sampling included.{drawn} Every run's own figures are in `{FILE}`."
    )


def _means(costs: Sequence[Cost], condition: str, names: Sequence[str]) -> dict[str, float | None]:
    found = {}
    for name in names:
        values = [getattr(cost, name) for cost in costs if cost.condition == condition]
        known = [value for value in values if value is not None]
        found[name] = float(np.mean(known)) if known else None
    return found


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _bytes(value: float | None) -> str:
    return "–" if value is None else shown_size(value)
