"""Models: the built-in one, a folder, or a Hub repo, downloaded if need be and only what loading reads."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import HfApi, auth_check, get_cached_repo_tree, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from dreambooth.config.names import TOYBOX
from dreambooth.config.sections import MOST_SUBJECTS, MOST_VECTORS
from dreambooth.config.yaml_file import MAX_FOREIGN_YAML
from dreambooth.errors import DreamBoothError, HubError, ModelError, first_line
from dreambooth.families import family_of
from dreambooth.families.architectures import MAX_VOCABULARY
from dreambooth.families.folder import loaded_files, shown_name, what_helps
from dreambooth.families.words import PATTERN
from dreambooth.files import cache_home, make_folder, sync
from dreambooth.hub import Token, redact, visitors_cache
from dreambooth.methods import methods

MAX_SMALL_FILE = 2**24
"""Bytes of a model's file that holds no weights; the largest, CLIP's vocabulary in `tokenizer.json`, has 4 MB."""

MAX_FILES = 20_000
"""Of a repo so many files are looked at: twice as many as there are class images at most (`prior.num_images`)."""

MAX_HEADER = 2**20
"""Bytes of the header of an adapter's weights; DoRA of every layer of Stable Diffusion 1.5 has 125,000."""

SAFETY_CHECKER = "CompVis/stable-diffusion-safety-checker"
"""The safety checker that came with Stable Diffusion."""
SAFETY_COMMIT = "cb41f3a270d63d454d385fc2e4f571c487c253c5"
"""Its revision: the one that others pin, too; its `pytorch_model.bin` has 1,216,067,303 bytes."""
_SAFETY_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")

DOWNLOADS = 8
"""Small files fetched at a time. Source: the Hub client's own default."""

INDEX, ADAPTER = "model_index.json", "adapter.json"
"""What tells of a pipeline, and of an adapter."""
SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""How single files of weights are called, in which model exchanges share what diffusers keeps in a folder."""
_A_PIPELINE = "A pipeline is a folder of files, one for each part."
_TO_CONVERT = (
    "Convert it: diffusers.StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), and give the folder."
)

TOYBOX_FOLDER = Path(__file__).parents[1] / "toybox" / "model"


def fetch_model(base_model: str, revision: str | None = None, *, token: Token = None, adapters: bool = False) -> Path:
    """The local folder of a base model: the built-in toybox, a folder, or a Hub repo that is downloaded if need be.

    With `adapters` it may be an adapter's. Raises `ModelError` where there is no such model, or it is an adapter and
    none is asked for, and `HubError` where the Hub refuses or can't be reached.
    """
    if base_model == TOYBOX:
        return TOYBOX_FOLDER
    folder = Path(os.path.expanduser(base_model))
    if folder.exists():
        if (folder / ADAPTER).is_file():
            return folder.resolve() if adapters else _refuse_adapter(base_model)
        if not (folder / INDEX).is_file():
            raise _no_pipeline(base_model, folder)
        return folder.resolve()
    if base_model.endswith(SINGLE):
        raise ModelError(f"{base_model}: no such file.", f"{_A_PIPELINE} {_TO_CONVERT}")
    if base_model.count("/") != 1 or base_model.startswith((".", "/", "~")):
        raise ModelError(
            f"{base_model}: no such folder.", "Give toybox, an existing pipeline folder, or a Hub id OWNER/NAME."
        )
    return fetch_from_hub(base_model, revision, token=token, adapters=adapters)


def _no_pipeline(name: str, path: Path) -> ModelError:
    """What to raise for a file or folder that holds no pipeline: what it is instead, and how one is made of it."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.name.endswith(SINGLE))
    if any(_holds_lora(file) for file in files):
        return ModelError(
            f"{name} is a LoRA without its {ADAPTER}, which says of which base model it is.",
            "An adapter is the folder that a training with method lora wrote here: give that run. One of another "
            "program is put into its base model first: pipe.load_lora_weights(FILE), pipe.fuse_lora(), "
            "pipe.unload_lora_weights() and pipe.save_pretrained(FOLDER) in diffusers.",
        )
    if path.is_file():
        return ModelError(f"{name} is a single file, and no pipeline.", f"{_A_PIPELINE} {_TO_CONVERT}")
    if files:
        return ModelError(f"{name}: no {INDEX} in it, but {files[0].name}, a single file.", _TO_CONVERT)
    hint = "Give a diffusers pipeline folder or a Hub id."
    if inside := sorted({found.parent.name for file in (INDEX, ADAPTER) for found in path.glob(f"*/{file}")}):
        hint = f"Give the folder inside that has one: {', '.join(inside[:3])}."
    elif (path.parent / INDEX).is_file():
        hint = f"It is one part of a pipeline: give {path.parent}."
    return ModelError(f"{name}: no {INDEX} in it.", hint)


