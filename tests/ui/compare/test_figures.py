"""What the pictures of a comparison say, against the same sums by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.config.sections import EvaluationConfig
from dreambooth.config.settings import Config
from dreambooth.evaluation.reports import Cell, Line
from dreambooth.metrics.encoders import Encoders, load_encoders
from dreambooth.ui.compare import figures
from dreambooth.ui.compare.comparison import Comparison
from dreambooth.ui.compare.figures import Figures

PROMPTS = ("a photo of a dog", "a photo of sks dog", "a sks dog on a beach", "a dog in sksville")


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    return load_encoders(EvaluationConfig(), "toybox", "cpu")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [noise(number) for number in range(3)]


@pytest.fixture
def config() -> Config:
    return Config.from_dict({"subject": {"photos": ".", "class_noun": "dog"}})


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8))


def drawn(folder: Path, titles: tuple[str, ...], prompts: tuple[str, ...] = PROMPTS, count: int = 2) -> Comparison:
    """Pictures of noise, in files; the picture of prompt p, seed s and column c is `noise` of their decimal digits."""
    lines = []
    for place, prompt in enumerate(prompts):
        for seed in range(count):
            paths = [folder / f"{place}{seed}{column}.png" for column in range(len(titles))]
            for column, path in enumerate(paths):
                noise(1000 + 100 * place + 10 * seed + column).save(path)
            lines.append(Line(prompt, seed, tuple(Cell(str(path)) for path in paths)))
    return Comparison(titles, tuple(lines))


def measured(shown: Comparison, config: Config, photos: list[Image.Image], encoders: Encoders) -> Figures:
    *waiting, found = figures.measure(shown, config, photos, encoders)
    assert waiting == [None] * len(shown.titles)
    return found


def test_each_figure_is_the_mean_that_its_metric_says(
    tmp_path: Path, config: Config, photos: list[Image.Image], encoders: Encoders
):
    titles = ("Base model", "Without PPL", "With PPL", "With drift penalty")
    found = measured(drawn(tmp_path, titles), config, photos, encoders)
    assert tuple(row.title for row in found.rows) == titles
    real = encoders.dino.embed(photos)
    for column, row in enumerate(found.rows):
        ours = [noise(1000 + 100 * place + 10 * seed + column) for place in (1, 2) for seed in (0, 1)]
        kin = [noise(1000 + 10 * seed + column) for seed in (0, 1)]
        words = [text for text in ("a photo of dog", "a dog on a beach") for _ in (0, 1)]
        looks, texts = encoders.clip.embed(ours), encoders.clip.embed_texts(words)
        apart = encoders.perceptual.distances([(ours[0], ours[1]), (ours[2], ours[3])])
        by_hand = {
            "dino": (encoders.dino.embed(ours) @ real.T).mean(),
            "pres": (encoders.dino.embed(kin) @ real.T).mean(),
            "clip_i": (looks @ encoders.clip.embed(photos).T).mean(),
            "clip_t": (looks * texts).sum(1).mean(),
            "div": apart.mean(),
        }
        assert {name: e.value for name, e in row.estimates.items()} == pytest.approx(by_hand, abs=1e-5)
        assert {name: e.count for name, e in row.estimates.items()} == {
            "dino": 4,
            "clip_i": 4,
            "clip_t": 4,
            "pres": 2,
            "div": 2,
        }
        assert all(e.low <= e.value <= e.high for e in row.estimates.values())
    without, *others = found.rows[1:]
    assert [row.title for row in found.differences] == ["With PPL", "With drift penalty"]
    for row, difference in zip(others, found.differences, strict=True):
        assert difference.estimates.keys() == row.estimates.keys()
        for name, estimate in difference.estimates.items():
            assert estimate.value == pytest.approx(row.estimates[name].value - without.estimates[name].value)
    among = real @ real.T
    assert found.ceilings["dino"] == pytest.approx((among.sum() - 3) / 6, abs=1e-5)
    assert found.basis == "4 of the subject from 2 prompts, 2 of the class prompt"
    assert found.notes == ()


def test_a_run_alone_has_no_difference_and_held_back_pictures_count_for_nothing(
    tmp_path: Path, config: Config, photos: list[Image.Image], encoders: Encoders
):
    shown = drawn(tmp_path, ("Base model", "Your model"))
    first, *rest = shown.lines
    held = first._replace(cells=(first.cells[0], Cell("", "held back")))
    found = measured(shown._replace(lines=(held, *rest)), config, photos[:1], encoders)
    assert found.differences == ()
    assert found.ceilings == {}
    assert [row.estimates["pres"].count for row in found.rows] == [2, 1]
    assert found.rows[1].estimates["pres"].low is None
    assert found.notes == ("1 of all pictures are not shown, and count for nothing here.",)


@pytest.mark.parametrize(
    ("prompts", "count", "names", "note"),
    [
        (PROMPTS[:1], 2, {"pres"}, "No row names the subject, sks"),
        (PROMPTS[1:2], 2, {"dino", "clip_i", "clip_t", "div"}, "No row is the class prompt, “a photo of a dog”"),
        (PROMPTS[3:], 1, set(), "No row"),
    ],
)
def test_what_there_are_no_pictures_for_is_told(
    tmp_path: Path, config: Config, photos: list[Image.Image], encoders: Encoders, prompts, count, names, note
):
    found = measured(drawn(tmp_path, ("Base model", "Your model"), prompts, count), config, photos, encoders)
    assert found.rows[0].estimates.keys() == names
    assert any(told.startswith(note) for told in found.notes)
    figures.as_html(found)


def test_of_several_subjects_the_first_is_measured_where_it_is_alone(
    tmp_path: Path, photos: list[Image.Image], encoders: Encoders
):
    subjects = {
        "subject": {"photos": ".", "identifier": "<a>", "class_noun": "dog"},
        "more_subjects": [{"photos": ".", "identifier": "<b>", "class_noun": "cat"}],
    }
    prompts = ("a photo of <a> dog", "a photo of <b> cat", "a photo of <a> dog and <b> cat", "a photo of a dog")
    shown = drawn(tmp_path, ("Base model", "Your model"), prompts)
    found = measured(shown, Config.from_dict(subjects | {"prior": {"enabled": False}}), photos, encoders)
    assert found.basis == "2 of the subject from 1 prompt, 2 of the class prompt"
    assert found.notes == ("Of the subjects the first is measured, <a>, in rows that name it alone.",)
    assert "&lt;a&gt;" in figures.as_html(found)


def test_one_picture_a_prompt_has_no_div(tmp_path: Path, config: Config, photos: list[Image.Image]):
    without = load_encoders(EvaluationConfig(), "toybox", "cpu", perceptual=False)
    found = measured(drawn(tmp_path, ("Base model", "Your model"), count=1), config, photos, without)
    assert "div" not in found.rows[0].estimates
    assert found.notes == ("DIV compares pictures of one prompt: ask for two or more a prompt.",)


def test_the_table_has_a_row_a_model_and_says_what_each_metric_tells(
    tmp_path: Path, config: Config, photos: list[Image.Image], encoders: Encoders
):
    found = measured(drawn(tmp_path, ("Base model", "Without PPL", "With PPL")), config, photos, encoders)
    shown = figures.as_html(found)
    assert shown.count("<tr class=") == 5
    for row in found.rows:
        pres = row.estimates["pres"]
        assert f"<td data-metric='PRES'>{pres.value:.3f}<small>{pres.low:.3f} to {pres.high:.3f}</small></td>" in shown
    assert "With PPL − without PPL</th>" in shown
    assert f"{found.differences[0].estimates['div'].value:+.3f}<small>" in shown
    assert "PRES ↓" in shown
    assert "By toybox ViT patch distance." in shown
    values = figures.as_dict(found)
    assert values["models"]["With PPL"]["pres"]["low"] == found.rows[2].estimates["pres"].low
    assert values["differences"]["With PPL"]["div"]["value"] == found.differences[0].estimates["div"].value
    assert values["photos"] == found.ceilings
