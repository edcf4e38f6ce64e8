"""Whose run is whose, damaged and copied ones too."""

import shutil

import pytest

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.errors import RunError
from dreambooth.runs.directory import Run
from dreambooth.ui.studio import Studio, title
from dreambooth.ui.train.start import start
from tests.ui.studios import ANNA, BERT, settings


@pytest.fixture
def studio(make_studio) -> Studio:
    return make_studio()


DAMAGE = {
    "of another version": lambda run: (run / "config.yaml").write_text("of: another version"),
    "empty": lambda run: (run / "config.yaml").write_text(""),
    "zeros": lambda run: (run / "config.yaml").write_bytes(bytes(500)),
    "lost": lambda run: (run / "config.yaml").unlink(),
    "and its events": lambda run: ((run / "config.yaml").write_text(""), (run / "events.jsonl").write_bytes(bytes(9))),
    "and its events lost": lambda run: ((run / "config.yaml").unlink(), (run / "events.jsonl").unlink()),
}


def test_only_the_owner_sees_and_opens_a_run(studio: Studio, photos: list[str]):
    [run] = start(studio, ANNA, settings(), photos)
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
    good, bad = (start(studio, ANNA, settings(), photos)[0] for _ in range(2))
    assert {title(run) for run in studio.own_runs(ANNA)} == {"sks dog"}
    (bad.path / "config.yaml").write_text("of: another version")
    assert studio.own_runs(ANNA) == [good]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(
    "last",
    [events.RunQueued(), events.Stage("train"), events.Finished("model", 1.0)],
    ids=lambda event: type(event).__name__,
)
def test_a_damaged_run_is_its_owners_to_see_and_to_delete(studio: Studio, photos: list[str], damage, last):
    good, bad = (start(studio, ANNA, settings(), photos)[0] for _ in range(2))
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
    [run] = start(studio, ANNA, settings(), photos)
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(bytes(40) + b"\n")
    assert studio.own_runs(ANNA) == [run]
    studio.stop(ANNA, run.id)
    studio.delete(ANNA, run.id)
    assert list(studio.root.iterdir()) == []


def test_a_mark_that_is_damaged_makes_a_run_nobodys_and_hides_no_other(studio: Studio, photos: list[str]):
    good, bad = (start(studio, ANNA, settings(), photos)[0] for _ in range(2))
    for junk in (b"", bytes(64), b"\xff\xfe"):
        (bad.path / "owner").write_bytes(junk)
        assert (studio.own_runs(ANNA), studio.damaged_runs(ANNA)) == ([good], [])


def test_a_copied_or_renamed_run_is_listed_and_can_be_used(studio: Studio, photos: list[str]):
    [run] = start(studio, ANNA, settings(), photos)
    for name in ("best_dog", f"{run.id} (Copy)"):
        shutil.copytree(run.path, studio.root / name)
        assert studio.own_run(ANNA, name) in studio.own_runs(ANNA)
    assert len(studio.own_runs(ANNA)) == 3
