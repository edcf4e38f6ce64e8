"""What a training is expected to need, told before it starts, and without loading or downloading its base model."""

from __future__ import annotations

import html
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from dreambooth.config.names import TOYBOX
from dreambooth.config.settings import Config
from dreambooth.errors import DreamBoothError, ModelError
from dreambooth.files import shown_size
from dreambooth.machine import available_memory, probe, resolve_device, resolve_precision
from dreambooth.models.fetch import fetch_model
from dreambooth.rehearsal import Rehearsal, gib
from dreambooth.training.preflight import Estimate, check, roughly
from dreambooth.ui.doors.limits import StudioSettings, refuse_too_much
from dreambooth.ui.train.ways import Ways, ways_of

KEPT = 256
"""Estimates that are remembered: visitors mostly ask for what a recipe says."""
PROBED = 60
"""Seconds for which a measured speed is taken: methods are compared on a machine that is as busy."""
FIRST_PHOTOS = """<div class="empty">Once there are photos, this says how much memory and time the training takes.
</div>"""
ESTIMATING = """<div class="empty" role="status">Estimating memory and time …</div>"""


class Estimates:
    """Estimates trainings that a studio with these settings takes, one at a time; what was estimated last is
    remembered."""

    def __init__(self, limits: StudioSettings) -> None:
        self._limits = limits
        self._known: OrderedDict[str, Estimate] = OrderedDict()
        self._last: tuple[object, float, Rehearsal] | None = None
        self._lock = threading.Lock()

    def known(self, settings: dict[str, Any]) -> Estimate | None:
        """The estimate for these settings if it was made before."""
        return self._known.get(_config(settings).model_dump_json(exclude={"seed"}))

    def of(self, settings: dict[str, Any], ways: Ways = "one") -> Estimate:
        """What a run with these settings needs; with several `ways` the memory of the largest and the time of all.

        Raises `ConfigError` for what is wrong with them, is more than the studio gives, or does not fit, and
        `ModelError` for a base model that is not on this machine.
        """
        configs = ways_of(_config(settings), ways)
        for config in configs:  # before anything is rehearsed, for which others would have to wait
            refuse_too_much(config, self._limits)
        found = [self._one(config) for config in configs]
        largest = max(found, key=lambda estimate: estimate.peak_bytes)
        return replace(largest, seconds=sum(estimate.seconds for estimate in found))

    def _one(self, config: Config) -> Estimate:
        key = config.model_dump_json(exclude={"seed"})
        with self._lock:  # two at once would measure each other's load
            if key not in self._known:
                device, model = resolve_device(config.device), _folder(config)
                rehearsal = self._rehearsal(model, device, config.train.mixed_precision)
                available = available_memory(device, when_others_ended=True)  # it would be queued behind them
                self._known[key] = check(config, model, device, available=available, rehearsal=rehearsal)
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)
            return self._known[key]

    def _rehearsal(self, model: Path, device: torch.device, mixed_precision: str) -> Rehearsal:
        """The last one, where it was of this model not long ago: what it has rehearsed it remembers."""
        precision = resolve_precision(mixed_precision, device)
        asked, now = (model, device, precision), time.monotonic()
        if self._last is None or self._last[0] != asked or now - self._last[1] > PROBED:
            self._last = (asked, now, Rehearsal(model, device, probe(device, precision)))
        return self._last[2]


def _config(settings: dict[str, Any]) -> Config:
    """The settings with words and photos that stand for any: of as many subjects, and as many classes."""
    subjects = (settings.get("subject", {}), *settings.get("more_subjects", ()))
    nouns = [subject.get("class_noun", "") for subject in subjects]
    classes = list(dict.fromkeys(nouns))
    subject, *more = (
        {"photos": ".", "identifier": f"<s{number}>", "class_noun": f"thing {classes.index(noun)}"}
        for number, noun in enumerate(nouns)
    )
    return Config.from_dict(settings | {"subject": subject, "more_subjects": more}, source="Settings")


def _folder(config: Config) -> Path:
    """The base model's folder, which need only hold its configuration."""
    if config.base_model == TOYBOX or Path(config.base_model).is_dir():
        return fetch_model(config.base_model)
    try:
        index = try_to_load_from_cache(config.base_model, "model_index.json", revision=config.revision)
    except HFValidationError:
        index = None
    if not isinstance(index, str):
        raise ModelError(
            f"{config.base_model} is not on this machine yet.",
            "It is downloaded when the training starts, and memory and time are estimated then.",
        )
    return Path(index).parent


def as_html(estimate: Estimate) -> str:
    """The figures that matter, and what they are based on."""
    checkpointing = " · gradient checkpointing" if estimate.gradient_checkpointing else ""
    precision = "32 bits" if estimate.mixed_precision == "no" else estimate.mixed_precision
    count = estimate.trainable_parameters
    weights = f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"
    basis = (
        f"{weights} weights trained at {estimate.resolution} px in {precision}{checkpointing}. "
        "Roughly: class images that another run has drawn save time, a busy machine takes more."
    )
    return (
        f"<section class='estimate'><dl><div><dt>Memory</dt><dd>{gib(estimate.peak_bytes)}</dd></div>"
        f"<div><dt>Time</dt><dd>about {roughly(estimate.seconds)}</dd></div>"
        f"<div><dt>File</dt><dd>{shown_size(estimate.model_bytes)}</dd></div></dl>"
        f"<p>{html.escape(basis)}</p></section>"
    )


def in_short(estimate: Estimate) -> str:
    """The three figures in a line."""
    size, time = shown_size(estimate.model_bytes), roughly(estimate.seconds)
    return f"File {size} · time about {time} · memory {gib(estimate.peak_bytes)}"


def refusal_html(error: DreamBoothError) -> str:
    """Why there is no estimate, or why the run would not fit."""
    kind = "tip" if isinstance(error, ModelError) else "warning"
    word = "Later" if isinstance(error, ModelError) else "Change this"
    return f"<ul class='findings'><li class='{kind}'><strong>{word}</strong> {html.escape(str(error))}</li></ul>"


def as_dict(estimate: Estimate) -> dict[str, Any]:
    """For API callers."""
    return {
        "peak_bytes": estimate.peak_bytes,
        "seconds": estimate.seconds,
        "stage": estimate.stage,
        "resolution": estimate.resolution,
        "mixed_precision": estimate.mixed_precision,
        "gradient_checkpointing": estimate.gradient_checkpointing,
        "trainable_parameters": estimate.trainable_parameters,
        "model_bytes": estimate.model_bytes,
        "text": estimate.describe(),
    }
