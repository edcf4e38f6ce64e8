"""The Compare tab's handlers: rows of prompts, columns of models, equal seeds, one sheet."""

import shutil
import sys
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from dreambooth import events
from dreambooth.config.sections import EvaluationConfig
from dreambooth.errors import ConfigError
from dreambooth.evaluation.reports.gallery import CELL
from dreambooth.ui.compare.actions import NO_RUN, Actions, checked_prompts
from dreambooth.ui.compare.comparison import Comparison
from dreambooth.ui.studio import Studio
from tests import tiny
from tests.ui import studios
from tests.ui.compare.test_comparison import comparison
from tests.ui.studios import ANNA, BERT, is_skip

PROMPTS = "a photo of a dog\n\n  a sks dog in the snow \na photo of a dog"


@pytest.fixture
def actions(studio: Studio, gallery: gr.Gallery) -> Actions:
    return Actions(studio, gallery)


@pytest.fixture
def pair(studio: Studio, photo_folder: Path, tmp_path: Path) -> list:
    models = [tiny.stable_diffusion(tmp_path / name, seed=seed) for name, seed in (("with", 5), ("without", 9))]
    return studios.finished_runs(studio, photo_folder, ways="two", models=models)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def test_a_pair_is_drawn_row_by_row_from_equal_seeds(actions: Actions, pair: list, tiny_model: Path, tmp_path: Path):
    told = list(actions.compare(ANNA, pair[0].id, PROMPTS, 2, 3.0, 5, 2))
    rows = [shown for *_, shown in told if not is_skip(shown)]
    assert [len(shown.lines) for shown in rows] == [2, 4, 4]
    shown = rows[-1]
    assert shown.titles == ("Base model", "Without PPL", "With PPL")
    assert [(line.prompt, line.seed) for line in shown.lines] == [
        ("a photo of a dog", 5),
        ("a photo of a dog", 6),
        ("a sks dog in the snow", 5),
        ("a sks dog in the snow", 6),
    ]
    by_hand = dict(zip(shown.titles, (tiny_model, pair[1].path / "model", pair[0].path / "model"), strict=True))
    for column, folder in enumerate(by_hand.values()):
        expected = expected_picture(folder)
        assert np.abs(pixels(shown.lines[3].cells[column].path) - expected).max() <= 1, "to one grey level"

    pictures, sheet, table, status, figures, values, _ = told[-1]
    assert len(pictures) == 12
    assert pictures[1][1] == "Without PPL · a photo of a dog · seed 5"
    assert table.count("<img ") == 12
    assert table.index("a photo of a dog") < table.index("a sks dog in the snow")
    assert "2 prompts with 3 models in" in status
    assert pixels(sheet).shape[1] > 3 * CELL
    with Image.open(sheet) as image:
        assert not image.info, "nothing of the server in it"
    tables = [table for _, _, table, *_ in told if not is_skip(table)]
    assert any("pending" in table for table in tables), "cells fill as they are drawn"
    assert all(figures == "" for *_, figures, _, _ in told[:-1]), "those of another comparison are gone"

    assert list(values["models"]) == list(shown.titles)
    for metrics in values["models"].values():
        assert {name: metric["count"] for name, metric in metrics.items()} == {
            "dino": 2,
            "clip_i": 2,
            "clip_t": 2,
            "pres": 2,
            "div": 1,
        }
    assert values["differences"]["With PPL"].keys() == metrics.keys()
    assert values["encoders"]["dino"] == "toybox ViT"
    assert "What the pictures say" in figures
    assert "2 of the subject from 1 prompt, 2 of the class prompt" in figures


def expected_picture(folder: Path) -> np.ndarray:
    from dreambooth.config.sections import SamplingConfig
    from dreambooth.generate import generate, open_source

    sampling = SamplingConfig(steps=2, guidance_scale=3.0)
    source = open_source(str(folder))
    drawn = next(generate(source, ["a sks dog in the snow"], num_images=2, seed=5, sampling=sampling))
    return np.asarray(drawn[1].image, np.int16)


def test_a_run_alone_is_compared_with_its_base_model(actions: Actions, studio: Studio, photo_folder: Path):
    [run] = studios.finished_runs(studio, photo_folder)
    *_, figures, values, shown = list(actions.compare(ANNA, run.id, "a photo of a dog", 2, 3.0, 0, 1))[-1]
    assert shown.titles == ("Base model", "Your model")
    assert values["differences"] == {}
    base, ours = (metrics["pres"]["value"] for metrics in values["models"].values())
    assert base == ours
    assert "No row names the subject, sks" in figures
    first, second = (pixels(cell.path) for cell in shown.lines[0].cells)
    assert np.array_equal(first, second), "an untrained copy draws the same"


