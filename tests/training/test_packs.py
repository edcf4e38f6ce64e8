"""Class-image packs: published once, fetched instead of drawn, and taken only where every picture is what it should."""

from __future__ import annotations

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth.errors import ConfigError, HubError, ModelError
from dreambooth.families.load import load_pipeline
from dreambooth.hub import TAG, sign_in
from dreambooth.training import prior
from dreambooth.training.packs import MAX_KEY, fetch_pack, pack_key, publish_pack


@pytest.fixture
def drawn(make_config, tiny_model):
    """A config whose four class images are in the cache."""
    config = make_config()
    key = pack_key(config)
    for _ in prior.draw_class_images(load_pipeline(tiny_model)[0], config, prior.cache_folder(key), key, None):
        pass
    return config


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A function that leaves this machine's cache behind for an empty one."""

    def move():
        monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "another machine"))

    return move


def cached(config) -> dict[str, bytes]:
    """The pixels of the class images that are in the cache, by name."""
    pixels = {}
    for path in prior.cache_folder(pack_key(config)).glob("[0-9]*.png"):
        with Image.open(path) as image:
            pixels[path.name] = image.convert("RGB").tobytes()
    return pixels


def noise(side: int = 32, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def add_pack(hub, config, repo_id: str = "mona/pack", **files: bytes | str) -> None:
    """A pack of four pictures made by hand; `files` are put over its own, by path with __ for / and _png for .png."""
    own = {"key.json": json.dumps(pack_key(config))} | {f"images/{i:05d}.png": noise() for i in range(4)}
    changed = {
        name.replace("__", "/").replace("_png", ".png").replace("_json", ".json"): v for name, v in files.items()
    }
    hub.add_repo(repo_id, own | changed, kind="dataset")


# ---- Publishing


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_what_one_draws_another_fetches(hub, drawn, elsewhere):
    account = sign_in(hub.add_user("anna", scopes=("write",)))
    url = publish_pack(drawn, "anna/dogs", account, private=False)
    assert url == f"{hub.url}/datasets/anna/dogs"
    assert not hub.repos["dataset", "anna/dogs"].private
    images = cached(drawn)
    elsewhere()
    assert cached(drawn) == {}
    key = pack_key(drawn)
    assert fetch_pack("anna/dogs", key, 4, token=False) == 4
    assert cached(drawn) == images
    folder = prior.cache_folder(key)
    assert json.loads((folder / "key.json").read_text()) == key
    assert (folder / "contact_sheet.jpg").is_file()
    with Image.open(folder / "00002.png") as image:
        assert image.text["prompt"] == "a photo of a dog"
        assert image.text["seed"].isdecimal()
    assert sorted(path.name for path in prior.cache_root().iterdir()) == [folder.name], "nothing else is left"
    assert fetch_pack("anna/dogs", key, 4, token=False) == 0, "they are there"


def test_a_pack_says_what_it_is(hub, drawn, tmp_path):
    account = sign_in(hub.add_user("anna", scopes=("contribute-repos",)))
    publish_pack(drawn, "anna/dogs", account)
    repo = hub.repos["dataset", "anna/dogs"]
    assert repo.private, "unless it is asked for"
    assert len(repo.commits) == 2, "the repo's making, and all files at once"
    assert repo.card_data["tags"] == [TAG, "class-images"]
    assert repo.card_data["task_categories"] == ["text-to-image"]
    assert "a photo of a dog" in repo.card
    assert "--set prior.pack=anna/dogs" in repo.card
    rows = [json.loads(line) for line in repo.read("metadata.jsonl").decode().splitlines()]
    assert [row["file_name"] for row in rows] == [f"images/{i:05d}.png" for i in range(4)]
    assert {row["prompt"] for row in rows} == {"a photo of a dog"}
    everything = b"".join(repo.read(path) for path in repo.files)
    for secret in (str(tmp_path), drawn.base_model, account.token):
        assert secret.encode() not in everything


def test_class_images_of_several_classes_are_no_pack(hub, make_config, photo_folder):
    more = [{"photos": str(photo_folder), "class_noun": "cat", "identifier": "ohwx"}]
    account = sign_in(hub.add_user("anna"))
    with pytest.raises(ConfigError, match=r"one class prompt, and these settings have 3\. Give settings of"):
        publish_pack(make_config(more_subjects=more), "anna/dogs", account)
    assert ("dataset", "anna/dogs") not in hub.repos
    assert pack_key(make_config(more_subjects=[more[0] | {"class_noun": "dog"}])) == pack_key(make_config())


@pytest.mark.parametrize(("base", "licence"), [("org/base", "openrail"), ("toybox", "apache-2.0"), ("org/mute", None)])
def test_the_licence_is_the_base_models(hub, make_config, tiny_model, base, licence):
    if base != "toybox":
        hub.add_repo(base, tiny_model)
        front = f"---\nlicense: {licence}\n---\n" if licence else "# no front matter"
        hub.repos["model", base].commits[-1].files["README.md"] = hub._blob("README.md", front.encode())
    config = make_config(base_model=base, prior={"num_images": 1})
    folder = prior.cache_folder(pack_key(config))
    prior.write_key(folder, pack_key(config))
    (folder / "00000.png").write_bytes(noise(128 if base == "toybox" else 32))
    publish_pack(config, "anna/pack", sign_in(hub.add_user("anna")))
    assert hub.repos["dataset", "anna/pack"].card_data.get("license") == licence


def test_damaged_class_images_are_not_published(hub, drawn):
    folder = prior.cache_folder(pack_key(drawn))
    whole = (folder / "00001.png").read_bytes()
    (folder / "00001.png").write_bytes(whole[:200])
    with pytest.raises(ConfigError, match=r"00001\.png is damaged, .* 1 of 4 class images are not drawn yet"):
        publish_pack(drawn, "anna/dogs", sign_in(hub.add_user("anna")))
    assert ("dataset", "anna/dogs") not in hub.repos
    (folder / "00001.png").write_bytes(whole)


def test_a_prompt_does_not_break_the_card(hub, make_config):
    prompt = "a {class_noun}\n```\n<script>alert(1)</script> --- x: [y"
    config = make_config(prior={"num_images": 1, "class_prompt": prompt})
    folder = prior.cache_folder(pack_key(config))
    prior.write_key(folder, pack_key(config))
    (folder / "00000.png").write_bytes(noise())
    publish_pack(config, "anna/pack", sign_in(hub.add_user("anna")))
    card = hub.repos["dataset", "anna/pack"].card
    assert yaml.safe_load(card.split("---\n")[1])["tags"] == [TAG, "class-images"]
    assert [line for line in card.splitlines() if line.startswith("```")] == ["```json", "```"]


def test_a_pack_is_replaced_in_one_commit(hub, drawn, make_config):
    account = sign_in(hub.add_user("anna", scopes=("write",)))
    publish_pack(drawn, "anna/dogs", account, private=False)
    repo = hub.repos["dataset", "anna/dogs"]
    before = len(repo.commits)
    publish_pack(make_config(prior={"num_images": 2}), "anna/dogs", account)
    assert len(repo.commits) == before + 1
    assert sorted(path for path in repo.files if path.endswith(".png")) == ["images/00000.png", "images/00001.png"]
    assert repo.private, "as asked this time"


def test_a_pack_turns_public_only_when_all_is_there(hub, drawn, make_config):
    account = sign_in(hub.add_user("anna"))
    for config in (drawn, make_config(prior={"num_images": 2})):  # a new pack, and one that is there
        spoilt = hub.fail("POST .*/commit/", 503, times=9)
        with pytest.raises(HubError):
            publish_pack(config, "anna/dogs", account, private=False)
        assert hub.repos["dataset", "anna/dogs"].private
        spoilt.times = 0
        publish_pack(config, "anna/dogs", account)
    publish_pack(drawn, "anna/dogs", account, private=False)
    assert not hub.repos["dataset", "anna/dogs"].private


def test_a_pack_that_somebody_changes_meanwhile_is_not_overwritten(hub, drawn, make_config):
    account = sign_in(hub.add_user("anna"))
    publish_pack(drawn, "anna/dogs", account)
    repo, slow = hub.repos["dataset", "anna/dogs"], hub.fail("POST .*/commit/", "slow")
    with ThreadPoolExecutor(1) as pool:
        fewer = make_config(prior={"num_images": 2})
        pending = pool.submit(publish_pack, fewer, "anna/dogs", account, private=False)
        assert slow.arrived.wait(60)
        repo.commit("notes", repo.files | {"images/mine.png": repo.files["README.md"]}, "anna")
        slow.released.set()
        with pytest.raises(HubError, match="Something else changed it at the same time"):
            pending.result()
    assert repo.private
    publish_pack(fewer, "anna/dogs", account)
    assert "images/00003.png" not in repo.files
    assert "images/mine.png" in repo.files, "what its owner added stays"


@pytest.mark.parametrize("base", ["~/anna-smith/sd", "../anna-smith/sd", "anna-smith/sd"])
def test_a_base_models_folder_is_not_told(hub, make_config, tiny_model, tmp_path, monkeypatch, base):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path if base.startswith("anna") else tmp_path / "here")
    shutil.copytree(tiny_model, tmp_path / "anna-smith" / "sd")
    config = make_config(base_model=base, prior={"num_images": 1})
    folder = prior.cache_folder(pack_key(config))
    prior.write_key(folder, pack_key(config))
    (folder / "00000.png").write_bytes(noise())
    publish_pack(config, "anna/pack", sign_in(hub.add_user("anna")))
    repo = hub.repos["dataset", "anna/pack"]
    assert b"anna-smith" not in b"".join(repo.read(path) for path in repo.files)
    assert "The base model drew these pictures" in repo.card
    assert not any("anna-smith" in request.path for request in hub.requests)


