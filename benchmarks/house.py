"""The house in figures: floors of imports, circles, rooms, the longest files and functions, here or as of a revision.

`python -m benchmarks.house`, or `python -m benchmarks.house --at 3cb3c59`, which is before the folders became rows.
"""

from __future__ import annotations

import ast
import functools
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

import click

HOUSE = Path(__file__).parent.parent
PACKAGE = "dreambooth"


def read(root: Path) -> tuple[dict[str, Path], dict[str, ast.Module]]:
    """The package's modules under `root`: where each lies, and its syntax tree."""
    paths = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        paths[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path
    return paths, {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in paths.items()}


def imports(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """The modules of ours that each module imports, anywhere in it."""
    found: dict[str, set[str]] = {module: set() for module in trees}
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                names = {full if full in trees else node.module for full in whole.values()}
            else:
                continue
            found[module] |= names & trees.keys() - {module, PACKAGE}
    return found


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other in a circle: the strongly connected components of more than one."""

    @functools.cache
    def reached(module: str) -> frozenset[str]:
        seen, waiting = set(), [module]
        while waiting:
            for other in edges[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return frozenset(seen)

    groups = {frozenset({m, *(o for o in reached(m) if m in reached(o))}) for m in edges}
    return sorted((set(group) for group in groups if len(group) > 1), key=sorted)


def floors(edges: dict[str, set[str]]) -> int:
    """How many modules stand above each other: the longest chain of imports, a circle counted as one module."""
    whole = {module: module for module in edges}
    for number, circle in enumerate(circles(edges)):
        whole |= dict.fromkeys(circle, f"circle {number}")
    above: dict[str, set[str]] = {name: set() for name in whole.values()}
    for module, others in edges.items():
        above[whole[module]] |= {whole[other] for other in others} - {whole[module]}

    @functools.cache
    def floor(name: str) -> int:
        return 1 + max(map(floor, above[name]), default=0)

    return max(map(floor, above))


def functions(trees: dict[str, ast.Module]) -> list[tuple[int, str]]:
    """Every function's lines and name, the longest first."""
    found = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                found.append((node.end_lineno - node.lineno + 1, f"{module}.{node.name}"))
    return sorted(found, reverse=True)


def of_rooms(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same between rooms: the folders, the files beside them, and what trains the toybox."""
    apart = f"{PACKAGE}.toybox.pretrain"
    room = {module: apart if module.startswith(apart) else ".".join(module.split(".")[:2]) for module in edges}
    found: dict[str, set[str]] = {name: set() for name in room.values()}
    for module, others in edges.items():
        found[room[module]] |= {room[other] for other in others} - {room[module]}
    return found


def report(root: Path) -> str:
    """What there is to say of the checkout in `root`."""
    paths, trees = read(root)
    edges = imports(trees)
    edges.pop(PACKAGE, None)
    between = of_rooms(edges)
    rooms: dict[str, int] = {}
    for module in paths:
        parts = module.split(".")
        room = parts[1] if len(parts) > 2 or (len(parts) == 2 and paths[module].stem == "__init__") else ""
        rooms[room] = rooms.get(room, 0) + 1
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in paths.items()}
    longest = sorted(((count, module) for module, count in lines.items()), reverse=True)
    beside = rooms.pop("", 0)
    told = [
        f"{len(paths)} modules, {sum(lines.values()):,} lines, {floors(edges)} floors of imports",
        f"{len(between)} rooms on {floors(between)} floors, {sum(map(len, circles(between)))} of them in circles",
        f"modules by folder: {', '.join(f'{name} {count}' for name, count in sorted(rooms.items()))}",
        f"files beside the folders: {beside}",
        f"circles of modules: {'; '.join(' '.join(sorted(circle)) for circle in circles(edges)) or 'none'}",
        f"files of more than 400 lines: {sum(count > 400 for count in lines.values())}; the longest:",
        *(f"  {count:5} {module}" for count, module in longest[:10]),
        "the longest functions:",
        *(f"  {count:5} {name}" for count, name in functions(trees)[:10]),
    ]
    return "\n".join(told)


@click.command()
@click.option("--at", metavar="REVISION", help="The house as of this commit (default: as it lies here).")
def main(at: str | None) -> None:
    """Print the figures."""
    if at is None:
        click.echo(report(HOUSE))
        return
    packed = subprocess.run(["git", "archive", at, PACKAGE], cwd=HOUSE, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        click.echo(report(Path(folder)))


if __name__ == "__main__":
    main()
