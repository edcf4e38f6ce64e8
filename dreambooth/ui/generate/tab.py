"""The third tab: pictures from one of the visitor's finished runs, a base model, or any model of the Hub."""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr
from PIL import Image, UnidentifiedImageError

from dreambooth.config.settings import SamplingConfig, SubjectConfig
from dreambooth.errors import ConfigError, DreamBoothError, PhotoError
from dreambooth.generate import (
    MAX_BATCH,
    Picture,
    Which,
    check_request,
    read_adapters,
    save_picture,
    shown_adapters,
)
from dreambooth.photos.prepare import shown_pixels
from dreambooth.prompts import suggestions
from dreambooth.runs.directory import Run
from dreambooth.ui import drawing, models
from dreambooth.ui.doors import login
from dreambooth.ui.doors.limits import MAX_LETTERS
from dreambooth.ui.doors.lines import address_of
from dreambooth.ui.drawing import Progress
from dreambooth.ui.inputs import numbers
from dreambooth.ui.models import Model
from dreambooth.ui.report import counted
from dreambooth.ui.studio import QUIET, Studio, in_plain_words

NOTHING_YET = """<div class="empty"><strong>No pictures yet.</strong> Say what you would like to see and press Generate.
Your own subjects are in the list of models once their training is finished.</div>"""
GUIDANCE_HELP = "7 leaves the model freedom, 11 keeps it close to your words; the toybox draws best at 2.5 to 3."
MODEL_HELP = (
    "Your finished trainings, the base models, or any Stable Diffusion model of the Hub: type OWNER/NAME, or "
    "OWNER/NAME@REVISION."
)
WHICH_HELP = "The best step showed the subject best while it kept its class and followed its prompts; see Train."
SCALE_HELP = "How much of what was trained takes part: 1 is all of it, less is nearer to the base model."
ADAPTER_HELP = """<p class='aside'>What others of your trainings learned, on top: write each subject's words into the
prompt. Too much of several at once spoils pictures; try less of each.</p>"""
NO_ADAPTER = ("None", "")
CLASS_NOUN = "dog"
"""What the prompts for models without a subject are about."""
SETTINGS = ("model", "prompt", "negative_prompt", "steps", "guidance_scale", "seed", "which", "scale", "adapters")
"""What a picture's file says, and `copy_settings` gives back."""
SHOWN_AS = {
    "negative_prompt": "negative prompt",
    "guidance_scale": "guidance",
    "which": "which of its models",
    "scale": "strength of the adapter",
    "adapters": "added adapters",
}


@dataclass(frozen=True)
class Form:
    """What is asked for, in the order in which `generate` takes it."""

    model: gr.Dropdown
    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    steps: gr.Slider
    guidance_scale: gr.Slider
    seed: gr.Number
    count: gr.Slider
    safety_checker: gr.Checkbox
    which: gr.Radio
    scale: gr.Slider
    adapter: gr.Dropdown
    weight: gr.Slider
    adapter_2: gr.Dropdown
    weight_2: gr.Slider
    adapter_3: gr.Dropdown
    weight_3: gr.Slider

    @property
    def adapters(self) -> list[gr.Dropdown]:
        """What is added."""
        return [self.adapter, self.adapter_2, self.adapter_3]

    @property
    def weights(self) -> list[gr.Slider]:
        """How much of each."""
        return [self.weight, self.weight_2, self.weight_3]


