"""The photo coach: what would make a subject's photos teach it better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from dreambooth.photos.folder import IDEAL_PHOTOS, join_names
from dreambooth.photos.prepare import PREVIEW, Prepared

# Ruiz et al. (arXiv 2208.12242) teach a subject from 3-5 photos; the subjects of their dataset have at most 6.
MIN_PHOTOS, MAX_PHOTOS = 3, 6
# The thresholds below are measured on all 107 photos of the DreamBooth dataset's 20 one-subject folders that we keep.
# Sharpness (see `_sharpness`): 1.26 to 5.8 as they are; at most 0.76 after a Gaussian blur of 0.4 % of the side, 0.89
# after a movement of 2 %. At 0.9 none of the 107 is called blurred and all blurred ones are.
SHARP = 0.9
# Likeness of edge layouts (see `_edge_layout`). Of 237 pairs of one subject's photos none reaches 0.89: drawings on
# white at most 0.88, photographs 0.63. Found of 107 copies: recompressed, cropped 8 % or shifted 6 %, all; 30 %
# brighter, 105; turned 2 degrees, 105; cropped 5 % off centre and recompressed, 104.
NEAR_DUPLICATE = 0.89
# Every pair at least this alike: true for 1 of 20 subjects (a drawn figure always standing upright on white).
SAME_POSE = 0.65
# Overlap of border colours (see `_border_colours`) with the set's most typical photo, for 4 photos of 5: true for 3 of
# 20 subjects, rightly (white bedding, an orange wall, plain white); the next has 3 photos of 5.
SAME_BACKGROUND, SAME_BACKGROUND_SHARE = 0.65, 0.8
# Brightness, 0-255: the 95th percentile of the darkest real photo is 63; the 5th percentile of the palest is 178.
DARK, PALE = 50, 205
# Longer than this, an automatic square crop drops more than half of the photo.
EXTREME_ASPECT = 2.0


Code = Literal[
    "too_few",
    "too_many",
    "small",
    "blurred",
    "dark",
    "pale",
    "animated",
    "extreme_aspect",
    "near_duplicate",
    "same_background",
    "same_pose",
]
Severity = Literal["tip", "warning"]


@dataclass(frozen=True)
class Finding:
    """One piece of the photo coach's advice; never a reason to refuse."""

    code: Code
    severity: Severity
    photos: tuple[int, ...]  # positions in the list given to `coach`; () = the set as a whole
    message: str


def coach(photos: Sequence[Prepared]) -> list[Finding]:
    """Look at a subject's photos as a set and one by one, and say what would make the training better."""
    findings = _about_count(len(photos))
    for number, photo in enumerate(photos):
        findings += _about_one(number, photo)
    if len(photos) > 1:
        findings += _about_likeness(photos)
    return findings


def _about_count(count: int) -> list[Finding]:
    if count < MIN_PHOTOS:
        photos = "1 photo is" if count == 1 else f"{count or 'No'} photos are"
        message = f"{photos} too few to learn a subject from. Add some, to have {IDEAL_PHOTOS}."
        return [Finding("too_few", "warning", (), message)]
    if count > MAX_PHOTOS:
        message = (
            f"{count} photos are more than needed: {IDEAL_PHOTOS} good ones teach a subject. "
            "Keep the best, or raise the number of steps in proportion."
        )
        return [Finding("too_many", "tip", (), message)]
    return []


def _about_one(number: int, photo: Prepared) -> list[Finding]:
    """Judge a photo by itself."""
    found = []

    def say(code: Code, severity: Severity, message: str) -> None:
        found.append(Finding(code, severity, (number,), f"{photo.name} {message}"))

    side, wanted = photo.crop.side, photo.image.width
    if photo.upscaled:
        severity: Severity = "warning" if side < wanted / 2 else "tip"
        say("small", severity, f"is enlarged from {side} to {wanted} pixels. Use a larger original if you have it.")
    # An enlarged preview is soft by nature, and "small" has said so.
    if side >= PREVIEW and _sharpness(photo.preview) < SHARP:
        say("blurred", "warning", "looks blurred. Use a sharper photo, or retake it with more light and a still hand.")
    low, high = np.percentile(np.asarray(photo.preview.convert("L")), (5, 95))
    if high < DARK:
        say("dark", "warning", "is very dark. Brighten it or retake it in better light.")
    if low > PALE:
        say("pale", "warning", "is almost white all over. Retake it with less exposure or a darker background.")
    if photo.several:
        say("animated", "tip", "is animated or has several pages: only its first picture is used.")
    aspect = max(photo.size) / min(photo.size)
    if aspect > EXTREME_ASPECT and not photo.chosen:
        say("extreme_aspect", "tip", f"is very long, and {1 - 1 / aspect:.0%} of it is cut off. Check the crop box.")
    return found


