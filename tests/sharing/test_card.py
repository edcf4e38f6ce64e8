"""The card: true, whole, the same words for the Hub and for strangers, and nothing of this machine in it."""

from __future__ import annotations

import ast
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import load_file

from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import merge, read_yaml, to_yaml
from dreambooth.errors import ConfigError, HubError, RunError
from dreambooth.evaluation.evaluate import Evaluation
from dreambooth.evaluation.study import StudyConfig, plan, run_study
from dreambooth.families.load import load_pipeline
from dreambooth.families.words import read_words
from dreambooth.generate import finished_model, generate, open_source
from dreambooth.hub import TAG
from dreambooth.methods.lora import FILE as LORA
from dreambooth.metrics.measures import read_measures
from dreambooth.metrics.metrics import METRICS
from dreambooth.models.adapters import load_model, write_step
from dreambooth.runs.directory import Run
from dreambooth.sharing.card import Licence, assemble, base_licence
from dreambooth.sharing.model_card import method_of
from tests import tiny
from tests.ui.studios import save_adapter

pytestmark = pytest.mark.slow

REPO = "anna/sks-dog"
APACHE = Licence("apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0")
TOYBOX = {"dino": "toybox", "clip": "toybox", "perceptual": "toybox"}
HOSTILE = "<script>alert(1)</script>|`x` **b** [l](javascript:x)"
MORE_HOSTILE = (
    "{identifier} {class_noun} \"'\\ ![i](http://e.vil/i.png)\n---\n```\nlicense: mit\n# h\n</Gallery> | x \u202e"
)


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Path:
    """A subject's folder in a study: base model, without and with PPL, trained, measured and evaluated."""
    folder = tmp_path_factory.mktemp("Anna Smiths flat")
    base = tiny.stable_diffusion(folder / "my-tiny-sd")
    config = {
        "base_model": str(base),
        "device": "cpu",
        "prior": {"num_images": 4, "steps": 2},
        "train": {"steps": 4, "learning_rate": 1e-3, "mixed_precision": "no", "sample_every": 2},
        "sampling": {"steps": 2, "num_images": 2, "prompts": ["a {identifier} {class_noun} in the snow"]},
        "evaluation": TOYBOX
        | {
            "prompts": ["a {identifier} {class_noun}", "a photo of {identifier} {class_noun}"],
            "images_per_prompt": 2,
            "class_images": 3,
        },
    }
    photos = tiny.photos(folder / "Rex of Main Street")
    study = StudyConfig(
        subjects=[{"name": "rex", "photos": str(photos), "class_noun": "dog"}], seeds=[7], config=config
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMBOOTH_CACHE", str(folder / "cache"))
        for _ in run_study(study, plan(study, folder / "study"), folder / "study"):
            pass
    return folder / "study" / "rex"


@pytest.fixture
def subject(studied, tmp_path) -> Path:
    """A copy of that folder, to do with as one likes."""
    return shutil.copytree(studied, tmp_path / "rex", symlinks=True)


@pytest.fixture
def pair(subject) -> tuple[Run, Run]:
    """The run with PPL, and its partner without."""
    return Run.open(subject / "with-PPL-7"), Run.open(subject / "without-PPL-7")


@pytest.fixture
def make(tmp_path):
    """A function that assembles a run's repo, changed by keyword arguments, and gives its folder."""

    def make(run: Run, **options) -> Path:
        folder = tmp_path / "repo"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        asked = {"repo_id": REPO, "licence": APACHE, "which": "last", "photos": False, "partner": None}
        assemble(run, folder, **asked | options)
        return folder

    return make


def bare(run: Run) -> Run:
    """The run without what was drawn and measured of it."""
    shutil.rmtree(run.path / "samples")
    shutil.rmtree(run.path / "evaluation")
    (run.path / "measures.json").unlink()
    return run


def changed(run: Run, **changes) -> Run:
    """The run as if it had been asked for otherwise."""
    settings = merge(read_yaml(run.path / "config.yaml"), changes)
    (run.path / "config.yaml").write_text(to_yaml(settings), encoding="utf-8")
    return run


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def opened(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def rendered(text: str) -> str:
    """As the Hub shows it: GitHub's Markdown, HTML let through."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


def snippet(text: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return code


# ---- Using it


def test_the_three_lines_of_the_card_run_as_they_stand(pair, make, hub, tmp_path):
    run, _ = pair
    folder = make(run)
    shutil.copytree(finished_model(run.path), folder, dirs_exist_ok=True)
    hub.add_repo(REPO, folder)
    code = snippet(hub.repos["model", REPO].card)
    assert len(code.splitlines()) == 3
    there = tmp_path / "elsewhere"
    there.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=there, env=hub.environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    with Image.open(there / "picture.png") as picture:
        assert picture.size == (32, 32)
    assert any(request.path.startswith(f"/{REPO}/resolve/") for request in hub.requests)


def test_the_lines_draw_as_the_run_did(pair, make):
    call = ast.parse(snippet(opened(make(pair[0])).text)).body[2].value.func.value.value.value
    assert ast.literal_eval(call.args[0]) == "a photo of sks dog"
    assert {k.arg: ast.literal_eval(k.value) for k in call.keywords} == {
        "num_inference_steps": 2,
        "guidance_scale": 7.5,
    }


# ---- The front matter


def test_the_front_matter_is_whole_and_the_hub_takes_it(pair, make, hub):
    run, partner = pair
    folder = make(run, partner=partner)
    made = opened(folder)
    made.validate()
    assert any(request.path == "/api/validate-yaml" and request.status == 200 for request in hub.requests)
    data = made.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "diffusers", "text-to-image")
    assert data.tags == ["text-to-image", "diffusers", "dreambooth", "stable-diffusion", TAG]
    assert data.instance_prompt == "a photo of sks dog"
    assert data.base_model is None, "a folder of this machine is none on the Hub"
    assert "license_name" not in data.to_dict()
    assert [one["text"] for one in data.widget] == [
        "a photo of sks dog",
        "a sks dog in the snow",
        "a photo of sks dog",
        "a sks dog in the snow",
        "a photo of a dog",
        "a photo of a dog",
    ]
    assert all((folder / one["output"]["url"]).is_file() for one in data.widget)


def test_the_figures_in_the_front_matter_are_those_of_the_evaluation(pair, make):
    run, _ = pair
    folder = make(run)
    results, known = opened(folder).data.eval_results, Evaluation.load(run.path / "evaluation")
    assert [r.metric_type for r in results] == list(METRICS)
    for result in results:
        estimate = known.metrics[result.metric_type]
        assert result.metric_value == round(estimate.value, 4)
        assert (result.metric_args["low"], result.metric_args["high"]) == (
            round(estimate.low, 4),
            round(estimate.high, 4),
        )
        assert known.encoder_of[result.metric_type] in result.metric_name
        assert result.metric_args.get("ceiling") == (
            round(known.ceilings[result.metric_type], 4) if result.metric_type in known.ceilings else None
        )
    published = Evaluation.load(folder)
    assert published.metrics == known.metrics
    assert (published.subject, published.model) == ("sks dog", "sks-dog"), "no folder's name"


def test_a_base_model_of_the_hub_is_named_with_its_revision_and_licence(pair, make):
    run = bare(changed(pair[0], base_model="some/stable-diffusion", revision="fp16"))
    shutil.rmtree(run.path.parent / "base")
    licence = Licence(
        "other", "a licence (of its own)", "https://huggingface.co/some/stable-diffusion/blob/main/L I.md"
    )
    made = opened(make(run, licence=licence))
    assert (made.data.base_model, made.data.base_model_relation) == ("some/stable-diffusion", "finetune")
    assert (made.data.license, made.data.license_name) == ("other", "a licence (of its own)")
    assert made.data.license_link == licence.link
    page = rendered(made.text)
    assert '<a href="https://huggingface.co/some/stable-diffusion">some/stable-diffusion</a>, revision' in page
    assert 'blob/main/L%20I.md">a licence (of its own)</a>' in page
    assert "base_model=FOLDER" not in made.text


def test_an_unknown_licence_is_said(pair, make):
    made = opened(make(pair[0], licence=Licence("unknown")))
    assert made.data.license == "unknown"
    assert "licence is not known here" in made.text


# ---- The body


def test_a_stranger_reads_how_good_it_is_beside_what_it_was_and_could_be(pair, make):
    run, partner = pair
    folder = make(run, partner=partner)
    text, known = opened(folder).text, Evaluation.load(run.path / "evaluation")
    dino = known.metrics["dino"]
    assert f"**{dino.value:.3f} [{dino.low:.3f},\u00a0{dino.high:.3f}]**".replace("-", "−") in text
    rows = re.findall(r"^\| ([^|]+) \| .*\|$", text.split("## How good it is")[1].split("##")[0], re.MULTILINE)
    assert rows[1:] == ["Real photos (ceiling)", "Base model", "Without PPL", "With PPL", "*Measured by*"]
    assert text.count("*toybox ViT*") >= 2
    assert "on a scale of their own" in text
    assert "with PPL − without PPL" in text
    assert {"images/comparison.png", "images/loss.png", "images/progress.png", "images/drift.png"} <= files(folder)
    assert all((folder / name).is_file() for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text))
    assert all((folder / name).exists() for name in re.findall(r"(?<!!)\[[^\]]*\]\((?!http)([^)]+)\)", text))
    for words in ("## Use it", "## How it was made", "## Limits and intended use", "consent", "## Repeat it"):
        assert words in text
    assert f"python -m dreambooth train hub:{REPO} --set subject.photos=FOLDER --set base_model=FOLDER" in text


def test_the_comparison_has_a_column_for_each_model_there_is(pair, make):
    run, partner = pair

    def width(**options) -> int:
        with Image.open(make(run, **options) / "images" / "comparison.png") as sheet:
            return sheet.width

    three = width(partner=partner)
    two = width()
    assert three > 1.4 * two, "base and with PPL, from the evaluations"
    shutil.rmtree(run.path / "evaluation")
    assert width() == two, "before and after, from the samples"
    assert width(partner=partner) == three
    for path in (run.path / "samples").glob("step-000000-*"):
        path.unlink()
    assert "images/comparison.png" not in files(make(run)), "one alone is no comparison"


def test_the_best_steps_model_has_its_own_pictures_and_figures(pair, make):
    run, _ = pair
    shutil.rmtree(run.path / "best", ignore_errors=True)
    shutil.copytree(run.path / "model", run.path / "best")
    write_step(run.path / "best", 2)
    measures = json.loads((run.path / "measures.json").read_text())
    (run.path / "measures.json").write_text(json.dumps(measures | {"best": 2}))
    folder = make(run, which="best")
    text = opened(folder).text
    assert "metrics.json" not in files(folder), "that evaluation is of the last step"
    assert "4; this is step 2, whose sample pictures were best" in text
    found = read_measures(run.path).measures[1]
    assert f"| This model, step 2 | {found.dino:.3f} |".replace("-", "−") in text
    assert "too few for intervals" in text
    ours, theirs = (
        Image.open(path)
        for path in (
            folder / "images" / "00.png",
            *(run.path / "samples").glob("step-000002-00-a-photo-of-sks-dog-0.png"),
        )
    )
    assert ours.tobytes() == theirs.convert("RGB").tobytes()


def test_a_run_that_drew_and_measured_nothing_has_a_card_that_says_so(pair, make):
    folder = make(bare(pair[0]))
    made = opened(folder)
    assert "It was not measured." in made.text
    assert "<Gallery />" not in made.text
    assert made.data.get("widget") is made.data.get("eval_results") is None
    assert files(folder) == {"README.md", "config.yaml", "images/loss.png"}


def test_without_samples_the_evaluations_pictures_are_shown(pair, make):
    run, _ = pair
    shutil.rmtree(run.path / "samples")
    shown = [one["text"] for one in opened(make(run)).data.widget]
    assert shown == ["a sks dog", "a photo of sks dog"] * 2 + ["a photo of a dog"] * 2


def test_what_stock_diffusers_checks_is_told(pair, make):
    run, _ = pair
    assert "no safety checker" in opened(make(run)).text
    index = run.path / "model" / "model_index.json"
    settings = json.loads(index.read_text())
    settings["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index.write_text(json.dumps(settings))
    assert "safety checker holds some pictures back" in opened(make(run)).text


def test_prior_preservation_that_was_off_is_a_limit(pair, make):
    text = opened(make(pair[1])).text
    assert "since prior preservation was off" in text
    assert "any dog may have drifted to this one" in text
    assert "| Prior preservation (PPL) | off |" in text


# ---- Partners


@pytest.mark.parametrize("fault", ["itself", "seed", "photos", "unfinished"])
def test_what_is_no_partner_is_refused(pair, make, fault):
    run, partner = pair
    if fault == "itself":
        partner, words = run, "both are with PPL"
    elif fault == "seed":
        partner, words = changed(partner, seed=8), "seed differ"
    elif fault == "photos":
        Image.new("RGB", (32, 32), "red").save(partner.path / "photos" / "00.png")
        words = "photos differ"
    else:
        shutil.rmtree(partner.path / "model")
        words = "no finished model"
    with pytest.raises((ConfigError, RunError), match=words):
        make(run, partner=partner)


def test_figures_of_another_protocol_do_not_stand_beside(pair, make):
    run, partner = pair
    other = Evaluation.load(partner.path / "evaluation")
    other.model_copy(update={"first_seed": 5}).save(partner.path / "evaluation")
    text = opened(make(run, partner=partner)).text
    assert "| Without PPL |" not in text
    assert "| Base model |" in text


# ---- Nothing of this machine


def test_nothing_tells_of_this_machine_or_of_who_made_it(pair, make, studied):
    run, partner = pair
    folder = make(run, partner=partner, photos=True)
    for name in sorted(files(folder)):
        held = (folder / name).read_bytes()
        for secret in (studied.parts[1], str(Path.home()), "Anna", "Smith", "Main Street", run.id):
            assert secret.encode() not in held, f"{name}: {secret}"


def test_the_settings_repeat_the_run_elsewhere(pair, make):
    run, _ = pair
    changed(
        run,
        evaluation={"clip": str(run.path / "clips" / "my-clip")},
        prior={"pack": "anna/secret-pack"},
        subject={"crops": {"Anna.jpg": [0, 0, 64, 64]}},
    )
    bare(run)
    published = make(run) / "config.yaml"
    written, config = read_yaml(published), Config.load(published)
    assert (written["base_model"], written["evaluation"]["clip"]) == ("my-tiny-sd", "my-clip"), "names, no folders"
    assert (config.subject.photos.name, config.subject.crops) == ("photos", {})
    ours, theirs = config.model_dump(), run.config.model_dump()
    assert config.prior.pack is None
    for section, key in (("subject", "photos"), ("subject", "crops"), ("prior", "pack"), ("evaluation", "clip")):
        del ours[section][key], theirs[section][key]
    assert ours | {"base_model": ""} == theirs | {"base_model": ""}


def test_pictures_are_pixels_with_their_prompt_and_seed(pair, make):
    folder = make(pair[0], photos=True)
    for number, prompt, seed in ((0, "a photo of sks dog", "0"), (3, "a sks dog in the snow", "1")):
        with Image.open(folder / "images" / f"{number:02d}.png") as image:
            assert image.text == {"prompt": prompt, "seed": seed}
    others = [name for name in files(folder) if name.endswith(".png") and not re.fullmatch(r"images/\d\d\.png", name)]
    assert others
    for name in others:
        with Image.open(folder / name) as image:
            assert not image.text, name
            assert set(image.info) <= {"dpi"}, name


def test_photos_are_published_only_if_asked(pair, make):
    run, _ = pair
    with Image.open(run.path / "photos" / "01.png") as photo:
        exif = photo.getexif()
        exif[0x010F] = "Anna's camera"
        photo.save(run.path / "photos" / "01.png", exif=exif)
    folder = make(run)
    assert not (folder / "photos").exists()
    assert "photos are not in this repo" in opened(folder).text
    folder = make(run, photos=True)
    assert {name for name in files(folder) if name.startswith("photos/")} == {f"photos/0{n}.png" for n in range(3)}
    with Image.open(folder / "photos" / "01.png") as ours, Image.open(run.path / "photos" / "01.png") as theirs:
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        assert not ours.getexif()
        assert theirs.getexif()
    assert "[photos](photos)" in opened(folder).text
    assert "subject.photos=FOLDER" not in opened(folder).text


def test_captions_go_with_the_photos_that_they_are_of(pair, make):
    run = changed(pair[0], subject={"captions": True})
    folder = make(run, photos=True)
    assert (folder / "photos" / "00.txt").read_text() == "a photo of sks dog"
    assert "each with its caption" in opened(folder).text
    assert not [name for name in files(make(run)) if name.endswith(".txt")]


def test_a_path_that_got_into_a_file_stops_it(pair, make):
    run, _ = pair
    measures = json.loads((run.path / "measures.json").read_text())
    measures["encoders"]["dino"] = str(run.path / "vit")
    (run.path / "measures.json").write_text(json.dumps(measures))
    with pytest.raises(RunError, match="would name a folder") as caught:
        make(run)
    assert str(run.path) not in str(caught.value)


# ---- Whatever a person wrote


def hostile(run: Run) -> Run:
    run = bare(run)
    subject = {"identifier": HOSTILE, "class_noun": "<b>dog</b> *_~ | #1", "instance_prompt": MORE_HOSTILE}
    return changed(run, subject=subject, prior={"class_prompt": "a `{class_noun}` | \n\n# h\n<img src=x>"})


def test_a_persons_words_stay_words(pair, make):
    run = hostile(pair[0])
    made = opened(make(run))
    config = run.config
    assert made.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": config.instance_prompt,
        "tags": ["text-to-image", "diffusers", "dreambooth", "stable-diffusion", TAG],
    }
    page = rendered(made.text)
    assert set(re.findall(r"</?([a-zA-Z][a-z0-9]*)", page)) <= {
        "h1",
        "h2",
        "p",
        "a",
        "code",
        "pre",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "ul",
        "li",
        "img",
        "strong",
    }
    assert re.findall(r'(?:href|src)="([^"]*)"', page) == [
        "https://arxiv.org/abs/2208.12242",
        "config.yaml",
        "images/loss.png",
        APACHE.link,
    ]
    assert re.findall(r"<h1>(.*)</h1>", page) == [html.escape(f"{HOSTILE} {config.subject.class_noun}")]
    assert page.count("<h2>") == made.text.count("\n## ") == 6
    assert "\u202e" not in made.text
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    assert all(row.count("<t") == 2 for row in rows), "a bar does not split a cell"
    (shown,) = re.findall(r"<td>Instance prompt</td>\s*<td>(.*?)</td>", page)
    assert html.unescape(shown) == f"“{' '.join(config.instance_prompt.replace(chr(0x202E), '').split())}”"


def test_a_persons_words_stay_words_in_python(pair, make):
    run = hostile(pair[0])
    code = snippet(opened(make(run, repo_id=REPO)).text)
    assert len(code.splitlines()) == 3
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert run.config.instance_prompt in strings
    assert "`" not in code


def test_hostile_names_of_conditions_encoders_and_licences_stay_words(pair, make):
    run, _ = pair
    known = Evaluation.load(run.path / "evaluation")
    names = dict.fromkeys(known.encoders, HOSTILE)
    known.model_copy(update={"condition": HOSTILE, "encoders": names}).save(run.path / "evaluation")
    licence = Licence("other", HOSTILE, "https://e.vil/) <script>")
    made = opened(make(run, licence=licence))
    page = rendered(made.text)
    assert "<script" not in page
    assert "javascript:x" not in "".join(re.findall(r'href="([^"]*)"', page))
    assert html.unescape(page).count(HOSTILE) >= 6
    assert made.data.license_name == HOSTILE


# ---- The licence of the base model


FRONT = "---\n{}\n---\n# A model\n"


@pytest.mark.parametrize(
    ("card_text", "expected"),
    [
        (
            FRONT.format("license: creativeml-openrail-m"),
            ("creativeml-openrail-m", "CreativeML Open RAIL-M", "CompVis/stable-diffusion-license"),
        ),
        (
            FRONT.format("license: other\nlicense_name: flux-dev\nlicense_link: ./LICENSE.md"),
            ("other", "flux-dev", "https://huggingface.co/some/base/blob/main/LICENSE.md"),
        ),
        (
            FRONT.format("license: other\nlicense_name: x\nlicense_link: https://x.org/l"),
            ("other", "x", "https://x.org/l"),
        ),
        (FRONT.format("license: bigscience-bloom"), ("bigscience-bloom", "bigscience-bloom", "some/base")),
        (FRONT.format("license: [mit, apache-2.0]"), ("other", "mit and apache-2.0", "some/base")),
        (FRONT.format("license: [mit]"), ("mit", "MIT License", "opensource.org")),
        (FRONT.format("tags: [x]"), ("unknown", None, None)),
        (FRONT.format("license: [7]"), ("unknown", None, None)),
        ("# A model without front matter\n", ("unknown", None, None)),
        (None, ("unknown", None, None)),
    ],
)
def test_the_licence_is_what_the_base_models_card_says(make_config, hub, card_text, expected):
    hub.add_repo("some/base", {"README.md": card_text} if card_text else {"model_index.json": "{}"})
    found = base_licence(make_config(base_model="some/base"), False)
    assert (found.id, found.name) == expected[:2]
    assert (expected[2] or "") in (found.link or "")


def test_the_licence_of_a_private_base_model_is_read_with_ones_own_eyes(make_config, hub):
    token = hub.add_user("anna", scopes=("read",))
    hub.add_repo("anna/base", {"README.md": FRONT.format("license: mit")}, private=True)
    config = make_config(base_model="anna/base")
    assert base_licence(config, token).id == "mit"
    assert base_licence(config, False).id == "unknown"
    assert base_licence(config, hub.add_user("bob", scopes=("read",))).id == "unknown"
    assert base_licence(make_config(base_model="gone/since"), token).id == "unknown"


def test_a_hub_that_fails_is_an_error_and_no_unknown_licence(make_config, hub):
    hub.add_repo("some/base", {"README.md": FRONT.format("license: mit")})
    token = hub.add_user("anna")
    hub.fail(r"GET /api/models/some/base", 500, times=20)
    with pytest.raises(HubError, match="read the licence of some/base") as caught:
        base_licence(make_config(base_model="some/base"), token)
    assert token not in str(caught.value)


def test_toybox_and_folders_are_not_asked_from_the_hub(make_config, hub):
    assert base_licence(make_config(base_model="toybox"), False) == APACHE
    assert base_licence(make_config(), False) == Licence("unknown")
    assert not hub.requests


def test_the_toybox_is_told_of(pair, make):
    folder = make(bare(changed(pair[0], base_model="toybox")))
    text = opened(folder).text
    assert "made from the toybox of DreamBooth Studio" in text
    assert "for trying and teaching" in text
    assert f"train hub:{REPO} --set subject.photos=FOLDER\n" in text


# ---- Adapters


BASE = "some/base"
LINES = {
    "lora": ["pipe.load_lora_weights(REPO)"],
    "textual_inversion": [
        "pipe.load_textual_inversion(REPO)",
        'pipe.load_textual_inversion(REPO, weight_name="learned_embeds-2.safetensors")',
    ],
    "custom_diffusion": [
        "pipe.load_textual_inversion(REPO)",
        'pipe.unet.load_attn_procs(REPO, weight_name="pytorch_custom_diffusion_weights.safetensors", _pipeline=pipe)',
    ],
    "pivotal": ["pipe.load_textual_inversion(REPO)", "pipe.load_lora_weights(REPO)"],
}
TAGGED = {
    "lora": ["lora", "template:sd-lora", "dreambooth"],
    "textual_inversion": ["textual_inversion"],
    "custom_diffusion": ["custom-diffusion"],
    "pivotal": ["lora", "template:sd-lora", "dreambooth"],
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> dict[str, Run]:
    """A finished run of each method but the paper's, and one of pivotal tuning; textual inversion learned two words."""
    folder = tmp_path_factory.mktemp("Anna Smiths adapters")
    base, photos = tiny.stable_diffusion(folder / "my-tiny-sd"), tiny.photos(folder / "Rex")
    runs: dict[str, Run] = {}
    for name in LINES:
        method = "lora" if name == "pivotal" else name
        settings = {
            "base_model": str(base),
            "device": "cpu",
            "method": method,
            "prior": {"enabled": False},
            "subject": {"photos": str(photos), "class_noun": "dog", "identifier": "sks" if name == "lora" else "<sks>"},
            "train": {
                "steps": 2,
                "learning_rate": 0.05,
                "mixed_precision": "no",
                "sample_every": 2,
                "text_encoder": name == "lora",
            },
            "sampling": {"steps": 2, "num_images": 1, "prompts": []},
            "evaluation": TOYBOX | {"while_training": False},
            "lora": {"rank": 2, "dora": name == "lora"},
            "word": {"initializer": "{class_noun}", "templates": ["a {identifier}"]},
        }
        if name == "textual_inversion":
            settings["more_subjects"] = [{"photos": str(photos), "class_noun": "cat", "identifier": "<tom>"}]
            settings["word"] |= {"vectors": 2}
        if name == "pivotal":
            settings["word"] = {"learned": str(runs["custom_diffusion"].path)}
        runs[name] = Run.create(Config.from_dict(settings), folder / name)
        for _ in runs[name].execute():
            pass
    return runs


def adapter_run(adapters: dict[str, Run], name: str, tmp_path: Path, **changes) -> Run:
    """A copy of that run, of a base model of the Hub unless said otherwise."""
    run = Run.open(shutil.copytree(adapters[name].path, tmp_path / name, symlinks=True))
    return changed(run, **({"base_model": BASE} | changes))


DRAW_ALL = """
import json, os, pathlib, sys
import torch
for name, code in json.load(sys.stdin).items():
    os.mkdir(name)
    os.chdir(name)
    *loading, drawing = code.splitlines()
    exec("\\n".join(loading), names := {})
    torch.manual_seed(0)
    exec(drawing, names)
    os.chdir("..")
"""


def test_the_lines_of_every_adapters_card_draw_what_it_draws(adapters, make, hub, tmp_path, monkeypatch):
    """In stock diffusers; those of the toybox, which is no repo, with this library."""
    shown, expected = {}, {}
    base = Path(adapters["lora"].config.base_model)
    hub.add_repo(BASE, base)
    for name, run in adapters.items():
        folder = make(adapter_run(adapters, name, tmp_path), repo_id=f"anna/{name}")
        shutil.copytree(run.path / "model", folder, dirs_exist_ok=True)
        hub.add_repo(f"anna/{name}", folder)
        shown[name] = snippet(hub.repos["model", f"anna/{name}"].card)
        repo = f'"anna/{name}"'
        assert shown[name].splitlines()[1:-1] == [
            f'pipe = DiffusionPipeline.from_pretrained("{BASE}")',
            *(line.replace("REPO", repo) for line in LINES[name]),
        ]
        pipe, _ = load_model(run.path / "model", base)
        torch.manual_seed(0)
        prompt = run.config.instance_prompt
        expected[name] = pipe(prompt, num_inference_steps=2, guidance_scale=7.5).images[0]
        torch.manual_seed(0)
        pipe, _ = load_pipeline(base)
        plain = pipe(prompt, num_inference_steps=2, guidance_scale=7.5).images[0]
        assert plain.tobytes() != expected[name].tobytes()

    run = adapter_run(adapters, "lora", tmp_path / "toy", base_model="toybox")
    shutil.rmtree(run.path / "model")
    save_adapter(run.config, run.path / "model")
    folder = make(run, repo_id="anna/toy")
    shutil.copytree(run.path / "model", folder, dirs_exist_ok=True)
    hub.add_repo("anna/toy", folder)
    shown["toy"] = snippet(hub.repos["model", "anna/toy"].card)
    assert shown["toy"].splitlines()[1] == 'source = open_source("anna/toy")'
    source = open_source(str(run.path))
    expected["toy"] = next(generate(source, ["a photo of sks dog"], num_images=1))[0].image

    there = tmp_path / "elsewhere"
    there.mkdir()
    environment = hub.environment() | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", DRAW_ALL],
        cwd=there,
        env=environment,
        input=json.dumps(shown),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for name, picture in expected.items():
        with Image.open(there / name / "picture.png") as drawn:
            apart = np.abs(np.asarray(drawn, int) - np.asarray(picture, int)).max()
        assert apart <= 2, f"{name}: {apart}"


@pytest.mark.parametrize("name", LINES)
def test_the_front_matter_says_which_kind_of_adapter_of_what_it_is(adapters, make, tmp_path, name):
    made = opened(make(adapter_run(adapters, name, tmp_path, revision="fp16")))
    assert (made.data.base_model, made.data.base_model_relation) == (BASE, "adapter")
    assert made.data.tags == ["text-to-image", "diffusers", *TAGGED[name], "stable-diffusion", TAG]
    assert made.data.instance_prompt == ("a photo of sks dog" if name == "lora" else "a photo of <sks> dog")
    assert f'from_pretrained("{BASE}", revision="fp16")' in snippet(made.text)
    assert method_of(made.data.tags) == ("lora" if name == "pivotal" else name)


def test_the_card_of_an_adapter_says_what_was_trained_and_how_large_it_is(adapters, make, tmp_path):
    text = opened(make(adapter_run(adapters, "lora", tmp_path))).text
    assert "An adapter of [some/base](https://huggingface.co/some/base) that teaches it one particular dog" in text
    assert "with [LoRA](https://arxiv.org/abs/2106.09685)" in text
    assert "| Method | LoRA: matrices beside the weights of the denoiser and the text encoder |" in text
    assert "| LoRA | rank 2, alpha 2, DoRA |" in text
    count = sum(value.numel() for value in load_file(adapters["lora"].path / "model" / LORA).values())
    size = sum(path.stat().st_size for path in (adapters["lora"].path / "model").iterdir())
    assert f"| Trained parameters | {count:,} |" in text
    assert f"| Size | {size / 1e3:.1f} kB |" in text
    assert "transformers peft torch" in text
    assert "up to the base model" in text
    half = opened(make(adapter_run(adapters, "lora", tmp_path / "again"), half=True)).text
    assert f"| Size | {size // 2 / 1e3:.1f} kB |" in half

    text = opened(make(adapter_run(adapters, "pivotal", tmp_path))).text
    assert "| New word | learned by Textual Inversion before" in text
    text = opened(make(adapter_run(adapters, "custom_diffusion", tmp_path))).text
    assert "| Method | Custom Diffusion: the new word, and keys and values of the denoiser's cross-attention |" in text
    assert "| New word | 1 embedding, begun as `dog` |" in text
    assert "pictures of any dog may have drifted" in text


def test_the_card_of_several_subjects_tells_of_each(adapters, make, tmp_path):
    run = adapter_run(adapters, "textual_inversion", tmp_path)
    folder = make(run, photos=True)
    made = opened(folder)
    assert rendered(made.text).startswith("<h1>&lt;sks&gt; dog and &lt;tom&gt; cat</h1>")
    assert "one particular dog, by the word `<sks>` and one particular cat, by the word `<tom>`" in made.text
    assert "made from 3 and 3 photos with [Textual Inversion]" in made.text
    assert "`a photo of <sks> dog and <tom> cat` asks for all in one picture" in made.text
    assert "any other dog or cat stays as it was" in made.text
    assert "may have drifted" not in made.text
    assert "| New word | 2 embeddings, begun as `dog` and `cat` |" in made.text
    assert "PPL" not in made.text, "it has nothing to keep"
    assert "| Photos | 3 and 3, cropped" in made.text
    assert "one may take the other's looks" in made.text
    assert {name for name in files(folder) if name.startswith("photos/")} == {
        f"photos/{place}0{n}.png" for place in ("", "subject-2/") for n in range(3)
    }
    assert "subject-2` in it" not in made.text
    assert [one["text"] for one in made.data.widget][-2:] == ["a photo of a dog", "a photo of a cat"]
    config = Config.load(folder / "config.yaml")
    assert [subject.photos for subject in config.subjects] == [folder / "photos", folder / "photos" / "subject-2"]
    assert "the second subject's photos in the folder `subject-2` in it" in opened(make(run)).text


def test_the_settings_of_pivotal_tuning_name_the_word_that_is_beside_them(adapters, make, tmp_path):
    run = adapter_run(adapters, "pivotal", tmp_path)
    folder = make(run, photos=True)
    shutil.copytree(run.path / "model", folder, dirs_exist_ok=True)
    learned = Config.load(folder / "config.yaml").word.learned
    assert read_words(learned).keys() == {"<sks>"}
    for name in sorted(files(folder)):
        assert b"Anna" not in (folder / name).read_bytes(), name


def test_an_adapter_of_a_model_from_a_disk_says_what_it_lacks(adapters, make, tmp_path):
    base = adapters["lora"].config.base_model
    made = opened(make(adapter_run(adapters, "lora", tmp_path, base_model=base)))
    assert made.data.base_model is made.data.get("base_model_relation") is None
    assert 'from_pretrained("FOLDER")' in snippet(made.text)
    assert "In place of FOLDER give yours of my-tiny-sd, the base model." in made.text
    assert "--set base_model=FOLDER" in made.text


def test_a_drift_penalty_is_told_and_makes_a_partner(pair, make):
    run, partner = pair
    penalised = changed(partner, drift={"weight": 10.0})
    shutil.rmtree(penalised.path / "evaluation")
    made = opened(make(run, partner=penalised)).text
    assert "## With PPL and with drift penalty" in made
    assert "PPL is prior preservation, the drift penalty holds the weights near the base model's." in made
    text = opened(make(penalised)).text
    assert "| Drift penalty | 10 × squared distance of the weights |" in text
    assert "since prior preservation was off, and the drift penalty alone held it back" in text
    with pytest.raises(ConfigError, match="both are with drift penalty"):
        make(penalised, partner=penalised)
