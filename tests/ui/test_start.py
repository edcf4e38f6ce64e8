"""The studio's start: what keeps it from starting is one line, and what need not does not."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from dreambooth.cli.program import prepare_for_the_studio
from dreambooth.errors import ConfigError
from dreambooth.ui import page as ui
from dreambooth.ui.doors import login
from dreambooth.ui.studio import Studio
from tests.ui.conftest import ROOT, serve


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DREAMBOOTH_WORKERS", "zero", "DREAMBOOTH_WORKERS = 'zero': Input should be a valid integer"),
        (
            "GRADIO_TEMP_DIR",
            "FILE/a",
            "FILE/a can't be written: FILE is a file. Give another folder (GRADIO_TEMP_DIR).",
        ),
        ("GRADIO_SERVER_PORT", "http", "GRADIO_SERVER_PORT = 'http' is no port."),
        ("GRADIO_SERVER_NAME", "192.0.2.1", "The studio can't listen where it is told to"),
        ("ALL_PROXY", "socks://127.0.0.1:1", "The proxy in ALL_PROXY can't be used (Unknown scheme for proxy URL"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path, variable: str, value: str, said: str):
    (tmp_path / "file").write_text("x")
    value, said = (text.replace("FILE", str(tmp_path / "file")) for text in (value, said))
    around = {"GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "DREAMBOOTH_RUNS": str(tmp_path / "runs"), variable: value}
    ended = subprocess.run(
        [sys.executable, "app.py"], cwd=ROOT, env=os.environ | around, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {said}")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("variable", ["DREAMBOOTH_RUNS", "DREAMBOOTH_CACHE"])
def test_a_folder_that_can_not_be_written_to_is_told_before_anybody_trains(tmp_path, monkeypatch, variable):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv(variable, str(tmp_path / "file" / "a"))
    with pytest.raises(ConfigError, match=rf"file is a file\. Give another folder \({variable}\)"):
        Studio.from_environment()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DREAMBOOTH_RUNS", "~/mine")
    assert Studio.from_environment().root == tmp_path / "mine"


class Refuses(BaseHTTPRequestHandler):
    """A proxy that leads nowhere."""

    def do_HEAD(self) -> None:
        """Gradio's second question."""
        self.do_GET()

    def do_GET(self) -> None:
        """Its first one."""
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.slow
def test_a_proxy_for_others_does_not_keep_it_from_starting(tiny_model: Path, photo_folder: Path, tmp_path: Path):
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    Thread(target=proxy.serve_forever, daemon=True).start()
    where = f"http://127.0.0.1:{proxy.server_port}"
    names = ("http_proxy", "https_proxy", "all_proxy")
    proxies = {name: where for lower in names for name in (lower, lower.upper())}
    around = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | proxies
    with serve(tmp_path, tiny_model, photo_folder, around=around) as served:
        assert served.url.startswith("http://127.0.0.1:")
    proxy.shutdown()


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_whom_else_the_proxies_are_not_for_stays(monkeypatch, name):
    for other in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(other, "")
    monkeypatch.setenv(name, "corp.example, 10.0.0.1")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "192.168.1.7")
    prepare_for_the_studio()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]
    assert os.environ["no_proxy"] == "corp.example,10.0.0.1,127.0.0.1,localhost,::1,192.168.1.7"


@pytest.fixture
def launched(tmp_path, monkeypatch, studio) -> SimpleNamespace:
    """What a studio does that is launched and stopped at once: what was `done`, and what Gradio was `told`."""
    seen = SimpleNamespace(done=[], told={})

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    page = SimpleNamespace(
        is_running=True,
        launch=lambda _app, **told: (_app, "http://127.0.0.1:7860", seen.told.update(told)),
        close=lambda verbose: seen.done.append("page"),
        block_thread=lambda: seen.done.append("page"),
    )
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(ui.Studio, "from_environment", lambda: studio)
    monkeypatch.setattr(studio.worker, "close", lambda seconds: seen.done.append("checkpoints"))
    monkeypatch.setattr(ui, "build", lambda _: page)
    monkeypatch.setattr(ui, "keep_house", lambda *_: None)
    monkeypatch.setattr(ui.signal, "signal", lambda *_: None)
    monkeypatch.setattr(ui.time, "sleep", interrupted)
    return seen


def test_who_stops_the_studio_has_checkpoints_written_before_open_pages_are_waited_for(launched):
    ui.launch()
    assert launched.done == ["checkpoints", "page"]


@pytest.mark.attack
def test_only_who_runs_the_studio_lets_others_to_it(launched, monkeypatch):
    """In such a notebook Gradio would make a link by itself, by which anybody acted with the machine's token."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    for shared, link in (("", False), ("false", False), ("true", True), ("True", True)):
        monkeypatch.setenv("GRADIO_SHARE", shared)
        ui.launch()
        assert launched.told["share"] is link
        assert login.for_oneself(public=False) is not link


@pytest.mark.attack
def test_pages_that_are_opened_take_a_bounded_share_of_memory(launched):
    ui.launch()
    assert launched.told["state_session_capacity"] <= 1000  # 0.6 MB each
