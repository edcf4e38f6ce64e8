"""Measures against steps, as small inline drawings for the page: a run's while it trains, and several runs' drift."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreambooth.evaluation.evaluate import ENCODER_OF
from dreambooth.metrics.measures import Measures, bounds_of
from dreambooth.metrics.metrics import METRICS
from dreambooth.ui.report import Report

WIDTH, HEIGHT = 1000, 300
"""Of a drawing's own coordinates; the page stretches it to the room there is."""
POINTS = 100
"""Of a line, at most, the best aside: more can't be told apart at this size."""
OURS = "instance"
"""The look of a run's own line, as that of the photos' losses."""


class Line(NamedTuple):
    """What one run had at its sampling steps."""

    name: str
    """In the key."""
    look: str
    """A class of the style sheet: its colour."""
    points: Sequence[tuple[int, float]]
    """(step, value)."""


class Level(NamedTuple):
    """A value that the lines are to be seen against."""

    name: str
    value: float


def chart(
    metric: str, judge: str, lines: Sequence[Line], total: int, levels: Sequence[Level] = (), best: int | None = None
) -> str:
    """One of `METRICS` against the steps up to `total`, with a mark at the step `best`; empty without a point.

    `judge` is the name of the encoder that measured it.
    """
    lines = [line._replace(points=_thinned(line.points, best)) for line in lines if line.points]
    if not lines:
        return ""
    about, total = METRICS[metric], max(1, total, *(step for line in lines for step, _ in line.points))
    values = [value for line in lines for _, value in line.points]
    low, high = _frame([*values, *(level.value for level in levels)])

    def place(step: int, value: float) -> str:
        return f"{WIDTH * step / total:.1f},{HEIGHT * (high - value) / (high - low):.1f}"

    drawn = []
    for level in levels:
        y = HEIGHT * (high - level.value) / (high - low)
        drawn.append(f"<path class='level' d='M0 {y:.1f}H{WIDTH}'/>")
    if best is not None:
        drawn.append(f"<path class='best' d='M{WIDTH * best / total:.1f} 0V{HEIGHT}'/>")
    for line in lines:
        drawn.append(f"<polyline class='{line.look}' points='{' '.join(place(*point) for point in line.points)}'/>")
        for step, value in line.points:
            told = f"{line.name}, " if len(lines) > 1 else ""
            told = f"{told}step {step}{' (before)' if step == 0 else ''}: {value:.3f}"
            look = f"dot {line.look}{' marked' if step == best else ''}"
            drawn.append(f"<path class='{look}' d='M{place(step, value)}h0'><title>{html.escape(told)}</title></path>")
    keys = "".join(
        f"<li class='{line.look}'>{html.escape(line.name)} <b>{round(line.points[-1][1], 3) + 0.0:.3f}</b></li>"
        for line in lines
    ) + "".join(f"<li class='level'>{level.name} <b>{level.value:.3f}</b></li>" for level in levels)
    ticks = "".join(f"<span>{round(value, 9) + 0.0:.3g}</span>" for value in (high, (high + low) / 2, low))
    said = html.escape("; ".join(f"{line.name} {_went(line.points)}" for line in lines), quote=True)
    how = f"{about.better} is better · by {html.escape(judge)}"
    return f"""<figure class="curves small"><figcaption>{about.title} <small>{how}</small>
<ul>{keys}</ul></figcaption><p>{about.meaning}</p><div class="plot"><div class="ticks" aria-hidden="true">{ticks}</div>
<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{about.title}: {said}">
<path class="grid" d="M0 0H{WIDTH}M0 {HEIGHT // 2}H{WIDTH}M0 {HEIGHT}H{WIDTH}"/>{"".join(drawn)}</svg></div>
<div class="steps" aria-hidden="true"><span>before</span><span>{total // 2}</span><span>{total} steps</span></div>
</figure>"""


def _thinned(points: Sequence[tuple[int, float]], best: int | None) -> Sequence[tuple[int, float]]:
    """At most `POINTS`, evenly chosen, the first and the last among them, and the one at the step `best`."""
    if len(points) <= POINTS:
        return points
    chosen = set(np.linspace(0, len(points) - 1, POINTS).round())
    return [point for place, point in enumerate(points) if place in chosen or point[0] == best]


def _went(points: Sequence[tuple[int, float]]) -> str:
    (first, began), (last, ended) = points[0], points[-1]
    return f"{began:.3f} at step {first}" + (f", {ended:.3f} at step {last}" if last != first else "")


