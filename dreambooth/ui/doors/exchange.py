"""One request and its answer: how fast a body comes, and what browsers are told of every answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack, suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreambooth.ui.doors import RefusalError

MAX_BODY, MAX_TOOL_BODY = 2**20, 32 * 2**20
"""The most bytes of a request: what the page sends is some kilobytes. An MCP client sends its photos in it, too."""
PATIENCE, SLOWEST = 30, 100_000
"""Seconds for which a body may not go on, and may be late in all; the bytes that it brings in each further one."""


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
