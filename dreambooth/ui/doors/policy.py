"""What the page may load and run in a browser."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreambooth.ui.doors.hosts import Hosts

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'{scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; worker-src 'self' blob:; "
    "connect-src 'self'; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors {frames}"
)
"""What the page may load and run. Gradio's frontend makes functions of text for the `js` of events and of HTML
components ('unsafe-eval') and sets styles of single elements ('unsafe-inline' there). Of scripts within the page only
those run that came with the answer: handlers in an attribute, as an injected picture has them, never do."""


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


def policy_of(hosts: Hosts) -> str:
    """The policy of this studio, with a place for the hashes of `scripts`."""
    frames = "'self' https://huggingface.co" if hosts.space else "'self'"
    return POLICY.replace("{frames}", frames)
