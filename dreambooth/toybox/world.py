"""The toybox world: procedural pictures of twelve kinds of things, with captions, to train a tiny model on.

An `Identity` is one particular thing (this dog); a `Scene` is one picture of it: where, how lit, in which style. All is
a function of integer seeds, the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dreambooth.errors import ConfigError
from dreambooth.toybox.animals import ANIMALS
from dreambooth.toybox.backdrops import TINTS, backdrop
from dreambooth.toybox.drawing import Pen
from dreambooth.toybox.identities import CLASSES, PALETTE, Identity, check_known, identity, seeded
from dreambooth.toybox.objects import OBJECTS
from dreambooth.toybox.styles import STYLED, subject_mask
from dreambooth.toybox.textures import texture

__all__ = [
    "CONTEXTS",
    "HELD_OUT_FROM",
    "STYLES",
    "Scene",
    "caption",
    "random_scene",
    "render",
    "sample_subject",
    "texture",
    "vocabulary",
]

DRAW: dict[str, Callable[[Pen, Identity, Sequence[float]], None]] = {f.__name__: f for f in (*ANIMALS, *OBJECTS)}

# Half width and height that each kind needs, in its own units, with hat, arms and tail.
EXTENT: dict[str, tuple[float, float]] = {
    "dog": (0.63, 1.02),
    "cat": (0.5, 0.98),
    "bear": (0.49, 1.0),
    "duck": (0.57, 1.0),
    "robot": (0.5, 1.05),
    "car": (0.53, 0.67),
    "mug": (0.59, 1.01),
    "teapot": (0.54, 0.83),
    "backpack": (0.5, 1.01),
    "clock": (0.39, 0.95),
    "sneaker": (0.58, 0.75),
    "vase": (0.33, 1.1),
}

CONTEXTS: dict[str, str] = {
    "beach": "on a beach",
    "snow": "in the snow",
    "jungle": "in the jungle",
    "city": "in a city at night",
    "grass": "on grass",
    "floor": "on a wooden floor",
    "desert": "in the desert",
    "underwater": "underwater",
    "blue": "on a blue background",
    "red": "on a red background",
}
STYLES: dict[str, str] = {
    "photo": "a photo of",
    "sketch": "a pencil sketch of",
    "watercolour": "a watercolour painting of",
    "pixel": "a pixel art picture of",
}
HELD_OUT_FROM = 1_000_000


@dataclass(frozen=True)
class Scene:
    """One picture: one or two subjects (the first is the left one), a context, a style, and the seed of its view.

    Raises `ConfigError` for an unknown context or style or another number of subjects.
    """

    subjects: tuple[Identity, ...]
    context: str
    style: str
    seed: int

    def __post_init__(self) -> None:
        check_known("context", self.context, CONTEXTS)
        check_known("style", self.style, STYLES)
        if len(self.subjects) not in (1, 2):
            raise ConfigError(f"A scene of {len(self.subjects)} subjects.", "Give it 1 or 2.")


def random_scene(
    rng: np.random.Generator, *, held_out: bool = False, identities: int = 20000, two_subjects: float = 0.08
) -> Scene:
    """A scene drawn from `identities` identities per class: training ones, or held-out ones.

    Raises `ConfigError` if `identities` would reach into the held-out seeds.
    """
    if not 1 <= identities <= HELD_OUT_FROM:
        raise ConfigError(f"identities is {identities}.", f"Choose 1 to {HELD_OUT_FROM}.")
    n = 2 if rng.random() < two_subjects else 1
    nouns = rng.choice(len(CLASSES), n, replace=False)
    first = HELD_OUT_FROM if held_out else 0
    subjects = tuple(identity(CLASSES[k], first + int(rng.integers(identities))) for k in nouns)
    context = tuple(CONTEXTS)[rng.integers(len(CONTEXTS))]
    style = tuple(STYLES)[rng.choice(len(STYLES), p=(0.76, 0.08, 0.08, 0.08))]
    return Scene(subjects, context, style, int(rng.integers(2**31)))


@dataclass(frozen=True)
class View:
    """How one subject stands in the picture; lengths are parts of the picture's side, `angle` is in degrees.

    `x`, `y` is where it touches the ground, `scale` the length of one of the subject's units.
    """

    x: float
    y: float
    scale: float
    angle: float
    flip: bool
    pose: tuple[float, ...]


def _view(rng: np.random.Generator, class_noun: str, side: int) -> View:
    """A view with the whole subject in the frame; `side` is -1 for the left half, 1 for the right, 0 for alone."""
    half, height = EXTENT[class_noun]
    room = 0.47 if side else rng.uniform(0.66, 0.92)
    scale = room / max(height * (0.8 if side else 1), 2 * half)
    reach = half * scale + 0.015
    low, high = {0: (reach, 1 - reach), -1: (reach, 0.51 - reach), 1: (0.49 + reach, 1 - reach)}[side]
    middle = (low + high) / 2
    x = middle + rng.uniform(-0.7, 0.7) * min(max(high - low, 0) / 2, 0.16)
    y = max(rng.uniform(0.82, 0.93), height * scale + 0.03)
    # Mostly one canonical side: a small model paints two-headed dogs from a world that is flipped half of the time.
    flip = bool(rng.random() < 0.15)
    return View(x, min(y, 0.97), scale, rng.uniform(-4, 4), flip, tuple(rng.uniform(-1, 1, 4).tolist()))


def render(scene: Scene, size: int = 128) -> Image.Image:
    """The picture of a scene: RGB, `size` x `size` pixels; raises `ConfigError` if `size` is under 16."""
    if size < 16:
        raise ConfigError(f"size is {size} pixels.", "Choose 16 or more.")
    light = seeded(scene.seed, 1)
    light_right, brightness = bool(light.random() < 0.5), light.uniform(0.9, 1.08)
    gains = light.uniform(0.95, 1.05, 3) * brightness
    picture, empty = _compose(scene, 3 * max(size, 128), light_right)
    inside = subject_mask(picture, empty, size)
    if scene.context in TINTS:
        colour, part = TINTS[scene.context]
        picture = Image.blend(picture, Image.new("RGB", picture.size, colour), part)
    picture = picture.point([min(255, int(v * g)) for g in gains for v in range(256)])
    return STYLED[scene.style](picture, inside, seeded(scene.seed, 9), size)


def _compose(scene: Scene, canvas: int, light_right: bool) -> tuple[Image.Image, Image.Image]:
    """The drawn scene, `canvas` pixels wide, and the same without its subjects (but with their shadows)."""
    picture = backdrop(scene.context, seeded(scene.seed, 2), canvas)
    sides = (0,) if len(scene.subjects) == 1 else (-1, 1)
    views = [
        _view(seeded(scene.seed, 3 + k), s.class_noun, side) for k, (s, side) in enumerate(zip(scene.subjects, sides))
    ]
    for subject, view in zip(scene.subjects, views):
        _shadow(picture, view, EXTENT[subject.class_noun][0], light_right)
    empty = picture.copy()
    for subject, view in zip(scene.subjects, views):
        x, y, scale = (canvas * v for v in (view.x, view.y, view.scale))
        DRAW[subject.class_noun](
            Pen(picture, subject, x, y, scale, view.angle, view.flip, light_right), subject, view.pose
        )
    return picture, empty


def _shadow(picture: Image.Image, view: View, half: float, light_right: bool) -> None:
    n = 64
    mask = Image.new("L", (n, n))
    x, y = (view.x + (-0.03 if light_right else 0.03)) * n, view.y * n
    rx, ry = half * 0.85 * view.scale * n, 0.035 * n
    ImageDraw.Draw(mask).ellipse((x - rx, y - ry, x + rx, y + ry), fill=120)
    mask = mask.filter(ImageFilter.GaussianBlur(1.6)).resize(picture.size, Image.Resampling.BILINEAR)
    picture.paste((20, 18, 40), (0, 0), mask)


# Captions.

_PATTERNED: dict[str, tuple[str, ...]] = {
    "plain": ("{main} {noun}", "plain {main} {noun}"),
    "stripes": ("striped {main} {noun}", "{main} {noun} with {second} stripes"),
    "spots": ("spotted {main} {noun}", "{main} {noun} with {second} spots"),
    "patches": ("{main} {noun} with {second} patches", "{main} and {second} {noun}"),
    "halves": ("{main} and {second} {noun}",),
}
_WORN: dict[str, tuple[str, ...]] = {
    "collar": ("with a {accent} collar", "with a collar"),
    "scarf": ("with a {accent} scarf", "with a scarf"),
    "hat": ("with a {accent} hat", "with a hat"),
    "bow tie": ("with a {accent} bow tie", "with a bow tie"),
    "star": ("with a star",),
    "heart": ("with a heart",),
    "circle": ("with a circle",),
    "screen": ("with a screen",),
    "roof rack": ("with a roof rack",),
}
_STYLE_FORMS: dict[str, tuple[str, ...]] = {
    "photo": ("a picture of", "a photograph of", ""),
    "sketch": ("a sketch of", "a pencil drawing of"),
    "watercolour": ("a watercolour of",),
    "pixel": ("pixel art of", "a pixel picture of"),
}


def _described(subject: Identity, rng: np.random.Generator, detail: float, short: bool) -> str:
    """One subject in words, with its article; `detail` is the chance of colours, `short` leaves out all but one."""
    form, roll = "{noun}", rng.random()
    if roll < 0.55 * detail or (short and roll < detail):
        form = "{main} {noun}"
    elif roll < detail:
        forms = _PATTERNED[subject.pattern]
        form = forms[rng.integers(len(forms))]
    if subject.worn in _WORN and not short and " with " not in form and rng.random() < 0.22:
        forms = _WORN[subject.worn]
        form = f"{form} {forms[rng.integers(len(forms))]}"
    colours = {"main": subject.main_name, "second": subject.second_name, "accent": subject.accent_name}
    words = form.format(noun=subject.class_noun, **colours).replace(" a orange", " an orange")
    article = "an" if words[0] in "aeiou" else "a"
    roll = rng.random()
    return f"{'the' if roll < 0.03 else 'one' if roll < 0.05 else article} {words}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A lower-case English caption of a scene: style, subjects, and in three of four the context."""
    # Two subjects in full would make captions longer than the tokenizer's limit.
    pair = len(scene.subjects) == 2
    subjects = [_described(s, rng, 0.25 if pair else 0.45, pair) for s in scene.subjects]
    if pair:
        form = "{} on the left and {} on the right" if rng.random() < 0.35 else "{} and {}"
        subjects = [form.format(*subjects)]
    prefix = STYLES[scene.style]
    if rng.random() < 0.25:
        forms = _STYLE_FORMS[scene.style]
        prefix = forms[rng.integers(len(forms))]
    context = CONTEXTS[scene.context] if rng.random() < 0.75 else ""
    return " ".join(part for part in (prefix, *subjects, context) if part)


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted."""
    forms = [*STYLES.values(), *CONTEXTS.values(), *CLASSES, *PALETTE]
    forms += [form for group in (*_PATTERNED.values(), *_WORN.values(), *_STYLE_FORMS.values()) for form in group]
    words = {w for form in forms for w in form.split() if "{" not in w}
    return sorted(words | {"a", "an", "the", "one", "and", "on", "left", "right"})


def sample_subject(
    class_noun: str, seed: int, n: int = 5, size: int = 128, *, style: str = "photo"
) -> list[tuple[Scene, Image.Image]]:
    """`n` pictures of one identity in different contexts (repeated only after all ten), the same at every call."""
    subject = identity(class_noun, seed)
    rng = seeded(CLASSES.index(class_noun) + 1, seed, 12)
    order = rng.permutation(len(CONTEXTS))
    scenes = [
        Scene((subject,), tuple(CONTEXTS)[order[k % len(order)]], style, int(rng.integers(2**31))) for k in range(n)
    ]
    return [(scene, render(scene, size)) for scene in scenes]
