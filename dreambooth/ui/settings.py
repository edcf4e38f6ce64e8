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

from dreambooth.config import TOYBOX, Config, load_preset
from dreambooth.errors import ConfigError
from dreambooth.ui import login
from dreambooth.ui.limits import FOR_ONESELF
from dreambooth.ui.studio import QUIET, Studio

# On top stand the settings that decide most often whether a training succeeds. Steps and learning rate together say how
# much is learned: too little misses the subject, too much copies the photos. Prior preservation keeps the class. The
# text encoder makes the subject more faithful and costs the most memory. The seed is the cheapest second try, and equal
# seeds make two runs comparable. Resolution is not among them: `auto`, what the base model was trained at, is right.
ON_TOP = {
    "train.steps": "steps",
    "train.learning_rate": "learning_rate",
    "prior.enabled": "prior",
    "prior.num_images": "class_images",
    "train.text_encoder": "text_encoder",
    "seed": "seed",
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

SMALL = 256
"""Side in pixels of training pictures up to which a base model without a recipe takes the toybox's: its learning rate
suits small models and would ruin large ones."""

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
            return gr.Textbox(shown, lines=1 if kind.several is tuple else 3, **arguments)
        if kind.types == {bool} and not kind.choices:
            return gr.Checkbox(shown, **arguments)
        if kind.choices and kind.types <= {bool}:
            return gr.Dropdown([*kind.choices, *(("on", "off") if kind.types else ())], value=shown, **arguments)
        if kind.types and kind.types <= {int, float} and not kind.choices and not kind.optional:
            whole = {"precision": 0} if kind.types == {int} else {"step": _step(value)}
            return gr.Number(shown, placeholder="from the recipe", **whole, **arguments)
        if kind.types:  # a word, a number or a word such as auto, or one that may be none (Gradio's would show 0)
            return gr.Textbox(shown, placeholder="none" if kind.optional else None, max_length=1000, **arguments)
        raise TypeError(f"no field for {self.key}: {self.info.annotation}")

    def shown(self, value: Any) -> Any:
        """What the field shows for a config's value."""
        kind = _kind(self.info.annotation)
        if kind.several:
            return (", " if kind.several is tuple else "\n").join(map(str, value))
        if kind.choices:
            return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
        return "" if value is None else str(value) if kind.optional else value

    def taken(self, shown: Any) -> Any:
        """The config's value for what the field shows; `_LEFT_OUT` where an empty one stands for the recipe's."""
        kind = _kind(self.info.annotation)
        if kind.several is tuple:
            return [part for part in str(shown or "").replace(",", " ").split()] or _LEFT_OUT
        if kind.several:
            return [line.strip() for line in str(shown or "").splitlines() if line.strip()]
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
    both_ways: Any

    def as_settings(self, studio: Studio, more: Any) -> dict[str, Any]:
        """Nested as in a config file, without the subject; what is None is as the recipe says.

        Raises `ConfigError` for a model that is not on offer, and for `more` that may not be set here.
        """
        recipe = self.recipe or first_recipe(studio, self.base_model)
        enabled = True if self.both_ways else self.prior
        on_top = {
            "preset": recipe,
            "base_model": studio.model(self.base_model or model_for(studio, recipe)),
            "prior": _given(enabled=enabled, num_images=None if enabled is False else self.class_images),
            "train": _given(steps=self.steps, learning_rate=self.learning_rate, text_encoder=self.text_encoder),
            **_given(seed=self.seed),
        }
        more = checked_more(more)
        return more | {
            name: more.get(name, {}) | value if isinstance(value, dict) else value for name, value in on_top.items()
        }


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Form:
    """The components: those on top, and the accordion's by their setting."""

    top: Choices
    more: dict[Setting, Component]

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
        both_ways=gr.Checkbox(False, label="both_ways", visible=False),
    )


