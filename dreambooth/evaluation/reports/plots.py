"""Plots: figures by condition, and a training's losses and sample pictures against its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreambooth.evaluation.evaluate import BASE, Evaluation
from dreambooth.evaluation.reports.gallery import FAINT, INK, PAPER, RULE
from dreambooth.evaluation.reports.tables import capital, ceilings, conditions, summary
from dreambooth.files import atomic_file
from dreambooth.metrics.measures import Measures
from dreambooth.metrics.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#c2441d", "#2f6f8f", "#6a8f3c", "#8a5aa8", "#b8862b", "#3d9a8b", "#a8456f", "#4c5fb0")
"""Of conditions, in their order; the base model's is grey."""
GREY = "#8d8477"
DASHED = (0, (4, 3))
_STYLE: dict[str, Any] = {"fontsize": 9, "color": FAINT}
_SMOOTHED = 20  # the bold line is the mean of at least so many steps, and of a twentieth of all


def metrics_plot(evaluations: Sequence[Evaluation], path: Path) -> Path:
    """Write a panel per metric: each condition's mean and interval, its evaluations as dots, the photos' ceiling."""
    names, top = conditions(evaluations), ceilings(evaluations)
    means = {condition: summary(evaluations, condition) for condition in names}
    figure, panels = _panels(2, 3, (9, 5))
    for panel, metric in zip(panels, METRICS, strict=False):
        _title(panel, metric)
        for place, condition in enumerate(names):
            estimate, colour = means[condition][metric], _colour(names, condition)
            values = [e.metrics[metric].value for e in evaluations if e.condition == condition]
            if len(values) > 1:
                panel.plot([place + 0.22] * len(values), values, "o", color=colour, alpha=0.35, ms=4, mew=0)
            if estimate.low is not None and estimate.high is not None:
                panel.plot([place, place], [estimate.low, estimate.high], color=colour, lw=2.5, solid_capstyle="round")
            panel.plot([place], [estimate.value], "o", color=colour, ms=7)
        if metric in top:
            panel.axhline(top[metric], color=FAINT, ls=DASHED, lw=1)
        panel.set_xlim(-0.6, len(names) - 0.4)
        panel.set_xticks([])
        panel.margins(y=0.15)
    _key(panels[-1], names, "real photos among themselves" if top else "")
    return _save(figure, path)


