"""A Hugging Face Hub on loopback: what the real huggingface_hub client asks, answered as the Hub answers it.

Repos with commits, branches and visibility; tokens with scopes; large files over xet and over LFS (basic, multipart);
model lists; login by OAuth; faults on purpose. The shapes of answers and the codes of refusals are those that the
client's own source reads. What a test needs: the fixture `hub` below and `LoopbackHub`'s public methods.
"""

import base64
import hashlib
import html
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import huggingface_hub
import pytest
import yaml
from markdown_it import MarkdownIt

from tests.hub_login import APP, HOUR, SECRET, Login
from tests.hub_repos import Access, Blob, Commit, Repo, git_hash
from tests.hub_wire import BLOCK, Fault, RefusalError, Request, Wire, html_page, route
from tests.hub_xet import XetStore

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"  # every new repo has such a file
LARGE_SUFFIXES = {".safetensors", ".bin", ".pt", ".ckpt", ".npz", ".zip"}
REGULAR_LIMIT = 10_000_000  # bytes: the Hub takes larger files as large files alone


class LoopbackHub:
    """The server, its repos and accounts. `with LoopbackHub(folder) as hub:` serves until the block ends."""

    def __init__(self, folder: Path, xet: bool = False):
        self.folder, self.xet = folder, xet
        self.repos: dict[tuple[str, str], Repo] = {}
        self.orgs: dict[str, tuple[str, ...]] = {}
        self.tokens: dict[str, Access] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.xet_store = XetStore(folder / "xorbs")
        self.xet_tokens: dict[str, str] = {}  # the store's own tokens: "read" or "write"
        self.part_size: int | None = None  # bytes of one part of an LFS upload; None: a file is one part
        self.login: str | None = None  # who sits before every browser; None: the login page asks
        self.logins: dict[str, dict[str, str]] = {}  # OAuth codes -> what was asked and by whom
        self.cookies: dict[str, str] = {}  # browsers that have logged in -> user
        self.key = None  # signs identities, once there is a login
        self.down = False  # every connection breaks, those under way too
        self.lock = threading.RLock()
        (folder / "large").mkdir(parents=True)
        (folder / "parts").mkdir()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # Signed addresses of large files are on another origin, as on the Hub, so that no token is sent there.
        self.storage = f"http://localhost:{self.server.server_port}/storage"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for fault in self.faults:
            fault.released.set()
        self.server.shutdown()
        self.server.server_close()

    # What tests set up

    def add_user(
        self,
        name: str,
        token: str | None = None,
        scopes: tuple[str, ...] = ("contribute-repos",),
        orgs: tuple[str, ...] = (),
        app: str = APP,
    ) -> str:
        """Give `name` a token with these OAuth scopes ("write" and "read": a classic token's) and return it."""
        token = token or "hf_" + secrets.token_hex(17)
        self.orgs[name] = tuple(orgs) or self.orgs.get(name, ())
        self.tokens[token] = Access(name, frozenset(scopes), app)
        return token

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, bytes | str] | Path = (),
        private: bool = False,
        gated: str | bool = False,
        kind: str = "model",
        app: str | None = None,
    ) -> Repo:
        """Put a repo there, from texts and bytes by path or from a folder. `app`: who created it (None: its owner)."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
        repo = Repo(kind, repo_id, private, "auto" if gated is True else gated, app=app)
        repo.commit("initial commit", {".gitattributes": self._blob(".gitattributes", ATTRIBUTES)}, repo_id)
        if files:
            blobs = {k: self._blob(k, v.encode() if isinstance(v, str) else v) for k, v in dict(files).items()}
            repo.commit("Upload files", repo.files | blobs, repo_id.split("/")[0])
        self.repos[kind, repo_id] = repo
        return repo

    def fail(self, match: str, how: int | str = "cut", *, after: int = 0, times: int = 1) -> Fault:
        """Spoil the next `times` requests whose "METHOD /path?query" the regular expression `match` finds.

        `how` is a status to answer with, "cut" (the connection breaks), "lost" (done, but the answer never comes) or
        "slow" (nothing moves until `.released.set()`); "cut" and "slow" strike after that many bytes of the request's
        body (of the answer's, for a GET). The fault's `.arrived` is set when it strikes.
        """
        fault = Fault(re.compile(match), how, after if how in ("cut", "slow") else 0, times)
        with self.lock:
            self.faults.append(fault)
        return fault

    # What tests look at

    def bytes_received(self, match: str = "") -> int:
        """Bytes of all requests' bodies so far, broken ones included, where "METHOD /path?query" has `match`."""
        return sum(r.received for r in list(self.requests) if re.search(match, f"{r.method} {r.path}"))

    def environment(self, token: str | None = None) -> dict[str, str]:
        """The whole environment of a process that uses this Hub, with its own cache, and no token but this one."""
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.folder / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": str(int(not self.xet)),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
        }
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_OFFLINE"))}
        return clean | own | ({"HF_TOKEN": token} if token else {})

    def oauth_environment(self, login: str | None = None, scopes: str = "openid profile contribute-repos") -> dict:
        """The environment of a studio that runs as a Space and logs its visitors in here.

        Every visitor is `login`; without one, the login page offers the names that `add_user` was given.
        """
        self.login = login
        space = {
            "SYSTEM": "spaces",
            "SPACE_ID": "studio/space",
            "OAUTH_CLIENT_ID": APP,
            "OAUTH_CLIENT_SECRET": SECRET,
            "OAUTH_SCOPES": scopes,
            "OPENID_PROVIDER_URL": self.url,
        }
        return self.environment() | space

    # Who may do what

    def access(self, headers) -> tuple[str | None, Access | None]:
        """Whose request it is: a token's, or that of a browser that has logged in here (which may only look)."""
        token = headers.get("Authorization", "").removeprefix("Bearer ") or None
        user = self.cookies.get(headers.get("Cookie", "").partition("hub=")[2].partition(";")[0])
        browser = Access(user, frozenset({"read"}), "browser") if user and not token else None
        return token, self.tokens.get(token, browser)

    def readable(self, repo: Repo, access: Access | None) -> bool:
        may = {"read", "read-repos", "write", "write-repos", "manage-repos"}
        return not repo.private or self._allowed(repo, access, may)

    def writable(self, repo: Repo, access: Access | None) -> bool:
        return self._allowed(repo, access, {"write", "write-repos", "manage-repos"})

    def _allowed(self, repo: Repo, access: Access | None, scopes: set[str]) -> bool:
        made_here = access is not None and "contribute-repos" in access.scopes and repo.app == access.app
        return self.owned(repo, access) and (made_here or bool(access.scopes & scopes))

    def owned(self, repo: Repo, access: Access | None) -> bool:
        return access is not None and repo.id.split("/")[0] in (access.user, *self.orgs.get(access.user, ()))

    # Files

    def _blob(self, path: str, data: bytes) -> Blob:
        if self._is_large(path, len(data), data[:512]):
            sha256 = hashlib.sha256(data).hexdigest()
            (self.folder / "large" / sha256).write_bytes(data)
            return self.large(sha256)
        return Blob(len(data), git_hash(data), lambda: data)

    def large(self, sha256: str) -> Blob | None:
        """The large file of that hash, or None where it was never uploaded."""
        file, stored = self.folder / "large" / sha256, self.xet_store.by_sha256.get(sha256)
        if stored is None and not file.is_file():
            return None
        size = stored.size if stored else file.stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        read = partial(self._read_xet, stored.hash, size) if stored else file.read_bytes
        return Blob(size, git_hash(pointer), read, sha256, stored and stored.hash)

    def _read_xet(self, hash_: str, size: int) -> bytes:
        import hf_xet

        target, token = self.folder / secrets.token_hex(8), secrets.token_hex(8)
        self.xet_tokens[token] = "read"
        session = hf_xet.XetSession()
        with session.new_file_download_group(
            endpoint=f"{self.url}/cas", token=token, token_expiry_unix_secs=int(time.time()) + HOUR
        ) as group:
            group.start_download_file(hf_xet.XetFileInfo(hash_, size), str(target))
        return target.read_bytes()

    @staticmethod
    def _is_large(path: str, size: int, sample: bytes) -> bool:
        return size > 0 and (Path(path).suffix in LARGE_SUFFIXES or size > REGULAR_LIMIT or b"\0" in sample)

    def next_fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.match.search(line):
                    fault.times -= 1
                    return fault
        return None


