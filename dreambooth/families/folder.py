"""A base model as it lies in a folder: which files are read, what it is called, and what helps where it is damaged."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants

from dreambooth.errors import first_line
from dreambooth.families.family import Family
from dreambooth.files import disk_trouble
from dreambooth.hub import visitors_cache

_SMALL = re.compile(r"[\w.+-]+\.(json|txt|model)")
WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(\.fp16)?(-\d{5}-of-\d{5})?\.(safetensors|bin)")
HALF = ".fp16"
"""In the name of what holds 16 bits a number; many pipelines are shared in that variant alone."""
_LFS = b"version https://git-lfs"
"""How the note begins that a clone without Git LFS holds in the place of a large file."""


def loaded_files(family: Family, paths: Iterable[str]) -> list[str]:
    """Those of a pipeline's files, by their paths in it, that loading it reads; safetensors before older weights, and
    weights in 32 bits before those in 16.

    None has a name that could stand for others as a pattern.
    """
    by_part: dict[str, list[str]] = {part: [] for part in (*family.parts, "safety_checker", "feature_extractor")}
    for path in paths:
        part, _, name = path.partition("/")
        if part in by_part and (_SMALL.fullmatch(name) or WEIGHTS.fullmatch(name)):
            by_part[part].append(path)
    wanted = []
    for found in map(_in_full, by_part.values()):
        newer = any(path.endswith(".safetensors") for path in found)
        wanted += [path for path in found if not (newer and path.endswith(".bin"))]
    return sorted(wanted)


def _in_full(paths: list[str]) -> list[str]:
    """A part's files without its weights in 16 bits, where it has others."""
    whole = any(WEIGHTS.fullmatch(path.rpartition("/")[2]) and HALF not in path for path in paths)
    return [path for path in paths if not (whole and HALF in path)]


def variant_of(part: Path) -> str | None:
    """What a part's weights are called: None for the usual, fp16 where they are there in 16 bits alone."""
    names = [file.name for file in part.iterdir() if WEIGHTS.fullmatch(file.name)] if part.is_dir() else []
    return HALF[1:] if names and all(HALF in name for name in names) else None


def name_plainly(part: Path) -> None:
    """Let a part that is there in 16 bits alone bear the usual names, by which every program finds it beside others."""
    for file in sorted(part.glob(f"*{HALF}*")) if variant_of(part) else ():
        plain = file.with_name(file.name.replace(HALF, ""))
        if ".index." in file.name:  # it names the others; what it may be a link to stays as it is
            text = file.read_text(encoding="utf-8")
            file.unlink()
            plain.write_text(text.replace(HALF, ""), encoding="utf-8")
        else:
            file.rename(plain)


def shown_name(folder: Path) -> str:
    """What messages call a model's folder: its name, or the repo's that it was downloaded from."""
    snapshot = folder.parent.name == "snapshots"
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/") if snapshot else folder.name


def what_helps(place: Path, error: Exception | None = None) -> str:
    """What to do about a model's folder, or one of its files, that can't be loaded: a hint, by the `error` met and by
    what is there."""
    said = str(error or "")
    if isinstance(error, MemoryError) or "can't allocate memory" in said or "out of memory" in said.lower():
        return "Free some memory, or choose a smaller model."
    if isinstance(error, ImportError):
        return "Install what it names, or choose another model."
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return f"{disk_trouble(error)[1]}."
    files = [place] if not place.is_dir() else [f for f in (*place.glob("*"), *place.glob("*/*")) if not f.is_dir()]
    for file in sorted(files):
        name = file.name if file == place else file.relative_to(place).as_posix()
        if not file.is_file():
            lost = "is a link to a file that is not there" if file.is_symlink() else "is not there"
            return f"{name} {lost}: download the model again."
        try:
            with file.open("rb") as opened:
                head = opened.read(len(_LFS))
        except OSError as trouble:
            return f"{disk_trouble(trouble)[1]} ({name})."
        if head == _LFS:
            return f"{name} is a note of Git LFS in the place of the file: run `git lfs pull` where it was cloned."
        if not head and WEIGHTS.fullmatch(file.name):
            return f"{name} is empty: download or save it again."
    return "Download or save it again."


def is_weights(file: Path) -> bool:
    """Whether a file holds weights, by its name."""
    return file.suffix in (".safetensors", ".bin")


def said_plainly(error: Exception, folder: Path) -> str:
    """The first line of what a library says, without where on this machine the model lies."""
    said = first_line(error)
    for path in {folder.absolute(), folder.resolve()}:
        said = said.replace(str(path), shown_name(folder))
    for root in (constants.HF_HUB_CACHE, visitors_cache()):
        said = said.replace(str(root), "the cache")
    return said
