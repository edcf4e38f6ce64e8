"""Which models a visitor may name, and what is said of the others."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from dreambooth import events
from dreambooth.config.sections import SamplingConfig
from dreambooth.errors import ConfigError, HubError, ModelError, RunError
from dreambooth.models import fetch
from dreambooth.models.fetch import TOYBOX_FOLDER, fetch_from_hub
from dreambooth.runs.directory import Run
from dreambooth.ui import models
from dreambooth.ui.drawing import Weights
from dreambooth.ui.models import open_model
from dreambooth.ui.studio import Studio
from dreambooth.ui.train.start import start
from tests import tiny
from tests.families.test_architectures import safety_checker
from tests.hub import LoopbackHub
from tests.ui import studios
from tests.ui.studios import ANNA, BERT


def test_a_base_model_is_named_as_the_page_shows_it(studio: Studio, tiny_model: Path):
    model = open_model(studio, ANNA, " tiny-sd ")
    assert (model.name, model.weights, model.sampling) == ("tiny-sd", Weights(str(tiny_model)), SamplingConfig())


def test_a_run_is_opened_for_its_owner_alone_and_once_it_is_finished(studio: Studio, photo_folder: Path):
    [run] = studios.finished_runs(studio, photo_folder)
    model = open_model(studio, ANNA, run.id)
    assert (model.name, model.weights.folder) == (run.id, str(run.path / "model"))
    assert model.sampling.steps == 2
    with pytest.raises(RunError, match="You have no such run"):
        open_model(studio, BERT, run.id)
    [waiting] = start(
        studio,
        ANNA,
        {"base_model": studio.model("tiny-sd"), "subject": {"class_noun": "dog"}},
        sorted(map(str, photo_folder.iterdir())),
    )
    with pytest.raises(RunError, match="This run is queued and has no model yet") as told:
        open_model(studio, ANNA, waiting.id)
    assert str(studio.root) not in str(told.value)


def test_an_adapter_is_opened_with_its_base_model(studio: Studio, photo_folder: Path, tiny_model: Path):
    [run] = studios.finished_runs(studio, photo_folder, method="lora")
    assert open_model(studio, ANNA, run.id).weights == Weights(str(run.path / "model"), str(tiny_model))
    assert open_model(studio, ANNA, run.id, scale=0.5).weights.scale == 0.5
    studios.measured(run, 0.2, 0.3, 0.5, best=50)
    assert models.best_and_last(run) == {"best": 50, "last": 100}
    assert open_model(studio, ANNA, run.id, "best").weights.folder == str(run.path / "best")
    assert models.label(run).startswith("sks dog · LoRA · with PPL · ")


def test_ones_own_adapters_of_the_same_base_model_go_on_top(studio: Studio, photo_folder: Path, tmp_path: Path):
    [lora] = studios.finished_runs(studio, photo_folder, method="lora")
    word = {"subject": {"identifier": "<sks>"}, "train": {"text_encoder": False}, "prior": {"enabled": False}}
    [inversion] = studios.finished_runs(studio, photo_folder, method="textual_inversion", **word)
    [same] = studios.finished_runs(studio, photo_folder, method="custom_diffusion", **word)
    [whole] = studios.finished_runs(studio, photo_folder)
    runs = models.finished_runs(studio, ANNA)
    ids = {
        name: {run.id for run in models.adapters_for(studio, runs, name)} for name in ("tiny-sd", *(r.id for r in runs))
    }
    assert models.label(inversion).startswith("<sks> dog · Textual Inversion · 3000 steps"), "no PPL: nothing drifts"
    both, words = {lora.id, inversion.id}, {inversion.id, same.id}
    assert ids == {
        "tiny-sd": both | words,
        lora.id: words,
        inversion.id: {lora.id},
        same.id: {lora.id},
        whole.id: set(),
    }, "no two of the same word"
    assert models.adapters_for(studio, runs, "owner/tiny") == []
    assert [models.has_strength(run) for run in (lora, inversion, whole)] == [True, False, False]
    top = ((str(inversion.path / "model"), 1.0), (str(lora.path / "model"), 0.5))
    opened = open_model(studio, ANNA, "tiny-sd", adapters=[(inversion.id, 1), (lora.id, 0.5)])
    assert opened.weights.adapters == top
    assert opened.weights.base == ""

    studios.measured(lora, 0.2, 0.3, 0.5, best=50)
    for which, folder in (("best", "best"), ("last", "model")):
        for model in ("tiny-sd", inversion.id):  # which has no best of its own
            opened = open_model(studio, ANNA, model, which, adapters=[(lora.id, 0.5)])
            assert (opened.weights.adapters, opened.which) == (((str(lora.path / folder), 0.5),), which)
    assert open_model(studio, ANNA, "tiny-sd", adapters=[(lora.id, 1)]).which == "last"
    with pytest.raises(ConfigError, match="'first' is none of a run's models"):
        open_model(studio, ANNA, "tiny-sd", "first", adapters=[(lora.id, 1)])

    other = studios.studio(studio.root, tiny.stable_diffusion(tmp_path / "other", seed=9))
    for at, owner, model, added, error, words in [
        (studio, BERT, "tiny-sd", [(lora.id, 1)], RunError, "You have no such run"),
        (studio, ANNA, "tiny-sd", [(str(lora.path), 1)], RunError, "You have no such run"),
        (studio, ANNA, "tiny-sd", [("owner/lora", 1)], RunError, "You have no such run"),
        (studio, ANNA, "tiny-sd", [(whole.id, 1)], ConfigError, "is a whole model"),
        (studio, ANNA, whole.id, [(lora.id, 1)], None, ""),
        (studio, ANNA, inversion.id, [(lora.id, 1), (same.id, 1)], ConfigError, r"both learned the word <sks>\. Take"),
        (studio, ANNA, "tiny-sd", [(same.id, 1), (inversion.id, 1)], ConfigError, "Custom Diffusion .* and .* Textual"),
        (other, ANNA, "tiny-sd", [(lora.id, 1)], ModelError, "is an adapter of another base model"),
        (studio, ANNA, "tiny-sd", [(lora.id, 1)] * 4, ConfigError, "4 adapters are too many"),
        *(
            (studio, ANNA, "tiny-sd", [(lora.id, weight)], ConfigError, "is no strength")
            for weight in (-0.1, 1.6, float("nan"), "1", None, True)
        ),
    ]:
        if error is None:  # an untrained copy of the base model is that base model
            assert open_model(at, owner, model, adapters=added).weights.adapters
            continue
        with pytest.raises(error, match=words):
            open_model(at, owner, model, adapters=added)


def test_an_adapter_of_the_hub_is_opened_with_the_base_model_that_it_names(
    studio: Studio, tiny_model: Path, make_config, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    adapter = studios.save_adapter(make_config(method="lora"), tmp_path / "adapter")

    def publish(name: str, base_model: str) -> None:
        facts = json.loads((adapter / "adapter.json").read_text()) | {"base_model": base_model}
        (adapter / "adapter.json").write_text(json.dumps(facts))
        hub.add_repo(name, adapter)

    publish("owner/here", "tiny-sd")  # the name of what is on offer
    assert open_model(studio, ANNA, "owner/here").weights.base == str(tiny_model)
    hub.add_repo("owner/base", tiny_model)
    publish("owner/there", "owner/base")
    opened = open_model(studio, ANNA, "owner/there", scale=0.5)
    assert "models--owner--base" in opened.weights.base
    assert opened.weights.scale == 0.5
    publish("owner/elsewhere", str(tiny_model))
    publish("owner/private", "owner/none")
    for name, words in [("owner/elsewhere", "is not on the Hub"), ("owner/private", "owner/none is not on the Hub")]:
        with pytest.raises(ModelError, match=words):
            open_model(studio, ANNA, name)

    monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 0)
    public = studios.studio(studio.root, tiny_model, public=True)
    with pytest.raises(ModelError, match=r"owner/there can't be drawn with: without CompVis"):
        open_model(public, ANNA, "owner/there")
    monkeypatch.setattr(models, "is_built_as_toybox", lambda folder: folder.parents[1].name == "models--owner--base")
    assert open_model(public, ANNA, "owner/there").weights.base
    monkeypatch.setattr(models, "MAX_MODEL", 100_000)
    with pytest.raises(ModelError, match=r"owner/base has .* GB, more than the"):
        open_model(public, ANNA, "owner/there")


def test_a_run_has_its_last_model_and_where_that_is_not_the_best_its_best(studio: Studio, photo_folder: Path):
    kept, last_is_best, unmeasured = (studios.finished_runs(studio, photo_folder)[0] for _ in range(3))
    studios.measured(kept, 0.2, 0.3, 0.5, best=50)
    studios.measured(last_is_best, 0.2, 0.3, best=50)
    assert models.best_and_last(kept) == {"best": 50, "last": 100}
    assert models.best_and_last(last_is_best) is models.best_and_last(unmeasured) is None
    for run, which, folder in [(kept, "best", "best"), (kept, "last", "model"), (last_is_best, "best", "model")]:
        model = open_model(studio, ANNA, run.id, which)
        assert model.weights.folder == str(run.path / folder)
        assert model.which == ("best" if folder == "best" else "last")
    assert open_model(studio, ANNA, kept.id).which == "last", "as it was before there were two"
    with pytest.raises(ConfigError, match=r"'first' is none of a run's models\. Say last or best"):
        open_model(studio, ANNA, kept.id, "first")
    (kept.path / "measures.json").write_text("{")
    assert models.best_and_last(kept) is None


@pytest.mark.parametrize("name", ["runs/{run}", "{root}/{run}", "{model}", "..", "../runs/{run}", "~/x", "/etc/passwd"])
def test_a_path_of_the_server_is_no_model(studio: Studio, photo_folder: Path, tiny_model: Path, name: str, monkeypatch):
    [run] = studios.finished_runs(studio, photo_folder)
    monkeypatch.chdir(studio.root.parent)
    with pytest.raises((ModelError, RunError, HubError)):
        open_model(studio, ANNA, name.format(run=run.id, root=studio.root, model=tiny_model))


@pytest.mark.parametrize("name", ["", None, ["tiny-sd"], 3])
def test_no_model_is_asked_for(studio: Studio, name: object):
    with pytest.raises(ConfigError, match="No model is chosen"):
        open_model(studio, ANNA, name)


def test_any_model_of_the_hub_can_be_named(studio: Studio, tiny_model: Path, hub: LoopbackHub):
    repo = hub.add_repo("owner/tiny", tiny_model)
    model = open_model(studio, ANNA, "owner/tiny")
    assert (model.name, Path(model.weights.folder).name) == ("owner/tiny", repo.commits[-1].oid)
    repo.refs["v1"] = repo.commits[-1].oid
    repo.commit("the same again", repo.files, "owner")
    model = open_model(studio, ANNA, "owner/tiny@v1")
    assert (model.name, Path(model.weights.folder).name) == ("owner/tiny@v1", repo.refs["v1"])
    with pytest.raises(ModelError, match="owner/tiny has no revision 'v2'"):
        open_model(studio, ANNA, "owner/tiny@v2")
    with pytest.raises(ModelError, match="owner/none is not on the Hub, or is private"):
        open_model(studio, ANNA, "owner/none")
    repo.gated = "manual"
    with pytest.raises(HubError, match=r"owner/tiny is gated\. Choose a model that everybody may read"):
        open_model(studio, ANNA, "owner/tiny")


def test_a_private_model_is_for_who_may_read_it_also_once_it_was_fetched(
    tiny_model: Path, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    anna, bert = hub.add_user("anna", scopes=("read",)), hub.add_user("bert", scopes=("read",))
    monkeypatch.setenv("HF_TOKEN", hub.add_user("anna", scopes=("read",)))  # the host is anna, too
    hub.add_repo("anna/mug", tiny_model, private=True)
    for public in (False, True):
        studio = studios.studio(tmp_path / f"runs-{public}", tiny_model, public=public)
        monkeypatch.setattr(models, "is_built_as_toybox", lambda folder: True)
        monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 0)
        assert open_model(studio, ANNA, "anna/mug", token=anna).name == "anna/mug"
        for other in (bert, False, "hf_" + "x" * 34):
            with pytest.raises((ModelError, HubError), match=r"is private|does not accept the login"):
                open_model(studio, BERT, "anna/mug", token=other)


@pytest.fixture
def checker(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The safety checker's repo on the tests' Hub; its commit there is taken for the pinned one."""
    repo = hub.add_repo(fetch.SAFETY_CHECKER, safety_checker(tmp_path / "checker"))
    monkeypatch.setattr(fetch, "SAFETY_COMMIT", repo.commits[-1].oid)
    return repo.commits[-1].oid


