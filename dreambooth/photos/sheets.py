"""Pictures of pictures: side by side, with their crops, on a sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreambooth.photos.prepare import Prepared
from dreambooth.photos.read import printable

MIDDLE = 0.72
"""Share of a photo's side that stands beside another's: its middle, where subjects are, so that they are as large as
models draw two things. Source: `python -m benchmarks.two_subjects`; with whole photos, fewer were learned."""
BLANK_STD = 2.0  # a picture whose pixels (0 to 255) vary less than this is blank: black frames have 0, night scenes 30


def is_blank(image: Image.Image) -> bool:
    """Whether a picture is one flat colour, as failed arithmetic and safety checkers leave it."""
    return float(np.asarray(image.convert("RGB"), np.float32).std((0, 1)).max()) < BLANK_STD


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """The middles of two square photos of one size, beside each other on the ground of an RGBA picture as large as one.

    What is above them continues their upper edges. Opaque is a disc of each middle, which is to be learned; what is
    transparent, most of the seam above all, is there for the eye alone.
    """
    side, half = left.width, left.width // 2
    picture, shown = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    edge = round((1 - MIDDLE) / 2 * side)
    for x, photo in ((0, left), (side - half, right)):
        small = photo.crop((edge, edge, side - edge, side - edge)).resize((half, half), Image.Resampling.LANCZOS)
        picture.paste(small.crop((0, 0, half, 1)).resize((half, side - half)), (x, 0))
        picture.paste(small, (x, side - half))
        ImageDraw.Draw(shown).ellipse((x, side - half, x + half - 1, side - 1), fill=255)
    picture.putalpha(shown)
    return picture


def show_crop(photo: Prepared) -> Image.Image:
    """Return the whole photo with a frame around its crop box, and dimmed outside it."""
    scale = max(photo.whole.size) / max(photo.size)
    left, top, right, bottom = (round(edge * scale) for edge in photo.crop)
    right, bottom = max(right, left + 4), max(bottom, top + 4)  # of a photo so long that nothing would be seen of it
    shown = Image.blend(photo.whole, Image.new("RGB", photo.whole.size), 0.65)
    shown.paste(photo.whole.crop((left, top, right, bottom)), (left, top))
    frame = ImageDraw.Draw(shown)
    frame.rectangle((left, top, right - 1, bottom - 1), outline="black", width=5)
    frame.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="white", width=3)
    return shown


def contact_sheet(images: Sequence[Image.Image], columns: int, labels: Sequence[str] | None = None) -> Image.Image:
    """Lay pictures out in rows, each at its own size in the middle of an equal cell, with a line of text below each."""
    if not images or columns < 1:
        raise ValueError(f"A contact sheet needs pictures and columns, got {len(images)} and {columns}.")
    gap, line = 4, 16 if labels else 0
    width, height = max(image.width for image in images), max(image.height for image in images)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, image in enumerate(images):
        left, top = gap + number % columns * (width + gap), gap + number // columns * (height + line + gap)
        sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        if labels:
            text = printable(labels[number])
            while font.getlength(text) > width:
                text = text[:-1]
            draw.text((left, top + height), text, fill="black", font=font)
    return sheet
