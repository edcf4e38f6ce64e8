"""Many subjects at once: a folder with a folder of photos for each, and the paper's thirty, fetched on request."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from dreambooth.errors import ConfigError, HubError, PhotoError, first_line
from dreambooth.files import read_text, sync, sync_all
from dreambooth.photos.folder import find_photos
from dreambooth.training.prior import cache_root

PAPER = "paper"
"""The word for the paper's 30 subjects."""
PAPER_REPO = "google/dreambooth"
"""Where they are among the Hub's datasets, as on GitHub under the same name: by Google, CC BY 4.0."""
PAPER_SUBJECTS = 30  # paper §4.1
CLASSES_FILE = "prompts_and_classes.txt"
"""Beside the paper's folders; tells each one's class noun."""

_HEAD = "subject_name,class"
_BY_HAND = (
    "Try again, what arrived is kept; or clone https://github.com/google/dreambooth and give its dataset folder as "
    "`subjects`."
)


def list_subjects(folder: Path, classes: Mapping[str, str], otherwise: str | None = None) -> dict[str, str]:
    """The class noun of each subject of `folder`, by its folder's name.

    It stands in `classes`, else in the folder's `prompts_and_classes.txt`, else it is `otherwise`. Raises `ConfigError`
    that names every subject without one, and what `classes` names beside the subjects.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(
            f"subjects = {str(folder)!r} can't be read ({error.strerror}).",
            "Give a folder that holds a folder of photos for each subject.",
        ) from None
    if not names:
        with contextlib.suppress(PhotoError):
            photos = len(find_photos(folder))
            raise ConfigError(
                f"{folder} holds no folders, but {photos} photos: it is one subject's.", "Give the folder above it."
            )
        raise ConfigError(f"{folder} holds no folders.", "Give one that holds a folder of photos for each subject.")
    if strangers := sorted(set(classes) - set(names)):
        raise ConfigError(f"classes: there is no {' and no '.join(strangers)} in {folder}.", "Correct the name.")
    nouns = {**read_class_nouns(folder), **classes}
    if otherwise is not None:
        nouns = dict.fromkeys(names, otherwise) | nouns
    if nameless := [name for name in names if name not in nouns]:
        raise ConfigError(
            f"No class noun is known for {', '.join(nameless)} in {folder}.",
            f"Give it under `classes`, for example {{{nameless[0]}: dog}}, or in the folder's {CLASSES_FILE}.",
        )
    return {name: nouns[name] for name in names}


def read_class_nouns(folder: Path) -> dict[str, str]:
    """The class noun by subject as the folder's `prompts_and_classes.txt` tells it; none where there is no such file.

    They stand one a line, `dog6,dog`, from the line `subject_name,class` to the next empty one. Raises `ConfigError`.
    """
    path = folder / CLASSES_FILE
    if not path.exists():
        return {}
    try:
        lines = [line.strip() for line in read_text(path).split("\n")]
        table = lines[lines.index(_HEAD) + 1 :]
        table = table[: table.index("")] if "" in table else table
        return {name.strip(): noun.strip() for name, noun in (line.split(",") for line in table)}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} can't be read ({first_line(error)}).", f"Write the line {_HEAD}, then one like dog6,dog for each."
        ) from None


def fetch_paper_subjects() -> Path:
    """The folder of the paper's 30 subjects, in the user's cache; downloaded the first time, about 30 MB.

    What arrived is kept, so that a download that failed goes on. Raises `HubError`.
    """
    folder = cache_root().parent / "paper-subjects"
    if folder.is_dir():
        return folder
    partial = folder.with_name(".paper-subjects.partial")
    try:
        repo = HfApi(token=False).dataset_info(PAPER_REPO)  # no token: everybody may read it
        wanted = [file.rfilename for file in repo.siblings or () if file.rfilename.startswith("dataset/")]
        options: dict[str, Any] = {"repo_type": "dataset", "revision": repo.sha, "token": False}
        options["allow_patterns"] = "dataset/*"
        snapshot_download(PAPER_REPO, local_dir=partial, **options)
    except Exception as error:  # the HTTP library's errors come through, and which library that is changes
        raise HubError(f"The paper's subjects can't be downloaded: {first_line(error)}.", _BY_HAND) from error
    missing = [name for name in wanted if not (partial / name).is_file()]  # the client is content with less
    found = [path for path in (partial / "dataset").glob("*") if path.is_dir()]
    if missing or len(found) != PAPER_SUBJECTS:
        raise HubError(
            f"The paper's subjects did not arrive whole: {len(found)} of {PAPER_SUBJECTS}, and {len(missing)} files "
            "are missing.",
            _BY_HAND,
        )
    sync_all(partial / "dataset")
    os.replace(partial / "dataset", folder)
    sync(folder.parent)
    shutil.rmtree(partial, ignore_errors=True)
    return folder
