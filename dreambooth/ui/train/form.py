"""The form of a training: what decides on top, every other setting in an accordion, and recipes that fill it in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import gradio as gr

from dreambooth.config.sections import LEARNS_WORD
from dreambooth.config.settings import Config
from dreambooth.methods import methods
from dreambooth.ui import QUIET
from dreambooth.ui.doors import login
from dreambooth.ui.doors.limits import FOR_ONESELF
from dreambooth.ui.studio import Studio
from dreambooth.ui.train.recipes import config_of, first_recipe, model_for, recipe_choices, recipe_method, suited_recipe
from dreambooth.ui.train.settings import (
    ON_TOP,
    Field,
    Setting,
    all_settings,
    checked_more,
    further_settings,
    nested,
    section_of,
    value_of,
)
from dreambooth.ui.train.ways import Ways

WAYS = [
    ("Once, as set here", "one"),
    ("Twice: with and without PPL", "two"),
    ("Three times: with PPL, without, with a drift penalty", "three"),
]
"""How often to train, as the page calls it."""

NO_WORD = ("No: take a rare word of the vocabulary", "")

DRIFT = 0.01
"""Weight of the drift penalty where one is asked for and none is set. Source: a run each of full fine-tuning on the
toybox's sample backpack without class images: 0.01 lowered PRES by 0.13 and DINO by 0.08, 1 left little of both."""

OF_METHOD = {"lora": ("lora",), "word": LEARNS_WORD}
"""Sections that are for some methods alone."""


class Choices(NamedTuple):
    """The form's values, in the order in which `start_training` takes them."""

    recipe: Any
    base_model: Any
    steps: Any
    learning_rate: Any
    prior: Any
    class_images: Any
    text_encoder: Any
    seed: Any
    ways: Any
    method: Any
    drift: Any
    learned: Any
    """The id of a run whose word is taken over; `Studio.start` finds it."""

    def as_settings(self, studio: Studio, more: Any) -> dict[str, Any]:
        """Nested as in a config file, without the subject; what is None is as the recipe says.

        Where a word alone is learned, class images are left out whatever is chosen: they would have nothing to keep.
        Raises `ConfigError` for a model that is not on offer, and for `more` that may not be set here.
        """
        recipe = self.recipe or first_recipe(studio, self.base_model, self.method)
        learns_alone = (self.method or recipe_method(recipe)) == "textual_inversion"  # `ways_of` refuses more than one
        enabled = False if learns_alone else True if self.ways in ("two", "three") else self.prior
        drift = self.drift or DRIFT if self.ways == "three" and not learns_alone else self.drift
        on_top = {
            "preset": recipe,
            "base_model": studio.model(self.base_model or model_for(studio, recipe)),
            "prior": _given(enabled=enabled, num_images=None if enabled is False else self.class_images),
            "train": _given(steps=self.steps, learning_rate=self.learning_rate, text_encoder=self.text_encoder),
            **_given(seed=self.seed, method=self.method),
            **({"drift": {"weight": drift}} if drift is not None else {}),
        }
        settings = dict(checked_more(more))
        for name, value in on_top.items():
            settings[name] = settings.get(name, {}) | value if isinstance(value, dict) else value
        return settings


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Form:
    """The components: those on top, and the accordion's by their setting."""

    top: Choices
    more: dict[Setting, Field]
    recipes: gr.Dropdown
    """The list that the recipe is chosen from."""
    keeping: gr.Column
    """Holds what keeps the class, for methods that could change it."""
    of_method: dict[str, gr.Column]
    """The accordion's sections that are for some methods alone."""

    @property
    def components(self) -> list[Field | gr.Radio]:
        """All of them: those on top first."""
        return [*self.top, *self.more.values()]

    def more_settings(self, values: Sequence[Any]) -> dict[str, Any]:
        """What the accordion shows, as settings nested like a config file."""
        return nested(zip(self.more, values, strict=True))


