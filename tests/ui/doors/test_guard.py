"""What stands in front of Gradio: nothing of another site gets through, and all of the studio's own page."""

import asyncio
import json
import os
import re
import threading
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from dreambooth.ui.doors import RefusalError, bodies, exchange, guard, lines
from dreambooth.ui.doors import clients as bounds
from dreambooth.ui.doors.clients import Clients
from dreambooth.ui.doors.guard import Guard
from dreambooth.ui.doors.hosts import Hosts
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.doors.lines import address_of
from dreambooth.ui.doors.login import COOKIE, cookie_of
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
    got: bytes
    """And its body."""


def asked(
    method: str = "POST",
    path: str = "/gradio_api/queue/join",
    headers: dict | None = None,
    *,
    query: str = "",
    body: bytes | list[bytes] = b"{}",
    hosts: str = "",
    around: dict | None = None,
    scheme: str = "http",
    clients: Clients | None = None,
    client: str = "192.0.2.1",
    arrives: Callable[[], None] = lambda: None,
    known: Hosts | None = None,
) -> Answer:
    """One request to a guard, in front of a server that answers everything, and to any site, as Gradio does."""
    seen, sent, got = [], [], []
    coming = [body] if isinstance(body, bytes) else list(body)

    async def gradio(scope, receive, send):
        seen.append(Request(scope))
        got.append(await Request(scope, receive).body())
        allowed = [(b"access-control-allow-origin", b"*"), (b"access-control-allow-credentials", b"true")]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"x"), *allowed]})
        await send({"type": "http.response.body", "body": b"done"})

    async def receive():
        arrives()
        return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming)}

    async def send(message):
        sent.append(message)

    settings = StudioSettings.from_environment({"DREAMBOOTH_HOSTS": hosts} | (around or {}))
    given = [(name.encode(), value.encode()) for name, value in (OWN | (headers or {})).items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": given,
        "scheme": scheme,
        "client": (client, 5),
    }
    counted = clients or Clients(Path(__file__).parent)
    asyncio.run(Guard(gradio, known or Hosts(settings, around or {}), counted)(scope, receive, send))
    kept = httpx.Headers(sent[0]["headers"])
    return Answer(sent[0]["status"], kept, b"".join(part.get("body", b"") for part in sent[1:]), seen, b"".join(got))


@pytest.mark.parametrize(
    ("host", "around", "hosts", "answered"),
    [
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
    ],
)
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


@pytest.mark.parametrize(
    "name", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"]
)
def test_a_proxy_that_rewrites_the_host_is_declared(name: str):
    """Else the studio would take who comes through it for the one who runs it."""
    came = {name.lower(): "localhost" if name.endswith("Host") else "https"}
    for method, path in (("GET", "/"), ("POST", "/gradio_api/queue/join")):
        got = asked(method, path, came)
        assert (got.status, got.seen) == (403, [])
        assert "DREAMBOOTH_HOSTS" in got.body.decode()
        assert asked(method, path, came, hosts="studio.example").status == 200
        assert asked(method, path, came, around=SPACE).status == 200
        assert asked(method, path).status == 200
    linked = Hosts(StudioSettings(), {})
    linked.declare("https://abc.gradio.live")
    assert asked("GET", "/", came, known=linked).status == 200, "whose link Gradio makes itself"


def test_nobody_speaks_for_gradios_own_server_of_pages():
    forwarded = {"x-forwarded-proto": "https", "x-gradio-server": "http://evil.example"}
    [seen] = asked(headers=forwarded, hosts="studio.example").seen
    assert "x-gradio-server" not in seen.headers
    assert seen.headers["x-forwarded-proto"] == "https"


FILES = {"content-type": "multipart/form-data; boundary=b"}


