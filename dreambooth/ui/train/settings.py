"""The form of a training's settings: those that matter on top, every other one generated from the config model."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreambooth.config.names import TOYBOX
from dreambooth.config.presets import load_preset
from dreambooth.config.settings import LEARNS_WORD, Config
from dreambooth.config.yaml_file import MAX_FOREIGN_YAML
from dreambooth.errors import ConfigError
from dreambooth.methods import methods
from dreambooth.ui.doors import login
from dreambooth.ui.doors.limits import FOR_ONESELF, MAX_LETTERS
from dreambooth.ui.studio import QUIET, Studio, Ways

# On top stand the settings that decide most often whether a training succeeds. Steps and learning rate together say how
# much is learned: too little misses the subject, too much copies the photos. Prior preservation keeps the class. The
# text encoder makes the subject more faithful and costs the most memory. The seed is the cheapest second try, and equal
# seeds make two runs comparable. Resolution is not among them: `auto`, what the base model was trained at, is right.
# The method decides what all of this costs, and how large the file is.
ON_TOP = {
    "train.steps": "steps",
    "train.learning_rate": "learning_rate",
    "prior.enabled": "prior",
    "prior.num_images": "class_images",
    "train.text_encoder": "text_encoder",
    "seed": "seed",
    "method": "method",
    "drift.weight": "drift",
}
"""Settings with a place, and a parameter of `start_training`, of their own."""

ELSEWHERE = {
    "preset": "the recipe fills in the form",
    "base_model": "chosen by name from those on offer: a visitor never sends a path",
    "revision": "belongs to the base model: another one would be downloaded at a visitor's word",
    "subject.photos": "the Photos tab",
    "subject.identifier": "the Photos tab",
    "subject.class_noun": "the Photos tab",
    "subject.crops": "the Photos tab",
    "subject.captions": "captions are files beside the photos, and uploads are pictures alone",
    "subject.instance_prompt": "the Photos tab makes it from identifier and class noun",
    "more_subjects": "the Photos tab",
    "word.learned": "chosen among one's own runs, as `learned`: a visitor never sends a path",
    "evaluation.dino": "a visitor would name a folder of the server, or a download; auto suits the base model",
    "evaluation.clip": "as evaluation.dino",
    "evaluation.perceptual": "as evaluation.dino",
    "evaluation.prompts": "for the command `evaluate`, after the training",
    "evaluation.images_per_prompt": "for the command `evaluate`",
    "evaluation.class_images": "for the command `evaluate`",
    "evaluation.seed": "for the command `evaluate`",
    "evaluation.batch_size": "changes no figure, only how much memory measuring takes",
}
"""Settings that are not in the form, and why."""

WAYS = [
    ("Once, as set here", "one"),
    ("Twice: with and without PPL", "two"),
    ("Three times: with PPL, without, with a drift penalty", "three"),
]
"""How often to train, as the page calls it."""

NO_WORD = ("No: take a rare word of the vocabulary", "")

SMALL = 256
"""Side in pixels of training pictures up to which a base model without a recipe takes the toybox's: its learning rate
suits small models and would ruin large ones."""

DRIFT = 0.01
"""Weight of the drift penalty where one is asked for and none is set. Source: a run each of full fine-tuning on the
toybox's sample backpack without class images: 0.01 lowered PRES by 0.13 and DINO by 0.08, 1 left little of both."""

OF_METHOD = {"lora": ("lora",), "word": LEARNS_WORD}
"""Sections that are for some methods alone."""

_WORDS = {"num": "number of", "lr": "learning rate", "snr": "SNR", "ema": "EMA", "grad": "gradient", "max": "largest"}
_LEFT_OUT = object()


# ------------------------------------------------------------------------------------------------ one setting's field


class _Kind(NamedTuple):
    """What a setting's type comes down to."""

    types: frozenset[type]
    choices: tuple[str, ...]
    """The words of its `Literal`."""
    optional: bool
    several: type | None
    """list or tuple, for a setting of several values."""


