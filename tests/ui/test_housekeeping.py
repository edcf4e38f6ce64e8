"""What is cleared away: temporary files, also of dead processes, and class images above their limit."""

import os
import signal
import time
from pathlib import Path

import gradio as gr
import httpx
import pytest

from dreambooth.files import hidden_name, scratch_folder
from dreambooth.training import prior
from dreambooth.ui import DAY, HOUR, housekeeping
from dreambooth.ui.housekeeping import clear_old, clear_unnamed, own_temp_folder
from dreambooth.ui.train.start import start
from tests.ui import studios
from tests.ui.conftest import SECONDS, Served, serve
from tests.ui.test_crowd import until


def at(path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there since so many seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    ages[str(path)] = time.time() - seconds
    monkeypatch.setattr(housekeeping, "_since", lambda path: ages[str(path)])
    return path


ages: dict[str, float] = {}


def test_what_is_there_for_a_day_is_removed_whoever_left_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = (at(tmp_path / name / "a.png", age, monkeypatch) for name, age in (("1", DAY + 9), ("2", DAY - 9)))
    (tmp_path / "empty").mkdir()
    os.utime(tmp_path / "empty", (0, 0))
    clear_old(tmp_path)
    clear_old(tmp_path / "not-there")
    assert not old.exists()
    assert new.exists()
    assert not (tmp_path / "empty").exists()


def test_a_copy_is_as_old_as_itself_and_not_as_its_original(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"x")
    os.utime(tmp_path / "a.png", (0, 0))
    clear_old(tmp_path)
    assert (tmp_path / "a.png").exists()


@pytest.mark.attack
def test_uploads_that_no_event_names_are_removed_within_the_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with gr.Blocks() as page:
        gallery = gr.Gallery()
    named, unnamed, fresh = (
        at(tmp_path / name, age, monkeypatch) for name, age in (("n", HOUR + 9), ("u", HOUR + 9), ("f", HOUR - 9))
    )
    page.upload_file_set.update(map(str, (named, unnamed, fresh, tmp_path / "gone")))
    ages[str(tmp_path / "gone")] = 0.0
    gallery.temp_files.add(str(named))
    clear_unnamed(page)
    assert [path.exists() for path in (named, unnamed, fresh)] == [True, False, True]
    assert page.upload_file_set == {str(named), str(fresh)}


def test_each_studio_has_a_temporary_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    one, other = own_temp_folder(tmp_path / "runs"), own_temp_folder(tmp_path / "runs2")
    assert one != other
    assert one == own_temp_folder(tmp_path / "runs"), "also after a restart"
    assert {one.parent, other.parent} == {tmp_path}


@pytest.mark.slow
def test_a_killed_studios_files_are_cleared_by_the_next_and_no_others(
    tiny_model: Path, photo_folder: Path, tmp_path: Path
):
    def upload(served: Served) -> Path:
        files = {"files": ("a.png", served.photos[0].read_bytes(), "image/png")}
        [path] = httpx.post(f"{served.url}gradio_api/upload", files=files, timeout=SECONDS).json()
        return Path(path)

    neighbour = tmp_path / "gradio" / "studio-of-others" / "b.png"
    neighbour.parent.mkdir(parents=True)
    neighbour.write_bytes(b"x")
    with serve(tmp_path, tiny_model, photo_folder) as served:
        left = upload(served)
        assert left.is_relative_to(own_temp_folder_of(served))
        served.process.send_signal(signal.SIGKILL)
        served.process.wait(SECONDS)
    assert left.exists()
    half = [tmp_path / place / ".dreambooth-partial-0123abcd-scratch" for place in ("runs", "cache")]
    for folder in half:
        folder.mkdir(parents=True, exist_ok=True)
    aged = os.environ | {"PYTHONPATH": str(tmp_path)}  # a process for which a day has gone by
    (tmp_path / "sitecustomize.py").write_text(f"import time\nreal = time.time\ntime.time = lambda: real() + {DAY}")
    with serve(tmp_path, tiny_model, photo_folder, around=aged):
        until(lambda: not any(path.exists() for path in (left, *half)), "it is not cleared away")
    assert neighbour.exists()


def own_temp_folder_of(served: Served) -> Path:
    [folder] = (served.runs.parent / "gradio").glob("studio-[0-9a-f]*[0-9a-f]")
    return folder


# ---- Class images


def cached(seed: int, size: int, hours: float) -> Path:
    """Class images of "a dog" with that seed, of so many bytes, last used so many hours ago."""
    key = {"class_prompt": "a photo of a dog", "seed": seed}
    folder = prior.cache_folder(key)
    prior.write_key(folder, key)
    (folder / "00000.png").write_bytes(bytes(size))
    used = time.time() - 3600 * hours
    os.utime(folder, (used, used))
    return folder


@pytest.mark.attack
def test_class_images_have_a_limit_that_spares_what_runs_use(tmp_path: Path, tiny_model: Path, photo_folder: Path):
    studio = studios.studio(tmp_path / "runs", tiny_model, class_images_gb=0.0025)
    waits, oldest, older, newer, now = (
        cached(seed, 1_000_000, hours) for seed, hours in ((7, 90), (1, 80), (2, 70), (3, 60), (4, 0.5))
    )
    asked = {"base_model": str(tiny_model), "subject": {"class_noun": "dog"}, "seed": 7}
    [run] = start(studio, studios.ANNA, asked, sorted(map(str, photo_folder.iterdir())))
    left = hidden_name(oldest, "partial")
    left.mkdir()
    with scratch_folder(prior.cache_root()) as at_work:
        studio.admission.trim_class_images()
        assert at_work.exists(), "who fetches class images has a folder there meanwhile"
    assert [path.exists() for path in (waits, oldest, older, newer, now)] == [True, False, False, False, True]
    assert not left.exists()
    studio.stop(studios.ANNA, run.id)
    cached(5, 1_000_000, 0.5)
    studio.worker.after_run(run)
    assert not waits.exists(), "once nothing waits for it"
    prior.touch(waits)
    assert not waits.exists()


def test_alone_class_images_have_no_limit(tmp_path: Path, tiny_model: Path):
    kept = cached(1, 1_000_000, 999)
    studios.studio(tmp_path / "runs", tiny_model).admission.trim_class_images()
    assert kept.exists()
