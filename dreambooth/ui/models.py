"""Which models a visitor may draw with: base models on offer, runs of their own, and what the Hub gives everybody."""

from __future__ import annotations

import contextlib
import functools
import html
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import gradio as gr
from pydantic import ValidationError

from dreambooth import generate
from dreambooth.apart import Weights
from dreambooth.config.names import TOYBOX
from dreambooth.config.presets import load_preset
from dreambooth.config.sections import LEARNS_WORD, SamplingConfig
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, DreamBoothError, ModelError, RunError
from dreambooth.families import family_of
from dreambooth.families.architectures import facts
from dreambooth.families.load import check_architecture
from dreambooth.families.tokens import Reader, load_tokenizer
from dreambooth.families.words import add_tokens, read_words
from dreambooth.generate import Which
from dreambooth.hub import Token, visitors_cache
from dreambooth.methods import get_method
from dreambooth.metrics.measures import Measures, read_measures
from dreambooth.models.adapters import fetch_base, is_adapter, is_model, read_adapter, read_step
from dreambooth.models.fetch import (
    SAFETY_CHECKER,
    TOYBOX_FOLDER,
    fetch_from_hub,
    fetch_model,
    fetch_safety_checker,
    fingerprint,
)
from dreambooth.runs.directory import Run
from dreambooth.ui.report import counted
from dreambooth.ui.studio import Studio, title

MOST_STEPS, MOST_GUIDANCE = 100, 20
"""The ends of the sliders: above, pictures take longer and get no better."""

MAX_MODEL = 7.5e9
"""Bytes of a stranger's model at most; in 32 bits and with its safety checker Stable Diffusion 1.5 has 5.5 GB."""

ROOM_FOR_A_MODEL = 15e9
"""Bytes that must be free before a stranger's model is fetched: twice the largest one's size, since runs need some."""

MAX_ADAPTERS = 3
"""Put on top of a model: each is loaded anew for a drawing, and more than a few spoil each other."""

MAX_SCALE = 1.5
"""The end of an adapter's sliders: above, pictures fall apart."""

UNSCALED = ("full", "textual_inversion")
"""Methods whose models are whole or not at all: a whole pipeline, a word that is there or not."""

IN_USE = 600.0
"""Seconds since its last use for which a visitors' model is not removed; a drawing says all the time that it uses
one."""

AN_HOUR = 6
"""Different models of the Hub that one address may have fetched for it within an hour: three adapters and their base
models."""


class _Fetching:
    """One download for strangers at a time, and so many for each address."""

    def __init__(self) -> None:
        self._busy = threading.Semaphore()
        self._asked: dict[str, dict[tuple[str, str | None], float]] = {}

    @contextlib.contextmanager
    def of(self, client: str, repo_id: str, revision: str | None) -> Iterator[None]:
        """Raises `RunError` while another one is fetched, and where this client has had its share."""
        if not self._busy.acquire(blocking=False):
            raise RunError("Another model is being fetched for a visitor.", "Try again in a few minutes.")
        try:
            if client:  # empty: no request, so nobody's
                self._count(client, (repo_id, revision))
            yield
        finally:
            self._busy.release()

    def _count(self, client: str, wanted: tuple[str, str | None]) -> None:
        now = time.monotonic()
        recent = {
            who: {what: at for what, at in asked.items() if now - at < 3600} for who, asked in self._asked.items()
        }
        self._asked = {who: asked for who, asked in recent.items() if asked}
        own = self._asked.setdefault(client, {})
        if wanted not in own and len(own) >= AN_HOUR:
            minutes = math.ceil((min(own.values()) + 3600 - now) / 60)
            raise RunError(
                f"{AN_HOUR} models were fetched for your address within the hour.",
                f"Draw with one of them, or come back in {minutes} min.",
            )
        own[wanted] = now


_FETCHING = _Fetching()


@dataclass(frozen=True)
class Model:
    """A model that a visitor may draw with."""

    name: str
    """What pictures and the page call it; never a path of the server."""
    weights: Weights
    sampling: SamplingConfig
    """The settings it is best sampled with."""
    which: str = ""
    """Of a run's two models, and of those of the runs on top."""


