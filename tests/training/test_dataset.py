"""Training examples: what an item holds, that each is a pure function of seed and number, and the encoded pictures."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dreambooth.families.load import load_pipeline
from dreambooth.photos.sheets import side_by_side
from dreambooth.training.dataset import (
    CLASS,
    ENCODE_BATCH,
    INSTANCE,
    DreamBoothDataset,
    Encoded,
    class_variants,
    encode,
    generator,
    photo_variants,
    prompts_of_variants,
    sizes,
)
from tests.tiny import finish


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_pipeline(tiny_model)


def picture(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def numbered(pictures: int, variants: int, start: int = 0) -> Encoded:
    """Encoded pictures without spread, whose latents' first number tells picture and variant: 10·picture + variant."""
    which = start + 10 * torch.arange(pictures)[:, None] + torch.arange(variants)
    mean = which[..., None, None, None].float().expand(pictures, variants, 4, 2, 2).clone()
    ids = torch.arange(pictures)[:, None, None, None].expand(pictures, variants, 1, 5) + start
    return Encoded(mean, torch.zeros_like(mean), ids, torch.ones_like(mean[:, :, 0]))


def drawn(encoded: Encoded, count: int, seed: int = 0, stream: int = INSTANCE) -> list[int]:
    return [int(encoded.example(n, seed, stream)[0].flatten()[0]) for n in range(count)]


# ---- Items


def test_an_item_has_its_parts_and_their_shapes(loaded, make_config):
    pipe, family = loaded
    config = make_config(train={"crops_per_photo": 2})
    photos = (photo_variants(picture(i), config, i) for i in range(3))
    instance = finish(encode(pipe, family, photos, ["a photo of sks dog"] * 3, None))
    assert instance.mean.shape == instance.std.shape == (3, 2, 4, 8, 8)
    prior = Encoded(instance.mean[:2, :1], instance.std[:2, :1], instance.prompt_ids[:2, :1], instance.mask[:2, :1])
    dataset = DreamBoothDataset(instance, prior, seed=1, size=7)
    assert len(dataset) == 7
    item = dataset[6]
    assert {name: tuple(value.shape) for name, value in item.items()} == {
        "instance_images": (4, 8, 8),
        "instance_prompt_ids": (16,),
        "class_images": (4, 8, 8),
        "class_prompt_ids": (16,),
        "instance_masks": (8, 8),
        "class_masks": (8, 8),
    }
    assert item["instance_images"].dtype == torch.float32
    assert item["instance_prompt_ids"].dtype == torch.int64
    assert torch.equal(item["instance_prompt_ids"], family.tokenize(pipe, ["a photo of sks dog"])[0])
    photos_alone = {"instance_images", "instance_prompt_ids", "instance_masks"}
    assert DreamBoothDataset(instance, None, 1, 7)[0].keys() == photos_alone


def test_the_items_end():
    dataset = DreamBoothDataset(numbered(2, 1), None, 0, 3)
    assert len(list(dataset)) == 3
    for outside in (3, -1):
        with pytest.raises(IndexError):
            dataset[outside]


def test_a_batch_is_the_next_items_side_by_side():
    dataset = DreamBoothDataset(numbered(3, 2), numbered(5, 1, start=100), seed=4, size=12)
    batch = dataset.batch(2, 4)
    assert batch["instance_images"].shape == batch["class_images"].shape == (4, 4, 2, 2)
    for place in range(4):
        for name, value in dataset[8 + place].items():
            assert torch.equal(batch[name][place], value)


def test_stock_data_loaders_take_it():
    dataset = DreamBoothDataset(numbered(3, 1), None, 0, 6)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2)
    assert [tuple(batch["instance_images"].shape) for batch in loader] == [(2, 4, 2, 2)] * 3


