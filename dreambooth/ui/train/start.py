"""Starting trainings: what a visitor gave is checked, copied and queued; of what is refused nothing is left."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dreambooth import events
from dreambooth.config.names import TOYBOX
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, PhotoError, RunError
from dreambooth.families.tokens import Reader
from dreambooth.families.words import PATTERN, read_words
from dreambooth.files import atomic_file, atomic_folder, sync_all
from dreambooth.models.fetch import fetch_model
from dreambooth.photos.prepare import Crop
from dreambooth.photos.read import shown_pixels
from dreambooth.runs.directory import Run
from dreambooth.runs.owners import checked_owner, mark
from dreambooth.training.preflight import disk_bytes, png_bytes
from dreambooth.ui.doors import room
from dreambooth.ui.doors.limits import refuse_too_large, refuse_too_much
from dreambooth.ui.photos.uploads import Upload, copy_uploads, keep_photos, kept_size, refuse_too_many, upload_folders
from dreambooth.ui.studio import Studio, gpu_is_lent
from dreambooth.ui.train.ways import Ways, changed, ways_of


def start(
    studio: Studio,
    owner: str,
    settings: dict[str, Any],
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
    config = _checked_config(studio, settings, consent)
    if len(config.subjects) != len(uploads):
        count = f"{len(uploads)} subject{'' if len(uploads) == 1 else 's'}"
        raise ConfigError(
            f"There are photos of {count} and words for {len(config.subjects)}.", "Give each subject both."
        )
    configs = ways_of(config, ways)
    word = _learned_word(studio, owner, learned, config) if learned else None
    taught = [changed(one, word={"learned": word}) if word else one for one in configs]
    model = _folder_here(config)
    if model:  # else it is seen when the run begins
        Reader.of(taught[0], model).check_run(taught[0])

    def fill(folder: Path) -> list[dict[str, Crop]]:
        if word:
            _copy_word(word, folder / "word")
        return [
            keep_photos(upload.photos, upload.crops or [None] * len(upload.photos), place)
            for upload, place in zip(uploads, upload_folders(folder, len(uploads)), strict=True)
        ]

    kept = [png_bytes(*kept_size(shown_pixels(photo))) for upload in uploads for photo in upload.photos]
    sizes = [sum(kept) + disk_bytes(one, model, len(kept)) for one in taught]
    return _queue(studio, owner, configs, fill, sizes, seconds)


def train_other_way(studio: Studio, owner: str, run_id: str) -> Run:
    """Queue the run that differs in prior preservation alone from one that is finished, so that they are a pair.

    Raises `ConfigError` where the two would be the same, and `RunError` where the run has its pair already, is not
    finished, or a limit is reached.
    """
    run = studio.own_run(owner, run_id)
    if run.status != "finished":
        raise RunError(f"This run is {run.status}.", "Wait for its end, or resume it.")
    config = run.config
    checked = _checked_config(studio, config.model_dump(mode="json"), consent=True)  # given for the same photos before
    other = next(way for way in ways_of(checked, "two") if way.prior.active != config.prior.active)

    def fill(folder: Path) -> list[dict[str, Crop]]:
        copy_uploads(run.path, folder)
        return [{name: Crop(*box) for name, box in subject.crops.items()} for subject in config.subjects]

    kept = [path.stat().st_size for path in (run.path / "uploads").rglob("*.png")]
    size = sum(kept) + disk_bytes(other, _folder_here(other), len(kept))
    return _queue(studio, owner, [other], fill, [size], pair_with=run)[0]


def _checked_config(studio: Studio, settings: dict[str, Any], consent: bool) -> Config:
    """The settings of one run, its folders aside; raises `ConfigError` for what this studio does not take."""
    nowhere = {"photos": ".", "crops": {}}
    more = [subject | nowhere for subject in settings.get("more_subjects", [])]
    subject = settings.get("subject", {}) | nowhere
    config = Config.from_dict(settings | {"subject": subject, "more_subjects": more}, source="Settings")
    if gpu_is_lent():
        config = config.model_copy(update={"device": "cpu"})
    if studio.public and config.base_model != TOYBOX:  # what is drawn while training passes no safety checker
        config = changed(config, train={"sample_every": 0}, sampling={"prompts": []})
    if config.base_model not in studio.base_models.values():
        raise ConfigError("This base model is not on offer.", f"Choose {', '.join(studio.base_models)}.")
    if studio.asks_consent(config) and consent is not True:
        raise ConfigError("Photos of people need consent.", "Tick the box that says that everybody on them agrees.")
    return config


def _learned_word(studio: Studio, owner: str, run_id: str, config: Config) -> Path:
    """The folder with the word that a run of this visitor learned, which is to be the subject's in `config`."""
    run = studio.own_run(owner, run_id)
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


