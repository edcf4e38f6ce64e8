"""The paper's protocol on one model: draw pictures of the subject and of its class, and measure them (§4.1 to §4.3).

An evaluation is a folder: `images/` with every picture, `metrics.json` with every figure and what it was made from.
Pictures that are there are not drawn again, so whatever stopped it, the same call goes on.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from dreambooth import events
from dreambooth.config.names import name_of
from dreambooth.config.settings import Config
from dreambooth.config.subject import identifier_in
from dreambooth.errors import ConfigError, ModelError, RunError
from dreambooth.events import Event
from dreambooth.families.tokens import Reader
from dreambooth.files import atomic_file, clear_leftovers
from dreambooth.generate import (
    Source,
    Which,
    draw_jobs,
    fewer_at_once,
    finished_model,
    open_source,
    save_picture,
)
from dreambooth.machine import resolve_device, resolve_precision
from dreambooth.metrics import metrics
from dreambooth.metrics.encoders import Encoders, PerceptualDistance, embed_files, load_encoders
from dreambooth.metrics.measures import read_measures
from dreambooth.metrics.metrics import Estimate
from dreambooth.models.adapters import read_step
from dreambooth.models.fetch import fetch_model, fingerprint
from dreambooth.photos.sheets import contact_sheet
from dreambooth.prompts import suggestions

FILE = "metrics.json"
BASE = "base model"
"""The condition of a model that was not trained."""
ENCODER_OF = {"dino": "dino", "clip_i": "clip", "clip_t": "clip", "pres": "dino", "div": "perceptual"}
"""Which of the encoders each metric is by."""

_REQUEST = "request.json"  # what the pictures were drawn from
PHOTOS = "photos.jpg"
_CACHES = {"dino": "embeddings-dino.npz", "clip": "embeddings-clip.npz"}
_PICTURE = re.compile(r"(prompt-\d{2,}|class)-\d+\.png")
_NOTHING = dict.fromkeys(("dino", "clip_i", "clip_t"))  # what a picture says that is not measured
_THUMBNAIL = 256  # pixels, of a photo on the sheet


# ----------------------------------------------------------------------------------------------- what an evaluation is


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PromptScores(_Record):
    """One prompt and the means over its pictures, None where there was none to measure."""

    prompt: str
    described: str
    """The prompt without the identifier, with which CLIP-T compares: the invented word means nothing to CLIP."""
    count: int
    """Pictures that were measured."""
    dino: float | None
    clip_i: float | None
    clip_t: float | None
    div: float | None
    """Over all pairs of its pictures; None with fewer than two."""


class SubjectPicture(_Record):
    """A picture of the subject and what it says; the figures are None where there is a `problem`."""

    file: str
    """Its name in `images/`."""
    prompt: int
    """Its place in `Evaluation.prompts`."""
    seed: int
    problem: str
    dino: float | None
    clip_i: float | None
    clip_t: float | None


class ClassPicture(_Record):
    """A picture of the class prompt and what it says; None where there is a `problem`."""

    file: str
    seed: int
    problem: str
    pres: float | None


class Sampler(_Record):
    """How the pictures were drawn."""

    steps: int
    guidance_scale: float
    scheduler: str
    precision: str = "no"
    """The arithmetic: no, bf16 or fp16; what does not tell was drawn in 32 bits."""

    @property
    def words(self) -> str:
        """In words, for tables."""
        sampler = "" if self.scheduler == "default" else f", {self.scheduler}"
        precision = "float32" if self.precision == "no" else self.precision
        return f"{self.steps} steps, guidance {self.guidance_scale:g}{sampler}, {precision}"


class Evaluation(_Record):
    """Everything that `metrics.json` holds: the figures, and beside them what they were made from."""

    subject: str
    class_noun: str
    identifier: str
    condition: str
    """What sets this model apart from those it is compared with: `with PPL`, `without PPL`, `base model`."""
    model: str
    """Its name; never a path."""
    base_model: str
    """Its name; never a path."""
    method: str
    step: int
    """Optimiser steps it was trained."""
    seed: int
    """Of its training."""
    encoders: dict[str, str]
    """By `dino`, `clip` and `perceptual`."""
    photos: int
    images_per_prompt: int
    class_prompt: str
    class_images: int
    first_seed: int
    """Picture k of each prompt has the seed `first_seed + k`, for every model: comparisons are paired."""
    sampling: Sampler
    left_out: int
    """Pictures that were blank or held back; no figure counts them."""
    metrics: dict[str, Estimate]
    """By `metrics.METRICS`' names. Intervals are over prompts, PRES' over pictures."""
    ceilings: dict[str, float]
    """DINO and CLIP-I of the photos among themselves; empty with one photo."""
    prompts: tuple[PromptScores, ...]
    pictures: tuple[SubjectPicture, ...]
    class_pictures: tuple[ClassPicture, ...]
    request: str
    """A hash of all it depends on: with another one it is measured anew."""

    _folder: Path | None = PrivateAttr(None)

    @property
    def folder(self) -> Path:
        """Where it was saved to or loaded from. Raises `RunError` where it was neither."""
        if self._folder is None:
            raise RunError("This evaluation has no folder.", "Save it first.")
        return self._folder

    @property
    def templates(self) -> list[str]:
        """The prompts with `{identifier}` for the word itself: alike for models that call the subject differently."""
        word = identifier_in(self.identifier)
        return [word.sub("{identifier}", prompt.prompt) for prompt in self.prompts]

    @property
    def encoder_of(self) -> dict[str, str]:
        """The encoder's name by metric."""
        return {metric: self.encoders[part] for metric, part in ENCODER_OF.items()}

    def values(self, metric: str) -> dict[tuple[str, int], float]:
        """What a metric's mean is over, by template or class prompt, and seed; DIV's is each prompt's first seed."""
        if metric == "pres":
            return {(self.class_prompt, p.seed): p.pres for p in self.class_pictures if p.pres is not None}
        templates = self.templates
        if metric == "div":
            rows = zip(templates, self.prompts, strict=True)
            return {(template, self.first_seed): p.div for template, p in rows if p.div is not None}
        of_pictures = ((p, getattr(p, metric)) for p in self.pictures)
        return {(templates[p.prompt], p.seed): value for p, value in of_pictures if value is not None}

    def save(self, folder: Path) -> None:
        """Write `metrics.json` into `folder`, whole or not at all."""
        with atomic_file(folder / FILE) as partial:
            partial.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        self._folder = folder

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """The evaluation that `folder` holds. Raises `RunError` where there is none, or where it is damaged."""
        try:
            loaded = cls.model_validate_json((folder / FILE).read_bytes())
        except OSError as error:
            raise RunError(f"{folder / FILE} can't be read ({error.strerror}).", "Evaluate the model first.") from None
        except ValidationError as error:
            raise RunError(
                f"{folder / FILE} is damaged, or of another version ({error.error_count()} errors).",
                "Remove it and evaluate again; the pictures are kept.",
            ) from None
        loaded._folder = folder
        return loaded


