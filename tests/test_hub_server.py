"""The loopback Hub answers the real client as the Hub does: files both ways, visibility, scopes, faults and login."""

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import fastapi
import gradio.oauth
import httpx
import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from starlette.testclient import TestClient

both = pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
CARD = "---\nlicense: apache-2.0\ntags:\n- dreambooth-studio\npipeline_tag: text-to-image\n---\n# A dog\n"
WEIGHTS = bytes(range(256)) * 1000


@pytest.fixture
def folder(tmp_path):
    """A model's folder: a card, a small configuration and weights."""
    (tmp_path / "model/unet").mkdir(parents=True)
    (tmp_path / "model/README.md").write_text(CARD)
    (tmp_path / "model/unet/config.json").write_text("{}")
    (tmp_path / "model/unet/weights.safetensors").write_bytes(WEIGHTS)
    return tmp_path / "model"


def status(error) -> int:
    return error.value.response.status_code


@both
def test_a_folder_goes_up_in_one_commit_and_comes_back_the_same(hub, folder):
    api = HfApi(token=hub.add_user("anna"))
    api.create_repo("anna/dog", private=True)
    api.create_repo("anna/dog", private=True, exist_ok=True)
    commit = api.upload_folder(repo_id="anna/dog", folder_path=folder)
    repo = hub.repos["model", "anna/dog"]
    assert [c.message for c in repo.commits] == ["initial commit", "Upload folder using huggingface_hub"]
    assert (repo.card, repo.read("unet/weights.safetensors")) == (CARD, WEIGHTS)
    there = api.snapshot_download("anna/dog")
    for file in filter(lambda f: f.is_file(), folder.rglob("*")):
        assert Path(there, file.relative_to(folder)).read_bytes() == file.read_bytes()
    info = api.model_info("anna/dog")
    assert (info.sha, info.card_data.license, info.private) == (commit.oid, "apache-2.0", True)
    tree = {entry.path for entry in api.list_repo_tree("anna/dog", recursive=True)}
    assert tree == {".gitattributes", "README.md", "unet", "unet/config.json", "unet/weights.safetensors"}
    assert {entry.path for entry in api.list_repo_tree("anna/dog", "unet")} == tree - {
        ".gitattributes",
        "README.md",
        "unet",
    }


def test_large_files_go_in_parts_and_a_known_one_does_not_go_again(hub):
    hub.part_size = 100_000
    api = HfApi(token=hub.add_user("anna"))
    api.create_repo("anna/dog")
    for name in ("one.safetensors", "two.safetensors"):
        api.upload_file(repo_id="anna/dog", path_in_repo=name, path_or_fileobj=WEIGHTS)
    assert hub.repos["model", "anna/dog"].read("two.safetensors") == WEIGHTS
    assert [r.received for r in hub.requests if r.method == "PUT"] == [100_000, 100_000, 56_000]


def test_a_commit_deletes_and_replaces_and_does_not_overwrite_what_it_has_not_seen(hub):
    api = HfApi(token=hub.add_user("anna"))
    repo = hub.add_repo("anna/dog", {"photos/1.txt": "x", "a.txt": "old"}, app="dreambooth-studio")
    seen = repo.commits[-1].oid
    operations = [CommitOperationDelete("photos/"), CommitOperationAdd("a.txt", b"new")]
    api.create_commit("anna/dog", operations, commit_message="Republish", parent_commit=seen)
    assert sorted(repo.files) == [".gitattributes", "a.txt"]
    with pytest.raises(HfHubHTTPError) as late:
        api.upload_file(repo_id="anna/dog", path_in_repo="a.txt", path_or_fileobj=b"late", parent_commit=seen)
    assert (status(late), repo.read("a.txt")) == (412, b"new")
    old = hf_hub_download("anna/dog", "a.txt", revision=seen, token=api.token)
    assert Path(old).read_text() == "old"


def test_a_private_repo_is_nobody_elses(hub):
    anna, bob = HfApi(token=hub.add_user("anna", scopes=("read",))), HfApi(token=hub.add_user("bob"))
    hub.add_repo("anna/dog", {"a.txt": "x"}, private=True)
    anna.auth_check("anna/dog")
    for stranger, code in ((bob, 404), (HfApi(token=False), 401)):
        for ask in (stranger.auth_check, stranger.model_info, stranger.snapshot_download):
            with pytest.raises(RepositoryNotFoundError) as refused:
                ask("anna/dog")
            assert status(refused) == code
        assert [*stranger.list_models(author="anna")] == []
    with pytest.raises(RepositoryNotFoundError):
        bob.auth_check("anna/missing")
    assert [m.id for m in anna.list_models(author="anna")] == ["anna/dog"]
    with pytest.raises(HfHubHTTPError) as unknown:
        HfApi(token="hf_unknown").whoami()
    assert status(unknown) == 401


