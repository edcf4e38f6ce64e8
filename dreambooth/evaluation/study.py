"""Studies: subjects × conditions × seeds, each trained and measured alike, resumable, and told in one report.

`compare` is the study of one subject with and without what keeps its class, `batch` that of many. In a study's folder

    <subject>/<condition>-<seed>/   is a run, with its `evaluation/`,
    <subject>/base/                 the evaluation of the model that training starts from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, field_validator

from dreambooth import events
from dreambooth.config.names import absolute, make_folders_absolute
from dreambooth.config.sections import SamplingConfig
from dreambooth.config.settings import Config
from dreambooth.config.validation import validated
from dreambooth.config.yaml_file import merge, override, read_yaml, to_yaml
from dreambooth.errors import ConfigError, DreamBoothError, PhotoError, RunError, first_line
from dreambooth.evaluation.evaluate import (
    BASE,
    Evaluation,
    base_model,
    evaluate,
    evaluation_prompts,
    run_photos,
    sampler_of,
    trained_model,
)
from dreambooth.evaluation.reports import Cost, cost_of, write_costs, write_csvs, write_report
from dreambooth.evaluation.subjects import CLASSES_FILE, PAPER, PAPER_REPO, fetch_paper_subjects, list_subjects
from dreambooth.events import Event
from dreambooth.families import family_of
from dreambooth.families.tokens import Reader
from dreambooth.files import atomic_file, atomic_folder
from dreambooth.generate import Which
from dreambooth.machine import resolve_device
from dreambooth.metrics.encoders import load_encoders
from dreambooth.metrics.measures import Measures, read_measures
from dreambooth.models.fetch import fetch_model
from dreambooth.photos.captions import caption_photos
from dreambooth.photos.folder import find_photos
from dreambooth.photos.prepare import prepare_photos, save_prepared
from dreambooth.photos.read import MIN_SIDE
from dreambooth.rehearsal import fitting_batch
from dreambooth.runs.directory import Run, explain
from dreambooth.training.preflight import check as preflight

PPL: dict[str, dict[str, Any]] = {
    "without PPL": {"prior": {"enabled": False}},
    "with PPL": {"prior": {"enabled": True}},
}
"""The conditions of the paper's §4.3."""

_NAME = re.compile(r"[^\W_](?:[\w .,()+-]*[\w)+])?")
_SETTINGS = "settings.yaml"  # what an evaluation of a base model was made with
_LENT = ("request.json", "embeddings-dino.npz", "embeddings-clip.npz")  # beside its pictures
_OF_TRAINING = {"while_training", "max_drift", "max_prompt_loss", "patience"}  # settings of `evaluation`
_OF_DRAWING = {"steps", "guidance_scale", "scheduler", "precision"}  # settings of `sampling`
_WEIGHTS = ("model", "best", "checkpoints")


