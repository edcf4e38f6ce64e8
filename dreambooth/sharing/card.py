"""A run as a Hub repo, its weights aside: the card, settings and figures, and pictures written anew from their pixels.

Nothing in it names a file or folder of this machine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image

from dreambooth import events
from dreambooth.config.names import TOYBOX, name_of
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, RunError
from dreambooth.evaluation.evaluate import BASE, FILE, Evaluation, trained_model
from dreambooth.evaluation.reports import Cell, Line, draw_sheet, drift_plot, gallery, loss_plot, progress_plot
from dreambooth.evaluation.reports.tables import capital
from dreambooth.generate import Which, save_picture
from dreambooth.hub import Token, plain_failures
from dreambooth.metrics.measures import FILE as MEASURES
from dreambooth.metrics.measures import Measures, bounds_of, read_measures
from dreambooth.models.adapters import is_adapter
from dreambooth.runs.directory import Run
from dreambooth.sharing.model_card import (
    COMPARISON,
    CONFIG,
    DRIFT,
    HUB,
    IMAGES,
    LOSS,
    PHOTOS,
    PROGRESS,
    UNKNOWN,
    WORDS,
    Facts,
    Licence,
    model_card,
    photos_of,
)

__all__ = ["CARD", "Licence", "assemble", "base_licence"]

CARD = "README.md"
PICTURES, OF_CLASS = 6, 2  # in the card's gallery, and how many of them at most are of the class prompt
PROMPTS = 4  # of an evaluation in the comparison
WIDEST = 1024  # pixels of the comparison: a page shows it no wider


class _Sample(NamedTuple):
    """A picture that was drawn."""

    path: Path
    prompt: str
    seed: int


def assemble(
    run: Run,
    folder: Path,
    *,
    repo_id: str,
    licence: Licence,
    which: Which,
    photos: bool,
    half: bool = False,
    partner: Run | None = None,
) -> None:
    """Write into the empty `folder` the repo without the model itself: card, settings, figures and pictures.

    They tell of `which` of the run's models, `half` the size if so. `partner` is the run that differs alone in what
    keeps the class from drifting. The photos, as cropped for training, are written only with `photos`. Raises
    `RunError` where the run is not finished or its measurements are damaged, and `ConfigError` for a partner that is
    none.
    """
    model = trained_model(run.path, run.config, which)
    if partner is not None:
        _check_pair(run, partner)
    own, evaluations = _evaluations(run, partner, which)
    measures, prepared = read_measures(run.path), _photos(run)
    config = portable(run.config)
    (folder / IMAGES).mkdir()
    _write(folder / CONFIG, config.to_yaml())
    if own:
        published = own.model_copy(update={"model": repo_id.split("/")[-1]})
        _write(folder / FILE, published.model_dump_json(indent=1))
    if measures:
        _write(folder / MEASURES, json.dumps(asdict(measures), indent=1))
    pictures = _save_gallery(_gallery(config, _samples(run, model.step) or _drawn(own)), folder)
    if photos:
        _copy_photos(run, prepared, folder / PHOTOS)
    _plots(run, partner, measures, folder)
    _compare(run, partner, which, evaluations, folder / COMPARISON)
    weights = sorted((path.name for path in model.folder.glob("*.safetensors")), key=lambda name: (len(name), name))
    size = sum(path.stat().st_size for path in model.folder.rglob("*") if path.is_file())
    facts = Facts(
        config=config,
        repo_id=repo_id,
        base_repo=_hub_id(run.config),
        licence=licence,
        steps=trained_model(run.path, run.config).step,
        step=model.step,
        photos=tuple(map(len, prepared)),
        side=_pixels(prepared[0][0]).width,
        weights=tuple(weights),
        parameters=_parameters(run),
        size=size // 2 if half else size,
        safety_checker=None if is_adapter(model.folder) else _has_safety_checker(model.folder),
        conditions=tuple(one.config.condition for one in _pair(run, partner)),
        own=own,
        evaluations=evaluations,
        measures=measures,
        pictures=pictures,
        files=frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
    )
    _write(folder / CARD, str(model_card(facts)))
    _refuse_paths(run, folder)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _has_safety_checker(model: Path) -> bool:
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    return (index.get("safety_checker") or [None])[0] is not None


def _parameters(run: Run) -> int | None:
    """How many were trained, as its events say."""
    metrics = (event for event in run.events() if isinstance(event, events.Metric))
    return next((int(metric.value) for metric in metrics if metric.name == "trainable_parameters"), None)


def _photos(run: Run) -> list[list[Path]]:
    """The prepared photos of each subject; raises `RunError` where one has none."""
    folders = [run.path / photos_of(number) for number in range(1, len(run.config.subjects) + 1)]
    found = [sorted(folder.glob("*.png")) for folder in folders]
    if not all(found):
        raise RunError(f"{run.id} has no prepared photos.", "Train it first.")
    return found


def portable(config: Config) -> Config:
    """The settings without this machine's folders, and without the names of the photos' files.

    What the repo holds is named by its place there: photos, and in the repo itself the word that was learned before.
    """
    settings = config.model_dump(mode="json")
    settings["base_model"] = name_of(config.base_model)
    for number, subject in enumerate([settings["subject"], *settings["more_subjects"]], 1):
        subject |= {"photos": photos_of(number), "crops": {}}  # what is published is cropped already
    settings["word"]["learned"] = config.word.learned and WORDS
    settings["prior"]["pack"] = None  # a short cut, and the name of what may be a private repo
    settings["evaluation"] |= {part: name_of(settings["evaluation"][part]) for part in ("dino", "clip")}
    return Config.model_validate(settings)


def _check_pair(run: Run, partner: Run) -> None:
    """Raise `ConfigError` unless the two differ in what keeps the class from drifting, and in that alone."""
    ours, theirs = (portable(one.config).model_dump() for one in (run, partner))
    for one in (ours, theirs):
        del one["prior"]["enabled"], one["drift"]
    differing = [key for key in ours if ours[key] != theirs[key]]
    seen = [[[photo.read_bytes() for photo in photos] for photos in _photos(one)] for one in (run, partner)]
    if seen[0] != seen[1]:
        differing.append("photos")
    if differing or run.config.condition == partner.config.condition:
        reason = f"{', '.join(differing)} differ" if differing else f"both are {run.config.condition}"
        raise ConfigError(
            f"{partner.id} is no partner of {run.id}: {reason}.",
            "Give the run that differs in prior.enabled or drift.weight alone.",
        )


def _refuse_paths(run: Run, folder: Path) -> None:
    """Raise `RunError` where a file that is to be published names a folder of this machine."""
    config = run.config
    given = (
        *(subject.photos for subject in config.subjects),
        config.word.learned or "",
        config.base_model,
        config.evaluation.dino,
        config.evaluation.clip,
    )
    local = {path for path in map(str, given) if Path(path).expanduser().is_absolute()}
    local |= {str(run.path.resolve()), os.path.join(Path.home(), "")}
    for file in (CARD, CONFIG, FILE, MEASURES):
        text = (folder / file).read_text(encoding="utf-8") if (folder / file).is_file() else ""
        if any(path in text for path in local if len(path) > 1):
            raise RunError(f"{file} would name a folder of this machine.", "Take it out of the run's prompts.")


# ------------------------------------------------------------------------------------------------------------- pictures


def _pixels(path: Path) -> Image.Image:
    """A picture without anything else that its file holds."""
    with Image.open(path) as image:
        return Image.fromarray(np.asarray(image.convert("RGB")))


def _copy_photos(run: Run, photos: Sequence[Sequence[Path]], folder: Path) -> None:
    for subject, files in zip(run.config.subjects, photos, strict=True):
        for photo in files:
            copied = folder / photo.relative_to(run.path / PHOTOS)
            copied.parent.mkdir(parents=True, exist_ok=True)
            _pixels(photo).save(copied)
            if subject.captions:
                _write(copied.with_suffix(".txt"), photo.with_suffix(".txt").read_text(encoding="utf-8"))


def _samples(run: Run, step: int) -> list[_Sample]:
    """The sample pictures of a step that are there, in the order they were drawn; once each, though it was resumed."""
    drawn = [e for e in run.events() if isinstance(e, events.Image) and e.step == step]
    found = {e.path: _Sample(run.path / e.path, e.prompt, e.seed) for e in drawn}
    return [sample for sample in found.values() if sample.path.is_file()]


def _drawn(evaluation: Evaluation | None) -> list[_Sample]:
    """An evaluation's pictures that are there and show something: for a run that drew no samples."""
    if evaluation is None:
        return []
    images = evaluation.folder / "images"
    of_subject = [(p, evaluation.prompts[p.prompt].prompt) for p in evaluation.pictures]
    of_class = [(p, evaluation.class_prompt) for p in evaluation.class_pictures]
    kept = [_Sample(images / p.file, prompt, p.seed) for p, prompt in of_subject + of_class if not p.problem]
    return [sample for sample in kept if sample.path.is_file()]


