"""Publishing: a finished run becomes a model repo on the Hub, in one commit; what stopped is taken up where it was.

How far it is stands in the run's directory, apart from the state of the run: in `publishing.json` while it is tried and
after it failed, in `published.json` once the model is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from pydantic import BaseModel, ConfigDict, Field

from dreambooth import events
from dreambooth.errors import ConfigError, DreamBoothError, HubError, ModelError, RunError, first_line
from dreambooth.events import Event
from dreambooth.families import FAMILIES
from dreambooth.families.folder import loaded_files
from dreambooth.files import PATIENCE, atomic_file, clear_leftovers, is_held, scratch_folder, sync
from dreambooth.generate import Which, finished_model
from dreambooth.hub import TAG, Account, check_repo_id, plain_failures, redact
from dreambooth.models.adapters import STEP
from dreambooth.models.fetch import INDEX
from dreambooth.runs.directory import Run, explain
from dreambooth.sharing import card
from dreambooth.sharing.model_card import PHOTOS

_TRYING, _DONE, _LOCK = "publishing.json", "published.json", ".publishing.lock"
_OURS = re.compile(
    r"(?:metrics|measures|adapter)\.json|photos/(?:subject-\d+/)?\d\d+\.(?:png|txt)"
    r"|images/(?:\d\d|loss|drift|progress|comparison)\.png"
    r"|(?:pytorch_(?:lora|custom_diffusion)_weights|learned_embeds(?:-\d+)?)\.safetensors"
)
"""Names that publishing gives, by which it knows what another run, or another machine, has put there."""
_FOLDERS = re.compile(r"(?<![\w/:.])(?:~|\.\.?|[A-Za-z]:)?[/\\](?:[^/\\:'\"]*[/\\])*")
"""The folders of a path, in an error's text; neither an address nor a repo's id has any."""
_MESSAGE = f"Publish with {TAG}"
_LARGE = 10_000_000  # bytes; the Hub keeps larger files as large files alone, and they are sent one by one
_LOOK = 0.5  # seconds between two looks at how far a file is


class Publication(BaseModel):
    """What is to be published, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    repo_id: str = Field(description="The repo: NAME or OWNER/NAME.")
    private: bool = Field(True, description="Seen by its owner alone, or by everybody. Nobody regrets the former.")
    photos: bool = Field(
        False,
        description="With the subject's photos, as cropped for training; they show a person's "
        "home or face, so only if asked.",
    )
    half: bool = Field(False, description="Weights in 16 bits: half the size, and pictures alike but not the same.")
    which: Which = Field("last", description="The model of the last step, or of the step that measured best.")


@dataclass(frozen=True)
class PublishState:
    """How far the publishing of a run is."""

    state: Literal["uploading", "interrupted", "failed", "published"]
    """`interrupted`: it began, and its process is gone."""
    repo_id: str
    private: bool
    reason: str = ""
    """Why it failed, and what to do."""
    url: str = ""
    """Where the model is; also where a new attempt failed and an older one is there."""
    done: int = 0
    """Bytes read and sent, of `total`; the reading is up to some 100 MB ahead of the line."""
    total: int = 0
    photos: bool = False
    half: bool = False
    which: Which = "last"
    """These three as they were asked for, to be asked for again."""


def read_state(run_path: Path) -> PublishState | None:
    """How far the publishing of the run in that directory is; None if nobody tried. Raises `RunError` where damaged."""
    trying, done = _read(run_path / _TRYING), _read(run_path / _DONE)
    try:
        if trying is None:
            if done is None:
                return None
            return PublishState("published", done["repo_id"], done["private"], url=done["url"], **_asked(done))
        url = done["url"] if done and done["repo_id"] == trying["repo_id"] else ""
        facts = {name: trying[name] for name in ("state", "repo_id", "private", "reason", "done", "total")}
        if facts["state"] == "uploading" and not is_held(run_path / _LOCK):
            facts["state"] = "interrupted"
        return PublishState(url=url, **facts, **_asked(trying))
    except (KeyError, TypeError) as error:
        raise RunError(f"{_TRYING} can't be read ({error}).", "Remove it and publish again.") from None


