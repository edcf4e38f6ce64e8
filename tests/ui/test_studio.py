"""Settings, whose run is whose, what is kept of uploads, what may start, what is removed, and errors as sentences."""

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import merge
from dreambooth.errors import ConfigError, PhotoError, RunError
from dreambooth.photos.prepare import (
    MIN_SIDE,
    Crop,
    checked_crop,
    find_photos,
    prepare_photo,
    prepare_photos,
    shown_pixels,
)
from dreambooth.runs.directory import Run, list_runs
from dreambooth.runs.owners import new_owner
from dreambooth.runs.worker import Worker
from dreambooth.ui import in_plain_words
from dreambooth.ui import studio as studio_module
from dreambooth.ui.doors import room
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.studio import RECIPES, Studio, Upload, title
from tests.ui import studios

ANNA, BERT = new_owner(), new_owner()
CAT = {"identifier": "ohwx", "class_noun": "cat"}
ROOMY = {"visitor_gb": 100, "disk_gb": 100}
"""Room for a base model that is not here, so that no more is known of it."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def make_studio(root: Path):
    """A function that makes a studio with these settings whose worker trains nothing."""
    return lambda **settings: Studio(
        root, {"tiny": "models/tiny"}, Worker(root, parallel=0), StudioSettings(**settings)
    )


@pytest.fixture
def studio(make_studio) -> Studio:
    return make_studio()


@pytest.fixture
def photos(photo_folder: Path) -> list[str]:
    return [str(path) for path in sorted(photo_folder.iterdir())]


def settings(subject: dict | None = None, **others: object) -> dict:
    return {"base_model": "models/tiny", "subject": {"class_noun": "dog", **(subject or {})}, **others}


def ended(run: Run, event: events.Event | None = None) -> Run:
    run.append(event or events.Finished("model", 1.0))
    return run


def test_a_studio_is_as_the_environment_says(tiny_model: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DREAMBOOTH_BASE_MODEL", str(tiny_model))
    monkeypatch.setenv("DREAMBOOTH_MAX_RUNS", "7")
    studio = Studio.from_environment()
    assert (studio.root, studio.settings.max_runs, studio.public) == (root.resolve(), 7, False)
    assert (studio.default_model, studio.resolution) == (tiny_model.name, 32)
    assert studio.model(tiny_model.name) == str(tiny_model)


# ---- Whose run is whose


def test_only_the_owner_sees_and_opens_a_run(studio: Studio, photos: list[str]):
    [run] = studio.start(ANNA, settings(), photos)
    unowned = Run.create(Config.from_dict(settings({"photos": "."})), studio.root / "made-elsewhere")
    shutil.copytree(run.path, studio.root / f".dreambooth-partial-0123abcd-{run.id}")
    assert studio.own_run(ANNA, run.id) == run
    assert studio.own_runs(ANNA) == [run]
    assert studio.own_runs(BERT) == []
    assert ANNA not in (run.path / "owner").read_text()
    for owner, run_id in [
        (BERT, run.id),
        (ANNA, unowned.id),
        (ANNA, f"../runs/{run.id}"),
        (ANNA, str(run.path)),
        (ANNA, ""),
        (ANNA, "."),
        (ANNA, f".dreambooth-partial-0123abcd-{run.id}"),
        (ANNA, f"{run.id}/owner"),
        (ANNA, None),
        ("", run.id),
        (None, run.id),
    ]:
        for action in (studio.own_run, studio.stop, studio.resume, studio.delete):
            with pytest.raises(RunError):
                action(owner, run_id)
    assert run.status == "queued"


def test_a_run_whose_settings_can_not_be_read_does_not_hide_the_others(studio: Studio, photos: list[str]):
    good, bad = (studio.start(ANNA, settings(), photos)[0] for _ in range(2))
    assert {title(run) for run in studio.own_runs(ANNA)} == {"sks dog"}
    (bad.path / "config.yaml").write_text("of: another version")
    assert studio.own_runs(ANNA) == [good]


DAMAGE = {
    "of another version": lambda run: (run / "config.yaml").write_text("of: another version"),
    "empty": lambda run: (run / "config.yaml").write_text(""),
    "zeros": lambda run: (run / "config.yaml").write_bytes(bytes(500)),
    "lost": lambda run: (run / "config.yaml").unlink(),
    "and its events": lambda run: ((run / "config.yaml").write_text(""), (run / "events.jsonl").write_bytes(bytes(9))),
    "and its events lost": lambda run: ((run / "config.yaml").unlink(), (run / "events.jsonl").unlink()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(
    "last",
    [events.RunQueued(), events.Stage("train"), events.Finished("model", 1.0)],
    ids=lambda event: type(event).__name__,
)
def test_a_damaged_run_is_its_owners_to_see_and_to_delete(studio: Studio, photos: list[str], damage, last):
    good, bad = (studio.start(ANNA, settings(), photos)[0] for _ in range(2))
    bad.append(last)
    assert studio.damaged_runs(ANNA) == []
    damage(bad.path)
    assert (studio.own_runs(ANNA), studio.damaged_runs(ANNA)) == ([good], [bad])
    assert (studio.is_damaged(ANNA, bad.id), studio.is_damaged(ANNA, good.id)) == (True, False)
    for action in (studio.own_run, studio.stop, studio.resume):
        with pytest.raises(RunError, match="This run is damaged"):
            action(ANNA, bad.id)
    assert (studio.damaged_runs(BERT), studio.is_damaged(BERT, bad.id)) == ([], False)
    with pytest.raises(RunError, match="You have no such run"):
        studio.delete(BERT, bad.id)
    studio.delete(ANNA, bad.id)
    assert not bad.path.exists()
    assert (studio.own_runs(ANNA), studio.worker.position(good)) == ([good], 1)


def test_a_run_with_damaged_events_can_be_deleted_by_its_owner(studio: Studio, photos: list[str]):
    [run] = studio.start(ANNA, settings(), photos)
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(bytes(40) + b"\n")
    assert studio.own_runs(ANNA) == [run]
    studio.stop(ANNA, run.id)
    studio.delete(ANNA, run.id)
    assert list(studio.root.iterdir()) == []


def test_a_mark_that_is_damaged_makes_a_run_nobodys_and_hides_no_other(studio: Studio, photos: list[str]):
    good, bad = (studio.start(ANNA, settings(), photos)[0] for _ in range(2))
    for junk in (b"", bytes(64), b"\xff\xfe"):
        (bad.path / "owner").write_bytes(junk)
        assert (studio.own_runs(ANNA), studio.damaged_runs(ANNA)) == ([good], [])


def test_a_copied_or_renamed_run_is_listed_and_can_be_used(studio: Studio, photos: list[str]):
    [run] = studio.start(ANNA, settings(), photos)
    for name in ("best_dog", f"{run.id} (Copy)"):
        shutil.copytree(run.path, studio.root / name)
        assert studio.own_run(ANNA, name) in studio.own_runs(ANNA)
    assert len(studio.own_runs(ANNA)) == 3


# ---- What is kept of uploads


def test_photos_are_kept_under_names_of_our_own_and_without_metadata(studio: Studio, tmp_path: Path):
    photo = tmp_path / "<script>alert(1)<:script>.jpg"
    exif = Image.Exif()
    exif[0x010E] = "my garden"
    Image.new("RGB", (80, 64), "red").save(photo, exif=exif)
    runs = studio.start(ANNA, settings(), [str(photo)], ways="two")
    for run in runs:
        [kept] = (run.path / "uploads").iterdir()
        assert kept.name == "00.png"
        assert run.config.subject.photos == kept.parent
        with Image.open(kept) as image:
            assert image.size == (80, 64)
            assert not image.info
            assert not image.getexif()


def test_crop_boxes_mean_the_same_on_the_smaller_photos_that_are_kept(
    studio: Studio, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large = str(tmp_path / "large.png")
    with Image.open(photos[0]) as image:
        image.resize((600, 480), Image.Resampling.BICUBIC).save(large)
    monkeypatch.setattr(studio_module, "KEPT_SIDE", 240)
    box = Crop(250, 30, 599, 380)  # a pixel from square, as boxes drawn by hand are
    [run] = studio.start(ANNA, settings(), [photos[1], large], crops=[None, box])
    assert run.config.subject.crops == {"01.png": (125, 15, 299, 189)}
    kept = prepare_photos(find_photos(run.path / "uploads"), 64, run.config.subject.crops)
    assert [photo.chosen for photo in kept] == [False, True]
    difference = ImageChops.difference(kept[1].image, prepare_photo(large, 64, box).image)
    assert max(ImageStat.Stat(difference).mean) < 3


@given(st.integers(64, 5000), st.integers(64, 5000), st.data())
def test_a_scaled_box_is_a_square_inside_the_scaled_photo(width: int, height: int, data: st.DataObject):
    side = data.draw(st.integers(64, min(width, height)))
    left, top = data.draw(st.integers(0, width - side)), data.draw(st.integers(0, height - side))
    scale = min(1.0, 2048 / min(width, height))
    size = (round(width * scale), round(height * scale))
    try:
        box = studio_module._scaled(Crop(left, top, left + side, top + side), scale, size, "a.jpg")
    except PhotoError:
        assert side * scale < MIN_SIDE
        return
    assert checked_crop(box, size, "a.jpg") == box
    assert max(abs(box.left - left * scale), abs(box.top - top * scale), abs(box.side - side * scale)) <= 1.5


def test_a_box_that_is_too_small_once_the_photo_is_scaled_is_refused_in_the_uploads_pixels(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Image.new("RGB", (1000, 800)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(studio_module, "KEPT_SIDE", 400)
    with pytest.raises(PhotoError, match=r"a\.jpg: the crop box is too small.*at least 128 pixels"):
        studio.start(ANNA, settings(), [str(tmp_path / "a.jpg")], crops=[Crop(0, 0, 120, 120)])
    assert studio.start(ANNA, settings(), [str(tmp_path / "a.jpg")], crops=[Crop(0, 0, 128, 128)])


# ---- What may start


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"settings": settings({"class_noun": "{0}"})}, ConfigError, "class_noun"),
        ({"settings": settings({"identifier": ""})}, ConfigError, "identifier"),
        ({"settings": settings(train={"stepz": 3})}, ConfigError, "stepz"),
        ({"settings": settings(base_model="other/model")}, ConfigError, "not on offer. Choose tiny"),
        ({"settings": {"base_model": "models/tiny"}}, ConfigError, "class_noun"),
        ({"settings": settings(prior={"weight": 0}), "ways": "two"}, ConfigError, "prior.weight is 0"),
        (
            {
                "settings": settings(
                    method="textual_inversion",
                    train={"text_encoder": False},
                    prior={"enabled": False},
                    subject={"identifier": "<sks>"},
                ),
                "ways": "two",
            },
            ConfigError,
            "changes nothing that PPL could keep",
        ),
        ({"ways": "three"}, ConfigError, "drift.weight is 0"),
        ({"ways": "four"}, ConfigError, "ways is 'four'"),
        ({"settings": settings(train={"steps": 3001})}, ConfigError, "train.steps is 3001.* 3000 at most"),
        ({"others": [Upload(["a.jpg"])]}, ConfigError, "photos of 2 subjects and words for 1"),
        ({"settings": settings(more_subjects=[CAT])}, ConfigError, "photos of 1 subject and words for 2"),
        ({"settings": settings(more_subjects=[CAT]), "others": [Upload([])]}, PhotoError, "no photos yet"),
        (
            {"settings": settings(more_subjects=[CAT]), "others": [Upload(["a.jpg"] * 48)]},
            PhotoError,
            "51 photos are too",
        ),
        (
            {"settings": settings(more_subjects=[CAT], prior={"num_images": 201}), "others": [Upload(["a.jpg"])]},
            ConfigError,
            "prior.num_images for 3 class prompts together is 603.* 600 at most",
        ),
        (
            {"settings": settings(more_subjects=[CAT | {"class_noun": "woman"}]), "others": [Upload(["a.jpg"])]},
            ConfigError,
            "Photos of people need consent",
        ),
        (
            {"settings": settings(more_subjects=[CAT | {"identifier": "sks"}]), "others": [Upload(["a.jpg"])]},
            ConfigError,
            "two subjects have the identifier 'sks'",
        ),
        ({"settings": settings(prior={"num_images": 601})}, ConfigError, "prior.num_images is 601.* 600 at most"),
        ({"settings": settings(prior={"enabled": False, "num_images": 601}), "ways": "two"}, ConfigError, "600 at"),
        ({"settings": settings(train={"keep_checkpoints": 3})}, ConfigError, "keep_checkpoints is 3"),
        ({"settings": settings({"class_noun": "Young Woman"})}, ConfigError, "Photos of people need consent. Tick"),
        ({"settings": settings({"class_noun": "man"}), "consent": "no"}, ConfigError, "consent"),
        ({"settings": settings({"photos": "/etc"}), "photos": []}, PhotoError, "no photos"),
        ({"photos": ["a.jpg"] * 51}, PhotoError, "51 photos are too many"),
        ({"crops": [None]}, PhotoError, "1 crop boxes for 3 photos"),
        ({"crops": [None, None, (0, 0, 70, 64)]}, PhotoError, "photo2.jpg: the crop box .* is not square"),
        ({"crops": [None, None, (0, 0, 640, 640)]}, PhotoError, "photo2.jpg: the crop box .* is not inside the photo"),
        ({"crops": [None, None, "x"]}, PhotoError, "photo2.jpg: the crop box 'x' is not four numbers"),
        ({"owner": "x"}, RunError, "no owner id"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(make_studio, photos: list[str], asked: dict, error: type, said: str):
    studio = make_studio(public=True, **ROOMY)
    asked = {"owner": ANNA, "settings": settings(), "photos": photos} | asked
    with pytest.raises(error, match=said):
        studio.start(asked.pop("owner"), asked.pop("settings"), asked.pop("photos"), **asked)
    assert not studio.root.exists() or not any(studio.root.iterdir())
    assert studio.worker.waiting == 0


def test_a_subject_whose_name_would_not_be_read_is_refused_before_it_waits(
    tiny_model: Path, root: Path, photos: list[str]
):
    studio = Studio(root, {"tiny": str(tiny_model)}, Worker(root, parallel=0), StudioSettings())
    asked = settings({"identifier": "0123456789abcde"}, base_model=str(tiny_model))
    with pytest.raises(ConfigError, match="0123456789abcde is cut off, so that it would not be read"):
        studio.start(ANNA, asked, photos)
    assert list_runs(root) == []


def test_a_photo_that_can_not_be_read_leaves_nothing_behind(studio: Studio, photos: list[str], tmp_path: Path):
    (tmp_path / "a.jpg").write_text("not a photo")
    with pytest.raises(PhotoError, match=r"a\.jpg"):
        studio.start(ANNA, settings(), [*photos, str(tmp_path / "a.jpg")], ways="two")
    assert list(studio.root.iterdir()) == []


def test_people_consent_only_where_strangers_come(make_studio, photos: list[str]):
    public = make_studio(public=True, **ROOMY)
    assert public.public
    assert public.start(ANNA, settings({"class_noun": "man"}), photos, consent=True)
    assert make_studio().start(ANNA, settings({"class_noun": "man"}), photos)
    with pytest.raises(ConfigError, match="consent"):  # whatever the class is called
        public.start(BERT, settings(preset="sd15-person"), photos)


def test_both_ways_are_the_same_but_for_ppl_and_know_each_other(studio: Studio, photos: list[str]):
    crops = [Crop(0, 0, 64, 64), None, None]
    asked = settings(seed=7, prior={"enabled": False, "num_images": 5})
    runs = studio.start(ANNA, asked, photos, crops=crops, ways="two")
    with_ppl, without = (run.config.model_dump() for run in runs)
    assert [with_ppl["prior"].pop("enabled"), without["prior"].pop("enabled")] == [True, False]
    assert with_ppl["subject"].pop("photos") != without["subject"].pop("photos")
    assert with_ppl == without
    assert (with_ppl["seed"], with_ppl["subject"]["crops"]) == (7, {"00.png": (0, 0, 64, 64)})
    assert [studio.partner(run) for run in runs] == runs[::-1]
    assert [studio.worker.position(run) for run in runs] == [1, 2]

    [alone] = studio.start(ANNA, settings(), photos)
    [berts] = studio.start(BERT, settings(), photos)
    assert studio.partner(alone) is None
    for forged in (berts.id, alone.id, runs[0].id, f"../runs/{berts.id}", "", "\0"):
        (alone.path / "partner").write_text(forged)
        (berts.path / "partner").write_text(alone.id)
        assert studio.partner(alone) in (None, alone), forged
    studio.stop(ANNA, runs[0].id)
    studio.delete(ANNA, runs[0].id)
    assert studio.partner(runs[1]) is None


def test_the_other_way_makes_a_pair_of_a_run_that_was_trained_one_way(make_studio, photos: list[str]):
    studio = make_studio(max_runs=2)
    asked = settings(seed=7, prior={"enabled": False, "num_images": 5})
    [one] = studio.start(ANNA, asked, photos, crops=[Crop(0, 0, 64, 64), None, None])
    with pytest.raises(RunError, match=r"is queued\. Wait for its end"):
        studio.train_other_way(ANNA, one.id)
    ended(one)
    [newer] = studio.start(ANNA, settings(), photos)
    with pytest.raises(RunError, match="You have no such run"):
        studio.train_other_way(BERT, one.id)
    with pytest.raises(RunError, match="Delete one first"):  # and not the one that is wanted, though it is the oldest
        studio.train_other_way(ANNA, one.id)
    assert studio.partner(one) is None
    studio.stop(ANNA, newer.id)

    other = studio.train_other_way(ANNA, one.id)
    assert set(studio.own_runs(ANNA)) == {one, other}
    assert (studio.partner(one), studio.partner(other), other.status) == (other, one, "queued")
    first, second = (run.config.model_dump() for run in (one, other))
    assert [first["prior"].pop("enabled"), second["prior"].pop("enabled")] == [False, True]
    assert first["subject"].pop("photos") != second["subject"].pop("photos")
    assert first == second
    for name in ("00.png", "01.png", "02.png"):
        assert (one.path / "uploads" / name).read_bytes() == (other.path / "uploads" / name).read_bytes()
    with pytest.raises(RunError, match="both ways already"):
        studio.train_other_way(ANNA, one.id)

    studio.stop(ANNA, other.id)
    studio.delete(ANNA, other.id)
    assert studio.partner(studio.train_other_way(ANNA, one.id)) == one, "once its pair is gone it can have another"


def test_three_ways_differ_in_what_keeps_the_class_and_know_each_other(make_studio, photos: list[str]):
    studio = make_studio(max_waiting=3)
    runs = studio.start(ANNA, settings(drift={"weight": 0.5}), photos, ways="three")
    assert [run.config.condition for run in runs] == ["with PPL", "without PPL", "with drift penalty"]
    assert runs[2].config.drift.weight == 0.5
    for run in runs:
        assert studio.partners(run) == [other for other in runs if other != run]
        assert (
            run.config.model_copy(
                update={
                    "prior": runs[0].config.prior,
                    "drift": runs[0].config.drift,
                    "subject": runs[0].config.subject,
                }
            )
            == runs[0].config
        )
    studio.stop(ANNA, runs[1].id)
    studio.delete(ANNA, runs[1].id)
    assert studio.partners(runs[0]) == [runs[2]]


# ---- Several subjects, and words that were learned


def test_every_subject_has_its_photos_boxes_and_copies_in_each_way(studio: Studio, photos: list[str]):
    box = Crop(0, 0, 64, 64)
    runs = studio.start(
        ANNA, settings(more_subjects=[CAT]), photos, others=[Upload(photos[:2], [None, box])], ways="two"
    )
    for run in runs:
        dog, cat = run.config.subjects
        assert (cat.identifier, cat.class_noun, cat.crops) == ("ohwx", "cat", {"01.png": box})
        assert (dog.photos, cat.photos) == (run.path / "uploads", run.path / "uploads" / "subject-2")
        assert [len(find_photos(subject.photos)) for subject in (dog, cat)] == [3, 2]
    assert title(runs[0]) == "sks dog and ohwx cat"
    [alone] = studio.start(ANNA, settings(more_subjects=[CAT]), photos, others=[Upload(photos[:1])])
    other = studio.train_other_way(ANNA, ended(alone).id)
    assert find_photos(other.config.subjects[1].photos) == [other.path / "uploads" / "subject-2" / "00.png"]


def learned_run(studio: Studio, photo_folder: Path, **changes: object) -> Run:
    """A run of Anna's that has learned the word <sks>."""
    asked = {"method": "textual_inversion", "subject": {"identifier": "<sks>"}, "train": {"text_encoder": False}}
    [run] = studios.finished_runs(studio, photo_folder, **asked | changes)
    return run


