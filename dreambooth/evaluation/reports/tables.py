"""Evaluations as tables: means by condition, paired differences, CSVs and Markdown."""

from __future__ import annotations

import csv
import re
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from dreambooth.errors import ConfigError
from dreambooth.evaluation.evaluate import BASE, Evaluation, group_of
from dreambooth.files import atomic_file
from dreambooth.metrics.metrics import METRICS, Estimate, estimate_mean, paired_difference

CSVS = {
    "dino_results.csv": ("dino",),
    "clip_results.csv": ("clip_i", "clip_t"),
    "pres_results.csv": ("pres",),
    "div_results.csv": ("div",),
}
"""The files and the metrics in them; `all_results.csv` has them all."""
AVERAGE = "average"
"""What the average rows have for a subject."""


def conditions(evaluations: Sequence[Evaluation]) -> list[str]:
    """The conditions there are: the base model's first, then in their order."""
    return sorted(dict.fromkeys(e.condition for e in evaluations), key=lambda condition: condition != BASE)


def subjects(evaluations: Sequence[Evaluation]) -> list[str]:
    """The subjects there are, in their order."""
    return list(dict.fromkeys(e.subject for e in evaluations))


def summary(evaluations: Sequence[Evaluation], condition: str) -> dict[str, Estimate]:
    """Each metric's mean for one condition, with its interval.

    Over several subjects it is the mean over the evaluations, and subjects are the groups of `estimate_mean`; for one
    subject over its pictures, and its prompts are (for PRES pictures). Raises `ConfigError` where they were measured by
    different encoders, or their pictures drawn in different ways: such figures have no common mean.
    """
    chosen = [e for e in evaluations if e.condition == condition]
    _check_alike(chosen)
    if len(chosen) == 1:
        return chosen[0].metrics
    if len(subjects(chosen)) > 1:
        groups = [e.subject for e in chosen]
        return {name: estimate_mean([e.metrics[name].value for e in chosen], groups) for name in METRICS}
    estimates = {}
    for name in METRICS:
        values = [(group_of(name, key), value) for e in chosen for key, value in e.values(name).items()]
        estimates[name] = estimate_mean([value for _, value in values], [group for group, _ in values])
    return estimates


