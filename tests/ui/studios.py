"""Studios whose runs are finished without training, for tests of what is done with them."""

from __future__ import annotations

import shutil
from pathlib import Path

from dreambooth import events
from dreambooth.runs import Run, Worker
from dreambooth.ui.studio import Studio, StudioSettings, new_owner

ANNA, BERT = new_owner(), new_owner()


def studio(root: Path, model: Path, **settings: object) -> Studio:
    """A studio that offers `model` as `tiny-sd` and trains nothing."""
    return Studio(root, {"tiny-sd": str(model)}, Worker(root, parallel=0), StudioSettings(**settings))


def finished_runs(
    studio: Studio, photos: Path, *, both_ways: bool = False, models: list[Path] | None = None
) -> list[Run]:
    """Anna's run, or pair of runs, as training leaves them; each has its own of `models`, else the base model."""
    base = studio.model("tiny-sd")
    settings = {"base_model": base, "subject": {"identifier": "sks", "class_noun": "dog"}, "sampling": {"steps": 2}}
    runs = studio.start(ANNA, settings, sorted(map(str, photos.iterdir())), both_ways=both_ways)
    for run, model in zip(runs, models or [Path(base)] * len(runs), strict=True):
        shutil.copytree(model, run.path / "model")
        run.append(events.Finished("model", 1.0))
    return runs
