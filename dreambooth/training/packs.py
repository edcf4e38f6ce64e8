"""Class-image packs: the class images of one cache key as a dataset on the Hub, so that nobody draws them twice.

A pack holds `key.json` (what its pictures were drawn with), `images/00000.png` and so on, numbered as in the cache, and
`metadata.jsonl` for the Hub's viewer. It is taken only where its key is the run's own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCardData, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import DatasetInfo
from PIL import Image

from dreambooth.config.names import TOYBOX, name_of
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError
from dreambooth.families import family_of
from dreambooth.files import scratch_folder
from dreambooth.generate import save_picture
from dreambooth.hub import TAG, Account, Token, plain_failures
from dreambooth.machine import resolve_device, resolve_precision
from dreambooth.models.fetch import fetch_files, fetch_model, list_files
from dreambooth.photos.bombs import check_structure
from dreambooth.photos.sheets import is_blank
from dreambooth.training import prior

PACK_TAG = "class-images"
WANTED = "a pack of class images that `class-images push` made"
MAX_KEY = 2**14
"""Bytes of a key that are read; one has about 400."""


def pack_key(config: Config) -> dict[str, Any]:
    """The key of a run's class images, as `prior.cache_key` gives it on this machine.

    Raises `ConfigError` for settings of several class prompts, of which a pack holds one, and what `fetch_model`,
    `resolve_device` and `resolve_precision` raise.
    """
    if len(config.class_prompts) > 1:
        raise ConfigError(
            f"A pack holds the class images of one class prompt, and these settings have {len(config.class_prompts)}.",
            "Give settings of subjects of one class.",
        )
    model = fetch_model(config.base_model, config.revision)
    wanted = config.train.resolution
    resolution = family_of(model).resolution(model) if wanted == "auto" else wanted
    precision = resolve_precision(config.train.mixed_precision, resolve_device(config.device))
    return prior.cache_key(config, model, resolution, precision)


# ------------------------------------------------------------------------------------------------------------ publish


def publish_pack(config: Config, repo_id: str, account: Account, *, private: bool = True) -> str:
    """Publish the class images of a run with these settings as the dataset `repo_id`, in one commit; returns its URL.

    A pack that is there is replaced; where that is asked, it turns public once all is there. Raises `ConfigError` where
    class images are still to be drawn or are of several classes, or the repo is something else, and `HubError` where
    the Hub refuses or can't be reached.
    """
    key, count = pack_key(config), config.prior.num_images
    folder = prior.cache_folder(key)
    told = prior.drop_damaged(folder, count, int(key["resolution"]))
    if missing := len(prior.missing_images(folder, count)):
        raise ConfigError(
            " ".join([*told, f"{missing} of {count} class images are not drawn yet."]),
            "Train with these settings first: it draws them.",
        )
    images = {f"images/{path.name}": path for path in prior.class_images(folder, count)}
    with plain_failures(f"publish class images as {repo_id}", account.token):
        api = HfApi(token=account.token)
        pack = _own_pack(api, repo_id)
        licence = _licence(api, config.base_model)
        texts = {
            "README.md": _card(config, repo_id, key, count, licence),
            "key.json": json.dumps(key, indent=2) + "\n",
            "metadata.jsonl": "".join(_row(name, path, config.class_prompt) for name, path in images.items()),
        }
        old = [sibling.rfilename for sibling in pack.siblings or ()] if pack else []
        if pack is None:
            api.create_repo(repo_id, repo_type="dataset", private=True)
            pack = api.dataset_info(repo_id)
        elif private and not pack.private:
            api.update_repo_settings(repo_id, repo_type="dataset", private=True)
        commit = api.create_commit(
            repo_id,
            repo_type="dataset",
            commit_message=f"{count} class images",
            parent_commit=pack.sha,
            operations=[
                *(CommitOperationAdd(name, text.encode()) for name, text in texts.items()),
                *(CommitOperationAdd(name, path) for name, path in images.items()),
                *(CommitOperationDelete(n) for n in old if re.fullmatch(r"images/\d+\.png", n) and n not in images),
            ],
        )
    with plain_failures(f"make {repo_id} {'private' if private else 'public'}, which is there", account.token):
        if api.dataset_info(repo_id).private != private:
            api.update_repo_settings(repo_id, repo_type="dataset", private=private)
    return str(commit.repo_url)


def _own_pack(api: HfApi, repo_id: str) -> DatasetInfo | None:
    """The pack that is to be replaced, None where there is none; raises `ConfigError` for a repo that is no pack."""
    try:
        info = api.dataset_info(repo_id)
    except RepositoryNotFoundError:
        return None
    tags = (dict(info.card_data.to_dict()) if info.card_data else {}).get("tags")
    files = {sibling.rfilename for sibling in info.siblings or ()}
    if files - {".gitattributes"} and not (isinstance(tags, list) and {TAG, PACK_TAG} <= set(tags)):
        raise ConfigError(f"{repo_id} is there already and no pack of class images.", "Choose another --repo-id.")
    return info


def _licence(api: HfApi, base_model: str) -> str | None:
    """The licence that the base model's own card names; None for a folder, or where it names none."""
    if base_model == TOYBOX:
        return "apache-2.0"
    if "/" not in name_of(base_model):
        return None
    card = api.model_info(base_model).card_data
    licence = (card.to_dict() if card else {}).get("license")
    return licence if isinstance(licence, str) else None


