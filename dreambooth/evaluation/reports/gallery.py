"""Pictures side by side, a column per model and a row per prompt and seed, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreambooth.evaluation.evaluate import Evaluation
from dreambooth.evaluation.reports.tables import capital, conditions
from dreambooth.files import atomic_file

CELL = 256
"""Least side of a picture on the sheet, in pixels, so that the words beside it can be read; the toybox draws 128."""
PAPER, INK, FAINT, RULE = "#faf8f4", "#1f1c18", "#6b6359", "#d0c8ba"
CLASS_ROWS = 2  # pictures of the class prompt in a gallery: with fewer, drift may be luck


class Cell(NamedTuple):
    """A picture, by its file, or the problem that there is none for."""

    path: str
    problem: str = ""


class Line(NamedTuple):
    """One prompt and seed, drawn by every model; None where a picture is still to come."""

    prompt: str
    seed: int
    cells: tuple[Cell | None, ...]


def gallery(evaluations: Sequence[Evaluation], path: Path, prompts: int = 8) -> Path:
    """Write the pictures of one subject by every condition, each prompt's first seed, and of its class; returns `path`.

    Of more than `prompts` prompts, as many are taken evenly; of several trainings of a condition, the first.
    """
    columns = {c: next(e for e in evaluations if e.condition == c) for c in conditions(evaluations)}
    first = next(iter(columns.values()))
    one_word = len({evaluation.identifier for evaluation in columns.values()}) == 1
    texts = [prompt.prompt for prompt in first.prompts] if one_word else first.templates
    picked = sorted({round(place) for place in np.linspace(0, len(texts) - 1, min(prompts, len(texts)))})
    wanted = [(first.templates[number], texts[number], first.first_seed) for number in picked]
    wanted += [(first.class_prompt, first.class_prompt, p.seed) for p in first.class_pictures[:CLASS_ROWS]]
    drawn = [_cells(evaluation) for evaluation in columns.values()]
    lines = [Line(text, seed, tuple(cells.get((key, seed)) for cells in drawn)) for key, text, seed in wanted]
    with atomic_file(path) as partial:
        draw_sheet([capital(condition) for condition in columns], lines).save(partial)
    return path


def _cells(evaluation: Evaluation) -> dict[tuple[str, int], Cell]:
    """Every picture by template or class prompt, and seed."""
    found = {}
    templates = evaluation.templates
    for picture in evaluation.pictures:
        found[templates[picture.prompt], picture.seed] = _cell(evaluation, picture.file, picture.problem)
    for other in evaluation.class_pictures:
        found[evaluation.class_prompt, other.seed] = _cell(evaluation, other.file, other.problem)
    return found


def _cell(evaluation: Evaluation, file: str, problem: str) -> Cell:
    path = evaluation.folder / "images" / file
    if not problem and not path.is_file():
        problem = "its file is gone"
    return Cell("" if problem else str(path), problem)


def draw_sheet(titles: Sequence[str], lines: Sequence[Line]) -> Image.Image:
    """The pictures as one, with the models' names above and each prompt over its rows."""
    pictures = [[_load(cell) for cell in line.cells] for line in lines]
    side = max(
        CELL, *(p.width for row in pictures for p in row if p), *(p.height for row in pictures for p in row if p)
    )
    gap, size = side // 32, side // 14
    font, small = _font(size), _font(round(0.8 * size))
    width = gap + len(titles) * (side + gap)
    headings = {}
    for number, line in enumerate(lines):
        if number == 0 or line.prompt != lines[number - 1].prompt:
            headings[number] = _wrapped(line.prompt, small, width - 2 * gap)
    step = round(1.3 * small.size)
    top = round(2 * size)
    height = top + len(lines) * (side + gap) + sum(len(text) * step + gap for text in headings.values()) + gap
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((gap + column * (side + gap), gap), title, fill=INK, font=font)
    for number, row in enumerate(pictures):
        for text in headings.get(number, ()):
            pen.text((gap, top), text, fill=FAINT, font=small)
            top += step
        top += gap if number in headings else 0
        for column, (picture, cell) in enumerate(zip(row, lines[number].cells, strict=True)):
            left = gap + column * (side + gap)
            if picture is None:
                pen.rectangle((left, top, left + side - 1, top + side - 1), outline=RULE)
                words = _wrapped(cell.problem if cell else "not drawn", small, side - 2 * gap)
                pen.multiline_text((left + gap, top + gap), "\n".join(words), fill=FAINT, font=small)
            else:
                scale = side / max(picture.size)
                fitted = picture.resize([round(edge * scale) for edge in picture.size], Image.Resampling.LANCZOS)
                sheet.paste(fitted, (left, top))
        top += side + gap
    return sheet


def _load(cell: Cell | None) -> Image.Image | None:
    if cell is None or not cell.path:
        return None
    with Image.open(cell.path) as image:
        return image.convert("RGB")


def _font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own, which has FreeType's outlines where a size is given."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines that are no wider than `width` pixels; a word that is too wide is cut."""
    lines = [""]
    for word in text.split():
        while font.getlength(word) > width:
            word = word[:-1]
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