def _holds_lora(file: Path) -> bool:
    """Whether it is a safetensors file of LoRA's matrices, in diffusers' layout or another; nothing else is read."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size)) if file.suffix == ".safetensors" and size <= MAX_HEADER else {}
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and any("lora" in key.lower() for key in header)


def fetch_from_hub(
    repo_id: str,
    revision: str | None = None,
    *,
    token: Token = None,
    max_bytes: float = math.inf,
    adapters: bool = False,
) -> Path:
    """The local folder of a Hub repo's pipeline or, with `adapters`, adapter, without its base model; downloaded if
    need be, and never a folder of this machine.

    Of the repo come the files that loading reads, its model card and its `config.yaml`, where they are no larger than
    such files are. Names other than OWNER/NAME are refused before the Hub is asked; kinds that are not supported,
    models of more than `max_bytes`, and words that no run learns, before the weights are downloaded. With a visitor's
    token, or nobody's, the Hub is asked first whether they may read it, and this revision of it: that it was downloaded
    here before, for somebody else, is not enough. Raises as `fetch_model` does.
    """
    _check_id(repo_id)
    with download_told(repo_id, revision, token):
        cache = None
        if token is not None:
            auth_check(repo_id, token=token)
            revision = HfApi().model_info(repo_id, revision=revision, token=token).sha
            cache = visitors_cache()
        index = _fetch_index(
            repo_id, partial(hf_hub_download, repo_id, revision=revision, token=token, cache_dir=cache)
        )
        if index.name == ADAPTER and not adapters:
            _refuse_adapter(repo_id)
        commit = index.parent.name
        get = partial(snapshot_download, repo_id, revision=commit, token=token, cache_dir=cache)
        arrive(index.parent, [index.name], get)  # the list of files comes with it
        try:
            tree = get_cached_repo_tree(repo_id, revision=commit, cache_dir=cache)
        except CachedRepoTreeNotFoundError:
            if token is not None:
                raise
            return index.parent  # without the Hub, what is here is enough
        files = {file.path: file.size for file in tree}
        wanted = _loaded_files(index, files)
        _check_small(repo_id, {path: files[path] for path in wanted if not path.endswith((".safetensors", ".bin"))})
        check_words(repo_id, words := {path: files[path] for path in wanted if fnmatch(path, PATTERN)})
        if (size := sum(files[path] for path in wanted)) > max_bytes:
            raise ModelError(
                f"{repo_id} has {size / 1e9:.1f} GB, more than the {max_bytes / 1e9:.1f} GB that are fetched here.",
                "Choose a smaller one.",
            )
        for paths in (list(words), wanted) if words else (wanted,):  # words are small, and may be reason enough
            arrive(index.parent, [index.name, *paths], get)
            if index.name == ADAPTER:
                for path in paths:
                    check_header(index.parent / path, f"{repo_id}: {path}")
        if about := [name for name in ("README.md", "config.yaml") if files.get(name, math.inf) <= MAX_FOREIGN_YAML]:
            with suppress(LocalEntryNotFoundError):  # out of the Hub's reach a model is one without them, too
                arrive(index.parent, about, get)
        return index.parent


def fetch_safety_checker() -> Path:
    """The local folder of the safety checker that looks at what strangers' models draw, downloaded if need be, with
    nobody's token; raises as `fetch_model` does."""
    get = partial(snapshot_download, SAFETY_CHECKER, revision=SAFETY_COMMIT, token=False, allow_patterns=_SAFETY_FILES)
    with suppress(LocalEntryNotFoundError):
        folder = Path(get(local_files_only=True))
        if (folder / _SAFETY_FILES[0]).is_file() and any((folder / name).is_file() for name in _SAFETY_FILES[1:]):
            return folder
    with download_told(SAFETY_CHECKER, SAFETY_COMMIT, False, "a safety checker"):
        return Path(get())


def arrive(folder: Path, paths: Sequence[str], get: Callable[..., object]) -> None:
    """Have `get` download what is not in `folder`, of the Hub's cache, and see that the files are what the Hub has.

    The cache names them by their hashes, so that what a power cut or a disk damaged is known, and comes again. They are
    read once: what was found whole, and is on the disk, is noted. Raises `ModelError` where a file is still damaged.
    """
    get(allow_patterns=list(paths))
    blobs = {path: (folder / path).resolve() for path in paths}
    blobs = {path: blob for path, blob in blobs.items() if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name)}
    if (note := _note_of(blobs.values())).exists():
        return
    found = {path: _digest(blob) for path, blob in blobs.items()}
    if damaged := [path for path, blob in blobs.items() if found[path] != blob.name]:
        for path in damaged:
            blobs[path].unlink()
        get(allow_patterns=damaged)
        for path in damaged:  # a mirror may call files otherwise: the same content twice is no damage
            if (again := _digest(blobs[path])) not in (blobs[path].name, found[path]):
                raise ModelError(f"{path} arrived damaged ({again[:8]}).", "Try again later, or on another disk.")
    for blob in blobs.values():
        sync(blob)
    note = _note_of(blobs.values())
    make_folder(note.parent)
    note.touch()


