"""What the pictures of a comparison say: the five metrics of each model, with intervals, and the photos' ceilings."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dreambooth.config.settings import Config
from dreambooth.evaluation.evaluate import group_of
from dreambooth.metrics import metrics
from dreambooth.metrics.encoders import Encoders
from dreambooth.metrics.metrics import METRICS, Estimate
from dreambooth.ui.charts import judge
from dreambooth.ui.compare.comparison import Comparison

_OF_THE_SUBJECT = ("dino", "clip_i", "clip_t", "div")

Values = dict[str, dict[tuple[str, int], float]]
"""By metric, what its mean is over, by prompt and seed; DIV has one value a prompt."""


class Picture(NamedTuple):
    """One that was drawn."""

    prompt: str
    seed: int
    image: Image.Image


class Row(NamedTuple):
    """One model's figures, by metric; it lacks those that there were no pictures for."""

    title: str
    estimates: dict[str, Estimate]


class Figures(NamedTuple):
    """All that is measured."""

    rows: tuple[Row, ...]
    differences: tuple[Row, ...]
    """Of runs that were trained beside each other: each but the first less the first, prompt by prompt and seed by
    seed."""
    ceilings: dict[str, float]
    encoders: dict[str, str]
    basis: str
    """How many pictures each row rests on, in words."""
    notes: tuple[str, ...]
    """What could not be measured, and why."""


# ---------------------------------------------------------------------------------------------------------- measuring


def measure(
    shown: Comparison, config: Config, photos: Sequence[Image.Image], encoders: Encoders, notes: Sequence[str] = ()
) -> Iterator[Figures | None]:
    """Measure the pictures of a comparison; yields nothing after each model, and the figures at the end.

    Rows with the identifier count for the subject, of several subjects the first where it is alone, and those of the
    class prompt for PRES. The first column is the base model; all others are runs that differ in their condition alone.
    """
    real = {"dino": encoders.dino.embed(photos), "clip": encoders.clip.embed(photos)}
    columns = []
    for column in range(len(shown.titles)):
        ours, kin = _sorted(_pictures(shown, column), config)
        columns.append(_of_subject(ours, config, real, encoders) | _of_class(kin, real, encoders))
        yield None
    rows = [Row(title, _estimates(values)) for title, values in zip(shown.titles, columns, strict=True)]
    differences = tuple(
        Row(row.title, _difference(column, columns[1])) for row, column in zip(rows[2:], columns[2:], strict=True)
    )
    ceilings = {
        name: float(metrics.ceiling(real[part]).mean())
        for name, part in (("dino", "dino"), ("clip_i", "clip"))
        if len(photos) > 1
    }
    missing = (*notes, *_missing(shown, rows, config, encoders))
    yield Figures(tuple(rows), differences, ceilings, encoders.names, _basis(shown, config), missing)


def _pictures(shown: Comparison, column: int) -> list[Picture]:
    found = []
    for line in shown.lines:
        cell = line.cells[column]
        if cell and cell.path:
            with Image.open(cell.path) as image:
                found.append(Picture(line.prompt, line.seed, image.convert("RGB")))
    return found


def _sorted(pictures: Sequence[Picture], config: Config) -> tuple[list[Picture], list[Picture]]:
    """Those of the subject, and those of the class prompt."""
    ours = [picture for picture in pictures if config.shows_subject(picture.prompt)]
    return ours, [picture for picture in pictures if picture.prompt == config.class_prompt]


def _of_subject(pictures: list[Picture], config: Config, real: dict[str, np.ndarray], encoders: Encoders) -> Values:
    if not pictures:
        return {}
    images, keys = [p.image for p in pictures], [(p.prompt, p.seed) for p in pictures]
    looks = encoders.clip.embed(images)
    texts = encoders.clip.embed_texts([config.subject.without_identifier(p.prompt) for p in pictures])
    scores = {
        "dino": metrics.fidelity(encoders.dino.embed(images), real["dino"]),
        "clip_i": metrics.fidelity(looks, real["clip"]),
        "clip_t": metrics.prompt_fidelity(looks, texts),
    }
    found = {name: dict(zip(keys, map(float, values), strict=True)) for name, values in scores.items()}
    return found | _diversity(pictures, encoders)


def _diversity(pictures: list[Picture], encoders: Encoders) -> Values:
    by_prompt: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_prompt[picture.prompt].append(picture)
    several = {prompt: drawn for prompt, drawn in by_prompt.items() if len(drawn) > 1}
    if encoders.perceptual is None or not several:
        return {}
    apart = {}
    for prompt, drawn in several.items():
        pairs = [(drawn[i].image, drawn[j].image) for i, j in metrics.pairs(len(drawn))]
        apart[prompt, drawn[0].seed] = float(metrics.diversity([encoders.perceptual.distances(pairs).tolist()])[0])
    return {"div": apart}


