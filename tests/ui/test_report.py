"""A run's events, summed up for people, at the cost of what is new."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.runs.directory import Run
from dreambooth.ui import report as reports
from dreambooth.ui.report import Digest, Digests, duration, title_of


def settings(**subject: str) -> dict:
    return {"base_model": "models/tiny", "subject": {"class_noun": "dog", **subject}}


def step(number: int, loss: float, seconds: float, prior: float | None = None) -> events.Step:
    return events.Step(number, loss, loss, prior, 1e-4, seconds)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(Config.from_dict(settings(photos=".")), tmp_path / "run")


def test_a_report_counts_a_repeated_step_once_and_starts_its_speed_anew(run: Run):
    assert Digest(run).report().status == "queued"
    start = [events.RunQueued(), events.Stage("train", 4), events.Warning("Look.")]
    for event in [*start, step(1, 3.0, 9.0), step(2, 9.0, 9.0), *start, step(2, 1.0, 0.5)]:
        run.append(event)
    report = Digest(run).report()
    assert report.status == "interrupted"
    assert report.resumable
    assert not report.moving
    assert (report.done, report.total, report.per_second) == (2, 4, 2.0)
    assert report.warnings == ("Look.",)
    instance, prior, drift = report.losses
    assert instance.tolist() == [3.0, 1.0]
    assert all(math.isnan(loss) for loss in (*prior, *drift))


def test_each_look_reads_only_what_is_new_and_leaves_a_line_that_is_still_written(run: Run):
    digest, path = Digest(run), run.path / "events.jsonl"
    run.append(events.Stage("train", 3000))
    run.append(step(1, 2.0, 0.5, 4.0))
    first = digest.report()
    assert digest.report() is first
    with path.open("a") as file:
        file.write(step(2, 1.0, 0.5).to_json()[:20])
    assert digest.report().done == 1
    with path.open("a") as file:
        file.write(step(2, 1.0, 0.5).to_json()[20:] + "\n")
    path.write_bytes(b"x" * first.size + path.read_bytes()[first.size :])  # what was read is not read again
    run.append(step(2500, 0.5, 0.5))
    report = digest.report()
    assert (report.done, report.losses.shape, report.losses[0, 2499]) == (2500, (3, 2500), 0.5)
    assert report.losses[:2, 0].tolist() == [2.0, 4.0]
    assert first.losses.shape == (3, 1), "a report does not change"


def test_damaged_lines_are_left_out_and_told_in_one_sentence(run: Run):
    digest, path = Digest(run), run.path / "events.jsonl"
    run.append(events.Stage("train", 3))
    for number in (1, 2):
        run.append(step(number, 2.0, 0.5))
        with path.open("ab") as file:
            file.write(b"\xff\xfe" + bytes(40) + b"\n")
        lines = "1 line of events.jsonl is" if number == 1 else "2 lines of events.jsonl are"
        assert digest.report().warnings == (f"{lines} damaged, or of a newer version, and left out.",)
    assert digest.report().done == 2
    assert Digest(run).report().warnings == digest.report().warnings


def test_the_speed_of_class_images_is_counted_from_the_first_to_the_last(run: Run):
    run.append(events.Stage("class images", 100))
    for done, time in ((10, 5.0), (20, 7.0), (40, 10.0)):
        run.append(events.Progress(done, time=time))
    report = Digest(run).report()
    assert (report.done, report.per_second) == (40, 6.0)


def test_a_failure_does_not_tell_where_the_server_keeps_its_files(run: Run):
    run.append(events.Failed("RunError", f"Permission denied: '{run.path}/a.png'.", ""))
    assert Digest(run).report().text == "Permission denied: '…/a.png'."


def test_a_failure_is_told_with_what_to_do_on_this_page(run: Run):
    run.append(events.Failed("RunError", "The disk is full.", "Free some <space>, then go on with --resume."))
    report = Digest(run).report()
    assert report.text == "The disk is full. Free some <space>, then choose Resume."
    assert report.resumable


def test_the_end_tells_time_and_memory_and_callers_get_plain_values(run: Run):
    for event in [
        events.RunQueued(),
        events.Stage("train", 2),
        step(1, 0.5, 0.1, 0.25),
        step(2, 0.75, 0.1),
        events.Image("samples/a.png", "a photo of sks dog", 0, 2),
        events.Metric("peak_memory_bytes", 3 * 2**30, 2),
        events.Finished("model", 125.0),
    ]:
        run.append(event)
    report = Digest(run).report()
    assert report.text == "The model is ready: make pictures with it. It took 2 min 5 s and 3.0 GiB of memory at most."
    facts = report.as_dict()
    assert (facts["instance_loss"], facts["prior_loss"], facts["sample_pictures"]) == (0.75, None, 1)
    assert facts["title"] == "sks dog"
    assert (facts["measures"], facts["best_step"], facts["encoders"]) == ([], None, {})
    assert facts["settings"] == "800 steps at 5e-06 · 200 class images · tiny"


def test_a_drift_penalty_is_kept_with_the_losses(run: Run):
    run.append(events.Stage("train", 2))
    run.append(replace(step(1, 2.0, 0.5), drift=0.25))
    report = Digest(run).report()
    assert report.losses[2].tolist() == [0.25]
    assert report.as_dict()["drift"] == 0.25


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        ({"method": "lora"}, "LoRA · 500 steps at 0.0001 · 200 class images · tiny"),
        ({"method": "textual_inversion"}, "Textual Inversion · 3000 steps at 0.002 · tiny"),
        (
            {"drift": {"weight": 0.5}, "prior": {"enabled": False}, "train": {"text_encoder": False}},
            "800 steps at 5e-06 · no PPL · drift penalty 0.5 · text encoder frozen · tiny",
        ),
    ],
)
def test_what_a_run_was_trained_with_is_told_in_a_line(tmp_path: Path, more: dict, facts: str):
    run = Run.create(Config.from_dict(settings(photos=".") | more), tmp_path / "run")
    assert Digest(run).report().facts == facts


def test_a_run_is_called_by_all_its_subjects():
    config = Config.from_dict(
        settings(photos=".") | {"more_subjects": [{"photos": ".", "identifier": "ohwx", "class_noun": "cat"}]}
    )
    assert title_of(config) == "sks dog and ohwx cat"


def test_measures_are_read_when_an_event_tells_of_them(run: Run):
    digest = Digest(run)
    run.append(events.Stage("train", 4))
    assert (digest.report().measures, digest.report().measured) == (None, 0)
    measures = [{"step": step, "dino": 0.5, "clip_i": 0.5, "clip_t": 0.3, "pres": 0.2, "div": None} for step in (0, 2)]
    found = {"ceiling": 0.75, "encoders": {"dino": "toybox ViT"}, "best": 2, "measures": measures}
    (run.path / "measures.json").write_text(json.dumps(found))
    assert digest.report().measured == 0, "the file is not read again and again"
    run.append(events.Metric("dino", 0.5, 2))
    report = digest.report()
    assert (report.measured, report.measures.best, report.measures.base.clip_t) == (2, 2, 0.3)
    facts = report.as_dict()
    assert (facts["best_step"], facts["dino_of_photos"], facts["measures"]) == (2, 0.75, measures)
    json.dumps(facts)

    (run.path / "measures.json").write_text("{")
    run.append(events.Metric("dino", 0.5, 4))
    report = digest.report()
    assert report.measures is None
    assert "measures.json can't be read" in report.warnings[-1]


def test_a_training_that_ended_early_says_so(tmp_path: Path):
    config = Config.from_dict(settings(photos=".") | {"evaluation": {"patience": 2}})
    run = Run.create(config, tmp_path / "run")
    for event in [step(300, 0.5, 0.1), events.Metric("peak_memory_bytes", 1, 300), events.Finished("model", 9.0)]:
        run.append(event)
    assert "It ended at step 300, as no later one had been better." in Digest(run).report().text


def test_digests_remember_a_bounded_number_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reports, "KEPT", 2)
    digests = Digests()
    runs = [Run.create(Config.from_dict(settings(photos=".")), tmp_path / name) for name in "abc"]
    first, *_ = [digests.report(run) for run in runs]
    assert digests.report(runs[2]) is digests.report(runs[2])
    assert digests.report(runs[0]) is not first


def test_durations_in_words():
    assert [duration(s) for s in (5, 65, 3725)] == ["5 s", "1 min 5 s", "1 h 2 min"]