def _card(config: Config, repo_id: str, key: dict[str, Any], count: int, licence: str | None) -> str:
    data = DatasetCardData(
        license=licence,
        task_categories=["text-to-image"],
        tags=[TAG, PACK_TAG],
        pretty_name="Class images",
    )
    name = name_of(config.base_model)
    base = f"[{name}](https://huggingface.co/{name})" if "/" in name else "the base model"
    return f"""---
{data.to_yaml()}
---

# {count} class images

{base[0].upper()}{base[1:]} drew these pictures, for DreamBooth's prior preservation: trained on beside the photos of a
subject, they keep a model from forgetting the subject's class. This is all that shaped them (`base_model` is a hash of
its files):

```json
{json.dumps(key, indent=2)}
```

A run with the same settings takes them instead of drawing its own:

    python -m dreambooth train CONFIG.yaml --set prior.pack={repo_id}

They are as good, and as biased, as the model that drew them, and its licence holds for them.
"""


def _row(name: str, path: Path, prompt: str) -> str:
    """The line of `metadata.jsonl` on one picture."""
    with Image.open(path) as image:
        seed = getattr(image, "text", {}).get("seed", "")
    return json.dumps({"file_name": name, "prompt": prompt, "seed": seed}, ensure_ascii=False) + "\n"


# -------------------------------------------------------------------------------------------------------------- fetch


def fetch_pack(repo_id: str, key: dict[str, Any], count: int, *, token: Token = None) -> int:
    """Put those of the first `count` class images of `key` into its cache folder that it lacks and the pack has.

    Returns how many that were; none arrives unless all are sound. They are taken under the numbers that the cache gives
    them: no name that the pack writes is used as a path. Raises `ConfigError` for a pack of another key or with a
    damaged picture, `ModelError` where there is no such pack, and `HubError` where the Hub refuses or can't be reached.
    """
    info, files = list_files(repo_id, None, token, WANTED, "dataset")
    root, folder = prior.cache_root(), prior.cache_folder(key)
    with scratch_folder(root) as fetched:
        _check_key(repo_id, _fetch_key(repo_id, info.sha, files, fetched, token), key)
        images = {
            f"images/{path.name}": path
            for path in prior.class_images(folder, count)
            if not path.is_file() and f"images/{path.name}" in files
        }
        side = int(key["resolution"])
        for name in images:
            if files[name] > 4 * side**2 + MAX_KEY:  # PNG stores what it can't compress at three bytes a pixel
                raise _damaged(repo_id, name, f"has {files[name]:,} bytes")
        fetch_files(repo_id, info.sha, images, fetched, token, WANTED, "dataset")
        seeds = {name: _check_picture(repo_id, fetched, name, side) for name in images}
        if images:
            prior.write_key(folder, key)
        for name, path in images.items():
            # Written anew, without what else the file may hold.
            with Image.open(fetched / name, formats=["PNG"]) as image:
                save_picture(path, image.convert("RGB"), prompt=key["class_prompt"], seed=seeds[name])
    if images and not prior.missing_images(folder, count):
        prior.save_contact_sheet(folder, count)
    return len(images)


def _fetch_key(repo_id: str, commit: str, files: dict[str, int], folder: Path, token: Token) -> Any:
    if not 0 < files.get("key.json", 0) <= MAX_KEY:
        raise ConfigError(f"prior.pack: {repo_id} has no key.json.", f"Give {WANTED}.")
    fetch_files(repo_id, commit, ["key.json"], folder, token, WANTED, "dataset")
    try:
        return json.loads((folder / "key.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ConfigError(f"prior.pack: {repo_id}: key.json is damaged.", f"Give {WANTED}.") from None


def _check_key(repo_id: str, theirs: Any, ours: dict[str, Any]) -> None:
    """Raise `ConfigError`, with what differs, for the key of other class images."""
    if theirs == ours:
        return
    theirs = theirs if isinstance(theirs, dict) else {}
    told = [
        "base_model" if name == "base_model" else f"{name} ({str(theirs.get(name))[:60]} there, {value} here)"
        for name, value in ours.items()
        if theirs.get(name) != value
    ]
    raise ConfigError(
        f"prior.pack: {repo_id} has other class images than these settings ask for: {', '.join(told) or 'its key'}.",
        "Change the settings, or leave prior.pack out: class images are drawn then.",
    )


def _check_picture(repo_id: str, folder: Path, name: str, side: int) -> str:
    """The seed that a fetched picture says it was drawn with, "" where it says none; `ConfigError` if it is damaged."""
    try:
        check_structure(folder / name)
        with Image.open(folder / name, formats=["PNG"]) as image:
            if image.size != (side, side):
                raise _damaged(repo_id, name, f"has {image.width} × {image.height} pixels")
            seed = str(image.info.get("seed", ""))
            if is_blank(image):
                raise _damaged(repo_id, name, "is blank")
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow says of damaged files
        raise _damaged(repo_id, name, f"can't be read ({type(error).__name__})") from None
    return seed if seed.isdecimal() and len(seed) <= 10 else ""


def _damaged(repo_id: str, name: str, what: str) -> ConfigError:
    return ConfigError(f"prior.pack: {name} of {repo_id} {what}.", "Leave prior.pack out: class images are drawn then.")
