"""Made-up photos, in memory and as files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def scene(seed: int, size: int = 512, background: tuple[int, int, int] | None = None) -> Image.Image:
    """A sharp made-up photo: shapes of its own on a gradient, or on a plain background."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(40, 216, (2, 3)) if background is None else np.array([background, background])
    ramp = np.linspace(ends[0], ends[1], size)[:, None].repeat(size, axis=1)
    image = Image.fromarray(ramp.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    low, high = (0, 1) if background is None else (0.2, 0.8)
    for _ in range(25):
        points = rng.uniform(low * size, high * size, 2) + rng.uniform(-0.12, 0.12, (3, 2)) * size
        draw.polygon([tuple(point) for point in points], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def saved(folder: Path, images: list[Image.Image], **options) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images):
        image.save(path, **options)
    return paths


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
