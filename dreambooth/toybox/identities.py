"""One particular thing of the toybox: its kind, its colours, its marks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from dreambooth.errors import ConfigError

Colour = tuple[int, int, int]

PALETTE: dict[str, Colour] = {
    "red": (214, 48, 44),
    "orange": (242, 138, 36),
    "yellow": (248, 208, 60),
    "green": (62, 160, 72),
    "teal": (30, 158, 158),
    "blue": (54, 112, 222),
    "navy": (38, 48, 112),
    "purple": (130, 74, 184),
    "pink": (242, 134, 178),
    "brown": (134, 84, 48),
    "black": (54, 52, 60),
    "white": (242, 240, 234),
    "grey": (144, 148, 156),
    "beige": (222, 196, 152),
}
FUR = ("brown", "black", "white", "grey", "beige", "orange")

# Per class: natural colours (empty: any), patterns beside plain, what is worn or painted on, and a feature of shape.
TRAITS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "dog": (FUR, ("spots", "patches", "stripes"), ("collar", "scarf", "hat", ""), ("floppy", "floppy", "pointed")),
    "cat": (FUR, ("stripes", "patches", "halves"), ("collar", "bow tie", "hat", ""), ("yellow eyes", "green eyes")),
    "bear": (FUR, ("patches", "stripes", "spots"), ("bow tie", "scarf", "hat", ""), ("belly", "heart", "")),
    "duck": (
        ("yellow", "white", "brown", "green", "grey"),
        ("spots", "patches", "halves"),
        ("hat", "scarf", "bow tie", ""),
        ("tuft", ""),
    ),
    "robot": (
        (),
        ("stripes", "halves", "spots"),
        ("screen", "star", "heart", "circle"),
        ("one antenna, round", "two antennas, square", "one antenna, visor", "two antennas, round"),
    ),
    "car": ((), ("stripes", "halves", "spots"), ("star", "roof rack", "stripe", ""), ("saloon", "round", "van")),
    "mug": ((), ("stripes", "spots", "halves"), ("heart", "star", "circle", "band", ""), ("coffee", "milk", "steam")),
    "teapot": (
        (),
        ("stripes", "spots", "halves"),
        ("heart", "star", "circle", ""),
        ("ball knob", "star knob", "flat knob"),
    ),
    "backpack": (
        (),
        ("stripes", "spots", "patches", "halves"),
        ("star", "heart", "circle", ""),
        ("one pocket", "two pockets"),
    ),
    "clock": ((), ("stripes", "spots", "halves"), ("tinted face", "dots", ""), ("bells", "bells", "button")),
    "sneaker": ((), ("stripes", "spots", "patches"), ("star", "swoosh", "dark sole"), ("low", "high")),
    "vase": (
        (),
        ("stripes", "spots", "patches", "halves"),
        ("ring", "heart", "star", ""),
        ("empty", "tulips", "daisies"),
    ),
}

CLASSES: tuple[str, ...] = tuple(TRAITS)


def seeded(*seeds: int) -> np.random.Generator:
    """A generator of its own for each row of seeds."""
    return np.random.default_rng(np.random.SeedSequence(seeds))


def check_known(what: str, value: str, choices: Collection[str]) -> None:
    """Raise `ConfigError` where `value` is none of the choices."""
    if value not in choices:
        raise ConfigError(f"Unknown {what} {value!r}.", f"Choose one of: {', '.join(choices)}.")


@dataclass(frozen=True)
class Identity:
    """One particular thing: what stays the same in every picture of it.

    Colours are RGB, 0..255. `pattern` is plain, stripes, spots, patches or halves, in the second colour. `worn` is what
    it wears or has painted on in the accent colour ("" for nothing), `feature` a choice of shape, `shape` six
    proportions in 0..1.
    """

    class_noun: str
    seed: int
    main: Colour
    second: Colour
    accent: Colour
    main_name: str
    second_name: str
    accent_name: str
    pattern: str
    worn: str
    feature: str
    shape: tuple[float, ...]


def identity(class_noun: str, seed: int) -> Identity:
    """The identity number `seed` (>= 0) of a class; raises `ConfigError` for an unknown class."""
    check_known("class", class_noun, CLASSES)
    rng = seeded(CLASSES.index(class_noun) + 1, seed, 11)
    natural, patterns, worn, features = TRAITS[class_noun]
    names = tuple(PALETTE)
    usual = natural if natural and rng.random() < 0.75 else names
    main = usual[rng.integers(len(usual))]
    second = _apart(rng, usual, (main,))
    accent = _apart(rng, names, (main, second))
    pattern = "plain" if rng.random() < 0.34 else patterns[rng.integers(len(patterns))]
    colours = [_tinted(PALETTE[name], rng) for name in (main, second, accent)]
    return Identity(
        class_noun,
        seed,
        colours[0],
        colours[1],
        colours[2],
        main,
        second,
        accent,
        pattern,
        worn[rng.integers(len(worn))],
        features[rng.integers(len(features))],
        tuple(rng.random(6).tolist()),
    )


def _tinted(colour: Colour, rng: np.random.Generator) -> Colour:
    r, g, b = np.clip(colour + rng.integers(-12, 13, 3), 0, 255).tolist()
    return r, g, b


def _apart(rng: np.random.Generator, names: tuple[str, ...], taken: tuple[str, ...]) -> str:
    """A colour name well apart from those taken, so that marks show."""
    far = [n for n in names if min(np.abs(np.subtract(PALETTE[n], PALETTE[t])).sum() for t in taken) > 150]
    return far[rng.integers(len(far))]
