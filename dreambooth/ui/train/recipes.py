"""The recipes on offer: which of them suits a method and a base model."""

from __future__ import annotations

from typing import Any

from dreambooth.config.names import TOYBOX
from dreambooth.config.presets import load_preset
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError
from dreambooth.methods import methods
from dreambooth.ui.studio import Studio

SMALL = 256
"""Side in pixels of training pictures up to which a base model without a recipe takes the toybox's: its learning rate
suits small models and would ruin large ones."""


def method_of(settings: dict[str, Any]) -> str:
    """The method of settings that name a recipe."""
    return str(settings.get("method") or recipe_method(settings["preset"]))


def usual_settings(studio: Studio, base_model: str, method: str) -> dict[str, Any]:
    """A method's recipe on the base model of that name, as it is."""
    return {"preset": first_recipe(studio, base_model, method), "base_model": studio.model(base_model)}


def config_of(recipe: str) -> Config:
    """The settings of a recipe, for any photos of anything."""
    return Config.from_dict({"preset": recipe, "subject": {"photos": ".", "class_noun": "dog"}})


def _made_for(recipe: str) -> str:
    return str(load_preset(recipe)["base_model"])


def recipe_method(recipe: str) -> str:
    """The method that a recipe is for."""
    return str(load_preset(recipe).get("method", "full"))


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