class StudyConfig(BaseModel):
    """A whole study: what `batch` reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    subjects: str | list[dict[str, Any]] = Field(
        description="A folder with a folder of photos for each subject; or a list, each with a `name`, `photos`, "
        "`class_noun` and any other setting of a config's `subject`; or `paper`, the paper's 30 subjects, which are "
        f"downloaded from the Hub ({PAPER_REPO}, CC BY 4.0) once."
    )
    classes: dict[str, str] = Field(
        default_factory=dict,
        description=f"For a folder: the class noun by subject. What is not here stands in the folder's {CLASSES_FILE}, "
        "under a line `subject_name,class`, or in config.subject.class_noun for all.",
    )
    conditions: dict[str, dict[str, Any]] = Field(
        default_factory=lambda: PPL,
        min_length=1,
        description="What is compared: a name and the settings that set it apart. The report tells how each differs "
        "from those before it. What is measured is drawn alike for all, as `config.sampling` says. Source: paper §4.3, "
        "without and with PPL.",
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        default_factory=lambda: [Config.model_fields["seed"].default],
        min_length=1,
        description="Every subject is trained under every condition once with each; by default that of a config.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="What all trainings have in common, as in a config file."
    )
    evaluate_base: bool = Field(True, description="Measure the base model too.")
    which: Which = Field("last", description="Which of a run's models to measure: that of its last or its best step.")
    keep_models: bool = Field(
        True, description="Keep weights and checkpoints of what was measured: a Stable Diffusion takes 4 GB and more."
    )

    @field_validator("subjects", mode="before")
    @classmethod
    def _named(cls, subjects: Any) -> Any:
        if not isinstance(subjects, list):
            if not isinstance(subjects, str | Path) or not str(subjects).strip():
                raise ValueError("give a folder of folders, a list, or the word paper")
            return str(subjects)
        if not subjects or not all(isinstance(s, dict) and isinstance(s.get("name"), str) for s in subjects):
            raise ValueError("each subject of the list needs a name, photos and a class_noun")
        _distinct([subject["name"] for subject in subjects])
        return subjects

    @field_validator("conditions")
    @classmethod
    def _foldable(cls, conditions: dict[str, Any]) -> dict[str, Any]:
        _distinct([BASE, *conditions])
        return conditions

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands twice")
        return seeds

    @field_validator("config")
    @classmethod
    def _without_seed(cls, config: dict[str, Any]) -> dict[str, Any]:
        if "seed" in config:
            raise ValueError("has a seed; a study's stand under `seeds`")
        return config

    @classmethod
    def load(cls, path: Path, overrides: tuple[str, ...] = ()) -> StudyConfig:
        """Read a YAML file; `overrides` are `key.subkey=value` strings. Raises `ConfigError`.

        Relative folders in the file are relative to its own, in an override to where you are.
        """
        settings = _with_absolute_folders(read_yaml(path), path.parent)
        given = _with_absolute_folders(override({}, overrides), Path())
        return validated(cls, merge(settings, given), str(path))


def comparison(config: Config) -> StudyConfig:
    """The study of one subject without and with PPL and, where `config.drift` has a weight, with the drift penalty.

    Each alone; all else is `config`'s. Raises `ConfigError` where PPL has no weight, or nothing to preserve.
    """
    if config.prior.weight == 0:
        raise ConfigError("prior.weight is 0, so with and without PPL are the same.", "Set it to 1, as in the paper.")
    if config.method == "textual_inversion":
        raise ConfigError(
            "textual_inversion changes no weight of the base model, so with and without PPL are the same.",
            "Compare another method, or several by `batch`, as configs/toybox-methods.yaml does.",
        )
    conditions = PPL
    if weight := config.drift.weight:
        conditions = {name: settings | {"drift": {"weight": 0}} for name, settings in PPL.items()}
        conditions["with drift penalty"] = {"prior": {"enabled": False}, "drift": {"weight": weight}}
    settings = config.model_dump(mode="json")
    subject = settings.pop("subject")
    named = {"name": re.sub(r"[^\w-]+", "-", config.subject.photos.name).strip("-_") or "subject"} | subject
    return StudyConfig(subjects=[named], conditions=conditions, seeds=[settings.pop("seed")], config=settings)


@dataclass(frozen=True)
class Cell:
    """One model of a study: to train and measure, or the base model to measure."""

    subject: str
    condition: str
    """As tables call it."""
    seed: int | None
    """Of the training; None for the base model."""
    config: Config
    path: Path
    """The run's directory, or the base model's evaluation."""
    which: Which
    """Which of the run's models is measured."""
    sampling: SamplingConfig
    """How the pictures are drawn that are measured: alike for all models of a study."""

    @property
    def measured(self) -> Config:
        """The settings that it is measured with: the training's, but for how pictures are drawn."""
        return self.config.model_copy(update={"sampling": self.sampling})

    def __str__(self) -> str:
        return f"{self.subject}, {self.condition}" + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def folder(self) -> Path:
        """Where its evaluation is."""
        if self.seed is None:
            return self.path
        return self.path / ("evaluation-best" if self.which == "best" else "evaluation")

    @property
    def evaluation(self) -> Evaluation | None:
        """What was measured; None as long as it is to be done."""
        try:
            evaluation = Evaluation.load(self.folder)
            if evaluation.sampling != sampler_of(self.measured):
                return None
            if self.seed is None:
                current = (self.path / _SETTINGS).read_text(encoding="utf-8") == self.config.to_yaml()
            else:
                run = Run.open(self.path)
                current = evaluation.condition == self.condition and run.status == "finished"
        except (RunError, OSError):
            return None
        return evaluation if current else None


