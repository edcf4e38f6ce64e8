"""The photos tab: crop boxes and findings, sample subjects, words, identifiers and prompts."""

import re
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from dreambooth.errors import ConfigError
from dreambooth.ui.photos import tab as upload
from dreambooth.ui.studio import Studio


@pytest.fixture(scope="module")
def tab(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page with nothing but this tab."""
    with pytest.MonkeyPatch.context() as patch, gr.Blocks(analytics_enabled=False) as page:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        subject = upload.build(studio)
        gr.Button("Another model").click(lambda: "elsewhere", None, subject.base_model, queue=False)
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, run_history=False)
        yield url
        page.close()


@pytest.fixture
def page(tab: str, browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    opened.goto(tab)
    yield opened
    opened.close()


def drop(page: Page, photos: list[Path]) -> None:
    page.locator("#photos input[type=file]").set_input_files(photos)
    expect(page.locator("#crops img")).to_have_count(len(photos))
    expect(page.locator("#findings")).to_contain_text("The photo coach")


# ---- In a browser


def test_a_crop_box_is_moved_and_the_findings_follow(page: Page, photos: list[Path]):
    drop(page, photos[:3])
    caption, picture = page.locator("#crop-caption"), page.locator("#crop-picture img")
    size, across, down = (page.get_by_label(f"range slider for {name}") for name in ("Size", "Across", "Down"))
    expect(picture).not_to_be_visible()
    page.locator("#crops button").nth(1).click()
    expect(caption).to_contain_text("photo1.jpg 240 × 240 of 320 × 240 pixels")
    expect(picture).to_be_visible()
    automatic, whole, findings = (
        picture.get_attribute("src"),
        across.input_value(),
        page.locator("#findings img").nth(1),
    )
    thumbnail = findings.get_attribute("src")

    size.press("PageDown")
    expect(caption).to_contain_text(re.compile(r"photo1.jpg 21\d × 21\d of"))
    expect(picture).not_to_have_attribute("src", automatic)
    expect(findings).not_to_have_attribute("src", thumbnail)  # what training sees, beside the photo's findings

    corner = picture.bounding_box()
    page.mouse.click(corner["x"] + 5, corner["y"] + 5)
    expect(across).to_have_value("0")
    expect(down).to_have_value("0")

    page.get_by_role("button", name="Reset to automatic").click()
    expect(caption).to_contain_text("240 × 240 of 320 × 240 pixels")
    expect(size).to_have_value("100")
    expect(across).to_have_value(whole)
    expect(picture).to_have_attribute("src", automatic)
    expect(findings).to_have_attribute("src", thumbnail)


def test_a_photo_taken_out_leaves_no_box_and_no_editor(page: Page, photos: list[Path]):
    drop(page, photos[:2])
    page.locator("#crops button").nth(1).click()
    page.get_by_label("range slider for Size").press("PageDown")
    expect(page.locator("#crop-caption")).to_contain_text("21")
    page.get_by_label("Delete image").nth(1).click()
    expect(page.locator("#crops img")).to_have_count(1)
    expect(page.locator("#crop-picture img")).not_to_be_visible()


def test_a_photo_that_cannot_be_used_is_named_and_keeps_its_place(page: Page, photos: list[Path]):
    drop(page, [photos[3], photos[0]])
    expect(page.locator("#findings .error")).to_contain_text("photo3.jpg holds text, not a picture.")
    page.locator("#crops button").nth(0).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("photo3.jpg holds text, not a picture.")
    page.locator("#crops button").nth(1).click()
    expect(page.locator("#crop-caption")).to_contain_text("photo0.jpg")


def test_another_subject_is_taught_too_changed_and_removed(page: Page, photos: list[Path]):
    listed, identifier = page.locator("#subjects li"), page.get_by_label("Identifier")
    expect(listed).to_have_count(0)
    drop(page, photos[:3])
    page.locator("#crops button").nth(1).click()
    page.get_by_label("range slider for Size").press("PageDown")
    expect(page.locator("#crop-caption")).to_contain_text(re.compile(r"photo1.jpg 21\d"))
    page.get_by_role("button", name="Teach another subject too").click()
    expect(listed).to_have_text(re.compile("sks dog3 photos · the first"))
    expect(identifier).to_have_value("ohwx")
    expect(page.locator("#findings")).to_contain_text("No photos yet")
    expect(page.locator("#crop-picture img")).not_to_be_visible()
    expect(page.locator("#prompts")).not_to_contain_text("ohwx")
    expect(page.locator("#prompts")).to_contain_text("in the form counts once it has photos")

    drop(page, photos[:1])
    page.get_by_label("Class noun").fill("cat")
    page.get_by_label("Class noun").press("Enter")
    expect(page.locator("#prompts")).to_contain_text("a photo of sks dog and ohwx cat")
    page.get_by_role("button", name="Change sks dog").click()
    expect(listed).to_have_text(re.compile("ohwx cat1 photo"))
    expect(identifier).to_have_value("sks")
    expect(page.locator("#crops img")).to_have_count(3)
    page.locator("#crops button").nth(1).click()
    expect(page.locator("#crop-caption")).to_contain_text(re.compile(r"photo1.jpg 21\d")), "its box was kept"
    page.get_by_role("button", name="Remove ohwx cat").click()
    expect(listed).to_have_count(0)
    expect(page.locator("#prompts")).not_to_contain_text("cat")


def test_an_ordinary_word_is_changed_for_a_rare_one_by_a_click(page: Page):
    advice = page.locator("#identifier-advice")
    page.get_by_label("Identifier").fill("snow")
    expect(advice).to_contain_text("Why")
    page.get_by_label("Identifier").fill("zzz")
    expect(advice).to_contain_text("3 tokens")
    chip = page.locator("#suggestions button").first
    word = chip.inner_text()
    chip.click()
    expect(page.get_by_label("Identifier")).to_have_value(word)
    expect(page.locator("#prompts")).to_contain_text(f"a photo of {word} dog")


def test_a_word_is_looked_up_in_the_model_that_is_chosen(page: Page):
    expect(page.locator("#identifier-advice")).to_contain_text("to this model: sks")
    page.get_by_role("button", name="Another model").click()
    expect(page.locator("#identifier-advice")).to_contain_text("This base model is not on this machine yet")
    expect(page.locator("#suggestions button")).to_have_text(["ohwx", "zwx", "pkblz", "sks"])


# ---- For programs


def test_a_program_gives_boxes_and_gets_pictures_and_findings(tab: str, photos: list[Path], tmp_path: Path):
    client = Client(tab, verbose=False, download_files=tmp_path)
    uploads = [{"image": handle_file(path), "caption": None} for path in photos[:2]]
    shown, findings = client.predict(uploads, [None, [0, 0, 64, 64]], api_name="/check_photos")
    assert len(shown["value"]) == 2
    assert "2 photos are too few" in findings
    refused = client.predict(uploads, [None, [0, 0, 999, 999]], api_name="/check_photos")[1]
    assert "photo1.jpg: the crop box" in refused
    for crop in ([None], [None, "everything"], {"photo1.jpg": None}):
        with pytest.raises(AppError, match=r"crops|Crop box"):
            client.predict(uploads, crop, api_name="/check_photos")
    advice = client.predict("sks", "dog", api_name="/identifier_advice")
    assert advice["pieces"] == ["sks"]
    assert advice["prompts_to_try"][-1] == "a photo of sks dog"


# ---- By themselves


def test_a_sample_subject_is_taken_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("teapot", "backpack-2"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / name / "00.png")
    monkeypatch.setattr(upload, "SUBJECTS", tmp_path)
    assert upload.load_sample("backpack-2") == ([tmp_path / "backpack-2" / "00.png"], "backpack")
    with pytest.raises(ConfigError, match="backpack-2, teapot"):
        upload.load_sample("../teapot")
