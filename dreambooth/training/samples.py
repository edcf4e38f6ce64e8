"""The sample pictures of a training, and what measures them."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, HubError, ModelError
from dreambooth.events import Event
from dreambooth.generate import MAX_BATCH, draw, save_picture
from dreambooth.machine import DTYPES
from dreambooth.metrics.encoders import load_encoders
from dreambooth.training.monitor import Monitor


def monitor_of(config: Config, run: Path, photos: list[Image.Image]) -> Generator[Event, None, Monitor | None]:
    """What measures the sample pictures, if there are any and that is wanted; its encoders wait on the CPU."""
    evaluation = config.evaluation
    if not (config.train.sample_every and evaluation.while_training):
        return None
    if len(photos) < 2:
        yield events.Warning("One photo has no other to be compared with, so this run is not measured.")
        return None
    try:
        encoders = load_encoders(evaluation, config.base_model, "cpu")
    except ConfigError as error:  # no LPIPS: it is no condition of training, only of DIV
        if evaluation.perceptual != "auto":
            raise
        yield events.Warning(f"DIV is not measured while training. {error}")
        encoders = load_encoders(evaluation, config.base_model, "cpu", perceptual=False)
    except (HubError, ModelError) as error:
        hint = f"{error.hint} Or train unmeasured: evaluation.while_training: false."
        raise type(error)(error.message, hint) from None
    return Monitor(config, run, encoders, photos)


def sample_jobs(config: Config, run: Path, step: int) -> list[tuple[Path, str, int]]:
    """The sample pictures of a step: file, prompt and seed. The prompt's number tells files apart whose prompts begin
    alike, or have no Latin letter."""
    sampling, folder, jobs = config.sampling, run / "samples", []
    for number, prompt in enumerate(config.sample_prompts):
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-")
        name = f"step-{step:06d}-{number:02d}" + (f"-{words}" if words else "")
        seeds = range(sampling.seed, sampling.seed + sampling.num_images)
        jobs += [(folder / f"{name}-{seed}.png", prompt, seed) for seed in seeds]
    return jobs


def draw_samples(
    pipe: DiffusionPipeline,
    config: Config,
    run: Path,
    step: int,
    resolution: int,
    precision: str,
    should_stop: Callable[[], bool],
) -> Generator[Event, None, list[tuple[Image.Image, str]]]:
    """Draw the subject's prompt, the class's and any others with the same seeds each time.

    Returns the pictures with their prompts; none where it was told to stop before it had drawn all.
    """
    sampling, jobs, drawn = config.sampling, sample_jobs(config, run, step), []
    for start in range(0, len(jobs), MAX_BATCH):
        if start and should_stop():
            return []
        batch = jobs[start : start + MAX_BATCH]
        _, prompts, seeds = map(list, zip(*batch, strict=True))
        images = draw(pipe, prompts, seeds, sampling, resolution=resolution, dtype=DTYPES[precision])
        for image, (path, prompt, seed) in zip(images, batch, strict=True):
            save_picture(path, image, prompt=prompt, seed=seed, step=step, model=run.name, precision=precision)
            yield events.Image(str(path.relative_to(run)), prompt, seed, step)
            drawn.append((image, prompt))
    return drawn