def _with_absolute_folders(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    conditions = settings.get("conditions")
    for one in (settings.get("config"), *(conditions.values() if isinstance(conditions, dict) else ())):
        if isinstance(one, dict):
            make_folders_absolute(one, folder)
    subjects = settings.get("subjects")
    if isinstance(subjects, str) and subjects.strip() and subjects != PAPER:
        return settings | {"subjects": absolute(subjects, folder, "subjects")}
    if isinstance(subjects, list):
        return settings | {"subjects": [_with_absolute_photos(subject, folder) for subject in subjects]}
    return settings


def _with_absolute_photos(subject: Any, folder: Path) -> Any:
    photos = subject.get("photos") if isinstance(subject, dict) else None
    if not isinstance(photos, str) or not photos.strip():
        return subject
    return subject | {"photos": absolute(photos, folder, "subjects.photos")}


def _distinct(names: list[str]) -> None:
    """Raise `ValueError` unless each can be a folder's name, on any machine a folder of its own."""
    for name in names:
        if len(name) > 60 or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} can't be a folder's name; use up to 60 letters, digits, spaces and hyphens")
    if len({_folder_name(name).casefold() for name in names}) < len(names):
        raise ValueError(f"two of {', '.join(names)} are the same")


def _folder_name(name: str) -> str:
    return name.replace(" ", "-")


# --------------------------------------------------------------------------------------------------------------- plan


def subjects_of(study: StudyConfig) -> dict[str, dict[str, Any]]:
    """What each subject's config says of it, photos and class noun at least, by its name.

    Downloads the paper's if need be. Raises what `list_subjects` and `fetch_paper_subjects` raise.
    """
    if isinstance(study.subjects, list):
        return {s["name"]: {key: value for key, value in s.items() if key != "name"} for s in study.subjects}
    folder = fetch_paper_subjects() if study.subjects == PAPER else Path(study.subjects)
    common = study.config.get("subject")
    noun = common.get("class_noun") if isinstance(common, dict) else None
    nouns = list_subjects(folder, study.classes, noun)
    return {name: {"photos": str(folder / name), "class_noun": nouns[name]} for name in nouns}


def plan(study: StudyConfig, out: Path) -> list[Cell]:
    """Every model that `study` asks for, in order, after checking all that can be checked before a training.

    Downloads what is missing of subjects, base model and encoders. Raises `ConfigError`, `PhotoError`, `ModelError` or
    `HubError`; nothing is written into `out`.
    """
    cells = cells_of(study, out)
    todo = [cell for cell in cells if cell.evaluation is None]
    for cell in {cell.subject: cell for cell in todo if not (cell.path / "photos").is_dir()}.values():
        _check_photos(cell)
    for cell in todo[:1]:
        load_encoders(cell.config.evaluation, cell.config.base_model, "cpu")
    for cell in {cell.condition: cell for cell in todo}.values():  # other subjects differ in photos and words alone
        config = cell.config
        if cell.seed is not None:
            preflight(config, fetch_model(config.base_model, config.revision), resolve_device(config.device))
    for cell in todo[:1]:  # all are drawn alike, on one base model; a batch that shrinks is told of when it is drawn
        config, sampler = cell.measured, sampler_of(cell.measured)
        fitting_batch(
            fetch_model(config.base_model, config.revision),
            resolve_device(config.device),
            sampler.precision,
            config.evaluation.batch_size,
            "evaluation.batch_size",
            guidance_scale=sampler.guidance_scale,
        )
    return cells


def cells_of(study: StudyConfig, out: Path) -> list[Cell]:
    """Every model that `study` asks for, in order, by subject, seed and condition.

    Raises `ConfigError` that names subject and condition for settings that can't be, that leave nothing to compare or
    that are not those of the runs in `out`, and what `subjects_of` raises.
    """
    cells = []
    for name, settings in subjects_of(study).items():
        cells += _cells(study, name, merge(study.config, {"subject": settings}), out / name)
    cells = _as_begun(cells)
    for cell in cells:
        evaluation_prompts(cell.config)
        if cell.seed is not None:
            _check_folder(cell)
    return cells


def _as_begun(cells: list[Cell]) -> list[Cell]:
    """The cells, to be drawn in the precision of what was measured already where the settings leave it open.

    What another machine would choose, or an earlier version of this program, must not stand beside it.
    """
    begun = next((found.sampling.precision for cell in cells if (found := _loaded(cell.folder))), "auto")
    return [
        dataclasses.replace(cell, sampling=cell.sampling.model_copy(update={"precision": begun}))
        if cell.sampling.precision == "auto"
        else cell
        for cell in cells
    ]


def _loaded(folder: Path) -> Evaluation | None:
    try:
        return Evaluation.load(folder)
    except RunError:
        return None


