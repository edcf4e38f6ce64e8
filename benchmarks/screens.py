"""The README's pictures of the studio: every tab after a real visit on the toybox, wide, in the dark and on a phone.

    python -m benchmarks.screens [--out docs]

Trains the sample backpack both ways, draws, compares, publishes to a Hub on the loopback and looks at the gallery, as a
visitor who has logged in does (about five minutes on two cores).
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.hub import LoopbackHub
from tests.ui.conftest import ROOT, serve
from tests.ui.test_page import open_tab

SUBJECTS = ROOT / "dreambooth" / "toybox" / "subjects"
TABS = ("Photos", "Train", "Generate", "Compare", "Publish", "Gallery")
MINUTES = 60_000
GROUND = (178, 174, 166)


def visit(page: Page, url: str) -> None:
    """From photos to a published model; what took minutes is there when it returns."""
    page.goto(url)
    page.get_by_role("button", name="backpack").click()
    expect(page.locator("#findings")).to_contain_text("The photo coach")
    open_tab(page, "Train")
    page.get_by_role("radio", name="Twice").check()
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#history .chip.finished")).to_have_count(2, timeout=20 * MINUTES)
    open_tab(page, "Generate")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#generate-status")).to_contain_text("4 pictures in", timeout=5 * MINUTES)
    open_tab(page, "Compare")
    page.locator("#compare").click()
    expect(page.locator("#figures tbody th")).to_have_count(5, timeout=10 * MINUTES)
    open_tab(page, "Publish")
    page.locator("#publish").click()
    expect(page.locator("#publish-status")).to_contain_text("It is on the Hub", timeout=5 * MINUTES)
    open_tab(page, "Gallery")
    expect(page.locator("#gallery li img").first).to_be_visible(timeout=MINUTES)


def shots(page: Page, height: int, tabs: tuple[str, ...] = TABS) -> list[Image.Image]:
    """The tabs from their tops, `height` CSS pixels high."""
    pictures = []
    for tab in tabs:
        if page.get_by_role("tab", name=tab).is_visible():
            open_tab(page, tab)
        else:  # a phone's row holds three
            page.locator(".overflow-menu > button").click()
            page.locator(".overflow-dropdown button", has_text=tab).click()
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(1500)  # pictures load, and the tab's list is filled
        pictures.append(Image.open(io.BytesIO(page.screenshot())).crop((0, 0, page.viewport_size["width"], height)))
    return pictures


def sheet(pictures: list[Image.Image], columns: int, width: int, gap: int = 12) -> Image.Image:
    """The pictures, each `width` pixels wide, in rows."""
    small = [p.convert("RGB").resize((width, p.height * width // p.width), Image.Resampling.LANCZOS) for p in pictures]
    high, rows = small[0].height, -(-len(small) // columns)
    joined = Image.new("RGB", (columns * (width + gap) + gap, rows * (high + gap) + gap), GROUND)
    for number, picture in enumerate(small):
        row, column = divmod(number, columns)
        joined.paste(picture, (gap + column * (width + gap), gap + row * (high + gap)))
    return joined


def opened(browser: Browser, state: dict, url: str, width: int, dark: bool) -> Page:
    """The studio as the visitor left it, in a window of another kind."""
    scheme = "dark" if dark else "light"
    context = browser.new_context(
        storage_state=state, viewport={"width": width, "height": 1250}, color_scheme=scheme, device_scale_factor=1
    )
    page = context.new_page()
    page.set_default_timeout(MINUTES)
    page.goto(url)
    expect(page.get_by_role("tab", name="Train")).to_be_visible()
    page.wait_for_timeout(3000)  # the row of tabs finds out what it has room for
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder, LoopbackHub(Path(folder) / "hub") as hub, sync_playwright() as play:
        for noun in ("robot", "teapot", "cat"):  # what others have published
            picture = (SUBJECTS / noun / "02.png").read_bytes()
            card = (
                f"---\ntags: [dreambooth-studio]\ninstance_prompt: a photo of sks {noun}\nwidget:\n"
                f"- text: a photo of sks {noun}\n  output: {{url: images/00.png}}\n---\n"
            )
            hub.add_repo(f"bert/sks-{noun}", {"README.md": card.encode(), "images/00.png": picture})
        work = Path(folder) / "studio"
        work.mkdir()
        around = hub.environment(hub.add_user("anna")) | {"OMP_NUM_THREADS": ""}
        with serve(work, Path("toybox"), SUBJECTS / "backpack", around=around) as studio:
            program = shutil.which("chromium") or shutil.which("google-chrome")
            browser = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1400, "height": 1250})
            visit(page, studio.url)
            wide = shots(page, 1250)
            state = page.context.storage_state()
            sheet(wide, 2, 912).save(out / "studio-wide.jpg", quality=85)
            dark = shots(opened(browser, state, studio.url, 1400, True), 1250, ("Train", "Publish", "Gallery"))
            sheet(dark, 3, 604).save(out / "studio-dark.jpg", quality=85)
            phone = shots(opened(browser, state, studio.url, 390, False), 844, ("Photos", "Train", "Publish"))
            phone += shots(opened(browser, state, studio.url, 390, True), 844, ("Generate", "Compare", "Gallery"))
            sheet(phone, 6, 300).save(out / "studio-phone.jpg", quality=85)
            browser.close()


if __name__ == "__main__":
    main()
