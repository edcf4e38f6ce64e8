"""The Publish tab's handlers: whose name a model is published in, what is told of it, and what must not happen."""

import json
from pathlib import Path

import gradio as gr
import pytest

from dreambooth import events
from dreambooth.runs.directory import Run
from dreambooth.sharing.publish import PublishState, read_state
from dreambooth.ui.publish.actions import NO_RUN, Actions, Standing, contents_html, standing_html
from dreambooth.ui.studio import Studio
from dreambooth.ui.train.start import start
from tests.hub import LoopbackHub
from tests.ui import studios
from tests.ui.doors.test_login import on_a_space, token
from tests.ui.studios import ANNA, BERT, is_skip
from tests.ui.test_crowd import until


def actions_of(studio: Studio, tmp_path: Path) -> Actions:
    shown = gr.HTML()
    shown.GRADIO_CACHE = str(tmp_path / "cache")
    return Actions(studio, shown)


@pytest.fixture
def actions(studio: Studio, tmp_path: Path) -> Actions:
    return actions_of(studio, tmp_path)


@pytest.fixture
def run(studio: Studio, photo_folder: Path) -> Run:
    [run] = studios.finished_runs(studio, photo_folder)
    return run


def ended(actions: Actions, run: Run) -> str | None:
    """How publishing it stands once no thread is at it any more."""
    until(lambda: run not in actions.studio.publisher, "it is still being published")
    return actions.publishing(ANNA, run.id)["state"]


def test_a_run_is_published_in_a_thread_in_the_name_of_who_asks(actions: Actions, run: Run, hub: LoopbackHub):
    anna = hub.add_user("anna")
    assert actions.publishing(ANNA, run.id) == {"state": None}
    assert actions.publish(ANNA, run.id, "my-dog", token=token(anna)) == "anna/my-dog"
    assert ended(actions, run) == "published"
    repo = hub.repos["model", "anna/my-dog"]
    assert repo.private
    assert "unet/diffusion_pytorch_model.safetensors" in repo.files
    assert not any(path.startswith("photos/") for path in repo.files)
    told = actions.publishing(ANNA, run.id)
    assert (told["repo_id"], told["private"], told["url"]) == ("anna/my-dog", True, f"{hub.url}/anna/my-dog")

    html, button, seen = actions.watch(ANNA, run.id, None)
    assert f"<a href='{hub.url}/anna/my-dog'" in html
    assert ">private</span>" in html
    assert (button.value, button.interactive) == ("Publish again", True)
    assert all(is_skip(value) for value in actions.watch(ANNA, run.id, seen)), "nothing is sent twice"
    assert run.published
    assert run.status == "finished"
    left = [path.read_bytes() for path in run.path.rglob("*") if path.is_file()]
    assert not any(anna.encode() in data for data in left), "the token stays in memory"


def test_what_is_asked_for_is_what_is_published(actions: Actions, run: Run, hub: LoopbackHub):
    studios.measured(run, 0.2, 0.3, 0.5, best=50)
    anna = token(hub.add_user("anna", scopes=("contribute-repos", "manage-repos"), orgs=("club",)))
    actions.publish(ANNA, run.id, "club/dog", "public", photos=True, half=True, which="best", token=anna)
    assert ended(actions, run) == "published"
    repo = hub.repos["model", "club/dog"]
    assert not repo.private
    assert "photos/00.png" in repo.files
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert repo.files[weights].size < (run.path / "best" / weights).stat().st_size * 0.6
    repo_id, visibility, photos, half, which, _ = actions.prefill(ANNA, run.id, "anna")
    assert (repo_id, visibility, photos, half, which.value) == ("club/dog", "public", True, True, "best")


def test_a_pair_is_published_with_its_other_run(actions: Actions, studio: Studio, photo_folder: Path, hub: LoopbackHub):
    with_ppl, without = studios.finished_runs(studio, photo_folder, ways="two")
    chosen = actions.list_runs(ANNA, None, "")[0]
    assert chosen.value == with_ppl.id
    assert "without PPL and with PPL side by side" in actions.contents(ANNA, without.id, False, False, "last")
    actions.publish(ANNA, without.id, "dog", token=token(hub.add_user("anna")))
    assert ended(actions, without) == "published"


