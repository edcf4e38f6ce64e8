"""Who acts on the Hub, and what goes wrong there, in plain words that never hold a token."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils._http import default_client_factory

from dreambooth.errors import ConfigError, DreamBoothError, HubError, first_line

TAG = "dreambooth-studio"
"""The tag that every repo made here bears, by which they are found again."""

SILENCE = 120.0
"""Seconds without a byte after which the Hub counts as not answering; the client itself would wait for ever."""

Token = str | Literal[False] | None
"""Whose eyes a request is made with: a person's token; False for nobody's; None for the machine's own (`HF_TOKEN` or
`hf auth login`), which must never serve a visitor."""

_NO_TOKEN_HINT = "Set HF_TOKEN, or log in with `hf auth login`."
_LOG_IN = "Log in again: on the page log out and in; on your machine `hf auth login`."
_QUOTED = 200  # characters of the Hub's own words that a message repeats


# Of a large file whose upload breaks, the upload library sends again what it has not noted on disk. It notes each block
# (up to 64 MB) with this, else every 64 blocks or 20 seconds. It reads this when it first uploads or downloads.
os.environ.setdefault("HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_MAX_COUNT", "1")


def _patient_client() -> Any:  # httpx's, or its successor's
    client = default_client_factory()
    client.timeout = SILENCE
    return client


set_client_factory(_patient_client)


@dataclass(frozen=True)
class Account:
    """Somebody on the Hub, confirmed by the Hub itself."""

    name: str
    orgs: tuple[str, ...]
    """The organisations they may write to."""
    token: str = field(repr=False)


def visitors_cache() -> Path:
    """Where models are kept that were fetched for a visitor, with their token or nobody's.

    They lie apart since who acts in the machine's own name finds what is in the shared cache without asking the Hub,
    and since nothing but such models may be removed to make room for others.
    """
    return Path(constants.HF_HUB_CACHE).with_name("hub-of-visitors")


def local_token() -> str:
    """The token of who runs this machine; raises `HubError` if there is none."""
    try:
        token = get_token()
    except Exception as error:  # a token that must be refreshed first, or is exchanged for another in CI
        raise hub_failure(error, "find your token", None) from None
    if not token:
        raise HubError("There is no Hugging Face token on this machine.", _NO_TOKEN_HINT)
    return token


def sign_in(token: str) -> Account:
    """The account that a token belongs to, asked from the Hub: what anybody says of themselves could be made up.

    Raises `HubError` for a missing or refused token, and if the Hub can't be reached.
    """
    if not isinstance(token, str) or not token.strip():
        raise HubError("There is no Hugging Face token.", _NO_TOKEN_HINT)
    token = token.strip()
    if not re.fullmatch(r"[!-~]+", token):  # else the HTTP library would quote it
        raise HubError("This is no Hugging Face token: it holds a character that none has.", _LOG_IN)
    with plain_failures("confirm your login", token):
        me = HfApi().whoami(token=token)
    writable = [org["name"] for org in me.get("orgs") or () if org.get("roleInOrg") != "read"]
    return Account(me["name"], tuple(writable), token)


def check_repo_id(text: str, account: Account) -> str:
    """OWNER/NAME for what a person typed, NAME or OWNER/NAME, as `account` may write it.

    Raises `ConfigError` for what the Hub would not take, and for an owner that is neither `account` nor one of its
    organisations.
    """
    text = text.strip()
    owner, _, name = text.rpartition("/")
    try:
        if not name:
            raise HFValidationError("it has no name")
        validate_repo_id(text)
    except HFValidationError:
        raise ConfigError(
            f"repo id {text[:_QUOTED]!r}: the Hub takes no such name.",
            "Give NAME or OWNER/NAME of letters, digits, single - and ., and _; at most 96.",
        ) from None
    owners = {known.casefold(): known for known in (account.name, *account.orgs)}
    if owner and owner.casefold() not in owners:
        raise ConfigError(
            f"repo id {text!r}: {account.name} may not write to {owner}.",
            f"Choose one of {', '.join(owners.values())}.",
        )
    return f"{owners[owner.casefold()] if owner else account.name}/{name}"


@contextmanager
def plain_failures(doing: str, token: Token) -> Iterator[None]:
    """What goes wrong inside the block is raised as `hub_failure` says, without the trace of the client's own error.

    Errors of ours go through as they are, and so does an `OSError` of this machine's disk.
    """
    try:
        yield
    except DreamBoothError:
        raise
    except Exception as error:  # the HTTP and upload libraries' own errors come through
        cause = _root_cause(error)
        raise (cause if _of_the_disk(cause) else hub_failure(cause, doing, token)) from None


def hub_failure(error: Exception, doing: str, token: Token) -> HubError:
    """What to raise for `error`, which the Hub's client met while it was `doing` something ("upload anna/dog").

    Raise it `from None`: the client's own errors carry the request, and so the token.
    """
    cause = _root_cause(error)
    status, said = _status(cause), _said(cause, token)
    hints = {
        400: ("The Hub does not take it", "Change what it names."),
        401: ("The Hub does not accept the login", _LOG_IN),
        402: ("The Hub asks for a payment", "Look at the plan and storage of the account."),
        403: (
            "The login may not do this",
            "Use a token with the right to write, or log in again and allow repos to be made in that account's name.",
        ),
        404: ("It is not there, or the login may not see it", "Check the spelling, and who may see it."),
        408: ("The Hub waited too long for us", "Try again; what arrived is kept."),
        409: ("Something else changed it at the same time", "Try again."),
        412: ("Something else changed it at the same time", "Try again."),
        413: ("It is too large for the Hub", "Publish it with 16-bit weights, or free storage of the account."),
        429: ("The Hub asks for fewer requests", "Wait a few minutes, then try again."),
    }
    if isinstance(cause, OfflineModeIsEnabled):
        reason, hint = "HF_HUB_OFFLINE is set on this machine", "Unset it."
    elif status in hints:
        reason, hint = hints[status]
    elif status:
        reason = "The Hub is in trouble" if status >= 500 else "The Hub refuses"
        hint = "Try again later; what arrived is kept."
    elif _is_timeout(cause):
        reason, hint = "The Hub does not answer", "Check the connection and try again; what arrived is kept."
    else:
        reason, hint = "The connection to the Hub failed", "Check it and try again; what arrived is kept."
    told = ", ".join(part for part in (str(status or ""), said) if part)
    return HubError(f"Could not {doing}. {reason}{f' ({told})' if told else ''}.", hint)


def redact(text: str, token: Token) -> str:
    """`text` without `token`, and without anything else that looks like one."""
    if token:
        text = text.replace(token, "…")
    return re.sub(
        r"\b(?:hf|hf_oauth|api_org|xet)_[\w.\-]{8,}|\beyJ[\w\-]+\.[\w\-]+\.[\w\-]*|(?i:bearer)\s+\S+", "…", text
    )


def _root_cause(error: Exception) -> Exception:
    """The first error in the chain of causes that has an answer of the Hub, else the last one."""
    while not isinstance(error, HfHubHTTPError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _status(error: Exception) -> int | None:
    """The HTTP status of the answer; the upload library has it in its text alone."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code
    found = re.search(r"\b(?:status|HTTP|code)\D{0,40}\b([45]\d\d)\b", str(error))
    return int(found[1]) if found else None


def _said(error: Exception, token: Token) -> str:
    """The first line of the Hub's own words, or of what broke the connection; redacted."""
    if isinstance(error, HfHubHTTPError):
        words = (error.server_message or "").strip().split("\n")[0].rstrip(". ")
    else:  # the upload library's ends with an address that tells nobody anything
        words = "" if _status(error) else re.sub(r"\W*(?:for url|domain:)?\W*https?://\S*", "", first_line(error))
    return redact(words, token)[:_QUOTED]


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or "Timeout" in type(error).__name__ or "timed out" in str(error)


def _of_the_disk(error: Exception) -> bool:
    network = (HfHubHTTPError, ConnectionError, TimeoutError)  # OSErrors, too
    return isinstance(error, OSError) and not isinstance(error, network)
