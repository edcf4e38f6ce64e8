"""From photos to a repo that anybody can use: a Space with login, a real browser, a Hub, and stock diffusers."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from dreambooth.models.fetch import TOYBOX_FOLDER
from dreambooth.runs.owners import account_id, rotate
from tests.hub import LoopbackHub
from tests.ui import studios
from tests.ui.conftest import ROOT, SECONDS, Served, serve
from tests.ui.test_page import open_tab, owner_in, start_training

STOCK = """
import json, sys
import torch
from diffusers import DiffusionPipeline

made = json.loads(sys.argv[2])
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
pictures = pipe(
    [made["prompt"]] * len(made["seeds"]), num_inference_steps=made["steps"], guidance_scale=made["guidance_scale"],
    generator=[torch.Generator().manual_seed(seed) for seed in made["seeds"]],
).images
for seed, picture in zip(made["seeds"], pictures):
    picture.save(f"{seed}.png")
assert not any(name.split(".")[0] == "dreambooth" for name in sys.modules)
"""


def log_in(page: Page, name: str) -> None:
    """Through the page's button, the Hub's login page, and back."""
    page.get_by_role("button", name="Log in").click(timeout=1000 * SECONDS)
    page.get_by_role("link", name=f"Log in as {name}").click(timeout=1000 * SECONDS)
    expect(page.get_by_role("button", name=f"Log out ({name})")).to_be_visible()


def drawn(page: Page, url: str) -> list[Image.Image]:
    """The pictures in the Generate tab, as the server has them."""
    sources = [picture.get_attribute("src") for picture in page.locator("#pictures .grid-wrap img").all()]
    return [Image.open(io.BytesIO(httpx.get(httpx.URL(url).join(src), timeout=SECONDS).content)) for src in sources]


def with_stock_diffusers(
    hub: LoopbackHub, repo_id: str, pictures: list[Image.Image], folder: Path
) -> list[Image.Image]:
    """The same pictures by a process that knows nothing of this product but the repo's name."""
    said = pictures[0].text
    assert said["precision"] == "no"
    made = {"prompt": said["prompt"], "steps": int(said["steps"]), "guidance_scale": float(said["guidance_scale"])}
    made["seeds"] = [int(picture.text["seed"]) for picture in pictures]
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-c", STOCK, repo_id, json.dumps(made)],
        cwd=folder,
        check=True,
        timeout=5 * SECONDS,
        env=hub.environment(hub.add_user("anna", scopes=("read",))) | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
    )
    return [Image.open(folder / f"{seed}.png") for seed in made["seeds"]]


@pytest.fixture
def space(hub: LoopbackHub, tmp_path: Path):
    """A public Space with login on a fresh machine, whose host has a token that no visitor may use."""
    hub.add_user("anna")
    around = hub.oauth_environment() | {"HF_TOKEN": hub.add_user("host", scopes=("write",))}
    folder = tmp_path / "space"
    folder.mkdir()
    with serve(folder, Path("toybox"), ROOT / "dreambooth" / "toybox" / "subjects" / "bear", around=around) as studio:
        yield studio