def pivotal(studio: Studio, run: Run, identifier: str = "<sks>", **changes: object) -> dict:
    subject = {"identifier": identifier, "class_noun": "dog"}
    return {"base_model": studio.model("tiny-sd"), "method": "lora", "subject": subject} | changes


def test_lora_goes_on_from_a_learned_word_that_it_keeps_a_copy_of(
    tmp_path: Path, tiny_model: Path, photo_folder: Path, photos: list[str]
):
    studio = studios.studio(tmp_path / "runs", tiny_model)
    run = learned_run(studio, photo_folder)
    lora, other = studio.start(studios.ANNA, pivotal(studio, run), photos, learned=run.id, ways="two")
    learned = (run.path / "model" / "learned_embeds.safetensors").read_bytes()
    studio.delete(studios.ANNA, run.id)
    for one in (lora, other, studio.train_other_way(studios.ANNA, _alone(studio, lora))):
        assert one.config.word.learned == one.path / "word"
        assert (one.path / "word" / "learned_embeds.safetensors").read_bytes() == learned


def _alone(studio: Studio, run: Run) -> str:
    """The run, finished and without its pair."""
    for partner in studio.partners(ended(run)):
        (partner.path / "partner").unlink()
    return run.id


def test_a_word_is_taken_from_no_run_but_ones_own_of_the_same_kind(
    tmp_path: Path, tiny_model: Path, photo_folder: Path, photos: list[str]
):
    studio = studios.studio(tmp_path / "runs", tiny_model)
    studio.base_models["other"] = "models/other"
    run, [lora] = learned_run(studio, photo_folder), studios.finished_runs(studio, photo_folder, method="lora")
    before = list_runs(studio.root)
    for owner, asked, learned, error, said in (
        (studios.BERT, {}, run.id, RunError, "You have no such run"),
        (studios.ANNA, {}, "../runs", RunError, "You have no such run"),
        (studios.ANNA, {}, lora.id, ConfigError, "has not learned a word"),
        (studios.ANNA, {"base_model": "models/other"}, run.id, ConfigError, "another base model"),
        (studios.ANNA, {"identifier": "<ohwx>"}, run.id, ConfigError, "has learned <sks>, not <ohwx>"),
        (studios.ANNA, {"method": "custom_diffusion", "train": {"text_encoder": False}}, run.id, ConfigError, "lora"),
    ):
        with pytest.raises(error, match=said):
            studio.start(owner, pivotal(studio, run, **asked), photos, learned=learned)
    assert list_runs(studio.root) == before


