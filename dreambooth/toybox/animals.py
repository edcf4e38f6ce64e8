"""The toybox's four animals.

Each function takes the pen, the identity and four pose numbers in -1..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dreambooth.toybox.drawing import INK, WHITE, Pen, darker, emblem, eye, mirrored, mixed, oval, smooth, wear

if TYPE_CHECKING:
    from dreambooth.toybox.identities import Identity


def dog(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A dog from the side."""
    long_legs, long_body, big_head, socks = i.shape[:4]
    leg, half, r = 0.2 + 0.1 * long_legs, 0.21 + 0.07 * long_body, 0.14 + 0.03 * big_head
    y, step, far = leg + 0.1, 0.045 * pose[0], darker(i.main, 0.75)
    sock = i.second if socks > 0.5 else i.main
    wag = 0.06 * pose[1]
    pen.limb([(-half, y + 0.05), (-half - 0.1, y + 0.14), (-half - 0.13 + wag, y + 0.28)], 0.065, i.main)
    for x, swing in ((-half + 0.13, step), (half - 0.03, -step)):
        pen.limb([(x, y), (x + swing, 0.05)], 0.09, far)
    body = [(-half - 0.05, y + 0.03), (-half + 0.06, y + 0.13), (half - 0.1, y + 0.14), (half + 0.05, y + 0.1)]
    body += [(half + 0.03, y - 0.1), (0, y - 0.1), (-half + 0.05, y - 0.11)]
    for x, swing in ((-half + 0.05, -step), (half - 0.07, step)):
        pen.limb([(x, y), (x + swing, 0.05)], 0.105, i.main)
        pen.shape(oval(x + swing + 0.02, 0.045, 0.08, 0.045), sock, shade=False)
    hx, hy = half + 0.07, y + 0.29 + 0.03 * pose[2]
    pen.limb([(half - 0.05, y + 0.05), (hx - 0.02, hy - 0.04)], 0.17, i.main)
    pen.shape(smooth(body), i.main, patterned=True)
    wear(pen, i.worn, (half + 0.015, y + 0.15), (hx - 0.02, hy + r), 0.17)
    pen.shape(oval(hx, hy, r, r), i.main)
    snout = i.second if i.pattern != "plain" else mixed(i.main, WHITE, 0.3)
    pen.shape(oval(hx + r * 0.95, hy - 0.045, 0.1, 0.07), snout, shade=False)
    pen.spot(hx + r * 0.95 + 0.07, hy - 0.015, 0.038, INK)
    eye(pen, hx + 0.055, hy + 0.045)
    ear = darker(i.main, 0.68) if i.pattern == "plain" else i.second
    if i.feature == "floppy":
        ear_points = [(hx - 0.03, hy + 0.11), (hx - 0.12, hy + 0.06), (hx - 0.15, hy - 0.12), (hx - 0.07, hy - 0.15)]
        pen.shape(smooth([*ear_points, (hx - 0.01, hy)]), ear)
    else:
        pen.shape([(hx - 0.13, hy + 0.03), (hx - 0.1, hy + 0.27), (hx + 0.02, hy + 0.1)], ear)


