"""The live view of a run as HTML."""

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.metrics.measures import Measure, Measures
from dreambooth.runs.directory import Run
from dreambooth.ui.report import Report
from dreambooth.ui.train import live

NONE = np.empty((3, 0), np.float32)


def report(**changes) -> Report:
    config = Config.from_dict(
        {"base_model": "models/tiny", "train": {"steps": 400}, "subject": {"photos": ".", "class_noun": "<b>dog"}}
    )
    facts = {
        "config": config,
        "status": "running",
        "stage": "train",
        "done": 100,
        "total": 400,
        "per_second": 4.0,
        "losses": NONE,
        "pictures": (),
        "measures": None,
        "warnings": (),
        "failure": "",
        "peak_bytes": None,
        "seconds": None,
        "began": time.time(),
        "size": 0,
    }
    return Report(**facts | changes)


def pictures(steps: int, prompts: tuple[str, ...] = ("a photo of sks <b>dog", "a photo of a <b>dog")) -> tuple:
    return tuple(
        events.Image(f"samples/{step}-{seed}-{i}.png", prompt, seed, 50 * step)
        for step in range(1, steps + 1)
        for i, prompt in enumerate(prompts)
        for seed in (0, 1)
    )


def test_the_headline_tells_stage_pace_and_warnings_with_a_visitors_words_as_text():
    shown = live.headline(report(warnings=("Look <there>.",)), twin="<button>")
    assert "sks &lt;b&gt;dog" in shown
    assert "<b>dog" not in shown
    assert "Training · step 100 of 400 · 4.0 a second · 1 min 15 s left" in shown
    assert 'aria-valuenow="25"' in shown
    assert "Look &lt;there&gt;." in shown
    assert "<p class='twin'><button></p>" in shown
    assert re.findall(r"<li class='(\w+)'[^>]*>([^<]+)", shown)[:6] == [
        ("done", "Check"),
        ("done", "Load"),
        ("done", "Class images"),
        ("done", "Encode"),
        ("now", "Train"),
        ("todo", "Save"),
    ]
    assert "Class images" not in live.headline(report(config=_without_prior()))
    assert "0.25 a second" in live.headline(report(per_second=0.25))


def _without_prior() -> Config:
    config = report().config
    return config.model_copy(update={"prior": config.prior.model_copy(update={"enabled": False})})


@pytest.mark.parametrize(
    ("place", "seconds", "text"),
    [
        (1, None, "Waiting: next in the queue."),
        (1, 0.2, "Waiting: next in the queue, starts any moment."),
        (3, 125, "Waiting: number 3 in the queue, starts in about 2 min 5 s."),
        (None, None, "Waiting for its turn."),
    ],
)
def test_a_waiting_run_tells_its_place(place: int | None, seconds: float | None, text: str):
    assert live.waiting_text(place, seconds) == text


def test_samples_stand_side_by_side_newest_first(tmp_path: Path):
    shown = live.samples(report(pictures=pictures(3)), tmp_path, lambda path: f"u/{path.name}")
    assert re.findall(r">step (\d+)<", shown) == ["150", "100", "50"]
    [newest, *_] = re.findall(r"<tr><th scope='row'>.*?</tr>", shown)
    assert re.search(r"<td>(.*?)</td>", newest)[1].count("sks") == 2
    assert re.findall(r"src='([^']*)'", newest) == ["u/3-0-0.png", "u/3-1-0.png", "u/3-0-1.png", "u/3-1-1.png"]
    assert "alt='a photo of sks &lt;b&gt;dog, step 150, seed 0'" in newest
    more = live.samples(report(pictures=pictures(1, ("a photo of sks <b>dog", "on a beach"))), tmp_path, str)
    assert more.count("scope='col'") == 3


