"""How many runs may wait, and which make room for new ones."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import merge
from dreambooth.errors import ConfigError, RunError
from dreambooth.runs.directory import Run, list_runs
from dreambooth.runs.owners import new_owner
from dreambooth.runs.worker import Worker
from dreambooth.ui.doors import lines, room
from dreambooth.ui.studio import Studio
from dreambooth.ui.train.start import start
from tests.ui import studios
from tests.ui.studios import ANNA, BERT, ended, settings


@pytest.fixture
def studio(make_studio) -> Studio:
    return make_studio()


def test_a_visitor_may_not_queue_more_than_the_limit(make_studio, photos: list[str]):
    studio = make_studio(max_waiting=3)
    first = start(studio, ANNA, settings(), photos, ways="two")
    with pytest.raises(RunError, match="2 of your trainings wait or run and this asks for 2 more; 3 at once"):
        start(studio, ANNA, settings(), photos, ways="two")
    start(studio, ANNA, settings(), photos)
    studio.stop(ANNA, first[0].id)
    start(studio, ANNA, settings(), photos)
    with pytest.raises(RunError, match="3 at once"):
        studio.resume(ANNA, first[0].id)
    assert len(studio.own_runs(ANNA)) == 4
    assert start(studio, BERT, settings(), photos)


@pytest.mark.attack
def test_one_address_can_not_fill_the_queue_under_many_ids(make_studio, photos: list[str], monkeypatch):
    studio, address = make_studio(max_queue=6), ["203.0.113.1"]
    monkeypatch.setattr(lines, "caller", lambda: address[0])
    first, *_ = (start(studio, new_owner(), settings(), photos)[0] for _ in range(3))
    with pytest.raises(RunError, match="3 trainings that were asked for from your address wait or run"):
        start(studio, new_owner(), settings(), photos)
    address[0] = "203.0.113.2"
    assert start(studio, BERT, settings(), photos)
    address[0] = "203.0.113.1"
    studio.worker.stop(first)
    assert start(studio, new_owner(), settings(), photos)


def test_twenty_visitors_at_once_pass_no_limit_and_lose_no_run(make_studio, photos: list[str]):
    studio = make_studio(max_queue=25)
    visitors, refusals = [new_owner() for _ in range(20)], set()

    def ask(owner: str) -> list[Run]:
        try:
            return start(studio, owner, settings(), photos[:1], ways="two")
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
    [berts] = start(studio, BERT, settings(), photos)
    by_hand = Run.create(Config.from_dict(settings({"photos": "."})), studio.root / "made-elsewhere")
    published, waiting, old, less_old = (start(studio, ANNA, settings(), photos)[0] for _ in range(4))
    for run in (ended(berts), ended(by_hand), ended(old), ended(less_old, events.Cancelled(3))):
        assert not run.moving
    (ended(published).path / "published.json").write_text(json.dumps({}))
    [new] = start(studio, ANNA, settings(), photos)
    assert set(studio.own_runs(ANNA)) == {published, waiting, less_old, new}
    assert {berts, by_hand} <= set(list_runs(studio.root))

    before = list_runs(studio.root)
    with pytest.raises(RunError, match=r"You have 4 runs, the most that are kept here.*Delete one first"):
        start(studio, ANNA, settings(), photos, ways="two")  # one of the two would find a place
    assert list_runs(studio.root) == before, "nothing is removed for what is refused"


def test_a_run_is_kept_while_the_card_that_shows_it_is_published(make_studio, photos: list[str]):
    studio = make_studio(max_runs=2)
    one, other = (ended(run) for run in start(studio, ANNA, settings(), photos, ways="two"))
    trying = {"state": "uploading", "repo_id": "anna/dog", "private": True, "reason": "", "done": 1, "total": 2}
    (one.path / "publishing.json").write_text(json.dumps(trying))
    with FileLock(one.path / ".publishing.lock"):
        for run in (one, other):
            with pytest.raises(RunError, match="This run is being published, or its pair"):
                studio.delete(ANNA, run.id)
        with pytest.raises(RunError, match="You have 2 runs"):
            start(studio, ANNA, settings(), photos)
    studio.delete(ANNA, other.id)
    assert studio.own_runs(ANNA) == [one]


def held(studio: Studio, owner: str, photos: list[str], size: int = 0, hours: float = 0.0) -> Run:
    """A finished run of so many bytes more, which ended so many hours ago."""
    [run] = start(studio, owner, settings(base_model=studio.model("tiny-sd")), photos)
    (run.path / "model").write_bytes(bytes(size))
    ended(run)
    ago = time.time() - 3600 * hours
    os.utime(run.path / "events.jsonl", (ago, ago))
    return run


def bytes_of(studio: Studio, photos: list[str], **changes: object) -> int:
    """What a run may come to take."""
    [run] = start(studio, new_owner(), settings(base_model=studio.model("tiny-sd"), **changes), photos)
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
    monkeypatch.setattr(lines, "caller", lambda: address[0])
    asked = settings(base_model=studio.model("tiny-sd"))
    first, *_ = (start(studio, new_owner(), asked, photos)[0] for _ in range(3))
    with pytest.raises(RunError, match=r"from your address may come to take .* at once are the limit here"):
        start(studio, new_owner(), asked, photos)
    address[0] = "203.0.113.2"
    assert start(studio, BERT, asked, photos)
    address[0] = "203.0.113.1"
    studio.worker.stop(first)
    assert start(studio, new_owner(), asked, photos)


def test_a_newcomer_costs_nobody_a_run_of_this_day(roomy, photos: list[str]):
    coming, large = bytes_of(roomy(), photos), 50_000_000
    studio = roomy(disk_gb=(large + coming) / 1e9)
    annas = held(studio, ANNA, photos, large, hours=20)
    with pytest.raises(RunError, match=r"full with others' runs of this day.*Come back in 4 hours"):
        start(studio, BERT, settings(base_model=studio.model("tiny-sd")), photos)
    assert list_runs(studio.root) == [annas]
    assert not list(studio.root.glob(".*")), "no photo was written"
    os.utime(annas.path / "events.jsonl", (0, 0))
    [berts] = start(studio, BERT, settings(base_model=studio.model("tiny-sd")), photos)
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
        [new] = start(studio, ANNA, settings(base_model=studio.model("tiny-sd")), photos)
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
    [waits] = start(studio, ANNA, asked, photos)
    published = held(studio, ANNA, photos, coming, hours=99)
    (published.path / "published.json").write_text("{}")
    with pytest.raises(RunError, match="full with runs that wait, train or are published"):
        start(studio, BERT, asked, photos)
    assert set(list_runs(studio.root)) == {waits, published}
    studio.stop(ANNA, waits.id)
    assert start(studio, BERT, asked, photos), "it took no more than its photos"
    with pytest.raises(RunError, match="full"):
        studio.resume(ANNA, waits.id)


def test_a_visitor_has_so_much_of_the_disk(roomy, photos: list[str]):
    coming = bytes_of(roomy(), photos)
    studio = roomy(visitor_gb=2.5 * coming / 1e9)
    asked = settings(base_model=studio.model("tiny-sd"))
    old, new = (held(studio, ANNA, photos, coming) for _ in range(2))
    [third] = start(studio, ANNA, asked, photos)
    assert studio.own_runs(ANNA) == [third, new], "one's own make room, however new"
    start(studio, BERT, asked, photos)
    with pytest.raises(RunError, match=r"Your runs take .* and this may take .* more, of the .* that a visitor has"):
        start(studio, ANNA, asked, photos, ways="two")
    with pytest.raises(ConfigError, match=r"This may take .* of the disk, and a visitor is given"):
        start(studio, new_owner(), asked | {"train": {"keep_checkpoints": 99}}, photos)
    assert not old.path.exists()


def test_what_a_run_may_take_is_known_from_headers_and_settings(roomy, photos: list[str], tmp_path: Path):
    studio = roomy()
    large = tmp_path / "large.png"
    Image.effect_noise((1500, 1200), 90).convert("RGB").save(large)
    few, more = bytes_of(studio, photos), bytes_of(studio, [*photos, str(large)])
    assert 3 * 1500 * 1200 < more - few < 3.1 * 1500 * 1200 + 1_000_000
    assert bytes_of(studio, photos, train={"keep_checkpoints": 5}) > few + 1_000_000
    run = Run(start(studio, ANNA, settings(base_model=studio.model("tiny-sd")), [*photos, str(large)])[0].path)
    assert sum(path.stat().st_size for path in (run.path / "uploads").iterdir()) < more


def test_a_run_takes_no_more_than_was_reckoned(tiny_model: Path, root: Path, photos: list[str], make_config):
    studio = Studio(root, {"tiny": str(tiny_model)}, Worker(root))
    over, most, tidy = threading.Event(), [0], studio.worker.after_run
    studio.worker.after_run = lambda run: (tidy(run), over.set())
    more = {"train": {"steps": 6, "checkpoint_every": 1, "sample_every": 2}, "sampling": {"num_images": 2}}
    asked = merge(make_config().model_dump(mode="json", exclude={"preset"}), more)
    [run] = start(studio, ANNA, asked, photos)
    while not over.wait(0.01):
        most.append(run.size)
    assert run.status == "finished"
    assert room.promised(run) > max(most) > room.promised(run) / 4, "near enough to be of use"