def build(studio: Studio, owner: gr.Component) -> tuple[Form, dict[str, Any]]:
    """Lay the tab out and wire it; also returns the arguments of the event that lists the visitor's models anew."""
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=2, min_width=300):
            form, ideas, new_seed, upload, stack = _form(studio)
            with gr.Row(elem_classes="actions"):
                button = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop-generating")
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(NOTHING_YET, label="Status", elem_id="generate-status")
            pictures = gr.Gallery(
                label="Pictures",
                columns=4,
                height="auto",
                object_fit="contain",
                interactive=False,
                format="png",
                buttons=["download", "download_all", "fullscreen"],
                elem_id="pictures",
                elem_classes="filled-only",
            )
            facts = gr.HTML(visible=False, label="Settings of this picture")
            copy = gr.Button("Use these settings", size="sm", visible=False)
    newest, picked = gr.State(None), gr.State(None)
    actions = Actions(studio, pictures)
    inputs = list(vars(form).values())
    own_settings = [form.prompt, form.steps, form.guidance_scale, form.which]
    chosen = [form.model, *form.adapters]
    offered = [ideas, form.which, form.scale, stack, *form.adapters, *form.weights]

    drawing.stoppable(
        button,
        stop,
        status,
        fn=actions.generate,
        inputs=[owner, *inputs],
        outputs=[pictures, status],
        api_name="generate",
        api_description=(
            "Draw pictures with one of your finished runs, by its id, a base model, by its name, or a Hub repo, by "
            "OWNER/NAME or OWNER/NAME@REVISION, that the token's account may read; `which` says which, where a run "
            "keeps its best model beside the last. `scale` is how much of an adapter takes part; up to three more runs "
            "of yours that trained adapters of the same base model go on top, `which` of their models, each with a "
            "weight. The pictures come batch by batch as PNG files that carry their settings; cancelling the job stops "
            "it."
        ),
    )
    form.model.input(actions.prefill, [owner, form.model], own_settings, **QUIET)
    gr.on([part.change for part in chosen], actions.offer, [owner, *chosen], offered, **QUIET)
    ideas.click(lambda idea: idea[0], ideas, form.prompt, **QUIET)
    new_seed.click(None, None, form.seed, js="() => Math.floor(Math.random() * 2 ** 32)")

    pictures.select(actions.pick, pictures, [picked, facts, copy], **QUIET)
    copied = [*(getattr(form, name) for name in SETTINGS[:-1]), *form.adapters, *form.weights]
    copy.click(actions.copy_picked, [owner, picked], copied, **QUIET)
    upload.upload(
        actions.copy_settings,
        [owner, upload],
        copied,
        api_name="copy_settings",
        api_description="What a PNG that was drawn here was made with; the model only where it is yours to draw with.",
    )
    gr.api(
        actions.models,
        api_name="models",
        api_description="What you can draw with, by the name that /generate takes: your finished runs, base models. "
        "`steps` are the best and the last of a run that keeps both models, `adapters` what can be added to it.",
    )
    listed = [form.model, newest, *own_settings, *offered]
    return form, {"fn": actions.list_models, "inputs": [owner, newest, *chosen], "outputs": listed, **QUIET}


