"""The training examples: everything encoded once, and example number n a pure function of (seed, n).

An item carries `instance_images`, `instance_prompt_ids`, `instance_masks` and the same of the class, the images in
cached form: a sample of their latents' posterior, (C, h, w), scaled as the denoiser takes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dreambooth.config.sections import LARGE_WORDS, SMALL_WORDS
from dreambooth.config.settings import Config
from dreambooth.cores import share_cores
from dreambooth.families.family import Family

ENCODE_BATCH = 8  # pictures encoded at once: the encoder's activations are its peak, and more gains no speed on a CPU

INSTANCE, CLASS, CROPS, DROPOUT, SIZES, SUBJECTS = range(6)
"""Streams of randomness, so that leaving class images out changes nothing for the photos (paired comparisons)."""


def generator(seed: int, stream: int, n: int) -> torch.Generator:
    """The CPU generator of item n of a stream; equal arguments give equal numbers on every machine."""
    state = np.random.SeedSequence([seed, stream, n]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


Prompts = str | Sequence[Sequence[str]]
"""A picture's prompt, or of each of its variants those of which one is drawn for each example."""

LEAST_SHOWN = 0.9
"""Of a picture that is transparent somewhere, the tightest crop as a share of its side. Source: ours; it cuts at most a
fifth off the disc of a photo beside another (`photos.side_by_side`). One of half the side can miss both discs, and a
picture of which nothing is learned has no loss."""


