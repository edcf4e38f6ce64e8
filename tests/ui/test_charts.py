"""Measures against steps as drawings for the page."""

import re
from dataclasses import replace

import pytest

from dreambooth.config.sections import EvaluationConfig
from dreambooth.metrics.measures import Measure, Measures, best_of
from dreambooth.ui import charts, theme
from dreambooth.ui.charts import Level, Line
from tests.ui.train.test_live import report

ENCODERS = {"dino": "toybox <ViT>", "clip": "toybox CLIP", "perceptual": "patch distance"}
STEPS = (
    Measure(0, dino=0.4, clip_i=0.5, clip_t=0.30, pres=0.30, div=0.6),
    Measure(100, dino=0.6, clip_i=0.6, clip_t=0.29, pres=0.35, div=0.5),
    Measure(200, dino=0.7, clip_i=0.7, clip_t=0.20, pres=0.60, div=0.4),
)
CEILING = 0.7
USUAL = EvaluationConfig()
MOST = STEPS[0].pres + USUAL.max_drift * (CEILING - STEPS[0].pres)
"""PRES of the best step, by the usual bound."""


def measures(*steps: Measure, ceiling: float = CEILING) -> Measures:
    best = best_of(steps, ceiling, USUAL.max_drift, USUAL.max_prompt_loss)
    return Measures(ceiling, ENCODERS, best.step, steps)


def drawn(chart: str, look: str = "instance") -> list[tuple[float, float]]:
    points = re.search(f"<polyline class='{look}' points='([^']*)'", chart)[1].split()
    return [tuple(map(float, point.split(","))) for point in points]


def ticks(chart: str) -> list[float]:
    return [float(tick) for tick in re.findall(r"<span>(-?[\d.]+)</span>", chart)[:3]]


def test_a_line_goes_through_its_values_between_round_ends():
    lines = [Line("a <b>", "instance", [(0, 0.12), (50, 0.31), (200, 0.2)]), Line("other", "prior", [(0, 0.12)])]
    shown = charts.chart("pres", "ViT", lines, 200)
    assert ticks(shown) == [0.4, 0.25, 0.1]
    assert drawn(shown) == [(0, 280), (250, 90), (1000, 200)]
    assert shown.count("<title>") == 4
    assert "<title>a <b>, step 0 (before): 0.120</title>".replace("<b>", "&lt;b&gt;") in shown
    assert "PRES <small>lower is better · by ViT</small>" in shown
    assert "other members of the class" in shown
    assert "<b>0.200</b>" in shown


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-0.0104, 0.0041], [0.01, -0.005, -0.02]),
        ([0.5], [0.505, 0.5, 0.495]),
        ([0.44, 0.74, 0.77], [0.8, 0.6, 0.4]),
        ([0.0, 0.0], [0.006, 0, -0.006]),
        ([-1, 1], [1.5, 0, -1.5]),
    ],
)
def test_ends_and_middle_are_round_and_all_is_between(values: list[float], expected: list[float]):
    shown = charts.chart("div", "ViT", [Line("", "instance", list(enumerate(values)))], 10)
    assert ticks(shown) == pytest.approx(expected)
    assert "-0<" not in shown
    assert all(0 < y < charts.HEIGHT for _, y in drawn(shown))


def test_next_to_nothing_is_not_minus_nothing():
    assert "<b>0.000</b>" in charts.chart("pres", "ViT", [Line("", "instance", [(0, 0.1), (5, -0.0001)])], 10)


def test_many_points_become_few_the_best_among_them():
    points = [(step, step / 2000) for step in range(2001)]
    shown = charts.chart("dino", "ViT", [Line("now", "instance", points)], 2000, best=777)
    assert len(drawn(shown)) == charts.POINTS + 1
    assert "<title>step 777: 0.389</title>" in shown
    assert (drawn(shown)[0][0], drawn(shown)[-1][0]) == (0, 1000)