def test_there_is_no_other_way_without_a_weight(studio: Studio, photos: list[str]):
    [run] = studio.start(ANNA, settings(prior={"weight": 0}), photos)
    with pytest.raises(ConfigError, match="both ways would be the same"):
        studio.train_other_way(ANNA, ended(run).id)


# ---- What a visitor does with runs


def test_a_run_is_stopped_resumed_and_deleted(studio: Studio, photos: list[str]):
    [run] = studio.start(ANNA, settings(train={"steps": 100}), photos, seconds=60)
    assert run.last_event().seconds == 60
    for refused in (studio.resume, studio.delete):
        with pytest.raises(RunError, match=r"queued|waits"):
            refused(ANNA, run.id)
    studio.stop(ANNA, run.id)
    assert (run.status, studio.worker.position(run)) == ("cancelled", None)
    for event in (events.Metric("estimated_seconds", 80.0, 0), events.Checkpoint("x", 25), events.Failed("E", "no")):
        run.append(event)
    studio.resume(ANNA, run.id)
    assert (run.status, studio.worker.position(run)) == ("queued", 1)
    assert run.last_event().seconds == 60, "three quarters of its own estimate are left"
    studio.stop(ANNA, run.id)
    studio.delete(ANNA, run.id)
    assert studio.own_runs(ANNA) == list_runs(studio.root) == []
    [over] = studio.start(ANNA, settings(), photos)
    with pytest.raises(RunError, match=r"is finished\. Only one that ended early"):
        studio.resume(ANNA, ended(over).id)


