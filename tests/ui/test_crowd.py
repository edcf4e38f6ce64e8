"""Many visitors at once, and a server that is killed: real clients, a real server, a tiny model."""

import itertools
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from dreambooth.runs.directory import Run
from dreambooth.runs.owners import new_owner
from dreambooth.training.checkpoints import list_checkpoints
from tests.ui.conftest import Served, serve

pytestmark = pytest.mark.slow

VISITORS = 20
PATIENCE = 300


def until(condition: Callable[[], bool], what: str) -> None:
    """Ask again and again, ever less often, as each time costs the server; fails after five minutes."""
    giving_up, wait = time.monotonic() + PATIENCE, 0.2
    while not condition():
        assert time.monotonic() < giving_up, what
        time.sleep(wait)
        wait = min(1.2 * wait, 2)


def visitor(url: str, downloads: Path) -> Client:
    return Client(url, verbose=False, download_files=downloads, analytics_enabled=False)


def start(client: Client, owner: str, photos: list[Path], word: str, steps: int = 2) -> str:
    uploads = [{"image": handle_file(path), "caption": None} for path in photos]
    [run] = client.predict(
        owner=owner,
        photos=uploads,
        identifier=word,
        class_noun="dog",
        recipe="toybox",
        base_model="tiny-sd",
        steps=steps,
        prior=False,
        more={"train": {"sample_every": 0}},
        api_name="/start_training",
    )
    return run


def status(client: Client, owner: str, run: str) -> str:
    return client.predict(owner, run, api_name="/run_status")["status"]


def memory(served: Served) -> float:
    """GiB that the server holds."""
    return psutil.Process(served.process.pid).memory_info().rss / 2**30


def test_twenty_visitors_at_once(tiny_model: Path, photo_folder: Path, tmp_path: Path):
    def visit(number: int) -> tuple[str, str, Path]:
        owner, word = new_owner(), f"word{number}"
        client = visitor(served.url, tmp_path / word)
        run = start(client, owner, served.photos, word)
        with pytest.raises(AppError, match="1 at once are the limit here"):
            start(client, owner, served.photos, word)
        until(lambda: status(client, owner, run) == "finished", f"{word} has not finished")
        mine = client.predict(owner, api_name="/runs")
        assert [(r["id"], r["title"]) for r in mine] == [(run, f"{word} dog")]
        pictures = client.predict(owner, run, f"a photo of {word} dog", "", 2, 3.0, number, 1, api_name="/generate")[0]
        return owner, run, Path((pictures["value"] if isinstance(pictures, dict) else pictures)[0]["image"])

    folder = tmp_path / "studio"
    folder.mkdir()
    with (
        serve(folder, tiny_model, photo_folder, max_waiting="1", max_queue=str(2 * VISITORS)) as served,
        ThreadPoolExecutor(VISITORS) as crowd,
    ):
        before = memory(served)
        visits = list(crowd.map(visit, range(VISITORS)))
        grown = memory(served) - before
        assert len({run for _, run, _ in visits}) == VISITORS == len(list(served.runs.glob("[!.]*")))
        for number, (_, _, picture) in enumerate(visits):
            facts = Image.open(picture).text
            assert (facts["prompt"], facts["seed"]) == (f"a photo of word{number} dog", str(number))
        client = visitor(served.url, tmp_path)
        for (owner, _, _), (_, others, _) in itertools.pairwise(visits):
            with pytest.raises(AppError, match="You have no such run"):
                client.predict(owner, others, api_name="/run_status")
        assert grown < 1.5, f"the server has grown by {grown:.2f} GiB"
        assert not served.errors.read_text(), "the console is not clean"


def test_one_address_has_half_the_queue_and_a_kill_loses_no_run(tiny_model: Path, photo_folder: Path, tmp_path: Path):
    anna = new_owner()
    with serve(tmp_path, tiny_model, photo_folder, max_queue="6") as served:
        client = visitor(served.url, tmp_path / "downloads")
        training = start(client, anna, served.photos, "first", steps=100_000)
        until(lambda: client.predict(anna, training, api_name="/run_status")["done"] > 0, "it takes no step")
        waiting = [start(client, anna, served.photos, word) for word in ("second", "third")]
        with pytest.raises(AppError, match="3 trainings that were asked for from your address wait or run"):
            start(client, anna, served.photos, "fourth")
        assert [status(client, anna, run) for run in (training, *waiting)] == ["running", *["queued"] * 2]
        served.process.send_signal(signal.SIGKILL)
        served.process.wait(30)
    with serve(tmp_path, tiny_model, photo_folder) as served:
        client = visitor(served.url, tmp_path / "downloads")
        assert {run["id"] for run in client.predict(anna, api_name="/runs")} == {training, *waiting}
        for run in waiting:
            until(lambda run=run: status(client, anna, run) == "finished", f"{run} has not finished")
        assert status(client, anna, training) == "interrupted"
        config = served.runs / training / "config.yaml"
        config.write_text(config.read_text().replace("steps: 100000", "steps: 3"))  # it would take hours
        client.predict(anna, training, api_name="/resume_training")
        until(lambda: status(client, anna, training) == "finished", "the interrupted run has not finished")


def test_a_studio_that_is_told_to_end_keeps_a_checkpoint(tiny_model: Path, photo_folder: Path, tmp_path: Path):
    anna = new_owner()
    with serve(tmp_path, tiny_model, photo_folder) as served:
        client = visitor(served.url, tmp_path / "downloads")
        training = start(client, anna, served.photos, "first", steps=100_000)
        until(lambda: client.predict(anna, training, api_name="/run_status")["done"] > 0, "it takes no step")
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(60)
        run = Run(served.runs / training)
        assert run.status == "cancelled"
        assert list_checkpoints(run.path / "checkpoints")[-1].name == f"step-{run.events()[-1].step:06d}"
