"""Class images for prior preservation: drawn by the frozen base model, checked, cached, and shared by every run.

A cache folder's name is a hash of everything that shapes its pictures, so two runs that would draw the same ones share
them, and only the shortfall is drawn. Picture i depends on the key and i alone. What is there is looked at before it is
taken: disks fill up, and people put files of their own there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth.config.sections import SamplingConfig
from dreambooth.config.settings import Config
from dreambooth.errors import ModelError, first_line
from dreambooth.files import atomic_file, cache_home, clear_leftovers, hidden_name
from dreambooth.generate import draw, save_picture
from dreambooth.models.fetch import fingerprint
from dreambooth.photos.sheets import contact_sheet, is_blank

KEPT_SECONDS = 3600.0  # since their last use, for which class images are not trimmed: drawing 600 notes each picture
MAX_REDRAWS = 4  # of one picture, before the model is taken to be broken


def cache_root() -> Path:
    """Where class images are kept."""
    return cache_home() / "class_images"


def cache_key(
    config: Config, model: Path, resolution: int, precision: str, class_prompt: str | None = None
) -> dict[str, Any]:
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


def cache_folder(key: dict[str, Any]) -> Path:
    """The folder of a key."""
    return cache_root() / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def touch(folder: Path) -> None:
    """Note that a run uses the class images in `folder`, if there are any: those that are used go last."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # whoever writes there tells of it
        os.utime(folder)


def trim(most: float, in_use: Callable[[dict[str, Any]], bool]) -> None:
    """Remove class images until all take at most `most` bytes, those first that were used longest ago; none of a key
    that is `in_use`, and none that were used within the hour, maybe by another program's run."""
    clear_leftovers(cache_root())
    used = {path: path.stat().st_mtime for path in cache_root().glob("[!.]*") if path.is_dir()}
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in used}
    excess = sum(sizes.values()) - most
    for path in sorted(used, key=used.__getitem__):
        if excess > 0 and time.time() - used[path] > KEPT_SECONDS and not in_use(_read_key(path)):
            aside = hidden_name(path, "deleted")
            os.replace(path, aside)  # at once for whoever looks
            shutil.rmtree(aside, ignore_errors=True)
            excess -= sizes[path]


def _read_key(folder: Path) -> dict[str, Any]:
    try:
        key = json.loads((folder / "key.json").read_bytes())
    except (OSError, ValueError):
        key = None
    return key if isinstance(key, dict) else {}


def missing_images(folder: Path, count: int) -> list[int]:
    """Which of the first `count` class images are not in `folder` yet."""
    return [i for i in range(count) if not _path(folder, i).is_file()]


def class_images(folder: Path, count: int) -> list[Path]:
    """The files of the first `count` class images."""
    return [_path(folder, i) for i in range(count)]


def drop_damaged(folder: Path, count: int, side: int) -> list[str]:
    """Remove those of the first `count` class images that can't be trained on, so that they are drawn again from their
    seeds; a sentence on each. `side` is theirs in pixels."""
    told = []
    for path in class_images(folder, count):
        if path.is_file() and (why := why_damaged(path, side)):
            path.unlink()
            told.append(f"Class image {path.name} {why}, so it is made again.")
    return told


def why_damaged(path: Path, side: int) -> str:
    """What keeps a picture from being a class image of `side` pixels, in words that follow its name; "" if nothing.

    Raises `OSError` where the disk refuses to read it.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.size != (side, side):
                return f"has {image.width} × {image.height} pixels"
            if image.mode != "RGB":
                return f"has colours of another kind ({image.mode})"
            return "is blank" if is_blank(image) else ""
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's, of damaged files
        if isinstance(error, OSError) and error.errno:
            raise
        return "is damaged"


# ------------------------------------------------------------------------------------------------------- their latents


def latents_file(folder: Path, count: int, flip: bool, precision: str, device: str) -> Path:
    """Where the latents of the first `count` class images lie, beside them: the name is a hash of all that shapes them
    (the pictures, mirrored or not, and with what they are encoded) but for the base model, which is the folder's."""
    digest = hashlib.sha256(f"{flip} {precision} {device}\n".encode())
    for path in class_images(folder, count):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return folder / f"latents-{digest.hexdigest()[:24]}.safetensors"


def save_latents(file: Path, mean: Tensor, std: Tensor) -> None:
    """Keep the means and standard deviations of class images' latents, (N, V, C, h, w) each, for other runs."""
    with atomic_file(file) as partial:
        save_file({"mean": mean.contiguous(), "std": std.contiguous()}, partial)


def read_latents(file: Path, pictures: int, variants: int) -> tuple[Tensor, Tensor] | None:
    """What `save_latents` kept of so many pictures and variants of each; None where nothing is kept.

    Raises `ModelError` where that is damaged.
    """
    if not file.is_file():
        return None
    try:
        kept = load_file(file)
        mean, std = kept["mean"], kept["std"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"Class images' latents ({file.name}) are damaged: {first_line(error)}.") from None
    fits = mean.ndim == 5 and mean.shape[:2] == (pictures, variants) and mean.shape == std.shape
    if not fits or not (mean.isfinite().all() and std.isfinite().all()) or mean.dtype != torch.float32:
        raise ModelError(f"Class images' latents ({file.name}) are not those of {pictures} pictures.")
    return mean, std


# ------------------------------------------------------------------------------------------------------------- drawing


def draw_class_images(
    pipe: DiffusionPipeline, config: Config, folder: Path, key: dict[str, Any], dtype: torch.dtype | None
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


def write_key(folder: Path, key: dict[str, Any]) -> None:
    """Make the folder of a key, with the key in words in it."""
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
