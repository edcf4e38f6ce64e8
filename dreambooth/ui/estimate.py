"""What a training is expected to need, told before it starts, and without loading or downloading its base model."""

from __future__ import annotations

import html
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from dreambooth.config import TOYBOX, Config
from dreambooth.errors import DreamBoothError, ModelError
from dreambooth.fetch import fetch_model
from dreambooth.machine import resolve_device
from dreambooth.preflight import Estimate, check, gib, roughly

KEPT = 256
"""Estimates that are remembered: visitors mostly ask for what a recipe says."""
FIRST_PHOTOS = """<div class="empty">Once there are photos, this says how much memory and time the training takes.
</div>"""
ESTIMATING = """<div class="empty" role="status">Estimating memory and time …</div>"""


class Estimates:
    """Estimates trainings, one at a time; what was estimated last is remembered."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Estimate] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, settings: dict[str, Any]) -> Estimate | None:
        """The estimate for these settings if it was made before."""
        return self._known.get(_config(settings).model_dump_json(exclude={"seed"}))

    def of(self, settings: dict[str, Any], *, both_ways: bool = False) -> Estimate:
        """What a run with these settings needs; with `both_ways` the memory of the larger and the time of both.

        Raises `ConfigError` for what is wrong with them or does not fit, and `ModelError` for a base model that is
        not on this machine.
        """
        estimate = self._one(_config(settings))
        if not both_ways:
            return estimate
        other = self._one(_config(settings | {"prior": settings.get("prior", {}) | {"enabled": False}}))
        larger = max(estimate, other, key=lambda e: e.peak_bytes)
        return replace(larger, seconds=estimate.seconds + other.seconds)

    def _one(self, config: Config) -> Estimate:
        key = config.model_dump_json(exclude={"seed"})
        with self._lock:  # two at once would measure each other's load
            if key not in self._known:
                self._known[key] = check(config, _folder(config), resolve_device(config.device))
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)
            return self._known[key]


def _config(settings: dict[str, Any]) -> Config:
    """The settings with words and photos that stand for any."""
    return Config.from_dict(settings | {"subject": {"photos": ".", "class_noun": "dog"}}, source="Settings")


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
    """The two figures that matter, and what they are based on."""
    checkpointing = " · gradient checkpointing" if estimate.gradient_checkpointing else ""
    precision = "32 bits" if estimate.mixed_precision == "no" else estimate.mixed_precision
    basis = (
        f"{estimate.trainable_parameters / 1e6:,.1f} M weights trained at {estimate.resolution} px in {precision}"
        f"{checkpointing}. Roughly: class images that another run has drawn save time, a busy machine takes more."
    )
    return (
        f"<section class='estimate'><dl><div><dt>Memory</dt><dd>{gib(estimate.peak_bytes)}</dd></div>"
        f"<div><dt>Time</dt><dd>about {roughly(estimate.seconds)}</dd></div></dl><p>{html.escape(basis)}</p></section>"
    )


def refusal_html(error: DreamBoothError) -> str:
    """Why there is no estimate, or why the run would not fit."""
    kind = "tip" if isinstance(error, ModelError) else "warning"
    word = "Later" if isinstance(error, ModelError) else "Change this"
    return f"<ul class='findings'><li class='{kind}'><strong>{word}</strong> {html.escape(str(error))}</li></ul>"


def as_dict(estimate: Estimate) -> dict[str, Any]:
    """For API callers."""
    return {
        "peak_bytes": estimate.peak_bytes, "seconds": estimate.seconds, "stage": estimate.stage,
        "resolution": estimate.resolution, "mixed_precision": estimate.mixed_precision,
        "gradient_checkpointing": estimate.gradient_checkpointing,
        "trainable_parameters": estimate.trainable_parameters, "text": estimate.describe(),
    }  # fmt: skip
