"""Fetching models: what comes of a repo, for whom, and that whatever goes wrong is told in one clear line.

The Hub is a server on this machine that answers as huggingface.co does; its client is the real one.
"""

from __future__ import annotations

import io
import json
import shutil
import socket
import threading
import traceback
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_api, snapshot_download
from safetensors.torch import load, save, save_file

from dreambooth.config.sections import MOST_SUBJECTS, MOST_VECTORS
from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import MAX_FOREIGN_YAML
from dreambooth.errors import DreamBoothError, HubError, ModelError
from dreambooth.families.load import load_pipeline
from dreambooth.hub import visitors_cache
from dreambooth.models import fetch
from dreambooth.models.adapters import Adapter, fetch_base, load_model, read_adapter
from dreambooth.models.fetch import (
    MAX_HEADER,
    download_failure,
    fetch_files,
    fetch_from_hub,
    fetch_model,
    fingerprint,
    list_files,
)
from tests import tiny
from tests.hub import LoopbackHub
from tests.hub_repos import git_hash
from tests.ui.studios import save_adapter

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
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_hash(data)}"'}
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


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("key", ["unet.down.attn1.to_k.lora.down.weight", "lora_te_text_model_q.lora_up.weight"])
def test_a_lora_of_another_program_is_told_with_what_an_adapter_is(tmp_path, key, adapters):
    """As a file, as `export` and others write it, and in a folder, as diffusers does."""
    (tmp_path / "lora").mkdir()
    save_file({key: torch.zeros(2)}, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    for path in (tmp_path / "lora", tmp_path / "lora" / "pytorch_lora_weights.safetensors"):
        with pytest.raises(ModelError) as said:
            fetch_model(str(path), adapters=adapters)
        assert f"{path} is a LoRA without its adapter.json" in str(said.value)
        assert "the folder that a training with method lora wrote here" in said.value.hint
        assert "load_lora_weights" in said.value.hint


def test_what_is_no_model_is_named(tmp_path, tiny_model):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "empty: no model_index.json in it. Give a diffusers" in refusal(ModelError, str(tmp_path / "empty"))
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"x")
    assert "no model_index.json in it, but model.safetensors" in refusal(ModelError, str(tmp_path / "empty"))
    for name in ("model.safetensors", "models/none.ckpt"):
        told = refusal(ModelError, str(tmp_path / name) if "none" not in name else name)
        assert "file" in told
        assert "from_single_file(FILE).save_pretrained(FOLDER)" in told
    for missing in (str(tmp_path / "none"), "none", "./a/b", "~nosuchuser/x", "a/b/c", "a\0b"):
        assert f"{missing}: no such folder. Give toybox" in refusal(ModelError, missing)


def test_a_folder_one_too_high_or_too_low_is_told_with_the_right_one(tmp_path, tiny_model):
    (tmp_path / "above" / "below").mkdir(parents=True)
    shutil.copy(tiny_model / "model_index.json", tmp_path / "above" / "below")
    assert "Give the folder inside that has one: below." in refusal(ModelError, str(tmp_path / "above"))
    (tmp_path / "above" / "below" / "scheduler").mkdir()
    told = refusal(ModelError, str(tmp_path / "above" / "below" / "scheduler"))
    assert f"It is one part of a pipeline: give {tmp_path / 'above' / 'below'}." in told


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


@pytest.mark.parametrize(
    "damage",
    [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda whole: bytes(len(whole))],
    ids=["empty", "half", "zeros"],
)
def test_what_a_power_cut_damaged_comes_again_and_what_was_found_whole_is_not_read_again(
    hub, tiny_model, tmp_path, monkeypatch, damage
):
    hub.add_repo("anna/tiny", tiny_model)
    folder = fetch_from_hub("anna/tiny")
    names = ("unet/diffusion_pytorch_model.safetensors", "model_index.json")
    whole = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).resolve().write_bytes(damage(whole[name]))
    assert fetch_from_hub("anna/tiny") == folder
    assert {name: (folder / name).read_bytes() for name in names} == whole
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_digest", None)
        assert fetch_from_hub("anna/tiny") == folder
    (folder / names[0]).resolve().write_bytes(damage(whole[names[0]]))
    hub.down = True
    with pytest.raises(HubError, match="could not be downloaded"):
        fetch_from_hub("anna/tiny")


def test_a_downloaded_model_needs_no_hub(tiny_hub, tmp_path, monkeypatch):
    folder = fetch_model("owner/tiny")
    point_client_at(closed_port(), tmp_path / "hub", monkeypatch)
    assert fetch_model("owner/tiny") == folder