def _note_of(files: Iterable[Path]) -> Path:
    """What is there where these files, as long as they do not change, were found whole."""
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return cache_home() / "arrived" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _digest(blob: Path) -> str:
    """The hash by which the Hub's cache names a file: SHA-256 of large ones, Git's of the others."""
    digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(f"blob {blob.stat().st_size}\0".encode())
    with blob.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _check_id(repo_id: str) -> None:
    """Raise `ModelError` for what is no OWNER/NAME, which in an address could stand for another one."""
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError
    except HFValidationError:
        raise ModelError(
            f"{repo_id[:96]!r} is not on the Hub, whose repos are called OWNER/NAME.", "Check the spelling."
        ) from None


def _refuse_adapter(name: str) -> NoReturn:
    raise ModelError(
        f"{name} is an adapter, which is no model by itself.", "Give its base model, or `fuse` the two into one first."
    )


def _fetch_index(repo_id: str, get: Callable[..., Any]) -> Path:
    """The `model_index.json` of a repo or, where it has none, its `adapter.json`, downloaded if need be."""
    lacking: EntryNotFoundError | None = None
    for name in (INDEX, ADAPTER):
        try:
            _check_small(repo_id, {name: get(name, dry_run=True).file_size or 0})
            return Path(get(name))
        except EntryNotFoundError as error:
            lacking = lacking or error
            if isinstance(error, LocalEntryNotFoundError):  # out of the Hub's reach, which takes time to find out
                get = partial(get, local_files_only=True)
    assert lacking, "there are two names"
    raise lacking


