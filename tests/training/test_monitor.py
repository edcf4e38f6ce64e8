"""What is measured while training, and the rule that picks the best step."""

import dataclasses
import json
import math
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth import events
from dreambooth.errors import DreamBoothError, ModelError, RunError
from dreambooth.evaluation.evaluate import trained_model
from dreambooth.generate import draw as really_draw
from dreambooth.generate import finished_model
from dreambooth.metrics.encoders import load_encoders
from dreambooth.metrics.measures import Measure, best_of, read_measures
from dreambooth.models.adapters import write_step
from dreambooth.runs.directory import Run
from dreambooth.training.monitor import Monitor
from tests import tiny
from tests.metrics.test_encoders import NoFloat64
from tests.training.test_train import assert_equal, weights

pytestmark = pytest.mark.slow

BASE = Measure(0, dino=0.4, clip_i=0.5, clip_t=0.6, pres=0.4, div=0.5)


def measure(step, dino, pres=0.4, clip_t=0.6):
    return replace(BASE, step=step, dino=dino, pres=pres, clip_t=clip_t)


def best(*measures, max_drift=0.25, max_prompt_loss=0.1):
    return best_of([BASE, *measures], 0.8, max_drift, max_prompt_loss).step


def test_the_most_alike_within_both_bounds_is_the_best():
    assert best(measure(1, 0.6), measure(2, 0.75), measure(3, 0.65)) == 2


def test_the_last_is_the_best_unless_another_is_better_by_more_than_chance():
    """From 0.4 to the ceiling of 0.8 a fifth of the way is 0.08 of DINO, and half of it, past the bound of 0.5, a PRES
    of 0.7; a twentieth of 0.6, past the bound of 0.54, is a CLIP-T of 0.51."""
    assert best(measure(1, 0.679), measure(2, 0.6)) == 2
    assert best(measure(1, 0.681), measure(2, 0.6)) == 1
    assert best(measure(1, 0.6), measure(2, 0.6, pres=0.699)) == 2
    assert best(measure(1, 0.6), measure(2, 0.6, pres=0.701)) == 1
    assert best(measure(1, 0.6), measure(2, 0.6, clip_t=0.511)) == 2
    assert best(measure(1, 0.6), measure(2, 0.6, clip_t=0.509)) == 1
    assert best(measure(1, 0.3), measure(2, 0.3)) == 2


def test_drift_is_bounded_by_the_way_to_the_photos():
    """From 0.4 to the ceiling of 0.8 a quarter of the way is 0.5."""
    steps = measure(1, 0.6, pres=0.499), measure(2, 0.7, pres=0.501), measure(3, 0.5, pres=0.8)
    assert best(*steps) == 1
    assert best(*steps, max_drift=0.3) == 2


def test_a_tenth_of_the_prompt_fidelity_may_be_lost():
    steps = measure(1, 0.6, clip_t=0.541), measure(2, 0.7, clip_t=0.539), measure(3, 0.5, clip_t=0.2)
    assert best(*steps) == 1
    assert best(*steps, max_prompt_loss=0.2) == 2


def test_with_none_within_the_bounds_the_least_excess_wins():
    assert best(measure(1, 0.6, pres=0.55), measure(2, 0.9, pres=0.8)) == 1


def test_the_base_is_picked_only_alone():
    assert best(measure(1, 0.2)) == 1
    assert best() == 0


def test_class_pictures_nearer_than_the_photos_leave_no_way_to_drift():
    steps = [BASE, measure(1, 0.45), measure(2, 0.5, pres=0.41)]
    assert best_of(steps, 0.3, 0.25, 0.1).step == 1


@pytest.fixture
def measured(make_config):
    def make(**changes):
        sampling = {"steps": 2, "num_images": 2, "prompts": ["a {identifier} {class_noun} on a beach"]}
        sampling |= changes.pop("sampling", {})
        train = {"sample_every": 1, "steps": 4} | changes.pop("train", {})
        return make_config(sampling=sampling, train=train, **changes)

    return make


def test_every_sampling_is_measured_from_the_base_on(measured, tmp_path):
    run = Run.create(measured(), tmp_path / "run")
    happened = list(run.execute())
    named = {(e.name, e.step): e.value for e in happened if isinstance(e, events.Metric)}
    found = read_measures(run.path)
    assert [m.step for m in found.measures] == [0, 1, 2, 3, 4]
    assert found.best in (1, 2, 3, 4)
    assert found.encoders["dino"].startswith("toybox")
    for m in found.measures:
        for name in ("dino", "clip_i", "clip_t", "pres", "div"):
            assert getattr(m, name) == named[name, m.step]


