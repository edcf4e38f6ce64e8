"""Studios whose runs are finished without training, for tests of what is done with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from dreambooth import events
from dreambooth.monitor import Measure, Measures
from dreambooth.runs import Run, Worker
from dreambooth.ui.limits import StudioSettings
from dreambooth.ui.studio import Studio, new_owner

ANNA, BERT = new_owner(), new_owner()


def studio(root: Path, model: Path, **settings: object) -> Studio:
    """A studio that offers `model` as `tiny-sd` and trains nothing."""
    return Studio(root, {"tiny-sd": str(model)}, Worker(root, parallel=0), StudioSettings(**settings))


def finished_runs(
    studio: Studio, photos: Path, *, both_ways: bool = False, models: list[Path] | None = None
) -> list[Run]:
    """Anna's run, or pair of runs, as training leaves them; each has its own of `models`, else the base model."""
    base = studio.model("tiny-sd")
    settings = {
        "base_model": base, "subject": {"identifier": "sks", "class_noun": "dog"}, "sampling": {"steps": 2},
        "evaluation": dict.fromkeys(("dino", "clip", "perceptual"), "toybox"),
    }  # fmt: skip
    runs = studio.start(ANNA, settings, sorted(map(str, photos.iterdir())), both_ways=both_ways)
    for run, model in zip(runs, models or [Path(base)] * len(runs), strict=True):
        shutil.copytree(model, run.path / "model")
        shutil.copytree(run.path / "uploads", run.path / "photos")
        run.append(events.Finished("model", 1.0))
    return runs


def measured(run: Run, *pres: float, best: int, step: int = 50) -> None:
    """Leave what measuring leaves: a PRES at 0, `step`, 2 `step` …, and the best model where that is not the last."""
    found = tuple(Measure(step * i, 0.5, 0.6, 0.3, value, 0.4) for i, value in enumerate(pres))
    names = {"dino": "toybox ViT", "clip": "toybox CLIP", "perceptual": "toybox ViT patch distance"}
    (run.path / "measures.json").write_text(json.dumps(asdict(Measures(0.8, names, best, found))))
    if best != found[-1].step:
        shutil.copytree(run.path / "model", run.path / "best")
