"""The live view of a run and the list of runs, as HTML: headline, sample pictures, history."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dreambooth import events
from dreambooth.config.subject import together_prompt
from dreambooth.runs.directory import Run, Status
from dreambooth.ui.report import ENDINGS, STAGES, Report, duration

DAMAGED_TITLE = "A damaged run"
STEPS = ("Check", "Load", "Class images", "Encode", "Train", "Save")
"""The stages in a word or two, for the row that shows them all."""
FITTING, MIN_COLUMN = 3, 190
"""More columns of sample pictures than fit are each so many pixels wide, and are scrolled."""
ROWS = 24
"""Sampling steps that are shown, the best aside: more would load hundreds of pictures."""

Url = Callable[[Path], str]
"""(a picture's path) -> where the browser gets it."""


def headline(report: Report, waiting: str = "", twin: str = "") -> str:
    """Title, status, the stages, a progress bar and the sentence; warnings and the other run of a pair below."""
    share = 100 if report.status == "finished" else 100 * report.done / report.total if report.total else 0
    notes = "".join(f"<li class='tip'><strong>Note</strong> {html.escape(text)}</li>" for text in report.warnings)
    row = _stages(report) if report.status not in ("queued", "finished") else ""
    return f"""<section class="live">
<h3>{html.escape(report.name)} {chip(report.status)}</h3>
<p class="facts">{html.escape(report.facts)}</p>{row}
<div class="bar {report.status}" role="progressbar" aria-label="Progress of this stage" aria-valuemin="0"
 aria-valuemax="100" aria-valuenow="{share:.0f}"><span style="width:{share:.1f}%"></span></div>
<p class="now">{html.escape(waiting or report.text)}</p>
<span class="unseen" role="status">{report.status}{f": {STAGES.get(report.stage, report.stage)}" if row else ""}</span>
{f"<p class='twin'>{twin}</p>" if twin else ""}{f"<ul class='findings'>{notes}</ul>" if notes else ""}</section>"""


def _stages(report: Report) -> str:
    names = list(STAGES)
    now = names.index(report.stage) if report.stage in names else 0
    cells = []
    for place, (stage, word) in enumerate(zip(names, STEPS, strict=True)):
        if stage == "class images" and not report.config.prior.active:
            continue
        state = "done" if place < now else "todo" if place > now else "now"
        current = " aria-current='step'" if place == now else ""
        cells.append(f"<li class='{state}'{current}>{word}</li>")
    return f"<ol class='stages'>{''.join(cells)}</ol>"


def waiting_text(place: int | None, seconds: float | None) -> str:
    """A queued run's place in the queue and when its turn comes, in a sentence."""
    if place is None:
        return ENDINGS["queued"]
    where = "next in the queue" if place == 1 else f"number {place} in the queue"
    when = "" if seconds is None else ", starts any moment" if seconds < 1 else f", starts in about {duration(seconds)}"
    return f"Waiting: {where}{when}."


def samples(report: Report, root: Path, url: Url) -> str:
    """A row for each sampling step, newest first: the subjects' pictures, alone and together, then their classes'."""
    best = report.measures.best if report.measures else 0
    columns = _columns(report)
    by_step: dict[int, list[events.Image]] = {}
    for picture in sorted(report.pictures, key=lambda p: (-p.step, p.seed)):
        by_step.setdefault(picture.step, []).append(picture)
    if not by_step:
        every = report.config.train.sample_every
        soon = f"Sample pictures come here every {every} steps." if every else "This run draws no sample pictures."
        return f"<div class='empty'>{soon}</div>" if report.status == "running" else ""
    heads = "".join(
        f"<th scope='col'>{html.escape(name)}<q>{html.escape(prompt)}</q></th>" for prompt, name in columns.items()
    )
    rows = []
    for step in _spread(list(by_step), best):
        cells = []
        for prompt in columns:
            drawn = [
                f"<a href='{url(root / p.path)}' target='_blank'><img src='{url(root / p.path)}' loading='lazy' "
                f"alt='{html.escape(prompt, quote=True)}, step {step}, seed {p.seed}'></a>"
                for p in by_step[step]
                if p.prompt == prompt
            ]
            cells.append(f"<td>{''.join(drawn)}</td>")
        said = f"step {step}" if step else "before"
        mark = " <b title='The best step, as the measures say'>best</b>" if best and step == best else ""
        rows.append(f"<tr><th scope='row'>{said}{mark}</th>{''.join(cells)}</tr>")
    wide = f" style='min-width: {MIN_COLUMN * len(columns)}px'" if len(columns) > FITTING else ""
    return f"""<div class="samples-table" tabindex="0" role="region" aria-label="Sample pictures">
<table id="samples"{wide}><thead><tr><th></th>{heads}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>"""


def _columns(report: Report) -> dict[str, str]:
    """What each prompt shows, what was taught first."""
    config = report.config
    if len(config.subjects) == 1:
        named = {config.instance_prompt: "The subject", config.class_prompt: "Its class"}
    else:
        titles = [subject.fill("{identifier} {class_noun}") for subject in config.subjects]
        nouns = dict.fromkeys(subject.class_noun for subject in config.subjects)
        classes = [f"Class: {noun}" for noun in nouns] + (["The classes together"] if len(nouns) > 1 else [])
        named = dict(zip(config.instance_prompts, titles, strict=True))
        named |= {together_prompt(config.subjects): "Together"}
        named |= dict(zip(config.class_prompts, classes, strict=True))
    return named | {picture.prompt: "Your prompt" for picture in report.pictures if picture.prompt not in named}


def _spread(steps: Sequence[int], best: int) -> list[int]:
    """About `ROWS` of them, evenly chosen, the first, the last and the best among them."""
    if len(steps) <= ROWS:
        return list(steps)
    chosen = {steps[place] for place in np.linspace(0, len(steps) - 1, ROWS).round().astype(int)}
    return [step for step in steps if step in chosen or (best and step == best)]


def history(runs: Sequence[tuple[Run, Report]], chosen: str | None, url: Url, damaged: Sequence[Run] = ()) -> str:
    """The runs as a list of buttons: newest sample picture, subject, status, settings; the damaged ones last."""
    if not (runs or damaged):
        return "<div class='empty'>Your runs will be listed here, with their pictures.</div>"
    blank, items = "<span class='blank'></span>", []
    for run, report in runs:
        seen = _thumbnail(run, report)
        picture = f"<img src='{url(seen)}' alt='' loading='lazy'>" if seen else blank
        said = (
            f"<strong>{html.escape(report.name)}</strong> {chip(report.status)} <em>{ago(report.began)}</em>"
            f"<small>{html.escape(report.facts)}</small>"
        )
        items.append(_item(run, chosen, picture, said))
    for run in damaged:
        said = f"<strong>{DAMAGED_TITLE}</strong> {chip('damaged')}<small>{html.escape(run.id)}</small>"
        items.append(_item(run, chosen, blank, said))
    return f"<ul class='history'>{''.join(items)}</ul>"


def _item(run: Run, chosen: str | None, picture: str, said: str) -> str:
    current = " aria-current='true'" if run.id == chosen else ""
    name = html.escape(run.id, quote=True)
    return f"<li><button type='button' data-run='{name}'{current}>{picture}<span>{said}</span></button></li>"


def _thumbnail(run: Run, report: Report) -> Path | None:
    """The newest sample picture of the subject, else a photo as training sees it."""
    of_subject = [picture for picture in report.pictures if picture.prompt == report.config.instance_prompt]
    paths = [run.path / picture.path for picture in of_subject[-1:]] + [run.path / "photos" / "00.png"]
    return next((path for path in paths if path.is_file()), None)


def twin_text(others: Sequence[tuple[Run, Report]]) -> str:
    """The runs that were trained beside one and differ in their condition alone, with buttons that show them."""
    shown = "".join(
        f"<span>The run {report.config.condition} is {report.status}. "
        f"<button type='button' data-run='{html.escape(run.id, quote=True)}'>Look at it</button></span>"
        for run, report in others
    )
    return f"Trained {'both' if len(others) == 1 else 'three'} ways. {shown}" if others else ""


def chip(status: Status | Literal["damaged"]) -> str:
    """A status as a small label."""
    return f"<span class='chip {status}'>{status}</span>"


def ago(moment: float) -> str:
    """How long ago, in words; no clock time, since the server's time zone is not the visitor's."""
    minutes = max(0, time.time() - moment) / 60
    if minutes < 2:
        return "just now"
    if minutes < 120:
        return f"{minutes:.0f} min ago"
    return f"{minutes / 60:.0f} h ago" if minutes < 2880 else f"{minutes / 1440:.0f} days ago"
