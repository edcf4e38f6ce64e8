"""The autoencoder: pixels to 16 × 16 latents that a small UNet learns easily, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dreambooth.toybox import world
from dreambooth.toybox.pretrain.data import CHUNK, SIZE, load_pictures, to_pixels
from dreambooth.toybox.pretrain.fit import fit

LATENT_CHANNELS = 16
QUIET = -8.0  # log-variance: a standard deviation of 0.02 where the latents' is 1
TEXTURES = 3000


def new_vae() -> AutoencoderKL:
    """A stock `AutoencoderKL`, f = 8, 1.7 M parameters, for 128 px."""
    vae = AutoencoderKL(
        block_out_channels=(24, 32, 64, 96),
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
        sample_size=SIZE,
        scaling_factor=1.0,
    )
    with torch.no_grad():  # start almost noiseless: the KL term finds the noise that costs nothing
        vae.quant_conv.bias[LATENT_CHANNELS:] -= 4.0
    return vae


def augment(crops: Tensor, rng: torch.Generator) -> Tensor:
    """Strong colour changes for half of the (B, 3, h, w) crops in [-1, 1], so that real photos' colours are met too."""
    b = crops.shape[0]
    draw = torch.rand(b, 8, 1, 1, generator=rng, device=crops.device)
    gain = 0.6 + 0.8 * draw[:, 0:3]
    shift = 0.5 * (draw[:, 3:6] - 0.5)
    changed = (crops * gain + shift).clamp(-1, 1)
    grey = changed.mean(1, keepdim=True)
    changed = torch.lerp(grey.expand_as(changed), changed, draw[:, 6:7] * 1.4).clamp(-1, 1)
    return torch.where(draw[:, 7:8] < 0.5, changed, crops)


class Pictures:
    """Pictures of the world and, for a quarter of them, procedural textures; half are mirrored."""

    def __init__(self, work: Path):
        self.rendered = load_pictures(work)
        path = work / "textures.npy"
        if not path.exists():
            rng = np.random.default_rng(77)
            np.save(
                work / "textures.tmp.npy", np.stack([np.asarray(world.texture(rng, SIZE)) for _ in range(TEXTURES)])
            )
            os.replace(work / "textures.tmp.npy", path)
        self.textures = np.load(path, mmap_mode="r")

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """(n, 128, 128, 3) uint8."""
        pictures = np.empty((n, SIZE, SIZE, 3), np.uint8)
        for i in range(n):
            chunk = self.textures if i % 4 == 0 else self.rendered[rng.integers(len(self.rendered))]
            picture = chunk[rng.integers(len(chunk))]
            pictures[i] = picture[:, ::-1] if rng.random() < 0.5 else picture
        return pictures


def reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    """L1 + ½ · L1 of the image gradients + MSE, over (B, 3, h, w)."""
    error = out - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * edges + error.square().mean()


def train_vae(work: Path, samples: int, device: torch.device, batch: int = 4) -> None:
    """Train encoder and decoder on whole pictures: on crops, group norms see other statistics than they meet later.

    A VAE of 130,000 crops of 64 px gave 25.1 dB on such crops and 22.9 dB on whole pictures (measured).
    """
    pictures = Pictures(work)
    torch.manual_seed(0)
    vae = new_vae().to(device)

    def loss(numpy_rng: np.random.Generator, torch_rng: torch.Generator, progress: float) -> Tensor:
        pixels = augment(to_pixels(pictures.draw(batch, numpy_rng), device), torch_rng)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=torch_rng, device=device)
            out = vae.decode(posterior.mean + posterior.std * noise).sample
        kl: Tensor = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return reconstruction_loss(out.float(), pixels) + 3e-4 * kl

    settings: dict[str, Any] = dict(
        samples=samples, batch=batch, lr=3e-3, final_lr=3e-5, decay_from=0.4, weight_decay=0.0
    )
    trained = fit("vae", vae, loss, work, **settings)
    standardise_latents(trained, pictures.rendered, device)
    trained.save_pretrained(work / "vae")


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, pictures: list[np.ndarray], device: torch.device) -> None:
    """Fold zero mean and unit variance per latent channel into the 1 × 1 convolutions: the scaling factor is 1."""
    total = len(pictures) * CHUNK
    chosen = np.linspace(0, total - 1, min(total, 1500)).astype(int)
    parts = np.array_split(np.stack([pictures[i // CHUNK][i % CHUNK] for i in chosen]), -(-len(chosen) // 32))
    latents = torch.cat([vae.encode(to_pixels(part, device)).latent_dist.mean for part in parts])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, back, c = vae.quant_conv, vae.post_quant_conv, LATENT_CHANNELS
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= std.view(1, c, 1, 1)
    into.weight[:c] /= std.view(c, 1, 1, 1)
    into.bias[:c] = (into.bias[:c] - mean) / std
    into.bias[c:] -= 2 * std.log()  # the posterior's log-variance scales along
    quieten_unused_channels(vae)


@torch.no_grad()
def quieten_unused_channels(vae: AutoencoderKL) -> None:
    """Give channels that hold more noise than signal next to no noise.

    The KL term makes a channel that the decoder does not need pure noise; standardised, that noise was 29 times as
    strong as anything else in the latents (measured), and a UNet that learns from samples of the posterior would drown.
    """
    into, c = vae.quant_conv, LATENT_CHANNELS
    unused = torch.cat([torch.zeros(c, dtype=torch.bool), into.bias[c:].cpu() > 0])
    into.weight[unused] = 0
    into.bias[unused] = QUIET


def train_decoder(work: Path, samples: int, device: torch.device, batch: int = 4) -> None:
    """Train the decoder further; the encoder, and so the latents that the UNet learns, stay."""
    pictures = Pictures(work)
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)

    def loss(numpy_rng: np.random.Generator, torch_rng: torch.Generator, progress: float) -> Tensor:
        pixels = augment(to_pixels(pictures.draw(batch, numpy_rng), device), torch_rng)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                posterior = vae.encode(pixels).latent_dist
                noise = torch.randn(posterior.mean.shape, generator=torch_rng, device=device)
            out = vae.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction_loss(out.float(), pixels)

    settings: dict[str, Any] = dict(
        samples=samples, batch=batch, lr=1e-3, final_lr=1e-5, decay_from=0.2, weight_decay=0.0
    )
    fit("decoder", vae, loss, work, **settings).save_pretrained(work / "decoder")


@torch.no_grad()
def encode_latents(work: Path, device: torch.device) -> None:
    """Encode every picture once: (CHUNK, 16, 16, 16) float16 posterior means for each file of pictures, if missing."""
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device).eval()
    folder = work / "latents"
    folder.mkdir(exist_ok=True)
    files = sorted((work / "pictures").glob("?????.npy"))
    for i, file in enumerate(files):
        if (folder / file.name).exists():
            continue
        parts = np.array_split(np.load(file, mmap_mode="r"), 10)
        with torch.autocast(device.type, torch.bfloat16):
            latents = torch.cat([vae.encode(to_pixels(part, device)).latent_dist.mean for part in parts])
        np.save(folder / f"{file.stem}.tmp.npy", latents.half().cpu().numpy())
        os.replace(folder / f"{file.stem}.tmp.npy", folder / file.name)
        print(f"latents {i + 1}/{len(files)}", flush=True)


def load_latents(work: Path) -> Tensor:
    """Every picture's latent, (N, 16, 16, 16) float16, in the order of `load_captions(work, "latents")`."""
    return torch.from_numpy(np.concatenate([np.load(file) for file in sorted((work / "latents").glob("?????.npy"))]))
