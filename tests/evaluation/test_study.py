"""Studies on tiny models: what is asked and refused, that nothing is done twice, and what there is in the end."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock

from dreambooth import events
from dreambooth.errors import ConfigError, DreamBoothError, RunError
from dreambooth.evaluation.evaluate import Evaluation, sampler_of
from dreambooth.evaluation.study import StudyConfig, cells_of, comparison, plan, run_study
from dreambooth.metrics.measures import read_measures
from dreambooth.runs.directory import Run
from dreambooth.toybox.identities import CLASSES
from dreambooth.training import prior
from tests import tiny

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parent.parent.parent / "configs"
EVALUATION = {
    "dino": "toybox",
    "clip": "toybox",
    "perceptual": "toybox",
    "images_per_prompt": 2,
    "class_images": 3,
    "prompts": ["a {identifier} {class_noun} in the snow", "a photo of {identifier} {class_noun}"],
}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory) -> Path:
    """Two dogs and a cat, as the paper's repository keeps its subjects."""
    folder = tmp_path_factory.mktemp("subjects")
    for name in ("ida", "rex", "tom"):
        tiny.photos(folder / name)
    (folder / "prompts_and_classes.txt").write_text("Classes\n\nsubject_name,class\nida,dog\nrex,dog\ntom,cat\n\n")
    return folder


@pytest.fixture(scope="module")
def make_study(tiny_model, subjects):
    """A function that gives a quick study of the two dogs, changed by keyword arguments."""

    def make(**changes) -> StudyConfig:
        config = {
            "base_model": str(tiny_model),
            "device": "cpu",
            "prior": {"num_images": 4, "steps": 2},
            "train": {"steps": 3, "learning_rate": 1e-3, "mixed_precision": "no", "sample_every": 3},
            "sampling": {"steps": 2, "num_images": 2, "prompts": []},
            "evaluation": EVALUATION,
        }
        dogs = [{"name": n, "photos": str(subjects / n), "class_noun": "dog"} for n in ("ida", "rex")]
        for key, value in changes.pop("config", {}).items():
            config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
        return StudyConfig(**{"subjects": dogs, "seeds": [7], "config": config} | changes)

    return make


@pytest.fixture(scope="module")
def finished(make_study, tmp_path_factory):
    """A study of two dogs: its settings, its folder, and what happened to each cell."""
    out = tmp_path_factory.mktemp("studies") / "dogs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMBOOTH_CACHE", str(out.parent / "cache"))
        study = make_study()
        happened = list(run_study(study, plan(study, out), out))
    return study, out, happened


def only(kind: type, happened) -> list[tuple[str, events.Event]]:
    return [(str(cell), event) for cell, event in happened if isinstance(event, kind)]