def _asked(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("photos", "half", "which") if name in facts}


def publish(
    run: Run, wanted: Publication, account: Account, *, partner: Run | None = None
) -> Generator[Event, None, None]:
    """Make the run's model a repo of `account` on the Hub, yielding events; `Published` is the last.

    It is there as a whole or not at all: large files are sent first, then everything in one commit. After a failure the
    run can be published again, and files that the Hub has are not sent again. `partner` is the run that differs alone
    in what keeps the class from drifting, for the card. Raises `RunError` for a run that has not finished, or is being
    published elsewhere, `HubError` where the Hub refuses or can't be reached, `ConfigError` for a repo that is not to
    be written, or not to be seen.
    """
    if run.status != "finished":
        raise RunError(f"{run.id} has not finished.", "Train it to the end first, then publish it.")
    model = finished_model(run.path, wanted.which)
    wanted = wanted.model_copy(update={"repo_id": check_repo_id(wanted.repo_id, account)})
    with _alone(run):
        attempt = _Attempt(run, wanted)
        try:
            attempt.note()
            yield from _publish(run, model, wanted, account, partner, attempt)
        except Exception as error:
            failure = _failure_here(error)
            said = str(failure or _FOLDERS.sub("", f"{type(error).__name__}: {error}"))
            attempt.fail(redact(said, account.token))
            if failure is None:  # a bug
                raise
            raise failure from None


def _publish(
    run: Run, model: Path, wanted: Publication, account: Account, partner: Run | None, attempt: _Attempt
) -> Iterator[Event]:
    """`publish`, for who holds the lock and keeps what goes wrong."""
    repo_id, token = wanted.repo_id, account.token
    api = HfApi(token=token)
    yield events.Stage("prepare")
    clear_leftovers(run.path)
    existing = _existing(api, repo_id, token)
    shown = existing is not None and existing.private and not wanted.private
    if existing and shown and not wanted.photos and any(name.startswith(f"{PHOTOS}/") for name in _names(existing)):
        raise ConfigError(
            f"{repo_id} holds the photos, and its history would show them to everybody.",
            "Publish under another name, or delete the repo on the Hub first.",
        )
    licence = card.base_licence(run.config, token)
    with scratch_folder(run.path) as folder:
        beside, made = folder / "beside", folder / "made"
        beside.mkdir()
        card.assemble(
            run,
            beside,
            repo_id=repo_id,
            licence=licence,
            which=wanted.which,
            photos=wanted.photos,
            half=wanted.half,
            partner=partner,
        )
        _check_card(beside / card.CARD, token)
        files = _model_files(model, made)
        if wanted.half:
            yield from _halve_all(files, made)
        files |= _files_in(beside)
        additions = [CommitOperationAdd(path, file) for path, file in sorted(files.items())]
        total = sum(addition.upload_info.size for addition in additions)

        if existing is None:
            existing = _create(api, repo_id, token)
        elif wanted.private and not existing.private:  # before anything arrives that is not for everybody
            _set_private(api, repo_id, True, token)

        yield events.Stage("upload", total)
        attempt.note(0, total)
        with plain_failures(f"upload {repo_id}", token):
            for done in _upload(api, repo_id, additions):
                attempt.note(done, total)
                yield events.Progress(done)

        yield events.Stage("commit")
        private = bool(_look(api, repo_id, token).private)
        if wanted.private and not private:  # somebody made it public meanwhile
            _set_private(api, repo_id, True, token)
            private = True
        commit = _commit(api, repo_id, additions, existing, _published_before(run, repo_id), token)
    url = f"{api.endpoint}/{repo_id}"
    attempt.keep(url, commit, files, private=private)
    if private != wanted.private:
        _set_private(api, repo_id, False, token)
        attempt.keep(url, commit, files, private=False)
    attempt.end()
    yield events.Published(url, commit)


# ------------------------------------------------------------------------------------------------ the state, on disk


