"""What stands in front of Gradio: nothing of another site gets through, and all of the studio's own page."""

import asyncio
import json
import re
from dataclasses import dataclass

import httpx
import pytest
from starlette.requests import Request

from dreambooth.ui.guard import VISITOR, Guard, Hosts
from dreambooth.ui.limits import StudioSettings
from tests.ui.conftest import SECONDS, Served

OWN = {"host": "localhost:7860"}
SPACE = {"SPACE_ID": "me/studio", "SPACE_HOST": "me-studio.hf.space"}
pytestmark = pytest.mark.attack


@dataclass
class Answer:
    status: int
    headers: httpx.Headers
    body: bytes
    seen: list[Request]
    """What came through to Gradio."""


def asked(
    method: str = "POST", path: str = "/gradio_api/queue/join", headers: dict | None = None, *, query: str = "",
    body: bytes = b"{}", hosts: str = "", around: dict | None = None, scheme: str = "http",
) -> Answer:  # fmt: skip
    """One request to a guard, in front of a server that answers everything, and to any site, as Gradio does."""
    seen, sent = [], []

    async def gradio(scope, receive, send):
        seen.append(Request(scope))
        allowed = [(b"access-control-allow-origin", b"*"), (b"access-control-allow-credentials", b"true")]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"x"), *allowed]})
        await send({"type": "http.response.body", "body": b"done"})

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    settings = StudioSettings.from_environment({"DREAMBOOTH_HOSTS": hosts} | (around or {}))
    given = [(name.encode(), value.encode()) for name, value in (OWN | (headers or {})).items()]
    scope = {
        "type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": given,
        "scheme": scheme, "client": ("192.0.2.1", 5),
    }  # fmt: skip
    asyncio.run(Guard(gradio, Hosts(settings, around or {}))(scope, receive, send))
    kept = httpx.Headers(sent[0]["headers"])
    return Answer(sent[0]["status"], kept, b"".join(part.get("body", b"") for part in sent[1:]), seen)


@pytest.mark.parametrize(("host", "around", "hosts", "answered"), [
    ("localhost:7860", {}, "", True),
    ("127.0.0.1:7860", {}, "", True),
    ("[::1]:7860", {}, "", True),
    ("LOCALHOST", {}, "", True),
    ("evil.example:7860", {}, "", False),
    ("localhost.evil.example", {}, "", False),
    ("192.168.1.7:7860", {}, "", False),  # nobody can have reached it there
    ("0.0.0.0:7860", {}, "", False),
    ("192.168.1.7:7860", {"GRADIO_SERVER_NAME": "0.0.0.0"}, "", True),
    ("[fe80::1]", {"GRADIO_SERVER_NAME": "::"}, "", True),
    ("evil.example", {"GRADIO_SERVER_NAME": "0.0.0.0"}, "", False),
    ("desk.lan", {"GRADIO_SERVER_NAME": "desk.lan"}, "", True),
    ("studio.example", {}, "studio.example", True),
    ("studio.example:8443", {}, "a.example, studio.example:8443", True),
    ("other.example", {}, "studio.example", False),
    ("me-studio.hf.space", SPACE, "", True),
    ("10.0.3.4:7860", SPACE, "", True),  # what looks after the Space's health
    ("evil.hf.space", SPACE, "", False),
    ("evil.example@localhost", {}, "", False),
    ("localhost/evil.example", {}, "", False),
    ("", {}, "", False),
])  # fmt: skip
def test_only_the_studios_own_names_get_an_answer(host: str, around: dict, hosts: str, answered: bool):
    for method, path in (("GET", "/"), ("HEAD", "/"), ("POST", "/gradio_api/queue/join")):
        got = asked(method, path, {"host": host}, hosts=hosts, around=around)
        assert (got.status, bool(got.seen)) == ((200, True) if answered else (403, False))


def test_who_is_refused_by_name_is_told_what_to_do():
    said = asked("GET", "/", {"host": "studio.example"}).body.decode()
    assert said == "This studio is not known as studio.example. Whoever runs it lists its names in DREAMBOOTH_HOSTS."


def test_a_name_that_a_proxy_forwards_is_one_of_the_studios():
    assert asked(headers={"x-forwarded-host": "evil.example"}).status == 403
    assert asked(headers={"x-forwarded-host": "studio.example, evil.example"}, hosts="studio.example").status == 403
    assert asked(headers={"x-forwarded-host": "studio.example"}, hosts="studio.example").status == 200


def test_nobody_says_https_where_there_is_no_proxy():
    forwarded = {"x-forwarded-proto": "https", "x-gradio-server": "http://evil.example"}
    [seen] = asked(headers=forwarded).seen
    assert not {"x-forwarded-proto", "x-gradio-server"} & set(seen.headers)
    [seen] = asked(headers=forwarded, hosts="studio.example").seen
    assert seen.headers["x-forwarded-proto"] == "https"


