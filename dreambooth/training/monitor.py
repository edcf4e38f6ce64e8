"""Is it done? The sample pictures of a training, measured, and the step that did best by a documented rule.

Loss does not tell: it goes on falling while the model forgets its class and copies the photos. So at each sampling step
the pictures are compared with the photos (DINO, CLIP-I), with their prompts (CLIP-T), with each other (DIV), and the
class prompt's with the photos (PRES), from the same seeds each time. Step 0 is the base model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import MinLen
from PIL import Image
from pydantic import ConfigDict, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError

from dreambooth.config.settings import Config
from dreambooth.errors import ModelError, RunError
from dreambooth.events import Metric, Warning
from dreambooth.files import atomic_file
from dreambooth.metrics import metrics
from dreambooth.metrics.encoders import Encoders
from dreambooth.photos.prepare import is_blank

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


class Monitor:
    """Measures a training's sample pictures and keeps what it found in `measures.json`."""

    def __init__(self, config: Config, run: Path, encoders: Encoders, photos: Sequence[Image.Image]):
        """`photos`, at least two, are the subject's as prepared for training; goes on with the measures in `run`."""
        self._config, self._path, self._encoders = config, run / FILE, encoders
        self._photos = {"dino": encoders.dino.embed(photos), "clip": encoders.clip.embed(photos)}
        self._ceiling = float(metrics.ceiling(self._photos["dino"]).mean())
        known = read_measures(run)
        self._by_step = {measure.step: measure for measure in known.measures} if known else {}

    def measure(
        self, step: int, pictures: Sequence[tuple[Image.Image, str]], device: torch.device
    ) -> Iterator[Metric | Warning]:
        """Take in the pictures of one step, each with its prompt; yields what they say.

        Blank ones are left out, which is told; where none of the subject or of the class is left, so is the step.
        Steps may come again after a resume: the same pictures give the same measures. Raises `ModelError` where there
        is nothing to see of the base model, with which all steps are compared.
        """
        seen = [(image, prompt) for image, prompt in pictures if not is_blank(image)]
        subject = any(self._config.shows_subject(prompt) for _, prompt in seen)
        whole = subject and any(prompt == self._config.class_prompt for _, prompt in seen)
        if len(seen) < len(pictures):
            left = "are left out" if whole else "are left out, too many for measuring this step"
            yield Warning(
                f"{len(pictures) - len(seen)} of {len(pictures)} sample pictures of step {step} {left}: {BLANK}."
            )
        if not whole and step == 0:
            raise ModelError(
                "The base model draws blank pictures alone, so this training can't be measured.",
                "Set train.mixed_precision: no, or evaluation.while_training: false.",
            )
        if not whole:
            return
        pictures = seen
        self._encoders.to(device)
        measured = self._measured(step, pictures)
        self._encoders.to("cpu")
        self._by_step[step] = measured
        with atomic_file(self._path) as partial:
            partial.write_text(json.dumps(asdict(self.measures), indent=1), encoding="utf-8")
        for name, value in asdict(measured).items():
            if name != "step" and value is not None:
                yield Metric(name, value, step)

    @property
    def measures(self) -> Measures:
        """All so far, at least the base's."""
        ordered, best = self._ordered, self._ordered[-1]
        if not self._config.more_subjects:
            best = best_of(ordered, *self._bounds)
        return Measures(self._ceiling, self._encoders.names, best.step, ordered)

    @property
    def _ordered(self) -> tuple[Measure, ...]:
        return tuple(self._by_step[step] for step in sorted(self._by_step))

    @property
    def _bounds(self) -> tuple[float, float, float]:
        return self._ceiling, self._config.evaluation.max_drift, self._config.evaluation.max_prompt_loss

    @property
    def best(self) -> int | None:
        """The best step so far; None before anything was measured."""
        return self.measures.best if self._by_step else None

    @property
    def first(self) -> int | None:
        """The front-runner's step, whose model is to be kept; None where the last one is the best whatever happens."""
        return None if self._config.more_subjects else front_runner(self._ordered, *self._bounds).step

    def forget_after(self, step: int) -> None:
        """Leave out what was measured of later steps: a resume trains them again, and perhaps a little differently."""
        self._by_step = {known: measure for known, measure in self._by_step.items() if known <= step}

    def knows(self, step: int) -> bool:
        """Whether that step is measured."""
        return step in self._by_step

    def exhausted(self, step: int) -> bool:
        """Whether none of the last `evaluation.patience` samplings up to `step` was the best so far."""
        return bool(self._by_step) and exhausted(self.measures, self._config.evaluation.patience, step)

    def _measured(self, step: int, pictures: Sequence[tuple[Image.Image, str]]) -> Measure:
        ours = [(image, prompt) for image, prompt in pictures if self._config.shows_subject(prompt)]
        kin = [image for image, prompt in pictures if prompt == self._config.class_prompt]
        images = [image for image, _ in ours]
        dino, clip = self._encoders.dino, self._encoders.clip
        looks = clip.embed(images)
        texts = clip.embed_texts([self._config.subject.without_identifier(prompt) for _, prompt in ours])
        return Measure(
            step,
            dino=float(metrics.fidelity(dino.embed(images), self._photos["dino"]).mean()),
            clip_i=float(metrics.fidelity(looks, self._photos["clip"]).mean()),
            clip_t=float(metrics.prompt_fidelity(looks, texts).mean()),
            pres=float(metrics.fidelity(dino.embed(kin), self._photos["dino"]).mean()),
            div=self._diversity(ours),
        )

    def _diversity(self, pictures: list[tuple[Image.Image, str]]) -> float | None:
        by_prompt: dict[str, list[Image.Image]] = {}
        for image, prompt in pictures:
            by_prompt.setdefault(prompt, []).append(image)
        pairs = [[(a[i], a[j]) for i, j in metrics.pairs(len(a))] for a in by_prompt.values()]
        if self._encoders.perceptual is None or not all(pairs):
            return None
        distances = self._encoders.perceptual.distances([pair for prompt in pairs for pair in prompt])
        ends = np.cumsum([len(prompt) for prompt in pairs])[:-1]
        return float(metrics.diversity(np.split(distances, ends)).mean())


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
