"""Is it done? The sample pictures of a training, measured, and the step that did best by a documented rule.

Loss does not tell: it goes on falling while the model forgets its class and copies the photos. So at each sampling step
the pictures are compared with the photos (DINO, CLIP-I), with their prompts (CLIP-T), with each other (DIV), and the
class prompt's with the photos (PRES), from the same seeds each time. Step 0 is the base model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dreambooth.config.settings import Config
from dreambooth.errors import ModelError
from dreambooth.events import Metric, Warning
from dreambooth.files import atomic_file
from dreambooth.metrics import metrics
from dreambooth.metrics.encoders import Encoders
from dreambooth.metrics.measures import BLANK, FILE, Measure, Measures, best_of, exhausted, front_runner, read_measures
from dreambooth.photos.sheets import is_blank


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
