"""What the third tab does: it lists what there is to draw with, draws, and takes over the settings of a picture."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr

from dreambooth.config.sections import SamplingConfig
from dreambooth.config.subject import SubjectConfig
from dreambooth.errors import ConfigError, DreamBoothError, PhotoError
from dreambooth.generate import (
    Picture,
    Which,
    check_request,
    read_adapters,
    save_picture,
    shown_adapters,
)
from dreambooth.prompts import suggestions
from dreambooth.runs.directory import Run
from dreambooth.ui import Update, drawing, in_plain_words, models
from dreambooth.ui.doors import login
from dreambooth.ui.doors.lines import address_of
from dreambooth.ui.drawing import Progress
from dreambooth.ui.generate.made_with import SETTINGS, SHOWN_AS, as_words, read_settings
from dreambooth.ui.inputs import numbers
from dreambooth.ui.models import Model
from dreambooth.ui.report import counted
from dreambooth.ui.studio import Studio

NO_ADAPTER = ("None", "")
CLASS_NOUN = "dog"
"""What the prompts for models without a subject are about."""


def which_choices(best: str, last: str) -> list[tuple[str, Which]]:
    """Which of a run's models to take, by what the page calls them."""
    return [(best, "best"), (last, "last")]


def base_choices(studio: Studio) -> list[tuple[str, str]]:
    """The base models to choose from, by what the page calls them."""
    return [(f"{name} (base model, untrained)", name) for name in studio.base_models]


@dataclass(frozen=True)
class Actions:
    """What the tab does; `generate`, `copy_settings` and `models` are named endpoints."""

    studio: Studio
    pictures: gr.Gallery

    def list_models(self, owner: str, newest: str | None, chosen: str, *added: str) -> tuple[Any, ...]:
        """The visitor's finished runs and the base models; a run that finished since the last look is chosen."""
        runs = models.finished_runs(self.studio, owner)
        best = models.first_choice(self.studio, runs)
        latest = best.id if best else None
        known = {run.id for run in runs} | set(self.studio.base_models)
        kept = chosen if chosen in known or "/" in (chosen or "") else self.studio.default_model
        value = latest if latest and latest != newest else kept
        choices = [(models.label(run), run.id) for run in runs] + base_choices(self.studio)
        offered = self.offer(owner, value, *added)
        if value == chosen:  # not sent again: the page may have gone on meanwhile
            return gr.Dropdown(choices, allow_custom_value=True), latest, *[gr.skip()] * 4, *offered
        model = gr.Dropdown(choices, value=value, allow_custom_value=True)
        return model, latest, *self.prefill(owner, value), *offered

    @in_plain_words
    def models(self, owner: str) -> list[dict[str, Any]]:
        """What this visitor can draw with, by the name that `generate` takes; `steps` are a run's best and last."""
        runs = models.finished_runs(self.studio, owner)
        found = [(run.id, models.label(run), models.best_and_last(run)) for run in runs]
        found += [(name, words, None) for words, name in base_choices(self.studio)]
        return [
            {
                "model": name,
                "title": words,
                "steps": steps,
                "adapters": [run.id for run in models.adapters_for(self.studio, runs, name)],
            }
            for name, words, steps in found
        ]

    def prefill(self, owner: str, model: str) -> tuple[Any, ...]:
        """A first prompt, the model's own steps and guidance, and its best step; nothing while a name is typed."""
        if model in self.studio.base_models:
            sampling = models.base_sampling(self.studio.model(model))
        else:
            try:
                sampling = self.studio.own_run(owner, model).config.sampling
            except DreamBoothError:
                return (gr.skip(),) * 4
        return self._ideas(owner, model)[0], *models.shown_sampling(sampling), "best"

    def offer(self, owner: str, model: str, *added: str) -> tuple[Any, ...]:
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
        kept = [steps for steps in found if steps]
        if not kept:
            return gr.Radio(visible=False)
        best, last = (f" ({kept[0]['best']})", f" ({kept[0]['last']})") if len(names) == 1 else ("", "")
        return gr.Radio(which_choices(f"Best step{best}", f"Last step{last}"), visible=True)

    def _offer_scale(self, owner: str, model: str) -> gr.Slider:
        """How much of an adapter takes part; 1 where that is no question."""
        try:
            scalable = models.has_strength(self.studio.own_run(owner, model))
        except DreamBoothError:
            scalable = False
        return gr.Slider(visible=True) if scalable else gr.Slider(value=1, visible=False)

    def list_ideas(self, owner: str, model: str, *added: str) -> Update:
        """Prompts for what the model and the added adapters were taught, to choose from."""
        ideas = self._ideas(owner, model, *added)
        return gr.Dataset(samples=[[idea] for idea in ideas]) if ideas else gr.skip()

    def _ideas(self, owner: str, model: str, *added: str) -> list[str]:
        """Prompts for each subject, and for all of them together; none where the model is not known here."""
        subjects: dict[tuple[str, str], SubjectConfig] = {}
        base_model = self.studio.base_models.get(model)
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
        eyes = login.reading_token(token, public=self.studio.public)
        named = ((adapter, weight), (adapter_2, weight_2), (adapter_3, weight_3))
        added: dict[str, Any] = {"scale": scale, "adapters": [(name, much) for name, much in named if name]}
        client = address_of(request) if request else ""

        def open_model(tell: Callable[[Model], None]) -> None:
            tell(models.open_model(self.studio, owner, model, which, eyes, client=client, **added))

        for opened in drawing.as_it_happens(open_model):
            if opened:
                source = opened
            else:
                yield gr.skip(), drawing.bar_html("Getting the model", 0)
        sampling = models.checked_sampling(source.sampling, steps, guidance_scale)
        orders = drawing.orders(source.weights, prompt, seed, count)
        progress = Progress(len(orders))
        items: list[tuple[str, str]] = []
        problems: list[tuple[str, str]] = []
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
        told = {name: as_words(name, settings.get(name, "")) for name in SETTINGS}
        rows = "".join(
            f"<dt>{SHOWN_AS.get(name, name)}</dt><dd>{html.escape(value)}</dd>" for name, value in told.items() if value
        )
        return path, gr.HTML(f"<dl class='made-with'>{rows}</dl>", visible=True), gr.Button(visible=True)

    @in_plain_words
    def copy_picked(self, owner: str, path: str | None) -> tuple[Any, ...]:
        """Put the settings of the picture that is picked into the form; `path` never leaves the server."""
        return self.copy_settings(owner, path)

    @in_plain_words
    def copy_settings(self, owner: str, picture: str | None) -> tuple[Any, ...]:
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
        dropped: dict[str, Any] = {} if run or not name else {"value": ""}
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
