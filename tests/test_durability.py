"""A kill or a power cut at random moments of training, publishing, uploading: nothing half written counts as whole."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from dreambooth import events
from dreambooth.hub import sign_in
from dreambooth.runs.directory import Run
from dreambooth.runs.worker import Worker
from dreambooth.sharing.publish import Publication, publish, read_state
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.studio import Studio
from dreambooth.ui.train.start import start
from tests.powercut import Disk, Moment
from tests.ui.studios import ANNA

pytestmark = pytest.mark.slow

MOMENTS, SEED = 20, 14
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
PICTURES = (".png", ".jpg")


def check_whole(folder: Path) -> None:
    """All that bears its own name can be read to the end."""
    for path in folder.rglob("*"):
        if path.is_symlink() or path.is_dir() or any(".dreambooth-" in part for part in path.parts):
            continue
        if path.suffix in PICTURES:
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".safetensors":
            assert load_file(path), path
        elif path.suffix == ".pt":
            assert torch.load(path, weights_only=True), path
        elif path.suffix == ".json":
            assert json.loads(path.read_text()), path
        elif path.suffix == ".yaml":
            assert yaml.safe_load(path.read_text()), path
        elif path.name not in ("events.jsonl", ".lock", ".publishing.lock"):
            assert path.read_bytes() or path.name.startswith("."), path


def outcomes(moments: list[Moment], tmp_path: Path) -> list[tuple[Moment, Path]]:
    """What each moment leaves after a kill and after a power cut, all that claims to be whole being so."""
    assert len(moments) == MOMENTS + 1
    dice, left = random.Random(SEED), []
    for number, moment in enumerate(moments):
        left.append((moment, moment.after_kill(tmp_path / f"kill-{number}")))
        left.append((moment, moment.after_power_cut(tmp_path / f"cut-{number}", dice)))
    for _, folder in left:
        check_whole(folder)
    return left


def test_a_training_goes_on_to_the_same_weights_from_wherever_it_was_cut_off(make_config, tmp_path, monkeypatch):
    root = tmp_path / "disk"
    root.mkdir()
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(root / "cache"))
    config = make_config(
        train={"steps": 4, "checkpoint_every": 1, "keep_checkpoints": 1, "sample_every": 2},
        prior={"num_images": 2, "steps": 1, "batch_size": 2},
        sampling={"steps": 1, "num_images": 1},
    )
    with Disk(root, MOMENTS, SEED) as disk:
        run = Run.create(config, root / "run")
        list(run.execute())
    whole = (run.path / WEIGHTS).read_bytes()
    left = outcomes(disk.moments, tmp_path)
    for folder in {folder for _, folder in left[-2:]}:
        assert Run(folder / "run").status == "finished", "what was told is there"
        assert (folder / "run" / WEIGHTS).read_bytes() == whole
    resumed = 0
    for moment, folder in left:
        own = folder / "run"
        if "kill" in folder.name or not (own / "config.yaml").exists():
            continue
        monkeypatch.setenv("DREAMBOOTH_CACHE", str(folder / "cache"))
        assert Run.open(own).status in ("queued", "interrupted", "finished"), moment
        assert isinstance(list(Run(own).execute(resume=True))[-1], events.Finished)
        assert (own / WEIGHTS).read_bytes() == whole
        check_whole(folder)
        assert not [path for path in own.rglob(".dreambooth-*")]
        resumed += 1
    assert resumed > MOMENTS / 2


def test_an_upload_is_a_whole_run_or_none(tiny_model, photo_folder, tmp_path):
    root = tmp_path / "disk"
    root.mkdir()
    photos = sorted(map(str, photo_folder.iterdir()))
    settings = {"base_model": str(tiny_model), "subject": {"class_noun": "dog"}}

    def studio(folder: Path) -> Studio:
        return Studio(folder, {"tiny-sd": str(tiny_model)}, Worker(folder, parallel=0), StudioSettings())

    with Disk(root, MOMENTS, SEED) as disk:
        runs = start(studio(root), ANNA, settings, photos, ways="two")
    found = []
    for _, folder in outcomes(disk.moments, tmp_path):
        opened = studio(folder)
        found.append(len(opened.own_runs(ANNA)))
        assert opened.damaged_runs(ANNA) == []
        assert opened.worker.waiting == found[-1]
        for run in opened.own_runs(ANNA):
            assert len(list((run.path / "uploads").glob("*.png"))) == len(photos)
            opened.stop(ANNA, run.id)
            opened.delete(ANNA, run.id)
        assert list(folder.iterdir()) == [], "nothing is left over"
    assert set(found) >= {0, 2}
    assert found[-2:] == [2, 2], "what was told is there"
    assert len(runs) == 2


def test_publishing_is_done_or_plainly_interrupted(hub, make_config, tmp_path):
    root = tmp_path / "disk"
    root.mkdir()
    run = Run.create(make_config(prior={"enabled": False}, train={"steps": 1}), root / "run")
    list(run.execute())
    account = sign_in(hub.add_user("anna"))
    wanted = Publication(repo_id="anna/dog")

    def on_the_hub() -> int:
        """How many commits it has."""
        repo = hub.repos.get(("model", wanted.repo_id))
        return len(repo.commits) if repo else 0

    with Disk(root, MOMENTS, SEED, on_the_hub) as disk:
        list(publish(run, wanted, account))
    states = []
    for moment, folder in outcomes(disk.moments, tmp_path):
        own = Run(folder / "run")
        state = read_state(own.path)
        states.append(state.state if state else None)
        assert own.status == "finished"
        if states[-1] == "published":
            assert moment.seen == on_the_hub(), "nothing was to come"
            assert own.published
        else:
            list(publish(own, wanted, account))
            assert read_state(own.path).state == "published"
        assert not [path for path in own.path.rglob(".dreambooth-*")]
    assert set(states) <= {None, "interrupted", "published"}
    assert states[-2:] == ["published", "published"]
