"""Bringing published models back: what is listed, shown and repeated, for whom, and what a stranger's repo can't do."""

from __future__ import annotations

import functools
import io
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from dreambooth.config.sections import MOST_SUBJECTS, MOST_VECTORS
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, DreamBoothError, HubError, ModelError
from dreambooth.hub import TAG, sign_in
from dreambooth.models.fetch import MAX_HEADER
from dreambooth.runs.directory import Run
from dreambooth.sharing.model_card import WORDS
from dreambooth.sharing.publish import Publication, publish
from dreambooth.sharing.published import (
    MAX_PICTURE,
    PublishedModel,
    list_published,
    published_config,
    published_sampling,
    thumbnail,
)
from tests import tiny
from tests.hub import LoopbackHub


def card(**data) -> str:
    return f"---\n{yaml.safe_dump({'tags': ['text-to-image', TAG]} | data)}---\n\n# A model\n"


@functools.cache
def picture(size: tuple[int, int] = (80, 64), kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind, **options)
    return file.getvalue()


def settings(**changes) -> str:
    """A published config.yaml, changed by nested keyword arguments."""
    config = Config.from_dict({"subject": {"photos": "photos", "class_noun": "dog"}, "device": "cpu"})
    wanted = config.model_dump(mode="json")
    for key, value in changes.items():
        wanted[key] = wanted[key] | value if isinstance(value, dict) else value
    return yaml.safe_dump(wanted)


def with_photos(**changes) -> dict[str, bytes | str]:
    """The files of a repo with settings and two photos."""
    return {"config.yaml": settings(**changes), "photos/00.png": picture(), "photos/01.png": picture((64, 80))}


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# ---- What there is


def test_the_newest_models_with_the_tag_are_listed_as_their_cards_say(hub: LoopbackHub):
    hub.add_repo("anna/old", {"README.md": card(base_model=["org/base", "org/other"])})
    hub.add_repo("bert/untagged", {"README.md": "# nothing"})
    about = {"base_model": "org/base", "instance_prompt": "a photo of sks dog", "tags": [TAG, "lora", "x"]}
    hub.add_repo("anna/new", {"README.md": card(**about)})
    hub.repos["model", "anna/new"].likes = 3
    new, old = list_published(False)
    assert new.updated == old.updated
    assert new == PublishedModel("anna/new", False, "org/base", "LoRA", "a photo of sks dog", 0, 3, new.updated)
    assert (old.repo_id, old.base_model, old.method, old.instance_prompt) == ("anna/old", "org/base", "", "")
    assert len(new.updated) == len("2026-01-31")
    assert [model.repo_id for model in list_published(False, limit=1)] == ["anna/new"]
    assert list_published(False, author="bert") == []


def test_a_card_that_says_nonsense_is_listed_without_it(hub):
    hub.add_repo("mona/odd", {"README.md": card(base_model={"a": 1}, instance_prompt=["x" * 5])})
    hub.add_repo("mona/long", {"README.md": card(base_model="x" * 5000)})
    assert [(m.base_model, m.instance_prompt) for m in list_published(False)] == [("", ""), ("", "")]


def test_private_models_are_listed_for_their_owner_alone(hub):
    anna, bert = hub.add_user("anna", scopes=("read",)), hub.add_user("bert", scopes=("read",))
    hub.add_repo("anna/secret", {"README.md": card()}, private=True)
    hub.add_repo("anna/open", {"README.md": card()})
    assert [(m.repo_id, m.private) for m in list_published(anna)] == [("anna/open", False), ("anna/secret", True)]
    for other in (bert, False, None):
        assert [m.repo_id for m in list_published(other, author="anna")] == ["anna/open"]


def test_a_hub_in_trouble_is_told(hub):
    hub.fail("GET /api/models", 500, times=9)
    with pytest.raises(HubError, match="Could not list the published models"):
        list_published(False)
    with pytest.raises(HubError, match="does not accept the login"):
        list_published("hf_madeup_0123456789")