# ---- Order


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_every_photo_comes_once_an_epoch(photos, seed):
    order = [which // 10 for which in drawn(numbered(photos, 2), 4 * photos, seed)]
    for epoch in range(4):
        assert sorted(order[epoch * photos : (epoch + 1) * photos]) == list(range(photos))


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    order = drawn(numbered(8, 1), 80)
    epochs = [tuple(order[i : i + 8]) for i in range(0, 80, 8)]
    assert len(set(epochs)) == 10
    assert drawn(numbered(8, 1), 8, seed=1) != drawn(numbered(8, 1), 8, seed=2)


@pytest.mark.parametrize("together", [0.0, 0.25, 0.6])
def test_each_subject_has_as_many_examples_however_many_photos(together):
    """Three photos of one, twelve of the other, five of both: rounds are alike, and each photo has its turn."""
    encoded = replace(numbered(20, 1), groups=(3, 12), together=together)
    shown = [which // 10 for which in drawn(encoded, 480)]
    counts = Counter(shown)
    several = round(480 * together)
    assert sum(counts[i] for i in range(15, 20)) == several
    assert sum(counts[i] for i in range(3)) == sum(counts[i] for i in range(3, 15)) == (480 - several) // 2
    for first, last in ((0, 3), (3, 15), *([(15, 20)] if several else [])):
        of_each = [counts[i] for i in range(first, last)]
        assert max(of_each) - min(of_each) <= 1, "each photo of a subject as often"
    assert drawn(encoded, 480) != drawn(encoded, 480, seed=1)


def test_one_subject_is_drawn_as_it_always_was():
    assert (
        drawn(numbered(5, 2), 12)
        == drawn(replace(numbered(5, 2), groups=(5,)), 12)
        == [
            11,
            1,
            40,
            20,
            31,
            41,
            0,
            10,
            31,
            20,
            40,
            31,
        ]
    )


def test_all_variants_of_a_photo_are_used_alike():
    counts = Counter(which % 10 for which in drawn(numbered(3, 4), 1200))
    assert set(counts) == {0, 1, 2, 3}
    assert all(240 < count < 360 for count in counts.values()), "300 each, give or take four deviations"


def test_an_example_is_a_function_of_seed_and_number_alone():
    spread, ids = torch.ones(3, 2, 4, 2, 2), torch.zeros(3, 2, 1, 5, dtype=torch.int64)
    encoded = Encoded(torch.zeros_like(spread), spread, ids, torch.ones(3, 2, 2, 2))
    forwards = [encoded.example(n, 9, INSTANCE)[0] for n in range(10)]
    torch.manual_seed(123)
    backwards = [encoded.example(n, 9, INSTANCE)[0] for n in reversed(range(10))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert all(not torch.equal(a, b) for a, b in pairwise(forwards)), "new noise for every example"
    assert not torch.equal(forwards[0], encoded.example(0, 10, INSTANCE)[0])
    assert not torch.equal(forwards[0], encoded.example(0, 9, CLASS)[0]), "the two sides draw apart"


def test_the_class_side_does_not_change_the_photos_side():
    photos = numbered(3, 2)
    plain = DreamBoothDataset(photos, None, 5, 20)
    for classes in (numbered(1, 1, start=100), numbered(50, 2, start=1000)):
        beside = DreamBoothDataset(photos, classes, 5, 20)
        for n in range(20):
            for name in ("instance_images", "instance_prompt_ids"):
                assert torch.equal(plain[n][name], beside[n][name])


def test_the_class_side_draws_apart_from_the_photos_side():
    """The same pictures on both sides come in other orders."""
    both = DreamBoothDataset(numbered(5, 3), numbered(5, 3), 5, 60)
    orders = {
        name: [int(both[n][name].flatten()[0]) for n in range(60)] for name in ("instance_images", "class_images")
    }
    assert orders["instance_images"] == drawn(both.instance, 60, 5, INSTANCE)
    assert orders["class_images"] == drawn(both.prior, 60, 5, CLASS)
    assert orders["instance_images"] != orders["class_images"]


def test_generators_of_different_items_and_streams_differ():
    firsts = {
        float(torch.rand((), generator=generator(seed, stream, n), dtype=torch.float64))
        for seed in (0, 1, 2**32 - 1)
        for stream in range(4)
        for n in (0, 1, 2**31, 2**32 - 1)
    }
    assert len(firsts) == 3 * 4 * 4


# ---- Latents


def test_latents_equal_a_sample_of_the_vaes_posterior(loaded, make_config):
    """As diffusers' own training scripts encode: `latent_dist.sample() * scaling_factor`."""
    pipe, family = loaded
    config = make_config(train={"crops_per_photo": 3})
    variants = [photo_variants(picture(i), config, i) for i in range(2)]
    encoded = finish(encode(pipe, family, iter(variants), ["a dog", "a cat"], None))
    for n in range(6):
        ours, ids, _mask = encoded.example(n, 7, INSTANCE)
        g = generator(7, INSTANCE, n)
        v = int(torch.randint(3, (), generator=g))
        i = int(torch.equal(ids, encoded.prompt_ids[1, 0, 0]))
        with torch.no_grad():
            posterior = pipe.vae.encode(variants[i][v][None]).latent_dist
        theirs = posterior.sample(generator=g)[0] * pipe.vae.config.scaling_factor
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_what_is_transparent_is_masked_in_every_crop(loaded, make_config):
    """A disc in the middle: opaque there, transparent in the corners, and where each crop has it."""
    pipe, family = loaded
    shown, photo = Image.new("L", (64, 64)), picture(0).resize((64, 64))
    ImageDraw.Draw(shown).ellipse((16, 16, 47, 47), fill=255)
    photo.putalpha(shown)
    config = make_config(train={"crops_per_photo": 4, "crop_scale": 0.9})
    plain = finish(encode(pipe, family, iter([photo_variants(photo.convert("RGB"), config, 0)]), ["a dog"], None))
    masked = finish(encode(pipe, family, iter([photo_variants(photo, config, 0)]), ["a dog"], None))
    torch.testing.assert_close(masked.mean, plain.mean, msg="colours are what they were")
    assert plain.mask.min() == 1
    mask = masked.mask[0]
    assert mask.shape == (4, 16, 16)
    assert set(mask.unique().tolist()) == {0, 1}
    assert mask[0, 8, 8] == 1
    assert mask[0, 0, 0] == mask[0, 15, 15] == 0
    assert all(mask[0].sum() <= crop.sum() for crop in mask[1:]), "larger in tighter crops"
    assert not all(torch.equal(mask[0], crop) for crop in mask[1:])


def test_a_position_of_which_half_is_opaque_is_learned(loaded):
    """Each stands for 4 × 4 pixels; of one 8 are opaque, of another 7."""
    pipe, family = loaded
    pictures = -torch.ones(1, 4, 32, 32)
    pictures[0, 3, 4:6, 8:12] = 1
    pictures[0, 3, 20:22, 8:12] = 1
    pictures[0, 3, 20, 8] = -1
    mask = finish(encode(pipe, family, iter([pictures]), ["a dog"], None)).mask[0, 0]
    assert mask[1, 2] == 1
    assert mask.sum() == 1


def test_encoding_in_parts_changes_nothing(loaded, make_config):
    pipe, family = loaded
    many = photo_variants(picture(0), make_config(train={"crops_per_photo": ENCODE_BATCH + 3}), 0)
    together = finish(encode(pipe, family, iter([many]), ["a dog"], None))
    for v in (0, ENCODE_BATCH - 1, ENCODE_BATCH, ENCODE_BATCH + 2):
        alone = finish(encode(pipe, family, iter([many[v : v + 1]]), ["a dog"], None))
        torch.testing.assert_close(together.mean[0, v], alone.mean[0, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.std[0, v], alone.std[0, 0], atol=1e-5, rtol=1e-4)


def test_encoded_pictures_can_take_part_in_training_and_stay_in_32_bits(loaded):
    pipe, family = loaded
    encoded = finish(encode(pipe, family, iter([torch.zeros(1, 3, 32, 32)]), ["a dog"], torch.bfloat16))
    assert encoded.mean.dtype == encoded.std.dtype == torch.float32
    (encoded.mean * torch.ones(1, requires_grad=True)).sum().backward()


# ---- Crops and mirrors


def test_the_first_variant_is_the_photo_itself(make_config):
    image = picture(3)
    variants = photo_variants(image, make_config(train={"crops_per_photo": 4}), 0)
    assert variants.shape == (4, 3, 32, 32)
    assert variants.min() >= -1
    assert variants.max() <= 1
    back = ((variants[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(back, np.asarray(image))


def test_crops_are_the_photo_a_little_larger(make_config):
    """On a horizontal ramp every crop is a ramp too, less steep, its ends inside the photo's."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 3)))
    config = make_config(train={"crops_per_photo": 16, "crop_scale": 0.5})
    rows = photo_variants(ramp, config, 0)[:, 0, 32].double()
    slopes = (rows[:, 48] - rows[:, 16]) / 32
    shares = slopes / slopes[0]
    assert all(0.47 <= share <= 1.01 for share in shares.tolist())
    assert shares[1:].min() < 0.7
    assert len({round(share, 4) for share in shares[1:].tolist()}) > 10, "sizes differ"
    assert len({round(float(row[0]), 2) for row in rows[1:]}) > 5, "places differ"


def test_one_crop_per_photo_is_the_plain_photo_alone(make_config):
    config = make_config(train={"crops_per_photo": 1})
    assert photo_variants(picture(0), config, 0).shape == (1, 3, 32, 32)
    whole = make_config(train={"crops_per_photo": 3, "crop_scale": 1.0})
    variants = photo_variants(picture(0), whole, 0)
    torch.testing.assert_close(variants[1], variants[0], atol=1e-5, rtol=0)


def test_photos_are_cropped_the_same_each_time_and_each_in_its_own_way(make_config):
    config = make_config()
    again = photo_variants(picture(0), config, 0)
    assert torch.equal(photo_variants(picture(0), config, 0), again)
    assert not torch.equal(photo_variants(picture(0), config, 1)[1:], again[1:])
    assert not torch.equal(photo_variants(picture(0), make_config(seed=1), 0)[1:], again[1:])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 1000), flip=st.booleans(), crop_scale=st.sampled_from([0.31, 0.6, 0.9, 1.0]))
def test_photos_side_by_side_keep_their_discs_and_their_sides(make_config, number, flip, crop_scale):
    """Red is left and green right in every variant, as their prompt says, and most of each disc is to be learned."""
    together = side_by_side(Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "green"))
    config = make_config(train={"crops_per_photo": 3, "crop_scale": crop_scale, "flip": flip})
    variants = photo_variants(together, config, number)
    assert len(variants) == len(photo_variants(together.convert("RGB"), config, number)) == (6 if flip else 3)
    red, green, _, opaque = (variants[:, channel] for channel in range(4))
    for half, (there, absent) in ((slice(0, 28), (red, green)), (slice(36, 64), (green, red))):
        assert (there[:, 32:, half] > absent[:, 32:, half]).all()
        shown = (opaque[:, :, half] > 0).sum((1, 2))
        assert (shown > 0.6 * shown[0]).all()


def test_mirrored_photos_follow_the_plain_ones(make_config, tmp_path):
    plain = photo_variants(picture(0), make_config(), 0)
    flipped = photo_variants(picture(0), make_config(train={"flip": True}), 0)
    assert torch.equal(flipped[:4], plain)
    assert torch.equal(flipped[4:], plain.flip(-1))
    picture(0).save(tmp_path / "a.png")
    one = class_variants(tmp_path / "a.png", make_config())
    two = class_variants(tmp_path / "a.png", make_config(train={"flip": True}))
    assert torch.equal(one[0], plain[0]), "class images are taken whole"
    assert one.shape == (1, 3, 32, 32)
    assert torch.equal(two, torch.cat([one, one.flip(-1)]))


# ---- Sizes


def test_two_thirds_are_shown_smaller_and_one_third_larger(make_config):
    many = [sizes(make_config(train={"vary_size": True, "crops_per_photo": 9}), number) for number in range(200)]
    shares = [share for row in many for share in row]
    small = [share for share in shares if share <= 1]
    assert len(small) == 1200
    assert 1 / 3 <= min(small) < 0.35 < 0.98 < max(small) <= 1
    assert all(1.2 <= share <= 1.4 for share in shares if share > 1)
    assert np.mean(small) == pytest.approx(2 / 3, abs=0.02)
    assert many[0] != many[1]


def test_the_prompt_says_a_size_that_is_far_from_the_photos(make_config):
    config = make_config(train={"vary_size": True, "crops_per_photo": 30, "flip": True})
    prompts = prompts_of_variants("a photo of sks dog", False, config, 0)
    assert prompts[:30] == prompts[30:], "the mirrored ones follow"
    for share, said in zip(sizes(config, 0), prompts, strict=False):
        if share < 0.6:
            assert said == ("very small a photo of sks dog", "far away a photo of sks dog")
        elif share <= 1:
            assert said == ("a photo of sks dog",)
        else:
            assert said == ("close up a photo of sks dog", "zoomed in a photo of sks dog")
    assert {len(said) for said in prompts} == {1, 2}
    assert prompts_of_variants("both", True, config, 0) == [("both",)] * 60, "two subjects keep their size"


def test_of_a_smaller_photo_its_own_place_is_learned_and_no_more(loaded, make_config):
    """A red photo on grey: red and opaque stand in one square of its size, but for a thin edge."""
    config = make_config(train={"vary_size": True, "crops_per_photo": 12})
    red = Image.new("RGB", (128, 128), "red")
    for share, (r, g, b, opaque) in zip(sizes(config, 0), photo_variants(red, config, 0), strict=True):
        shown = r > 0.9
        assert ((g < -0.9) == shown).all()
        if share > 1:
            assert shown.all()
            assert opaque.min() == 1
            continue
        rows, columns = shown.any(1).nonzero().flatten(), shown.any(0).nonzero().flatten()
        assert len(rows) == len(columns) == round(128 * share)
        assert shown.sum() == len(rows) ** 2
        assert (b[~shown] == 0).all(), "grey"
        learned = opaque > 0
        assert learned[rows[2] : rows[-2], columns[2] : columns[-2]].all()
        assert learned.sum() == (len(rows) - 4) ** 2
    pipe, family = loaded
    encoded = finish(encode(pipe, family, [photo_variants(red, config, 0)], ["a dog"], None))
    learned = encoded.mask.mean((2, 3))[0]
    expected = [1.0 if share > 1 else (share - 4 / 128) ** 2 for share in sizes(config, 0)]
    np.testing.assert_allclose(learned, expected, atol=0.05)


# ---- Prompts


def test_each_variant_is_shown_with_its_own_prompts_each_as_often(loaded):
    pipe, family = loaded
    blank = torch.zeros(2, 3, 32, 32)
    said = [[("a dog", "a cat"), ("a vase",)], "a beach"]
    encoded = finish(encode(pipe, family, [blank, blank], said, None))
    assert encoded.prompt_ids.shape == (2, 2, 2, 16)
    words = ["a dog", "a cat", "a vase", "a beach"]
    ids = {tuple(row): word for row, word in zip(family.tokenize(pipe, words).tolist(), words, strict=True)}
    table = [[[ids[tuple(row)] for row in variant] for variant in photo] for photo in encoded.prompt_ids.tolist()]
    assert table == [[["a dog", "a cat"], ["a vase", "a vase"]], [["a beach"] * 2] * 2]
    drawn = Counter(ids[tuple(encoded.example(n, 0, INSTANCE)[1].tolist())] for n in range(800))
    assert drawn["a beach"] == 400
    assert all(70 < drawn[word] < 130 for word in ("a dog", "a cat")), "100 each, give or take three deviations"


def test_drawing_a_prompt_changes_no_picture(loaded):
    pipe, family = loaded
    pictures = [torch.full((2, 3, 32, 32), x) for x in (0.0, 0.5)]
    one = finish(encode(pipe, family, pictures, ["a dog", "a dog"], None))
    two = finish(encode(pipe, family, pictures, [[("a dog", "a cat")] * 2] * 2, None))
    for n in range(8):
        assert torch.equal(one.example(n, 3, INSTANCE)[0], two.example(n, 3, INSTANCE)[0])


def test_encoding_tells_how_many_are_done(loaded):
    pipe, family = loaded
    assert list(encode(pipe, family, [torch.zeros(1, 3, 32, 32)] * 3, ["a dog"] * 3, None)) == [1, 2, 3]
