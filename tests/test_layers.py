"""The house: folders import only from rows above their own, modules never in a circle, only the page knows gradio."""

import ast
import graphlib
from pathlib import Path

from benchmarks import house

HOUSE = Path(__file__).parent.parent
ROWS = [
    "errors events files machine cores quiet hub",
    "config objectives toybox",
    "photos prompts families",
    "methods",
    "models",
    "metrics",
    "rehearsal generate apart",
    "training",
    "runs",
    "evaluation",
    "sharing",
    "cli ui toybox.pretrain",
    "__main__",
]
"""Folders, and files that stand beside them: those of one row are one room."""
ROW = {f"dreambooth.{name}": row for row, names in enumerate(ROWS) for name in names.split()}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")


PATHS = {module_of(path): path for path in (HOUSE / "dreambooth").rglob("*.py")}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in PATHS.items()}


def imported(module: str) -> set[str]:
    """The modules of ours that one imports, anywhere in it."""
    found = set()
    for node in ast.walk(TREES[module]):
        names = [alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)]
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports from {'.' * node.level}: write the whole name"
            names = [full if (full := f"{node.module}.{name}") in PATHS else node.module for name in names]
        found |= set(names) & set(PATHS)
    return found - {module, "dreambooth"}  # which holds the version alone


def standing(module: str) -> tuple[int, str]:
    """The row of a module, and its folder; empty for a file beside the folders."""
    while module not in ROW:
        assert "." in module, "give it a row"
        module = module.rpartition(".")[0]
    return ROW[module], module if PATHS[module].stem == "__init__" else ""


IMPORTS = {module: imported(module) for module in PATHS if module != "dreambooth"}


def test_a_folder_imports_only_from_rows_above_its_own():
    for module, others in IMPORTS.items():
        for other in others:
            here, there = standing(module), standing(other)
            assert there[0] < here[0] or there == here, f"{module} imports {other}, which is not above it"


def test_no_modules_import_each_other_in_a_circle():
    graphlib.TopologicalSorter(IMPORTS).prepare()


def test_only_the_page_knows_gradio():
    for module, path in PATHS.items():
        assert module.startswith("dreambooth.ui") or "gradio" not in path.read_text(encoding="utf-8"), module


def test_the_houses_figures_count_floors_and_tell_circles():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": set()}
    assert house.circles(edges) == [{"b", "c"}]
    assert house.floors(edges) == 3, "a, then b and c as one, then d"
    assert house.floors(IMPORTS) > 3
    assert not house.circles(IMPORTS)
