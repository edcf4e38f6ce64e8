"""The judge: it learns from renders alone, the same at every training, and says where it stands."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dreambooth.errors import ModelError
from dreambooth.toybox import identities, world
from dreambooth.toybox.pretrain import data, judge

CPU = torch.device("cpu")


def test_it_learns_what_its_pictures_show(judged):
    known = judge.labels(12)
    pictures = np.concatenate(data.load_pictures(judged))[known[:, 0]]
    right = judge.verdicts(judge.load_judge(judged), pictures) == known[:, 1:]
    assert right.mean(0).min() > 0.9


def test_labels_are_those_of_pictures_of_one_thing():
    known = judge.labels(60)
    scenes = [data.scene(i)[0] for i in range(60)]
    assert known[:, 0].tolist() == [i for i, scene in enumerate(scenes) if len(scene.subjects) == 1]
    for i, noun, place in known:
        assert identities.CLASSES[noun] == scenes[i].subjects[0].class_noun
        assert list(world.CONTEXTS)[place] == scenes[i].context


def test_a_seed_gives_the_same_judge_again(work):
    made = []
    for seed in (3, 3, 4):
        for path in work.glob("judge*.pt"):
            path.unlink()
        judge.train_judge(work, 8, CPU, batch=4, seed=seed)
        made.append(torch.cat([p.flatten() for p in judge.load_judge(work).parameters()]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_held_out_scenes_are_of_one_unseen_thing_each():
    scenes = judge.held_out_scenes(50)
    assert all(s.seed >= world.HELD_OUT_FROM for scene in scenes for s in scene.subjects)
    assert all(len(scene.subjects) == 1 for scene in scenes)
    assert {scene.style for scene in scenes} == set(world.STYLES)
    photos = judge.held_out_scenes(50, style="photo")
    assert {scene.style for scene in photos} == {"photo"}
    assert [scene.subjects for scene in photos] == [scene.subjects for scene in scenes]
    assert any(len(scene.subjects) == 2 for scene in judge.held_out_scenes(50, two_subjects=0.5))


def test_a_missing_or_unfinished_judge_says_how_to_train_it(work, tmp_path):
    with pytest.raises(ModelError, match=r"judge\.pt is not there.* python -m dreambooth\.toybox\.pretrain\.judge"):
        judge.load_judge(tmp_path)
    judge.train_judge(work, 8, CPU, batch=4)
    state = torch.load(work / "judge.pt", weights_only=True)
    torch.save(state | {"step": 1}, work / "judge.pt")
    with pytest.raises(ModelError, match="1 of 2 steps"):
        judge.load_judge(work)


def test_the_command_draws_trains_and_prints_its_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "FRESH", 6)
    accuracy = judge.held_out_accuracy
    monkeypatch.setattr(judge, "held_out_accuracy", lambda model: accuracy(model, 4))
    result = CliRunner().invoke(judge.main, ["--work", str(tmp_path), "--samples", "64"])
    assert result.exit_code == 0, result.output
    for name in ("photos", "all styles"):
        assert f"held-out renders, {name}: class " in result.output
    assert len(list((tmp_path / "pictures").glob("*.npy"))) == 1
