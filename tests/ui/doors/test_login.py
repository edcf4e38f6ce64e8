"""Whose runs a logged-in visitor sees: the Hub is asked, and ids can't be guessed."""

import re
import secrets
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import pytest
from click.testing import CliRunner
from starlette.requests import Request

from dreambooth.cli import cli
from dreambooth.errors import HubError, RunError
from dreambooth.runs import owners
from dreambooth.ui.doors import login
from dreambooth.ui.studio import Studio
from tests.hub import LoopbackHub
from tests.ui import studios
from tests.ui.conftest import ROOT

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


@pytest.mark.parametrize(
    ("name", "value", "own"),
    [
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
    ],
)
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


def request(cookie: str = "", session: str | None = "a-page", **headers: str) -> gr.Request:
    """A call, as a page of the studio's own makes it where `origin` is among the headers."""
    sent = headers | ({"cookie": cookie} if cookie else {})
    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in sent.items()]}
    return gr.Request(Request(scope), session_hash=session)


def whispers(cookie: str) -> gr.Request:
    return request(f"other=1; {login.COOKIE}={cookie}", origin="http://127.0.0.1:7860")


def test_an_account_has_an_owner_id_of_its_own_in_each_studio(tmp_path: Path):
    runs = tmp_path / "runs"
    for name in ("anna", "bert"):
        owners.settle(name, runs)
    owners.settle("anna", tmp_path / "other")
    one = owners.account_id("anna", runs)
    assert owners.checked_owner(one) == one
    assert one == owners.account_id("anna", runs)
    assert one not in (owners.account_id("bert", runs), owners.account_id("anna", tmp_path / "other"))
    secret = [runs / ".login-key", *(runs / ".accounts").iterdir()]
    assert len(secret) == 3
    for path in secret:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "anna" not in path.name
        assert one.removeprefix("account:").encode() not in path.read_bytes()


@pytest.mark.attack
def test_two_first_logins_at_once_give_an_account_one_id(tmp_path: Path, monkeypatch):
    owners.settle("bert", tmp_path)
    real, sooner = owners._add_nonce, []

    def late(name: str, root: Path, **how: bool) -> None:
        monkeypatch.setattr(owners, "_add_nonce", real)
        owners.settle(name, root)  # the other login's
        sooner.append(owners.account_id(name, root))
        real(name, root, **how)

    monkeypatch.setattr(owners, "_add_nonce", late)
    owners.settle("anna", tmp_path)
    assert sooner == [owners.account_id("anna", tmp_path)]
    assert len(owners._nonces("anna", tmp_path)) == 1


def test_who_knows_an_accounts_id_is_not_that_account(tmp_path: Path):
    """Not even by its own words: what a caller gives is plain text, and has no colon."""
    owners.settle("anna", tmp_path)
    for known in (owners.account_id("anna", tmp_path), "browser:" + "b4" * 16, "page:" + "abcdefgh" * 5):
        with pytest.raises(RunError, match="no owner id"):
            login.Visitors(tmp_path).visitor(str(known), request(), None)


@pytest.mark.parametrize(
    "owner",
    [
        "choose-20-to-64-letters-and-digits-yourself",
        "a" * 20,
        "abcabcabcabcabcabcabcabc",
        "1234567123456712345671234567",
    ],
)
def test_an_id_that_others_could_give_too_is_refused(owner: str):
    with pytest.raises(RunError, match=r"easily guessed.*token_urlsafe"):
        owners.checked_owner(owner)


def test_ids_that_are_made_as_the_words_say_are_taken(tmp_path: Path):
    for _ in range(1000):
        for owner in (secrets.token_urlsafe(24), secrets.token_hex(16), str(uuid.uuid4())):
            assert owners.checked_owner(owner) == owner
    example = re.search(r"^me = (.*?)  #", (ROOT / "docs" / "studio.md").read_text(), re.MULTILINE)[1]
    assert owners.checked_owner(eval(example, {"secrets": secrets}))


@pytest.mark.parametrize("owner", ["anna", "a b" * 10, "ä" * 20, 20 * "anna", ["a"], {}, 1, float("nan"), True])
def test_what_is_no_id_is_refused(tmp_path: Path, owner: object):
    with pytest.raises(RunError, match="no owner id"):
        login.Visitors(tmp_path).visitor(owner, whispers("c" * 32), None)


def test_an_id_of_ones_own_wins_then_the_account_then_the_browser_then_the_page(tmp_path: Path, hub: LoopbackHub):
    anna, own, visitors = token(hub.add_user("anna")), owners.new_owner(), login.Visitors(tmp_path)
    browser, elsewhere = whispers("c" * 32), request(origin="http://127.0.0.1:7860")
    assert visitors.visitor(own, browser, anna) == own
    account = visitors.visitor("", browser, anna)
    assert account == visitors.visitor(None, elsewhere, anna) == owners.account_id("anna", tmp_path)
    first, second = visitors.visitor("", browser, None), visitors.visitor("", whispers("d" * 32), None)
    page = visitors.visitor("", elsewhere, None)
    other = visitors.visitor("", request(session="another-page", origin="http://127.0.0.1:7860"), None)
    assert page == login.Visitors(tmp_path).visitor("", elsewhere, None), "also after a restart"
    assert len({own, account, first, second, page, other}) == 6
    assert all(isinstance(found, owners.Visitor) for found in (account, first, second, page, other))


