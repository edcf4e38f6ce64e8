"""What the fourth tab does: it draws with a family's models from equal seeds, measures, and lays one over the other."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from dreambooth.apart import Order, Weights
from dreambooth.config.sections import SamplingConfig
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, DreamBoothError, RunError
from dreambooth.evaluation.reports import Cell, Line, draw_sheet
from dreambooth.evaluation.reports.tables import capital
from dreambooth.generate import Picture, check_request
from dreambooth.machine import resolve_device
from dreambooth.metrics.encoders import Encoders, load_encoders
from dreambooth.photos.folder import join_names
from dreambooth.photos.read import open_photo
from dreambooth.runs.directory import Run
from dreambooth.ui import Update, charts, drawing, in_plain_words, models
from dreambooth.ui.compare import figures
from dreambooth.ui.compare.comparison import Comparison, as_html, captioned
from dreambooth.ui.compare.figures import Figures
from dreambooth.ui.doors.limits import MAX_LETTERS
from dreambooth.ui.drawing import Progress
from dreambooth.ui.generate.actions import ideas_for
from dreambooth.ui.report import duration
from dreambooth.ui.studio import Studio, gpu_is_lent
from dreambooth.ui.train.start import train_other_way

NO_RUN = """<div class="empty"><strong>Nothing to compare yet.</strong> Train a subject first. The Train tab can do so
with and without prior preservation from the same seeds; then this page shows side by side what that changes: in the
subject, and in everything else of its class.</div>"""
FAMILY = """<div class="empty"><strong>Trained {ways}.</strong> Each row draws one prompt from the same seed with the
base model, {titles}; then all pictures are measured. Look at the class prompt first: with nothing that keeps its class
the subject tends to take it over.</div>"""
SINGLE = """<div class="empty"><strong>Trained one way.</strong> Each row draws one prompt from the same seed with the
base model and with yours; then all pictures are measured.{more}</div>"""
OTHER_WAY = """ To see what prior preservation does, train this subject the other way too: same photos, seed and
settings."""
COMING = """<div class="empty"><strong>Still to come: {conditions}.</strong> The Train tab shows how it goes; what is
finished is compared too.</div>"""
BASE, YOURS = "Base model", "Your model"
LOOKS = {"without PPL": "instance", "with PPL": "prior", "with drift penalty": "drift"}
"""Of a condition's line in the plots; of any other `OTHER_LOOK`."""
OTHER_LOOK = "both"
MAX_PROMPTS = 12
"""Rows of a comparison: with three models and four pictures that is 144 pictures, which few would wait for."""
CONTEXTS_SHOWN = 4


class Column(NamedTuple):
    """A model that is compared."""

    title: str
    weights: Weights


class Trained(NamedTuple):
    """A run that is compared."""

    title: str
    run: Run

    @property
    def look(self) -> str:
        """Of its line in the plots."""
        return LOOKS["without PPL"] if self.title == YOURS else LOOKS.get(self.run.config.condition, OTHER_LOOK)


