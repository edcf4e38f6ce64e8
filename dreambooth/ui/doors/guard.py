"""The guard in front of Gradio: who may ask, for how much, and what a browser may do with the answer.

Gradio 6.31 answers any site that a visitor's browser is on as if it were the studio's own page, and to any name that
leads to the server. Here a request is the studio's own only if it names a host that is the studio's and comes from a
page of it (or from no page: a program, an address typed in). What another site sends has no effect, and what anybody
sends is bounded before Gradio reads it. The guard is the outermost layer of the server, so this holds for each route,
of this version of Gradio or of the next.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import json
import os
import re
import shutil
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit
from weakref import WeakValueDictionary

from anyio import to_thread
from gradio.routes import App, ORJSONResponse
from gradio.utils import get_upload_folder
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.doors.login import COOKIE, checked_cookie, new_cookie

SECURE_COOKIE = f"__Host-{COOKIE}"
"""The visitor's cookie over https: by this name a browser takes it from the studio itself alone, not from a site whose
name ends like the studio's, or over http."""
PAGES = ("/", "/login/huggingface", "/login/callback")
"""Where a link on another site may lead, with what the browser knows of the visitor: the page, and the Hub's login."""
DEAR = ("/", "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/runs")
"""What Gradio makes anew, from the whole page, each time that somebody asks: a twentieth of a second's work."""
PROXIED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers by which a proxy or a tunnel is known."""

MAX_BODY, MAX_TOOL_BODY = 2**20, 32 * 2**20
"""The most bytes of a request: what the page sends is some kilobytes. An MCP client sends its photos in it, too."""
MAX_ITEMS = 20_000
"""The most lists, objects and commas of a request, which cost more than their bytes; the page's are some hundreds."""
MAX_PROMPT = 64 * 2**10
"""Bytes of a request that are looked into at once; of more a thread does, while others are answered."""
MAX_DEPTH = 32
"""How deep lists and objects may lie in each other; the page's settings are six deep."""
MAX_UPLOAD, MAX_PARTS = 512 * 2**20, 100
"""The most bytes, and files, of one upload: twice the photos of a run, of ten megabytes each."""
UPLOADS_AN_HOUR = 4 * 2**30
"""The most bytes that one client uploads within an hour: 20 visitors behind one address with 40 photos each."""
MAX_KEPT = 10 * 2**30
"""The most bytes in the folder of uploads and shown pictures, where each stays for a day: half of what the runs get."""
MAX_COMING, KEPT_A_DAY = MAX_KEPT // 4, MAX_KEPT // 2
"""How much of that one client may have on its way at once, and fill in a day."""
MIN_FREE = 2 * 2**30
"""Bytes of the disk that no upload may take: a checkpoint of Stable Diffusion's adapter, and the system's own."""
A_MINUTE = {
    "read": 12_000,
    "act": 6_000,
    "page": 240,
    "session": 240,
    "login": 120,
    "upload": 240,
    "bytes": 100 * 2**20,
}
"""What one client may ask for within a minute, by kind of request, and the bytes of its `act`s. A page is 130 files and
polls once a second: for 20 visitors behind one address, three tabs each, and room to spare. Each tab is a session."""
OF_A_NETWORK = 4
"""Times as much for a whole /48 of IPv6, the most that a customer is given: 2**16 of what counts as a client."""
PAGES_AT_ONCE = 4
"""Of what is `DEAR` that is made for one client at the same time; further ones wait for their turn."""
MAX_SESSION, MAX_SESSIONS = 64, 20_000
"""Characters of a session's name, where Gradio's have a dozen; and how many are known: those last heard of."""
AT_ONCE = 300
"""The most requests of one client that are open; a tab keeps two so."""
MAX_CLIENTS = 10_000
"""How many clients are counted; of more, those that were here longest ago begin anew."""
PATIENCE, SLOWEST = 30, 100_000
"""Seconds for which a body may not go on, and may be late in all; the bytes that it brings in each further one."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'{scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; worker-src 'self' blob:; "
    "connect-src 'self'; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors {frames}"
)
"""What the page may load and run. Gradio's frontend makes functions of text for the `js` of events and of HTML
components ('unsafe-eval') and sets styles of single elements ('unsafe-inline' there). Of scripts within the page only
those run that came with the answer: handlers in an attribute, as an injected picture has them, never do."""
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # of any scheme; C: of Windows is none
_FETCHED = re.compile(rf"/(file|proxy)[=/]{_ADDRESS.pattern}", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(\d{1,5}))?")
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
        self.tools = environment.get("GRADIO_MCP_SERVER", "").lower() == "true"
        """Whether it is an MCP server as well, as Gradio reads it."""
        self.prefix = urlsplit(environment.get("GRADIO_ROOT_PATH", "")).path.rstrip("/")
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


class Clients:
    """What each client has left of its bounds, and how much of the disk uploads may take."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic):
        self.folder, self.clock = folder, clock
        self._clients: OrderedDict[str, dict[str, tuple[float, float]]] = OrderedDict()
        self._open: dict[str, int] = {}
        self._kept, self._looked, self._looking = 0, -float("inf"), asyncio.Lock()
        self._coming: Counter[str] = Counter()
        self._sessions: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def take(self, client: str, kind: str, amount: int = 1) -> None:
        """Count it, for the client's network as well. Raises `RefusalError` where that is more than one may: what is
        left grows back evenly."""
        self._take(client, kind, amount)
        if client.endswith("/64"):
            self._take(str(ipaddress.ip_network(client).supernet(new_prefix=48)), kind, amount / OF_A_NETWORK)

    def _take(self, client: str, kind: str, amount: float) -> None:
        by_time = {"uploaded": (UPLOADS_AN_HOUR, 3600, "an hour"), "kept": (KEPT_A_DAY, 24 * 3600, "a day")}
        most, seconds, later = by_time[kind] if kind in by_time else (A_MINUTE[kind], 60, "a minute")
        counts = self._clients.setdefault(client, {})
        self._clients.move_to_end(client)
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        now = self.clock()
        left, then = counts.get(kind, (most, now))
        left = min(most, left + (now - then) * most / seconds)
        if left < amount:
            counts[kind] = (left, now)
            asked = "so much has been uploaded" if kind in by_time else "there have been too many requests"
            raise RefusalError(
                429, f"From your address {asked} that the studio takes no more for now. Try again in {later}."
            )
        counts[kind] = (left - amount, now)

    def see_session(self, client: str, name: str) -> None:
        """Count a session that is new. Raises `RefusalError` where there are too many."""
        if (client, name) not in self._sessions:
            self.take(client, "session")
        self._sessions[client, name] = None
        self._sessions.move_to_end((client, name))
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    async def turn(self, client: str) -> Callable[[], None]:
        """Wait until a page may be made for the client; what then ends its turn."""
        turns = self._turns.setdefault(client, asyncio.Semaphore(PAGES_AT_ONCE))
        await turns.acquire()
        return turns.release

    @contextmanager
    def one_more(self, client: str) -> Iterator[None]:
        """Count an open request. Raises `RefusalError` where there are too many."""
        if self._open.get(client, 0) >= AT_ONCE:
            raise RefusalError(429, "From your address too many requests are open. Close other tabs of the studio.")
        self._open[client] = self._open.get(client, 0) + 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    @asynccontextmanager
    async def room_for(self, client: str, size: int) -> AsyncIterator[None]:
        """Keep room for an upload of `size` bytes. Raises `RefusalError` where there is none, before it arrives."""
        self.take(client, "upload")
        async with self._looking:
            if self.clock() - self._looked > 10:
                self._kept = await asyncio.to_thread(_bytes_in, self.folder)
                self._looked = self.clock()
        coming = sum(self._coming.values()) + size
        self.folder.mkdir(parents=True, exist_ok=True)  # some systems clear their temporary folder
        if shutil.disk_usage(self.folder).free - coming < MIN_FREE:
            raise RefusalError(507, "The studio's disk is nearly full. Whoever runs it has to make room.")
        if self._kept + coming > MAX_KEPT:
            raise RefusalError(507, "The studio has no room for more photos today. Try again tomorrow.")
        if self._coming[client] + size > MAX_COMING:
            raise RefusalError(429, "From your address much is being uploaded. Try again when that has arrived.")
        self.take(client, "uploaded", size)
        self.take(client, "kept", size)
        self._coming[client] += size
        try:
            yield
        finally:
            self._coming[client] -= size
            self._coming += Counter()  # without those of whom nothing is coming
            self._kept += size


