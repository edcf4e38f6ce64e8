"""Each metric against loops that spell its definition out, and figures worked by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.config.sections import EvaluationConfig
from dreambooth.metrics import metrics
from dreambooth.metrics.encoders import load_encoders
from dreambooth.metrics.metrics import METRICS, Estimate, estimate_mean, paired_difference, student_quantile

PHOTOS = sorted((Path(metrics.__file__).parents[1] / "toybox" / "subjects").glob("*/*.png"))


def unit(count: int, width: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def seen() -> dict[str, np.ndarray]:
    """Embeddings of real photos: 3 of a backpack as what was drawn, 5 of a bear as the photos; and of texts."""
    encoders = load_encoders(EvaluationConfig(), "toybox", "cpu")
    images = []
    for path in PHOTOS[:10]:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    drawn, real = images[:3], images[5:10]
    return {
        "drawn": encoders.dino.embed(drawn),
        "real": encoders.dino.embed(real),
        "looks": encoders.clip.embed(drawn),
        "texts": encoders.clip.embed_texts(["a photo of a backpack", "a bear", "a cat on the beach"]),
    }


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """By the definition: the dot product over both lengths, number by number."""
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in a)) / math.sqrt(sum(float(y) ** 2 for y in b))


def by_loops(drawn: np.ndarray, real: np.ndarray) -> float:
    """The mean over all pairs, which the paper calls DINO, CLIP-I or PRES by what was drawn and who looks."""
    total, count = 0.0, 0
    for a in drawn:
        for b in real:
            total, count = total + cosine(a, b), count + 1
    return total / count


# ---- Against loops


@pytest.mark.parametrize(("drawn", "real", "width"), [(1, 1, 2), (7, 4, 384), (40, 5, 16)])
def test_fidelity_is_the_mean_cosine_of_all_pairs(drawn, real, width):
    a, b = unit(drawn, width, 1), unit(real, width, 2)
    values = metrics.fidelity(a, b)
    assert values.shape == (drawn,)
    assert values.mean() == pytest.approx(by_loops(a, b), abs=1e-5)
    assert values[-1] == pytest.approx(by_loops(a[-1:], b), abs=1e-5)


def test_fidelity_of_real_pictures(seen):
    assert metrics.fidelity(seen["drawn"], seen["real"]).mean() == pytest.approx(
        by_loops(seen["drawn"], seen["real"]), abs=1e-5
    )


def test_the_ceiling_compares_each_photo_with_the_others(seen):
    for real in (seen["real"], unit(2, 3, 5)):
        others = [np.mean([cosine(a, b) for j, b in enumerate(real) if j != i]) for i, a in enumerate(real)]
        assert metrics.ceiling(real) == pytest.approx(others, abs=1e-5)


def test_prompt_fidelity_takes_each_picture_with_its_own_prompt(seen):
    for looks, texts in ((seen["looks"], seen["texts"]), (unit(9, 32, 3), unit(9, 32, 4))):
        own = [cosine(a, b) for a, b in zip(looks, texts, strict=True)]
        assert metrics.prompt_fidelity(looks, texts) == pytest.approx(own, abs=1e-5)


def test_diversity_is_the_mean_over_prompts_of_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    pictures = [rng.normal(size=(count, 6)) for count in (4, 2, 3)]  # a prompt may have lost pictures

    def distance(a, b):
        return float(np.abs(a - b).sum())

    listed = [[distance(own[i], own[j]) for i, j in metrics.pairs(len(own))] for own in pictures]
    by_definition = []
    for own in pictures:
        total, count = 0.0, 0
        for i in range(len(own)):
            for j in range(len(own)):
                if i < j:
                    total, count = total + distance(own[i], own[j]), count + 1
        by_definition.append(total / count)
    assert metrics.diversity(listed) == pytest.approx(by_definition, abs=1e-5)
    assert metrics.diversity(listed).mean() == pytest.approx(sum(by_definition) / 3, abs=1e-5)


# ---- By hand


def test_pres_of_three_pictures_by_hand():
    """Directions at 0°, 60° and 90° against photos at 0° and 90°: cosines 1, 0; ½, √3/2; 0, 1."""
    drawn = np.array([[1, 0], [0.5, math.sqrt(3) / 2], [0, 1]])
    real = np.array([[1, 0], [0, 1]])
    values = metrics.fidelity(drawn, real)
    assert values == pytest.approx([0.5, (0.5 + 0.8660254) / 2, 0.5], abs=1e-7)
    assert values.mean() == pytest.approx(0.5610042, abs=1e-7)
    assert metrics.ceiling(real) == pytest.approx([0, 0])


def test_div_of_three_pictures_by_hand():
    """Three pictures of a prompt, 0.2, 0.3 and 0.7 apart, and two of another, 0.6 apart: 0.4 and 0.6, so 0.5."""
    assert metrics.pairs(3) == [(0, 1), (0, 2), (1, 2)]
    assert metrics.diversity([[0.2, 0.3, 0.7], [0.6]]) == pytest.approx([0.4, 0.6])
    assert metrics.diversity([[0.2, 0.3, 0.7], [0.6]]).mean() == pytest.approx(0.5)


# ---- What is refused


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.ones((2, 2)), np.eye(2), "unit length"),
        (np.array([[np.nan, 1.0]]), np.eye(2), "not finite"),
        (np.eye(2), np.eye(3), "2 and 3 dimensions"),
        (np.empty((0, 2)), np.eye(2), r"shape \(0, 2\)"),
        (np.eye(2)[0], np.eye(2), r"shape \(2,\)"),
    ],
)
def test_what_is_no_embedding_is_refused(a, b, words):
    for left, right in ((a, b), (b, a)):
        with pytest.raises(ValueError, match=words if left is a else "."):
            metrics.cosines(left, right)


def test_half_precision_is_still_of_unit_length():
    assert metrics.cosines(unit(5, 384, 0).astype(np.float16), unit(3, 384, 1)).shape == (5, 3)


def test_too_little_to_compare_is_refused():
    with pytest.raises(ValueError, match="one photo"):
        metrics.ceiling(np.eye(3)[:1])
    with pytest.raises(ValueError, match="two pictures"):
        metrics.diversity([[0.1], []])
    with pytest.raises(ValueError, match="no prompts"):
        metrics.diversity([])
    with pytest.raises(ValueError, match="not one to one"):
        metrics.prompt_fidelity(np.eye(3), np.eye(3)[:2])


# ---- Intervals


# Two-sided quantiles as printed in tables of Student's t (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2).
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 12: 2.179, 13: 2.160, 29: 2.045}
T_99 = {1: 63.657, 2: 9.925, 5: 4.032, 12: 3.055, 29: 2.756, 100: 2.626}


@pytest.mark.parametrize(("confidence", "table"), [(0.95, T_95), (0.99, T_99)])
def test_students_quantiles_are_those_of_the_tables(confidence, table):
    for freedom, printed in table.items():
        assert student_quantile(confidence, freedom) == pytest.approx(printed, abs=5.01e-4), freedom


@pytest.mark.parametrize("freedom", [1, 2, 5, 6, 12, 29])
def test_between_students_quantiles_lies_what_they_say(freedom):
    """By the density, added up."""
    reach = student_quantile(0.9, freedom)
    t = np.linspace(-reach, reach, 20_001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    assert np.trapezoid(scale * (1 + t**2 / freedom) ** (-(freedom + 1) / 2), t) == pytest.approx(0.9, abs=1e-6)


def test_there_is_no_quantile_of_certainty_or_without_freedom():
    for confidence, freedom in ((0.0, 5), (1.0, 5), (0.95, 0)):
        with pytest.raises(ValueError, match="no quantile"):
            student_quantile(confidence, freedom)


def test_the_interval_of_equal_groups_is_that_of_their_means():
    values, groups = [0.1, 0.7, 0.2, 0.9, 0.4, 0.3], ["a", "b", "a", "b", "c", "c"]
    means = [0.15, 0.8, 0.35]
    found, reach = estimate_mean(values, groups), 4.303 * np.std(means, ddof=1) / math.sqrt(3)
    assert (found.value, found.count) == (pytest.approx(np.mean(values)), 6)
    assert (found.low, found.high) == pytest.approx((np.mean(means) - reach, np.mean(means) + reach), abs=1e-4)
    once = estimate_mean(means)
    assert (once.low, once.high) == pytest.approx((found.low, found.high))


def test_a_group_counts_by_its_values():
    """The error of a ratio, by its formula: of what each group has beyond as many times the mean."""
    values, groups = np.array([0.1, 0.7, 0.2, 0.9, 0.4]), np.array(list("abaac"))
    found = estimate_mean(values, list(groups))
    excess = [values[groups == g].sum() - (groups == g).sum() * values.mean() for g in "abc"]
    error = math.sqrt(sum(e * e for e in excess) / (3 - 1) * 3) / 5
    assert found.high - found.value == pytest.approx(4.303 * error, rel=1e-4)


def test_the_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(0.5, 0.1, 3000)
    found, error = estimate_mean(values), 1.96 * 0.1 / math.sqrt(3000)
    assert found.low == pytest.approx(values.mean() - error, abs=3e-4)
    assert found.high == pytest.approx(values.mean() + error, abs=3e-4)
    assert found == estimate_mean(values), "the same figures give the same interval"
    assert estimate_mean(values, confidence=0.5).high < found.high


def test_pictures_of_one_prompt_are_not_independent_witnesses():
    """Where each prompt's pictures agree, four of each prove no more than one."""
    rng = np.random.default_rng(2)
    prompts = rng.normal(0.5, 0.1, 25)
    once, four = estimate_mean(prompts), estimate_mean(np.repeat(prompts, 4), np.repeat(np.arange(25), 4))
    assert (four.low, four.high) == pytest.approx((once.low, once.high))
    naive = estimate_mean(np.repeat(prompts, 4))
    assert naive.high - naive.low < 0.6 * (four.high - four.low)