@dataclass(frozen=True)
class Actions:
    """What the tab does; `compare` is a named endpoint."""

    studio: Studio
    pictures: gr.Gallery

    def list_runs(self, owner: str, chosen: str | None, drawn: bool | None) -> tuple[Any, ...]:
        """The visitor's finished runs, those of a family once; keeps the chosen one, else takes the newest.

        What the status says of a comparison that was `drawn`, or is now, stays.
        """
        runs = models.finished_runs(self.studio, owner)
        choices, seen = [], set()
        for run in runs:
            if run.id in seen:
                continue
            family = self._family(run)
            seen |= {one.id for one in family}
            choices.append((models.label(run, _ways(len(family)) if len(family) > 1 else None), run.id))
        known = [run_id for _, run_id in choices]
        value = chosen if chosen in known else known[0] if known else None
        asked = gr.Column(visible=bool(runs))
        if not runs:
            nothing = [gr.skip()] * 3 if value == chosen else [NO_RUN, gr.Button(visible=False), ""]
            return gr.Dropdown(choices, value=value), asked, *nothing, *[gr.skip()] * 3
        words, *others = self.about(owner, value)
        about = [words if drawn is None else gr.skip(), *others]
        if value == chosen:  # not sent again: the page may have gone on meanwhile
            return gr.Dropdown(choices), asked, *about, *[gr.skip()] * 3
        return gr.Dropdown(choices, value=value), asked, *about, *self._settings(self.studio.own_run(owner, value))

    def prefill(self, owner: str, run: str | None) -> tuple[Any, ...]:
        """What there is to compare, the prompts to begin with, and the run's own steps and guidance."""
        try:
            chosen = self.studio.own_run(owner, run)
        except DreamBoothError:  # still being typed
            return (gr.skip(),) * 6
        return *self.about(owner, run), *self._settings(chosen)

    def about(self, owner: str, run: str | None) -> tuple[str, gr.Button, str]:
        """What a run can be compared with, whether it can be trained the other way, and how it drifted."""
        chosen = self.studio.own_run(owner, run)
        config, partners, family = chosen.config, self.studio.partners(chosen), self._family(chosen)
        possible = config.prior.weight > 0 and config.method != "textual_inversion"
        free = not partners and chosen.status == "finished" and possible
        words = []
        if len(family) > 1:
            titles = join_names([one.config.condition for one in family])
            words.append(FAMILY.format(ways=_ways(len(family)), titles=titles))
        if missing := [f"{one.config.condition} ({one.status})" for one in partners if one.status != "finished"]:
            words.append(COMING.format(conditions=join_names(missing)))
        told = "".join(words) or SINGLE.format(more=OTHER_WAY if free else "")
        which = "without" if config.prior.active else "with"
        return told, gr.Button(f"Train it {which} PPL too", visible=free), self._drift(chosen)

    def _settings(self, run: Run) -> tuple[str, int, float]:
        config = run.config
        ideas = ideas_for(config.base_model, config.subjects)[: max(CONTEXTS_SHOWN, len(config.subjects) + 1)]
        prompts = [*config.class_prompts, *ideas][:MAX_PROMPTS]
        return "\n".join(prompts), *models.shown_sampling(config.sampling)

    def _drift(self, run: Run) -> str:
        """How a run's class came to look like its subject while it trained; all runs' of a family."""
        trained = [(one.title, one.look, models.measures_of(one.run)) for one in self.trained(run)]
        return charts.drift(trained, run.config.train.steps)

    @in_plain_words
    def train_other_way(self, owner: str, run: str) -> str:
        """Queue the run that makes a pair with this one, and return its id."""
        return train_other_way(self.studio, owner, run).id

    @in_plain_words
    def compare(
        self, owner: str, run: str, prompts: str, steps: int, guidance_scale: float, seed: int, count: int
    ) -> Iterator[tuple[Any, ...]]:
        """Draw row by row, then measure; yields all pictures, the sheet, the table, how it goes, the figures as HTML
        and as values, and the comparison itself."""
        chosen = self.studio.own_run(owner, run)
        texts, seed, count = checked_prompts(prompts), int(seed or 0), int(count)
        check_request(texts, count, seed)
        sampling = models.checked_sampling(chosen.config.drawing, steps, guidance_scale)
        columns: list[Column] = []

        def open_models(tell: Callable[[list[Column]], None]) -> None:
            tell(self.columns(chosen))

        for opened in drawing.as_it_happens(open_models):
            columns = opened or columns
            if not columns:
                yield *[gr.skip()] * 3, drawing.bar_html("Getting the models", 0), "", None, gr.skip()
        began = time.monotonic()
        what = f"{len(texts)} prompt{'' if len(texts) == 1 else 's'} with {len(columns)} models"
        shown = yield from self._draw(columns, texts, seed, count, sampling, what)
        measured, told = None, ""
        try:
            for measured in self._measure(shown, chosen, count):
                if measured is None:
                    yield *[gr.skip()] * 3, drawing.bar_html("Measuring the pictures", 1), "", None, gr.skip()
        except DreamBoothError as error:  # the pictures are there all the same
            told = f"<div class='empty'><strong>Not measured.</strong> {html.escape(str(error))}</div>"
        blank = [cell for line in shown.lines for cell in line.cells if cell and cell.problem]
        words = f"{what} in {duration(time.monotonic() - began)}."
        note = drawing.problems_html([("A picture", cell.problem) for cell in blank])
        note += models.unread(columns[-1].weights, texts)
        ended = f"<div class='drawing' role='status'><p>{words}</p></div>{note}"
        table, values = (figures.as_html(measured), figures.as_dict(measured)) if measured else (told, None)
        yield captioned(shown), shown.sheet, as_html(shown), ended, table, values, shown

    def _draw(
        self, columns: list[Column], texts: list[str], seed: int, count: int, sampling: SamplingConfig, what: str
    ) -> Generator[tuple[Any, ...], None, Comparison]:
        """Draw the prompts with the models; yields what `compare` does, and returns the comparison."""
        places = [(row, column) for row in range(len(texts)) for column in range(len(columns))]
        orders = [Order(columns[column].weights, texts[row], seed, count) for row, column in places]
        progress, shown = Progress(len(orders)), Comparison(tuple(column.title for column in columns))
        for news in drawing.paint(orders, sampling, "", True):
            ended = False
            if isinstance(news, list):
                row, column = places[progress.drawn]
                if column == 0:
                    empty = (None,) * len(columns)
                    new = (Line(texts[row], picture.seed, empty) for picture in news)
                    shown = shown._replace(lines=(*shown.lines, *new))
                shown = shown.with_pictures(row, column, [self._kept(picture) for picture in news])
                ended = column == len(columns) - 1
            if ended:
                shown = self._with_sheet(shown)
            if progress.take(news):
                table = as_html(shown) if isinstance(news, list) else gr.skip()
                full = (captioned(shown), shown.sheet) if ended else (gr.skip(), gr.skip())
                yield *full, table, progress.as_html(what), "", None, shown if ended else gr.skip()
        return shown

    def _measure(self, shown: Comparison, run: Run, count: int) -> Iterator[Figures | None]:
        """Measure what was drawn; nothing while that goes on, and the figures at the end."""

        def work(tell: Callable[[Figures | None], None]) -> None:
            encoders, notes = _encoders(run.config, diversity=count > 1)
            photos = [open_photo(path, min_side=1) for path in sorted((run.path / "photos").glob("*.png"))]
            if not photos:
                raise RunError("This run's photos are gone, with which pictures would be compared.", "Train again.")
            with drawing.PENCIL:
                for news in figures.measure(shown, run.config, photos, encoders, notes):
                    tell(news)

        return drawing.as_it_happens(work)

    def columns(self, run: Run) -> list[Column]:
        """The base model and the run; all runs of a family, without PPL first."""
        trained = [Column(one.title, models.weights_of(one.run)) for one in self.trained(run)]
        return [Column(BASE, Weights(models.base_folder(run.config))), *trained]

    def trained(self, run: Run) -> list[Trained]:
        """The run, or all of its family by their conditions."""
        family = self._family(run)
        return [Trained(YOURS if len(family) == 1 else capital(one.config.condition), one) for one in family]

    def _family(self, run: Run) -> list[Run]:
        """The run and those that differ from it in their condition alone, as far as they are finished: without PPL,
        with it, with a drift penalty, with both."""
        others = [one for one in self.studio.partners(run) if one.status == "finished"]
        return sorted((run, *others), key=lambda one: (one.config.drift.weight > 0, one.config.prior.active))

    def _kept(self, picture: Picture) -> Cell:
        if picture.problem:
            return Cell("", picture.problem)
        return Cell(drawing.keep_file(self.pictures, f"seed-{picture.seed}.png", picture.image.save))

    def _with_sheet(self, shown: Comparison) -> Comparison:
        sheet = draw_sheet(shown.titles, shown.lines)
        return shown._replace(sheet=drawing.keep_file(self.pictures, "comparison.png", sheet.save))

    def offer(self, shown: Comparison, line: int | None, left: str | None, right: str | None) -> tuple[Update, ...]:
        """The sheet, and the lines and models that can be laid over each other; keeps what is chosen already."""
        lines = [(f"{line.prompt} · seed {line.seed}", number) for number, line in enumerate(shown.lines)]
        titles, there = shown.titles, bool(lines)
        if there and not {left, right} <= set(titles):
            left, right = titles[-2:]
        line = line if there and line in range(len(lines)) else 0 if there else None
        return (
            gr.Dropdown(lines, value=line),
            gr.Radio(titles, value=left),
            gr.Radio(titles, value=right),
            gr.Column(visible=there),
            gr.DownloadButton(value=shown.sheet or None, visible=there),
        )

    def lay_over(self, shown: Comparison, line: int | None, left: str, right: str) -> tuple[str, str] | None:
        """The two pictures, or none where one was held back."""
        if line is None or not 0 <= line < len(shown.lines) or not {left, right} <= set(shown.titles):
            return None
        one, other = (shown.lines[line].cells[shown.titles.index(title)] for title in (left, right))
        return (one.path, other.path) if one and other and one.path and other.path else None