def test_measures_are_those_of_the_pictures_on_disk(measured, tmp_path):
    """Against plain loops over the files that the run left."""
    config = measured()
    run = Run.create(config, tmp_path / "run")
    happened = list(run.execute())
    encoders = load_encoders(config.evaluation, config.base_model, torch.device("cpu"))

    def opened(paths):
        return [Image.open(path).convert("RGB") for path in paths]

    photos = opened(sorted((run.path / "photos").glob("*.png")))
    at = {}
    for e in happened:
        if isinstance(e, events.Image) and e.step == 2:
            at.setdefault(e.prompt, []).append(run.path / e.path)
    assert {len(paths) for paths in at.values()} == {2}
    real = {"dino": encoders.dino.embed(photos), "clip": encoders.clip.embed(photos)}
    kin = encoders.dino.embed(opened(at.pop("a photo of a dog")))
    described = {"a photo of sks dog": "a photo of dog", "a sks dog on a beach": "a dog on a beach"}
    dino, clip_i, clip_t, div = [], [], [], []
    for prompt, paths in at.items():
        pictures = opened(paths)
        text = encoders.clip.embed_texts([described[prompt]])[0]
        for looks, likeness in ((encoders.dino.embed(pictures), dino), (encoders.clip.embed(pictures), clip_i)):
            name = "dino" if likeness is dino else "clip"
            likeness += [float(np.dot(a, b)) for a in looks for b in real[name]]
        clip_t += [float(np.dot(look, text)) for look in encoders.clip.embed(pictures)]
        div += encoders.perceptual.distances([tuple(pictures)]).tolist()
    m = read_measures(run.path).measures[2]
    assert m.dino == pytest.approx(np.mean(dino), abs=1e-5)
    assert m.clip_i == pytest.approx(np.mean(clip_i), abs=1e-5)
    assert m.clip_t == pytest.approx(np.mean(clip_t), abs=1e-5)
    assert m.pres == pytest.approx(np.mean([np.dot(a, b) for a in kin for b in real["dino"]]), abs=1e-5)
    assert m.div == pytest.approx(np.mean(div), abs=1e-5)
    pairs = [np.dot(real["dino"][i], real["dino"][j]) for i in range(len(photos)) for j in range(i)]
    assert read_measures(run.path).ceiling == pytest.approx(np.mean(pairs), abs=1e-5)


def test_prompts_without_the_subject_change_no_figure_of_it(measured, tmp_path):
    """Whole words name it: `sksville` is no `sks`. One like the class prompt counts once, for the class."""
    alone = ["a {identifier} {class_noun} on a beach"]
    others = [
        "a photo of a cat",
        "a {class_noun} in the snow",
        "a {class_noun} in sksville",
        "a photo of a {class_noun}",
    ]
    found = []
    for number, prompts in enumerate((alone, others[:2] + alone + others[2:])):
        config = measured(train={"steps": 2}, sampling={"prompts": prompts})
        run = Run.create(config, tmp_path / str(number))
        list(run.execute())
        found.append(read_measures(run.path))
    for one, two in zip(found[0].measures, found[1].measures, strict=True):
        assert asdict(one) == pytest.approx(asdict(two), abs=1e-4)


def test_a_measured_training_asks_no_device_for_64_bits(measured, tmp_path):
    run = Run.create(measured(train={"steps": 2}), tmp_path / "run")
    with NoFloat64():
        list(run.execute())
    assert read_measures(run.path).best


def black(steps, prompts):
    """`draw` with black pictures of these prompts at the n-th samplings, each of which is one batch."""
    calls = iter(range(100))

    def draw(pipe, texts, *rest, **options):
        images, number = really_draw(pipe, texts, *rest, **options), next(calls)
        return [
            Image.new("RGB", image.size) if number in steps and any(word in text for word in prompts) else image
            for image, text in zip(images, texts, strict=True)
        ]

    return draw


def test_blank_pictures_are_left_out_as_an_evaluation_leaves_them_out(measured, tmp_path, monkeypatch):
    """The figures are those of the others; a step with none of the class left has none."""
    found = {}
    for name, prompts in (("whole", []), ("some", ["beach"]), ("class", ["of a dog"])):
        monkeypatch.setattr("dreambooth.training.samples.draw", black({1}, prompts))
        run = Run.create(measured(train={"steps": 2, "sample_every": 1}), tmp_path / name)
        told = [e.message for e in run.execute() if isinstance(e, events.Warning)]
        found[name] = ({m.step: m for m in read_measures(run.path).measures}, told)
    whole, some, without = (found[name][0] for name in ("whole", "some", "class"))
    assert set(whole) == set(some) == {0, 1, 2}
    assert (some[1].pres, some[2]) == (whole[1].pres, whole[2])
    assert some[1].dino != whole[1].dino
    assert (
        "2 of 6 sample pictures of step 1 are left out: blank, since the model's arithmetic failed." in found["some"][1]
    )
    assert set(without) == {0, 2}
    assert any("of step 1 are left out, too many for measuring this step" in told for told in found["class"][1])


