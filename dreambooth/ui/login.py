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
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from dreambooth.errors import HubError, first_line
from dreambooth.files import atomic_file


def offered() -> bool:
    """Whether visitors can log in: on a Space whose front matter says `hf_oauth: true`."""
    return bool(os.environ.get("SPACE_ID") and os.environ.get("OAUTH_CLIENT_ID"))


def account(token: gr.OAuthToken) -> str:
    """The account's name, asked from the Hub with the token: what a page says of itself could be made up.

    Raises `HubError` if the Hub can't be reached or refuses the token.
    """
    try:
        return HfApi().whoami(token=token.token)["name"]
    except (HfHubHTTPError, OSError) as error:
        reason = first_line(error).replace(token.token, "…")
        raise HubError(f"The Hub does not confirm your login ({reason}).", "Log out and in again.") from None


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
