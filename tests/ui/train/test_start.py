"""What may start, what is refused, and what runs of several ways know of each other."""

from pathlib import Path

import pytest

from dreambooth.errors import ConfigError, PhotoError, RunError
from dreambooth.photos.folder import find_photos
from dreambooth.photos.prepare import Crop, prepare_photo
from dreambooth.runs.directory import Run, list_runs
from dreambooth.runs.worker import Worker
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.photos.uploads import Upload
from dreambooth.ui.studio import RECIPES, Studio, title
from dreambooth.ui.train.start import start, train_other_way
from tests.ui import studios
from tests.ui.studios import ANNA, BERT, CAT, ROOMY, ended, settings


@pytest.fixture
def studio(make_studio) -> Studio:
    return make_studio()


@pytest.fixture
def photos(photo_folder: Path) -> list[str]:
    return [str(path) for path in sorted(photo_folder.iterdir())]


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
        start(studio, asked.pop("owner"), asked.pop("settings"), asked.pop("photos"), **asked)
    assert not studio.root.exists() or not any(studio.root.iterdir())
    assert studio.worker.waiting == 0


def test_a_subject_whose_name_would_not_be_read_is_refused_before_it_waits(
    tiny_model: Path, root: Path, photos: list[str]
):
    studio = Studio(root, {"tiny": str(tiny_model)}, Worker(root, parallel=0), StudioSettings())
    asked = settings({"identifier": "0123456789abcde"}, base_model=str(tiny_model))
    with pytest.raises(ConfigError, match="0123456789abcde is cut off, so that it would not be read"):
        start(studio, ANNA, asked, photos)
    assert list_runs(root) == []


def test_a_photo_that_can_not_be_read_leaves_nothing_behind(studio: Studio, photos: list[str], tmp_path: Path):
    (tmp_path / "a.jpg").write_text("not a photo")
    with pytest.raises(PhotoError, match=r"a\.jpg"):
        start(studio, ANNA, settings(), [*photos, str(tmp_path / "a.jpg")], ways="two")
    assert list(studio.root.iterdir()) == []


def test_people_consent_only_where_strangers_come(make_studio, photos: list[str]):
    public = make_studio(public=True, **ROOMY)
    assert public.public
    assert start(public, ANNA, settings({"class_noun": "man"}), photos, consent=True)
    assert start(make_studio(), ANNA, settings({"class_noun": "man"}), photos)
    with pytest.raises(ConfigError, match="consent"):  # whatever the class is called
        start(public, BERT, settings(preset="sd15-person"), photos)


def test_both_ways_are_the_same_but_for_ppl_and_know_each_other(studio: Studio, photos: list[str]):
    crops = [Crop(0, 0, 64, 64), None, None]
    asked = settings(seed=7, prior={"enabled": False, "num_images": 5})
    runs = start(studio, ANNA, asked, photos, crops=crops, ways="two")
    with_ppl, without = (run.config.model_dump() for run in runs)
    assert [with_ppl["prior"].pop("enabled"), without["prior"].pop("enabled")] == [True, False]
    assert with_ppl["subject"].pop("photos") != without["subject"].pop("photos")
    assert with_ppl == without
    assert (with_ppl["seed"], with_ppl["subject"]["crops"]) == (7, {"00.png": (0, 0, 64, 64)})
    assert [studio.partner(run) for run in runs] == runs[::-1]
    assert [studio.worker.position(run) for run in runs] == [1, 2]

    [alone] = start(studio, ANNA, settings(), photos)
    [berts] = start(studio, BERT, settings(), photos)
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
    [one] = start(studio, ANNA, asked, photos, crops=[Crop(0, 0, 64, 64), None, None])
    with pytest.raises(RunError, match=r"is queued\. Wait for its end"):
        train_other_way(studio, ANNA, one.id)
    ended(one)
    [newer] = start(studio, ANNA, settings(), photos)
    with pytest.raises(RunError, match="You have no such run"):
        train_other_way(studio, BERT, one.id)
    with pytest.raises(RunError, match="Delete one first"):  # and not the one that is wanted, though it is the oldest
        train_other_way(studio, ANNA, one.id)
    assert studio.partner(one) is None
    studio.stop(ANNA, newer.id)

    other = train_other_way(studio, ANNA, one.id)
    assert set(studio.own_runs(ANNA)) == {one, other}
    assert (studio.partner(one), studio.partner(other), other.status) == (other, one, "queued")
    first, second = (run.config.model_dump() for run in (one, other))
    assert [first["prior"].pop("enabled"), second["prior"].pop("enabled")] == [False, True]
    assert first["subject"].pop("photos") != second["subject"].pop("photos")
    assert first == second
    for name in ("00.png", "01.png", "02.png"):
        assert (one.path / "uploads" / name).read_bytes() == (other.path / "uploads" / name).read_bytes()
    with pytest.raises(RunError, match="both ways already"):
        train_other_way(studio, ANNA, one.id)

    studio.stop(ANNA, other.id)
    studio.delete(ANNA, other.id)
    assert studio.partner(train_other_way(studio, ANNA, one.id)) == one, "once its pair is gone it can have another"