def test_a_base_model_that_draws_nothing_can_not_be_compared_with(measured, tmp_path, monkeypatch):
    monkeypatch.setattr("dreambooth.training.samples.draw", black({0}, ["dog"]))
    run = Run.create(measured(train={"steps": 2}), tmp_path / "run")
    with pytest.raises(
        ModelError, match=r"draws blank pictures alone.* Set train\.mixed_precision: no, or evaluation\."
    ):
        list(run.execute())


def test_measuring_changes_no_weight(measured, tmp_path):
    for name, on in (("with", True), ("without", False)):
        list(Run.create(measured(evaluation={"while_training": on}), tmp_path / name).execute())
    assert_equal(weights(tmp_path / "with"), weights(tmp_path / "without"))
    assert read_measures(tmp_path / "without") is None


@pytest.fixture
def scripted(monkeypatch):
    """A function that lets the sample pictures of each step say a DINO, between the base's 0.2 and a ceiling of 0.8."""

    def script(by_step):
        monkeypatch.setattr("dreambooth.metrics.metrics.ceiling", lambda embeddings: np.array([0.8]))
        monkeypatch.setattr(
            Monitor, "_measured", lambda self, step, pictures: measure(step, ({0: 0.2} | by_step)[step])
        )

    return script


def assert_best(run, step, config, folder):
    """`best/` is, bit for bit, what a training of so many steps ends with."""
    assert read_measures(run.path).best == step
    assert finished_model(run.path, "best") == run.path / "best"
    assert finished_model(run.path, "last") == run.path / "model"
    assert trained_model(run.path, config, "best").step == step
    assert trained_model(run.path, config).step == config.train.steps
    short = Run.create(config.model_copy(update={"train": config.train.model_copy(update={"steps": step})}), folder)
    list(short.execute())
    kept = folder / "kept"
    shutil.copytree(run.path / "best", kept / "model")
    assert_equal(weights(kept), weights(short.path))


@pytest.mark.parametrize(
    ("dino", "best", "ema"),
    [((0.70, 0.62, 0.54, 0.46), 1, None), ((0.7, 0.3, 0.75, 0.3), 3, 0.5)],
    ids=["slow decline", "overtaken, averaged"],
)
def test_the_best_model_is_that_of_the_best_step(measured, scripted, tmp_path, dino, best, ema):
    """Each step of a slow decline is within chance of the one before it, so for a while the newest is the best."""
    scripted(dict(enumerate(dino, 1)))
    config = measured(train={"ema_decay": ema})
    run = Run.create(config, tmp_path / "run")
    list(run.execute())
    assert_best(run, best, config, tmp_path / "short")


def test_the_best_model_is_right_after_a_resume(measured, scripted, tmp_path):
    scripted({1: 0.70, 2: 0.62, 3: 0.54, 4: 0.46})
    config = measured()
    run = Run.create(config, tmp_path / "run")
    happened = []
    for event in run.execute(should_stop=lambda: sum(isinstance(e, events.Step) for e in happened) == 2):
        happened.append(event)
    assert run.status == "cancelled"
    list(run.execute(resume=True))
    assert_best(run, 1, config, tmp_path / "short")


def test_what_a_resume_trains_again_is_measured_again(measured, scripted, tmp_path):
    """Cut off after step 3, with the checkpoint at 2, and trained a little differently: the old step 3 is forgotten."""
    scripted({1: 0.3, 2: 0.4, 3: 0.79})
    config = measured()
    run = Run.create(config, tmp_path / "run")
    for event in run.execute():
        if isinstance(event, events.Step) and event.step == 4:
            break
    assert run.status == "interrupted"
    assert read_measures(run.path).best == 3
    scripted({1: 0.3, 2: 0.4, 3: 0.2, 4: 0.6})
    list(run.execute(resume=True))
    assert [round(m.dino, 2) for m in read_measures(run.path).measures] == [0.2, 0.3, 0.4, 0.2, 0.6]
    assert not (run.path / "best").exists()


