"""What a comparison looks like on the page: pictures in lines of one prompt and seed, as a table."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from dreambooth.evaluation.reports import Cell, Line


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
