"""The Train tab: starting, looking, what is remembered, what is refused, and in a browser what a method changes."""

from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, expect

from dreambooth import events
from dreambooth.config.names import TOYBOX
from dreambooth.config.presets import load_preset
from dreambooth.errors import ModelError
from dreambooth.photos.prepare import Crop
from dreambooth.runs.directory import Run
from dreambooth.training.preflight import Estimate
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.photos import tab as upload
from dreambooth.ui.photos.tab import Kept
from dreambooth.ui.studio import Studio
from dreambooth.ui.train import estimate
from dreambooth.ui.train import tab as train
from dreambooth.ui.train.estimate import Estimates
from dreambooth.ui.train.settings import DRIFT, ON_TOP, Choices, recipe_values
from dreambooth.ui.train.tab import Actions
from tests.ui.studios import ANNA, BERT, finished_runs, measured
from tests.ui.studios import studio as make_studio

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def studio(tmp_path: Path, tiny_model: Path) -> Studio:
    return make_studio(tmp_path / "runs", tiny_model)


def page(studio: Studio) -> Actions:
    with gr.Blocks():
        return _actions(train.build(studio, gr.Textbox(), upload.build(studio))[1])


def _actions(refresh: dict) -> Actions:
    return refresh["fn"].__self__


@pytest.fixture
def actions(studio: Studio) -> Actions:
    return page(studio)


@pytest.fixture
def photos(photo_folder: Path) -> list[tuple[str, None]]:
    return [(str(path), None) for path in sorted(photo_folder.iterdir())]


def shown_by(actions: Actions) -> list:
    """What the form shows at first, on a small run."""
    [base_model, *values] = recipe_values(actions.studio, actions.form, TOYBOX)
    top = dict(zip(ON_TOP.values(), values)) | {"steps": 3, "class_images": 4}
    return [*Choices(TOYBOX, base_model, ways="one", learned="", **top), *values[len(ON_TOP) :]]


def changed(values: list, **choices: object) -> list:
    """What the form shows, with some of what is on top changed."""
    count = len(Choices._fields)
    return [*Choices(*values[:count])._replace(**choices), *values[count:]]


def test_the_page_and_a_caller_start_the_same_run(actions: Actions, photos: list):
    [first] = actions.start_from_page(ANNA, photos, {}, "ohwx", "dog", [], False, *shown_by(actions))
    [second] = actions.start_training(ANNA, photos, "ohwx", "dog", TOYBOX, "tiny-sd", 3, class_images=4)
    configs = [actions.studio.own_run(ANNA, run).config for run in (first, second)]
    same = {"subject": configs[0].subject}
    assert configs[0].model_copy(update=same) == configs[1].model_copy(update=same)
    assert configs[0].train.steps == 3
    assert configs[0].prior.num_images == 4
    assert actions.run_status(ANNA, second)["position"] == 2


def test_crops_and_further_settings_reach_the_run(actions: Actions, photos: list):
    more = {"train": {"flip": True}, "sampling": {"prompts": ["a {class_noun} on a beach"]}}
    [run] = actions.start_training(
        ANNA, photos, "sks", "dog", crops=[[10, 0, 74, 64], None, None], seed=7, text_encoder=False, more=more
    )
    config = actions.studio.own_run(ANNA, run).config
    assert config.subject.crops == {"00.png": (10, 0, 74, 64)}
    assert (config.seed, config.train.text_encoder, config.train.flip) == (7, False, True)
    assert config.sampling.prompts == ["a {class_noun} on a beach"]


def test_a_damaged_run_is_listed_with_delete_as_its_only_button(actions: Actions, photos: list):
    good, bad = (actions.start_training(ANNA, photos, "sks", "dog", TOYBOX, "tiny-sd", 3)[0] for _ in range(2))
    (actions.studio.root / bad / "config.yaml").write_bytes(bytes(500))
    live = actions.live
    assert [(run["id"], run["status"]) for run in actions.runs(ANNA)] == [(good, "queued"), (bad, "damaged")]
    assert actions.run_status(ANNA, bad)["text"].startswith("This run is damaged: its settings can't be read.")
    chosen, listed, *_ = actions.refresh(ANNA, bad, 0)
    assert chosen == bad
    assert f"data-run='{bad}' aria-current='true'" in listed
    assert listed.count("chip damaged") == 1
    new = actions.watch(ANNA, bad, None)
    assert "This run is damaged" in new[live.headline]
    buttons = (live.stop, live.resume, live.delete, live.to_pictures)
    assert [new[button].visible for button in buttons] == [False, False, True, False]
    assert set(map(str, actions.watch(ANNA, bad, new[live.seen]))) == {str(gr.skip())}, "it is said once"
    with pytest.raises(gr.Error, match="no such run"):
        actions.run_status(BERT, bad)
    assert actions.runs(BERT) == []
    actions.delete_run(ANNA, bad)
    assert [run["id"] for run in actions.runs(ANNA)] == [good]
    assert actions.watch(ANNA, bad, new[live.seen])[live.delete].visible is False