def test_a_token_does_what_its_scopes_say(hub):
    reader = HfApi(token=hub.add_user("anna", scopes=("read-repos",)))
    least = HfApi(token=hub.add_user("anna", scopes=("contribute-repos",), orgs=("club",)))
    owner = HfApi(token=hub.add_user("anna", scopes=("manage-repos",)))
    hub.add_repo("anna/made-elsewhere")
    hub.add_repo("anna/private-elsewhere", private=True)
    assert [org["name"] for org in least.whoami()["orgs"]] == ["club"]
    least.create_repo("club/dog", private=True)
    least.update_repo_settings("club/dog", private=False)
    assert not hub.repos["model", "club/dog"].private
    for refused in (
        lambda: reader.create_repo("anna/new"),
        lambda: least.create_repo("bob/new"),
        lambda: least.upload_file(repo_id="anna/made-elsewhere", path_in_repo="a", path_or_fileobj=b"x"),
        lambda: least.auth_check("anna/made-elsewhere", write=True),
        lambda: least.delete_repo("club/dog"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            refused()
        assert status(error) == 403
    with pytest.raises(RepositoryNotFoundError):
        least.model_info("anna/private-elsewhere")
    with pytest.raises(HfHubHTTPError) as exists:
        least.create_repo("club/dog")
    assert status(exists) == 409
    owner.delete_repo("club/dog")
    assert ("model", "club/dog") not in hub.repos


def test_gated_repos_and_missing_revisions_and_files_are_told_apart(hub):
    bob = HfApi(token=hub.add_user("bob"))
    repo = hub.add_repo("anna/dog", {"a.txt": "x"}, gated=True)
    with pytest.raises(GatedRepoError):
        bob.auth_check("anna/dog")
    repo.granted.add("bob")
    bob.auth_check("anna/dog")
    with pytest.raises(RevisionNotFoundError):
        bob.snapshot_download("anna/dog", revision="v9")
    repo.refs["v1"] = repo.commits[0].oid
    assert not bob.file_exists("anna/dog", "a.txt", revision="v1")
    assert bob.file_exists("anna/dog", "a.txt")


def test_models_are_found_by_tag_and_author_newest_first_over_pages(hub):
    for number in range(5):
        hub.add_repo(f"anna/dog{number}", {"README.md": CARD})
    hub.add_repo("bob/cat", {"README.md": CARD})
    hub.add_repo("anna/other", {"README.md": "no front matter"})
    api = HfApi(token=False)
    found = api.list_models(filter="dreambooth-studio", author="anna", cardData=True, sort="created_at", limit=3)
    assert [m.id for m in found] == ["anna/dog4", "anna/dog3", "anna/dog2"]
    assert {m.id for m in api.list_models(filter=["dreambooth-studio", "text-to-image"])} == {
        *(f"anna/dog{n}" for n in range(5)),
        "bob/cat",
    }


def test_the_cards_front_matter_is_checked(hub):
    ModelCard(CARD).validate()
    with pytest.raises(ValueError, match="bad yaml"):
        HfApi()._validate_yaml("---\ntags: [\n---\n")


def test_a_trouble_that_passes_is_tried_again_and_one_that_stays_is_told(hub, folder):
    api = HfApi(token=hub.add_user("anna"))
    api.create_repo("anna/dog")
    hub.fail("POST .*/preupload/", 503, times=2)
    hub.fail("PUT /storage", "cut", after=1000)
    api.upload_folder(repo_id="anna/dog", folder_path=folder)
    assert [r.status for r in hub.requests if r.method == "PUT"] == [0, 200]
    assert hub.bytes_received("PUT /storage") == 1000 + len(WEIGHTS)
    for code in (413, 500):
        hub.fail("POST .*/commit/", code)
        with pytest.raises(HfHubHTTPError) as stays:
            api.create_commit("anna/dog", [CommitOperationAdd("b.txt", b"x")], commit_message="b")
        assert status(stays) == code


@both
def test_a_retry_sends_only_what_had_not_arrived(hub, tmp_path):
    api, store = HfApi(token=hub.add_user("anna")), "POST /cas/v1/xorbs" if hub.xet else "PUT /storage"
    api.create_repo("anna/dog")
    operations = []
    for name in "ab":
        (tmp_path / name).write_bytes(WEIGHTS + name.encode())
        operations.append(CommitOperationAdd(f"{name}.safetensors", str(tmp_path / name)))
    api.preupload_lfs_files("anna/dog", operations[:1])
    first = hub.bytes_received(store)
    hub.fail(store, "cut", after=100, times=100)
    with pytest.raises((ConnectionError, RuntimeError)):
        api.preupload_lfs_files("anna/dog", operations[1:])
    assert len(hub.repos["model", "anna/dog"].commits) == 1
    hub.faults.clear()
    before = hub.bytes_received(store)
    api.create_commit(
        "anna/dog", [CommitOperationAdd(o.path_in_repo, o.path_or_fileobj) for o in operations], commit_message="x"
    )
    assert 0 < hub.bytes_received(store) - before <= first
    assert hub.repos["model", "anna/dog"].read("b.safetensors") == WEIGHTS + b"b"


def test_an_answer_can_be_lost_and_one_can_hang(hub):
    api = HfApi(token=hub.add_user("anna"))
    api.create_repo("anna/dog")
    hub.fail("POST .*/commit/", "lost")
    with pytest.raises(httpx2.TransportError):
        api.create_commit("anna/dog", [CommitOperationAdd("a.txt", b"x")], commit_message="a")
    assert hub.repos["model", "anna/dog"].read("a.txt") == b"x"
    slow = hub.fail("GET .*/resolve/", "slow")
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(api.hf_hub_download("anna/dog", "a.txt")))
    asking.start()
    assert slow.arrived.wait(10)
    assert not answers
    slow.released.set()
    asking.join(10)
    assert Path(answers[0]).read_text() == "x"


def test_a_line_that_is_down_breaks_what_is_under_way(hub, folder):
    api = HfApi(token=hub.add_user("anna"))
    api.create_repo("anna/dog")
    half_way = hub.fail("PUT /storage", "slow", after=1000)

    def take_down():
        half_way.arrived.wait(10)
        hub.down = True
        half_way.released.set()

    threading.Thread(target=take_down).start()
    with pytest.raises(RuntimeError, match=r"Error while uploading 'unet/weights\.safetensors'"):
        api.upload_folder(repo_id="anna/dog", folder_path=folder)
    hub.down = False
    api.upload_folder(repo_id="anna/dog", folder_path=folder)
    assert hub.repos["model", "anna/dog"].read("unet/weights.safetensors") == WEIGHTS


@both
def test_a_download_that_breaks_off_goes_on(hub, folder):
    api = HfApi(token=hub.add_user("anna"))
    api.create_repo("anna/dog")
    api.upload_folder(repo_id="anna/dog", folder_path=folder)
    hub.fail("GET /storage/", "cut", after=1000)
    assert Path(api.hf_hub_download("anna/dog", "unet/weights.safetensors")).read_bytes() == WEIGHTS
    assert sum("/storage/" in r.path and r.method == "GET" for r in hub.requests) >= 2


def test_another_process_uses_it_too(hub):
    hub.add_repo("anna/dog", {"a.txt": "x"}, private=True)
    code = "from huggingface_hub import hf_hub_download as get; print(open(get('anna/dog', 'a.txt')).read())"
    run = partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    assert "RepositoryNotFoundError" in run(env=hub.environment()).stderr
    assert run(env=hub.environment(hub.add_user("anna", scopes=("read",)))).stdout == "x\n"


def test_gradio_logs_a_visitor_in(hub, monkeypatch):
    hub.add_user("anna")
    hub.add_user("bob")
    for name, value in hub.oauth_environment().items():
        monkeypatch.setenv(name, value)
        if hasattr(gradio.oauth, name):
            monkeypatch.setattr(gradio.oauth, name, value)
    app = fastapi.FastAPI()
    gradio.oauth.attach_oauth(app)

    @app.get("/me")
    def me(request: fastapi.Request):
        return request.session["oauth_info"]

    studio = TestClient(app, base_url="https://studio", follow_redirects=False)
    asked = studio.get("/login/huggingface").headers["Location"]
    assert "Log in as bob" in httpx.get(asked).text
    answer = httpx.get(f"{asked}&as=bob")
    studio.get(answer.headers["Location"])
    login = studio.get("/me").json()
    assert login["userinfo"]["preferred_username"] == "bob"
    assert login["scope"] == "openid profile contribute-repos"
    api = HfApi(token=login["access_token"])
    assert api.whoami()["name"] == "bob"
    api.create_repo("bob/dog", private=True)
    # The browser that has logged in may look at what its person may see, another may not.
    hub.repos["model", "bob/dog"].commit("card", {}, "bob")
    assert httpx.get(f"{hub.url}/bob/dog", cookies=answer.cookies).status_code == 200
    assert httpx.get(f"{hub.url}/bob/dog").status_code == 401


def test_a_repos_page_shows_its_card_and_pictures(hub):
    front = "---\nwidget:\n- text: a dog\n  output:\n    url: images/0.png\n---\n"
    card = front + "<Gallery />\n\n# Dog\n\n|a|b|\n|-|-|\n|1|2|\n"
    hub.add_repo("anna/dog", {"README.md": card, "images/0.png": b"\x89PNG"})
    page = httpx.get(f"{hub.url}/anna/dog").text
    assert "<h1>Dog</h1>" in page
    assert "<td>1</td>" in page
    assert '<img src="images/0.png"' in page
    assert httpx.get(f"{hub.url}/anna/dog/resolve/main/images/0.png", follow_redirects=True).content == b"\x89PNG"