@pytest.mark.parametrize("cookie", ["", "short", "c" * 33, "c" * 31 + ":", "../../etc", "c" * 5000])
def test_a_cookie_that_the_studio_did_not_give_is_none(tmp_path: Path, cookie: str):
    page = login.Visitors(tmp_path).visitor("", request(origin="http://127.0.0.1:7860"), None)
    assert login.Visitors(tmp_path).visitor("", whispers(cookie), None) == page


def test_a_program_that_gives_no_id_is_told_to(tmp_path: Path):
    """Nothing tells it again, so that its runs would be gone with the connection."""
    with pytest.raises(RunError, match=r"no owner.*token_urlsafe"):
        login.Visitors(tmp_path).visitor("", request(), None)
    with pytest.raises(RunError, match="no owner"):
        login.Visitors(tmp_path).visitor("", request(session=None, origin="http://127.0.0.1:7860"), None)


def test_the_hub_is_asked_once_for_a_while_and_no_token_is_kept(
    tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    clock = [1000.0]
    monkeypatch.setattr(login.time, "monotonic", lambda: clock[0])
    visitors, anna, bert = login.Visitors(tmp_path), hub.add_user("anna"), hub.add_user("bert")
    with ThreadPoolExecutor(8) as page:
        assert set(page.map(visitors.account, [anna] * 8)) == {"anna"}
    assert visitors.account(bert) == "bert"
    asked = [request.token for request in hub.requests]
    assert sorted(asked) == sorted([anna, bert])
    assert not any(anna in str(vars(one)) or anna.encode() in key for key, one in visitors._confirmed.items())
    clock[0] += login.REMEMBERED + 1
    assert visitors.account(anna) == "anna"
    assert len(hub.requests) == 3


def test_a_hub_that_does_not_answer_gives_a_sentence_and_nobodys_runs(
    tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    clock = [1000.0]
    monkeypatch.setattr(login.time, "monotonic", lambda: clock[0])
    visitors, anna = login.Visitors(tmp_path), hub.add_user("anna")
    answer = login.sign_in

    def silent(token: str) -> None:
        asked.append(token)
        raise HubError("Could not confirm your login. The Hub does not answer.", "Try again.")

    asked: list[str] = []
    monkeypatch.setattr(login, "sign_in", silent)
    for _ in range(5):  # a page asks each second
        with pytest.raises(HubError, match="The Hub does not answer"):
            visitors.visitor("", whispers("c" * 32), token(anna))
    assert len(asked) == 1
    monkeypatch.setattr(login, "sign_in", answer)
    clock[0] += login.UNANSWERED + 1
    assert visitors.visitor("", whispers("c" * 32), token(anna)) == owners.account_id("anna", tmp_path)
    with pytest.raises(HubError, match="does not accept the login"):
        visitors.visitor("", whispers("c" * 32), token(TOKEN))


def test_only_so_many_tokens_are_remembered(tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(login, "MOST_REMEMBERED", 3)
    visitors = login.Visitors(tmp_path)
    for number in range(7):
        assert visitors.account(hub.add_user(f"user{number}")) == f"user{number}"
        assert len(visitors._confirmed) <= 3


def test_a_rotated_account_sees_its_runs_and_its_old_id_opens_nothing(studio: Studio, photo_folder: Path):
    """Also the id of a studio that gave accounts ids without a nonce, which a caller could give."""
    anna, bert = owners._account_ids("anna", studio.root)[0], owners.new_owner()
    assert ":" not in anna
    [old] = studios.finished_runs(studio, photo_folder, owner=str(anna))
    [berts] = studios.finished_runs(studio, photo_folder, owner=bert)
    owners.settle("anna", studio.root)
    ids = [anna, owners.account_id("anna", studio.root)]
    [new] = studios.finished_runs(studio, photo_folder, owner=ids[-1])
    for _ in range(2):
        assert {run.id for run in studio.own_runs(ids[-1])} == {old.id, new.id}
        assert not any(studio.own_runs(former) for former in [str(anna), *ids[:-1]])
        assert [run.id for run in studio.own_runs(bert)] == [berts.id]
        owners.rotate("anna", studio.root)
        ids.append(owners.account_id("anna", studio.root))
    assert len(set(ids)) == 4
    with pytest.raises(RunError, match="No account 'carl' has logged in here"):
        owners.rotate("carl", studio.root)


def test_the_command_rotates_in_the_folder_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DREAMBOOTH_RUNS", str(tmp_path / "runs"))
    result = CliRunner().invoke(cli, ["rotate", "anna"])
    assert isinstance(result.exception, RunError)
    assert not (tmp_path / "runs").exists()
    owners.settle("anna", tmp_path / "runs")
    before = owners.account_id("anna", tmp_path / "runs")
    assert CliRunner().invoke(cli, ["rotate", "anna"]).exit_code == 0
    assert owners.account_id("anna", tmp_path / "runs") != before


def test_login_is_offered_on_a_space_with_oauth_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setenv("OAUTH_CLIENT_ID", "x")
    assert not login.offered()
    monkeypatch.setenv("SPACE_ID", "user/studio")
    assert login.offered()
