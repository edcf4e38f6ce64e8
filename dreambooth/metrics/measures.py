"""What the sample pictures of a training said, and the step that did best by a documented rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen
from pydantic import ConfigDict, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError

from dreambooth.errors import RunError

FILE = "measures.json"
_STRICT = ConfigDict(extra="forbid", strict=True)
BLANK = "blank, since the model's arithmetic failed"
"""What is said of a picture with nothing in it, which no figure counts: neither here nor in an evaluation."""
CHANCE = {"drift": 0.5, "prompts": 0.05, "likeness": 0.2}
"""How far apart two steps of one training may seem by chance, two standard deviations: PRES and DINO as shares of their
ways from the base model's to the ceiling, CLIP-T as a share of the base model's. Source: `python -m
benchmarks.best_step` on the 24 trainings of configs/toybox-study.yaml. The sample pictures of the last step (two of the
class, four of the subject) and the 152 of its evaluation differ by 0.19, 0.015 and 0.07, one standard deviation."""


@dataclass(frozen=True)
class Measure:
    """What the sample pictures of one step say, each the mean over its pictures; `metrics` defines them."""

    __pydantic_config__ = _STRICT

    step: NonNegativeInt
    dino: FiniteFloat
    clip_i: FiniteFloat
    clip_t: FiniteFloat
    pres: FiniteFloat
    div: FiniteFloat | None
    """None with one picture a prompt, or without an encoder for it."""


@dataclass(frozen=True)
class Measures:
    """A training's measures so far, in the order of their steps."""

    __pydantic_config__ = _STRICT

    ceiling: FiniteFloat
    """DINO of the photos among themselves: what a perfect likeness would reach."""
    encoders: dict[str, str]
    best: NonNegativeInt
    """The step that `best_of` picks, and the last one of several subjects, since only the first is measured; 0 while
    only the base model was measured."""
    measures: Annotated[tuple[Measure, ...], MinLen(1)]

    @property
    def base(self) -> Measure:
        """Of the model before its training."""
        return self.measures[0]


def best_of(measures: Sequence[Measure], ceiling: float, max_drift: float, max_prompt_loss: float) -> Measure:
    """The last measure, unless an earlier one is better by more than chance; the first one is the base model's.

    The better of two exceeds two bounds less, by the base's figures, and of those within them has the higher DINO.
    Drift: PRES exceeds the base's by at most `max_drift` of the way to `ceiling`, where class pictures would be as like
    the photos as these are like each other. Prompts: CLIP-T is at most the share `max_prompt_loss` below the base's.
    What is more than chance says `CHANCE`. The base itself is picked only where there is no other.
    """
    base, last = measures[0], measures[-1]
    first = front_runner(measures, ceiling, max_drift, max_prompt_loss)
    beyond = [_excess(measure, base, ceiling, max_drift, max_prompt_loss) for measure in (first, last)]
    likeness = (first.dino - last.dino) / max(ceiling - base.dino, 1e-6)
    return first if beyond[1] - beyond[0] > 1 or likeness > CHANCE["likeness"] else last


def front_runner(measures: Sequence[Measure], ceiling: float, max_drift: float, max_prompt_loss: float) -> Measure:
    """The best measure if nothing were chance: the only one that `best_of` can pick now or later, besides the last one.

    One that lost this place never gets it back, so its model need not be kept. The base itself only where it is alone.
    """
    base, trained = measures[0], measures[1:] or measures[:1]
    return max(trained, key=lambda m: (-_excess(m, base, ceiling, max_drift, max_prompt_loss), m.dino))


def _excess(measure: Measure, base: Measure, ceiling: float, max_drift: float, max_prompt_loss: float) -> float:
    """How far beyond the bounds, by what chance may do."""
    highest, lowest = bounds_of(base, ceiling, max_drift, max_prompt_loss)
    drift = max(0.0, measure.pres - highest) / max(ceiling - base.pres, 1e-6)
    loss = max(0.0, lowest - measure.clip_t) / max(abs(base.clip_t), 1e-6)
    return drift / CHANCE["drift"] + loss / CHANCE["prompts"]


def bounds_of(base: Measure, ceiling: float, max_drift: float, max_prompt_loss: float) -> tuple[float, float]:
    """The highest PRES and the lowest CLIP-T that `best_of` takes without an excess."""
    return base.pres + max_drift * max(ceiling - base.pres, 0.0), base.clip_t - max_prompt_loss * abs(base.clip_t)


def exhausted(measures: Measures, patience: int | None, step: int) -> bool:
    """Whether none of the last `patience` samplings up to `step` was the best."""
    since = [measure for measure in measures.measures if measures.best < measure.step <= step]
    return patience is not None and len(since) >= patience


def read_measures(run: Path) -> Measures | None:
    """What the training in the directory `run` measured so far; None if nothing. Raises `RunError` where damaged."""
    try:
        found = TypeAdapter(Measures).validate_json((run / FILE).read_bytes())
        steps = [measure.step for measure in found.measures]
        if steps != sorted(set(steps)) or found.best not in steps:
            raise ValueError("its steps are out of order, or the best is none of them")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # pydantic's are ValueErrors, of several lines
        said = f"{error.error_count()} errors" if isinstance(error, ValidationError) else error
        raise RunError(
            f"{FILE} can't be read ({said}).", "Remove it; the run can be trained and measured anew."
        ) from None