def multipart(*files: bytes, disposition: str = 'name="files"; filename="a.png"') -> bytes:
    """An upload of files."""
    part = f"--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
    return b"".join(part + data + b"\r\n" for data in files) + b"--b--\r\n"


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://evil.localhost:7860"},
    {"origin": "file://localhost:7860"},
    {"origin": "http://[::"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site, none"},
    {"origin": "http://localhost:7860", "sec-fetch-site": "cross-site"},
]
OF_THE_PAGE = [
    {},
    {"origin": "http://localhost:7860"},
    {"origin": "http://localhost:7860", "sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "GET", "HEAD"])
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload", "/logout", "/config", "/any/new"])
def test_what_another_site_sends_has_no_effect_and_the_pages_own_has(method: str, path: str):
    for headers in FOREIGN:
        got = asked(method, path, headers)
        assert (got.status, got.seen) == (403, []), headers
        assert not [name for name in got.headers if name.startswith("access-control")]
    for headers in OF_THE_PAGE:
        files = (method, path) == ("POST", "/gradio_api/upload")
        got = uploaded(multipart(b"x"), headers) if files else asked(method, path, headers)
        assert (got.status, len(got.seen)) == (200, 1), headers
        assert not [name for name in got.headers if name.startswith("access-control")]


def test_a_refusal_is_a_sentence_in_the_form_in_which_the_page_shows_it():
    got = asked(headers=FOREIGN[0])
    assert json.loads(got.body)["detail"] == "Another site's page asked for this. Open the studio itself."
    got = asked(path="/gradio_api/upload", headers=FOREIGN[0])
    assert got.body.decode() == "Another site's page asked for this. Open the studio itself."


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:7860", "origin": "https://studio.example"},  # as nginx passes it on when not told otherwise
        {"host": "studio.example", "origin": "https://studio.example", "sec-fetch-site": "same-origin"},
    ],
)
def test_behind_a_proxy_the_declared_name_is_the_studios_own(headers: dict):
    assert asked(headers=headers, hosts="studio.example").status == 200
    assert asked(headers=headers | {"origin": "https://evil.example"}, hosts="studio.example").status == 403
    assert asked(headers=headers).status == 403, "and nobody declared it"


def test_a_link_on_another_site_leads_to_the_page_and_to_nothing_else():
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "cookie": f"{COOKIE}={'a' * 32}"}
    for path in ("/", "/login/huggingface", "/login/callback"):
        [seen] = asked("GET", path, visit).seen
        assert seen.cookies[COOKIE] == "a" * 32
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
    assert (name, given.partition(";")[2]) == (COOKIE, " HttpOnly; Path=/; Max-Age=31536000; SameSite=Lax")
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", value)
    [seen] = got.seen
    assert seen.cookies == {"session": "abc", COOKIE: value}
    again = asked("GET", "/", {"cookie": f"{COOKIE}={value}"})
    assert again.seen[0].cookies == {COOKIE: value}, "which it keeps"
    assert again.headers["set-cookie"] == given
    assert "set-cookie" not in asked().headers


@pytest.mark.parametrize("value", ["", "a", "a" * 33, "a" * 31 + ".", "a" * 31 + "ä"])
def test_an_odd_cookie_is_replaced(value: str):
    [seen] = asked("GET", "/", {"cookie": f"{COOKIE}={value}"}).seen
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", seen.cookies[COOKIE])


def test_in_the_frame_of_a_space_the_cookie_is_sent_as_well():
    for got in (
        asked("GET", "/", {"host": "me-studio.hf.space", "x-forwarded-proto": "https"}, around=SPACE),
        asked("GET", "/", scheme="https"),
    ):
        assert got.headers["set-cookie"].endswith("; Secure; SameSite=None; Partitioned")


@pytest.mark.parametrize(
    ("scheme", "name", "other"),
    [
        ("https", guard.SECURE_COOKIE, COOKIE),
        ("http", COOKIE, guard.SECURE_COOKIE),
    ],
)
def test_a_visitor_is_known_by_a_cookie_that_nobody_else_put_there(scheme: str, name: str, other: str):
    """Over https a site whose name ends like the studio's can set cookies for it, but none that is `__Host-`."""
    mine, planted = "a" * 32, "b" * 32

    def known(*cookies: str, method: str = "POST", path: str = "/gradio_api/queue/join") -> tuple[str, Answer]:
        got = asked(method, path, {"cookie": "; ".join(cookies)}, scheme=scheme)
        [seen] = got.seen
        assert lines._visitor("a session", seen) == (cookie_of(seen) or "a session"), "the queue counts by the same"
        return cookie_of(seen), got

    for method, path in (("POST", "/gradio_api/queue/join"), ("GET", "/"), ("GET", "/gradio_api/queue/data")):
        found, got = known('x="1 2"', f"{other}={planted}", f"{name}={mine}", method=method, path=path)
        assert found == mine
        assert got.seen[0].headers["cookie"] == f'x="1 2"; {COOKIE}={mine}'
    assert got.headers.get("set-cookie") is None
    for cookies in ([f"{other}={planted}"], [f"{name}={planted}", f"{name}={mine}"], [f"{name}={mine}"] * 2, ["="]):
        assert known(*cookies)[0] == ""
        found, got = known(*cookies, method="GET", path="/")
        assert re.fullmatch(r"[A-Za-z0-9_-]{32}", found)
        assert found not in (mine, planted)
        assert got.headers["set-cookie"].startswith(f"{name}={found}; HttpOnly; Path=/; ")
        assert "Domain" not in got.headers["set-cookie"]


