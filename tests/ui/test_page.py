"""The studio as visitors and programs use it: a real browser and Gradio's client, on a tiny model."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from dreambooth.models.adapters import write_step
from dreambooth.runs.owners import Visitor, new_owner
from dreambooth.ui.doors.login import COOKIE
from tests.ui import studios
from tests.ui.conftest import ROOT, Served, serve
from tests.ui.test_crowd import until

ANNA, BERT = new_owner(), new_owner()


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def start_training(page: Page, steps: int, *, ways: str = "Once") -> None:
    open_tab(page, "Train")
    page.locator("#steps input").fill(str(steps))
    page.locator("#class-images input").fill("4")
    page.get_by_role("radio", name=ways).check()
    page.get_by_role("button", name="Start training").click()


def owner_in(page: Page) -> Visitor:
    """Whose runs a page shows to who is not logged in: its browser's, whose cookie no script of it can read."""
    [cookie] = [cookie for cookie in page.context.cookies() if cookie["name"] == COOKIE]
    assert cookie["httpOnly"]
    return Visitor(f"browser:{cookie['value']}")


@pytest.fixture
def toybox_studio(tmp_path: Path) -> Iterator[Served]:
    """As it starts on a fresh machine, with five photos of a bear to upload."""
    with serve(tmp_path, Path("toybox"), ROOT / "dreambooth" / "toybox" / "subjects" / "bear") as studio:
        yield studio


def keep_another_best_model(served: Served, step: int) -> None:
    """As a longer training does whose best step is not its last."""
    for run in served.runs.glob("2*"):
        measures = json.loads((run / "measures.json").read_text())
        before, *after = measures["measures"]
        measures |= {"best": step, "measures": [before, after[0] | {"step": step}, *after]}
        (run / "measures.json").write_text(json.dumps(measures))
        shutil.copytree(run / "model", run / "best")
        write_step(run / "best", step)


def test_a_visitor_goes_from_photos_to_a_comparison(toybox_studio: Served, browser: Browser):
    served = toybox_studio
    page = browser.new_page()
    elsewhere: list[str] = []
    page.on(
        "request", lambda r: r.url.startswith(("http", "ws")) and served.url not in r.url and elsewhere.append(r.url)
    )
    forbidden: list[str] = []
    page.on("console", lambda said: "Content Security Policy" in said.text and forbidden.append(said.text))
    headline = page.locator("#headline")

    page.goto(served.url)
    expect(page.get_by_text("No photos yet.")).to_be_visible()
    page.locator("#photos input[type=file]").set_input_files(served.photos)
    expect(page.locator("#findings")).to_contain_text("The photo coach")
    expect(page.locator("#crops img")).to_have_count(len(served.photos))
    page.get_by_label("Class noun").fill("bear")
    page.get_by_label("Class noun").press("Enter")
    page.get_by_label("Identifier").fill("ohwx")
    expect(page.locator("#prompts")).to_contain_text("a photo of ohwx bear")
    expect(page.locator("#prompts")).to_contain_text("a photo of a bear")

    # Both ways: the first of the two comes to its end with losses, samples and what they say; the second one follows.
    page.get_by_role("button", name="Next: train").click()
    expect(page.locator("#estimate")).to_contain_text("Memory")
    start_training(page, 6, ways="Twice")
    expect(headline).to_contain_text(re.compile("ohwx bear (running|finished)"))
    expect(headline).to_contain_text("ohwx bear finished")
    expect(page.locator("#curves svg")).to_be_visible()
    expect(page.locator("#samples td img")).to_have_count(12)
    expect(page.locator("#samples tbody th")).to_have_text(["step 6 best", "before"])
    expect(page.locator("#progress svg")).to_have_count(4)
    expect(page.locator("#progress")).to_contain_text("Step 6 is the best")
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#history .chip.finished")).to_have_count(2)

    keep_another_best_model(served, step=3)
    page.get_by_role("button", name="Next: make pictures").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(re.compile("ohwx bear"))
    expect(page.get_by_label("Best step (3)")).to_be_checked()
    expect(page.get_by_label("Last step (6)")).to_be_visible()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#pictures .grid-wrap img")).to_have_count(4)
    expect(page.locator("#generate-status")).to_contain_text("4 pictures in")
    page.get_by_role("button", name="Thumbnail 1 of 4").click()
    expect(page.locator(".made-with")).to_contain_text("which of its modelsbest")

    open_tab(page, "Compare")
    expect(page.locator("#drift svg")).to_have_count(2)
    page.get_by_label("Prompts").fill("a photo of a bear\na photo of ohwx bear")
    page.locator("#compare").click()
    expect(page.locator("#comparison thead")).to_contain_text("Without PPL")
    expect(page.locator("#comparison td img")).to_have_count(12)
    expect(page.locator("#overlay")).to_be_visible()
    expect(page.locator("#figures tbody th")).to_have_text(
        ["Base model", "Without PPL", "With PPL", "With PPL − without PPL", "The photos themselves"]
    )
    expect(page.locator("#figures [data-metric=PRES]")).to_have_count(4)

    # A long run goes on while the page is reloaded, can be stopped then, and resumed.
    open_tab(page, "Photos")
    page.get_by_label("Identifier").fill("zwx")
    start_training(page, 5000)
    expect(headline).to_contain_text(re.compile(r"step \d+ of 5000 · .* a second · .* left"))
    page.reload()
    open_tab(page, "Train")
    expect(headline).to_contain_text("zwx bear running")
    expect(headline).to_contain_text(re.compile(r"step \d+ of 5000"))
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(headline).to_contain_text("zwx bear cancelled")
    page.get_by_role("button", name="Resume").click()
    expect(headline).to_contain_text("zwx bear running")
    expect(headline).to_contain_text(re.compile(r"step \d+ of 5000"))
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(headline).to_contain_text("zwx bear cancelled")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.locator("#history li")).to_have_count(2)
    page.close()

    assert not elsewhere, f"the page asked the network for {elsewhere}"
    assert not forbidden, "the page lives with its policy"
    assert not served.errors.read_text(), "the console is not clean"


