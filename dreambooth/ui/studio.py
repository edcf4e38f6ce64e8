"""What the tabs share: the worker, the base models on offer, whose run is whose, and errors as sentences."""

from __future__ import annotations

import functools
import hashlib
import hmac
import html
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from PIL import Image

from dreambooth.config import TOYBOX, Config, load_preset
from dreambooth.errors import ConfigError, DreamBoothError, PhotoError, RunError
from dreambooth.families import family_of, fetch_model
from dreambooth.files import atomic_file
from dreambooth.photos import open_photo
from dreambooth.runs import Run, Worker, list_runs, runs_root

RECIPES = {
    TOYBOX: "Toybox: a minute on any computer",
    "sd15-object": "Stable Diffusion 1.5: a thing",
    "sd15-animal": "Stable Diffusion 1.5: an animal",
    "sd15-person": "Stable Diffusion 1.5: a person",
    "paper": "Stable Diffusion 1.5: as in the paper",
}
"""The presets on offer, and what the page calls them."""

QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Arguments of events that only redraw the page: at once, without a spinner, and nothing for API callers."""

MAX_PHOTOS = 50
"""More is a mistake or an attack: the coach finds more than six too many."""
KEPT_SIDE = 2048
"""Short side at which photos are kept, in pixels: twice the largest resolution that a base model here is trained at."""

UNKNOWN_RESOLUTION = 512
"""Taken for a base model that would have to be downloaded to know better; Stable Diffusion 1.5's."""

_OWNER = re.compile(r"[A-Za-z0-9_-]{20,64}")
_RUN_ID = re.compile(r"[A-Za-z0-9-]{1,100}")


# --------------------------------------------------------------------------------------------------------- visitors


def new_owner() -> str:
    """A fresh id for a visitor; whoever knows it sees their runs."""
    return secrets.token_urlsafe(24)


def is_owner(owner: object) -> bool:
    """Whether this has the form of a visitor's id."""
    return isinstance(owner, str) and _OWNER.fullmatch(owner) is not None


def checked_owner(owner: object) -> str:
    """The id itself; raises `RunError` where it is none."""
    if not is_owner(owner):
        raise RunError("This visit has no id yet.", "Reload the page; API callers choose 20 to 64 letters and digits.")
    return owner


def _mark(owner: str) -> str:
    """What a run keeps of its owner's id, so that reading a run directory does not give the id away."""
    return hashlib.sha256(owner.encode()).hexdigest()


# ----------------------------------------------------------------------------------------------------------- studio


@dataclass(frozen=True)
class Studio:
    """One running studio: where its runs are, what trains them, and the base models it offers."""

    root: Path
    base_models: dict[str, str]
    """By the name that the page shows; a visitor never sends or sees a path."""
    worker: Worker

    @classmethod
    def from_environment(cls) -> Studio:
        """Runs in $DREAMBOOTH_RUNS; $DREAMBOOTH_BASE_MODEL is offered first, toybox if unset."""
        offered = [os.environ.get("DREAMBOOTH_BASE_MODEL", TOYBOX), *(load_preset(r)["base_model"] for r in RECIPES)]
        names = {Path(model).name if Path(model).is_dir() else model: model for model in offered}
        return cls(runs_root().resolve(), names, Worker())

    @property
    def default_model(self) -> str:
        """The name of the base model that the page starts with."""
        return next(iter(self.base_models))

    def model(self, name: str) -> str:
        """The base model of that name; raises `ConfigError` with the names there are."""
        if name not in self.base_models:
            raise ConfigError(f"Base model {name!r} is not on offer.", f"Choose {', '.join(self.base_models)}.")
        return self.base_models[name]

    @functools.cached_property
    def resolution(self) -> int:
        """Side in pixels at which the photos are looked at: the default base model's where it is on this machine."""
        model = self.model(self.default_model)
        if model != TOYBOX and not Path(model).is_dir():
            return UNKNOWN_RESOLUTION
        folder = fetch_model(model)
        return family_of(folder).resolution(folder)

    def create_run(self, owner: str, settings: dict, photos: Sequence[str]) -> Run:
        """A new run of `owner` with copies of the photos, and without what they tell but pixels (place, camera, name).

        `settings` is nested as in a config file, without `subject.photos`. Raises `ConfigError` and `PhotoError`.
        """
        owner = checked_owner(owner)
        if not photos:
            raise PhotoError("There are no photos yet.", "Add 3 to 5 in the Photos tab, or take a sample subject.")
        refuse_too_many(photos)
        path = self.root / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}"
        uploads = path / "uploads"
        subject = settings["subject"] | {"photos": str(uploads)}
        run = Run.create(Config.from_dict(settings | {"subject": subject}, source="Settings"), path)
        try:
            for number, photo in enumerate(photos):
                with atomic_file(uploads / f"{number:02d}.png") as partial:
                    _at_most(open_photo(photo), KEPT_SIDE).save(partial, compress_level=1)
            with atomic_file(path / "owner") as partial:
                partial.write_text(_mark(owner))
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return run

    def own_run(self, owner: str, run_id: str) -> Run:
        """The run of that id if it is this visitor's; raises `RunError` that does not tell whether it exists."""
        owner = checked_owner(owner)
        if isinstance(run_id, str) and _RUN_ID.fullmatch(run_id) and _is_owned(self.root / run_id, owner):
            return Run.open(self.root / run_id)
        raise RunError("You have no such run.", "Choose one from the list, or train one first.")

    def own_runs(self, owner: str) -> list[Run]:
        """This visitor's runs, newest first."""
        owner = checked_owner(owner)
        return [run for run in list_runs(self.root) if _is_owned(run.path, owner)]


def refuse_too_many(photos: Sequence[str]) -> None:
    """Raise `PhotoError` for more than `MAX_PHOTOS`, before one of them is read."""
    if len(photos) > MAX_PHOTOS:
        raise PhotoError(f"{len(photos)} photos are too many.", "Keep the best 3 to 5.")


def _is_owned(path: Path, owner: str) -> bool:
    try:
        return hmac.compare_digest((path / "owner").read_text(), _mark(owner))
    except FileNotFoundError:
        return False  # made on the command line, or none at all


def _at_most(image: Image.Image, short_side: int) -> Image.Image:
    if min(image.size) > short_side:
        scale = short_side / min(image.size)
        return image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS, reducing_gap=3.0)
    return image


def title(run: Run) -> str:
    """What the page calls a run."""
    subject = run.config.subject
    return f"{subject.identifier} {subject.class_noun}"


# ----------------------------------------------------------------------------------------------------------- errors


def in_plain_words(handler: Callable) -> Callable:
    """The handler with the library's errors, and the system's, shown on the page as a sentence and not printed."""

    @functools.wraps(handler)
    def plain(*args, **kwargs):
        try:
            return handler(*args, **kwargs)
        except DreamBoothError as error:
            sentence = html.escape(str(error), quote=False)  # it may quote a visitor's words, and toasts are HTML
            raise gr.Error(sentence, print_exception=False) from None
        except OSError as error:  # a full disk, say; the reason alone, since the rest is a path of the server
            reason = error.strerror or "a file can't be read or written"
            raise gr.Error(f"The server can't do this now: {reason}.", print_exception=False) from None

    return plain