FOREIGN = [
    {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://localhost:3000"},
    {"origin": "http://evil.localhost:7860"}, {"origin": "file://localhost:7860"}, {"origin": "http://[::"},
    {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "cross-site, none"},
    {"origin": "http://localhost:7860", "sec-fetch-site": "cross-site"},
]  # fmt: skip
OF_THE_PAGE = [
    {}, {"origin": "http://localhost:7860"}, {"origin": "http://localhost:7860", "sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
]  # fmt: skip


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "GET", "HEAD"])
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload", "/logout", "/config", "/any/new"])
def test_what_another_site_sends_has_no_effect_and_the_pages_own_has(method: str, path: str):
    for headers in FOREIGN:
        got = asked(method, path, headers)
        assert (got.status, got.seen) == (403, []), headers
        assert not [name for name in got.headers if name.startswith("access-control")]
    for headers in OF_THE_PAGE:
        got = asked(method, path, headers)
        assert (got.status, len(got.seen)) == (200, 1), headers
        assert not [name for name in got.headers if name.startswith("access-control")]


def test_a_refusal_is_a_sentence_in_the_form_in_which_the_page_shows_it():
    got = asked(headers=FOREIGN[0])
    assert json.loads(got.body)["detail"] == "Another site's page asked for this. Open the studio itself."
    got = asked(path="/gradio_api/upload", headers=FOREIGN[0])
    assert got.body.decode() == "Another site's page asked for this. Open the studio itself."


@pytest.mark.parametrize("headers", [
    {"host": "127.0.0.1:7860", "origin": "https://studio.example"},  # as nginx passes it on when not told otherwise
    {"host": "studio.example", "origin": "https://studio.example", "sec-fetch-site": "same-origin"},
])  # fmt: skip
def test_behind_a_proxy_the_declared_name_is_the_studios_own(headers: dict):
    assert asked(headers=headers, hosts="studio.example").status == 200
    assert asked(headers=headers | {"origin": "https://evil.example"}, hosts="studio.example").status == 403
    assert asked(headers=headers).status == 403, "and nobody declared it"


def test_a_link_on_another_site_leads_to_the_page_and_to_nothing_else():
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "cookie": f"{VISITOR}={'a' * 32}"}
    for path in ("/", "/login/huggingface", "/login/callback"):
        [seen] = asked("GET", path, visit).seen
        assert seen.cookies[VISITOR] == "a" * 32
    for path in ("/logout", "/config", "/gradio_api/info", "/gradio_api/file=/tmp/x"):
        assert asked("GET", path, visit).status == 403
    assert asked("POST", "/", visit).status == 403
    assert asked("GET", "/", visit | {"sec-fetch-mode": "cors"}).status == 403


@pytest.mark.parametrize("path", ["/gradio_api/deep_link", "/gradio_api/deep_link/", "/studio/gradio_api/deep_link"])
def test_there_are_no_links_to_filled_in_pages(path: str):
    assert asked("GET", path, query="session_hash=x").status == 404
    [seen] = asked("GET", "/", query="__theme=dark&deep_link=abc&deep%5Flink=abc&view=api").seen
    assert seen.url.query == "__theme=dark&view=api"


def test_each_browser_gets_a_cookie_with_its_first_page():
    got = asked("GET", "/", {"cookie": "session=abc"})
    [given] = [value for name, value in got.headers.multi_items() if name == "set-cookie"]
    name, value = given.partition(";")[0].split("=")
    assert (name, given.partition(";")[2]) == (VISITOR, " HttpOnly; Path=/; Max-Age=31536000; SameSite=Lax")
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", value)
    [seen] = got.seen
    assert seen.cookies == {"session": "abc", VISITOR: value}
    again = asked("GET", "/", {"cookie": f"{VISITOR}={value}"})
    assert again.seen[0].cookies == {VISITOR: value}, "which it keeps"
    assert again.headers["set-cookie"] == given
    assert "set-cookie" not in asked().headers


@pytest.mark.parametrize("value", ["", "a", "a" * 33, "a" * 31 + ".", "a" * 31 + "ä"])
def test_an_odd_cookie_is_replaced(value: str):
    [seen] = asked("GET", "/", {"cookie": f"{VISITOR}={value}"}).seen
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", seen.cookies[VISITOR])


def test_in_the_frame_of_a_space_the_cookie_is_sent_as_well():
    for got in (
        asked("GET", "/", {"host": "me-studio.hf.space", "x-forwarded-proto": "https"}, around=SPACE),
        asked("GET", "/", scheme="https"),
    ):
        assert got.headers["set-cookie"].endswith("; Secure; SameSite=None; Partitioned")


def test_the_served_studio_is_behind_the_guard(served: Served):
    for path in ("", "config", "gradio_api/info", "gradio_api/startup-events", "theme.css", "no/such/route"):
        answer = httpx.get(served.url + path, headers={"Host": "evil.example"}, timeout=SECONDS)
        assert (answer.status_code, answer.text.partition("evil.example")[1]) == (403, "evil.example")
    answer = httpx.get(served.url, timeout=SECONDS)
    assert answer.status_code == 200
    assert VISITOR in answer.cookies
