"""The toybox world: the same everywhere, inside the frame, and captions that tell the truth."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dreambooth.errors import ConfigError
from dreambooth.toybox import identities, world
from dreambooth.toybox.drawing import Pen
from dreambooth.toybox.identities import CLASSES, Colour, identity
from dreambooth.toybox.world import CONTEXTS, HELD_OUT_FROM, STYLES, Scene, random_scene, render

DIGEST = """
import hashlib, numpy as np
from dreambooth.toybox.world import caption, random_scene, render, texture
rng, digest = np.random.default_rng(4), hashlib.sha256()
for _ in range(8):
    scene = random_scene(rng, two_subjects=0.5)
    digest.update(repr(scene).encode() + caption(scene, rng).encode() + render(scene, 64).tobytes())
digest.update(texture(rng, 64).tobytes())
print(digest.hexdigest())
"""


def first_of(class_noun: str, colour: str) -> identities.Identity:
    found = (identity(class_noun, s) for s in range(5000))
    return next(i for i in found if i.main_name == colour and i.pattern == "plain")


def middle_of(picture: Image.Image, colour: Colour) -> float:
    """The mean x, 0..1, of the pixels with nearly the hue of `colour`."""
    pixels = np.asarray(picture, float)
    near = np.abs(pixels - colour).sum(2) < 60
    assert near.sum() > 20
    return float(np.where(near)[1].mean() / picture.width)


def histogram(picture: Image.Image) -> np.ndarray:
    """Coarse colour histogram of the part of the picture where the subject is."""
    pixels = np.asarray(picture)[45:115, 40:90].reshape(-1, 3) // 52
    return np.bincount(pixels @ np.array([25, 5, 1]), minlength=125) / len(pixels)


def test_other_processes_draw_the_same():
    digests = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0] == digests[1] != ""


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [32, 64, 100, 128])
def test_pictures_are_rgb_of_the_size_asked(style, size):
    picture = render(Scene((identity("dog", 1),), "beach", style, 3), size)
    assert (picture.mode, picture.size) == ("RGB", (size, size))


def test_every_class_draws_in_every_context_and_style():
    digests = set()
    for k, noun in enumerate(CLASSES):
        for context in CONTEXTS:
            style = list(STYLES)[k % 4]
            picture = render(Scene((identity(noun, k),), context, style, k), 32)
            digests.add(hashlib.sha256(picture.tobytes()).digest())
    assert len(digests) == len(CLASSES) * len(CONTEXTS)


@pytest.mark.parametrize("noun", CLASSES)
def test_a_subject_stays_within_its_extent(noun):
    rng, blank = np.random.default_rng(0), (1, 255, 1)
    half, height = world.EXTENT[noun]
    for seed in range(40):
        picture, subject = Image.new("RGB", (300, 300), blank), identity(noun, seed)
        world.DRAW[noun](Pen(picture, subject, 150, 250, 150), subject, rng.uniform(-1, 1, 4))
        ys, xs = np.where((np.asarray(picture) != blank).any(2))
        assert max(150 - xs.min(), xs.max() - 150) <= (half + 0.02) * 150
        assert 250 - ys.min() <= (height + 0.02) * 150
        assert ys.max() - 250 <= 0.06 * 150


def test_rotated_subjects_stay_inside_the_frame():
    rng = np.random.default_rng(5)
    for k in range(100):
        subjects = random_scene(rng, two_subjects=0.5).subjects
        picture, empty = world._compose(Scene(subjects, "blue", "photo", k), 384, bool(k % 2))
        drawn = (np.asarray(picture) != np.asarray(empty)).any(2)
        assert drawn.sum() > 5000
        drawn[3:-3, 3:-3] = False  # what is left is the outermost pixel of a 128 px picture
        assert not drawn.any()


def test_captions_are_short_and_hold_only_known_words():
    rng, known = np.random.default_rng(1), set(world.vocabulary())
    assert world.vocabulary() == sorted(known)
    assert known.isdisjoint({"sks", "ohwx", "zwx", "pkblz"})
    seen = set()
    for _ in range(4000):
        text = world.caption(random_scene(rng, two_subjects=0.3), rng)
        assert text == text.lower()
        assert text.isascii()
        assert " a orange" not in f" {text}"
        assert len(text.split()) <= 22  # the tokenizer's 24, less begin and end
        seen |= set(text.split())
    assert seen == known


def test_captions_name_what_is_there():
    rng, sides = np.random.default_rng(2), 0
    for _ in range(300):
        scene = random_scene(rng, two_subjects=0.5)
        words = world.caption(scene, rng).split()
        places = [words.index(s.class_noun) for s in scene.subjects]
        assert places == sorted(places)
        if "left" in words:
            sides += 1
            assert places[0] < words.index("left") < places[1] < words.index("right")
    assert 0 < sides < 300


def test_identities_repeat_and_differ_between_classes():
    for noun in CLASSES:
        assert identity(noun, 9) == identity(noun, 9)
        assert len({(i.main, i.shape) for i in (identity(noun, s) for s in range(50))}) == 50
    for seed in range(20):
        same_seed = [identity(noun, seed) for noun in CLASSES]
        assert len({i.shape for i in same_seed}) == len(CLASSES)
        assert len({i.main_name for i in same_seed}) > 3


def test_held_out_identities_stay_out():
    rng = np.random.default_rng(3)
    for _ in range(300):
        assert all(s.seed < 500 for s in random_scene(rng, identities=500).subjects)
        assert all(s.seed >= HELD_OUT_FROM for s in random_scene(rng, held_out=True).subjects)


def test_scene_shares():
    rng = np.random.default_rng(4)
    scenes = [random_scene(rng) for _ in range(3000)]
    assert 0.72 < np.mean([s.style == "photo" for s in scenes]) < 0.80
    pairs = [s for s in scenes if len(s.subjects) == 2]
    assert 0.06 < len(pairs) / len(scenes) < 0.10
    assert all(s.subjects[0].class_noun != s.subjects[1].class_noun for s in pairs)


@pytest.mark.parametrize("seed", range(8))
def test_the_first_of_two_subjects_is_on_the_left(seed):
    purple, orange = first_of("backpack", "purple"), first_of("teapot", "orange")
    for left, right in ((purple, orange), (orange, purple)):
        picture = render(Scene((left, right), "snow", "photo", seed))
        assert middle_of(picture, left.main) < 0.5 < middle_of(picture, right.main)


def test_pictures_of_one_identity_share_its_colours():
    same, other = [], []
    for noun in CLASSES:
        pictures = [
            [histogram(render(Scene((identity(noun, s),), "snow", "photo", 10 * s + v))) for v in range(2)]
            for s in range(5)
        ]
        same += [np.abs(a - b).sum() for a, b in pictures]
        other += [np.abs(pictures[s][0] - pictures[(s + 1) % 5][1]).sum() for s in range(5)]
    assert np.mean(same) < 0.8 * np.mean(other)


def test_sample_subject_shows_one_identity_in_different_contexts():
    samples = world.sample_subject("car", HELD_OUT_FROM + 1, 5, 64)
    assert len({scene.context for scene, _ in samples}) == 5
    assert {scene.subjects for scene, _ in samples} == {(identity("car", HELD_OUT_FROM + 1),)}
    again = world.sample_subject("car", HELD_OUT_FROM + 1, 5, 64)
    assert [p.tobytes() for _, p in samples] == [p.tobytes() for _, p in again]


def test_textures_vary():
    rng = np.random.default_rng(6)
    pictures = [world.texture(rng, 48) for _ in range(6)]
    assert {(p.mode, p.size) for p in pictures} == {("RGB", (48, 48))}
    assert len({p.tobytes() for p in pictures}) == 6


@pytest.mark.parametrize(
    ("attempt", "value", "choice"),
    [
        (lambda: identity("dragon", 1), "dragon", "teapot"),
        (lambda: Scene((identity("dog", 1),), "moon", "photo", 1), "moon", "underwater"),
        (lambda: Scene((identity("dog", 1),), "beach", "fresco", 1), "fresco", "watercolour"),
        (lambda: Scene((), "beach", "photo", 1), "0 subjects", "1 or 2"),
        (lambda: random_scene(np.random.default_rng(0), identities=2 * HELD_OUT_FROM), "2000000", "1000000"),
        (lambda: render(Scene((identity("dog", 1),), "beach", "photo", 1), 4), "4 pixels", "16"),
    ],
)
def test_wrong_values_are_named_with_the_choices(attempt, value, choice):
    with pytest.raises(ConfigError) as caught:
        attempt()
    assert value in str(caught.value)
    assert choice in str(caught.value)
