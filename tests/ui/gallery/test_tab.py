"""The gallery: what the Hub lists, for whose eyes, and what a card shows."""

import io
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from dreambooth.sharing.published import PublishedModel
from dreambooth.ui.gallery import tab as gallery
from dreambooth.ui.gallery.tab import Actions, Found, as_html
from dreambooth.ui.studio import Studio
from tests.hub import LoopbackHub
from tests.ui import studios
from tests.ui.doors.test_login import on_a_space, token
from tests.ui.studios import is_skip


def publish(hub: LoopbackHub, repo_id: str, colour: str = "teal", *, private: bool = False) -> None:
    """A repo as publishing leaves it, without its model."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(picture, "PNG")
    card = f"""---
tags: [dreambooth-studio]
base_model: {repo_id.split("/")[0]}/base
instance_prompt: a photo of sks {colour} mug
widget:
- text: a mug
  output: {{url: images/00.png}}
---"""
    hub.add_repo(repo_id, {"README.md": card, "images/00.png": picture.getvalue()}, private=private)


@pytest.fixture
def public(tmp_path: Path, tiny_model: Path) -> Actions:
    return Actions(studios.studio(tmp_path / "runs", tiny_model, public=True))


def shown(actions: Actions, own: dict, who: gr.OAuthToken | None = None) -> tuple[list[str], dict]:
    told = list(actions.show(own, who))
    return [html for html, _ in told], told[-1][1]


def test_the_visitors_own_come_first_private_ones_too(public: Actions, hub: LoopbackHub):
    publish(hub, "bert/mug")
    publish(hub, "anna/secret", "red", private=True)
    publish(hub, "anna/mug", "blue")
    hub.add_repo("bert/other", {"README.md": "no tag"})
    anna, bert = (token(hub.add_user(name, scopes=("read",))) for name in ("anna", "bert"))

    def listed(who: gr.OAuthToken | None) -> list[tuple]:
        return [(model["repo_id"], model["own"], model["private"]) for model in public.gallery(who)]

    own = [("anna/mug", True, False), ("anna/secret", True, True)]
    assert sorted(listed(anna)) == [*own, ("bert/mug", False, False)]
    assert [own for _, own, _ in listed(anna)] == [True, True, False]
    assert sorted(listed(bert)) == [("anna/mug", False, False), ("bert/mug", True, False)]
    assert sorted(listed(None)) == [("anna/mug", False, False), ("bert/mug", False, False)]
    first = next(model for model in public.gallery(None) if model["repo_id"] == "bert/mug")
    assert (first["url"], first["base_model"]) == (f"{hub.url}/bert/mug", "bert/base")
    assert first["instance_prompt"] == "a photo of sks teal mug"

    (html, *_), _ = shown(public, {}, anna)
    places = [html.index(part) for part in (">Yours<", "data-model='anna/secret'", ">Everybody's<", "'bert/mug'")]
    assert places == sorted(places)
    assert "secret" not in shown(public, {}, bert)[0][-1]


def test_cards_are_there_at_once_and_pictures_come_after(public: Actions, hub: LoopbackHub):
    publish(hub, "bert/mug")
    publish(hub, "anna/secret", "red", private=True)
    anna = token(hub.add_user("anna", scopes=("read",)))
    (before, after), own = shown(public, {}, anna)
    assert "data:image" not in before
    assert after.count("<img src='data:image/jpeg;base64,") == 2
    assert set(own) == {"anna/secret"}, "of the page's own"
    assert set(public.public) == {"bert/mug"}, "of everybody's"
    assert "http" not in after.replace(f"href='{hub.url}", ""), "the page asks no other host"

    asked = len(hub.requests)
    [again], _ = shown(public, own, anna)
    assert again == after
    assert {request.path.split("?")[0] for request in hub.requests[asked:]} == {"/api/whoami-v2", "/api/models"}
    [stranger], kept = shown(public, {})
    assert stranger.count("data:image") == 1, "what everybody may see is not fetched twice"
    assert kept == {}
    assert "secret" not in stranger


def test_a_model_that_became_private_is_gone_with_its_picture(public: Actions, hub: LoopbackHub):
    publish(hub, "bert/mug")
    assert "data:image" in shown(public, {})[0][-1]
    hub.repos["model", "bert/mug"].private = True
    told = shown(public, {})[0][-1]
    assert "data:image" not in told
    assert "No models yet" in told


def test_a_thumbnail_grows_old(public: Actions, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    publish(hub, "bert/mug")
    monkeypatch.setattr(gallery, "FRESH", -1.0)
    before = shown(public, {})[0][-1]
    publish(hub, "bert/mug", "yellow")
    assert shown(public, {})[0][-1] != before


def test_a_model_without_a_picture_is_shown_all_the_same(public: Actions, hub: LoopbackHub):
    hub.add_repo("bert/plain", {"README.md": "---\ntags: [dreambooth-studio]\n---"})
    publish(hub, "bert/mug")
    hub.fail("GET /api/models/bert/mug", 503, times=9)
    html = shown(public, {})[0][-1]
    assert "data-model='bert/plain'" in html
    assert "data-model='bert/mug'" in html
    assert "<img" not in html


def test_a_hub_out_of_reach_is_told_in_plain_words(public: Actions, hub: LoopbackHub):
    anna = token(hub.add_user("anna"))
    hub.fail("GET /api/models", 503, times=99)
    told = shown(public, {}, anna)[0][-1]
    assert told.count("role='alert'") == 1
    assert "The Hub is in trouble" in told
    with pytest.raises(gr.Error, match="The Hub is in trouble"):
        public.gallery(anna)
    assert "does not accept the login" in shown(public, {}, token("hf_" + "x" * 34))[0][-1]


def test_who_can_log_in_and_has_not_is_told_so(public: Actions, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    assert "Log in" not in shown(public, {})[0][-1]
    on_a_space(monkeypatch)
    assert "Log in" in shown(public, {})[0][-1]
    assert "Log in" not in shown(public, {}, token(hub.add_user("anna")))[0][-1]


def test_on_a_studio_of_ones_own_the_machines_token_lists_ones_own(
    studio: Studio, public: Actions, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    publish(hub, "host/secret", private=True)
    assert Actions(studio).gallery() == [], "without a token only what everybody may see"
    monkeypatch.setenv("HF_TOKEN", hub.add_user("host", scopes=("read",)))
    assert [model["repo_id"] for model in Actions(studio).gallery()] == ["host/secret"]
    assert public.gallery() == []


def test_what_others_wrote_is_text_in_the_page():
    evil = "<img src=x onerror=alert(1)>'\">"
    model = PublishedModel(f"a/{evil}", False, f"b/{evil}", evil, evil * 20, 1, 2000, evil)
    html = as_html(Found([], [model], [evil], False), {}, asks_login=False)
    assert "<img" not in html
    assert "alert(1)>'" not in html
    assert "1 download ·" in html
    assert "2,000 likes ·" in html


def test_an_adapter_is_told_with_its_method_and_base_model():
    model = PublishedModel("a/b", False, "org/base", "LoRA", "a photo of sks dog", 0, 0, "")
    assert "<span>LoRA ·</span> <span>from base</span>" in as_html(Found([], [model], [], False), {}, asks_login=False)


def test_a_cards_button_fills_the_form_that_draws():
    event = gr.EventData(None, {"model": "anna/mug", "prompt": "a photo of sks mug"})
    model, prompt, tab = gallery.chosen(event)
    assert (model, prompt, tab.selected) == ("anna/mug", "a photo of sks mug", "generate")


def test_the_form_takes_over_the_steps_and_guidance_that_a_model_was_made_for(
    studio: Studio, hub: LoopbackHub, make_config
):
    config = make_config(sampling={"steps": 7, "guidance_scale": 2.5}).to_yaml()
    hub.add_repo("anna/mug", {"README.md": "", "config.yaml": config}, private=True)
    actions, anna = Actions(studio), token(hub.add_user("anna", scopes=("read",)))
    assert actions.suit("anna/mug", anna) == (7, 2.5)
    for model, who in (("anna/mug", None), ("anna/none", anna), ("", anna), (None, anna)):
        assert all(is_skip(value) for value in actions.suit(model, who))
