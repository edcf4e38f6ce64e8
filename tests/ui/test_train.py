"""The Train tab's handlers, without a browser: starting, looking, what is remembered, and what is refused."""

from pathlib import Path

import gradio as gr
import pytest

from dreambooth import events
from dreambooth.config import TOYBOX
from dreambooth.errors import ModelError
from dreambooth.runs import Run
from dreambooth.ui import estimate, train, upload
from dreambooth.ui.estimate import Estimates
from dreambooth.ui.settings import Choices, recipe_values
from dreambooth.ui.studio import Studio
from dreambooth.ui.train import Actions
from tests.ui.studios import ANNA, BERT, finished_runs, measured
from tests.ui.studios import studio as make_studio

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def studio(tmp_path: Path, tiny_model: Path) -> Studio:
    return make_studio(tmp_path / "runs", tiny_model)


def page(studio: Studio) -> Actions:
    with gr.Blocks():
        return _actions(train.build(studio, gr.Textbox(), upload.build(studio))[1])


def _actions(refresh: dict) -> Actions:
    return refresh["fn"].__self__


@pytest.fixture
def actions(studio: Studio) -> Actions:
    return page(studio)


@pytest.fixture
def photos(photo_folder: Path) -> list[tuple[str, None]]:
    return [(str(path), None) for path in sorted(photo_folder.iterdir())]


def shown_by(actions: Actions) -> list:
    """What the form shows at first, on a small run."""
    [base_model, *values] = recipe_values(actions.studio, actions.form, TOYBOX)
    [steps, rate, prior, _, text, seed], more = values[:6], values[6:]
    del steps
    return [TOYBOX, base_model, 3, rate, prior, 4, text, seed, False, *more]


def test_the_page_and_a_caller_start_the_same_run(actions: Actions, photos: list):
    [first] = actions.start_from_page(ANNA, photos, "ohwx", "dog", {}, False, *shown_by(actions))
    [second] = actions.start_training(ANNA, photos, "ohwx", "dog", TOYBOX, "tiny-sd", 3, class_images=4)
    configs = [actions.studio.own_run(ANNA, run).config for run in (first, second)]
    same = {"subject": configs[0].subject}
    assert configs[0].model_copy(update=same) == configs[1].model_copy(update=same)
    assert configs[0].train.steps == 3
    assert configs[0].prior.num_images == 4
    assert actions.run_status(ANNA, second)["position"] == 2


def test_crops_and_further_settings_reach_the_run(actions: Actions, photos: list):
    more = {"train": {"flip": True}, "sampling": {"prompts": ["a {class_noun} on a beach"]}}
    [run] = actions.start_training(
        ANNA, photos, "sks", "dog", crops=[[10, 0, 74, 64], None, None], seed=7, text_encoder=False, more=more
    )
    config = actions.studio.own_run(ANNA, run).config
    assert config.subject.crops == {"00.png": (10, 0, 74, 64)}
    assert (config.seed, config.train.text_encoder, config.train.flip) == (7, False, True)
    assert config.sampling.prompts == ["a {class_noun} on a beach"]


def test_both_ways_gives_two_runs_that_tell_of_each_other(actions: Actions, photos: list):
    ids = actions.start_training(ANNA, photos, "sks", "dog", both_ways=True)
    with_ppl, without = (actions.studio.own_run(ANNA, run) for run in ids)
    assert (with_ppl.config.prior.active, without.config.prior.active) == (True, False)
    assert actions.run_status(ANNA, ids[0])["partner"] == ids[1]
    new = actions.watch(ANNA, ids[0], None)
    assert "without PPL is queued" in new[actions.live.headline]
    assert f"data-run='{ids[1]}'" in new[actions.live.headline]