def test_runs_of_a_killed_studio_wait_again_as_they_were_asked_for(studio: Studio, make_studio, photos: list[str]):
    runs = [run for owner in (ANNA, BERT) for run in studio.start(owner, settings(), photos, seconds=9)]
    after = make_studio().worker
    assert [after.position(run) for run in runs] == [1, 2]


def test_what_is_asked_in_the_studio_is_trained(tiny_model: Path, root: Path, photos: list[str], make_config):
    studio = Studio(root, {"tiny": str(tiny_model)}, Worker(root))
    over, tidy = threading.Event(), studio.worker.after_run
    studio.worker.after_run = lambda run: (tidy(run), over.set())
    asked = make_config(train={"steps": 2}).model_dump(mode="json", exclude={"preset"})
    [run] = studio.start(ANNA, asked, photos, crops=[Crop(0, 0, 64, 64), None, None])
    assert over.wait(300)
    assert run.status == "finished"
    assert (run.path / "model" / "model_index.json").is_file()
    assert not (run.path / "checkpoints").exists(), "they are of no use any more"


# ---- Limits


def test_a_visitor_may_not_queue_more_than_the_limit(make_studio, photos: list[str]):
    studio = make_studio(max_waiting=3)
    first = studio.start(ANNA, settings(), photos, ways="two")
    with pytest.raises(RunError, match="2 of your trainings wait or run and this asks for 2 more; 3 at once"):
        studio.start(ANNA, settings(), photos, ways="two")
    studio.start(ANNA, settings(), photos)
    studio.stop(ANNA, first[0].id)
    studio.start(ANNA, settings(), photos)
    with pytest.raises(RunError, match="3 at once"):
        studio.resume(ANNA, first[0].id)
    assert len(studio.own_runs(ANNA)) == 4
    assert studio.start(BERT, settings(), photos)