def _encoders(config: Config, *, diversity: bool) -> tuple[Encoders, list[str]]:
    """What measures pictures of a run's models, and why there is no DIV where its package is missing."""
    device = "cpu" if gpu_is_lent() else resolve_device("auto")
    try:
        return load_encoders(config.evaluation, config.base_model, device, perceptual=diversity), []
    except ConfigError as error:
        return load_encoders(config.evaluation, config.base_model, device, perceptual=False), [str(error)]


def _ways(count: int) -> str:
    return {2: "both ways", 3: "three ways"}.get(count, f"{count} ways")


def checked_prompts(text: str | None) -> list[str]:
    """The prompts in a text, one a line, each once; raises `ConfigError` for none or too many."""
    prompts = list(dict.fromkeys(line.strip() for line in (text or "").splitlines() if line.strip()))
    if not prompts:
        raise ConfigError("There is no prompt.", "Write one a line, the class prompt first.")
    if long := [prompt for prompt in prompts if len(prompt) > MAX_LETTERS]:
        raise ConfigError(
            f"The prompt {long[0][:40]!r}… has {len(long[0]):,} characters.",
            f"Give at most {MAX_LETTERS:,}; models read a few hundred.",
        )
    if len(prompts) > MAX_PROMPTS:
        raise ConfigError(f"{len(prompts)} prompts are too many.", f"Give at most {MAX_PROMPTS}.")
    return prompts