def unread(weights: Weights, prompts: Sequence[str]) -> str:
    """What is to be said, as HTML, of prompts that the model reads only in part; empty where it reads all."""
    adapters = [Path(folder) for folder in (weights.folder, *(on_top for on_top, _ in weights.adapters))]
    tokenizer = load_tokenizer(Path(weights.base or weights.folder))
    identifiers: list[str] = []
    for folder in filter(is_adapter, adapters):
        add_tokens(tokenizer, ((word, len(rows)) for word, rows in read_words(folder).items()))
        identifiers += read_adapter(folder).identifiers
    said = Reader(tokenizer, tuple(identifiers)).remarks(prompts)
    return "".join(f"<p class='aside'>{html.escape(remark)}</p>" for remark in said)


def open_model(
    studio: Studio,
    owner: str,
    name: str,
    which: Which = "last",
    token: Token = False,
    *,
    scale: float = 1.0,
    adapters: Sequence[tuple[str, float]] = (),
    client: str = "",
) -> Model:
    """The model that a visitor names: a base model on offer, a run of theirs, or a Hub repo, downloaded if need be.

    `which` is heeded where a run, or one on top, has two. A repo is OWNER/NAME or OWNER/NAME@REVISION; the Hub is asked
    each time whether `token` may read it. A path of the server is none of these. An adapter takes part with `scale`; on
    top come `adapters`, each the id of a run of the visitor's and its weight. `client` is the address that asks. Raises
    `ConfigError`, `RunError`, `ModelError` or `HubError`.
    """
    name = called = name.strip() if isinstance(name, str) else ""
    if not name:
        raise ConfigError("No model is chosen.", "Choose one from the list, or type a Hub id, OWNER/NAME.")
    if name in studio.base_models:
        wanted = studio.model(name)
        model = Model(name, Weights(str(fetch_model(wanted))), base_sampling(wanted))
    elif "/" in name:
        model = _open_from_hub(studio, name, token, client)
    else:
        run = studio.own_run(owner, name)
        weights = weights_of(run, which)
        model = Model(run.id, weights, run.config.drawing, "best" if Path(weights.folder).name == "best" else "last")
        called = label(run)
    stacked = _stacked(studio, owner, adapters, which, model.weights, called)
    weights = model.weights._replace(scale=_checked_weight(scale), adapters=stacked)
    return replace(model, weights=weights, which=which if stacked else model.which)


def _open_from_hub(studio: Studio, name: str, token: Token, client: str) -> Model:
    repo_id, _, revision = name.partition("@")
    fetch = functools.partial(_fetch_for_stranger, client) if studio.public else fetch_from_hub
    folder = fetch(repo_id, revision or None, token=token, adapters=True)
    base = _base_of(studio, folder, token, client) if is_adapter(folder) else None
    check_architecture(base or folder, family_of(base or folder))
    weights = Weights(str(folder), str(base or ""))
    if studio.public:
        weights = weights._replace(stranger=True, checker=_checker_for(base or folder, name))
    settings = generate.published_settings(folder)
    return Model(name, weights, settings.drawing if settings else SamplingConfig())


def _checker_for(pipeline: Path, name: str) -> str:
    """The folder of the safety checker that looks at what a stranger's pipeline draws on a public studio, whatever one
    it brings itself; none for the toybox. Raises `ModelError` where it can't be had."""
    if is_built_as_toybox(pipeline):
        return ""
    try:
        return str(fetch_safety_checker())
    except DreamBoothError as error:
        raise ModelError(
            f"{name} can't be drawn with: without {SAFETY_CHECKER}, which can't be had now ({error.message}), a public "
            "studio draws with no stranger's model.",
            "Choose one from the list, or run the studio on a computer of your own.",
        ) from None


def _base_of(studio: Studio, adapter: Path, token: Token, client: str) -> Path:
    """The folder of a Hub adapter's base model: one on offer here is taken as it is, any other fetched for `token`."""
    facts = read_adapter(adapter)
    if facts.base_model in studio.base_models and facts.revision is None:
        return fetch_model(studio.model(facts.base_model))
    if studio.public and facts.base_model != TOYBOX:
        return _fetch_for_stranger(client, facts.base_model, facts.revision, token=token)
    return fetch_base(facts, token=token)


