"""The studio, driven as people and programs do: a real browser and Gradio's client, on a tiny model."""

import re
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from dreambooth.ui.studio import new_owner
from tests.ui.conftest import ROOT, SECONDS, Served

ANNA, BERT = new_owner(), new_owner()


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
