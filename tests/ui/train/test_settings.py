"""The form generated from the config model: every setting reachable, and its values back as settings."""

from pathlib import Path

import gradio as gr
import pytest

from dreambooth.config.names import TOYBOX
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError
from dreambooth.ui.studio import RECIPES, Studio
from dreambooth.ui.train import settings
from dreambooth.ui.train.settings import ELSEWHERE, ON_TOP, Choices, Setting, all_settings, further_settings, value_of
from tests.ui.studios import studio as make_studio

EMPTY = Choices(*[None] * len(Choices._fields))
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
    base_model, *values = settings.recipe_values(studio, form, recipe)
    top, more = dict(zip(ON_TOP.values(), values)), values[len(ON_TOP) :]
    choices = EMPTY._replace(recipe=recipe, base_model=base_model, ways="one", **top)
    given = choices.as_settings(studio, form.more_settings(more))
    made = Config.from_dict(given | {"subject": {"photos": ".", "class_noun": "dog"}})
    assert made == Config.from_dict({"preset": recipe, "subject": {"photos": ".", "class_noun": "dog"}})


@pytest.mark.parametrize(
    ("key", "shown", "taken"),
    [
        ("train.betas", "0.8, 0.99", (0.8, 0.99)),
        ("train.betas", "0.8 0.99", (0.8, 0.99)),
        ("train.betas", " ", (0.9, 0.999)),
        ("train.resolution", "96", 96),
        ("train.resolution", "", "auto"),
        ("train.gradient_checkpointing", "off", False),
        ("train.gradient_checkpointing", "auto", "auto"),
        ("train.snr_gamma", "", None),
        ("train.snr_gamma", None, None),
        ("train.snr_gamma", "5", 5.0),
        ("train.batch_size", None, 4),
        ("sampling.prompts", "a {class_noun}\n\n two \n", ["a {class_noun}", "two"]),
        ("sampling.prompts", "", []),
        ("lora.targets", " to_k\nto_v ", ["to_k", "to_v"]),
        ("lora.targets", "", None),
        ("lora.alpha", "", None),
        ("sampling.scheduler", "ddim", "ddim"),
        ("train.flip", True, True),
        ("device", "cpu", "cpu"),
    ],
)
def test_what_a_field_shows_becomes_the_setting(key: str, shown: object, taken: object):
    made = config(**settings.nested([(setting(key), shown)]))
    assert value_of(made, key) == taken
    assert value_of(config(**settings.nested([(setting(key), setting(key).shown(taken))])), key) == taken


@pytest.mark.parametrize(
    ("key", "kind", "label", "ends"),
    [
        ("train.flip", gr.Checkbox, "Flip", "have a side."),
        ("train.optimizer", gr.Dropdown, "Optimizer", "on SD 1.5."),
        ("train.batch_size", gr.Number, "Batch size", "(1 to 256)"),
        ("train.ema_decay", gr.Textbox, "EMA decay", "(above 0 to below 1)"),
        ("train.max_grad_norm", gr.Number, "Largest gradient norm", "(above 0)"),
        ("train.betas", gr.Textbox, "Betas", "paper."),
        ("train.lr_schedule", gr.Dropdown, "Learning rate schedule", "Source: paper."),
        ("train.warmup_steps", gr.Number, "Warmup steps", "(0 or more)"),
    ],
)
def test_a_field_suits_its_type_and_says_what_it_is(key: str, kind: type, label: str, ends: str):
    with gr.Blocks():
        field = setting(key).component(value_of(config(), key))
    assert type(field) is kind
    assert field.label == label
    assert field.info.endswith(ends)


def test_out_of_range_is_refused_in_a_sentence_that_names_the_setting():
    with pytest.raises(ConfigError, match=r"train\.batch_size = 0"):
        config(**settings.nested([(setting("train.batch_size"), 0)]))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"base_model": "/etc"}, "a visitor never sends a path"),
        ({"subject": {"photos": "/home"}}, "the Photos tab"),
        ({"revision": "x"}, "downloaded"),
        ({"preset": "paper"}, "recipe"),
        ({"train": {"steps": 3}}, "parameter steps"),
        ({"train": {"stepz": 3}}, "Known: .*train.batch_size"),
        ({"prior": 3}, "'prior'"),
        ([1], "not settings"),
        ({"evaluation": {"clip": "/etc"}}, "can't hold 'evaluation.clip'"),
        ({"word": {"learned": "/etc"}}, "a visitor never sends a path"),
        ({"more_subjects": [{}]}, "the Photos tab"),
        ({"method": "lora"}, "parameter method"),
        ({"drift": {"weight": 1}}, "parameter drift"),
        ({"seed": 3}, "parameter seed"),
        ({"nothing": {}, "other": 1}, "'other'"),
    ],
)
def test_callers_can_set_nothing_but_what_the_accordion_holds(studio: Studio, more: object, says: str):
    with pytest.raises(ConfigError, match=says):
        EMPTY.as_settings(studio, more)


