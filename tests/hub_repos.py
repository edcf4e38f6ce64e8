"""What the loopback Hub keeps: repos with their commits and files, and what a token may do with them."""

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

from tests.hub_wire import RefusalError


@dataclass(frozen=True)
class Blob:
    """One version of a file: bytes, git's hash (of the pointer, for a large file), and how to read it."""

    size: int
    oid: str
    read: Callable[[], bytes] = field(repr=False)
    sha256: str | None = None  # of large files alone
    xet: str | None = None  # the hash of a file that is in the xet store


@dataclass
class Commit:
    oid: str
    message: str
    author: str
    time: float
    files: dict[str, Blob]


@dataclass
class Repo:
    """A repo: `files` are its newest commit's."""

    kind: str
    id: str
    private: bool = False
    gated: str | bool = False
    granted: set[str] = field(default_factory=set)  # who has passed the gate
    app: str | None = None  # the application that created it
    downloads: int = 0
    likes: int = 0
    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)  # further branches and tags: name -> commit

    @property
    def page(self) -> str:
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    @property
    def files(self) -> dict[str, Blob]:
        return self.commits[-1].files

    def read(self, path: str) -> bytes:
        return self.files[path].read()

    @property
    def card(self) -> str:
        return self.read("README.md").decode() if "README.md" in self.files else ""

    @property
    def card_data(self) -> dict:
        front = re.match(r"\A---\r?\n(.*?)\r?\n---", self.card, re.DOTALL)
        return (yaml.safe_load(front[1]) or {}) if front else {}

    @property
    def tags(self) -> list[str]:
        data, tags = self.card_data, []
        base = data.get("base_model") or []
        for prefix, value in [
            ("", data.get("tags")),
            ("", data.get("library_name")),
            ("", data.get("pipeline_tag")),
            ("license:", data.get("license")),
            ("base_model:", base),
        ]:
            tags += [f"{prefix}{one}" for one in ([value] if isinstance(value, str) else value or [])]
        return list(dict.fromkeys(tags))

    def commit(self, message: str, files: dict[str, Blob], author: str) -> Commit:
        self.commits.append(Commit(secrets.token_hex(20), message, author, time.time(), files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        oid = self.commits[-1].oid if revision == "main" else self.refs.get(revision, revision)
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass(frozen=True)
class Access:
    """What a token may do."""

    user: str
    scopes: frozenset[str]
    app: str


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
