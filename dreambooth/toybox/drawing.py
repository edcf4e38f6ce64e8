"""What the toybox's subjects are drawn with: big clear shapes, so that identity survives 16x16 latents.

Subjects are drawn in their own units: x to the right from the middle, y upwards from the ground, about one unit tall or
wide, facing right. A `Pen` puts them into the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from dreambooth.toybox.identities import Colour

if TYPE_CHECKING:
    from dreambooth.toybox.identities import Identity

Points: TypeAlias = np.ndarray | Sequence[tuple[float, float]]
"""(n, 2) places, in a subject's units."""

INK: Colour = (38, 34, 42)
WHITE: Colour = (250, 249, 246)
GLASS: Colour = (190, 222, 240)


def darker(colour: Colour, by: float = 0.5) -> Colour:
    """`colour` times `by`."""
    r, g, b = (int(c * by) for c in colour)
    return r, g, b


def mixed(colour: Colour, other: Colour, part: float) -> Colour:
    """`colour` with `part` (0..1) of `other` in it."""
    r, g, b = (int(c + (o - c) * part) for c, o in zip(colour, other))
    return r, g, b


def oval(x: float, y: float, rx: float, ry: float, tilt: float = 0.0, n: int = 30) -> np.ndarray:
    """Points (n, 2) of an ellipse turned by `tilt` degrees."""
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    px, py = rx * np.cos(angle), ry * np.sin(angle)
    return np.stack([x + c * px - s * py, y + s * px + c * py], 1)


def box(x0: float, y0: float, x1: float, y1: float, corner: float = 0.04) -> np.ndarray:
    """Points of a rectangle with round corners."""
    corner = min(corner, (x1 - x0) / 2, (y1 - y0) / 2)
    turn = np.linspace(0, np.pi / 2, 5)
    centres = [(x1 - corner, y1 - corner), (x0 + corner, y1 - corner), (x0 + corner, y0 + corner)]
    centres.append((x1 - corner, y0 + corner))
    arcs = [
        np.stack([cx + corner * np.cos(turn + k * np.pi / 2), cy + corner * np.sin(turn + k * np.pi / 2)], 1)
        for k, (cx, cy) in enumerate(centres)
    ]
    return np.concatenate(arcs)


def smooth(points: Points, steps: int = 6) -> np.ndarray:
    """A closed Catmull-Rom curve through `points`."""
    p1 = np.asarray(points, float)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (p0, p1, p2, p3))
    curve: np.ndarray = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return curve.reshape(-1, 2)