def test_both_ways_gives_two_runs_that_tell_of_each_other(actions: Actions, photos: list):
    ids = actions.start_training(ANNA, photos, "sks", "dog", ways="two")
    with_ppl, without = (actions.studio.own_run(ANNA, run) for run in ids)
    assert (with_ppl.config.prior.active, without.config.prior.active) == (True, False)
    assert actions.run_status(ANNA, ids[0])["partner"] == ids[1]
    new = actions.watch(ANNA, ids[0], None)
    assert "without PPL is queued" in new[actions.live.headline]
    assert f"data-run='{ids[1]}'" in new[actions.live.headline]


def test_three_ways_take_a_drift_penalty_where_none_is_set(actions: Actions, photos: list):
    ids = actions.start_training(ANNA, photos, "sks", "dog", ways="three")
    configs = [actions.studio.own_run(ANNA, run).config for run in ids]
    assert [config.drift.weight for config in configs] == [0, 0, DRIFT]
    status = actions.run_status(ANNA, ids[2])
    assert (status["condition"], status["partners"]) == ("with drift penalty", ids[:2])
    headline = actions.watch(ANNA, ids[0], None)[actions.live.headline]
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
    actions: Actions, photos: list, method: str, identifier: str
):
    short = {"word": {"vectors": 1}}  # of the tiny model's 14 tokens the recipe's four leave too few for some prompts
    [run] = actions.start_training(ANNA, photos, "sks", "dog", method=method, more=short)
    config = actions.studio.own_run(ANNA, run).config
    ending = "" if method == "full" else f"-{method.replace('_', '-')}"
    assert (config.method, config.preset, config.subject.identifier) == (method, f"toybox{ending}", identifier)
    written = "<sks>" if identifier != "sks" else "sks"
    [same] = actions.start_training(ANNA, photos, written, "dog", method=method, more=short)
    assert actions.run_status(ANNA, same)["title"] == f"{identifier} dog"


def test_a_word_that_is_no_word_is_refused_by_methods_that_learn_one(actions: Actions, photos: list):
    with pytest.raises(gr.Error, match="angle brackets"):
        actions.start_training(ANNA, photos, "my dog", "dog", method="textual_inversion")


@pytest.fixture
def word_run(actions: Actions, photo_folder: Path) -> Run:
    """A finished run of Anna's that has learned the word <zwx>."""
    [run] = finished_runs(
        actions.studio,
        photo_folder,
        method="textual_inversion",
        train={"text_encoder": False},
        subject={"identifier": "<zwx>", "class_noun": "cat"},
    )
    return run


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


def test_several_subjects_start_from_the_page_and_from_a_program(actions: Actions, photos: list):
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
    titles = [actions.run_status(ANNA, run)["title"] for run in (first, alone, second)]
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


def test_nobody_touches_anothers_run(actions: Actions, photo_folder: Path):
    [run] = finished_runs(actions.studio, photo_folder)
    for act in (actions.run_status, actions.stop_training, actions.resume_training, actions.delete_run):
        with pytest.raises(gr.Error, match="You have no such run"):
            act(BERT, run.id)
    assert actions.runs(BERT) == []
    new = actions.watch(BERT, run.id, None)
    assert "You have no such run" in new[actions.live.headline]
    assert new[actions.live.samples] == new[actions.live.curves] == ""


def test_a_run_is_stopped_resumed_and_deleted(actions: Actions, photos: list):
    [run] = actions.start_training(ANNA, photos, "sks", "dog")
    with pytest.raises(gr.Error, match="Stop it before you delete it"):
        actions.delete_run(ANNA, run)
    actions.stop_training(ANNA, run)
    assert actions.run_status(ANNA, run)["status"] == "cancelled"
    actions.resume_training(ANNA, run)
    assert actions.run_status(ANNA, run)["status"] == "queued"
    with pytest.raises(gr.Error, match="Only one that ended early"):
        actions.resume_training(ANNA, run)
    actions.stop_training(ANNA, run)
    actions.delete_run(ANNA, run)
    assert actions.runs(ANNA) == []
    chosen, history, *_ = actions.refresh(ANNA, run, 0)
    assert chosen is None
    assert "will be listed here" in history