def _form(studio: Studio) -> tuple[Form, gr.Dataset, gr.Button, gr.UploadButton, gr.Accordion]:
    wanted = studio.model(studio.default_model)
    sampling = models.base_sampling(wanted)
    ideas = suggestions(wanted, CLASS_NOUN)
    form = Form(
        # Values of one's own are a Hub id, or an API caller's run; `open_model` checks them.
        models.free_choice(
            gr.Dropdown(
                _base_choices(studio),
                value=studio.default_model,
                label="Model",
                allow_custom_value=True,
                info=MODEL_HELP,
                elem_id="model",
            )
        ),
        gr.Textbox(ideas[0], label="Prompt", lines=2, max_length=MAX_LETTERS, elem_id="prompt"),
        gr.Textbox(
            "", label="Negative prompt", max_length=MAX_LETTERS, info="What to keep out of the picture.", render=False
        ),
        gr.Slider(
            1,
            100,
            sampling.steps,
            step=1,
            label="Steps",
            info="More take longer and are finer, up to about 50.",
            render=False,
        ),
        gr.Slider(
            0,
            20,
            sampling.guidance_scale,
            step=0.5,
            label="Guidance",
            info=GUIDANCE_HELP,
            render=False,
            elem_id="guidance",
        ),
        gr.Number(
            0,
            precision=0,
            minimum=0,
            maximum=2**32 - 1,
            label="Seed",
            render=False,
            min_width=120,
            info="The same seed and settings give the same picture.",
            elem_id="seed",
        ),
        gr.Slider(1, MAX_BATCH, 4, step=1, label="Pictures", render=False, elem_id="count"),
        gr.Checkbox(
            True,
            label="Safety checker",
            visible=not studio.public,
            render=False,
            info="Holds back what it takes for unsafe, if the model comes with one. It errs now and then.",
        ),
        gr.Radio(
            _choices("Best step", "Last step"),
            value="last",
            label="Which of its models",
            visible=False,
            render=False,
            info=WHICH_HELP,
            elem_id="which",
        ),
        gr.Slider(
            0,
            models.MAX_SCALE,
            1,
            step=0.05,
            label="Strength of the adapter",
            info=SCALE_HELP,
            visible=False,
            render=False,
            elem_id="scale",
        ),
        *(part for place in range(models.MAX_ADAPTERS) for part in _slot(place)),
    )
    shown = gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[[idea] for idea in ideas],
        samples_per_page=6,
        label="Ideas",
        elem_id="ideas",
    )
    form.which.render()
    form.scale.render()
    form.count.render()
    with gr.Accordion("Add adapters", open=False, visible=False, elem_id="add-adapters") as stack:
        gr.HTML(ADAPTER_HELP)
        for adapter, weight in zip(form.adapters, form.weights, strict=True):
            adapter.render()
            weight.render()
    with gr.Accordion("More settings", open=False):
        form.negative_prompt.render()
        form.steps.render()
        form.guidance_scale.render()
        with gr.Group():
            form.seed.render()
            new_seed = gr.Button("New seed", size="sm")
        form.safety_checker.render()
        upload = gr.UploadButton("Take the settings from a saved picture", file_types=[".png"], size="sm")
    return form, shown, new_seed, upload, stack


def _slot(place: int) -> tuple[gr.Dropdown, gr.Slider]:
    """One further adapter and how much of it takes part; the first alone is shown until one is chosen."""
    names = f"{place + 1}" if place else ""
    return (
        models.free_choice(
            gr.Dropdown(
                [NO_ADAPTER],
                value="",
                label=f"Adapter {place + 1}",
                visible=not place,
                allow_custom_value=True,
                render=False,
                elem_id=f"adapter{names}",
            )
        ),
        gr.Slider(
            0,
            models.MAX_SCALE,
            1,
            step=0.05,
            label="Its strength",
            visible=False,
            render=False,
            elem_id=f"weight{names}",
        ),
    )


def _choices(best: str, last: str) -> list[tuple[str, Which]]:
    return [(best, "best"), (last, "last")]


def _base_choices(studio: Studio) -> list[tuple[str, str]]:
    return [(f"{name} (base model, untrained)", name) for name in studio.base_models]