def _kind(annotation: Any) -> _Kind:
    leaves = list(_leaves(annotation))
    several = next((get_origin(leaf) for leaf in leaves if get_origin(leaf) in (list, tuple)), None)
    choices = tuple(leaf for leaf in leaves if isinstance(leaf, str))
    plain = frozenset(leaf for leaf in leaves if leaf in (bool, int, float, str))
    return _Kind(plain, choices, types.NoneType in leaves, several)


def _leaves(annotation: Any) -> Iterator[Any]:
    """The members of a union, without annotations, and a `Literal`'s values one by one."""
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _leaves(member)
    elif get_origin(annotation) is Annotated:
        yield from _leaves(get_args(annotation)[0])
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        yield annotation


@dataclass(frozen=True)
class Setting:
    """One field of the config and how the form shows it."""

    key: str
    """As in `--set`: train.steps."""
    info: FieldInfo = field(compare=False)

    @property
    def label(self) -> str:
        """The field's name in words."""
        name = " ".join(_WORDS.get(word, word) for word in self.key.split(".")[-1].split("_"))
        return name[0].upper() + name[1:]

    @property
    def help(self) -> str:
        """Its description, with the range that it may have."""
        return f"{self.info.description} ({allowed})" if (allowed := _range(self.info)) else self.info.description

    def component(self, value: Any, **arguments: Any) -> Component:
        """The field for a config's `value`. What is out of range `Config` refuses, in a sentence that names the
        setting, which Gradio's own limits do not."""
        kind, shown = _kind(self.info.annotation), self.shown(value)
        arguments = {"label": self.label, "info": self.help, "min_width": 200} | arguments
        if kind.several:
            lines = 1 if kind.several is tuple else 3
            return gr.Textbox(shown, lines=lines, max_length=MAX_FOREIGN_YAML, **arguments)
        if kind.types == {bool} and not kind.choices:
            return gr.Checkbox(shown, **arguments)
        if kind.choices and kind.types <= {bool}:
            return gr.Dropdown([*kind.choices, *(("on", "off") if kind.types else ())], value=shown, **arguments)
        if kind.types and kind.types <= {int, float} and not kind.choices and not kind.optional:
            whole = {"precision": 0} if kind.types == {int} else {"step": _step(value)}
            return gr.Number(shown, placeholder="from the recipe", **whole, **arguments)
        if kind.types:  # a word, a number or a word such as auto, or one that may be none (Gradio's would show 0)
            return gr.Textbox(shown, placeholder="none" if kind.optional else None, max_length=MAX_LETTERS, **arguments)
        raise TypeError(f"no field for {self.key}: {self.info.annotation}")

    def shown(self, value: Any) -> Any:
        """What the field shows for a config's value."""
        kind = _kind(self.info.annotation)
        if kind.several:
            return (", " if kind.several is tuple else "\n").join(map(str, value or ()))
        if kind.choices:
            return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
        return "" if value is None else str(value) if kind.optional else value

    def taken(self, shown: Any) -> Any:
        """The config's value for what the field shows; `_LEFT_OUT` where an empty one stands for the recipe's."""
        kind = _kind(self.info.annotation)
        if kind.several is tuple:
            return [part for part in str(shown or "").replace(",", " ").split()] or _LEFT_OUT
        if kind.several:
            lines = [line.strip() for line in str(shown or "").splitlines() if line.strip()]
            return None if kind.optional and not lines else lines
        empty = shown is None or (isinstance(shown, str) and not shown.strip())
        return _LEFT_OUT if empty and not kind.optional else None if empty else shown


def _range(info: FieldInfo) -> str:
    """The limits of a number, or of a text's length, as words; empty where there are none."""
    limits = {name: getattr(m, name) for m in info.metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)}
    words = {name: f"{value:,}" if isinstance(value, int) else f"{value:g}" for name, value in limits.items()}
    low = words.get("ge") or (f"above {words['gt']}" if "gt" in words else "")
    high = words.get("le") or (f"below {words['lt']}" if "lt" in words else "")
    return f"{low} to {high}" if low and high else f"{low} or more" if "ge" in words else low or high


