"""A real browser on another site, whose page tries what it can against the studio; and the studio's own, which may."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from dreambooth.ui.doors.login import COOKIE
from tests.hub import LoopbackHub
from tests.ui.conftest import SECONDS, Served, serve, start_chromium
from tests.ui.test_page import open_tab, start_training
from tests.ui.test_sharing import log_in

pytestmark = [pytest.mark.attack, pytest.mark.slow]
ATTEMPTS = """
async ({studio, event}) => {
    const outcomes = {};
    const attempt = async (name, act) => {
        try { outcomes[name] = await act() ? "done" : "refused"; } catch (error) { outcomes[name] = "refused"; }
    };
    const ask = async (path, options) => (await fetch(studio + path, {credentials: "include", ...options})).ok;
    const loads = (element, url) => new Promise((resolve) => {
        element.onload = element.onopen = () => resolve(true);
        element.onerror = () => resolve(false);
        if (url) element.src = url;
    });
    const call = JSON.stringify({data: [], fn_index: event, session_hash: "abcdef"});
    const kinds = {json: "application/json", plain: "text/plain", form: "application/x-www-form-urlencoded"};
    const files = (name) => {
        const form = new FormData();
        form.append("files", new Blob(["a file"]), name);
        return form;
    };
    const join = (kind, body = call) => ask(
        "/gradio_api/queue/join", {method: "POST", headers: {"content-type": kinds[kind]}, body});
    await attempt("event", () => join("json"));
    await attempt("event as text", () => join("plain"));
    await attempt("event as form", () => join("form"));
    await attempt("upload", () => ask("/gradio_api/upload", {method: "POST", body: files("read.png")}));
    await attempt("blind upload", async () => (
        await fetch(studio + "/gradio_api/upload", {
            method: "POST", body: files("blind.png"), mode: "no-cors", credentials: "include",
        })).ok);
    navigator.sendBeacon(studio + "/gradio_api/upload", files("beacon.png"));
    await attempt("reading the page", () => ask("/"));
    await attempt("reading the settings", () => ask("/config"));
    await attempt("reading the endpoints", () => ask("/gradio_api/info"));
    await attempt("a stream", () => {
        const stream = new EventSource(studio + "/gradio_api/heartbeat/abcdef", {withCredentials: true});
        return loads(stream).finally(() => stream.close());
    });
    await attempt("a script", () => {
        const script = document.createElement("script");
        document.head.append(script);
        return loads(script, studio + "/static/js/iframeResizer.contentWindow.min.js");
    });
    await attempt("a link to what was filled in", () => ask("/gradio_api/deep_link?session_hash=abcdef"));
    await attempt("a socket", () => new Promise((resolve) => {
        const socket = new WebSocket(studio.replace("http", "ws") + "/gradio_api/queue/data");
        socket.onopen = () => resolve(true);
        socket.onerror = () => resolve(false);
    }));
    return outcomes;
}
"""
MAY = {
    "event",
    "upload",
    "blind upload",
    "reading the page",
    "reading the settings",
    "reading the endpoints",
    "a stream",
    "a script",
}
"""What a page of the studio's own may of these."""
NAMELESS = """
(studio) => new Promise((resolve) => {
    window.onmessage = (message) => resolve(message.data);
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-scripts";
    const form = `const f = new FormData(); f.append("files", new Blob(["x"]), "nameless.png");`;
    const post = `fetch("${studio}/gradio_api/upload", {method: "POST", body: f})`;
    frame.srcdoc = `<script>${form} ${post}.then((got) => got.status, () => "refused")
        .then((outcome) => parent.postMessage(outcome, "*"))</` + "script>";
    document.body.append(frame);
})
"""