def files(folder: Path) -> dict[str, int]:
    """Every file with the time of its last change."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def refusal(study: StudyConfig, out: Path) -> str:
    with pytest.raises(DreamBoothError) as caught:
        plan(study, out)
    assert not out.exists(), "nothing has begun"
    return str(caught.value)


# ---- What is asked


def test_a_study_is_read_with_folders_relative_to_its_file(tmp_path):
    (tmp_path / "s.yaml").write_text("subjects: photos/all\nclasses: {rex: dog}\nconfig: {train: {steps: 5}}\n")
    study = StudyConfig.load(tmp_path / "s.yaml", ("config.train.steps=9", "seeds=[1, 2]"))
    assert study.subjects == str(tmp_path / "photos" / "all")
    assert study.config == {"train": {"steps": 9}}
    assert study.seeds == [1, 2]
    assert list(study.conditions) == ["without PPL", "with PPL"]
    assert StudyConfig(subjects="paper").seeds == [1234]


def test_a_list_of_subjects_is_too_and_an_override_starts_where_you_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "s.yaml").write_text("subjects: [{name: rex, photos: rex, class_noun: dog}]\n")
    assert StudyConfig.load(Path("a/s.yaml")).subjects[0]["photos"] == str(tmp_path / "a" / "rex")
    assert StudyConfig.load(Path("a/s.yaml"), ("subjects=all",)).subjects == str(tmp_path / "all")
    assert StudyConfig.load(Path("a/s.yaml"), ("subjects=paper",)).subjects == "paper"


def test_models_and_learned_words_of_a_study_are_relative_to_its_file_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "own" / "sd").mkdir(parents=True)
    (tmp_path / "a" / "s.yaml").write_text(
        "subjects: all\nconfig: {base_model: own/sd, evaluation: {dino: ./vit}}\n"
        "conditions: {pivotal: {word: {learned: ../run}}, other: {base_model: ~/sd}}\n"
    )
    study = StudyConfig.load(Path("a/s.yaml"), ("config.evaluation.clip=./clip",))
    here, home = tmp_path / "a", Path("~/sd").expanduser()
    encoders = {"dino": str(here / "vit"), "clip": str(tmp_path / "clip")}
    assert study.config == {"base_model": str(here / "own" / "sd"), "evaluation": encoders}
    assert study.conditions == {
        "pivotal": {"word": {"learned": str(tmp_path / "run")}},
        "other": {"base_model": str(home)},
    }
    (tmp_path / "a" / "s.yaml").write_text("subjects: all\nconditions: {other: {base_model: own/typo}}\n")
    with pytest.raises(ConfigError, match="base_model = 'own/typo' may be a folder"):
        StudyConfig.load(Path("a/s.yaml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds: [1]", "'subjects' is missing"),
        ("subjects: ''", "give a folder of folders, a list, or the word paper"),
        ("subjects: 3", "give a folder of folders, a list, or the word paper"),
        ("subjects: []", "each subject of the list needs a name"),
        ("subjects: [rex]", "each subject of the list needs a name"),
        ("subjects: [{name: rex}, {name: Rex}]", "two of rex, Rex are the same"),
        ("subjects: [{name: ../rex}]", "'../rex' can't be a folder's name"),
        ("subjects: [{name: .rex}]", "'.rex' can't be a folder's name"),
        ("{subjects: paper, conditions: {}}", "conditions: Dictionary should have at least 1 item"),
        ("{subjects: paper, conditions: {a/b: {}}}", "'a/b' can't be a folder's name"),
        ("{subjects: paper, conditions: {a b: {}, a-b: {}}}", "two of base model, a b, a-b are the same"),
        ("{subjects: paper, conditions: {base model: {}}}", "are the same"),
        ("{subjects: paper, seeds: []}", "at least 1 item"),
        ("{subjects: paper, seeds: [1, 1]}", "a seed stands twice"),
        ("{subjects: paper, seeds: [-1]}", "seeds.0 = -1"),
        ("{subjects: paper, config: {seed: 3}}", "has a seed; a study's stand under `seeds`"),
        ("{subjects: paper, which: worst}", "which = 'worst'"),
        ("{subjects: paper, photos: x}", "unknown key 'photos'; known here: subjects, classes, conditions, seeds"),
    ],
)
def test_what_is_no_study_is_told(tmp_path, text, words):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        StudyConfig.load(tmp_path / "s.yaml")
    assert str(tmp_path / "s.yaml") in str(caught.value)
    assert words in str(caught.value)


def test_a_comparison_is_a_study_of_one_subject(make_config, tmp_path):
    config = make_config(seed=5, prior={"weight": 0.5})
    cells = cells_of(comparison(config), tmp_path / "out")
    assert [(cell.condition, cell.seed) for cell in cells] == [
        ("base model", None),
        ("without PPL", 5),
        ("with PPL", 5),
    ]
    without, with_ppl = (cell.config for cell in cells[1:])
    assert with_ppl == config
    assert without == config.model_copy(update={"prior": config.prior.model_copy(update={"enabled": False})})
    assert cells[1].path == tmp_path / "out" / "disc" / "without-PPL-5"


def test_a_comparison_without_weight_is_refused(make_config):
    with pytest.raises(ConfigError, match=r"prior\.weight is 0, so with and without PPL are the same"):
        comparison(make_config(prior={"weight": 0}))


def test_a_comparison_with_a_drift_penalty_shows_all_three_side_by_side(make_config, tmp_path):
    config = make_config(prior={"weight": 0.5}, drift={"weight": 0.01})
    trained = cells_of(comparison(config), tmp_path / "out")[1:]
    assert [cell.condition for cell in trained] == ["without PPL", "with PPL", "with drift penalty"]
    assert [cell.config.condition for cell in trained] == [cell.condition for cell in trained]
    settings = [cell.config.model_dump(exclude={"drift", "prior"}) for cell in trained]
    assert settings == [config.model_dump(exclude={"drift", "prior"})] * 3
    assert [cell.config.drift.weight for cell in trained] == [0, 0, 0.01]
    assert {cell.config.prior.weight for cell in trained} == {0.5}


def test_a_comparison_of_what_can_not_drift_is_refused(make_config):
    subject = make_config().subject.model_dump(mode="json") | {"identifier": "<sks>"}
    config = make_config(method="textual_inversion", subject=subject, train={"text_encoder": False})
    with pytest.raises(ConfigError, match="changes no weight of the base model, so with and without PPL are the same"):
        comparison(config)


# ---- What is planned


def test_every_subject_meets_every_condition_and_seed(make_study, subjects, tmp_path):
    conditions = {"one": {}, "two": {"train": {"steps": 2}, "subject": {"identifier": "ohwx"}}}
    study = make_study(subjects=str(subjects), conditions=conditions, seeds=[2, 1], classes={"tom": "kitten"})
    cells = cells_of(study, tmp_path / "out")
    assert [str(cell) for cell in cells[:5]] == [
        "ida, base model",
        "ida, one, seed 2",
        "ida, two, seed 2",
        "ida, one, seed 1",
        "ida, two, seed 1",
    ]
    assert len(cells) == 15
    assert {cell.subject: cell.config.subject.class_noun for cell in cells} == {
        "ida": "dog",
        "rex": "dog",
        "tom": "kitten",
    }
    one, two = cells[11].config, cells[12].config
    assert one.seed == two.seed == 2
    assert (one.train.steps, two.train.steps) == (3, 2)
    assert two.instance_prompt == "a photo of ohwx kitten"
    assert one.subject.photos == subjects / "tom"


def test_without_the_base_model_only_trainings_are_planned(make_study, tmp_path):
    assert len(cells_of(make_study(evaluate_base=False), tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"train": {"stepps": 3}}}, "ida: unknown key 'train.stepps'"),
        ({"conditions": {"a": {"train": {"steps": 0}}}}, "ida, a: train.steps = 0"),
        ({"conditions": {"a": {"seed": 1}}}, "ida, a: has a seed."),
        ({"conditions": {"a": {}, "b": {"prior": {"weight": 1.0}}}}, "The conditions a and b are the same."),
        ({"conditions": {"a": {"base_model": "toybox"}}}, "ida, a: changes base_model"),
        ({"conditions": {"a": {"evaluation": {"seed": 3}}}}, "ida, a: changes evaluation, so its figures could not"),
        ({"conditions": {"a": {"subject": {"class_noun": "cat"}}}}, "changes subject.class_noun, so"),
        ({"conditions": {"a": {"sampling": {"guidance_scale": 7.0}}}}, "ida, a: changes sampling.guidance_scale, so"),
        ({"conditions": {"a": {"sampling": {"precision": "bf16"}}}}, "ida, a: changes sampling.precision, so"),
        ({"config": {"evaluation": {"prompts": ["a dog"]}}}, "'a dog' does not name the subject"),
        ({"config": {"evaluation": {"dino": "./nowhere"}}}, "./nowhere: no such folder."),
        ({"config": {"base_model": "./nowhere"}}, "./nowhere: no such folder."),
        ({"subjects": [{"name": "rex", "photos": "x"}]}, "rex: 'subject.class_noun' is missing"),
        ({"subjects": [{"name": "rex", "class_noun": "dog"}]}, "rex: 'subject.photos' is missing"),
        ({"subjects": "nowhere"}, "subjects = 'nowhere' can't be read"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_begins(make_study, tmp_path, changes, words):
    assert words in refusal(make_study(**changes), tmp_path / "out")


def test_conditions_may_differ_in_how_long_they_train(make_study, tmp_path):
    study = make_study(conditions={"a": {}, "b": {"evaluation": {"patience": 2}}}, evaluate_base=False)
    assert len(cells_of(study, tmp_path / "out")) == 4


def test_all_conditions_are_drawn_alike_whatever_their_presets_and_trainings_are(make_study, tmp_path):
    """The base model, both conditions and all seeds: by the common sampling, in the common training's precision."""
    other = {"preset": "sd15-low-rate", "train": {"mixed_precision": "bf16"}}
    study = make_study(conditions={"a": {}, "b": other}, seeds=[7, 8], config={"sampling": {"guidance_scale": 5.0}})
    cells = cells_of(study, tmp_path / "out")
    assert len(cells) == 10
    assert {sampler_of(cell.measured).words for cell in cells} == {"2 steps, guidance 5, float32"}
    assert {cell.config.train.mixed_precision for cell in cells} == {"no", "bf16"}


