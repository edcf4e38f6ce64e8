"""Which recipe suits a method and a base model."""

import pytest

from dreambooth.config.names import TOYBOX
from dreambooth.errors import ConfigError
from dreambooth.ui.studio import RECIPES, Studio
from dreambooth.ui.train import recipes
from tests.ui.train.conftest import EMPTY, SD15, config


@pytest.fixture
def studio(stocked: Studio) -> Studio:
    return stocked


@pytest.mark.parametrize("method", ["full", "lora", "textual_inversion", "custom_diffusion"])
def test_a_method_has_a_recipe_for_every_base_model(studio: Studio, method: str):
    ending = "" if method == "full" else f"-{method.replace('_', '-')}"
    assert recipes.first_recipe(studio, "tiny-sd", method) == f"toybox{ending}"  # it is small
    assert recipes.first_recipe(studio, SD15, method) == (f"sd15{ending}" if ending else "sd15-object")
    assert {recipe for _, recipe in recipes.recipe_choices(studio, method)} >= {f"toybox{ending}"}
    made = EMPTY._replace(method=method, base_model="tiny-sd").as_settings(studio, None)
    assert recipes.method_of(made) == recipes.method_of({"preset": made["preset"]}) == method
    assert config(**made, subject={"photos": ".", "class_noun": "dog"}).method == method


def test_every_recipe_is_offered_with_its_method(studio: Studio):
    offered = [
        recipe
        for method in ("full", "lora", "textual_inversion", "custom_diffusion")
        for _, recipe in recipes.recipe_choices(studio, method)
    ]
    assert sorted(offered) == sorted(RECIPES)
    with pytest.raises(ConfigError, match="no method 'dreams' here"):
        EMPTY._replace(method="dreams").as_settings(studio, None)


def test_a_base_model_asks_for_a_recipe_that_suits_it(studio: Studio):
    assert recipes.first_recipe(studio) == TOYBOX  # the tiny model is small
    assert recipes.suited_recipe(studio, SD15, TOYBOX) == "sd15-object"
    assert recipes.suited_recipe(studio, SD15, "paper") == "paper"
    assert recipes.suited_recipe(studio, "tiny-sd", "paper") == "paper"
    assert recipes.model_for(studio, "paper") == SD15
    with pytest.raises(ConfigError, match="not on offer"):
        recipes.suited_recipe(studio, "/etc", TOYBOX)
