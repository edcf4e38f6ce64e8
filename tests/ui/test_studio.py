"""What a studio is, and what a visitor does with runs that are there."""

import threading
from pathlib import Path

import pytest

from dreambooth import events
from dreambooth.errors import RunError
from dreambooth.photos.prepare import Crop
from dreambooth.runs.directory import list_runs
from dreambooth.runs.worker import Worker
from dreambooth.ui.studio import Studio
from dreambooth.ui.train.start import start
from tests.ui.studios import ANNA, BERT, ended, settings


@pytest.fixture
def studio(make_studio) -> Studio:
    return make_studio()


def test_a_studio_is_as_the_environment_says(tiny_model: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DREAMBOOTH_BASE_MODEL", str(tiny_model))
    monkeypatch.setenv("DREAMBOOTH_MAX_RUNS", "7")
    studio = Studio.from_environment()
    assert (studio.root, studio.settings.max_runs, studio.public) == (root.resolve(), 7, False)
    assert (studio.default_model, studio.resolution) == (tiny_model.name, 32)
    assert studio.model(tiny_model.name) == str(tiny_model)


def test_a_run_is_stopped_resumed_and_deleted(studio: Studio, photos: list[str]):
    [run] = start(studio, ANNA, settings(train={"steps": 100}), photos, seconds=60)
    assert run.last_event().seconds == 60
    for refused in (studio.resume, studio.delete):
        with pytest.raises(RunError, match=r"queued|waits"):
            refused(ANNA, run.id)
    studio.stop(ANNA, run.id)
    assert (run.status, studio.worker.position(run)) == ("cancelled", None)
    for event in (events.Metric("estimated_seconds", 80.0, 0), events.Checkpoint("x", 25), events.Failed("E", "no")):
        run.append(event)
    studio.resume(ANNA, run.id)
    assert (run.status, studio.worker.position(run)) == ("queued", 1)
    assert run.last_event().seconds == 60, "three quarters of its own estimate are left"
    studio.stop(ANNA, run.id)
    studio.delete(ANNA, run.id)
    assert studio.own_runs(ANNA) == list_runs(studio.root) == []
    [over] = start(studio, ANNA, settings(), photos)
    with pytest.raises(RunError, match=r"is finished\. Only one that ended early"):
        studio.resume(ANNA, ended(over).id)


def test_runs_of_a_killed_studio_wait_again_as_they_were_asked_for(studio: Studio, make_studio, photos: list[str]):
    runs = [run for owner in (ANNA, BERT) for run in start(studio, owner, settings(), photos, seconds=9)]
    after = make_studio().worker
    assert [after.position(run) for run in runs] == [1, 2]


def test_what_is_asked_in_the_studio_is_trained(tiny_model: Path, root: Path, photos: list[str], make_config):
    studio = Studio(root, {"tiny": str(tiny_model)}, Worker(root))
    over, tidy = threading.Event(), studio.worker.after_run
    studio.worker.after_run = lambda run: (tidy(run), over.set())
    asked = make_config(train={"steps": 2}).model_dump(mode="json", exclude={"preset"})
    [run] = start(studio, ANNA, asked, photos, crops=[Crop(0, 0, 64, 64), None, None])
    assert over.wait(300)
    assert run.status == "finished"
    assert (run.path / "model" / "model_index.json").is_file()
    assert not (run.path / "checkpoints").exists(), "they are of no use any more"