def test_what_could_not_be_drawn_to_be_measured_is_refused_before_anything_begins(make_study, tmp_path, monkeypatch):
    def refuse(model, device, precision, most, setting, **options):
        raise ConfigError(f"{setting} can't even be 1")

    monkeypatch.setattr("dreambooth.evaluation.study.fitting_batch", refuse)
    assert "evaluation.batch_size can't even be 1" in refusal(make_study(), tmp_path / "out")


def test_what_was_drawn_in_another_way_is_measured_anew(finished, make_study, tmp_path):
    shutil.copytree(finished[1] / "ida" / "base", tmp_path / "begun" / "ida" / "base")
    for begun, precision in (("begun", "no"), ("nothing", "auto")):
        cells = cells_of(make_study(config={"train": {"mixed_precision": "auto"}}), tmp_path / begun)
        assert {cell.sampling.precision for cell in cells} == {precision}, "as it was begun, whatever auto is here"
    shutil.copytree(finished[1], out := tmp_path / "dogs")
    file = out / "ida" / "with-PPL-7" / "evaluation" / "metrics.json"
    file.write_text(file.read_text().replace('"guidance_scale": 7.5', '"guidance_scale": 7.0'))
    cells = cells_of(make_study(), out)
    assert [str(cell) for cell in cells if cell.evaluation is None] == ["ida, with PPL, seed 7"]