def drift_plot(measures: Mapping[str, Sequence[Measures]], path: Path) -> Path:
    """Write PRES and DIV against steps: every training of a condition, and their mean where there are several."""
    names = list(measures)
    figure, panels = _panels(1, 2, (9, 3.6))
    for panel, metric in zip(panels, ("pres", "div"), strict=True):
        _title(panel, metric)
        for condition in names:
            colour = _colour(names, condition)
            lines = [_line(one, metric) for one in measures[condition]]
            several = len(lines) > 1
            for line in lines:
                panel.plot(*_columns(line), color=colour, lw=1 if several else 2.5, alpha=0.3 if several else 1)
            if several:
                shared = sorted(set.intersection(*(set(line) for line in lines)))
                panel.plot(shared, [np.mean([line[step] for line in lines]) for step in shared], color=colour, lw=2.5)
        panel.set_xlabel("training steps; 0 is the base model", **_STYLE)
    for condition in names:
        panels[0].plot([], [], color=_colour(names, condition), lw=2.5, label=capital(condition))
    panels[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    return _save(figure, path)


def progress_plot(measures: Measures, path: Path, bounds: tuple[float, float] | None = None) -> Path:
    """Write DINO, CLIP-T and PRES of one training against its steps, with the step that `best_of` picks marked.

    `bounds` are the highest PRES and the lowest CLIP-T that it takes, by `bounds_of`.
    """
    levels = {"dino": (measures.ceiling, "the photos among themselves")}
    if bounds:
        levels |= {"pres": (bounds[0], "highest allowed"), "clip_t": (bounds[1], "lowest allowed")}
    figure, panels = _panels(1, 3, (10, 3.4))
    for panel, metric in zip(panels, ("dino", "clip_t", "pres"), strict=True):
        _title(panel, metric)
        panel.plot(*_columns(_line(measures, metric)), "o-", color=COLOURS[0], lw=2, ms=4)
        panel.axvline(measures.best, color=RULE, lw=6, zorder=0)
        if metric in levels:
            value, words = levels[metric]
            panel.axhline(value, color=FAINT, ls=DASHED, lw=1)
            where: dict[str, Any] = {"textcoords": "offset points", "va": "bottom"}
            where["xycoords"] = ("axes fraction", "data")
            behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
            panel.annotate(words, (0, value), (1, 2), bbox=behind, **where, **_STYLE)
        panel.margins(y=0.2)
        panel.set_xlabel(f"steps; the bar is the best, step {measures.best}", **_STYLE)
    return _save(figure, path)


def loss_plot(losses: Mapping[str, Mapping[int, float]], path: Path) -> Path:
    """Write each loss by step, single steps faintly and the mean of the last ones boldly.

    `losses` are by what they are called; a step whose loss is not finite is left out.
    """
    figure, (panel,) = _panels(1, 1, (9, 3.2))
    tops = []
    for place, (of, by_step) in enumerate(losses.items()):
        steps = sorted(step for step, loss in by_step.items() if math.isfinite(loss))
        if not steps:
            continue
        single = np.array([by_step[step] for step in steps])
        window = max(_SMOOTHED, len(steps) // 20)
        sums = np.concatenate([[0], np.cumsum(single)])
        start = np.maximum(np.arange(1, len(steps) + 1) - window, 0)
        means = (sums[1:] - sums[start]) / (np.arange(1, len(steps) + 1) - start)
        panel.plot(steps, single, color=COLOURS[place], lw=0.8, alpha=0.3)
        panel.plot(steps, means, color=COLOURS[place], lw=2.2, label=f"{capital(of)}, mean of {window} steps")
        tops.append(max(1.2 * means.max(), np.quantile(single, 0.98)))  # a few steps may be far above
    if tops:
        panel.set_ylim(0, max(tops) or None)
        panel.legend(frameon=False, fontsize=9, labelcolor=INK)
    panel.set_title("Loss", loc="left", fontsize=11, color=INK)
    panel.set_xlabel("training steps", **_STYLE)
    return _save(figure, path)


def _title(panel: Axes, metric: str) -> None:
    about = METRICS[metric]
    panel.set_title(about.head, loc="left", fontsize=11, color=INK)


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # the page, which draws no plots, need not wait for it

    figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor=PAPER)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.set_facecolor(PAPER)
        panel.tick_params(colors=FAINT, labelsize=9, length=0)
        panel.grid(axis="y", color=RULE, lw=0.6, alpha=0.7)
        panel.set_axisbelow(True)
        panel.spines[:].set_visible(False)
    return figure, panels


def _key(panel: Axes, names: Sequence[str], ceiling: str) -> None:
    """Say in an empty panel which colour is what."""
    panel.set_axis_off()
    for condition in names:
        panel.plot([], [], "o", color=_colour(names, condition), ms=7, label=capital(condition))
    if ceiling:
        panel.plot([], [], color=FAINT, ls=DASHED, lw=1, label=capital(ceiling))
    panel.legend(loc="center left", frameon=False, fontsize=10, labelcolor=INK)


def _colour(names: Sequence[str], condition: str) -> str:
    trained = [name for name in names if name != BASE]
    return GREY if condition == BASE else COLOURS[trained.index(condition) % len(COLOURS)]


def _line(measures: Measures, metric: str) -> dict[int, float]:
    """A metric by step, where it was measured."""
    values = {measure.step: getattr(measure, metric) for measure in measures.measures}
    return {step: value for step, value in values.items() if value is not None}


def _columns(line: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(line), list(line.values())


def _save(figure: Figure, path: Path) -> Path:
    with atomic_file(path) as partial:
        figure.savefig(partial, metadata={"Software": None})
    return path