def test_a_request_has_a_bound_whether_it_tells_its_length_or_not():
    whole = json.dumps({"data": ["x" * (2**20 - 100)]}).encode()
    assert asked(body=whole).got == whole
    assert asked(body=[whole[:1000], whole[1000:], b""]).got == whole
    for more in (b" " * 2**20 + whole, [b" " * 2**19] * 3 + [whole], [whole, b" " * 200]):
        got = asked(body=more)
        assert (got.status, got.seen) == (413, [])
        assert json.loads(got.body)["detail"] == "A request has at most 1 MB. Send less at a time."
    tools = {"path": "/gradio_api/mcp/", "around": {"GRADIO_MCP_SERVER": "True"}}
    assert asked(**tools, body=b" " * 2**20 + whole).status == 200, "with photos in it"
    assert asked(**tools, body=[b" " * 2**20] * 33).status == 413
    assert asked(path="/gradio_api/mcp/", body=b" " * 2**20 + whole).status == 413, "which is not there"


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/mcp/"])
def test_a_request_of_many_small_things_is_not_looked_into(path: str, monkeypatch):
    loads, seen = json.loads, []
    monkeypatch.setattr(
        bodies.json, "loads", lambda body, **how: (seen.append(threading.get_ident()), loads(body, **how))[1]
    )
    for item in ("[]", "{}", "0", '{"a":[]}'):
        bomb = f"[{','.join([item] * (bodies.MAX_ITEMS + 1))}]".encode()
        got = asked(path=path, body=[bomb[:9000], bomb[9000:]], around={"GRADIO_MCP_SERVER": "true"})
        assert (got.status, got.seen, seen) == (400, [], [])
    most = f"[{','.join(['0'] * bodies.MAX_ITEMS)}]".encode()
    assert asked(path=path, body=most).status == 200
    assert seen.pop() == threading.get_ident()
    large = json.dumps({"data": ["data:image/png;base64," + "A" * 2 * guard.MAX_PROMPT]}).encode()
    assert asked(path=path, body=large).status == 200
    assert seen.pop() != threading.get_ident(), "others are answered meanwhile"


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/component_server", "/login", "/any/new"])
def test_only_an_upload_is_a_form(path: str):
    for kind in ("multipart/form-data; boundary=b", "application/x-www-form-urlencoded"):
        assert asked(path=path, headers={"content-type": kind}, body=multipart(b"x")).status == 415
    assert asked(path=path, headers={"content-type": "application/json"}).status == 200
    assert asked(path=path, body=b"").status == 200


def test_json_is_whole_and_no_deeper_than_the_page_needs():
    def nested(depth: int) -> bytes:
        return b'{"a":' * (depth // 2) + b"[" * (depth - depth // 2) + b"]" * (depth - depth // 2) + b"}" * (depth // 2)

    assert asked(body=nested(bodies.MAX_DEPTH)).status == 200
    for bad in (nested(bodies.MAX_DEPTH + 1), b"[" * 500_000, b'{"a":' * 100_000, b"{", b"\xff\xfe", b"1" * 5000):
        got = asked(body=bad)
        assert (got.status, got.seen) == (400, [])


def photo(path: str, **more: str) -> dict:
    return {"image": {"path": path, "meta": {"_type": "gradio.FileData"}} | more, "caption": None}


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/a.png",
        "HTTP://10.0.0.1/",
        " http://x",
        "ftp://x/a",
        "file:///etc/passwd",
        "data:image/png,x",
        "gopher:x",
        "s3://bucket/x",
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/queue/join",
        "/gradio_api/call/check_photos",
        "/gradio_api/call/v2/check_photos",
        "/gradio_api/run/check_photos",
        "/gradio_api/api/check_photos",
        "/gradio_api/mcp/",
        "/any/new",
    ],
)
def test_a_photo_is_no_address(path: str, address: str):
    for body in ({"data": [[photo(address)]]}, {"photos": [[{"deep": photo(address)}]]}, photo(address)):
        got = asked(path=path, body=json.dumps(body).encode())
        assert (got.status, got.seen) == (400, [])
        assert "not an address" in json.loads(got.body)["detail"]
    twice = json.dumps(photo("/tmp/a.png")).replace('"meta"', f'"path": "{address.strip()}", "path": "/a", "meta"')
    assert asked(path=path, body=twice.encode()).status == 400
    seen_at = {} if "mcp" in path else {"url": "http://localhost:7860/gradio_api/file=/tmp/gradio/abc/a.png"}
    own = photo("/tmp/gradio/abc/a.png", **seen_at)
    windows = photo("C:\\Users\\anna\\a.png")
    told = ["a photo, as on https://example.com", "note: a dog"]
    assert asked(path=path, body=json.dumps({"data": [[own, windows], *told]}).encode()).status == 200