def test_pictures_that_are_not_drawn_are_told_before_the_hub_is_asked(hub, make_config):
    account = sign_in(hub.add_user("anna"))
    hub.requests.clear()
    with pytest.raises(ConfigError, match=r"4 of 4 class images are not drawn yet\. Train with these settings first"):
        publish_pack(make_config(), "anna/dogs", account)
    assert hub.requests == []


def test_a_dataset_of_another_kind_is_not_overwritten(hub, drawn):
    account = sign_in(hub.add_user("anna", scopes=("write",)))
    mine = hub.add_repo("anna/thesis", {"data.csv": "1,2"}, kind="dataset")
    with pytest.raises(ConfigError, match="anna/thesis is there already and no pack of class images"):
        publish_pack(drawn, "anna/thesis", account)
    assert len(mine.commits) == 2
    hub.add_repo("anna/empty", kind="dataset")
    assert publish_pack(drawn, "anna/empty", account)


@pytest.mark.parametrize("fault", [401, 403, 413, 429, 500, "cut"])
def test_a_failed_upload_is_told_without_the_token_and_the_next_try_succeeds(hub, drawn, fault):
    account = sign_in(hub.add_user("anna"))
    spoilt = hub.fail("POST .*/commit/", fault, times=99)
    with pytest.raises(HubError, match="Could not publish class images as anna/dogs") as caught:
        publish_pack(drawn, "anna/dogs", account)
    assert account.token not in str(caught.value)
    assert "key.json" not in hub.repos["dataset", "anna/dogs"].files
    spoilt.times = 0
    publish_pack(drawn, "anna/dogs", account)
    assert "key.json" in hub.repos["dataset", "anna/dogs"].files


