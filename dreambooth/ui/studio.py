"""The studio as the tabs have it: what it offers, and what a visitor does with runs that are there."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth import events
from dreambooth.config.names import TOYBOX, which_model
from dreambooth.config.presets import load_preset
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, RunError
from dreambooth.families import family_of
from dreambooth.files import cache_home, check_writable, named_path
from dreambooth.hub import Account
from dreambooth.machine import resolve_device
from dreambooth.models.fetch import fetch_model
from dreambooth.runs.directory import Run
from dreambooth.runs.worker import Worker
from dreambooth.sharing.publish import Publication
from dreambooth.ui.doors import room
from dreambooth.ui.doors.admission import Admission
from dreambooth.ui.doors.limits import StudioSettings, is_person
from dreambooth.ui.owned import OwnedRuns, is_readable
from dreambooth.ui.publishing import Publisher
from dreambooth.ui.report import title_of

RECIPES = {
    TOYBOX: "Toybox: a minute on any computer",
    "sd15-object": "Stable Diffusion 1.5: a thing",
    "sd15-animal": "Stable Diffusion 1.5: an animal",
    "sd15-person": "Stable Diffusion 1.5: a person",
    "paper": "Stable Diffusion 1.5: as in the paper",
    "toybox-lora": "Toybox",
    "sd15-lora": "Stable Diffusion 1.5",
    "toybox-textual-inversion": "Toybox",
    "sd15-textual-inversion": "Stable Diffusion 1.5",
    "toybox-custom-diffusion": "Toybox",
    "sd15-custom-diffusion": "Stable Diffusion 1.5",
}
"""The presets on offer, and what the page calls them."""

UNKNOWN_RESOLUTION = 512
"""Taken for a base model that would have to be downloaded to know better; Stable Diffusion 1.5's."""


@dataclass(frozen=True)
class Studio(OwnedRuns):
    """One running studio: where its runs are, what trains them, and the base models it offers."""

    base_models: dict[str, str]
    """By the name that the page shows; a visitor never sends or sees a path."""
    worker: Worker
    settings: StudioSettings = field(default_factory=lambda: StudioSettings())
    publisher: Publisher = field(default_factory=Publisher, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Let the worker tell of runs that ended, so that their disk space is seen to."""
        self.worker.after_run = self.admission.tidy

    @functools.cached_property
    def admission(self) -> Admission:
        """What may wait here, and what makes room for it."""
        return Admission(self, self.worker, self.settings, self.publisher)

    @classmethod
    def from_environment(cls) -> Studio:
        """As the environment variables say (`StudioSettings`), with a worker that goes on with what waits.

        Raises `ConfigError` that names the variable that can't be used, as one whose folder can't be written to.
        """
        settings = StudioSettings.from_environment()
        root = named_path(settings.runs, "DREAMBOOTH_RUNS").resolve()
        check_writable(root, "DREAMBOOTH_RUNS")
        check_writable(cache_home(), "DREAMBOOTH_CACHE")
        # Without a GPU only the toybox trains in minutes; a big model that is wanted all the same can be named.
        recipes = RECIPES if resolve_device("auto").type != "cpu" and not gpu_is_lent() else (TOYBOX,)
        own = which_model(settings.base_model, Path(), "DREAMBOOTH_BASE_MODEL")
        offered = [own, *(load_preset(recipe)["base_model"] for recipe in recipes)]
        names = {Path(model).name if Path(model).is_dir() else model: model for model in offered}
        minutes = settings.max_minutes
        worker = Worker(root, settings.workers, max_seconds=60.0 * minutes if minutes else None)
        return cls(root, names, worker, settings)

    @property
    def public(self) -> bool:
        """Whether strangers use it."""
        return self.settings.public

    @property
    def default_model(self) -> str:
        """The name of the base model that the page starts with."""
        return next(iter(self.base_models))

    @property
    def recipes(self) -> dict[str, str]:
        """Those of `RECIPES` that were made for base models on offer; all where the default one has none of its own."""
        made_for = {name: load_preset(name)["base_model"] for name in RECIPES}
        own = self.model(self.default_model) not in made_for.values()
        return {name: label for name, label in RECIPES.items() if own or made_for[name] in self.base_models.values()}

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

    def stop(self, owner: str, run_id: str) -> None:
        """Take a run out of the queue, or stop it after its current step; it can be resumed."""
        self.worker.stop(self.own_run(owner, run_id))

    def resume(self, owner: str, run_id: str) -> None:
        """Queue a run again that ended early; raises `RunError` for any other, and where a limit is reached."""
        run = self.own_run(owner, run_id)
        with self.admission.deciding:
            if (status := run.status) not in ("interrupted", "failed", "cancelled"):
                raise RunError(f"This run is {status}.", "Only one that ended early can be resumed.")
            self.admission.refuse_too_many(owner, 1, room.promised(run))
            for doomed in self.admission.room_for(owner, max(0, room.promised(run) - run.size), 0, [run]):
                doomed.delete()
            self.admission.asked([run.id])
            self.worker.submit(run, _seconds_to_go(run))

    def delete(self, owner: str, run_id: str) -> None:
        """Remove a run with its photos and its model; raises `RunError` while it waits, trains or is uploaded, or is
        shown beside one that is. A damaged one need not be stopped before."""
        run = self.any_own_run(owner, run_id)
        with self.admission.deciding:
            if not is_readable(run):
                self.worker.stop(run)
            if self.admission.is_uploaded(run):
                raise RunError("This run is being published, or its pair.", "Wait for its end before you delete it.")
            run.delete()

    def publish(self, owner: str, run_id: str, wanted: Publication, account: Account, *, consent: bool = False) -> None:
        """Give a finished run to the Hub as `account`, in a thread; `read_state` tells how it goes.

        Raises `RunError` where it is not finished or on its way already, `ConfigError` where consent is missing.
        """
        run = self.own_run(owner, run_id)
        if run.status != "finished":
            raise RunError(f"This run is {run.status}.", "Wait for its end, or resume it.")
        if self.asks_consent(run.config) and consent is not True:
            raise ConfigError(
                "A model of a person needs consent.",
                "Tick the box that says that everybody on the photos agrees to its publication.",
            )
        with self.admission.deciding:
            if not run.path.is_dir():
                raise RunError("You have no such run.", "It was deleted meanwhile.")
            self.publisher.submit(run, wanted, account, self.finished_partner(run))

    def asks_consent(self, config: Config) -> bool:
        """Whether people may be on the photos, and strangers use this studio."""
        people = any(is_person(subject.class_noun) for subject in config.subjects)
        return self.public and (people or config.preset == "sd15-person")


def gpu_is_lent() -> bool:
    """Whether a GPU only seems to be there: ZeroGPU lends it for a minute at a time, to calls that draw."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def title(run: Run) -> str:
    """What the page calls a run."""
    return title_of(run.config)


def _seconds_to_go(run: Run) -> float | None:
    """The run's own estimate, less the share of its steps that are in a checkpoint."""
    history = run.events()
    estimates = [
        event.value for event in history if isinstance(event, events.Metric) and event.name == "estimated_seconds"
    ]
    done = max((event.step for event in history if isinstance(event, events.Checkpoint)), default=0)
    return estimates[-1] * (1 - done / run.config.train.steps) if estimates else None
