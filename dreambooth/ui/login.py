"""Who a visitor is: their Hugging Face account on a Space with login, a random id kept by the browser otherwise."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

import gradio as gr
from filelock import FileLock

from dreambooth.errors import HubError
from dreambooth.files import atomic_file
from dreambooth.hub import Token, local_token


def offered() -> bool:
    """Whether visitors can log in: on a Space whose front matter says `hf_oauth: true`."""
    return bool(os.environ.get("SPACE_ID") and os.environ.get("OAUTH_CLIENT_ID"))


def for_oneself(*, public: bool) -> bool:
    """Whether who uses the studio is who runs it, whose token is the machine's: not public, and for this machine alone.

    `GRADIO_SERVER_NAME`, `GRADIO_SHARE` and `DREAMBOOTH_HOSTS` say whether others reach it; without the last the guard
    lets nobody through who asks for it by another name than this machine's.
    """
    host, shared = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SHARE", "")
    within = (host in ("localhost", "::1") or host.startswith("127.")) and shared.lower() != "true"
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


def owner_of(name: str, root: Path) -> str:
    """The owner id of an account's runs in `root`: always the same, and not to be guessed from the name."""
    digest = hmac.digest(_key(root), name.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _key(root: Path) -> bytes:
    """A secret of this studio, kept beside its runs so that a restart changes nobody's id."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / ".login-key"
    with FileLock(root / ".login-key.lock"):
        if not path.exists():
            with atomic_file(path) as partial:
                partial.chmod(0o600)
                partial.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()