@pytest.mark.parametrize(("change", "says"), [
    ({"recipe": "no"}, "preset"), ({"base_model": "/etc"}, "not on offer"), ({"steps": 0}, "train.steps = 0"),
    ({"more": {"subject": {"photos": "/"}}}, "Photos tab"), ({"class_noun": " "}, "class noun is empty"),
    ({"crops": [None]}, "Give 3 boxes"), ({"photos": None}, "no photos yet"), ({"owner": "anna"}, "no id yet"),
])  # fmt: skip
def test_a_bad_start_is_refused_in_a_sentence_and_leaves_nothing(
    actions: Actions, photos: list, change: dict, says: str
):
    asked = {"owner": ANNA, "photos": photos, "identifier": "sks", "class_noun": "dog"} | change
    with pytest.raises(gr.Error, match=says):
        actions.start_training(**asked)
    assert actions.studio.own_runs(ANNA) == []


def test_nobody_touches_anothers_run(actions: Actions, photo_folder: Path):
    [run] = finished_runs(actions.studio, photo_folder)
    for act in (actions.run_status, actions.stop_training, actions.resume_training, actions.delete_run):
        with pytest.raises(gr.Error, match="You have no such run"):
            act(BERT, run.id)
    assert actions.runs(BERT) == []
    new = actions.watch(BERT, run.id, None)
    assert "You have no such run" in new[actions.live.headline]
    assert new[actions.live.samples] == new[actions.live.curves] == ""


def test_a_run_is_stopped_resumed_and_deleted(actions: Actions, photos: list):
    [run] = actions.start_training(ANNA, photos, "sks", "dog")
    with pytest.raises(gr.Error, match="Stop it before you delete it"):
        actions.delete_run(ANNA, run)
    actions.stop_training(ANNA, run)
    assert actions.run_status(ANNA, run)["status"] == "cancelled"
    actions.resume_training(ANNA, run)
    assert actions.run_status(ANNA, run)["status"] == "queued"
    with pytest.raises(gr.Error, match="Only one that ended early"):
        actions.resume_training(ANNA, run)
    actions.stop_training(ANNA, run)
    actions.delete_run(ANNA, run)
    assert actions.runs(ANNA) == []
    chosen, history, *_ = actions.refresh(ANNA, run, 0)
    assert chosen is None
    assert "will be listed here" in history


def looked_at(actions: Actions, run: Run, seen: object = None) -> dict:
    new = actions.watch(ANNA, run.id, seen)
    assert isinstance(new, dict), "nothing new"
    return new


def unchanged(actions: Actions, run: Run, seen: object) -> bool:
    return all(part == gr.skip() for part in actions.watch(ANNA, run.id, seen))


def test_a_look_sends_what_is_new_and_nothing_twice(actions: Actions, photos: list, photo_folder: Path):
    live = actions.live
    [waiting] = actions.start_training(ANNA, photos, "sks", "dog")
    run = actions.studio.own_run(ANNA, waiting)
    new = looked_at(actions, run)
    assert "next in the queue" in new[live.headline]
    assert new[live.stop].visible
    assert not new[live.delete].visible
    assert unchanged(actions, run, new[live.seen])

    run.append(events.Stage("train", 3))
    for step in (1, 2):
        run.append(events.Step(step, 1.0, 1.0, 0.5, 1e-4, 0.5))
    with run._held():  # as while it trains
        new = looked_at(actions, run, new[live.seen])
        assert "step 2 of 3" in new[live.headline]
        assert "<svg" in new[live.curves]
        assert "come here every" in new[live.samples]
        before = new[live.seen]
        run.append(events.Step(3, 1.0, 1.0, 0.5, 1e-4, 0.5))
        new = looked_at(actions, run, before)
        assert new.keys() == {live.headline, live.curves, live.seen}
        before = new[live.seen]
        path = run.path / "samples" / "a.png"
        path.parent.mkdir()
        path.write_bytes((run.path / "uploads" / "00.png").read_bytes())
        run.append(events.Image("samples/a.png", "a photo of sks dog", 0, 3))
        new = looked_at(actions, run, before)
        assert new[live.samples].count("<img") == 1
        assert "gradio_api/file=" in new[live.samples]
        assert str(actions.studio.root) not in str(new)
        assert new[live.history].count("<img") == 1
    run.append(events.Finished("model", 2.0))
    new = looked_at(actions, run, new[live.seen])
    assert new[live.to_pictures].visible
    assert new[live.delete].visible
    assert unchanged(actions, run, new[live.seen])

    finished_runs(actions.studio, photo_folder)
    assert unchanged(actions, run, new[live.seen]), "the list is drawn anew when the tab is opened"