@pytest.mark.attack
def test_a_public_studio_looks_at_strangers_pictures_with_a_checker_of_its_own(
    tmp_path: Path, tiny_model: Path, hub: LoopbackHub, checker: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 0)
    theirs = shutil.copytree(tiny_model, tmp_path / "theirs")
    safety_checker(theirs / "safety_checker", thresholds=9)
    index = json.loads((theirs / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (theirs / "model_index.json").write_text(json.dumps(index))
    for name, folder in (("owner/plain", tiny_model), ("mona/blind", theirs)):
        hub.add_repo(name, folder)
        public = studios.studio(tmp_path / "runs", tiny_model, public=True)
        weights = open_model(public, ANNA, name).weights
        assert weights.stranger
        assert Path(weights.checker).name == checker
        assert (Path(weights.checker) / "config.json").is_file()
        weights = open_model(studios.studio(tmp_path / "runs", tiny_model), ANNA, name).weights
        assert (weights.stranger, weights.checker) == (False, ""), "one's own computer"
    asked = {request.path for request in hub.requests if "safety-checker/resolve" in request.path}
    assert asked
    assert all(checker in path for path in asked)


@pytest.mark.attack
def test_a_public_studio_draws_with_no_strangers_model_while_its_checker_can_not_be_had(
    tmp_path: Path, tiny_model: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 0)
    hub.add_repo("owner/tiny", tiny_model)
    hub.add_repo("owner/toybox", TOYBOX_FOLDER)
    public = studios.studio(tmp_path / "runs", tiny_model, public=True)
    with pytest.raises(ModelError, match=r"without CompVis/stable-diffusion-safety-checker, which can't be had now"):
        open_model(public, ANNA, "owner/tiny")
    weights = open_model(public, ANNA, "owner/toybox").weights
    assert (weights.stranger, weights.checker) == (True, ""), "so small pictures need none"
    assert not open_model(public, ANNA, "tiny-sd").weights.stranger, "what the studio offers"


@pytest.mark.attack
def test_a_model_that_is_built_in_another_way_is_refused_where_it_is_named(
    tmp_path: Path, tiny_model: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 0)
    deep = shutil.copytree(tiny_model, tmp_path / "deep")
    file = deep / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"transformer_layers_per_block": 400}))
    hub.add_repo("mona/deep", deep)
    for public in (True, False):
        with pytest.raises(ModelError, match="mona/deep can't be loaded: the transformer_layers_per_block of its unet"):
            open_model(studios.studio(tmp_path / "runs", tiny_model, public=public), ANNA, "mona/deep")