class Site(BaseHTTPRequestHandler):
    """Another site: an empty page, under every name that leads to it."""

    def do_GET(self):
        body = b"<!doctype html><title>evil</title><body></body>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Proxy(BaseHTTPRequestHandler):
    """A reverse proxy for `studio.example`, as nginx is: it passes on its own name, or tells the browser's."""

    upstream: str
    told: bool
    streams: list[httpx.Response]

    def forward(self):
        length = int(self.headers.get("Content-Length", 0))
        passed = [(name, value) for name, value in self.headers.items() if name.lower() not in ("host", "connection")]
        host = [("Host", self.headers["Host"])] if self.told else []
        passed += [*host, ("X-Forwarded-For", self.client_address[0]), ("X-Forwarded-Host", self.headers["Host"])]
        body = self.rfile.read(length) if length else None
        with (
            suppress(httpx.HTTPError, OSError),  # either side has closed the stream
            httpx.stream(self.command, self.upstream + self.path, headers=passed, content=body, timeout=None) as got,
        ):
            self.streams.append(got)
            self.send_response(got.status_code)
            for name, value in got.headers.multi_items():
                if name not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.end_headers()
            for chunk in got.iter_raw():
                self.wfile.write(chunk)
                self.wfile.flush()

    do_GET = do_POST = do_HEAD = do_OPTIONS = forward  # noqa: N815

    def log_message(self, *_):
        pass


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a server on every address of this machine."""
    server = ThreadingHTTPServer(("0.0.0.0", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@contextmanager
def hanging_up(proxy: type[Proxy]) -> Iterator[None]:
    """Close at the end what the proxy has open towards the studio, as one does that notices that a browser is gone."""
    yield
    for stream in proxy.streams:
        with suppress(OSError):
            stream.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def evil() -> Iterator[int]:
    with listening(Site) as port:
        yield port


@contextmanager
def named(browser: Browser, rules: str) -> Iterator[Browser]:
    """A browser for which names lead where the rules say, and which keeps nobody from this machine by itself."""
    careless = "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests"
    opened = start_chromium(browser.browser_type, f"--host-resolver-rules={rules}", careless)
    yield opened
    opened.close()


def an_event(url: str) -> int:
    """The number of the page's first event, which no documentation lists."""
    found = httpx.get(f"{url}config", timeout=SECONDS).json()["dependencies"]
    return next(event["id"] for event in found if event["backend_fn"] and event["api_visibility"] == "private")


def attempts(page: Page, studio: str, event: int) -> dict[str, str]:
    return page.evaluate(ATTEMPTS, {"studio": studio.rstrip("/"), "event": event})


def names(served: Served) -> set[str]:
    """The files that were uploaded to the studio."""
    return {path.name for path in (served.runs.parent / "gradio").rglob("*") if path.is_file()}


def expect_only_the_studios_own_page_may(
    context: BrowserContext, served: Served, url: str, sites: list[str], event: int
) -> None:
    before = names(served)
    for site in sites:
        page = context.new_page()
        page.goto(site)
        assert page.title() == "evil"
        outcomes = attempts(page, url, event)
        assert set(outcomes.values()) == {"refused"}, (site, outcomes)
        if "localhost" not in site:
            assert page.evaluate(NAMELESS, url.rstrip("/")) == "refused"
        with page.expect_console_message(lambda said: "frame-ancestors" in said.text):
            page.evaluate("(url) => { document.body.innerHTML = `<iframe src='${url}'></iframe>` }", url)
        page.close()
    assert names(served) == before
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#tabs")).to_be_visible()
    outcomes = attempts(page, url, event)
    assert {name for name, outcome in outcomes.items() if outcome == "done"} == MAY
    page.close()
    assert names(served) - before >= {"read.png", "blind.png", "beacon.png"}


def test_on_a_laptop_no_other_site_gets_through(served: Served, browser: Browser, evil: int):
    context = browser.new_context()
    url = served.url.replace("127.0.0.1", "localhost")
    for studio in (served.url, url):
        sites = [f"http://{host}:{evil}/" for host in ("127.0.0.2", "localhost", "evil.localhost")]
        expect_only_the_studios_own_page_may(context, served, studio, sites, an_event(served.url))
        for upload in (served.runs.parent / "gradio").rglob("*.png"):
            upload.unlink()
    context.close()


def test_a_link_on_another_site_leads_to_the_visitors_own_page(served: Served, browser: Browser, evil: int):
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.url)
    [mine] = [cookie for cookie in context.cookies() if cookie["name"] == COOKIE]
    assert mine["httpOnly"]
    assert COOKIE not in page.evaluate("document.cookie")
    page.goto(f"http://127.0.0.2:{evil}/")
    page.evaluate("(url) => { document.body.innerHTML = `<a href='${url}'>studio</a>` }", served.url)
    page.get_by_role("link").click()
    expect(page.locator("#tabs")).to_be_visible()
    [still] = [cookie for cookie in context.cookies() if cookie["name"] == COOKIE]
    assert still["value"] == mine["value"]
    context.close()


def test_a_name_that_comes_to_lead_to_the_studio_gets_nothing(served: Served, browser: Browser, evil: int):
    """DNS rebinding: the site's page is there already when its name changes to this machine's address."""
    port = urlsplit(served.url).port
    with named(browser, "MAP evil.example 127.0.0.1") as lied_to:
        page = lied_to.new_page()
        page.route("**/before", lambda route: route.fulfill(body="<title>evil</title>", content_type="text/html"))
        page.goto(f"http://evil.example:{port}/before")
        assert "not known as evil.example" in page.evaluate("async () => (await fetch('/')).text()")
        assert set(attempts(page, f"http://evil.example:{port}", an_event(served.url)).values()) == {"refused"}
        assert page.goto(f"http://evil.example:{port}/").status == 403
        page.goto(served.url)
        expect(page.locator("#tabs")).to_be_visible()