class _Attempt:
    """What is known of one attempt, kept where every process finds it."""

    def __init__(self, run: Run, wanted: Publication):
        self._run = run
        self._facts = wanted.model_dump() | {"state": "uploading", "reason": "", "done": 0, "total": 0}

    def note(self, done: int = 0, total: int = 0) -> None:
        """So many bytes are there."""
        self._facts |= {"done": done, "total": total}
        self._write(_TRYING, self._facts)

    def fail(self, reason: str) -> None:
        """Keep why it ended."""
        self._facts |= {"state": "failed", "reason": reason}
        with contextlib.suppress(OSError, RunError):  # a full or lost disk is the failure being raised
            self._write(_TRYING, self._facts)

    def keep(self, url: str, commit: str, files: Collection[str], private: bool) -> None:
        """The model is there, in these files."""
        done = {"repo_id": self._facts["repo_id"], "url": url, "private": private, "commit": commit}
        done["files"] = sorted(files)
        self._write(_DONE, done | _asked(self._facts))

    def end(self) -> None:
        """All is as it was wanted."""
        (self._run.path / _TRYING).unlink()
        sync(self._run.path)

    def _write(self, name: str, facts: dict[str, Any]) -> None:
        if not self._run.path.is_dir():
            raise RunError(f"{self._run.id} was deleted meanwhile.", "What arrived on the Hub can be deleted there.")
        with atomic_file(self._run.path / name) as partial:
            partial.write_text(json.dumps(facts | {"time": time.time()}, indent=1), encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path.name} can't be read ({first_line(error)}).", "Remove it and publish again.") from None


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Nobody else publishes this run meanwhile; raises `RunError` where somebody does."""
    lock = FileLock(run.path / _LOCK, thread_local=False)  # a page may drive a generator from several threads
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise RunError(f"{run.id} is being published already.", "Wait for it.") from None
    try:
        yield
    finally:
        lock.release()


def _failure_here(error: Exception) -> DreamBoothError | None:
    """What to tell of `error`; None for a bug. Files are told by their names: everybody may read it on a page."""
    if isinstance(error, DreamBoothError):
        return type(error)(_FOLDERS.sub("", error.message), error.hint)
    if isinstance(error, OSError) and error.filename:
        error = OSError(error.errno, f"{error.strerror}: {Path(str(error.filename)).name}")
    known = explain(error)
    hint = "Put that right and publish again; what the Hub has is not sent again."
    return known and RunError(_FOLDERS.sub("", known.message), hint)


# ---------------------------------------------------------------------------------------------------- what is sent


def _files_in(folder: Path) -> dict[str, Path]:
    """The folder's files by their path in it, hidden ones left out."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        path.as_posix(): file for path, file in found.items() if not any(part.startswith(".") for part in path.parts)
    }


def _model_files(model: Path, made: Path) -> dict[str, Path]:
    """The model's files by their path in the repo: as they lie there, but configurations without this machine's paths,
    rewritten in `made`."""
    files = _files_in(model)
    files.pop(STEP, None)  # the card says it
    for path, file in files.items():
        if path.endswith("config.json") or path == INDEX:
            settings = json.loads(file.read_text(encoding="utf-8"))
            clean = {key: value for key, value in settings.items() if not _tells_a_path(key, value)}
            if clean != settings:
                files[path] = made / path
                files[path].parent.mkdir(parents=True, exist_ok=True)
                files[path].write_text(json.dumps(clean, indent=2) + "\n", encoding="utf-8")
    return files


def _tells_a_path(key: str, value: object) -> bool:
    if not (isinstance(value, str) and key.endswith(("name_or_path", "_file"))):
        return False
    anywhere = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    return anywhere or value.startswith(("~", "."))


def _halve_all(files: dict[str, Path], made: Path) -> Iterator[Event]:
    """Put 16-bit copies of the weights in `made`, and in `files`."""
    weights = [path for path in files if path.endswith(".safetensors")]
    yield events.Stage("16-bit weights", len(weights))
    for number, path in enumerate(weights, 1):
        target = made / path
        target.parent.mkdir(parents=True, exist_ok=True)
        _halve(files[path], target, path)
        files[path] = target
        yield events.Progress(number)