@dataclass(frozen=True)
class Actions:
    """What the tab does; `generate`, `copy_settings` and `models` are named endpoints."""

    studio: Studio
    pictures: gr.Gallery

    def list_models(self, owner: str, newest: str | None, chosen: str, *added: str) -> tuple:
        """The visitor's finished runs and the base models; a run that finished since the last look is chosen."""
        runs = models.finished_runs(self.studio, owner)
        best = models.first_choice(self.studio, runs)
        latest = best.id if best else None
        known = {run.id for run in runs} | set(self.studio.base_models)
        kept = chosen if chosen in known or "/" in (chosen or "") else self.studio.default_model
        value = latest if latest and latest != newest else kept
        choices = [(models.label(run), run.id) for run in runs] + _base_choices(self.studio)
        offered = self.offer(owner, value, *added)
        if value == chosen:  # not sent again: the page may have gone on meanwhile
            return gr.Dropdown(choices, allow_custom_value=True), latest, *[gr.skip()] * 4, *offered
        model = gr.Dropdown(choices, value=value, allow_custom_value=True)
        return model, latest, *self.prefill(owner, value), *offered

    @in_plain_words
    def models(self, owner: str) -> list[dict[str, Any]]:
        """What this visitor can draw with, by the name that `generate` takes; `steps` are a run's best and last."""
        runs = models.finished_runs(self.studio, owner)
        found = [{"model": run.id, "title": models.label(run), "steps": models.best_and_last(run)} for run in runs]
        found += [{"model": name, "title": words, "steps": None} for words, name in _base_choices(self.studio)]
        for model in found:
            model["adapters"] = [run.id for run in models.adapters_for(self.studio, runs, model["model"])]
        return found

    def prefill(self, owner: str, model: str) -> tuple:
        """A first prompt, the model's own steps and guidance, and its best step; nothing while a name is typed."""
        if model in self.studio.base_models:
            sampling = models.base_sampling(self.studio.model(model))
        else:
            try:
                sampling = self.studio.own_run(owner, model).config.sampling
            except DreamBoothError:
                return (gr.skip(),) * 4
        return self._ideas(owner, model)[0], *models.shown_sampling(sampling), "best"

    def offer(self, owner: str, model: str, *added: str) -> tuple:
        """What there is to choose for a model and the adapters that are added to it: prompts, best and last step, how
        much of it takes part, and the adapters."""
        possible = models.adapters_for(self.studio, models.finished_runs(self.studio, owner), model)
        return (
            self.list_ideas(owner, model, *added),
            self._offer_which(owner, model, *added),
            self._offer_scale(owner, model),
            gr.Accordion(visible=bool(possible)),
            *_offer_adapters(possible, added),
        )

    def _offer_which(self, owner: str, model: str, *added: str) -> gr.Radio:
        """The choice between the best and the last model of each run that takes part, where one has both; the steps are
        told of one that is alone."""
        names, found = [model, *filter(None, added)], []
        for name in names:
            with contextlib.suppress(DreamBoothError):
                found.append(models.best_and_last(self.studio.own_run(owner, name)))
        if not any(found):
            return gr.Radio(visible=False)
        best, last = (f" ({found[0][which]})" if len(names) == 1 else "" for which in ("best", "last"))
        return gr.Radio(_choices(f"Best step{best}", f"Last step{last}"), visible=True)

    def _offer_scale(self, owner: str, model: str) -> gr.Slider:
        """How much of an adapter takes part; 1 where that is no question."""
        try:
            scalable = models.has_strength(self.studio.own_run(owner, model))
        except DreamBoothError:
            scalable = False
        return gr.Slider(visible=True) if scalable else gr.Slider(value=1, visible=False)

    def list_ideas(self, owner: str, model: str, *added: str) -> dict:
        """Prompts for what the model and the added adapters were taught, to choose from."""
        ideas = self._ideas(owner, model, *added)
        return gr.Dataset(samples=[[idea] for idea in ideas]) if ideas else gr.skip()

    def _ideas(self, owner: str, model: str, *added: str) -> list[str]:
        """Prompts for each subject, and for all of them together; none where the model is not known here."""
        subjects, base_model = {}, self.studio.base_models.get(model)
        for name in (model, *filter(None, added)):
            try:
                config = self.studio.own_run(owner, name).config
            except DreamBoothError:
                continue
            base_model = base_model or config.base_model
            subjects |= {(subject.identifier, subject.class_noun): subject for subject in config.subjects}
        if base_model is None:
            return []
        return ideas_for(base_model, list(subjects.values())) if subjects else suggestions(base_model, CLASS_NOUN)

    @in_plain_words
    def generate(
        self,
        owner: str,
        model: str,
        prompt: str,
        negative_prompt: str,
        steps: int,
        guidance_scale: float,
        seed: int,
        count: int,
        safety_checker: bool = True,
        which: Which = "last",
        scale: float = 1.0,
        adapter: str = "",
        weight: float = 1.0,
        adapter_2: str = "",
        weight_2: float = 1.0,
        adapter_3: str = "",
        weight_3: float = 1.0,
        token: gr.OAuthToken | None = None,
        request: gr.Request | None = None,
    ) -> Iterator[tuple[Any, str]]:
        """Draw pictures as PNG files that carry prompt, seed and settings; yields all there are, and how it goes."""
        seed, count = int(seed or 0), int(count)
        check_request([prompt or ""], count, seed)
        source, eyes = None, login.reading_token(token, public=self.studio.public)
        named = ((adapter, weight), (adapter_2, weight_2), (adapter_3, weight_3))
        added = {"scale": scale, "adapters": [(name, much) for name, much in named if name]}
        client = address_of(request) if request else ""
        for opened in drawing.as_it_happens(
            lambda tell: tell(models.open_model(self.studio, owner, model, which, eyes, client=client, **added))
        ):
            source = opened or source
            if source is None:
                yield gr.skip(), drawing.bar_html("Getting the model", 0)
        sampling = models.checked_sampling(source.sampling, steps, guidance_scale)
        orders = drawing.orders(source.weights, prompt, seed, count)
        progress, items, problems = Progress(len(orders)), [], []
        for news in drawing.paint(orders, sampling, negative_prompt or "", safety_checker or self.studio.public):
            models.keep_in_cache(source.weights)
            for picture in news if isinstance(news, list) else ():
                if picture.problem:
                    problems.append((f"seed {picture.seed}", picture.problem))
                    continue
                file = self._keep(picture, source, sampling, negative_prompt or "", added)
                items.append((file, f"seed {picture.seed} · {prompt}"))
            if progress.take(news):
                yield list(items) if isinstance(news, list) else gr.skip(), progress.as_html(counted(count, "picture"))
        done = f"{counted(len(items), 'picture')} in {progress.seconds:.0f} s." if items else "Nothing to show."
        said = drawing.problems_html(problems) + models.unread(source.weights, [prompt, negative_prompt or ""])
        yield items, f"<div class='drawing' role='status'><p>{done}</p></div>{said}"

    def _keep(
        self, picture: Picture, source: Model, sampling: SamplingConfig, negative_prompt: str, added: dict[str, Any]
    ) -> str:
        """Put a picture with its settings where the page gets it from."""
        facts = sampling.model_dump(include={"steps", "guidance_scale", "scheduler"})
        facts |= {"prompt": picture.prompt, "negative_prompt": negative_prompt, "seed": picture.seed}
        facts |= {"precision": picture.precision}
        facts |= {"which": source.which} if source.which else {}
        facts |= {"scale": f"{added['scale']:g}"} if source.weights.base else {}
        facts |= {"adapters": shown_adapters(added["adapters"])} if added["adapters"] else {}
        return drawing.keep_file(
            self.pictures,
            f"seed-{picture.seed}.png",
            lambda file: save_picture(file, picture.image, model=source.name, **facts),
        )

    def pick(self, pictures: list[tuple[str, str]] | None, chosen: gr.SelectData) -> tuple[Any, Any, Any]:
        """Show what the picture at hand was made with."""
        try:
            [index] = numbers(chosen, "index", 1)
            path = (pictures or [])[index][0]
            settings = read_settings(path)
        except (IndexError, ConfigError, PhotoError):
            return None, gr.HTML(visible=False), gr.Button(visible=False)
        told = {name: _as_words(name, settings.get(name, "")) for name in SETTINGS}
        rows = "".join(
            f"<dt>{SHOWN_AS.get(name, name)}</dt><dd>{html.escape(value)}</dd>" for name, value in told.items() if value
        )
        return path, gr.HTML(f"<dl class='made-with'>{rows}</dl>", visible=True), gr.Button(visible=True)

    @in_plain_words
    def copy_picked(self, owner: str, path: str | None) -> tuple:
        """Put the settings of the picture that is picked into the form; `path` never leaves the server."""
        return self.copy_settings(owner, path)

    @in_plain_words
    def copy_settings(self, owner: str, picture: str) -> tuple:
        """What a picture was made with, in the order of `SETTINGS`: of the adapters first their names, then how much of
        each."""
        found = read_settings(picture)
        name = found.get("model", "")
        own = {named["model"] for named in self.models(owner)}
        try:
            added = [one for one in read_adapters(found.get("adapters", "")) if one[0] in own][: models.MAX_ADAPTERS]
            names, weights = zip(*added, *[("", 1.0)] * (models.MAX_ADAPTERS - len(added)), strict=True)
            return (
                name if name in own else gr.skip(),
                found["prompt"],
                found.get("negative_prompt", ""),
                int(found["steps"]),
                float(found["guidance_scale"]),
                int(found["seed"]),
                found["which"] if found.get("which") in get_args(Which) else "last",
                float(found.get("scale", 1)),
                *names,
                *weights,
            )
        except ValueError:
            raise PhotoError("This picture's settings are damaged.", "Take another one.") from None