def test_three_ways_differ_in_what_keeps_the_class_and_know_each_other(make_studio, photos: list[str]):
    studio = make_studio(max_waiting=3)
    runs = start(studio, ANNA, settings(drift={"weight": 0.5}), photos, ways="three")
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


def test_every_subject_has_its_photos_boxes_and_copies_in_each_way(studio: Studio, photos: list[str]):
    box = Crop(0, 0, 64, 64)
    runs = start(
        studio, ANNA, settings(more_subjects=[CAT]), photos, others=[Upload(photos[:2], [None, box])], ways="two"
    )
    for run in runs:
        dog, cat = run.config.subjects
        assert (cat.identifier, cat.class_noun, cat.crops) == ("ohwx", "cat", {"01.png": box})
        assert (dog.photos, cat.photos) == (run.path / "uploads", run.path / "uploads" / "subject-2")
        assert [len(find_photos(subject.photos)) for subject in (dog, cat)] == [3, 2]
    assert title(runs[0]) == "sks dog and ohwx cat"
    [alone] = start(studio, ANNA, settings(more_subjects=[CAT]), photos, others=[Upload(photos[:1])])
    other = train_other_way(studio, ANNA, ended(alone).id)
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
    lora, other = start(studio, studios.ANNA, pivotal(studio, run), photos, learned=run.id, ways="two")
    learned = (run.path / "model" / "learned_embeds.safetensors").read_bytes()
    studio.delete(studios.ANNA, run.id)
    for one in (lora, other, train_other_way(studio, studios.ANNA, _alone(studio, lora))):
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
            start(studio, owner, pivotal(studio, run, **asked), photos, learned=learned)
    assert list_runs(studio.root) == before


def test_there_is_no_other_way_without_a_weight(studio: Studio, photos: list[str]):
    [run] = start(studio, ANNA, settings(prior={"weight": 0}), photos)
    with pytest.raises(ConfigError, match="both ways would be the same"):
        train_other_way(studio, ANNA, ended(run).id)


def test_a_real_model_draws_nothing_unchecked_while_it_trains_on_a_public_studio(
    root: Path, photo_folder: Path, tiny_model: Path
):
    studio = Studio(root, {"tiny": str(tiny_model)}, Worker(root, parallel=0), StudioSettings(public=True))
    settings = {"base_model": str(tiny_model), "subject": {"class_noun": "dog"}, "sampling": {"prompts": ["a dog"]}}
    [run] = start(studio, ANNA, settings, [*map(str, photo_folder.iterdir())])
    assert (run.config.train.sample_every, run.config.sampling.prompts) == (0, [])


def test_zero_gpu_trains_the_toybox_on_the_cpu(root: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # as its package makes it seem
    monkeypatch.setenv("DREAMBOOTH_RUNS", str(root))
    studio = Studio.from_environment()
    assert list(studio.base_models) == ["toybox"]
    assert set(studio.recipes) == {name for name in RECIPES if name.startswith("toybox")}
    idle = Studio(root, studio.base_models, Worker(root, parallel=0))
    [run] = start(
        idle, ANNA, {"preset": "toybox", "subject": {"class_noun": "dog"}}, [*map(str, photo_folder.iterdir())]
    )
    assert run.config.device == "cpu"


def test_runs_of_several_ways_hold_the_same_files(studio: Studio, photos: list[str]):
    one, other = start(studio, ANNA, settings(), photos, ways="two")
    third = train_other_way(studio, ANNA, _alone(studio, one))
    files = [run.path / "uploads" / "00.png" for run in (one, other, third)]
    assert len({path.stat().st_ino for path in files}) == 1
    studio.delete(ANNA, one.id)
    assert prepare_photo(files[1], 64)