def for_callers(studio: Studio) -> Choices:
    """The same fields for API callers, never shown and empty: what a caller leaves out is as the recipe says."""
    # Others than the choices are let in, and refused in our own words.
    choice: dict[str, Any] = {"value": None, "allow_custom_value": True, "visible": False}
    switch: dict[str, Any] = {"choices": [True, False], "value": None}
    return Choices(
        recipe=gr.Dropdown(list(studio.recipes), label="recipe", **choice),
        base_model=gr.Dropdown(list(studio.base_models), label="base_model", **choice),
        steps=gr.Number(None, precision=0, label="steps", visible=False),
        learning_rate=gr.Number(None, label="learning_rate", visible=False),
        prior=gr.Dropdown(**switch, label="prior", visible=False),
        class_images=gr.Number(None, precision=0, label="class_images", visible=False),
        text_encoder=gr.Dropdown(**switch, label="text_encoder", visible=False),
        seed=gr.Number(None, precision=0, label="seed", visible=False),
        ways=gr.Dropdown(list(get_args(Ways)), label="ways", **choice | {"value": "one"}),
        method=gr.Dropdown([method.name for method in methods()], label="method", **choice),
        drift=gr.Number(None, label="drift", visible=False),
        learned=gr.Textbox(None, label="learned", visible=False),
    )


def build(studio: Studio) -> Form:
    """Lay the form out and wire what in it depends on something else."""
    recipe, base_model = first_recipe(studio), studio.default_model
    config = config_of(recipe)
    by_key = {setting.key: setting for setting in all_settings()}

    def on_top(key: str, info: str, **arguments: Any) -> Field:
        return by_key[key].component(value_of(config, key), info=info, **arguments)

    # What is trained, and by which recipe
    models = gr.Dropdown(list(studio.base_models), value=base_model, label="Base model", elem_id="base-model")
    method = gr.Radio(
        method_choices({}),
        value=config.method,
        label="Method",
        elem_id="method",
        info="What is trained. Size, time and memory are for its recipe on this base model.",
    )
    # Others than the choices are let in, since the list is a visitor's own; `Studio.start` refuses those of others.
    learned = gr.Dropdown(
        [NO_WORD],
        value="",
        label="Start from a learned word",
        visible=False,
        allow_custom_value=True,
        elem_id="learned",
        info="LoRA then adds what the word alone can't tell (pivotal tuning).",
    )
    # Its name is kept apart from the list, whose choices change: Gradio 6.31 refuses a value that has just left them.
    chosen = gr.Textbox(recipe, label="recipe", visible="hidden")
    recipes = gr.Dropdown(
        recipe_choices(studio, config.method),
        value=recipe,
        label="Recipe",
        info="For the kind of subject and the base model; fills in every setting below.",
        elem_id="recipe",
    )

    # How much is learned
    with gr.Row():
        steps = on_top("train.steps", "Too many copy the photos.", elem_id="steps", min_width=140)
        rate = on_top("train.learning_rate", "Lower it if pictures decay.", elem_id="learning-rate", min_width=140)
        seed = on_top("seed", "Another one is another try.", elem_id="seed", min_width=140)

    # What keeps the class
    with gr.Column(elem_id="keeping") as keeping, gr.Group():
        prior = on_top(
            "prior.enabled",
            "Trains on the model's own pictures of the class as well, so that it keeps the class.",
            label="Prior preservation (PPL)",
            elem_id="prior",
        )
        images = on_top(
            "prior.num_images",
            "Drawn once, then shared between runs.",
            label="Class images",
            elem_id="class-images",
            visible=config.prior.enabled,
        )
        drift = on_top(
            "drift.weight",
            "Holds the weights near the base model's, in place of class images or beside them; 0 is "
            f"off, {DRIFT:g} a start.",
            label="Drift penalty",
            elem_id="drift-weight",
        )
        ways = gr.Radio(
            WAYS,
            value="one",
            label="Train",
            elem_id="ways",
            info="Several runs have the same seed and settings else, to see what keeps the class.",
        )

    # How faithful, and every other setting
    text = on_top(
        "train.text_encoder",
        "More faithful to the subject; more memory.",
        label="Train the text encoder",
        elem_id="text-encoder",
    )
    more, of_method = _accordion(config, hidden=() if login.for_oneself(public=studio.public) else FOR_ONESELF)

    choices = Choices(chosen, models, steps, rate, prior, images, text, seed, ways, method, drift, learned)
    form = Form(choices, more, recipes, keeping, of_method)
    _wire(studio, form)
    return form