@pytest.mark.attack
def test_one_address_can_not_fill_the_queue_under_many_ids(make_studio, photos: list[str], monkeypatch):
    studio, address = make_studio(max_queue=6), ["203.0.113.1"]
    monkeypatch.setattr(studio_module.lines, "caller", lambda: address[0])
    first, *_ = (studio.start(new_owner(), settings(), photos)[0] for _ in range(3))
    with pytest.raises(RunError, match="3 trainings that were asked for from your address wait or run"):
        studio.start(new_owner(), settings(), photos)
    address[0] = "203.0.113.2"
    assert studio.start(BERT, settings(), photos)
    address[0] = "203.0.113.1"
    studio.worker.stop(first)
    assert studio.start(new_owner(), settings(), photos)


def test_twenty_visitors_at_once_pass_no_limit_and_lose_no_run(make_studio, photos: list[str]):
    studio = make_studio(max_queue=25)
    visitors, refusals = [new_owner() for _ in range(20)], set()

    def ask(owner: str) -> list[Run]:
        try:
            return studio.start(owner, settings(), photos[:1], ways="two")
        except RunError as error:
            refusals.add(str(error))
            return []

    with ThreadPoolExecutor(20) as pool:
        got = dict(zip(visitors, pool.map(ask, visitors), strict=True))
    assert sum(map(len, got.values())) == studio.worker.waiting == len(list_runs(studio.root)) == 24
    assert refusals == {"The queue is full: 24 trainings wait. Come back later."}
    for owner, runs in got.items():
        assert set(studio.own_runs(owner)) == set(runs)
    assert [path.name for path in studio.root.glob(".*")] == []