def looked_at(actions: Actions, run: Run, seen: object = None) -> dict:
    new = actions.watch(ANNA, run.id, seen)
    assert isinstance(new, dict), "nothing new"
    return new


def unchanged(actions: Actions, run: Run, seen: object) -> bool:
    return all(part == gr.skip() for part in actions.watch(ANNA, run.id, seen))


def test_a_look_sends_what_is_new_and_nothing_twice(actions: Actions, photos: list, photo_folder: Path):
    live = actions.live
    [waiting] = actions.start_training(ANNA, photos, "sks", "dog")
    run = actions.studio.own_run(ANNA, waiting)
    new = looked_at(actions, run)
    assert "next in the queue" in new[live.headline]
    assert new[live.stop].visible
    assert not new[live.delete].visible
    assert unchanged(actions, run, new[live.seen])

    run.append(events.Stage("train", 3))
    for step in (1, 2):
        run.append(events.Step(step, 1.0, 1.0, 0.5, 1e-4, 0.5))
    with run._held():  # as while it trains
        new = looked_at(actions, run, new[live.seen])
        assert "step 2 of 3" in new[live.headline]
        assert "<svg" in new[live.curves]
        assert "come here every" in new[live.samples]
        before = new[live.seen]
        run.append(events.Step(3, 1.0, 1.0, 0.5, 1e-4, 0.5))
        new = looked_at(actions, run, before)
        assert new.keys() == {live.headline, live.curves, live.seen}
        before = new[live.seen]
        path = run.path / "samples" / "a.png"
        path.parent.mkdir()
        path.write_bytes((run.path / "uploads" / "00.png").read_bytes())
        run.append(events.Image("samples/a.png", "a photo of sks dog", 0, 3))
        new = looked_at(actions, run, before)
        assert new[live.samples].count("<img") == 1
        assert "gradio_api/file=" in new[live.samples]
        assert str(actions.studio.root) not in str(new)
        assert new[live.history].count("<img") == 1
    run.append(events.Finished("model", 2.0))
    new = looked_at(actions, run, new[live.seen])
    assert new[live.to_pictures].visible
    assert new[live.delete].visible
    assert unchanged(actions, run, new[live.seen])

    finished_runs(actions.studio, photo_folder)
    assert unchanged(actions, run, new[live.seen]), "the list is drawn anew when the tab is opened"


def test_a_look_draws_what_was_measured_once_it_is_there(actions: Actions, photos: list):
    live = actions.live
    run = actions.studio.own_run(ANNA, actions.start_training(ANNA, photos, "sks", "dog")[0])
    run.append(events.Stage("train", 100))
    run.append(events.Image("samples/a.png", "a photo of sks dog", 0, 50))
    with run._held():
        new = looked_at(actions, run)
        assert "measured as they come" in new[live.progress]
        measured(run, 0.2, 0.3, best=50)
        run.append(events.Metric("dino", 0.5, 50))
        new = looked_at(actions, run, new[live.seen])
        assert new[live.progress].count("<svg") == 4
        assert "best</b>" in new[live.samples], "its row is marked"
        run.append(events.Metric("clip_i", 0.5, 50))
        new = looked_at(actions, run, new[live.seen])
        assert new.keys() == {live.headline, live.seen}, "the rest of them changes nothing"
    status = actions.run_status(ANNA, run.id)
    assert (status["best_step"], len(status["measures"])) == (50, 2)


def test_a_look_tells_of_another_run_of_the_visitor_that_moves_on(actions: Actions, photos: list):
    first, second = (
        actions.studio.own_run(ANNA, actions.start_training(ANNA, photos, "sks", "dog")[0]) for _ in range(2)
    )
    seen = looked_at(actions, first)[actions.live.seen]
    second.append(events.Cancelled(0))
    new = looked_at(actions, first, seen)
    assert "cancelled" in new[actions.live.history]


