"""Whose runs a logged-in visitor sees: the Hub is asked, and ids can't be guessed."""

import json
import stat
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import gradio as gr
import pytest

from dreambooth.errors import HubError
from dreambooth.ui import login
from dreambooth.ui.studio import is_owner

TOKEN = "hf_" + "a" * 34


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A loopback Hub that knows one token."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            answer = json.dumps({"name": "anna", "type": "user"} if known else {"error": "Invalid token"}).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def token(word: str) -> gr.OAuthToken:
    return gr.OAuthToken(token=word, scope="openid profile", expires_at=2**31)


def test_the_hub_says_whose_token_it_is(hub):
    assert login.account(token(TOKEN)) == "anna"


def test_a_refused_token_is_an_error_that_does_not_show_it(hub):
    wrong = "hf_" + "b" * 34
    with pytest.raises(HubError, match="does not confirm your login") as caught:
        login.account(token(wrong))
    assert wrong not in str(caught.value)


def test_an_account_keeps_its_owner_id_and_another_studio_gives_another(tmp_path: Path):
    one = login.owner_of("anna", tmp_path / "runs")
    assert is_owner(one)
    assert one == login.owner_of("anna", tmp_path / "runs")
    assert one != login.owner_of("bert", tmp_path / "runs")
    assert one != login.owner_of("anna", tmp_path / "other")
    assert stat.S_IMODE((tmp_path / "runs" / ".login-key").stat().st_mode) == 0o600


def test_login_is_offered_on_a_space_with_oauth_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setenv("OAUTH_CLIENT_ID", "x")
    assert not login.offered()
    monkeypatch.setenv("SPACE_ID", "user/studio")
    assert login.offered()