def test_nor_in_an_address_of_its_own():
    inline = photo("/tmp/a.png", url="data:image/png;base64,AAAA")
    assert asked(body=json.dumps({"data": [inline]}).encode()).status == 400
    tool = {"params": {"arguments": {"photos": [{"image": "https://evil.example/a.png"}]}}}
    assert asked(path="/gradio_api/mcp/", body=json.dumps(tool).encode()).status == 400
    tool["params"]["arguments"]["photos"][0]["image"] = "data:image/png;base64,AAAA"
    assert asked(path="/gradio_api/mcp/", body=json.dumps(tool).encode()).status == 200
    for path in (
        "file=https://evil.example",
        "file/HTTPS://x",
        "proxy=https://x.hf.space",
    ):
        assert asked("GET", f"/gradio_api/{path}").status == 403
    assert asked("GET", "/gradio_api/file=/tmp/gradio/abc/a:b.png").status == 200


def uploaded(body: bytes | list[bytes], headers: dict | None = None, **more: object) -> Answer:
    length = str(len(body) if isinstance(body, bytes) else sum(map(len, body)))
    return asked(
        path="/gradio_api/upload", headers={"content-length": length} | FILES | (headers or {}), body=body, **more
    )


def test_an_upload_is_of_so_many_files_and_of_files_alone():
    most = multipart(*[b"x" * 50] * bodies.MAX_PARTS)
    assert uploaded(most).got == most
    chunks = [most[start : start + 7] for start in range(0, len(most), 7)]
    assert uploaded(chunks).got == most
    got = uploaded(multipart(*[b"x" * 50] * (bodies.MAX_PARTS + 1)))
    assert (got.status, got.got) == (413, b"")
    assert got.body.decode() == "An upload has at most 100 files. Send fewer at a time."
    assert uploaded(multipart(b"x", disposition='name="files"')).status == 400
    assert uploaded(multipart(b"x", disposition='name="filename"')).status == 400
    assert uploaded(b"--c nonsense").status == 400
    assert uploaded(most, {"content-type": "multipart/form-data"}).status == 415
    assert uploaded(most, {"content-type": "image/png"}).status == 415


@pytest.mark.parametrize(
    ("prefix", "path", "status"),
    [
        ("/studio", "/studio/gradio_api/upload", 200),
        ("/studio", "/gradio_api/upload", 200),  # where the proxy leaves its own part out
        ("/studio", "/studios/gradio_api/upload", 415),
        ("/gradio", "/gradio_api/upload", 200),
        ("", "/studio/gradio_api/upload", 415),
    ],
)
def test_below_a_proxys_path_the_routes_are_the_same(prefix: str, path: str, status: int):
    body = multipart(b"x")
    length = {"content-length": str(len(body))}
    assert asked(path=path, headers=FILES | length, body=body, around={"GRADIO_ROOT_PATH": prefix}).status == status


def test_an_upload_tells_its_length_which_has_a_bound():
    assert uploaded(multipart(b"x"), {"content-length": ""}).status == 411
    assert uploaded(multipart(b"x"), {"content-length": "-1"}).status == 411
    got = uploaded(multipart(b"x"), {"content-length": str(2**29 + 1)})
    assert (got.status, got.seen) == (413, [])
    assert got.body.decode() == "An upload has at most 512 MB. Send fewer photos at a time."


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def clients(tmp_path: Path, now: list[float]) -> Clients:
    return Clients(tmp_path, clock=lambda: now[0])