# ---- How it looks


def test_the_first_picture_of_the_card_is_shown_small_and_without_metadata(hub, tmp_path):
    widget = [{"text": "a", "output": {"url": "images/1.png"}}, {"text": "b", "output": {"url": "images/2.jpg"}}]
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    exif = exif.tobytes()
    hub.add_repo(
        "anna/dog",
        {
            "README.md": card(widget=widget),
            "images/1.png": picture((640, 480), "PNG", exif=exif),
            "images/2.jpg": b"not looked at",
        },
    )
    shown = thumbnail("anna/dog", False, side=100)
    with Image.open(io.BytesIO(shown)) as image:
        assert (image.format, image.size) == ("JPEG", (100, 75))
    assert b"taken at home" not in shown
    assert not any("2.jpg" in request.path for request in hub.requests)
    assert b"taken at home" not in everything_in(tmp_path / "hub" / "client"), "nothing is left in a cache"


@pytest.mark.parametrize(
    "widget",
    [
        None,
        [],
        ["x"],
        [{"text": "a"}],
        [{"output": {"url": ["images/1.png"]}}],
        {"output": 5},
        [{"output": {"url": "images/none.png"}}],
        [{"output": {"url": "../../etc/passwd"}}],
        [{"output": {"url": "/etc/passwd"}}],
        [{"output": {"url": "damaged.png"}}],
        [{"output": {"url": "too-large.png"}}],
        [{"output": {"url": "huge.png"}}],
        [{"output": {"url": "vector.svg"}}],
        [{"output": {"url": "README.md"}}],
        [{"output": {"url": "photo.jpg"}}],
        [{"output": {"url": "photo.webp"}}],
        [{"output": {"url": "thread.png"}}],
    ],
)
def test_what_is_no_picture_of_the_repo_is_not_shown(hub, widget):
    """Nothing that a card names is fetched but a file of its own repo: no address of elsewhere, no path."""
    hub.add_repo(
        "mona/odd",
        {
            "README.md": card(widget=widget),
            "damaged.png": picture()[:-40],
            "vector.svg": "<svg/>",
            "too-large.png": bytes(MAX_PICTURE + 1),
            "huge.png": picture((5000, 5000)),
            "thread.png": picture((9, 900)),
            "photo.jpg": picture(kind="JPEG"),
            "photo.webp": picture(kind="WEBP"),
        },
    )
    assert thumbnail("mona/odd", False) is None
    assert not any("too-large" in request.path for request in hub.requests)


def test_no_other_address_is_asked_for_a_picture(hub):
    hub.add_repo("mona/odd", {"README.md": card(widget=[{"output": {"url": f"{hub.url}/api/whoami-v2"}}])})
    assert thumbnail("mona/odd", hub.add_user("anna", scopes=("read",))) is None
    assert not any("whoami" in request.path for request in hub.requests)


def test_a_private_models_picture_is_shown_to_its_owner_alone(hub):
    anna, bert = hub.add_user("anna", scopes=("read",)), hub.add_user("bert", scopes=("read",))
    widget = [{"text": "a", "output": {"url": "images/1.png"}}]
    hub.add_repo("anna/dog", {"README.md": card(widget=widget), "images/1.png": picture()}, private=True)
    assert thumbnail("anna/dog", anna)
    for other in (bert, False, None):
        with pytest.raises(ModelError, match="anna/dog is not on the Hub, or is private"):
            thumbnail("anna/dog", other)


# ---- Repeating one


