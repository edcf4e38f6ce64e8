"""A report's Markdown as one HTML file that needs nothing else: pictures inside, light and dark, wide and narrow."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from markdown_it import MarkdownIt
from PIL import Image

QUALITY = 85  # of a picture's JPEG: artefacts are not seen at a gallery's size

STYLE = """
:root { color-scheme: light dark; --paper: #faf8f4; --card: #fff; --ink: #1f1c18; --faint: #6b6359; --rule: #e6e0d5;
  --ember: #b23c17; --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #151310; --card: #1f1c18; --ink: #f3efe8; --faint: #a59c8d; --rule: #37322b; --ember: #f67d52; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 ui-sans-serif, system-ui, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 40px 20px 80px; overflow-wrap: break-word; }
h1 { font: 600 2.1rem/1.15 var(--serif); margin: 0 0 12px; }
h2 { font: 600 1.35rem/1.2 var(--serif); margin: 48px 0 12px; padding-top: 20px; border-top: 1px solid var(--rule); }
h3 { font: italic 1.12rem/1.3 var(--serif); margin: 28px 0 8px; color: var(--ember); }
h1 + p { font-size: 1.06rem; color: var(--faint); margin-top: 0; }
ul { padding-left: 1.1em; } li { margin: 4px 0; } li strong { color: var(--ember); }
img { display: block; max-width: 100%; height: auto; border-radius: 10px; margin: 18px 0; }
.table { overflow-x: auto; margin: 18px 0; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--faint); white-space: nowrap; }
tbody tr { border-top: 1px solid var(--rule); }
td em { color: var(--faint); }
@media (max-width: 600px) { main { padding: 24px 14px 60px; } h1 { font-size: 1.6rem; } th, td { padding: 7px 10px; } }
@media print { main { max-width: none; padding: 0; } }
"""


def as_page(title: str, text: str, folder: Path) -> str:
    """The Markdown `text` as a page; its pictures, files in `folder`, become part of it. HTML in `text` stays text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                child.attrs["src"] = as_data(folder / str(child.attrs["src"]))
                child.attrs["loading"] = "lazy"
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace("<table>", '<div class="table" tabindex="0"><table>').replace("</table>", "</table></div>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def as_data(path: Path) -> str:
    """A picture's file as a data URI: as it is, or as a JPEG where that is smaller."""
    own = path.read_bytes()
    with Image.open(path) as image:
        kind = str(image.format).lower()
        packed = io.BytesIO()
        image.convert("RGB").save(packed, "JPEG", quality=QUALITY, optimize=True)
    if packed.tell() < len(own):
        kind, own = "jpeg", packed.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(own).decode()}"