def build(studio: Studio) -> Form:
    """Lay the form out and wire what in it depends on something else."""
    recipe, base_model = first_recipe(studio), studio.default_model
    config = _config_of(recipe)
    by_key = {setting.key: setting for setting in all_settings()}

    def on_top(key: str, info: str, **arguments: Any) -> Component:
        return by_key[key].component(value_of(config, key), info=info, **arguments)

    recipes = gr.Dropdown(
        [(label, name) for name, label in studio.recipes.items()], value=recipe, label="Recipe",
        info="For the kind of subject and the base model; fills in every setting below.", elem_id="recipe",
    )  # fmt: skip
    models = gr.Dropdown(list(studio.base_models), value=base_model, label="Base model", elem_id="base-model")
    method = by_key["method"]
    choices = _kind(method.info.annotation).choices
    more = {method: method.component(config.method, visible=len(choices) > 1, elem_id="method")}
    with gr.Row():
        steps = on_top("train.steps", "Too many copy the photos.", elem_id="steps", min_width=140)
        rate = on_top("train.learning_rate", "Lower it if pictures decay.", elem_id="learning-rate", min_width=140)
        seed = on_top("seed", "Another one is another try.", elem_id="seed", min_width=140)
    with gr.Group():
        prior = on_top(
            "prior.enabled", "Trains on the model's own pictures of the class as well, so that it keeps the class.",
            label="Prior preservation (PPL)", elem_id="prior",
        )  # fmt: skip
        images = on_top("prior.num_images", "Drawn once, then shared between runs.", label="Class images",
                        elem_id="class-images", visible=config.prior.enabled)  # fmt: skip
        both = gr.Checkbox(
            False, label="Train both ways", elem_id="both-ways",
            info="Two runs with the same seed, one with and one without PPL, to see what it does.",
        )  # fmt: skip
    text = on_top("train.text_encoder", "More faithful to the subject; more memory.", label="Train the text encoder")
    more |= _accordion(config, known=more, hidden=() if login.for_oneself(public=studio.public) else FOR_ONESELF)
    form = Form(Choices(recipes, models, steps, rate, prior, images, text, seed, both), more)
    _wire(studio, form)
    return form


def _accordion(config: Config, known: Iterable[Setting], hidden: Sequence[str]) -> dict[Setting, Component]:
    """A field for every further setting, under what its section is about; those that are `hidden` are not seen."""
    components = {}
    with gr.Accordion("All other settings", open=False, elem_id="more-settings"):
        for section in dict.fromkeys(setting.key.rpartition(".")[0] for setting in further_settings()):
            about = _section(Config.model_fields[section]).__doc__ if section else "The run as a whole."
            gr.Markdown(f"#### {about.splitlines()[0]}")
            with gr.Row(elem_classes="fields"):
                for setting in further_settings():
                    if setting.key.rpartition(".")[0] == section and setting not in known:
                        value, visible = value_of(config, setting.key), setting.key not in hidden
                        components[setting] = setting.component(value, visible=visible)
    return components


def _wire(studio: Studio, form: Form) -> None:
    """A recipe fills in the form; a base model asks for a recipe that suits it; PPL shows what belongs to it."""
    top, filled = form.top, form.components[1:]
    filled.remove(top.both_ways)

    def fill(recipe: str) -> list[Any]:
        return recipe_values(studio, form, recipe)

    def suit(base_model: str, recipe: str) -> list[Any]:
        suited = suited_recipe(studio, base_model, recipe)
        if suited == recipe:
            return [gr.skip()] * (1 + len(filled))
        return [suited, base_model, *recipe_values(studio, form, suited)[1:]]

    top.recipe.input(fill, top.recipe, filled, **QUIET)
    top.base_model.input(suit, [top.base_model, top.recipe], [top.recipe, *filled], **QUIET)
    top.prior.change(lambda on: gr.Number(visible=on), top.prior, top.class_images, **QUIET)
    top.both_ways.input(lambda both, on: on or both, [top.both_ways, top.prior], top.prior, **QUIET)


# ------------------------------------------------------------------------------------------------------------- recipes


def _config_of(recipe: str) -> Config:
    return Config.from_dict({"preset": recipe, "subject": {"photos": ".", "class_noun": "dog"}})


def _made_for(recipe: str) -> str:
    return load_preset(recipe)["base_model"]


def first_recipe(studio: Studio, base_model: str | None = None) -> str:
    """The recipe to start with: the first for the base model of that name (by default the studio's), else one for
    models of the size that the studio's has."""
    fallback = (
        next((name for name in studio.recipes if name != TOYBOX), TOYBOX) if studio.resolution > SMALL else TOYBOX
    )
    return suited_recipe(studio, base_model or studio.default_model, fallback)


def model_for(studio: Studio, recipe: str) -> str:
    """The name of the base model that a recipe was made for; the studio's default where that is not on offer."""
    wanted = _made_for(recipe)
    return next((name for name, model in studio.base_models.items() if model == wanted), studio.default_model)


def suited_recipe(studio: Studio, base_model: str, recipe: str) -> str:
    """`recipe`, or the first one that was made for the base model of that name where `recipe` was not."""
    wanted = studio.model(base_model)
    made = [name for name in studio.recipes if _made_for(name) == wanted]
    return recipe if recipe in made or not made else made[0]


def recipe_values(studio: Studio, form: Form, recipe: str) -> list[Any]:
    """What a recipe puts into the form's fields, from the base model on; training both ways stays as it is."""
    config = _config_of(recipe)
    on_top = [value_of(config, key) for key in ON_TOP]
    return [
        model_for(studio, recipe),
        *on_top,
        *(setting.shown(value_of(config, setting.key)) for setting in form.more),
    ]
