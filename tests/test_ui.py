"""The studio, driven as people and programs do: a real browser and Gradio's client, on a tiny model."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from dreambooth import events
from dreambooth.config import Config
from dreambooth.errors import ConfigError, PhotoError, RunError
from dreambooth.runs import Run
from dreambooth.ui import upload
from dreambooth.ui.report import PHOTOS, Report
from dreambooth.ui.studio import Studio, in_plain_words, new_owner

ROOT = Path(__file__).parent.parent
SECONDS = 45
ANNA, BERT = new_owner(), new_owner()


# ------------------------------------------------------------------------------------------------- the served studio


@dataclass(frozen=True)
class Served:
    url: str
    photos: list[Path]
    runs: Path
    errors: Path
    """What the server wrote on standard error."""


@pytest.fixture(scope="module")
def served(tiny_model: Path, photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`python app.py` on a free port, with runs, caches and model of its own."""
    folder = tmp_path_factory.mktemp("studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "DREAMBOOTH_BASE_MODEL": str(tiny_model), "DREAMBOOTH_RUNS": str(folder / "runs"),
        "DREAMBOOTH_CACHE": str(folder / "cache"), "GRADIO_TEMP_DIR": str(folder / "gradio"),
        "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    errors = folder / "stderr"
    with errors.open("wb") as stderr:
        server = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, stderr=stderr,
            text=True,
        )  # fmt: skip
    giving_up = threading.Timer(2 * SECONDS, server.kill)
    giving_up.start()
    try:
        line = server.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line, f"the studio did not start: {line}{errors.read_text()}"
        giving_up.cancel()
        yield Served(f"http://127.0.0.1:{port}/", sorted(photo_folder.iterdir()), folder / "runs", errors)
    finally:
        giving_up.cancel()
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, "This test drives a real browser, and there is none: install Chromium (apt-get install chromium)."
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        expect.set_options(timeout=1000 * SECONDS)
        opened = playwright.chromium.launch(executable_path=program, args=[*quiet, "--disable-sync"])
        yield opened
        opened.close()


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def start_training(page: Page, steps: int) -> None:
    open_tab(page, "Train")
    page.locator("#steps input").fill(str(steps))
    page.locator("#class-images input").fill("4")
    page.get_by_role("button", name="Start training").click()


def test_a_visitor_goes_from_photos_to_pictures(served: Served, browser: Browser):
    page = browser.new_page()
    elsewhere: list[str] = []
    page.on(
        "request", lambda r: r.url.startswith(("http", "ws")) and served.url not in r.url and elsewhere.append(r.url)
    )
    headline = page.locator("#headline")

    page.goto(served.url)
    expect(page.get_by_text("No photos yet.")).to_be_visible()
    page.locator("#photos input[type=file]").set_input_files(served.photos)
    expect(page.locator("#findings")).to_contain_text("The photo coach")
    expect(page.locator("#crops img")).to_have_count(3)
    page.get_by_label("Identifier").fill("ohwx")
    expect(page.locator("#prompts")).to_contain_text("a photo of ohwx dog")
    expect(page.locator("#prompts")).to_contain_text("a photo of a dog")

    # A long run goes on while the page is reloaded, and can be stopped then.
    start_training(page, steps=5000)
    expect(headline).to_contain_text(re.compile(r"step \d+ of 5000 · .* a second · .* left"))
    page.reload()
    open_tab(page, "Train")
    expect(headline).to_contain_text("ohwx dog running")
    expect(headline).to_contain_text(re.compile(r"step \d+ of 5000"))
    page.get_by_role("button", name="Stop").click()
    expect(headline).to_contain_text("ohwx dog cancelled")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()

    # A short one comes to its end.
    open_tab(page, "Photos")
    page.locator("#photos input[type=file]").set_input_files(served.photos)
    expect(page.locator("#crops img")).to_have_count(3)
    start_training(page, steps=6)
    expect(headline).to_contain_text("sks dog finished")
    expect(page.locator("#curves svg")).to_be_visible()
    expect(page.locator("#subject-samples img")).to_have_count(2)
    expect(page.locator("#class-samples img")).to_have_count(2)

    page.get_by_role("button", name="Next: make pictures").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a photo of sks dog on a beach")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#pictures img")).to_have_count(4)
    page.close()

    assert not elsewhere, f"the page asked the network for {elsewhere}"
    assert not served.errors.read_text(), "the console is not clean"


