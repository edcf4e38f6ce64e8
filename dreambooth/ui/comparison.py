"""What a comparison looks like: pictures in lines of one prompt and seed, as a table for the page and as one PNG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageFont

CELL = 256
"""Least side of a picture on the sheet, in pixels, so that the words beside it can be read; the toybox draws 128."""
PAPER, INK, FAINT, RULE = "#faf8f4", "#1f1c18", "#6b6359", "#d0c8ba"


class Cell(NamedTuple):
    """A picture, by its file, or the problem that there is none for."""

    path: str
    problem: str = ""


class Line(NamedTuple):
    """One prompt and seed, drawn by every model; None where a picture is still to come."""

    prompt: str
    seed: int
    cells: tuple[Cell | None, ...]


class Comparison(NamedTuple):
    """What is on the page."""

    titles: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    sheet: str = ""
    """The file of the PNG that shows it all."""

    def with_pictures(self, prompt: int, column: int, cells: Sequence[Cell]) -> Comparison:
        """With the pictures of the `prompt`-th prompt by one model; its lines are the last, as many as pictures."""
        start = prompt * len(cells)
        changed = [
            line._replace(cells=(*line.cells[:column], cell, *line.cells[column + 1 :]))
            for line, cell in zip(self.lines[start:], cells, strict=True)
        ]
        return self._replace(lines=(*self.lines[:start], *changed))


def captioned(shown: Comparison) -> list[tuple[str, str]]:
    """Every picture there is with model, prompt and seed."""
    return [
        (cell.path, f"{title} · {line.prompt} · seed {line.seed}")
        for line in shown.lines
        for title, cell in zip(shown.titles, line.cells, strict=True)
        if cell and cell.path
    ]


def as_html(shown: Comparison) -> str:
    """The comparison as a table: a head per model, a heading per prompt, a row per seed."""
    heads = "".join(f"<th scope='col'>{title}</th>" for title in shown.titles)
    rows, before = [], None
    for line in shown.lines:
        if line.prompt != before:
            span = len(shown.titles)
            rows.append(f"<tr><th scope='rowgroup' colspan='{span}'>{html.escape(line.prompt)}</th></tr>")
            before = line.prompt
        cells = (_cell_html(title, line, cell) for title, cell in zip(shown.titles, line.cells, strict=True))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table class='comparison'><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell_html(title: str, line: Line, cell: Cell | None) -> str:
    if cell is None:
        return "<td><span class='pending'></span></td>"
    if cell.problem:
        return f"<td><span class='problem'>{html.escape(cell.problem)}</span></td>"
    told = html.escape(f"{title}: {line.prompt}, seed {line.seed}", quote=True)
    url = f"gradio_api/file={quote(cell.path)}"
    return f"<td><a href='{url}' target='_blank'><img src='{url}' alt='{told}' title='seed {line.seed}'></a></td>"


def draw_sheet(shown: Comparison) -> Image.Image:
    """The comparison as one picture, with the models' names above and each prompt over its rows."""
    pictures = [[_load(cell) for cell in line.cells] for line in shown.lines]
    side = max(
        CELL, *(p.width for row in pictures for p in row if p), *(p.height for row in pictures for p in row if p)
    )
    gap, size = side // 32, side // 14
    font, small = ImageFont.load_default(size=size), ImageFont.load_default(size=round(0.8 * size))
    width = gap + len(shown.titles) * (side + gap)
    headings = {}
    for number, line in enumerate(shown.lines):
        if number == 0 or line.prompt != shown.lines[number - 1].prompt:
            headings[number] = _wrapped(line.prompt, small, width - 2 * gap)
    step = round(1.3 * small.size)
    top = round(2 * size)
    height = top + len(shown.lines) * (side + gap) + sum(len(text) * step + gap for text in headings.values()) + gap
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(shown.titles):
        pen.text((gap + column * (side + gap), gap), title, fill=INK, font=font)
    for number, row in enumerate(pictures):
        for text in headings.get(number, ()):
            pen.text((gap, top), text, fill=FAINT, font=small)
            top += step
        top += gap if number in headings else 0
        for column, (picture, cell) in enumerate(zip(row, shown.lines[number].cells, strict=True)):
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
