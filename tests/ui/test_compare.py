"""The Compare tab's handlers: rows of prompts, columns of models, equal seeds, one sheet."""

from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from dreambooth.errors import ConfigError
from dreambooth.ui.compare import Actions, checked_prompts
from dreambooth.ui.comparison import CELL, Comparison
from dreambooth.ui.studio import Studio
from tests import tiny
from tests.ui import studios
from tests.ui.studios import ANNA, BERT
from tests.ui.test_comparison import comparison
from tests.ui.test_generate import is_skip

PROMPTS = "a photo of a dog\n\n  a sks dog in the snow \na photo of a dog"


@pytest.fixture
def actions(studio: Studio, gallery: gr.Gallery) -> Actions:
    return Actions(studio, gallery)


@pytest.fixture
def pair(studio: Studio, photo_folder: Path, tmp_path: Path) -> list:
    models = [tiny.stable_diffusion(tmp_path / name, seed=seed) for name, seed in (("with", 5), ("without", 9))]
    return studios.finished_runs(studio, photo_folder, both_ways=True, models=models)


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
        ("a photo of a dog", 5), ("a photo of a dog", 6), ("a sks dog in the snow", 5), ("a sks dog in the snow", 6),
    ]  # fmt: skip
    by_hand = dict(zip(shown.titles, (tiny_model, pair[1].path / "model", pair[0].path / "model"), strict=True))
    for column, folder in enumerate(by_hand.values()):
        expected = expected_picture(folder)
        assert np.abs(pixels(shown.lines[3].cells[column].path) - expected).max() <= 1, "to one grey level"

    pictures, sheet, table, status, _ = told[-1]
    assert len(pictures) == 12
    assert pictures[1][1] == "Without PPL · a photo of a dog · seed 5"
    assert table.count("<img ") == 12
    assert table.index("a photo of a dog") < table.index("a sks dog in the snow")
    assert "2 prompts with 3 models in" in status
    assert pixels(sheet).shape[1] > 3 * CELL
    with Image.open(sheet) as image:
        assert not image.info, "nothing of the server in it"
    assert any("pending" in table for *_, table, _, _ in told if not is_skip(table)), "cells fill as they are drawn"


def expected_picture(folder: Path) -> np.ndarray:
    from dreambooth.config import SamplingConfig
    from dreambooth.generate import generate, open_source

    sampling = SamplingConfig(steps=2, guidance_scale=3.0)
    source = open_source(str(folder))
    drawn = next(generate(source, ["a sks dog in the snow"], num_images=2, seed=5, sampling=sampling))
    return np.asarray(drawn[1].image, np.int16)


def test_a_run_alone_is_compared_with_its_base_model(actions: Actions, studio: Studio, photo_folder: Path):
    [run] = studios.finished_runs(studio, photo_folder)
    *_, shown = list(actions.compare(ANNA, run.id, "a photo of a dog", 2, 3.0, 0, 1))[-1]
    assert shown.titles == ("Base model", "Your model")
    first, second = (pixels(cell.path) for cell in shown.lines[0].cells)
    assert np.array_equal(first, second), "an untrained copy draws the same"


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


@pytest.mark.parametrize(("changed", "words"), [
    ({0: " \n"}, "There is no prompt"), ({1: 0}, "steps is 0"), ({3: -1}, "seed is -1"), ({4: 0}, "num_images is 0"),
])  # fmt: skip
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


def test_the_list_names_a_pair_once_and_says_what_to_do_without_a_run(
    actions: Actions, studio: Studio, photo_folder: Path
):
    run, asked, status, *_ = actions.list_runs("", None, Comparison())
    assert (run.choices, asked.visible) == ([], False)
    assert is_skip(status), "the page says so from the beginning"
    assert "both ways" in actions.list_runs(ANNA, "deleted-meanwhile", Comparison())[2]
    [single] = studios.finished_runs(studio, photo_folder)
    pair = studios.finished_runs(studio, photo_folder, both_ways=True)
    run, asked, status, prompts, steps, _ = actions.list_runs(ANNA, None, Comparison())
    assert asked.visible
    assert len(run.choices) == 2
    assert "both ways" in dict((name, words) for words, name in run.choices)[run.value]
    assert run.value in [one.id for one in pair]
    assert prompts.splitlines() == [
        "a photo of a dog", "a sks dog in the jungle", "a sks dog in the snow", "a sks dog on the beach",
        "a sks dog on a cobblestone street",
    ]  # fmt: skip
    assert steps == 2
    assert "Trained both ways" in status
    assert "Trained one way" in actions.prefill(ANNA, single.id)[0]
    kept = actions.list_runs(ANNA, single.id, Comparison())
    assert "value" not in kept[0].constructor_args
    assert all(is_skip(value) for value in kept[2:])
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
