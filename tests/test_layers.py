"""The house plan's layers: a module imports only from rows above its own."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "dreambooth"
LAYERS = [
    {"errors", "config", "events", "files", "bombs"},
    {"photos", "captions", "coach", "objectives", "machine", "cores", "metrics", "prompts"},
    {"hub", "architectures", "families", "fetch", "adapters", "kohya", "methods", "tokens", "checkpoints", "encoders"},
    {"generate", "prior", "packs", "dataset", "rehearsal", "preflight", "monitor", "train", "evaluate", "reports"},
    {"runs", "subjects", "merge", "apart"},
    {"study", "publish", "card", "published"},
    {"cli", "__main__", "ui"},
]
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
SAME_ROW = {
    ("events", "errors"), ("config", "errors"), ("config", "files"), ("files", "errors"), ("coach", "photos"),
    ("cores", "machine"), ("methods", "families"), ("tokens", "families"),
    ("tokens", "methods"), ("captions", "photos"),
    ("encoders", "families"), ("families", "hub"),
    ("families", "architectures"), ("fetch", "families"), ("fetch", "hub"), ("fetch", "methods"),
    ("encoders", "fetch"), ("adapters", "families"), ("adapters", "fetch"), ("adapters", "hub"),
    ("adapters", "methods"), ("kohya", "adapters"), ("kohya", "families"), ("kohya", "methods"),
    ("prior", "generate"), ("preflight", "generate"), ("preflight", "dataset"), ("preflight", "rehearsal"),
    ("train", "generate"), ("train", "prior"), ("train", "dataset"), ("train", "preflight"),
    ("generate", "rehearsal"), ("packs", "prior"), ("packs", "generate"), ("train", "packs"),
    ("train", "rehearsal"), ("train", "monitor"), ("evaluate", "generate"),
    ("evaluate", "monitor"), ("generate", "monitor"), ("reports", "monitor"), ("reports", "evaluate"),
    ("publish", "card"), ("__main__", "cli"), ("cli", "ui"),
}  # fmt: skip
"""Within a row: who may build on whom, one way only."""


def imported(path: Path) -> set[str]:
    """The dreambooth modules, by their first name, that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dreambooth":
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("dreambooth.")}
    return names


def modules() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in ROOT.rglob("*.py"):
        first = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if first not in ("toybox", "__init__"):
            found.setdefault(first, []).append(path)
    return found


def test_every_module_has_a_row():
    assert set(modules()) <= set(ROW), f"give a row to {set(modules()) - set(ROW)}"


def test_modules_import_only_from_rows_above():
    for name, paths in modules().items():
        for path in paths:
            for other in imported(path) - {name, "toybox"}:
                allowed = ROW[other] < ROW[name] or (name, other) in SAME_ROW
                assert allowed, f"{path.name} imports dreambooth.{other}, which is not above it"


def test_only_the_page_knows_gradio():
    for name, paths in modules().items():
        for path in paths:
            if name != "ui":
                assert "gradio" not in path.read_text(encoding="utf-8"), path
