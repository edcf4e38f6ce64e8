"""The runs in the Train tab: looking, what is done with them, and what is told once."""

from pathlib import Path

import gradio as gr
import pytest

from dreambooth import events
from dreambooth.config.names import TOYBOX
from dreambooth.runs.directory import Run
from dreambooth.ui.train.actions import Actions
from dreambooth.ui.train.runs import Runs
from tests.ui.studios import ANNA, BERT, finished_runs, measured


def test_a_damaged_run_is_listed_with_delete_as_its_only_button(actions: Actions, runs: Runs, photos: list):
    good, bad = (actions.start_training(ANNA, photos, "sks", "dog", TOYBOX, "tiny-sd", 3)[0] for _ in range(2))
    (actions.studio.root / bad / "config.yaml").write_bytes(bytes(500))
    live = runs.live
    assert [(run["id"], run["status"]) for run in runs.runs(ANNA)] == [(good, "queued"), (bad, "damaged")]
    assert runs.run_status(ANNA, bad)["text"].startswith("This run is damaged: its settings can't be read.")
    chosen, listed, *_ = runs.refresh(ANNA, bad, 0)
    assert chosen == bad
    assert f"data-run='{bad}' aria-current='true'" in listed
    assert listed.count("chip damaged") == 1
    new = runs.watch(ANNA, bad, None)
    assert "This run is damaged" in new[live.headline]
    buttons = (live.stop, live.resume, live.delete, live.to_pictures)
    assert [new[button].visible for button in buttons] == [False, False, True, False]
    assert set(map(str, runs.watch(ANNA, bad, new[live.seen]))) == {str(gr.skip())}, "it is said once"
    with pytest.raises(gr.Error, match="no such run"):
        runs.run_status(BERT, bad)
    assert runs.runs(BERT) == []
    runs.delete_run(ANNA, bad)
    assert [run["id"] for run in runs.runs(ANNA)] == [good]
    assert runs.watch(ANNA, bad, new[live.seen])[live.delete].visible is False


def test_both_ways_gives_two_runs_that_tell_of_each_other(actions: Actions, runs: Runs, photos: list):
    ids = actions.start_training(ANNA, photos, "sks", "dog", ways="two")
    with_ppl, without = (actions.studio.own_run(ANNA, run) for run in ids)
    assert (with_ppl.config.prior.active, without.config.prior.active) == (True, False)
    assert runs.run_status(ANNA, ids[0])["partner"] == ids[1]
    new = runs.watch(ANNA, ids[0], None)
    assert "without PPL is queued" in new[runs.live.headline]
    assert f"data-run='{ids[1]}'" in new[runs.live.headline]


def test_nobody_touches_anothers_run(actions: Actions, runs: Runs, photo_folder: Path):
    [run] = finished_runs(actions.studio, photo_folder)
    for act in (runs.run_status, runs.stop_training, runs.resume_training, runs.delete_run):
        with pytest.raises(gr.Error, match="You have no such run"):
            act(BERT, run.id)
    assert runs.runs(BERT) == []
    new = runs.watch(BERT, run.id, None)
    assert "You have no such run" in new[runs.live.headline]
    assert new[runs.live.samples] == new[runs.live.curves] == ""


def test_a_run_is_stopped_resumed_and_deleted(actions: Actions, runs: Runs, photos: list):
    [run] = actions.start_training(ANNA, photos, "sks", "dog")
    with pytest.raises(gr.Error, match="Stop it before you delete it"):
        runs.delete_run(ANNA, run)
    runs.stop_training(ANNA, run)
    assert runs.run_status(ANNA, run)["status"] == "cancelled"
    runs.resume_training(ANNA, run)
    assert runs.run_status(ANNA, run)["status"] == "queued"
    with pytest.raises(gr.Error, match="Only one that ended early"):
        runs.resume_training(ANNA, run)
    runs.stop_training(ANNA, run)
    runs.delete_run(ANNA, run)
    assert runs.runs(ANNA) == []
    chosen, history, *_ = runs.refresh(ANNA, run, 0)
    assert chosen is None
    assert "will be listed here" in history


def looked_at(runs: Runs, run: Run, seen: object = None) -> dict:
    new = runs.watch(ANNA, run.id, seen)
    assert isinstance(new, dict), "nothing new"
    return new


