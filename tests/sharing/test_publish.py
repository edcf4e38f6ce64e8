"""Publishing against the loopback Hub, with the real client: what arrives, what is refused, and what a fault leaves."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from filelock import FileLock
from safetensors.torch import load_file, save_file

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import merge
from dreambooth.errors import ConfigError, DreamBoothError, HubError, ModelError, RunError
from dreambooth.generate import draw
from dreambooth.hub import TAG, Account, sign_in
from dreambooth.models.adapters import load_model
from dreambooth.models.fetch import fetch_from_hub
from dreambooth.runs.directory import Run
from dreambooth.sharing.publish import Publication, PublishState, publish, read_state
from tests import hub_wire, tiny
from tests.hub import LoopbackHub

REPO = "anna/dog"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run of a tiny model with sample pictures."""
    return train(tmp_path_factory.mktemp("publish"))


@pytest.fixture(scope="module")
def trained_adapter(tmp_path_factory) -> Path:
    """A finished run of Custom Diffusion with two subjects."""
    folder = tmp_path_factory.mktemp("publish")
    cat = {"photos": str(tiny.photos(folder / "cat", 2)), "class_noun": "cat", "identifier": "<tom>"}
    return train(
        folder,
        method="custom_diffusion",
        subject={"identifier": "<sks>"},
        more_subjects=[cat],
        train={"text_encoder": False, "learning_rate": 0.05},
    )


def train(folder: Path, **changes) -> Path:
    """Train a tiny model with settings changed by nested keyword arguments; returns the run's folder."""
    model, photos = tiny.stable_diffusion(folder / "base"), tiny.photos(folder / "disc")
    config = Config.from_dict(
        merge(
            {
                "base_model": str(model),
                "device": "cpu",
                "subject": {"photos": str(photos), "class_noun": "dog"},
                "prior": {"enabled": False},
                "sampling": {"steps": 2, "num_images": 1},
                "train": {
                    "steps": 2,
                    "batch_size": 1,
                    "mixed_precision": "no",
                    "checkpoint_every": 2,
                    "sample_every": 2,
                },
                "evaluation": {"while_training": False, "dino": "toybox", "clip": "toybox", "perceptual": "toybox"},
            },
            changes,
        )
    )
    run = Run.create(config, folder / "run")
    for _ in run.execute():
        pass
    return run.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """A copy of that run of the test's own."""
    return Run(Path(shutil.copytree(trained, tmp_path / "studio" / "dogs")))


@pytest.fixture
def adapter(trained_adapter: Path, tmp_path: Path) -> Run:
    """A copy of the adapter's run."""
    return Run(Path(shutil.copytree(trained_adapter, tmp_path / "studio" / "dog and cat")))


@pytest.fixture
def anna(hub: LoopbackHub) -> Account:
    return sign_in(hub.add_user("anna"))


def carry_out(run: Run, account: Account, **wanted) -> list[events.Event]:
    return list(publish(run, Publication(**{"repo_id": REPO} | wanted), account))


def repo_of(hub: LoopbackHub, repo_id: str = REPO):
    return hub.repos["model", repo_id]


def leaves_no_trace_of(token: str, run: Run, caplog: pytest.LogCaptureFixture, *texts: str) -> None:
    """Neither the files around the run, nor the client's own, nor the log, nor the texts hold the token."""
    for path in run.path.parent.parent.rglob("*"):
        assert token not in str(path)
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
    assert token not in caplog.text
    for text in texts:
        assert token not in text


