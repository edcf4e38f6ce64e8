"""Folders of subjects: whose class noun is known, and the paper's thirty, from a Hub on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dreambooth.errors import ConfigError, HubError
from dreambooth.evaluation.subjects import fetch_paper_subjects, list_subjects, read_class_nouns
from tests import tiny
from tests.models.test_fetch import closed_port, loopback_hub, point_client_at
from tests.test_files import SAVED

TABLE = "Classes\n\nsubject_name,class\ndog6,dog\nbear_plushie,stuffed animal\ndog10,dog\n\nPrompts\n\nObject Prompts\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three subjects as the paper's repository keeps its own."""
    for name in ("dog6", "dog10", "bear_plushie", ".git"):
        (tmp_path / "subjects" / name).mkdir(parents=True)
    (tmp_path / "subjects" / "prompts_and_classes.txt").write_text(TABLE)
    (tmp_path / "subjects" / "LICENSE.md").write_text("CC BY 4.0")
    return tmp_path / "subjects"


# ---- Class nouns


def test_class_nouns_stand_in_the_papers_own_file(folder):
    assert list_subjects(folder, {}) == {"bear_plushie": "stuffed animal", "dog10": "dog", "dog6": "dog"}


def test_the_table_may_end_with_the_file(folder):
    (folder / "prompts_and_classes.txt").write_text("subject_name,class\ndog6, dog \n")
    assert read_class_nouns(folder) == {"dog6": "dog"}


@pytest.mark.parametrize("encode", SAVED.values(), ids=SAVED)
def test_the_table_is_read_as_every_editor_saves_it(folder, encode):
    (folder / "prompts_and_classes.txt").write_bytes(encode(TABLE.replace("\n", "\r\n")))
    assert list_subjects(folder, {}) == {"bear_plushie": "stuffed animal", "dog10": "dog", "dog6": "dog"}


def test_one_subjects_own_folder_is_told_from_a_folder_of_subjects(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no folders, but 3 photos: it is one subject's\. Give"):
        list_subjects(tiny.photos(tmp_path / "dog6"), {})


def test_what_is_asked_goes_before_the_file_and_one_for_all_after_it(folder):
    (folder / "ida").mkdir()
    found = list_subjects(folder, {"dog10": "puppy"}, "thing")
    assert found == {"bear_plushie": "stuffed animal", "dog10": "puppy", "dog6": "dog", "ida": "thing"}


def test_subjects_without_a_class_noun_are_named(folder):
    (folder / "ida").mkdir()
    (folder / "tom").mkdir()
    with pytest.raises(ConfigError, match="No class noun is known for ida, tom in") as caught:
        list_subjects(folder, {})
    assert "under `classes`, for example {ida: dog}" in caught.value.hint


def test_a_class_noun_for_nobody_is_refused(folder):
    with pytest.raises(ConfigError, match=r"there is no dgo6 in .*Correct the name"):
        list_subjects(folder, {"dgo6": "dog"})


@pytest.mark.parametrize("text", [b"dog6,dog\n", b"subject_name,class\ndog6\n", b"\xff\xfe\x00"])
def test_a_table_that_is_none_is_told(folder, text):
    (folder / "prompts_and_classes.txt").write_bytes(text)
    with pytest.raises(ConfigError, match=r"prompts_and_classes.txt can't be read .*Write the line subject_name,class"):
        list_subjects(folder, {})


def test_a_folder_without_subjects_is_told(tmp_path):
    with pytest.raises(ConfigError, match="can't be read \\(No such file or directory\\)"):
        list_subjects(tmp_path / "none", {})
    with pytest.raises(ConfigError, match="holds no folders"):
        list_subjects(tmp_path, {})


# ---- The paper's


@pytest.fixture
def published(tmp_path) -> Path:
    """A repo laid out as huggingface.co/datasets/google/dreambooth: 30 folders, and files beside them."""
    repo = tmp_path / "published"
    rows = []
    for number in range(30):
        photos = repo / "dataset" / f"subject{number}"
        photos.mkdir(parents=True)
        for photo in range(2):
            (photos / f"{photo:02d}.jpg").write_bytes(b"photo %d of %d" % (photo, number))
        rows.append(f"subject{number},{'dog' if number % 2 else 'backpack'}\n")
    (repo / "dataset" / "prompts_and_classes.txt").write_text(f"Classes\n\nsubject_name,class\n{''.join(rows)}\n")
    (repo / "README.md").write_text("# DreamBooth Dataset")
    return repo


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    with loopback_hub(published, tmp_path / "hub", monkeypatch, "google/dreambooth") as server:
        yield server


def test_the_papers_subjects_are_downloaded_once(hub, published, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    folder = fetch_paper_subjects()
    assert folder == tmp_path / "cache" / "paper-subjects"
    assert (folder / "subject7" / "01.jpg").read_bytes() == b"photo 1 of 7"
    nouns = list_subjects(folder, {})
    assert len(nouns) == 30
    assert nouns["subject7"] == "dog"
    assert len(hub.sent) == 61, "what is not theirs is left there"
    assert hub.tokens == {None}, "everybody may read it, so nobody is told who we are"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["paper-subjects"]
    shutil.rmtree(published)
    hub.sent.clear()
    assert fetch_paper_subjects() == folder
    assert not hub.sent


def test_a_download_that_broke_off_goes_on(hub, tmp_path):
    hub.cut = "subject9/01.jpg"
    with pytest.raises(HubError, match=r"The paper's subjects can't be downloaded: .*Try again, what arrived is kept"):
        fetch_paper_subjects()
    assert not (tmp_path / "cache" / "paper-subjects").exists()
    partial = tmp_path / "cache" / ".paper-subjects.partial"
    arrived = {path.relative_to(partial).as_posix() for path in (partial / "dataset").rglob("*.jpg")}
    hub.cut = "nothing"
    hub.sent.clear()
    folder = fetch_paper_subjects()
    assert (folder / "subject9" / "01.jpg").read_bytes() == b"photo 1 of 9"
    assert len(list(folder.rglob("*.jpg"))) == 60
    assert arrived
    assert arrived.isdisjoint(hub.sent), "what arrived is not fetched again"
    assert "dataset/subject9/01.jpg" in hub.sent


def test_a_repo_with_fewer_subjects_is_told(hub, published, tmp_path):
    shutil.rmtree(published / "dataset" / "subject3")
    with pytest.raises(HubError, match="did not arrive whole: 29 of 30, and 0 files are missing"):
        fetch_paper_subjects()
    assert not (tmp_path / "cache" / "paper-subjects").exists()


def test_without_a_network_it_says_what_can_be_done(tmp_path, monkeypatch):
    point_client_at(closed_port(), tmp_path / "hub", monkeypatch)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with pytest.raises(HubError, match="can't be downloaded") as caught:
        fetch_paper_subjects()
    assert "clone https://github.com/google/dreambooth and give its dataset folder" in caught.value.hint