# ---- Fetching


def test_only_what_the_cache_lacks_is_fetched(hub, drawn):
    config, images = drawn, cached(drawn)
    add_pack(hub, config)
    folder = prior.cache_folder(pack_key(config))
    (folder / "00001.png").unlink()
    hub.requests.clear()
    assert fetch_pack("mona/pack", pack_key(config), 4) == 1
    assert sum(r.method == "GET" and r.path.startswith("/storage/") for r in hub.requests) == 1
    after = cached(config)
    assert {name for name in images if images[name] != after[name]} == {"00001.png"}


def test_a_pack_of_fewer_gives_what_it_has(hub, make_config):
    config = make_config(prior={"num_images": 6})
    add_pack(hub, config)
    key = pack_key(config)
    assert fetch_pack("mona/pack", key, 6) == 4
    assert prior.missing_images(prior.cache_folder(key), 6) == [4, 5]
    assert not (prior.cache_folder(key) / "contact_sheet.jpg").exists(), "of all or none"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ({"class_prompt": "a photo of a cat"}, "class_prompt (a photo of a cat there, a photo of a dog here)"),
        ({"seed": 5, "steps": 9}, "steps (9 there, 2 here), seed (5 there, 1234 here)"),
        ({"base_model": "0" * 64}, "ask for: base_model."),
        ({"precision": "bf16"}, "precision (bf16 there, no here)"),
        ({"invented": 1}, "ask for: its key."),
        ([1, 2], "base_model, class_prompt (None there"),
        ("x" * 5000, "base_model, class_prompt"),
    ],
)
def test_a_pack_of_another_key_is_refused_with_what_differs(hub, make_config, key, words):
    config = make_config()
    theirs = pack_key(config) | key if isinstance(key, dict) else key
    add_pack(hub, config, key_json=json.dumps(theirs))
    with pytest.raises(ConfigError) as caught:
        fetch_pack("mona/pack", pack_key(config), 4)
    assert str(caught.value).startswith("prior.pack: mona/pack has other class images than these settings ask for: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600
    assert cached(config) == {}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"images__00002_png": noise()[:-60]}, "images/00002.png of mona/pack can't be read"),
        ({"images__00003_png": b"no picture"}, "images/00003.png of mona/pack can't be read"),
        ({"images__00001_png": noise(64)}, "images/00001.png of mona/pack has 64 × 64 pixels"),
        ({"images__00001_png": noise(kind="JPEG")}, "images/00001.png of mona/pack can't be read"),
        ({"images__00000_png": bytes(100_000)}, "images/00000.png of mona/pack has 100,000 bytes"),
        ({"key_json": "{"}, "mona/pack: key.json is damaged"),
        ({"key_json": b"\xff\xfe"}, "mona/pack: key.json is damaged"),
        ({"key_json": "[" * 10_000}, "mona/pack: key.json is damaged"),
        ({"key_json": " " * (MAX_KEY + 1)}, "mona/pack has no key.json"),
        ({"key_json": ""}, "mona/pack has no key.json"),
    ],
)
def test_a_damaged_pack_is_refused_as_a_whole(hub, make_config, files, words):
    config = make_config()
    add_pack(hub, config, **files)
    with pytest.raises(ConfigError) as caught:
        fetch_pack("mona/pack", pack_key(config), 4)
    assert words in str(caught.value)
    assert cached(config) == {}, "not the sound ones either"
    assert list(prior.cache_root().iterdir()) == []


