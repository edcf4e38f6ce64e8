"""What evaluations come to, for people: CSVs, a report in Markdown and as one HTML file, plots and galleries.

`write_report` writes it all; the parts can be had alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dreambooth.evaluation.evaluate import BASE, PHOTOS, Evaluation
from dreambooth.evaluation.reports.costs import Cost, cost_of, cost_table, cost_words, write_costs
from dreambooth.evaluation.reports.gallery import Cell, Line, draw_sheet, gallery
from dreambooth.evaluation.reports.page import as_page
from dreambooth.evaluation.reports.plots import drift_plot, loss_plot, metrics_plot, progress_plot
from dreambooth.evaluation.reports.published import PUBLISHED, caution, protocol
from dreambooth.evaluation.reports.tables import (
    capital,
    comparison_table,
    conditions,
    difference_table,
    differences,
    differences_table,
    escape,
    figure,
    heads,
    markdown_table,
    meanings,
    prompt_table,
    reading,
    subject_table,
    subjects,
    summary,
    write_csvs,
)
from dreambooth.files import atomic_file
from dreambooth.metrics.measures import Measures
from dreambooth.metrics.metrics import METRICS

__all__ = [
    "Cell",
    "Cost",
    "Line",
    "Written",
    "comparison_table",
    "conditions",
    "cost_of",
    "cost_table",
    "difference_table",
    "differences",
    "draw_sheet",
    "drift_plot",
    "gallery",
    "loss_plot",
    "metrics_plot",
    "progress_plot",
    "summary",
    "write_costs",
    "write_csvs",
    "write_report",
]

PROMPTS_SHOWN, PROMPTS_OF_MANY = 8, 2
"""Rows of a gallery: of one subject, and of each of several, whose report would be megabytes long."""
TABLES_OF_PAIRS = 3
"""Trained conditions up to which each pair has a table of its own, in words; of more, each has one with all others."""


class Written(NamedTuple):
    """The files of a report."""

    html: Path
    markdown: Path
    csvs: tuple[Path, ...]


def write_report(
    out: Path,
    title: str,
    evaluations: Sequence[Evaluation],
    measures: Mapping[str, Sequence[Measures]] | None = None,
    costs: Sequence[Cost] = (),
) -> Written:
    """Write `report.html` (one file with all in it), `report.md`, its pictures and the CSVs into the folder `out`.

    `evaluations` are of any subjects, conditions and seeds, saved or loaded; `measures` are what trainings of a
    condition measured, for the drift plot; `costs` are what the trainings took. Raises `ConfigError` where they were
    measured by different encoders.
    """
    parts = [
        f"# {escape(title)}",
        _opening(evaluations),
        "## The figures",
        comparison_table(evaluations),
        meanings(),
        reading(evaluations),
        _picture("Each metric by model, with its interval", metrics_plot(evaluations, out / "metrics.png")),
        *_compared(evaluations),
        *(("## What it costs", cost_table(evaluations, costs), cost_words(costs)) if costs else ()),
        *_drawn(evaluations, out),
    ]
    parts += _while_training(measures or {}, out)
    parts += [*_details(evaluations), *_beside_others(evaluations)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    with atomic_file(out / "report.md") as partial:
        partial.write_text(text, encoding="utf-8")
    with atomic_file(out / "report.html") as partial:
        partial.write_text(as_page(title, text, out), encoding="utf-8")
    csvs = [*write_csvs(evaluations, out), *([write_costs(costs, out)] if costs else ())]
    return Written(out / "report.html", out / "report.md", tuple(csvs))


def _opening(evaluations: Sequence[Evaluation]) -> str:
    one = evaluations[0]
    who = _count(len(subjects(evaluations)), "subject")
    if len(subjects(evaluations)) == 1:
        who = escape(capital(one.subject)) + ("" if one.class_noun in one.subject else f" ({escape(one.class_noun)})")
    names = [escape(condition) for condition in conditions(evaluations)]
    models = ("; " if any("," in name for name in names) else ", ").join(names)
    return (
        f"{who}; {_count(len(evaluations), 'model')}: {models}. Each drew {len(one.prompts)} prompts × "
        f"{one.images_per_prompt} pictures and {one.class_images} of its class, all from the same seeds, which were "
        f"compared with {_photos(evaluations)} by the protocol of the DreamBooth paper."
    )


def _photos(evaluations: Sequence[Evaluation]) -> str:
    counts = {e.photos for e in evaluations}
    return _count(counts.pop(), "photo") if len(counts) == 1 else "the subject's photos"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _compared(evaluations: Sequence[Evaluation]) -> list[str]:
    """Every condition against every one before it, paired; against the base model last."""
    names = conditions(evaluations)
    words = "Same subjects, prompts and seeds on both sides, so that what is left is the difference of the models."
    if len([name for name in names if name != BASE]) > TABLES_OF_PAIRS:
        others = sorted(names, key=lambda name: name == BASE)
        tables = [differences_table(evaluations, names[names.index(other) + 1 :], other) for other in others]
        words += " In bold what is clear of zero."
    else:
        pairs = [(ours, other) for place, ours in enumerate(names) for other in names[:place]]
        pairs.sort(key=lambda pair: pair[1] == BASE)
        tables = [difference_table(evaluations, *pair) for pair in pairs]
    tables = [table for table in tables if table]
    return ["## Differences", words, *tables] if tables else []


def _drawn(evaluations: Sequence[Evaluation], out: Path) -> list[str]:
    """The photos and the gallery of each subject."""
    parts = ["## The pictures"]
    every = subjects(evaluations)
    for number, subject in enumerate(every):
        ours = [e for e in evaluations if e.subject == subject]
        if len(every) > 1:
            parts.append(f"### {escape(subject)}")
        photos = next((e.folder / PHOTOS for e in ours if (e.folder / PHOTOS).is_file()), None)
        if photos:
            copied = out / f"photos-{number:02d}.jpg"
            with atomic_file(copied) as partial:
                shutil.copyfile(photos, partial)
            parts += ["The photos:", _picture(f"The photos of {subject}", copied)]
        rows = PROMPTS_SHOWN if len(every) == 1 else PROMPTS_OF_MANY
        drawn = gallery(ours, out / f"gallery-{number:02d}.png", rows)
        parts += [
            "What each model draws, of the subject and, last, of its class:",
            _picture(f"Pictures of {subject}", drawn),
        ]
    return parts


def _while_training(measures: Mapping[str, Sequence[Measures]], out: Path) -> list[str]:
    """Drift, and of one training alone how it came about."""
    trainings = [one for of_condition in measures.values() for one in of_condition]
    if not trainings:
        return []
    parts = [
        "## While training",
        "What the sample pictures of each sampling step said. PRES that rises is a class that comes to look like the "
        "subject; DIV that falls is pictures that come to look like each other.",
        _picture("PRES and DIV against training steps", drift_plot(measures, out / "drift.png")),
    ]
    if len(trainings) == 1:
        drawn = progress_plot(trainings[0], out / "progress.png")
        parts.append(_picture("DINO, CLIP-T and PRES against training steps", drawn))
    return parts


def _details(evaluations: Sequence[Evaluation]) -> list[str]:
    if len(subjects(evaluations)) > 1:
        return ["## By subject", subject_table(evaluations)]
    parts = ["## By prompt"]
    for condition in conditions(evaluations):
        first = next(e for e in evaluations if e.condition == condition)
        trained = f"{first.step} steps, seed {first.seed}" if first.step else "not trained"
        parts += [f"### {escape(capital(condition))}", f"{escape(first.model)}: {trained}.", prompt_table(first)]
    return parts


def _beside_others(evaluations: Sequence[Evaluation]) -> list[str]:
    means = {condition: summary(evaluations, condition) for condition in conditions(evaluations)}
    rows = [
        [f"**{escape(capital(condition))}**", *(figure(estimates[name].value) for name in METRICS), "this report"]
        for condition, estimates in means.items()
    ]
    rows += [
        [escape(line.name), *(figure(getattr(line, name)) for name in METRICS), escape(line.source)]
        for line in PUBLISHED
    ]
    aspects = [[aspect, escape(here), paper] for aspect, here, paper in protocol(evaluations)]
    return [
        "## Beside published figures",
        caution(name for e in evaluations for name in e.encoders.values()),
        markdown_table(["", *heads(), "source"], rows, words=(0, 6)),
        "The paper finds that PPL lowers PRES and raises DIV, for a little DINO and CLIP-I.",
        "## What differs from the paper's protocol",
        markdown_table(["", "here", "paper"], aspects, words=(0, 1, 2)),
    ]


def _picture(words: str, path: Path) -> str:
    return f"![{escape(words)}]({path.name})"
