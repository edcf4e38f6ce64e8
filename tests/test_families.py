"""Base models: what is read of them, and that a missing, damaged or unreachable one is told in one clear line.

The Hub is a server on this machine that answers as huggingface.co does; its client is the real one.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_api, snapshot_download
from safetensors.torch import load, load_file, save, save_file

from dreambooth.config import MAX_FOREIGN_YAML
from dreambooth.errors import DreamBoothError, HubError, ModelError
from dreambooth.families import STABLE_DIFFUSION, family_of, load_pipeline, use_fastest_attention
from dreambooth.fetch import download_failure, fetch_files, fetch_from_hub, fetch_model, list_files
from dreambooth.hub import visitors_cache
from tests import tiny
from tests.hub import LoopbackHub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubAnswers(BaseHTTPRequestHandler):
    """The part of the Hub's interface that downloading a model or a dataset repo uses."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0].replace("/api/datasets/", "/api/models/")
        repo, folder = self.server.repo, self.server.folder
        self.server.tokens.add(self.headers["Authorization"])
        if repo not in path or (self.server.private and not self.headers["Authorization"]):
            self.answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"})
        elif path == f"/api/models/{repo}" or path.startswith(f"/api/models/{repo}/revision/"):
            if path.rsplit("/", 1)[-1] not in (repo.split("/")[1], "main", COMMIT):
                self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            else:
                files = [{"rfilename": name} for name in self.files()]
                self.answer(200, body=json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode())
        elif path == f"/api/models/{repo}/auth-check":
            self.answer(403, {"X-Error-Code": "GatedRepo"}) if self.server.gated else self.answer(200, body=b"{}")
        elif path.startswith(f"/api/models/{repo}/tree/"):
            sizes = [(name, (folder / name).stat().st_size) for name in self.files()]
            entries = [{"type": "file", "oid": "0" * 40, "path": name, "size": size} for name, size in sizes]
            self.answer(200, body=json.dumps(entries).encode())
        else:
            revision, name = path.split(f"/{repo}/resolve/")[1].split("/", 1)
            known = revision in ("main", COMMIT)
            self.send_file(name) if known else self.answer(404, {"X-Error-Code": "RevisionNotFound"})

    def files(self) -> list[str]:
        folder = self.server.folder
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def send_file(self, name: str) -> None:
        if self.server.gated:
            self.answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"})
            return
        if not (self.server.folder / name).is_file():
            self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        data = (self.server.folder / name).read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if self.command == "GET":
            self.server.sent.append(name)
        if self.command == "GET" and name.endswith(self.server.cut):
            self.answer(200, headers, data[: len(data) // 2], length=len(data))
            self.close_connection = True
        else:
            self.answer(200, headers, data)

    def answer(self, status: int, headers: dict | None = None, body: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def loopback_hub(folder: Path, cache: Path, monkeypatch, repo: str = "owner/tiny"):
    """A Hub on this machine with one repo, the model in `folder`, and the Hub's client pointed at it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubAnswers)
    server.repo, server.folder, server.gated, server.cut, server.sent = repo, folder, False, "nothing", []
    server.private, server.tokens = False, set()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    point_client_at(f"http://127.0.0.1:{server.server_address[1]}", cache, monkeypatch)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # the client waits a second before each of its retries
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_client_at(address: str, cache: Path, monkeypatch) -> None:
    """What HF_ENDPOINT and HF_HOME do in a process of its own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def tiny_hub(tiny_model, tmp_path, monkeypatch):
    with loopback_hub(tiny_model, tmp_path / "hub", monkeypatch) as server:
        yield server


def refusal(kind: type[DreamBoothError], *arguments) -> str:
    """The one line that `fetch_model` says."""
    with pytest.raises(kind) as caught:
        fetch_model(*arguments)
    assert type(caught.value) is kind
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ---- Fetching


def test_a_folder_is_taken_as_it_is(tiny_model, tmp_path, monkeypatch):
    assert fetch_model(str(tiny_model)) == tiny_model.resolve()
    monkeypatch.chdir(tiny_model.parent)
    assert fetch_model(tiny_model.name) == tiny_model.resolve()
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    assert fetch_model(f"~/{tiny_model.name}") == tiny_model.resolve()


def test_toybox_is_built_in_whatever_folder_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "toybox").mkdir()
    monkeypatch.chdir(tmp_path)
    assert fetch_model("toybox").parts[-3:] == ("dreambooth", "toybox", "model")


def test_what_is_no_model_is_named(tmp_path, tiny_model):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "empty: no model_index.json in it. Give a diffusers" in refusal(ModelError, str(tmp_path / "empty"))
    assert "no model_index.json" in refusal(ModelError, str(tmp_path / "model.safetensors"))
    for missing in (str(tmp_path / "none"), "none", "./a/b", "~nosuchuser/x", "a/b/c", "a\0b"):
        assert f"{missing}: no such folder. Give toybox" in refusal(ModelError, missing)


def test_a_model_of_the_hub_is_downloaded_once(tiny_hub, tiny_model):
    folder = fetch_model("owner/tiny")
    pipe, _ = load_pipeline(folder)
    expected, _ = load_pipeline(tiny_model)
    for ours, theirs in zip(pipe.unet.parameters(), expected.unet.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert len(tiny_hub.sent) == len(set(tiny_hub.sent)) == 10
    tiny_hub.sent.clear()
    assert fetch_model("owner/tiny") == folder
    assert fetch_model("owner/tiny", "main") == folder
    assert fetch_model("owner/tiny", COMMIT) == folder
    assert tiny_hub.sent == []


def test_a_downloaded_model_needs_no_hub(tiny_hub, tmp_path, monkeypatch):
    folder = fetch_model("owner/tiny")
    point_client_at(closed_port(), tmp_path / "hub", monkeypatch)
    assert fetch_model("owner/tiny") == folder


def test_a_hub_that_can_not_be_reached_is_told(tmp_path, monkeypatch):
    point_client_at(closed_port(), tmp_path / "hub", monkeypatch)
    said = refusal(HubError, "owner/tiny")
    assert said == "owner/tiny is not downloaded and the Hub can't be reached. Check the connection and try again."


def test_offline_mode_is_a_hub_that_can_not_be_reached():
    assert "not downloaded and the Hub can't be reached" in refusal(HubError, "owner/tiny")


def test_a_repo_or_revision_that_is_not_there_is_told(tiny_hub):
    assert "owner/none is not on the Hub, or is private. Check the spelling" in refusal(ModelError, "owner/none")
    assert "owner/tiny has no revision 'v9'" in refusal(ModelError, "owner/tiny", "v9")
    assert "is not on the Hub" in refusal(ModelError, "own er/ti ny")


def test_a_gated_repo_says_where_to_accept_its_terms(tiny_hub):
    tiny_hub.gated = True
    assert "owner/tiny is gated. Accept its terms on https://huggingface.co/owner/tiny" in refusal(
        HubError, "owner/tiny"
    )


def test_a_repo_without_a_pipeline_is_told(tiny_hub, tmp_path):
    tiny_hub.folder = tmp_path / "lora"
    tiny_hub.folder.mkdir()
    (tiny_hub.folder / "pytorch_lora_weights.safetensors").write_bytes(b"x")
    assert "Give a repo with a diffusers pipeline" in refusal(ModelError, "owner/tiny")


def test_an_interrupted_download_is_told_and_the_next_try_completes_it(tiny_hub, tmp_path):
    tiny_hub.cut = "diffusion_pytorch_model.safetensors"
    said = refusal(HubError, "owner/tiny")
    assert said.startswith("owner/tiny could not be downloaded: ")
    assert said.endswith("Try again; files that arrived whole are kept.")
    whole = {path.name for path in (tmp_path / "hub").rglob("snapshots/*/*/*")}
    assert "diffusion_pytorch_model.safetensors" not in whole, "nothing half-written under a final name"
    tiny_hub.cut = "nothing"
    tiny_hub.sent.clear()
    pipe, _ = load_pipeline(fetch_model("owner/tiny"))
    assert set(tiny_hub.sent) <= {
        f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")
    } | {"text_encoder/model.safetensors"}  # fmt: skip
    assert pipe.unet.config.sample_size == 8


def test_an_unsupported_kind_is_refused_before_its_weights_are_downloaded(tiny_hub, tmp_path):
    tiny_hub.folder = tmp_path / "flux"
    (tiny_hub.folder / "transformer").mkdir(parents=True)
    (tiny_hub.folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    (tiny_hub.folder / "transformer" / "model.safetensors").write_bytes(b"x")
    assert "owner/tiny is a FluxPipeline. Supported: StableDiffusionPipeline." in refusal(ModelError, "owner/tiny")
    assert tiny_hub.sent == ["model_index.json"]


def test_a_strangers_request_sends_no_token_and_opens_no_private_repo_from_the_cache(tiny_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_server")
    tiny_hub.private = True
    fetch_from_hub("owner/tiny")
    assert tiny_hub.tokens == {"Bearer hf_of_the_server"}
    tiny_hub.tokens.clear()
    with pytest.raises(ModelError, match="owner/tiny is not on the Hub, or is private"):
        fetch_from_hub("owner/tiny", token=False)
    tiny_hub.private = False
    assert load_pipeline(fetch_from_hub("owner/tiny", token=False))
    tiny_hub.gated = True
    with pytest.raises(HubError, match=r"owner/tiny is gated\. Choose a model that everybody may read, or log in"):
        fetch_from_hub("owner/tiny", token=False)
    assert tiny_hub.tokens == {None}


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_a_private_model_is_its_owners_alone_also_once_it_is_here(hub: LoopbackHub, tiny_model):
    anna, bert = hub.add_user("anna", scopes=("read",)), hub.add_user("bert", scopes=("read",))
    hub.add_repo("anna/dog", tiny_model, private=True)
    folder = fetch_from_hub("anna/dog", token=anna)
    commit = hub.repos["model", "anna/dog"].commits[-1].oid
    refusals = (
        "anna/dog is not on the Hub, or is private.", "The Hub does not accept the login.", "There is no Hugging Face",
    )  # fmt: skip
    for stranger in (bert, False, None, "hf_made_up_token_of_nobody", ""):
        for revision in (None, "main", commit):
            with pytest.raises(DreamBoothError) as caught:
                fetch_model("anna/dog", revision, token=stranger)
            assert str(folder) not in str(caught.value)
            assert str(caught.value).startswith(refusals)
    assert fetch_from_hub("anna/dog", commit, token=anna) == folder
    hub.repos["model", "anna/dog"].private = False
    assert load_pipeline(fetch_from_hub("anna/dog", token=bert)), "once everybody may read it"
    hub.repos["model", "anna/dog"].private = True
    with pytest.raises(ModelError, match=r"is not on the Hub, or is private\. .* log in with an account that may"):
        fetch_from_hub("anna/dog", token=bert)


@pytest.mark.parametrize("private", [False, True])
def test_a_commit_that_the_hub_has_no_more_is_not_served_from_here(hub: LoopbackHub, tiny_model, private):
    """Its history was rewritten, or its name passed on to somebody else."""
    anna, heir = hub.add_user("anna", scopes=("read",)), hub.add_user("anna", scopes=("read",))
    hub.add_repo("anna/dog", tiny_model, private=private)
    commit = fetch_from_hub("anna/dog", token=anna).name
    hub.repos.pop(("model", "anna/dog"))
    hub.add_repo("anna/dog", {"README.md": "# Another dog"}, private=private)
    with pytest.raises(ModelError, match=f"anna/dog has no revision '{commit}'"):
        fetch_from_hub("anna/dog", commit, token=heir)
    with pytest.raises(ModelError, match="anna/dog lacks a file"):
        fetch_from_hub("anna/dog", token=heir)


def test_what_a_visitor_fetched_lies_apart(hub, tiny_model):
    hub.add_repo("anna/dog", tiny_model)
    assert fetch_from_hub("anna/dog", token=False).is_relative_to(visitors_cache())
    assert fetch_from_hub("anna/dog").is_relative_to(constants.HF_HUB_CACHE)


def repo_files(model: Path) -> dict[str, bytes]:
    return {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}


def test_of_a_repo_comes_what_loading_reads_and_nothing_else(hub, tiny_model):
    files = repo_files(tiny_model)
    index = json.loads(files["model_index.json"])
    index |= {name: ["diffusers", "x"] for name in ("*", "text_encode?", "movies")}
    more = (
        "movies/a.mp4", "stuff.safetensors", "unet/more.safetensors", "unet/diffusion_pytorch_model.bin", "unet/x.py",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/[a].json", "unet/deep/config.json",
    )  # fmt: skip
    hub.add_repo("mona/junk", files | dict.fromkeys(more, b"x") | {
        "model_index.json": json.dumps(index), "README.md": bytes(MAX_FOREIGN_YAML + 1), "config.yaml": bytes(300_000),
    })  # fmt: skip
    for token in (None, False):
        folder = fetch_from_hub("mona/junk", token=token)
        assert set(repo_files(folder)) == set(files)
        assert load_pipeline(folder)


def test_a_model_that_is_too_large_is_refused_before_its_weights_come(hub, tiny_model):
    size = sum(map(len, repo_files(tiny_model).values()))
    hub.add_repo("anna/dog", tiny_model)
    with pytest.raises(ModelError, match=r"anna/dog has 0\.0 GB, more than the 0\.0 GB that are fetched here\."):
        fetch_from_hub("anna/dog", token=False, max_bytes=size / 2)
    assert not any("unet/diff" in request.path for request in hub.requests)
    assert load_pipeline(fetch_from_hub("anna/dog", token=False, max_bytes=size))


@pytest.mark.parametrize("name", ["model_index.json", "tokenizer/tokenizer.json"])
def test_a_file_that_would_fill_the_memory_is_not_fetched(hub, tiny_model, monkeypatch, name):
    monkeypatch.setattr("dreambooth.fetch.MAX_SMALL_FILE", 50_000)
    files = repo_files(tiny_model)
    hub.add_repo("mona/dog", files | {name: files[name] + b" " * 50_000})
    with pytest.raises(ModelError, match=rf"mona/dog: {name} has [0-9,]+ bytes, too many for such a file"):
        fetch_from_hub("mona/dog", token=False)


def test_an_older_repo_with_weights_in_bin_files_works(hub, tiny_model):
    """As Stable Diffusion's first repos are: no safetensors, and a safety checker's entries, here null."""
    files = repo_files(tiny_model)
    for path in [path for path in files if path.endswith(".safetensors")]:
        name = "pytorch_model.bin" if path.startswith("text") else "diffusion_pytorch_model.bin"
        weights = io.BytesIO()
        torch.save(load(files.pop(path)), weights)
        files[f"{path.split('/')[0]}/{name}"] = weights.getvalue()
    hub.add_repo("anna/old", files)
    new, old = (load_pipeline(folder)[0] for folder in (tiny_model, fetch_from_hub("anna/old")))
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(new, part).parameters(), getattr(old, part).parameters()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("named", ["{owners}", "owner/secret"])
def test_a_strangers_model_loads_no_weights_of_elsewhere(hub, tiny_model, tmp_path, monkeypatch, named):
    """transformers would take an adapter's base from any folder, or from a repo that the machine's owner may read."""
    monkeypatch.setenv("HF_TOKEN", hub.add_user("owner", scopes=("read",)))
    owners = tmp_path / "owners"
    shutil.copytree(tiny_model / "text_encoder", owners)
    hub.add_repo("owner/secret", owners, private=True)
    snapshot_download("owner/secret")
    files = repo_files(tiny_model)
    files["text_encoder/adapter_model.safetensors"] = save({"x": torch.ones(1)})
    files["text_encoder/adapter_config.json"] = json.dumps({
        "peft_type": "LORA", "base_model_name_or_path": named.format(owners=owners), "target_modules": ["q_proj"],
    })  # fmt: skip
    del files["text_encoder/config.json"]
    hub.add_repo("mona/trap", files)
    hub.requests.clear()
    with pytest.raises(ModelError, match="mona/trap: its text_encoder is an adapter of another model"):
        load_pipeline(fetch_from_hub("mona/trap", token=False))
    assert not any("owner/secret" in request.path for request in hub.requests)


def test_a_full_disk_is_told_without_its_paths(hub, tiny_model, tmp_path):
    full = OSError(28, "No space left on device", str(tmp_path / "somewhere"))
    said = str(download_failure("anna/dog", None, full, False))
    assert said.startswith("anna/dog could not be downloaded: No space left on device.")
    assert str(tmp_path) not in said


def test_a_model_that_is_here_is_no_strangers_while_the_hub_can_not_be_asked(hub, tiny_model):
    anna = hub.add_user("anna", scopes=("read",))
    hub.add_repo("anna/dog", tiny_model, private=True)
    fetch_from_hub("anna/dog", token=anna)
    for fault in (500, "cut"):
        broken = hub.fail("GET /api/models", fault, times=99)
        for token in (anna, False):
            with pytest.raises(HubError):
                fetch_from_hub("anna/dog", token=token)
        broken.times = 0


def test_a_visitors_request_bears_their_token_alone(hub, tiny_model, monkeypatch):
    anna, owner = hub.add_user("anna", scopes=("read",)), hub.add_user("owner", scopes=("read",))
    monkeypatch.setenv("HF_TOKEN", owner)
    hub.add_repo("anna/dog", tiny_model, private=True)
    fetch_from_hub("anna/dog", token=anna)
    assert {request.user for request in hub.requests if "anna/dog" in request.path} == {"anna"}
    hub.requests.clear()
    with pytest.raises(ModelError):
        fetch_from_hub("owner/secret", token=False)
    assert {request.user for request in hub.requests if "secret" in request.path} == {None}


def test_a_gated_model_is_for_who_accepted_its_terms(hub, tiny_model):
    bert, carl = hub.add_user("bert", scopes=("read",)), hub.add_user("carl", scopes=("read",))
    hub.add_repo("org/gated", tiny_model, gated=True).granted.add("bert")
    assert load_pipeline(fetch_from_hub("org/gated", token=bert))
    with pytest.raises(
        HubError, match=r"org/gated is gated\. Accept its terms on .*/org/gated with the account you are"
    ):
        fetch_from_hub("org/gated", token=carl)
    with pytest.raises(HubError, match=r"org/gated is gated\. Choose a model that everybody may read, or log in"):
        fetch_from_hub("org/gated", token=False)


def test_card_and_settings_come_with_a_model_and_nothing_else_does(hub, tiny_model, monkeypatch):
    files = {str(p.relative_to(tiny_model)): p.read_bytes() for p in tiny_model.rglob("*") if p.is_file()}
    more = {"README.md": "# A dog", "config.yaml": "seed: 1", "images/0.png": b"x", "photos/0.png": b"x"}
    hub.add_repo("anna/dog", files | more)
    folder = fetch_from_hub("anna/dog")
    parts = {name.split("/")[0] for name in files}
    assert {path.name for path in folder.iterdir()} == {*parts, "README.md", "config.yaml"}
    (folder / "config.yaml").unlink()
    assert (fetch_from_hub("anna/dog") / "config.yaml").read_text() == "seed: 1", "as the library alone leaves it"
    (folder / "config.yaml").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_from_hub("anna/dog") == folder, "without the Hub, what is here is enough"


def test_files_of_a_repo_land_in_the_folder_alone(hub, tmp_path):
    repo = hub.add_repo("mona/dog", {"a/b.txt": "b"})
    info, files = list_files("mona/dog", None, False, "a dog")
    assert (info.sha, files["a/b.txt"]) == (repo.commits[-1].oid, 1)
    fetch_files("mona/dog", info.sha, ["a/b.txt"], tmp_path / "in", False, "a dog")
    assert (tmp_path / "in" / "a" / "b.txt").read_text() == "b"
    for name in ("../out.txt", "a/../../out.txt", str(tmp_path / "out.txt")):
        repo.files[name] = repo.files["a/b.txt"]
        with pytest.raises(ModelError, match="mona/dog has a file that would land elsewhere"):
            fetch_files("mona/dog", info.sha, [name], tmp_path / "in", False, "a dog")
    assert not (tmp_path / "out.txt").exists()
    with pytest.raises(ModelError, match=r"mona/dog lacks a file: .* Give a repo with a dog"):
        fetch_files("mona/dog", info.sha, ["none.txt"], tmp_path / "in", False, "a dog")


def test_no_token_is_in_what_a_failure_says(hub, tiny_model):
    anna = hub.add_user("anna", scopes=("read",))
    hub.add_repo("anna/dog", tiny_model, private=True)
    for fault in (401, 403, 404, 429, 500, "cut"):
        broken = hub.fail("anna/dog", fault, times=999)
        with pytest.raises(DreamBoothError) as caught:
            fetch_from_hub("anna/dog", token=anna)
        broken.times = 0
        said = "".join(traceback.format_exception(caught.value))
        assert anna not in said
        assert "direct cause" not in said


def test_a_folder_of_this_machine_is_never_taken_for_a_repo(tiny_hub, tiny_model, tmp_path, monkeypatch):
    shutil.copytree(tiny_model, tmp_path / "owner" / "none")
    monkeypatch.chdir(tmp_path)
    for repo_id in ("owner/none", str(tiny_model)):
        with pytest.raises(ModelError, match="is not on the Hub"):
            fetch_from_hub(repo_id)


# ---- Loading


def test_the_family_is_found_by_the_pipeline_class(tiny_model, tmp_path):
    assert family_of(tiny_model) is STABLE_DIFFUSION
    for index, words in [
        ({"_class_name": "FluxPipeline"}, r"is a FluxPipeline. Supported: StableDiffusionPipeline."),
        ({}, "model_index.json can't be read"),
        ([], "model_index.json can't be read"),
    ]:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError, match=words):
            family_of(tmp_path)


def without(name):
    return lambda folder: (folder / name).unlink() if (folder / name).is_file() else shutil.rmtree(folder / name)


def with_bytes(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def without_weight(name, key):
    def damage(folder):
        state = load_file(folder / name)
        del state[key]
        save_file(state, folder / name, {"format": "pt"})

    return damage


def with_index(**changes):
    def damage(folder):
        file = folder / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def with_fact(name, **changes):
    def damage(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return damage


def pickled(folder):
    (folder / TEXT).unlink()
    nothing_that_weights_need = {"x": torch.zeros(100_000), "y": Path("x")}
    torch.save(nothing_that_weights_need, folder / "text_encoder" / "pytorch_model.bin")


def shards_of_elsewhere(folder):
    """Weights in several files are named by an index: here in the folder of another model."""
    shutil.move(folder / UNET, folder.parent / "diffusion_pytorch_model.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../diffusion_pytorch_model.safetensors"}}
    (folder / f"{UNET}.index.json").write_text(json.dumps(index))
    (folder / "unet" / "x.bin").write_bytes(b"x")


UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *((without(part), f"no {part} folder in it") for part in ("unet", "vae", "text_encoder", "tokenizer")),
        (without("scheduler"), "no scheduler folder in it"),
        (without("unet/config.json"), "config.json"),
        (without(UNET), "no weights in its unet folder"),
        (without(TEXT), "no weights in its text_encoder folder"),
        (without("tokenizer/tokenizer.json"), "no vocabulary in its tokenizer folder"),
        (with_bytes(UNET, half), "Unable to load weights"),
        (with_bytes(UNET, lambda _: b""), "Unable to load weights"),
        (with_bytes("vae/diffusion_pytorch_model.safetensors", half), "Unable to load weights"),
        (with_bytes(TEXT, half), "incomplete metadata"),
        (with_bytes("tokenizer/tokenizer.json", half), "can't be loaded"),
        (with_bytes("unet/config.json", half), "not a valid JSON file"),
        (with_bytes("unet/config.json", lambda b: b.replace(b"CrossAttnDown", b"NoSuch")), "does not exist"),
        (with_bytes("scheduler/scheduler_config.json", lambda _: b"{"), "not a valid JSON file"),
        (with_bytes("model_index.json", half), "model_index.json can't be read"),
        (with_bytes("model_index.json", lambda _: b"\xff\xfe"), "model_index.json can't be read"),
        (with_index(_class_name="StableDiffusionXLPipeline"), "is a StableDiffusionXLPipeline. Supported:"),
        (with_index(unet=["diffusers", "NoSuchModel"]), "NoSuchModel"),
        (with_index(unet=["nosuchlibrary", "Model"]), "nosuchlibrary"),
        (with_index(unet="x"), "can't be loaded"),
        (with_index(text_encoder=["transformers", "NoSuchModel"]), "NoSuchModel"),
        (with_index(image_encoder="x", safety_checker=True), "its safety checker is True"),
        (with_index(safety_checker=["diffusers", "DDIMScheduler"]), "its safety checker is ['diffusers', 'DDIM"),
        (with_index(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]), "no safety_checker folder"),
        (with_fact("scheduler/scheduler_config.json", num_train_timesteps=3e8), "num_train_timesteps is above 10,000"),
        (with_fact("scheduler/scheduler_config.json", trained_betas=[0.1] * 10_001), "has 10,001 entries"),
        (with_fact("text_encoder/config.json", vocab_size=10**7), "vocab_size is above 100,000"),
        (with_fact("text_encoder/config.json", vocab_size=99_999), "the text_encoder has 1,6"),
        (with_fact("text_encoder/config.json", hidden_size=9_000, num_attention_heads=9), "the text_encoder has "),
        (with_fact("unet/config.json", block_out_channels=[8, 10**6]), "block_out_channels is above 10,000"),
        (with_fact("tokenizer/tokenizer_config.json", model_max_length=10**9), "model_max_length is above 10,000"),
        (with_bytes("vae/config.json", lambda _: b"[" * 10**5), "vae/config.json is not a valid JSON file"),
        (with_bytes("vae/config.json", lambda _: b"[" * 900 + b"]" * 900), "damaged"),
        (pickled, "can't be loaded: Weights only load failed"),
        (shards_of_elsewhere, "names files that are no weights of this model"),
        (lambda f: (f / "text_encoder" / "adapter_config.json").write_text("{}"), "is an adapter of another model"),
        (without("text_encoder/config.json"), "no config.json in its text_encoder folder"),
        (without("vae/config.json"), "no config.json in its vae folder"),
        (with_index(scheduler=["evil", "Evil"]), "can't be loaded"),
        (without_weight(UNET, "conv_in.weight"), "the unet lacks conv_in.weight"),
        (without_weight(TEXT, "final_layer_norm.weight"), "the text_encoder lacks"),
    ],
)  # fmt: skip
def test_a_damaged_model_is_told_in_one_line_and_never_half_random(tiny_model, tmp_path, damage, words):
    shutil.copytree(tiny_model, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with pytest.raises(ModelError) as caught:
        load_pipeline(tmp_path / "damaged", safety_checker=True)
    said = str(caught.value)
    assert said.startswith("damaged")
    assert str(tmp_path) not in said
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_code_file_is_told_without_where_the_model_lies(hub, tiny_model):
    """The libraries name the folder, on the server, in what they say."""
    files = repo_files(tiny_model)
    index = json.loads(files["model_index.json"]) | {"scheduler": ["evil", "Evil"]}
    hub.add_repo("mona/evil", files | {"scheduler/evil.py": "x = 1", "model_index.json": json.dumps(index)})
    folder = fetch_from_hub("mona/evil", token=False)
    (folder / "scheduler" / "evil.py").write_text("x = 1")
    with pytest.raises(ModelError, match="mona/evil can't be loaded: ") as caught:
        load_pipeline(folder)
    assert str(hub.folder) not in str(caught.value)


def test_weights_that_the_memory_does_not_hold_are_not_loaded(tiny_model, monkeypatch):
    monkeypatch.setattr("dreambooth.families.available_memory", lambda device: -1e12)
    with pytest.raises(ModelError, match=r"tiny-sd has 0\.0 GB of weights; .* of memory are free"):
        load_pipeline(tiny_model)


def test_a_model_whose_weights_lie_in_several_files_loads(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "shards")
    pipe, _ = load_pipeline(tiny_model)
    for path in (UNET, TEXT):
        (tmp_path / "shards" / path).unlink()
        part = path.split("/")[0]
        getattr(pipe, part).save_pretrained(tmp_path / "shards" / part, max_shard_size="10KB")
        assert len(list((tmp_path / "shards" / part).glob("*-of-*.safetensors"))) > 1
    ours, theirs = (load_pipeline(folder)[0].unet for folder in (tmp_path / "shards", tiny_model))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_pipeline_is_loaded_for_the_cpu_in_the_asked_dtype(tiny_model):
    pipe, family = load_pipeline(tiny_model, torch.bfloat16)
    assert family is STABLE_DIFFUSION
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}
    assert {pipe.unet.device, pipe.vae.device, pipe.text_encoder.device} == {torch.device("cpu")}
    assert not any(part.training for part in (pipe.unet, pipe.vae, pipe.text_encoder))


# ---- What a family knows


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_pipeline(tiny_model)


def test_stable_diffusion_reads_its_facts_from_the_model(loaded, tiny_model):
    pipe, family = loaded
    assert family.resolution(tiny_model) == 32
    assert family.objective(pipe).prediction == "epsilon"
    assert torch.equal(family.objective(pipe).alphas_cumprod, pipe.scheduler.alphas_cumprod)


def test_prompts_are_padded_and_cut_to_the_models_length(loaded):
    pipe, family = loaded
    ids = family.tokenize(pipe, ["a photo of sks dog", "a dog " * 50, ""])
    assert ids.shape == (3, 16)
    assert ids.dtype == torch.int64
    assert ids[1, -1] == pipe.tokenizer.eos_token_id, "a cut prompt still ends"


def test_conditioning_is_what_the_pipeline_would_use(loaded):
    pipe, family = loaded
    prompts = ["a photo of sks dog", "a cat in the snow"]
    with torch.no_grad():
        ours = family.encode_text(pipe, family.tokenize(pipe, prompts))["encoder_hidden_states"]
        theirs, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
    assert torch.equal(ours, theirs)


def test_latents_are_the_scaled_posterior(loaded):
    pipe, family = loaded
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean, std = family.encode_images(pipe, pixels)
        posterior = pipe.vae.encode(pixels).latent_dist
    assert mean.shape == std.shape == (2, 4, 8, 8)
    torch.testing.assert_close(mean, posterior.mode() * 0.18215)
    torch.testing.assert_close(std, posterior.std * 0.18215)


def test_the_faster_attention_predicts_the_same(tiny_model, loaded):
    pipe, family = load_pipeline(tiny_model)
    plain, _ = loaded
    use_fastest_attention(pipe, family, 64)
    noisy, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    with torch.no_grad():
        conditioning = family.encode_text(plain, family.tokenize(plain, ["a dog", "a cat"]))
        ours, theirs = (family.predict(p, noisy, t, conditioning) for p in (pipe, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_older_text_encoder_file_loads_its_weights(tiny_model, tmp_path):
    """transformers 4 wrote `text_model.` before each name; what generation saves keeps to that."""
    shutil.copytree(tiny_model, tmp_path / "old")
    file = tmp_path / "old" / TEXT
    state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    old, _ = load_pipeline(tmp_path / "old")
    new, _ = load_pipeline(tiny_model)
    assert all(torch.equal(a, b) for a, b in zip(old.text_encoder.parameters(), new.text_encoder.parameters()))


def test_two_models_share_no_weights(tmp_path, tiny_model):
    other = tiny.stable_diffusion(tmp_path / "other", seed=1)
    a, b = (load_pipeline(folder)[0] for folder in (tiny_model, other))
    assert not torch.equal(a.unet.conv_in.weight, b.unet.conv_in.weight)


def test_models_are_loaded_whole_by_several_threads_at_once(tiny_model):
    """diffusers and transformers swap PyTorch's own functions meanwhile, for every thread."""
    with ThreadPoolExecutor(3) as pool:
        for pipe, _ in pool.map(lambda _: load_pipeline(tiny_model), range(9)):
            assert not any(weight.is_meta for weight in (*pipe.unet.parameters(), *pipe.text_encoder.parameters()))
    assert not torch.nn.Linear(1, 1).weight.is_meta, "the swap is undone"