def test_of_three_ways_the_card_shows_the_first_other_that_finished(
    actions: Actions, studio: Studio, photo_folder: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    submitted = []
    monkeypatch.setattr(studio.publisher, "submit", lambda *given: submitted.append(given))
    with_ppl, without, drift = studios.finished_runs(studio, photo_folder, ways="three", drift={"weight": 0.5})
    assert "with PPL and without PPL side by side" in actions.contents(ANNA, with_ppl.id, False, False, "last")
    without.append(events.Cancelled(1))
    assert (studio.partner(with_ppl), studio.finished_partner(with_ppl)) == (without, drift)
    assert "with PPL and with drift penalty side by side" in actions.contents(ANNA, with_ppl.id, False, False, "last")
    actions.publish(ANNA, with_ppl.id, "dog", token=token(hub.add_user("anna")))
    assert submitted[0][-1] == drift
    drift.append(events.Cancelled(1))
    assert studio.finished_partner(with_ppl) is None
    assert "side by side" not in actions.contents(ANNA, with_ppl.id, False, False, "last")


def test_a_failure_is_told_with_its_reason_and_can_be_tried_again(actions: Actions, run: Run, hub: LoopbackHub):
    anna = token(hub.add_user("anna"))
    hub.fail("POST .*/commit/", 503, times=9)
    actions.publish(ANNA, run.id, "anna/dog", token=anna)
    assert ended(actions, run) == "failed"
    html, button, _ = actions.watch(ANNA, run.id, None)
    assert "not published" in html
    assert "The Hub is in trouble (503" in html
    assert (button.value, button.interactive) == ("Try again", True)
    assert (run.status, run.published) == ("finished", False)
    assert actions.prefill(ANNA, run.id, "anna")[0] == "anna/dog"

    hub.faults.clear()
    actions.publish(ANNA, run.id, "anna/dog", token=anna)
    assert ended(actions, run) == "published"


def test_while_it_is_uploaded_it_is_told_and_the_run_is_kept(actions: Actions, run: Run, hub: LoopbackHub):
    studio, anna = actions.studio, token(hub.add_user("anna"))
    slow = hub.fail("POST .*/commit/", "slow")
    actions.publish(ANNA, run.id, "anna/dog", token=anna)
    assert slow.arrived.wait(60)
    assert actions.publishing(ANNA, run.id)["state"] == "uploading"
    html, button, seen = actions_of(studio, run.path.parent).watch(ANNA, run.id, None)  # as a page that was reloaded
    assert "Uploading: " in html
    assert (button.value, button.interactive) == ("Publishing …", False)
    assert seen.state == "uploading"
    with pytest.raises(gr.Error, match="is being published already"):
        actions.publish(ANNA, run.id, "anna/dog", token=anna)
    with pytest.raises(Exception, match="This run is being published"):
        studio.delete(ANNA, run.id)
    assert not studio.admission.is_removable(run)
    slow.released.set()
    assert ended(actions, run) == "published"


def test_a_visitor_never_acts_with_the_hosts_token(
    tiny_model: Path, photo_folder: Path, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("host", scopes=("write",)))
    public = actions_of(studios.studio(tmp_path / "public", tiny_model, public=True), tmp_path)
    [run] = studios.finished_runs(public.studio, photo_folder)
    with pytest.raises(gr.Error, match="Nobody can log in to this studio"):
        public.publish(ANNA, run.id, "dog")
    assert "Nobody can log in" in public.who("", "dog")[1]
    private = actions_of(studios.studio(tmp_path / "private", tiny_model), tmp_path)
    [run] = studios.finished_runs(private.studio, photo_folder)
    on_a_space(monkeypatch)
    for one in (public, private):
        with pytest.raises(gr.Error, match="You are not logged in"):
            one.publish(ANNA, studios.finished_runs(one.studio, photo_folder)[0].id, "dog")
        assert "You are not logged in" in one.who("anna", "dog")[1], "also where a login has expired meanwhile"
    assert [request for request in hub.requests if request.user] == []

    monkeypatch.delenv("SPACE_ID")
    assert private.publish(ANNA, run.id, "dog") == "host/dog", "on a studio of one's own it is one's own"
    assert ended(private, run) == "published"


def test_the_account_is_asked_from_the_hub_once_and_puts_its_name_before_the_repo(actions: Actions, hub: LoopbackHub):
    anna = token(hub.add_user("anna"))
    name, told, repo = actions.who("", "sks-dog", anna)
    assert (name, repo) == ("anna", "anna/sks-dog")
    assert "<strong>anna</strong>" in told
    asked = len(hub.requests)
    assert actions.who(name, "club/sks-dog", anna)[2] == "club/sks-dog"
    assert len(hub.requests) == asked
    name, told, repo = actions.who("", "sks-dog", token("hf_" + "x" * 34))
    assert (name, repo) == ("", "sks-dog")
    assert "The Hub does not accept the login" in told
    assert "hf_xxx" not in told


def test_what_can_not_be_published_is_a_sentence(actions: Actions, run: Run, hub: LoopbackHub, photo_folder: Path):
    anna = token(hub.add_user("anna"))
    hub.add_repo("anna/other", {"README.md": "somebody's"}, app="dreambooth-studio")
    [waiting] = start(
        actions.studio,
        ANNA,
        {"base_model": actions.studio.model("tiny-sd"), "subject": {"class_noun": "dog"}},
        sorted(map(str, photo_folder.iterdir())),
    )
    for asked, words in (
        ((BERT, run.id, "dog"), "You have no such run"),
        ((ANNA, waiting.id, "dog"), "This run is queued"),
        ((ANNA, run.id, ""), "the Hub takes no such name"),
        ((ANNA, run.id, "bert/dog"), "anna may not write to bert"),
        ((ANNA, run.id, "dog", "hidden"), "visibility is 'hidden'"),
        ((ANNA, run.id, "dog", "private", "yes"), "photos is 'yes'"),
    ):
        with pytest.raises(gr.Error, match=words):
            actions.publish(*asked, token=anna)
    assert ended(actions, run) is None
    actions.publish(ANNA, run.id, "other", token=anna)
    assert ended(actions, run) == "failed"
    assert "was not made with" in actions.publishing(ANNA, run.id)["reason"]
    assert hub.repos["model", "anna/other"].read("README.md") == b"somebody's"


def test_on_a_public_studio_a_model_of_a_person_asks_for_consent(
    tiny_model: Path, photo_folder: Path, tmp_path: Path, hub: LoopbackHub
):
    actions = actions_of(studios.studio(tmp_path / "runs", tiny_model, public=True), tmp_path)
    anna = token(hub.add_user("anna"))
    settings = {"base_model": str(tiny_model), "subject": {"class_noun": "woman"}}
    [run] = start(actions.studio, ANNA, settings, sorted(map(str, photo_folder.iterdir())), consent=True)
    run.append(events.Finished("model", 1.0))
    assert actions.prefill(ANNA, run.id, "anna")[-1].visible
    for consent in (False, "true", None):
        with pytest.raises(gr.Error, match="A model of a person needs consent"):
            actions.publish(ANNA, run.id, "anna/her", consent=consent, token=anna)
    assert ended(actions, run) is None


def test_the_runs_are_listed_and_each_has_a_name_of_its_own(actions: Actions, studio: Studio, photo_folder: Path):
    listed, asked, status, *prefilled = actions.list_runs(ANNA, None, "anna")
    assert (listed.choices, asked.visible, status) == ([], False, NO_RUN)
    assert all(is_skip(value) for value in prefilled)
    first, second, third = (studios.finished_runs(studio, photo_folder)[0] for _ in range(3))
    for run, repo in ((first, "anna/sks-dog"), (second, "anna/sks-dog-3")):
        done = {"repo_id": repo, "private": True, "url": "", "commit": "", "time": 0.0}
        (run.path / "published.json").write_text(json.dumps(done))
    listed, asked, _, repo, visibility, *_, which, consent = actions.list_runs(ANNA, None, "anna")
    assert [label.endswith("· published") for label, _ in listed.choices] == [False, True, True]
    assert (listed.value, repo, visibility) == (third.id, "anna/sks-dog-2", "private")
    assert (which.visible, consent.visible) == (False, False)
    assert actions.prefill(ANNA, third.id, "")[0] == "sks-dog-2"
    assert "value" not in actions.list_runs(ANNA, first.id, "anna")[0].constructor_args, "what is chosen stays"
    assert all(is_skip(value) for value in actions.prefill(BERT, first.id, "bert"))
    assert actions.contents(BERT, first.id, False, False, "last") == ""
    assert all(is_skip(value) for value in actions.watch(BERT, first.id, None))


def test_what_goes_to_the_hub_and_what_stays_is_told(actions: Actions, run: Run):
    told = actions.contents(ANNA, run.id, False, False, "last")
    assert "<strong>Your 3 photos</strong> stay here" in told
    assert "side by side" not in told
    sizes = [actions.contents(ANNA, run.id, True, half, "last") for half in (False, True)]
    assert "as cropped for training, for everybody who sees the repo" in sizes[0]
    assert sizes[0] != sizes[1]
    picture = run.path / "samples" / "a.png"
    picture.parent.mkdir()
    picture.write_bytes((run.path / "photos" / "00.png").read_bytes())
    run.append(events.Image("samples/a.png", run.config.instance_prompt, 0, 4))
    told = actions.contents(ANNA, run.id, False, False, "last")
    assert "<img src='gradio_api/file=" in told
    assert str(run.path) not in told


def test_an_adapter_is_published_and_told_with_what_it_needs(
    actions: Actions, studio: Studio, photo_folder: Path, hub: LoopbackHub
):
    word = {"method": "textual_inversion", "subject": {"identifier": "<sks>"}, "train": {"text_encoder": False}}
    [run] = studios.finished_runs(studio, photo_folder, **word)
    told = actions.contents(ANNA, run.id, False, False, "last")
    assert "<strong>The Textual Inversion weights</strong> about" in told
    assert "kB, to be put on tiny-sd</li>" in told
    assert "<strong>tiny-sd stays here</strong> and without it nobody can use what is published" in told
    assert actions.prefill(ANNA, run.id, "anna")[0] == "anna/sks-dog"
    actions.publish(ANNA, run.id, "dog", token=token(hub.add_user("anna")))
    assert ended(actions, run) == "published"
    assert {"adapter.json", "learned_embeds.safetensors"} <= set(hub.repos["model", "anna/dog"].files)

    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace(str(run.config.base_model), "toybox"))
    told = actions.contents(ANNA, run.id, False, False, "last")
    assert "to be put on toybox</li>" in told
    assert "stays here" not in told


