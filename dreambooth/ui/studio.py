"""What the tabs share: whose run is whose, what may start and what is kept, and errors as sentences."""

from __future__ import annotations

import contextlib
import functools
import hmac
import math
import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from dreambooth import events
from dreambooth.config.names import TOYBOX, which_model
from dreambooth.config.presets import load_preset
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, PhotoError, RunError
from dreambooth.families import family_of
from dreambooth.families.tokens import Reader
from dreambooth.families.words import PATTERN, read_words
from dreambooth.files import (
    atomic_file,
    atomic_folder,
    cache_home,
    check_writable,
    named_path,
    shown_size,
    sync_all,
)
from dreambooth.hub import Account
from dreambooth.machine import resolve_device
from dreambooth.models.fetch import fetch_model
from dreambooth.photos.prepare import MIN_SIDE, Crop, checked_crop, join_names, open_photo, shown_pixels, subject_crop
from dreambooth.runs.directory import Run, list_runs
from dreambooth.runs.owners import checked_owner, mark, mark_of
from dreambooth.runs.worker import Worker
from dreambooth.sharing.publish import Publication, read_state
from dreambooth.training import prior
from dreambooth.training.preflight import disk_bytes, png_bytes
from dreambooth.ui.doors import lines, room
from dreambooth.ui.doors.limits import StudioSettings, is_person, refuse_too_large, refuse_too_much
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

Ways = Literal["one", "two", "three"]
"""How often a subject is trained: as the settings say; with and without PPL; with PPL, without it, and with a drift
penalty in its place."""

MAX_PHOTOS = 50
"""More is a mistake or an attack: the coach finds more than six too many."""
MAX_MEGAPIXELS = 600
"""Of one request's photos together: five of the largest that are read, or fifty of a phone's usual twelve. Decoding
takes a processor, and everybody's photos wait for it."""
KEPT_SIDE = 2048
"""Short side at which photos are kept, in pixels: twice the largest resolution that a base model here is trained at."""
KEPT_SHAPE = 2
"""So many times their short side is kept of longer photos, around the crop box: training reads nothing else. As from
`coach.EXTREME_ASPECT` on."""
UNKNOWN_RESOLUTION = 512
"""Taken for a base model that would have to be downloaded to know better; Stable Diffusion 1.5's."""
BEHIND_ONE_ADDRESS = 2
"""Times a visitor's bytes that runs of one address which wait or train may come to take: owners are free to make up,
and what theirs were promised would make room of others' runs."""

DAMAGED = (
    "This run is damaged: its settings can't be read.",
    "Another version made it, or the disk failed. All that can be done with it is to delete it.",
)
"""What is said of a run whose `config.yaml` is lost or damaged."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()-]{0,99}")  # ours, and what people call a copy


# ----------------------------------------------------------------------------------------------------------- studio


@dataclass(frozen=True)
class Upload:
    """A subject's photos as a visitor gave them."""

    photos: Sequence[str]
    crops: Sequence[Crop | None] | None = None
    """A box per photo, in pixels of the upright upload, or None where the subject is to be found."""