@pytest.mark.parametrize("count", [2, 3, 6, 13, 30])
@pytest.mark.parametrize("uneven", [False, True])
def test_the_interval_holds_the_truth_as_often_as_it_says(count, uneven):
    """Of 2,000 such studies in 93 to 97 %: four standard deviations of that count, and less than any bootstrap errs."""
    rng, held = np.random.default_rng(count), 0
    groups = np.repeat(np.arange(count), 4)
    for _ in range(2000):
        kept = groups if not uneven else groups[rng.random(len(groups)) > 0.05]  # a few pictures are left out
        values = rng.normal(0, 1, count)[kept] + rng.normal(0, 0.5, len(kept))
        found = estimate_mean(values, kept.tolist())
        held += found.low <= 0 <= found.high
    assert 0.93 <= held / 2000 <= 0.97


@pytest.mark.parametrize(("values", "groups"), [([0.4], None), ([0.4, 0.6], ["dog", "dog"])])
def test_one_value_or_one_group_has_no_interval(values, groups):
    found = estimate_mean(values, groups)
    assert found == Estimate(pytest.approx(np.mean(values)), None, None, len(values))
    assert str(found) == f"{np.mean(values):.3f}"


def test_an_estimate_is_told_with_its_interval():
    assert str(Estimate(0.53149, 0.5, 0.5625, 100)) == "0.531 [0.500, 0.562]"