def test_a_visitor_puts_adapters_on_top_of_each_other(served: Served, tiny_model: Path, browser: Browser):
    page = browser.new_page()
    page.goto(served.url)
    owner = owner_in(page)
    open_tab(page, "Generate")
    expect(page.locator("#model input")).to_have_value(re.compile("tiny-sd"))
    expect(page.get_by_text("Add adapters")).to_be_hidden()
    studio = studios.studio(served.runs, tiny_model)
    for identifier, method in (("<b>", "textual_inversion"), ("sks", "lora")):
        only = {"train": {"text_encoder": False}, "subject": {"identifier": identifier}, "prior": {"enabled": False}}
        studios.finished_runs(studio, served.photos[0].parent, owner=owner, method=method, **only)
    page.reload()
    open_tab(page, "Generate")
    expect(page.locator("#model input")).to_have_value(re.compile("sks dog · LoRA"))
    page.locator("#scale input[type=number]").fill("0.5")
    page.get_by_text("Add adapters").click()
    expect(page.locator("#adapter2")).to_be_hidden()
    page.locator("#adapter input").click()
    page.get_by_role("option", name="Textual Inversion").click()
    expect(page.locator("#adapter2")).to_be_visible()
    expect(page.locator("#weight")).to_be_hidden()
    page.locator("#ideas").get_by_text("a sks dog and <b> dog in the jungle").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#generate-status")).to_contain_text("4 pictures in")
    page.get_by_role("button", name="Thumbnail 1 of 4").click()
    expect(page.locator(".made-with")).to_contain_text("strength of the adapter0.5")
    page.locator("#model input").click()
    page.get_by_role("option", name="tiny-sd").click()
    expect(page.locator("#scale")).to_be_hidden()
    page.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#scale input[type=number]")).to_have_value("0.5")
    expect(page.locator("#adapter input")).to_have_value(re.compile("Textual Inversion"))
    page.close()
    assert not served.errors.read_text(), "the console is not clean"