def test_without_its_weights_the_best_step_is_told_of_and_refused(measured, scripted, tmp_path):
    scripted({1: 0.70, 2: 0.62, 3: 0.54, 4: 0.46})
    run = Run.create(measured(), tmp_path / "run")
    happened = []
    for event in run.execute():
        happened.append(event)
        if isinstance(event, events.Step) and event.step == 3:
            (run.path / "checkpoints" / "best.pt").unlink()
    assert any(isinstance(e, events.Warning) and "Step 1 did best" in e.message for e in happened)
    assert finished_model(run.path, "last") == run.path / "model"
    with pytest.raises(RunError, match=r"Step 1 did best, but nothing of it is kept.*--which last"):
        finished_model(run.path, "best")


@pytest.mark.parametrize("held", [2, None])
def test_another_steps_model_is_not_taken_for_the_best(measured, scripted, tmp_path, held):
    """As an earlier version left it, which kept the model of step 2 and did not say so."""
    scripted({1: 0.70, 2: 0.62, 3: 0.54, 4: 0.46})
    config = measured()
    run = Run.create(config, tmp_path / "run")
    list(run.execute())
    (run.path / "best" / "step.json").unlink()
    if held:
        write_step(run.path / "best", held)
    for taken in (lambda: finished_model(run.path, "best"), lambda: trained_model(run.path, config, "best")):
        with pytest.raises(RunError, match=r"Step 1 did best, but best/ .*--which last"):
            taken()
    assert trained_model(run.path, config).step == 4


def test_of_several_subjects_the_last_step_is_the_best(measured, scripted, photo_folder, tmp_path):
    """The first subject alone is measured: whatever becomes of it, the others may still be learned."""
    other = {"photos": str(photo_folder), "identifier": "ohwx", "class_noun": "cat"}
    scripted({1: 0.70, 2: 0.62, 3: 0.54, 4: 0.46})
    config = measured(more_subjects=[other])
    run = Run.create(config, tmp_path / "run")
    list(run.execute())
    found, asked = read_measures(run.path), config.evaluation
    assert best_of(found.measures, found.ceiling, asked.max_drift, asked.max_prompt_loss).step == 1, (
        "by the first alone"
    )
    assert found.best == 4
    assert not (run.path / "best").exists()


def test_stopped_and_resumed_measures_and_marks_the_same(measured, tmp_path):
    config = measured()
    whole, parts = Run.create(config, tmp_path / "whole"), Run.create(config, tmp_path / "parts")
    list(whole.execute())
    happened = []
    for event in parts.execute(should_stop=lambda: any(isinstance(e, events.Checkpoint) for e in happened)):
        happened.append(event)
    assert parts.status == "cancelled"
    list(parts.execute(resume=True))
    assert read_measures(whole.path) == read_measures(parts.path)


def test_without_a_better_one_training_ends_early(measured, tmp_path):
    run = Run.create(measured(train={"steps": 12}, evaluation={"patience": 2}), tmp_path / "run")
    happened = list(run.execute())
    found = read_measures(run.path)
    last = found.measures[-1].step
    assert isinstance(happened[-1], events.Finished)
    assert last == 12 or last - found.best == 2
    assert [e.step for e in happened if isinstance(e, events.Step)] == list(range(1, last + 1))
    assert list(run.execute(resume=True))[-1].path == "model", "resumed, it does not go on past its end"
    assert read_measures(run.path) == found


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_counts_the_samplings_since_the_best(patience, measured, tmp_path, monkeypatch):
    monkeypatch.setattr("dreambooth.training.monitor.best_of", lambda measures, *_: measures[:2][-1])
    run = Run.create(measured(train={"steps": 6}, evaluation={"patience": patience}), tmp_path / "run")
    list(run.execute())
    assert [m.step for m in read_measures(run.path).measures] == list(range(patience + 2))


def test_one_photo_is_trained_on_but_not_measured(measured, tmp_path):
    photos = tiny.photos(tmp_path / "photos", n=1)
    run = Run.create(measured(subject={"photos": str(photos), "class_noun": "dog"}), tmp_path / "run")
    warnings = [e.message for e in run.execute() if isinstance(e, events.Warning)]
    assert any("not measured" in message for message in warnings)
    assert run.status == "finished"


def test_encoders_that_cannot_be_had_stop_the_run_before_a_model_is_loaded(measured, tmp_path):
    run = Run.create(measured(evaluation={"dino": "nobody/nothing"}), tmp_path / "run")
    with pytest.raises(DreamBoothError, match=r"nobody/nothing.*while_training: false"):
        list(run.execute())
    assert not any(isinstance(e, events.Stage) and e.name == "load model" for e in run.events())