def test_a_published_config_comes_back_with_its_photos(hub, tmp_path, make_config):
    asked = make_config(prior={"enabled": False}, train={"steps": 1})
    published = asked.model_dump(mode="json") | {"base_model": "anna/base"}
    published["subject"] |= {"photos": "photos", "crops": {"IMG_2.jpg": [0, 0, 40, 40]}}
    hub.add_repo(
        "anna/dog",
        {
            "config.yaml": yaml.safe_dump(published),
            "photos/00.png": picture(),
            "photos/01.png": picture((64, 80)),
        },
    )
    config = published_config("anna/dog", None, None, tmp_path / "fetched", ["train.steps=2"])
    assert config.train.steps == 2
    assert (
        config.model_copy(update={"subject": asked.subject, "base_model": asked.base_model, "train": asked.train})
        == asked
    )
    assert config.subject.photos.is_relative_to(tmp_path / "fetched")
    assert sorted(path.name for path in config.subject.photos.iterdir()) == ["00.png", "01.png"]
    assert config.subject.crops == {}, "the published photos are the crops"
    assert published_config("anna/dog", None, None, tmp_path / "fetched", ["train.steps=2"]) == config, "for --resume"


def test_what_publishing_wrote_trains_to_the_same_weights(hub, tmp_path, make_config, tiny_model):
    hub.add_repo("anna/base", tiny_model)
    asked = make_config(base_model="anna/base", prior={"enabled": False}, train={"steps": 2, "resolution": 64})
    first = Run.create(asked, tmp_path / "first")
    list(first.execute())
    account = sign_in(hub.add_user("anna", scopes=("write",)))
    list(publish(first, Publication(repo_id="dog", photos=True), account))
    config = published_config("anna/dog", None, account.token, tmp_path / "fetched")
    again = Run.create(config, tmp_path / "again")
    list(again.execute())
    weights = [run.path / "model" / "unet" / "diffusion_pytorch_model.safetensors" for run in (first, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert config.model_copy(update={"subject": asked.subject}) == asked


CAT = {"photos": "photos/subject-2", "class_noun": "cat", "identifier": "tom", "crops": {"a.jpg": [0, 0, 9, 9]}}


def with_two_subjects(**changes) -> dict[str, bytes | str]:
    """The files of a repo of a dog and a cat."""
    return with_photos(more_subjects=[CAT | changes]) | {
        "photos/subject-2/00.png": picture(),
        "photos/subject-2/00.txt": "a tom cat",
        "photos/subject-3/00.png": b"x",
    }


def test_further_subjects_come_back_with_their_photos(hub, tmp_path):
    hub.add_repo("anna/pets", with_two_subjects())
    config = published_config("anna/pets", None, False, tmp_path / "f")
    dog, cat = config.subjects
    assert (cat.identifier, cat.crops, cat.photos) == ("tom", {}, dog.photos / "subject-2")
    names = {path.relative_to(dog.photos).as_posix() for path in dog.photos.rglob("*") if path.is_file()}
    assert names == {"00.png", "01.png", "subject-2/00.png", "subject-2/00.txt"}


def test_own_photos_of_further_subjects_lie_as_published_ones_do(hub, tmp_path, monkeypatch):
    files = {name: data for name, data in with_two_subjects().items() if not name.startswith("photos/subject-2")}
    hub.add_repo("anna/pets", files)
    with pytest.raises(ConfigError, match=r"without its photos\..*a second subject's in its folder subject-2"):
        published_config("anna/pets", None, False, tmp_path / "f")
    monkeypatch.chdir(tmp_path)
    config = published_config("anna/pets", None, False, tmp_path / "f", ["subject.photos=mine"])
    assert [subject.photos for subject in config.subjects] == [tmp_path / "mine", tmp_path / "mine" / "subject-2"]
    other = ["more_subjects=[{photos: cats, class_noun: cat, identifier: tim}]"]
    config = published_config("anna/pets", None, False, tmp_path / "f", other)
    assert config.subjects[1].photos == tmp_path / "cats"
    assert config.subject.photos.is_relative_to(tmp_path / "f")


def test_what_pivotal_tuning_made_trains_to_the_same_weights(hub, tmp_path, make_config, tiny_model):
    hub.add_repo("anna/base", tiny_model)
    base = {"base_model": "anna/base", "prior": {"enabled": False}, "subject": {"identifier": "<sks>"}}
    quick = {"steps": 1, "text_encoder": False, "resolution": 64}
    word = Run.create(make_config(method="textual_inversion", train=quick, **base), tmp_path / "word")
    list(word.execute())
    asked = make_config(method="lora", train=quick, word={"learned": str(word.path)}, **base)
    first = Run.create(asked, tmp_path / "first")
    list(first.execute())
    account = sign_in(hub.add_user("anna", scopes=("write",)))
    list(publish(first, Publication(repo_id="dog", photos=True), account))
    shutil.rmtree(word.path)
    config = published_config("anna/dog", None, account.token, tmp_path / "fetched")
    again = Run.create(config, tmp_path / "again")
    list(again.execute())
    for name in ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors"):
        assert (first.path / "model" / name).read_bytes() == (again.path / "model" / name).read_bytes()
    mine = published_config("anna/dog", None, account.token, tmp_path / "f", [f"word.learned={first.path / 'model'}"])
    assert mine.word.learned == first.path / "model"
    hub.repos["model", "anna/dog"].files.pop("learned_embeds.safetensors")
    with pytest.raises(ConfigError, match=r"lacks the word that it was trained with\..*--set word\.learned=RUN"):
        published_config("anna/dog", None, account.token, tmp_path / "f")


def with_words(rows: Iterable[int], more: bytes = b"") -> dict[str, bytes | str]:
    """The files of a repo that pivotal tuning made with words of so many embeddings each."""
    settings = {"method": "lora", "preset": None, "word": {"learned": WORDS}, "subject": {"identifier": "<w1>"}}
    words = {f"learned_embeds-{n}.safetensors": save({f"<w{n}>": torch.zeros(r, 16)}) for n, r in enumerate(rows, 1)}
    return with_photos(**settings) | {name: data + more for name, data in words.items()}


def test_as_many_words_as_a_run_learns_come_back(hub, tmp_path):
    hub.add_repo("mona/dog", with_words([MOST_VECTORS] * MOST_SUBJECTS))
    learned = published_config("mona/dog", None, False, tmp_path / "f").word.learned
    assert len(list(learned.iterdir())) == MOST_SUBJECTS


HEADER = {"learned_embeds-1.safetensors": (MAX_HEADER + 1).to_bytes(8, "little")}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (with_words([1] * 10), "mona/dog holds 10 learned words, more than 9"),
        (with_words([1, 1], bytes(2**23)), r"mona/dog: its learned words have 16,[0-9,]+ bytes, too many for words"),
        (with_words([17]), r"mona/dog: learned_embeds-1\.safetensors holds a word of 17 embeddings, more than 16"),
        (with_words([1]) | HEADER, r"mona/dog: learned_embeds-1\.safetensors has a header of 1,048,577 bytes"),
    ],
    ids=["words", "bytes", "vectors", "header"],
)
def test_a_strangers_words_are_looked_at_before_anything_reads_them(hub, tmp_path, files, told):
    hub.add_repo("mona/dog", files)
    with pytest.raises(ModelError, match=told):
        published_config("mona/dog", None, False, tmp_path / "f")
    assert not list((tmp_path / "f").rglob("learned_embeds*"))