@dataclass(frozen=True)
class Studio:
    """One running studio: where its runs are, what trains them, and the base models it offers."""

    root: Path
    base_models: dict[str, str]
    """By the name that the page shows; a visitor never sends or sees a path."""
    worker: Worker
    settings: StudioSettings = field(default_factory=StudioSettings)
    publisher: Publisher = field(default_factory=Publisher, repr=False, compare=False)
    _deciding: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while limits are looked at and what follows is done, so that 20 visitors at once can't pass them."""

    _asked_from: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """The addresses that asked for the runs that wait or train, by their ids, since this process began: owners are free
    to make up, and so would be places in the queue."""

    def __post_init__(self) -> None:
        """Let the worker tell of runs that ended, so that their disk space is seen to."""
        self.worker.after_run = self._tidy

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

    # -- a visitor's runs

    def own_run(self, owner: str, run_id: str | None) -> Run:
        """The run of that id if it is this visitor's; raises `RunError` that does not tell whether it exists, and for a
        damaged one of theirs."""
        run = self._any_own_run(owner, run_id)
        if not _is_readable(run):  # in words of our own: the reason names the file's path
            raise RunError(*DAMAGED)
        return run

    def own_runs(self, owner: str) -> list[Run]:
        """This visitor's runs, newest first, without the damaged ones."""
        owner = checked_owner(owner)
        return [run for run in list_runs(self.root) if self._is_own(run.id, owner) and _is_readable(run)]

    def damaged_runs(self, owner: str) -> list[Run]:
        """This visitor's runs whose settings are lost, damaged or another version's; they can only be deleted."""
        owner = checked_owner(owner)
        own = [Run(path) for path in sorted(self.root.glob("[!.]*"), reverse=True) if self._is_own(path.name, owner)]
        return [run for run in own if not _is_readable(run)]

    def is_damaged(self, owner: str, run_id: str | None) -> bool:
        """Whether this is one of the visitor's `damaged_runs`."""
        with contextlib.suppress(RunError):
            return not _is_readable(self._any_own_run(owner, run_id))
        return False

    def _any_own_run(self, owner: str, run_id: str | None) -> Run:
        owner = checked_owner(owner)
        if isinstance(run_id, str) and self._is_own(run_id, owner):
            return Run(self.root / run_id)
        raise RunError("You have no such run.", "Choose one from the list, or train one first.")

    def _is_own(self, run_id: str, owner: str) -> bool:
        return _RUN_ID.fullmatch(run_id) is not None and self._is_owned(self.root / run_id, owner)

    def partner(self, run: Run) -> Run | None:
        """The other run of a pair that was trained both ways, while it is there; of several the first."""
        return next(iter(self.partners(run)), None)

    def finished_partner(self, run: Run) -> Run | None:
        """The first finished of the runs that were trained beside this one: its card shows it."""
        return next((other for other in self.partners(run) if other.status == "finished"), None)

    def partners(self, run: Run) -> list[Run]:
        """The runs that were trained beside this one and differ in their condition alone, while they are there."""
        others = [Run(self.root / name) for name in _partners_of(run) if _RUN_ID.fullmatch(name)]
        own = mark_of(run.path)
        return [
            other
            for other in others
            if run.id in _partners_of(other)
            and _is_readable(other)
            and own
            and hmac.compare_digest(own, mark_of(other.path))
        ]

    def _is_owned(self, path: Path, owner: str) -> bool:
        return hmac.compare_digest(mark_of(path), mark(owner))

    # -- what a visitor does with them

    def start(
        self,
        owner: str,
        settings: dict,
        photos: Sequence[str],
        *,
        crops: Sequence[Crop | None] | None = None,
        others: Sequence[Upload] = (),
        learned: str | None = None,
        ways: Ways = "one",
        consent: bool = False,
        seconds: float | None = None,
    ) -> list[Run]:
        """Queue a new run with copies of the photos, without what they tell but pixels (place, camera, name).

        `settings` is nested as in a config file, without folders; `photos` and `crops` are as in `Upload`, and `others`
        those of its `more_subjects`. `learned` is a run of the same visitor whose word is taken over. With `ways` other
        than "one" runs are made that know each other and differ in what keeps the class alone, as `ways_of` says.
        `seconds` is the estimate of one run as `settings` say, where it is known. Raises `ConfigError`, `PhotoError`
        and, where a limit is reached, `RunError`; nothing is left then.
        """
        owner = checked_owner(owner)
        uploads = [Upload(photos, crops), *others]
        for upload in uploads:
            if not upload.photos:
                raise PhotoError("There are no photos yet.", "Add 3 to 5 in the Photos tab, or take a sample subject.")
            if upload.crops and len(upload.crops) != len(upload.photos):
                raise PhotoError(
                    f"There are {len(upload.crops)} crop boxes for {len(upload.photos)} photos.",
                    "Give one, or none, each.",
                )
        refuse_too_many(*(upload.photos for upload in uploads))
        if learned:
            settings = settings | {"word": settings.get("word", {}) | {"learned": "."}}
        config = self._checked_config(settings, consent)
        if len(config.subjects) != len(uploads):
            count = f"{len(uploads)} subject{'' if len(uploads) == 1 else 's'}"
            raise ConfigError(
                f"There are photos of {count} and words for {len(config.subjects)}.", "Give each subject both."
            )
        configs = ways_of(config, ways)
        word = self._learned_word(owner, learned, config) if learned else None
        taught = [_changed(one, word={"learned": word}) if word else one for one in configs]
        model = _folder_here(config)
        if model:  # else it is seen when the run begins
            Reader.of(taught[0], model).check_run(taught[0])

        def fill(folder: Path) -> list[dict[str, Crop]]:
            if word:
                _copy_word(word, folder / "word")
            return [
                _keep_photos(upload.photos, upload.crops or [None] * len(upload.photos), place)
                for upload, place in zip(uploads, _upload_folders(folder, len(uploads)), strict=True)
            ]

        kept = [png_bytes(*_kept_size(shown_pixels(photo))) for upload in uploads for photo in upload.photos]
        sizes = [sum(kept) + disk_bytes(one, model, len(kept)) for one in taught]
        return self._queue(owner, configs, fill, sizes, seconds)

    def _learned_word(self, owner: str, run_id: str, config: Config) -> Path:
        """The folder with the word that a run of this visitor learned, which is to be the subject's in `config`."""
        run = self.own_run(owner, run_id)
        if run.config.method != "textual_inversion" or run.status != "finished":
            raise ConfigError("This run has not learned a word.", "Choose a finished run of Textual Inversion.")
        if (run.config.base_model, run.config.revision) != (config.base_model, config.revision):
            raise ConfigError("This word was learned with another base model.", "Choose that one, or another word.")
        folder = run.path / "model"
        known = read_words(folder)
        if lacking := [subject.identifier for subject in config.subjects if subject.identifier not in known]:
            raise ConfigError(
                f"This run has learned {', '.join(known)}, not {lacking[0]}.", "Take that word as the identifier."
            )
        return folder

    def train_other_way(self, owner: str, run_id: str) -> Run:
        """Queue the run that differs in prior preservation alone from one that is finished, so that they are a pair.

        Raises `ConfigError` where the two would be the same, and `RunError` where the run has its pair already, is not
        finished, or a limit is reached.
        """
        run = self.own_run(owner, run_id)
        if run.status != "finished":
            raise RunError(f"This run is {run.status}.", "Wait for its end, or resume it.")
        config = run.config
        checked = self._checked_config(config.model_dump(mode="json"), consent=True)  # given for the same photos before
        other = next(way for way in ways_of(checked, "two") if way.prior.active != config.prior.active)

        def fill(folder: Path) -> list[dict[str, Crop]]:
            _copy_uploads(run.path, folder)
            return [subject.crops for subject in config.subjects]

        kept = [path.stat().st_size for path in (run.path / "uploads").rglob("*.png")]
        size = sum(kept) + disk_bytes(other, _folder_here(other), len(kept))
        return self._queue(owner, [other], fill, [size], pair_with=run)[0]

    def _queue(
        self,
        owner: str,
        configs: Sequence[Config],
        fill: Callable[[Path], list[dict[str, Crop]]],
        sizes: Sequence[int],
        seconds: float | None = None,
        pair_with: Run | None = None,
    ) -> list[Run]:
        """Queue a run for each config, several as each other's partners; `fill` puts uploads into a new run's folder
        and gives each subject's crop boxes. `sizes` are the bytes that each may come to take."""
        needed = [pair_with] if pair_with else []
        for config in configs:
            refuse_too_much(config, self.settings)
        refuse_too_large(sum(sizes), self.settings)

        def make_sure() -> list[Run]:
            """Raise `RunError` where they may not be queued; else the runs that make room."""
            self._refuse_too_many_runs(owner, len(configs), sum(sizes))
            if pair_with and self.partner(pair_with):
                raise RunError("This run was trained both ways already.", "Its other one is in the list of runs.")
            return self._room_for(owner, sum(sizes), len(sizes), needed)

        with self._deciding:  # before photos are read, which takes a while, and the first byte is written
            make_sure()
        ids = [f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}" for _ in configs]
        known = [*ids, *([pair_with.id] if pair_with else [])]
        runs = [Run(self.root / run_id) for run_id in ids]
        with contextlib.ExitStack() as hidden:
            folders = [hidden.enter_context(atomic_folder(run.path)) for run in runs]
            boxes = fill(folders[0])
            for folder in folders[1:]:
                _copy_uploads(folders[0], folder)
            for run, folder, config, size in zip(runs, folders, configs, sizes, strict=True):
                (folder / "config.yaml").write_text(_placed(config, run.path, boxes).to_yaml(), encoding="utf-8")
                (folder / "owner").write_text(mark(owner))
                room.promise(Run(folder), size)
                if partners := [one for one in known if one != run.id]:
                    (folder / "partner").write_text("\n".join(partners))
                Run(folder).append(events.RunQueued(seconds))  # so that it waits from the moment it is there
            for folder in folders:
                sync_all(folder)  # which may take a while, and then takes none below
            with self._deciding:
                for doomed in make_sure():
                    doomed.delete()
                if pair_with:
                    with atomic_file(pair_with.path / "partner") as partial:
                        partial.write_text(ids[0])
                hidden.close()  # now they are there
                self._asked_from.update(dict.fromkeys(ids, lines.caller()))
                for run in runs:
                    self.worker.submit(run)
        return runs

    def stop(self, owner: str, run_id: str) -> None:
        """Take a run out of the queue, or stop it after its current step; it can be resumed."""
        self.worker.stop(self.own_run(owner, run_id))

    def resume(self, owner: str, run_id: str) -> None:
        """Queue a run again that ended early; raises `RunError` for any other, and where a limit is reached."""
        run = self.own_run(owner, run_id)
        with self._deciding:
            if (status := run.status) not in ("interrupted", "failed", "cancelled"):
                raise RunError(f"This run is {status}.", "Only one that ended early can be resumed.")
            self._refuse_too_many_runs(owner, 1, room.promised(run))
            for doomed in self._room_for(owner, max(0, room.promised(run) - run.size), 0, [run]):
                doomed.delete()
            self._asked_from[run.id] = lines.caller()
            self.worker.submit(run, _seconds_to_go(run))

    def delete(self, owner: str, run_id: str) -> None:
        """Remove a run with its photos and its model; raises `RunError` while it waits, trains or is uploaded, or is
        shown beside one that is. A damaged one need not be stopped before."""
        run = self._any_own_run(owner, run_id)
        with self._deciding:
            if not _is_readable(run):
                self.worker.stop(run)
            if self._is_uploaded(run):
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
        with self._deciding:
            if not run.path.is_dir():
                raise RunError("You have no such run.", "It was deleted meanwhile.")
            self.publisher.submit(run, wanted, account, self.finished_partner(run))

    def asks_consent(self, config: Config) -> bool:
        """Whether people may be on the photos, and strangers use this studio."""
        people = any(is_person(subject.class_noun) for subject in config.subjects)
        return self.public and (people or config.preset == "sd15-person")

    def _is_uploaded(self, run: Run) -> bool:
        """Whether it, or the run whose card shows it, is on its way to the Hub, from here or from the command line."""
        return any(one in self.publisher or _is_uploading(one) for one in (run, *self.partners(run)))

    def _checked_config(self, settings: dict, consent: bool) -> Config:
        """The settings of one run, its folders aside; raises `ConfigError` for what this studio does not take."""
        nowhere = {"photos": ".", "crops": {}}
        more = [subject | nowhere for subject in settings.get("more_subjects", [])]
        subject = settings.get("subject", {}) | nowhere
        config = Config.from_dict(settings | {"subject": subject, "more_subjects": more}, source="Settings")
        if gpu_is_lent():
            config = config.model_copy(update={"device": "cpu"})
        if self.public and config.base_model != TOYBOX:  # what is drawn while training passes no safety checker
            config = _changed(config, train={"sample_every": 0}, sampling={"prompts": []})
        if config.base_model not in self.base_models.values():
            raise ConfigError("This base model is not on offer.", f"Choose {', '.join(self.base_models)}.")
        if self.asks_consent(config) and consent is not True:
            raise ConfigError("Photos of people need consent.", "Tick the box that says that everybody on them agrees.")
        return config

    # -- limits

    def _refuse_too_many_runs(self, owner: str, coming: int, size: int) -> None:
        """Raise `RunError` where so many more, which may come to take `size` bytes, may not wait."""
        each, all_ = self.settings.max_waiting, self.settings.max_queue
        if each is not None:
            moving = sum(run.moving for run in list_runs(self.root) if self._is_owned(run.path, owner))
            if moving + coming > each:
                raise RunError(
                    f"{moving} of your trainings wait or run and this asks for {coming} more; {each} at once are the "
                    "limit here.",
                    "Wait for one to finish, or stop it.",
                )
        if all_ is not None and self.worker.waiting + coming > all_:
            raise RunError(f"The queue is full: {self.worker.waiting} trainings wait.", "Come back later.")
        if address := lines.caller():
            moving = {run: who for run, who in self._asked_from.items() if Run(self.root / run).moving}
            self._asked_from.clear()
            self._asked_from.update(moving)
            from_there = [run for run, who in moving.items() if who == address]
            if all_ is not None and len(from_there) + coming > max(all_ // 2, each or 0):
                raise RunError(
                    f"{len(from_there)} trainings that were asked for from your address wait or run.",
                    "Wait for one to finish, or stop it.",
                )
            promised, given = sum(room.promised(Run(self.root / run)) for run in from_there), self.settings.visitor_gb
            if given is not None and promised + size > BEHIND_ONE_ADDRESS * given * 1e9:
                raise RunError(
                    f"Trainings that were asked for from your address may come to take {shown_size(promised)}, and "
                    f"this one {shown_size(size)} more; {BEHIND_ONE_ADDRESS * given:g} GB at once are the limit here.",
                    "Wait for one to finish, or stop it.",
                )

    def _room_for(self, owner: str, coming: int, new: int, needed: Sequence[Run] = ()) -> list[Run]:
        """The runs that make room for `new` ones of this visitor and `coming` bytes, none of which is `needed`.

        Raises `RunError`, which says what helps, where what must be kept leaves no room.
        """
        found = self._plan(mark(owner), coming, new, needed)
        if found.problem:
            raise found.problem
        return [one.run for one in found.doomed]

    def _plan(self, mark: str, coming: int, new: int, needed: Sequence[Run]) -> room.Plan:
        held = [
            room.Held(
                run,
                mark_of(run.path),
                max(run.size, room.promised(run) * run.moving),
                self._is_removable(run) and run not in needed,
            )
            for run in list_runs(self.root)[::-1]
        ]
        return room.plan(held, mark, coming, new, self.settings)

    def _tidy(self, ended: Run) -> None:
        """Free what a run leaves that is of no more use, then the oldest runs where a limit is passed."""
        with self._deciding:
            if ended.status == "finished":
                shutil.rmtree(ended.path / "checkpoints", ignore_errors=True)  # three times its model, never resumed
            for one in self._plan(mark_of(ended.path), 0, 0, [ended]).doomed:
                one.run.delete()
        self.trim_class_images()

    def trim_class_images(self) -> None:
        """Keep all class images within their limit, and those that a run uses, or will when its turn comes."""
        if self.settings.class_images_gb is None:
            return
        moving = [run.config for run in list_runs(self.root) if _is_readable(run) and run.moving]

        def in_use(key: dict) -> bool:
            return any(
                key.get("class_prompt") in config.class_prompts and key.get("seed") == config.seed
                for config in moving
                if config.prior.active
            )

        prior.trim(self.settings.class_images_gb * 1e9, in_use)

    def _is_removable(self, run: Run) -> bool:
        """Whether clean-up may take it: made here, not published or on its way there, neither waiting nor training."""
        return bool(mark_of(run.path)) and not (run.published or run.moving or self._is_uploaded(run))


def _folder_here(config: Config) -> Path | None:
    """The base model's folder, where none has to be downloaded for it."""
    here = config.base_model == TOYBOX or Path(config.base_model).is_dir()
    return fetch_model(config.base_model, config.revision) if here else None


def refuse_too_many(*uploads: Sequence[str]) -> None:
    """Raise `PhotoError` for more than `MAX_PHOTOS`, for one that is there twice in an upload, and for more than
    `MAX_MEGAPIXELS` together, before a pixel is decoded."""
    photos = [photo for upload in uploads for photo in upload]
    if len(photos) > MAX_PHOTOS:
        raise PhotoError(f"{len(photos)} photos are too many.", "Keep the best 3 to 5.")
    for upload in uploads:
        if twice := [photo for photo, count in Counter(upload).items() if count > 1]:
            raise PhotoError(
                f"{join_names([Path(twice[0]).name])} is there {upload.count(twice[0])} times.",
                "Leave it once: a copy teaches nothing.",
            )
    megapixels = sum(math.prod(shown_pixels(photo)) for photo in photos) / 1e6
    if megapixels > MAX_MEGAPIXELS:
        raise PhotoError(
            f"These photos have {megapixels:,.0f} megapixels together, more than {MAX_MEGAPIXELS}.",
            "Keep the best 3 to 5, or export them smaller: 4000 pixels a side is plenty.",
        )


def gpu_is_lent() -> bool:
    """Whether a GPU only seems to be there: ZeroGPU lends it for a minute at a time, to calls that draw."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def title(run: Run) -> str:
    """What the page calls a run."""
    return title_of(run.config)


def _is_readable(run: Run) -> bool:
    try:
        return bool(run.config)
    except ConfigError:
        return False


def _is_uploading(run: Run) -> bool:
    try:
        state = read_state(run.path)
    except RunError:  # damaged: nobody publishes it
        return False
    return bool(state) and state.state == "uploading"


def _partners_of(run: Run) -> list[str]:
    """The ids in a run's `partner`, one a line."""
    try:
        return (run.path / "partner").read_text("utf-8", "replace").split()
    except (FileNotFoundError, NotADirectoryError):
        return []


def _seconds_to_go(run: Run) -> float | None:
    """The run's own estimate, less the share of its steps that are in a checkpoint."""
    history = run.events()
    estimates = [
        event.value for event in history if isinstance(event, events.Metric) and event.name == "estimated_seconds"
    ]
    done = max((event.step for event in history if isinstance(event, events.Checkpoint)), default=0)
    return estimates[-1] * (1 - done / run.config.train.steps) if estimates else None


def _changed(config: Config, **sections: dict) -> Config:
    """The config with some settings of its sections changed."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


def ways_of(config: Config, ways: Ways) -> list[Config]:
    """The runs that are asked for, the same but for what keeps the class: with PPL, without, with a drift penalty.

    Raises `ConfigError` where two of them would be the same.
    """
    if ways not in get_args(Ways):
        raise ConfigError(f"ways is {ways!r}.", f"Choose {', '.join(get_args(Ways))}.")
    if ways == "one":
        return [config]
    pair = [_changed(config, prior={"enabled": enabled}) for enabled in (True, False)]
    if not pair[0].prior.active:
        raise ConfigError("prior.weight is 0, so that both ways would be the same.", "Raise it, or train one way.")
    if config.method == "textual_inversion":
        raise ConfigError(
            "Textual Inversion changes nothing that PPL could keep, so that both ways would be the same.",
            "Train one way, or take another method.",
        )
    if ways == "two":
        return pair
    if not config.drift.weight:
        raise ConfigError(
            "drift.weight is 0, so that there is no drift penalty to compare with.",
            "Raise it, or train with and without PPL alone.",
        )
    return [*(_changed(one, drift={"weight": 0.0}) for one in pair), pair[1]]


def _placed(config: Config, run: Path, boxes: Sequence[dict[str, Crop]]) -> Config:
    """The config with photos, crop boxes and learned word as they lie in the run's directory."""
    subjects = [
        subject.model_copy(update={"photos": photos, "crops": crops})
        for subject, photos, crops in zip(config.subjects, _upload_folders(run, len(boxes)), boxes, strict=True)
    ]
    placed = config.model_copy(update={"subject": subjects[0], "more_subjects": subjects[1:]})
    return _changed(placed, word={"learned": run / "word"}) if config.word.learned else placed


def _upload_folders(run: Path, count: int) -> list[Path]:
    """Where a run keeps the photos of its `count` subjects."""
    first = run / "uploads"
    return [first, *(first / f"subject-{number}" for number in range(2, count + 1))]


def _copy_word(learned: Path, folder: Path) -> None:
    folder.mkdir()
    for path in learned.glob(PATTERN):
        shutil.copyfile(path, folder / path.name)


def _copy_uploads(run: Path, folder: Path) -> None:
    """Give another run what a visitor gave to `run`: photos, and the word that another run had learned.

    They are never written again, so that they are the same files under a second name; copies where the system has none.
    """
    for name in ("uploads", "word"):
        if (run / name).is_dir():
            shutil.copytree(run / name, folder / name, copy_function=_link)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        return shutil.copyfile(source, target)
    return target


def _keep_photos(photos: Sequence[str], crops: Sequence[Crop | None], folder: Path) -> dict[str, Crop]:
    """Write the photos as 00.png, 01.png, …; returns their crop boxes by these names, in pixels of what was kept."""
    folder.mkdir()
    boxes = {}
    for number, (photo, crop) in enumerate(zip(photos, crops, strict=True)):
        image, name = open_photo(photo), f"{number:02d}.png"
        shown = join_names([Path(photo).name])
        crop = None if crop is None else checked_crop(crop, image.size, shown)
        image, crop = _around(image, crop)
        size = _kept_size(image.size)
        kept = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0) if size != image.size else image
        if crop is not None:
            boxes[name] = _scaled(crop, kept.width / image.width, kept.size, shown)
        kept.save(folder / name, compress_level=1)
    return boxes