@dataclass(frozen=True)
class Encoded:
    """Pictures encoded once: N pictures, V variants (crops, flips) of each, P prompts of each of these."""

    mean: Tensor
    """(N, V, C, h, w) float32 posterior means of the scaled latents."""
    std: Tensor
    """(N, V, C, h, w) posterior standard deviations."""
    prompt_ids: Tensor
    """(N, V, P, tokens) int64."""
    mask: Tensor
    """(N, V, h, w): 1 where a picture is learned, 0 where it was transparent."""
    groups: tuple[int, ...] = ()
    """How many of the pictures show each subject, in their order; the ones after them show several. Empty for one."""
    together: float = 0.0
    """The share of the examples that show several subjects."""

    @classmethod
    def join(cls, parts: Sequence[Encoded]) -> Encoded:
        """The pictures of all parts, which have as many variants and prompts."""
        mean, std, ids, mask = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "std", "prompt_ids", "mask")
        )
        return cls(mean, std, ids, mask)

    def example(self, n: int, seed: int, stream: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (C, h, w), prompt ids and mask (h, w) of the n-th example.

        Of several subjects each has as many examples, however many its pictures; these are shuffled anew each epoch,
        the variant is random, and so is which of its prompts it has.
        """
        variants = self.mean.shape[1]
        i = self._picture(n, seed, stream)
        g = generator(seed, stream, n)
        v = int(torch.randint(variants, (), generator=g))
        sample = self.mean[i, v] + self.std[i, v] * torch.randn(self.mean.shape[2:], generator=g)
        prompts = self.prompt_ids[i, v]
        p = int(torch.randint(len(prompts), (), generator=g)) if len(prompts) > 1 else 0
        return sample, prompts[p], self.mask[i, v]

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


class DreamBoothDataset(Dataset[dict[str, Tensor]]):
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
        batch: dict[str, Tensor] = default_collate([self[n] for n in range(number * size, (number + 1) * size)])
        return batch


SMALLEST, LARGE = 1 / 3, (1.2, 1.4)
"""Sides of a photo that is shown smaller, down to, and larger, from and to, as shares of the picture's; all alike
likely. Source: Kumari et al. 2023 (arXiv 2212.04488), section 3.3 and its code."""
SAID_SMALL = 0.6
"""The side from which on the prompt does not say that it is small. Source: the same."""
GROUND = 0.0  # mid-grey


def sizes(config: Config, number: int) -> list[float]:
    """The sides of the variants of photo `number`, mirrored ones aside, with `train.vary_size`: of three, two smaller
    and one larger than the picture's."""
    g = generator(config.seed, SIZES, number)
    low, high = LARGE
    at = torch.rand(config.train.crops_per_photo, generator=g).tolist()
    return [low + (high - low) * x if k % 3 == 2 else SMALLEST + (1 - SMALLEST) * x for k, x in enumerate(at)]


def prompts_of_variants(caption: str, together: bool, config: Config, number: int) -> list[tuple[str, ...]]:
    """The prompts of each of `photo_variants`, by the photo's caption: one of them is drawn for each example.

    A picture of two subjects keeps its size, so that its prompt says nothing of it.
    """
    prompts, train = config.prompts_of(caption), config.train
    if not train.vary_size or together:
        return [prompts] * (train.crops_per_photo * (1 + train.flip))
    said = [SMALL_WORDS if side < SAID_SMALL else LARGE_WORDS if side > 1 else () for side in sizes(config, number)]
    return [tuple(f"{word} {p}" for p in prompts for word in words) or prompts for words in said] * (1 + train.flip)


def photo_variants(image: Image.Image, config: Config, number: int) -> Tensor:
    """(V, 3, H, W) pixels in [-1, 1]: the prepared photo, slightly tighter crops of it, then all of them mirrored; (V,
    4, H, W) of one that is transparent somewhere, and with `train.vary_size` of all.

    That shows two subjects, whose prompt names the left one first: it is never mirrored, and has as many further crops
    instead. None of its crops is tighter than `LEAST_SHOWN`.
    """
    plain, train = _pixels(image), config.train
    together = len(plain) == 4
    if train.vary_size and not together:
        stacked = _of_sizes(plain, config, number)
    else:
        further = train.crops_per_photo * (2 if train.flip and together else 1) - 1
        tightest = max(train.crop_scale, LEAST_SHOWN) if together else train.crop_scale
        g = generator(config.seed, CROPS, number)
        stacked = torch.stack([plain, *_crops(plain, further, tightest, g)])
    return torch.cat([stacked, stacked.flip(-1)]) if train.flip and not together else stacked


def _crops(plain: Tensor, count: int, tightest: float, g: torch.Generator) -> Iterator[Tensor]:
    for _ in range(count):
        scale, *place = torch.rand(3, generator=g).tolist()
        yield _cropped(plain, tightest + (1 - tightest) * scale, place)


def _cropped(plain: Tensor, share: float, place: Sequence[float]) -> Tensor:
    """`share` of the picture's side, from `place` (0 to 1) of what can be chosen, as large as the whole."""
    side = plain.shape[-1]
    size = round(side * share)
    y, x = (int(p * (side - size + 1)) for p in place)
    return _resized(plain[:, y : y + size, x : x + size], side)


def _of_sizes(plain: Tensor, config: Config, number: int) -> Tensor:
    """(V, 4, H, W): the photo at each of its `sizes`; the ground about a smaller one is transparent, and so is the edge
    of the photo, into which the encoder mixes the ground."""
    side, variants = plain.shape[-1], []
    g = generator(config.seed, CROPS, number)
    edge = -(-side // 64)  # a latent of Stable Diffusion's at 512 pixels, as in the reference
    for share in sizes(config, number):
        place = torch.rand(2, generator=g).tolist()
        if share > 1:
            shown = torch.cat([_cropped(plain, 1 / share, place), torch.ones(1, side, side)])
        else:
            size = round(side * share)
            y, x = (int(p * (side - size + 1)) for p in place)
            shown = torch.cat([torch.full_like(plain, GROUND), torch.full((1, side, side), -1.0)])
            shown[:3, y : y + size, x : x + size] = _resized(plain, size)
            shown[3, y + edge : y + size - edge, x + edge : x + size - edge] = 1
        variants.append(shown)
    return torch.stack(variants)


def _resized(picture: Tensor, side: int) -> Tensor:
    return F.interpolate(picture[None], size=(side, side), mode="bicubic", antialias=True)[0].clamp(-1, 1)


def class_variants(path: Path, config: Config) -> Tensor:
    """(V, 3, H, W) pixels in [-1, 1] of a class image: itself and, if photos are mirrored, its mirror image."""
    with Image.open(path) as image:
        plain = _pixels(image.convert("RGB"))[None]
    return torch.cat([plain, plain.flip(-1)]) if config.train.flip else plain


def encode(
    pipe: DiffusionPipeline,
    family: Family,
    pictures: Iterable[Tensor],
    prompts: Sequence[Prompts],
    dtype: torch.dtype | None,
) -> Generator[int, None, Encoded]:
    """Encode pictures, each (V, 3 or 4, H, W), on the pipeline's device, kept on the CPU; yields how many are encoded
    after each, and returns them with their prompts: of each picture one, or those of each of its variants."""
    device = pipe.vae.device
    means, stds, masks = [], [], []
    for variants in pictures:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            parts = [family.encode_images(pipe, part[:, :3].to(device)) for part in variants.split(ENCODE_BATCH)]
            means.append(torch.cat([mean for mean, _ in parts]).float().cpu())
            stds.append(torch.cat([std for _, std in parts]).float().cpu())
            height, width = means[-1].shape[-2:]
            masks.append(_mask(variants, (height, width)))
            share_cores()
        yield len(means)
    # clone: inference tensors can't take part in training
    mean, std, mask = (torch.stack(tensors).clone() for tensors in (means, stds, masks))
    return Encoded(mean, std, prompt_ids(pipe, family, prompts, mean.shape[1]), mask)


def prompt_ids(pipe: DiffusionPipeline, family: Family, prompts: Sequence[Prompts], variants: int) -> Tensor:
    """(N, V, P, tokens); a variant with fewer prompts than P has them several times."""
    rows = [[(p,)] * variants if isinstance(p, str) else p for p in prompts]
    most = math.lcm(*(len(own) for row in rows for own in row))
    every = [own[k % len(own)] for row in rows for own in row for k in range(most)]
    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(every))}
    ids = family.tokenize(pipe, list(distinct))
    return ids[[distinct[prompt] for prompt in every]].view(len(rows), variants, most, -1)


def _mask(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(V, h, w): 1 where at least half of what a latent position covers is opaque."""
    if pictures.shape[1] == 3:
        return torch.ones(len(pictures), *size)
    return (F.interpolate(pictures[:, 3:], size=size, mode="area")[:, 0] >= 0).float()


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 127.5 - 1