def test_every_photo_of_every_subject_is_looked_at_first(make_study, subjects, tmp_path):
    tiny.photos(tmp_path / "all" / "max")
    (tmp_path / "all" / "tim").mkdir()
    (tmp_path / "all" / "tim" / "1.jpg").write_text("no photo")
    study = make_study(subjects=str(tmp_path / "all"), config={"subject": {"class_noun": "dog"}})
    assert "tim: 1.jpg holds text, not a picture." in refusal(study, tmp_path / "out")
    (tmp_path / "all" / "tim" / "1.jpg").unlink()
    assert "holds no photos." in refusal(study, tmp_path / "out")


def test_captions_of_every_subject_are_looked_at_first(make_study, tmp_path):
    tiny.photos(tmp_path / "all" / "tim")
    (tmp_path / "all" / "tim" / "photo1.txt").write_text("a dog on grass")
    study = make_study(subjects=str(tmp_path / "all"), config={"subject": {"class_noun": "dog", "captions": True}})
    assert "tim: photo1.txt: does not hold the identifier 'sks' as a word" in refusal(study, tmp_path / "out")


def test_photos_of_further_subjects_are_looked_at_first(make_study, subjects, tmp_path):
    (tmp_path / "empty").mkdir()
    more = [{"photos": str(tmp_path / "empty"), "class_noun": "cat", "identifier": "xyz"}]
    assert "ida: " in refusal(make_study(config={"more_subjects": more}), tmp_path / "out")