def test_how_a_model_is_drawn_needs_nothing_else_of_its_settings(hub):
    """Neither its photos nor its base model is asked for."""
    changes = {"base_model": "my-model", "sampling": {"steps": 7}, "method": "lora", "word": {"learned": "."}}
    hub.add_repo("anna/dog", {"config.yaml": settings(**changes)})
    assert published_sampling("anna/dog", False).steps == 7
    assert not any("photos" in request.path for request in hub.requests)
    for text, words in (("sampling: {steps: many}", "steps = 'many'"), ("sampling: 5", "sampling")):
        hub.add_repo("mona/dog", {"config.yaml": text})
        with pytest.raises(ConfigError, match=f"mona/dog: config.yaml: .*{words}" if "many" in text else "mona/dog: "):
            published_sampling("mona/dog", False)


def test_a_revision_is_that_revision(hub, tmp_path):
    repo = hub.add_repo("anna/dog", with_photos(seed=1))
    first = repo.commits[-1].oid
    repo.commit("again", repo.files | hub.add_repo("x/y", with_photos(seed=2)).files, "anna")
    repo.refs["v1"] = first
    for revision, seed in ((None, 2), ("main", 2), ("v1", 1), (first, 1)):
        assert published_config("anna/dog", revision, False, tmp_path / "f").seed == seed
    with pytest.raises(ModelError, match="anna/dog has no revision 'v9'"):
        published_config("anna/dog", "v9", False, tmp_path / "f")