def test_a_run_that_began_unmeasured_ends_all_the_same(measured, tmp_path, monkeypatch):
    """Its last sampling is cut short by a stop, and drawn when it goes on."""
    run = Run.create(measured(train={"steps": 2, "sample_every": 2, "checkpoint_every": 1}), tmp_path / "run")
    happened = []
    for event in run.execute(should_stop=lambda: any(isinstance(e, events.Step) for e in happened)):
        happened.append(event)
    (run.path / "measures.json").unlink()
    monkeypatch.setattr("dreambooth.training.samples.MAX_BATCH", 1)
    happened.clear()
    for event in run.execute(resume=True, should_stop=lambda: any(isinstance(e, events.Image) for e in happened)):
        happened.append(event)
    assert run.status == "cancelled"
    assert read_measures(run.path) is None
    list(run.execute(resume=True))
    assert run.status == "finished"
    assert [m.step for m in read_measures(run.path).measures] == [2]


@pytest.mark.parametrize("step", [2, 4])
def test_a_stop_within_a_sampling_loses_no_measure(measured, tmp_path, monkeypatch, step):
    """Stopped between its pictures, at the last step too: resumed, it measures what the whole training does."""
    config = measured()
    monkeypatch.setattr("dreambooth.training.samples.MAX_BATCH", 3)
    whole, parts = Run.create(config, tmp_path / "whole"), Run.create(config, tmp_path / "parts")
    list(whole.execute())
    happened = []

    def drawing():
        return isinstance(happened[-1], events.Image) and happened[-1].step == step

    for event in parts.execute(should_stop=lambda: bool(happened) and drawing()):
        happened.append(event)
    assert happened[-1].step == step
    assert parts.status == "cancelled"
    assert [m.step for m in read_measures(parts.path).measures] == list(range(step))
    list(parts.execute(resume=True))
    assert read_measures(whole.path) == read_measures(parts.path)
    assert_equal(weights(whole.path), weights(parts.path))
    assert trained_model(parts.path, config).step == 4


def test_pictures_that_were_lost_are_drawn_when_it_goes_on(measured, tmp_path):
    run = Run.create(measured(evaluation={"while_training": False}), tmp_path / "run")
    happened = []
    for event in run.execute(should_stop=lambda: sum(isinstance(e, events.Step) for e in happened) == 2):
        happened.append(event)
    lost = sorted((run.path / "samples").glob("step-000002-*"))
    before = lost[0].read_bytes()
    lost[0].unlink()
    list(run.execute(resume=True))
    assert lost[0].read_bytes() == before


def whole_measures() -> dict:
    figures = {"dino": 0.5, "clip_i": 1, "clip_t": 0.25, "pres": 0.25, "div": None}
    return {
        "ceiling": 0.75,
        "encoders": {"dino": "d"},
        "best": 5,
        "measures": [{"step": 0} | figures, {"step": 5} | figures],
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"best": 1}',
        "[]",
        "null",
        "",
        "{",
        "[" * 99_999,
        *(
            json.dumps(whole_measures() | change)
            for change in (
                {"measures": []},
                {"measures": {}},
                {"measures": [5]},
                {"best": 4},
                {"best": "5"},
                {"best": True},
                {"ceiling": math.nan},
                {"ceiling": "0.75"},
                {"encoders": {"dino": 1}},
                {"encoders": []},
                {"more": 1},
                {"measures": whole_measures()["measures"][::-1]},
                {"measures": whole_measures()["measures"] * 2},
                {"measures": [whole_measures()["measures"][1] | {"dino": math.inf}]},
                {"measures": [whole_measures()["measures"][1] | {"pres": "<b>"}]},
                {"measures": [whole_measures()["measures"][1] | {"step": -5}]},
                {"measures": [whole_measures()["measures"][1] | {"step": 5.5}]},
            )
        ),
    ],
)
def test_damaged_measures_are_told(tmp_path, text):
    (tmp_path / "measures.json").write_text(text)
    with pytest.raises(RunError, match=r"measures\.json can't be read") as told:
        read_measures(tmp_path)
    assert len(str(told.value).splitlines()) == 1


def test_whole_measures_are_read_as_they_were_written(tmp_path):
    (tmp_path / "measures.json").write_text(json.dumps(whole_measures()))
    found = read_measures(tmp_path)
    assert (found.base.step, found.best, found.base.clip_i, found.base.div) == (0, 5, 1.0, None)
    assert json.loads(json.dumps(dataclasses.asdict(found))) == whole_measures()