def test_a_blank_picture_is_refused(hub, make_config):
    blank = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 9, 9)).save(blank, "PNG")
    config = make_config()
    add_pack(hub, config, images__00001_png=blank.getvalue())
    with pytest.raises(ConfigError, match=r"images/00001\.png of mona/pack is blank"):
        fetch_pack("mona/pack", pack_key(config), 4)


def test_names_in_a_pack_are_no_paths(hub, make_config, tmp_path):
    config = make_config()
    rows = "".join(json.dumps({"file_name": name}) + "\n" for name in ("../../out.png", "/out.png", "images/00000.png"))
    add_pack(hub, config)
    files = hub.repos["dataset", "mona/pack"].files
    files["metadata.jsonl"] = hub._blob("metadata.jsonl", rows.encode())
    for name in ("images/../../../out.png", "images/99999999.png", "../out.png", "images/key.json"):
        files[name] = files["images/00000.png"]
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "hub")}
    assert fetch_pack("mona/pack", pack_key(config), 4) == 4
    folder = prior.cache_folder(pack_key(config))
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "hub")} - before
    assert {p for p in after if p.is_file()} == {
        *prior.class_images(folder, 4),
        folder / "key.json",
        folder / "contact_sheet.jpg",
    }
    assert json.loads((folder / "key.json").read_text()) == pack_key(config)


def test_what_else_a_picture_holds_is_not_kept(hub, make_config):
    info, file = PngInfo(), io.BytesIO()
    info.add_text("seed", "not a number; rm -rf")
    info.add_text("comment", "hello from mona")
    Image.open(io.BytesIO(noise())).save(file, "PNG", pnginfo=info)
    config = make_config()
    add_pack(hub, config, images__00000_png=file.getvalue())
    fetch_pack("mona/pack", pack_key(config), 4)
    with Image.open(prior.cache_folder(pack_key(config)) / "00000.png") as image:
        assert image.text == {"prompt": "a photo of a dog", "seed": ""}


def test_a_private_pack_is_for_its_owner_alone(hub, drawn, elsewhere):
    account = sign_in(hub.add_user("anna", scopes=("write",)))
    bert = hub.add_user("bert", scopes=("write",))
    publish_pack(drawn, "anna/dogs", account)
    elsewhere()
    for other in (bert, False, None):
        with pytest.raises(ModelError, match="anna/dogs is not on the Hub, or is private"):
            fetch_pack("anna/dogs", pack_key(drawn), 4, token=other)
        assert cached(drawn) == {}
    assert fetch_pack("anna/dogs", pack_key(drawn), 4, token=account.token) == 4
    with pytest.raises(ModelError, match="anna/dogs is not on the Hub, or is private"):
        fetch_pack("anna/dogs", pack_key(drawn), 4, token=bert)


def test_a_model_is_no_pack(hub, make_config):
    hub.add_repo("org/model", {"README.md": "x"})
    with pytest.raises(ModelError, match="org/model is not on the Hub"):
        fetch_pack("org/model", pack_key(make_config()), 4)
    hub.add_repo("org/data", {"README.md": "x"}, kind="dataset")
    with pytest.raises(ConfigError, match=r"org/data has no key\.json\. Give a pack of class images"):
        fetch_pack("org/data", pack_key(make_config()), 4)


def test_a_download_that_is_cut_leaves_nothing(hub, make_config):
    config = make_config()
    add_pack(hub, config)
    spoilt = hub.fail("GET /storage", "cut", after=20, times=99)
    with pytest.raises(HubError, match="mona/pack could not be downloaded"):
        fetch_pack("mona/pack", pack_key(config), 4)
    assert list(prior.cache_root().iterdir()) == []
    spoilt.times = 0
    assert fetch_pack("mona/pack", pack_key(config), 4) == 4