def _gallery(config: Config, samples: Sequence[_Sample]) -> list[_Sample]:
    """A few of the pictures: the subject's first, each prompt once before any comes again, and its class's last."""
    of_class = [sample for sample in samples if sample.prompt in config.class_prompts][:OF_CLASS]
    ours = [sample for sample in samples if sample.prompt not in config.class_prompts]
    return sorted(ours, key=lambda sample: sample.seed)[: PICTURES - len(of_class)] + of_class


def _save_gallery(samples: Sequence[_Sample], folder: Path) -> tuple[tuple[str, str], ...]:
    """Write them; returns (file, prompt) of each."""
    names = [f"{IMAGES}/{number:02d}.png" for number in range(len(samples))]
    for name, sample in zip(names, samples, strict=True):
        save_picture(folder / name, _pixels(sample.path), prompt=sample.prompt, seed=sample.seed)
    return tuple((name, sample.prompt) for name, sample in zip(names, samples, strict=True))


def _plots(run: Run, partner: Run | None, measures: Measures | None, folder: Path) -> None:
    """The losses and, where the sample pictures were measured, how the metrics went."""
    steps = [event for event in run.events() if isinstance(event, events.Step)]
    losses = {
        "loss of the photos": {e.step: e.instance_loss for e in steps},
        "loss of the class images": {e.step: e.prior_loss for e in steps if e.prior_loss is not None},
    }
    loss_plot({of: by_step for of, by_step in losses.items() if by_step}, folder / LOSS)
    if measures is None or len(measures.measures) < 2:
        return
    other = read_measures(partner.path) if partner else None
    if other and len(other.measures) > 1:
        by_run = {run: [measures], partner: [other]}
        drift_plot({one.config.condition: by_run[one] for one in _pair(run, partner)}, folder / DRIFT)
    asked = run.config.evaluation
    bounds = bounds_of(measures.base, measures.ceiling, asked.max_drift, asked.max_prompt_loss)
    progress_plot(measures, folder / PROGRESS, bounds)


