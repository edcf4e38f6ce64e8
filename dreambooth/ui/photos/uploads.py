"""What a visitor's photos become: what is taken of them, and the copies that a run keeps, with their crop boxes."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth.errors import PhotoError
from dreambooth.photos.folder import join_names
from dreambooth.photos.prepare import Crop, checked_crop, subject_crop
from dreambooth.photos.read import MIN_SIDE, open_photo, shown_pixels

MAX_PHOTOS = 50
"""More is a mistake or an attack: the coach finds more than six too many."""
MAX_MEGAPIXELS = 600
"""Of one request's photos together: five of the largest that are read, or fifty of a phone's usual twelve. Decoding
takes a processor, and everybody's photos wait for it."""
KEPT_SIDE = 2048
"""Short side at which photos are kept, in pixels: twice the largest resolution that a base model here is trained at."""
KEPT_SHAPE = 2
"""So many times their short side is kept of longer photos, around the crop box: training reads nothing else. As from
`coach.EXTREME_ASPECT` on."""


@dataclass(frozen=True)
class Upload:
    """A subject's photos as a visitor gave them."""

    photos: Sequence[str]
    crops: Sequence[Crop | None] | None = None
    """A box per photo, in pixels of the upright upload, or None where the subject is to be found."""


def refuse_too_many(*uploads: Sequence[str]) -> None:
    """Raise `PhotoError` for more than `MAX_PHOTOS`, for one that is there twice in an upload, and for more than
    `MAX_MEGAPIXELS` together, before a pixel is decoded."""
    photos = [photo for upload in uploads for photo in upload]
    if len(photos) > MAX_PHOTOS:
        raise PhotoError(f"{len(photos)} photos are too many.", "Keep the best 3 to 5.")
    for upload in uploads:
        if twice := [photo for photo, count in Counter(upload).items() if count > 1]:
            raise PhotoError(
                f"{join_names([Path(twice[0]).name])} is there {upload.count(twice[0])} times.",
                "Leave it once: a copy teaches nothing.",
            )
    megapixels = sum(math.prod(shown_pixels(photo)) for photo in photos) / 1e6
    if megapixels > MAX_MEGAPIXELS:
        raise PhotoError(
            f"These photos have {megapixels:,.0f} megapixels together, more than {MAX_MEGAPIXELS}.",
            "Keep the best 3 to 5, or export them smaller: 4000 pixels a side is plenty.",
        )


def upload_folders(run: Path, count: int) -> list[Path]:
    """Where a run keeps the photos of its `count` subjects."""
    first = run / "uploads"
    return [first, *(first / f"subject-{number}" for number in range(2, count + 1))]


def copy_uploads(run: Path, folder: Path) -> None:
    """Give another run what a visitor gave to `run`: photos, and the word that another run had learned.

    They are never written again, so that they are the same files under a second name; copies where the system has none.
    """
    for name in ("uploads", "word"):
        if (run / name).is_dir():
            shutil.copytree(run / name, folder / name, copy_function=_link)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        return shutil.copyfile(source, target)
    return target


def keep_photos(photos: Sequence[str], crops: Sequence[Crop | None], folder: Path) -> dict[str, Crop]:
    """Write the photos as 00.png, 01.png, …; returns their crop boxes by these names, in pixels of what was kept."""
    folder.mkdir()
    boxes = {}
    for number, (photo, crop) in enumerate(zip(photos, crops, strict=True)):
        image, name = open_photo(photo), f"{number:02d}.png"
        shown = join_names([Path(photo).name])
        crop = None if crop is None else checked_crop(crop, image.size, shown)
        image, crop = _around(image, crop)
        size = kept_size(image.size)
        kept = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0) if size != image.size else image
        if crop is not None:
            boxes[name] = scaled(crop, kept.width / image.width, kept.size, shown)
        kept.save(folder / name, compress_level=1)
    return boxes


def _around(image: Image.Image, crop: Crop | None) -> tuple[Image.Image, Crop | None]:
    """Of a long photo the part around its crop box, which is found where none is given, and the box in it."""
    long = KEPT_SHAPE * min(image.size)
    if max(image.size) <= long:
        return image, crop
    crop, along = crop or subject_crop(image), int(image.height > image.width)
    begin = round((crop[along] + crop[along + 2] - long) / 2)
    begin = min(max(begin, 0), max(image.size) - long)
    left, top = (0, begin) if along else (begin, 0)
    part = image.crop((left, top, left + (image.width if along else long), top + (long if along else image.height)))
    return part, Crop(crop.left - left, crop.top - top, crop.right - left, crop.bottom - top)


def kept_size(size: tuple[int, int]) -> tuple[int, int]:
    """The sides at which a photo of these is kept, in pixels."""
    short, long = min(size), min(max(size), KEPT_SHAPE * min(size))
    scale = min(1.0, KEPT_SIDE / max(1, short))
    short, long = round(short * scale), round(long * scale)
    return (long, short) if size[0] > size[1] else (short, long)


def scaled(crop: Crop, scale: float, size: tuple[int, int], name: str) -> Crop:
    """The box on the photo at another scale, where it is `size`."""
    side = min(round(crop.side * scale), *size)
    if side < MIN_SIDE:
        raise PhotoError(
            f"{name}: the crop box is too small for so large a photo.",
            f"Make it at least {math.ceil(MIN_SIDE / scale)} pixels a side.",
        )
    left, top = (min(round(edge * scale), whole - side) for edge, whole in zip(crop[:2], size, strict=True))
    return Crop(left, top, left + side, top + side)
