"""The form of a training: every setting is in it, recipes fill it in, and what it shows becomes settings."""

from pathlib import Path

import gradio as gr
import pytest

from dreambooth.config.names import TOYBOX
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError
from dreambooth.ui.studio import RECIPES, Studio
from dreambooth.ui.train import form as forms
from dreambooth.ui.train.form import Choices
from dreambooth.ui.train.settings import ELSEWHERE, ON_TOP, all_settings
from tests.ui.studios import studio as make_studio
from tests.ui.train.conftest import EMPTY, SD15, config


@pytest.fixture
def studio(stocked: Studio) -> Studio:
    return stocked


@pytest.fixture
def form(studio: Studio) -> forms.Form:
    with gr.Blocks():
        return forms.build(studio)


def test_every_setting_of_a_run_is_in_the_form_or_left_out_for_a_reason(form: forms.Form):
    keys = {s.key for s in all_settings()}
    assert {s.key for s in form.more} == keys - ON_TOP.keys() - ELSEWHERE.keys()
    assert ON_TOP.keys() | ELSEWHERE.keys() <= keys, "a setting that is no more"
    assert set(ON_TOP.values()) <= set(Choices._fields)
    assert all(ELSEWHERE.values())


def test_what_strangers_may_not_choose_is_not_in_their_form(form: forms.Form, tmp_path: Path, tiny_model: Path):
    with gr.Blocks():
        public = forms.build(make_studio(tmp_path / "public", tiny_model, public=True))
    seen = [{setting.key for setting, field in one.more.items() if field.visible} for one in (form, public)]
    assert seen[0] - seen[1] == {"prior.pack"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_fills_in_gives_its_settings_again(studio: Studio, form: forms.Form, recipe: str):
    base_model, *values = forms.recipe_values(studio, form, recipe)
    top, more = dict(zip(ON_TOP.values(), values)), values[len(ON_TOP) :]
    choices = EMPTY._replace(recipe=recipe, base_model=base_model, ways="one", **top)
    given = choices.as_settings(studio, form.more_settings(more))
    made = Config.from_dict(given | {"subject": {"photos": ".", "class_noun": "dog"}})
    assert made == Config.from_dict({"preset": recipe, "subject": {"photos": ".", "class_noun": "dog"}})


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
    assert chosen._replace(ways="three").as_settings(studio, None)["drift"] == {"weight": forms.DRIFT}
    assert chosen._replace(ways="three", drift=2).as_settings(studio, None)["drift"] == {"weight": 2}


@pytest.mark.parametrize("ways", ["one", "two", "three"])
@pytest.mark.parametrize("prior", [True, False, None])
def test_where_a_word_alone_is_learned_class_images_are_left_out(studio: Studio, ways: str, prior: bool | None):
    chosen = EMPTY._replace(method="textual_inversion", prior=prior, class_images=8, ways=ways)
    asked = chosen.as_settings(studio, None)
    assert asked["prior"] == {"enabled": False}
    made = config(**asked, subject={"photos": ".", "class_noun": "dog"})
    assert (made.prior.active, made.condition) == (False, "word alone")


def test_a_method_is_told_with_its_sentence_and_its_cost():
    labels = {name: label.splitlines() for label, name in forms.method_choices({"lora": "File 3 MB"})}
    assert labels["lora"][0] == "LoRA"
    assert labels["lora"][-1] == "File 3 MB"
    assert [len(lines) for lines in labels.values()] == [2, 3, 2, 2]