def test_captions_come_back_as_they_stand(hub, tmp_path):
    """They were filled in when it trained: nothing in them is a template, least of all a stranger's."""
    files = with_photos(subject={"captions": True}) | {"photos/01.txt": "a sks dog {identifier:>99999999999}"}
    hub.add_repo("anna/dog", files)
    config = published_config("anna/dog", None, False, tmp_path / "f")
    text = (config.subject.photos / "01.txt").read_text()
    assert config.subject.fill(text) == "a sks dog {identifier:>99999999999}"
    hub.add_repo("mona/dog", files | {"photos/01.txt": b"\xff\xfe\x00"})
    with pytest.raises(ConfigError, match=r"photos/01\.txt: can't be read"):
        published_config("mona/dog", None, False, tmp_path / "f")


def test_photos_that_were_not_published_are_asked_for(hub, tmp_path, photo_folder, monkeypatch):
    hub.add_repo("anna/dog", {"config.yaml": settings()})
    with pytest.raises(ConfigError, match=r"published without its photos\..*--set subject.photos=FOLDER"):
        published_config("anna/dog", None, False, tmp_path / "f")
    monkeypatch.chdir(photo_folder.parent)
    config = published_config("anna/dog", None, False, tmp_path / "f", [f"subject.photos={photo_folder.name}"])
    assert config.subject.photos == photo_folder
    assert not (tmp_path / "f").exists()


def test_a_base_model_of_ones_own_comes_without_the_others_revision(hub, tmp_path, tiny_model):
    hub.add_repo("anna/dog", with_photos(base_model="my-model", revision="abc", evaluation={"dino": "my-dino"}))
    with pytest.raises(ConfigError, match="its base_model is 'my-model', of the machine it was trained on"):
        published_config("anna/dog", None, False, tmp_path / "f")
    given = [f"base_model={tiny_model}", "evaluation.dino=toybox"]
    config = published_config("anna/dog", None, False, tmp_path / "f", given)
    assert (config.base_model, config.revision, config.evaluation.dino) == (str(tiny_model), None, "toybox")
    again = published_config("anna/dog", None, False, tmp_path / "f", [*given, "revision=v2"])
    assert again.revision == "v2"


# ---- What a stranger's repo can't do


@pytest.mark.parametrize("key", ["base_model", "evaluation.dino", "evaluation.clip", "subject.photos"])
@pytest.mark.parametrize(
    "value", ["/srv/private", "../private", "~/private", ".", "private", "mine/private", "a/b/c", 5]
)
def test_a_strangers_settings_name_no_folder_of_this_machine(hub, tmp_path, tiny_model, monkeypatch, key, value):
    """`mine/private` is a folder here, and could be an id of the Hub: a run would take the folder."""
    shutil.copytree(tiny_model, tmp_path / "cwd" / "mine" / "private")
    monkeypatch.chdir(tmp_path / "cwd")
    section, _, name = key.rpartition(".")
    hub.add_repo("mona/trap", with_photos(**({section: {name: value}} if section else {name: value})))
    with pytest.raises(ConfigError) as caught:
        published_config("mona/trap", None, False, tmp_path / "f")
    assert str(caught.value).startswith(f"mona/trap: its {key} is {value!r}, ")
    assert f"--set {key}=" in str(caught.value)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("value", ["/srv/private", "../private", "~/private", "photos", "mine/private", 5])
