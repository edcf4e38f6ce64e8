"""How quick the studio's page is, in a real browser beside a training on the same machine.

    python -m benchmarks.studio [--seconds 30]

Serves the studio, opens it in Chromium and states: from the start of the server to its answer, from opening the page to
the first answered click, from the click on "Start training" to the first event and to the first step, and how long the
page's polls took while the run trained (median, 95th percentile, worst).
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from playwright.sync_api import Page, Request, expect, sync_playwright

ROOT = Path(__file__).parent.parent
BROWSER = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def serve(folder: Path, around: Mapping[str, str] = os.environ) -> tuple[subprocess.Popen, str, float]:
    """Start `app.py` in the environment `around`, with everything in `folder`: the process, its address, and how many
    seconds it took to answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"DREAMBOOTH_RUNS": str(folder / "runs"), "DREAMBOOTH_CACHE": str(folder / "cache")}
    settings |= {"GRADIO_TEMP_DIR": str(folder / "gradio"), "GRADIO_SERVER_PORT": port}
    began = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "app.py"], cwd=ROOT, env={**around, **settings}, stdout=subprocess.PIPE, text=True
    )
    server.stdout.readline()
    return server, f"http://127.0.0.1:{port}/", time.perf_counter() - began


def first_event(runs: Path, kind: str) -> float:
    """Wait for the first event of that kind in the newest run, and return its time (seconds since the epoch)."""
    giving_up = time.monotonic() + 300
    while time.monotonic() < giving_up:
        for path in runs.glob("*/events.jsonl"):
            for line in path.read_text().splitlines():
                if (event := json.loads(line))["event"] == kind:
                    return event["time"]
        time.sleep(0.05)
    raise TimeoutError(f"no {kind} event after five minutes")


def polls(page: Page, seconds: float) -> list[float]:
    """Seconds that each of the page's requests took in that time, from sending it to the last byte."""
    took: list[float] = []

    def finished(request: Request) -> None:
        if request.method == "POST" and "/gradio_api/" in request.url:
            took.append(request.timing["responseEnd"] / 1000)

    page.on("requestfinished", finished)
    page.wait_for_timeout(1000 * seconds)
    page.remove_listener("requestfinished", finished)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how long to watch the polls")
    args = parser.parse_args()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server, url, started = serve(Path(folder))
        try:
            page = playwright.chromium.launch(executable_path=program, args=BROWSER).new_page()
            expect.set_options(timeout=120_000)
            opened = time.perf_counter()
            page.goto(url)
            page.locator(".samples button", has_text="backpack").click()
            expect(page.locator("#findings")).to_contain_text("The photo coach")
            first_click = time.perf_counter() - opened
            page.get_by_role("tab", name="Train").click()
            page.locator("#steps input").fill("5000")
            clicked = time.time()
            page.get_by_role("button", name="Start training").click()
            queued = first_event(Path(folder) / "runs", "run_queued") - clicked
            stage = first_event(Path(folder) / "runs", "stage") - clicked
            step = first_event(Path(folder) / "runs", "step") - clicked
            took = polls(page, args.seconds)
        finally:
            server.terminate()
            server.wait(20)
    ranked = sorted(took)
    print(f"server: answers {started:.1f} s after its start")
    print(f"page: {first_click:.1f} s from opening it to a sample subject's findings")
    print(f"training: queued {queued:.2f} s, begun {stage:.2f} s, first step {step:.1f} s after the click")
    print(
        f"polls while training: {len(ranked)}, median {statistics.median(ranked):.3f} s, 95th percentile"
        f" {ranked[int(0.95 * (len(ranked) - 1))]:.3f} s, worst {ranked[-1]:.3f} s"
    )


if __name__ == "__main__":
    main()
