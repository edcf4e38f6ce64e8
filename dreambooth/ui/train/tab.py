"""The second tab: the settings of a training, and the visitor's runs as their directories tell them, live or over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.ui import QUIET
from dreambooth.ui.doors.limits import is_person
from dreambooth.ui.inputs import said
from dreambooth.ui.photos.crops import HELP as CROPS_HELP
from dreambooth.ui.photos.tab import Subject, show_in
from dreambooth.ui.photos.taught import Kept, show_prompts
from dreambooth.ui.studio import Studio
from dreambooth.ui.train import estimate as estimates
from dreambooth.ui.train import form as forms
from dreambooth.ui.train import live as view
from dreambooth.ui.train.actions import Actions, makes_a_word
from dreambooth.ui.train.estimate import Estimates
from dreambooth.ui.train.runs import NO_RUN, Live, Runs

POLL = 1.0
"""Seconds between looks at a run's directory."""
SURE = """<p class="aside">Delete this run with its photos, pictures and model? There is no way back.</p>"""
SEVERAL_HELP = """`more_subjects`: further subjects of the same run, each {"identifier": …, "class_noun": …, "photos":
how many of `more_photos`, which holds those of all of them in order}, and if you like "crops"."""
METHOD_HELP = """`learned`: for the method lora, the id of a finished run of yours of the method textual_inversion.
Methods that learn a word put the identifier into angle brackets."""
OWNER_HELP = "`owner`: 20 to 64 letters and digits that you make up and keep; who knows them can open your runs."
MORE_HELP = """`more`: any further settings, nested as in a config file, such as {"train": {"batch_size": 2}}."""
SMALL: dict[str, Any] = {"scale": 0, "min_width": 130}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "estimate", "concurrency_limit": 1}
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
class Sure:
    """What asks whether a run is to be deleted."""

    group: gr.Column
    yes: gr.Button
    no: gr.Button


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
    actions, runs = Actions(studio, form, Estimates(studio.settings)), Runs(studio, live)
    refresh = {
        "fn": runs.refresh,
        "inputs": [owner, live.run, visited],
        "outputs": [live.run, live.history, visited, start],
        **QUIET,
    }
    form.top.base_model.change(lambda name: name, form.top.base_model, subject.base_model, **QUIET)
    if studio.public:
        _wire_consent(form, subject, consent)
    _wire_method(actions, owner, subject, visited)
    _wire_estimates(actions, subject, visited, needs)
    _wire_start(actions, live, owner, subject, consent, start, refresh)
    _wire_runs(runs, owner, sure, refresh)
    return live, refresh


def _wire_consent(form: forms.Form, subject: Subject, consent: gr.Checkbox) -> None:
    """Ask for it where people may be on the photos."""
    changes = [subject.class_noun.change, subject.changed.change, form.top.recipe.change]
    gr.on(changes, _ask_for_consent, [subject.class_noun, form.top.recipe, subject.kept], consent, **QUIET)
    subject.photos.change(lambda: False, None, consent, **QUIET)  # other photos, other people


def _wire_method(actions: Actions, owner: gr.components.Component, subject: Subject, visited: gr.Number) -> None:
    """A method, or a word that is taken over, decides how the identifier is written."""
    top = actions.form.top
    gr.on(
        [top.method.change, visited.change], actions.offer_words, [owner, top.method, top.learned], top.learned, **QUIET
    )
    gr.on([top.method.change, top.learned.change], makes_a_word, [top.method, top.learned], subject.new_word, **QUIET)
    top.learned.input(actions.take_word, [owner, top.learned], [subject.identifier, subject.class_noun], **QUIET)


def _wire_estimates(actions: Actions, subject: Subject, visited: gr.Number, needs: gr.HTML) -> None:
    """What the training needs, in `needs`, and what each method costs, beside its name."""
    form, top = actions.form, actions.form.top
    latest: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
    given = [subject.photos.change, subject.changed.change, subject.to_training.click, visited.change]
    changes = [part.change for part in form.components if part is not top.method]  # the recipe changes with it
    shown = [*subject.all, *form.components]
    gr.on([*given, *changes], actions.show_estimate, shown, needs, **latest, **ONE_AT_A_TIME)
    gr.on(
        [*given, top.base_model.change],
        actions.show_costs,
        [*subject.all, top.base_model],
        top.method,
        **latest,
        concurrency_id="costs",
        concurrency_limit=1,
    )


def _wire_start(
    actions: Actions,
    live: Live,
    owner: gr.components.Component,
    subject: Subject,
    consent: gr.Checkbox,
    start: gr.Button,
    refresh: dict[str, Any],
) -> None:
    """The button, which takes the whole form, and the same with named parameters for API callers."""
    what = [owner, subject.photos, subject.identifier, subject.class_noun]
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


def _wire_runs(runs: Runs, owner: gr.components.Component, sure: Sure, refresh: dict[str, Any]) -> None:
    """What is done with a run that is there."""
    live = runs.live
    for event in (
        live.stop.click(
            runs.stop_training,
            [owner, live.run],
            api_name="stop_training",
            api_description="Take a run out of the queue, or stop it after its current step; it can be resumed.",
        ),
        live.resume.click(
            runs.resume_training,
            [owner, live.run],
            api_name="resume_training",
            api_description="Go on with a run that was stopped, cut off or failed.",
        ),
        sure.yes.click(
            runs.delete_run,
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
    gr.on(ticking, runs.watch, [owner, live.run, live.seen], list(vars(live).values()), **QUIET)
    gr.api(runs.runs, api_name="runs", api_description=f"Your runs, newest first. {OWNER_HELP}")
    gr.api(runs.run_status, api_name="run_status", api_description="Where one of your runs stands.")


def _ask_for_consent(class_noun: str | None, recipe: str, kept: Sequence[Kept] = ()) -> gr.Checkbox:
    nouns = [class_noun or "", *(one.class_noun for one in kept)]
    return gr.Checkbox(visible=any(map(is_person, nouns)) or recipe == "sd15-person")


def _chosen(event: gr.EventData) -> str:
    return said(event, "run")