def test_what_can_not_be_measured_is_told_and_the_pictures_stay(
    actions: Actions, studio: Studio, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    [run] = studios.finished_runs(studio, photo_folder)
    config = run.config.model_copy(update={"evaluation": EvaluationConfig(dino="toybox", clip="toybox")})
    (run.path / "config.yaml").write_text(config.to_yaml())
    monkeypatch.setitem(sys.modules, "lpips", None)  # as where it is not installed
    _, _, table, _, figures, values, _ = list(actions.compare(ANNA, run.id, PROMPTS, 2, 3.0, 0, 2))[-1]
    assert "DIV is measured with lpips, which is not installed here" in figures
    assert "dino" in values["models"]["Your model"]
    assert "div" not in values["models"]["Your model"]
    shutil.rmtree(run.path / "photos")
    pictures, _, table, status, figures, values, _ = list(actions.compare(ANNA, run.id, PROMPTS, 2, 3.0, 0, 1))[-1]
    assert "<strong>Not measured.</strong> This run&#x27;s photos are gone" in figures
    assert (values, len(pictures), table.count("<img ")) == (None, 4, 4)
    assert "2 prompts with 2 models in" in status


def test_a_run_is_trained_the_other_way_and_becomes_a_pair(actions: Actions, studio: Studio, photo_folder: Path):
    [run] = studios.finished_runs(studio, photo_folder)
    studios.measured(run, 0.2, 0.3, best=50)
    words, button, drift = actions.about(ANNA, run.id)
    assert "Trained one way" in words
    assert "train this subject the other way too" in words
    assert (button.visible, button.value) == (True, "Train it without PPL too")
    assert drift.count("<polyline") == 2, "PRES and DIV"
    with pytest.raises(gr.Error, match="You have no such run"):
        actions.train_other_way(BERT, run.id)
    other = studio.own_run(ANNA, actions.train_other_way(ANNA, run.id))
    words, button, _ = actions.about(ANNA, run.id)
    assert "Still to come: without PPL (queued)." in words
    assert not button.visible
    with pytest.raises(gr.Error, match="both ways already"):
        actions.train_other_way(ANNA, run.id)
    assert [column.title for column in actions.columns(run)] == ["Base model", "Your model"]

    shutil.copytree(run.path / "model", other.path / "model")
    other.append(events.Finished("model", 1.0))
    studios.measured(other, 0.2, 0.7, best=50)
    words, _, drift = actions.about(ANNA, run.id)
    assert "Trained both ways" in words
    assert "base model, without PPL and with PPL;" in words
    assert drift.count("<polyline") == 4
    assert "Without PPL <b>0.700</b>" in drift
    assert [column.title for column in actions.columns(run)] == ["Base model", "Without PPL", "With PPL"]
    assert len(actions.list_runs(ANNA, None, None)[0].choices) == 1


def test_none_ppl_and_drift_penalty_stand_side_by_side(actions: Actions, studio: Studio, photo_folder: Path):
    lora = {"method": "lora", "drift": {"weight": 1.0}, "lora": {"rank": 2}}
    runs = studios.finished_runs(studio, photo_folder, ways="three", **lora)
    for run in runs:
        studios.measured(run, 0.2, 0.3, best=50)
    words, button, drift = actions.about(ANNA, runs[0].id)
    assert "Trained three ways" in words
    assert "base model, without PPL, with PPL and with drift penalty;" in words
    assert not button.visible
    assert [look in drift for look in ("'instance'", "'prior'", "'drift'")] == [True] * 3
    [(label, _)] = actions.list_runs(ANNA, None, None)[0].choices
    assert "sks dog · LoRA · three ways" in label
    *_, figures, values, shown = list(actions.compare(ANNA, runs[2].id, "a photo of a dog", 2, 3.0, 0, 1))[-1]
    assert shown.titles == ("Base model", "Without PPL", "With PPL", "With drift penalty")
    assert len({pixels(cell.path).tobytes() for cell in shown.lines[0].cells}) == 4
    assert list(values["differences"]) == ["With PPL", "With drift penalty"]
    assert "With drift penalty − without PPL</th>" in figures


def test_several_subjects_are_compared_alone_and_together(actions: Actions, studio: Studio, photo_folder: Path):
    cat = {"identifier": "<b>", "class_noun": "cat"}
    [run] = studios.finished_runs(
        studio, photo_folder, method="custom_diffusion", subject={"identifier": "<a>"}, more_subjects=[cat]
    )
    prompts = actions.prefill(ANNA, run.id)[3].splitlines()
    assert prompts[:3] == ["a photo of a dog", "a photo of a cat", "a photo of a dog and a cat"]
    assert prompts[3:6] == ["a <a> dog and <b> cat in the jungle", "a <a> dog in the jungle", "a <b> cat in the jungle"]


def test_only_ones_own_runs_are_compared(actions: Actions, pair: list):
    for owner, run in [
        (BERT, pair[0].id),
        (ANNA, "tiny-sd"),
        (ANNA, str(pair[0].path)),
        (ANNA, "owner/tiny"),
        ("", ""),
    ]:
        with pytest.raises(gr.Error):
            list(actions.compare(owner, run, "a dog", 2, 3.0, 0, 1))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({0: " \n"}, "There is no prompt"),
        ({1: 0}, "steps is 0"),
        ({3: -1}, "seed is -1"),
        ({4: 0}, "num_images is 0"),
    ],
)
def test_what_can_not_be_compared_is_a_sentence(actions: Actions, pair: list, changed: dict, words: str):
    asked = ["a dog", 2, 3.0, 0, 1]
    for place, value in changed.items():
        asked[place] = value
    with pytest.raises(gr.Error, match=words):
        list(actions.compare(ANNA, pair[0].id, *asked))


