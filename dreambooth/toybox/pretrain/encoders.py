"""The two encoders that measure toybox pictures: a contrastive CLIP, and a ViT taught without labels (DINO)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from dreambooth.toybox.pretrain.data import CAPTIONS_PER_PICTURE, SMALL, load_captions, load_small_pictures
from dreambooth.toybox.pretrain.fit import fit
from dreambooth.toybox.tokenizer import MAX_LENGTH, build_tokenizer

PROTOTYPES = 4096
STANDS_OUT = 0.45  # standardised; a tenth of the range of a channel
PLAIN = 0.11  # RMS, standardised: of plain walls 0.03 to 0.1, of any other place more (looked at)
KOLEO = 0.1  # its weight. Source: DINOv2 (Oquab et al., 2023)


def standardise(images: np.ndarray, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float: in 0..1, less `mean`, over `std`, as the published processors do."""
    pixels = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 255
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)


def random_crops(
    pixels: Tensor, side: int, area: tuple[float, float], rng: torch.Generator, reach: float = 1.0
) -> Tensor:
    """One square crop of each of (B, 3, h, w), covering a part in `area` of it, resampled to (B, 3, side, side).

    Their middles lie anywhere for a `reach` of one, all in the picture's middle for zero.
    """
    draw = torch.rand(len(pixels), 3, generator=rng, device=pixels.device)
    scale = (area[0] + (area[1] - area[0]) * draw[:, 0]).sqrt()
    shift = (2 * draw[:, 1:] - 1) * (1 - scale[:, None]) * reach
    theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale, scale, shift
    grid = F.affine_grid(theta, [len(pixels), 3, side, side], align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False, padding_mode="reflection")


# -------------------------------------------------------------------------------------------------------------- CLIP


def new_clip(vocabulary_size: int) -> CLIPModel:
    """A stock `CLIPModel`, 1.6 M parameters: 8 px patches of 64 px pictures, the base model's tokenizer."""
    shared = dict(hidden_size=128, intermediate_size=512, num_attention_heads=4)
    text = dict(
        **shared,
        num_hidden_layers=2,
        vocab_size=vocabulary_size,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vision = dict(**shared, num_hidden_layers=5, image_size=SMALL, patch_size=8)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def train_clip(work: Path, samples: int, device: torch.device, batch: int = 128) -> None:
    """Pictures beside their captions: each must find its own among the batch's, both ways (Radford et al., 2021)."""
    tokenizer = build_tokenizer(work / "tokenizer")
    pictures = load_small_pictures(work)
    ids = tokenizer(load_captions(work), padding="max_length", truncation=True, return_tensors="pt").input_ids
    captions = ids.view(-1, CAPTIONS_PER_PICTURE, ids.shape[1])
    torch.manual_seed(0)
    clip = new_clip(len(tokenizer))
    clip.to(device)  # type: ignore[arg-type]  # its decorator hides the signature

    def loss(numpy_rng: np.random.Generator, torch_rng: torch.Generator, progress: float) -> Tensor:
        rows = np.sort(numpy_rng.choice(len(pictures), size=batch, replace=False))
        pixels = standardise(pictures[rows], OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, device)
        pixels = random_crops(pixels, SMALL, (0.7, 1.0), torch_rng)
        chosen = captions[rows, numpy_rng.integers(CAPTIONS_PER_PICTURE, size=batch)].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            out = clip(pixel_values=pixels, input_ids=chosen)
        logits = out.logits_per_image.float()
        own = torch.arange(batch, device=device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    settings: dict[str, Any] = dict(samples=samples, batch=batch, lr=2e-3, final_lr=2e-5, decay_from=0.4)
    fit("clip", clip, loss, work, **settings).save_pretrained(work / "clip")


# -------------------------------------------------------------------------------------------------------------- DINO


def new_vit() -> ViTModel:
    """A stock `ViTModel`, 0.8 M parameters: 8 px patches of 64 px pictures."""
    config = ViTConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SMALL,
        patch_size=8,
    )
    return ViTModel(config, add_pooling_layer=False)


class DinoHead(nn.Module):
    """From the class token to scores for PROTOTYPES: an MLP, a bottleneck on the sphere, unit prototypes."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Linear(64, PROTOTYPES, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) to cosines (B, PROTOTYPES), float32 also under autocast: 0.04 divides them."""
        said = F.normalize(self.mlp(features).float(), dim=1)
        with torch.autocast(said.device.type, enabled=False):
            return F.linear(said, F.normalize(self.prototypes.weight, dim=1))


def _powers() -> tuple[Tensor, Tensor]:
    """Of the pixels of a SMALL × SMALL picture: the terms of a smooth surface, (P, 8), and which lie on its frame."""
    axis = torch.linspace(-1, 1, SMALL)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y, y**3, x * x * y], dim=-1).view(-1, 8)
    return terms, (torch.maximum(x.abs(), y.abs()) > 1 - 8 / SMALL).flatten()