def test_the_oldest_runs_make_room_for_a_visitors_new_one(make_studio, photos: list[str]):
    studio = make_studio(max_runs=4)
    [berts] = studio.start(BERT, settings(), photos)
    by_hand = Run.create(Config.from_dict(settings({"photos": "."})), studio.root / "made-elsewhere")
    published, waiting, old, less_old = (studio.start(ANNA, settings(), photos)[0] for _ in range(4))
    for run in (ended(berts), ended(by_hand), ended(old), ended(less_old, events.Cancelled(3))):
        assert not run.moving
    (ended(published).path / "published.json").write_text(json.dumps({}))
    [new] = studio.start(ANNA, settings(), photos)
    assert set(studio.own_runs(ANNA)) == {published, waiting, less_old, new}
    assert {berts, by_hand} <= set(list_runs(studio.root))

    before = list_runs(studio.root)
    with pytest.raises(RunError, match=r"You have 4 runs, the most that are kept here.*Delete one first"):
        studio.start(ANNA, settings(), photos, ways="two")  # one of the two would find a place
    assert list_runs(studio.root) == before, "nothing is removed for what is refused"


def test_a_run_is_kept_while_the_card_that_shows_it_is_published(make_studio, photos: list[str]):
    studio = make_studio(max_runs=2)
    one, other = (ended(run) for run in studio.start(ANNA, settings(), photos, ways="two"))
    trying = {"state": "uploading", "repo_id": "anna/dog", "private": True, "reason": "", "done": 1, "total": 2}
    (one.path / "publishing.json").write_text(json.dumps(trying))
    with FileLock(one.path / ".publishing.lock"):
        for run in (one, other):
            with pytest.raises(RunError, match="This run is being published, or its pair"):
                studio.delete(ANNA, run.id)
        with pytest.raises(RunError, match="You have 2 runs"):
            studio.start(ANNA, settings(), photos)
    studio.delete(ANNA, other.id)
    assert studio.own_runs(ANNA) == [one]


def held(studio: Studio, owner: str, photos: list[str], size: int = 0, hours: float = 0.0) -> Run:
    """A finished run of so many bytes more, which ended so many hours ago."""
    [run] = studio.start(owner, settings(base_model=studio.model("tiny-sd")), photos)
    (run.path / "model").write_bytes(bytes(size))
    ended(run)
    ago = time.time() - 3600 * hours
    os.utime(run.path / "events.jsonl", (ago, ago))
    return run


def bytes_of(studio: Studio, photos: list[str], **changes: object) -> int:
    """What a run may come to take."""
    [run] = studio.start(new_owner(), settings(base_model=studio.model("tiny-sd"), **changes), photos)
    run.append(events.Cancelled(0))
    size = room.promised(run)
    run.delete()
    return size


@pytest.fixture
def roomy(root: Path, tiny_model: Path):
    """A function that makes a studio, with a base model that is there, whose worker trains nothing."""
    return lambda **settings: studios.studio(root, tiny_model, **settings)


@pytest.mark.attack
def test_one_address_is_not_promised_the_disk_under_many_ids(roomy, photos: list[str], monkeypatch):
    coming = bytes_of(roomy(), photos)
    studio, address = roomy(visitor_gb=1.5 * coming / 1e9, disk_gb=20 * coming / 1e9), ["203.0.113.1"]
    monkeypatch.setattr(studio_module.lines, "caller", lambda: address[0])
    asked = settings(base_model=studio.model("tiny-sd"))
    first, *_ = (studio.start(new_owner(), asked, photos)[0] for _ in range(3))
    with pytest.raises(RunError, match=r"from your address may come to take .* at once are the limit here"):
        studio.start(new_owner(), asked, photos)
    address[0] = "203.0.113.2"
    assert studio.start(BERT, asked, photos)
    address[0] = "203.0.113.1"
    studio.worker.stop(first)
    assert studio.start(new_owner(), asked, photos)