def test_paired_differences_take_out_what_both_have_in_common():
    rng = np.random.default_rng(5)
    common = rng.normal(0, 1, 60)
    a, b = common + 0.1 + rng.normal(0, 0.01, 60), common
    groups = np.repeat(["dog", "cat", "vase"], 20)
    found = paired_difference(a, b, groups)
    assert found.value == pytest.approx(np.mean(a - b))
    assert 0.08 < found.low < found.value < found.high < 0.12
    assert found == estimate_mean(a - b, groups)
    with pytest.raises(ValueError, match="don't pair"):
        paired_difference(a, b[:-1])


@pytest.mark.parametrize(
    ("values", "groups", "words"),
    [
        ([], None, "one or more"),
        ([[1.0]], None, "one or more"),
        ([np.inf, 1.0], None, "finite"),
        ([1.0], ["a", "b"], "2"),
    ],
)
def test_what_has_no_mean_is_refused(values, groups, words):
    with pytest.raises(ValueError, match=words):
        estimate_mean(values, groups)


# ---- Words


def test_the_five_metrics_are_told_in_one_place():
    assert [(m.name, m.title, m.better) for m in METRICS.values()] == [
        ("dino", "DINO", "higher"),
        ("clip_i", "CLIP-I", "higher"),
        ("clip_t", "CLIP-T", "higher"),
        ("pres", "PRES", "lower"),
        ("div", "DIV", "higher"),
    ]
    assert all(key == metric.name and metric.meaning.endswith(".") for key, metric in METRICS.items())
