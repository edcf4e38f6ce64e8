"""The settings of a training as fields of a form: each generated from the config model, and read back into settings."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

import gradio as gr
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import MAX_FOREIGN_YAML
from dreambooth.errors import ConfigError
from dreambooth.ui.doors.limits import MAX_LETTERS

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


_WORDS = {"num": "number of", "lr": "learning rate", "snr": "SNR", "ema": "EMA", "grad": "gradient", "max": "largest"}
_LEFT_OUT = object()

Field: TypeAlias = gr.Checkbox | gr.Dropdown | gr.Number | gr.Textbox
"""What a setting is filled in with."""


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
        description, allowed = self.info.description or "", _range(self.info)
        return f"{description} ({allowed})" if allowed else description

    def component(self, value: Any, **arguments: Any) -> Field:
        """The field for a config's `value`. What is out of range `Config` refuses, in a sentence that names the
        setting, which Gradio's own limits do not."""
        kind, shown = _kind(self.info.annotation), self.shown(value)
        told: dict[str, Any] = {"label": self.label, "info": self.help, "min_width": 200} | arguments
        if kind.several:
            lines = 1 if kind.several is tuple else 3
            return gr.Textbox(shown, lines=lines, max_length=MAX_FOREIGN_YAML, **told)
        if kind.types == {bool} and not kind.choices:
            return gr.Checkbox(shown, **told)
        if kind.choices and kind.types <= {bool}:
            return gr.Dropdown([*kind.choices, *(("on", "off") if kind.types else ())], value=shown, **told)
        if kind.types and kind.types <= {int, float} and not kind.choices and not kind.optional:
            whole: dict[str, Any] = {"precision": 0} if kind.types == {int} else {"step": _step(value)}
            return gr.Number(shown, placeholder="from the recipe", **whole, **told)
        if kind.types:  # a word, a number or a word such as auto, or one that may be none (Gradio's would show 0)
            return gr.Textbox(shown, placeholder="none" if kind.optional else None, max_length=MAX_LETTERS, **told)
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
    alone = []
    for name, info in Config.model_fields.items():
        if section := section_of(info):
            for key, inner in section.model_fields.items():
                yield Setting(f"{name}.{key}", inner)
        else:
            alone.append(Setting(name, info))
    yield from alone


def further_settings() -> list[Setting]:
    """Those that the accordion holds: all but the ones on top and the ones that belong elsewhere."""
    return [setting for setting in all_settings() if setting.key not in ON_TOP.keys() | ELSEWHERE.keys()]


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """The settings that a field of the config holds; None for a setting by itself."""
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


# ------------------------------------------------------------------------------------------------------------- methods


# ------------------------------------------------------------------------------------------------------------- recipes