def test_a_public_studio_fetches_no_model_that_is_larger_than_such_models_are(
    tmp_path: Path, tiny_model: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    hub.add_repo("owner/tiny", tiny_model)
    monkeypatch.setattr(models, "MAX_MODEL", 100_000)
    monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 0)
    with pytest.raises(ModelError, match=r"owner/tiny has .* GB, more than the"):
        open_model(studios.studio(tmp_path / "runs", tiny_model, public=True), ANNA, "owner/tiny")
    assert open_model(studios.studio(tmp_path / "runs", tiny_model), ANNA, "owner/tiny", token=None)


def test_where_the_disk_is_full_the_models_go_that_visitors_asked_for_longest_ago(
    tmp_path: Path, tiny_model: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    public = studios.studio(tmp_path / "runs", tiny_model, public=True)
    monkeypatch.setattr(models, "is_built_as_toybox", lambda folder: True)
    monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 0)
    for name in "abcd":
        hub.add_repo(f"owner/{name}", tiny_model)
    owners = fetch_from_hub("owner/a")  # who runs the studio, for themselves
    folders = {name: Path(open_model(public, ANNA, f"owner/{name}").weights.folder) for name in "abc"}
    for age, name in ((1, "b"), (2, "a"), (3, "c")):
        os.utime(folders[name].parents[1], (time.time() - 1000 * age,) * 2)
    open_model(public, ANNA, "owner/c")  # asked for again
    monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 2)
    monkeypatch.setattr(models, "_free", lambda cache: 3 - len(list(cache.glob("models--*"))))
    open_model(public, ANNA, "owner/d")
    assert {name: folder.exists() for name, folder in folders.items()} == {"a": False, "b": False, "c": True}
    monkeypatch.setattr(models, "_free", lambda cache: 0)
    with pytest.raises(RunError, match="The studio's disk has no room for another model"):
        open_model(public, ANNA, "owner/d")
    assert (owners / "model_index.json").is_file()


