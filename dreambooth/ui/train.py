"""The second tab: the settings that matter, and the visitor's runs as their directories tell them, live or over."""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from dreambooth.config import TOYBOX, Config, load_preset
from dreambooth.errors import DreamBoothError, RunError
from dreambooth.runs import Run, Status
from dreambooth.ui.report import COLOURS, SMOOTHED, Report, history_html
from dreambooth.ui.studio import QUIET, RECIPES, Studio, in_plain_words, is_owner, title
from dreambooth.ui.upload import Subject, show_prompts, words

POLL = 1.0
"""Seconds between looks at a run's directory."""
NO_RUN = """<div class="empty"><strong>Nothing trains yet.</strong> Add photos in the first tab, then start a training.
It goes on when you close this page, and is here when you come back.</div>"""
OWNER_HELP = "`owner`: 20 to 64 letters and digits that you make up and keep; who knows them can open your runs."


@dataclass(frozen=True)
class Settings:
    """The form, in the order in which `start_training` takes it."""

    recipe: gr.Dropdown
    base_model: gr.Dropdown
    steps: gr.Number
    learning_rate: gr.Number
    prior: gr.Checkbox
    class_images: gr.Number
    text_encoder: gr.Checkbox


@dataclass(frozen=True)
class Live:
    """The view of one run, in the order in which `watch` fills it."""

    run: gr.Dropdown
    headline: gr.HTML
    stop: gr.Button
    resume: gr.Button
    to_pictures: gr.Button
    curves: gr.LinePlot
    subject: gr.Gallery
    of_class: gr.Gallery
    history: gr.HTML
    seen: gr.State
    """The `Seen` of this page."""


class Seen(NamedTuple):
    """What a page showed last of a run, so that a look at the same again costs and sends nothing."""

    run: str
    size: int = -1
    """Bytes of its events."""
    status: Status | None = None
    pictures: int = -1


def build(studio: Studio, owner: gr.BrowserState, subject: Subject) -> tuple[Live, dict[str, Any]]:
    """Lay the tab out and wire it; also returns the arguments of the event that lists the visitor's runs anew."""
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=2, min_width=300):
            recap = gr.HTML(show_prompts(subject.identifier.value, subject.class_noun.value))
            settings = _settings(studio)
            start = gr.Button("Start training", variant="primary", elem_id="start")
        with gr.Column(scale=3, min_width=320):
            live = _live()
    subject_words = [subject.identifier, subject.class_noun]
    gr.on([c.change for c in subject_words], show_prompts, subject_words, recap, trigger_mode="always_last", **QUIET)
    form = list(vars(settings).values())
    settings.recipe.input(lambda name: recipe_values(studio, name), settings.recipe, form[1:], **QUIET)
    settings.prior.change(lambda on: gr.Number(visible=on), settings.prior, settings.class_images, **QUIET)

    actions = Actions(studio, live)
    events = (
        start.click(
            actions.start_training, [owner, subject.photos, *subject_words, *form], live.run, api_name="start_training",
            api_description=f"Queue a training and return the run's id. {OWNER_HELP}", show_progress_on=start,
            scroll_to_output=True,
        ),
        live.stop.click(
            actions.stop_training, [owner, live.run], api_name="stop_training",
            api_description="Stop a run after its current step; it can be resumed.",
        ),
        live.resume.click(
            actions.resume_training, [owner, live.run], api_name="resume_training",
            api_description="Go on with a run that was stopped, cut off or failed.",
        ),
    )  # fmt: skip
    refresh = {"fn": actions.refresh, "inputs": [owner, live.run], "outputs": [live.run, live.history], **QUIET}
    for event in events:
        event.success(**refresh)
    view = list(vars(live).values())
    gr.on([live.run.change, gr.Timer(POLL).tick], actions.watch, [owner, live.run, live.seen], view, **QUIET)
    gr.api(actions.runs, api_name="runs", api_description=f"Your runs, newest first. {OWNER_HELP}", queue=False)
    gr.api(actions.run_status, api_name="run_status", api_description="Where one of your runs stands.", queue=False)
    return live, refresh