def test_the_study_of_methods_has_each_methods_preset(tmp_path):
    cells = cells_of(StudyConfig.load(CONFIGS / "toybox-methods.yaml"), tmp_path)
    assert len(cells) == 6 * (1 + 7)
    by_name = {cell.condition: cell.config for cell in cells if cell.subject == "cat" and cell.seed is not None}
    assert {name: (c.method, c.condition, c.subject.identifier) for name, c in by_name.items()} == {
        "full, PPL": ("full", "with PPL", "sks"),
        "full": ("full", "without PPL", "sks"),
        "full, drift penalty": ("full", "with drift penalty", "sks"),
        "LoRA, PPL": ("lora", "with PPL", "sks"),
        "LoRA": ("lora", "without PPL", "sks"),
        "Textual Inversion": ("textual_inversion", "word alone", "<sks>"),
        "Custom Diffusion, PPL": ("custom_diffusion", "with PPL", "<sks>"),
    }
    presets = {config.method: config.preset for config in by_name.values()}
    assert presets == {"full": "toybox"} | {
        name: f"toybox-{name.replace('_', '-')}" for name in ("lora", "textual_inversion", "custom_diffusion")
    }


def test_the_examples_are_studies(subjects, tmp_path):
    cells = cells_of(StudyConfig.load(CONFIGS / "toybox-study.yaml"), tmp_path)
    assert Counter(cell.condition for cell in cells) == {"base model": 6, "without PPL": 12, "with PPL": 12}
    assert {cell.config.subject.class_noun for cell in cells} <= set(CLASSES), "the toybox knows them"
    cells = cells_of(StudyConfig.load(CONFIGS / "paper-study.yaml", (f"subjects={subjects}",)), tmp_path)
    assert [cell.condition for cell in cells[:3]] == ["base model", "no-ppl", "ppl"]
    config = cells[2].config
    assert (config.preset, config.train.steps, config.prior.num_images) == ("sd15-ppl-study", 400, 100)
    without = config.prior.model_copy(update={"enabled": False})
    assert cells[1].config == config.model_copy(update={"prior": without}), "PPL alone sets them apart"


# ---- What there is in the end


def test_every_model_is_trained_and_measured(finished):
    study, out, happened = finished
    assert not only(events.Failed, happened)
    for name in ("ida", "rex"):
        for condition in ("without-PPL-7", "with-PPL-7"):
            run = Run.open(out / name / condition)
            assert run.status == "finished"
            assert run.config.prior.enabled == (condition == "with-PPL-7")
            measured = Evaluation.load(run.path / "evaluation")
            assert (measured.subject, measured.step, measured.seed) == (name, 3, 7)
            assert measured.condition == condition[:-2].replace("-", " ")
        assert Evaluation.load(out / name / "base").step == 0
    assert all(cell.evaluation is not None for cell in cells_of(study, out))


