"""What settings mean by the names of models and folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dreambooth.errors import ConfigError
from dreambooth.files import named_path

TOYBOX = "toybox"
"""The base model that is built in; any other `base_model` is a Hub id or a local pipeline folder."""
HUB = "hub:"
"""What stands before OWNER/NAME that might also be a folder's name."""


def make_folders_absolute(settings: dict[str, Any], folder: Path) -> None:
    """Let settings name photos, learned words and models by absolute paths instead of ones relative to `folder`.

    Raises `ConfigError` where one is none, and where it may be a folder or a repo of the Hub.
    """
    more = settings.get("more_subjects")
    for subject in (settings.get("subject"), *(more if isinstance(more, list) else ())):
        if isinstance(subject, dict) and isinstance(photos := subject.get("photos"), str) and photos.strip():
            subject["photos"] = absolute(photos, folder, "subject.photos")
    word = settings.get("word")
    if isinstance(word, dict) and isinstance(learned := word.get("learned"), str) and learned.strip():
        word["learned"] = absolute(learned, folder, "word.learned")
    evaluation = settings.get("evaluation")
    for section, prefix, keys in ((settings, "", ("base_model",)), (evaluation, "evaluation.", ("dino", "clip"))):
        if not isinstance(section, dict):
            continue
        for key in keys:
            if isinstance(name := section.get(key), str) and name.strip():
                section[key] = which_model(name, folder, prefix + key)
    prior = settings.get("prior")
    if isinstance(prior, dict) and isinstance(pack := prior.get("pack"), str) and os.path.isdir(folder / pack):
        raise ConfigError(
            f"prior.pack = {pack!r} is a folder here, and would be asked from the Hub.",
            "Name a dataset of the Hub that is none, or leave it out: class images of this machine are found.",
        )


def which_model(name: str, folder: Path, key: str) -> str:
    """What somebody means by `name`, given under `key` and relative to `folder`: a model that is built in, the absolute
    path of a folder, or OWNER/NAME of a repo of the Hub, before which `hub:` may stand.

    Raises `ConfigError` where that can't be told: what was meant as a folder must never be asked from the Hub, where
    the name may be anybody's.
    """
    if name in (TOYBOX, "auto"):
        return name
    repo_id = name.removeprefix(HUB)
    if repo_id != name and (repo_id.count("/") != 1 or not all(repo_id.split("/"))):
        raise ConfigError(f"{key} = {name!r} names no model.", "Write hub:OWNER/NAME.")
    if repo_id != name:
        return repo_id
    path = absolute(name, folder, key)
    if os.path.exists(path) or name.count("/") != 1 or name.startswith((".", "/", "~")) or "\\" in name:
        return path
    owner, here = name.split("/")[0], Path()
    for place in dict.fromkeys((folder.absolute(), here.absolute())):
        if (place / name).exists() or (place / owner).is_dir():
            lies = f"{place / name} is there" if (place / name).exists() else f"{place / owner} is there without it"
            raise ConfigError(
                f"{key} = {name!r} may be a folder, of which {lies}, or a repo of the Hub.",
                f"Write ./{name} or a longer path for the folder, hub:{name} for the Hub's.",
            )
    return name


def absolute(path: str, folder: Path, key: str) -> str:
    """A path that a file in `folder` names under `key`, as an absolute one; raises `ConfigError` where it is none."""
    try:
        return str((folder / named_path(path, key)).resolve())
    except (OSError, RuntimeError) as error:  # symbolic links in a circle
        raise ConfigError(f"{key} = {path!r} is not a path ({error}).", "Give a folder.") from None


def name_of(model: str) -> str:
    """What others may read of a base model or an encoder: of a folder, even one that is gone, its last part alone."""
    path = Path(os.path.expanduser(model))
    hub_id = model.count("/") < 2 and "\\" not in model and not model.startswith((".", "/", "~"))
    return model if model == TOYBOX or (hub_id and not path.exists()) else path.resolve().name