def test_a_newcomer_costs_nobody_a_run_of_this_day(roomy, photos: list[str]):
    coming, large = bytes_of(roomy(), photos), 50_000_000
    studio = roomy(disk_gb=(large + coming) / 1e9)
    annas = held(studio, ANNA, photos, large, hours=20)
    with pytest.raises(RunError, match=r"full with others' runs of this day.*Come back in 4 hours"):
        studio.start(BERT, settings(base_model=studio.model("tiny-sd")), photos)
    assert list_runs(studio.root) == [annas]
    assert not list(studio.root.glob(".*")), "no photo was written"
    os.utime(annas.path / "events.jsonl", (0, 0))
    [berts] = studio.start(BERT, settings(base_model=studio.model("tiny-sd")), photos)
    assert list_runs(studio.root) == [berts], "the next day it makes room"


def test_ones_own_runs_make_room_first_then_the_oldest_of_whoever_holds_most(roomy, photos: list[str]):
    coming, piece = bytes_of(roomy(), photos), 30_000_000
    big, small = new_owner(), new_owner()
    everything = roomy()
    oldest = held(everything, small, photos, piece, hours=90)
    first, second = (held(everything, big, photos, piece, hours=hours) for hours in (60, 30))
    own = held(everything, ANNA, photos, piece, hours=1)
    by_hand = Run.create(Config.from_dict(settings({"photos": "."})), everything.root / "made-elsewhere")
    (ended(by_hand).path / "model").write_bytes(bytes(piece))

    def start_within(*kept: Run) -> set[Run]:
        room_left = sum(run.size for run in kept) + coming + piece // 2
        studio = roomy(disk_gb=room_left / 1e9)
        [new] = studio.start(ANNA, settings(base_model=studio.model("tiny-sd")), photos)
        left = set(list_runs(studio.root)) - {new}
        studio.stop(ANNA, new.id)
        studio.delete(ANNA, new.id)
        return left

    assert start_within(oldest, first, second, own, by_hand) == {oldest, first, second, own, by_hand}
    assert start_within(oldest, first, second, by_hand) == {oldest, first, second, by_hand}
    assert start_within(oldest, second, by_hand) == {oldest, second, by_hand}
    with pytest.raises(RunError, match="full with runs that wait, train or are published"):
        start_within()
    assert {oldest, second, by_hand} == set(list_runs(everything.root)), "nothing goes for what is refused"


def test_what_waits_trains_or_is_published_is_never_removed_and_counts_as_what_it_may_come_to_take(
    roomy, photos: list[str]
):
    coming = bytes_of(roomy(), photos)
    studio = roomy(disk_gb=2.5 * coming / 1e9)
    asked = settings(base_model=studio.model("tiny-sd"))
    [waits] = studio.start(ANNA, asked, photos)
    published = held(studio, ANNA, photos, coming, hours=99)
    (published.path / "published.json").write_text("{}")
    with pytest.raises(RunError, match="full with runs that wait, train or are published"):
        studio.start(BERT, asked, photos)
    assert set(list_runs(studio.root)) == {waits, published}
    studio.stop(ANNA, waits.id)
    assert studio.start(BERT, asked, photos), "it took no more than its photos"
    with pytest.raises(RunError, match="full"):
        studio.resume(ANNA, waits.id)


def test_a_visitor_has_so_much_of_the_disk(roomy, photos: list[str]):
    coming = bytes_of(roomy(), photos)
    studio = roomy(visitor_gb=2.5 * coming / 1e9)
    asked = settings(base_model=studio.model("tiny-sd"))
    old, new = (held(studio, ANNA, photos, coming) for _ in range(2))
    [third] = studio.start(ANNA, asked, photos)
    assert studio.own_runs(ANNA) == [third, new], "one's own make room, however new"
    studio.start(BERT, asked, photos)
    with pytest.raises(RunError, match=r"Your runs take .* and this may take .* more, of the .* that a visitor has"):
        studio.start(ANNA, asked, photos, ways="two")
    with pytest.raises(ConfigError, match=r"This may take .* of the disk, and a visitor is given"):
        studio.start(new_owner(), asked | {"train": {"keep_checkpoints": 99}}, photos)
    assert not old.path.exists()


def test_what_a_run_may_take_is_known_from_headers_and_settings(roomy, photos: list[str], tmp_path: Path):
    studio = roomy()
    large = tmp_path / "large.png"
    Image.effect_noise((1500, 1200), 90).convert("RGB").save(large)
    few, more = bytes_of(studio, photos), bytes_of(studio, [*photos, str(large)])
    assert 3 * 1500 * 1200 < more - few < 3.1 * 1500 * 1200 + 1_000_000
    assert bytes_of(studio, photos, train={"keep_checkpoints": 5}) > few + 1_000_000
    run = Run(studio.start(ANNA, settings(base_model=studio.model("tiny-sd")), [*photos, str(large)])[0].path)
    assert sum(path.stat().st_size for path in (run.path / "uploads").iterdir()) < more


