"""The paper's five metrics as plain arithmetic on embeddings and distances, with the intervals of their means.

Ruiz et al. 2022 (arXiv 2208.12242): §4.1 defines DINO, CLIP-I and CLIP-T, §4.3 PRES and DIV. Embeddings are (N, D) rows
of length one; whatever precision they come in, the arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

UNIT_TOLERANCE = 1e-3
"""How far from one the length of a unit row may be: half precision keeps three digits."""


@dataclass(frozen=True)
class Metric:
    """What people are told of a metric, wherever it is shown."""

    name: str
    """As in files: a key of metrics.json, part of a CSV's name."""
    title: str
    better: Literal["higher", "lower"]
    meaning: str

    @property
    def head(self) -> str:
        """What heads its column: the title, and an arrow to the better side."""
        return f"{self.title} {'↑' if self.better == 'higher' else '↓'}"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("dino", "DINO", "higher", "How much the pictures show this very subject, not just one of its kind."),
        Metric("clip_i", "CLIP-I", "higher", "How much the pictures resemble the photos in what they show."),
        Metric("clip_t", "CLIP-T", "higher", "How well the pictures follow their prompts."),
        Metric("pres", "PRES", "lower", "How much other members of the class have come to look like the subject."),
        Metric("div", "DIV", "higher", "How much pictures of one prompt differ from each other."),
    )
}


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    value: float
    low: float | None
    """None, like `high`, where there was one value or one group: nothing tells how far that may be off."""
    high: float | None
    count: int
    """Values that the mean is over."""

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines of each row of `a` (N, D) with each of `b` (M, D), both of unit length: (N, M) float64.

    Raises `ValueError` where the arrays are empty, don't fit, or hold rows that are not finite or not of length one.
    """
    a, b = _unit_rows(a), _unit_rows(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"embeddings of {a.shape[1]} and {b.shape[1]} dimensions can't be compared")
    found: np.ndarray = a @ b.T
    return found


def fidelity(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Mean cosine of each generated picture (N, D) with all real photos (M, D): (N,).

    Its mean is the mean over all pairs: DINO or CLIP-I for pictures of the subject, and PRES for pictures of the class
    prompt, with DINO's embeddings. Raises as `cosines` does.
    """
    found: np.ndarray = cosines(generated, real).mean(axis=1)
    return found


def ceiling(real: np.ndarray) -> np.ndarray:
    """Mean cosine of each real photo (M, D) with the other photos: (M,); what no picture need surpass.

    Raises `ValueError` for one photo alone, else as `cosines` does.
    """
    every = cosines(real, real)
    if len(every) < 2:
        raise ValueError("one photo has no other to be compared with")
    found: np.ndarray = (every.sum(axis=1) - every.diagonal()) / (len(every) - 1)
    return found


def prompt_fidelity(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine of each picture (N, D) with its own prompt (N, D): (N,). Its mean is CLIP-T. Raises as `cosines` does."""
    images, texts = _unit_rows(images), _unit_rows(texts)
    if images.shape != texts.shape:
        raise ValueError(f"pictures {images.shape} and prompts {texts.shape} are not one to one")
    found: np.ndarray = (images * texts).sum(axis=1)
    return found


def pairs(count: int) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of `count` pictures of one prompt that DIV compares."""
    return list(combinations(range(count), 2))


def diversity(distances_by_prompt: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    """Mean distance between the pictures of each prompt, from the distances of its `pairs`: (P,). Its mean is DIV.

    A prompt counts the same however many pictures it has. Raises `ValueError` for a prompt without a pair.
    """
    if not len(distances_by_prompt):
        raise ValueError("no prompts")
    if not all(len(distances) for distances in distances_by_prompt):
        raise ValueError("a prompt needs two pictures or more to tell how they differ")
    return np.array([np.mean(_finite(distances)) for distances in distances_by_prompt])


def estimate_mean(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> Estimate:
    """Mean of `values` (N,) and its interval by Student's t (Gosset 1908), the one rule wherever figures are told.

    With `groups` (N,), the prompt or the subject of each value, whole groups are what varies: pictures of one prompt
    are alike, so that counting each as an independent witness would make the interval too narrow. The mean is a ratio
    of sums over groups, its error that of a ratio (Cochran 1977, §6.4); where groups are of one size that is the
    t-interval of the groups' means. It holds the truth as often as it says over three groups and over thirty; a
    percentile bootstrap says 95 % and holds it in 75, 86 and 94 over three, six and thirty. One value or one group has
    no interval. Raises `ValueError` for no values, values that are not finite, or groups of another length.
    """
    values = _finite(values)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values of shape {values.shape}; a mean needs one or more in a row")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} values")
    rows = range(len(values)) if groups is None else groups
    place = {group: i for i, group in enumerate(dict.fromkeys(rows))}
    value, count = float(values.mean()), len(place)
    if count < 2:
        return Estimate(value, None, None, len(values))
    excess = np.bincount([place[group] for group in rows], weights=values - value)
    error = math.sqrt(count / (count - 1) * float(np.square(excess).sum())) / len(values)
    reach = student_quantile(confidence, count - 1) * error
    return Estimate(value, value - reach, value + reach, len(values))


def student_quantile(confidence: float, freedom: int) -> float:
    """The t that a Student-distributed number of `freedom` degrees stays within, either side of zero, with probability
    `confidence`; by the distribution's closed form for whole degrees (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).

    Raises `ValueError` for a confidence that is not between 0 and 1, or less than one degree.
    """
    if not 0 < confidence < 1 or freedom < 1:
        raise ValueError(f"no quantile at {confidence} with {freedom} degrees of freedom")
    odd = freedom % 2

    def within(angle: float) -> float:
        """P(|T| < √freedom · tan(angle))."""
        cosine, total = math.cos(angle), 0.0
        term = cosine if odd else 1.0
        for k in range(odd, freedom - 1, 2):  # cos + 2/3 cos³ + 2·4/(3·5) cos⁵ …, or 1 + 1/2 cos² + 1·3/(2·4) cos⁴ …
            total += term
            term *= (k + 1) / (k + 2) * cosine**2
        by_series = math.sin(angle) * total
        return 2 / math.pi * (angle + by_series) if odd else by_series

    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves what is left of the angle: more digits than float64 has
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Mean of a - b, row by row (same subject, prompt and seed), with its interval as `estimate_mean` gives it.

    Raises `ValueError` where the two don't have the same rows, else as `estimate_mean` does.
    """
    a, b = _finite(a), _finite(b)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} values don't pair")
    return estimate_mean(a - b, groups, confidence=confidence)


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    return values


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    rows = _finite(rows)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"embeddings of shape {rows.shape}; (N, D) with N and D of one or more are needed")
    if (np.abs(np.linalg.norm(rows, axis=1) - 1) > UNIT_TOLERANCE).any():
        raise ValueError("embeddings that are not of unit length")
    return rows
