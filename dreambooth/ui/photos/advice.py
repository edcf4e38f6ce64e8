"""What the page says of the photos: each with its crop box, and what the coach finds."""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Iterable, Sequence

import gradio as gr
from PIL import Image, ImageDraw, ImageFont

from dreambooth.errors import PhotoError
from dreambooth.photos.coach import Finding, coach
from dreambooth.photos.prepare import SHOWN, Crop, Prepared
from dreambooth.photos.sheets import show_crop
from dreambooth.ui.photos.crops import prepared
from dreambooth.ui.photos.uploads import refuse_too_many

OF_ALL = ("too_few", "too_many", "same_background", "same_pose")
"""Findings about the photos as a set."""
WAITING = """<div class="empty"><strong>No photos yet.</strong> Drop three to five, each from another angle and in
another place: that is how the model tells your subject from its surroundings.</div>"""


def look_at(resolution: int, paths: Sequence[str], crops: Sequence[Crop | None]) -> tuple[gr.Gallery, str]:
    """Each photo with its crop box, and the coach's advice as HTML; photos that can't be used are named there."""
    if not paths:
        return gr.Gallery([], visible=False), WAITING
    refuse_too_many(paths)
    photos: list[Prepared | PhotoError] = []
    for path, crop in zip(paths, crops, strict=True):
        try:
            photos.append(prepared(path, resolution, crop))
        except PhotoError as error:
            photos.append(error)
    shown = [
        (show_crop(photo), photo.name) if isinstance(photo, Prepared) else (_blank(), "Can't be used")
        for photo in photos
    ]
    return gr.Gallery(shown, visible=True), _advice(photos)


@functools.cache
def _blank() -> Image.Image:
    """Stands for a photo that can't be used, so that pictures and photos have the same places."""
    tile = Image.new("RGB", (SHOWN, SHOWN), "#7b7266")
    font = ImageFont.load_default(size=SHOWN // 4)
    ImageDraw.Draw(tile).text((SHOWN / 2, SHOWN / 2), "?", "white", font, anchor="mm")
    return tile


def _advice(photos: Sequence[Prepared | PhotoError]) -> str:
    """What the coach finds: on top what concerns all photos, then each photo with what concerns it."""
    usable = [photo for photo in photos if isinstance(photo, Prepared)]
    findings = coach(usable)
    of_all = [_remark(f.severity, f.message) for f in findings if f.code in OF_ALL]
    if not findings and len(usable) == len(photos):
        of_all = [_remark("good", f"{len(usable)} photos, and nothing to improve.")]
    rows, number = [], 0
    for photo in photos:
        if isinstance(photo, Prepared):
            rows.append(_row(photo, [f for f in findings if number in f.photos and f.code not in OF_ALL]))
            number += 1
        else:
            rows.append(f"<li>{_remarks([_remark('error', str(photo))])}</li>")
    return f"<h3>The photo coach</h3>{_remarks(of_all)}<ol class='coached'>{''.join(rows)}</ol>"


def _row(photo: Prepared, findings: Sequence[Finding]) -> str:
    """A photo as training sees it, and beside it what concerns it."""
    name = html.escape(photo.name)
    remarks = [_remark(f.severity, _without(photo.name, f)) for f in findings]
    said = _remarks(remarks) or " <span>Good as it is.</span>"
    return f"<li>{thumbnail(photo)}<div><strong>{name}</strong>{said}</div></li>"


def thumbnail(photo: Prepared) -> str:
    """A photo as training sees it, small, as HTML."""
    file = io.BytesIO()
    photo.preview.resize((144, 144), Image.Resampling.LANCZOS).save(file, "JPEG", quality=80)
    name, data = html.escape(photo.name, quote=True), base64.b64encode(file.getvalue()).decode()
    return f"<img src='data:image/jpeg;base64,{data}' alt='Crop of {name}'>"


def _without(name: str, finding: Finding) -> str:
    """What is said of a photo, where its name stands beside it."""
    about_one = finding.message.removeprefix(f"{name} ") if len(finding.photos) == 1 else finding.message
    return about_one[0].upper() + about_one[1:]


def _remark(kind: str, text: str) -> str:
    word = {"error": "Can't be used", "warning": "Better change", "tip": "Tip", "good": "Ready"}[kind]
    return f"<li class='{kind}'><strong>{word}</strong> {html.escape(text)}</li>"


def _remarks(items: Iterable[str]) -> str:
    lines = "".join(items)
    return f"<ul class='findings'>{lines}</ul>" if lines else ""