def _around(image: Image.Image, crop: Crop | None) -> tuple[Image.Image, Crop | None]:
    """Of a long photo the part around its crop box, which is found where none is given, and the box in it."""
    long = KEPT_SHAPE * min(image.size)
    if max(image.size) <= long:
        return image, crop
    crop, along = crop or subject_crop(image), int(image.height > image.width)
    begin = round((crop[along] + crop[along + 2] - long) / 2)
    begin = min(max(begin, 0), max(image.size) - long)
    left, top = (0, begin) if along else (begin, 0)
    part = image.crop((left, top, left + (image.width if along else long), top + (long if along else image.height)))
    return part, Crop(crop.left - left, crop.top - top, crop.right - left, crop.bottom - top)


def _kept_size(size: tuple[int, int]) -> tuple[int, int]:
    """The sides at which a photo of these is kept, in pixels."""
    short, long = min(size), min(max(size), KEPT_SHAPE * min(size))
    scale = min(1.0, KEPT_SIDE / max(1, short))
    short, long = round(short * scale), round(long * scale)
    return (long, short) if size[0] > size[1] else (short, long)


def _scaled(crop: Crop, scale: float, size: tuple[int, int], name: str) -> Crop:
    """The box on the photo at another scale, where it is `size`."""
    side = min(round(crop.side * scale), *size)
    if side < MIN_SIDE:
        raise PhotoError(
            f"{name}: the crop box is too small for so large a photo.",
            f"Make it at least {math.ceil(MIN_SIDE / scale)} pixels a side.",
        )
    left, top = (min(round(edge * scale), whole - side) for edge, whole in zip(crop[:2], size, strict=True))
    return Crop(left, top, left + side, top + side)
