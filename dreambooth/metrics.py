"""The paper's five metrics as plain arithmetic on embeddings and distances, with bootstrap intervals.

Ruiz et al. 2022 (arXiv 2208.12242): §4.1 defines DINO, CLIP-I and CLIP-T, §4.3 PRES and DIV. Embeddings are (N, D) rows
of length one; whatever precision they come in, the arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

UNIT_TOLERANCE = 1e-3
"""How far from one the length of a unit row may be: half precision keeps three digits."""
CHUNK = 1_000_000  # numbers drawn at once by the bootstrap: 8 MB


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
    return a @ b.T


def fidelity(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Mean cosine of each generated picture (N, D) with all real photos (M, D): (N,).

    Its mean is the mean over all pairs: DINO or CLIP-I for pictures of the subject, and PRES for pictures of the class
    prompt, with DINO's embeddings. Raises as `cosines` does.
    """
    return cosines(generated, real).mean(axis=1)


def ceiling(real: np.ndarray) -> np.ndarray:
    """Mean cosine of each real photo (M, D) with the other photos: (M,); what no picture need surpass.

    Raises `ValueError` for one photo alone, else as `cosines` does.
    """
    every = cosines(real, real)
    if len(every) < 2:
        raise ValueError("one photo has no other to be compared with")
    return (every.sum(axis=1) - every.diagonal()) / (len(every) - 1)


def prompt_fidelity(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine of each picture (N, D) with its own prompt (N, D): (N,). Its mean is CLIP-T. Raises as `cosines` does."""
    images, texts = _unit_rows(images), _unit_rows(texts)
    if images.shape != texts.shape:
        raise ValueError(f"pictures {images.shape} and prompts {texts.shape} are not one to one")
    return (images * texts).sum(axis=1)


def pairs(count: int) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of `count` pictures of one prompt that DIV compares."""
    return list(combinations(range(count), 2))


def diversity(distances_by_prompt: Sequence[Sequence[float]]) -> np.ndarray:
    """Mean distance between the pictures of each prompt, from the distances of its `pairs`: (P,). Its mean is DIV.

    A prompt counts the same however many pictures it has. Raises `ValueError` for a prompt without a pair.
    """
    if not len(distances_by_prompt):
        raise ValueError("no prompts")
    if not all(len(distances) for distances in distances_by_prompt):
        raise ValueError("a prompt needs two pictures or more to tell how they differ")
    return np.array([np.mean(_finite(distances)) for distances in distances_by_prompt])


def bootstrap(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Mean of `values` (N,) and its percentile bootstrap interval (Efron and Tibshirani 1993, §13.3).

    With `groups` (N,), the prompt or the subject of each value, whole groups are redrawn: pictures of one prompt are
    alike, so that counting each as an independent witness would make the interval too narrow. One value or one group
    has no interval. Raises `ValueError` for no values, values that are not finite, or groups of another length.
    """
    values = _finite(values)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values of shape {values.shape}; a mean needs one or more in a row")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} values")
    rows = range(len(values)) if groups is None else groups
    place = {group: i for i, group in enumerate(dict.fromkeys(rows))}
    index = np.array([place[group] for group in rows])
    sums, counts = np.bincount(index, weights=values), np.bincount(index).astype(float)
    value = float(values.mean())
    if len(place) < 2:
        return Estimate(value, None, None, len(values))
    rng = np.random.default_rng(seed)
    means = []
    for size in _chunks(resamples, max(1, CHUNK // len(place))):
        drawn = rng.integers(len(place), size=(size, len(place)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), len(values))


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Mean of a - b, row by row (same subject, prompt and seed), with its interval as `bootstrap` gives it.

    Raises `ValueError` where the two don't have the same rows, else as `bootstrap` does.
    """
    a, b = _finite(a), _finite(b)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} values don't pair")
    return bootstrap(a - b, groups, confidence=confidence, resamples=resamples, seed=seed)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


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