def _pair(run: Run, partner: Run | None) -> list[Run]:
    """The runs there are: without PPL first, then with it, and those with the drift penalty last."""
    found = [one for one in (run, partner) if one]
    return sorted(found, key=lambda one: (one.config.drift.weight > 0, one.config.prior.active))


def _compare(run: Run, partner: Run | None, which: Which, evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write base model and runs beside each other, from what has more of them; nothing where there is but one."""
    drawn = [evaluation for evaluation in evaluations if _drawn(evaluation)]
    columns = _sample_columns(run, partner, which)
    if max(len(drawn), len(columns)) < 2:
        return
    if len(drawn) >= len(columns):
        with Image.open(gallery(drawn, path, PROMPTS)) as opened:
            sheet: Image.Image = opened.copy()
    else:
        sheet = draw_sheet(list(columns), _lines(run.config, list(columns.values())))
    if sheet.width > WIDEST:
        sheet = sheet.resize((WIDEST, round(sheet.height * WIDEST / sheet.width)), Image.Resampling.LANCZOS)
    sheet.save(path)


def _sample_columns(run: Run, partner: Run | None, which: Which) -> dict[str, list[_Sample]]:
    """The sample pictures of the base model and of the runs, as far as there are any."""
    columns = {capital(BASE): _samples(run, 0)}
    for one in _pair(run, partner):
        columns[capital(one.config.condition)] = _samples(one, trained_model(one.path, one.config, which).step)
    return {title: samples for title, samples in columns.items() if samples}


def _lines(config: Config, columns: Sequence[Sequence[_Sample]]) -> list[Line]:
    """A row for each prompt and seed of the gallery's, by prompt, the class's last."""
    chosen = _gallery(config, columns[0])
    prompts = list(dict.fromkeys(sample.prompt for sample in chosen))
    chosen.sort(key=lambda sample: prompts.index(sample.prompt))
    by_key = [{(sample.prompt, sample.seed): Cell(str(sample.path)) for sample in column} for column in columns]
    keys = [(sample.prompt, sample.seed) for sample in chosen]
    return [Line(*key, tuple(cells.get(key) for cells in by_key)) for key in keys]


# ---------------------------------------------------------------------------------------------------------- evaluations


def _evaluations(run: Run, partner: Run | None, which: Which) -> tuple[Evaluation | None, tuple[Evaluation, ...]]:
    """The published model's evaluation, and with it those of the base model and the partner that were made alike."""
    own = _evaluation(run, which)
    if own is None:
        return None, ()
    pair = _pair(run, partner)
    beside = [e for one in pair if (e := own if one == run else _evaluation(one, which)) and _alike(e, own)]
    folders = [*(one.path / "evaluation-base" for one in (run, *pair)), run.path.parent / "base"]
    bases = [e for e in map(_load, folders) if e and e.condition == BASE and _alike(e, own)]
    return own, (*bases[:1], *beside)


def _evaluation(run: Run, which: Which) -> Evaluation | None:
    """The evaluation of that very model, which the last and the best step may share."""
    model = trained_model(run.path, run.config, which)
    names = ("evaluation-best", "evaluation") if which == "best" else ("evaluation", "evaluation-best")
    found = [_load(run.path / name) for name in names]
    return next((e for e in found if e and e.step == model.step and e.condition != BASE), None)


def _load(folder: Path) -> Evaluation | None:
    """The evaluation in `folder`, if there is one, under the subject's own words: a folder may have named it."""
    if not (folder / FILE).is_file():
        return None
    loaded = Evaluation.load(folder)
    return loaded.model_copy(update={"subject": f"{loaded.identifier} {loaded.class_noun}"})


def _alike(one: Evaluation, other: Evaluation) -> bool:
    """Whether figures may stand beside each other: same subject, base model, prompts, seeds, sampler and encoders."""

    def protocol(e: Evaluation) -> tuple[Any, ...]:
        return (
            e.subject,
            e.base_model,
            e.encoders,
            e.photos,
            e.images_per_prompt,
            e.class_prompt,
            e.class_images,
            e.first_seed,
            e.sampling,
            [prompt.prompt for prompt in e.prompts],
        )

    return protocol(one) == protocol(other)


# ---------------------------------------------------------------------------------------------------------- the licence

_KNOWN = {
    "apache-2.0": ("Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    "creativeml-openrail-m": ("CreativeML Open RAIL-M", f"{HUB}/spaces/CompVis/stable-diffusion-license"),
    "mit": ("MIT License", "https://opensource.org/license/mit"),
    "openrail++": ("CreativeML Open RAIL++-M", f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"),
}
"""Names and texts of licences that the Hub knows by an id alone."""


def base_licence(config: Config, token: Token) -> Licence:
    """What the base model's card says of its licence; `unknown` where it says nothing, or there is no such card.

    Of a Hub repo it is asked from the Hub with `token`; raises `HubError` where that fails.
    """
    if config.base_model == TOYBOX:
        return Licence("apache-2.0", *_KNOWN["apache-2.0"])
    repo = _hub_id(config)
    if repo is None:
        return Licence(UNKNOWN)
    with plain_failures(f"read the licence of {repo}", token):
        try:
            card = HfApi().model_info(repo, revision=config.revision, token=token).card_data
        except RepositoryNotFoundError:  # removed since it was downloaded, or private: its card tells nobody anything
            card = None
    return _licence_of(card, repo) if card else Licence(UNKNOWN)


def _licence_of(card: ModelCardData, repo: str) -> Licence:
    told = card.license if isinstance(card.license, list) else [card.license]
    ids = [one for one in told if isinstance(one, str) and one.strip()]
    if not ids:
        return Licence(UNKNOWN)
    name, link = (value if isinstance(value, str) else None for value in (card.license_name, card.license_link))
    if link and not re.match(r"https?://", link):  # a file of the base model's repo
        link = f"{HUB}/{repo}/blob/main/{link.lstrip('./')}"
    if len(ids) > 1:
        return Licence("other", name or " and ".join(ids), link or f"{HUB}/{repo}")
    known = _KNOWN.get(ids[0], (ids[0], f"{HUB}/{repo}"))
    return Licence(ids[0], name or known[0], link or known[1])


def _hub_id(config: Config) -> str | None:
    """The base model's repo; None for the toybox and for a folder."""
    name = name_of(config.base_model)
    return name if "/" in name else None
