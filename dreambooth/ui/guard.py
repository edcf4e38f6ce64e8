"""The guard in front of Gradio: who may ask at all, and who is asked for. It is the outermost layer of the server.

Gradio 6.31 answers any site that a visitor's browser is on as if it were the studio's own page, and to any name that
leads to the server. Here a request is the studio's own only if it names a host that is the studio's and comes from a
page of it (or from no page: a program, an address typed in). What another site sends has no effect, so no route, of
this version of Gradio or of the next, has to look at where a request comes from.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import socket
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit

from gradio.routes import App, ORJSONResponse
from starlette.datastructures import MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreambooth.ui.limits import StudioSettings

VISITOR = "dreambooth-visitor"
"""The cookie by which a browser is known again: random, and out of reach for scripts."""
PAGES = ("/", "/login/huggingface", "/login/callback")
"""Where a link on another site may lead, with what the browser knows of the visitor: the page, and the Hub's login."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(\d{1,5}))?")
_VISITOR = re.compile(r"[A-Za-z0-9_-]{32}")
_YEAR = 365 * 24 * 60 * 60


class RefusalError(Exception):
    """A request that gets an answer of the guard's own: a status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Hosts:
    """The names under which the studio may be asked."""

    def __init__(self, settings: StudioSettings, environment: Mapping[str, str] = os.environ):
        listens = environment.get("GRADIO_SERVER_NAME", "127.0.0.1").strip("[]").lower()
        self.space = bool(environment.get("SPACE_ID"))
        self.widely = self.space or not (listens == "localhost" or _is_loopback(listens))
        """Whether other machines reach it without a proxy on this one."""
        own = {"localhost", listens}
        if self.widely:
            own |= {name for host in [socket.gethostname().lower()] for name in (host, f"{host}.local")}
        spaces = (host.strip().lower() for host in environment.get("SPACE_HOST", "").split(","))
        self.declared = {host for host in (*settings.hosts, *spaces) if host}
        """Names, some with a port, by which others ask for it, whatever a proxy in between makes of them."""
        self._names = own

    def declare(self, url: str) -> None:
        """Add the host of a link that Gradio made to the studio (`GRADIO_SHARE`)."""
        self.declared.add(urlsplit(url).netloc.lower())

    def knows(self, host: str) -> bool:
        """Whether a Host header is one of the studio's. No other site can be at an address in numbers, as it can be at
        a name of its own that leads here; so where the studio listens to other machines, every such address is."""
        found = _HOST.fullmatch(host.lower())
        if not found:
            return False
        name = found[1].strip("[]").rstrip(".")
        if name in self._names or name in {declared.partition(":")[0] for declared in self.declared}:
            return True
        return _is_loopback(name) or (self.widely and _is_address(name))

    def is_own(self, origin: str, host: str) -> bool:
        """Whether a page at `origin` is the studio's, asked for as `host`: there, or at a declared name."""
        try:
            scheme, netloc = urlsplit(origin)[:2]
        except ValueError:
            return False
        netloc = netloc.lower()
        return scheme in ("http", "https") and (netloc == host.lower() or netloc in self.declared)


class GuardedApp(App):
    """Gradio's server behind the guard: whatever it adds to itself is inside."""

    def __init__(self, settings: StudioSettings):
        super().__init__(default_response_class=ORJSONResponse)  # as `App.create_app` makes it
        self.hosts = Hosts(settings)
        self._guard = Guard(super().__call__, self.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        await self._guard(scope, receive, send)


class Guard:
    """ASGI middleware that lets the studio's own requests through."""

    def __init__(self, app: ASGIApp, hosts: Hosts):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": list(scope["headers"])}
        headers = MutableHeaders(scope=scope)
        try:
            if scope["type"] == "websocket":
                raise RefusalError(403, "The studio speaks HTTP alone.")
            self._check_host(headers)
            self._check_site(scope, headers)
            self._check_route(scope)
        except RefusalError as refusal:
            await _answer(scope, refusal, send)
            return
        greeting = self._greet(scope, headers)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                for name in [name for name in answered if name.startswith("access-control-")]:
                    del answered[name]  # no other site's page may read it
                if greeting:
                    answered.append("set-cookie", greeting)
            await send(message)

        await self.app(scope, receive, answer)

    def _check_host(self, headers: MutableHeaders) -> None:
        """Refuse names that are not the studio's: a site's own that leads to this address ("DNS rebinding"), or a
        tunnel's that nobody told of. What a proxy forwards counts as well, since Gradio builds its links from it."""
        hosts = headers.getlist("host") + [
            host.strip() for value in headers.getlist("x-forwarded-host") for host in value.split(",")
        ]
        del headers["x-gradio-server"]  # of Gradio's own Node server, which is not used
        if len(headers.getlist("host")) != 1 or not all(map(self.hosts.knows, hosts)):
            unknown = next((host for host in hosts if not self.hosts.knows(host)), "")
            shown = unknown[:100] if _HOST.fullmatch(unknown.lower()) else "that name"
            raise RefusalError(
                403, f"This studio is not known as {shown}. Whoever runs it lists its names in DREAMBOOTH_HOSTS."
            )
        if not (self.hosts.space or self.hosts.declared):
            del headers["x-forwarded-proto"]  # nobody said that there is a proxy

    def _check_site(self, scope: Scope, headers: MutableHeaders) -> None:
        """Refuse what a page of another site sends, all but a visit to the page."""
        if not self._is_foreign(headers):
            return
        visits = scope["method"] in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        if not (visits and scope["path"] in PAGES):
            raise RefusalError(403, "Another site's page asked for this. Open the studio itself.")

    def _is_foreign(self, headers: MutableHeaders) -> bool:
        if any(not self.hosts.is_own(origin, headers["host"]) for origin in headers.getlist("origin")):
            return True
        return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")

    def _check_route(self, scope: Scope) -> None:
        """Refuse what nothing here uses: links to what somebody filled in, which would show it on the studio's page."""
        if "deep_link" in scope["path"]:
            raise RefusalError(404, "The studio has no links to filled-in pages.")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(name == "deep_link" for name, _ in query):
            kept = [(name, value) for name, value in query if name != "deep_link"]
            scope["query_string"] = urlencode(kept).encode()

    def _greet(self, scope: Scope, headers: MutableHeaders) -> str:
        """Give the visitor of the page their cookie, in this request already; the Set-Cookie header that keeps it."""
        if scope["method"] != "GET" or scope["path"] != "/":
            return ""
        cookies = cookie_parser("; ".join(headers.getlist("cookie")))
        if not _VISITOR.fullmatch(cookies.get(VISITOR, "")):
            cookies[VISITOR] = secrets.token_urlsafe(24)
        headers["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        # A Space is shown in a frame of huggingface.co, where only such cookies are sent.
        https = "https" in (scope["scheme"], headers.get("x-forwarded-proto", "").partition(",")[0].strip())
        site = "Secure; SameSite=None; Partitioned" if https else "SameSite=Lax"
        return f"{VISITOR}={cookies[VISITOR]}; HttpOnly; Path=/; Max-Age={_YEAR}; {site}"


async def _answer(scope: Scope, refusal: RefusalError, send: Send) -> None:
    """Answer with the sentence: as the text of a page or an upload, else as the JSON that Gradio's page looks into."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    if "gradio_api" in scope["path"] and not scope["path"].endswith("/upload"):
        kind, body = "application/json", json.dumps({"detail": refusal.sentence, "error": refusal.sentence}).encode()
    else:
        kind, body = "text/plain; charset=utf-8", refusal.sentence.encode()
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
