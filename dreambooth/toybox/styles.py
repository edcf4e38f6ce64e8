"""The toybox's four styles: how a drawn canvas becomes a photo, a sketch, a watercolour or pixel art.

Each takes the canvas, a mask (at the final size) of the subjects, a generator and the final size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from dreambooth.toybox.drawing import smooth


def subject_mask(picture: Image.Image, empty: Image.Image, size: int) -> Image.Image:
    """Where the subjects are (L, 255 inside), grown by a pixel; `empty` is the picture without them."""
    # The largest of the channels: a green duck on orange sand differs little in grey.
    red, green, blue = ImageChops.difference(picture, empty).resize((size, size), Image.Resampling.BOX).split()
    difference = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return difference.point([255 if v > 20 else 0 for v in range(256)]).filter(ImageFilter.MaxFilter(3))


def _photo(picture: Image.Image, inside: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    return picture.resize((size, size), Image.Resampling.BOX)


def _pixel(picture: Image.Image, inside: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    # 32 blocks: two to a latent, and an identity's marks are still there.
    small = picture.resize((32, 32), Image.Resampling.BOX)
    # Sixteen levels: with fewer, soft skies and water fall into bands and white snow turns cyan.
    levels = [round(v / 17) * 17 for v in range(256)] * 3
    return small.point(levels).resize((size, size), Image.Resampling.NEAREST)


def _sketch(picture: Image.Image, inside: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    grey = picture.convert("L")
    reach = picture.width / 128
    edges = ImageChops.subtract(grey.filter(ImageFilter.GaussianBlur(1.6 * reach)), grey, 0.3)
    lines = edges.resize((size, size), Image.Resampling.BOX).point([max(40, 255 - int(1.25 * v)) for v in range(256)])
    paper = Image.new("RGB", (size, size), tuple(int(c) for c in np.add((244, 241, 232), rng.uniform(-6, 6))))
    colours = picture.resize((size, size), Image.Resampling.BOX)
    # A faint wash of the subject's own colours keeps it the same subject; a fainter one keeps "a red background" true.
    tinted = Image.blend(paper, colours, 0.45)
    plain = Image.blend(paper, colours, 0.15)
    faint = lines.point([120 + int(v * 135 / 255) for v in range(256)])
    lines = Image.composite(lines, faint, inside)
    return ImageChops.multiply(Image.composite(tinted, plain, inside), lines.convert("RGB"))


def _watercolour(picture: Image.Image, inside: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    paper = Image.new("RGB", (size, size), (252, 249, 242))
    colours = picture.resize((size, size), Image.Resampling.BOX)
    reach = size / 128
    wash = Image.blend(paper, colours.filter(ImageFilter.GaussianBlur(2.8 * reach)), 0.62)
    pigment = colours.filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.GaussianBlur(0.6 * reach))
    inside = inside.filter(ImageFilter.GaussianBlur(1.5 * reach))
    subject = Image.blend(paper, pigment, 0.9)
    painted = Image.composite(subject, wash, inside)
    blotches = Image.fromarray(rng.integers(0, 110, (9, 9)).astype(np.uint8))
    blotches = blotches.resize((size, size), Image.Resampling.BICUBIC)
    around = inside.point([255 - v // 2 for v in range(256)])
    painted.paste(paper, (0, 0), ImageChops.multiply(blotches, around))
    return Image.composite(painted, paper, _ragged(rng, size))


def _ragged(rng: np.random.Generator, size: int) -> Image.Image:
    """The painted part of a watercolour's paper: all but an uneven white edge."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    # A superellipse fills the square but for round corners.
    radius = (np.abs(np.cos(angle)) ** 8 + np.abs(np.sin(angle)) ** 8) ** (-1 / 8) * (0.47 - 0.03 * rng.random(40))
    points = smooth(np.stack([0.5 + radius * np.cos(angle), 0.5 + radius * np.sin(angle)], 1) * size, 3)
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in points.tolist()], fill=255)
    return mask.filter(ImageFilter.GaussianBlur(size / 100))


STYLED: dict[str, Callable[[Image.Image, Image.Image, np.random.Generator, int], Image.Image]] = {
    "photo": _photo,
    "sketch": _sketch,
    "watercolour": _watercolour,
    "pixel": _pixel,
}
