"""Who acts on the Hub, and how its refusals are told, with the real client against the loopback Hub."""

from __future__ import annotations

import re
import subprocess
import sys
import traceback

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import get_session

from dreambooth.errors import ConfigError, DreamBoothError, HubError, PhotoError
from dreambooth.hub import SILENCE, Account, check_repo_id, hub_failure, local_token, plain_failures, redact, sign_in
from tests import hub_wire

ANNA = Account("anna", ("club", "Zoo"), "hf_secretsecret")


# ---- Who it is


def test_the_hub_says_whose_token_it_is(hub):
    token = hub.add_user("anna", orgs=("club",))
    account = sign_in(f" {token}\n")
    assert account == Account("anna", ("club",), token)


def test_an_account_does_not_show_its_token():
    assert ANNA.token not in repr(ANNA)
    assert ANNA.token not in f"{ANNA}"


@pytest.mark.parametrize("token", ["", "  ", None, False, 3])
def test_no_token_is_an_error_and_never_the_machines_own(hub, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("owner", scopes=("write",)))
    with pytest.raises(HubError, match="There is no Hugging Face token"):
        sign_in(token)
    assert not hub.requests


@pytest.mark.parametrize("token", ["hf_a b", "hf_\x00x", "hf_é", "hf_a\nX-Evil: 1"])
def test_what_can_be_no_token_is_not_sent_and_not_shown(hub, token):
    with pytest.raises(HubError, match="no Hugging Face token") as caught:
        sign_in(token)
    assert token not in str(caught.value)
    assert not hub.requests


def test_a_refused_token_is_told_and_not_shown(hub):
    wrong = "hf_" + "b" * 34
    with pytest.raises(HubError, match="Could not confirm your login") as caught:
        sign_in(wrong)
    assert wrong not in "".join(traceback.format_exception(caught.value))
    assert "hf auth login" in caught.value.hint


def test_an_organisation_that_one_may_only_read_is_left_out(hub, monkeypatch):
    def whoami(_request):
        roles = {"club": "admin", "zoo": "write", "library": "read", "choir": "contributor"}
        return {"name": "anna", "orgs": [{"name": name, "roleInOrg": role} for name, role in roles.items()]}

    monkeypatch.setattr(hub_wire, "ROUTES", [("GET", re.compile("/api/whoami-v2"), whoami)])
    assert sign_in(hub.add_user("anna")).orgs == ("club", "zoo", "choir")


def test_the_machines_token_is_that_of_the_environment_or_the_login(hub, monkeypatch, tmp_path):
    with pytest.raises(HubError, match=r"no Hugging Face token on this machine.*HF_TOKEN.*hf auth login"):
        local_token()
    (hub.folder / "client").mkdir(exist_ok=True)
    (hub.folder / "client" / "token").write_text("hf_of_the_login\n")
    assert local_token() == "hf_of_the_login"
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    assert local_token() == "hf_of_the_environment"


# ---- The name of a repo


@pytest.mark.parametrize(
    ("text", "repo_id"),
    [("dog", "anna/dog"), (" anna/dog ", "anna/dog"), ("Anna/dog", "anna/dog"), ("zoo/a.b_c-d", "Zoo/a.b_c-d")],
)
def test_a_name_is_in_the_accounts_own_space_unless_it_says_so(text, repo_id):
    assert check_repo_id(text, ANNA) == repo_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "anna/",
        "/dog",
        "a/b/c",
        "anna/d og",
        "anna/dög",
        "a--b",
        "a..b",
        "-a",
        "dog.git",
        "x" * 97,
        "https://huggingface.co/anna/dog",
        "anna/../bob",
        "dog\n--public",
        "x" * 10_000,
    ],
)
def test_a_name_that_the_hub_does_not_take_is_told(text):
    with pytest.raises(ConfigError, match="the Hub takes no such name") as caught:
        check_repo_id(text, ANNA)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_nobody_writes_to_somebody_elses_space():
    with pytest.raises(ConfigError, match=r"anna may not write to bob\. Choose one of anna, club, Zoo"):
        check_repo_id("bob/dog", ANNA)