def test_prompts_are_one_a_line_each_once():
    assert checked_prompts(PROMPTS) == ["a photo of a dog", "a sks dog in the snow"]
    with pytest.raises(ConfigError, match=r"13 prompts are too many\. Give at most 12"):
        checked_prompts("\n".join(f"a dog {number}" for number in range(13)))
    with pytest.raises(ConfigError, match=r"has 1,201 characters\. Give at most 1,000"):
        checked_prompts("a dog\n" + "dog " * 300 + ".")


def test_the_list_names_a_pair_once_and_says_what_to_do_without_a_run(
    actions: Actions, studio: Studio, photo_folder: Path
):
    run, asked, status, *_ = actions.list_runs(BERT, None, None)
    assert (run.choices, asked.visible) == ([], False)
    assert is_skip(status), "the page says so from the beginning"
    gone = actions.list_runs(ANNA, "deleted-meanwhile", False)
    assert gone[2] == NO_RUN
    assert (gone[3].visible, gone[4]) == (False, "")
    [single] = studios.finished_runs(studio, photo_folder)
    pair = studios.finished_runs(studio, photo_folder, ways="two")
    run, asked, status, other_way, _, prompts, steps, _ = actions.list_runs(ANNA, None, None)
    assert asked.visible
    assert not other_way.visible
    assert len(run.choices) == 2
    assert "both ways" in dict((name, words) for words, name in run.choices)[run.value]
    assert run.value in [one.id for one in pair]
    assert prompts.splitlines() == [
        "a photo of a dog",
        "a sks dog in the jungle",
        "a sks dog in the snow",
        "a sks dog on the beach",
        "a sks dog on a cobblestone street",
    ]
    assert steps == 2
    assert "Trained both ways" in status
    assert "Trained one way" in actions.prefill(ANNA, single.id)[0]
    kept = actions.list_runs(ANNA, single.id, False)
    assert "value" not in kept[0].constructor_args
    assert is_skip(kept[2]), "what is said of a comparison stays"
    assert kept[3].visible
    assert all(is_skip(value) for value in kept[5:])
    assert all(is_skip(value) for value in actions.prefill(BERT, single.id))


def test_two_pictures_of_a_line_are_laid_over_each_other(actions: Actions, tmp_path: Path):
    shown = comparison(tmp_path)
    line, left, right, laid, sheet = actions.offer(shown, None, None, None)
    assert line.choices == [("a <b>dog</b> 'in' snow · seed 0", 0), ("a <b>dog</b> 'in' snow · seed 1", 1)]
    assert (left.value, right.value, laid.visible, sheet.visible) == ("Without PPL", "With PPL", True, True)
    red, blue = str(tmp_path / "red.png"), str(tmp_path / "blue.png")
    assert actions.lay_over(shown, 1, "Without PPL", "With PPL") == (red, blue)
    assert actions.lay_over(shown, 0, "Without PPL", "With PPL") is None
    assert actions.lay_over(shown, 1, "Base model", "With PPL") is None
    assert actions.lay_over(shown, None, "Base model", "With PPL") is None
    assert actions.lay_over(shown, 7, "Base model", "With PPL") is None
    kept = actions.offer(shown, 1, "Base model", "With PPL")
    assert [part.value for part in kept[:3]] == [1, "Base model", "With PPL"]
    assert not actions.offer(Comparison(), None, None, None)[3].visible
