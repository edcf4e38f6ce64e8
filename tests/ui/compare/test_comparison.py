"""The table of a comparison."""

from pathlib import Path

from PIL import Image

from dreambooth.evaluation.reports import Cell, Line
from dreambooth.ui.compare.comparison import Comparison, as_html


def comparison(folder: Path, prompt: str = "a <b>dog</b> 'in' snow") -> Comparison:
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    Image.new("RGB", (40, 20), "blue").save(folder / "blue.png")
    cells = (Cell(str(folder / "red.png")), Cell(str(folder / "blue.png")), None)
    blank = (Cell("", "held back"), *cells[:2])
    return Comparison(("Base model", "Without PPL", "With PPL"), (Line(prompt, 0, cells), Line(prompt, 1, blank)))


def test_the_table_shows_words_of_a_visitor_as_text(tmp_path: Path):
    table = as_html(comparison(tmp_path))
    assert table.count("a &lt;b&gt;dog&lt;/b&gt; &#x27;in&#x27; snow</th>") == 1, "one heading for two seeds"
    assert "<b>" not in table
    assert table.count("<img ") == 4
    assert "held back" in table
    assert "pending" in table