def test_samples_of_several_subjects_have_a_column_each_and_one_together(tmp_path: Path):
    subjects = [
        {"photos": ".", "identifier": name, "class_noun": noun} for name, noun in (("<a>", "dog"), ("b", "cat"))
    ]
    config = Config.from_dict({"base_model": "models/tiny", "subject": subjects[0], "more_subjects": subjects[1:]})
    drawn = pictures(1, tuple(reversed(config.sample_prompts)))
    shown = live.samples(report(config=config, pictures=drawn), tmp_path, str)
    assert re.findall(r"<th scope='col'>([^<]*)<q>([^<]*)", shown) == [
        ("&lt;a&gt; dog", "a photo of &lt;a&gt; dog"),
        ("b cat", "a photo of b cat"),
        ("Together", "a photo of &lt;a&gt; dog and b cat"),
        ("Class: dog", "a photo of a dog"),
        ("Class: cat", "a photo of a cat"),
        ("The classes together", "a photo of a dog and a cat"),
        ("Your prompt", "a &lt;a&gt; dog on the beach"),
    ]
    assert f"min-width: {7 * live.MIN_COLUMN}px" in shown
    assert shown.count("<img") == 14


def test_the_base_models_samples_and_the_best_ones_are_marked(tmp_path: Path):
    base = tuple(replace(picture, step=0) for picture in pictures(1))
    found = Measures(0.8, {}, 50, (Measure(0, 0.4, 0.5, 0.6, 0.4, None), Measure(50, 0.5, 0.5, 0.6, 0.4, None)))
    shown = live.samples(report(pictures=(*base, *pictures(2)), measures=found), tmp_path, str)
    heads = [re.sub("<[^>]*>", "", head) for head in re.findall(r"<th scope='row'>(.*?)</th>", shown)]
    assert heads == ["step 100", "step 50 best", "before"]
    only_base = live.samples(report(pictures=base, measures=replace(found, best=0)), tmp_path, str)
    assert "best</b>" not in only_base


def test_only_so_many_sampling_steps_are_shown_the_first_the_newest_and_the_best_among_them(tmp_path: Path):
    found = Measures(0.8, {}, 100, (Measure(0, 0.4, 0.5, 0.6, 0.4, None), Measure(100, 0.5, 0.5, 0.6, 0.4, None)))
    for measures, rows in ((None, live.ROWS), (found, live.ROWS + 1)):
        shown = live.samples(report(pictures=pictures(200), measures=measures), tmp_path, str)
        steps = [int(step) for step in re.findall(r"<th scope='row'>step (\d+)", shown)]
        assert len(steps) == rows
        assert (steps[0], steps[-1]) == (10_000, 50)
    assert steps[-2] == 100


def test_without_pictures_it_says_when_they_come(tmp_path: Path):
    assert "every 100 steps" in live.samples(report(), tmp_path, str)
    assert live.samples(report(status="failed"), tmp_path, str) == ""


def test_the_history_is_a_list_of_buttons_with_the_newest_picture(tmp_path: Path):
    run = Run.create(report().config, tmp_path / "20260101-a")
    assert "will be listed here" in live.history([], None, str)
    blank = live.history([(run, report())], None, str)
    assert "class='blank'" in blank
    assert "aria-current" not in blank
    (run.path / "samples").mkdir()
    (run.path / "samples" / "2-1-0.png").touch()
    shown = live.history([(run, report(pictures=pictures(2)))], run.id, lambda path: path.name)
    assert "data-run='20260101-a' aria-current='true'><img src='2-1-0.png'" in shown
    assert "sks &lt;b&gt;dog" in shown
    assert "400 steps at 5e-06" in shown
    two = live.twin_text([(run, replace(report(), status="queued")), (run, report(config=_without_prior()))])
    assert two.startswith("Trained three ways. <span>The run with PPL is queued. <button type='button' data-run='2026")
    assert "The run without PPL is running." in two
    assert live.twin_text([(run, report())]).startswith("Trained both ways.")
    assert live.twin_text([]) == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "just now"), (600, "10 min ago"), (7200, "2 h ago"), (259200, "3 days ago")]
)
def test_how_long_ago(seconds: float, words: str):
    assert live.ago(time.time() - seconds) == words
