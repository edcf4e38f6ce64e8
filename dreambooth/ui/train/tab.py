"""The second tab: the settings of a training, and the visitor's runs as their directories tell them, live or over."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import gradio as gr

from dreambooth.config.settings import LEARNS_WORD
from dreambooth.errors import ConfigError, DreamBoothError, ModelError, RunError
from dreambooth.methods import methods
from dreambooth.runs.directory import Run, Status
from dreambooth.ui import charts
from dreambooth.ui.doors.limits import is_person
from dreambooth.ui.inputs import said
from dreambooth.ui.photos.crops import HELP as CROPS_HELP
from dreambooth.ui.photos.crops import Boxes, Photos, aligned
from dreambooth.ui.photos.tab import Kept, Subject, show_in, show_prompts, taught, words
from dreambooth.ui.report import Digests, Report
from dreambooth.ui.studio import DAMAGED, QUIET, Studio, Upload, Ways, in_plain_words, title
from dreambooth.ui.train import estimate as estimates
from dreambooth.ui.train import live as view
from dreambooth.ui.train import settings as forms
from dreambooth.ui.train.estimate import Estimates
from dreambooth.ui.train.settings import NO_WORD, Choices, Form

POLL = 1.0
"""Seconds between looks at a run's directory."""
GONE, UNREADABLE = -2, -3
"""In place of the size of a run's events, where there is no such run, and where it is damaged."""
NO_RUN = """<div class="empty"><strong>Nothing trains yet.</strong> Add photos in the first tab, then start a training.
It goes on when you close this page, and is here when you come back.</div>"""
SURE = """<p class="aside">Delete this run with its photos, pictures and model? There is no way back.</p>"""
SEVERAL_HELP = """`more_subjects`: further subjects of the same run, each {"identifier": …, "class_noun": …, "photos":
how many of `more_photos`, which holds those of all of them in order}, and if you like "crops"."""
SEVERAL_HINT = "Let `photos` of each of `more_subjects` say how many of them are its own."
METHOD_HELP = """`learned`: for the method lora, the id of a finished run of yours of the method textual_inversion.
Methods that learn a word put the identifier into angle brackets."""
OWNER_HELP = "`owner`: 20 to 64 letters and digits that you make up and keep; who knows them can open your runs."
MORE_HELP = """`more`: any further settings, nested as in a config file, such as {"train": {"batch_size": 2}}."""
SMALL = {"scale": 0, "min_width": 130}
ONE_AT_A_TIME = {"concurrency_id": "estimate", "concurrency_limit": 1}
"""Arguments of the events that estimate: a rehearsal takes a processor for seconds."""
SHOW = """document.getElementById("headline").scrollIntoView({block: "nearest", behavior: "smooth"})"""
"""Brings the run that is looked at into view (Gradio 6.31 scrolls to no output of its own)."""
CHOOSE = f"""element.addEventListener("click", (event) => {{
  const button = event.target.closest("[data-run]");
  if (!button) return;
  trigger("click", {{run: button.dataset.run}});
  {SHOW};
}});"""
"""Tells which run's button in a list was clicked."""


@dataclass(frozen=True)
class Live:
    """The view of one run; `watch` fills all but the buttons that ask whether to delete."""

    run: gr.Textbox
    """The id of the run that is looked at; never seen."""
    headline: gr.HTML
    stop: gr.Button
    resume: gr.Button
    delete: gr.Button
    to_pictures: gr.Button
    progress: gr.HTML
    """What is measured."""
    curves: gr.HTML
    samples: gr.HTML
    history: gr.HTML
    seen: gr.State
    """The `Seen` of this page."""


@dataclass(frozen=True)
class Sure:
    """What asks whether a run is to be deleted."""

    group: gr.Column
    yes: gr.Button
    no: gr.Button


class Seen(NamedTuple):
    """What a page showed last, so that a look at the same again costs and sends nothing."""

    run: str
    size: int = -1
    """Bytes of its events."""
    status: Status | None = None
    pictures: int = -1
    steps: int = -1
    measured: int = -1
    waiting: str = ""
    twin: str = ""
    moving: tuple[tuple[str, Status], ...] = ()
    """The visitor's runs that waited or trained, each with its status."""