@pytest.mark.parametrize("told", [True, False], ids=["which passes on the name", "which passes on its own"])
def test_behind_a_reverse_proxy_its_name_is_the_studios(
    tiny_model: Path, photo_folder: Path, tmp_path: Path, browser: Browser, evil: int, told: bool
):
    handler = type("Passing", (Proxy,), {"told": told, "streams": []})
    with listening(handler) as port:
        hosts = f"studio.example:{port}"
        with (
            serve(tmp_path, tiny_model, photo_folder, hosts=hosts, public="true") as served,
            hanging_up(handler),
            named(browser, "MAP studio.example 127.0.0.1, MAP *.example 127.0.0.2") as visitors,
        ):
            handler.upstream = served.url.rstrip("/")
            url, context = f"http://{hosts}/", visitors.new_context()
            sites = [f"http://{host}:{evil}/" for host in ("evil.example", "evil.studio.example")]
            expect_only_the_studios_own_page_may(context, served, url, sites, an_event(served.url))
            if told:
                page = context.new_page()
                page.goto(url)
                page.locator("#photos input[type=file]").set_input_files(served.photos)
                expect(page.locator("#crops img")).to_have_count(len(served.photos))
                page.get_by_label("Class noun").fill("dog")
                page.get_by_label("Class noun").press("Enter")
                start_training(page, 2)
                expect(page.locator("#headline")).to_contain_text("dog finished")


def test_on_a_space_no_other_site_acts_for_who_is_logged_in(
    hub: LoopbackHub, tiny_model: Path, photo_folder: Path, tmp_path: Path, browser: Browser, evil: int
):
    hub.add_user("anna")
    with serve(tmp_path, tiny_model, photo_folder, around=hub.oauth_environment()) as served:
        context = browser.new_context()
        page = context.new_page()
        page.goto(served.url)
        log_in(page, "anna")
        sites = [f"http://{host}:{evil}/" for host in ("127.0.0.2", "localhost")]
        expect_only_the_studios_own_page_may(context, served, served.url, sites, an_event(served.url))

        elsewhere = context.new_page()
        elsewhere.goto(sites[0])
        assert not elsewhere.evaluate(
            "(url) => new Promise((done) => { const i = new Image(); i.onload = () => done(true); "
            "i.onerror = () => done(false); i.src = url })",
            f"{served.url}logout",
        )
        elsewhere.goto(sites[0])
        elsewhere.evaluate("(url) => { location = url }", f"{served.url}logout")
        expect(elsewhere.locator("body")).to_contain_text("Another site's page asked for this.")
        page.reload()
        page.get_by_role("button", name="Log out (anna)").click()
        expect(page.get_by_role("button", name="Log in")).to_be_visible()
        context.close()


def test_a_link_to_a_filled_in_page_shows_the_plain_one(served: Served, browser: Browser):
    page = browser.new_page()
    page.goto(f"{served.url}?deep_link=9rGOdbzl1Kg")
    expect(page.locator("#tabs")).to_be_visible()
    assert page.evaluate("window.gradio_config.deep_link_state") == "none"
    page.close()


def test_a_script_that_came_into_the_page_does_not_run(served: Served, browser: Browser, evil: int):
    script = """() => new Promise((done) => {
        document.addEventListener("securitypolicyviolation", () => done("stopped"));
        window.ran = () => done("ran");
        document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='ran()'>");
    })"""
    page = browser.new_page()
    page.goto(served.url)
    expect(page.locator("#tabs")).to_be_visible()
    assert page.evaluate(script) == "stopped"
    page.goto(f"http://127.0.0.2:{evil}/")
    assert page.evaluate(script) == "ran"
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_tab_lives_with_the_pages_policy(served: Served, browser: Browser, theme: str):
    said: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: "Content Security Policy" in message.text and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{served.url}?__theme={theme}")
    page.get_by_role("button", name=re.compile("backpack", re.IGNORECASE)).first.click()
    expect(page.locator("#crops img").first).to_be_visible()
    for tab in ("Train", "Generate", "Compare", "Publish", "Gallery", "Photos"):
        open_tab(page, tab)
    page.get_by_role("button", name="Use via API").click()
    expect(page.get_by_text("start_training").first).to_be_visible()
    page.close()
    assert not said, json.dumps(said)
