"""Models that were published with this product: which there are, how they look, and the settings to repeat one.

Nothing here is kept for the next caller: each asks the Hub with their own token, so that nobody is served what another
account may read.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from dreambooth.config.names import TOYBOX, make_folders_absolute
from dreambooth.config.sections import MOST_SUBJECTS, SamplingConfig
from dreambooth.config.settings import Config
from dreambooth.config.validation import validated
from dreambooth.config.yaml_file import MAX_FOREIGN_YAML, override, read_foreign_yaml
from dreambooth.errors import ConfigError, ModelError, PhotoError
from dreambooth.families.words import PATTERN
from dreambooth.files import atomic_folder, cache_home, read_text, scratch_folder
from dreambooth.hub import TAG, Token, plain_failures
from dreambooth.methods import get_method
from dreambooth.models.fetch import check_header, check_words, fetch_files, list_files
from dreambooth.photos.folder import IMAGE_SUFFIXES
from dreambooth.photos.read import open_photo
from dreambooth.sharing.model_card import CONFIG, PHOTOS, WORDS, method_of, photos_of

WANTED = "a model that was published with this product"

MAX_PICTURE = 5 * 2**20
"""Bytes of a file that a thumbnail is made of; a sample of 1024 px has under 2 MB."""
MAX_PIXELS = 4096**2
"""Pixels that a thumbnail is made of, told before any is decoded: a small file may claim to be huge."""
MAX_PHOTOS = 200
"""Photos that are fetched with a published config; the paper uses 3 to 5."""
MAX_PHOTO = 50 * 2**20
"""Bytes of one of them; a prepared crop of 1024 px has under 3 MB."""
MAX_CAPTION = 2**14
"""Bytes of a photo's caption, a text file of its name."""

_OWN_PHOTOS = "Give photos of your own: --set subject.photos=FOLDER, a second subject's in its folder subject-2."
_FOLDERS = {"base_model": (TOYBOX,), "evaluation.dino": (TOYBOX, "auto"), "evaluation.clip": (TOYBOX, "auto")}
"""Settings that may name a folder of this machine, and the words that they may hold beside a Hub id."""


@dataclass(frozen=True)
class PublishedModel:
    """One entry of the list of published models; all but `repo_id` is as its owner wrote it."""

    repo_id: str
    private: bool
    base_model: str
    """A Hub id; empty where the card names none."""
    method: str
    """What an adapter was made by, such as LoRA; empty for a whole model."""
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
            filter=TAG,
            author=author,
            sort="last_modified",
            limit=limit,
            token=token,
            expand=["cardData", "downloads", "lastModified", "likes", "private"],
        )
        return [_published(model) for model in found]