def unchanged(runs: Runs, run: Run, seen: object) -> bool:
    return all(part == gr.skip() for part in runs.watch(ANNA, run.id, seen))


def test_a_look_sends_what_is_new_and_nothing_twice(actions: Actions, runs: Runs, photos: list, photo_folder: Path):
    live = runs.live
    [waiting] = actions.start_training(ANNA, photos, "sks", "dog")
    run = actions.studio.own_run(ANNA, waiting)
    new = looked_at(runs, run)
    assert "next in the queue" in new[live.headline]
    assert new[live.stop].visible
    assert not new[live.delete].visible
    assert unchanged(runs, run, new[live.seen])

    run.append(events.Stage("train", 3))
    for step in (1, 2):
        run.append(events.Step(step, 1.0, 1.0, 0.5, 1e-4, 0.5))
    with run._held():  # as while it trains
        new = looked_at(runs, run, new[live.seen])
        assert "step 2 of 3" in new[live.headline]
        assert "<svg" in new[live.curves]
        assert "come here every" in new[live.samples]
        before = new[live.seen]
        run.append(events.Step(3, 1.0, 1.0, 0.5, 1e-4, 0.5))
        new = looked_at(runs, run, before)
        assert new.keys() == {live.headline, live.curves, live.seen}
        before = new[live.seen]
        path = run.path / "samples" / "a.png"
        path.parent.mkdir()
        path.write_bytes((run.path / "uploads" / "00.png").read_bytes())
        run.append(events.Image("samples/a.png", "a photo of sks dog", 0, 3))
        new = looked_at(runs, run, before)
        assert new[live.samples].count("<img") == 1
        assert "gradio_api/file=" in new[live.samples]
        assert str(actions.studio.root) not in str(new)
        assert new[live.history].count("<img") == 1
    run.append(events.Finished("model", 2.0))
    new = looked_at(runs, run, new[live.seen])
    assert new[live.to_pictures].visible
    assert new[live.delete].visible
    assert unchanged(runs, run, new[live.seen])

    finished_runs(actions.studio, photo_folder)
    assert unchanged(runs, run, new[live.seen]), "the list is drawn anew when the tab is opened"


def test_a_look_draws_what_was_measured_once_it_is_there(actions: Actions, runs: Runs, photos: list):
    live = runs.live
    run = actions.studio.own_run(ANNA, actions.start_training(ANNA, photos, "sks", "dog")[0])
    run.append(events.Stage("train", 100))
    run.append(events.Image("samples/a.png", "a photo of sks dog", 0, 50))
    with run._held():
        new = looked_at(runs, run)
        assert "measured as they come" in new[live.progress]
        measured(run, 0.2, 0.3, best=50)
        run.append(events.Metric("dino", 0.5, 50))
        new = looked_at(runs, run, new[live.seen])
        assert new[live.progress].count("<svg") == 4
        assert "best</b>" in new[live.samples], "its row is marked"
        run.append(events.Metric("clip_i", 0.5, 50))
        new = looked_at(runs, run, new[live.seen])
        assert new.keys() == {live.headline, live.seen}, "the rest of them changes nothing"
    status = runs.run_status(ANNA, run.id)
    assert (status["best_step"], len(status["measures"])) == (50, 2)


def test_a_look_tells_of_another_run_of_the_visitor_that_moves_on(actions: Actions, runs: Runs, photos: list):
    first, second = (
        actions.studio.own_run(ANNA, actions.start_training(ANNA, photos, "sks", "dog")[0]) for _ in range(2)
    )
    seen = looked_at(runs, first)[runs.live.seen]
    second.append(events.Cancelled(0))
    new = looked_at(runs, first, seen)
    assert "cancelled" in new[runs.live.history]


def test_a_run_that_is_gone_is_told_once(actions: Actions, runs: Runs, photo_folder: Path):
    [run] = finished_runs(actions.studio, photo_folder)
    seen = looked_at(runs, run)[runs.live.seen]
    run.delete()
    new = looked_at(runs, run, seen)
    assert "You have no such run" in new[runs.live.headline]
    assert not new[runs.live.delete].visible
    assert unchanged(runs, run, new[runs.live.seen])
    assert "Nothing trains yet" in runs.watch(ANNA, None, new[runs.live.seen])[runs.live.headline]
    assert all(part == gr.skip() for part in runs.watch(BERT, None, None))
