"""The guard in front of Gradio: who may ask, for how much, and what a browser may do with the answer.

Gradio 6.31 answers any site that a visitor's browser is on as if it were the studio's own page, and to any name that
leads to the server. Here a request is the studio's own only if it names a host that is the studio's and comes from a
page of it (or from no page: a program, an address typed in). What another site sends has no effect, and what anybody
sends is bounded before Gradio reads it. The guard is the outermost layer of the server, so this holds for each route,
of this version of Gradio or of the next.
"""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from anyio import to_thread
from gradio.routes import App, ORJSONResponse
from gradio.utils import get_upload_folder
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreambooth.ui.doors import RefusalError
from dreambooth.ui.doors.bodies import ADDRESS, MAX_ITEMS, Parts, check_json, upload_size
from dreambooth.ui.doors.clients import MAX_SESSION, Clients, client_of
from dreambooth.ui.doors.exchange import MAX_BODY, MAX_TOOL_BODY, Exchange
from dreambooth.ui.doors.hosts import Hosts
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.doors.login import COOKIE, checked_cookie, new_cookie
from dreambooth.ui.doors.policy import InlineScripts, policy_of

SECURE_COOKIE = f"__Host-{COOKIE}"
"""The visitor's cookie over https: by this name a browser takes it from the studio itself alone, not from a site whose
name ends like the studio's, or over http."""
PAGES = ("/", "/login/huggingface", "/login/callback")
"""Where a link on another site may lead, with what the browser knows of the visitor: the page, and the Hub's login."""
DEAR = ("/", "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/runs")
"""What Gradio makes anew, from the whole page, each time that somebody asks: a twentieth of a second's work."""

MAX_PROMPT = 64 * 2**10
"""Bytes of a request that are looked into at once; of more a thread does, while others are answered."""
_FETCHED = re.compile(rf"/(file|proxy)[=/]{ADDRESS.pattern}", re.IGNORECASE)
_YEAR = 365 * 24 * 60 * 60


class GuardedApp(App):
    """Gradio's server behind the guard: whatever it adds to itself is inside."""

    def __init__(self, settings: StudioSettings):
        self.hosts = Hosts(settings)
        super().__init__(
            default_response_class=ORJSONResponse,  # as `App.create_app` makes it
            middleware=[Middleware(InlineScripts, policy=policy_of(self.hosts))],  # within Gradio's own: not compressed
        )
        self._guard = Guard(super().__call__, self.hosts, Clients(Path(get_upload_folder())))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        await self._guard(scope, receive, send)