@pytest.mark.parametrize(
    ("seconds", "size", "status"),
    [
        (4, 100, 408),
        (3, 100_000, 200),
        (10, 1_000_000, 200),  # 100 kB a second, for longer than anything waits
        (10, 500_000, 408),
    ],
)
def test_a_body_comes_as_fast_as_a_slow_line_brings_it(seconds: int, size: int, status: int, clients, now):
    def tick():
        now[0] += seconds

    files = multipart(b"x" * 10 * size)
    parts = [files[start : start + size] for start in range(0, len(files), size)]
    assert uploaded(parts, clients=clients, arrives=tick).status == status
    if size < exchange.MAX_BODY // 10:
        parts = [b'"' + b"x" * (size - 1), *[b"x" * size] * 8, b"x" * (size - 1) + b'"']
        assert asked(body=parts, clients=clients, arrives=tick).status == status


def test_what_arrives_counts_even_where_the_rest_never_does(clients, now, monkeypatch):
    def tick():
        now[0] += exchange.PATIENCE + 1

    monkeypatch.setitem(bounds.A_MINUTE, "bytes", 1000)
    assert asked(body=[b" " * 900, b"{}"], clients=clients, arrives=tick).status == 408
    assert asked(body=b" " * 50, clients=clients).status == 400
    assert asked(body=b" " * 100 + b"{}", clients=clients).status == 429


def test_what_is_refused_is_not_kept():
    part = b" " * 2**20
    tracemalloc.start()
    try:
        assert asked(headers=FOREIGN[0], body=[part] * 17).status == 403
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_room_is_kept_for_so_much_of_one_client(clients, now, tmp_path, monkeypatch):
    body = multipart(b"x" * 300)
    monkeypatch.setattr(bounds, "MAX_COMING", 2 * len(body))

    async def with_two_on_their_way() -> None:
        async with clients.room_for("192.0.2.1", len(body)), clients.room_for("192.0.2.1", len(body)):
            with pytest.raises(RefusalError, match="much is being uploaded"):
                async with clients.room_for("192.0.2.1", 1):
                    pass
            async with clients.room_for("192.0.2.2", len(body)):
                pass

    asyncio.run(with_two_on_their_way())
    assert not clients._coming
    assert uploaded(body, clients=clients).status == 200
    monkeypatch.setattr(bounds, "KEPT_A_DAY", 4 * len(body))
    now[0] += 24 * 3600
    assert [uploaded(body, clients=clients).status for _ in range(5)] == [200] * 4 + [429]
    assert uploaded(body, clients=clients, client="192.0.2.2").status == 200
    now[0] += 6 * 3600
    assert uploaded(body, clients=clients).status == 200


def test_one_client_uploads_so_much_an_hour_and_another_may_still(clients, now, monkeypatch):
    monkeypatch.setattr(bounds, "UPLOADS_AN_HOUR", 1000)
    body = multipart(b"x" * 300)
    statuses = [uploaded(body, clients=clients).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert uploaded(body, clients=clients, client="192.0.2.2").status == 200
    now[0] += 3600
    assert uploaded(body, clients=clients).status == 200


def test_uploads_in_sum_stay_below_a_bound_and_leave_the_disk_its_room(clients, now, tmp_path, monkeypatch):
    body = multipart(b"x" * 300)
    monkeypatch.setattr(bounds, "MAX_KEPT", 1000)
    assert [uploaded(body, clients=clients, client=str(n)).status for n in range(3)] == [200, 200, 507]
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "kept.png").write_bytes(b"x" * 900)
    now[0] += 60
    assert uploaded(body, clients=clients).status == 507
    os.remove(tmp_path / "abc" / "kept.png")  # as Gradio does after a day
    now[0] += 60
    assert uploaded(body, clients=clients).status == 200
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(bounds.shutil, "disk_usage", lambda _: disk(0, 0, bounds.MIN_FREE + 100))
    got = uploaded(body, clients=clients)
    assert got.status == 507
    assert got.body.decode() == "The studio's disk is nearly full. Whoever runs it has to make room."
    monkeypatch.setattr(bounds.shutil, "disk_usage", lambda _: disk(0, 0, bounds.MIN_FREE + 1000))
    assert uploaded(body, clients=clients).status == 200


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/assets/a.js", "read"),
        ("POST", "/gradio_api/queue/join", "act"),
        ("GET", "/login/huggingface", "login"),
        ("GET", "/", "page"),
        ("GET", "/config/", "page"),
        ("GET", "/gradio_api/info", "page"),
    ],
)
def test_requests_a_minute_have_a_bound_for_each_client(method, path, kind, clients, now, monkeypatch):
    at_least = {"read": 20 * 3 * 133, "act": 20 * 3 * 60, "login": 20 * 3, "page": 20 * 3 * 3}[kind]
    assert bounds.A_MINUTE[kind] >= at_least, "behind one NAT"
    monkeypatch.setitem(bounds.A_MINUTE, kind, 60)
    statuses = [asked(method, path, clients=clients).status for _ in range(62)]
    assert statuses == [200] * 60 + [429] * 2
    assert asked(method, path, clients=clients, client="192.0.2.2").status == 200
    assert asked("GET" if kind == "act" else "POST", "/any/new", clients=clients).status == 200, "of another kind"
    now[0] += 1
    assert [asked(method, path, clients=clients).status for _ in range(2)] == [200, 429], "one a second comes back"
    said = asked(clients=clients, method=method, path=path).body.decode()
    assert "From your address there have been too many requests" in said


