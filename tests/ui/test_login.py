"""Whose runs a logged-in visitor sees: the Hub is asked, and ids can't be guessed."""

import stat
from pathlib import Path

import gradio as gr
import pytest

from dreambooth.errors import HubError
from dreambooth.ui import login
from dreambooth.ui.studio import is_owner
from tests.hub import LoopbackHub

TOKEN = "hf_" + "a" * 34


def token(word: str) -> gr.OAuthToken:
    return gr.OAuthToken(token=word, scope="openid profile", expires_at=2**31)


def on_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "user/studio")
    monkeypatch.setenv("OAUTH_CLIENT_ID", "x")


def test_a_visitor_acts_and_reads_with_their_own_token(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("host"))
    for public in (False, True):
        assert login.acting_token(token(TOKEN), public=public) == TOKEN
        assert login.reading_token(token(TOKEN), public=public) == TOKEN
    on_a_space(monkeypatch)
    assert login.acting_token(token(TOKEN), public=False) == TOKEN


def test_the_machines_token_is_for_a_studio_of_ones_own_alone(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(HubError, match="no Hugging Face token on this machine"):
        login.acting_token(None, public=False)
    monkeypatch.setenv("HF_TOKEN", hub.add_user("host", TOKEN))
    assert login.acting_token(None, public=False) == TOKEN
    assert login.reading_token(None, public=False) is None, "which is the machine's, where there is one"
    with pytest.raises(HubError, match="Nobody can log in to this studio"):
        login.acting_token(None, public=True)
    assert login.reading_token(None, public=True) is False
    on_a_space(monkeypatch)
    for public in (False, True):
        with pytest.raises(HubError, match="You are not logged in"):
            login.acting_token(None, public=public)
        assert login.reading_token(None, public=public) is False


@pytest.mark.parametrize(("name", "value", "own"), [
    ("SPACE_ID", "user/studio", False),  # without login, and not public
    ("GRADIO_SERVER_NAME", "0.0.0.0", False),
    ("GRADIO_SERVER_NAME", "192.168.1.7", False),
    ("GRADIO_SERVER_NAME", "", False),
    ("GRADIO_SERVER_NAME", "::", False),
    ("GRADIO_SERVER_NAME", "localhost", True),
    ("GRADIO_SERVER_NAME", "127.0.0.1", True),
    ("GRADIO_SERVER_NAME", "::1", True),
    ("GRADIO_SHARE", "True", False),
    ("GRADIO_SHARE", "false", True),
    ("DREAMBOOTH_HOSTS", "studio.example", False),
    ("DREAMBOOTH_HOSTS", " ", True),
])  # fmt: skip
def test_the_machines_token_serves_nobody_where_others_reach_the_studio(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, name: str, value: str, own: bool
):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("host", TOKEN))
    monkeypatch.setenv(name, value)
    assert login.for_oneself(public=False) is own
    assert login.reading_token(None, public=False) is (None if own else False)
    if own:
        assert login.acting_token(None, public=False) == TOKEN
        return
    with pytest.raises(HubError, match="Nobody can log in to this studio"):
        login.acting_token(None, public=False)
    assert login.acting_token(token("hf_visitor"), public=False) == "hf_visitor"


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
