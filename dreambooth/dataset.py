"""The training examples: everything encoded once, and example number n a pure function of (seed, n).

An item carries `instance_images`, `instance_prompt_ids`, `instance_masks` and the same of the class, the images in
cached form: a sample of their latents' posterior, (C, h, w), scaled as the denoiser takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dreambooth.config import Config
from dreambooth.cores import share_cores
from dreambooth.families import Family

ENCODE_BATCH = 8  # pictures encoded at once: the encoder's activations are its peak, and more gains no speed on a CPU

INSTANCE, CLASS, CROPS, DROPOUT, SUBJECTS = range(5)
"""Streams of randomness, so that leaving class images out changes nothing for the photos (paired comparisons)."""


def generator(seed: int, stream: int, n: int) -> torch.Generator:
    """The CPU generator of item n of a stream; equal arguments give equal numbers on every machine."""
    state = np.random.SeedSequence([seed, stream, n]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


LEAST_SHOWN = 0.9
"""Of a picture that is transparent somewhere, the tightest crop as a share of its side. Source: ours; it cuts at most a
fifth off the disc of a photo beside another (`photos.side_by_side`). One of half the side can miss both discs, and a
picture of which nothing is learned has no loss."""


@dataclass(frozen=True)
class Encoded:
    """Pictures encoded once: N pictures, V variants (crops, flips) of each."""

    mean: Tensor
    """(N, V, C, h, w) float32 posterior means of the scaled latents."""
    std: Tensor
    """(N, V, C, h, w) posterior standard deviations."""
    prompt_ids: Tensor
    """(N, tokens) int64."""
    mask: Tensor
    """(N, V, h, w): 1 where a picture is learned, 0 where it was transparent."""

    groups: tuple[int, ...] = ()
    """How many of the pictures show each subject, in their order; the ones after them show several. Empty for one."""
    together: float = 0.0
    """The share of the examples that show several subjects."""

    def example(self, n: int, seed: int, stream: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (C, h, w), prompt ids and mask (h, w) of the n-th example.

        Of several subjects each has as many examples, however many its pictures; these are shuffled anew each epoch,
        and the variant is random.
        """
        variants = self.mean.shape[1]
        i = self._picture(n, seed, stream)
        g = generator(seed, stream, n)
        v = int(torch.randint(variants, (), generator=g))
        sample = self.mean[i, v] + self.std[i, v] * torch.randn(self.mean.shape[2:], generator=g)
        return sample, self.prompt_ids[i], self.mask[i, v]

    def _picture(self, n: int, seed: int, stream: int) -> int:
        """Which picture the n-th example shows."""
        if len(self.groups) < 2:
            return _shuffled(len(self.mean), n, lambda epoch: generator(seed, stream, -1 - epoch & 0xFFFFFFFF))
        # Those of several come at even distances, and of the others each subject once in every round.
        several = int(n * self.together)
        if int((n + 1) * self.together) > several:
            group, turn, first = len(self.groups), several, sum(self.groups)
            count = len(self.mean) - first
        else:
            subjects, alone = len(self.groups), n - several
            group = _shuffled(subjects, alone, lambda turn: generator(seed, SUBJECTS, turn))
            turn, first, count = alone // subjects, sum(self.groups[:group]), self.groups[group]
        return first + _shuffled(count, turn, lambda epoch: generator(seed, SUBJECTS + 1 + group, epoch))


def _shuffled(count: int, n: int, of_epoch: Callable[[int], torch.Generator]) -> int:
    """The n-th of an endless row of numbers below `count`, each once an epoch."""
    epoch, place = divmod(n, count)
    return int(torch.randperm(count, generator=of_epoch(epoch))[place])


class DreamBoothDataset(Dataset):
    """`size` examples of the subject, each with one of the class where class images are used."""

    def __init__(self, instance: Encoded, prior: Encoded | None, seed: int, size: int):
        self.instance, self.prior, self.seed, self.size = instance, prior, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        if not 0 <= n < self.size:
            raise IndexError(n)
        item = dict(
            zip(
                ("instance_images", "instance_prompt_ids", "instance_masks"),
                self.instance.example(n, self.seed, INSTANCE),
            )
        )
        if self.prior is not None:
            item |= zip(("class_images", "class_prompt_ids", "class_masks"), self.prior.example(n, self.seed, CLASS))
        return item

    def batch(self, number: int, size: int) -> dict[str, Tensor]:
        """Items `number · size` up to the next batch, collated: images (B, C, h, w), ids (B, tokens), masks."""
        return default_collate([self[n] for n in range(number * size, (number + 1) * size)])


def photo_variants(image: Image.Image, config: Config, number: int) -> Tensor:
    """(V, 3, H, W) pixels in [-1, 1]: the prepared photo, slightly tighter crops of it, then all of them mirrored; (V,
    4, H, W) of one that is transparent somewhere.

    That shows two subjects, whose prompt names the left one first: it is never mirrored, and has as many further crops
    instead. None of its crops is tighter than `LEAST_SHOWN`.
    """
    plain, train = _pixels(image), config.train
    side, variants, together = plain.shape[-1], [plain], len(plain) == 4
    tightest = max(train.crop_scale, LEAST_SHOWN) if together else train.crop_scale
    g = generator(config.seed, CROPS, number)
    for _ in range(train.crops_per_photo * (2 if train.flip and together else 1) - 1):
        scale, *place = torch.rand(3, generator=g).tolist()
        size = round(side * (tightest + (1 - tightest) * scale))
        y, x = (int(p * (side - size + 1)) for p in place)
        crop = plain[:, y : y + size, x : x + size][None]
        variants.append(F.interpolate(crop, size=(side, side), mode="bicubic", antialias=True)[0].clamp(-1, 1))
    stacked = torch.stack(variants)
    return torch.cat([stacked, stacked.flip(-1)]) if train.flip and not together else stacked


def class_variants(path: Path, config: Config) -> Tensor:
    """(V, 3, H, W) pixels in [-1, 1] of a class image: itself and, if photos are mirrored, its mirror image."""
    with Image.open(path) as image:
        plain = _pixels(image.convert("RGB"))[None]
    return torch.cat([plain, plain.flip(-1)]) if config.train.flip else plain


def encode(
    pipe: DiffusionPipeline, family: Family, pictures: Iterator[Tensor], prompts: list[str], dtype: torch.dtype | None
) -> Encoded:
    """Encode pictures, each (V, 3 or 4, H, W), with one prompt each; on the pipeline's device, kept on the CPU."""
    device = pipe.vae.device
    means, stds, masks = [], [], []
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        for variants in pictures:
            parts = [family.encode_images(pipe, part[:, :3].to(device)) for part in variants.split(ENCODE_BATCH)]
            means.append(torch.cat([mean for mean, _ in parts]).float().cpu())
            stds.append(torch.cat([std for _, std in parts]).float().cpu())
            masks.append(_mask(variants, means[-1].shape[-2:]))
            share_cores()
    # clone: inference tensors can't take part in training
    mean, std, mask = (torch.stack(tensors).clone() for tensors in (means, stds, masks))
    return Encoded(mean, std, family.tokenize(pipe, prompts), mask)


def _mask(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(V, h, w): 1 where at least half of what a latent position covers is opaque."""
    if pictures.shape[1] == 3:
        return torch.ones(len(pictures), *size)
    return (F.interpolate(pictures[:, 3:], size=size, mode="area")[:, 0] >= 0).float()


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 127.5 - 1
