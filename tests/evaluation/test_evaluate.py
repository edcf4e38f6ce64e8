"""Evaluations: figures that anyone can recompute from the pictures, and folders that go on where they stopped."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth import events
from dreambooth.errors import ConfigError, ModelError, RunError
from dreambooth.evaluation.evaluate import BASE, Candidate, Evaluation, base_model, evaluate, run_photos, trained_model
from dreambooth.generate import draw_jobs, generate, open_source, save_picture
from dreambooth.metrics.encoders import load_encoders
from dreambooth.metrics.measures import Measure, Measures
from dreambooth.metrics.metrics import METRICS
from dreambooth.models.adapters import write_step
from dreambooth.runs.directory import Run
from tests import tiny

PROMPTS = ["a photo of {identifier} {class_noun}", "a {identifier} {class_noun} in the snow"]
TOTAL = 2 * 2 + 3


@pytest.fixture
def config(make_config):
    """Two prompts with two pictures each, and three of the class."""
    return make_config(evaluation=settings())


@pytest.fixture
def photos(photo_folder) -> list[Path]:
    return sorted(photo_folder.glob("*.jpg"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """Filled by the first test that asks for `done`."""
    return tmp_path_factory.mktemp("evaluated") / "out"


@pytest.fixture
def done(config, photos, evaluated, tmp_path) -> Path:
    """A folder with the whole evaluation of `config`, to do with as one likes."""
    if not evaluated.exists():
        run(config, photos, evaluated)
    return shutil.copytree(evaluated, tmp_path / "done")


def settings(**changes) -> dict:
    small = {"dino": "toybox", "clip": "toybox", "perceptual": "toybox", "prompts": PROMPTS, "images_per_prompt": 2}
    return small | {"class_images": 3, "batch_size": 3} | changes


def run(config, photos, out: Path, candidate: Candidate | None = None, **options) -> list[events.Event]:
    return list(evaluate(candidate or base_model(config), config, photos, out, subject="disc", **options))


def closed(config) -> Candidate:
    """The base model, which must not be opened."""
    return replace(base_model(config), open=lambda _: pytest.fail("the model was opened"))


def images(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "images").iterdir()}


def figures(out: Path) -> dict:
    return Evaluation.load(out).model_dump()


def drawn(happened: list[events.Event], found: int = 0) -> int:
    """How many pictures were drawn where `found` were there."""
    stage = next(i for i, e in enumerate(happened) if isinstance(e, events.Stage) and e.name == "measure")
    return max((e.done - found for e in happened[:stage] if isinstance(e, events.Progress)), default=0)


# ---- The figures


def test_every_figure_can_be_recomputed_from_the_pictures_on_disk(config, photos, done):
    told = json.loads((done / "metrics.json").read_text())
    encoders = load_encoders(config.evaluation, "toybox", "cpu")
    opened = {path.name: Image.open(path).convert("RGB") for path in (done / "images").iterdir()}
    assert len(opened) == TOTAL
    ours = [sorted(name for name in opened if name.startswith(f"prompt-{n:02d}")) for n in range(2)]
    kin = [opened[name] for name in opened if name.startswith("class-")]
    real = [Image.open(path).convert("RGB") for path in photos]

    def mean_cosine(ones, others, encoder) -> float:
        a, b = encoder.embed(ones).astype(float), encoder.embed(others).astype(float)
        return float(np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x in a for y in b]))

    pictures = [opened[name] for names in ours for name in names]
    texts = encoders.clip.embed_texts(["a photo of dog"] * 2 + ["a dog in the snow"] * 2)
    looks = encoders.clip.embed(pictures)
    apart = [
        np.mean([encoders.perceptual.distances([(opened[a], opened[b])])[0] for a, b in combinations(names, 2)])
        for names in ours
    ]
    expected = {
        "dino": mean_cosine(pictures, real, encoders.dino),
        "clip_i": mean_cosine(pictures, real, encoders.clip),
        "clip_t": float(np.mean([i @ t for i, t in zip(looks, texts, strict=True)])),
        "pres": mean_cosine(kin, real, encoders.dino),
        "div": float(np.mean(apart)),
    }
    for name, value in expected.items():
        assert told["metrics"][name]["value"] == pytest.approx(value, abs=1e-5), name
    others = [[other for j, other in enumerate(real) if j != i] for i in range(len(real))]
    for name, encoder in (("dino", encoders.dino), ("clip_i", encoders.clip)):
        top = np.mean([mean_cosine([photo], rest, encoder) for photo, rest in zip(real, others, strict=True)])
        assert told["ceilings"][name] == pytest.approx(top, abs=1e-5), name
    assert [p["dino"] for p in told["prompts"]] == pytest.approx(
        [mean_cosine([opened[name] for name in names], real, encoders.dino) for names in ours], abs=1e-5
    )
    metrics = {e.name: e.value for e in run(config, photos, done) if isinstance(e, events.Metric)}
    assert metrics == {name: told["metrics"][name]["value"] for name in METRICS}


def test_what_figures_were_made_from_stands_beside_them(done, evaluated, tiny_model):
    text = (done / "metrics.json").read_text()
    told = json.loads(text)
    assert (told["subject"], told["class_noun"], told["identifier"], told["condition"]) == ("disc", "dog", "sks", BASE)
    assert (told["base_model"], told["model"], told["step"], told["photos"]) == (tiny_model.name, tiny_model.name, 0, 3)
    assert told["encoders"] == {
        "dino": "toybox ViT",
        "clip": "toybox CLIP",
        "perceptual": "toybox ViT patch distance",
    }
    assert [p["prompt"] for p in told["prompts"]] == ["a photo of sks dog", "a sks dog in the snow"]
    assert [p["described"] for p in told["prompts"]] == ["a photo of dog", "a dog in the snow"]
    assert (told["class_prompt"], told["class_images"], told["images_per_prompt"]) == ("a photo of a dog", 3, 2)
    assert told["sampling"] == {"steps": 2, "guidance_scale": 7.5, "scheduler": "default", "precision": "no"}
    assert [told["metrics"][name]["count"] for name in METRICS] == [4, 4, 4, 3, 2]
    assert str(evaluated) not in text
    assert str(tiny_model.parent) not in text


def test_a_picture_is_what_its_prompt_and_seed_give_and_says_so(config, done):
    told = Evaluation.load(done)
    assert [(p.file, p.prompt, p.seed) for p in told.pictures[2:]] == [
        ("prompt-01-0.png", 1, 0),
        ("prompt-01-1.png", 1, 1),
    ]
    with Image.open(done / "images" / "prompt-01-1.png") as image:
        assert image.text["prompt"] == "a sks dog in the snow"
        assert (image.text["seed"], image.text["steps"], image.text["problem"]) == ("1", "2", "")
        assert image.text["precision"] == "no"
        ours = np.asarray(image, int)
    other = base_model(config).open("no")
    alone = next(generate(other, ["a sks dog in the snow"], num_images=1, seed=1, sampling=config.sampling))[0].image
    assert np.abs(ours - np.asarray(alone, int)).max() <= 1


def test_saved_and_loaded_is_the_same(done, tmp_path):
    loaded = Evaluation.load(done)
    assert loaded.folder == done
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "metrics.json").read_bytes() == (done / "metrics.json").read_bytes()


def test_values_are_what_the_means_are_over(done):
    told = Evaluation.load(done)
    for name in METRICS:
        values = told.values(name)
        assert told.metrics[name].value == pytest.approx(np.mean(list(values.values())))
        assert told.metrics[name].count == len(values)
    assert ("a photo of {identifier} dog", 1) in told.values("dino"), "however the model calls it"
    assert list(told.values("pres")) == [("a photo of a dog", seed) for seed in range(3)]


def test_without_prompts_of_ones_own_the_papers_25_are_drawn(make_config, photos, tmp_path):
    config = make_config(sampling={"steps": 1}, evaluation=settings(prompts=[], class_images=2, batch_size=52))
    run(config, photos, tmp_path)
    prompts = Evaluation.load(tmp_path).prompts
    assert len({p.prompt for p in prompts}) == 25
    assert all("sks dog" in p.prompt and "sks" not in p.described and "dog" in p.described for p in prompts)
    assert "a sks dog wearing a santa hat" in {p.prompt for p in prompts}


def test_an_identifier_written_out_is_taken_from_what_clip_compares(make_config, photos, tmp_path):
    config = make_config(evaluation=settings(prompts=["a photo of sks dog, sksy", "the {identifier} {class_noun}"]))
    run(config, photos, tmp_path)
    told = Evaluation.load(tmp_path)
    assert [p.described for p in told.prompts] == ["a photo of dog, sksy", "the dog"]
    assert told.templates == ["a photo of {identifier} dog, sksy", "the {identifier} dog"]


# ---- Stopped and gone on with


def test_killed_while_drawing_it_draws_nothing_twice_and_ends_alike(config, photos, done, tmp_path):
    work = evaluate(base_model(config), config, photos, tmp_path / "cut", subject="disc")
    while not isinstance(next(work), events.Progress):
        pass
    work.close()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "images").iterdir()}
    assert len(kept) == 3
    (tmp_path / "cut" / "images" / ".dreambooth-partial-0123abcd-prompt-01-1.png").write_bytes(b"half")
    assert not (tmp_path / "cut" / "metrics.json").exists()
    assert drawn(run(config, photos, tmp_path / "cut"), found=3) == TOTAL - 3
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items()), "not even written again"
    assert images(tmp_path / "cut") == images(done), "and what was half written is gone"
    assert figures(tmp_path / "cut") == figures(done)


def test_killed_while_measuring_it_measures_without_the_model(config, photos, done):
    whole = figures(done)
    for name in ("metrics.json", "embeddings-dino.npz", "embeddings-clip.npz"):
        (done / name).unlink()
    work = evaluate(closed(config), config, photos, done, subject="disc")
    while not (done / "embeddings-dino.npz").exists():
        next(work)
    work.close()
    assert not (done / "metrics.json").exists()
    run(config, photos, done, closed(config))
    assert figures(done) == whole


def test_asked_to_stop_it_stops_and_goes_on(config, photos, tmp_path):
    asked = iter([False, True])
    happened = run(config, photos, tmp_path, should_stop=lambda: next(asked))
    assert isinstance(happened[-1], events.Cancelled)
    assert len(images(tmp_path)) == 3
    assert not (tmp_path / "metrics.json").exists()
    assert drawn(run(config, photos, tmp_path), found=3) == TOTAL - 3


def test_what_is_measured_is_told_again_and_not_made_again(config, photos, done):
    written = (done / "metrics.json").stat().st_mtime_ns
    again = run(config, photos, done, closed(config))
    assert (done / "metrics.json").stat().st_mtime_ns == written
    told = {e.name: e.value for e in again if isinstance(e, events.Metric)}
    assert told == {name: value["value"] for name, value in figures(done)["metrics"].items()}


@pytest.mark.parametrize("damage", ["", "{", '{"subject": 3}'])
def test_damaged_metrics_are_made_anew_from_the_pictures(config, photos, done, damage):
    whole = figures(done)
    (done / "metrics.json").write_text(damage)
    with pytest.raises(RunError, match=r"metrics\.json is damaged"):
        Evaluation.load(done)
    run(config, photos, done, closed(config))
    assert figures(done) == whole


def test_other_photos_are_measured_anew_without_drawing(config, photos, done):
    one = Evaluation.load(done).metrics
    run(config, photos[:2], done, closed(config))
    two = Evaluation.load(done)
    assert two.photos == 2
    assert two.metrics["dino"] != one["dino"]
    assert two.metrics["clip_t"] == one["clip_t"]


def test_figures_of_before_precisions_were_told_are_of_float32(done):
    told = json.loads((done / "metrics.json").read_text())
    del told["sampling"]["precision"]
    (done / "metrics.json").write_text(json.dumps(told))
    assert Evaluation.load(done).sampling.words == "2 steps, guidance 7.5, float32"


def test_fewer_are_drawn_at_once_where_the_memory_holds_no_more_and_that_is_told(make_config, photos, tmp_path):
    config, sizes = make_config(evaluation=settings(batch_size=5)), []
    source = base_model(config).open("no")
    asked = []

    def fitting(folder, device, precision, most, setting, **options):
        asked.append((folder, precision, most, setting))
        return 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreambooth.generate.fitting_batch", fitting)
        patch.setattr(
            "dreambooth.evaluation.evaluate.draw_jobs",
            lambda s, jobs, *a, **k: sizes.append(len(jobs)) or draw_jobs(s, jobs, *a, **k),
        )
        happened = run(config, photos, tmp_path, replace(base_model(config), open=lambda _: source))
    assert asked == [(Path(config.base_model).resolve(), "no", 5, "evaluation.batch_size")]
    assert max(sizes) == 3
    told = [e.message for e in happened if isinstance(e, events.Warning)]
    assert "3 pictures are drawn at once, not 5, which the memory does not hold (evaluation.batch_size)." in told


# ---- Another request


@pytest.mark.slow
@pytest.mark.parametrize("change", ["weights", "prompts", "sampling", "precision", "seed", "class prompt"])
def test_another_request_clears_the_folders_own_files_and_nothing_else(make_config, photos, done, tmp_path, change):
    (done / "images" / "mine.png").write_bytes(b"mine")
    (done / "notes.txt").write_text("mine")
    options = {"evaluation": settings()}
    candidate = None
    match change:
        case "weights":
            other = tiny.stable_diffusion(tmp_path / "other", seed=7)
            candidate = replace(
                base_model(make_config()),
                folder=other,
                open=lambda precision: open_source(str(other), precision=precision),
            )
        case "prompts":
            options["evaluation"]["prompts"] = [PROMPTS[1], PROMPTS[0]]
        case "sampling":
            options["sampling"] = {"guidance_scale": 2.0}
        case "precision":
            options["sampling"] = {"precision": "bf16"}
        case "seed":
            options["evaluation"]["seed"] = 1
        case "class prompt":
            options["prior"] = {"class_prompt": "the {class_noun}"}
    asked = iter([True])
    config = make_config(**options)
    run(config, photos, done, candidate, should_stop=lambda: next(asked))
    assert set(images(done)) == {"mine.png"}
    assert not (done / "metrics.json").exists(), "figures never stand beside pictures that they are not of"
    assert drawn(run(config, photos, done, candidate)) == TOTAL
    after = images(done)
    assert after["mine.png"] == b"mine"
    assert (done / "notes.txt").read_text() == "mine"
    assert len(after) == TOTAL + 1


def test_more_pictures_a_prompt_keep_those_that_are_there(make_config, config, photos, done):
    two = images(done)
    more = make_config(evaluation=settings(images_per_prompt=3))
    assert drawn(run(more, photos, done), found=TOTAL) == 2
    assert {name: data for name, data in images(done).items() if name in two} == two
    assert Evaluation.load(done).metrics["dino"].count == 6
    run(config, photos, done, closed(config))
    assert images(done) == two
    assert Evaluation.load(done).metrics["dino"].count == 4


# ---- Pictures with nothing to see


def test_pictures_that_were_held_back_are_told_and_left_out(config, photos, done):
    whole = Evaluation.load(done)
    problem = "held back by the model's safety checker"
    for name in ("prompt-00-1.png", "class-2.png"):
        save_picture(done / "images" / name, Image.new("RGB", (32, 32)), problem=problem)
    (done / "metrics.json").unlink()
    happened = run(config, photos, done, closed(config))
    assert [e.message for e in happened if isinstance(e, events.Warning)] == [
        f"2 of {TOTAL} pictures are left out: {problem}."
    ]
    told = Evaluation.load(done)
    assert told.left_out == 2
    left = told.pictures[1]
    assert (left.problem, left.dino, left.clip_i, left.clip_t) == (problem, None, None, None)
    assert [told.metrics[name].count for name in METRICS] == [3, 3, 3, 2, 1]
    assert [p.count for p in told.prompts] == [1, 2]
    assert told.prompts[0].div is None, "one picture has no other"
    assert told.metrics["div"].value == whole.prompts[1].div
    values = [p.dino for p in whole.pictures]
    assert told.metrics["dino"].value == pytest.approx(np.mean([values[0], *values[2:]]))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_a_model_that_draws_nothing_is_told_as_such(config, photos, tmp_path):
    source = base_model(config).open("no")
    source.pipe.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    broken = replace(base_model(config), open=lambda _: source)
    with pytest.raises(ModelError, match="Too few pictures are left to measure: 0 of the subject, 0 of the class"):
        run(config, photos, tmp_path, broken)
    assert not (tmp_path / "metrics.json").exists()


def test_one_photo_has_no_ceilings(config, photos, tmp_path):
    happened = run(config, photos[:1], tmp_path)
    assert any("One photo" in e.message for e in happened if isinstance(e, events.Warning))
    assert Evaluation.load(tmp_path).ceilings == {}


# ---- Before anything is drawn


def test_prompts_without_the_subject_are_refused(make_config, photos, tmp_path):
    config = make_config(evaluation=settings(prompts=["a photo of a dog"]))
    with pytest.raises(ConfigError, match=r"'a photo of a dog' does not name the subject. Write \{identifier\}"):
        run(config, photos, tmp_path, closed(config))


def test_prompts_whose_subject_would_not_be_read_are_refused(make_config, photos, tmp_path):
    config = make_config(evaluation=settings(prompts=["dog " * 14 + "{identifier}"]))
    with pytest.raises(ConfigError, match="sks is cut off, so that it would not be read"):
        run(config, photos, tmp_path / "out", closed(config))


def test_prompts_that_are_cut_off_behind_the_subject_are_told(make_config, photos, tmp_path):
    config = make_config(evaluation=settings(prompts=["{identifier} " + "dog " * 14]))
    said = [e.message for e in run(config, photos, tmp_path / "out") if isinstance(e, events.Warning)]
    assert len(said) == 1
    assert said[0].endswith("'dog' is cut off.")


def test_encoders_that_can_not_be_had_are_told(make_config, photos, tmp_path):
    config = make_config(evaluation=settings(dino=str(tmp_path / "none")))
    with pytest.raises(ModelError, match="no such folder"):
        run(config, photos, tmp_path / "out", closed(config))
    assert not (tmp_path / "out").exists()


def test_no_photos_are_refused(config, tmp_path):
    with pytest.raises(RunError, match="no photos"):
        run(config, [], tmp_path, closed(config))


# ---- Memory


def test_the_model_is_gone_before_pictures_are_measured(config, photos, tmp_path):
    alive, measuring = [], False

    def open_it(precision):
        source = base_model(config).open(precision)
        alive.append(weakref.ref(source.pipe.unet))
        return source

    for event in evaluate(replace(base_model(config), open=open_it), config, photos, tmp_path, subject="disc"):
        if isinstance(event, events.Stage) and event.name == "measure":
            measuring = True
            assert alive
            assert alive[0]() is None
    assert measuring


# ---- What is measured


def finished_run(config, path: Path, model: Path, measures: Measures | None = None) -> Path:
    """A run directory as training leaves it."""
    Run.create(config, path)
    shutil.copytree(model, path / "model")
    if measures:
        (path / "measures.json").write_text(json.dumps(asdict(measures)))
    return path


def test_a_runs_last_and_best_model(make_config, tmp_path, tiny_model):
    config = make_config(train={"steps": 40})
    measured = Measures(0.9, {}, 20, tuple(Measure(step, 0.5, 0.5, 0.5, 0.5, None) for step in (0, 20, 30)))
    path = finished_run(config, tmp_path / "my run", tiny_model, measured)
    last = trained_model(path, config)
    assert (last.name, last.condition, last.step, last.folder) == ("my run", "with PPL", 30, path / "model")
    assert trained_model(path, config, "best").folder == path / "model", "no other was better"
    assert trained_model(path, config, "best").step == 30
    tiny.stable_diffusion(path / "best", seed=3)
    write_step(path / "best", 20)
    best = trained_model(path, config, "best")
    assert (best.condition, best.step, best.folder) == ("with PPL, best", 20, path / "best")
    ours, theirs = (torch.cat([p.flatten() for p in c.open("no").pipe.unet.parameters()]) for c in (last, best))
    assert not torch.equal(ours, theirs)


def test_a_run_that_was_not_measured_has_all_its_steps(make_config, tmp_path, tiny_model):
    config = make_config(train={"steps": 40}, prior={"enabled": False})
    candidate = trained_model(finished_run(config, tmp_path / "run", tiny_model), config)
    assert (candidate.step, candidate.condition) == (40, "without PPL")


def test_a_run_that_is_not_finished_is_refused(make_config, tmp_path):
    config = make_config()
    path = Run.create(config, tmp_path / "run").path
    with pytest.raises(RunError, match="has no finished model"):
        trained_model(path, config)
    with pytest.raises(RunError, match="has no prepared photos"):
        run_photos(path)


@pytest.mark.parametrize(
    ("base", "name"), [("toybox", "toybox"), ("owner/name", "owner/name"), ("/srv/gone/my-model", "my-model")]
)
def test_a_base_model_is_called_by_its_name_and_never_by_a_path(make_config, photos, tmp_path, tiny_model, base, name):
    config = make_config(base_model=base, evaluation=settings())
    candidate = trained_model(finished_run(config, tmp_path / "run", tiny_model), config)
    run(config, photos, tmp_path / "out", candidate)
    told = Evaluation.load(tmp_path / "out")
    assert (told.base_model, told.model) == (name, "run")
    assert "/srv" not in (tmp_path / "out" / "metrics.json").read_text()
    if base == "toybox":
        assert base_model(config).name == "toybox"


def test_an_evaluation_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match=r"metrics\.json can't be read .* Evaluate the model first"):
        Evaluation.load(tmp_path)
