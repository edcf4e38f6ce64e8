"""The photos in a folder, and what else lies there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dreambooth.errors import PhotoError
from dreambooth.files import disk_trouble
from dreambooth.photos.read import BETTER_FILE, READABLE, printable

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".apng", ".webp", ".heic", ".heif", ".hif"}
    | {".avif", ".gif", ".bmp", ".tif", ".tiff"}
)
# What lies beside photos and may be their captions.
TEXTS = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".md"})
# So deep are photos looked for in folders inside the one that is named, to tell where they are.
LEVELS = 2
# As many as Ruiz et al. (arXiv 2208.12242) teach a subject from.
IDEAL_PHOTOS = "3 to 5"
_OF_SYSTEMS = frozenset({"thumbs.db", "desktop.ini"})


def find_photos(folder: str | Path) -> list[Path]:
    """List a folder's photos in natural order (2 before 10); `passed_over` tells of what else it holds.

    Raises PhotoError for a folder that is missing, unreadable, not a folder, or without photos, and names the folders
    around it that have some.
    """
    folder = Path(folder)
    shown = printable(str(folder))
    try:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "is not there"
            raise PhotoError(f"{shown} {what}.", f"Give the folder that holds your photos ({READABLE}).")
        photos = _photos_in(folder)
    except OSError as error:
        raise PhotoError(f"{shown} can't be read ({error.strerror}).", f"{disk_trouble(error)[1]}.") from error
    if not photos:
        raise _no_photos(folder, shown)
    return sorted(photos, key=lambda path: (_natural_key(path.name), path.name))


def _no_photos(folder: Path, shown: str) -> PhotoError:
    """Say where there are photos instead: in folders inside, one level up, or nowhere."""
    if inside := _folders_inside(folder):
        hint = f"Give {printable(str(next(iter(inside))))}." if len(inside) == 1 else "Give one of them."
        return PhotoError(f"{shown} holds no photos itself, but there are {_counted(folder, inside)}.", hint)
    above = folder.resolve().parent
    with contextlib.suppress(OSError):
        if count := len(_photos_in(above)):
            return PhotoError(
                f"{shown} holds no photos, but there are {count} in the folder above it.",
                f"Give {printable(str(above))}.",
            )
    others = f" ({join_names(names)})" if (names := _other_files(folder)) else ""
    return PhotoError(
        f"{shown} holds no photos{others}.", f"Put {IDEAL_PHOTOS} {READABLE} photos of your subject in it."
    )


def passed_over(folder: Path, known: Collection[Path] = ()) -> list[str]:
    """What a folder holds beside its photos and their captions that somebody may have meant, in sentences.

    That is photos in folders inside it, but for the folders `known`, and files of other kinds. Hidden files are meant
    by nobody.
    """
    places = {path.resolve() for path in known}
    said = []
    if inside := {path: count for path, count in _folders_inside(folder).items() if path.resolve() not in places}:
        said.append(f"Passed over: {_counted(folder, inside)}. Move them into {printable(folder.name)} to use them.")
    if names := _other_files(folder):
        verb = "is no photo" if len(names) == 1 else "are no photos"
        said.append(f"Passed over: {join_names(names)}, which {verb} that can be read here. {BETTER_FILE}")
    return said


def _photos_in(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    ]


def _folders_inside(folder: Path, levels: int = LEVELS) -> dict[Path, int]:
    """The folders inside that hold photos, with how many; hidden ones, and those that can't be read, are left out."""
    found = {}
    with contextlib.suppress(OSError):
        for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()):
            with contextlib.suppress(OSError):
                if count := len(_photos_in(path)):
                    found[path] = count
            if levels > 1:
                found |= _folders_inside(path, levels - 1)
    return found


def _counted(folder: Path, inside: Mapping[Path, int]) -> str:
    """Folders with the numbers of their photos, for a sentence."""
    total, names = sum(inside.values()), [repr(path.relative_to(folder).as_posix()) for path in inside]
    return f"{total} photo{'' if total == 1 else 's'} in its folder{'' if len(names) == 1 else 's'} {join_names(names)}"


def _other_files(folder: Path) -> list[str]:
    """Names of files that are no photos, and no texts either, which may be captions."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and path.name.lower() not in _OF_SYSTEMS
        and path.suffix.lower() not in IMAGE_SUFFIXES | TEXTS
    )


def _natural_key(name: str) -> list[str | int]:
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def join_names(names: Sequence[str]) -> str:
    """Join names for a sentence: "a, b and 3 others"."""
    shown = [printable(name) for name in names]
    if len(shown) > 4:
        shown = [*shown[:3], f"{len(shown) - 3} others"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