def mirrored(right: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A closed symmetric outline from its right half, listed from bottom to top."""
    return [*right, *((-x, y) for x, y in reversed(right))]


def star(x: float, y: float, r: float) -> np.ndarray:
    """Points of a five-pointed star."""
    angle = np.pi / 2 + np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, r, 0.48 * r)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)


def heart(x: float, y: float, r: float) -> np.ndarray:
    """Points of a heart."""
    t = np.linspace(0, 2 * np.pi, 26, endpoint=False)
    px = 16 * np.sin(t) ** 3
    py = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x + r * px / 16, y + r * (py + 2) / 16], 1)


def _light_masks() -> tuple[tuple[Image.Image, Image.Image], ...]:
    """(highlight, shade) alpha masks, stretched over a shape: for light from the left, then from the right."""
    y, x = np.mgrid[0:48, 0:48] / 47
    pairs = []
    for side in (0.3, 0.7):
        distance = np.hypot(x - side, (y - 0.22) * 1.1)
        highlight = 105 * np.clip(1 - distance / 0.42, 0, 1) ** 1.3
        shade = 105 * np.clip((distance - 0.42) / 0.62, 0, 1)
        lit, dark = (Image.fromarray(m.astype(np.uint8)) for m in (highlight, shade))
        pairs.append((lit, dark))
    return tuple(pairs)


LIGHT_MASKS = _light_masks()


class Pen:
    """Draws shapes given in a subject's units into an RGB picture (in place).

    `x`, `y` (pixels) is where the subject touches the ground, `scale` is pixels per unit, `angle` is in degrees;
    `light_right` says from which side the light comes.
    """

    def __init__(
        self,
        image: Image.Image,
        identity: Identity,
        x: float,
        y: float,
        scale: float,
        angle: float = 0.0,
        flip: bool = False,
        light_right: bool = False,
    ):
        self.image, self.identity = image, identity
        self.draw = ImageDraw.Draw(image)
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        self.matrix = scale * np.array([[c * (-1 if flip else 1), -s], [-s * (-1 if flip else 1), -c]])
        self.origin = np.array([x, y])
        self.scale = scale
        self.line_width = max(1, round(image.width * 0.012))
        self.masks = LIGHT_MASKS[int(light_right)]

    def place(self, points: Points) -> list[tuple[float, float]]:
        """Pixel coordinates of `points`."""
        return [(x, y) for x, y in (np.asarray(points, float) @ self.matrix.T + self.origin).tolist()]

    def shape(
        self, points: Points, fill: Colour, *, patterned: bool = False, shade: bool = True, outline: bool = True
    ) -> None:
        """A filled outline; `patterned` puts the identity's marks on it."""
        placed = self.place(points)
        self.draw.polygon(placed, fill=fill)
        if patterned or shade:
            self._surface(points, placed, fill, patterned)
        if outline:
            self.draw.line([*placed, *placed[:2]], fill=darker(fill, 0.42), width=self.line_width, joint="curve")

    def _surface(self, points: Points, placed: list[tuple[float, float]], fill: Colour, patterned: bool) -> None:
        xs, ys = [p[0] for p in placed], [p[1] for p in placed]
        x0, y0, x1, y1 = int(min(xs)), int(min(ys)), int(max(xs)) + 1, int(max(ys)) + 1
        frame, size = (x0, y0, x1, y1), (x1 - x0, y1 - y0)
        inside = Image.new("L", size)
        ImageDraw.Draw(inside).polygon([(x - x0, y - y0) for x, y in placed], fill=255)
        if patterned and self.identity.pattern != "plain":
            marks = Image.new("L", size)
            drawing = ImageDraw.Draw(marks)
            for mark in pattern_marks(self.identity, np.asarray(points, float)):
                drawing.polygon([(x - x0, y - y0) for x, y in self.place(mark)], fill=255)
            self.image.paste(self.identity.second, frame, ImageChops.multiply(marks, inside))
        highlight, shade = (m.resize(size, Image.Resampling.BILINEAR) for m in self.masks)
        self.image.paste(darker(fill, 0.3), frame, ImageChops.multiply(shade, inside))
        self.image.paste(WHITE, frame, ImageChops.multiply(highlight, inside))

    def spot(self, x: float, y: float, rx: float, fill: Colour, ry: float | None = None, **options: bool) -> None:
        """A small flat ellipse: an eye, a button, a wheel."""
        self.shape(oval(x, y, rx, ry or rx, n=20), fill, **{"shade": False, "outline": False, **options})

    def stroke(self, points: Points, width: float, fill: Colour) -> None:
        """A thick line with round ends, `width` in subject units."""
        placed = self.place(points)
        self._round_line(placed, max(2, width * self.scale), fill)

    def limb(self, points: Points, width: float, fill: Colour) -> None:
        """A stroke with an outline: legs, arms, tails, handles."""
        placed = self.place(points)
        self._round_line(placed, width * self.scale + self.line_width, darker(fill, 0.42))
        self._round_line(placed, width * self.scale - self.line_width, fill)

    def _round_line(self, placed: list[tuple[float, float]], width: float, fill: Colour) -> None:
        self.draw.line(placed, fill=fill, width=max(1, round(width)), joint="curve")
        for x, y in (placed[0], placed[-1]):
            self.draw.circle((x, y), width / 2, fill=fill)


def pattern_marks(identity: Identity, points: np.ndarray) -> list[np.ndarray]:
    """The outlines of an identity's marks over the box of `points`: the same marks in every picture of it."""
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    w, h = x1 - x0, y1 - y0
    a, b = identity.shape[-2:]
    if identity.pattern == "stripes":
        n = 3 if a < 0.5 else 4
        if b < 0.5:
            return [box(x0 - 1, y0 + h * (k + 0.3) / n, x1 + 1, y0 + h * (k + 0.8) / n, 0) for k in range(n)]
        return [box(x0 + w * (k + 0.3) / n, y0 - 1, x0 + w * (k + 0.8) / n, y1 + 1, 0) for k in range(n)]
    if identity.pattern == "spots":
        r = min(w, h) * (0.11 + 0.05 * a)
        centres = [(0.5, 0.5), (0.2, 0.25), (0.8, 0.25), (0.2, 0.75), (0.8, 0.75), (0.5, 0.97), (0.5, 0.05)]
        return [oval(x0 + w * u, y0 + h * v, r, r, n=16) for u, v in centres]
    if identity.pattern == "patches":
        rng = np.random.default_rng(np.random.SeedSequence((identity.seed, 5)))
        corners = [(0.15, 0.8), (0.85, 0.6), (0.4, 0.2)]
        around = np.linspace(0, 2 * np.pi, 7, endpoint=False)
        blobs = []
        for u, v in corners:
            r = rng.uniform(0.18, 0.34, 7)
            blobs.append(smooth(np.stack([x0 + w * (u + r * np.cos(around)), y0 + h * (v + r * np.sin(around))], 1), 3))
        return blobs
    return [box(x0 - 1, y0 - 1, x1 + 1, y0 + h * (0.4 + 0.15 * a), 0)]


# Things that several kinds of subject wear or carry.


def emblem(pen: Pen, kind: str, x: float, y: float, r: float) -> None:
    """A star, heart or circle in the accent colour; nothing for any other `kind`."""
    colour = pen.identity.accent
    outlines = {"star": star(x, y, r), "heart": heart(x, y, r), "circle": oval(x, y, 0.85 * r, 0.85 * r)}
    if kind in outlines:
        pen.shape(outlines[kind], colour, shade=False)


def wear(pen: Pen, kind: str, neck: tuple[float, float], top: tuple[float, float], width: float) -> None:
    """A collar, scarf or bow tie at `neck`, a hat at `top`; `width` is the neck's."""
    colour = pen.identity.accent
    (x, y), w = neck, width
    if kind == "collar":
        pen.limb([(x - w / 2, y + 0.01), (x, y - 0.02), (x + w / 2, y + 0.01)], 0.05, colour)
        pen.spot(x + 0.01, y - 0.065, 0.035, (248, 208, 60), outline=True)
    elif kind == "scarf":
        pen.shape(box(x - w * 0.42, y - 0.26, x - w * 0.42 + 0.11, y, 0.02), darker(colour, 0.85))
        pen.limb([(x - w / 2, y + 0.01), (x, y - 0.02), (x + w / 2, y + 0.01)], 0.1, colour)
    elif kind == "bow tie":
        wing = 0.13
        for side in (-1, 1):
            pen.shape([(x, y), (x + side * wing, y + 0.085), (x + side * wing, y - 0.085)], colour, shade=False)
        pen.spot(x, y, 0.035, darker(colour, 0.8), outline=True)
    elif kind == "hat":
        x, y = top
        pen.shape(box(x - 0.095, y, x + 0.095, y + 0.14, 0.02), colour)
        pen.shape(box(x - 0.17, y - 0.03, x + 0.17, y + 0.02, 0.025), colour, shade=False)


def eye(pen: Pen, x: float, y: float, r: float = 0.035) -> None:
    """A dark eye with a glint."""
    pen.spot(x, y, r, INK)
    pen.spot(x + r * 0.3, y + r * 0.35, r * 0.38, WHITE)