def _of_class(pictures: list[Picture], real: dict[str, np.ndarray], encoders: Encoders) -> Values:
    if not pictures:
        return {}
    near = metrics.fidelity(encoders.dino.embed([p.image for p in pictures]), real["dino"])
    return {"pres": {(p.prompt, p.seed): float(value) for p, value in zip(pictures, near, strict=True)}}


def _estimates(values: Values) -> dict[str, Estimate]:
    return {
        name: metrics.estimate_mean(list(of.values()), [group_of(name, key) for key in of])
        for name, of in values.items()
    }


def _difference(one: Values, other: Values) -> dict[str, Estimate]:
    """The first less the second, by metric, of the prompts and seeds that both have."""
    found = {}
    for name in one.keys() & other.keys():
        both = [key for key in one[name] if key in other[name]]
        if both:
            a, b = ([values[name][key] for key in both] for values in (one, other))
            found[name] = metrics.paired_difference(a, b, [group_of(name, key) for key in both])
    return found


def _basis(shown: Comparison, config: Config) -> str:
    ours = [line.prompt for line in shown.lines if config.shows_subject(line.prompt)]
    kin = sum(line.prompt == config.class_prompt for line in shown.lines)
    prompts = len(set(ours))
    return f"{len(ours)} of the subject from {prompts} prompt{'' if prompts == 1 else 's'}, {kin} of the class prompt"


def _missing(shown: Comparison, rows: Sequence[Row], config: Config, encoders: Encoders) -> Iterator[str]:
    if unseen := sum(bool(cell and cell.problem) for line in shown.lines for cell in line.cells):
        yield f"{unseen} of all pictures are not shown, and count for nothing here."
    measured = {name for row in rows for name in row.estimates}
    if "pres" not in measured:
        yield f"No row is the class prompt, “{config.class_prompt}”, so there is no PRES."
    if "dino" not in measured:
        yield f"No row names the subject, {config.subject.identifier}, so only its class is measured."
    elif "div" not in measured and encoders.perceptual is None:
        yield "DIV compares pictures of one prompt: ask for two or more a prompt."
    if len(config.subjects) > 1:
        yield f"Of the subjects the first is measured, {config.subject.identifier}, in rows that name it alone."


# --------------------------------------------------------------------------------------------------------- the page


def as_html(figures: Figures) -> str:
    """The figures as a table: a row a model, a column a metric, and below what each metric and row means."""
    shown = [name for name in METRICS if any(name in row.estimates for row in figures.rows)]
    heads = "".join(f"<th scope='col' title='{METRICS[name].meaning}'>{METRICS[name].head}</th>" for name in shown)
    rows = [_row_html(row, shown) for row in figures.rows]
    for row in figures.differences:
        less = figures.rows[1].title
        rows.append(_row_html(row._replace(title=f"{row.title} − {less[:1].lower()}{less[1:]}"), shown, "difference"))
    if figures.ceilings:
        photos = Row("The photos themselves", {n: Estimate(v, None, None, 0) for n, v in figures.ceilings.items()})
        rows.append(_row_html(photos, shown, "ceiling"))
    legend = "".join(
        f"<div><dt>{about.title}</dt><dd>{about.meaning} {about.better.capitalize()} is better. "
        f"By {html.escape(judge(figures.encoders, about.name))}.</dd></div>"
        for about in (METRICS[name] for name in shown)
    )
    notes = "".join(f"<li class='tip'><strong>Note</strong> {html.escape(note)}</li>" for note in figures.notes)
    return f"""<section class="figures"><h3 class="section">What the pictures say</h3><div class="wide"><table>
<thead><tr><td></td>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<p class="aside">Of each model {figures.basis}; below a figure its 95 % interval over prompts, for PRES over pictures,
by Student's t: of two it is very wide, of one there is none. More prompts, and more pictures a prompt, make it
narrower.</p>{f"<ul class='findings'>{notes}</ul>" if notes else ""}
<dl class="legend">{legend}</dl></section>"""


def _row_html(row: Row, shown: Sequence[str], look: str = "") -> str:
    cells, plus = [], "+" if look == "difference" else ""
    for name in shown:
        if (estimate := row.estimates.get(name)) is None:
            cells.append("<td></td>")
            continue
        value, low, high = (
            "" if number is None else f"{round(number, 3) + 0.0:{plus}.3f}"
            for number in (estimate.value, estimate.low, estimate.high)
        )
        interval = low and f"<small>{low} to {high}</small>"
        cells.append(f"<td data-metric='{METRICS[name].title}'>{value}{interval}</td>")
    return f"<tr class='{look}'><th scope='row'>{html.escape(row.title)}</th>{''.join(cells)}</tr>"


def as_dict(figures: Figures) -> dict[str, Any]:
    """For API callers: by model and metric, a value with its interval and how many values it is the mean of."""

    def plain(row: Row) -> dict[str, Any]:
        return {name: asdict(estimate) for name, estimate in row.estimates.items()}

    return {
        "models": {row.title: plain(row) for row in figures.rows},
        "differences": {row.title: plain(row) for row in figures.differences},
        "photos": figures.ceilings,
        "encoders": figures.encoders,
        "notes": list(figures.notes),
    }