def build(studio: Studio, owner: gr.components.Component, subject: Subject) -> tuple[Live, dict[str, Any]]:
    """Lay the tab out and wire it; also returns the arguments of the event that lists the visitor's runs anew."""
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=2, min_width=300):
            show_in(gr.HTML(show_prompts(subject.identifier.value, subject.class_noun.value)), subject)
            form = forms.build(studio)
            consent = gr.Checkbox(
                False,
                label="Everybody on these photos agrees",
                visible=False,
                elem_id="consent",
                info="For children their guardians do. Without it no training of people starts here.",
            )
            needs = gr.HTML(estimates.FIRST_PHOTOS, elem_id="estimate")
            start = gr.Button("Start training", variant="primary", elem_id="start", interactive=False)
        with gr.Column(scale=3, min_width=320):
            live, sure = _live()
    # Changes with every visit of the tab; Gradio 6.31 tells no changes of a State after events without a queue.
    visited = gr.Number(0, precision=0, visible="hidden")
    top = form.top
    top.base_model.change(lambda name: name, top.base_model, subject.base_model, **QUIET)
    if studio.public:
        gr.on(
            [subject.class_noun.change, subject.changed.change, top.recipe.change],
            _ask_for_consent,
            [subject.class_noun, top.recipe, subject.kept],
            consent,
            **QUIET,
        )
        subject.photos.change(lambda: False, None, consent, **QUIET)  # other photos, other people

    actions = Actions(studio, form, live, Estimates(studio.settings))
    refresh = {
        "fn": actions.refresh,
        "inputs": [owner, live.run, visited],
        "outputs": [live.run, live.history, visited, start],
        **QUIET,
    }
    _wire_method(actions, owner, subject, visited)
    given = [subject.photos.change, subject.changed.change, subject.to_training.click, visited.change]
    changes = [part.change for part in form.components if part is not top.method]  # the recipe changes with it
    gr.on(
        [*given, *changes],
        actions.show_estimate,
        [*subject.all, *form.components],
        needs,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
        **ONE_AT_A_TIME,
    )
    gr.on(
        [*given, top.base_model.change],
        actions.show_costs,
        [*subject.all, top.base_model],
        top.method,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_id="costs",
        concurrency_limit=1,
    )
    _wire_start(actions, owner, subject, consent, start, refresh)
    _wire_runs(actions, owner, sure, refresh)
    return live, refresh


def _wire_method(actions: Actions, owner: gr.components.Component, subject: Subject, visited: gr.Number) -> None:
    """A method, or a word that is taken over, decides how the identifier is written."""
    top = actions.form.top
    gr.on(
        [top.method.change, visited.change], actions.offer_words, [owner, top.method, top.learned], top.learned, **QUIET
    )
    gr.on([top.method.change, top.learned.change], _makes_a_word, [top.method, top.learned], subject.new_word, **QUIET)
    top.learned.input(actions.take_word, [owner, top.learned], [subject.identifier, subject.class_noun], **QUIET)


def _wire_start(
    actions: Actions,
    owner: gr.components.Component,
    subject: Subject,
    consent: gr.Checkbox,
    start: gr.Button,
    refresh: dict[str, Any],
) -> None:
    """The button, which takes the whole form, and the same with named parameters for API callers."""
    live, what = actions.live, [owner, subject.photos, subject.identifier, subject.class_noun]
    started, more = gr.JSON(label="run ids", visible=False), gr.JSON(label="more", visible=False)
    more_subjects = gr.JSON(label="more_subjects", visible=False)
    more_photos = gr.Gallery(label="more_photos", type="filepath", visible=False, interactive=True)
    clicked = start.click(
        actions.start_from_page,
        [owner, *subject.all, consent, *actions.form.components],
        started,
        api_visibility="private",
        show_progress_on=start,
    )
    shown = clicked.success(actions.show_started, started, [live.headline, live.run], **QUIET)
    shown.success(**refresh)
    shown.success(None, js=f"() => {{ {SHOW}; }}", **QUIET)
    gr.Button(visible=False).click(
        actions.start_training,
        [*what, *forms.for_callers(actions.studio), subject.given_crops, consent, more, more_subjects, more_photos],
        started,
        api_name="start_training",
        api_description="Queue a training and return its run's id in a list. `ways` two: two runs and ids, with PPL "
        "and without it; three: one with a drift penalty in its place, too. Settings that are left out are as the "
        f"recipe says. {OWNER_HELP} {METHOD_HELP} {CROPS_HELP} {MORE_HELP} {SEVERAL_HELP}",
    )
    gr.api(
        actions.estimate,
        api_name="estimate",
        **ONE_AT_A_TIME,
        api_description="Memory in bytes and time in seconds that a training with these settings is expected to need, "
        f"without loading or downloading anything. {MORE_HELP}",
    )


