"""Whose a run is: the ids of owners, and the marks that runs keep of them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
import secrets
from pathlib import Path

from filelock import FileLock

from dreambooth.errors import RunError
from dreambooth.files import atomic_file

FEWEST = 8
"""Different characters in an id: 32 random hexadecimal digits have fewer once in ten million times."""
DOCUMENTED = ("choose-20-to-64-letters-and-digits-yourself",)
"""Ids that this program's documentation once showed, which everybody knows."""
MAKE_ONE = "API callers make one up, with Python's secrets.token_urlsafe(24), say, and keep it."

_OWNER = re.compile(r"[A-Za-z0-9_-]{20,64}")


class Visitor(str):
    """An owner id that was found here, of an account, a browser or a page; its colon is in none that a caller gives."""


def new_owner() -> str:
    """A fresh id, as an API caller makes one up; whoever knows it can open their runs."""
    return secrets.token_urlsafe(24)


def checked_owner(owner: object) -> str:
    """The id itself; raises `RunError` where it is none, or where others could give the same."""
    if isinstance(owner, Visitor):
        return owner
    if not (isinstance(owner, str) and _OWNER.fullmatch(owner)):
        raise RunError("This is no owner id: it has 20 to 64 letters, digits, - and _.", MAKE_ONE)
    if owner in DOCUMENTED or len(set(owner)) < FEWEST:
        raise RunError("This owner id is easily guessed, and whoever knows it can open your runs.", MAKE_ONE)
    return owner


def mark(owner: str) -> str:
    """What a run keeps of its owner's id, so that reading a run directory does not give the id away."""
    return hashlib.sha256(owner.encode()).hexdigest()


def mark_of(run: Path) -> str:
    """The mark in a run's directory; empty for what was made on the command line, and for no run at all."""
    try:
        return (run / "owner").read_text("ascii", "backslashreplace")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def account_id(name: str, root: Path) -> Visitor:
    """The owner id of an account's runs in `root`, not to be guessed from its name: the same on every device, until
    `rotate` gives it another."""
    return _account_ids(name, root)[-1]


def settle(name: str, root: Path) -> None:
    """Give an account a nonce, where it has none, and its runs that bear a mark of former ids that of the present."""
    if not _nonces(name, root):
        _add_nonce(name, root, first=True)
    *former, present = _account_ids(name, root)
    marks = {mark(one) for one in former}
    for run in root.glob("[!.]*"):
        if mark_of(run) in marks:
            with contextlib.suppress(FileNotFoundError), atomic_file(run / "owner") as partial:  # deleted meanwhile
                partial.write_text(mark(present))


def rotate(name: str, root: Path) -> None:
    """Give an account another owner id, with which it sees the same runs; the former opens nothing any more.

    Raises `RunError` for an account that was never here.
    """
    if not ((root / ".login-key").exists() and _nonces(name, root)):
        raise RunError(
            f"No account {name!r} has logged in here.",
            "Give its name as the Hub writes it, and look at DREAMBOOTH_RUNS.",
        )
    _add_nonce(name, root)
    settle(name, root)


def _account_ids(name: str, root: Path) -> list[Visitor]:
    """All that an account has had, the present one last; first the one of before there were nonces, without a colon."""
    made = [f"account:{digest(root, 'account', nonce, name)}" for nonce in _nonces(name, root)]
    return [Visitor(one) for one in (digest(root, name), *made)]


def _nonces(name: str, root: Path) -> list[str]:
    try:
        return _account_file(name, root).read_text().split()
    except FileNotFoundError:
        return []


def _add_nonce(name: str, root: Path, *, first: bool = False) -> None:
    path = _account_file(name, root)
    with FileLock(root / ".login-key.lock"):
        if first and _nonces(name, root):  # another login at the same time was sooner
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        nonces = [*_nonces(name, root), secrets.token_urlsafe(16)]
        with atomic_file(path) as partial:
            partial.chmod(0o600)
            partial.write_text("\n".join(nonces))


def _account_file(name: str, root: Path) -> Path:
    return root / ".accounts" / digest(root, "file", name)


def digest(root: Path, *words: str) -> str:
    """What only who has this studio's key can make of the words, as 43 letters."""
    made = hmac.digest(_key(root), "\0".join(words).encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(made).decode().rstrip("=")


def _key(root: Path) -> bytes:
    """A secret of this studio, kept beside its runs so that a restart changes nobody's id."""
    path = root / ".login-key"
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".login-key.lock"):
        if not path.exists():
            with atomic_file(path) as partial:
                partial.chmod(0o600)
                partial.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()
