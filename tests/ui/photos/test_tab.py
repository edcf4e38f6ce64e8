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

from dreambooth.errors import ConfigError, PhotoError
from dreambooth.photos.prepare import SHOWN, Crop, prepare_photo, show_crop
from dreambooth.runs.worker import Worker
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.photos import crops
from dreambooth.ui.photos import tab as upload
from dreambooth.ui.photos.identifier import Lookup, as_word
from dreambooth.ui.studio import Studio
from tests import tiny
from tests.pictures import saved, scene

SCRIPT = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three photos with room to move a box in, and a text that calls itself one."""
    folder = tiny.photos(tmp_path_factory.mktemp("photos") / "disc", size=(320, 240))
    (folder / "photo3.jpg").write_text("no picture at all")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def studio(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    root = tmp_path_factory.mktemp("runs")
    models = {"tiny": str(tiny_model), "elsewhere": "somebody/model"}
    return Studio(root, models, Worker(root), StudioSettings(public=True))


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


@pytest.mark.parametrize("size", [(1600, 1200), (900, 1400), (80, 64), (64, 64)])
def test_a_box_goes_to_the_sliders_and_back(size: tuple[int, int]):
    for place in ((100, 0, 0), (70, 100, 100), (40, 50, 25), (5, 0, 100)):
        box = crops.crop_at(size, *place)
        assert box.right - box.left == box.bottom - box.top >= 64
        assert min(box) >= 0
        assert box.right <= size[0]
        assert box.bottom <= size[1]
        again = crops.crop_at(size, *crops.place_of(box, size))
        assert max(abs(a - b) for a, b in zip(box, again, strict=True)) <= 2


def test_a_box_is_centred_where_it_is_clicked_but_stays_inside():
    box = Crop(0, 0, 100, 100)
    assert crops.centred_at(box, (400, 300), (200, 150)) == Crop(150, 100, 250, 200)
    assert crops.centred_at(box, (400, 300), (399, 0)) == Crop(300, 0, 400, 100)


def test_boxes_belong_to_photos_and_not_to_places():
    kept = {"b": Crop(0, 0, 64, 64), "gone": Crop(1, 1, 65, 65)}
    photos = [("a", None), ("b", None)]
    assert crops.aligned(photos, kept) == [None, kept["b"]]
    assert crops.aligned(photos, kept, [[1, 2, 65, 66], None]) == [Crop(1, 2, 65, 66), None]
    assert crops.aligned(None, kept) == []
    assert crops.forget(photos, kept, "b")[:2] == ({"b": kept["b"]}, "b")
    assert crops.forget(photos, kept, "gone")[:2] == ({"b": kept["b"]}, None)
    with pytest.raises(PhotoError, match="Crop box 1"):
        crops.aligned(photos, kept, [None, [0, 0, True, 64]])


def test_a_name_that_is_a_script_is_shown_as_text(photos: list[Path], tmp_path: Path):
    paths = [tmp_path / SCRIPT, tmp_path / f"broken {SCRIPT}"]
    paths[0].write_bytes(photos[0].read_bytes())
    paths[1].write_text("x")
    gallery, findings = upload.look_at(64, [str(path) for path in paths], [None, None])
    assert len(gallery.value) == 2
    assert "&lt;img src=x onerror=alert(1)&gt;.jpg" in findings
    assert "<img src=x" not in findings


def test_findings_stand_beside_the_photos_they_are_about(tmp_path: Path):
    paths = [str(path) for path in saved(tmp_path, [scene(1, 400), scene(2, 400), scene(1, 400)])]
    findings = upload.look_at(512, paths, [None] * 3)[1]
    rows = findings.split("<li><img")[1:]
    assert ["0.png and 2.png look almost the same" in row for row in rows] == [True, False, True]
    assert "Is enlarged from 400 to 512 pixels." in rows[1]
    moved = upload.look_at(512, paths[:2], [None, Crop(0, 0, 100, 100)])[1]
    assert "Is enlarged from 100 to 512 pixels." in moved


def test_a_word_is_looked_up_where_the_model_is_here(studio: Studio):
    lookup = Lookup(studio)
    advice = lookup.identifier_advice("ohwx", "dog", "tiny")
    assert (advice["pieces"], advice["identifier"]) == (["ohwx"], "ohwx")
    assert lookup.identifier_advice("ohwx", "dog", "elsewhere")["verdict"] == "unknown"
    assert "not on this machine" in lookup.show("ohwx", "elsewhere")[0]
    assert "&lt;b&gt;x" in lookup.show("<b>x", "tiny")[0]
    assert "holds spaces" in lookup.show("two words", "tiny")[0]
    assert lookup.show(" ", "tiny")[0] == ""
    with pytest.raises(gr.Error, match="not on offer"):
        lookup.identifier_advice("ohwx", "dog", "../elsewhere")


def test_a_new_word_is_not_looked_up(studio: Studio):
    said, *chips = Lookup(studio).show("<b", "tiny", True)
    assert "A new word" in said
    assert "&lt;b&gt;" in said
    assert all(chip == gr.skip() for chip in chips)
    assert Lookup(studio).show(" ", "tiny", True)[0] == ""
    assert [as_word(word) for word in ("sks", " <sks> ", "my-dog")] == ["<sks>", "<sks>", "<my-dog>"]


def test_what_no_training_would_take_is_not_set_aside(studio: Studio, photos: list[Path]):
    several, given = upload.Several(studio, gr.Gallery()), [(str(path), None) for path in photos]
    kept = several.set_aside(given[:3], {}, " sks ", "dog", [])[4]
    assert kept == [upload.Kept(tuple(str(path) for path in photos[:3]), {}, "sks", "dog")]
    for asked, says in (
        ((None, {}, "ohwx", "cat", kept), "no photos of this subject"),
        ((given[:1], {}, "", "cat", kept), "identifier is empty"),
        ((given[:1], {}, "sks", "cat", kept), "called sks already"),
        ((given[2:], {}, "ohwx", "cat", kept), "photo3.jpg holds text"),
        ((given[:1] * 48, {}, "ohwx", "cat", kept), "51 photos are too many"),
        ((given[:1], {}, "ohwx", "cat", kept * 3), "takes 4 subjects at most here"),
    ):
        with pytest.raises(gr.Error, match=says):
            several.set_aside(*asked)


def test_a_subject_in_the_list_is_shown_as_text(studio: Studio, photos: list[Path]):
    shown = upload.subjects_html(64, [upload.Kept((str(photos[0]),), {}, "<b>'", "dog")])
    assert "&lt;b&gt;&#x27; dog" in shown
    assert "<b>" not in shown
    assert "1 photo · the first, which is measured<" in shown
    shown = upload.subjects_html(64, [upload.Kept((str(photos[0]),), {}, word, "dog") for word in ("sks", "b")], True)
    assert re.findall("<strong>(.*?)</strong><small>(.*?)<", shown) == [
        ("&lt;sks&gt; dog", "1 photo · the first, which is measured"),
        ("&lt;b&gt; dog", "1 photo"),
    ]


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
    assert "a photo of &lt;sks&gt; dog" in upload.show_prompts("sks", "dog", True)
    assert "angle brackets" in upload.show_prompts("two words", "dog", True)
    kept = [upload.Kept(("a.jpg",), {}, "ohwx", "cat")]
    alone = upload.show_prompts("sks", "dog", kept=kept)
    assert "a photo of sks dog" not in alone
    assert "The subject in the form counts once it has photos" in alone
    both = upload.show_prompts("sks", "dog", photos=[("b.jpg", None)], kept=kept)
    assert "a photo of ohwx cat and sks dog" in both
    assert "once it has photos" not in both
    assert upload.MORE_STEPS in both
    assert upload.MORE_STEPS not in alone


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 512)])
def test_outside_the_box_a_photo_is_dimmed(size: tuple[int, int], tmp_path: Path):
    [path] = saved(tmp_path, [Image.new("RGB", size, "white")])
    shown = show_crop(prepare_photo(path, 64, (0, 0, 64, 64)))
    assert max(shown.size) == SHOWN
    assert shown.getpixel((shown.width - 1, shown.height - 1)) == (89, 89, 89)
    if min(size) > 64:
        assert shown.getpixel((20, 20)) == (255, 255, 255)
