"""The two encoders that measure toybox pictures: a contrastive CLIP, and a ViT taught without labels (DINO)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from dreambooth.toybox.pretrain.data import CAPTIONS_PER_PICTURE, SMALL, load_captions, load_small_pictures
from dreambooth.toybox.pretrain.fit import fit
from dreambooth.toybox.tokenizer import MAX_LENGTH, build_tokenizer

PROTOTYPES = 1024


def standardise(images: np.ndarray, mean: tuple, std: tuple, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float: in 0..1, less `mean`, over `std`, as the published processors do."""
    pixels = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 255
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)


def random_crops(pixels: Tensor, side: int, area: tuple[float, float], rng: torch.Generator) -> Tensor:
    """One square crop of each of (B, 3, h, w), covering a part in `area` of it, resampled to (B, 3, side, side)."""
    draw = torch.rand(len(pixels), 3, generator=rng, device=pixels.device)
    scale = (area[0] + (area[1] - area[0]) * draw[:, 0]).sqrt()
    shift = (2 * draw[:, 1:] - 1) * (1 - scale[:, None])
    theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale, scale, shift
    grid = F.affine_grid(theta, [len(pixels), 3, side, side], align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False, padding_mode="reflection")


# -------------------------------------------------------------------------------------------------------------- CLIP


def new_clip(vocabulary_size: int) -> CLIPModel:
    """A stock `CLIPModel`, 1.6 M parameters: 8 px patches of 64 px pictures, the base model's tokenizer."""
    shared = dict(hidden_size=128, intermediate_size=512, num_attention_heads=4)
    text = dict(
        **shared, num_hidden_layers=2, vocab_size=vocabulary_size, max_position_embeddings=MAX_LENGTH,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    vision = dict(**shared, num_hidden_layers=5, image_size=SMALL, patch_size=8)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def train_clip(work: Path, samples: int, device: torch.device, batch: int = 128) -> None:
    """Pictures beside their captions: each must find its own among the batch's, both ways (Radford et al., 2021)."""
    tokenizer = build_tokenizer(work / "tokenizer")
    pictures = load_small_pictures(work)
    ids = tokenizer(load_captions(work), padding="max_length", truncation=True, return_tensors="pt").input_ids
    captions = ids.view(-1, CAPTIONS_PER_PICTURE, ids.shape[1])
    torch.manual_seed(0)
    clip = new_clip(len(tokenizer)).to(device)

    def loss(numpy_rng, torch_rng, progress):
        rows = np.sort(numpy_rng.choice(len(pictures), size=batch, replace=False))
        pixels = standardise(pictures[rows], OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, device)
        pixels = random_crops(pixels, SMALL, (0.7, 1.0), torch_rng)
        chosen = captions[rows, numpy_rng.integers(CAPTIONS_PER_PICTURE, size=batch)].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            out = clip(pixel_values=pixels, input_ids=chosen)
        logits = out.logits_per_image.float()
        own = torch.arange(batch, device=device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    settings = dict(samples=samples, batch=batch, lr=2e-3, final_lr=2e-5, decay_from=0.4)
    fit("clip", clip, loss, work, **settings).save_pretrained(work / "clip")


# -------------------------------------------------------------------------------------------------------------- DINO


def new_vit() -> ViTModel:
    """A stock `ViTModel`, 0.8 M parameters: 8 px patches of 64 px pictures."""
    config = ViTConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=SMALL,
        patch_size=8,
    )  # fmt: skip
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


def views(pixels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two 64 px and four 32 px views of each of (B, 3, 64, 64): (2·B, 3, 64, 64) and (4·B, 3, 32, 32).

    Crops, mirroring and light, but no change of hue: colour is part of who a subject is. Half of the large views show
    the middle of their picture on another picture's margin, so that the place says little (background swaps, Ryali et
    al., arXiv 2103.12719, with an ellipse for the mask since nothing may tell what the subject is).
    """
    b, device = len(pixels), pixels.device
    axis = torch.linspace(-1, 1, SMALL, device=device)

    def moved(count: int, side: int, area: tuple[float, float]) -> Tensor:
        crops = []
        for _ in range(count):
            source = pixels
            if side == SMALL:
                radius = 0.55 + 0.3 * torch.rand(b, 2, 1, 1, generator=rng, device=device)
                y, x = (axis.view(1, -1, 1) - 0.05) / radius[:, 0], axis.view(1, 1, -1) / radius[:, 1]
                outside = ((x**2 + y**2).sqrt() - 1).mul(8).sigmoid().unsqueeze(1)
                swapped = torch.rand(b, 1, 1, 1, generator=rng, device=device) < 0.5
                source = torch.where(swapped, torch.lerp(pixels, pixels.roll(1, 0), outside), pixels)
            crop = random_crops(source, side, area, rng)
            draw = torch.rand(b, 3, 1, 1, generator=rng, device=device)
            crop = torch.where(draw[:, 0:1] < 0.5, crop, crop.flip(3))
            crops.append(crop * (0.8 + 0.4 * draw[:, 1:2]) + 0.4 * (draw[:, 2:3] - 0.5))
        return torch.cat(crops)

    return moved(2, SMALL, (0.4, 1.0)), moved(4, SMALL // 2, (0.1, 0.4))


def train_vit(work: Path, samples: int, device: torch.device, batch: int = 64) -> None:
    """Self-distillation without labels (DINO, Caron et al., 2021): small views must say what the teacher says of large.

    The teacher is the student's moving average; its answers are centred and sharpened so that it can't collapse.
    """
    pictures = load_small_pictures(work)
    torch.manual_seed(0)
    student = nn.ModuleDict({"vit": new_vit(), "head": DinoHead()})
    teacher = nn.ModuleDict({"vit": new_vit(), "head": DinoHead()}).requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    model = nn.ModuleDict({"student": student, "teacher": teacher}).to(device)
    model.register_buffer("centre", torch.zeros(PROTOTYPES, device=device))

    def answers(net: nn.ModuleDict, pixels: Tensor) -> Tensor:
        out = net["vit"](pixel_values=pixels, interpolate_pos_encoding=pixels.shape[-1] != SMALL)
        return net["head"](out.last_hidden_state[:, 0])

    def loss(numpy_rng, torch_rng, progress):
        rows = np.sort(numpy_rng.choice(len(pictures), size=batch, replace=False))
        pixels = standardise(pictures[rows], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, device)
        large, small = views(pixels, torch_rng)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                raw = answers(teacher, large)
            said = torch.cat([answers(student, large), answers(student, small)])
        target = ((raw - model.centre) / 0.04).softmax(1).view(2, batch, -1)
        model.centre.lerp_(raw.mean(0), 0.1)
        log_said = (said / 0.1).log_softmax(1).view(6, batch, -1)
        pairs = [(t, s) for t in range(2) for s in range(6) if t != s]
        return -torch.stack([(target[t] * log_said[s]).sum(1).mean() for t, s in pairs]).mean()

    @torch.no_grad()
    def follow(progress: float) -> None:
        momentum = 1 - 0.01 * (1 - progress)  # 0.99 to 1
        torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)

    settings = dict(samples=samples, batch=batch, lr=1e-3, final_lr=1e-5, decay_from=0.3, weight_decay=0.04)
    trained = fit("vit", model, loss, work, after_step=follow, **settings)
    trained["teacher"]["vit"].save_pretrained(work / "vit")