def _step(value: float) -> float:
    """How far an arrow of a number's field goes: one in its first digit."""
    return 10.0 ** math.floor(math.log10(abs(value))) if value else 0.1


# --------------------------------------------------------------------------------------------------- all of the config


def all_settings() -> Iterator[Setting]:
    """Every setting of a run, sections first."""
    sections = {name: info for name, info in Config.model_fields.items() if _section(info)}
    for name, info in sections.items():
        for key, inner in info.annotation.model_fields.items():
            yield Setting(f"{name}.{key}", inner)
    for name, info in Config.model_fields.items():
        if name not in sections:
            yield Setting(name, info)


def further_settings() -> list[Setting]:
    """Those that the accordion holds: all but the ones on top and the ones that belong elsewhere."""
    return [setting for setting in all_settings() if setting.key not in ON_TOP.keys() | ELSEWHERE.keys()]


def _section(info: FieldInfo) -> type[BaseModel] | None:
    return info.annotation if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel) else None


def value_of(config: Config, key: str) -> Any:
    """A setting's value in a config."""
    value = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def nested(values: Iterable[tuple[Setting, Any]]) -> dict[str, Any]:
    """What fields show, as settings nested like a config file."""
    settings: dict[str, Any] = {}
    for setting, shown in values:
        if (value := setting.taken(shown)) is not _LEFT_OUT:
            *section, name = setting.key.split(".")
            (settings.setdefault(section[0], {}) if section else settings)[name] = value
    return settings