# ---- What arrives


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_a_published_run_loads_in_stock_diffusers_and_says_what_it_is(hub, anna, run, tmp_path):
    happened = carry_out(run, anna)
    there = repo_of(hub)
    assert len(there.commits) == 2  # the empty repo's own, and one of ours
    assert there.private
    assert TAG in there.tags
    for path, blob in there.files.items():
        (tmp_path / "back" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / path).write_bytes(blob.read())
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "back")
    ours = load_file(run.path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, ours[key]) for key, value in pipe.unet.state_dict().items())
    names = set(there.files)
    assert {"README.md", "config.yaml", "model_index.json"} <= names
    assert not any(name.startswith(("photos/", "checkpoints/", ".publish")) for name in names)
    last = happened[-1]
    assert isinstance(last, events.Published)
    assert last.url == f"{hub.url}/{REPO}"
    assert last.commit == there.commits[-1].oid


def test_the_events_tell_how_far_it_is(hub, anna, run):
    before = run.path.joinpath("events.jsonl").read_bytes()
    happened = carry_out(run, anna)
    assert [e.name for e in happened if isinstance(e, events.Stage)] == ["prepare", "upload", "commit"]
    total = next(e.total for e in happened if isinstance(e, events.Stage) and e.name == "upload")
    done = [e.done for e in happened if isinstance(e, events.Progress)]
    assert done == sorted(done)
    assert done[-1] == total
    assert total == sum(blob.size for path, blob in repo_of(hub).files.items() if path != ".gitattributes")
    assert run.path.joinpath("events.jsonl").read_bytes() == before  # publishing is apart from the run's state
    assert run.status == "finished"


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_a_large_file_is_sent_by_itself_and_tells_how_far_it_is(hub, anna, run, monkeypatch):
    monkeypatch.setattr("dreambooth.sharing.publish._LOOK", 0.02)
    unet = run.path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({"w": torch.rand(10_000_000, generator=torch.Generator().manual_seed(0))}, unet)
    fault = hub.fail(r"PUT /storage/|POST /cas/v1/xorbs/", "slow", after=10_000_000, times=99)
    rest = threading.Timer(20, fault.released.set)  # in case that nothing is told
    rest.start()
    attempt = publish(run, Publication(repo_id=REPO), anna)
    total = next(e.total for e in attempt if isinstance(e, events.Stage) and e.name == "upload")
    done = [event.done for event in attempt if isinstance(event, events.Progress) and not fault.released.set()]
    rest.cancel()
    within = [d for d in done if total - unet.stat().st_size < d < total]
    assert within
    assert done == sorted(done)


def test_the_state_tells_what_is_published(hub, anna, run):
    assert read_state(run.path) is None
    assert not run.published
    carry_out(run, anna)
    assert read_state(run.path) == PublishState("published", REPO, private=True, url=f"{hub.url}/{REPO}")
    assert run.published
    assert not (run.path / "publishing.json").exists()
    assert not list(run.path.glob(".publish-*"))


def test_no_path_of_this_machine_is_published(hub, anna, run):
    for name in ("tokenizer/tokenizer_config.json", "unet/config.json"):
        file = run.path / "model" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"name_or_path": "/home/anna/secret/base"}))
    carry_out(run, anna)
    root = str(run.path.parent.parent)
    for path, blob in repo_of(hub).files.items():
        for word in (root, "/home/anna", str(run.config.base_model)):
            assert word.encode() not in blob.read(), path


def test_half_the_size_in_16_bits(hub, anna, run, tmp_path):
    path = "unet/diffusion_pytorch_model.safetensors"
    carry_out(run, anna, half=True)
    (tmp_path / "half.safetensors").write_bytes(repo_of(hub).read(path))
    half, full = load_file(tmp_path / "half.safetensors"), load_file(run.path / "model" / path)
    assert {key: value.dtype for key, value in half.items()} == dict.fromkeys(full, torch.float16)
    assert all(torch.equal(half[key], full[key].half()) for key in full)
    assert repo_of(hub).files[path].size < 0.6 * (run.path / "model" / path).stat().st_size


