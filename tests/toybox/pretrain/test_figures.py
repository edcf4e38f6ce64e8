"""The figures of the model card, each with very few pictures in very few sampling steps."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dreambooth.config.sections import SamplingConfig
from dreambooth.errors import ModelError
from dreambooth.generate import open_source
from dreambooth.toybox.pretrain import figures
from dreambooth.toybox.pretrain.judge import load_judge
from dreambooth.toybox.pretrain.measures import judge_look
from tests import pictures as made_up


def quickly(name, **options):
    return replace(open_source(name, **options), sampling=SamplingConfig(steps=1, guidance_scale=1.0))


@pytest.fixture(autouse=True)
def _few_kinds(monkeypatch):
    """Two classes in two contexts, drawn in one step."""
    monkeypatch.setattr(figures, "CLASSES", figures.CLASSES[:2])
    monkeypatch.setattr(figures, "CONTEXTS", dict(list(figures.CONTEXTS.items())[:2]))
    monkeypatch.setattr(figures, "open_source", quickly)


@pytest.fixture
def folders(judged, tmp_path):
    return figures.Folders(tmp_path / "docs", judged, encoders=tmp_path / "none")


def cells(markdown):
    """The rows of Markdown's tables below their headers, each a list of cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line]
    return [row for row in rows if set(row) != {"---"}]


def test_vae_is_measured_on_renders_and_on_real_photos(folders, tmp_path):
    (tmp_path / "photos").mkdir()
    made_up.saved(tmp_path / "photos", [made_up.scene(0), made_up.scene(1)])
    rows = cells(figures.vae(replace(folders, photos=tmp_path / "photos"), count=2))
    assert [row[0] for row in rows[1:]] == ["2 held-out pictures", "2 real photos"]
    for row in rows[1:]:
        assert 15 < float(row[1].removesuffix(" dB")) < 50
    with Image.open(tmp_path / "docs" / "toybox-photos.jpg") as sheet:
        assert sheet.size == (2 * 132 + 4, 2 * 132 + 4)


def test_grids_are_drawn(folders):
    assert "guidance 1 in 1 steps" in figures.grids(folders)
    assert sorted(path.name for path in folders.out.iterdir()) == ["toybox-grid.jpg", "toybox-styles.jpg"]


def test_the_judges_own_accuracy_stands_beside_the_models(folders):
    rows = cells(figures.judged(folders, each=1, held_out=4))
    assert [row[0] for row in rows[1:]] == [
        "4 held-out renders, photos",
        "4 held-out renders, all styles",
        "4 pictures, guidance 1",
        "lowest class, lowest context",
    ]
    assert rows[3][1] in ("0.0%", "25.0%", "50.0%", "75.0%", "100.0%")
    assert rows[4][1].split()[0] in ("dog", "cat")


def test_surfaces_stand_beside_the_renders_own(folders):
    rows = cells(figures.surfaces(folders, each=1))
    assert [row[0] for row in rows] == [
        "surfaces, 4 pictures each",
        "held-out renders",
        "the same through the VAE",
        "drawn, guidance 1",
    ]
    for row in rows[1:]:
        assert 0 < float(row[1].removesuffix("%")) < 100
        assert float(row[2]) > 1
    assert rows[1][3] == ""
    assert rows[3][3].split()[0] in ("dog", "cat")


def test_variety_is_told_by_every_look_there_is(folders, exported):
    rows = cells(figures.variety(replace(folders, encoders=exported / "encoders"), each=3))
    assert [row[0] for row in rows[1:]] == [
        "DIV as `evaluate` measures it",
        "1 - cosine, judge",
        "1 - cosine, CLIP",
        "1 - cosine, ViT",
        "RMS of pixels at 32 px",
    ]
    for row in rows[1:]:
        drawn, real = float(row[1]), float(row[2])
        assert real > 0
        assert int(row[3].removesuffix("%")) == pytest.approx(100 * drawn / real, abs=1.5)


def test_real_pictures_for_variety_show_as_many_things():
    pictures = figures._other_things("dog", 5)
    assert pictures.shape == (5, 128, 128, 3)
    assert len({picture.tobytes() for picture in pictures}) == 5
    assert np.array_equal(pictures, figures._other_things("dog", 5))


def test_encoders_are_measured_beside_pixels_and_chance(folders, exported):
    rows = cells(figures.encoders(replace(folders, encoders=exported / "encoders"), count=4, things=2, views=2))
    assert rows[0][0] == "CLIP zero-shot on 4 held-out renders"
    assert rows[3] == ["identity, 8 held-out renders of 4 things", "AUC"]
    assert [row[0] for row in rows[4:]] == ["ViT", "CLIP", "pixels at 64 px", "ViT with random weights"]
    assert all(0 <= float(row[1]) <= 1 for row in rows[4:])
    with pytest.raises(ModelError, match="holds no clip and no vit"):
        figures.encoders(folders)


@pytest.mark.slow
def test_dreambooth_measures_real_base_and_both_ways(folders, judged, tmp_path):
    quick = {
        "train": {"steps": 1, "crops_per_photo": 1},
        "prior": {"num_images": 2, "steps": 1},
        "sampling": {"steps": 1},
    }
    folders = replace(folders, work=tmp_path)
    (tmp_path / "judge.pt").write_bytes((judged / "judge.pt").read_bytes())
    said = figures.dreambooth(folders, ["backpack"], each=1, class_pictures=2, settings=quick)
    assert said.startswith("1 subjects, 1 steps at 0.0002, 1 pictures a prompt, 2 of the class prompt\n")
    rows = cells(said)[1:]
    assert rows[0][2] == "subject (judge) ↑"
    ways = ["real", "base", "no PPL", "PPL"]
    assert [row[:2] for row in rows[1:]] == [[who, way] for who in ("all", "backpack") for way in ways]
    assert [row[2:] for row in rows[1:5]] == [row[2:] for row in rows[5:]], "the mean of one"
    with Image.open(tmp_path / "dreambooth-backpack.jpg") as sheet:
        assert sheet.size == (7 * 132 + 4, 4 * 132 + 4)  # 2 contexts, 4 styles, the class


def test_real_pictures_of_a_subject_are_most_like_its_photos(judged):
    judge = load_judge(judged)
    look = judge_look(judge)
    real = figures._real("cat", 2, 3)
    photos = real.contexts[::2]
    own = figures.measure(real, photos, look, judge)
    assert own[0] == pytest.approx(float((look(real.contexts) @ look(photos).T).mean()))
    other = replace(real, contexts=real.contexts[:, ::-1, :, ::-1], styles=figures._real("robot", 2, 3).styles)
    turned = figures.measure(other, photos, look, judge)
    assert turned[0] < own[0]
    assert turned[4] < own[4], "a robot's hues are not the cat's"


def test_the_command_prints_the_figures_asked_for(judged, tmp_path, monkeypatch):
    monkeypatch.setitem(figures.FIGURES, "vae", partial(figures.vae, count=2))
    options = ["--out", str(tmp_path), "--work", str(judged)]
    result = CliRunner().invoke(figures.main, [*options, "--only", "vae"])
    assert result.exit_code == 0, result.output
    assert "| 2 held-out pictures | " in result.output


def test_the_command_says_what_is_missing(tmp_path):
    result = CliRunner().invoke(figures.main, ["--work", str(tmp_path), "--only", "judge"])
    assert result.exit_code == 1
    assert "python -m dreambooth.toybox.pretrain.judge" in result.output