def group_of(metric: str, key: tuple[str, int]) -> str | int:
    """The group that counts as one witness: all pictures of a prompt, and for PRES each picture by itself."""
    return key[1] if metric == "pres" else key[0]


# ------------------------------------------------------------------------------------------------- what is evaluated


@dataclass(frozen=True)
class Candidate:
    """A model to measure."""

    name: str
    condition: str
    step: int
    """Optimiser steps it was trained."""
    folder: Path
    """Its weights: others make another evaluation."""
    open: Callable[[str], Source]
    """Loads it, to draw in that precision."""


def trained_model(run: Path, config: Config, which: Which = "last") -> Candidate:
    """The model that the run directory `run` holds. Raises `RunError` where it has none yet."""
    folder = finished_model(run, which)
    step = read_step(folder)
    if step is None:  # an earlier version saved it
        measures = read_measures(run)
        step = measures.measures[-1].step if measures else config.train.steps
    return Candidate(
        run.resolve().name,
        config.condition + (", best" if which == "best" else ""),
        step,
        folder,
        lambda precision: open_source(str(run), device=resolve_device(config.device), which=which, precision=precision),
    )


def base_model(config: Config) -> Candidate:
    """The model that a run starts from, downloaded if need be. Raises what `fetch_model` raises."""
    folder = fetch_model(config.base_model, config.revision)
    return Candidate(
        name_of(config.base_model),
        BASE,
        0,
        folder,
        lambda precision: open_source(str(folder), device=resolve_device(config.device), precision=precision),
    )


def run_photos(run: Path) -> list[Path]:
    """The photos as a run saw them. Raises `RunError` where it has not prepared them yet."""
    photos = sorted((run / "photos").glob("*.png"))
    if not photos:
        raise RunError(f"{run} has no prepared photos.", "Train it first.")
    return photos


# ---------------------------------------------------------------------------------------------------------- evaluating