def test_half_keeps_integers_empty_tensors_and_notes(run, anna, hub, tmp_path):
    mixed = {
        "ids": torch.arange(5),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(1.5),
        "wide": torch.full((2, 3), 0.25, dtype=torch.float64),
    }
    save_file(mixed, run.path / "model" / "vae" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    carry_out(run, anna, half=True)
    (tmp_path / "half.safetensors").write_bytes(repo_of(hub).read("vae/diffusion_pytorch_model.safetensors"))
    half = load_file(tmp_path / "half.safetensors")
    narrow = {torch.float32: torch.float16, torch.float64: torch.float16}
    assert all(half[key].dtype == narrow.get(value.dtype, value.dtype) for key, value in mixed.items())
    assert all(torch.equal(half[key].to(value.dtype), value) for key, value in mixed.items())


def test_a_weight_too_large_for_16_bits_is_an_error(hub, anna, run):
    save_file({"w": torch.tensor([1e6])}, run.path / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelError, match=r"vae/.*: w is too large for 16 bits"):
        carry_out(run, anna, half=True)
    assert ("model", REPO) not in hub.repos
    assert read_state(run.path).state == "failed"


def test_an_organisation_of_ours(hub, run):
    carry_out(run, sign_in(hub.add_user("anna", orgs=("club",), scopes=("write",))), repo_id="club/dog")
    assert ("model", "club/dog") in hub.repos


# ---- Adapters

CUSTOM = "pytorch_custom_diffusion_weights.safetensors"
PARTS = {"model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"}


def drawn(model: Path, run: Run) -> np.ndarray:
    """Both subjects in a picture, by the adapter in that folder on the run's base model."""
    pipe, _ = load_model(model, Path(run.config.base_model))
    return np.asarray(draw(pipe, [run.config.sample_prompts[4]], [5], run.config.sampling)[0], int)


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_of_an_adapter_its_weights_are_published_and_come_back(hub, anna, adapter):
    carry_out(adapter, anna)
    names = set(repo_of(hub).files) - {".gitattributes"}
    assert {name for name in names if not name.startswith("images/")} == {
        "README.md",
        "config.yaml",
        "adapter.json",
        CUSTOM,
        "learned_embeds.safetensors",
        "learned_embeds-2.safetensors",
    }
    assert json.loads(repo_of(hub).read("adapter.json"))["base_model"] == "base", "a folder's name, and no path"
    back = fetch_from_hub(REPO, token=anna.token, adapters=True)
    assert (drawn(back, adapter) == drawn(adapter.path / "model", adapter)).all()


def test_an_adapter_in_16_bits_draws_alike_in_half_the_size(hub, anna, adapter):
    carry_out(adapter, anna, half=True)
    ours = adapter.path / "model" / CUSTOM
    back = fetch_from_hub(REPO, token=anna.token, adapters=True)
    assert {value.dtype for value in load_file(back / CUSTOM).values()} == {torch.float16}
    assert (back / CUSTOM).stat().st_size < 0.75 * ours.stat().st_size, "its header is a part of so small a file"
    apart = np.abs(drawn(back, adapter) - drawn(adapter.path / "model", adapter))
    assert 0 < apart.mean() < 2


@pytest.mark.parametrize("same_machine", [True, False])
def test_a_model_of_another_kind_takes_the_place_of_the_one_before(hub, anna, run, adapter, same_machine):
    """By what publishing kept or, on another machine, by the names of what loading reads; the owner's files stay."""
    hers = {"unet/other.fp16.safetensors", "unet/notes.md", "mine.safetensors"}
    carry_out(run, anna)
    there = repo_of(hub)
    there.commit("hers", there.files | dict.fromkeys(hers, there.files["README.md"]), "anna")
    for latest, gone in ((adapter, PARTS), (run, {"adapter.json", CUSTOM, "learned_embeds-2.safetensors"})):
        assert gone <= set(there.files)
        if same_machine:
            done = next(one.path / "published.json" for one in (run, adapter) if one is not latest)
            shutil.copy(done, latest.path)
        else:
            (latest.path / "published.json").unlink(missing_ok=True)
        carry_out(latest, anna)
        assert not gone & set(there.files)
        assert hers <= set(there.files)
    loadable = {path for path in there.files if path.split("/")[0] in ("unet", "vae", "text_encoder", "tokenizer")}
    assert loadable - hers == {
        p for p in json.loads((run.path / "published.json").read_text())["files"] if p in loadable
    }


def test_the_photos_of_every_subject_are_published_if_asked_and_go_if_not(hub, anna, adapter):
    carry_out(adapter, anna, photos=True)
    photos = {f"photos/0{n}.png" for n in range(3)} | {f"photos/subject-2/0{n}.png" for n in range(2)}
    assert {name for name in repo_of(hub).files if name.startswith("photos/")} == photos
    (adapter.path / "published.json").unlink()
    carry_out(adapter, anna)
    assert not any(name.startswith("photos/") for name in repo_of(hub).files)
    root = str(adapter.path.parent.parent)
    for path, blob in repo_of(hub).files.items():
        assert not any(word.encode() in blob.read() for word in (root, str(adapter.config.base_model))), path


# ---- Again, and over what is there


def test_again_replaces_what_was_there_in_one_commit(hub, anna, run):
    carry_out(run, anna, photos=True)
    there = repo_of(hub)
    assert any(name.startswith("photos/") for name in there.files)
    there.commit("notes of her own", there.files | {"NOTES.md": there.files["README.md"]}, "anna")
    carry_out(run, anna)
    assert len(there.commits) == 4
    assert not any(name.startswith("photos/") for name in there.files)
    assert "NOTES.md" in there.files  # what publishing did not put there stays


def test_what_the_owner_added_stays_and_what_another_run_put_there_goes(hub, anna, run, tmp_path):
    (run.path / "model" / "extra").mkdir()
    (run.path / "model" / "extra" / "more.json").write_text("{}")
    carry_out(run, anna, photos=True)
    there, hers = repo_of(hub), {"images/mine.png", "photos/holiday.png", "unet/other.fp16.safetensors", "self/x"}
    there.commit("pictures of her own", there.files | dict.fromkeys(hers, there.files["README.md"]), "anna")
    shutil.rmtree(run.path / "model" / "extra")
    carry_out(run, anna)
    assert hers <= set(there.files)
    assert "extra/more.json" not in there.files
    carry_out(run, anna, photos=True)

    other = Run(Path(shutil.copytree(run.path, tmp_path / "another machine")))
    (other.path / "published.json").unlink()
    carry_out(other, anna)
    assert hers <= set(there.files)
    assert {name for name in there.files if name.startswith("photos/")} == {"photos/holiday.png"}


def test_again_sends_no_large_file_that_is_there(hub, anna, run):
    carry_out(run, anna)
    sent = hub.bytes_received("PUT")
    first = carry_out(run, anna)[-1].commit
    assert hub.bytes_received("PUT") == sent
    assert first == repo_of(hub).commits[-1].oid


def test_a_model_that_was_not_made_here_is_never_overwritten(hub, anna, run):
    card = "---\ntags:\n- art\n---\nMine.\n"
    hub.add_repo(REPO, {"README.md": card, "model_index.json": "{}"}, app=TAG)
    with pytest.raises(ConfigError, match="is there already and was not made with"):
        carry_out(run, anna)
    assert repo_of(hub).card == card
    assert not hub.bytes_received("(commit|storage)")
    assert read_state(run.path).state == "failed"


def test_a_repo_that_the_login_may_not_see_is_not_taken_for_none(hub, anna, run):
    hub.add_repo(REPO, {"a": "b"}, private=True, app="another")
    with pytest.raises(ConfigError, match="is there already, and this login may not see it"):
        carry_out(run, anna)


def test_an_empty_repo_is_filled(hub, anna, run):
    hub.add_repo(REPO, private=True, app=TAG)
    carry_out(run, anna)
    assert TAG in repo_of(hub).tags


# ---- Who sees it


def test_public_is_made_so_only_when_all_is_there(hub, anna, run):
    hub.fail("POST .*/commit/", 503)
    with pytest.raises(HubError):
        carry_out(run, anna, private=False)
    assert repo_of(hub).private
    carry_out(run, anna, private=False)
    assert not repo_of(hub).private
    assert not read_state(run.path).private


def test_a_public_repo_becomes_private_before_anything_arrives(hub, anna, run):
    carry_out(run, anna, private=False)
    hub.fail("POST .*/preupload/", 403)
    with pytest.raises(HubError):
        carry_out(run, anna, photos=True)
    assert repo_of(hub).private


def test_photos_in_a_private_repo_are_not_made_public_by_its_history(hub, anna, run):
    carry_out(run, anna, photos=True)
    with pytest.raises(ConfigError, match="its history would show them to everybody"):
        carry_out(run, anna, private=False)
    assert repo_of(hub).private
    assert read_state(run.path).state == "failed"
    carry_out(run, anna, private=False, photos=True)
    assert not repo_of(hub).private


def until_upload(attempt) -> None:
    while not (isinstance(event := next(attempt), events.Stage) and event.name == "upload"):
        pass


def test_of_two_who_publish_under_one_new_name_the_later_is_refused(hub, anna, run, tmp_path):
    other = Run(Path(shutil.copytree(run.path, tmp_path / "other")))
    public = publish(run, Publication(repo_id=REPO, private=False), anna)
    until_upload(public)
    carry_out(other, anna, photos=True)
    with pytest.raises(HubError, match="Something else changed it at the same time"):
        list(public)
    assert repo_of(hub).private
    assert len(repo_of(hub).commits) == 2
    assert (read_state(run.path).state, read_state(other.path).state) == ("failed", "published")


def test_a_repo_that_is_filled_as_soon_as_it_is_made_is_left_alone(hub, anna, run, monkeypatch):
    make = hub.add_repo
    monkeypatch.setattr(hub, "add_repo", lambda repo_id, *_, **how: make(repo_id, {"README.md": "Mine."}, **how))
    with pytest.raises(HubError, match="Something else was published as anna/dog"):
        carry_out(run, anna)
    assert repo_of(hub).card == "Mine."


@pytest.mark.parametrize("again", [False, True])
def test_a_repo_that_turns_public_meanwhile_is_private_again_before_anything_is_seen(hub, anna, run, again):
    if again:
        carry_out(run, anna)
    attempt = publish(run, Publication(repo_id=REPO, photos=True), anna)
    until_upload(attempt)
    repo_of(hub).private = False
    refused = hub.fail("PUT .*/settings", 403)
    with pytest.raises(HubError, match=r"Could not make anna/dog private.*Nothing was published"):
        list(attempt)
    assert not any(path.startswith("photos/") for path in repo_of(hub).files)
    assert refused.times == 0
    attempt = publish(run, Publication(repo_id=REPO, photos=True), anna)
    until_upload(attempt)
    repo_of(hub).private = False
    list(attempt)
    assert repo_of(hub).private
    assert read_state(run.path).private


def test_a_model_that_can_not_be_made_public_is_told_to_be_private(hub, anna, run):
    hub.fail("PUT .*/settings", 403)
    with pytest.raises(HubError, match="The model is there, but private") as caught:
        carry_out(run, anna, private=False)
    assert f"{hub.url}/{REPO}/settings" in str(caught.value)
    state = read_state(run.path)
    assert state.state == "failed"
    assert state.url == f"{hub.url}/{REPO}"
    assert json.loads((run.path / "published.json").read_text())["private"]
    carry_out(run, anna, private=False)
    assert read_state(run.path).state == "published"


# ---- Faults

FAULTS = {
    "the token is refused": (r"GET /api/models/", 401, 1, "does not accept the login"),
    "a scope is missing": (r"POST /api/repos/create", 403, 1, "may not do this"),
    "it has gone meanwhile": (r"POST .*/preupload/", 404, 1, "is not there"),
    "somebody else was faster": (r"POST .*/commit/", 409, 1, "Something else changed it"),
    "a commit in between": (r"POST .*/commit/", 412, 1, "Something else changed it"),
    "too large": (r"POST .*/commit/", 413, 1, "too large"),
    "too many requests": (r"POST .*/commit/", 429, 1, "fewer requests"),
    "trouble at the start": (r"GET /api/models/", 500, 1, "in trouble"),
    "trouble for good": (r"POST .*/preupload/", 503, 6, "in trouble"),
    "trouble at the store": (r"PUT /storage/", 500, 99, "in trouble"),
    "trouble at the end": (r"POST .*/commit/", 502, 1, "in trouble"),
    "a cut at the start": (r"GET /api/models/", "cut", 1, "connection"),
    "a cut while repos are made": (r"POST /api/repos/create", "cut", 1, "connection"),
    "a cut in the upload": (r"PUT /storage/", "cut", 99, "connection"),
    "a cut in the commit": (r"POST .*/commit/", "cut", 1, "connection"),
    "the commit's answer is lost": (r"POST .*/commit/", "lost", 1, "connection"),
}


XET_FAULTS = {
    "the store refuses the login": (r"GET .*/xet-write-token/", 401, 99, "does not accept the login"),
    "a scope is missing": (r"GET .*/xet-write-token/", 403, 99, "may not do this"),
    "trouble at the store": (r"POST /cas/v1/xorbs/", 500, 99, "in trouble"),
    "a cut in the upload": (r"POST /cas/v1/xorbs/", "cut", 99, "connection"),
    "trouble at the end of a file": (r"POST /cas/v1/shards", 503, 99, "in trouble"),
    "trouble with the commit": (r"POST .*/commit/", 502, 1, "in trouble"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_and_leaves_the_run_publishable(hub, anna, run, caplog, name):
    meet_and_get_over(hub, anna, run, caplog, *FAULTS[name])


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
@pytest.mark.parametrize("name", XET_FAULTS)
def test_a_fault_of_the_xet_store_does_the_same(hub, anna, run, caplog, name):
    meet_and_get_over(hub, anna, run, caplog, *XET_FAULTS[name])


def meet_and_get_over(hub, anna, run, caplog, match: str, how: int | str, times: int, said: str) -> None:
    """Publish while that goes wrong, then once more."""
    caplog.set_level(logging.DEBUG)
    fault = hub.fail(match, how, times=times)
    with pytest.raises(HubError, match=said) as caught:
        carry_out(run, anna)
    assert fault.times < times
    assert "http://" not in str(caught.value)
    trace = "".join(traceback.format_exception(caught.value))
    assert not any(word in trace for word in ("During handling of", "direct cause of", "site-packages/huggingface_hub"))
    leaves_no_trace_of(anna.token, run, caplog, str(caught.value), trace)
    state = read_state(run.path)
    assert (state.state, state.reason, state.url) == ("failed", str(caught.value), "")
    assert not run.published
    assert run.status == "finished"
    there = hub.repos.get(("model", REPO))
    assert there is None or how == "lost" or set(there.files) == {".gitattributes"}

    hub.faults.clear()
    assert isinstance(carry_out(run, anna)[-1], events.Published)
    assert read_state(run.path).state == "published"
    leaves_no_trace_of(anna.token, run, caplog)


def test_faults_that_pass_are_not_even_told(hub, anna, run):
    hub.fail(r"PUT /storage/", "cut", after=20_000, times=2)
    hub.fail(r"POST .*/preupload/", 503, times=2)
    assert isinstance(carry_out(run, anna)[-1], events.Published)


def test_what_arrived_before_a_fault_is_not_sent_again(hub, anna, run):
    hub.fail(r"POST .*/commit/", 503)
    with pytest.raises(HubError):
        carry_out(run, anna)
    sent = hub.bytes_received("PUT /storage/")
    carry_out(run, anna)
    assert hub.bytes_received("PUT /storage/") == sent > 0


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_what_arrived_of_a_file_is_not_sent_again(hub, anna, run, monkeypatch):
    monkeypatch.setenv("HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_MAX_COUNT", "1")  # as `dreambooth.hub` has it
    carry_out(run, anna)
    before = hub.bytes_received("POST /cas/v1/xorbs")
    weights = {"w": torch.rand(3_000_000, generator=torch.Generator().manual_seed(0))}
    save_file(weights, run.path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    hub.fail("POST /cas/v1/shards", 503, times=99)
    with pytest.raises(HubError):
        carry_out(run, anna)
    hub.faults.clear()
    carry_out(run, anna)
    sent, size = hub.bytes_received("POST /cas/v1/xorbs") - before, weights["w"].nbytes
    assert 0.8 * size < sent < 1.1 * size  # random weights shrink a little


def test_an_expired_token_is_told_and_is_nowhere(hub, anna, run, caplog):
    caplog.set_level(logging.DEBUG)
    del hub.tokens[anna.token]
    with pytest.raises(HubError, match="does not accept the login") as caught:
        carry_out(run, anna)
    leaves_no_trace_of(anna.token, run, caplog, "".join(traceback.format_exception(caught.value)))


def test_a_hub_that_repeats_the_token_is_not_repeated(hub, anna, run, caplog, monkeypatch):
    def refuse(_request):
        raise hub_wire.RefusalError(403, f"The token {anna.token} may not")

    mean = ("POST", re.compile("/api/repos/create"), refuse)
    monkeypatch.setattr(hub_wire, "ROUTES", [mean, *hub_wire.ROUTES])
    with pytest.raises(HubError, match="The token … may not") as caught:
        carry_out(run, anna)
    leaves_no_trace_of(anna.token, run, caplog, "".join(traceback.format_exception(caught.value)))


def test_a_hub_that_says_nothing_is_given_up(hub, anna, run, monkeypatch):
    from huggingface_hub.utils import get_session

    monkeypatch.setattr(get_session(), "timeout", 0.2)
    fault = hub.fail(r"POST .*/commit/", "slow")
    with pytest.raises(HubError, match="does not answer"):
        carry_out(run, anna)
    fault.released.set()
    assert not run.published


def test_a_full_disk_is_told_and_the_hub_is_left_alone(hub, anna, run, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device", str(run.path / "x"))

    with monkeypatch.context() as patch:
        patch.setattr("dreambooth.sharing.card.save_picture", full)
        with pytest.raises(RunError, match="disk is full") as caught:
            carry_out(run, anna)
    assert "--resume" not in str(caught.value)
    assert ("model", REPO) not in hub.repos
    assert read_state(run.path).state == "failed"
    carry_out(run, anna)


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_a_model_file_that_has_gone_is_told_without_a_path(hub, anna, run, monkeypatch):
    weights = run.path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    attempt = publish(run, Publication(repo_id=REPO), anna)
    while not (isinstance(event := next(attempt), events.Stage) and event.name == "upload"):
        pass
    weights.unlink()
    with pytest.raises(RunError, match="No such file") as caught:
        list(attempt)
    assert str(run.path.parent) not in str(caught.value)
    assert not run.published


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda photos: [photo.unlink() for photo in photos.iterdir()], "partner has no prepared photos"),
        (
            lambda photos: [photos.joinpath("00.png").unlink(), photos.joinpath("00.png").symlink_to("/no where/x")],
            "(No such file or directory: 00.png).",
        ),
    ],
)
def test_no_folder_of_the_partner_is_told(hub, anna, run, tmp_path, spoil, said):
    partner = Run(Path(shutil.copytree(run.path, tmp_path / "else where" / "partner")))
    config = partner.path / "config.yaml"
    config.write_text(config.read_text().replace("enabled: false", "enabled: true", 1))
    spoil(partner.path / "photos")
    with pytest.raises(RunError, match=re.escape(said)) as caught:
        list(publish(run, Publication(repo_id=REPO), anna, partner=partner))
    for text in (str(caught.value), (run.path / "publishing.json").read_text()):
        assert not any(word in text for word in (str(tmp_path), "else where", "no where"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("Provided path: '/srv/my runs/dogs/x.bin' is no file"), "Provided path: 'x.bin' is no file"),
        (ValueError("see https://h.co/a/b for anna/dog"), "see https://h.co/a/b for anna/dog"),
    ],
)
def test_a_bug_is_kept_without_folders(hub, anna, run, monkeypatch, error, told):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("dreambooth.sharing.card.save_picture", fail)
    with pytest.raises(ValueError, match=re.escape(str(error))):
        carry_out(run, anna)
    assert read_state(run.path).reason == f"ValueError: {told}"


def test_a_card_that_the_hub_does_not_take_is_told_before_anything_is_sent(hub, anna, run, monkeypatch):
    def refuse(_request):
        return 400, json.dumps({"errors": [{"message": '"license" is none'}], "warnings": []}).encode(), {}

    monkeypatch.setattr(hub_wire, "ROUTES", [("POST", re.compile("/api/validate-yaml"), refuse), *hub_wire.ROUTES])
    with pytest.raises(HubError, match=r"The Hub does not take the model card: .*license.* is none"):
        carry_out(run, anna)
    assert not hub.bytes_received("PUT")
    assert ("model", REPO) not in hub.repos
    assert read_state(run.path).state == "failed"


# ---- One at a time


def test_a_run_that_has_not_finished_is_not_published(hub, anna, run):
    run.append(events.Cancelled(1))
    with pytest.raises(RunError, match="has not finished"):
        carry_out(run, anna)
    assert read_state(run.path) is None


def test_one_attempt_at_a_time(hub, anna, run):
    first = publish(run, Publication(repo_id=REPO), anna)
    next(first)
    assert read_state(run.path).state == "uploading"
    with pytest.raises(RunError, match="is being published already"):
        carry_out(run, anna, repo_id="anna/other")
    assert read_state(run.path).repo_id == REPO
    assert isinstance([*first][-1], events.Published)


def test_an_attempt_that_was_given_up_is_interrupted_and_goes_on(hub, anna, run):
    first = publish(run, Publication(repo_id=REPO), anna)
    while not isinstance(next(first), events.Progress):
        pass
    assert read_state(run.path).done > 0
    first.close()
    state = read_state(run.path)
    assert state.state == "interrupted"
    assert state.total >= state.done > 0
    assert not list(run.path.glob(".publish-*"))
    carry_out(run, anna)
    assert read_state(run.path).state == "published"


def test_what_a_killed_process_left_is_cleared(hub, anna, run):
    (run.path / ".dreambooth-partial-0123abcd-scratch").mkdir()
    carry_out(run, anna)
    assert not list(run.path.glob(".publish-*"))


def test_a_run_deleted_meanwhile_does_not_come_back(hub, anna, run):
    attempt = publish(run, Publication(repo_id=REPO), anna)
    next(attempt)
    run.delete()
    with pytest.raises(DreamBoothError):
        list(attempt)
    assert not run.path.exists()


def test_a_damaged_state_is_told(run):
    (run.path / "publishing.json").write_text('{"state": ')
    with pytest.raises(RunError, match=r"publishing\.json can't be read"):
        read_state(run.path)


def test_to_look_does_not_stop_an_attempt(hub, anna, run):
    lock = FileLock(run.path / ".publishing.lock")
    (run.path / "publishing.json").write_text(
        json.dumps({"state": "uploading", "repo_id": REPO, "private": True, "reason": "", "done": 1, "total": 2})
    )
    with lock:
        assert read_state(run.path).state == "uploading"
    assert read_state(run.path) == PublishState("interrupted", REPO, True, done=1, total=2)
    carry_out(run, anna)