def test_a_visitor_logs_in_trains_and_publishes_what_anybody_draws_with(
    space: Served, hub: LoopbackHub, browser: Browser, tmp_path: Path
):
    page = browser.new_page()
    page.goto(space.url)
    open_tab(page, "Publish")
    expect(page.locator("#publish-status")).to_contain_text("Nothing to publish yet")
    log_in(page, "anna")

    page.locator("#photos input[type=file]").set_input_files(space.photos)
    expect(page.locator("#crops img")).to_have_count(len(space.photos))
    page.get_by_label("Class noun").fill("bear")
    page.get_by_label("Class noun").press("Enter")
    page.get_by_label("Identifier").fill("ohwx")
    open_tab(page, "Train")
    page.get_by_role("button", name="All other settings").click()
    page.get_by_label("Precision", exact=True).fill("no")  # `auto` draws in bf16 on some CPUs; a script does not
    page.get_by_role("option", name="no", exact=True).click()
    start_training(page, 6)
    expect(page.locator("#headline")).to_contain_text("ohwx bear finished", timeout=4000 * SECONDS)
    page.get_by_role("button", name="Next: make pictures").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#generate-status")).to_contain_text("4 pictures in")
    here = drawn(page, space.url)

    open_tab(page, "Publish")
    expect(page.locator("#publisher")).to_contain_text("You publish as anna")
    expect(page.locator("#repo textarea, #repo input")).to_have_value("anna/ohwx-bear")
    expect(page.locator("#publish-contents")).to_contain_text("Your 5 photos stay here")
    assert not any(request.method == "POST" and "/api/repos" in request.path for request in hub.requests)
    page.locator("#publish").click()
    link = page.locator("#publish-status a")
    expect(link).to_have_attribute("href", f"{hub.url}/anna/ohwx-bear")
    page.reload()
    open_tab(page, "Publish")
    expect(link).to_have_text("anna/ohwx-bear")
    expect(page.locator("#publish")).to_have_text("Publish again")
    repo = hub.repos["model", "anna/ohwx-bear"]
    assert repo.private
    assert not any(path.startswith("photos/") for path in repo.files)

    with page.expect_popup() as opened:
        link.click()
    card = opened.value
    expect(card.get_by_role("heading", name="ohwx bear")).to_be_visible()
    expect(card.get_by_text(re.compile(r'from_pretrained\("anna/ohwx-bear"\)'))).to_be_visible()
    card.close()

    assert not any(request.path.startswith("/api/models?") for request in hub.requests), "nobody asked for a list yet"
    open_tab(page, "Gallery")
    mine = page.locator("#gallery li", has_text="ohwx-bear")
    expect(mine.locator(".chip")).to_have_text("private")
    expect(mine.locator("img[src^='data:image/jpeg']")).to_be_visible()
    mine.get_by_role("button", name="Generate").click()
    expect(page.locator("#model input")).to_have_value("anna/ohwx-bear")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a photo of ohwx bear")
    page.close()

    there = with_stock_diffusers(hub, "anna/ohwx-bear", here, tmp_path / "elsewhere")
    for ours, theirs in zip(here, there, strict=True):
        # Fused attention and pictures decoded one by one add up in another order: single pixels round the other way.
        np.testing.assert_allclose(np.asarray(ours, int), np.asarray(theirs, int), rtol=0, atol=1)

    assert "host" not in {request.user for request in hub.requests}, "the host's token did something for a visitor"
    assert space.errors.read_text().count("Traceback") <= 1, "more than Gradio's own, about reloading on a Space"
    written = space.errors.read_bytes() + b"".join(p.read_bytes() for p in space.runs.rglob("*") if p.is_file())
    assert not any(secret.encode() in written for secret in hub.tokens)


def test_an_accounts_runs_are_on_every_device_and_gone_after_logging_out(space: Served, browser: Browser):
    """And no page holds what finds them: not the account's id, nor the browser's, nor the token."""
    root, studio = space.runs, studios.studio(space.runs, Path("toybox"))

    def train(owner: str, identifier: str) -> None:
        named = {"subject": {"identifier": identifier}}
        studios.finished_runs(studio, space.photos[0].parent, models=[TOYBOX_FOLDER], owner=owner, **named)

    def open_runs(page: Page, *shown: str) -> None:
        page.goto(space.url)
        open_tab(page, "Train")
        expect(page.locator("#history li strong")).to_have_text([f"{word} dog" for word in shown])

    told: list[str] = []
    phone, laptop = browser.new_context(), browser.new_context()
    for device in (phone, laptop):
        device.on("request", lambda request: told.append(f"{request.url} {request.post_data or ''}"))
    page = laptop.new_page()
    page.goto(space.url)
    train(own := owner_in(page), "zwx")
    log_in(page, "anna")
    train(account := account_id("anna", root), "ohwx")
    open_runs(page, "ohwx")
    told += [page.content(), page.evaluate("JSON.stringify([localStorage, sessionStorage, window.gradio_config])")]

    other = phone.new_page()
    open_runs(other)
    log_in(other, "anna")
    open_runs(other, "ohwx")
    rotate("anna", root)
    open_runs(other, "ohwx")
    assert account_id("anna", root) != account
    assert not studio.own_runs(account)

    open_runs(page, "ohwx")
    page.get_by_role("button", name="Log out (anna)").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    open_runs(page, "zwx")
    told += [page.content(), page.evaluate("JSON.stringify([localStorage, sessionStorage, window.gradio_config])")]
    phone.close()
    laptop.close()

    assert any("queue/join" in request for request in told), "else this looked at nothing"
    secrets = [one.partition(":")[2] for one in (own, account, account_id("anna", root))]
    assert not [text for text in told if any(secret in text for secret in secrets)]
