"""The toybox's eight kinds of objects.

Each function takes the pen, the identity and four pose numbers in -1..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dreambooth.toybox.drawing import (
    GLASS,
    INK,
    WHITE,
    Pen,
    Points,
    box,
    darker,
    emblem,
    heart,
    mirrored,
    mixed,
    oval,
    smooth,
    star,
)

if TYPE_CHECKING:
    from dreambooth.toybox.identities import Identity


def robot(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A robot from the front: square head, square body, pipe arms."""
    wide, tall_head, legs, _ = i.shape[:4]
    w, hw, leg = 0.19 + 0.07 * wide, 0.16 + 0.05 * wide, 0.13 + 0.07 * legs
    top, head = leg + 0.37, 0.21 + 0.05 * tall_head
    for side, raised in ((-1, pose[0]), (1, pose[1])):
        pen.limb([(side * w * 0.5, leg + 0.05), (side * w * 0.5, 0.06)], 0.11, i.second)
        pen.shape(box(side * w * 0.55 - 0.1, 0, side * w * 0.55 + 0.1, 0.08, 0.04), i.accent, shade=False)
        hand = (side * (w + 0.16), top - 0.2 + 0.16 * raised)
        pen.limb([(side * w, top - 0.07), (side * (w + 0.12), top - 0.1 + 0.04 * raised), hand], 0.09, i.second)
        pen.shape(oval(*hand, 0.065, 0.065), i.accent, shade=False)
    pen.limb([(0, top - 0.02), (0, top + 0.07)], 0.12, i.second)
    pen.shape(box(-w, leg, w, top, 0.05), i.main, patterned=True)
    if i.worn == "screen":
        pen.shape(box(-w * 0.6, leg + 0.1, w * 0.6, leg + 0.27, 0.03), INK, shade=False)
        for k, colour in enumerate(((230, 70, 60), (248, 208, 60), (90, 200, 100))):
            pen.spot((k - 1) * w * 0.36, leg + 0.185, 0.036, colour)
    else:
        emblem(pen, i.worn, 0, leg + 0.18, 0.12)
    base, roof = top + 0.05, top + 0.05 + head
    tips = {"one antenna": (0.0,), "two antennas": (-0.1, 0.1)}.get(i.feature.split(",")[0], ())
    for x in tips:
        pen.limb([(x, roof - 0.02), (x * 1.3, roof + 0.09)], 0.03, (150, 154, 162))
        pen.shape(oval(x * 1.3, roof + 0.11, 0.045, 0.045), i.accent, shade=False)
    for side in (-1, 1):
        pen.shape(box(side * hw - 0.045, base + 0.06, side * hw + 0.045, base + 0.17, 0.02), i.accent, shade=False)
    pen.shape(box(-hw, base, hw, roof, 0.06), i.main)
    _robot_face(pen, i.feature, hw, base + head * 0.62)


def _robot_face(pen: Pen, feature: str, hw: float, y: float) -> None:
    if feature.endswith("visor"):
        pen.shape(box(-hw * 0.75, y - 0.055, hw * 0.75, y + 0.055, 0.05), INK, shade=False)
    for side in (-1, 1):
        x = side * hw * 0.45
        if feature.endswith("round"):
            pen.spot(x, y, 0.065, WHITE, outline=True)
            pen.spot(x, y, 0.033, INK)
        elif feature.endswith("square"):
            pen.shape(box(x - 0.055, y - 0.055, x + 0.055, y + 0.055, 0.01), (120, 226, 240), shade=False)
        else:
            pen.spot(x, y, 0.033, (120, 240, 250))
    pen.shape(box(-hw * 0.5, y - 0.13, hw * 0.5, y - 0.09, 0.02), INK, shade=False, outline=False)