def test_levels_and_the_best_step_are_marked():
    line = Line("now", "instance", [(0, 0.2), (100, 0.4)])
    shown = charts.chart("dino", "ViT", [line], 100, [Level("the photos themselves", 0.5)], best=100)
    assert "<path class='best' d='M1000.0 0V300'/>" in shown
    assert shown.count("marked") == 1
    assert "the photos themselves <b>0.500</b>" in shown
    assert charts.chart("div", "", [Line("now", "instance", [])], 100) == ""


def test_progress_says_which_step_is_the_best_and_by_which_rule():
    shown = charts.progress(report(measures=measures(*STEPS)))
    assert shown.count("<figure") == 4
    assert re.findall(r"<figcaption>([\w-]+)", shown) == ["DINO", "CLIP-T", "PRES", "DIV"]
    assert "toybox &lt;ViT&gt;" in shown
    assert (
        f"<strong>Step 100 is the best so far</strong>: of the steps with PRES at most {MOST:.3f} and CLIP-T at "
        "least 0.270 it has the highest DINO, 0.600; the last is clearly worse." in shown
    )
    assert f"most for the best <b>{MOST:.3f}</b>" in shown
    over = charts.progress(report(measures=measures(*STEPS), status="finished"))
    assert "Step 100 is the best</strong>" in over
    assert "It is kept beside the last, 200; Generate offers both." in over


def test_progress_tells_when_no_step_kept_within_the_bounds():
    far = replace(STEPS[1], pres=MOST + 0.05)
    shown = charts.progress(report(measures=measures(STEPS[0], far, STEPS[2]), status="finished"))
    bounds = f"PRES at most {MOST:.3f} and CLIP-T at least 0.270"
    assert f"none has {bounds}, and it came clearly nearer than the last" in shown
    last = charts.progress(report(measures=measures(*STEPS[:2]), status="finished"))
    assert "Step 100 is the best</strong>: the last, and none before it was clearly better" in last
    assert "beyond these bounds" not in last
    beyond = charts.progress(report(measures=measures(STEPS[0], far), status="finished"))
    assert f"({bounds}, then the highest DINO), though it is beyond these bounds itself." in beyond


def test_of_several_subjects_no_step_is_called_the_best():
    config = report().config
    config = config.model_copy(update={"more_subjects": [config.subject]})
    shown = charts.progress(report(config=config, measures=measures(*STEPS), status="finished"))
    assert "Of several subjects the first is measured, so no step before the last is kept." in shown
    assert "is the best" not in shown


def test_the_base_model_alone_is_no_best_step():
    shown = charts.progress(report(measures=measures(STEPS[0])))
    assert "So far the base model alone was measured" in shown
    assert "class='best'" not in shown


def test_without_div_there_are_three_drawings():
    without = [replace(step, div=None) for step in STEPS]
    assert charts.progress(report(measures=measures(*without))).count("<figure") == 3


@pytest.mark.parametrize(
    ("section", "changes", "status", "said"),
    [
        ("train", {"sample_every": 0}, "running", "draws no sample pictures"),
        ("evaluation", {"while_training": False}, "running", "is switched off"),
        ("train", {}, "running", "measured as they come"),
        ("train", {}, "failed", "was not measured"),
    ],
)
def test_what_is_not_measured_is_told_in_words(section: str, changes: dict, status: str, said: str):
    config = report().config
    config = config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})
    assert said in charts.progress(report(config=config, status=status))
    assert charts.progress(report(status="queued")) == ""


def test_the_drift_of_runs_is_drawn_together():
    runs = [
        ("Without PPL", "instance", measures(*STEPS)),
        ("With PPL", "prior", measures(*STEPS[:2])),
        ("With drift penalty", "drift", measures(*STEPS)),
    ]
    shown = charts.drift(runs, 200)
    assert re.findall(r"<figcaption>([\w-]+)", shown) == ["PRES", "DIV"]
    assert [len(drawn(shown, look)) for look in ("instance", "prior", "drift")] == [3, 2, 3]
    assert all(f".curves polyline.{look} " in theme.CSS for look in ("prior", "drift", "both"))
    assert charts.drift([("Your model", "instance", None), runs[1]], 200).count("<polyline") == 2
    assert charts.drift([("Your model", "instance", None)], 200) == ""