class GuardedApp(App):
    """Gradio's server behind the guard: whatever it adds to itself is inside."""

    def __init__(self, settings: StudioSettings):
        self.hosts = Hosts(settings)
        super().__init__(
            default_response_class=ORJSONResponse,  # as `App.create_app` makes it
            middleware=[Middleware(InlineScripts, policy=_policy(self.hosts))],  # within Gradio's own: not compressed
        )
        self._guard = Guard(super().__call__, self.hosts, Clients(Path(get_upload_folder())))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        await self._guard(scope, receive, send)


class InlineScripts:
    """Middleware that lets the scripts in the page's own HTML run, by their hashes, and no others."""

    def __init__(self, app: ASGIApp, policy: str):
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        start, body = None, bytearray()

        async def answer(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                if kind.startswith(b"text/html"):
                    start = message
                    return
            elif start is not None and message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if message.get("more_body"):
                    return
                scripts = re.findall(rb"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", body, re.DOTALL)
                hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
                allowed = "".join(f" 'sha256-{digest}'" for digest in hashes)
                MutableHeaders(scope=start)["content-security-policy"] = self.policy.format(scripts=allowed)
                await send(start)
                message = {"type": "http.response.body", "body": bytes(body)}
            await send(message)

        await self.app(scope, receive, answer)


class Exchange:
    """One request and its answer, as they pass the guard."""

    def __init__(self, receive: Receive, send: Send, policy: str, clock: Callable[[], float]):
        self._receive, self._send, self._policy, self._clock = receive, send, policy, clock
        self.greeting = ""
        self.started = False
        """Whether an answer is on its way."""
        self.until_started = ExitStack()
        self._ended = False
        self._waited, self._arrived = 0.0, 0
        self._refusal: RefusalError | None = None

    async def receive(self) -> Message:
        """The next part of the request."""
        message = await self._receive()
        self._ended = self._ended or not message.get("more_body", False)
        return message

    async def receive_soon(self) -> Message:
        """The next part of a body. Raises `RefusalError` where it does not come, or all of it comes too slowly: only
        the time counts for which the studio waits, not that which it takes itself."""
        if self._ended:
            return await self.receive()
        left, began = PATIENCE + self._arrived / SLOWEST - self._waited, self._clock()
        try:
            if left <= 0:
                raise asyncio.TimeoutError
            message = await asyncio.wait_for(self.receive(), min(left, PATIENCE))
        except asyncio.TimeoutError:
            raise RefusalError(408, "The request stopped halfway, or came too slowly. Try again.") from None
        self._waited += self._clock() - began
        self._arrived += len(message.get("body", b""))
        return message

    async def read_all(self, most: int, count: Callable[[bytes], None]) -> bytes:
        """The whole body, each part of which is counted as it comes. Raises `RefusalError` where `count` does, above
        `most` bytes, and for one that does not come."""
        body = bytearray()
        while not self._ended:
            part = (await self.receive_soon()).get("body", b"")
            count(part)
            body.extend(part)
            if len(body) > most:
                raise RefusalError(413, f"A request has at most {most >> 20} MB. Send less at a time.")
        return bytes(body)

    async def _throw_away(self, most: int) -> None:
        while most > 0 and not self._ended:
            most -= len((await self.receive_soon()).get("body", b""))

    async def through(self, app: ASGIApp, scope: Scope, body: Receive) -> None:
        """Let Gradio answer. Raises `RefusalError` where `body` does, whatever Gradio makes of that."""

        async def read() -> Message:
            try:
                return await body()
            except RefusalError as refusal:
                self._refusal = refusal
                raise

        try:
            await app(scope, read, self.answer)
        except Exception:
            if self._refusal is None:
                raise
        if self._refusal is not None:
            raise self._refusal

    async def answer(self, message: Message) -> None:
        """Send a part of an answer, with what browsers are told of all of them."""
        if self._refusal and not self.started:
            return
        if message["type"] == "http.response.start":
            self.started = True
            self.until_started.close()
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]  # no other site's page may read it
            if self.greeting:
                headers.append("set-cookie", self.greeting)
            headers.setdefault("content-security-policy", self._policy)
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "same-origin"
            headers["cross-origin-resource-policy"] = "same-origin"
        await self._send(message)

    async def refuse(self, scope: Scope, refusal: RefusalError) -> None:
        """Answer with the sentence: as the text of a page or an upload, else as the JSON that Gradio's page looks into.

        What is still being sent is read on for a while, since a browser shows no answer before it has sent all.
        """
        self._refusal = None
        if scope["type"] == "websocket":
            await self._send({"type": "websocket.close", "code": 1008})
            return
        reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
        if not reads:
            with suppress(RefusalError, asyncio.TimeoutError):
                await asyncio.wait_for(self._throw_away(16 * MAX_BODY), 5)
        if not (scope["path"].endswith("/upload") or (reads and "gradio_api" not in scope["path"])):
            kind, said = "application/json", json.dumps({"detail": refusal.sentence, "error": refusal.sentence})
        else:
            kind, said = "text/plain; charset=utf-8", refusal.sentence
        body = said.encode()
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await self.answer({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self.answer({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


class Guard:
    """ASGI middleware that lets the studio's own requests through."""

    def __init__(self, app: ASGIApp, hosts: Hosts, clients: Clients):
        self.app, self.hosts, self.clients = app, hosts, clients
        self._policy = _policy(hosts).format(scripts="")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": list(scope["headers"])}
        headers, client = MutableHeaders(scope=scope), self._client(scope)
        scope["client"] = (client, 0)  # whose calls wait, and whose downloads count, is told by it too
        exchange = Exchange(receive, send, self._policy, self.clients.clock)
        try:
            if scope["type"] == "websocket":
                raise RefusalError(403, "The studio speaks HTTP alone.")
            self._check_host(headers)
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

    def _client(self, scope: Scope) -> str:
        """Whose request it is, as far as addresses tell: who connected, as Uvicorn has it, which believes proxies on
        this machine and in FORWARDED_ALLOW_IPS; on a Space the last in its proxies' list that is none of theirs."""
        address = (scope.get("client") or ("", 0))[0]
        if self.hosts.space:
            forwarded = Headers(scope=scope).getlist("x-forwarded-for")
            hops = [hop.strip() for value in forwarded for hop in value.split(",")]
            address = next((hop for hop in reversed(hops) if _is_address(hop) and _address(hop).is_global), address)
        if _is_address(address) and _address(address).version == 6:  # who has one has 2**64 of them
            return str(ipaddress.ip_network((_address(address), 64), strict=False))
        return address

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
            await until_answered.enter_async_context(self.clients.room_for(client, _upload_size(headers)))

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
        named = await to_thread.run_sync(_check_json, body, tool) if large else _check_json(body, tool)
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
        if not (self.hosts.space or self.hosts.declared) and any(name in headers for name in PROXIED):
            raise RefusalError(
                403,
                "This came through a proxy or a tunnel, and the studio knows of none. Whoever runs it lists the "
                "name under which browsers reach it in DREAMBOOTH_HOSTS.",
            )

    def _check_site(self, scope: Scope, headers: MutableHeaders) -> None:
        """Refuse what a page of another site sends, all but a visit to the page."""
        if not self._is_foreign(headers):
            return
        visits = scope["method"] in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        if not (visits and self._path(scope) in PAGES):
            raise RefusalError(403, "Another site's page asked for this. Open the studio itself.")

    def _is_foreign(self, headers: MutableHeaders) -> bool:
        if any(not self.hosts.is_own(origin, headers["host"]) for origin in headers.getlist("origin")):
            return True
        return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")

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


class Parts:
    """A multipart body as it passes: files alone, and not too many. Gradio 6.31 takes 1000, and fields into memory."""

    def __init__(self, content_type: str):
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise RefusalError(415, "An upload is multipart/form-data.")
        self._count, self._name, self._disposition = 0, b"", b""
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": self._in_name,
                "on_header_value": self._in_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
            },
        )

    def see(self, chunk: bytes) -> None:
        """Look at the next bytes. Raises `RefusalError`."""
        try:
            self._parser.write(chunk)
        except MultipartParseError:
            raise RefusalError(400, "The upload can't be read.") from None

    def _begin(self) -> None:
        self._count, self._name, self._value, self._disposition = self._count + 1, b"", b"", b""
        if self._count > MAX_PARTS:
            raise RefusalError(413, f"An upload has at most {MAX_PARTS} files. Send fewer at a time.")

    def _in_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _in_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        if b"filename" not in parse_options_header(self._disposition)[1]:
            raise RefusalError(400, "An upload is of files alone.")


def _upload_size(headers: Headers) -> int:
    """The bytes of an upload. Raises `RefusalError` where they are too many, or not told."""
    length = headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,15}", length):
        raise RefusalError(411, "Say how long the upload is (Content-Length).")
    if int(length) > MAX_UPLOAD:
        raise RefusalError(413, f"An upload has at most {MAX_UPLOAD >> 20} MB. Send fewer photos at a time.")
    return int(length)


class _Pairs(list):
    """A JSON object with every key that is written, also one that is written twice."""


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _sessions_in(scope: Scope) -> set[str]:
    """The sessions that a request's address names."""
    paths = re.findall(r"/(?:heartbeat|stream)/([^/]+)", scope["path"])
    return {*paths, *(value for name, value in _query(scope) if name == "session_hash")}


def _check_json(body: bytes, strings: bool) -> set[str]:
    """Refuse what is no JSON, too deep, or names an address in a file's place (`strings`: wherever one begins). What is
    left: the sessions that it names."""
    sessions: set[str] = set()
    if not body:
        return sessions
    try:
        waiting = [(json.loads(body, object_pairs_hook=_Pairs), 1)]
    except (ValueError, RecursionError):
        raise RefusalError(400, "The request is no JSON that can be read.") from None
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise RefusalError(400, f"The request's lists lie more than {MAX_DEPTH} deep in each other.")
        if isinstance(value, _Pairs):
            for key, inner in value:
                if key == "session_hash" and inner is not None:
                    if not isinstance(inner, str):
                        raise RefusalError(400, "A session_hash is a text.")
                    sessions.add(inner)
                if (
                    isinstance(inner, str)
                    and _ADDRESS.match(inner)
                    and (key == "path" or (key == "url" and not inner.startswith(("http://", "https://"))))
                ):  # a file's `url` is where its sender saw it, of which Gradio makes nothing
                    raise RefusalError(400, "A photo is a file that was uploaded, not an address.")
                waiting.append((inner, depth + 1))
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
        elif strings and isinstance(value, str) and re.match(r"\s*https?:", value, re.IGNORECASE):
            raise RefusalError(400, "A photo is the file itself (data:image/png;base64,…), not an address.")
    return sessions


def _policy(hosts: Hosts) -> str:
    frames = "'self' https://huggingface.co" if hosts.space else "'self'"
    return POLICY.replace("{frames}", frames)


def _bytes_in(folder: Path) -> int:
    """What the files below a folder hold, as far as they are still there when they are looked at."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_size
            except OSError:  # just removed
                continue
    return total


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