def test_a_run_that_is_gone_is_told_once(actions: Actions, photo_folder: Path):
    [run] = finished_runs(actions.studio, photo_folder)
    seen = looked_at(actions, run)[actions.live.seen]
    run.delete()
    new = looked_at(actions, run, seen)
    assert "You have no such run" in new[actions.live.headline]
    assert not new[actions.live.delete].visible
    assert unchanged(actions, run, new[actions.live.seen])
    assert "Nothing trains yet" in actions.watch(ANNA, None, new[actions.live.seen])[actions.live.headline]
    assert all(part == gr.skip() for part in actions.watch(BERT, None, None))


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


@pytest.mark.parametrize(
    ("count", "shown"), [(512, "512"), (158_720, "158,720"), (999_999, "999,999"), (5_242_800, "5.2 M")]
)
def test_fewer_than_a_million_weights_are_written_out(count: int, shown: str):
    told = estimate.as_html(Estimate(10**9, "train", {}, {}, count, 648_000, 60.0, 128, False, "no"))
    assert f"<p>{shown} weights trained at 128 px in 32 bits. Roughly" in told
    assert "<dt>File</dt><dd>648 kB</dd>" in told


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


def test_no_base_model_is_downloaded_for_an_estimate(studio: Studio):
    settings = {"preset": "sd15-object", "base_model": SD15}
    with pytest.raises(ModelError, match="is not on this machine yet"):
        Estimates(StudioSettings()).of(settings)


def test_what_a_public_studio_does_not_take_is_refused_before_it_is_rehearsed(
    tmp_path: Path, tiny_model: Path, photos: list, monkeypatch: pytest.MonkeyPatch
):
    actions = page(make_studio(tmp_path / "public", tiny_model, public=True))
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


def test_photos_of_people_ask_for_consent_on_a_public_studio():
    assert train._ask_for_consent("a young woman", TOYBOX).visible
    assert train._ask_for_consent("dog", "sd15-person").visible
    assert not train._ask_for_consent("dog", TOYBOX).visible
    assert not train._ask_for_consent(None, TOYBOX).visible
    assert train._ask_for_consent("dog", TOYBOX, [Kept((), {}, "sks", "girl")]).visible


# ---- In a browser


@pytest.fixture
def opened(studio: Studio, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """Two tabs of a studio that trains nothing."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with gr.Blocks(analytics_enabled=False) as blocks:
        owner = gr.Textbox(ANNA, visible=False)
        subject = upload.build(studio)
        _, refresh = train.build(studio, owner, subject)
        blocks.load(**refresh)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, run_history=False)
    page = browser.new_page()
    page.goto(url)
    yield page
    page.close()
    blocks.close()


def test_a_method_fills_in_its_recipe_and_shows_what_belongs_to_it(
    opened: Page, studio: Studio, word_run: Run, photo_folder: Path
):
    page = opened
    page.locator("#photos input[type=file]").set_input_files(sorted(photo_folder.iterdir()))
    methods, rate = page.locator("#method"), page.locator("#learning-rate input")
    expect(page.locator("#estimate")).to_contain_text("File")
    expect(methods).not_to_contain_text("Estimating")
    expect(page.locator("#prompts")).to_contain_text("a photo of sks dog")

    page.get_by_role("radio", name="Textual Inversion").check()
    expect(page.locator("#prompts")).to_contain_text("a photo of <sks> dog")
    expect(page.locator("#identifier-advice")).to_contain_text("A new word. The chosen method adds <sks>")
    for part in ("#keeping", "#text-encoder", "#learned"):
        expect(page.locator(part)).not_to_be_visible()
    page.get_by_role("radio", name="LoRA").check()
    expect(rate).to_have_value(str(load_preset("toybox-lora")["train"]["learning_rate"]))
    expect(page.locator("#prompts")).to_contain_text("a photo of sks dog")
    expect(page.locator("#text-encoder")).to_be_visible()
    page.get_by_role("radio", name="Three times").check()
    expect(page.locator("#drift-weight input")).to_have_value("0.01")
    page.locator("#learned input").click()
    page.get_by_role("option", name="<zwx> cat").click()
    expect(page.get_by_label("Identifier")).to_have_value("zwx")
    expect(page.locator("#prompts")).to_contain_text("a photo of <zwx> cat")
    expect(page.locator("#estimate")).to_contain_text("File")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#headline")).to_contain_text("Trained three ways")
    expect(page.get_by_test_id("toast-body")).to_have_count(0)
    runs = [run.config for run in studio.own_runs(ANNA) if run != word_run]
    assert sorted(config.condition for config in runs) == ["with PPL", "with drift penalty", "without PPL"]
    assert {(config.method, config.subject.identifier) for config in runs} == {("lora", "<zwx>")}