def test_a_run_takes_no_more_than_was_reckoned(tiny_model: Path, root: Path, photos: list[str], make_config):
    studio = Studio(root, {"tiny": str(tiny_model)}, Worker(root))
    over, most, tidy = threading.Event(), [0], studio.worker.after_run
    studio.worker.after_run = lambda run: (tidy(run), over.set())
    more = {"train": {"steps": 6, "checkpoint_every": 1, "sample_every": 2}, "sampling": {"num_images": 2}}
    asked = merge(make_config().model_dump(mode="json", exclude={"preset"}), more)
    [run] = studio.start(ANNA, asked, photos)
    while not over.wait(0.01):
        most.append(run.size)
    assert run.status == "finished"
    assert room.promised(run) > max(most) > room.promised(run) / 4, "near enough to be of use"


def test_of_long_photos_the_part_around_the_crop_is_kept(studio: Studio, tmp_path: Path):
    long = str(tmp_path / "long.png")
    with Image.linear_gradient("L") as grey:
        grey.rotate(90).resize((700, 100)).convert("RGB").save(long)
    box = Crop(440, 0, 540, 100)
    [run] = studio.start(ANNA, settings(), [long], crops=[box])
    [kept] = find_photos(run.path / "uploads")
    with Image.open(kept) as image:
        assert image.size == (200, 100)
    crops = run.config.subject.crops
    difference = ImageChops.difference(
        prepare_photo(kept, 64, crops["00.png"]).image, prepare_photo(long, 64, box).image
    )
    assert max(ImageStat.Stat(difference).mean) < 1
    [found] = studio.start(ANNA, settings(), [long])
    left, top, right, bottom = found.config.subject.crops["00.png"]
    assert (right - left, bottom - top) == (100, 100), "found before it is cut, as the page has shown it"


def test_both_sides_of_a_kept_photo_are_bounded(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(studio_module, "KEPT_SIDE", 100)
    for number, size in enumerate([(90, 600), (600, 90), (300, 900), (400, 200), (150, 150), (90, 80)]):
        path = tmp_path / f"{number}.png"
        Image.effect_noise(size, 50).save(path)
        [run] = studio.start(ANNA, settings(), [str(path)])
        with Image.open(run.path / "uploads" / "00.png") as image:
            assert image.size == studio_module._kept_size(size)
            assert min(image.size) == min(100, *size)
            assert max(image.size) <= 2 * min(image.size)


def test_runs_of_several_ways_hold_the_same_files(studio: Studio, photos: list[str]):
    one, other = studio.start(ANNA, settings(), photos, ways="two")
    third = studio.train_other_way(ANNA, _alone(studio, one))
    files = [run.path / "uploads" / "00.png" for run in (one, other, third)]
    assert len({path.stat().st_ino for path in files}) == 1
    studio.delete(ANNA, one.id)
    assert prepare_photo(files[1], 64)


def test_a_photo_is_not_named_twice_and_a_request_has_a_budget_of_pixels(
    studio: Studio, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(PhotoError, match=r"photo0\.jpg is there 10 times"):
        studio.start(ANNA, settings(), photos[:1] * 10)
    assert studio.start(ANNA, settings(more_subjects=[CAT]), photos, others=[Upload(photos)]), "one of two subjects may"
    pixels = sum(width * height for width, height in map(shown_pixels, photos))
    monkeypatch.setattr(studio_module, "MAX_MEGAPIXELS", pixels / 1e6)
    assert studio.start(ANNA, settings(), photos)
    monkeypatch.setattr(studio_module, "MAX_MEGAPIXELS", pixels / 1e6 - 0.001)
    with pytest.raises(PhotoError, match="megapixels together, more than"):
        studio.start(ANNA, settings(), photos)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    assert shown_pixels(tmp_path / "broken.jpg") == (0, 0)


# ---- Errors


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RunError("No run <b>.", "Train one."), "No run &lt;b&gt;. Train one."),
        (
            OSError(28, "No space left on device", "/srv/runs/1"),
            "The server can't do this now: No space left on device.",
        ),
    ],
)
def test_an_error_becomes_a_sentence_for_the_page(error: Exception, sentence: str):
    @in_plain_words
    def handler() -> None:
        raise error

    with pytest.raises(gr.Error) as shown:
        handler()
    assert shown.value.message == sentence
    assert not shown.value.print_exception


def test_a_real_model_draws_nothing_unchecked_while_it_trains_on_a_public_studio(
    root: Path, photo_folder: Path, tiny_model: Path
):
    studio = Studio(root, {"tiny": str(tiny_model)}, Worker(root, parallel=0), StudioSettings(public=True))
    settings = {"base_model": str(tiny_model), "subject": {"class_noun": "dog"}, "sampling": {"prompts": ["a dog"]}}
    [run] = studio.start(ANNA, settings, [*map(str, photo_folder.iterdir())])
    assert (run.config.train.sample_every, run.config.sampling.prompts) == (0, [])


def test_zero_gpu_trains_the_toybox_on_the_cpu(root: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # as its package makes it seem
    monkeypatch.setenv("DREAMBOOTH_RUNS", str(root))
    studio = Studio.from_environment()
    assert list(studio.base_models) == ["toybox"]
    assert set(studio.recipes) == {name for name in RECIPES if name.startswith("toybox")}
    idle = Studio(root, studio.base_models, Worker(root, parallel=0))
    [run] = idle.start(
        ANNA, {"preset": "toybox", "subject": {"class_noun": "dog"}}, [*map(str, photo_folder.iterdir())]
    )
    assert run.config.device == "cpu"
