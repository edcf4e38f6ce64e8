"""The figures and pictures of the toybox's model card, measured on the model as it ships.

    python -m dreambooth.toybox.figures [--out docs]

Held-out pictures show identities that no training has seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dreambooth.config import TOYBOX
from dreambooth.files import atomic_file
from dreambooth.generate import generate, open_source
from dreambooth.photos import contact_sheet, find_photos, prepare_photo
from dreambooth.toybox import world


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def reconstruct(pipe: DiffusionPipeline, images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 pictures through the VAE and back, without sampling noise."""
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    return ((decoded.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB, for (N, H, W, 3) uint8."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    return float(np.mean(10 * np.log10(255**2 / error.mean((1, 2, 3)))))


def held_out_pictures(count: int) -> np.ndarray:
    """(count, 128, 128, 3) uint8 renders of held-out identities."""
    rng = np.random.default_rng(2024)
    scenes = (world.random_scene(rng, held_out=True) for _ in range(count))
    return np.stack([np.asarray(world.render(scene, 128)) for scene in scenes])


def _save(path: Path, images: list[Image.Image], columns: int) -> None:
    with atomic_file(path) as partial:
        contact_sheet(images, columns).save(partial, quality=85)
    print(path)


def main() -> None:
    """Print the figures and write the pictures."""
    parser = argparse.ArgumentParser(prog="python -m dreambooth.toybox.figures", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where the pictures go")
    parser.add_argument("--photos", type=Path, help="a folder of real photos, to see them through the VAE")
    args = parser.parse_args()
    source = open_source(TOYBOX)

    pictures = held_out_pictures(200)
    print(f"VAE: {psnr(pictures, reconstruct(source.pipe, pictures)):.1f} dB on 200 held-out pictures")
    if args.photos:
        photos = np.stack([np.asarray(prepare_photo(path, 128).image) for path in find_photos(args.photos)])
        decoded = reconstruct(source.pipe, photos)
        print(f"VAE: {psnr(photos, decoded):.1f} dB on {len(photos)} real photos")
        _save(args.out / "toybox-photos.jpg", [Image.fromarray(x) for x in (*photos, *decoded)], len(photos))

    grid = [f"a photo of {_article(noun)} {where}" for noun in world.CLASSES for where in world.CONTEXTS.values()]
    _save(args.out / "toybox-grid.jpg", [p.image for b in generate(source, grid, num_images=1) for p in b], 10)
    styles = [f"{style} {_article(noun)}" for style in world.STYLES.values() for noun in world.CLASSES]
    pairs = ["dog and a mug on a beach", "cat and a car in the snow", "robot and a vase on grass"]
    pairs += ["duck on the left and a clock on the right", "teapot and a bear on a wooden floor", "mug and a sneaker"]
    images = [p.image for b in generate(source, styles, num_images=1) for p in b]
    images += [p.image for b in generate(source, [f"a photo of a {p}" for p in pairs], num_images=2) for p in b]
    _save(args.out / "toybox-styles.jpg", images, 12)


if __name__ == "__main__":
    main()
