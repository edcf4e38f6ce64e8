"""The measures, beside their textbook definitions counted out, and the looks beside the models they look through."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, ViTImageProcessor, ViTModel

from dreambooth.toybox.pretrain import measures
from dreambooth.toybox.pretrain.data import load_pictures
from dreambooth.toybox.pretrain.encoders import new_vit
from dreambooth.toybox.pretrain.judge import draw_scenes, held_out_scenes

few_values = arrays(np.int64, st.integers(1, 30), elements=st.integers(-4, 4))


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@given(few_values, few_values)
def test_auc_is_the_share_of_pairs_in_order(positive, negative):
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert measures.auc(positive, negative) == pytest.approx(np.mean(pairs))


def test_identity_auc_compares_pairs_within_a_class():
    rng = np.random.default_rng(0)
    things, classes = np.repeat(np.arange(6), 3), np.repeat([0, 0, 1, 1, 1, 2], 3)
    features = unit(rng, 18, 4)
    same, kin = [], []
    for i, j in itertools.combinations(range(18), 2):
        if classes[i] == classes[j]:
            (same if things[i] == things[j] else kin).append(features[i] @ features[j])
    expected = np.mean([(p > n) + 0.5 * (p == n) for p in same for n in kin])
    assert measures.identity_auc(features, things, classes) == pytest.approx(expected)
    assert measures.identity_auc(np.eye(6)[things], things, classes) == 1


def test_spread_is_the_mean_distance_of_all_pairs():
    features = unit(np.random.default_rng(0), 5, 7)
    pairs = list(itertools.combinations(features, 2))
    assert measures.spread(features) == pytest.approx(np.mean([1 - a @ b for a, b in pairs]))
    assert measures.spread(features[[0, 0, 0]]) == pytest.approx(0)


def test_pixel_spread_is_the_mean_rms_of_all_pairs_at_32_px():
    small = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    pictures = small.repeat(4, axis=1).repeat(4, axis=2)
    pairs = list(itertools.combinations(small.astype(float), 2))
    assert measures.pixel_spread(pictures) == pytest.approx(np.mean([np.sqrt(((a - b) ** 2).mean()) for a, b in pairs]))


def test_psnr_is_the_textbooks():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    expected = [20 * np.log10(255 / np.sqrt(np.mean((x.astype(float) - y) ** 2))) for x, y in zip(a, b)]
    assert measures.psnr(a, b) == pytest.approx(np.mean(expected))


def flat(*colour):
    return np.full((1, 128, 128, 3), colour, np.uint8)


def test_hues_stay_when_a_colour_pales_and_part_when_it_turns():
    red = measures.hues(flat(200, 30, 40))
    assert red.shape == (24,)
    assert red.sum() == pytest.approx(1)
    assert measures.overlap(red, measures.hues(flat(240, 185, 188))) == pytest.approx(1), "as a pencil would"
    assert measures.overlap(red, measures.hues(flat(40, 60, 200))) == 0
    assert measures.hues(flat(90, 90, 90)).sum() == 0, "grey has none"
    half = flat(200, 30, 40)
    half[:, :, 64:] = (40, 60, 200)
    assert 0.4 < measures.overlap(red, measures.hues(half)) < 0.6
    framed = flat(0, 255, 0)
    framed[:, 40:100, 32:96] = (200, 30, 40)
    assert measures.overlap(red, measures.hues(framed)) == pytest.approx(1), "only the middle counts"


def test_a_pixel_is_unsettled_between_flat_and_edge():
    halves = flat(100, 100, 100).repeat(3, axis=0)
    halves[0, :, 64:] += 4  # flat, for all that eyes see
    halves[1, :, 64:, 1] += 20  # 64 of 63 × 63 pixels, less the last row
    halves[2, :, 64:] += 60  # an edge
    np.testing.assert_allclose(measures.unsettled(halves), [0, 1 / 63, 0])


def test_colours_are_counted_as_equally_frequent_ones():
    pictures = flat(8, 200, 40).repeat(3, axis=0)
    pictures[1, :, 64:] = (200, 8, 40)
    pictures[2, :, 64:] = (10, 202, 42)  # the same bin
    np.testing.assert_allclose(measures.colours(pictures), [1, 2, 1])


def mottled(pictures, by, rng):
    """Patches of other colours, as a base model trained too little paints them."""
    noise = rng.normal(0, by, (len(pictures), 16, 16, 3)).repeat(8, axis=1).repeat(8, axis=2)
    soft = sum(np.roll(noise, (dy, dx), (1, 2)) for dy in range(-4, 5) for dx in range(-4, 5)) / 81
    return np.clip(pictures + soft, 0, 255).astype(np.uint8)


def test_surfaces_are_ranked_as_eyes_would():
    real = draw_scenes(held_out_scenes(24, style="photo"))
    ranked = [real, *(mottled(real, by, np.random.default_rng(0)) for by in (12, 30))]
    for measure in (measures.unsettled, measures.colours):
        values = [measure(pictures).mean() for pictures in ranked]
        assert values[0] * 1.2 < values[1] < values[2] / 1.1, measure.__name__


def test_looks_give_unit_features_of_their_models(exported, rendered):
    pictures = np.concatenate(load_pictures(rendered))
    images = [Image.fromarray(picture) for picture in pictures]
    folder = exported / "encoders"
    clip, processor = (kind.from_pretrained(folder / "clip") for kind in (CLIPModel, CLIPProcessor))
    vit, vit_processor = (kind.from_pretrained(folder / "vit") for kind in (ViTModel, ViTImageProcessor))
    prompts = ["a photo of a dog", "a sketch of a cat"]
    with torch.no_grad():
        out = clip(**processor(text=prompts, images=images, padding=True, return_tensors="pt"))
        token = vit(**vit_processor(images, return_tensors="pt")).last_hidden_state[:, 0]
    look, text = measures.clip_looks(folder / "clip")
    np.testing.assert_allclose(look(pictures), out.image_embeds, atol=1e-5)
    mean = out.text_embeds.mean(0)
    np.testing.assert_allclose(text(prompts), mean / mean.norm(), atol=1e-5)
    expected = torch.nn.functional.normalize(token, dim=1).numpy()
    np.testing.assert_allclose(measures.vit_look(folder / "vit")(pictures), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(measures.centred_pixels(pictures), axis=1), 1, atol=1e-5)


def test_the_untrained_look_is_the_vit_as_its_training_began(exported, rendered):
    pictures = np.concatenate(load_pictures(rendered))[:3]
    torch.manual_seed(0)
    fresh = new_vit().eval()
    pixels = ViTImageProcessor.from_pretrained(exported / "encoders" / "vit")(list(pictures), return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(fresh(**pixels).last_hidden_state[:, 0], dim=1).numpy()
    made = measures.vit_look(exported / "encoders" / "vit", trained=False)(pictures)
    np.testing.assert_allclose(made, expected, atol=1e-5)