def test_a_hub_that_can_not_be_reached_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
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
    assert set(tiny_hub.sent) <= {f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")} | {
        "text_encoder/model.safetensors"
    }
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
        "anna/dog is not on the Hub, or is private.",
        "The Hub does not accept the login.",
        "There is no Hugging Face",
    )
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
        "movies/a.mp4",
        "stuff.safetensors",
        "unet/more.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/x.py",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/[a].json",
        "unet/deep/config.json",
    )
    hub.add_repo(
        "mona/junk",
        files
        | dict.fromkeys(more, b"x")
        | {
            "model_index.json": json.dumps(index),
            "README.md": bytes(MAX_FOREIGN_YAML + 1),
            "config.yaml": bytes(300_000),
        },
    )
    for token in (None, False):
        folder = fetch_from_hub("mona/junk", token=token)
        assert set(repo_files(folder)) == set(files)
        with pytest.raises(ModelError, match=r"it has a [^ ]+, which is no part of such a model"):
            load_pipeline(folder)


def test_a_model_that_is_too_large_is_refused_before_its_weights_come(hub, tiny_model):
    size = sum(map(len, repo_files(tiny_model).values()))
    hub.add_repo("anna/dog", tiny_model)
    with pytest.raises(ModelError, match=r"anna/dog has 0\.0 GB, more than the 0\.0 GB that are fetched here\."):
        fetch_from_hub("anna/dog", token=False, max_bytes=size / 2)
    assert not any("unet/diff" in request.path for request in hub.requests)
    assert load_pipeline(fetch_from_hub("anna/dog", token=False, max_bytes=size))


@pytest.mark.parametrize("name", ["model_index.json", "tokenizer/tokenizer.json"])
def test_a_file_that_would_fill_the_memory_is_not_fetched(hub, tiny_model, monkeypatch, name):
    monkeypatch.setattr("dreambooth.models.fetch.MAX_SMALL_FILE", 50_000)
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
    files["text_encoder/adapter_config.json"] = json.dumps(
        {
            "peft_type": "LORA",
            "base_model_name_or_path": named.format(owners=owners),
            "target_modules": ["q_proj"],
        }
    )
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


def test_the_fingerprint_is_of_what_loading_reads(hub, tiny_model):
    """So that an adapter finds its base model again wherever that was downloaded, and by which program."""
    more = {
        "unet/diffusion_pytorch_model.bin": b"x",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"x",
        "v1.ckpt": b"x",
    }
    hub.add_repo("anna/base", repo_files(tiny_model) | more)
    whole = Path(snapshot_download("anna/base"))
    assert {path.as_posix() for path in map(Path, more)} <= set(repo_files(whole))
    assert fingerprint(whole) == fingerprint(tiny_model) == fingerprint(fetch_from_hub("anna/base", token=False))


# ---- Adapters


WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def adapter(tiny_model, photo_folder, tmp_path_factory) -> Path:
    """The folder of a LoRA of the tiny model, named as that of a Hub repo."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    save_adapter(configured(tiny_model, photo_folder), folder)
    facts = json.loads((folder / "adapter.json").read_text()) | {"base_model": "anna/base"}
    (folder / "adapter.json").write_text(json.dumps(facts))
    return folder


def configured(model: Path, photos: Path, **settings) -> Config:
    given = {"base_model": str(model), "method": "lora", "subject": {"photos": str(photos), "class_noun": "dog"}}
    return Config.from_dict(given | settings)


def described(**changes) -> str:
    """An `adapter.json`."""
    facts = {
        "method": "lora",
        "base_model": "anna/base",
        "revision": None,
        "base_fingerprint": "x",
        "identifiers": ["sks"],
    }
    return json.dumps(facts | changes)


def test_of_an_adapter_comes_what_its_method_reads_and_nothing_else(hub, adapter, tiny_model):
    ours = repo_files(adapter)
    more = (
        "movies/a.mp4",
        "stuff.safetensors",
        "pytorch_lora_weights.bin",
        "learned_embeds.bin",
        "unet/config.json",
        "learned_embeds/more.safetensors",
        "pytorch_custom_diffusion_weights.safetensors",
        "photos/00.png",
    )
    word = save({"<sks>": torch.zeros(1, 16)})
    about = {"README.md": b"# A dog", "config.yaml": b"seed: 1", "learned_embeds.safetensors": word}
    hub.add_repo("anna/dog", ours | about | dict.fromkeys(more, b"x"))
    hub.add_repo("anna/base", tiny_model)
    for token in (None, False):
        folder = fetch_model("anna/dog", token=token, adapters=True)
        assert set(repo_files(folder)) == {*ours, *about} - {"step.json"}, "of a run alone"
        pipe, _ = load_model(folder, token=token)
        assert pipe.get_list_adapters() == {"unet": ["adapter-0"], "text_encoder": ["adapter-0"]}
        assert "<sks>" in pipe.tokenizer.get_vocab()
    assert {request.user for request in hub.requests} == {None}


def test_an_adapter_is_no_model_where_none_is_asked_for(hub, adapter):
    hub.add_repo("anna/dog", adapter)
    for name in ("anna/dog", str(adapter)):
        assert refusal(ModelError, name).startswith(f"{name} is an adapter, which is no model by itself. Give its base")
    assert fetch_model(str(adapter), adapters=True) == adapter.resolve()
    assert not any(WEIGHTS in request.path for request in hub.requests)


def test_a_downloaded_adapter_needs_no_hub(hub, adapter, monkeypatch):
    hub.add_repo("anna/dog", adapter)
    folder = fetch_model("anna/dog", adapters=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_model("anna/dog", adapters=True) == folder


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_a_private_adapter_and_a_private_base_are_their_owners_alone(hub: LoopbackHub, adapter, tiny_model):
    anna, bert = hub.add_user("anna", scopes=("read",)), hub.add_user("bert", scopes=("read",))
    hub.add_repo("anna/dog", adapter, private=True)
    hub.add_repo("anna/base", tiny_model, private=True)
    folder = fetch_from_hub("anna/dog", token=anna, adapters=True)
    assert folder.is_relative_to(visitors_cache())
    base = fetch_base(read_adapter(folder), token=anna)
    assert load_model(folder, token=anna)
    for stranger in (bert, False, "hf_made_up_token_of_nobody"):
        with pytest.raises(DreamBoothError):
            fetch_from_hub("anna/dog", token=stranger, adapters=True)
        with pytest.raises(DreamBoothError) as caught:
            load_model(folder, token=stranger)
        assert str(base) not in str(caught.value)


def test_an_adapter_or_a_base_that_is_too_large_is_refused_before_its_weights_come(hub, adapter, tiny_model):
    hub.add_repo("anna/dog", adapter)
    hub.add_repo("anna/base", tiny_model)
    with pytest.raises(ModelError, match=r"anna/dog has 0\.0 GB, more than"):
        fetch_from_hub("anna/dog", token=False, adapters=True, max_bytes=1000)
    with pytest.raises(ModelError, match=r"anna/base has 0\.0 GB, more than"):
        fetch_base(read_adapter(adapter), token=False, max_bytes=1000)
    assert not any(".safetensors" in request.path for request in hub.requests)


def test_an_adapter_of_a_model_that_changed_since_is_told(hub, adapter, tmp_path):
    hub.add_repo("anna/dog", adapter)
    hub.add_repo("anna/base", tiny.stable_diffusion(tmp_path / "other", seed=1))
    with pytest.raises(ModelError, match="anna/dog is an adapter of another base model than anna/base"):
        load_model(fetch_from_hub("anna/dog", token=False, adapters=True), token=False)


@pytest.mark.parametrize(
    "name", ["/srv/private", "../private", "~/private", "mine/private", "private", ".", "a/b/c", ""]
)
def test_a_strangers_adapter_names_no_folder_of_this_machine(hub, tiny_model, tmp_path, monkeypatch, name):
    """`mine/private` is a folder here, and could be an id of the Hub."""
    for folder in ("mine/private", "private"):
        shutil.copytree(tiny_model, tmp_path / "cwd" / folder)
    monkeypatch.chdir(tmp_path / "cwd")
    facts = Adapter.model_validate_json(described(base_model=name))
    with pytest.raises(
        ModelError, match=r"is not on the Hub, (or is private|whose repos are)|is a folder of the machine where it was"
    ) as said:
        fetch_base(facts)
    assert "no model_index.json" not in str(said.value)


@pytest.mark.parametrize(
    "name",
    ["../../etc/x", "../x", "anna/..", "anna/base/../../x", "datasets/anna/x", "anna", "", "a\nb/c", "é/x", "/x"],
)
def test_a_name_that_is_none_of_a_repo_reaches_no_address(hub, adapter, name):
    """Neither a typed one nor that of a stranger's base model: a visitor's token would go along."""
    anna = hub.add_user("anna", scopes=("read",))
    with pytest.raises(ModelError, match="is not on the Hub, whose repos are called OWNER/NAME") as said:
        fetch_from_hub(name, token=anna, adapters=True)
    assert len(str(said.value).splitlines()) == 1
    hub.add_repo("mona/dog", repo_files(adapter) | {"adapter.json": described(base_model=name)})
    folder = fetch_from_hub("mona/dog", token=anna, adapters=True)
    hub.requests.clear()
    with pytest.raises(ModelError):
        load_model(folder, token=anna)
    assert hub.requests == []


def words(count: int = 1, vectors: int = 1, more: int = 0) -> dict[str, bytes]:
    """The files of so many learned words, of so many embeddings and further bytes each."""
    names = (f"learned_embeds{f'-{n}' if n > 1 else ''}.safetensors" for n in range(1, count + 1))
    return {name: save({f"<w{n}>": torch.zeros(vectors, 16)}) + b"0" * more for n, name in enumerate(names)}


def test_as_many_words_as_a_run_learns_are_fetched(hub, adapter):
    hub.add_repo("mona/dog", repo_files(adapter) | words(MOST_SUBJECTS, MOST_VECTORS))
    folder = fetch_from_hub("mona/dog", token=False, adapters=True)
    assert len(list(folder.glob("learned_embeds*"))) == MOST_SUBJECTS


@pytest.mark.parametrize("method", ["lora", "textual_inversion", "custom_diffusion"])
@pytest.mark.parametrize(
    ("files", "told", "fetched"),
    [
        (words(vectors=17), r"mona/dog: learned_embeds.safetensors holds a word of 17 embeddings, more than 16", 1),
        (words(10), "mona/dog holds 10 learned words, more than 9", 0),
        (words(2, more=2**23), r"mona/dog: its learned words have 16,[0-9,]+ bytes, too many for words", 0),
    ],
    ids=["vectors", "words", "bytes"],
)
def test_words_that_no_run_learns_are_refused_before_the_weights_come(hub, adapter, method, files, told, fetched):
    """Each of a word's embeddings is looked for in every prompt, while nobody else can draw."""
    weights = (WEIGHTS, "pytorch_custom_diffusion_weights.safetensors")
    about = {"adapter.json": described(method=method)} | dict.fromkeys(weights, (adapter / WEIGHTS).read_bytes())
    hub.add_repo("mona/dog", about | files)
    with pytest.raises(ModelError, match=told):
        fetch_from_hub("mona/dog", token=False, adapters=True)
    asked = {Path(request.path).name for request in hub.requests if "/resolve/" in request.path}
    assert {name for name in asked if ".safetensors" in name} == set(list(files)[:fetched])