def _offer_adapters(possible: Sequence[Run], added: Sequence[str]) -> list[gr.Dropdown | gr.Slider]:
    """The dropdowns and the sliders: as many as are in use, and one more. What can't be added any more is dropped, and
    no two of the same word are offered together."""
    by_id, words = {run.id: run for run in possible}, {run.id: models.learned_words(run.config) for run in possible}
    kept: list[Run | None] = []
    for name in added:
        taken = {word for run in kept if run for word in words[run.id]}
        kept.append(None if words.get(name, set()) & taken else by_id.get(name))
    dropdowns, sliders, more = [], [], True
    for place, (name, run) in enumerate(zip(added, kept, strict=True)):
        taken = {word for other in (*kept[:place], *kept[place + 1 :]) if other for word in words[other.id]}
        choices = [NO_ADAPTER, *((models.label(one), one.id) for one in possible if not words[one.id] & taken)]
        dropped = {} if run or not name else {"value": ""}
        dropdowns.append(gr.Dropdown(choices, visible=more or bool(run), **dropped))
        has_strength = run is not None and models.has_strength(run)
        sliders.append(gr.Slider(visible=True) if has_strength else gr.Slider(value=1, visible=False))
        more = run is not None
    return [*dropdowns, *sliders]


def ideas_for(base_model: str, subjects: Sequence[SubjectConfig]) -> list[str]:
    """Prompts for the subjects, of several first one for all together, then one for each, and so on."""
    told = [suggestions(base_model, subject.class_noun, subject.identifier) for subject in subjects]
    if len(subjects) == 1:
        return told[0]
    first, *others = (subject.fill("{identifier} {class_noun}") for subject in subjects)
    identifier, _, noun = first.partition(" ")
    together = suggestions(base_model, " and ".join([noun, *others]), identifier)
    return list(dict.fromkeys(idea for ideas in zip(together, *told, strict=False) for idea in ideas))


def _as_words(name: str, value: str) -> str:
    """A picture's setting as the page tells it."""
    return ", ".join(f"{run} × {weight:g}" for run, weight in read_adapters(value)) if name == "adapters" else value


def read_settings(path: str | None) -> dict[str, str]:
    """What a PNG says that it was made with; raises `PhotoError` where it says nothing of the kind."""
    try:
        found = {}
        if 0 < math.prod(shown_pixels(path or "")) <= Image.MAX_IMAGE_PIXELS:  # beyond, Pillow warns in the log
            with Image.open(path or "", formats=["PNG"]) as image:
                found = {name: str(image.info[name]) for name in SETTINGS if name in image.info}
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        found = {}
    if not {"prompt", "steps", "guidance_scale", "seed"} <= set(found):
        raise PhotoError(
            "This picture does not say how it was made.",
            "Give a PNG that was drawn here; other programs drop the note.",
        )
    return found