# ---- What goes wrong


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (400, "does not take it"),
        (401, "does not accept the login"),
        (402, "asks for a payment"),
        (403, "may not do this"),
        (404, "not there"),
        (409, "Something else"),
        (412, "Something else"),
        (413, "too large"),
        (418, "refuses"),
        (429, "fewer requests"),
        (500, "in trouble"),
        (503, "in trouble"),
        ("cut", "The connection to the Hub failed"),
        ("lost", "The connection to the Hub failed"),
    ],
)
def test_every_refusal_is_told_in_plain_words(hub, how, said):
    token = hub.add_user("anna")
    hub.fail("GET /api/models/", how)
    with pytest.raises(HubError, match=said) as caught, plain_failures("look at anna/dog", token):
        HfApi(token=token).model_info("anna/dog")
    assert caught.value.message.startswith("Could not look at anna/dog. ")
    assert caught.value.hint
    assert (f"({how}, " in caught.value.message) == isinstance(how, int)
    trace = "".join(traceback.format_exception(caught.value))
    assert "During handling of" not in trace
    assert token not in trace


def test_a_hub_that_is_not_there(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="The connection to the Hub failed"):
        sign_in("hf_whatever")


def test_a_machine_that_must_stay_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        sign_in("hf_whatever")


def test_a_hub_that_says_nothing_is_given_up_after_a_while(hub, monkeypatch):
    assert get_session().timeout.read == SILENCE
    monkeypatch.setattr(get_session(), "timeout", 0.1)
    fault = hub.fail("GET /api/whoami", "slow")
    with pytest.raises(HubError, match="does not answer"):
        sign_in(hub.add_user("anna"))
    fault.released.set()


def test_our_own_errors_and_the_disks_go_through():
    with pytest.raises(PhotoError, match="blurred"), plain_failures("x", None):
        raise PhotoError("blurred")
    with pytest.raises(OSError, match="No space left"), plain_failures("x", None):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), plain_failures("x", None):
        raise RuntimeError("Error while uploading") from FileNotFoundError(2, "No such file", "w.safetensors")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Network error: Request error: HTTP status client error (403 Forbidden), domain: http://h/x", "(403)"),
        ("Server error: HTTP status server error (503 Service Unavailable), domain: http://h/x", "(503)"),
        (
            "Network error: Request middleware error: error sending request for url (http://h/v1/xorbs/404)",
            "(Network error: Request middleware error: error sending request)",
        ),
    ],
)
def test_the_upload_librarys_errors_tell_a_status_in_their_text_alone(text, status):
    error = hub_failure(ConnectionError(text), "upload anna/dog", "hf_x")
    assert status in error.message
    assert "http://" not in error.message


@pytest.mark.parametrize(
    "text",
    [
        "the token hf_secretsecret",
        "hf_oauth_abcdefgh.ij-kl",
        "Authorization: Bearer whatever",
        "bearer\tabc",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.sflKxw",
    ],
)
def test_whatever_looks_like_a_token_is_taken_out(text):
    shown = redact(text, ANNA.token)
    assert not any(word in shown for word in ("secret", "abcdefgh", "whatever", "abc", "sflKxw"))
    assert "…" in shown


def test_a_failure_never_tells_the_token():
    class WordyError(Exception):
        def __str__(self):
            return "refused: my-own-token"

    error = hub_failure(WordyError(), "upload", "my-own-token")
    assert isinstance(error, DreamBoothError)
    assert "my-own-token" not in str(error)


def test_a_broken_upload_is_noted_block_by_block():
    code = "import os, dreambooth.hub; print(os.environ['HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_MAX_COUNT'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={}, check=True)
    assert done.stdout.strip() == "1"
