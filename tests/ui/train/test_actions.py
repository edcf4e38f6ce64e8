"""The form of the Train tab: starting, what is estimated and remembered, what is refused."""

from pathlib import Path

import gradio as gr
import pytest

from dreambooth.config.names import TOYBOX
from dreambooth.photos.prepare import Crop
from dreambooth.runs.directory import Run
from dreambooth.ui.photos.taught import Kept
from dreambooth.ui.train import estimate
from dreambooth.ui.train import form as forms
from dreambooth.ui.train.actions import Actions
from dreambooth.ui.train.estimate import Estimates
from dreambooth.ui.train.form import DRIFT, Choices, recipe_values
from dreambooth.ui.train.runs import Runs
from dreambooth.ui.train.settings import ON_TOP
from tests.ui.studios import ANNA, BERT
from tests.ui.studios import studio as make_studio
from tests.ui.train.conftest import SD15


def shown_by(actions: Actions) -> list:
    """What the form shows at first, on a small run."""
    [base_model, *values] = recipe_values(actions.studio, actions.form, TOYBOX)
    top = dict(zip(ON_TOP.values(), values)) | {"steps": 3, "class_images": 4}
    return [*Choices(TOYBOX, base_model, ways="one", learned="", **top), *values[len(ON_TOP) :]]


def changed(values: list, **choices: object) -> list:
    """What the form shows, with some of what is on top changed."""
    count = len(Choices._fields)
    return [*Choices(*values[:count])._replace(**choices), *values[count:]]


def test_the_page_and_a_caller_start_the_same_run(actions: Actions, runs: Runs, photos: list):
    [first] = actions.start_from_page(ANNA, photos, {}, "ohwx", "dog", [], False, *shown_by(actions))
    [second] = actions.start_training(ANNA, photos, "ohwx", "dog", TOYBOX, "tiny-sd", 3, class_images=4)
    configs = [actions.studio.own_run(ANNA, run).config for run in (first, second)]
    same = {"subject": configs[0].subject}
    assert configs[0].model_copy(update=same) == configs[1].model_copy(update=same)
    assert configs[0].train.steps == 3
    assert configs[0].prior.num_images == 4
    assert runs.run_status(ANNA, second)["position"] == 2


def test_crops_and_further_settings_reach_the_run(actions: Actions, photos: list):
    more = {"train": {"flip": True}, "sampling": {"prompts": ["a {class_noun} on a beach"]}}
    [run] = actions.start_training(
        ANNA, photos, "sks", "dog", crops=[[10, 0, 74, 64], None, None], seed=7, text_encoder=False, more=more
    )
    config = actions.studio.own_run(ANNA, run).config
    assert config.subject.crops == {"00.png": (10, 0, 74, 64)}
    assert (config.seed, config.train.text_encoder, config.train.flip) == (7, False, True)
    assert config.sampling.prompts == ["a {class_noun} on a beach"]


def test_three_ways_take_a_drift_penalty_where_none_is_set(actions: Actions, runs: Runs, photos: list):
    ids = actions.start_training(ANNA, photos, "sks", "dog", ways="three")
    configs = [actions.studio.own_run(ANNA, run).config for run in ids]
    assert [config.drift.weight for config in configs] == [0, 0, DRIFT]
    status = runs.run_status(ANNA, ids[2])
    assert (status["condition"], status["partners"]) == ("with drift penalty", ids[:2])
    headline = runs.watch(ANNA, ids[0], None)[runs.live.headline]
    assert "Trained three ways" in headline
    assert all(f"data-run='{other}'" in headline for other in ids[1:])


def test_what_is_the_same_every_way_is_refused_for_that_reason(actions: Actions, photos: list):
    for ways in ("two", "three"):
        with pytest.raises(gr.Error, match="Textual Inversion changes nothing that PPL could keep"):
            actions.start_training(ANNA, photos, "sks", "dog", ways=ways, method="textual_inversion")


# ---- Methods, words and several subjects


@pytest.mark.parametrize(
    ("method", "identifier"),
    [
        ("full", "sks"),
        ("lora", "sks"),
        ("textual_inversion", "<sks>"),
        ("custom_diffusion", "<sks>"),
    ],
)
def test_a_method_is_trained_by_its_recipe_and_a_new_word_is_written_as_one(
    actions: Actions, runs: Runs, photos: list, method: str, identifier: str
):
    short = {"word": {"vectors": 1}}  # of the tiny model's 14 tokens the recipe's four leave too few for some prompts
    [run] = actions.start_training(ANNA, photos, "sks", "dog", method=method, more=short)
    config = actions.studio.own_run(ANNA, run).config
    ending = "" if method == "full" else f"-{method.replace('_', '-')}"
    assert (config.method, config.preset, config.subject.identifier) == (method, f"toybox{ending}", identifier)
    written = "<sks>" if identifier != "sks" else "sks"
    [same] = actions.start_training(ANNA, photos, written, "dog", method=method, more=short)
    assert runs.run_status(ANNA, same)["title"] == f"{identifier} dog"


