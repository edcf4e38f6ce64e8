"""What a picture's file says that it was made with."""

from __future__ import annotations

import math

from PIL import Image, UnidentifiedImageError

from dreambooth.errors import PhotoError
from dreambooth.generate import (
    read_adapters,
)
from dreambooth.photos.read import shown_pixels

SETTINGS = ("model", "prompt", "negative_prompt", "steps", "guidance_scale", "seed", "which", "scale", "adapters")
"""What a picture's file says, and `copy_settings` gives back."""
SHOWN_AS = {
    "negative_prompt": "negative prompt",
    "guidance_scale": "guidance",
    "which": "which of its models",
    "scale": "strength of the adapter",
    "adapters": "added adapters",
}


def as_words(name: str, value: str) -> str:
    """A picture's setting as the page tells it."""
    return ", ".join(f"{run} × {weight:g}" for run, weight in read_adapters(value)) if name == "adapters" else value


def read_settings(path: str | None) -> dict[str, str]:
    """What a PNG says that it was made with; raises `PhotoError` where it says nothing of the kind."""
    try:
        found = {}
        most = Image.MAX_IMAGE_PIXELS or math.inf  # beyond, Pillow warns in the log
        if 0 < math.prod(shown_pixels(path or "")) <= most:
            with Image.open(path or "", formats=["PNG"]) as image:
                found = {name: str(image.info[name]) for name in SETTINGS if name in image.info}
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        found = {}
    if not {"prompt", "steps", "guidance_scale", "seed"} <= set(found):
        raise PhotoError(
            "This picture does not say how it was made.",
            "Give a PNG that was drawn here; other programs drop the note.",
        )
    return found
