"""The recipes that come with the program, in `presets/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth.config.names import TOYBOX
from dreambooth.config.yaml_file import merge, read_yaml
from dreambooth.errors import ConfigError

_PRESETS = Path(__file__).parent / "presets"

RENAMED = {
    "seed-000": "sd15-watch",
    "seed-002": "sd15-ppl-study",
    "seed-003": "sd15-low-rate",
    "seed-004": "sd15-small-gpu",
}
"""Presets by the names they had up to version 0.1, and by today's."""


def preset_names() -> list[str]:
    """The names that `preset` takes."""
    return sorted(path.stem for path in _PRESETS.glob("*.yaml"))


def todays_name(name: Any) -> Any:
    """The name that a preset goes by today; any other value as it is."""
    return RENAMED.get(name, name) if isinstance(name, str) else name


def usual_preset(base_model: str, method: str | None = None) -> str | None:
    """The recipe of settings that name none: the method's, for the toybox or for Stable Diffusion 1.x; None where
    the defaults are that recipe."""
    kind = TOYBOX if base_model == TOYBOX else "sd15"
    if method in (None, "full"):
        return TOYBOX if kind == TOYBOX else None
    name = f"{kind}-{str(method).replace('_', '-')}"
    return name if name in preset_names() else None  # an unknown method is told of with all other wrong keys


def load_preset(name: str) -> dict[str, Any]:
    """A preset's settings, over those of the preset that it names; raises `ConfigError` with the names there are, or
    with today's of one that had another."""
    if (today := todays_name(name)) != name:
        raise ConfigError(f"preset {name!r} is called {today} now.", f"Write {today}.")
    if name not in preset_names():
        raise ConfigError(f"preset {name!r} does not exist.", f"Choose one of {', '.join(preset_names())}.")
    settings = read_yaml(_PRESETS / f"{name}.yaml")
    below = settings.pop("preset", None)
    return merge(load_preset(below), settings) if below else settings