def _queue(
    studio: Studio,
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
        refuse_too_much(config, studio.settings)
    refuse_too_large(sum(sizes), studio.settings)

    def make_sure() -> list[Run]:
        """Raise `RunError` where they may not be queued; else the runs that make room."""
        studio.admission.refuse_too_many(owner, len(configs), sum(sizes))
        if pair_with and studio.partner(pair_with):
            raise RunError("This run was trained both ways already.", "Its other one is in the list of runs.")
        return studio.admission.room_for(owner, sum(sizes), len(sizes), needed)

    with studio.admission.deciding:  # before photos are read, which takes a while, and the first byte is written
        make_sure()
    ids = [f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}" for _ in configs]
    known = [*ids, *([pair_with.id] if pair_with else [])]
    runs = [Run(studio.root / run_id) for run_id in ids]
    with contextlib.ExitStack() as hidden:
        folders = [hidden.enter_context(atomic_folder(run.path)) for run in runs]
        boxes = fill(folders[0])
        for folder in folders[1:]:
            copy_uploads(folders[0], folder)
        for run, folder, config, size in zip(runs, folders, configs, sizes, strict=True):
            (folder / "config.yaml").write_text(_placed(config, run.path, boxes).to_yaml(), encoding="utf-8")
            (folder / "owner").write_text(mark(owner))
            room.promise(Run(folder), size)
            if partners := [one for one in known if one != run.id]:
                (folder / "partner").write_text("\n".join(partners))
            Run(folder).append(events.RunQueued(seconds))  # so that it waits from the moment it is there
        for folder in folders:
            sync_all(folder)  # which may take a while, and then takes none below
        with studio.admission.deciding:
            for doomed in make_sure():
                doomed.delete()
            if pair_with:
                with atomic_file(pair_with.path / "partner") as partial:
                    partial.write_text(ids[0])
            hidden.close()  # now they are there
            studio.admission.asked(ids)
            for run in runs:
                studio.worker.submit(run)
    return runs


def _placed(config: Config, run: Path, boxes: Sequence[dict[str, Crop]]) -> Config:
    """The config with photos, crop boxes and learned word as they lie in the run's directory."""
    subjects = [
        subject.model_copy(update={"photos": photos, "crops": crops})
        for subject, photos, crops in zip(config.subjects, upload_folders(run, len(boxes)), boxes, strict=True)
    ]
    placed = config.model_copy(update={"subject": subjects[0], "more_subjects": subjects[1:]})
    return changed(placed, word={"learned": run / "word"}) if config.word.learned else placed


def _folder_here(config: Config) -> Path | None:
    """The base model's folder, where none has to be downloaded for it."""
    here = config.base_model == TOYBOX or Path(config.base_model).is_dir()
    return fetch_model(config.base_model, config.revision) if here else None


def _copy_word(learned: Path, folder: Path) -> None:
    folder.mkdir()
    for path in learned.glob(PATTERN):
        shutil.copyfile(path, folder / path.name)