def in_a_session(name: object, where: str, clients: Clients | None = None, **more: object) -> int:
    """The status of a request that names a session."""
    if where == "body":
        return asked(body=json.dumps({"data": [], "session_hash": name}).encode(), clients=clients, **more).status
    if where == "path":
        return asked("GET", f"/gradio_api/heartbeat/{name}", clients=clients, **more).status
    return asked("GET", "/gradio_api/queue/data", query=f"session%5Fhash={name}", clients=clients, **more).status


@pytest.mark.parametrize("where", ["body", "query", "path"])
def test_new_sessions_a_minute_have_a_bound_and_so_have_their_names(where: str, clients, now, monkeypatch):
    assert in_a_session("a" * bounds.MAX_SESSION, where) == 200
    assert in_a_session("a" * (bounds.MAX_SESSION + 1), where) == 400
    assert bounds.A_MINUTE["session"] >= 20 * 3 * 3, "behind one NAT, each tab loaded some times"
    monkeypatch.setitem(bounds.A_MINUTE, "session", 3)
    assert [in_a_session(name, where, clients) for name in "abca"] == [200] * 4
    assert [in_a_session(name, where, clients) for name in "abcd"] == [200] * 3 + [429]
    assert in_a_session("d", where, clients, client="192.0.2.2") == 200
    now[0] += 20
    assert in_a_session("d", where, clients) == 200


def test_a_session_is_a_text_and_the_table_of_them_has_a_bound(clients, monkeypatch):
    assert in_a_session(None, "body") == 200
    for odd in (1, ["a"], {"a": 1}, True):
        assert in_a_session(odd, "body") == 400
    monkeypatch.setattr(bounds, "MAX_SESSIONS", 50)
    for number in range(100):
        clients.see_session(str(number), "a")
    assert len(clients._sessions) == 50


def test_a_clients_pages_are_made_some_at_a_time(clients, monkeypatch):
    """And none has to wait for a browser that reads its answer slowly, or for another client's."""
    monkeypatch.setattr(bounds, "PAGES_AT_ONCE", 2)
    made: list[str] = []

    async def several() -> None:
        over, read = asyncio.Event(), asyncio.Event()

        async def gradio(scope, receive, send):
            made.append(scope["client"][0])
            await over.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def send(message):
            await read.wait()

        hosts = Hosts(StudioSettings(), {})
        visits = [
            asyncio.create_task(
                Guard(gradio, hosts, clients)(
                    {
                        "type": "http",
                        "method": "GET",
                        "path": path,
                        "query_string": b"",
                        "headers": [(b"host", b"localhost")],
                        "scheme": "http",
                        "client": (client, 5),
                    },
                    None,
                    send,
                )
            )
            for client, path in [("a", "/"), ("a", "/config"), ("a", "/"), ("b", "/"), ("a", "/theme.css")]
        ]
        for _ in range(20):
            await asyncio.sleep(0)
        assert made == ["a", "a", "b", "a"]
        over.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert made == ["a", "a", "b", "a", "a"]
        read.set()
        await asyncio.gather(*visits)

    asyncio.run(several())
    assert not clients._turns