class Handler(Login, Wire):
    """The Hub's routes. {repo} and {page} are looked up: what this visitor must not see is not there."""

    def checked(self, path: str, groups: dict) -> dict:
        if self.record.token and self.access is None and not path.startswith(("/cas/", "/oauth/")):
            raise RefusalError(401, "Invalid credentials in Authorization header")
        if "name" in groups:
            groups = {"repo": self._repo(groups.pop("kind"), groups.pop("name"))} | groups
        return groups

    def _repo(self, kind: str | None, name: str) -> Repo:
        repo = self.hub.repos.get(((kind or "models").removesuffix("s"), name))
        if repo is None or not self.hub.readable(repo, self.access):  # the same for both: nobody learns what exists
            raise RefusalError(404 if self.access else 401, "Repository not found", "RepoNotFound")
        return repo

    def _need_write(self, repo: Repo) -> None:
        if not self.hub.writable(repo, self.access):
            raise RefusalError(403, f"Forbidden: your token has not the permission to write to {repo.id}")

    def _need_gate(self, repo: Repo) -> None:
        user = self.access.user if self.access else None
        if repo.gated and user not in repo.granted and not self.hub.owned(repo, self.access):
            message = f"Access to {repo.kind} {repo.id} is restricted. You must have access to it and be authenticated"
            raise RefusalError(403 if user else 401, message, "GatedRepo")

    # Accounts and repos

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        if self.access is None:
            raise RefusalError(401, "Invalid username or password.")
        name, kind = self.access.user, "write" if "write" in self.access.scopes else "fineGrained"
        orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org in self.hub.orgs.get(name, ())]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": kind}}
        return {
            "type": "user",
            "name": name,
            "fullname": name.title(),
            "orgs": orgs,
            "auth": auth,
            "avatarUrl": f"{self.hub.url}/avatars/{name}.svg",
            "isPro": False,
        }

    @route("POST", "/api/repos/create")
    def create(self):
        wish = self.json()
        if self.access is None:
            raise RefusalError(401, "Invalid username or password.")
        owner, kind = wish.get("organization") or self.access.user, wish.get("type") or "model"
        repo_id = f"{owner}/{wish['name']}"
        if owner not in (self.access.user, *self.hub.orgs[self.access.user]) or not (
            self.access.scopes & {"contribute-repos", "manage-repos", "write"}
        ):
            raise RefusalError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repos:
                body = {"error": f"You already created this {kind} repo", "url": url}
                return 409, json.dumps(body).encode(), {"X-Error-Message": body["error"]}
            private = wish.get("visibility") == "private" or bool(wish.get("private"))
            self.hub.add_repo(repo_id, private=private, kind=kind, app=self.access.app)
        return {"url": url, "name": repo_id, "id": secrets.token_hex(12)}

    @route("DELETE", "/api/repos/delete")
    def delete(self):
        wish = self.json()
        kind, user = wish.get("type") or "model", self.access.user if self.access else ""
        repo = self._repo(kind + "s", f"{wish.get('organization') or user}/{wish['name']}")
        if self.access is None or not self.access.scopes & {"manage-repos", "write"}:
            raise RefusalError(403, "Forbidden: your token has not the permission to delete repositories")
        self._need_write(repo)
        del self.hub.repos[kind, repo.id]
        return {}

    @route("PUT", "/api/{repo}/settings")
    def settings(self, repo: Repo):
        if not self.hub._allowed(repo, self.access, {"manage-repos", "write"}):
            raise RefusalError(403, "Forbidden: your token has not the permission to change this repository's settings")
        wish = self.json()
        repo.private = wish.get("visibility", "private" if repo.private else "public") == "private"
        repo.gated = wish.get("gated", repo.gated)
        return {"private": repo.private, "gated": repo.gated}

    @route("GET", "/api/{repo}/auth-check(?P<write>/write)?")
    def auth_check(self, repo: Repo, write: str | None):
        self._need_gate(repo)
        if write:
            self._need_write(repo)
        return {}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        text = self.json()["content"]
        front = re.match(r"\A---\r?\n(.*?)\r?\n---\s*(\n|\Z)", text, re.DOTALL)
        errors, warnings = [], []
        try:
            data = yaml.safe_load(front[1]) if front else None
            if data is None:
                warnings = [{"message": "empty or missing yaml metadata in repo card"}]
            elif not isinstance(data, dict):
                errors = [{"message": "the metadata is not a mapping"}]
            elif isinstance(data.get("license"), list) or not isinstance(data.get("tags", []), list):
                errors = [{"message": '"license" must be a string and "tags" a list'}]
        except yaml.YAMLError as error:
            errors = [{"message": f"bad yaml: {error}"}]
        return 400 if errors else 200, json.dumps({"errors": errors, "warnings": warnings}).encode(), {}

    # Reading

    def _info(self, repo: Repo, commit: Commit, files: bool) -> dict:
        data = repo.card_data
        stamp = lambda moment: time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(moment))  # noqa: E731
        info = {
            "_id": repo.id,
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.oid,
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "downloads": repo.downloads,
            "likes": repo.likes,
            "tags": repo.tags,
            "createdAt": stamp(repo.commits[0].time),
            "lastModified": stamp(repo.commits[-1].time),
            "pipeline_tag": data.get("pipeline_tag"),
            "library_name": data.get("library_name"),
            "cardData": data,
            "model-index": data.get("model-index"),
        }
        return info | ({"siblings": [{"rfilename": path} for path in sorted(commit.files)]} if files else {})

    @route("GET", "/api/(?P<kind_>models|datasets)")
    def listing(self, kind_: str):
        one = lambda name, default="": self.query.get(name, [default])[0]  # noqa: E731
        found = [
            repo
            for (kind, _), repo in self.hub.repos.items()
            if f"{kind}s" == kind_
            and self.hub.readable(repo, self.access)
            and one("author", repo.id.split("/")[0]) == repo.id.split("/")[0]
            and one("search").lower() in repo.id.lower()
            and set(self.query.get("filter", ())) <= set(repo.tags)
        ]
        newest = lambda r: r.commits[0 if one("sort") == "createdAt" else -1].time  # noqa: E731
        found.sort(key=lambda r: getattr(r, one("sort")) if one("sort") in ("downloads", "likes") else newest(r))
        found.reverse()
        start, limit = int(one("cursor", "0")), min(int(one("limit", "1000")), 1000)
        wished = {"cardData", "full"} & (set(self.query) | set(self.query.get("expand", ())))
        extra = {"cardData"} if wished else set()
        hidden = {"cardData", "model-index"} - extra
        items = [
            {k: v for k, v in self._info(repo, repo.commits[-1], "full" in self.query).items() if k not in hidden}
            for repo in found[start : start + limit]
        ]
        headers = {}
        if start + limit < len(found):
            kept = "&".join(f"{k}={quote(v)}" for k, vs in self.query.items() if k != "cursor" for v in vs)
            headers["Link"] = f'<{self.hub.url}/api/{kind_}?{kept}&cursor={start + limit}>; rel="next"'
        return 200, json.dumps(items).encode(), headers

    @route("GET", "/api/{repo}(?:/revision/{rev})?")
    def info(self, repo: Repo, rev: str | None):
        return self._info(repo, repo.at(rev or "main"), files=True)

    @route("GET", "/api/{repo}/tree/{rev}(?:/{path})?")
    def tree(self, repo: Repo, rev: str, path: str | None):
        prefix = f"{path.strip('/')}/" if path else ""
        below = {name: blob for name, blob in repo.at(rev).files.items() if name.startswith(prefix)}
        if path and not below:
            raise RefusalError(404, f'{path} does not exist on "{rev}"', "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        folders, entries = set(), []
        for name, blob in sorted(below.items()):
            parents = [name[: m.start()] for m in re.finditer("/", name) if m.start() > len(prefix)]
            folders.update(parents if recursive else parents[:1])
            if recursive or not parents:
                entries.append(_entry(name, blob))
        return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)] + entries

    @route("POST", "/api/{repo}/paths-info/{rev}")
    def paths_info(self, repo: Repo, rev: str):
        files = repo.at(rev).files
        return [_entry(path, files[path]) for path in self.form().get("paths", ()) if path in files]

    @route("GET", "/{page}/resolve/{rev}/{path}")
    def resolve(self, repo: Repo, rev: str, path: str):
        self._need_gate(repo)
        commit = repo.at(rev)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise RefusalError(404, "Entry not found", "EntryNotFound", **headers)
        blob = commit.files[path]
        if blob.sha256 is None:
            kind = "text/plain; charset=utf-8"
            return 200, blob.read(), headers | {"ETag": f'"{blob.oid}"', "Content-Type": kind}
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        if blob.xet:
            refresh = f"{self.hub.url}/api/{repo.kind}s/{repo.id}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": blob.xet, "X-Xet-Refresh-Route": refresh}
        return 302, b"", headers | {"Location": f"{self.hub.storage}/{blob.sha256}?name={quote(path)}"}

    @route("GET", "/storage/(?P<sha256>[0-9a-f]{64})")
    def stored(self, sha256: str):
        file = self.hub.folder / "large" / sha256
        return 200, file if file.is_file() else self.hub.large(sha256).read(), {"Content-Type": "binary/octet-stream"}

    @route("GET", "/{page}")
    def page(self, repo: Repo):
        card = re.sub(r"\A---\r?\n.*?\n---\s*\n", "", repo.card, flags=re.DOTALL)
        pictures = [one["output"]["url"] for one in repo.card_data.get("widget", ()) if "output" in one]
        gallery = "".join(f'<img src="{html.escape(url)}" width="256">' for url in pictures)
        body = MarkdownIt("commonmark", {"html": False}).enable("table").render(card)
        body = f"<h1>{repo.id}</h1>" + body.replace("&lt;Gallery /&gt;", gallery)
        return html_page(repo.id, body, f"{self.hub.url}{self.path.rstrip('/')}/resolve/main/")

    # Writing

    @route("POST", "/api/{repo}/preupload/{rev}")
    def preupload(self, repo: Repo, rev: str):
        self._need_write(repo)
        known, answer = repo.at(rev).files, []
        for file in self.json()["files"]:
            large = self.hub._is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
            old = known.get(file["path"])
            answer.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                | ({"oid": old.sha256 or old.oid} if old else {})
            )
        return {"files": answer}

    @route("POST", "/api/{repo}/commit/{rev}")
    def commit(self, repo: Repo, rev: str):
        self._need_write(repo)
        lines = [json.loads(line) for line in b"".join(self.blocks()).splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        with self.hub.lock:
            if header.get("parentCommit") not in (None, repo.commits[-1].oid):
                raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.files)
            for line in lines:
                self._apply(files, line["key"], line["value"])
            oid = repo.commit(header["summary"], files, self.access.user).oid
        return {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"{self.hub.url}/{repo.page}/commit/{oid}",
            "hookOutput": "",
            "pullRequestUrl": None,
        }

    def _apply(self, files: dict[str, Blob], key: str, value: dict) -> None:
        if key == "file":
            data = base64.b64decode(value["content"])
            files[value["path"]] = Blob(len(data), git_hash(data), lambda: data)
        elif key == "lfsFile":
            blob = self.hub.large(value["oid"])
            if blob is None or blob.size != value.get("size", blob.size):
                raise RefusalError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = blob
        elif key in ("deletedFile", "deletedFolder"):
            path = value["path"]
            gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(path))]
            if not gone:
                raise RefusalError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]

    # Large files over LFS: one PUT, or parts and a completion

    @route("POST", r"/{page}\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo: Repo):
        self._need_write(repo)
        objects = []
        for file in self.json()["objects"]:
            oid, size, answer = file["oid"], file["size"], dict(file)
            if self.hub.large(oid) is None:
                put, parts = f"{self.hub.storage}/{oid}", self.hub.part_size
                upload = {"href": put}
                if parts and size > parts:
                    numbers = range(1, -(-size // parts) + 1)
                    header = {"chunk_size": str(parts)} | {f"{n:05d}": f"{put}?part={n}" for n in numbers}
                    upload = {"href": f"{put}/complete", "header": header}
                verify = {"href": f"{self.hub.url}/{repo.page}.git/info/lfs/objects/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return {"transfer": "multipart" if self.hub.part_size else "basic", "objects": objects}

    @route("PUT", "/storage/(?P<sha256>[0-9a-f]{64})")
    def lfs_put(self, sha256: str):
        part = int(self.query.get("part", ["1"])[0])
        file = self.hub.folder / "parts" / secrets.token_hex(8)
        self._save(file)
        file.replace(file.with_name(f"{sha256}.{part:05d}"))
        if "part" not in self.query:
            self._assemble(sha256)
        return 200, b"", {"ETag": f'"{sha256[:8]}-{part}"'}

    @route("POST", "/storage/(?P<sha256>[0-9a-f]{64})/complete")
    def lfs_complete(self, sha256: str):
        if len(self.json()["parts"]) != len(list((self.hub.folder / "parts").glob(f"{sha256}.?????"))):
            raise RefusalError(400, "Parts are missing")
        self._assemble(sha256)
        return {}

    def _save(self, file: Path) -> None:
        with file.open("wb") as out:
            for block in self.blocks():
                out.write(block)

    def _assemble(self, sha256: str) -> None:
        parts, digest = sorted((self.hub.folder / "parts").glob(f"{sha256}.?????")), hashlib.sha256()
        whole = self.hub.folder / "large" / f"{sha256}.{secrets.token_hex(4)}"
        with whole.open("wb") as out:
            for part in parts:
                with part.open("rb") as file:
                    while block := file.read(BLOCK):
                        digest.update(block)
                        out.write(block)
                part.unlink()
        if digest.hexdigest() != sha256:
            whole.unlink()
            raise RefusalError(400, "The content does not have the announced hash")
        whole.replace(self.hub.folder / "large" / sha256)

    @route("POST", r"/{page}\.git/info/lfs/objects/verify")
    def lfs_verify(self, repo: Repo):
        wish = self.json()
        blob = self.hub.large(wish["oid"])
        if blob is None or blob.size != wish["size"]:
            raise RefusalError(404, "Object not found")
        return {}

    # Large files over xet: xorbs, then the shard that makes files of them

    @route("GET", "/api/{repo}/xet-(?P<right>read|write)-token/{rev}")
    def xet_token(self, repo: Repo, right: str, rev: str):
        self._need_gate(repo)
        if right == "write":
            self._need_write(repo)
        token, until = f"xet_{secrets.token_hex(16)}", int(time.time()) + HOUR
        self.hub.xet_tokens[token] = right
        where = {"casUrl": f"{self.hub.url}/cas", "accessToken": token, "exp": until}
        headers = {"X-Xet-Cas-Url": where["casUrl"], "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(until)}
        return 200, json.dumps(where).encode(), headers

    def _need_xet(self, *rights: str) -> None:
        if self.hub.xet_tokens.get(self.record.token) not in rights:
            raise RefusalError(401, "Unauthorized")

    @route("POST", "/cas/v1/xorbs/default/(?P<xorb>[0-9a-f]{64})")
    def xet_xorb(self, xorb: str):
        self._need_xet("write")
        part, whole = self.hub.folder / "parts" / secrets.token_hex(8), self.hub.xet_store.folder / xorb
        self._save(part)
        new = not whole.exists()
        part.replace(whole)
        return {"was_inserted": new}

    @route("POST", "/cas/v1/shards")
    def xet_shard(self):
        self._need_xet("write")
        try:
            self.hub.xet_store.add_shard(b"".join(self.blocks()))
        except LookupError as error:
            raise RefusalError(400, str(error)) from None
        return {"result": 1}

    @route("GET", "/cas/v1/reconstructions/(?P<hash_>[0-9a-f]{64})")
    def xet_reconstruction(self, hash_: str):
        self._need_xet("read", "write")
        file = self.hub.xet_store.files.get(hash_)
        if file is None:
            raise RefusalError(404, "No such file")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", f"bytes=0-{file.size}"))
        del self.headers["Range"]  # it means the file's bytes, not this answer's
        try:
            return self.hub.xet_store.reconstruction(hash_, int(wanted[1]), int(wanted[2]), f"{self.hub.storage}/xorb")
        except IndexError:
            raise RefusalError(416, "Beyond the end of the file") from None

    @route("GET", "/storage/xorb/(?P<xorb>[0-9a-f]{64})")
    def xet_chunks(self, xorb: str):
        return 200, self.hub.xet_store.folder / xorb, {"Content-Type": "binary/octet-stream"}


def _entry(path: str, blob: Blob) -> dict:
    entry = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.sha256:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
    return entry | ({"xetHash": blob.xet} if blob.xet else {})


def turn_client(monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub) -> None:
    """Turn this process's huggingface_hub to `hub`, with an empty cache, no token of the machine, and no pauses."""
    constants, home = huggingface_hub.constants, hub.folder / "client"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": not hub.xet,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(huggingface_hub.utils._xet, "_GLOBAL_XET_HOLDER", huggingface_hub.utils._xet.XetSessionHolder())
    for name in [n for n in os.environ if n.startswith(("HF_", "HUGGING_FACE"))]:
        monkeypatch.delenv(name)
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    # Between two tries the client waits for seconds; the tries are real, the waiting is not.
    quick = SimpleNamespace(**vars(time) | {"sleep": lambda _: None})
    for module in ("utils._http", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", quick)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[LoopbackHub]:
    """A Hub of this test's own, that huggingface_hub and child processes talk to.

    Large files go over LFS; `@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)` takes both ways.
    """
    with LoopbackHub(tmp_path / "hub", xet=getattr(request, "param", "lfs") == "xet") as server:
        turn_client(monkeypatch, server)
        yield server