def _frame(values: Sequence[float]) -> tuple[float, float]:
    """A range around the values, with room for the dots, whose ends and middle are round."""
    room = max(0.06 * (max(values) - min(values)), 0.005)
    low, high = min(values) - room, max(values) + room
    power = 10.0 ** math.floor(math.log10(high - low))
    unit = next(power * part for part in (0.2, 0.5, 1, 2, 5) if (high - low) / (power * part) <= 5)
    first, last = math.floor(low / unit), math.ceil(high / unit)
    return first * unit, (last + (last - first) % 2) * unit


def judge(encoders: dict[str, str], metric: str) -> str:
    """The name of the encoder that a metric is by; empty where it was not measured."""
    return encoders.get(ENCODER_OF[metric], "")


def points_of(measures: Measures, metric: str) -> list[tuple[int, float]]:
    """(step, value) of the steps at which it was measured."""
    return [(m.step, value) for m in measures.measures if (value := getattr(m, metric)) is not None]


# ----------------------------------------------------------------------------------------------------- a run's progress


def progress(report: Report) -> str:
    """Likeness, prompts, drift and variety against the steps, the best step and the rule that picks it."""
    measures = report.measures
    if measures is None:
        said = _unmeasured(report)
        return f"<div class='empty'>{said}</div>" if said else ""
    highest, lowest = _bounds(report)
    levels = {
        "dino": [Level("the photos themselves", measures.ceiling)],
        "clip_t": [Level("least for the best", lowest)],
        "pres": [Level("most for the best", highest)],
    }
    best, total = measures.best or None, report.config.train.steps
    last = "now" if report.moving else "at the end"
    drawn = "".join(
        chart(
            name,
            judge(measures.encoders, name),
            [Line(last, OURS, points_of(measures, name))],
            total,
            levels.get(name, ()),
            best,
        )
        for name in ("dino", "clip_t", "pres", "div")
    )
    return f"""<section class="progress"><h3 class="heading">Is it done?</h3>{_verdict(report)}
<div class="charts">{drawn}</div>
<p class="aside">Measured on the sample pictures, which are few: look at the trend, not at single points.</p>
</section>"""


def _bounds(report: Report) -> tuple[float, float]:
    measures, asked = report.measures, report.config.evaluation
    assert measures  # who draws them has looked
    return bounds_of(measures.base, measures.ceiling, asked.max_drift, asked.max_prompt_loss)


def _verdict(report: Report) -> str:
    """Which step was the best, and by which rule, in a sentence."""
    measures = report.measures
    assert measures  # who draws them has looked
    if not measures.best:
        return "<p class='verdict'>So far the base model alone was measured; each sampling step adds a point.</p>"
    if report.config.more_subjects:
        return "<p class='verdict'>Of several subjects the first is measured, so no step before the last is kept.</p>"
    best, last = next(m for m in measures.measures if m.step == measures.best), measures.measures[-1].step
    highest, lowest = _bounds(report)
    bounds = f"PRES at most {highest:.3f} and CLIP-T at least {lowest:.3f}"
    within = best.pres <= highest and best.clip_t >= lowest
    if best.step == last:
        rule, ended = f"the last, and none before it was clearly better ({bounds}, then the highest DINO)", ""
        rule += "" if within else ", though it is beyond these bounds itself"
    elif within:
        rule = f"of the steps with {bounds} it has the highest DINO, {best.dino:.3f}; the last is clearly worse"
    else:
        rule = f"none has {bounds}, and it came clearly nearer than the last"
    if best.step != last:
        ended = f" It is kept beside the last, {last}; Generate offers both."
    so_far, kept = (" so far", "") if report.moving else ("", ended)
    return f"<p class='verdict'><strong>Step {best.step} is the best{so_far}</strong>: {rule}.{kept}</p>"


def _unmeasured(report: Report) -> str:
    """Why there is nothing to draw."""
    if not report.config.train.sample_every:
        return "This run is not measured, since it draws no sample pictures."
    if not report.config.evaluation.while_training:
        return "This run is not measured, since measuring while training is switched off."
    if report.status == "running":
        return "Its sample pictures are measured as they come, the base model's first."
    return "" if report.status == "queued" else "This run was not measured."


# ------------------------------------------------------------------------------------------------- drift side by side


def drift(runs: Sequence[tuple[str, str, Measures | None]], total: int) -> str:
    """PRES and DIV against the steps of runs given as (name, look, measures); empty where none was measured."""
    measured = [(Line(name, look, ()), found) for name, look, found in runs if found]
    drawn = "".join(
        chart(
            metric,
            judge(measured[0][1].encoders, metric),
            [line._replace(points=points_of(found, metric)) for line, found in measured],
            total,
        )
        for metric in ("pres", "div")
        if measured
    )
    return drawn and f"""<h3 class="section">Drift while training</h3><div class="charts">{drawn}</div>"""