def _cells(study: StudyConfig, subject: str, settings: dict[str, Any], folder: Path) -> list[Cell]:
    base = Config.from_dict(settings, source=subject)
    drawing = base.drawing
    cells = [Cell(subject, BASE, None, base, folder / "base", "last", drawing)] if study.evaluate_base else []
    best = ", best" if study.which == "best" else ""
    for seed in study.seeds:
        known: dict[str, Config] = {}
        for name, overrides in study.conditions.items():
            source = f"{subject}, {name}"
            if "seed" in overrides:
                raise ConfigError(f"{source}: has a seed.", "A study's seeds stand under `seeds`.")
            if changed := sorted(_OF_DRAWING & (overrides.get("sampling") or {}).keys()):
                raise ConfigError(
                    f"{source}: changes sampling.{changed[0]}, so its figures could not be compared.",
                    "Set it under `config`, for all conditions.",
                )
            config = Config.from_dict(merge(settings, overrides) | {"seed": seed}, source=source)
            _check_comparable(base, config, source)
            if twin := next((other for other in known if known[other] == config), None):
                raise ConfigError(f"The conditions {twin} and {name} are the same.", "Change a setting, or drop one.")
            known[name] = config
            path = folder / _folder_name(f"{name}-{seed}")
            cells.append(Cell(subject, name + best, seed, config, path, study.which, drawing))
    return cells


def _check_comparable(base: Config, config: Config, source: str) -> None:
    """What is measured, and how, is the same for all models of a subject."""

    def measured(one: Config) -> dict[str, object]:
        return {
            "base_model": one.base_model,
            "revision": one.revision,
            "subject.photos": one.subject.photos,
            "subject.crops": one.subject.crops,
            "subject.class_noun": one.subject.class_noun,
            "prior.class_prompt": one.prior.class_prompt,
            "evaluation": one.evaluation.model_dump(exclude=_OF_TRAINING),
        }

    ours, theirs = measured(base), measured(config)
    if differing := [key for key in ours if ours[key] != theirs[key]]:
        raise ConfigError(
            f"{source}: changes {', '.join(differing)}, so its figures could not be compared.",
            "Set it under `config`, for all conditions.",
        )


def _check_folder(cell: Cell) -> None:
    if (cell.path / "config.yaml").is_file():
        Run.open(cell.path).require(cell.config, "Put back what it began with, or choose another --out.")
    elif cell.path.exists() and (not cell.path.is_dir() or any(cell.path.iterdir())):
        raise ConfigError(f"{cell.path} is there already, and is no run.", "Remove it, or choose another --out.")


def _check_photos(cell: Cell) -> None:
    config = cell.config
    try:
        reader = Reader.of(config, fetch_model(config.base_model, config.revision))
        reader.check_run(config)
        reader.check(prompt for prompt, _ in evaluation_prompts(config))
        for subject in config.subjects:
            photos = find_photos(subject.photos)
            prepare_photos(photos, MIN_SIDE, subject.crops)
            reader.check_captions(dict(zip(photos, caption_photos(subject, photos)[0], strict=True)))
    except (ConfigError, PhotoError) as error:
        raise type(error)(f"{cell.subject}: {error.message}", error.hint) from None


# ---------------------------------------------------------------------------------------------------------------- run


def run_study(
    study: StudyConfig, cells: list[Cell], out: Path, *, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Cell, Event]]:
    """Train and measure what is not done of `plan`'s `cells`, and yield what happens, with the cell it happens to.

    A cell that fails ends with `Failed`, and the next one begins; `Cancelled` ends the study, and the same call goes
    on with it. CSVs and reports on what there is are written after every subject and at the end. Raises `RunError`
    while another process works in `out`.
    """
    with _held(out):
        with atomic_file(out / "study.yaml") as partial:
            partial.write_text(to_yaml(study.model_dump(mode="json")), encoding="utf-8")
        for name, group in groupby(cells, key=lambda cell: cell.subject):
            subject = list(group)
            todo = [cell for cell in subject if cell.evaluation is None]
            for cell in todo:
                try:
                    for event in _work(cell, cells, should_stop):
                        yield cell, event
                        if isinstance(event, events.Cancelled):
                            return
                except Exception as error:  # whatever it is, it must not keep the others from being trained
                    yield cell, _failure(error)
                if not study.keep_models and cell.evaluation is not None:
                    for weights in _WEIGHTS:
                        shutil.rmtree(cell.path / weights, ignore_errors=True)
            last = subject == cells[-len(subject) :]
            try:
                if len(subject) < len(cells) and (todo or not (out / name / "report.html").is_file()):
                    _report(out / name, name, subject)
                if last:
                    _report(out, out.resolve().name, cells)
                elif todo and (measured := _measured(cells)):
                    write_csvs(measured, out)
                    if costs := _costs(cells):
                        write_costs(costs, out)
            except Exception as error:  # the same goes for what is told of it
                yield subject[-1], _failure(error)


