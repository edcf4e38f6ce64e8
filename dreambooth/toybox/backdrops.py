"""The toybox's ten contexts, drawn without subjects. Coordinates are parts of the picture's side, y downwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from dreambooth.toybox.drawing import Points, darker, mixed, smooth
from dreambooth.toybox.identities import Colour


class Backdrop:
    """An RGB picture to draw large soft things on, in parts of its side."""

    def __init__(self, size: int, rng: np.random.Generator, top: Colour, bottom: Colour):
        self.size, self.rng = size, rng
        self.picture = Image.new("RGB", (size, size))
        self.fade(0, 1, top, bottom)

    def fade(self, y0: float, y1: float, top: Colour, bottom: Colour) -> None:
        """A vertical gradient from `y0` to `y1` over the whole width."""
        rows = max(1, round((y1 - y0) * self.size) + 1)
        column = np.linspace(top, bottom, rows).astype(np.uint8)[:, None]
        self.picture.paste(Image.fromarray(column).resize((self.size, rows)), (0, round(y0 * self.size)))
        self.draw = ImageDraw.Draw(self.picture)

    def shape(self, points: Points, fill: Colour) -> None:
        """A filled polygon."""
        self.draw.polygon([tuple(p) for p in (np.asarray(points, float) * self.size).tolist()], fill=fill)

    def disc(self, x: float, y: float, r: float, fill: Colour, ry: float | None = None) -> None:
        """A filled ellipse."""
        ry = ry or r
        self.draw.ellipse([v * self.size for v in (x - r, y - ry, x + r, y + ry)], fill=fill)

    def line(self, points: Points, width: float, fill: Colour) -> None:
        """A polyline."""
        placed = [(x * self.size, y * self.size) for x, y in points]
        self.draw.line(placed, fill=fill, width=max(1, round(width * self.size)), joint="curve")

    def hill(self, y: float, rise: float, fill: Colour) -> None:
        """Ground with a wavy edge around `y`."""
        x = np.linspace(0, 1, 24)
        edge = y + rise * np.sin(2 * np.pi * (x * self.rng.uniform(0.5, 1.1) + self.rng.random()))
        self.shape([(0, 1.01), *zip(x, edge), (1, 1.01)], fill)

    def cloud(self, x: float, y: float, r: float, fill: Colour = (250, 252, 254)) -> None:
        """A cloud of three puffs."""
        for dx, dy, part in ((-0.9, 0.1, 0.7), (0, -0.15, 1), (0.95, 0.12, 0.65)):
            self.disc(x + dx * r, y + dy * r, r * part, fill, r * part * 0.62)

    def side_x(self) -> float:
        """A place near the left or the right edge, where a subject hides it least."""
        return self.rng.uniform(0.07, 0.2) if self.rng.random() < 0.5 else self.rng.uniform(0.8, 0.93)


def _beach(rng: np.random.Generator, n: int) -> Backdrop:
    b = Backdrop(n, rng, (96, 178, 236), (196, 228, 244))
    b.disc(b.side_x(), rng.uniform(0.1, 0.22), 0.07, (255, 240, 160))
    b.cloud(rng.uniform(0.2, 0.8), rng.uniform(0.08, 0.2), 0.09)
    sea, shore = rng.uniform(0.4, 0.48), rng.uniform(0.6, 0.68)
    b.fade(sea, 1, (24, 98, 178), (60, 180, 200))
    b.hill(shore, 0.02, (240, 248, 246))
    b.hill(shore + 0.03, 0.02, (238, 212, 148))
    b.hill(0.9, 0.02, (228, 198, 132))
    if rng.random() < 0.7:
        x, lean = b.side_x(), rng.uniform(-0.04, 0.04)
        b.line([(x, shore + 0.1), (x + lean, shore - 0.12), (x + lean * 2, 0.3)], 0.03, (136, 92, 56))
        for angle in np.radians([-160, -120, -60, -20, 20, 160]):
            tip = (x + lean * 2 + 0.17 * np.cos(angle), 0.3 + 0.1 * np.sin(angle) + 0.05)
            side = (x + lean * 2 + 0.1 * np.cos(angle), 0.26 + 0.1 * np.sin(angle))
            b.shape([(x + lean * 2, 0.285), side, tip, (x + lean * 2, 0.32)], (52, 146, 74))
    return b


def _snow(rng: np.random.Generator, n: int) -> Backdrop:
    b = Backdrop(n, rng, (150, 184, 222), (222, 232, 244))
    peak = rng.uniform(0.15, 0.85)
    for x, top in ((peak, 0.2), ((peak + 0.45) % 1, 0.3)):
        b.shape([(x - 0.35, 0.7), (x, top), (x + 0.35, 0.7)], (138, 154, 188))
        b.shape([(x - 0.105, top + 0.15), (x, top), (x + 0.105, top + 0.15), (x, top + 0.1)], (246, 249, 253))
    ground = rng.uniform(0.56, 0.64)
    b.hill(ground, 0.02, (216, 228, 244))
    for x in (rng.uniform(0.04, 0.16), rng.uniform(0.84, 0.96), b.side_x()):
        foot, tall = ground + rng.uniform(0.0, 0.06), rng.uniform(0.2, 0.3)
        for level in range(2):
            base, w = foot - level * tall * 0.4, 0.09 - 0.025 * level
            b.shape([(x - w, base), (x, base - tall * 0.65), (x + w, base)], (48, 104, 92))
            b.shape(
                [(x - w * 0.4, base - tall * 0.4), (x, base - tall * 0.65), (x + w * 0.4, base - tall * 0.4)],
                (242, 247, 252),
            )
    b.hill(ground + 0.1, 0.025, (246, 249, 254))
    for _ in range(9):
        b.disc(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.011, 0.017), (252, 253, 255))
    return b


def _leaf(b: Backdrop, x: float, y: float, length: float, angle: float, fill: Colour) -> None:
    c, s = np.cos(angle), np.sin(angle)
    outline = np.array([(0, 0), (0.35, 0.2), (0.7, 0.15), (1, 0), (0.7, -0.15), (0.35, -0.2)]) * length
    turned = outline @ np.array([[c, s], [-s, c]]) + (x, y)
    b.shape(smooth(turned, 4), fill)
    b.line([(x, y), (x + 0.9 * length * c, y + 0.9 * length * s)], 0.012, darker(fill, 0.75))


def _jungle(rng: np.random.Generator, n: int) -> Backdrop:
    b = Backdrop(n, rng, (34, 96, 60), (74, 140, 66))
    for x in (rng.uniform(0.02, 0.25), rng.uniform(0.4, 0.6), rng.uniform(0.75, 0.98)):
        b.line([(x, -0.05), (x + rng.uniform(-0.05, 0.05), 0.75)], rng.uniform(0.05, 0.1), (78, 66, 44))
    b.hill(rng.uniform(0.66, 0.72), 0.02, (40, 92, 44))
    b.hill(0.78, 0.02, (58, 104, 48))
    greens = ((36, 128, 62), (66, 160, 66), (24, 104, 66), (104, 176, 62))
    for k in range(9):
        x = rng.uniform(0, 1) if k < 5 else (0.0 if k % 2 else 1.0)
        y = -0.02 if k < 5 else rng.uniform(0.2, 0.9)
        inward = np.arctan2(0.5 - y, 0.5 - x) + rng.uniform(-0.6, 0.6)
        _leaf(b, x, y, rng.uniform(0.2, 0.32), inward, greens[rng.integers(4)])
    return b


def _city(rng: np.random.Generator, n: int) -> Backdrop:
    b = Backdrop(n, rng, (34, 36, 92), (128, 88, 152))
    b.disc(b.side_x(), rng.uniform(0.09, 0.16), 0.055, (246, 240, 206))
    road = rng.uniform(0.7, 0.75)
    x = -rng.uniform(0.0, 0.1)
    while x < 1:
        w, top = rng.uniform(0.17, 0.25), rng.uniform(0.18, 0.46)
        b.shape([(x, top), (x + w, top), (x + w, road), (x, road)], (66, 68 + int(rng.integers(12)), 118))
        for u in (0.28, 0.72):
            for y in np.arange(top + 0.07, road - 0.06, 0.11):
                lit = (252, 214, 110) if rng.random() < 0.65 else (80, 84, 128)
                b.shape(
                    [
                        (x + w * u - 0.027, y - 0.028),
                        (x + w * u + 0.027, y - 0.028),
                        (x + w * u + 0.027, y + 0.028),
                        (x + w * u - 0.027, y + 0.028),
                    ],
                    lit,
                )
        x += w + 0.012
    b.fade(road, 1, (104, 102, 122), (84, 82, 100))
    b.fade(road, road + 0.035, (150, 146, 164), (136, 132, 150))
    start = rng.uniform(-0.2, 0.0)
    for k in range(4):
        b.line([(start + 0.36 * k, 0.95), (start + 0.36 * k + 0.2, 0.95)], 0.022, (226, 206, 120))
    return b


def _grass(rng: np.random.Generator, n: int) -> Backdrop:
    b = Backdrop(n, rng, (104, 186, 244), (214, 238, 250))
    for _ in range(2):
        b.cloud(rng.uniform(0.05, 0.95), rng.uniform(0.08, 0.26), rng.uniform(0.08, 0.12))
    b.hill(rng.uniform(0.46, 0.52), 0.04, (130, 196, 96))
    b.hill(rng.uniform(0.58, 0.64), 0.03, (98, 178, 72))
    b.hill(0.8, 0.02, (84, 164, 62))
    for _ in range(5):
        x, y = rng.random(), rng.uniform(0.68, 0.97)
        for dx in (-0.022, 0, 0.022):
            b.shape([(x + dx - 0.012, y), (x + dx * 1.7, y - 0.05), (x + dx + 0.012, y)], (58, 134, 50))
    petals = ((250, 236, 120), (250, 250, 250), (244, 150, 180))
    for _ in range(4):
        x, y = rng.random(), rng.uniform(0.7, 0.97)
        b.disc(x, y, 0.022, petals[rng.integers(3)])
        b.disc(x, y, 0.009, (240, 170, 50))
    return b


def _floor(rng: np.random.Generator, n: int) -> Backdrop:
    walls = ((226, 212, 188), (206, 216, 214), (222, 200, 194), (212, 208, 224))
    wall = walls[rng.integers(4)]
    b = Backdrop(n, rng, mixed(wall, (255, 255, 255), 0.25), wall)
    x, y = b.side_x(), rng.uniform(0.18, 0.26)
    w, h = 0.13, 0.15
    for grow, fill in ((0.018, (248, 246, 240)), (0.0, ((150, 204, 240), (240, 190, 120))[rng.integers(2)])):
        b.shape(
            [
                (x - w - grow, y - h - grow),
                (x + w + grow, y - h - grow),
                (x + w + grow, y + h + grow),
                (x - w - grow, y + h + grow),
            ],
            fill,
        )
    edge = rng.uniform(0.56, 0.66)
    b.fade(edge - 0.05, edge, (250, 247, 240), (232, 226, 216))
    wood = ((176, 118, 68), (156, 98, 58), (196, 142, 90))[rng.integers(3)]
    b.fade(edge, 1, darker(wood, 0.92), mixed(wood, (255, 240, 210), 0.12))
    seam = darker(wood, 0.68)
    rows = [edge, edge + 0.07, edge + 0.16, edge + 0.28, 1.02]
    for top, bottom in pairwise(rows):
        b.line([(0, bottom), (1, bottom)], 0.012, seam)
        x = rng.uniform(0.1, 0.4)
        for joint in (x, x + 0.5):
            b.line([(joint, top), (joint, bottom)], 0.01, seam)
    return b


def _desert(rng: np.random.Generator, n: int) -> Backdrop:
    b = Backdrop(n, rng, (250, 178, 92), (254, 226, 166))
    b.disc(b.side_x(), rng.uniform(0.12, 0.26), rng.uniform(0.07, 0.1), (255, 246, 206))
    b.hill(rng.uniform(0.46, 0.52), 0.06, (224, 142, 78))
    b.hill(rng.uniform(0.58, 0.64), 0.04, (216, 152, 76))
    for _ in range(2):
        x, foot, tall = b.side_x(), rng.uniform(0.66, 0.74), rng.uniform(0.2, 0.3)
        green = (62, 128, 72)
        b.line([(x, foot), (x, foot - tall)], 0.055, green)
        b.disc(x, foot - tall, 0.027, green)
        for side, y in ((-1, foot - tall * 0.45), (1, foot - tall * 0.6)):
            b.line([(x, y), (x + side * 0.07, y), (x + side * 0.07, y - 0.09)], 0.036, green)
            b.disc(x + side * 0.07, y - 0.09, 0.018, green)
    b.hill(0.76, 0.03, (234, 174, 96))
    return b


def _underwater(rng: np.random.Generator, n: int) -> Backdrop:
    b = Backdrop(n, rng, (64, 186, 226), (12, 74, 142))
    rays = Image.new("L", b.picture.size)
    drawing = ImageDraw.Draw(rays)
    for x in (rng.uniform(0, 0.3), rng.uniform(0.35, 0.6), rng.uniform(0.7, 0.95)):
        drawing.polygon([(v * n, y * n) for v, y in ((x, 0), (x + 0.1, 0), (x + 0.0, 0.85), (x - 0.2, 0.85))], fill=46)
    b.picture.paste((230, 250, 255), (0, 0), rays)
    b.hill(rng.uniform(0.76, 0.8), 0.025, (214, 196, 140))
    for _ in range(4):
        x, foot, sway = b.side_x(), rng.uniform(0.8, 0.96), rng.uniform(-0.04, 0.04)
        fill = ((44, 150, 96), (240, 110, 120), (36, 122, 110))[rng.integers(3)]
        tall = rng.uniform(0.18, 0.3)
        b.line(
            [(x, foot), (x + sway, foot - tall * 0.35), (x - sway, foot - tall * 0.7), (x + sway, foot - tall)],
            0.035,
            fill,
        )
    for _ in range(6):
        x, y, r = rng.random(), rng.uniform(0.05, 0.65), rng.uniform(0.014, 0.028)
        b.disc(x, y, r, (206, 238, 250))
        b.disc(x, y, r * 0.6, (110, 190, 226))
    x, y, side = b.side_x(), rng.uniform(0.15, 0.5), rng.choice((-1, 1))
    b.shape([(x, y), (x - side * 0.1, y - 0.04), (x - side * 0.1, y + 0.04)], (246, 160, 60))
    b.disc(x, y, 0.055, (250, 184, 70), 0.035)
    return b


def _studio(colour: Colour) -> Callable[[np.random.Generator, int], Backdrop]:
    """A plain background of one colour: a paper roll that catches more light near the ground."""

    def draw(rng: np.random.Generator, n: int) -> Backdrop:
        b = Backdrop(n, rng, darker(colour, rng.uniform(0.75, 0.95)), colour)
        edge = rng.uniform(0.62, 0.7)
        b.fade(edge, 1, mixed(colour, (255, 255, 255), 0.03), mixed(colour, (255, 255, 255), 0.2))
        return b

    return draw


BACKDROPS: dict[str, Callable[[np.random.Generator, int], Backdrop]] = {
    "beach": _beach,
    "snow": _snow,
    "jungle": _jungle,
    "city": _city,
    "grass": _grass,
    "floor": _floor,
    "desert": _desert,
    "underwater": _underwater,
    "blue": _studio((58, 104, 206)),
    "red": _studio((206, 58, 56)),
}

# What the air of a context adds to everything in it: a colour, and how much of it.
TINTS: dict[str, tuple[Colour, float]] = {
    "city": ((96, 88, 150), 0.1),
    "underwater": ((20, 110, 170), 0.13),
    "desert": ((255, 170, 90), 0.07),
}


def backdrop(context: str, rng: np.random.Generator, size: int) -> Image.Image:
    """A context without subjects: RGB, `size` x `size`."""
    picture = BACKDROPS[context](rng, size).picture
    gains = rng.uniform(0.94, 1.06, 3)
    return picture.point([min(255, int(v * g)) for g in gains for v in range(256)])