def test_a_strangers_further_subjects_and_words_name_no_folder_either(hub, tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    hub.add_repo("mona/trap", with_two_subjects(photos=value))
    with pytest.raises(ConfigError, match=r"mona/trap: its more_subjects\.0\.photos is .*, of the machine it was"):
        published_config("mona/trap", None, False, tmp_path / "f")
    hub.add_repo("mona/word", with_photos(word={"learned": value}))
    with pytest.raises(
        ConfigError, match=r"mona/word: its word\.learned is .*, of the machine .* --set word\.learned="
    ):
        published_config("mona/word", None, False, tmp_path / "f")
    assert not (tmp_path / "f").exists()


NINE = [{"photos": f"photos/subject-{n}", "class_noun": "cat", "identifier": f"tom{n}"} for n in range(2, 11)]


@pytest.mark.parametrize(
    "more", ["5", "[x]", "[[1]]", "{photos: /srv/private}", yaml.safe_dump(NINE, default_flow_style=True)]
)
def test_further_subjects_that_are_none_are_told(hub, tmp_path, more):
    text = f"subject: {{photos: photos, class_noun: dog}}\nmore_subjects: {more}\n"
    photos = {f"photos/subject-{n}/00.png": picture() for n in range(2, 11)}
    hub.add_repo("mona/pets", with_photos() | photos | {"config.yaml": text})
    with pytest.raises(ConfigError, match=r"mona/pets: config\.yaml: .*more_subjects"):
        published_config("mona/pets", None, False, tmp_path / "f")


def test_a_strangers_settings_start_no_download_of_a_pack(hub, tmp_path):
    hub.add_repo("mona/dog", with_photos(prior={"pack": "mona/pictures"}))
    assert published_config("mona/dog", None, False, tmp_path / "f").prior.pack is None
    mine = published_config("mona/dog", None, False, tmp_path / "f", ["prior.pack=anna/pictures"])
    assert mine.prior.pack == "anna/pictures"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: [1", "not valid YAML"),
        ("- a list", "holds list, not settings"),
        (b"\xff\xff\x00\x01", "can't be read"),
        (b"\xff\xfe\x00\xd8", "can't be read"),
        ("seed: 1\nnonsense: 2\n", "unknown key 'nonsense'"),
        ("subject: 5\n", "'subject.class_noun' is missing"),
        ("seed: many\nsubject: {class_noun: dog, photos: photos}\n", "seed = 'many'"),
        ("a: &a [1,1]\nb: &b [*a,*a]\nseed: [*b,*b]\n", "uses YAML aliases"),
        (tiny.yaml_bomb(), "uses YAML aliases"),
        ("[" * 60_000, "nests more than 32 brackets"),
        ("subject: {class_noun: dog, photos: photos, instance_prompt: '{identi:fier}'}", "uses {identi:fier}"),
        ("#" * 300_000, "too many for settings"),
    ],
)
def test_damaged_settings_are_told_with_the_repos_name(hub, tmp_path, text, words):
    hub.add_repo("mona/dog", with_photos() | {"config.yaml": text})
    with pytest.raises(ConfigError) as caught:
        published_config("mona/dog", None, False, tmp_path / "f")
    assert str(caught.value).startswith("mona/dog: config.yaml")
    assert words in str(caught.value)
    assert str(tmp_path) not in str(caught.value), "of a file in a temporary folder"


def test_a_repo_that_is_none_of_ours_is_told(hub, tmp_path):
    hub.add_repo("org/stock", {"model_index.json": "{}"})
    with pytest.raises(ModelError, match=r"org/stock has no config\.yaml\. Give a model that was published"):
        published_config("org/stock", None, False, tmp_path / "f")
    for missing in ("org/none", "no repo at all"):
        with pytest.raises(ModelError, match=f"{missing} is not on the Hub, or is private"):
            published_config(missing, None, False, tmp_path / "f")


