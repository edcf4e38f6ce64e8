"""From prompts and seeds to pictures: one seed a picture, the same on every machine and in every batch."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth.config import TOYBOX, Config, SamplingConfig, load_preset, read_yaml
from dreambooth.errors import ConfigError, RunError
from dreambooth.families import Family, fetch_model, load_pipeline
from dreambooth.files import atomic_file

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "pndm": "PNDMScheduler",
}
MAX_BATCH = 16  # pictures drawn at once: bounds memory whatever the count


@dataclass(frozen=True)
class Picture:
    """A generated image and what it was made from."""

    image: Image.Image
    prompt: str
    seed: int


@dataclass(frozen=True)
class Source:
    """A loaded model to generate from."""

    pipe: DiffusionPipeline
    family: Family
    name: str
    """What a picture's metadata call it: the base model, or the run's id; never a path of this machine."""
    sampling: SamplingConfig
    """The settings this model is best sampled with."""
    config: Config | None
    """The run's settings, where the model came from a run."""


def open_source(source: str, revision: str | None = None, device: torch.device | None = None) -> Source:
    """Load a run directory, toybox, a pipeline folder or a Hub id for generation, with its safety checker, if any.

    Raises `RunError` for a run without a finished model, else what `fetch_model` and `load_pipeline` raise.
    """
    folder = Path(os.path.expanduser(source))
    config = None
    if (folder / "config.yaml").is_file() or (folder / "events.jsonl").is_file():
        if not (folder / "model" / "model_index.json").is_file():
            raise RunError(
                f"{source} has no finished model.", "Train it to the end first: `train CONFIG.yaml --resume`."
            )
        config = Config.from_dict(read_yaml(folder / "config.yaml"), source=str(folder / "config.yaml"))
        model, name, sampling = folder / "model", folder.resolve().name, config.sampling
    else:
        model = fetch_model(source, revision)
        name = folder.resolve().name if folder.exists() else source
        sampling = SamplingConfig(**(load_preset(TOYBOX)["sampling"] if source == TOYBOX else {}))
    pipe, family = load_pipeline(model, safety_checker=True)
    if device is not None:
        pipe.to(device)
    return Source(pipe, family, name, sampling, config)


def with_scheduler(pipe: DiffusionPipeline, name: str) -> object:
    """The pipeline's own scheduler for `default`, else the named one on the same noise schedule.

    Raises `ConfigError` where that sampler can't follow the model's schedule.
    """
    if name == "default":
        return pipe.scheduler
    kind = getattr(diffusers, SCHEDULERS[name])
    config = pipe.scheduler.config
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in inspect.signature(kind).parameters:
        raise ConfigError(
            f"scheduler {name} can't follow this model's zero-SNR schedule.", "Use default, ddim, dpm++ or euler."
        )
    return kind.from_config(config)


@torch.inference_mode()
def draw(
    pipe: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    sampling: SamplingConfig,
    *,
    negative_prompt: str = "",
    resolution: int | None = None,
    dtype: torch.dtype | None = None,
) -> list[Image.Image]:
    """Draw one picture for each prompt and its seed, all in one batch, in `dtype` autocast if given.

    The noise of a picture comes from its seed alone, drawn on the CPU, so it does not depend on device or batch.
    """
    own = pipe.scheduler
    pipe.scheduler = with_scheduler(pipe, sampling.scheduler)
    device = pipe._execution_device
    try:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return pipe(
                prompts,
                negative_prompt=[negative_prompt] * len(prompts) if negative_prompt else None,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                height=resolution,
                width=resolution,
            ).images
    finally:
        pipe.scheduler = own


def generate(
    source: Source,
    prompts: list[str],
    *,
    num_images: int = 4,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    negative_prompt: str = "",
) -> Iterator[list[Picture]]:
    """Yield batches of pictures: `num_images` of each prompt, seeded `seed`, `seed + 1`, … alike for each prompt.

    Raises `ConfigError` for an empty prompt or impossible numbers, before anything is drawn, and `RunError` where the
    memory runs out.
    """
    sampling = sampling or source.sampling
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ConfigError("The prompt is empty.", "Say what to draw, for example 'a photo of sks dog on a beach'.")
    if num_images < 1:
        raise ConfigError(f"num_images is {num_images}.", "Give 1 or more.")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}.", "Give a whole number from 0 to 4294967295.")
    jobs = [(prompt, (seed + i) % 2**32) for prompt in prompts for i in range(num_images)]
    for start in range(0, len(jobs), MAX_BATCH):
        batch = jobs[start : start + MAX_BATCH]
        try:
            images = draw(
                source.pipe, [p for p, _ in batch], [s for _, s in batch], sampling, negative_prompt=negative_prompt
            )
        except (torch.OutOfMemoryError, MemoryError):
            raise RunError(
                f"The memory ran out while drawing {len(batch)} pictures at once.", "Ask for fewer pictures at a time."
            ) from None
        yield [Picture(image, prompt, s) for image, (prompt, s) in zip(images, batch, strict=True)]


def save_picture(path: Path, image: Image.Image, **facts: object) -> None:
    """Write a PNG, whole or not at all, with `facts` (prompt, seed, model, …) as its text metadata."""
    info = PngInfo()
    for key, value in facts.items():
        info.add_itxt(key, str(value))
    with atomic_file(path) as partial:
        image.save(partial, pnginfo=info)