def _settings(studio: Studio) -> Settings:
    wanted = studio.model(studio.default_model)
    recipe = next((name for name in RECIPES if load_preset(name)["base_model"] == wanted), TOYBOX)
    base_model, steps, rate, prior, class_images, text_encoder = recipe_values(studio, recipe)
    choices = [(label, name) for name, label in RECIPES.items()]
    recipes = gr.Dropdown(choices, value=recipe, label="Recipe", info="Fills in what is below.", elem_id="recipe")
    models = gr.Dropdown(list(studio.base_models), value=base_model, label="Base model")
    with gr.Row():
        count = gr.Number(steps, precision=0, label="Steps", info="Too many learn the photos.", elem_id="steps")
        rates = gr.Number(rate, label="Learning rate", info="Lower it if pictures decay.")
    with gr.Group():
        priors = gr.Checkbox(
            prior, label="Prior preservation (PPL)",
            info="Trains on the model's own pictures of the class as well, so that it keeps the class.",
        )  # fmt: skip
        images = gr.Number(
            class_images, precision=0, label="Class images", info="Drawn once, then shared.", elem_id="class-images"
        )
    text = gr.Checkbox(text_encoder, label="Train the text encoder", info="More faithful to the subject; more memory.")
    return Settings(recipes, models, count, rates, priors, images, text)


def _live() -> Live:
    # Values of one's own are allowed for API callers, who name a run without its list; `own_run` checks them.
    run = gr.Dropdown([], label="Your runs", allow_custom_value=True, visible=False, elem_id="run")
    headline = gr.HTML(NO_RUN, elem_id="headline")
    with gr.Row(elem_classes="actions"):
        stop = gr.Button("Stop", variant="stop", visible=False)
        resume = gr.Button("Resume", variant="primary", visible=False)
        to_pictures = gr.Button("Next: make pictures", variant="primary", visible=False)
    curves = gr.LinePlot(
        x="step", y="loss", color="part", color_title="Loss on", color_map=COLOURS, y_title=" ", height=260, buttons=[],
        visible=False, title=f"Loss, mean of {SMOOTHED} steps", show_label=False, elem_id="curves",
    )  # fmt: skip
    with gr.Row():
        subject, of_class = (
            gr.Gallery(label=label, columns=4, height="auto", object_fit="contain", interactive=False, visible=False,
                       buttons=["download", "fullscreen"], min_width=240, elem_id=name)
            for label, name in (("The subject", "subject-samples"), ("Its class", "class-samples"))
        )  # fmt: skip
    with gr.Accordion("History", open=False):
        history = gr.HTML()
    return Live(run, headline, stop, resume, to_pictures, curves, subject, of_class, history, gr.State(None))


def recipe_values(studio: Studio, recipe: str) -> list[Any]:
    """What a recipe puts into the form after its own name."""
    preset = load_preset(recipe)
    config = Config.from_dict({"preset": recipe, "subject": {"photos": ".", "class_noun": "dog"}})
    named = {model: name for name, model in studio.base_models.items()}
    base_model = studio.default_model if preset["base_model"] == TOYBOX else named[preset["base_model"]]
    train, prior = config.train, config.prior
    return [base_model, train.steps, train.learning_rate, prior.enabled, prior.num_images, train.text_encoder]


