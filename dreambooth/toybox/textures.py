"""Procedural stand-ins for real photos, so that the toybox's VAE learns more than the toybox."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dreambooth.toybox.drawing import oval


def texture(rng: np.random.Generator, size: int = 128) -> Image.Image:
    """A procedural stand-in for a photo, to train the VAE on: RGB, `size` x `size`."""
    kinds = (_gradient, _dead_leaves, _noise)
    first, second = rng.choice(3, 2, p=(0.2, 0.45, 0.35))
    picture = kinds[first](rng, size)
    if rng.random() < 0.4:
        mask = _noise(rng, size).convert("L").point([min(255, max(0, 3 * v - 256)) for v in range(256)])
        picture = Image.composite(picture, kinds[second](rng, size), mask)
    if rng.random() < 0.35:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 2.0) * size / 128))
    return picture


def _palette(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 3) colours as in one photo, RGB 0..255: they differ in lightness more than in hue."""
    lightness = rng.uniform(10, 245, (n, 1))
    cast, hues = rng.normal(0, 25, 3), rng.normal(0, rng.uniform(5, 55), (n, 3))
    return np.clip(lightness + cast + hues, 0, 255)


def _gradient(rng: np.random.Generator, size: int) -> Image.Image:
    n = int(rng.integers(2, 5))
    grid = _palette(rng, n * n).reshape(n, n, 3).astype(np.uint8)
    return Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)


def _noise(rng: np.random.Generator, size: int) -> Image.Image:
    """Smooth noise of several octaves, coloured along a random palette."""
    field = np.zeros((size, size), np.float32)
    fall = rng.uniform(0.35, 0.65)
    for octave in range(int(rng.integers(3, 6))):
        cells = 3 * 2**octave
        grid = Image.fromarray(rng.random((cells, cells), np.float32))
        field += fall**octave * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    field = (field - field.min()) / np.ptp(field)
    stops = _palette(rng, 4)
    return Image.fromarray(
        np.stack([np.interp(field, (0, 0.35, 0.65, 1), stops[:, c]) for c in range(3)], 2).astype(np.uint8)
    )


def _dead_leaves(rng: np.random.Generator, size: int) -> Image.Image:
    """Overlapping shaded discs and polygons with the 1/r^3 sizes of natural pictures."""
    canvas = 2 * size
    picture = _gradient(rng, canvas)
    draw = ImageDraw.Draw(picture)
    colours = _palette(rng, 12)
    smallest, largest = 0.03, 0.5
    u = rng.random(110)
    radii = (smallest**-2 - u * (smallest**-2 - largest**-2)) ** -0.5 * canvas
    for r in radii:
        x, y = rng.uniform(0, canvas, 2)
        corners = 24 if rng.random() < 0.5 else int(rng.integers(3, 6))
        colour = np.clip(colours[rng.integers(12)] + rng.normal(0, 12, 3), 0, 255)
        outline = oval(x, y, r, r * rng.uniform(0.4, 1), rng.uniform(0, 360), corners)
        for step in range(3 if r > 0.08 * canvas else 1):
            # Shading: smaller and lighter copies, towards the light at the upper left.
            inner = (outline - (x, y)) * (1 - 0.22 * step) + (x - 0.06 * r * step, y - 0.06 * r * step)
            draw.polygon([tuple(p) for p in inner.tolist()], fill=tuple(int(min(255, c + 9 * step)) for c in colour))
    return picture.resize((size, size), Image.Resampling.BOX)
