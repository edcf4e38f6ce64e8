"""What a run is trained on: its photos and class images, prepared, and encoded once."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, cast

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.config.subject import together_prompt
from dreambooth.errors import ModelError, RunError
from dreambooth.events import Event
from dreambooth.families.family import Family
from dreambooth.families.tokens import Reader
from dreambooth.files import atomic_folder
from dreambooth.photos.captions import caption_photos, sources_of
from dreambooth.photos.coach import coach
from dreambooth.photos.folder import find_photos, passed_over
from dreambooth.photos.prepare import prepare_photos, write_prepared
from dreambooth.photos.sheets import side_by_side
from dreambooth.training import prior
from dreambooth.training.dataset import (
    Encoded,
    Prompts,
    class_variants,
    encode,
    prompt_ids,
)

TOGETHER = "together"
"""Of a run's photos, the folder with pictures of two subjects side by side."""
SOURCES = "sources.json"
"""Of a run's photos, the file that tells what they were made of: for each subject what `captions.sources_of` gives."""


def encode_photos(
    pipe: DiffusionPipeline,
    family: Family,
    pictures: Iterator[Tensor],
    prompts: Sequence[Prompts],
    dtype: torch.dtype | None,
    before: int,
    should_stop: Callable[[], bool],
) -> Generator[Event, None, Encoded | None]:
    """Encode after `before` others, telling how many there are; None where it was told to stop."""
    encoding = encode(pipe, family, pictures, prompts, dtype)
    while True:
        try:
            done = next(encoding)
        except StopIteration as end:
            return cast(Encoded | None, end.value)
        yield events.Progress(before + done)
        if should_stop():
            return None


class Classes(NamedTuple):
    """The class images of one class prompt."""

    paths: list[Path]
    prompt: str
    file: Path
    """Where their latents are kept."""
    latents: tuple[Tensor, Tensor] | None
    """Their means and standard deviations as another run encoded them, (N, V, C, h, w) each."""


def known_classes(
    folder: Path, prompt: str, config: Config, precision: str, device: torch.device
) -> Generator[Event, None, Classes]:
    """The class images of a prompt, and their latents where another run has encoded them and kept them whole."""
    count, flip = config.prior.num_images, config.train.flip
    file, latents = prior.latents_file(folder, count, flip, precision, device.type), None
    try:
        latents = prior.read_latents(file, count, 1 + flip)
    except ModelError as error:
        yield events.Warning(f"{error.message} They are made again.")
    return Classes(prior.class_images(folder, count), prompt, file, latents)


def encode_classes(
    pipe: DiffusionPipeline,
    family: Family,
    side: Classes,
    config: Config,
    dtype: torch.dtype | None,
    before: int,
    should_stop: Callable[[], bool],
) -> Generator[Event, None, Encoded | None]:
    """The class images of a prompt encoded, by another run if one has; None where it was told to stop."""
    prompts = [side.prompt] * len(side.paths)
    if side.latents is None:
        pictures = (class_variants(path, config) for path in side.paths)
        encoded = yield from encode_photos(pipe, family, pictures, prompts, dtype, before, should_stop)
        if encoded:
            prior.save_latents(side.file, encoded.mean, encoded.std)
        return encoded
    mean, std = side.latents
    ids = prompt_ids(pipe, family, prompts, mean.shape[1])
    return Encoded(mean, std, ids, torch.ones_like(mean[:, :, 0]))


def keep_photos(config: Config, run: Path, resolution: int, reader: Reader) -> Iterator[Event]:
    """Write `photos/`: 00.png, 01.png, … and beside each, in a text file, the prompt it is trained with.

    A second subject's photos are in `photos/subject-2`, and so on; pictures of two side by side in `photos/together`.
    """
    by_subject = []
    with atomic_folder(run / "photos") as folder:
        for number, subject in enumerate(config.subjects, 1):
            paths = find_photos(subject.photos)
            prompts, remarks = caption_photos(subject, paths)
            plain = subject.fill(subject.instance_prompt)
            remarks += reader.check_captions({p: text for p, text in zip(paths, prompts, strict=True) if text != plain})
            prepared = prepare_photos(paths, resolution, subject.crops)
            others = [other.photos for other in config.subjects if other is not subject]
            for remark in (*passed_over(subject.photos, others), *remarks, *(f.message for f in coach(prepared))):
                yield events.Warning(remark)
            place = folder if number == 1 else folder / f"subject-{number}"
            place.mkdir(exist_ok=True)
            for image, prompt in zip(write_prepared(prepared, place), prompts, strict=True):
                image.with_suffix(".txt").write_text(prompt, encoding="utf-8")
            by_subject.append([photo.image for photo in prepared])
        sources = [sources_of(subject) for subject in config.subjects]
        (folder / SOURCES).write_text(json.dumps(sources, indent=1), encoding="utf-8")
        for number, (picture, prompt) in enumerate(_combinations(config, by_subject)):
            image = folder / TOGETHER / f"{number:02d}.png"
            image.parent.mkdir(exist_ok=True)
            picture.save(image)
            image.with_suffix(".txt").write_text(prompt, encoding="utf-8")


def _combinations(config: Config, photos: list[list[Image.Image]]) -> Iterator[tuple[Image.Image, str]]:
    """Pictures of two subjects side by side, with their prompts: `train.side_by_side` of them all, if each subject had
    as many photos as the one that has most.

    Whoever is left comes first in the prompt, each as often, so that looks go with words and not with places.
    """
    pairs = list(combinations(range(len(photos)), 2))
    share = config.train.side_by_side
    for number in range(round(share / (1 - share) * len(photos) * max(map(len, photos))) if pairs else 0):
        k, (i, j) = number // len(pairs), pairs[number % len(pairs)]
        left, right = photos[i][k % len(photos[i])], photos[j][(k + k // len(photos[j])) % len(photos[j])]
        if k % 2:
            left, right, i, j = right, left, j, i
        yield side_by_side(left, right), together_prompt([config.subjects[i], config.subjects[j]])


def photos_and_prompts(run: Path) -> tuple[list[Image.Image], list[str], tuple[int, ...]]:
    """The photos with their prompts, and how many each subject has; after them come the pictures of several."""
    folders = (run / "photos", *sorted((run / "photos").glob("*/")))  # `together` is the last
    by_folder = {folder.name: sorted(folder.glob("*.png")) for folder in folders}
    files = [path for paths in by_folder.values() for path in paths]
    prompts = [path.with_suffix(".txt").read_text(encoding="utf-8") for path in files]
    groups = tuple(len(paths) for name, paths in by_folder.items() if name != TOGETHER)
    photos: list[Image.Image] = []
    for path in files:
        try:
            photos.append(Image.open(path))
            photos[-1].load()
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow says of damaged files
            if isinstance(error, OSError) and error.errno:
                raise
            hint = f"Remove {run / 'photos'} and resume: the photos are prepared anew."
            raise RunError(f"{path.name} of the photos that the run keeps is damaged.", hint) from None
    return photos, prompts, groups
