"""The Train tab: when it asks for consent, and in a browser what a method changes."""

from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, expect

from dreambooth.config.names import TOYBOX
from dreambooth.config.presets import load_preset
from dreambooth.runs.directory import Run
from dreambooth.ui.photos import tab as upload
from dreambooth.ui.photos.taught import Kept
from dreambooth.ui.studio import Studio
from dreambooth.ui.train import tab as train
from tests.ui.studios import ANNA


def test_photos_of_people_ask_for_consent_on_a_public_studio():
    assert train._ask_for_consent("a young woman", TOYBOX).visible
    assert train._ask_for_consent("dog", "sd15-person").visible
    assert not train._ask_for_consent("dog", TOYBOX).visible
    assert not train._ask_for_consent(None, TOYBOX).visible
    assert train._ask_for_consent("dog", TOYBOX, [Kept((), {}, "sks", "girl")]).visible


@pytest.fixture
def opened(studio: Studio, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """Two tabs of a studio that trains nothing."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with gr.Blocks(analytics_enabled=False) as blocks:
        owner = gr.Textbox(ANNA, visible=False)
        subject = upload.build(studio)
        _, refresh = train.build(studio, owner, subject)
        blocks.load(**refresh)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, run_history=False)
    page = browser.new_page()
    page.goto(url)
    yield page
    page.close()
    blocks.close()


def test_a_method_fills_in_its_recipe_and_shows_what_belongs_to_it(
    opened: Page, studio: Studio, word_run: Run, photo_folder: Path
):
    page = opened
    page.locator("#photos input[type=file]").set_input_files(sorted(photo_folder.iterdir()))
    methods, rate = page.locator("#method"), page.locator("#learning-rate input")
    expect(page.locator("#estimate")).to_contain_text("File")
    expect(methods).not_to_contain_text("Estimating")
    expect(page.locator("#prompts")).to_contain_text("a photo of sks dog")

    page.get_by_role("radio", name="Textual Inversion").check()
    expect(page.locator("#prompts")).to_contain_text("a photo of <sks> dog")
    expect(page.locator("#identifier-advice")).to_contain_text("A new word. The chosen method adds <sks>")
    for part in ("#keeping", "#text-encoder", "#learned"):
        expect(page.locator(part)).not_to_be_visible()
    page.get_by_role("radio", name="LoRA").check()
    expect(rate).to_have_value(str(load_preset("toybox-lora")["train"]["learning_rate"]))
    expect(page.locator("#prompts")).to_contain_text("a photo of sks dog")
    expect(page.locator("#text-encoder")).to_be_visible()
    page.get_by_role("radio", name="Three times").check()
    expect(page.locator("#drift-weight input")).to_have_value("0.01")
    page.locator("#learned input").click()
    page.get_by_role("option", name="<zwx> cat").click()
    expect(page.get_by_label("Identifier")).to_have_value("zwx")
    expect(page.locator("#prompts")).to_contain_text("a photo of <zwx> cat")
    expect(page.locator("#estimate")).to_contain_text("File")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#headline")).to_contain_text("Trained three ways")
    expect(page.get_by_test_id("toast-body")).to_have_count(0)
    runs = [run.config for run in studio.own_runs(ANNA) if run != word_run]
    assert sorted(config.condition for config in runs) == ["with PPL", "with drift penalty", "without PPL"]
    assert {(config.method, config.subject.identifier) for config in runs} == {("lora", "<zwx>")}