def test_a_word_that_is_no_word_is_refused_by_methods_that_learn_one(actions: Actions, photos: list):
    with pytest.raises(gr.Error, match="angle brackets"):
        actions.start_training(ANNA, photos, "my dog", "dog", method="textual_inversion")


def test_a_word_that_was_learned_is_offered_for_lora_and_taken_over(actions: Actions, photos: list, word_run: Run):
    none = [("No: take a rare word of the vocabulary", "")]
    offered = actions.offer_words(ANNA, "lora", "")
    assert (offered.choices, offered.value, offered.visible) == ([*none, ("<zwx> cat", word_run.id)], "", True)
    assert actions.offer_words(ANNA, "lora", word_run.id).value == word_run.id
    for owner, method in ((BERT, "lora"), (ANNA, "full")):
        offered = actions.offer_words(owner, method, word_run.id)
        assert (offered.choices, offered.value, offered.visible) == (none, "", False)
    assert actions.take_word(ANNA, word_run.id) == ["zwx", "cat"]
    assert actions.take_word(BERT, word_run.id) == [gr.skip()] * 2

    values = changed(shown_by(actions), recipe="toybox-lora", method="lora", learned=word_run.id)
    [from_page] = actions.start_from_page(ANNA, photos, {}, "zwx", "cat", [], False, *values)
    [called] = actions.start_training(ANNA, photos, "zwx", "cat", method="lora", learned=word_run.id)
    for run in (from_page, called):
        config = actions.studio.own_run(ANNA, run).config
        assert (config.subject.identifier, config.word.learned.parent.name) == ("<zwx>", run)
    with pytest.raises(gr.Error, match="You have no such run"):
        actions.start_training(BERT, photos, "zwx", "cat", method="lora", learned=word_run.id)
    with pytest.raises(gr.Error, match="has learned &lt;zwx&gt;, not &lt;sks&gt;"):
        actions.start_training(ANNA, photos, "sks", "cat", method="lora", learned=word_run.id)


def test_several_subjects_start_from_the_page_and_from_a_program(actions: Actions, runs: Runs, photos: list):
    paths = tuple(path for path, _ in photos)
    kept = [Kept(paths, {paths[0]: Crop(10, 0, 74, 64)}, "ohwx", "cat")]
    values = changed(shown_by(actions), recipe="toybox-custom-diffusion", method="custom_diffusion", text_encoder=False)
    [first] = actions.start_from_page(ANNA, photos, {}, "sks", "dog", kept, False, *values)
    [alone] = actions.start_from_page(ANNA, None, {}, "sks", "dog", kept, False, *values)
    more = [
        {"identifier": "sks", "class_noun": "dog", "photos": 3},
        {"identifier": "zwx", "class_noun": "cat", "photos": 1, "crops": [[0, 0, 64, 64]]},
    ]
    [second] = actions.start_training(
        ANNA,
        photos,
        "ohwx",
        "cat",
        method="custom_diffusion",
        more_subjects=more,
        more_photos=[*photos, photos[0]],
        more={"word": {"vectors": 1}},
    )
    titles = [runs.run_status(ANNA, run)["title"] for run in (first, alone, second)]
    assert titles == ["<ohwx> cat and <sks> dog", "<ohwx> cat", "<ohwx> cat and <sks> dog and <zwx> cat"]
    one, two = (actions.studio.own_run(ANNA, run).config for run in (first, second))
    assert one.subject.crops == {"00.png": (10, 0, 74, 64)}
    assert [len(list(subject.photos.glob("*.png"))) for subject in two.subjects] == [3, 3, 1]
    assert two.subjects[2].crops == {"00.png": (0, 0, 64, 64)}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([{"identifier": "ohwx", "class_noun": "cat"}], "Subject 2 has no photos"),
        (["cat"], "Subject 2 has no photos"),
        ([{"identifier": "ohwx", "class_noun": "cat", "photos": 4}], "more than are left"),
        ([{"identifier": "ohwx", "class_noun": "cat", "photos": True}], "Subject 2 has no photos"),
        ([{"identifier": "ohwx", "class_noun": "cat", "photos": 2}], "1 of `more_photos` belong to no subject"),
        ([{"identifier": {}, "class_noun": "cat", "photos": 3}], "identifier is empty"),
        ("cat", "Subject 2"),
        ([{"identifier": "ohwx", "class_noun": "cat", "photos": 3, "crops": [None]}], "Give 3 boxes"),
        ([{"identifier": "sks", "class_noun": "cat", "photos": 3}], "two subjects have the identifier"),
    ],
)
def test_a_further_subject_that_is_none_is_refused(actions: Actions, photos: list, more: object, says: str):
    with pytest.raises(gr.Error, match=says):
        actions.start_training(ANNA, photos, "sks", "dog", more_subjects=more, more_photos=photos)
    assert actions.studio.own_runs(ANNA) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": "no"}, "preset"),
        ({"base_model": "/etc"}, "not on offer"),
        ({"steps": 0}, "train.steps = 0"),
        ({"more": {"subject": {"photos": "/"}}}, "Photos tab"),
        ({"class_noun": " "}, "class noun is empty"),
        ({"crops": [None]}, "Give 3 boxes"),
        ({"photos": None}, "no photos yet"),
        ({"owner": "anna"}, "no owner id"),
    ],
)
def test_a_bad_start_is_refused_in_a_sentence_and_leaves_nothing(
    actions: Actions, photos: list, change: dict, says: str
):
    asked = {"owner": ANNA, "photos": photos, "identifier": "sks", "class_noun": "dog"} | change
    with pytest.raises(gr.Error, match=says):
        actions.start_training(**asked)
    assert actions.studio.own_runs(ANNA) == []