def _live() -> tuple[Live, Sure]:
    run = gr.Textbox(None, label="run", visible="hidden")
    headline = gr.HTML(NO_RUN, elem_id="headline", js_on_load=CHOOSE, apply_default_css=False)
    with gr.Row(elem_classes="actions"):
        to_pictures = gr.Button("Next: make pictures", variant="primary", visible=False, **SMALL | {"min_width": 210})
        resume = gr.Button("Resume", variant="primary", visible=False, **SMALL)
        stop = gr.Button("Stop", variant="stop", visible=False, **SMALL)
        delete = gr.Button("Delete", visible=False, **SMALL)
    with gr.Column(visible=False, elem_classes="sure", elem_id="sure") as group:
        gr.HTML(SURE)
        with gr.Row():
            yes = gr.Button("Delete for good", variant="stop", size="sm")
            no = gr.Button("Keep it", size="sm")
    curves = gr.HTML(elem_id="curves", apply_default_css=False)
    progress = gr.HTML(elem_id="progress", apply_default_css=False)
    samples = gr.HTML(elem_id="sample-pictures", apply_default_css=False)
    gr.HTML("<h3 class='heading'>Your runs</h3>")
    history = gr.HTML(view.history([], None, str), elem_id="history", js_on_load=CHOOSE, apply_default_css=False)
    live = Live(run, headline, stop, resume, delete, to_pictures, progress, curves, samples, history, gr.State(None))
    return live, Sure(group, yes, no)


def _wire_runs(actions: Actions, owner: gr.components.Component, sure: Sure, refresh: dict[str, Any]) -> None:
    """What is done with a run that is there."""
    live = actions.live
    for event in (
        live.stop.click(
            actions.stop_training,
            [owner, live.run],
            api_name="stop_training",
            api_description="Take a run out of the queue, or stop it after its current step; it can be resumed.",
        ),
        live.resume.click(
            actions.resume_training,
            [owner, live.run],
            api_name="resume_training",
            api_description="Go on with a run that was stopped, cut off or failed.",
        ),
        sure.yes.click(
            actions.delete_run,
            [owner, live.run],
            api_name="delete_run",
            api_description="Delete a run that has ended, with its photos, pictures and model.",
        ),
    ):
        event.success(**refresh)
    live.delete.click(lambda: gr.Column(visible=True), None, sure.group, **QUIET)
    gr.on([sure.yes.click, sure.no.click, live.run.change], lambda: gr.Column(visible=False), None, sure.group, **QUIET)
    gr.on([live.headline.click, live.history.click], _chosen, None, live.run, **QUIET)
    ticking = [live.run.change, gr.Timer(POLL).tick]
    gr.on(ticking, actions.watch, [owner, live.run, live.seen], list(vars(live).values()), **QUIET)
    gr.api(actions.runs, api_name="runs", api_description=f"Your runs, newest first. {OWNER_HELP}")
    gr.api(actions.run_status, api_name="run_status", api_description="Where one of your runs stands.")


def _ask_for_consent(class_noun: str | None, recipe: str, kept: Sequence[Kept] = ()) -> dict:
    nouns = [class_noun or "", *(one.class_noun for one in kept)]
    return gr.Checkbox(visible=any(map(is_person, nouns)) or recipe == "sd15-person")


def _damaged_summary(run: Run) -> dict[str, Any]:
    return {"id": run.id, "title": view.DAMAGED_TITLE, "status": "damaged", "text": " ".join(DAMAGED)}


def _makes_a_word(method: str, learned: str | None) -> bool:
    return method in LEARNS_WORD or (method == "lora" and bool(learned))


def _further(given: Any, photos: Photos | None, new_word: bool) -> Iterator[tuple[Upload, dict[str, str]]]:
    """Further subjects as an API caller gives them; raises `ConfigError` for what is none."""
    paths = [path for path, _ in photos or []]
    for number, one in enumerate(given if isinstance(given, list) else [given] if given else [], 2):
        count = one.get("photos") if isinstance(one, dict) else None
        if type(count) is not int or not 0 < count <= len(paths):
            raise ConfigError(f"Subject {number} has no photos, or more than are left of `more_photos`.", SEVERAL_HINT)
        said = [one.get(name) if isinstance(one.get(name), str) else "" for name in ("identifier", "class_noun")]
        own, paths = paths[:count], paths[count:]
        boxes = aligned([(path, None) for path in own], {}, one.get("crops"))
        yield Upload(own, boxes), words(*said, new_word)
    if paths:
        raise ConfigError(f"{len(paths)} of `more_photos` belong to no subject.", SEVERAL_HINT)


