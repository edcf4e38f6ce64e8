"""Models that were published with this product: which there are, how they look, and the settings to repeat one.

Nothing here is kept for the next caller: each asks the Hub with their own token, so that nobody is served what another
account may read.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from dreambooth.config import MAX_FOREIGN_YAML, TOYBOX, Config, absolute, override, read_foreign_yaml
from dreambooth.errors import ConfigError, ModelError
from dreambooth.fetch import fetch_files, list_files
from dreambooth.files import atomic_folder
from dreambooth.hub import TAG, Token, plain_failures
from dreambooth.photos import IMAGE_SUFFIXES
from dreambooth.reports.model_card import CONFIG, PHOTOS

WANTED = "a model that was published with this product"

MAX_PICTURE = 5 * 2**20
"""Bytes of a file that a thumbnail is made of; a sample of 1024 px has under 2 MB."""
MAX_SIDE = 4096
"""Pixels of a side that a thumbnail is made of, told before any is decoded: a small file may claim to be huge."""
MAX_PHOTOS = 200
"""Photos that are fetched with a published config; the paper uses 3 to 5."""
MAX_PHOTO = 50 * 2**20
"""Bytes of one of them; a prepared crop of 1024 px has under 3 MB."""
MAX_CAPTION = 2**14
"""Bytes of a photo's caption, a text file of its name."""

_OWN_PHOTOS = "Give photos of your own: --set subject.photos=FOLDER"
_FOLDERS = {"base_model": (TOYBOX,), "evaluation.dino": (TOYBOX, "auto"), "evaluation.clip": (TOYBOX, "auto")}
"""Settings that may name a folder of this machine, and the words that they may hold beside a Hub id."""


@dataclass(frozen=True)
class PublishedModel:
    """One entry of the list of published models; all but `repo_id` is as its owner wrote it."""

    repo_id: str
    private: bool
    base_model: str
    """A Hub id; empty where the card names none."""
    instance_prompt: str
    """Empty where the card has none."""
    downloads: int
    """Of the last 30 days."""
    likes: int
    updated: str
    """The day of the last change, YYYY-MM-DD."""


def list_published(token: Token, *, author: str | None = None, limit: int = 24) -> list[PublishedModel]:
    """Models with the product's tag that `token` may see, of `author` if given, the newest first.

    Raises `HubError` where the Hub refuses or can't be reached.
    """
    with plain_failures("list the published models", token):
        found = HfApi().list_models(
            filter=TAG, author=author, sort="last_modified", limit=limit, token=token,
            expand=["cardData", "downloads", "lastModified", "likes", "private"],
        )  # fmt: skip
        return [_published(model) for model in found]


def _published(model: Any) -> PublishedModel:
    card = model.card_data.to_dict() if model.card_data else {}
    base_model = card.get("base_model")
    return PublishedModel(
        repo_id=model.id,
        private=bool(model.private),
        base_model=_text(base_model[0] if isinstance(base_model, list) and base_model else base_model),
        instance_prompt=_text(card.get("instance_prompt")),
        downloads=model.downloads or 0,
        likes=model.likes or 0,
        updated=f"{model.last_modified:%Y-%m-%d}" if model.last_modified else "",
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= 1000 else ""


def thumbnail(repo_id: str, token: Token, side: int = 256) -> bytes | None:
    """The first picture of a model's card as a JPEG that fits in `side` × `side` pixels, without metadata.

    None where the card shows none, or one that is too large or can't be read. It must be a file of the repo: nothing
    else that a card names is fetched. Raises `ModelError` or `HubError` as `fetch_from_hub` does.
    """
    info, files = list_files(repo_id, None, token, WANTED)
    path = _first_picture(info.card_data.to_dict() if info.card_data else {})
    if files.get(path, MAX_PICTURE + 1) > MAX_PICTURE:
        return None
    with tempfile.TemporaryDirectory() as folder:
        fetch_files(repo_id, info.sha, [path], Path(folder), token, WANTED)
        return _small_jpeg(Path(folder) / path, side)


def _first_picture(card: dict[str, Any]) -> str:
    """The path of the first widget's picture; empty where the card has none."""
    try:
        url = card["widget"][0]["output"]["url"]
    except (LookupError, TypeError):
        return ""
    return url if isinstance(url, str) else ""


def _small_jpeg(path: Path, side: int) -> bytes | None:
    try:
        with warnings.catch_warnings(), Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
            warnings.simplefilter("ignore")
            if max(image.size) > MAX_SIDE:
                return None
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow says of damaged files
        return None
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=85)
    return jpeg.getvalue()


