"""How often a subject is trained: one way, or several that differ in what keeps the class, side by side."""

from __future__ import annotations

from typing import Any, Literal, get_args

from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError

Ways = Literal["one", "two", "three"]
"""How often a subject is trained: as the settings say; with and without PPL; with PPL, without it, and with a drift
penalty in its place."""


def ways_of(config: Config, ways: Ways) -> list[Config]:
    """The runs that are asked for, the same but for what keeps the class: with PPL, without, with a drift penalty.

    Raises `ConfigError` where two of them would be the same.
    """
    if ways not in get_args(Ways):
        raise ConfigError(f"ways is {ways!r}.", f"Choose {', '.join(get_args(Ways))}.")
    if ways == "one":
        return [config]
    pair = [changed(config, prior={"enabled": enabled}) for enabled in (True, False)]
    if not pair[0].prior.active:
        raise ConfigError("prior.weight is 0, so that both ways would be the same.", "Raise it, or train one way.")
    if config.method == "textual_inversion":
        raise ConfigError(
            "Textual Inversion changes nothing that PPL could keep, so that both ways would be the same.",
            "Train one way, or take another method.",
        )
    if ways == "two":
        return pair
    if not config.drift.weight:
        raise ConfigError(
            "drift.weight is 0, so that there is no drift penalty to compare with.",
            "Raise it, or train with and without PPL alone.",
        )
    return [*(changed(one, drift={"weight": 0.0}) for one in pair), pair[1]]


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    """The config with some settings of its sections changed."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )
