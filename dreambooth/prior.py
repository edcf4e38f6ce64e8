"""Class images for prior preservation: drawn by the frozen base model, checked, cached, and shared by every run.

A cache folder's name is a hash of everything that shapes its pictures, so two runs that would draw the same ones share
them, and only the shortfall is drawn. Picture i depends on the key and i alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dreambooth.config import Config, SamplingConfig
from dreambooth.errors import ModelError
from dreambooth.fetch import fingerprint
from dreambooth.files import atomic_file, cache_home
from dreambooth.generate import draw, save_picture
from dreambooth.photos import contact_sheet, is_blank

MAX_REDRAWS = 4  # of one picture, before the model is taken to be broken


def cache_root() -> Path:
    """Where class images are kept."""
    return cache_home() / "class_images"


def cache_key(
    config: Config, model: Path, resolution: int, precision: str, class_prompt: str | None = None
) -> dict[str, object]:
    """Everything that shapes the images of a class, the first subject's if none is given.

    `model` is the base model's folder, `precision` no, bf16 or fp16.
    """
    prior = config.prior
    return {
        "base_model": fingerprint(model),
        "class_prompt": class_prompt or config.class_prompt,
        "steps": prior.steps,
        "guidance_scale": prior.guidance_scale,
        "resolution": resolution,
        "precision": precision,
        "seed": config.seed,
    }


def cache_folder(key: dict[str, object]) -> Path:
    """The folder of a key."""
    return cache_root() / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def missing_images(folder: Path, count: int) -> list[int]:
    """Which of the first `count` class images are not in `folder` yet."""
    return [i for i in range(count) if not _path(folder, i).is_file()]


def class_images(folder: Path, count: int) -> list[Path]:
    """The files of the first `count` class images."""
    return [_path(folder, i) for i in range(count)]


def draw_class_images(
    pipe: DiffusionPipeline, config: Config, folder: Path, key: dict[str, object], dtype: torch.dtype | None
) -> Iterator[int]:
    """Draw those of the class images of `key` that `folder` lacks; yields how many there are after each batch.

    Blank pictures (failed arithmetic, or a safety checker's black frame) are drawn again from another seed; raises
    `ModelError` when that does not help.
    """
    prior, prompt = config.prior, str(key["class_prompt"])
    write_key(folder, key)
    sampling = SamplingConfig(steps=prior.steps, guidance_scale=prior.guidance_scale)
    todo = [(i, 0) for i in missing_images(folder, prior.num_images)]
    while todo:
        batch, todo = todo[: prior.batch_size], todo[prior.batch_size :]
        seeds = [_seed(config.seed, i, redraws) for i, redraws in batch]
        images = draw(pipe, [prompt] * len(batch), seeds, sampling, resolution=int(key["resolution"]), dtype=dtype)
        for image, (i, redraws), seed in zip(images, batch, seeds, strict=True):
            if not is_blank(image):
                save_picture(_path(folder, i), image, prompt=prompt, seed=seed, precision=key["precision"])
            elif redraws < MAX_REDRAWS:
                todo.append((i, redraws + 1))
            else:
                raise ModelError(
                    f"{config.base_model} drew only blank pictures for {prompt!r}.",
                    "Try train.mixed_precision: no, or another prior.class_prompt.",
                )
        yield prior.num_images - len(todo)
    save_contact_sheet(folder, prior.num_images)


def write_key(folder: Path, key: dict[str, object]) -> None:
    """Make the folder of a key, with the key in words in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "key.json") as partial:
        partial.write_text(json.dumps(key, indent=2))


def save_contact_sheet(folder: Path, count: int) -> None:
    """Write `contact_sheet.jpg` with up to 100 of the class images."""
    thumbnails = []
    for path in class_images(folder, min(count, 100)):
        with Image.open(path) as image:
            thumbnails.append(image.convert("RGB").resize((128, 128), Image.Resampling.LANCZOS))
    with atomic_file(folder / "contact_sheet.jpg") as partial:
        contact_sheet(thumbnails, columns=10).save(partial, quality=88)


def _path(folder: Path, i: int) -> Path:
    return folder / f"{i:05d}.png"


def _seed(seed: int, i: int, redraws: int) -> int:
    return int(np.random.SeedSequence([seed, i, redraws]).generate_state(1)[0])