def test_too_many_and_too_large_photos_are_not_fetched(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("dreambooth.sharing.published.MAX_PHOTOS", 1)
    hub.add_repo("mona/dog", with_photos())
    with pytest.raises(ConfigError, match="mona/dog: 2 photos are too many"):
        published_config("mona/dog", None, False, tmp_path / "f")


def test_a_large_photo_is_not_fetched(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("dreambooth.sharing.published.MAX_PHOTO", 100)
    hub.add_repo("mona/dog", with_photos())
    with pytest.raises(ConfigError, match=r"mona/dog: photos/00\.png is too large"):
        published_config("mona/dog", None, False, tmp_path / "f")
    assert not any("resolve" in r.path and "photos" in r.path for r in hub.requests)


def test_names_of_photos_are_no_paths(hub, tmp_path):
    """Names are given anew, so that whatever a repo calls its files they land in the one folder."""
    files = with_photos() | {"photos/.hidden.png": picture(), "photos/deep/er.png": picture(), "photos/run.sh": "rm"}
    hub.add_repo("mona/dog", files)
    hub.repos["model", "mona/dog"].files["photos/../../../out.png"] = hub.repos["model", "mona/dog"].files[
        "photos/00.png"
    ]
    config = published_config("mona/dog", None, False, tmp_path / "deep" / "f")
    assert sorted(path.name for path in config.subject.photos.iterdir()) == ["00.png", "01.png", "02.png"]
    written = {path for path in (tmp_path / "deep").rglob("*") if path.is_file()}
    assert all(path.parent == config.subject.photos for path in written)


@pytest.mark.parametrize("fault", [500, 429, "cut"])
def test_a_download_that_fails_leaves_no_photos_and_the_next_try_fetches_them(hub, tmp_path, fault):
    hub.add_repo("anna/dog", with_photos())
    spoilt = hub.fail(r"GET /storage/.*01\.png", fault, after=10, times=99)
    with pytest.raises(HubError):
        published_config("anna/dog", None, False, tmp_path / "f")
    assert [path for path in (tmp_path / "f").rglob("*") if path.is_file()] == []
    spoilt.times = 0
    assert len(list(published_config("anna/dog", None, False, tmp_path / "f").subject.photos.iterdir())) == 2


def test_private_settings_and_photos_are_for_their_owner_alone_also_after_they_were_fetched(hub, tmp_path):
    anna, bert = hub.add_user("anna", scopes=("read",)), hub.add_user("bert", scopes=("read",))
    hub.add_repo("anna/dog", with_photos(), private=True)
    fetched = published_config("anna/dog", None, anna, tmp_path / "anna")
    commit = hub.repos["model", "anna/dog"].commits[-1].oid
    for other in (bert, False, None):
        for revision in (None, commit):
            with pytest.raises(ModelError, match="anna/dog is not on the Hub, or is private"):
                published_config("anna/dog", revision, other, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    photo = next(fetched.subject.photos.iterdir()).read_bytes()
    assert photo not in everything_in(tmp_path / "hub" / "client"), "the shared cache holds none of it"


def test_gated_photos_are_told(hub, tmp_path):
    hub.add_user("anna", scopes=("read",))
    bert = hub.add_user("bert", scopes=("read",))
    hub.add_repo("anna/dog", with_photos(), gated=True)
    with pytest.raises(HubError, match=r"anna/dog is gated\. Accept its terms on https://huggingface.co/anna/dog with"):
        published_config("anna/dog", None, bert, tmp_path / "f")


def test_no_token_is_in_what_is_told(hub, tmp_path):
    token = hub.add_user("bert", scopes=("read",))
    hub.add_repo("anna/dog", with_photos())
    for fault in (401, 403, 404, 429, 500, "cut"):
        broken = hub.fail(r"/resolve/", fault, times=99)
        with pytest.raises(DreamBoothError) as caught:
            published_config("anna/dog", None, token, tmp_path / "f")
        assert token not in str(caught.value)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__  # noqa: PT018
        broken.times = 0
    assert token.encode() not in everything_in(tmp_path / "hub" / "client")