def ceilings(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """DINO and CLIP-I of real photos, each subject counted once; without what no subject has."""
    by_subject = {e.subject: e.ceilings for e in evaluations}
    found = {name: [c[name] for c in by_subject.values() if name in c] for name in ("dino", "clip_i")}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def differences(evaluations: Sequence[Evaluation], condition: str, other: str) -> dict[str, Estimate]:
    """Each metric's `condition` minus `other`, paired by subject and training seed; a base model pairs with any seed.

    Over several subjects the groups are whole subjects with all their seeds; for one subject its prompts (for PRES the
    class pictures), whose pictures are paired by seed. Empty where nothing pairs.
    """
    pairs = _pairs(evaluations, condition, other)
    _check_alike([e for pair in pairs for e in pair])
    found = {}
    for name in METRICS:
        rows = _paired_values(pairs, name)
        if rows:
            ours, theirs, groups = zip(*rows, strict=True)
            found[name] = paired_difference(ours, theirs, groups)
    return found


def _pairs(evaluations: Sequence[Evaluation], condition: str, other: str) -> list[tuple[Evaluation, Evaluation]]:
    def key(evaluation: Evaluation) -> tuple[str, int | None]:
        return evaluation.subject, None if BASE in (condition, other) else evaluation.seed

    theirs = {key(e): e for e in evaluations if e.condition == other}
    return [(e, theirs[key(e)]) for e in evaluations if e.condition == condition and key(e) in theirs]


def _paired_values(pairs: list[tuple[Evaluation, Evaluation]], name: str) -> list[tuple[float, float, Hashable]]:
    """(of the one, of the other, group) in rows."""
    if len({ours.subject for ours, _ in pairs}) > 1:
        return [(a.metrics[name].value, b.metrics[name].value, a.subject) for a, b in pairs]
    rows: list[tuple[float, float, Hashable]] = []
    for ours, theirs in pairs:
        known = theirs.values(name)
        rows += [(v, known[key], group_of(name, key)) for key, v in ours.values(name).items() if key in known]
    return rows


def _check_alike(evaluations: Sequence[Evaluation]) -> None:
    kinds = list(dict.fromkeys(tuple(sorted(e.encoders.items())) for e in evaluations))
    if len(kinds) > 1:
        one, two = (", ".join(name for _, name in kind) for kind in kinds[:2])
        raise ConfigError(
            f"Some were measured by {one}, some by {two}, which can't be compared.", "Evaluate all with the same."
        )
    if len(samplers := list(dict.fromkeys(e.sampling.words for e in evaluations))) > 1:
        raise ConfigError(
            f"Some pictures were drawn in {samplers[0]}, some in {samplers[1]}, which can't be compared.",
            "Evaluate all with the same sampling settings.",
        )


# ------------------------------------------------------------------------------------------------------------ Markdown


def escape(text: str) -> str:
    """Text that means nothing but itself in Markdown, in a table too."""
    return re.sub(r"([\\`*_\[\]<>#|~&])", r"\\\1", " ".join(text.split()))


def figure(value: float | None, signed: bool = False) -> str:
    """A figure with three digits and a real minus."""
    return "–" if value is None else f"{value:{'+' if signed else ''}.3f}".replace("-", "−")


def shown(estimate: Estimate, signed: bool = False) -> str:
    """A mean with its interval, for people; a line may break before the interval, not in it."""
    mean = figure(estimate.value, signed)
    if estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} [{figure(estimate.low, signed)},\N{NO-BREAK SPACE}{figure(estimate.high, signed)}]"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table of Markdown cells; the columns numbered in `words` hold text, the others figures."""
    lines = [head, ["---" if column in words else "---:" for column in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def heads() -> list[str]:
    """The metrics' titles, each with an arrow to the better side."""
    return [metric.head for metric in METRICS.values()]


def comparison_table(evaluations: Sequence[Evaluation]) -> str:
    """Markdown: a row per condition with 95 % intervals, the photos' own figures, and who measured."""
    rows = []
    if top := ceilings(evaluations):
        rows.append(["Real photos (ceiling)", *(figure(top.get(name)) for name in METRICS)])
    for condition in conditions(evaluations):
        means = summary(evaluations, condition)
        rows.append([escape(capital(condition)), *(shown(means[name]) for name in METRICS)])
    by = evaluations[0].encoder_of
    rows.append(["*Measured by*", *(f"*{escape(by[name])}*" for name in METRICS)])
    return markdown_table(["", *heads()], rows)


def difference_table(evaluations: Sequence[Evaluation], condition: str, other: str) -> str:
    """Markdown: a row per metric with the paired difference, and what it says; empty where nothing pairs."""
    found = differences(evaluations, condition, other)
    rows = [[METRICS[name].title, shown(value, signed=True), verdict(name, value)] for name, value in found.items()]
    head = ["", f"{escape(condition)} − {escape(other)}", ""]
    return markdown_table(head, rows, words=(0, 2)) if rows else ""


def differences_table(evaluations: Sequence[Evaluation], names: Sequence[str], other: str) -> str:
    """Markdown: a row for each condition of `names` with its paired differences from `other`, the clear ones in bold.

    What pairs with nothing has no row; empty where nothing does.
    """
    rows = []
    for condition in names:
        if found := differences(evaluations, condition, other):
            pair = f"{escape(condition)} − {escape(other)}"
            rows.append([pair, *(_clear(name, found.get(name)) for name in METRICS)])
    return markdown_table(["", *heads()], rows) if rows else ""


def _clear(name: str, difference: Estimate | None) -> str:
    if difference is None:
        return "–"
    text = shown(difference, signed=True)
    return f"**{text}**" if verdict(name, difference) in ("better", "worse") else text


def verdict(metric: str, difference: Estimate) -> str:
    """What a difference says: better or worse where its interval leaves zero out."""
    if difference.low is None or difference.high is None:
        return "one alone tells no interval"
    if difference.low <= 0 <= difference.high:
        return "no clear difference"
    return "better" if (difference.value > 0) == (METRICS[metric].better == "higher") else "worse"


def subject_table(evaluations: Sequence[Evaluation]) -> str:
    """Markdown: a row per subject, condition and seed."""
    rows = [
        [escape(e.subject), escape(e.condition), str(e.seed), *(figure(e.metrics[name].value) for name in METRICS)]
        for e in sorted(evaluations, key=lambda e: (subjects(evaluations).index(e.subject), e.condition != BASE))
    ]
    return markdown_table(["subject", "model", "seed", *heads()], rows, words=(0, 1))


def prompt_table(evaluation: Evaluation) -> str:
    """Markdown: a row per prompt of one evaluation."""
    names = ("dino", "clip_i", "clip_t", "div")
    rows = [[escape(p.prompt), str(p.count), *(figure(getattr(p, name)) for name in names)] for p in evaluation.prompts]
    titles = dict(zip(METRICS, heads(), strict=True))
    return markdown_table(["prompt", "pictures", *(titles[name] for name in names)], rows)


def meanings() -> str:
    """Markdown: a list of what the metrics mean."""
    return "\n".join(f"- **{about.title}**, {about.better} is better: {about.meaning}" for about in METRICS.values())


def reading(evaluations: Sequence[Evaluation]) -> str:
    """Markdown: what the figures are, and what was left out of them."""
    over, one = "prompts (for PRES pictures)", "prompt"
    if len(subjects(evaluations)) > 1:
        over, one = "subjects", "subject"
    text = (
        f"Means; in brackets their 95 % intervals over {over}, by Student's t: fewer make them wider. A figure of one "
        f"{one} alone has none. The ceiling is what the photos score among themselves."
    )
    trained = [(e.subject, e.condition) for e in evaluations if e.condition != BASE]
    if trained and len(set(trained)) == len(trained):
        text += " Each was trained from one seed: what another seed would change is in no interval."
    if left_out := sum(e.left_out for e in evaluations):
        drawn = sum(len(e.pictures) + len(e.class_pictures) for e in evaluations)
        text += f" Left out of all figures: {left_out:,} of {drawn:,} pictures, which were blank or held back."
    return text


def capital(text: str) -> str:
    """With a capital letter, to begin a line."""
    return text[:1].upper() + text[1:]


# ---------------------------------------------------------------------------------------------------------------- CSVs


def write_csvs(evaluations: Sequence[Evaluation], out: Path) -> list[Path]:
    """Write `CSVS` and `all_results.csv`: a row per evaluation, then the average of each condition; returns the paths.

    Each figure has its interval and its encoder's name beside it, those of the photos their own columns.
    """
    files = CSVS | {"all_results.csv": tuple(METRICS)}
    averages = {condition: summary(evaluations, condition) for condition in conditions(evaluations)}
    for file, names in files.items():
        rows = [_row(e, names) for e in evaluations]
        rows += [_average_row(evaluations, condition, means, names) for condition, means in averages.items()]
        with atomic_file(out / file) as partial, partial.open("w", newline="", encoding="utf-8") as text:
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return [out / file for file in files]


def _row(evaluation: Evaluation, names: Sequence[str]) -> dict[str, object]:
    about: dict[str, object] = {"subject": evaluation.subject, "class_noun": evaluation.class_noun}
    about |= {"condition": evaluation.condition, "seed": evaluation.seed, "step": evaluation.step}
    return about | _figures(evaluation.metrics, evaluation.ceilings, evaluation.encoder_of, names)


def _average_row(
    evaluations: Sequence[Evaluation], condition: str, means: dict[str, Estimate], names: Sequence[str]
) -> dict[str, object]:
    chosen = [e for e in evaluations if e.condition == condition]
    about = {"subject": AVERAGE, "class_noun": "", "condition": condition, "seed": "", "step": ""}
    return about | _figures(means, ceilings(chosen), chosen[0].encoder_of, names)


def _figures(
    estimates: dict[str, Estimate], top: dict[str, float], encoders: dict[str, str], names: Sequence[str]
) -> dict[str, object]:
    row: dict[str, object] = {}
    for name in names:
        estimate = estimates[name]
        row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        row |= {f"{name}_count": estimate.count, f"{name}_encoder": encoders[name]}
        if name in ("dino", "clip_i"):
            row[f"{name}_ceiling"] = top.get(name)
    return row