def test_a_browser_without_cookies_sees_its_runs_while_the_page_is_open(
    served: Served, tiny_model: Path, browser: Browser
):
    """As in a frame of another site, where Safari keeps none."""

    def keep_no_cookie(route: Route) -> None:
        answer = route.fetch()
        page.context.clear_cookies()  # it keeps what it fetches
        route.fulfill(response=answer, headers={k: v for k, v in answer.headers.items() if k != "set-cookie"})

    page = browser.new_page()
    page.route(served.url, keep_no_cookie)
    page.goto(served.url)
    expect(page.locator("#no-cookie")).to_contain_text("your runs are here for as long as the page is open")
    page.locator("#photos input[type=file]").set_input_files(served.photos)
    expect(page.locator("#crops img")).to_have_count(len(served.photos))
    start_training(page, 2)
    expect(page.locator("#history li")).to_have_count(1)
    open_tab(page, "Photos")
    open_tab(page, "Train")
    expect(page.locator("#history li")).to_have_count(1)
    page.reload()
    open_tab(page, "Train")
    expect(page.locator("#headline")).to_contain_text("Nothing trains yet")
    expect(page.locator("#start")).to_be_enabled()
    expect(page.locator("#history li")).to_have_count(0)
    page.close()

    page = browser.new_page()
    page.goto(served.url)
    open_tab(page, "Train")
    expect(page.locator("#start")).to_be_enabled()
    expect(page.locator("#no-cookie")).to_be_hidden()
    page.close()


def test_a_visitor_without_photos_is_told_what_to_do(served: Served, browser: Browser):
    page = browser.new_page()
    page.goto(served.url)
    start_training(page, 6)
    expect(page.get_by_test_id("toast-body")).to_contain_text("There are no photos yet. Add 3 to 5 in the Photos tab")
    hints = {
        "Train": "Nothing trains yet",
        "Generate": "No pictures yet",
        "Compare": "Nothing to compare",
        "Publish": "Nothing to publish yet",
        "Gallery": "HF_HUB_OFFLINE is set on this machine",
    }
    for tab, hint in hints.items():
        open_tab(page, tab)
        expect(page.get_by_text(hint)).to_be_visible()
    page.close()


def test_a_program_does_what_a_person_does(served: Served, tmp_path: Path):
    client = Client(served.url, verbose=False, download_files=tmp_path)
    photos = [{"image": handle_file(path), "caption": None} for path in served.photos]
    assert "The photo coach" in client.predict(photos, api_name="/check_photos")[1]
    assert client.predict("robot", api_name="/identifier_advice")["suggestions"]
    settings = dict(recipe="toybox", base_model="tiny-sd", steps=2, class_images=4)
    assert client.predict(**settings, api_name="/estimate")["peak_bytes"] > 0
    runs = client.predict(
        ANNA, photos, "sks", "dog", **settings, ways="two", more={"prior": {"steps": 2}}, api_name="/start_training"
    )
    assert {r["id"] for r in client.predict(ANNA, api_name="/runs")} == set(runs)
    assert client.predict(ANNA, runs[0], api_name="/run_status")["title"] == "sks dog"
    assert client.predict(BERT, api_name="/runs") == []
    pictures = client.predict(BERT, "tiny-sd", "a photo of a dog", "", 2, 3.0, 7, 1, api_name="/generate")[0]
    [picture] = pictures["value"] if isinstance(pictures, dict) else pictures
    facts = Image.open(picture["image"]).text
    assert (facts["prompt"], facts["seed"], facts["model"]) == ("a photo of a dog", "7", "tiny-sd")


def test_a_program_trains_a_run_the_other_way_too(served: Served, tmp_path: Path):
    client = Client(served.url, verbose=False, download_files=tmp_path)
    photos = [{"image": handle_file(path), "caption": None} for path in served.photos]
    unmeasured = {"evaluation": {"while_training": False}}  # the public encoders are on a network
    [run] = client.predict(
        BERT,
        photos,
        "sks",
        "dog",
        base_model="tiny-sd",
        steps=2,
        prior=False,
        more=unmeasured,
        api_name="/start_training",
    )
    until(lambda: client.predict(BERT, run, api_name="/run_status")["status"] == "finished", "it has not finished")
    other = client.predict(BERT, run, api_name="/train_other_way")
    assert client.predict(BERT, run, api_name="/run_status")["partner"] == other
    assert "class images" in client.predict(BERT, other, api_name="/run_status")["settings"]
    assert client.predict(BERT, api_name="/models")[0]["steps"] is None