def _halve(source: Path, target: Path, name: str) -> None:
    """Copy a safetensors file with its 32- and 64-bit floats in 16 bits, one tensor in memory at a time.

    Source of the layout: https://github.com/huggingface/safetensors#format. Raises `ModelError` where a weight is too
    large for 16 bits, or the file is damaged.
    """
    wide = {"F32": torch.float32, "F64": torch.float64}
    try:
        with source.open("rb") as read, target.open("wb") as write:
            header = json.loads(read.read(int.from_bytes(read.read(8), "little")))
            start = read.tell()
            new = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
            entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
            end = 0
            for key, entry in entries:
                begin, size = end, entry["data_offsets"][1] - entry["data_offsets"][0]
                if entry["dtype"] in wide:
                    size = size * 2 // wide[entry["dtype"]].itemsize
                end = begin + size
                dtype = "F16" if entry["dtype"] in wide else entry["dtype"]
                new[key] = {"dtype": dtype, "shape": entry["shape"], "data_offsets": [begin, end]}
            text = json.dumps(new, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            write.write(len(text).to_bytes(8, "little") + text)
            for key, entry in entries:
                begin, stop = entry["data_offsets"]
                read.seek(start + begin)
                raw: bytes | bytearray = bytearray(read.read(stop - begin))
                if raw and entry["dtype"] in wide:
                    half = torch.frombuffer(raw, dtype=wide[entry["dtype"]]).to(torch.float16)
                    if not torch.isfinite(half).all():
                        raise ModelError(f"{name}: {key} is too large for 16 bits.", "Publish it in 32 bits.")
                    raw = half.numpy().tobytes()
                write.write(raw)
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{name} can't be read ({first_line(error)}).", "Train or save it again.") from None


# ------------------------------------------------------------------------------------------------------- the Hub


def _check_card(file: Path, token: str) -> None:
    """Raise `HubError` where the Hub would not take the card, before gigabytes are sent for nothing."""
    with plain_failures("have the model card checked", token):
        try:
            ModelCard.load(file).validate()
        except ValueError as error:
            said = "; ".join(re.findall(r'"message": ?"(.+?)"[,}]', str(error))) or first_line(error)
            said = redact(said, token)[:300]
            raise HubError(f"The Hub does not take the model card: {said}.", "Change what it quotes.") from None


def _look(api: HfApi, repo_id: str, token: str) -> ModelInfo:
    with plain_failures(f"look at {repo_id}", token):
        return api.model_info(repo_id)


def _existing(api: HfApi, repo_id: str, token: str) -> ModelInfo | None:
    """The repo as it is; None where there is none. Raises `ConfigError` for one that was not made here."""
    with plain_failures(f"look at {repo_id}", token):
        try:
            info = api.model_info(repo_id)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 404:
                return None
            raise
    if _names(info) - {".gitattributes"} and TAG not in (info.tags or ()):
        raise ConfigError(
            f"{repo_id} is there already and was not made with {TAG}.", "Choose another name, so that nothing is lost."
        )
    return info


def _names(info: ModelInfo) -> set[str]:
    return {file.rfilename for file in info.siblings or ()}


def _create(api: HfApi, repo_id: str, token: str) -> ModelInfo:
    """Make the repo, private; returns it as it is then, so that nobody else's commit is overwritten."""
    with plain_failures(f"make {repo_id}", token):
        try:
            api.create_repo(repo_id, private=True)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            raise ConfigError(
                f"{repo_id} is there already, and this login may not see it.", "Choose another name."
            ) from None
    made = _look(api, repo_id, token)
    if _names(made) - {".gitattributes"}:
        raise HubError(f"Something else was published as {repo_id} at the same time.", "Look at it, and try again.")
    return made


def _set_private(api: HfApi, repo_id: str, private: bool, token: str) -> None:
    """Change who sees the repo; raises `HubError` that says where a person can."""
    try:
        with plain_failures(f"make {repo_id} {'private' if private else 'public'}", token):
            api.update_repo_settings(repo_id, private=private)
    except HubError as error:
        where = f"{api.endpoint}/{repo_id}/settings"
        told = "Nothing was published." if private else "The model is there, but private."
        raise HubError(f"{error.message} {told}", f"Try again, or change it yourself: {where}") from None


def _upload(api: HfApi, repo_id: str, additions: list[CommitOperationAdd]) -> Iterator[int]:
    """Send the files that go before the commit, the large ones one after the other; yields bytes so far, in all."""
    large = [addition for addition in additions if addition.upload_info.size > _LARGE]
    small = [addition for addition in additions if addition.upload_info.size <= _LARGE]
    before = 0
    for group in filter(None, [small, *([addition] for addition in large)]):
        watched = str(group[0].path_or_fileobj) if group[0] in large else None
        send = partial(api.preupload_lfs_files, repo_id, group, free_memory=False)
        for position in _while_reading(watched, send):
            yield before + position
        before += sum(addition.upload_info.size for addition in group)
        yield before


def _while_reading(file: str | None, work: Callable[[], None]) -> Iterator[int]:
    """Do `work` in a thread, and yield how far `file` is read meanwhile, in bytes; the client tells it nobody.

    Where the system does not tell it either, nothing is yielded.
    """
    outcome: Future[None] = Future()

    def carry_out() -> None:
        try:
            work()
            outcome.set_result(None)
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=carry_out, name="dreambooth-upload", daemon=True).start()
    furthest = 0
    try:
        while not wait([outcome], timeout=_LOOK).done:
            if file is not None and (position := _position(file)) > furthest:
                yield (furthest := position)
    except GeneratorExit:
        wait([outcome])  # the next attempt must not meet it under way
        raise
    outcome.result()


