"""What the form of the second tab does: it starts trainings, estimates them, and tells what each method costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.config.sections import LEARNS_WORD
from dreambooth.errors import ConfigError, DreamBoothError, ModelError, RunError
from dreambooth.methods import methods
from dreambooth.ui import in_plain_words
from dreambooth.ui.photos.crops import Boxes, Photos, aligned
from dreambooth.ui.photos.taught import Kept, taught, words
from dreambooth.ui.photos.uploads import Upload
from dreambooth.ui.studio import Studio, title
from dreambooth.ui.train import estimate as estimates
from dreambooth.ui.train.estimate import Estimates
from dreambooth.ui.train.form import NO_WORD, Choices, Form, method_choices
from dreambooth.ui.train.recipes import method_of, usual_settings
from dreambooth.ui.train.start import start
from dreambooth.ui.train.ways import Ways

SEVERAL_HINT = "Let `photos` of each of `more_subjects` say how many of them are its own."


def makes_a_word(method: str, learned: str | None) -> bool:
    """Whether the identifier becomes a new word, with this method and the run whose word is taken over."""
    return method in LEARNS_WORD or (method == "lora" and bool(learned))


def _further(given: Any, photos: Photos | None, new_word: bool) -> Iterator[tuple[Upload, dict[str, str]]]:
    """Further subjects as an API caller gives them; raises `ConfigError` for what is none."""
    paths = [path for path, _ in photos or []]
    for number, one in enumerate(given if isinstance(given, list) else [given] if given else [], 2):
        count = one.get("photos") if isinstance(one, dict) else None
        if type(count) is not int or not 0 < count <= len(paths):
            raise ConfigError(f"Subject {number} has no photos, or more than are left of `more_photos`.", SEVERAL_HINT)
        told = [one.get(name) for name in ("identifier", "class_noun")]
        identifier, noun = (word if isinstance(word, str) else "" for word in told)
        own, paths = paths[:count], paths[count:]
        boxes = aligned([(path, None) for path in own], {}, one.get("crops"))
        yield Upload(own, boxes), words(identifier, noun, new_word)
    if paths:
        raise ConfigError(f"{len(paths)} of `more_photos` belong to no subject.", SEVERAL_HINT)


@dataclass(frozen=True)
class Actions:
    """What the form does; `start_training` and `estimate` are named endpoints."""

    studio: Studio
    form: Form
    estimates: Estimates

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
        crops: list[Any] | None = None,
        consent: bool = False,
        more: dict[str, Any] | None = None,
        more_subjects: list[Any] | None = None,
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
        new_word = makes_a_word(method_of(settings), learned)
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
        settings: dict[str, Any],
        choices: Choices,
        uploads: list[Upload],
        said: list[dict[str, str]],
        consent: bool,
    ) -> list[str]:
        settings = settings | {"subject": said[0], "more_subjects": said[1:]}
        known = self.estimates.known(settings)
        runs = start(
            self.studio,
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
        new_word = makes_a_word(method_of(settings), choices.learned)
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
        more: dict[str, Any] | None = None,
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
        usual = {method.name: usual_settings(self.studio, base_model, method.name) for method in methods()}
        known = {name: self.estimates.known(settings) for name, settings in usual.items()}
        costs = {name: estimates.in_short(found) if found else "Estimating …" for name, found in known.items()}
        for name in [name for name, found in known.items() if not found] if photos or kept else ():
            yield gr.Radio(method_choices(costs))
            costs[name] = self._cost(usual[name])
        yield gr.Radio(method_choices(costs if photos or kept else {}))

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
            learned = [run for run in self.studio.own_runs(owner) if run.config.method == "textual_inversion"]
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