def _about_likeness(photos: Sequence[Prepared]) -> list[Finding]:
    """Find copies, and sets that vary too little for the subject to be told from its surroundings."""
    layouts = np.stack([_edge_layout(photo.preview) for photo in photos])
    alike = (layouts @ layouts[:, 0].T).max(axis=1)
    alike = np.maximum(alike, alike.T)
    findings, distinct, seen = [], [], set()
    for first in range(len(photos)):
        if first in seen:
            continue
        distinct.append(first)
        group = [number for number in range(len(photos)) if number == first or alike[first, number] >= NEAR_DUPLICATE]
        group = [number for number in group if number not in seen]
        seen.update(group)
        if len(group) > 1:
            message = f"{join_names([photos[n].name for n in group])} look almost the same. Keep the best one of them."
            findings.append(Finding("near_duplicate", "warning", tuple(group), message))
    if len(distinct) < MIN_PHOTOS:
        return findings
    colours = np.stack([_border_colours(photos[number].preview) for number in distinct])
    near = np.minimum(colours[:, None], colours).sum(axis=-1) >= SAME_BACKGROUND
    typical = near[near.sum(axis=1).argmax()]
    if typical.sum() >= max(MIN_PHOTOS, SAME_BACKGROUND_SHARE * len(distinct)):
        message = (
            "Nearly all photos have the same background, which may be learned as part of the subject. Add other places."
        )
        findings.append(Finding("same_background", "tip", tuple(np.array(distinct)[typical].tolist()), message))
    if alike[np.ix_(distinct, distinct)].min() >= SAME_POSE:
        message = "All photos show the same view. Add other angles, poses or distances."
        findings.append(Finding("same_pose", "tip", tuple(distinct), message))
    return findings


def _sharpness(preview: Image.Image) -> float:
    """Return curvature over slope energy in the softest of four directions.

    The variance of the Laplacian (Pech-Pacheco et al., ICPR 2000), split by direction so that movement in one shows,
    and divided by the slopes' energy so that a foggy scene is not taken for a blurred one.
    """
    grey = np.asarray(preview.convert("L"), dtype=np.float64)
    middle = grey[1:-1, 1:-1]
    ends = (
        (grey[1:-1, :-2], grey[1:-1, 2:]),
        (grey[:-2, 1:-1], grey[2:, 1:-1]),
        (grey[:-2, :-2], grey[2:, 2:]),
        (grey[:-2, 2:], grey[2:, :-2]),
    )
    return min(float(((a - 2 * middle + b) ** 2).mean() / (((b - a) ** 2).mean() / 4 + 0.25)) for a, b in ends)


def _edge_layout(preview: Image.Image) -> np.ndarray:
    """Describe where the edges are: unit vectors of 16 x 16 grey gradients, of the whole and of 9 shifted cuts.

    A dHash keeps only the signs of these gradients; their sizes tell a copy from a second photo far better, and the
    cuts, 95 % wide, find the copy that was cropped or taken a moment later. Shape (10, 480).
    """
    grey, size, trim = preview.convert("L"), PREVIEW, PREVIEW * 0.05
    corners = [(trim * x / 2, trim * y / 2) for x in range(3) for y in range(3)]
    vectors = []
    for box in [(0, 0, size, size), *((x, y, x + size - trim, y + size - trim) for x, y in corners)]:
        small = np.asarray(grey.resize((16, 16), Image.Resampling.BOX, box=box), dtype=np.float64)
        gradient = np.concatenate([np.diff(small, axis=0).ravel(), np.diff(small, axis=1).ravel()])
        vectors.append(gradient / max(float(np.linalg.norm(gradient)), 1e-6))
    return np.stack(vectors)


def _border_colours(preview: Image.Image) -> np.ndarray:
    """Return the soft 6 x 6 x 6 RGB histogram, summing to 1, of the outer eighth of the picture on every side."""
    pixels = np.asarray(preview.resize((64, 64), Image.Resampling.BOX), dtype=np.float64)
    border = np.ones((64, 64), dtype=bool)
    border[8:-8, 8:-8] = False
    # Each value is shared by its two nearest bins, so a wall a shade brighter does not change bins at once.
    bins = np.maximum(0, 1 - np.abs(pixels[border][..., None] / 255 * 5 - np.arange(6)))
    found: np.ndarray = np.einsum("na,nb,nc->abc", *np.moveaxis(bins, 1, 0)).ravel() / len(bins)
    return found