def _stacked(
    studio: Studio, owner: str, adapters: Sequence[tuple[str, float]], which: Which, model: Weights, called: str
) -> tuple[tuple[str, float], ...]:
    """The folders and weights of a visitor's adapters, `which` of each run's, for the top of a model that messages call
    `called`.

    Raises `ConfigError` for what is none and for a word that is there already, `ModelError` for one of another base.
    """
    base = Path(model.base or model.folder)
    holders = dict.fromkeys(read_words(Path(model.folder)) if model.base else (), called)
    if len(adapters) > MAX_ADAPTERS:
        raise ConfigError(f"{len(adapters)} adapters are too many.", f"Add at most {MAX_ADAPTERS}.")
    found = []
    for name, weight in adapters:
        run = studio.own_run(owner, name)
        folder = Path(finished_model(run, which))
        if not is_adapter(folder):
            raise ConfigError(f"{label(run)} is a whole model.", "Only adapters can be added to a model.")
        if read_adapter(folder).base_fingerprint != fingerprint(base):
            raise ModelError(
                f"{label(run)} is an adapter of another base model.",
                "Add it to that base model, or to another adapter of it.",
            )
        for word in read_words(folder):
            if word in holders:
                raise ConfigError(
                    f"{holders[word]} and {label(run)} have both learned the word {word}.",
                    "Take one of the two, or train one of them anew with another word.",
                )
            holders[word] = label(run)
        found.append((str(folder), _checked_weight(weight)))
    return tuple(found)


def _checked_weight(weight: object) -> float:
    if isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight <= MAX_SCALE:
        return float(weight)
    raise ConfigError(f"{weight!r:.30} is no strength of an adapter.", f"Give a number from 0 to {MAX_SCALE}.")


def _fetch_for_stranger(
    client: str, repo_id: str, revision: str | None, *, token: Token, adapters: bool = False
) -> Path:
    """A Hub model for a visitor of a public studio: one download at a time, and not above `MAX_MODEL`.

    Where the disk has too little room, those that visitors asked for longest ago are removed, but none in use.
    """
    with _FETCHING.of(client, repo_id, revision):
        cache = visitors_cache()
        used = {repo: repo.stat().st_mtime for repo in cache.glob("models--*")}
        old = sorted((repo for repo in used if time.time() - used[repo] > IN_USE), key=used.__getitem__)
        while _free(cache) < ROOM_FOR_A_MODEL:
            if not old:
                raise RunError(
                    "The studio's disk has no room for another model now.",
                    "Take one from the list, or try again in a quarter of an hour.",
                )
            shutil.rmtree(old.pop(0), ignore_errors=True)
        folder = fetch_from_hub(repo_id, revision, token=token, max_bytes=MAX_MODEL, adapters=adapters)
        os.utime(folder.parents[1])
        return folder


def keep_in_cache(weights: Weights) -> None:
    """Say that visitors' models are in use, so that none is removed while it is drawn with."""
    for repo in {parent for folder in weights.folders for parent in Path(folder).parents}:
        if repo.parent == visitors_cache():
            with contextlib.suppress(FileNotFoundError):
                os.utime(repo)


def _free(folder: Path) -> int:
    """Bytes free on the disk that `folder` is on, or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def is_built_as_toybox(folder: Path) -> bool:
    """Whether a pipeline is the toybox with other weights: such small pictures are drawn unchecked with runs, too."""
    try:
        return all(facts(folder, part) == facts(TOYBOX_FOLDER, part) for part in ("unet", "vae", "text_encoder"))
    except (OSError, ValueError, RecursionError):
        return False


def finished_model(run: Run, which: Which = "last") -> str:
    """The folder of a run's model; raises `RunError` where it has none yet, `ConfigError` for an unknown `which`."""
    if which not in get_args(Which):
        raise ConfigError(f"{which!r} is none of a run's models.", f"Say {' or '.join(get_args(Which))}.")
    if not is_model(run.path / "model"):  # in words of our own: others name the path
        raise RunError(f"This run is {run.status} and has no model yet.", "Wait for its end, or resume it.")
    return str(generate.finished_model(run.path, which))


def weights_of(run: Run, which: Which = "last") -> Weights:
    """What is loaded to draw with a run's model; raises as `finished_model` and `base_folder` do."""
    folder = finished_model(run, which)
    return Weights(folder, base_folder(run.config) if is_adapter(Path(folder)) else "")