def test_an_estimate_comes_once_there_are_photos_and_is_remembered(actions: Actions, photos: list):
    values = shown_by(actions)
    subject = ({}, "sks", "dog", [])
    assert list(actions.show_estimate(None, *subject, *values)) == [estimate.FIRST_PHOTOS]
    estimating, shown = actions.show_estimate(photos, *subject, *values)
    assert "Estimating" in estimating
    assert "<dt>Memory</dt>" in shown
    figures = actions.estimate(TOYBOX, "tiny-sd", 3, class_images=4)
    assert figures["peak_bytes"] > 0
    settings = Choices(*values[: len(Choices._fields)]).as_settings(actions.studio, None)
    assert actions.estimates.known(settings).seconds == figures["seconds"]
    [run] = actions.start_training(ANNA, photos, "sks", "dog", TOYBOX, "tiny-sd", 3, class_images=4)
    assert actions.studio.own_run(ANNA, run).last_event().seconds == figures["seconds"]
    both = actions.estimates.of(settings, "two")
    assert both.seconds > figures["seconds"]
    words = {"identifier": "ohwx", "class_noun": "cat"}
    several = settings | {"subject": words, "more_subjects": [words | {"class_noun": "dog"}]}
    assert actions.estimates.of(several).seconds > figures["seconds"], "two classes to draw"
    others = settings | {"subject": words | {"class_noun": "x"}, "more_subjects": [words | {"class_noun": "y"}]}
    assert actions.estimates.known(others), "the words make no difference"


def test_each_method_is_told_with_what_it_costs_once_there_are_photos(actions: Actions, photos: list):
    def costs(*subject: object) -> list[dict[str, str]]:
        shown = actions.show_costs(*subject, "tiny-sd")
        return [{name: label.splitlines()[-1] for label, name in radio.choices} for radio in shown]

    [unknown] = costs(None, {}, "sks", "dog", [])
    assert unknown["lora"].endswith("load.")
    first, *_, last = costs(photos, {}, "sks", "dog", [])
    assert set(first.values()) == {"Estimating …"}
    assert all("File" in cost and "memory" in cost for cost in last.values())
    files = {name: actions.estimate(base_model="tiny-sd", method=name)["model_bytes"] for name in last}
    assert sorted(files, key=files.get) == ["textual_inversion", "custom_diffusion", "lora", "full"]
    assert costs(None, {}, "sks", "dog", [Kept((photos[0][0],), {}, "sks", "dog")]) == [last], "at once, this time"
    studio = actions.studio
    studio.base_models["elsewhere"] = SD15
    *_, elsewhere = [radio.choices for radio in actions.show_costs(photos, {}, "sks", "dog", [], "elsewhere")]
    assert all("known once this base model is here" in label for label, _ in elsewhere)


def test_what_is_wrong_with_the_form_is_said_in_its_place(actions: Actions, photos: list):
    _, shown = actions.show_estimate(photos, {}, "sks", "dog", [], *changed(shown_by(actions), steps=0))
    assert "train.steps = 0" in shown
    with pytest.raises(gr.Error, match=r"train\.steps"):
        actions.estimate(steps=0)


def test_what_a_public_studio_does_not_take_is_refused_before_it_is_rehearsed(
    tmp_path: Path, tiny_model: Path, photos: list, monkeypatch: pytest.MonkeyPatch
):
    studio = make_studio(tmp_path / "public", tiny_model, public=True)
    with gr.Blocks():
        actions = Actions(studio, forms.build(studio), Estimates(studio.settings))
    monkeypatch.setattr(estimate, "check", lambda *args, **kwargs: pytest.fail("it was rehearsed"))
    for more, says in [
        ({"rank": 1024}, r"lora\.rank is 1024, and this studio takes 64 at most"),
        ({"targets": ["to_q"] * 17}, r"The number of lora\.targets is 17"),
        ({"targets": ["to_q"] * 3000}, r"lora\.targets = .* at most 64 items"),
    ]:
        with pytest.raises(gr.Error, match=says):
            actions.estimate(method="lora", more={"lora": more})
    with pytest.raises(gr.Error, match=r"train\.steps is 5000"):
        actions.estimate(steps=5000, ways="two")
    _, shown = actions.show_estimate(photos, {}, "sks", "dog", [], *changed(shown_by(actions), steps=5000))
    assert "train.steps is 5000, and this studio takes 3000 at most" in shown


# ---- In a browser