def test_a_visitor_without_photos_is_told_what_to_do(served: Served, browser: Browser):
    page = browser.new_page()
    page.goto(served.url)
    start_training(page, steps=6)
    expect(page.get_by_test_id("toast-body")).to_contain_text("There are no photos yet. Add 3 to 5 in the Photos tab")
    page.close()


def test_a_program_does_what_a_person_does(served: Served, tmp_path: Path):
    client = Client(served.url, verbose=False, download_files=tmp_path)
    photos = [{"image": handle_file(path), "caption": None} for path in served.photos]
    assert "The photo coach" in client.predict(photos, api_name="/check_photos")[1]
    settings = ("sks", "dog", "toybox", "tiny-sd", 2, 2e-4, False, 0, False)
    run = client.predict(ANNA, photos, *settings, api_name="/start_training")
    assert [r["id"] for r in client.predict(ANNA, api_name="/runs")] == [run]
    assert client.predict(ANNA, run, api_name="/run_status")["title"] == "sks dog"
    assert client.predict(BERT, api_name="/runs") == []
    for name in ("/run_status", "/stop_training", "/resume_training"):
        with pytest.raises(AppError, match="You have no such run"):
            client.predict(BERT, run, api_name=name)
    drawing = ("a photo of a dog", "", 2, 3.0, 7, 1)
    with pytest.raises(AppError, match="You have no such run"):
        client.predict(BERT, run, *drawing, api_name="/generate")
    [picture] = client.predict(BERT, "tiny-sd", *drawing, api_name="/generate")[0]["value"]
    facts = Image.open(picture["image"]).text
    assert (facts["prompt"], facts["seed"], facts["model"]) == ("a photo of a dog", "7", "tiny-sd")


def test_a_file_of_the_server_is_not_taken_for_an_upload(served: Served):
    secret = {"image": {"path": str(ROOT / "LICENSE"), "meta": {"_type": "gradio.FileData"}}, "caption": None}
    call = httpx.post(f"{served.url}gradio_api/call/check_photos", json={"data": [[secret]]})
    answer = httpx.get(f"{served.url}gradio_api/call/check_photos/{call.json()['event_id']}", timeout=SECONDS).text
    assert answer.startswith("event: error")
    for path in (ROOT / "LICENSE", served.errors, served.runs):
        assert httpx.get(f"{served.url}gradio_api/file={path}").status_code == 403


# --------------------------------------------------------------------------------------------------- whose run is whose


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path / "runs", {"tiny": "models/tiny"}, worker=None)


def settings(**subject: str) -> dict:
    return {"base_model": "models/tiny", "subject": {"class_noun": "dog", **subject}}


def test_only_the_owner_sees_and_opens_a_run(studio: Studio, photo_folder: Path):
    run = studio.create_run(ANNA, settings(), [str(path) for path in photo_folder.iterdir()])
    unowned = Run.create(Config.from_dict(settings(photos=".")), studio.root / "made-elsewhere")
    assert studio.own_run(ANNA, run.id) == run
    assert studio.own_runs(ANNA) == [run]
    assert studio.own_runs(BERT) == []
    assert ANNA not in (run.path / "owner").read_text()
    for owner, run_id in [(BERT, run.id), (ANNA, unowned.id), (ANNA, f"../runs/{run.id}"), (ANNA, str(run.path)),
                          (ANNA, ""), (ANNA, "."), (ANNA, None), ("", run.id), (None, run.id)]:  # fmt: skip
        with pytest.raises(RunError):
            studio.own_run(owner, run_id)