def behind(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The smooth surface (B, 3, 64, 64) that fits each picture's frame best, and how badly it does (B,), as RMS."""
    terms, frame = (part.to(pixels.device) for part in _powers())
    flat = pixels.flatten(2)
    surface = flat[..., frame] @ torch.linalg.pinv(terms[frame]).T @ terms.T
    return surface.view_as(pixels), (surface - flat)[..., frame].square().mean((1, 2)).sqrt()


def views(pixels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two 64 px and four 32 px views of each of (B, 3, 64, 64): (2·B, 3, 64, 64) and (4·B, 3, 32, 32).

    Crops, mirroring and light, but no change of hue: colour is part of who a subject is. The place is none: in every
    view what stands out from the surface behind it is laid over another picture, whose own middle that picture's
    surface hides (background swaps, Ryali et al., arXiv 2103.12719). So only the subject is alike in two views.
    """
    b, device = len(pixels), pixels.device
    axis = torch.linspace(-1, 1, SMALL, device=device)
    surface, _ = behind(pixels)
    stands_out = ((pixels - surface).abs().amax(1, keepdim=True) > STANDS_OUT).float()
    middle = 1 - (((axis.view(-1, 1) / 0.9) ** 2 + (axis / 0.8) ** 2).sqrt() - 1).mul(8).sigmoid()
    hollow = torch.lerp(pixels, surface, middle)

    def draw(*shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=rng, device=device)

    def view(number: int, side: int, area: tuple[float, float], reach: float) -> Tensor:
        placed = torch.lerp(hollow.roll(1 + number, 0), pixels, stands_out * middle)
        crop = random_crops(placed, side, area, rng, reach)
        mirrored = torch.where(draw(1, 1, 1) < 0.5, crop, crop.flip(3))
        return mirrored * (0.8 + 0.4 * draw(1, 1, 1)) + 0.4 * (draw(1, 1, 1) - 0.5)

    large = [view(i, SMALL, (0.4, 1.0), 1.0) for i in range(2)]
    small = [view(i, SMALL // 2, (0.1, 0.4), 0.6) for i in range(2, 6)]
    return torch.cat(large), torch.cat(small)


def plain_pictures(pictures: np.ndarray) -> np.ndarray:
    """The rows of those before a plain wall, where what stands out is the subject and nothing else; else of all."""
    bad = []
    for start in range(0, len(pictures), 1000):
        part = pictures[start : start + 1000]
        bad.append(behind(standardise(part, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, torch.device("cpu")))[1])
    plain = np.flatnonzero(torch.cat(bad).numpy() < PLAIN)
    return plain if len(plain) else np.arange(len(pictures))


def koleo(features: Tensor) -> Tensor:
    """Minus the mean log distance of each of (B, D), on the sphere, to its nearest (Sablayrolles et al., 2019).

    It spreads a batch over the sphere, so that pictures of one class don't share one place (as in DINOv2).
    """
    unit = F.normalize(features, dim=1)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
    distances: Tensor = (unit - unit[nearest]).norm(dim=1)
    return -(distances + 1e-6).log().mean()


def train_vit(work: Path, samples: int, device: torch.device, batch: int = 64) -> None:
    """Self-distillation without labels (DINO, Caron et al., 2021): small views must say what the teacher says of large.

    The teacher is the student's moving average; its answers are centred and sharpened so that it can't collapse.
    """
    pictures = load_small_pictures(work)
    plain = plain_pictures(pictures)
    torch.manual_seed(0)
    student = nn.ModuleDict({"vit": new_vit(), "head": DinoHead()})
    teacher = nn.ModuleDict({"vit": new_vit(), "head": DinoHead()}).requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    model = nn.ModuleDict({"student": student, "teacher": teacher}).to(device)
    centre = torch.zeros(PROTOTYPES, device=device)
    model.register_buffer("centre", centre)

    def tokens(net: nn.ModuleDict, pixels: Tensor) -> Tensor:
        out = net["vit"](pixel_values=pixels, interpolate_pos_encoding=pixels.shape[-1] != SMALL)
        first: Tensor = out.last_hidden_state[:, 0]
        return first

    def loss(numpy_rng: np.random.Generator, torch_rng: torch.Generator, progress: float) -> Tensor:
        rows = numpy_rng.integers(len(pictures), size=batch)
        rows[::2] = numpy_rng.choice(plain, size=len(rows[::2]))
        pixels = standardise(pictures[rows], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, device)
        large, small = views(pixels, torch_rng)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                raw = teacher["head"](tokens(teacher, large))
            seen = tokens(student, large)
            said = torch.cat([student["head"](seen), student["head"](tokens(student, small))])
        target = ((raw - centre) / 0.04).softmax(1).view(2, batch, -1)
        centre.lerp_(raw.mean(0), 0.1)
        log_said = (said / 0.1).log_softmax(1).view(6, batch, -1)
        pairs = [(t, s) for t in range(2) for s in range(6) if t != s]
        alike = -torch.stack([(target[t] * log_said[s]).sum(1).mean() for t, s in pairs]).mean()
        return alike + KOLEO * torch.stack([koleo(half) for half in seen.float().chunk(2)]).mean()

    @torch.no_grad()
    def follow(progress: float) -> None:
        momentum = 1 - 0.02 * (1 - progress)  # 0.98 to 1
        torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)

    settings: dict[str, Any] = dict(
        samples=samples, batch=batch, lr=2e-3, final_lr=1e-5, decay_from=0.3, weight_decay=0.04
    )
    trained = fit("vit", model, loss, work, after_step=follow, **settings).get_submodule("teacher.vit")
    cast(ViTModel, trained).save_pretrained(work / "vit")