def test_bytes_a_minute_have_a_bound_as_well(clients, monkeypatch):
    monkeypatch.setitem(bounds.A_MINUTE, "bytes", 1000)
    body = json.dumps({"data": ["x" * 400]}).encode()
    assert [asked(body=body, clients=clients).status for _ in range(3)] == [200, 200, 429]


def test_open_requests_of_a_client_have_a_bound(clients, monkeypatch):
    monkeypatch.setattr(bounds, "AT_ONCE", 2)
    with clients.one_more("192.0.2.1"), clients.one_more("192.0.2.1"):
        assert asked("GET", "/gradio_api/queue/data", clients=clients).status == 429
        assert asked("GET", "/gradio_api/queue/data", clients=clients, client="192.0.2.2").status == 200
    assert asked("GET", "/gradio_api/queue/data", clients=clients).status == 200
    assert not clients._open


def test_the_table_of_clients_has_a_bound(clients, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_CLIENTS", 50)
    for number in range(500):
        clients.take(str(number), "read")
    assert len(clients._clients) == 50


def counted_as(client: str, forwarded: str = "", around: dict | None = None) -> str:
    seen = Clients(Path(__file__).parent)
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    answer = asked(client=client, headers=headers, around=around, clients=seen, hosts="studio.example")
    name = next(iter(seen._clients))
    assert [address_of(request) for request in answer.seen] == [name], "the queue counts by the same"
    return name


def test_a_client_is_the_address_that_its_own_proxy_saw():
    assert counted_as("198.51.100.1", "203.0.113.9") == "198.51.100.1", "nobody makes up an address of their own"
    around = SPACE | {"GRADIO_SERVER_NAME": "0.0.0.0"}
    assert counted_as("10.0.0.3", "1.1.1.1, 8.8.8.8, 10.0.0.7", around) == "8.8.8.8"
    assert counted_as("10.0.0.3", "nonsense", around) == "10.0.0.3"
    assert counted_as("2001:4860:1:2:3:4:5:6") == counted_as("2001:4860:1:2:9:9:9:9") == "2001:4860:1:2::/64"


def test_a_network_of_ipv6_is_counted_as_some_clients(clients, monkeypatch):
    monkeypatch.setitem(bounds.A_MINUTE, "act", 2)
    homes = [f"2001:4860:1:{number}::5" for number in range(9)]
    taken = [asked(clients=clients, client=home).status for home in homes]
    assert taken == [200] * 2 * bounds.OF_A_NETWORK + [429]
    assert asked(clients=clients, client="2001:4860:2::5").status == 200
    assert [asked(clients=clients, client="2001:4860:3::5").status for _ in range(3)] == [200, 200, 429]


def test_every_answer_tells_the_browser_what_it_may_do_with_it():
    for got in (asked(), asked("GET", "/"), asked(headers=FOREIGN[0]), asked("GET", "/", {"host": "evil.example"})):
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["referrer-policy"] == got.headers["cross-origin-resource-policy"] == "same-origin"
        policy = dict(part.split(" ", 1) for part in got.headers["content-security-policy"].split("; "))
        assert policy["script-src"] == "'self' 'unsafe-eval'"
        assert (policy["default-src"], policy["object-src"], policy["frame-ancestors"]) == (
            "'self'",
            "'none'",
            "'self'",
        )
    policy = asked(headers={"host": "me-studio.hf.space"}, around=SPACE).headers["content-security-policy"]
    assert policy.endswith("frame-ancestors 'self' https://huggingface.co")


def test_websockets_are_refused():
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": None,
    }
    told = Guard(None, Hosts(StudioSettings(), {}), Clients(Path()))
    asyncio.run(told(scope, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_served_studio_is_behind_the_guard(served: Served):
    for path in ("", "config", "gradio_api/info", "gradio_api/startup-events", "theme.css", "no/such/route"):
        answer = httpx.get(served.url + path, headers={"Host": "evil.example"}, timeout=SECONDS)
        assert (answer.status_code, answer.text.partition("evil.example")[1]) == (403, "evil.example")
    answer = httpx.get(served.url, timeout=SECONDS)
    assert answer.status_code == 200
    assert COOKIE in answer.cookies
