"""The curves of a run's losses by step, as a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from dreambooth.ui.report import Report

PHOTOS, CLASS = "the photos (instance)", "class images (prior)"
DRIFT = "squared distance"
SMOOTHED = 20
"""Steps that a point of the curves averages at least: single steps differ by their timestep more than by what was
learned."""
SMOOTHED_SHARE = 20
"""A long run's points average one in so many of its steps."""
POINTS = 200
"""Points of a curve at most: more can't be told apart on a screen."""


def curves(report: Report) -> str:
    """Both losses over the steps as a drawing, and how far the weights are from the base model's where that counts."""
    if (steps := report.losses.shape[1]) < 2:
        return ""
    total = max(report.config.train.steps, steps)
    window = max(SMOOTHED, total // SMOOTHED_SHARE)
    instance, prior, drift = report.losses
    said = f"single steps, and the mean of {window}"
    shown = _curve("Loss", said, {("instance", PHOTOS): instance, ("prior", CLASS): prior}, total, window)
    if not np.isfinite(drift).any():
        return shown
    weight = f"{report.config.drift.weight:g} of it joins the loss"
    return shown + _curve("Distance from the base model", weight, {("drift", DRIFT): drift}, total, 1)


def _curve(title: str, about: str, values: dict[tuple[str, str], np.ndarray], total: int, window: int) -> str:
    """A drawing of values by step, by how their line looks and what they are: what single steps had faintly, the
    running mean boldly."""
    means = [running_mean(loss, window) for loss in values.values()]
    kinds = zip(values, values.values(), means, strict=True)
    drawn = [(kind, name, loss, mean) for (kind, name), loss, mean in kinds if np.isfinite(mean).any()]
    steps = len(means[0])
    # Single steps may be far above the mean; what most of them are decides what is shown.
    top = _nice(max(max(1.2 * np.nanmax(mean), np.nanquantile(loss, 0.98)) for _, _, loss, mean in drawn))
    lines = "".join(
        f"<polyline class='raw {kind}' points='{_points(_extremes(loss), total, top)}'/>" for kind, _, loss, _ in drawn
    ) + "".join(
        f"<polyline class='mean {kind}' points='{_points(_thinned(mean), total, top)}'/>" for kind, _, _, mean in drawn
    )
    keys = "".join(f"<li class='{kind}'>{name} <b>{mean[-1]:.3f}</b></li>" for kind, name, _, mean in drawn)
    said = " and ".join(f"{mean[-1]:.3g} ({name})" for _, name, _, mean in drawn)
    ticks = "".join(f"<span>{share * top:.3g}</span>" for share in (1, 0.5, 0))
    return f"""<figure class="curves"><figcaption>{title} <small>{about}</small>
<ul>{keys}</ul></figcaption><div class="plot"><div class="ticks" aria-hidden="true">{ticks}</div>
<svg viewBox="0 0 1000 300" preserveAspectRatio="none" role="img" aria-label="{title} after {steps} steps: {said}">
<path class="grid" d="M0 0H1000M0 150H1000M0 300H1000"/>{lines}</svg></div>
<div class="steps" aria-hidden="true"><span>0</span><span>{total // 2}</span><span>{total} steps</span></div>
</figure>"""


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the last `window` values up to each, (n,) -> (n,); values that are NaN do not count."""
    known = np.isfinite(values)
    sums, counts = (np.concatenate([[0], np.cumsum(x, dtype=float)]) for x in (np.where(known, values, 0), known))
    start = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    counted = counts[1:] - counts[start]
    return np.where(counted > 0, (sums[1:] - sums[start]) / np.maximum(counted, 1), math.nan)


def _thinned(values: np.ndarray) -> list[tuple[float, float]]:
    """(step, value) of at most `POINTS` steps, the newest among them."""
    every = -(-len(values) // POINTS)
    steps = np.arange(len(values) - 1, -1, -every)[::-1]
    return [(step + 1, values[step]) for step in steps if math.isfinite(values[step])]


def _extremes(values: np.ndarray) -> list[tuple[float, float]]:
    """(step, value) of every step, or the least and the most of several where there are more than `POINTS`."""
    every = -(-len(values) // POINTS)
    bins = [values[start : start + every] for start in range(0, len(values), every)]
    return [
        (place * every + every / 2 + 0.5, extreme)
        for place, bin_ in enumerate(bins)
        if np.isfinite(bin_).any()
        for extreme in ((np.nanmin(bin_), np.nanmax(bin_)) if every > 1 else (bin_[0],))
    ]


def _points(curve: Iterable[tuple[float, float]], total: int, top: float) -> str:
    return " ".join(f"{1000 * step / total:.1f},{300 * (1 - value / top):.1f}" for step, value in curve)


def _nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 … and 0.5, 0.2 … that is at least as large."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-6)))
    return next(power * first for first in (1, 2, 5, 10) if power * first >= value)