def test_a_look_draws_what_was_measured_once_it_is_there(actions: Actions, photos: list):
    live = actions.live
    run = actions.studio.own_run(ANNA, actions.start_training(ANNA, photos, "sks", "dog")[0])
    run.append(events.Stage("train", 100))
    run.append(events.Image("samples/a.png", "a photo of sks dog", 0, 50))
    with run._held():
        new = looked_at(actions, run)
        assert "measured as they come" in new[live.progress]
        measured(run, 0.2, 0.3, best=50)
        run.append(events.Metric("dino", 0.5, 50))
        new = looked_at(actions, run, new[live.seen])
        assert new[live.progress].count("<svg") == 4
        assert "best</b>" in new[live.samples], "its row is marked"
        run.append(events.Metric("clip_i", 0.5, 50))
        new = looked_at(actions, run, new[live.seen])
        assert new.keys() == {live.headline, live.seen}, "the rest of them changes nothing"
    status = actions.run_status(ANNA, run.id)
    assert (status["best_step"], len(status["measures"])) == (50, 2)


def test_a_look_tells_of_another_run_of_the_visitor_that_moves_on(actions: Actions, photos: list):
    first, second = (
        actions.studio.own_run(ANNA, actions.start_training(ANNA, photos, "sks", "dog")[0]) for _ in range(2)
    )
    seen = looked_at(actions, first)[actions.live.seen]
    second.append(events.Cancelled(0))
    new = looked_at(actions, first, seen)
    assert "cancelled" in new[actions.live.history]


def test_a_run_that_is_gone_is_told_once(actions: Actions, photo_folder: Path):
    [run] = finished_runs(actions.studio, photo_folder)
    seen = looked_at(actions, run)[actions.live.seen]
    run.delete()
    new = looked_at(actions, run, seen)
    assert "You have no such run" in new[actions.live.headline]
    assert not new[actions.live.delete].visible
    assert unchanged(actions, run, new[actions.live.seen])
    assert "Nothing trains yet" in actions.watch(ANNA, None, new[actions.live.seen])[actions.live.headline]
    assert all(part == gr.skip() for part in actions.watch("", None, None))


def test_an_estimate_comes_once_there_are_photos_and_is_remembered(actions: Actions, photos: list):
    values = shown_by(actions)
    assert list(actions.show_estimate(None, *values)) == [estimate.FIRST_PHOTOS]
    estimating, shown = actions.show_estimate(photos, *values)
    assert "Estimating" in estimating
    assert "<dt>Memory</dt>" in shown
    figures = actions.estimate(TOYBOX, "tiny-sd", 3, class_images=4)
    assert figures["peak_bytes"] > 0
    settings = Choices(*values[: len(Choices._fields)]).as_settings(actions.studio, None)
    assert actions.estimates.known(settings).seconds == figures["seconds"]
    [run] = actions.start_training(ANNA, photos, "sks", "dog", TOYBOX, "tiny-sd", 3, class_images=4)
    assert actions.studio.own_run(ANNA, run).last_event().seconds == figures["seconds"]
    both = actions.estimates.of(settings, both_ways=True)
    assert both.seconds > figures["seconds"]


def test_what_is_wrong_with_the_form_is_said_in_its_place(actions: Actions, photos: list):
    values = shown_by(actions)
    values[2] = 0
    _, shown = actions.show_estimate(photos, *values)
    assert "train.steps = 0" in shown
    with pytest.raises(gr.Error, match=r"train\.steps"):
        actions.estimate(steps=0)


def test_no_base_model_is_downloaded_for_an_estimate(studio: Studio):
    settings = {"preset": "sd15-object", "base_model": SD15}
    with pytest.raises(ModelError, match="is not on this machine yet"):
        Estimates().of(settings)


def test_photos_of_people_ask_for_consent_on_a_public_studio():
    assert train._ask_for_consent("a young woman", TOYBOX).visible
    assert train._ask_for_consent("dog", "sd15-person").visible
    assert not train._ask_for_consent("dog", TOYBOX).visible
    assert not train._ask_for_consent(None, TOYBOX).visible
