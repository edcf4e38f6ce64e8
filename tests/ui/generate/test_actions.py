"""The Generate tab's handlers: pictures that carry their settings, told as they are drawn, and settings copied back."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch
from PIL import Image, PngImagePlugin

from dreambooth.errors import PhotoError
from dreambooth.generate import read_adapters, save_picture, shown_adapters
from dreambooth.machine import resolve_precision
from dreambooth.models.adapters import write_step
from dreambooth.ui import drawing, models
from dreambooth.ui.generate.actions import Actions
from dreambooth.ui.generate.made_with import read_settings
from dreambooth.ui.studio import Studio
from tests import tiny
from tests.test_generate import checked_model  # noqa: F401
from tests.ui import studios
from tests.ui.studios import ANNA, BERT, is_skip

ASKED = ("a photo of a dog", "a cat", 2, 3.0, 7, 2)
NOTHING = ("", "", "")
"""No adapter added."""
WORD = {
    "subject": {"identifier": "<b>", "class_noun": "cat"},
    "train": {"text_encoder": False},
    "prior": {"enabled": False},
}
UNSTACKED = (1.0, *NOTHING, 1.0, 1.0, 1.0)
"""What a picture says of adapters where there are none."""


@pytest.fixture
def actions(studio: Studio, gallery: gr.Gallery) -> Actions:
    return Actions(studio, gallery)


def test_pictures_come_batch_by_batch_and_carry_their_settings(actions: Actions, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(drawing, "BATCH", 2)
    told = list(actions.generate(BERT, "tiny-sd", "a photo of a dog", "a cat", 2, 3.0, 7, 3))
    galleries = [items for items, _ in told if not is_skip(items)]
    assert [len(items) for items in galleries] == [2, 3, 3]
    assert [caption for _, caption in galleries[-1]] == [f"seed {seed} · a photo of a dog" for seed in (7, 8, 9)]
    with Image.open(galleries[-1][1][0]) as image:
        assert image.text == {
            "prompt": "a photo of a dog",
            "negative_prompt": "a cat",
            "seed": "8",
            "steps": "2",
            "scheduler": "default",
            "guidance_scale": "3.0",
            "model": "tiny-sd",
            "precision": resolve_precision("auto", torch.device("cpu")),
        }
    status = [words for _, words in told]
    assert any("Getting" in words for words in status)
    assert "3 pictures in" in status[-1]
    assert all(str(tmp_path) not in words for words in status)


def test_what_of_a_prompt_is_not_read_is_said(actions: Actions):
    long = "<b> " + "dog " * 14
    *_, (_, told) = actions.generate(BERT, "tiny-sd", long, "", 1, 3.0, 7, 1)
    assert "is longer than the 14 tokens that the model reads" in told
    assert "&lt;b&gt;" in told, "it quotes what a visitor wrote"
    *_, (_, told) = actions.generate(BERT, "tiny-sd", "a dog", long, 1, 3.0, 7, 1)
    assert "is cut off" in told, "of what is to be avoided, too"


def test_a_visitor_draws_with_a_run_of_their_own_alone(actions: Actions, studio: Studio, photo_folder: Path):
    [run] = studios.finished_runs(studio, photo_folder)
    items, _ = list(actions.generate(ANNA, run.id, *ASKED))[-1]
    with Image.open(items[0][0]) as image:
        assert image.text["model"] == run.id
    for name in (run.id, str(run.path), f"runs/{run.id}"):
        with pytest.raises(gr.Error) as told:
            list(actions.generate(BERT, name, *ASKED))
        assert not told.value.print_exception


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({1: " "}, "The prompt is empty"),
        ({3: 0}, "steps is 0"),
        ({5: -1}, "seed is -1"),
        ({6: 0}, "num_images is 0"),
        ({0: ""}, "No model is chosen"),
        ({0: "owner/tiny"}, "can't be reached"),
    ],
)
def test_what_can_not_be_drawn_is_a_sentence(actions: Actions, changed: dict, words: str):
    asked = ["tiny-sd", *ASKED]
    for place, value in changed.items():
        asked[place] = value
    with pytest.raises(gr.Error, match=words):
        list(actions.generate(ANNA, *asked))


def test_pictures_that_are_held_back_are_told_and_not_shown(tmp_path: Path, checked_model: Path):  # noqa: F811
    for public, checked, shown in [(False, True, 0), (False, False, 2), (True, False, 0)]:
        studio = studios.studio(tmp_path / f"runs-{public}", checked_model, public=public)
        gallery = gr.Gallery()
        gallery.GRADIO_CACHE = str(tmp_path / "cache")
        items, status = list(Actions(studio, gallery).generate(ANNA, "tiny-sd", *ASKED, checked))[-1]
        assert len(items) == shown
        assert ("held back by the model&#x27;s safety checker" in status) == (shown == 0)
        assert ("2 not shown" in status) == (shown == 0)


def test_the_models_are_the_visitors_finished_runs_and_the_base_models(
    actions: Actions, studio: Studio, photo_folder: Path
):
    base = [("tiny-sd (base model, untrained)", "tiny-sd")]
    model, newest, *rest = actions.list_models(BERT, None, "tiny-sd", *NOTHING)
    assert (model.choices, newest) == (base, None)
    assert all(is_skip(value) for value in rest[:4])
    [run] = studios.finished_runs(studio, photo_folder)
    model, newest, prompt, steps, guidance, which, *_ = actions.list_models(ANNA, None, "tiny-sd", *NOTHING)
    assert model.choices == [(models.label(run), run.id), *base]
    assert (model.value, newest, steps) == (run.id, run.id, 2)
    assert (prompt, guidance, which) == ("a sks dog in the jungle", 7.5, "best")
    for chosen in ("tiny-sd", "owner/tiny", run.id):
        model, _, *rest = actions.list_models(ANNA, run.id, chosen, *NOTHING)
        assert "value" not in model.constructor_args, "a choice is kept"
        assert all(is_skip(value) for value in rest[:4])
    assert actions.list_models(BERT, run.id, run.id, *NOTHING)[0].value == "tiny-sd"
    assert [named["model"] for named in actions.models(ANNA)] == [run.id, "tiny-sd"]
    assert [named["model"] for named in actions.models(BERT)] == ["tiny-sd"]


def test_of_a_pair_the_one_with_ppl_is_chosen(actions: Actions, studio: Studio, photo_folder: Path):
    with_ppl, _ = studios.finished_runs(studio, photo_folder, ways="two")
    model, newest, *_ = actions.list_models(ANNA, None, "tiny-sd", *NOTHING)
    assert (model.value, newest) == (with_ppl.id, with_ppl.id)
    assert len(model.choices) == 3


def test_the_best_and_the_last_model_are_offered_where_both_are_kept(
    actions: Actions, studio: Studio, photo_folder: Path, tmp_path: Path
):
    [run] = studios.finished_runs(studio, photo_folder, models=[tiny.stable_diffusion(tmp_path / "last", seed=5)])
    assert not actions.offer(ANNA, run.id)[1].visible
    studios.measured(run, 0.2, 0.3, 0.5, best=50)
    shutil.rmtree(run.path / "best")
    tiny.stable_diffusion(run.path / "best", seed=9)
    write_step(run.path / "best", 50)
    offered = actions.offer(ANNA, run.id)[1]
    assert offered.visible
    assert offered.choices == [("Best step (50)", "best"), ("Last step (100)", "last")]
    assert "value" not in offered.constructor_args, "what is chosen stays"
    assert not actions.offer(BERT, run.id)[1].visible
    assert actions.models(ANNA)[0]["steps"] == {"best": 50, "last": 100}

    pictures = {}
    for which, asked in (("best", ("best",)), ("last", ("last",)), ("last", ())):
        items, _ = list(actions.generate(ANNA, run.id, *ASKED, True, *asked))[-1]
        with Image.open(items[0][0]) as image:
            assert image.text["which"] == which
            pictures.setdefault(which, []).append(image.tobytes())
    assert pictures["last"][0] == pictures["last"][1] != pictures["best"][0]
    assert actions.copy_settings(ANNA, items[0][0])[6] == "last"


def test_adapters_are_offered_where_they_fit_and_drawn_with(actions: Actions, studio: Studio, photo_folder: Path):
    [lora] = studios.finished_runs(studio, photo_folder, method="lora")
    [cat] = studios.finished_runs(studio, photo_folder, method="textual_inversion", **WORD)
    [whole] = studios.finished_runs(studio, photo_folder)
    assert {model["model"]: set(model["adapters"]) for model in actions.models(ANNA)} == {
        "tiny-sd": {lora.id, cat.id},
        lora.id: {cat.id},
        cat.id: {lora.id},
        whole.id: set(),
    }

    ideas, _, scale, stack, *parts = actions.offer(ANNA, lora.id, *NOTHING)
    assert (scale.visible, stack.visible) == (True, True)
    assert [part.visible for part in parts] == [True, False, False, False, False, False]
    assert parts[0].choices == [("None", ""), (models.label(cat), cat.id)]
    ideas, _, _, _, *parts = actions.offer(ANNA, lora.id, cat.id, "", "")
    assert ideas.raw_samples[:3] == [
        ["a sks dog and <b> cat in the jungle"],
        ["a sks dog in the jungle"],
        ["a <b> cat in the jungle"],
    ]
    assert [part.visible for part in parts] == [True, True, False, False, False, False], "a word has no strength"
    _, _, scale, _, *parts = actions.offer(ANNA, cat.id, lora.id, "", "")
    assert (scale.visible, scale.value) == (False, 1)
    assert [part.visible for part in parts] == [True, True, False, True, False, False]
    _, _, _, stack, *parts = actions.offer(ANNA, whole.id, lora.id, "", "")
    assert (stack.visible, parts[0].value) == (False, "")
    assert not actions.offer(BERT, lora.id, *NOTHING)[3].visible

    asked = ("a photo of a <b> cat", "", 2, 3.0, 7, 1, True, "last")
    items, _ = list(actions.generate(ANNA, lora.id, *asked, 0.5, cat.id))[-1]
    with Image.open(items[0][0]) as image:
        assert (image.text["scale"], read_adapters(image.text["adapters"])) == ("0.5", [(cat.id, 1)])
        stacked = image.tobytes()
    assert f"<dt>added adapters</dt><dd>{cat.id} × 1</dd>" in actions.pick(items, SimpleNamespace(index=0))[1].value
    copied = actions.copy_settings(ANNA, items[0][0])
    assert copied[7:] == (0.5, cat.id, "", "", 1.0, 1.0, 1.0)
    assert actions.copy_settings(BERT, items[0][0])[7:] == (0.5, *UNSTACKED[1:]), "another's adapter stays theirs"
    for more in ((1.0, cat.id), (0.5,)):
        items, _ = list(actions.generate(ANNA, lora.id, *asked, *more))[-1]
        with Image.open(items[0][0]) as image:
            assert image.tobytes() != stacked
    for owner, model, more, words in [
        (ANNA, whole.id, (0.5,), "this is a whole model"),
        (ANNA, "tiny-sd", (0.5,), "this is a whole model"),
        (ANNA, lora.id, (2.0,), "is no strength"),
        (ANNA, cat.id, (0.5,), "A learned word has no weight"),
        (ANNA, lora.id, (1.0, cat.id, 0.5), "A learned word has no weight"),
        (BERT, "tiny-sd", (1.0, lora.id), "You have no such run"),
        (ANNA, "tiny-sd", (1.0, "", 1.0, cat.id, 1.0, cat.id), "have both learned the word &lt;b&gt;"),
    ]:
        with pytest.raises(gr.Error, match=words):
            list(actions.generate(owner, model, *asked, *more))


def test_adapters_on_top_are_the_best_or_the_last_as_the_model_is(actions: Actions, studio: Studio, photo_folder: Path):
    [lora] = studios.finished_runs(studio, photo_folder, method="lora")
    assert not actions.offer(ANNA, "tiny-sd", lora.id, "", "")[1].visible
    studios.measured(lora, 0.2, 0.3, 0.5, best=50)
    shutil.rmtree(lora.path / "best")
    studios.save_adapter(lora.config, lora.path / "best", seed=99, step=50)
    offered = actions.offer(ANNA, "tiny-sd", lora.id, "", "")[1]
    assert (offered.visible, offered.choices) == (True, [("Best step", "best"), ("Last step", "last")])
    asked, drawn = ("a photo of sks dog", "", 2, 3.0, 7, 1, True), {}
    for which in ("best", "last"):
        for model, more in (("tiny-sd", (1.0, lora.id)), (lora.id, ())):
            items, _ = list(actions.generate(ANNA, model, *asked, which, *more))[-1]
            with Image.open(items[0][0]) as image:
                assert image.text["which"] == which
                drawn[which, model] = image.tobytes()
            assert actions.copy_settings(ANNA, items[0][0])[6] == which
        assert drawn[which, "tiny-sd"] == drawn[which, lora.id], "on its base model as by itself"
    assert drawn["best", "tiny-sd"] != drawn["last", "tiny-sd"]


def test_what_the_command_line_drew_is_taken_over_and_unreadable_adapters_are_left_out(
    actions: Actions, studio: Studio, photo_folder: Path, tmp_path: Path
):
    [lora] = studios.finished_runs(studio, photo_folder, method="lora")
    facts = {"model": "tiny-sd", "prompt": "a dog", "steps": 2, "guidance_scale": 3.0, "seed": 1}
    for text, name in (
        (shown_adapters([("my other, run", 1.0), (lora.id, 0.5)]), lora.id),
        (f"{lora.id}:0.5, b:1", ""),
    ):
        save_picture(tmp_path / "drawn.png", Image.new("RGB", (8, 8)), adapters=text, **facts)
        copied = actions.copy_settings(ANNA, str(tmp_path / "drawn.png"))
        assert copied[:2] == ("tiny-sd", "a dog")
        assert copied[8:] == (name, "", "", 0.5 if name else 1.0, 1.0, 1.0)


def test_no_two_adapters_of_the_same_word_are_offered_together(actions: Actions, studio: Studio, photo_folder: Path):
    [lora] = studios.finished_runs(studio, photo_folder, method="lora")
    [cat] = studios.finished_runs(studio, photo_folder, method="textual_inversion", **WORD)
    [same] = studios.finished_runs(studio, photo_folder, method="custom_diffusion", **WORD)

    def offered(model: str, *added: str) -> list[set[str]]:
        dropdowns = actions.offer(ANNA, model, *added)[4:7]
        return [{run for _, run in dropdown.choices if run} for dropdown in dropdowns]

    both, all_ = {cat.id, same.id}, {cat.id, same.id, lora.id}
    assert offered("tiny-sd", *NOTHING) == [all_] * 3
    assert offered(cat.id, *NOTHING) == [{lora.id}] * 3
    assert offered("tiny-sd", cat.id, "", "") == [all_, {lora.id}, {lora.id}], "it can be changed for the other"
    assert offered(lora.id, "", same.id, "") == [set(), both, set()]
    dropped = actions.offer(ANNA, "tiny-sd", same.id, cat.id, "")[5]
    assert (dropped.value, {run for _, run in dropped.choices}) == ("", {"", lora.id})


def test_several_subjects_are_suggested_together_and_alone(actions: Actions, studio: Studio, photo_folder: Path):
    [run] = studios.finished_runs(
        studio,
        photo_folder,
        method="custom_diffusion",
        train={"text_encoder": False},
        subject={"identifier": "<a>"},
        more_subjects=[{"identifier": "<b>", "class_noun": "cat"}],
    )
    assert actions.prefill(ANNA, run.id)[0] == "a <a> dog and <b> cat in the jungle"
    ideas = [idea for [idea] in actions.list_ideas(ANNA, run.id).raw_samples]
    assert ideas[1:4] == ["a <a> dog in the jungle", "a <b> cat in the jungle", "a <a> dog and <b> cat in the snow"]


def test_a_models_own_ideas_are_suggested(actions: Actions, studio: Studio, photo_folder: Path):
    [run] = studios.finished_runs(studio, photo_folder)
    assert actions.list_ideas(ANNA, run.id).raw_samples[12] == ["a sks dog wearing a rainbow scarf"]
    assert actions.list_ideas(ANNA, "tiny-sd").raw_samples[0] == ["a dog in the jungle"]
    assert is_skip(actions.list_ideas(BERT, run.id))
    assert all(is_skip(value) for value in actions.prefill(ANNA, "owner/being-typed"))


def test_settings_are_copied_back_from_a_picture(actions: Actions, studio: Studio, photo_folder: Path):
    [run] = studios.finished_runs(studio, photo_folder)
    items, _ = list(actions.generate(ANNA, run.id, *ASKED))[-1]
    path, facts, button = actions.pick(items, SimpleNamespace(index=1))
    assert path == items[1][0]
    assert "<dd>a photo of a dog</dd>" in facts.value
    assert button.visible
    assert actions.copy_picked(ANNA, path) == (run.id, "a photo of a dog", "a cat", 2, 3.0, 8, "last", *UNSTACKED)
    stranger = actions.copy_settings(BERT, path)
    assert is_skip(stranger[0]), "whose run it is stays out of a stranger's form"
    assert stranger[1:] == ("a photo of a dog", "a cat", 2, 3.0, 8, "last", *UNSTACKED)


def test_nothing_is_picked_where_there_is_no_picture(actions: Actions, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    for pictures, index in [(None, 0), ([], 0), ([(str(tmp_path / "plain.png"), "")], 0), ([], None)]:
        path, facts, button = actions.pick(pictures, SimpleNamespace(index=index))
        assert (path, facts.visible, button.visible) == (None, False, False)


def test_a_picture_without_settings_is_refused(actions: Actions, tmp_path: Path):
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    for path in (tmp_path / "text.png", tmp_path / "plain.png", tmp_path / "none.png"):
        with pytest.raises(PhotoError, match="does not say how it was made"):
            read_settings(str(path))
    damaged = PngImagePlugin.PngInfo()
    for key, value in {"prompt": "a dog", "steps": "many", "guidance_scale": "3", "seed": "1"}.items():
        damaged.add_itxt(key, value)
    Image.new("RGB", (8, 8)).save(tmp_path / "damaged.png", pnginfo=damaged)
    with pytest.raises(gr.Error, match="settings are damaged"):
        actions.copy_settings(ANNA, str(tmp_path / "damaged.png"))