def best_and_last(run: Run) -> dict[Which, int] | None:
    """The steps of a run's two models; None where the last is the best, or nothing was measured."""
    if not is_model(run.path / "best") or (measures := measures_of(run)) is None:
        return None
    return {"best": measures.best, "last": read_step(run.path / "model") or measures.measures[-1].step}


def measures_of(run: Run) -> Measures | None:
    """What was measured while it trained; None where nothing was, or where that is damaged, as the Train tab tells."""
    try:
        return read_measures(run.path)
    except RunError:
        return None


def base_folder(config: Config) -> str:
    """The folder of the base model of a run, downloaded if need be."""
    if Path(config.base_model).is_absolute() and not Path(config.base_model).exists():  # its path is nobody's business
        raise ModelError("This run's base model is not on this server any more.", "Train again from another one.")
    return str(fetch_model(config.base_model, config.revision))


def finished_runs(studio: Studio, owner: str) -> list[Run]:
    """This visitor's runs that have a model, newest first."""
    return [run for run in studio.own_runs(owner) if run.status == "finished"]


def first_choice(studio: Studio, runs: Sequence[Run]) -> Run | None:
    """Of a visitor's finished runs the newest; of those trained beside each other, the one with PPL."""
    if not runs:
        return None
    family = [runs[0], *(run for run in studio.partners(runs[0]) if run in runs)]
    return max(family, key=lambda run: run.config.condition == "with PPL")


def has_strength(run: Run) -> bool:
    """Whether more or less of what a run trained can take part."""
    return run.config.method not in UNSCALED


def adapters_for(studio: Studio, runs: Sequence[Run], model: str) -> list[Run]:
    """Of a visitor's finished runs the adapters that can be put on top of the model of that name: of the same base
    model, and with other words."""
    chosen = next((run.config for run in runs if run.id == model), None)
    if chosen:
        base = (chosen.base_model, chosen.revision) if get_method(chosen.method).load else None
    elif model in studio.base_models:
        base = (studio.model(model), None)
    else:  # a Hub repo
        repo_id, _, revision = (model or "").partition("@")
        base = (repo_id, revision or None)
    return [
        run
        for run in runs
        if run.id != model
        and (run.config.base_model, run.config.revision) == base
        and is_adapter(run.path / "model")
        and not (chosen and learned_words(chosen) & learned_words(run.config))
    ]


def learned_words(config: Config) -> set[str]:
    """The words that a run adds to the vocabulary, of which no two models that are used together may have the same."""
    learns = config.method in LEARNS_WORD or config.word.learned
    return {subject.identifier for subject in config.subjects} if learns else set()


def base_sampling(base_model: str) -> SamplingConfig:
    """What a base model is best sampled with."""
    return SamplingConfig(**(load_preset(TOYBOX)["sampling"] if base_model == TOYBOX else {}))


def label(run: Run, how: str | None = None) -> str:
    """What lists of models call a run."""
    config = run.config
    word_alone = config.method == "textual_inversion"  # nothing that could drift
    how = "" if word_alone else f" · {how or config.condition}"
    method = "" if config.method == "full" else f" · {get_method(config.method).title}"
    begun = time.strftime("%d %b %H:%M", time.localtime(run.began))
    return f"{title(run)}{method}{how} · {counted(config.train.steps, 'step')} · {begun}"


def shown_sampling(sampling: SamplingConfig) -> tuple[int, float]:
    """Steps and guidance as the sliders take them; a config may ask for more."""
    return min(sampling.steps, MOST_STEPS), min(sampling.guidance_scale, MOST_GUIDANCE)


def checked_sampling(sampling: SamplingConfig, steps: float, guidance_scale: float) -> SamplingConfig:
    """The settings with steps and guidance of one's own; raises `ConfigError` for impossible ones."""
    try:
        return SamplingConfig(**sampling.model_dump() | {"steps": steps, "guidance_scale": guidance_scale})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{first['loc'][0]} is {first['input']!r}: {first['msg']}.", "Choose another value."
        ) from None


def free_choice(dropdown: gr.Dropdown) -> gr.Dropdown:
    """The dropdown, told to programs as any text: its choices are a visitor's, or not all there is."""
    dropdown.api_info = lambda: {"type": "string"}  # type: ignore[method-assign]  # of this one alone
    return dropdown
