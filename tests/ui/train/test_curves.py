"""The curves of a run's losses."""

import re

import numpy as np

from dreambooth.config.settings import Config
from dreambooth.ui.train import curves
from tests.ui.train.test_live import report


def test_curves_are_the_running_means_over_what_single_steps_had():
    losses = np.array([[1, 3] * 50, [np.nan] * 100, [np.nan] * 100], np.float32)
    shown = curves.curves(report(losses=losses))
    assert "mean of 20" in shown
    assert shown.count("<polyline") == 2, "no line for a loss that there is not"
    assert "<b>2.000</b>" in shown
    raw, mean = (re.search(f"class='{kind} instance' points='([^']*)'", shown)[1].split() for kind in ("raw", "mean"))
    assert (raw[0], raw[1]) == ("2.5,240.0", "5.0,120.0")  # step 1 of 400 at a loss of 1, where 5 is the top
    assert mean[-1] == "250.0,180.0"
    assert len(raw) == len(mean) == 100
    assert curves.curves(report(losses=losses[:, :1])) == ""


def test_a_long_run_is_drawn_with_few_points_that_keep_its_extremes():
    losses = np.full((3, 20_000), [[0.1], [0.1], [np.nan]], np.float32)
    losses[0, 12_345] = 0.4
    shown = curves.curves(
        report(
            losses=losses,
            config=report().config.model_copy(
                update={"train": report().config.train.model_copy(update={"steps": 20_000})}
            ),
        )
    )
    assert "mean of 1000" in shown
    assert len(shown) < 30_000
    raw = re.search("class='raw instance' points='([^']*)'", shown)[1].split()
    assert len(raw) == 2 * curves.POINTS
    assert min(float(point.split(",")[1]) for point in raw) < 0, "what is far above goes out of the picture"


def test_the_distance_that_is_penalised_has_a_drawing_of_its_own():
    config = Config.from_dict(
        {"base_model": "models/tiny", "drift": {"weight": 0.5}, "subject": {"photos": ".", "class_noun": "dog"}}
    )
    losses = np.array([[1, 3] * 5, [np.nan] * 10, np.arange(10)], np.float32)
    shown = curves.curves(report(losses=losses, config=config))
    assert shown.count("<figure") == 2
    distance = shown.split("<figure")[2]
    assert "0.5 of it joins the loss" in distance
    assert "<b>9.000</b>" in distance, "as it is, not as it was in the mean"
    assert distance.count("class='mean drift'") == 1


def test_running_means_leave_out_what_is_missing():
    mean = curves.running_mean(np.array([1, np.nan, 3, 5], np.float32), 2)
    assert mean.tolist() == [1, 1, 3, 4]
    assert np.isnan(curves.running_mean(np.array([np.nan]), 2)).all()