def test_what_a_caller_leaves_out_is_as_the_recipe_says(studio: Studio):
    assert EMPTY._replace(recipe="sd15-animal").as_settings(studio, None) == {
        "preset": "sd15-animal",
        "base_model": SD15,
        "prior": {},
        "train": {},
    }
    assert EMPTY._replace(base_model=SD15).as_settings(studio, {"train": {"flip": True}}) == {
        "preset": "sd15-object",
        "base_model": SD15,
        "prior": {},
        "train": {"flip": True},
    }


def test_several_ways_turn_on_what_they_compare_and_without_ppl_no_class_images_are_asked(studio: Studio):
    chosen = EMPTY._replace(recipe=TOYBOX, prior=False, class_images=0, drift=0, ways="one")
    assert chosen.as_settings(studio, None)["prior"] == {"enabled": False}
    both = chosen._replace(ways="two", class_images=8).as_settings(studio, None)
    assert (both["prior"], both["drift"]) == ({"enabled": True, "num_images": 8}, {"weight": 0})
    assert chosen._replace(ways="three").as_settings(studio, None)["drift"] == {"weight": settings.DRIFT}
    assert chosen._replace(ways="three", drift=2).as_settings(studio, None)["drift"] == {"weight": 2}


@pytest.mark.parametrize("ways", ["one", "two", "three"])
@pytest.mark.parametrize("prior", [True, False, None])
def test_where_a_word_alone_is_learned_class_images_are_left_out(studio: Studio, ways: str, prior: bool | None):
    chosen = EMPTY._replace(method="textual_inversion", prior=prior, class_images=8, ways=ways)
    asked = chosen.as_settings(studio, None)
    assert asked["prior"] == {"enabled": False}
    made = config(**asked, subject={"photos": ".", "class_noun": "dog"})
    assert (made.prior.active, made.condition) == (False, "word alone")


@pytest.mark.parametrize("method", ["full", "lora", "textual_inversion", "custom_diffusion"])
def test_a_method_has_a_recipe_for_every_base_model(studio: Studio, form: settings.Form, method: str):
    ending = "" if method == "full" else f"-{method.replace('_', '-')}"
    assert settings.first_recipe(studio, "tiny-sd", method) == f"toybox{ending}"  # it is small
    assert settings.first_recipe(studio, SD15, method) == (f"sd15{ending}" if ending else "sd15-object")
    assert {recipe for _, recipe in settings.recipe_choices(studio, method)} >= {f"toybox{ending}"}
    made = EMPTY._replace(method=method, base_model="tiny-sd").as_settings(studio, None)
    assert settings.method_of(made) == settings.method_of({"preset": made["preset"]}) == method
    assert config(**made, subject={"photos": ".", "class_noun": "dog"}).method == method


def test_every_recipe_is_offered_with_its_method(studio: Studio):
    offered = [
        recipe
        for method in ("full", "lora", "textual_inversion", "custom_diffusion")
        for _, recipe in settings.recipe_choices(studio, method)
    ]
    assert sorted(offered) == sorted(RECIPES)
    with pytest.raises(ConfigError, match="no method 'dreams' here"):
        EMPTY._replace(method="dreams").as_settings(studio, None)


def test_a_method_is_told_with_its_sentence_and_its_cost():
    labels = {name: label.splitlines() for label, name in settings.method_choices({"lora": "File 3 MB"})}
    assert labels["lora"][0] == "LoRA"
    assert labels["lora"][-1] == "File 3 MB"
    assert [len(lines) for lines in labels.values()] == [2, 3, 2, 2]


def test_a_base_model_asks_for_a_recipe_that_suits_it(studio: Studio):
    assert settings.first_recipe(studio) == TOYBOX  # the tiny model is small
    assert settings.suited_recipe(studio, SD15, TOYBOX) == "sd15-object"
    assert settings.suited_recipe(studio, SD15, "paper") == "paper"
    assert settings.suited_recipe(studio, "tiny-sd", "paper") == "paper"
    assert settings.model_for(studio, "paper") == SD15
    with pytest.raises(ConfigError, match="not on offer"):
        settings.suited_recipe(studio, "/etc", TOYBOX)


def test_the_accordion_holds_the_settings_of_the_methods_by_itself():
    assert {s.key.split(".")[0] for s in further_settings() if "." in s.key} == {
        "prior",
        "lora",
        "word",
        "train",
        "sampling",
        "evaluation",
    }
    assert {s.key for s in further_settings()} >= {
        "lora.rank",
        "lora.alpha",
        "lora.dropout",
        "lora.dora",
        "lora.targets",
        "word.vectors",
        "word.initializer",
    }