def _published(model: Any) -> PublishedModel:
    card = model.card_data.to_dict() if model.card_data else {}
    base_model, tags = card.get("base_model"), card.get("tags")
    method = method_of([tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else [])
    return PublishedModel(
        repo_id=model.id,
        private=bool(model.private),
        base_model=_text(base_model[0] if isinstance(base_model, list) and base_model else base_model),
        method=get_method(method).title if method else "",
        instance_prompt=_text(card.get("instance_prompt")),
        downloads=model.downloads or 0,
        likes=model.likes or 0,
        updated=f"{model.last_modified:%Y-%m-%d}" if model.last_modified else "",
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= 1000 else ""


def thumbnail(repo_id: str, token: Token, side: int = 256) -> bytes | None:
    """The first picture of a model's card as a JPEG that fits in `side` × `side` pixels, without metadata.

    None where the card shows none, or one that is too large, can't be read or is no PNG, which is what publishing
    writes: the picture is a stranger's. It must be a file of the repo: nothing else that a card names is fetched.
    Raises `ModelError` or `HubError` as `fetch_from_hub` does.
    """
    info, files = list_files(repo_id, None, token, WANTED)
    path = _first_picture(info.card_data.to_dict() if info.card_data else {})
    if files.get(path, MAX_PICTURE + 1) > MAX_PICTURE:
        return None
    with scratch_folder(cache_home()) as folder:
        fetch_files(repo_id, info.sha, [path], folder, token, WANTED)
        return _small_jpeg(folder / path, side)


def _first_picture(card: dict[str, Any]) -> str:
    """The path of the first widget's picture; empty where the card has none."""
    try:
        url = card["widget"][0]["output"]["url"]
    except (LookupError, TypeError):
        return ""
    return url if isinstance(url, str) else ""


def _small_jpeg(path: Path, side: int) -> bytes | None:
    try:
        small = open_photo(path, min_side=1, max_pixels=MAX_PIXELS, formats=["PNG"])
    except PhotoError:
        return None
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=85)
    return jpeg.getvalue()


def published_sampling(repo_id: str, token: Token) -> SamplingConfig:
    """How a published model's pictures are best drawn. Raises as `published_config` does."""
    _, _, settings = _read_settings(repo_id, None, token)
    return validated(SamplingConfig, settings.get("sampling", {}), f"{repo_id}: {CONFIG}")


def published_config(
    repo_id: str, revision: str | None, token: Token, folder: Path, overrides: Iterable[str] = ()
) -> Config:
    """The settings that a model was published with, changed by `key.subkey=value` strings, to train it again.

    Its photos are fetched below `folder`, where they were published; else `subject.photos` must be given, with a second
    subject's photos in its folder `subject-2`, and so on. So is a word that was learned before. A base model or encoder
    that was a folder of the machine it was trained on must be given: a repo never names a folder of this one.
    Raises `ConfigError` for that and for damaged settings, `ModelError` where there is no such published model, or its
    word is no run's, and `HubError` where the Hub refuses or can't be reached.
    """
    source, given = f"{repo_id}: {CONFIG}", override({}, overrides)
    info, files, settings = _read_settings(repo_id, revision, token)
    _check_folders(repo_id, settings, given)
    _leave_out(settings, given)
    settings = override(settings, overrides)
    if not isinstance(settings.get("subject"), dict):
        settings["subject"] = {}
    subjects = [settings["subject"]]
    if "more_subjects" not in given and isinstance(more := settings.get("more_subjects"), list):
        subjects += [subject for subject in more[: MOST_SUBJECTS - 1] if isinstance(subject, dict)]
    if (photos := _value(given, "subject.photos")) is None:
        photos = _fetch_photos(repo_id, info.sha, files, len(subjects), folder, token)
    for number, subject in enumerate(subjects, 1):
        subject["photos"] = str(Path(str(photos)) / Path(photos_of(number)).relative_to(PHOTOS))
    if _value(settings, "word.learned") == WORDS and _value(given, "word.learned") is None:
        settings["word"]["learned"] = str(_fetch_words(repo_id, info.sha, files, folder, token))
    make_folders_absolute(settings, Path())
    return Config.from_record(settings, source)


def _read_settings(repo_id: str, revision: str | None, token: Token) -> tuple[Any, dict[str, int], dict[str, Any]]:
    """What the Hub says of a repo, its files' sizes, and its `config.yaml`."""
    source = f"{repo_id}: {CONFIG}"
    info, files = list_files(repo_id, revision, token, WANTED)
    if CONFIG not in files:
        raise ModelError(f"{repo_id} has no {CONFIG}.", f"Give {WANTED}, or train from a config file of your own.")
    if files[CONFIG] > MAX_FOREIGN_YAML:
        raise ConfigError(f"{source}: has {files[CONFIG]:,} bytes, too many for settings.")
    with scratch_folder(cache_home()) as partial:
        fetch_files(repo_id, info.sha, [CONFIG], partial, token, WANTED)
        return info, files, read_foreign_yaml(partial / CONFIG, source)


def _value(settings: dict[str, Any], key: str) -> Any:
    """A setting by its dotted key; None where it is not set."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_folders(repo_id: str, settings: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise `ConfigError` where the settings of a repo name a folder of this machine that is not given instead."""
    for key, words in {**_FOLDERS, "subject.photos": (PHOTOS,), "word.learned": (WORDS,)}.items():
        if (value := _value(settings, key)) is not None and _value(given, key) is None:
            _check_names_no_folder(repo_id, key, value, words)
    more = settings.get("more_subjects")
    if isinstance(more, list) and "more_subjects" not in given and _value(given, "subject.photos") is None:
        for number, subject in enumerate(more, 2):
            if isinstance(subject, dict) and (value := subject.get("photos")) is not None:
                _check_names_no_folder(repo_id, f"more_subjects.{number - 2}.photos", value, (photos_of(number),))


def _check_names_no_folder(repo_id: str, key: str, value: Any, words: tuple[str, ...]) -> None:
    """Raise `ConfigError` for a setting of a repo that is neither one of `words` nor the id of a Hub repo.

    What is both, an id and a folder here, would be taken for the folder.
    """
    if value in words:
        return
    hint = _OWN_PHOTOS if key.startswith("more") else f"Say what to use on this one: --set {key}=…"
    try:
        validate_repo_id(value)
        if value.count("/") != 1 or key not in _FOLDERS:
            raise HFValidationError
    except HFValidationError:
        raise ConfigError(f"{repo_id}: its {key} is {value!r}, of the machine it was trained on.", hint) from None
    if Path(value).exists():
        raise ConfigError(f"{repo_id}: its {key} is {value!r}, which is also a folder here.", hint)


def _leave_out(settings: dict[str, Any], given: dict[str, Any]) -> None:
    """Drop what does not go with the photos or the base model that are taken instead of the original ones."""
    if _value(given, "base_model") is not None:
        settings.pop("revision", None)  # it belonged to the other base model
    # The published photos are the crops. A pack is a short cut to pictures that can be drawn, and names a download.
    more = settings.get("more_subjects")
    for subject in (settings.get("subject"), *(more if isinstance(more, list) else ())):
        if isinstance(subject, dict):
            subject.pop("crops", None)
    if isinstance(settings.get("prior"), dict):
        settings["prior"].pop("pack", None)


def _fetch_photos(repo_id: str, commit: str, files: dict[str, int], subjects: int, folder: Path, token: Token) -> Path:
    """Download a repo's photos and their captions, under names of our own; returns the new folder that holds them."""
    suffixes = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))
    names = {photos_of(number): rf"{photos_of(number)}/[^/]+({suffixes})" for number in range(1, subjects + 1)}
    found = {
        place: sorted(path for path in files if re.fullmatch(pattern, path, re.IGNORECASE))
        for place, pattern in names.items()
    }
    if not all(found.values()):
        raise ConfigError(f"{repo_id} was published without its photos.", _OWN_PHOTOS)
    photos = [path for paths in found.values() for path in paths]
    captions = {path: text for path in photos if (text := str(Path(path).with_suffix(".txt"))) in files}
    large = [path for path in photos if files[path] > MAX_PHOTO]
    large += [text for text in captions.values() if files[text] > MAX_CAPTION]
    if large or len(photos) > MAX_PHOTOS:
        what = f"{large[0]} is too large" if large else f"{len(photos)} photos are too many"
        raise ConfigError(f"{repo_id}: {what}.", _OWN_PHOTOS)
    target = folder / commit[:12] / PHOTOS
    with scratch_folder(folder) as partial, atomic_folder(target) as filled:
        fetch_files(repo_id, commit, {*photos, *captions.values()}, partial, token, WANTED)
        for place, paths in found.items():
            (inside := filled / Path(place).relative_to(PHOTOS)).mkdir(exist_ok=True)
            for number, path in enumerate(paths):
                name = inside / f"{number:02d}{Path(path).suffix.lower()}"
                shutil.move(partial / path, name)
                if path in captions:
                    name.with_suffix(".txt").write_text(_as_it_stands(partial / captions[path]), encoding="utf-8")
    return target


def _fetch_words(repo_id: str, commit: str, files: dict[str, int], folder: Path, token: Token) -> Path:
    """Download the words that were learned before; returns the new folder that holds them, files whose headers ask for
    no more than words have. Raises `ModelError` for others."""
    wanted = {path: size for path, size in files.items() if "/" not in path and fnmatch(path, PATTERN)}
    if not wanted:
        raise ConfigError(
            f"{repo_id} lacks the word that it was trained with.", "Give a run that learned it: --set word.learned=RUN"
        )
    check_words(repo_id, wanted)
    target = folder / commit[:12] / "word"
    with scratch_folder(folder) as partial, atomic_folder(target) as filled:
        fetch_files(repo_id, commit, wanted, partial, token, WANTED)
        for name in wanted:
            check_header(partial / name, f"{repo_id}: {name}")
            shutil.move(partial / name, filled / name)
    return target


def _as_it_stands(caption: Path) -> str:
    """A published caption, in which nothing is left to fill in: braces are doubled, as `caption_photos` takes them."""
    try:
        return read_text(caption).replace("{", "{{").replace("}", "}}")
    except ValueError as error:
        raise ConfigError(f"{PHOTOS}/{caption.name}: can't be read ({error}).", _OWN_PHOTOS) from None