class Guard:
    """ASGI middleware that lets the studio's own requests through."""

    def __init__(self, app: ASGIApp, hosts: Hosts, clients: Clients):
        self.app, self.hosts, self.clients = app, hosts, clients
        self._policy = policy_of(hosts).format(scripts="")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": list(scope["headers"])}
        headers, client = MutableHeaders(scope=scope), client_of(scope, on_a_space=self.hosts.space)
        scope["client"] = (client, 0)  # whose calls wait, and whose downloads count, is told by it too
        exchange = Exchange(receive, send, self._policy, self.clients.clock)
        try:
            if scope["type"] == "websocket":
                raise RefusalError(403, "The studio speaks HTTP alone.")
            self.hosts.check(headers)
            self._check_site(scope, headers)
            self._check_route(scope)
            async with AsyncExitStack() as until_answered:
                until_answered.enter_context(self.clients.one_more(client))
                body = await self._check_body(scope, headers, exchange, client, until_answered)
                exchange.greeting = self._greet(scope, headers)
                await exchange.through(self.app, scope, body)
        except RefusalError as refusal:
            if not exchange.started:
                await exchange.refuse(scope, refusal)

    async def _check_body(
        self, scope: Scope, headers: MutableHeaders, exchange: Exchange, client: str, until_answered: AsyncExitStack
    ) -> Receive:
        """Bound what is asked for, and what is sent; the `receive` with which Gradio reads what was let through."""
        path = self._path(scope)
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            dear = (path.rstrip("/") or "/") in DEAR
            self.clients.take(client, "login" if path.startswith("/login") else "page" if dear else "read")
            self._check_sessions(client, _sessions_in(scope))
            if dear:
                exchange.until_started.callback(await self.clients.turn(client))
                until_answered.callback(exchange.until_started.close)
            return exchange.receive
        kind = headers.get("content-type", "")
        if scope["method"] == "POST" and path == "/gradio_api/upload":
            parts = Parts(kind)
            await until_answered.enter_async_context(self.clients.room_for(client, upload_size(headers)))

            async def receive_seen() -> Message:
                message = await exchange.receive_soon()
                parts.see(message.get("body", b""))
                return message

            return receive_seen
        self.clients.take(client, "act")
        if kind.startswith(("multipart/", "application/x-www-form-urlencoded")):
            raise RefusalError(415, "The studio takes JSON here.")
        tool = path.startswith("/gradio_api/mcp")
        items = 0

        def count(part: bytes) -> None:
            nonlocal items
            self.clients.take(client, "bytes", len(part))
            items += sum(map(part.count, (b"[", b"{", b",")))
            if items > MAX_ITEMS:
                raise RefusalError(400, f"A request has at most {MAX_ITEMS} lists, objects and commas. Send less.")

        body = await exchange.read_all(MAX_TOOL_BODY if tool and self.hosts.tools else MAX_BODY, count)
        large = len(body) > MAX_PROMPT
        named = await to_thread.run_sync(check_json, body, tool) if large else check_json(body, tool)
        self._check_sessions(client, named | _sessions_in(scope))
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return waiting.pop() if waiting else await exchange.receive()

        return receive_again

    def _check_sessions(self, client: str, named: set[str]) -> None:
        if any(len(name) > MAX_SESSION for name in named):
            raise RefusalError(400, f"A session_hash has at most {MAX_SESSION} characters.")
        for name in named:
            self.clients.see_session(client, name)

    def _path(self, scope: Scope) -> str:
        """The path as Gradio's routes have it."""
        path, prefix = scope["path"], self.hosts.prefix
        return path.removeprefix(prefix) or "/" if f"{path}/".startswith(f"{prefix}/") else path

    def _check_site(self, scope: Scope, headers: MutableHeaders) -> None:
        """Refuse what a page of another site sends, all but a visit to the page."""
        if not self.hosts.is_foreign(headers):
            return
        visits = scope["method"] in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        if not (visits and self._path(scope) in PAGES):
            raise RefusalError(403, "Another site's page asked for this. Open the studio itself.")

    def _check_route(self, scope: Scope) -> None:
        """Refuse what nothing here uses: links to what somebody filled in, which would show it on the studio's page,
        and addresses that the server is to fetch from."""
        if _FETCHED.search(scope["path"]):
            raise RefusalError(403, "The studio fetches nothing from an address.")
        if "deep_link" in scope["path"]:
            raise RefusalError(404, "The studio has no links to filled-in pages.")
        query = _query(scope)
        if any(name == "deep_link" for name, _ in query):
            kept = [(name, value) for name, value in query if name != "deep_link"]
            scope["query_string"] = urlencode(kept).encode()

    def _greet(self, scope: Scope, headers: MutableHeaders) -> str:
        """Pass the visitor's cookie on as `COOKIE`, where the browser sent one and no second that a site put there.
        The page's visitor is given one, in this request already. Returns the Set-Cookie header that keeps it."""
        https = "https" in (scope["scheme"], headers.get("x-forwarded-proto", "").partition(",")[0].strip())
        name, own, passed = SECURE_COOKIE if https else COOKIE, [], []
        for part in "; ".join(headers.getlist("cookie")).split(";"):
            for key, value in cookie_parser(part).items():
                if key == name:
                    own.append(value)
                elif key not in (COOKIE, SECURE_COOKIE):
                    passed.append(part.strip())
        visitor = checked_cookie(own[0]) if len(own) == 1 else ""
        visits = scope["method"] == "GET" and self._path(scope) == "/"
        if visits and not visitor:
            visitor = new_cookie()
        if visitor:
            passed.append(f"{COOKIE}={visitor}")
        del headers["cookie"]
        if passed:
            headers["cookie"] = "; ".join(passed)
        # A Space is shown in a frame of huggingface.co, where only such cookies are sent.
        site = "Secure; SameSite=None; Partitioned" if https else "SameSite=Lax"
        return f"{name}={visitor}; HttpOnly; Path=/; Max-Age={_YEAR}; {site}" if visits else ""


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _sessions_in(scope: Scope) -> set[str]:
    """The sessions that a request's address names."""
    paths = re.findall(r"/(?:heartbeat|stream)/([^/]+)", scope["path"])
    return {*paths, *(value for name, value in _query(scope) if name == "session_hash")}
