"""The form generated from the config model: every setting reachable, and its values back as settings."""

from pathlib import Path

import gradio as gr
import pytest

from dreambooth.config import TOYBOX, Config
from dreambooth.errors import ConfigError
from dreambooth.ui import settings
from dreambooth.ui.settings import ELSEWHERE, ON_TOP, Choices, Setting, all_settings, further_settings, value_of
from dreambooth.ui.studio import RECIPES, Studio
from tests.ui.studios import studio as make_studio

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def config(**changes) -> Config:
    return Config.from_dict({"base_model": TOYBOX, "subject": {"photos": ".", "class_noun": "dog"}} | changes)


def setting(key: str) -> Setting:
    return next(s for s in all_settings() if s.key == key)


@pytest.fixture
def studio(tmp_path: Path, tiny_model: Path) -> Studio:
    made = make_studio(tmp_path / "runs", tiny_model)
    made.base_models.update({TOYBOX: TOYBOX, SD15: SD15})
    return made


@pytest.fixture
def form(studio: Studio) -> settings.Form:
    with gr.Blocks():
        return settings.build(studio)


def test_every_setting_of_a_run_is_in_the_form_or_left_out_for_a_reason(form: settings.Form):
    keys = {s.key for s in all_settings()}
    assert {s.key for s in form.more} == keys - ON_TOP.keys() - ELSEWHERE.keys()
    assert ON_TOP.keys() | ELSEWHERE.keys() <= keys, "a setting that is no more"
    assert set(ON_TOP.values()) <= set(Choices._fields)
    assert all(ELSEWHERE.values())


