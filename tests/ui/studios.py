"""Studios whose runs are finished without training, for tests of what is done with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import merge
from dreambooth.families.load import load_pipeline
from dreambooth.methods import get_method
from dreambooth.metrics.measures import Measure, Measures
from dreambooth.models.adapters import save_trained, write_step
from dreambooth.models.fetch import fetch_model
from dreambooth.runs.directory import Run
from dreambooth.runs.owners import new_owner
from dreambooth.runs.worker import Worker
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.photos.uploads import Upload
from dreambooth.ui.studio import Studio
from dreambooth.ui.train.start import start
from dreambooth.ui.train.ways import Ways

ANNA, BERT = new_owner(), new_owner()
CAT = {"identifier": "ohwx", "class_noun": "cat"}
ROOMY = {"visitor_gb": 100, "disk_gb": 100}
"""Room for a base model that is not here, so that no more is known of it."""


def studio(root: Path, model: Path, **settings: object) -> Studio:
    """A studio that offers `model` as `tiny-sd` and trains nothing."""
    return Studio(root, {"tiny-sd": str(model)}, Worker(root, parallel=0), StudioSettings(**settings))


def finished_runs(
    studio: Studio,
    photos: Path,
    *,
    ways: Ways = "one",
    models: list[Path] | None = None,
    owner: str = ANNA,
    **changes: object,
) -> list[Run]:
    """Anna's run, or as many as `ways` asks for, as training leaves them; each has its own of `models`, else the base
    model or an adapter with weights of chance. `changes` are settings."""
    base = studio.model("tiny-sd")
    settings = {
        "base_model": base,
        "subject": {"identifier": "sks", "class_noun": "dog"},
        "sampling": {"steps": 2},
        "evaluation": dict.fromkeys(("dino", "clip", "perceptual"), "toybox"),
    }
    settings, paths = merge(settings, changes), sorted(map(str, photos.iterdir()))
    others = [Upload(paths)] * len(settings.get("more_subjects", ()))
    runs = start(studio, owner, settings, paths, others=others, ways=ways)
    for number, (run, model) in enumerate(zip(runs, models or [Path(base)] * len(runs), strict=True)):
        if run.config.method == "full":
            shutil.copytree(model, run.path / "model")
        else:
            save_adapter(run.config, run.path / "model", seed=number + len(list(studio.root.iterdir())))
        shutil.copytree(run.path / "uploads", run.path / "photos")
        run.append(events.Finished("model", 1.0))
    return runs


def save_adapter(config: Config, folder: Path, seed: int = 0, step: int = 100) -> Path:
    """What training with an adapter's method saves, with weights of chance."""
    base = fetch_model(config.base_model)
    pipe, family = load_pipeline(base)
    trainable = get_method(config.method).attach(pipe, family, config)
    generator = torch.Generator().manual_seed(seed)
    for weights in trainable.parameters:
        weights.data += 0.3 * torch.randn(weights.shape, generator=generator)
    folder.mkdir(parents=True)
    save_trained(trainable, config, base, folder, step)
    return folder


def measured(run: Run, *pres: float, best: int, step: int = 50) -> None:
    """Leave what measuring leaves: a PRES at 0, `step`, 2 `step` …, and the best model where that is not the last."""
    found = tuple(Measure(step * i, 0.5, 0.6, 0.3, value, 0.4) for i, value in enumerate(pres))
    names = {"dino": "toybox ViT", "clip": "toybox CLIP", "perceptual": "toybox ViT patch distance"}
    (run.path / "measures.json").write_text(json.dumps(asdict(Measures(0.8, names, best, found))))
    if (run.path / "model").is_dir():  # not while it trains
        write_step(run.path / "model", found[-1].step)
    if best != found[-1].step:
        shutil.copytree(run.path / "model", run.path / "best")
        write_step(run.path / "best", best)


def is_skip(value: object) -> bool:
    """Whether a handler leaves a component as it is."""
    return isinstance(value, dict) and "value" not in value


def settings(subject: dict | None = None, **others: object) -> dict:
    """Of a dog, or another `subject`, with a base model that is not here."""
    return {"base_model": "models/tiny", "subject": {"class_noun": "dog", **(subject or {})}, **others}


def ended(run: Run, event: events.Event | None = None) -> Run:
    run.append(event or events.Finished("model", 1.0))
    return run