@pytest.mark.attack
def test_a_model_that_is_drawn_with_stays_while_others_are_fetched(
    tmp_path: Path, tiny_model: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    public = studios.studio(tmp_path / "runs", tiny_model, public=True)
    monkeypatch.setattr(models, "is_built_as_toybox", lambda folder: True)
    monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 0)
    for name in "abc":
        hub.add_repo(f"owner/{name}", tiny_model)
    drawn, idle = (open_model(public, ANNA, f"owner/{name}").weights for name in "ab")
    for weights in (drawn, idle):
        os.utime(Path(weights.folder).parents[1], (0, 0))
    models.keep_in_cache(drawn)
    models.keep_in_cache(models.Weights(str(tiny_model)))
    monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 2)
    monkeypatch.setattr(models, "_free", lambda cache: 3 - len(list(cache.glob("models--*"))))
    open_model(public, ANNA, "owner/c")
    assert Path(drawn.folder).exists()
    assert not Path(idle.folder).exists()


@pytest.mark.attack
def test_an_address_has_so_many_models_fetched_an_hour(
    tmp_path: Path, tiny_model: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    public = studios.studio(tmp_path / "runs", tiny_model, public=True)
    monkeypatch.setattr(models, "is_built_as_toybox", lambda folder: True)
    monkeypatch.setattr(models, "ROOM_FOR_A_MODEL", 0)
    monkeypatch.setattr(models, "AN_HOUR", 2)
    for name in "abc":
        hub.add_repo(f"owner/{name}", tiny_model)
    for name in "abba":
        assert open_model(public, ANNA, f"owner/{name}", client="203.0.113.1")
    with pytest.raises(RunError, match=r"2 models were fetched for your address within the hour.*in \d\d min"):
        open_model(public, ANNA, "owner/c", client="203.0.113.1")
    assert open_model(public, BERT, "owner/c", client="203.0.113.2")


def test_the_toybox_with_other_weights_is_drawn_with_unchecked_and_nothing_that_is_larger(tmp_path: Path, tiny_model):
    assert models.is_built_as_toybox(TOYBOX_FOLDER)
    assert not models.is_built_as_toybox(tiny_model)
    for name, value in (("sample_size", 64), ("block_out_channels", None), ("cross_attention_dim", 768)):
        shutil.rmtree(tmp_path / "toybox", ignore_errors=True)
        for part in ("unet", "vae", "text_encoder"):
            (tmp_path / "toybox" / part).mkdir(parents=True)
            shutil.copy(TOYBOX_FOLDER / part / "config.json", tmp_path / "toybox" / part)
        assert models.is_built_as_toybox(tmp_path / "toybox")
        unet = tmp_path / "toybox" / "unet" / "config.json"
        unet.write_text(json.dumps(json.loads(unet.read_text()) | {name: value}))
        assert not models.is_built_as_toybox(tmp_path / "toybox")
        unet.write_text("[]")
        assert not models.is_built_as_toybox(tmp_path / "toybox")


def test_a_hub_out_of_reach_is_told(studio: Studio):
    with pytest.raises(HubError, match="owner/tiny is not downloaded and the Hub can't be reached"):
        open_model(studio, ANNA, "owner/tiny", token=None)
    with pytest.raises(HubError):  # that a visitor may read it can't be known
        open_model(studio, ANNA, "owner/tiny", token="hf_" + "a" * 34)


def test_a_base_model_that_is_gone_is_told_without_its_path(make_config, tmp_path: Path):
    config = make_config(base_model=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match="not on this server any more") as told:
        models.base_folder(config)
    assert str(tmp_path) not in str(told.value)


def test_impossible_settings_are_told():
    assert models.checked_sampling(SamplingConfig(scheduler="euler"), 4, 7).scheduler == "euler"
    with pytest.raises(ConfigError, match="steps is 0: "):
        models.checked_sampling(SamplingConfig(), 0, 7)


def test_a_run_is_called_by_its_subject_how_it_was_trained_and_when(make_config, tmp_path: Path):
    run = Run.create(make_config(), tmp_path / "best dog")
    run.append(events.RunQueued(time=time.mktime((2026, 2, 3, 14, 15, 0, 0, 0, -1))))
    run.append(events.Stage("prepare"))
    assert models.label(run) == "sks dog · with PPL · 4 steps · 03 Feb 14:15"
    assert " · 1 step · " in models.label(Run.create(make_config(train={"steps": 1}), tmp_path / "a"))
    assert models.label(run, "both ways") == "sks dog · both ways · 4 steps · 03 Feb 14:15"