def _measured(cells: list[Cell]) -> list[Evaluation]:
    return [evaluation for cell in cells if (evaluation := cell.evaluation)]


def _costs(cells: list[Cell]) -> list[Cost]:
    """Of what was trained and measured."""
    return [
        cost_of(cell.subject, cell.condition, cell.seed, Run.open(cell.path).events())
        for cell in cells
        if cell.seed is not None and cell.evaluation
    ]


def _report(folder: Path, title: str, cells: list[Cell]) -> None:
    """Tell what there is of the cells, if anything."""
    if not (measured := _measured(cells)):
        return
    measures: dict[str, list[Measures]] = {}
    for cell in cells:
        if cell.seed is not None and cell.evaluation and (found := read_measures(cell.path)):
            measures.setdefault(cell.condition, []).append(found)
    write_report(folder, title, measured, measures, _costs(cells))


def _work(cell: Cell, cells: list[Cell], should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Train where it is asked for and not done, then measure."""
    config, measured = cell.config, cell.measured
    if should_stop():
        yield events.Cancelled(0)
        return
    if cell.seed is None:
        candidate, photos = base_model(measured), _base_photos(cell)
        _borrow(cell, cells)
    else:
        run = Run(cell.path) if (cell.path / "config.yaml").is_file() else Run.create(config, cell.path)
        run.adopt(config)
        if run.status != "finished":
            for event in run.execute(resume=True, should_stop=should_stop):
                yield event
                if isinstance(event, events.Cancelled):
                    return
        candidate, photos = trained_model(run.path, measured, cell.which), run_photos(run.path)
    candidate = dataclasses.replace(candidate, condition=cell.condition)
    for event in evaluate(candidate, measured, photos, cell.folder, subject=cell.subject, should_stop=should_stop):
        yield event
        if isinstance(event, events.Cancelled):
            return
    if cell.seed is None:
        with atomic_file(cell.path / _SETTINGS) as partial:
            partial.write_text(config.to_yaml(), encoding="utf-8")


def _base_photos(cell: Cell) -> list[Path]:
    """The photos as a training prepares them."""
    config, folder = cell.config, cell.path / "photos"
    model = fetch_model(config.base_model, config.revision)
    size = config.train.resolution
    resolution = family_of(model).resolution(model) if size == "auto" else size
    prepared = prepare_photos(find_photos(config.subject.photos), resolution, config.subject.crops)
    shutil.rmtree(folder, ignore_errors=True)
    return save_prepared(prepared, folder)


def _borrow(cell: Cell, cells: list[Cell]) -> None:
    """Copy the base model's pictures from a subject of the same class; `evaluate` draws what it can't use anew."""
    if (cell.path / "images").exists():
        return
    for other in cells:
        alike = other.config.subject.class_noun == cell.config.subject.class_noun and other.subject != cell.subject
        if other.seed is None and alike and other.evaluation is not None:
            for name in _LENT:
                shutil.copy(other.path / name, cell.path / name)
            with atomic_folder(cell.path / "images") as partial:
                shutil.copytree(other.path / "images", partial, dirs_exist_ok=True)
            return


def _failure(error: Exception) -> events.Failed:
    told = error if isinstance(error, DreamBoothError) else explain(error)
    if told is None:
        logging.getLogger(__name__).error("A cell failed unexpectedly.", exc_info=error)
        told = RunError(f"{type(error).__name__}: {first_line(error)}.", "Please report this; it is a bug.")
    return events.Failed(type(told).__name__, told.message, told.hint)


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Nobody else works on the study in `out` meanwhile; raises `RunError` where somebody does."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"Another process works on the study in {out}.", "Wait for it, or choose another --out."
        ) from None
    except OSError as error:
        raise RunError(f"{out} can't be written ({error.strerror}).", "Choose a folder you may write to.") from None
    try:
        yield
    finally:
        lock.release()