def cat(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A sitting cat from the front, its tail to the right."""
    fat, big_head, tall_ears, tail = i.shape[:4]
    w, r, ear = 0.17 + 0.06 * fat, 0.19 + 0.03 * big_head, 0.12 + 0.06 * tall_ears
    end = i.second if tail > 0.5 else i.main
    swing, hy, hx = 0.05 * pose[0], 0.6, 0.04 * pose[1]
    tail_points = [(w * 0.7, 0.08), (w + 0.13, 0.1), (w + 0.2, 0.25), (w + 0.14 + swing, 0.42)]
    pen.limb(tail_points, 0.085, i.main)
    pen.limb(tail_points[2:], 0.085, end)
    body = [(w, 0.0), (w + 0.07, 0.14), (w * 0.75, 0.38), (0.1, 0.5)]
    pen.shape(smooth(mirrored(body)), i.main, patterned=True)
    pen.shape(oval(0, 0.24, w * 0.5, 0.15), mixed(i.second, WHITE, 0.15), shade=False)
    for x in (-0.08, 0.08):
        pen.limb([(x, 0.22), (x, 0.06)], 0.1, i.main)
        pen.shape(oval(x, 0.045, 0.07, 0.045), i.second, shade=False)
    wear(pen, i.worn, (hx * 0.5, 0.42), (hx, hy + r * 0.84), 0.22)
    for side in (-1, 1):
        x = hx + side * r * 0.66
        outer = [(x - side * 0.11, hy + r * 0.75), (x + side * 0.06, hy + r * 0.75 + ear), (x + side * 0.07, hy + 0.04)]
        pen.shape(outer, i.main)
        inner = np.asarray(outer) * 0.55 + np.mean(outer, 0) * 0.45
        pen.shape(inner, (236, 150, 160), shade=False, outline=False)
    pen.shape(oval(hx, hy, r * 1.1, r * 0.92), i.main, patterned=i.pattern in ("patches", "halves"))
    if i.pattern == "stripes":
        for x in (-0.07, 0, 0.07):
            pen.stroke([(hx + x, hy + r * 0.82), (hx + x * 0.8, hy + r * 0.45)], 0.035, i.second)
    iris = (248, 208, 60) if i.feature == "yellow eyes" else (110, 200, 110)
    for side in (-1, 1):
        pen.spot(hx + side * 0.09, hy + 0.03, 0.052, iris, outline=True)
        pen.spot(hx + side * 0.09, hy + 0.03, 0.02, INK, ry=0.042)
        pen.stroke([(hx + side * 0.09, hy - 0.07), (hx + side * 0.26, hy - 0.04 - 0.02 * side)], 0.012, INK)
    pen.shape(oval(hx, hy - 0.085, 0.075, 0.055), mixed(i.second, WHITE, 0.5), shade=False, outline=False)
    pen.shape([(hx - 0.03, hy - 0.05), (hx + 0.03, hy - 0.05), (hx, hy - 0.085)], (226, 110, 130), shade=False)


def bear(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A sitting teddy bear from the front."""
    fat, big_head, ears, _ = i.shape[:4]
    w, r, ear = 0.21 + 0.06 * fat, 0.19 + 0.035 * big_head, 0.075 + 0.03 * ears
    pale, hx, hy = mixed(i.second, WHITE, 0.25), 0.03 * pose[0], 0.64
    for side, raised in ((-1, pose[1]), (1, pose[2])):
        pen.limb([(side * w * 0.8, 0.42), (side * (w + 0.13), 0.3 + 0.14 * raised)], 0.14, i.main)
    pen.shape(oval(0, 0.27, w, 0.24), i.main, patterned=True)
    if i.feature == "belly":
        pen.shape(oval(0, 0.25, w * 0.58, 0.15), pale, shade=False)
    elif i.feature == "heart":
        emblem(pen, "heart", 0, 0.26, 0.1)
    for side in (-1, 1):
        pen.shape(oval(side * (w * 0.85), 0.1, 0.12, 0.105), i.main)
        pen.shape(oval(side * (w * 0.87), 0.095, 0.065, 0.06), pale, shade=False, outline=False)
        x, y = hx + side * r * 0.78, hy + r * 0.78
        pen.shape(oval(x, y, ear, ear), i.main)
        pen.spot(x, y, ear * 0.55, pale)
    pen.shape(oval(hx, hy, r * 1.08, r), i.main, patterned=i.pattern == "patches")
    pen.shape(oval(hx, hy - 0.07, 0.105, 0.08), pale, shade=False)
    pen.spot(hx, hy - 0.035, 0.045, INK, ry=0.032)
    pen.stroke([(hx, hy - 0.04), (hx, hy - 0.1)], 0.014, INK)
    for side in (-1, 1):
        eye(pen, hx + side * 0.09, hy + 0.045)
    wear(pen, i.worn, (hx * 0.4, hy - r - 0.01), (hx, hy + r * 0.88), 0.26)


def duck(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A plump duck from the side."""
    fat, big_head, tail, bill = i.shape[:4]
    d, r, beak = 0.05 * fat, 0.16 + 0.03 * big_head, 0.1 + 0.06 * bill
    orange = (244, 140, 30)
    for x in (-0.09, 0.09):
        pen.limb([(x, 0.14), (x, 0.03), (x + 0.07, 0.03)], 0.05, orange)
    body = [(-0.5, 0.42 + 0.08 * tail), (-0.34, 0.34), (-0.1, 0.4), (0.13, 0.46), (0.34, 0.36)]
    body += [(0.33, 0.17), (0.12, 0.06 - d * 0.4), (-0.18, 0.07 - d * 0.4), (-0.4, 0.22)]
    hx, hy = 0.17 + 0.02 * pose[0], 0.64 + 0.03 * pose[1]
    pen.limb([(0.17, 0.36), (hx, hy)], 0.2, i.main)
    pen.shape(smooth(body), i.main, patterned=i.pattern != "stripes")
    wing = [(-0.3, 0.3 + 0.03 * pose[2]), (-0.1, 0.35), (0.1, 0.3), (0.06, 0.18), (-0.14, 0.16)]
    pen.shape(smooth(wing), i.second if i.pattern != "plain" else darker(i.main, 0.85), patterned=False)
    wear(pen, i.worn, (0.19, 0.45), (hx, hy + r * 0.9), 0.22)
    pen.shape(
        smooth(
            [
                (hx + r * 0.7, hy + 0.05),
                (hx + r + beak, hy + 0.0),
                (hx + r + beak * 0.8, hy - 0.06),
                (hx + r * 0.7, hy - 0.08),
            ]
        ),
        orange,
    )
    if i.feature == "tuft":
        pen.limb([(hx - 0.04, hy + r * 0.8), (hx - 0.12, hy + r + 0.08)], 0.05, i.second)
    pen.shape(oval(hx, hy, r, r), i.main if i.pattern in ("plain", "spots") else i.second)
    eye(pen, hx + 0.065, hy + 0.05)


ANIMALS = (dog, cat, bear, duck)