@dataclass(frozen=True)
class _Job:
    """One picture to draw."""

    path: Path
    text: str
    seed: int
    prompt: int | None
    """Its place among the prompts; None for the class prompt."""

    @property
    def problem(self) -> str:
        """What its file says that there is nothing to see for."""
        with Image.open(self.path) as image:
            return str(getattr(image, "text", {}).get("problem", ""))


def evaluate(
    candidate: Candidate,
    config: Config,
    photos: Sequence[Path],
    out: Path,
    *,
    subject: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Draw and measure as `config.evaluation` says, into the folder `out`, and yield what happens.

    `photos` are the real ones, as prepared for training; `subject` is what tables call them. What `out` holds of the
    same request is kept; of another one (other weights, prompts, sampling or seeds) it is removed first, and no other
    file. On `should_stop`, asked between batches, `Cancelled` ends it. Pictures that are blank or that a safety checker
    held back are told by a `Warning` and left out of every figure.

    Raises `ConfigError` for prompts without the subject or encoders that can't be had, before anything is drawn, and
    `ModelError` where too few pictures are left to measure.
    """
    if not photos:
        raise RunError("There are no photos to compare with.", "Give the subject's.")
    prompts = evaluation_prompts(config)
    for remark in _reader(candidate, config).check([*(prompt for prompt, _ in prompts), config.class_prompt]):
        yield events.Warning(remark)
    jobs = _jobs(config, [prompt for prompt, _ in prompts], out)
    encoders = load_encoders(config.evaluation, config.base_model, torch.device("cpu"))
    sampler = sampler_of(config)
    drawing = _drawing(candidate, config, sampler, [prompt for prompt, _ in prompts])
    _keep_only(out, drawing, jobs)
    if not (yield from _draw(candidate, config, sampler, jobs, should_stop)):
        yield events.Cancelled(candidate.step)
        return
    problems = {job.path: job.problem for job in jobs}
    for problem, count in Counter(filter(None, problems.values())).items():
        yield events.Warning(f"{count} of {len(jobs)} pictures are left out: {problem}.")
    if len(photos) == 1:
        yield events.Warning("One photo has no other to be compared with, so there are no ceilings.")
    facts = _facts(candidate, config, sampler, subject, encoders, len(photos))
    request = _hash(drawing, facts, [_digest(photo) for photo in photos], _fingerprints(encoders))
    evaluation = _known(out, request)
    if evaluation is None:
        encoders.to(resolve_device(config.device))
        found = yield from _measure(config, prompts, jobs, problems, photos, encoders, out)
        left_out = sum(map(bool, problems.values()))
        plain = Evaluation(**facts, **found, metrics={}, left_out=left_out, request=request)
        evaluation = plain.model_copy(update={"metrics": {name: _estimate(plain, name) for name in metrics.METRICS}})
        _save_photos(photos, out / PHOTOS)
        evaluation.save(out)
    for name, estimate in evaluation.metrics.items():
        yield events.Metric(name, estimate.value, candidate.step)


def evaluation_prompts(config: Config) -> list[tuple[str, str]]:
    """What to draw, and the same without the identifier; raises `ConfigError` where the subject is not named."""
    subject, templates = config.subject, config.evaluation.prompts
    if not templates:
        named, plain = (suggestions(config.base_model, subject.class_noun, word) for word in (subject.identifier, ""))
        return list(zip(named, plain, strict=True))
    found = {}
    for prompt in map(subject.fill, templates):
        if not subject.is_named_in(prompt):
            raise ConfigError(
                f"The evaluation prompt {prompt!r} does not name the subject.", "Write {identifier} where it belongs."
            )
        found[prompt] = subject.without_identifier(prompt)
    return list(found.items())


def _reader(candidate: Candidate, config: Config) -> Reader:
    """How the model reads prompts: a whole one has a tokenizer of its own, an adapter its base model's."""
    whole = (candidate.folder / "tokenizer").is_dir()
    return Reader.of(config, candidate.folder if whole else fetch_model(config.base_model, config.revision))


def _jobs(config: Config, prompts: list[str], out: Path) -> list[_Job]:
    settings, images = config.evaluation, out / "images"

    def seeds(count: int) -> list[int]:
        return [(settings.seed + k) % 2**32 for k in range(count)]

    return [
        _Job(images / f"prompt-{number:02d}-{seed}.png", prompt, seed, number)
        for number, prompt in enumerate(prompts)
        for seed in seeds(settings.images_per_prompt)
    ] + [_Job(images / f"class-{seed}.png", config.class_prompt, seed, None) for seed in seeds(settings.class_images)]


def sampler_of(config: Config) -> Sampler:
    """How `evaluate` draws here. Raises `ConfigError` for a device or a precision that this machine lacks."""
    drawing = config.drawing
    precision = resolve_precision(drawing.precision, resolve_device(config.device), "sampling.precision")
    return Sampler(**drawing.model_dump(include={"steps", "guidance_scale", "scheduler"}), precision=precision)


def _drawing(candidate: Candidate, config: Config, sampler: Sampler, prompts: list[str]) -> dict[str, object]:
    """All that shapes a picture of the n-th prompt and a seed."""
    return {
        "weights": fingerprint(candidate.folder),
        "prompts": prompts,
        "class_prompt": config.class_prompt,
        "first_seed": config.evaluation.seed,
        "sampling": sampler.model_dump(),
    }


def _facts(
    candidate: Candidate, config: Config, sampler: Sampler, subject: str, encoders: Encoders, photos: int
) -> dict[str, Any]:
    """What `Evaluation` tells beside the figures."""
    settings = config.evaluation
    return {
        "subject": subject,
        "class_noun": config.subject.class_noun,
        "identifier": config.subject.identifier,
        "condition": candidate.condition,
        "model": candidate.name,
        "base_model": name_of(config.base_model),
        "method": config.method,
        "step": candidate.step,
        "seed": config.seed,
        "encoders": encoders.names,
        "photos": photos,
        "images_per_prompt": settings.images_per_prompt,
        "class_prompt": config.class_prompt,
        "class_images": settings.class_images,
        "first_seed": settings.seed,
        "sampling": sampler,
    }


def _keep_only(out: Path, drawing: dict[str, object], jobs: list[_Job]) -> None:
    """Remove from `out` what an evaluation wrote and this one can't use; note what its pictures are drawn from."""
    try:
        same = json.loads((out / _REQUEST).read_text(encoding="utf-8")) == drawing
    except (FileNotFoundError, ValueError):
        same = False
    wanted = {job.path.name for job in jobs} if same else set()
    for path in (out / "images").glob("*.png"):
        if _PICTURE.fullmatch(path.name) and path.name not in wanted:
            path.unlink()
    for place in (out, out / "images"):
        clear_leftovers(place)
    if same:
        return
    for name in (FILE, PHOTOS, *_CACHES.values()):
        (out / name).unlink(missing_ok=True)
    with atomic_file(out / _REQUEST) as partial:
        partial.write_text(json.dumps(drawing, indent=1), encoding="utf-8")


def _draw(
    candidate: Candidate, config: Config, sampler: Sampler, jobs: list[_Job], should_stop: Callable[[], bool]
) -> Generator[Event, None, bool]:
    """Draw the pictures that are not there yet; returns whether all are. The model has left the memory then."""
    missing = [job for job in jobs if not job.path.is_file()]
    yield events.Stage("draw", len(jobs))
    if not missing:
        return True
    if should_stop():
        return False
    source = candidate.open(sampler.precision)
    done = len(jobs) - len(missing)
    asked, setting = min(config.evaluation.batch_size, len(missing)), "evaluation.batch_size"
    size = source.batch_that_fits(asked, setting, config.sampling)
    if size < asked:
        yield events.Warning(fewer_at_once(size, asked, setting))
    facts = {"model": candidate.name} | sampler.model_dump()
    for start in range(0, len(missing), size):
        if start and should_stop():
            return False
        batch = missing[start : start + size]
        todo = [(job.text, job.seed) for job in batch]
        (pictures,) = draw_jobs(source, todo, config.sampling, batch_size=size, batch_setting=setting)
        for job, picture in zip(batch, pictures, strict=True):
            told = {"prompt": job.text, "seed": job.seed, "problem": picture.problem}
            save_picture(job.path, picture.image, **facts, **told)
        done += len(batch)
        yield events.Progress(done)
    del source
    gc.collect()  # its parts point at each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True


def _measure(
    config: Config,
    prompts: list[tuple[str, str]],
    jobs: list[_Job],
    problems: dict[Path, str],
    photos: Sequence[Path],
    encoders: Encoders,
    out: Path,
) -> Generator[Event, None, dict[str, Any]]:
    """What the pictures say, one by one and by prompt, and the ceilings: fields of an `Evaluation`."""
    ours = [job for job in jobs if job.prompt is not None and not problems[job.path]]
    kin = [job for job in jobs if job.prompt is None and not problems[job.path]]
    by_prompt = [[job.path for job in ours if job.prompt == number] for number in range(len(prompts))]
    if not kin or all(len(paths) < 2 for paths in by_prompt):
        raise ModelError(
            f"Too few pictures are left to measure: {len(ours)} of the subject, {len(kin)} of the class.",
            f"Look at those in {out / 'images'}; a model whose pictures are blank was damaged in training.",
        )
    paths = [job.path for job in ours]
    yield events.Stage("measure", 3)
    cache = out / _CACHES["dino"]
    real = embed_files(encoders.dino, photos, cache)
    dino = metrics.fidelity(embed_files(encoders.dino, paths, cache), real)
    pres = metrics.fidelity(embed_files(encoders.dino, [job.path for job in kin], cache), real)
    yield events.Progress(1)
    cache = out / _CACHES["clip"]
    looks, real_looks = embed_files(encoders.clip, paths, cache), embed_files(encoders.clip, photos, cache)
    texts = encoders.clip.embed_texts([described for _, described in prompts])
    clip_i = metrics.fidelity(looks, real_looks)
    clip_t = metrics.prompt_fidelity(looks, texts[[job.prompt for job in ours if job.prompt is not None]])
    yield events.Progress(2)
    assert encoders.perceptual, "only a training may lack it"
    apart = [_distances(encoders.perceptual, paths, config.evaluation.batch_size) for paths in by_prompt]
    yield events.Progress(3)
    near = {job.path: float(value) for job, value in zip(kin, pres, strict=True)}
    scores = {
        job.path: {"dino": float(d), "clip_i": float(i), "clip_t": float(t)}
        for job, d, i, t in zip(ours, dino, clip_i, clip_t, strict=True)
    }
    return {
        "prompts": tuple(
            _prompt_scores(prompt, described, [scores[path] for path in paths], distances)
            for (prompt, described), paths, distances in zip(prompts, by_prompt, apart, strict=True)
        ),
        "pictures": tuple(
            SubjectPicture(
                file=job.path.name,
                prompt=job.prompt,
                seed=job.seed,
                problem=problems[job.path],
                **scores.get(job.path, _NOTHING),
            )
            for job in jobs
            if job.prompt is not None
        ),
        "class_pictures": tuple(
            ClassPicture(file=job.path.name, seed=job.seed, problem=problems[job.path], pres=near.get(job.path))
            for job in jobs
            if job.prompt is None
        ),
        "ceilings": {
            name: float(metrics.ceiling(rows).mean())
            for name, rows in (("dino", real), ("clip_i", real_looks))
            if len(photos) > 1
        },
    }


def _prompt_scores(prompt: str, described: str, rows: list[dict[str, float]], distances: list[float]) -> PromptScores:
    means = {name: float(np.mean([row[name] for row in rows])) for name in _NOTHING} if rows else _NOTHING
    div = float(metrics.diversity([distances])[0]) if distances else None
    return PromptScores(prompt=prompt, described=described, count=len(rows), **means, div=div)


def _estimate(evaluation: Evaluation, metric: str) -> Estimate:
    values = evaluation.values(metric)
    return metrics.estimate_mean(list(values.values()), [group_of(metric, key) for key in values])


def _distances(perceptual: PerceptualDistance, paths: list[Path], batch_size: int) -> list[float]:
    """Of all pairs of the pictures of one prompt; few are in memory at a time."""

    @lru_cache(maxsize=2 * batch_size)
    def load(path: Path) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    pairs, distances = metrics.pairs(len(paths)), []
    for start in range(0, len(pairs), batch_size):
        pictures = [(load(paths[i]), load(paths[j])) for i, j in pairs[start : start + batch_size]]
        distances += perceptual.distances(pictures).tolist()
    return distances


def _known(out: Path, request: str) -> Evaluation | None:
    """The evaluation in `out` if it is the one that is asked for; one that can't be read is measured anew."""
    try:
        known = Evaluation.load(out)
    except RunError:
        return None
    return known if known.request == request else None


def _fingerprints(encoders: Encoders) -> dict[str, str]:
    return {part: getattr(encoders, part).fingerprint for part in ("dino", "clip")}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=BaseModel.model_dump).encode()).hexdigest()


def _save_photos(photos: Sequence[Path], path: Path) -> None:
    """A sheet of the photos, beside which the pictures can be judged by eye."""
    thumbnails = []
    for photo in photos:
        with Image.open(photo) as image:
            thumbnails.append(image.convert("RGB").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS))
    with atomic_file(path) as partial:
        contact_sheet(thumbnails, columns=min(len(thumbnails), 6)).save(partial, quality=88)