def _position(file: str) -> int:
    """How far this process has read the file, in bytes; 0 where it does not, or the system does not tell."""
    furthest = 0
    for number in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # closed meanwhile
            if os.readlink(number) == os.path.realpath(file):
                about = Path(f"/proc/self/fdinfo/{number.name}").read_text().split()
                furthest = max(furthest, int(about[1]))
    return furthest


def _commit(
    api: HfApi, repo_id: str, additions: list[CommitOperationAdd], existing: ModelInfo, before: list[str], token: str
) -> str:
    """Put everything in place at once, take away what was published before and is no more, and look whether it is so.

    Raises `HubError` where `existing` is not the newest any more. Returns the commit's hash.
    """
    ours = {addition.path_in_repo: addition.upload_info.size for addition in additions}
    gone = [CommitOperationDelete(path) for path in _outdated(_names(existing), ours, before)]
    with plain_failures(f"put {repo_id} in place", token):
        made = api.create_commit(repo_id, [*additions, *gone], commit_message=_MESSAGE, parent_commit=existing.sha)
        there = list(api.list_repo_tree(repo_id, recursive=True, revision=made.oid))
    sizes = {file.path: file.size for file in there if isinstance(file, RepoFile)}
    if wrong := [path for path, size in ours.items() if sizes.get(path) != size]:
        raise HubError(f"{repo_id} does not hold what was sent: {wrong[0]}.", "Publish it again.")
    return made.oid


def _published_before(run: Run, repo_id: str) -> list[str]:
    """The files that the run's last publication there wrote."""
    done = _read(run.path / _DONE)
    return done.get("files", []) if done and done["repo_id"] == repo_id else []


def _outdated(there: Collection[str], ours: Collection[str], before: Collection[str]) -> list[str]:
    """What publishing wrote, by what it kept or by its name, and does not any more; anything else is the owner's."""
    old = {*before, *filter(_OURS.fullmatch, there)}
    if INDEX in there and INDEX not in ours:  # it was a whole pipeline
        old |= {INDEX, *(path for family in FAMILIES for path in loaded_files(family, there))}
    return sorted(path for path in there if path in old and path not in ours)