def car(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A small car from the side."""
    roof_height, hood, wheel, _ = i.shape[:4]
    top, r, front = 0.48 + 0.08 * roof_height, 0.105 + 0.025 * wheel, 0.2 + 0.06 * hood
    if i.feature == "van":
        cabin: Points = [(-0.44, 0.25), (-0.44, top + 0.02), (front + 0.05, top + 0.02), (front + 0.17, 0.26)]
    elif i.feature == "round":
        cabin = smooth(
            [(-0.44, 0.24), (-0.3, top - 0.06), (-0.05, top + 0.02), (0.15, top - 0.06), (front + 0.1, 0.24)]
        )
    else:
        cabin = [(-0.36, 0.28), (-0.26, top), (front - 0.14, top), (front + 0.05, 0.28)]
    if i.worn == "roof rack":
        pen.shape(box(-0.22, top, 0.1, top + 0.09, 0.02), i.accent, shade=False)
    pen.shape(cabin, i.second if i.pattern == "halves" else i.main)
    for x0, x1, slope in ((-0.27, -0.07, 0.05), (-0.03, front - 0.12, 0.0)):
        pen.shape(
            [(x0, 0.31), (x0 + slope, top - 0.06), (x1, top - 0.06), (x1 + (0.09 if slope == 0 else 0), 0.31)],
            GLASS,
            shade=False,
        )
    body = [(-0.5, 0.12), (-0.5, 0.27), (-0.44, 0.32), (front, 0.32), (0.44, 0.28), (0.5, 0.22), (0.5, 0.12)]
    pen.shape(body, i.main, patterned=i.pattern != "halves")
    if i.worn == "stripe":
        pen.shape(box(-0.49, 0.18, 0.49, 0.23, 0), i.accent, shade=False, outline=False)
    else:
        emblem(pen, i.worn, -0.02, 0.22, 0.09)
    pen.spot(0.455, 0.235, 0.045, (255, 236, 150), outline=True)
    pen.shape(box(-0.51, 0.2, -0.46, 0.28, 0.01), (226, 50, 50), shade=False)
    for x in (-0.28, 0.28):
        pen.shape(oval(x, r, r, r), (46, 44, 50), shade=False)
        pen.spot(x, r, r * 0.5, i.second if i.second != i.main else WHITE, outline=True)
        turn = pose[0] * np.pi
        reach = r * 0.45
        pen.stroke(
            [
                (x - reach * np.cos(turn), r - reach * np.sin(turn)),
                (x + reach * np.cos(turn), r + reach * np.sin(turn)),
            ],
            0.02,
            INK,
        )


def mug(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A mug with its handle to the right."""
    wide, tall, taper, ring = i.shape[:4]
    w, h, foot = 0.25 + 0.07 * wide, 0.62 + 0.2 * tall, 0.72 + 0.28 * taper
    lip = 0.07
    handle = [
        (w * 0.9, h * 0.78),
        (w + 0.15, h * 0.78),
        (w + 0.2, h * 0.52),
        (w + 0.13, h * 0.28),
        (w * 0.85, h * 0.26),
    ]
    pen.limb(smooth(handle)[:25], 0.08 + 0.025 * ring, i.second)
    angle = np.linspace(np.pi, 2 * np.pi, 12)
    bottom = np.stack([w * foot * np.cos(angle), 0.06 + 0.06 * np.sin(angle)], 1)
    pen.shape([*bottom, (w, h), (-w, h)], i.main, patterned=True)
    pen.shape(oval(0, h, w, lip), mixed(i.main, WHITE, 0.35), shade=False)
    drink = (92, 54, 30) if i.feature != "milk" else (246, 236, 220)
    pen.shape(oval(0, h - 0.008, w * 0.83, lip * 0.72), drink, shade=False, outline=False)
    if i.worn == "band":
        pen.shape([(-w * 0.95, h * 0.62), (w * 0.95, h * 0.62), (w * 0.9, h * 0.4), (-w * 0.9, h * 0.4)], i.accent)
    emblem(pen, i.worn, -0.02, h * 0.47, 0.15)
    if i.feature == "steam":
        for x in (-0.09, 0.08):
            bend = 0.03 * pose[0]
            pen.stroke(smooth([(x, h + 0.03), (x + 0.03 + bend, h + 0.09), (x, h + 0.16)])[:13], 0.03, (238, 240, 244))


def teapot(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A round teapot, spout to the right, handle to the left."""
    fat, tall, spout, _ = i.shape[:4]
    w, h = 0.25 + 0.05 * fat, 0.4 + 0.14 * tall
    up = h * 0.92 + 0.08 * spout
    pen.limb(
        smooth([(-w * 0.7, h * 0.88), (-w - 0.13, h * 0.9), (-w - 0.17, h * 0.55), (-w * 0.8, h * 0.26)])[:19],
        0.075,
        i.second,
    )
    pen.shape(
        smooth(
            [
                (w * 0.5, h * 0.2),
                (w + 0.06, h * 0.42),
                (w + 0.13, up - 0.04),
                (w + 0.22, up + 0.02),
                (w + 0.1, up + 0.03),
                (w * 0.98, h * 0.72),
                (w * 0.4, h * 0.72),
            ]
        ),
        i.second,
    )
    pen.shape(box(-w * 0.55, 0, w * 0.55, 0.07, 0.02), i.second, shade=False)
    body = [(w * 0.6, 0.04), (w * 1.03, h * 0.36), (w * 0.92, h * 0.75), (w * 0.5, h)]
    pen.shape(smooth(mirrored(body)), i.main, patterned=True)
    lid = mirrored([(w * 0.6, h - 0.02), (w * 0.42, h + 0.08), (w * 0.1, h + 0.12)])
    pen.shape(smooth(lid), i.second if i.pattern != "plain" else i.main)
    if i.feature == "ball knob":
        pen.shape(oval(0, h + 0.16, 0.065, 0.065), i.accent)
    elif i.feature == "star knob":
        pen.shape(star(0, h + 0.18, 0.1), i.accent, shade=False)
    else:
        pen.shape(box(-0.1, h + 0.1, 0.1, h + 0.17, 0.03), i.accent)
    emblem(pen, i.worn, 0, h * 0.5, 0.14)


def backpack(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A backpack from the front."""
    wide, tall, pocket, _ = i.shape[:4]
    w, h = 0.25 + 0.07 * wide, 0.74 + 0.12 * tall
    ph = h * (0.34 + 0.08 * pocket)
    pen.limb(smooth([(-0.09, h - 0.03), (-0.07, h + 0.09), (0.07, h + 0.09), (0.09, h - 0.03)])[:19], 0.05, i.second)
    for side in (-1, 1):
        lean = 0.03 * pose[0]
        strap = [(side * w * 0.8, h * 0.82), (side * (w + 0.1 + lean), h * 0.5), (side * w * 0.85, h * 0.1)]
        pen.limb(strap, 0.075, i.second)
    outline = [(w * 0.92, 0.0), (w * 1.03, h * 0.3), (w * 0.95, h * 0.72), (w * 0.55, h)]
    pen.shape(smooth(mirrored(outline)), i.main, patterned=True)
    pen.stroke([(-w * 0.8, h * 0.63), (w * 0.8, h * 0.63)], 0.022, darker(i.main, 0.5))
    if i.feature == "two pockets":
        for side in (-1, 1):
            pen.shape(box(side * w * 0.44 - w * 0.36, 0.05, side * w * 0.44 + w * 0.36, ph, 0.05), i.accent)
        emblem(pen, i.worn, 0, h * 0.76, 0.1)
    else:
        pen.shape(box(-w * 0.72, 0.05, w * 0.72, ph + 0.04, 0.06), i.accent)
        if i.worn in ("star", "heart", "circle"):
            outlines = {"star": star(0, ph * 0.58, 0.1), "heart": heart(0, ph * 0.58, 0.1)}
            pen.shape(outlines.get(i.worn, oval(0, ph * 0.58, 0.1, 0.1)), i.second, shade=False)


def clock(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """An alarm clock; the time it shows is part of the pose."""
    big, ring, bells, square = i.shape[:4]
    r, y = 0.29 + 0.05 * big, 0.4 + 0.03 * big
    for side in (-1, 1):
        pen.limb([(side * r * 0.5, y - r * 0.7), (side * r * 0.78, 0.03)], 0.075, i.second)
    if i.feature == "bells":
        pen.limb([(-0.12, y + r), (0, y + r + 0.15), (0.12, y + r)], 0.035, i.second)
        for side in (-1, 1):
            tilt = -side * 38
            pen.shape(oval(side * r * 0.66, y + r * 1.0, 0.13 + 0.03 * bells, 0.095, tilt), i.accent)
    else:
        pen.limb([(0, y + r), (0, y + r + 0.07)], 0.06, i.second)
        pen.shape(oval(0, y + r + 0.1, 0.07, 0.05), i.accent, shade=False)
    case = box(-r, y - r, r, y + r, 0.09) if square > 0.6 else oval(0, y, r, r, n=40)
    pen.shape(case, i.main, patterned=True)
    f = r * (0.8 - 0.12 * ring)
    face = mixed(i.second, WHITE, 0.78) if i.worn == "tinted face" else WHITE
    pen.shape(oval(0, y, f, f, n=40), face, shade=False)
    for k in range(0, 12, 3):
        a = k * np.pi / 6
        pen.spot(f * 0.8 * np.sin(a), y + f * 0.8 * np.cos(a), 0.03, i.accent if i.worn == "dots" else INK)
    hour, minute = np.pi * pose[0], np.pi * pose[1]
    for angle, reach, width in ((hour, 0.45, 0.045), (minute, 0.66, 0.03)):
        pen.stroke([(0, y), (f * reach * np.sin(angle), y + f * reach * np.cos(angle))], width, INK)
    pen.spot(0, y, 0.035, i.accent)


def sneaker(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A sneaker from the side, toe to the right."""
    thick, long_toe, heel, _ = i.shape[:4]
    sole, toe = 0.1 + 0.05 * thick, 0.4 + 0.05 * long_toe
    top = 0.42 + 0.05 * heel + (0.16 if i.feature == "high" else 0.0)
    low = sole - 0.02
    front = top - 0.02
    pen.shape(
        smooth([(-0.2, top - 0.1), (-0.14, top + 0.08), (-0.02, top + 0.06), (0.06, 0.36), (-0.05, 0.3)]), i.second
    )
    upper = [(-0.46, low), (-0.45, top * 0.6), (-0.44, top), (-0.33, top - 0.03), (-0.2, top - 0.05), (-0.08, front)]
    upper += [(0.08, 0.36 + (front - 0.4) * 0.2), (0.22, 0.27), (toe, 0.22), (0.5, 0.13), (0.48, low)]
    pen.shape(smooth(upper, 4), i.main, patterned=True)
    pen.shape(
        smooth([(0.27, low), (0.25, 0.2), (0.32, 0.26), (toe + 0.02, 0.21), (0.5, 0.13), (0.48, low)], 4), i.second
    )
    pen.shape(box(-0.47, low, -0.36, top - 0.06, 0.03), i.accent)
    pen.shape(box(-0.5, 0, 0.53, sole, 0.05), WHITE if i.worn != "dark sole" else (70, 66, 72))
    pen.shape(box(-0.49, sole * 0.3, 0.52, sole * 0.52, 0.0), i.accent, shade=False, outline=False)
    if i.worn == "star":
        pen.shape(star(-0.14, (sole + top) * 0.47, 0.1), i.accent, shade=False)
    elif i.worn == "swoosh":
        y = sole + 0.06
        swoosh = [(-0.28, y), (-0.2, y + 0.03), (0.17, y + 0.14), (-0.1, y + 0.12), (-0.27, y + 0.07)]
        pen.shape(smooth(swoosh, 4), i.accent, shade=False)
    for k in range(3 if i.feature == "low" else 4):
        x, y = 0.17 - 0.085 * k, 0.31 + (0.03 + 0.25 * (top - 0.42)) * k
        pen.stroke([(x - 0.055, y - 0.05), (x + 0.05, y + 0.02)], 0.034, WHITE)


def vase(pen: Pen, i: Identity, pose: Sequence[float]) -> None:
    """A vase, with or without flowers."""
    belly, neck, tall, height = i.shape[:4]
    h = 0.6 + 0.12 * tall
    b, n, at = 0.2 + 0.1 * belly, 0.075 + 0.09 * neck, h * (0.3 + 0.28 * height)
    if i.feature != "empty":
        for k, x in enumerate((-0.16, 0.0, 0.16)):
            tip = (x + 0.03 * pose[k], h + (0.27 if x == 0 else 0.17))
            pen.stroke([(x * 0.2, h - 0.05), tip], 0.03, (70, 140, 66))
            if i.feature == "tulips":
                half = [(0, -0.08), (0.06, -0.06), (0.08, 0.0), (0.085, 0.09), (0.04, 0.035), (0, 0.09)]
                bloom = np.array([*half, *((-u, v) for u, v in half[4:0:-1])]) + tip
                pen.shape(bloom, i.accent, shade=False)
            else:
                pen.shape(oval(*tip, 0.085, 0.085), i.accent, shade=False)
                pen.spot(*tip, 0.035, (250, 214, 80))
    profile = [(b * 0.6, 0.0), (b * 0.8, 0.06), (b, at), (n, h * 0.82), (n * 1.1, h * 0.9), (n * 1.6, h)]
    pen.shape(smooth(mirrored(profile)), i.main, patterned=True)
    pen.shape(oval(0, h, n * 1.55, 0.035), darker(i.main, 0.55), shade=False)
    if i.worn == "ring":
        pen.limb([(-n, h * 0.8), (n, h * 0.8)], 0.06, i.second)
    emblem(pen, i.worn, 0, at, 0.12)


OBJECTS = (robot, car, mug, teapot, backpack, clock, sneaker, vase)