def test_tables_and_reports_tell_of_all_and_of_each(finished):
    _, out, _ = finished
    with (out / "all_results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 + 3, "a row each, and the averages"
    with (out / "rex" / "all_results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 + 3
    for folder in (out, out / "ida", out / "rex"):
        text = (folder / "report.md").read_text()
        assert "without PPL" in text
        assert (folder / "drift.png").is_file()
        assert (folder / "gallery-00.png").is_file()
        assert (folder / "report.html").is_file()
    assert "ida" in (out / "ida" / "report.md").read_text().split()
    assert "ida" not in (out / "rex" / "report.md").read_text().split()
    assert StudyConfig.load(out / "study.yaml") == finished[0]


def test_conditions_train_on_the_same_photos_and_noise(finished):
    """Only the class images set them apart: before the weights differ, the photos' loss is the same."""
    _, out, _ = finished
    first = [
        next(e for e in Run.open(out / "rex" / name).events() if isinstance(e, events.Step))
        for name in ("without-PPL-7", "with-PPL-7")
    ]
    assert first[0].instance_loss == pytest.approx(first[1].instance_loss, rel=1e-4)
    assert first[0].prior_loss is None
    assert first[1].prior_loss is not None


def test_all_models_of_a_subject_draw_the_same_prompts_from_the_same_seeds(finished):
    _, out, _ = finished
    drawn = [
        {p.name for p in (out / "rex" / name / "images").iterdir()}
        for name in ("base", "without-PPL-7/evaluation", "with-PPL-7/evaluation")
    ]
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(drawn[0]) == 2 * 2 + 3


def test_subjects_of_one_class_share_class_images(finished):
    _, out, happened = finished
    drawing = [cell for cell, event in only(events.Stage, happened) if event.name == "class images"]
    assert drawing == ["ida, with PPL, seed 7"], "the second dog finds them there"
    links = {(out / name / "with-PPL-7" / "class_images").resolve() for name in ("ida", "rex")}
    assert len(links) == 1
    assert prior.missing_images(links.pop(), 4) == []


def test_subjects_of_one_class_share_the_base_models_pictures(finished):
    _, out, happened = finished
    drawn = []
    for cell, event in happened:
        if isinstance(event, events.Stage):
            stage = event.name
        elif isinstance(event, events.Progress) and stage == "draw" and cell.seed is None:
            drawn.append(cell.subject)
    assert set(drawn) == {"ida"}
    one, other = (Evaluation.load(out / name / "base") for name in ("ida", "rex"))
    assert one.values("clip_t") == other.values("clip_t")
    assert one.values("dino").keys() == other.values("dino").keys()


def test_methods_are_compared_with_what_they_cost(make_study, tmp_path):
    inversion = {"method": "textual_inversion", "subject": {"identifier": "<sks>"}, "train": {"text_encoder": False}}
    study = make_study(
        subjects=make_study().subjects[:1],
        conditions={"full": {}, "inversion": inversion},
        config={"prior": {"enabled": False}, "train": {"sample_every": 0}},
        evaluate_base=False,
    )
    cells = cells_of(study, tmp_path)
    assert not only(events.Failed, run_study(study, cells, tmp_path))
    full, inverted = (cell.evaluation for cell in cells)
    assert [e.identifier for e in (full, inverted)] == ["sks", "<sks>"]
    assert full.values("dino").keys() == inverted.values("dino").keys(), "paired, whatever the word"
    with (tmp_path / "costs.csv").open() as file:
        costs = {row["condition"]: row for row in csv.DictReader(file) if row["subject"] == "ida"}
    assert list(costs) == ["full", "inversion"]
    width = int(float(costs["inversion"]["trainable_parameters"]))
    assert 0 < width < 100 < int(float(costs["full"]["trainable_parameters"]))
    size = sum(path.stat().st_size for path in (tmp_path / "ida" / "full-7" / "model").rglob("*") if path.is_file())
    assert float(costs["full"]["model_bytes"]) == size > 50 * float(costs["inversion"]["model_bytes"])
    steps = [e.seconds for e in Run.open(cells[0].path).events() if isinstance(e, events.Step)]
    assert float(costs["full"]["step_seconds"]) == pytest.approx(sum(steps))
    assert float(costs["full"]["run_seconds"]) > sum(steps)
    assert float(costs["full"]["memory_bytes"]) > 0
    text = (tmp_path / "report.md").read_text()
    assert "## What it costs" in text
    assert f"| {width:,} |" in text
    assert "inversion − full" in text


# ---- Going on


def test_what_is_done_is_not_done_again(finished):
    study, out, _ = finished
    before = files(out)
    cells = plan(study, out)
    assert list(run_study(study, cells, out)) == []
    after = files(out)
    told = {name for name in before if name.count(os.sep) == 0}  # the report on all
    assert {name for name in before if after[name] != before[name]} <= told


def test_a_study_grows_without_repeating_itself(finished, make_study, subjects):
    _, out, _ = finished
    study = make_study(subjects=str(subjects), evaluate_base=False)
    cells = cells_of(study, out)
    assert [str(cell) for cell in cells if cell.evaluation is None] == [
        "tom, without PPL, seed 7",
        "tom, with PPL, seed 7",
    ]


def test_other_settings_for_a_run_that_is_there_are_refused(finished, make_study):
    _, out, _ = finished
    before = files(out)
    with pytest.raises(ConfigError) as caught:
        cells_of(make_study(config={"train": {"learning_rate": 5e-5}}), out)
    assert f"{out / 'ida' / 'without-PPL-7'} was made with other settings: train.learning_rate is " in str(caught.value)
    assert " there and 5e-05 here" in str(caught.value)
    assert "choose another --out" in caught.value.hint
    with pytest.raises(ConfigError, match=r"is finished with train\.steps 3, and keeps no checkpoint .* --out"):
        cells_of(make_study(config={"train": {"steps": 4}}), out)
    assert files(out) == before


def test_a_folder_that_is_no_run_is_not_written_into(make_study, tmp_path):
    (tmp_path / "out" / "ida" / "with-PPL-7").mkdir(parents=True)
    (tmp_path / "out" / "ida" / "with-PPL-7" / "thesis.doc").write_text("years of work")
    with pytest.raises(ConfigError, match="with-PPL-7 is there already, and is no run"):
        cells_of(make_study(), tmp_path / "out")


class Stop:
    """Asks to stop when it was asked so often."""

    def __init__(self, after: int):
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_stopped_anywhere_it_goes_on_and_trains_nothing_twice(make_study, tmp_path):
    changes = {"train": {"steps": 6, "sample_every": 0}, "evaluation": {"batch_size": 2}}
    study = make_study(subjects=make_study().subjects[:1], conditions={"a": {}}, config=changes)
    cells = cells_of(study, tmp_path)
    happened, ended = [], []
    while not all(cell.evaluation for cell in cells):
        # at first while the base model's pictures are drawn, then beyond the seven pictures that are encoded
        happened.append(list(run_study(study, cells, tmp_path, should_stop=Stop(9 if happened else 4))))
        ended.append(happened[-1][-1])
        assert len(happened) < 10
    stops = [str(cell) for cell, event in ended if isinstance(event, events.Cancelled)]
    assert len(stops) == len(happened) - 1
    assert set(stops) == {"ida, base model", "ida, a, seed 7"}
    every = [pair for part in happened for pair in part]
    assert [event.step for _, event in only(events.Step, every)] == [1, 2, 3, 4, 5, 6], "each step once"
    assert len(only(events.Finished, every)) == 1
    assert "ida" in (tmp_path / "report.md").read_text()


def test_a_process_that_dies_in_a_training_leaves_one_that_can_go_on(make_study, tmp_path):
    study = make_study(subjects=make_study().subjects[:1], conditions={"a": {}}, evaluate_base=False)
    cells = cells_of(study, tmp_path)
    dying = run_study(study, cells, tmp_path)
    assert any(isinstance(event, events.Step) for _, event in dying)
    dying.close()  # as KeyboardInterrupt does
    assert Run.open(cells[0].path).status == "interrupted"
    assert cells[0].evaluation is None
    assert not only(events.Failed, run_study(study, cells, tmp_path))
    assert cells[0].evaluation.step == 3


def test_two_processes_do_not_work_on_one_study(make_study, tmp_path):
    study = make_study()
    cells = cells_of(study, tmp_path)
    with FileLock(tmp_path / ".lock"), pytest.raises(RunError, match="Another process works on the study"):
        next(run_study(study, cells, tmp_path))


# ---- Failing


def test_one_that_fails_does_not_keep_the_others(make_study, subjects, tmp_path):
    photos = tiny.photos(tmp_path / "max")
    dogs = [
        {"name": "max", "photos": str(photos), "class_noun": "dog"},
        {"name": "ida", "photos": str(subjects / "ida"), "class_noun": "dog"},
    ]
    study = make_study(subjects=dogs, conditions={"a": {}}, config={"train": {"sample_every": 0}})
    cells = cells_of(study, tmp_path / "out")
    for path in photos.iterdir():
        path.write_text("no photo any more")
    happened = list(run_study(study, cells, tmp_path / "out"))
    failed = only(events.Failed, happened)
    assert [cell for cell, _ in failed] == ["max, base model", "max, a, seed 7"]
    assert failed[0][1].kind == "PhotoError"
    assert "photo0.jpg holds text, not a picture." in failed[0][1].message
    assert Run.open(tmp_path / "out" / "max" / "a-7").status == "failed"
    assert [cell.evaluation is not None for cell in cells] == [False, False, True, True]
    assert "ida" in (tmp_path / "out" / "report.md").read_text()
    for number, path in enumerate(sorted(photos.iterdir())):
        path.write_bytes((subjects / "rex" / f"photo{number}.jpg").read_bytes())
    again = list(run_study(study, cells, tmp_path / "out"))
    assert {cell.subject for cell, _ in again} == {"max"}
    assert not only(events.Failed, again)


def test_a_folder_that_can_not_be_written_is_told_like_any_failure(make_study, tmp_path):
    study = make_study(evaluate_base=False, conditions={"a": {}})
    (tmp_path / "ida").write_text("a file where a folder must be")
    happened = run_study(study, cells_of(study, tmp_path), tmp_path)
    cell, failed = next(happened)
    assert (cell.subject, failed.kind) == ("ida", "RunError")
    assert "a-7 can't be read or written" in failed.message
    assert next(happened)[0].subject == "rex"
    happened.close()


def test_a_bug_in_one_is_told_with_its_trace_and_the_next_begins(make_study, tmp_path, caplog):
    study = make_study(evaluate_base=False, conditions={"a": {}})

    def asked() -> bool:
        raise ZeroDivisionError("of what")

    happened = list(run_study(study, cells_of(study, tmp_path), tmp_path, should_stop=asked))
    failed = only(events.Failed, happened)
    assert [cell for cell, _ in failed] == ["ida, a, seed 7", "rex, a, seed 7"]
    assert failed[0][1].message == "ZeroDivisionError: of what."
    assert failed[0][1].hint == "Please report this; it is a bug."
    assert "in asked" in caplog.text


# ---- Weights


def test_weights_of_what_was_measured_need_not_be_kept(make_study, tmp_path):
    study = make_study(subjects=make_study().subjects[:1], conditions={"a": {}}, keep_models=False)
    happened = list(run_study(study, cells_of(study, tmp_path), tmp_path))
    assert not only(events.Failed, happened)
    left = {path.name for path in (tmp_path / "ida" / "a-7").iterdir()}
    assert left.isdisjoint({"model", "best", "checkpoints"})
    assert {"config.yaml", "events.jsonl", "evaluation", "samples", "photos"} <= left
    assert list(run_study(study, cells_of(study, tmp_path), tmp_path)) == []


def test_the_best_models_are_measured_where_asked(make_study, tmp_path):
    study = make_study(
        subjects=make_study().subjects[:1],
        conditions={"a": {}},
        which="best",
        evaluate_base=False,
        config={"train": {"steps": 4, "sample_every": 1}},
    )
    (cell,) = cells_of(study, tmp_path)
    assert not only(events.Failed, run_study(study, [cell], tmp_path))
    measured = cell.evaluation
    assert measured.condition == "a, best"
    assert measured.folder == cell.path / "evaluation-best"
    assert measured.step == read_measures(cell.path).best