def _chosen(event: gr.EventData) -> str:
    return said(event, "run")


@dataclass(frozen=True)
class Actions:
    """What the tab does; the public ones are named endpoints."""

    studio: Studio
    form: Form
    live: Live
    estimates: Estimates
    digests: Digests = field(default_factory=Digests)

    # -- starting

    @in_plain_words
    def start_training(
        self,
        owner: str,
        photos: Photos | None,
        identifier: str,
        class_noun: str,
        recipe: str | None = None,
        base_model: str | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        prior: bool | None = None,
        class_images: int | None = None,
        text_encoder: bool | None = None,
        seed: int | None = None,
        ways: Ways = "one",
        method: str | None = None,
        drift: float | None = None,
        learned: str | None = None,
        crops: list | None = None,
        consent: bool = False,
        more: dict | None = None,
        more_subjects: list | None = None,
        more_photos: Photos | None = None,
    ) -> list[str]:
        """Queue one training, or several that differ in what keeps the class alone, and return the ids."""
        choices = Choices(
            recipe,
            base_model,
            steps,
            learning_rate,
            prior,
            class_images,
            text_encoder,
            seed,
            ways,
            method,
            drift,
            learned,
        )
        settings = choices.as_settings(self.studio, more)
        new_word = _makes_a_word(forms.method_of(settings), learned)
        uploads, said = taught(photos, {}, identifier, class_noun, (), new_word, crops)
        for upload, one in _further(more_subjects, more_photos, new_word):
            uploads.append(upload)
            said.append(one)
        return self._start(owner, settings, choices, uploads, said, consent)

    @in_plain_words
    def start_from_page(
        self,
        owner: str,
        photos: Photos | None,
        crops: Boxes,
        identifier: str,
        class_noun: str,
        kept: list[Kept],
        consent: bool,
        *values: Any,
    ) -> list[str]:
        """The same with what the page shows."""
        settings, choices, uploads, said = self._shown(photos, crops, identifier, class_noun, kept, values)
        return self._start(owner, settings, choices, uploads, said, consent)

    def _start(
        self,
        owner: str,
        settings: dict,
        choices: Choices,
        uploads: list[Upload],
        said: list[dict[str, str]],
        consent: bool,
    ) -> list[str]:
        settings = settings | {"subject": said[0], "more_subjects": said[1:]}
        known = self.estimates.known(settings)
        runs = self.studio.start(
            owner,
            settings,
            uploads[0].photos,
            crops=uploads[0].crops,
            others=uploads[1:],
            learned=choices.learned,
            ways=choices.ways or "one",
            consent=consent,
            seconds=known.seconds if known else None,
        )
        return [run.id for run in runs]

    def _shown(
        self,
        photos: Photos | None,
        crops: Boxes,
        identifier: str,
        class_noun: str,
        kept: list[Kept],
        values: Sequence[Any],
    ) -> tuple[dict[str, Any], Choices, list[Upload], list[dict[str, str]]]:
        """What the page shows: settings nested like a config file, the choices on top, and every subject."""
        count = len(Choices._fields)
        choices = Choices(*values[:count])
        settings = choices.as_settings(self.studio, self.form.more_settings(values[count:]))
        new_word = _makes_a_word(forms.method_of(settings), choices.learned)
        return settings, choices, *taught(photos, crops, identifier, class_noun, kept, new_word)

    def show_started(self, runs: list[str]) -> tuple[str, str]:
        """The first of the new runs, looked at."""
        if not (isinstance(runs, list) and runs and isinstance(runs[0], str)):  # who makes requests by hand chose it
            raise RunError("No training was started.", "Press Start training.")
        return "<div class='empty' role='status'>Your training waits for its turn …</div>", runs[0]

    @in_plain_words
    def estimate(
        self,
        recipe: str | None = None,
        base_model: str | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        prior: bool | None = None,
        class_images: int | None = None,
        text_encoder: bool | None = None,
        ways: Ways = "one",
        method: str | None = None,
        drift: float | None = None,
        more: dict | None = None,
    ) -> dict[str, Any]:
        """What a training needs; what is not given is as the recipe says."""
        choices = Choices(
            recipe, base_model, steps, learning_rate, prior, class_images, text_encoder, None, ways, method, drift, None
        )
        return estimates.as_dict(self.estimates.of(choices.as_settings(self.studio, more), ways))

    def show_estimate(
        self, photos: Photos | None, crops: Boxes, identifier: str, class_noun: str, kept: list[Kept], *values: Any
    ) -> Iterator[str]:
        """The estimate of what the form shows, as HTML; said there, not in a toast, since nobody asked for it."""
        if not (photos or kept):
            yield estimates.FIRST_PHOTOS
            return
        yield estimates.ESTIMATING
        try:
            settings, choices, _, said = self._shown(photos, crops, identifier, class_noun, kept, values)
            settings |= {"subject": said[0], "more_subjects": said[1:]}
            yield estimates.as_html(self.estimates.of(settings, choices.ways))
        except DreamBoothError as error:
            yield estimates.refusal_html(error)

    # -- the method

    def show_costs(
        self, photos: Photos | None, crops: Boxes, identifier: str, class_noun: str, kept: list[Kept], base_model: str
    ) -> Iterator[gr.Radio]:
        """What each method costs with its recipe on that base model, one after the other as they are estimated; not
        before there are photos, since nobody asked for it."""
        usual = {method.name: forms.usual_settings(self.studio, base_model, method.name) for method in methods()}
        known = {name: self.estimates.known(settings) for name, settings in usual.items()}
        costs = {name: estimates.in_short(found) if found else "Estimating …" for name, found in known.items()}
        for name in [name for name, found in known.items() if not found] if photos or kept else ():
            yield gr.Radio(forms.method_choices(costs))
            costs[name] = self._cost(usual[name])
        yield gr.Radio(forms.method_choices(costs if photos or kept else {}))

    def _cost(self, settings: dict[str, Any]) -> str:
        try:
            return estimates.in_short(self.estimates.of(settings))
        except ModelError:
            return "Size, time and memory are known once this base model is here."
        except ConfigError as error:
            return error.message

    @in_plain_words
    def offer_words(self, owner: str, method: str, chosen: str | None) -> gr.Dropdown:
        """The visitor's runs that learned a word, for a method that can go on from one; keeps the chosen one."""
        choices = [NO_WORD]
        if method == "lora":
            learned = [run for run, _ in self._own(owner) if run.config.method == "textual_inversion"]
            choices += [(title(run), run.id) for run in learned if run.status == "finished"]
        value = chosen if chosen in {run_id for _, run_id in choices} else ""
        return gr.Dropdown(choices, value=value, visible=len(choices) > 1)

    @in_plain_words
    def take_word(self, owner: str, learned: str | None) -> list[Any]:
        """The word that was chosen, without its angle brackets, and what it means, for identifier and class noun."""
        try:
            subject = self.studio.own_run(owner, learned).config.subject
        except DreamBoothError:  # none is chosen
            return [gr.skip()] * 2
        return [subject.identifier.strip("<>"), subject.class_noun]

    # -- runs that are there

    @in_plain_words
    def stop_training(self, owner: str, run: str) -> None:
        """Stop a run after its current step."""
        self.studio.stop(owner, run)

    @in_plain_words
    def resume_training(self, owner: str, run: str) -> None:
        """Queue a run again that ended early."""
        self.studio.resume(owner, run)

    @in_plain_words
    def delete_run(self, owner: str, run: str) -> None:
        """Remove a run with all that belongs to it."""
        self.studio.delete(owner, run)

    @in_plain_words
    def runs(self, owner: str) -> list[dict[str, Any]]:
        """This visitor's runs, newest first, and then the damaged ones."""
        runs, damaged = self.studio.own_runs(owner), self.studio.damaged_runs(owner)
        return [*map(self._summary, runs), *map(_damaged_summary, damaged)]

    @in_plain_words
    def run_status(self, owner: str, run: str) -> dict[str, Any]:
        """Where a run of this visitor stands."""
        if self.studio.is_damaged(owner, run):
            return _damaged_summary(Run(self.studio.root / run))
        return self._summary(self.studio.own_run(owner, run))

    def _summary(self, run: Run) -> dict[str, Any]:
        partners, worker = [partner.id for partner in self.studio.partners(run)], self.studio.worker
        return {
            "id": run.id,
            **self.digests.report(run).as_dict(),
            "partner": partners[0] if partners else None,
            "partners": partners,
            "condition": run.config.condition,
            "position": worker.position(run),
            "seconds_until_start": worker.seconds_until_start(run),
        }

    # -- the page

    @in_plain_words
    def refresh(self, owner: str, run: str | None, visited: int | None) -> tuple[str | None, str, int, dict]:
        """List the visitor's runs, keep the chosen one or take the newest; who is known by now may start one."""
        runs = self._own(owner)
        ids = [*(own.id for own, _ in runs), *(own.id for own in self._damaged(owner))]
        chosen = run if run in ids else ids[0] if ids else None
        return chosen, self._history(owner, runs, chosen), (visited or 0) + 1, gr.Button(interactive=True)

    def watch(self, owner: str, run_id: str | None, seen: Seen | None) -> Any:
        """Fill `Live` with what is new in the run's directory since `seen`."""
        if not (run_id or seen):
            return self._nothing()
        damaged = self.studio.is_damaged(owner, run_id)
        gone = Seen(run_id or "", UNREADABLE if damaged else GONE)
        try:
            if run_id:
                return self._look(owner, self.studio.own_run(owner, run_id), seen)
            return self._blank(NO_RUN, None)
        except DreamBoothError as error:  # deleted or damaged: said in its place, for a toast would come every second
            said = html.escape(str(error).replace(str(self.studio.root), "runs"))
            if seen == gone:
                return self._nothing()
            shown = {self.live.delete: gr.Button(visible=damaged)}
            return self._blank(f"<div class='empty'>{said}</div>", gone) | shown
        except FileNotFoundError:  # deleted at this moment
            return self._nothing()

    def _nothing(self) -> list[Any]:
        return [gr.skip()] * len(vars(self.live))

    def _blank(self, headline: str, seen: Seen | None) -> dict[gr.blocks.Block, Any]:
        live = self.live
        buttons = (live.stop, live.resume, live.delete, live.to_pictures)
        hidden = {button: gr.Button(visible=False) for button in buttons}
        blank = dict.fromkeys((live.progress, live.curves, live.samples), "")
        return {live.headline: headline, **hidden, **blank, live.seen: seen}

    def _look(self, owner: str, run: Run, seen: Seen | None) -> Any:
        live, worker = self.live, self.studio.worker
        before = seen if seen and seen.run == run.id else Seen(run.id)
        report = self.digests.report(run)
        waiting = ""
        if report.status == "queued":
            waiting = view.waiting_text(worker.position(run), worker.seconds_until_start(run))
        moving = tuple((own, Run(self.studio.root / own).status) for own, _ in before.moving)
        if (before.size, before.waiting, before.moving) == (report.size, waiting, moving):
            return self._nothing()
        now = Seen(
            run.id,
            report.size,
            report.status,
            len(report.pictures),
            report.losses.shape[1],
            report.measured,
            waiting,
            before.twin,
            before.moving,
        )
        new: dict[gr.blocks.Block, Any] = {}
        ended_or_measured = before.status != now.status or before.measured != now.measured
        if ended_or_measured:
            new[live.progress] = charts.progress(report)
        if before.pictures != now.pictures or ended_or_measured:
            new[live.samples] = view.samples(report, run.path, self._url)
        if before.status != now.status or before.pictures != now.pictures or before.moving != moving:
            runs = self._own(owner)
            new[live.history] = self._history(owner, runs, run.id)
            now = now._replace(
                moving=tuple((own.id, of_own.status) for own, of_own in runs if of_own.moving),
                twin=view.twin_text([(other, self.digests.report(other)) for other in self.studio.partners(run)]),
            )
        if before.status != now.status:
            new[live.stop] = gr.Button(visible=report.moving)
            new[live.resume] = gr.Button(visible=report.resumable)
            new[live.delete] = gr.Button(visible=not report.moving)
            new[live.to_pictures] = gr.Button(visible=report.status == "finished")
        if before.steps != now.steps:
            new[live.curves] = view.curves(report)
        return new | {live.headline: view.headline(report, waiting, now.twin), live.seen: now}

    def _own(self, owner: str) -> list[tuple[Run, Report]]:
        return [(run, self.digests.report(run)) for run in self.studio.own_runs(owner)]

    def _damaged(self, owner: str) -> list[Run]:
        return self.studio.damaged_runs(owner)

    def _history(self, owner: str, runs: list[tuple[Run, Report]], chosen: str | None) -> str:
        return view.history(runs, chosen, self._url, self._damaged(owner))

    def _url(self, picture: Path) -> str:
        """Where the browser gets a picture: a copy in Gradio's folder, so that it never serves the runs' folder."""
        return f"gradio_api/file={quote(self.live.samples.move_resource_to_block_cache(picture))}"
