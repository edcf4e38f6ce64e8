"""The wire of the loopback Hub: one connection, what arrives counted, answers sent, and faults struck on purpose."""

import html
import io
import json
import re
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BLOCK = 1 << 20


class RefusalError(Exception):
    """An answer that is an error, with the Hub's X-Error-Code where it sends one."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers | ({"X-Error-Code": code} if code else {})


class CutError(Exception):
    """The connection is to be cut now."""


@dataclass
class Request:
    """What arrived, and what was answered."""

    method: str
    path: str  # with the query
    token: str | None
    user: str | None
    received: int = 0  # bytes of the body
    sent: int = 0
    status: int = 0  # 0: cut


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match. `LoopbackHub.fail` says how."""

    match: re.Pattern[str]
    how: int | str
    after: int
    times: int
    arrived: threading.Event = field(default_factory=threading.Event)  # a request met it
    released: threading.Event = field(default_factory=threading.Event)  # a slow one goes on


ROUTES: list[tuple[str, re.Pattern[str], Callable]] = []


def route(method: str, pattern: str):
    """Answer `method` requests to `pattern` with the function; {repo} is looked up, other groups are passed as text."""
    for name, regex in {
        "{repo}": r"(?:(?P<kind>models|datasets|spaces)/)(?P<name>[^/]+/[^/]+)",
        "{page}": r"(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+?)",
        "{rev}": r"(?P<rev>[^/]+)",
        "{path}": r"(?P<path>.+)",
    }.items():
        pattern = pattern.replace(name, regex)

    def mark(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return mark


def html_page(title: str, body: str, base: str = "") -> tuple[int, bytes, dict[str, str]]:
    """An answer for a browser; relative links in it start at `base`."""
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><base href="{base}">'
    return 200, (head + body).encode(), {"Content-Type": "text/html; charset=utf-8"}


class Wire(BaseHTTPRequestHandler):
    """One connection. A route's function returns what is sent as JSON, or (status, body, headers).

    Bodies come with their length: the client sends no chunked ones.
    """

    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        token, self.access = self.hub.access(self.headers)
        self.record = Request(self.command, self.path, token, self.access and self.access.user)
        self.left = int(self.headers.get("Content-Length") or 0)
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        with self.hub.lock:
            self.hub.requests.append(self.record)
        self.fault = self.hub.next_fault(f"{self.command} {self.path}")
        lost = self.fault is not None and self.fault.how == "lost"
        if lost:
            self.fault = None
        try:
            answer = self._answer_to(url.path)
            for _ in self.blocks():  # whatever of the body nobody wanted
                pass
            if lost:
                raise CutError
            self._send(*answer)
        except CutError:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:  # the client has gone
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _answer_to(self, path: str) -> tuple[int, bytes | Path, dict[str, str]]:
        try:
            self._pass(0)
            for method, pattern, function in ROUTES:
                found = pattern.fullmatch(path)
                if found and method == self.command.replace("HEAD", "GET"):
                    groups = {name: value and unquote(value) for name, value in found.groupdict().items()}
                    answer = function(self, **self.checked(path, groups))
                    return answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode(), {})
            raise RefusalError(404, "Not found", "RepoNotFound" if path.startswith("/api/") else None)
        except RefusalError as refusal:
            headers = refusal.headers | {"X-Error-Message": refusal.message.replace("\n", " ")}
            return refusal.status, json.dumps({"error": refusal.message}).encode(), headers

    def checked(self, path: str, groups: dict) -> dict:
        """What a route's function gets. RefusalError: this visitor may not come here at all."""
        return groups

    def _pass(self, done: int) -> int:
        """Strike, where the fault is due after `done` bytes; else how many more may go in one piece."""
        if self.hub.down:
            raise CutError
        if self.fault is None or done < self.fault.after:
            return min(BLOCK, self.fault.after - done) if self.fault else BLOCK
        fault, self.fault = self.fault, None
        fault.arrived.set()
        if fault.how == "cut":
            raise CutError
        if fault.how != "slow":
            raise RefusalError(fault.how, f"The Hub answers {fault.how}")
        fault.released.wait()
        return BLOCK

    def blocks(self) -> Iterator[bytes]:
        """What is left of the request's body, piece by piece."""
        while self.left:
            block = self.rfile.read(min(self.left, self._pass(self.record.received)))
            if not block:
                raise CutError  # the client broke off
            self.left -= len(block)
            self.record.received += len(block)
            self._pass(self.record.received)
            yield block

    def json(self) -> dict:
        return json.loads(b"".join(self.blocks()) or b"{}")

    def form(self) -> dict[str, list[str]]:
        return parse_qs(b"".join(self.blocks()).decode())

    def _send(self, status: int, body: bytes | Path, headers: dict[str, str]) -> None:
        size = body.stat().st_size if isinstance(body, Path) else len(body)
        start, end = 0, size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if status == 200 else None
        if wanted:
            start, end, status = int(wanted[1]), min(int(wanted[2] or size - 1) + 1, size), 206
            headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        self.send_response(status)
        common = {"Content-Type": "application/json", "X-Request-Id": secrets.token_hex(8)}
        for name, value in (common | headers | {"Content-Length": str(end - start)}).items():
            self.send_header(name, value)
        self.end_headers()
        self.record.status = status
        if self.command == "HEAD":
            return
        with body.open("rb") if isinstance(body, Path) else io.BytesIO(body) as source:
            source.seek(start)
            while self.record.sent < end - start:
                block = source.read(min(end - start - self.record.sent, self._pass(self.record.sent)))
                self.wfile.write(block)
                self.record.sent += len(block)
