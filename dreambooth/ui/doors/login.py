"""Who a visitor is: a Hugging Face account where they are logged in, else the browser, else the page while it is open.

No page holds an id: it is found anew at each call, from what scripts can't read (the login's session, a cookie). An API
caller, who has neither, makes an id up and gives it as `owner`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr

from dreambooth.errors import HubError, RunError
from dreambooth.hub import Token, local_token, sign_in
from dreambooth.runs.owners import MAKE_ONE, Visitor, account_id, checked_owner, digest, settle

COOKIE = "dreambooth-visitor"
"""The browser's own id, which no script can read: as the guard passes it on, whatever browsers call it."""
REMEMBERED = 600.0
"""Seconds for which the name behind a token is known without asking the Hub again: a page asks once a second."""
UNANSWERED = 15.0
"""Seconds for which the Hub is not asked again about a token that it did not confirm."""
MOST_REMEMBERED = 10_000
"""Tokens of which something is known, at most."""
NO_COOKIE = """<p class="aside">This browser keeps no cookie of this page, so your runs are here for as long as the page
is open.</p>"""

_COOKIE = re.compile(r"[A-Za-z0-9_-]{32}")


# ---------------------------------------------------------------------------------------------------------- the token


def offered() -> bool:
    """Whether visitors can log in: on a Space whose front matter says `hf_oauth: true`."""
    return bool(os.environ.get("SPACE_ID") and os.environ.get("OAUTH_CLIENT_ID"))


def shared() -> bool:
    """Whether a link is to be made by which anybody gets to the studio, as `GRADIO_SHARE` alone says."""
    return os.environ.get("GRADIO_SHARE", "").lower() == "true"


def for_oneself(*, public: bool) -> bool:
    """Whether who uses the studio is who runs it, whose token is the machine's: not public, and for this machine alone.

    `GRADIO_SERVER_NAME`, `GRADIO_SHARE` and `DREAMBOOTH_HOSTS` say whether others reach it; without the last the guard
    lets nobody through who asks for it by another name than this machine's.
    """
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    within = (host in ("localhost", "::1", "[::1]") or host.startswith("127.")) and not shared()
    return within and not (public or os.environ.get("SPACE_ID") or os.environ.get("DREAMBOOTH_HOSTS", "").strip())


def acting_token(token: gr.OAuthToken | None, *, public: bool) -> str:
    """The token with which something is made on the Hub: the visitor's, and the machine's only `for_oneself`.

    Raises `HubError` where there is none.
    """
    if token and token.token:
        return token.token
    if for_oneself(public=public):
        return local_token()
    if offered():
        raise HubError("You are not logged in.", "Log in with the button at the top of the page.")
    raise HubError(
        "Nobody can log in to this studio.",
        "API callers give a token: Client(…, oauth_token=…); who runs it can publish with `python -m dreambooth push`.",
    )


def reading_token(token: gr.OAuthToken | None, *, public: bool) -> Token:
    """The token with which something is fetched from the Hub: as `acting_token`, but a visitor may be nobody."""
    if token and token.token:
        return token.token
    return None if for_oneself(public=public) else False


# ---------------------------------------------------------------------------------------------------------- the owner


def cookie_of(request: gr.Request) -> str:
    """The browser's own id; empty where it keeps none, and for what the studio has not given out."""
    return checked_cookie(dict(request.cookies or {}).get(COOKIE))


def checked_cookie(value: object) -> str:
    """The value itself where it has the form of those that the guard gives out; else nothing."""
    return value if isinstance(value, str) and _COOKIE.fullmatch(value) else ""


def new_cookie() -> str:
    """A value for a browser that has none."""
    return secrets.token_urlsafe(24)


@dataclass
class _Confirmed:
    """What is known of a token's account."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the Hub is asked, which a page's events need not do all at once."""
    until: float = 0.0
    name: str = ""
    problem: HubError | None = None


class Visitors:
    """Who the visitors of one studio are, whose runs are in `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._salt = secrets.token_bytes(32)
        self._confirmed: dict[bytes, _Confirmed] = {}  # by a hash of the token, which is kept nowhere
        self._lock = threading.Lock()

    def visitor(self, owner: object, request: gr.Request, token: gr.OAuthToken | None) -> str:
        """Whose runs a call acts on: those of `owner`, where a caller gives one; else of the token's account; else of
        the browser; else of the page for as long as it is open.

        Raises `RunError` for an owner that is none, and where there is none of all these, `HubError` where the Hub does
        not confirm the account: nobody's runs are taken for another's.
        """
        if owner not in ("", None):
            return checked_owner(owner)
        if token and token.token:
            return account_id(self.account(token.token), self.root)
        if cookie := cookie_of(request):
            return Visitor(f"browser:{cookie}")
        if "origin" in dict(request.headers) and request.session_hash:  # a browser's; of others no id would last
            return Visitor(f"page:{digest(self.root, 'page', request.session_hash)}")
        raise RunError("This call has no owner.", MAKE_ONE)

    def account(self, token: str) -> str:
        """The name of a token's account: asked of the Hub, then remembered for a while.

        Raises `HubError` where the Hub does not confirm it, or does not answer.
        """
        known = self._known(token)
        with known.lock:
            if known.until < time.monotonic():
                try:
                    known.name, known.problem = sign_in(token).name, None
                    settle(known.name, self.root)
                except HubError as error:
                    known.problem = error
                known.until = time.monotonic() + (UNANSWERED if known.problem else REMEMBERED)
            if known.problem:
                raise HubError(known.problem.message, known.problem.hint)
            return known.name

    def _known(self, token: str) -> _Confirmed:
        key = hmac.digest(self._salt, token.encode(errors="replace"), hashlib.sha256)
        with self._lock:
            if len(self._confirmed) >= MOST_REMEMBERED and key not in self._confirmed:
                now = time.monotonic()
                self._confirmed = {key: one for key, one in self._confirmed.items() if one.until > now}
                while len(self._confirmed) >= MOST_REMEMBERED:
                    self._confirmed.pop(next(iter(self._confirmed)))
            return self._confirmed.setdefault(key, _Confirmed())