def _loaded_files(index: Path, paths: Iterable[str]) -> list[str]:
    """Those of a repo's files that loading its pipeline, or adapter, reads; none has a name that could stand for others
    as a pattern. Raises `ModelError` for kinds that are not supported."""
    if index.name == INDEX:
        return loaded_files(family_of(index.parent), paths)
    try:
        name = json.loads(index.read_bytes())["method"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        name = None
    patterns = {method.name: method.files for method in methods() if method.load}
    if not isinstance(name, str) or name not in patterns:
        raise ModelError(
            f"{shown_name(index.parent)}: {ADAPTER} names no method that is known here.",
            "Choose another model, or a newer version of this program.",
        )
    plain = [path for path in paths if re.fullmatch(r"[\w.-]+", path)]
    return sorted(path for path in plain if any(fnmatch(path, pattern) for pattern in patterns[name]))


def check_words(repo_id: str, sizes: dict[str, int]) -> None:
    """Raise `ModelError` where the files of a stranger's learned words, of so many bytes each, are more, or larger,
    than those of any run: each word makes the vocabulary anew."""
    if len(sizes) > MOST_SUBJECTS:
        raise ModelError(
            f"{repo_id} holds {len(sizes):,} learned words, more than {MOST_SUBJECTS}.", "Choose another model."
        )
    if (size := sum(sizes.values())) > MAX_SMALL_FILE:
        raise ModelError(
            f"{repo_id}: its learned words have {size:,} bytes, too many for words.", "Choose another model."
        )


def check_header(weights: Path, name: str) -> None:
    """Raise `ModelError`, with the file's `name`, for a stranger's safetensors file whose header would take far more
    memory than its numbers, which reading it checks against the file's size; and for a learned word of more embeddings
    than any run learns, as each is looked for in every prompt."""
    try:
        with weights.open("rb") as file:
            if (size := int.from_bytes(file.read(8), "little")) > MAX_HEADER:
                raise ModelError(f"{name} has a header of {size:,} bytes.", "Choose another model.")
            header = json.loads(file.read(size))
        shapes = [entry["shape"] for key, entry in header.items() if key != "__metadata__"]
        large = [side for shape in shapes for side in shape if side > MAX_VOCABULARY]
        word = fnmatch(weights.name, PATTERN)
        vectors = [shape[0] for shape in shapes if word and shape and shape[0] > MOST_VECTORS]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{name} is no safetensors file.", what_helps(weights, error)) from None
    if large:
        raise ModelError(f"{name} holds a side of {large[0]:,}, more than any such model has.", "Choose another one.")
    if vectors:
        raise ModelError(
            f"{name} holds a word of {vectors[0]:,} embeddings, more than {MOST_VECTORS}.", "Choose another model."
        )


def _check_small(repo_id: str, sizes: dict[str, int]) -> None:
    for path, size in sizes.items():
        if size > MAX_SMALL_FILE:
            raise ModelError(
                f"{repo_id}: {path} has {size:,} bytes, too many for such a file.", "Choose another model."
            )


def list_files(
    repo_id: str, revision: str | None, token: Token, wanted: str, repo_type: str = "model"
) -> tuple[Any, dict[str, int]]:
    """What the Hub says of a repo, and its files' sizes in bytes by path; raises as `fetch_model` does."""
    with download_told(repo_id, revision, token, wanted):
        info = HfApi().repo_info(repo_id, revision=revision, repo_type=repo_type, token=token)
        tree = HfApi().list_repo_tree(repo_id, recursive=True, revision=info.sha, repo_type=repo_type, token=token)
        return info, {file.path: file.size for file in islice(tree, MAX_FILES) if isinstance(file, RepoFile)}


def fetch_files(
    repo_id: str, commit: str, paths: Iterable[str], folder: Path, token: Token, wanted: str, repo_type: str = "model"
) -> None:
    """Download some of a repo's files into an empty `folder`, under their paths in the repo.

    Nothing is left in the cache that all downloads share. Raises as `fetch_model` does.
    """

    def fetch(path: str) -> None:
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{repo_id} has a file that would land elsewhere: {path!r}.", f"Give {wanted}.")
        hf_hub_download(repo_id, path, revision=commit, repo_type=repo_type, local_dir=folder, token=token)

    with download_told(repo_id, commit, token, wanted), ThreadPoolExecutor(DOWNLOADS) as pool:
        list(pool.map(fetch, paths))


@contextmanager
def download_told(
    repo_id: str, revision: str | None, token: Token, wanted: str = "a diffusers pipeline"
) -> Iterator[None]:
    """What goes wrong inside the block is raised as `download_failure` says, and not the client's own error with it."""
    if token == "":  # nothing must be done for nobody in somebody's name
        raise HubError("There is no Hugging Face token.", "Log in.")
    try:
        yield
    except DreamBoothError:
        raise
    except Exception as error:  # the HTTP library's errors come through, and which library that is changes
        raise download_failure(repo_id, revision, error, token, wanted) from None


def download_failure(
    repo_id: str, revision: str | None, error: Exception, token: Token, wanted: str = "a diffusers pipeline"
) -> DreamBoothError:
    """What to raise for the error that the Hub's client met while it fetched `wanted` from a repo for `token`."""
    # diffusers looks in the cache when the Hub gives no answer, and raises an OSError with the Hub's error as its cause
    cause = error.__cause__ if type(error) is OSError else None
    if wrapped := isinstance(cause, Exception):
        error = cause
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError):
        accept = f"Accept its terms on https://huggingface.co/{repo_id}"
        hints: dict[Token, str] = {
            None: f"{accept} and log in with `hf auth login`.",
            False: "Choose a model that everybody may read, or log in with an account that accepted its terms.",
        }
        return HubError(f"{repo_id} is gated.", hints.get(token, f"{accept} with the account you are logged in with."))
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{repo_id} has no revision {revision!r}.", "Look at the repo's branches and tags.")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        log_in = "log in with `hf auth login`" if token is None else "log in with an account that may read it"
        return ModelError(
            f"{repo_id} is not on the Hub, or is private.", f"Check the spelling; for a private one {log_in}."
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return ModelError(f"{repo_id} lacks a file: {first_line(error)}.", f"Give a repo with {wanted}.")
    if isinstance(error, LocalEntryNotFoundError) or (wrapped and status is None):
        return HubError(
            f"{repo_id} is not downloaded and the Hub can't be reached.", "Check the connection and try again."
        )
    if status == 401:
        return HubError("The Hub does not accept the login.", "Log in again.")
    if status == 429:
        return HubError(f"The Hub asks for fewer requests than {repo_id} takes.", "Wait a few minutes, then try again.")
    full = isinstance(error, OSError) and error.errno and error.strerror  # its text names the file
    reason = redact(full or first_line(error), token)
    return HubError(f"{repo_id} could not be downloaded: {reason}.", "Try again; files that arrived whole are kept.")


def fingerprint(model: Path) -> str:
    """A hash of a pipeline's or an adapter's folder: its files' names, sizes and contents (of big ones, their ends).

    Reading gigabytes for each run would cost more than it tells; training changes weights all over the file. Only what
    loading reads counts, so that it is the same wherever the model was downloaded, and by which program.
    """
    digest = hashlib.sha256()
    if (model / ADAPTER).is_file():
        files = [model / ADAPTER, *model.glob("*.safetensors")]
    else:
        paths = [path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()]
        files = [model / path for path in (INDEX, *loaded_files(family_of(model), paths))]
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(model)} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            if size > 1 << 20:
                file.seek(-(1 << 20), os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()