def test_what_strangers_may_not_choose_is_not_in_their_form(form: settings.Form, tmp_path: Path, tiny_model: Path):
    with gr.Blocks():
        public = settings.build(make_studio(tmp_path / "public", tiny_model, public=True))
    seen = [{setting.key for setting, field in one.more.items() if field.visible} for one in (form, public)]
    assert seen[0] - seen[1] == {"prior.pack"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_fills_in_gives_its_settings_again(studio: Studio, form: settings.Form, recipe: str):
    values = settings.recipe_values(studio, form, recipe)
    top, more = values[: 1 + len(ON_TOP)], values[1 + len(ON_TOP) :]
    choices = Choices(recipe, *top, both_ways=False)
    given = choices.as_settings(studio, form.more_settings(more))
    made = Config.from_dict(given | {"subject": {"photos": ".", "class_noun": "dog"}})
    assert made == Config.from_dict({"preset": recipe, "subject": {"photos": ".", "class_noun": "dog"}})


@pytest.mark.parametrize(("key", "shown", "taken"), [
    ("train.betas", "0.8, 0.99", (0.8, 0.99)), ("train.betas", "0.8 0.99", (0.8, 0.99)),
    ("train.betas", " ", (0.9, 0.999)), ("train.resolution", "96", 96), ("train.resolution", "", "auto"),
    ("train.gradient_checkpointing", "off", False), ("train.gradient_checkpointing", "auto", "auto"),
    ("train.snr_gamma", "", None), ("train.snr_gamma", None, None), ("train.snr_gamma", "5", 5.0),
    ("train.batch_size", None, 4),
    ("sampling.prompts", "a {class_noun}\n\n two \n", ["a {class_noun}", "two"]), ("sampling.prompts", "", []),
    ("sampling.scheduler", "ddim", "ddim"), ("train.flip", True, True), ("device", "cpu", "cpu"),
])  # fmt: skip
def test_what_a_field_shows_becomes_the_setting(key: str, shown: object, taken: object):
    made = config(**settings.nested([(setting(key), shown)]))
    assert value_of(made, key) == taken
    assert value_of(config(**settings.nested([(setting(key), setting(key).shown(taken))])), key) == taken


@pytest.mark.parametrize(("key", "kind", "label", "ends"), [
    ("train.flip", gr.Checkbox, "Flip", "have a side."), ("train.optimizer", gr.Dropdown, "Optimizer", "002 and 004."),
    ("train.batch_size", gr.Number, "Batch size", "(1 to 256)"), ("train.ema_decay", gr.Textbox, "EMA decay",
    "(above 0 to below 1)"), ("train.max_grad_norm", gr.Number, "Largest gradient norm", "(above 0)"),
    ("train.betas", gr.Textbox, "Betas", "paper."), ("train.lr_schedule", gr.Dropdown, "Learning rate schedule",
    "Source: paper."), ("train.warmup_steps", gr.Number, "Warmup steps", "(0 or more)"),
])  # fmt: skip
def test_a_field_suits_its_type_and_says_what_it_is(key: str, kind: type, label: str, ends: str):
    with gr.Blocks():
        field = setting(key).component(value_of(config(), key))
    assert type(field) is kind
    assert field.label == label
    assert field.info.endswith(ends)


def test_out_of_range_is_refused_in_a_sentence_that_names_the_setting():
    with pytest.raises(ConfigError, match=r"train\.batch_size = 0"):
        config(**settings.nested([(setting("train.batch_size"), 0)]))


@pytest.mark.parametrize(("more", "says"), [
    ({"base_model": "/etc"}, "a visitor never sends a path"), ({"subject": {"photos": "/home"}}, "the Photos tab"),
    ({"revision": "x"}, "downloaded"), ({"preset": "paper"}, "recipe"), ({"train": {"steps": 3}}, "parameter steps"),
    ({"train": {"stepz": 3}}, "Known: .*train.batch_size"), ({"prior": 3}, "'prior'"), ([1], "not settings"),
    ({"evaluation": {"clip": "/etc"}}, "can't hold 'evaluation.clip'"),
    ({"seed": 3}, "parameter seed"), ({"nothing": {}, "other": 1}, "'other'"),
])  # fmt: skip
def test_callers_can_set_nothing_but_what_the_accordion_holds(studio: Studio, more: object, says: str):
    empty = Choices(*[None] * len(Choices._fields))
    with pytest.raises(ConfigError, match=says):
        empty.as_settings(studio, more)


def test_what_a_caller_leaves_out_is_as_the_recipe_says(studio: Studio):
    empty = Choices(*[None] * len(Choices._fields))
    assert empty._replace(recipe="sd15-animal").as_settings(studio, None) == {
        "preset": "sd15-animal", "base_model": SD15, "prior": {}, "train": {},
    }  # fmt: skip
    assert empty._replace(base_model=SD15).as_settings(studio, {"train": {"flip": True}}) == {
        "preset": "sd15-object", "base_model": SD15, "prior": {}, "train": {"flip": True},
    }  # fmt: skip


def test_both_ways_turns_ppl_on_and_without_it_no_class_images_are_asked(studio: Studio):
    chosen = Choices(TOYBOX, TOYBOX, 9, 1e-4, False, 0, True, 1, False)
    assert chosen.as_settings(studio, None)["prior"] == {"enabled": False}
    both = chosen._replace(both_ways=True, class_images=8)
    assert both.as_settings(studio, None)["prior"] == {"enabled": True, "num_images": 8}


def test_a_base_model_asks_for_a_recipe_that_suits_it(studio: Studio):
    assert settings.first_recipe(studio) == TOYBOX  # the tiny model is small
    assert settings.suited_recipe(studio, SD15, TOYBOX) == "sd15-object"
    assert settings.suited_recipe(studio, SD15, "paper") == "paper"
    assert settings.suited_recipe(studio, "tiny-sd", "paper") == "paper"
    assert settings.model_for(studio, "paper") == SD15
    with pytest.raises(ConfigError, match="not on offer"):
        settings.suited_recipe(studio, "/etc", TOYBOX)


def test_the_accordion_holds_the_settings_of_later_methods_by_itself():
    assert {s.key.split(".")[0] for s in further_settings() if "." in s.key} == {
        "prior", "train", "sampling", "evaluation",
    }  # fmt: skip
    assert setting("method").info.description in setting("method").help