def test_the_photos_and_pictures_of_every_subject_are_told(actions: Actions, studio: Studio, photo_folder: Path):
    [run] = studios.finished_runs(studio, photo_folder, more_subjects=[{"identifier": "ohwx", "class_noun": "cat"}])
    (run.path / "samples").mkdir()
    (run.path / "photos" / "subject-2").mkdir(exist_ok=True)
    one = (run.path / "photos" / "00.png").read_bytes()
    for number, prompt in enumerate(("a photo of sks dog", "a photo of ohwx cat", "a photo of a cat")):
        (run.path / "samples" / f"{number}.png").write_bytes(one)
        run.append(events.Image(f"samples/{number}.png", prompt, 0, 4))
    (run.path / "photos" / "subject-2" / "00.png").write_bytes(one)
    (run.path / "photos" / "together").mkdir(exist_ok=True)
    (run.path / "photos" / "together" / "00.png").write_bytes(one)
    told = actions.contents(ANNA, run.id, False, False, "last")
    given = len([*(run.path / "photos").glob("*.png"), *(run.path / "photos" / "subject-2").glob("*.png")])
    assert f"<strong>Your {given} photos</strong> stay here" in told
    assert told.count("<img src=") == 2


def test_damage_keeps_nobody_from_publishing_again(actions: Actions, run: Run):
    (run.path / "publishing.json").write_text("{")
    assert actions.publishing(ANNA, run.id) == {"state": None}
    assert actions.studio.admission.is_removable(run)


def test_what_others_wrote_is_text_in_the_page(tmp_path: Path, run: Run):
    evil = "<img src=x onerror=alert(1)>"
    about = PublishState("failed", f"anna/{evil}", True, f"No {evil}", f"http://x/'{evil}")
    for state in ("waiting", "uploading", "failed", "interrupted", "published"):
        assert "<img" not in standing_html(Standing("run", state, about)), state
    assert "cut off when the program ended" in standing_html(
        Standing("run", "interrupted", PublishState("interrupted", "anna/dog", True))
    )
    assert standing_html(Standing("run")) == ""
    assert "<img src='gradio_api/file=/a%20b%27.png'" in contents_html(
        run, run.path / "model", ["/a b'.png"], photos=False, half=False
    )


def test_a_killed_server_leaves_an_interrupted_attempt(actions: Actions, run: Run):
    facts = {"state": "uploading", "repo_id": "anna/dog", "private": True, "reason": "", "done": 5, "total": 9}
    (run.path / "publishing.json").write_text(json.dumps(facts))
    assert read_state(run.path).state == "interrupted"
    _, button, _ = actions.watch(ANNA, run.id, None)
    assert button.value == "Try again"
