"""A served studio and a real browser, for every test of the page."""

import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import pytest
from filelock import FileLock
from playwright.sync_api import Browser, BrowserType, expect, sync_playwright

from dreambooth.runs.worker import Worker
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.studio import Studio
from tests.ui import studios

ROOT = Path(__file__).parent.parent.parent
SECONDS = 120  # for what takes seconds on an idle machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks a served studio, or looks at it with a browser, is slow."""
    for item in items:
        if {"served", "space", "toybox_studio", "browser"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class Served:
    url: str
    photos: list[Path]
    runs: Path
    errors: Path
    """What the server wrote on standard error."""
    process: subprocess.Popen


@contextmanager
def serve(
    folder: Path, model: Path, photos: Path, *, around: dict[str, str] | None = None, **settings: str
) -> Iterator[Served]:
    """`python app.py` on a free port, with runs and caches in `folder`; DREAMBOOTH_<NAME> from `settings`.

    `around` is its environment; by default this process's.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "DREAMBOOTH_BASE_MODEL": str(model),
        "DREAMBOOTH_RUNS": str(folder / "runs"),
        "DREAMBOOTH_CACHE": str(folder / "cache"),
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
        "GRADIO_SERVER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    } | {f"DREAMBOOTH_{name.upper()}": value for name, value in settings.items()}
    errors = folder / "stderr"
    with errors.open("ab") as stderr:
        server = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=(around or os.environ) | environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    giving_up = threading.Timer(2 * SECONDS, server.kill)
    giving_up.start()
    try:
        line = next((line for line in server.stdout if "http" in line), "")  # on a Space Gradio says more
        assert f"http://127.0.0.1:{port}" in line, f"the studio did not start: {line}{errors.read_text()}"
        giving_up.cancel()
        yield Served(f"http://127.0.0.1:{port}/", sorted(photos.iterdir()), folder / "runs", errors, server)
    finally:
        giving_up.cancel()
        server.terminate()
        server.wait(SECONDS)


@pytest.fixture(scope="module")
def served(tiny_model: Path, photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One studio for all tests of a file."""
    with serve(tmp_path_factory.mktemp("studio"), tiny_model, photo_folder) as studio:
        yield studio


@pytest.fixture
def studio(tmp_path: Path, tiny_model: Path) -> Studio:
    """One that trains nothing; no server."""
    return studios.studio(tmp_path / "runs", tiny_model)


@pytest.fixture
def gallery(tmp_path: Path) -> gr.Gallery:
    """One that keeps its pictures in the test's own folder."""
    made = gr.Gallery()
    made.GRADIO_CACHE = str(tmp_path / "cache")
    return made


@functools.cache
def chromium() -> str | None:
    """The browser that the tests drive: the system's, or Debian's package; None where it is Playwright's own.

    What is missing is installed. Fails where that can't be done: no test of the page is passed over in silence.
    """
    with FileLock(Path(tempfile.gettempdir()) / f"chromium-{os.getuid()}.lock"):  # workers would install it at once
        if (program := _on_the_system()) or _playwrights_own():
            return program
        said = []
        if shutil.which("apt-get") and os.getuid() == 0:
            for command in (["apt-get", "update"], ["apt-get", "install", "-y", "chromium"]):
                said.append(_run(command))
            if program := _on_the_system():
                return program
        said.append(_run([sys.executable, "-m", "playwright", "install", "chromium"]))
        assert _playwrights_own(), "\n".join(
            ["These tests drive a real browser; there is none, and none could be installed. Install Chromium.", *said]
        )
        return None


def _on_the_system() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _playwrights_own() -> bool:
    code = "from playwright.sync_api import sync_playwright as s\nwith s() as p: print(p.chromium.executable_path)"
    path = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return Path(path).exists()


def _run(command: list[str]) -> str:
    """The end of what a program says."""
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    ran = subprocess.run(command, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return f"{' '.join(command)}: {ran.stdout[-500:]}"


def start_chromium(kind: BrowserType, *flags: str) -> Browser:
    """A browser which asks nobody but the tests."""
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    return kind.launch(executable_path=chromium(), args=[*quiet, "--disable-sync", *flags])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=1000 * SECONDS)
        opened = start_chromium(playwright.chromium)
        yield opened
        opened.close()


# ---- Studios that train nothing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def make_studio(root: Path):
    """A function that makes a studio with these settings whose worker trains nothing."""
    return lambda **settings: Studio(
        root, {"tiny": "models/tiny"}, Worker(root, parallel=0), StudioSettings(**settings)
    )


@pytest.fixture
def photos(photo_folder: Path) -> list[str]:
    return [str(path) for path in sorted(photo_folder.iterdir())]