@dataclass(frozen=True)
class Actions:
    """What the tab does; the public ones are named endpoints."""

    studio: Studio
    live: Live

    @in_plain_words
    def start_training(
        self, owner: str, photos: list | None, identifier: str, class_noun: str, recipe: str, base_model: str,
        steps: int, learning_rate: float, prior: bool, class_images: int, text_encoder: bool,
    ) -> str:  # fmt: skip
        """Queue a training and return the run's id."""
        settings = {
            "preset": recipe,
            "base_model": self.studio.model(base_model),
            "subject": words(identifier, class_noun),
            "prior": {"enabled": prior} | ({"num_images": class_images} if prior else {}),
            "train": {"steps": steps, "learning_rate": learning_rate, "text_encoder": text_encoder},
        }
        run = self.studio.create_run(owner, settings, [path for path, _ in photos or []])
        self.studio.worker.submit(run)
        return run.id

    @in_plain_words
    def stop_training(self, owner: str, run: str) -> None:
        """Stop a run after its current step."""
        self.studio.worker.stop(self.studio.own_run(owner, run))

    @in_plain_words
    def resume_training(self, owner: str, run: str) -> None:
        """Queue a run again that ended early."""
        stopped = self.studio.own_run(owner, run)
        if not Report.of(stopped).resumable:
            raise RunError(f"This run is {stopped.status}.", "Only one that ended early can be resumed.")
        self.studio.worker.submit(stopped, resume=True)

    @in_plain_words
    def runs(self, owner: str) -> list[dict[str, Any]]:
        """This visitor's runs, newest first."""
        return [_summary(run) for run in self.studio.own_runs(owner)]

    @in_plain_words
    def run_status(self, owner: str, run: str) -> dict[str, Any]:
        """Where a run of this visitor stands."""
        return _summary(self.studio.own_run(owner, run))

    @in_plain_words
    def refresh(self, owner: str, run: str | None) -> tuple[dict, str]:
        """List the visitor's runs; keeps the chosen one, else takes the newest."""
        runs = self.studio.own_runs(owner) if is_owner(owner) else []
        chosen = run if run in [r.id for r in runs] else runs[0].id if runs else None
        choices = [(f"{title(own)} · {own.status} · {_begun(own)}", own.id) for own in runs]
        return gr.Dropdown(choices, value=chosen, visible=bool(runs)), history_html(runs)

    def watch(self, owner: str, run_id: str | None, seen: Seen | None) -> list[Any]:
        """Fill `Live` with what is new in the run's directory since `seen`."""
        if not run_id or not is_owner(owner):
            return [gr.skip()] * len(vars(self.live))
        try:
            return self._look(owner, self.studio.own_run(owner, run_id), seen)
        except DreamBoothError as error:  # deleted or damaged: said in its place, since a toast would come every second
            hidden = [gr.update(visible=False)] * 6
            return [gr.skip(), f"<div class='empty'>{html.escape(str(error))}</div>", *hidden, gr.skip(), None]

    def _look(self, owner: str, run: Run, seen: Seen | None) -> list[Any]:
        size = _size(run.path / "events.jsonl")
        if seen and (seen.run, seen.size) == (run.id, size):
            return [gr.skip()] * len(vars(self.live))
        report, config = Report.of(run), run.config
        before = seen if seen and seen.run == run.id else Seen(run.id)
        samples, lists = (gr.skip(), gr.skip()), (gr.skip(), gr.skip())
        if before.pictures != len(report.pictures):
            samples = (
                _samples(self.live.subject, run, report, config.instance_prompt),
                _samples(self.live.of_class, run, report, config.class_prompt),
            )
        if before.status != report.status:
            lists = self.refresh(owner, run.id)
        return [
            lists[0],
            report.as_html(title(run)),
            gr.Button(visible=report.moving),
            gr.Button(visible=report.resumable),
            gr.Button(visible=report.status == "finished"),
            gr.LinePlot(report.curves(), visible=len(report.steps) > 1, x_lim=[0, config.train.steps]),
            *samples,
            lists[1],
            Seen(run.id, size, report.status, len(report.pictures)),
        ]


def _begun(run: Run) -> str:
    return time.strftime("%d %b %H:%M", time.strptime(run.id[:15], "%Y%m%d-%H%M%S"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _samples(gallery: gr.Gallery, run: Run, report: Report, prompt: str) -> dict:
    """The sample pictures of one prompt, newest step first."""
    pictures = [picture for picture in report.pictures if picture.prompt == prompt]
    pictures.sort(key=lambda picture: -picture.step)
    # Copied into Gradio's own folder, so that it never has to be allowed to serve files of the runs' folder.
    items = [(gallery.move_resource_to_block_cache(run.path / p.path), f"step {p.step}") for p in pictures]
    return gr.Gallery(items, label=prompt, visible=bool(items))


def _summary(run: Run) -> dict[str, Any]:
    return {"id": run.id, "title": title(run), **Report.of(run).as_dict()}