def published_config(
    repo_id: str, revision: str | None, token: Token, folder: Path, overrides: Iterable[str] = ()
) -> Config:
    """The settings that a model was published with, changed by `key.subkey=value` strings, to train it again.

    Its photos are fetched below `folder`, where they were published; else `subject.photos` must be given. So must a
    base model or encoder that was a folder of the machine it was trained on: a repo never names a folder of this one.
    Raises `ConfigError` for that and for damaged settings, `ModelError` where there is no such published model, and
    `HubError` where the Hub refuses or can't be reached.
    """
    source = f"{repo_id}: {CONFIG}"
    given = override({}, overrides)
    info, files = list_files(repo_id, revision, token, WANTED)
    if CONFIG not in files:
        raise ModelError(f"{repo_id} has no {CONFIG}.", f"Give {WANTED}, or train from a config file of your own.")
    if files[CONFIG] > MAX_FOREIGN_YAML:
        raise ConfigError(f"{source}: has {files[CONFIG]:,} bytes, too many for settings.")
    with tempfile.TemporaryDirectory() as partial:
        fetch_files(repo_id, info.sha, [CONFIG], Path(partial), token, WANTED)
        settings = read_foreign_yaml(Path(partial) / CONFIG, source)
    for key, words in {**_FOLDERS, "subject.photos": (PHOTOS,)}.items():
        if (value := _value(settings, key)) is not None and _value(given, key) is None:
            _check_names_no_folder(repo_id, key, value, words)
    _leave_out(settings, given)
    settings = override(settings, overrides)
    if (photos := _value(given, "subject.photos")) is None:
        photos = str(_fetch_photos(repo_id, info.sha, files, folder, token))
    subject = settings["subject"] if isinstance(settings.get("subject"), dict) else {}
    settings["subject"] = subject | {"photos": absolute(str(photos), Path(), "subject.photos")}
    return Config.from_dict(settings, source)


def _value(settings: dict[str, Any], key: str) -> Any:
    """A setting by its dotted key; None where it is not set."""
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def _check_names_no_folder(repo_id: str, key: str, value: Any, words: tuple[str, ...]) -> None:
    """Raise `ConfigError` for a setting of a repo that is neither one of `words` nor the id of a Hub repo.

    What is both, an id and a folder here, would be taken for the folder.
    """
    if value in words:
        return
    hint = f"Say what to use on this one: --set {key}=…"
    try:
        validate_repo_id(value)
        if value.count("/") != 1 or key == "subject.photos":
            raise HFValidationError
    except HFValidationError:
        raise ConfigError(f"{repo_id}: its {key} is {value!r}, of the machine it was trained on.", hint) from None
    if Path(value).exists():
        raise ConfigError(f"{repo_id}: its {key} is {value!r}, which is also a folder here.", hint)


def _leave_out(settings: dict[str, Any], given: dict[str, Any]) -> None:
    """Drop what does not go with the photos or the base model that are taken instead of the original ones."""
    if _value(given, "base_model") is not None:
        settings.pop("revision", None)  # it belonged to the other base model
    for section, key in (("subject", "crops"), ("prior", "pack")):
        # The published photos are the crops. A pack is a short cut to pictures that can be drawn, and names a download.
        if isinstance(settings.get(section), dict):
            settings[section].pop(key, None)


def _fetch_photos(repo_id: str, commit: str, files: dict[str, int], folder: Path, token: Token) -> Path:
    """Download a repo's photos and their captions, under names of our own; returns the new folder that holds them."""
    suffixes = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))
    photos = sorted(path for path in files if re.fullmatch(rf"{PHOTOS}/[^/]+({suffixes})", path, re.IGNORECASE))
    if not photos:
        raise ConfigError(f"{repo_id} was published without its photos.", _OWN_PHOTOS)
    captions = {path: text for path in photos if (text := str(Path(path).with_suffix(".txt"))) in files}
    large = [path for path in photos if files[path] > MAX_PHOTO]
    large += [text for text in captions.values() if files[text] > MAX_CAPTION]
    if large or len(photos) > MAX_PHOTOS:
        what = f"{large[0]} is too large" if large else f"{len(photos)} photos are too many"
        raise ConfigError(f"{repo_id}: {what}.", _OWN_PHOTOS)
    target = folder / commit[:12] / PHOTOS
    with tempfile.TemporaryDirectory() as partial, atomic_folder(target) as filled:
        fetch_files(repo_id, commit, {*photos, *captions.values()}, Path(partial), token, WANTED)
        for number, path in enumerate(photos):
            name = filled / f"{number:02d}{Path(path).suffix.lower()}"
            shutil.move(Path(partial) / path, name)
            if path in captions:
                name.with_suffix(".txt").write_text(_as_it_stands(Path(partial) / captions[path]), encoding="utf-8")
    return target


def _as_it_stands(caption: Path) -> str:
    """A published caption, in which nothing is left to fill in: braces are doubled, as `caption_of` takes them."""
    try:
        return caption.read_text(encoding="utf-8").replace("{", "{{").replace("}", "}}")
    except UnicodeDecodeError:
        raise ConfigError(f"{PHOTOS}/{caption.name}: is no text.", _OWN_PHOTOS) from None