def test_photos_are_kept_under_names_of_our_own_and_without_metadata(studio: Studio, tmp_path: Path):
    photo = tmp_path / "<script>alert(1)<:script>.jpg"
    exif = Image.Exif()
    exif[0x010E] = "my garden"
    Image.new("RGB", (80, 64), "red").save(photo, exif=exif)
    run = studio.create_run(ANNA, settings(), [str(photo)])
    [kept] = (run.path / "uploads").iterdir()
    assert kept.name == "00.png"
    assert run.config.subject.photos == kept.parent
    with Image.open(kept) as image:
        assert image.size == (80, 64)
        assert not image.info
        assert not image.getexif()


@pytest.mark.parametrize(("words", "photo", "error"), [
    ({}, "text", PhotoError), ({"class_noun": "{0}"}, "photo", ConfigError), ({"identifier": ""}, "photo", ConfigError),
])  # fmt: skip
def test_a_refused_run_leaves_nothing_behind(studio: Studio, tmp_path: Path, words: dict, photo: str, error: type):
    path = tmp_path / "a.jpg"
    path.write_text("not a photo") if photo == "text" else Image.new("RGB", (80, 64)).save(path)
    with pytest.raises(error):
        studio.create_run(ANNA, settings(**words), [str(path)])
    assert not studio.root.exists() or not any(studio.root.iterdir())


def test_a_sample_subject_is_taken_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("teapot", "backpack-2"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / name / "00.png")
    monkeypatch.setattr(upload, "SUBJECTS", tmp_path)
    assert upload.load_sample("backpack-2") == ([tmp_path / "backpack-2" / "00.png"], "backpack")
    with pytest.raises(ConfigError, match="backpack-2, teapot"):
        upload.load_sample("../teapot")


def test_words_of_a_visitor_are_shown_as_text():
    assert "a photo of sks &lt;b&gt;dog" in upload.show_prompts("sks", "<b>dog")
    assert "The class noun is empty." in upload.show_prompts("sks", "  ")


@pytest.mark.parametrize(("error", "sentence"), [
    (RunError("No run <b>.", "Train one."), "No run &lt;b&gt;. Train one."),
    (OSError(28, "No space left on device", "/srv/runs/1"), "The server can't do this now: No space left on device."),
])  # fmt: skip
def test_an_error_becomes_a_sentence_for_the_page(error: Exception, sentence: str):
    @in_plain_words
    def handler() -> None:
        raise error

    with pytest.raises(gr.Error) as shown:
        handler()
    assert shown.value.message == sentence
    assert not shown.value.print_exception


# --------------------------------------------------------------------------------------------------- what a run tells


def test_a_report_counts_a_repeated_step_once_and_starts_its_speed_anew(tmp_path: Path):
    run = Run.create(Config.from_dict(settings(photos=".")), tmp_path / "run")
    assert Report.of(run).status == "queued"

    def step(number: int, loss: float, seconds: float) -> events.Step:
        return events.Step(number, loss, loss, None, 1e-4, seconds)

    start = [events.RunQueued(), events.Stage("train", 4), events.Warning("Look.")]
    for event in [*start, step(1, 3.0, 9.0), step(2, 9.0, 9.0), *start, step(2, 1.0, 0.5)]:
        run.append(event)
    report = Report.of(run)
    assert report.status == "interrupted"
    assert report.resumable
    assert not report.moving
    assert (report.done, report.total, report.per_second) == (2, 4, 2.0)
    assert report.warnings == ("Look.",)
    curves = report.curves()
    assert curves["part"].unique().tolist() == [PHOTOS]
    assert curves["loss"].tolist() == [3.0, 2.0]


def test_a_failure_is_told_with_what_to_do(tmp_path: Path):
    run = Run.create(Config.from_dict(settings(photos=".")), tmp_path / "run")
    run.append(events.Failed("RunError", "The disk is full.", "Free some <space>."))
    report = Report.of(run)
    assert report.text == "The disk is full. Free some <space>."
    assert "Free some &lt;space&gt;." in report.as_html("sks dog")