def checked_more(more: Any) -> dict[str, Any]:
    """Further settings as an API caller nests them; raises `ConfigError` for one that is not among them, such as a path
    that would be read on the server."""
    known = {setting.key for setting in further_settings()}
    if not isinstance(more := more or {}, dict):
        raise ConfigError(f"more is {more!r}, not settings.", 'Nest them as a config file does: {"train": {…}}.')
    for name, value in more.items():
        for key in [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [str(name)]:
            if key in ON_TOP:
                raise ConfigError(f"more can't hold {key!r}.", f"Give it as the parameter {ON_TOP[key]}.")
            if key in ELSEWHERE:
                raise ConfigError(f"more can't hold {key!r}: {ELSEWHERE[key]}.")
            if key not in known:
                raise ConfigError(f"more can't hold {key!r}.", f"Known: {', '.join(sorted(known))}.")
    return more


# ------------------------------------------------------------------------------------------------------------- the form


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
        more = checked_more(more)
        return more | {
            name: more.get(name, {}) | value if isinstance(value, dict) else value for name, value in on_top.items()
        }


def method_of(settings: dict[str, Any]) -> str:
    """The method of settings that name a recipe."""
    return settings.get("method") or recipe_method(settings["preset"])


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Form:
    """The components: those on top, and the accordion's by their setting."""

    top: Choices
    more: dict[Setting, Component]
    recipes: gr.Dropdown
    """The list that the recipe is chosen from."""
    keeping: gr.Column
    """Holds what keeps the class, for methods that could change it."""
    of_method: dict[str, gr.Column]
    """The accordion's sections that are for some methods alone."""

    @property
    def components(self) -> list[Component]:
        """All of them: those on top first."""
        return [*self.top, *self.more.values()]

    def more_settings(self, values: Sequence[Any]) -> dict[str, Any]:
        """What the accordion shows, as settings nested like a config file."""
        return nested(zip(self.more, values, strict=True))


def for_callers(studio: Studio) -> Choices:
    """The same fields for API callers, never shown and empty: what a caller leaves out is as the recipe says."""
    # Others than the choices are let in, and refused in our own words.
    choice = {"value": None, "allow_custom_value": True, "visible": False}
    switch = {"choices": [True, False], "value": None}
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
    config = _config_of(recipe)
    by_key = {setting.key: setting for setting in all_settings()}

    def on_top(key: str, info: str, **arguments: Any) -> Component:
        return by_key[key].component(value_of(config, key), info=info, **arguments)

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
    with gr.Row():
        steps = on_top("train.steps", "Too many copy the photos.", elem_id="steps", min_width=140)
        rate = on_top("train.learning_rate", "Lower it if pictures decay.", elem_id="learning-rate", min_width=140)
        seed = on_top("seed", "Another one is another try.", elem_id="seed", min_width=140)
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


def _accordion(config: Config, hidden: Sequence[str]) -> tuple[dict[Setting, Component], dict[str, gr.Column]]:
    """A field for every further setting, under what its section is about, and the sections that are for some methods
    alone; fields that are `hidden` are not seen."""
    components, columns = {}, {}
    with gr.Accordion("All other settings", open=False, elem_id="more-settings"):
        for section in dict.fromkeys(setting.key.rpartition(".")[0] for setting in further_settings()):
            about = _section(Config.model_fields[section]).__doc__ if section else "The run as a whole."
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


# ------------------------------------------------------------------------------------------------------------- methods


def method_choices(costs: dict[str, str]) -> list[tuple[str, str]]:
    """The methods as a list to choose from: title, what it is in a sentence, and what it costs where that is known."""
    return [
        ("\n".join([method.title, method.description, *filter(None, [costs.get(method.name)])]), method.name)
        for method in methods()
    ]


def usual_settings(studio: Studio, base_model: str, method: str) -> dict[str, Any]:
    """A method's recipe on the base model of that name, as it is."""
    return {"preset": first_recipe(studio, base_model, method), "base_model": studio.model(base_model)}


# ------------------------------------------------------------------------------------------------------------- recipes


def _config_of(recipe: str) -> Config:
    return Config.from_dict({"preset": recipe, "subject": {"photos": ".", "class_noun": "dog"}})


def _made_for(recipe: str) -> str:
    return load_preset(recipe)["base_model"]


def recipe_method(recipe: str) -> str:
    """The method that a recipe is for."""
    return load_preset(recipe).get("method", "full")


def recipe_choices(studio: Studio, method: str) -> list[tuple[str, str]]:
    """The recipes for a method, by what the page calls them."""
    return [(label, name) for name, label in studio.recipes.items() if recipe_method(name) == method]


def first_recipe(studio: Studio, base_model: str | None = None, method: str | None = None) -> str:
    """The recipe of a method to start with: the first for the base model of that name (by default the studio's), else
    one for models of the size that the studio's has."""
    names = [name for _, name in recipe_choices(studio, method or "full")]
    if not names:
        known = ", ".join(one.name for one in methods())
        raise ConfigError(f"There is no method {method!r} here.", f"Choose {known}.")
    small = studio.resolution <= SMALL
    fallback = next((name for name in names if (_made_for(name) == TOYBOX) == small), names[0])
    return suited_recipe(studio, base_model or studio.default_model, fallback)


def model_for(studio: Studio, recipe: str) -> str:
    """The name of the base model that a recipe was made for; the studio's default where that is not on offer."""
    wanted = _made_for(recipe)
    return next((name for name, model in studio.base_models.items() if model == wanted), studio.default_model)


def suited_recipe(studio: Studio, base_model: str, recipe: str) -> str:
    """`recipe`, or the first one of its method that was made for the base model of that name where it was not."""
    wanted = studio.model(base_model)
    names = [name for _, name in recipe_choices(studio, recipe_method(recipe))]
    made = [name for name in names if _made_for(name) == wanted]
    return recipe if recipe in made or not made else made[0]


def recipe_values(studio: Studio, form: Form, recipe: str) -> list[Any]:
    """What a recipe puts into the base model's field, those on top and the accordion's, in this order."""
    config = _config_of(recipe)
    on_top = [value_of(config, key) for key in ON_TOP]
    return [
        model_for(studio, recipe),
        *on_top,
        *(setting.shown(value_of(config, setting.key)) for setting in form.more),
    ]