def huge(side: int) -> bytes:
    header = json.dumps({"x.lora_A.weight": {"dtype": "F32", "shape": [side, 0], "data_offsets": [0, 0]}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"adapter.json": "{"}, "mona/dog: adapter.json names no method that is known here"),
        ({"adapter.json": "[" * 100_000}, "names no method that is known here"),
        ({"adapter.json": described(method="full")}, "names no method that is known here"),
        ({"adapter.json": described(method=["lora"])}, "names no method that is known here"),
        ({"adapter.json": described() + " " * 2**24}, "mona/dog: adapter.json has [0-9,]+ bytes, too many"),
        ({WEIGHTS: b"PK"}, f"mona/dog: {WEIGHTS} is no safetensors file"),
        ({WEIGHTS: (8).to_bytes(8, "little") + b"[1,2,3] "}, "is no safetensors file"),
        ({WEIGHTS: (MAX_HEADER + 1).to_bytes(8, "little")}, f"{WEIGHTS} has a header of 1,048,577 bytes"),
        ({WEIGHTS: huge(10**9)}, f"{WEIGHTS} holds a side of 1,000,000,000, more than any such model has"),
    ],
)
def test_a_strangers_adapter_is_looked_at_before_anything_reads_it(hub, adapter, files, words):
    hub.add_repo("mona/dog", repo_files(adapter) | files)
    with pytest.raises(ModelError, match=words):
        fetch_from_hub("mona/dog", token=False, adapters=True)


def test_a_repo_that_is_neither_is_told_as_before(hub):
    hub.add_repo("anna/notes", {"README.md": "# Notes"})
    with pytest.raises(ModelError, match=r"anna/notes lacks a file: .* Give a repo with a diffusers pipeline"):
        fetch_from_hub("anna/notes", adapters=True)