def _accordion(config: Config, hidden: Sequence[str]) -> tuple[dict[Setting, Field], dict[str, gr.Column]]:
    """A field for every further setting, under what its section is about, and the sections that are for some methods
    alone; fields that are `hidden` are not seen."""
    components: dict[Setting, Field] = {}
    columns: dict[str, gr.Column] = {}
    with gr.Accordion("All other settings", open=False, elem_id="more-settings"):
        for section in dict.fromkeys(setting.key.rpartition(".")[0] for setting in further_settings()):
            model = section_of(Config.model_fields[section]) if section else None
            about = (model and model.__doc__) or "The run as a whole."
            with gr.Column(visible=config.method in OF_METHOD.get(section, (config.method,))) as column:
                gr.Markdown(f"#### {about.splitlines()[0]}")
                with gr.Row(elem_classes="fields"):
                    for setting in further_settings():
                        if setting.key.rpartition(".")[0] == section:
                            value, visible = value_of(config, setting.key), setting.key not in hidden
                            components[setting] = setting.component(value, visible=visible)
            if section in OF_METHOD:
                columns[section] = column
    return components, columns


def _wire(studio: Studio, form: Form) -> None:
    """A method and a base model ask for a recipe that suits them; a recipe fills in the form; what does not belong to
    the method is not seen."""
    top, filled = form.top, [form.top.base_model, *(getattr(form.top, name) for name in ON_TOP.values())]
    filled += form.more.values()

    def fill(recipe: str) -> list[Any]:
        return [recipe, *recipe_values(studio, form, recipe)]

    def suit(base_model: str, recipe: str) -> list[Any]:
        suited = suited_recipe(studio, base_model, recipe)
        if suited == recipe:
            return [gr.skip()] * (2 + len(filled))
        return [suited, suited, base_model, *recipe_values(studio, form, suited)[1:]]

    def choose(base_model: str, method: str) -> list[Any]:
        recipe = first_recipe(studio, base_model, method)
        recipes = gr.Dropdown(recipe_choices(studio, method), value=recipe)
        return [recipes, recipe, base_model, *recipe_values(studio, form, recipe)[1:]]

    def show(method: str) -> list[Any]:
        keeps = method != "textual_inversion"
        sections = [gr.Column(visible=method in OF_METHOD[name]) for name in form.of_method]
        return [
            gr.Column(visible=keeps),
            gr.skip() if keeps else "one",
            gr.Checkbox(visible=method not in LEARNS_WORD),
            *sections,
        ]

    def turn_on(ways: str, prior: bool, drift: float | None) -> tuple[bool, float | None]:
        return prior or ways != "one", drift or DRIFT if ways == "three" else drift

    form.recipes.input(fill, form.recipes, [top.recipe, *filled], **QUIET)
    chosen = [form.recipes, top.recipe, *filled]
    top.base_model.input(suit, [top.base_model, top.recipe], chosen, **QUIET)
    top.method.input(choose, [top.base_model, top.method], chosen, **QUIET)
    top.method.change(show, top.method, [form.keeping, top.ways, top.text_encoder, *form.of_method.values()], **QUIET)
    top.prior.change(lambda on: gr.Number(visible=on), top.prior, top.class_images, **QUIET)
    top.ways.input(turn_on, [top.ways, top.prior, top.drift], [top.prior, top.drift], **QUIET)


def method_choices(costs: dict[str, str]) -> list[tuple[str, str]]:
    """The methods as a list to choose from: title, what it is in a sentence, and what it costs where that is known."""
    return [
        ("\n".join([method.title, method.description, *filter(None, [costs.get(method.name)])]), method.name)
        for method in methods()
    ]


def recipe_values(studio: Studio, form: Form, recipe: str) -> list[Any]:
    """What a recipe puts into the base model's field, those on top and the accordion's, in this order."""
    config = config_of(recipe)
    on_top = [value_of(config, key) for key in ON_TOP]
    return [
        model_for(studio, recipe),
        *on_top,
        *(setting.shown(value_of(config, setting.key)) for setting in form.more),
    ]
