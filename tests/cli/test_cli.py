"""The command line, as a person sees it: what is printed, where files land, and how a command ends."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import click
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth import cli, events
from dreambooth.cli import options
from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import to_yaml
from dreambooth.errors import ConfigError
from dreambooth.evaluation.evaluate import Evaluation
from dreambooth.hub import TAG
from dreambooth.metrics.measures import Measure, Measures
from dreambooth.models.adapters import read_adapter, write_step
from dreambooth.runs.directory import Run
from dreambooth.sharing.publish import read_state
from dreambooth.training.checkpoints import list_checkpoints
from tests import tiny
from tests.test_files import SAVED

ROOT = Path(__file__).parent.parent.parent


class Result(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


def here(*arguments: object) -> Result:
    """`python -m dreambooth` with these arguments, in this process for speed."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["dreambooth", *map(str, arguments)]
    patched = mock.patch.object(sys, "argv", argv)
    with patched, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
        cli.main()
    return Result(left.value.code, out.getvalue(), err.getvalue())


def process(*arguments: object, cwd: Path) -> subprocess.Popen:
    """`python -m dreambooth` in a process of its own, which heeds Ctrl-C even where a shell started the tests in the
    background, and so with SIGINT ignored."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dreambooth", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def result(running: subprocess.Popen) -> Result:
    out, err = running.communicate(timeout=300)
    return Result(running.returncode, out, err)


@pytest.fixture
def config_file(make_config, tmp_path):
    """A quick run's YAML file, without class images."""
    path = tmp_path / "c.yaml"
    path.write_text(make_config(prior={"enabled": False}, train={"steps": 2}).to_yaml())
    return path


@pytest.fixture(scope="module")
def finished(tiny_model, photo_folder, tmp_path_factory):
    """A run that the command trained, with what it printed, and its config file."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "c.yaml").write_text(
        f"base_model: {tiny_model}\ndevice: cpu\nsubject: {{photos: {photo_folder}, class_noun: dog}}\n"
        "prior: {num_images: 2, steps: 2}\ntrain: {steps: 3, mixed_precision: no, checkpoint_every: 2}\n"
        "sampling: {steps: 2, num_images: 1, guidance_scale: 4}\n"
        "evaluation: {dino: toybox, clip: toybox, perceptual: toybox, class_images: 2}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DREAMBOOTH_CACHE", "cache")
        done = here("train", "c.yaml", "--run-dir", "my run", "--set", "train.sample_every=0")
    return folder / "my run", done, folder / "c.yaml"


# ---- Help


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["train", "generate", "tokens", "photos"]),
        (["-h"], ["train"]),
        (["train", "--help"], ["CONFIG.yaml", "hub:USER/NAME@REVISION", "--set KEY=VALUE", "--run-dir", "--resume"]),
        (["generate", "--help"], ["RUN_OR_MODEL", "--prompt", "--negative-prompt", "--num-images", "--seed", "--out"]),
        (["evaluate", "--help"], ["RUN", "--prompts FILE", "--images-per-prompt", "--which", "--base", "--out"]),
        (["generate", "--help"], ["--scale", "--base-model FOLDER", "--adapter RUN[:WEIGHT]"]),
        (["methods", "--help"], ["List the ways of fine-tuning"]),
        (["fuse", "--help"], ["RUN", "--out", "--scale", "--which"]),
        (["export", "--help"], ["RUN", "--out", "NAME.safetensors", "--which"]),
        (["merge", "--help"], ["RUN RUN …", "--out", "--captions FILE", "--base-model FOLDER", "--which"]),
        (["push", "--help"], ["RUN", "--repo-id", "--public", "--photos", "--half", "--which", "--partner"]),
        (["compare", "--help"], ["CONFIG.yaml", "--set KEY=VALUE", "--out"]),
        (["batch", "--help"], ["BATCH.yaml", "--set KEY=VALUE", "--out"]),
        (["class-images", "push", "--help"], ["CONFIG.yaml", "--repo-id USER/NAME", "--public", "--set KEY=VALUE"]),
        (["class-images", "fetch", "--help"], ["CONFIG.yaml", "--repo-id USER/NAME", "--set KEY=VALUE"]),
        (["tokens", "--help"], ["--base-model", "--check WORD"]),
        (["photos", "check", "--help"], ["FOLDER", "--sheet"]),
    ],
)
def test_help_names_what_there_is(arguments, words):
    code, out, err = here(*arguments)
    assert (code, err) == (0, "")
    assert all(word in out for word in words)
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.parametrize("arguments", [[], ["photos"]])
def test_without_a_command_the_help_is_shown_as_such(arguments):
    code, out, err = here(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("Usage: ")
    assert len(err.splitlines()) > 5


def test_help_comes_at_once_and_needs_no_model_library(tmp_path):
    """The command's own modules load without PyTorch, so that help and typing mistakes are answered at once."""
    code = "import sys, dreambooth.cli; assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    code, out, err = result(process("--help", cwd=tmp_path))
    assert (code, err) == (0, "")
    assert "python -m dreambooth" in out


# ---- What every command takes and says


def commands(group: click.Group = cli.cli, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands, each with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *words, name)
        else:
            yield (*words, name), command


FOLDERS = [
    pytest.param(option, id=" ".join((*words, option.name)))
    for words, command in commands()
    for option in command.params
    if {"out", "dir", "file", "folder", "sheet", "preview", "partner", "run"} & set(option.name.split("_"))
]


def test_there_are_folders_to_give():
    assert len(FOLDERS) >= 20


@pytest.mark.parametrize("option", FOLDERS)
def test_a_tilde_is_the_home_folder_whichever_option_it_is_in(option, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with click.Context(cli.cli) as context:
        assert option.type.convert("~/a", option, context) == tmp_path / "a"
        with pytest.raises(ConfigError, match="is empty"):
            option.type.convert("", option, context)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "models/tb", "--prompt", "a dog"],
        ["generate", "toybox", "--prompt", "a dog", "--adapter", "models/tb"],
        ["generate", "toybox", "--prompt", "a dog", "--adapter", "models/tb:0.5"],
        ["generate", "toybox", "--prompt", "a dog", "--base-model", "models/tb"],
        ["fuse", "models/tb", "--out", "out"],
        ["export", "models/tb", "--out", "a.safetensors"],
        ["merge", "models/tb", "models/tc", "--out", "out"],
        ["tokens", "--base-model", "models/tb"],
    ],
    ids=lambda words: words[0],
)
def test_what_may_be_a_folder_is_never_asked_from_the_hub(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    code, _, err = here(*arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "'models/tb' may be a folder" in err


def test_a_repo_is_asked_from_the_hub_where_it_is_said_that_it_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    code, _, err = here("generate", "hub:models/tb", "--prompt", "a dog")
    assert code == 1
    assert err.startswith("error: models/tb is not downloaded and the Hub can't be reached.")


def test_folders_in_the_environment_are_read_as_ours_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "~/uploads")
    monkeypatch.setenv("HF_HOME", " ")
    assert here("methods").code == 0
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "uploads")
    assert "HF_HOME" not in os.environ


@pytest.mark.parametrize("encoding", ["cp1251", "cp437", "cp1252", "ascii", "utf-8"])
def test_what_a_console_can_not_show_is_replaced(photo_folder, tmp_path, monkeypatch, encoding):
    folder = tmp_path / "Фото 🐶"
    shutil.copytree(photo_folder, folder)
    (folder / "photo0.jpg").rename(folder / "Собака \udce4 ×.jpg")
    for code, *arguments in (
        (0, "photos", "check", folder),
        (2, "photos", "check", folder / "нет"),
        (0, "merge", "--help"),
        (0, "methods"),
        (2, "train", "нет.yaml"),
        (2, "train", "c.yaml", "--мода"),
    ):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(sys, "argv", ["dreambooth", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out.flush()
        err.flush()
        said = out.buffer.getvalue() + err.buffer.getvalue()
        assert left.value.code == code
        assert b"Traceback" not in said
        assert len(said.splitlines()) == 1 or code == 0


# ---- train


def test_train_tells_where_the_model_is_and_what_to_do_next(finished, tmp_path, monkeypatch):
    run, (code, out, err), _ = finished
    assert code == 0, err
    assert out.splitlines()[:2] == ["Run: my run", f"Model: {Path('my run') / 'model'}"]
    assert Run.open(run).status == "finished"
    advice = out.splitlines()[2]
    assert advice.startswith("Try: python -m dreambooth generate ")
    monkeypatch.chdir(run.parent)
    arguments = shlex.split(advice.removeprefix("Try: python -m dreambooth "))
    assert here(*arguments, "--num-images", 1, "--out", tmp_path / "out").code == 0, "the advice works as it is"
    with Image.open(tmp_path / "out" / "0000-0.png") as image:
        assert image.text["prompt"] == "a photo of sks dog on a beach"


def test_progress_off_a_terminal_is_plain_lines(finished):
    _, (_, _, err), _ = finished
    assert "\r" not in err
    assert "\x1b" not in err
    lines = err.splitlines()
    assert lines[0] == "prepare …"
    assert any(line.startswith("estimated peak memory ") for line in lines)
    assert "class images 2/2" in lines
    assert any(line.startswith("train 3/3 instance loss ") and ", prior loss " in line for line in lines)
    assert "checkpoint checkpoints/step-000002" in lines
    assert lines[-1].startswith("Finished in ")
    assert "Traceback" not in err


def test_a_run_without_a_name_goes_under_the_runs_folder(config_file, tmp_path):
    code, out, _ = here("train", config_file, "--set", "subject.identifier=ohwx", "--set", "train.steps=1")
    assert code == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert out.splitlines()[0] == f"Run: {run}"
    assert run.name[15:].startswith("-ohwx-dog-")
    assert Run.open(run).config.train.steps == 1


# ---- train --resume


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_learned_and_resume_finishes(config_file, tmp_path, number):
    arguments = ["train", config_file, "--run-dir", "run", "--set", "train.steps=100"]
    arguments += ["--set", "train.checkpoint_every=1000"]
    running = process(*arguments, cwd=tmp_path)
    assert any(line.startswith("train 10/100 ") for line in running.stderr), "it ended before it could be stopped"
    running.send_signal(number)
    code, _, err = result(running)
    run = Run.open(tmp_path / "run")
    assert (code, run.status) == (1, "cancelled")
    step = run.events()[-1].step
    assert 10 <= step < 100
    assert err.splitlines()[-1] == f"Stopped after step {step}; go on with --resume."
    assert "Traceback" not in err
    assert [path.name for path in list_checkpoints(run.path / "checkpoints")] == [f"step-{step:06d}"]
    assert not (run.path / "model").exists()

    code, out, err = result(process(*arguments, "--resume", cwd=tmp_path))
    assert code == 0, err
    assert "Model: run/model" in out
    assert [e.step for e in run.events() if isinstance(e, events.Step)] == list(range(1, 101)), "each step once"


@pytest.mark.slow
def test_resume_without_a_run_dir_takes_the_newest_alike(config_file, make_config, tmp_path):
    config = Run.create(make_config(prior={"enabled": False}, train={"steps": 2}), tmp_path / "runs" / "old").config
    wanted = Run.create(config, tmp_path / "runs" / "wanted")
    Run.create(make_config(seed=9), tmp_path / "runs" / "other")
    damaged = tmp_path / "runs" / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("train: [")
    for age, name in enumerate(("old", "wanted", "other", "damaged")):
        os.utime(tmp_path / "runs" / name / "config.yaml", (1000 + age, 1000 + age))
    code, out, err = here("train", config_file, "--resume")
    assert code == 0, err
    assert out.splitlines()[0] == f"Run: {wanted.path}"
    assert wanted.status == "finished"


def test_resume_where_there_is_nothing_to_resume_is_refused(config_file, tmp_path):
    code, _, err = here("train", config_file, "--resume")
    assert code == 2
    assert (
        err == f"error: No run in {tmp_path / 'runs'} has these settings. Give its --run-dir, or leave --resume out.\n"
    )
    (tmp_path / "runs" / "lost").mkdir(parents=True)
    (tmp_path / "runs" / "lost" / "config.yaml").write_bytes(bytes(100))
    code, _, err = here("train", config_file, "--resume")
    assert code == 2
    assert "has these settings. Damaged, or of another version: lost. Give its --run-dir" in err
    code, _, err = here("train", config_file, "--resume", "--run-dir", tmp_path / "none")
    assert code == 1
    assert err.startswith(f"error: {tmp_path / 'none'} is not a run: no config.yaml in it.")


def test_resume_with_other_settings_names_them_and_what_to_do_works(finished, monkeypatch, tmp_path):
    run, _, config = finished
    code, _, err = here("train", config, "--resume", "--run-dir", run, "--set", "seed=5")
    assert code == 2
    assert err.startswith(
        f"error: {run} was made with other settings: seed is 1234 there and 5 here; train.sample_every is 0 there and "
    )
    saved = run / "config.yaml"
    assert f"To go on as it began, give {saved} with its --run-dir" in err
    before = (run / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert here("train", saved, "--resume", "--run-dir", run).code == 0, "from any folder"
    after = (run / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert before == after, "there was nothing left to train"


def test_a_second_training_does_not_overwrite_the_first(finished):
    run, _, config = finished
    before = (run / "events.jsonl").read_bytes()
    code, _, err = here("train", config, "--run-dir", run)
    assert code == 2
    assert "is there already and not empty. Choose another --run-dir, or go on with --resume." in err
    assert (run / "events.jsonl").read_bytes() == before


@pytest.fixture
def stopped(make_config, photo_folder, tmp_path, monkeypatch):
    """A project, `old`, with a config file, photos with a caption, and a run that was stopped after its second step."""
    project = tmp_path / "old"
    shutil.copytree(photo_folder, project / "photos")
    (project / "photos" / "photo1.txt").write_text("a {identifier} {class_noun} indoors")
    config = make_config(prior={"enabled": False}, train={"steps": 4, "checkpoint_every": 1})
    settings = config.model_dump(mode="json")
    settings["subject"] |= {"photos": "photos", "captions": True}
    (project / "c.yaml").write_text(to_yaml(settings))
    monkeypatch.chdir(project)
    run = Run.create(Config.load(Path("c.yaml")), project / "run")
    steps = iter(range(100))
    list(run.execute(should_stop=lambda: next(steps) == 2))  # it is asked after each step
    assert run.status == "cancelled"
    return project


def resume(*arguments: object) -> Result:
    return here("train", "c.yaml", "--resume", "--run-dir", "run", *arguments)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda photos: (photos / "photo0.jpg").write_bytes((photos / "photo2.jpg").read_bytes()), "photo0.jpg"),
        (lambda photos: (photos / "photo2.jpg").unlink(), "photo2.jpg"),
        (lambda photos: shutil.copy(photos / "photo2.jpg", photos / "more.jpg"), "more.jpg"),
        (lambda photos: (photos / "photo1.txt").write_text("{identifier} {class_noun} outdoors"), "photo1.jpg"),
        (lambda photos: (photos / "photo1.txt").write_text("a dog"), "does not hold"),
    ],
    ids=["another photo", "fewer photos", "more photos", "another caption", "a caption that can't be used"],
)
def test_photos_that_changed_since_are_not_passed_over(stopped, change, told):
    change(stopped / "photos")
    code, _, err = resume()
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("error: run keeps what it began with, and since then ")
    assert told in err
    code, _, err = here("train", "run/config.yaml", "--resume", "--run-dir", "run")
    assert code == 0, "as the hint says"
    assert "advice: This run goes on with the photos it began with; since then " in err


def test_other_names_are_no_other_photos_and_photos_that_are_gone_are_not_needed(stopped):
    (stopped / "photos" / "photo2.jpg").rename(stopped / "photos" / "zebra.jpg")
    assert Run(stopped / "run").changed(Config.load(Path("c.yaml"))) == ""
    shutil.rmtree(stopped / "photos")
    code, _, err = resume()
    assert code == 0
    assert "began with" not in err


def test_a_project_that_was_moved_goes_on_and_keeps_where_it_lies_now(stopped, monkeypatch, tmp_path, tiny_model):
    shutil.copytree(tiny_model, stopped / "models" / "tb")
    text = Path("c.yaml").read_text().replace(str(tiny_model), "models/tb")
    Path("c.yaml").write_text(text)
    assert Run(stopped / "run").differences(Config.load(Path("c.yaml"))) == [], "the same model elsewhere"
    Run(stopped / "run").adopt(Config.load(Path("c.yaml")))
    stopped.rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    code, _, err = resume()
    assert code == 0, err
    assert Run(Path("run")).config.base_model == str(tmp_path / "new" / "models" / "tb")
    assert Run(Path("run")).config.subject.photos == tmp_path / "new" / "photos"


def test_a_moved_run_is_found_by_its_settings(stopped, monkeypatch, tmp_path):
    stopped.rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    monkeypatch.setenv("DREAMBOOTH_RUNS", str(tmp_path / "new"))
    code, out, err = here("train", "c.yaml", "--resume")
    assert (code, out.splitlines()[0]) == (0, f"Run: {tmp_path / 'new' / 'run'}"), err


def test_another_model_in_another_place_is_another_setting(stopped, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "other")
    weights = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    code, _, err = resume("--set", f"base_model={tmp_path / 'other'}")
    assert code == 2
    assert f"base_model is '{tiny_model}' there and '{tmp_path / 'other'}' here" in err


def test_a_stopped_run_takes_more_steps_and_a_finished_one_says_how(stopped):
    code, _, err = resume("--set", "train.steps=6")
    assert code == 0, err
    run = Run(stopped / "run")
    assert [e.step for e in run.events() if isinstance(e, events.Step)] == [1, 2, 3, 4, 5, 6]
    assert run.config.train.steps == 6
    code, _, err = resume("--set", "train.steps=8")
    assert code == 2
    assert err == (
        "error: run is finished with train.steps 6, and keeps no checkpoint to go on from. "
        "For 8 steps train anew in another folder (--run-dir; of a study --out).\n"
    )
    assert run.config.train.steps == 6
    code, _, err = resume("--set", "train.steps=5")
    assert code == 2
    assert "train.steps is 6 there and 5 here" in err


def test_a_schedule_made_for_its_steps_takes_no_more(stopped):
    Run(stopped / "run").adopt(Config.load(Path("c.yaml"), ["train.lr_schedule=linear"]))
    code, _, err = resume("--set", "train.lr_schedule=linear", "--set", "train.steps=8")
    assert code == 2
    assert "train.steps is 4 there and 8 here. A linear learning rate is made for its number of steps." in err


# ---- generate


def test_generate_writes_marked_pictures_and_names_them(finished, tmp_path):
    run, _, _ = finished
    code, out, err = here(
        "generate",
        run,
        "--prompt",
        "a sks dog",
        "--prompt",
        "été",
        "--num-images",
        2,
        "--seed",
        40,
        "--steps",
        3,
        "--guidance",
        2.5,
        "--scheduler",
        "euler",
        "--negative-prompt",
        "snow",
        "--out",
        tmp_path / "out",
    )
    assert (code, err) == (0, "")
    names = ["0000-40.png", "0001-41.png", "0002-40.png", "0003-41.png"]
    assert out.splitlines() == [str(tmp_path / "out" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    with Image.open(tmp_path / "out" / names[3]) as image:
        assert image.size == (32, 32)
        assert image.text == {
            "prompt": "été",
            "negative_prompt": "snow",
            "seed": "41",
            "model": "my run",
            "steps": "3",
            "guidance_scale": "2.5",
            "scheduler": "euler",
            "precision": "no",
        }


def test_generate_starts_from_the_runs_own_settings(finished, tmp_path):
    run, _, _ = finished
    told = here("generate", run, "--prompt", "a dog on desks", "--num-images", 1, "--out", tmp_path)
    assert told.code == 0
    assert told.err == "warning: No prompt names sks, which means the subject.\n"
    with Image.open(tmp_path / "0000-0.png") as image:
        assert (image.text["steps"], image.text["guidance_scale"]) == ("2", "4.0")


def test_generate_takes_a_base_model_too(tiny_model, tmp_path):
    code, _, err = here(
        "generate", tiny_model, "--prompt", "a dog", "--num-images", 1, "--steps", 2, "--out", tmp_path / "out"
    )
    assert (code, err) == (0, "")
    with Image.open(tmp_path / "out" / "0000-0.png") as image:
        assert image.text["model"] == "tiny-sd"


@pytest.mark.slow
def test_generate_as_a_command_of_its_own(tiny_model, tmp_path):
    code, out, err = result(
        process("generate", tiny_model, "--prompt", "a dog", "--num-images", 1, "--steps", 1, cwd=tmp_path)
    )
    assert (code, err) == (0, "")
    assert out == f"{Path('generated') / '0000-0.png'}\n"
    assert (tmp_path / "generated" / "0000-0.png").is_file()


# ---- Adapters


@pytest.fixture(scope="module")
def adapters(tiny_model, photo_folder, tmp_path_factory):
    """Quick runs of a LoRA and of two words of Custom Diffusion, as the command trains them, by name."""
    folder, runs = tmp_path_factory.mktemp("adapters"), {}
    for seed, (name, word) in enumerate({"lora": "sks", "ada": "<ada>", "bea": "<bea>"}.items()):
        method = "lora" if name == "lora" else "custom_diffusion"
        (folder / f"{name}.yaml").write_text(
            f"base_model: {tiny_model}\nmethod: {method}\ndevice: cpu\nseed: {seed}\n"
            f"subject: {{photos: {photo_folder}, identifier: {word}, class_noun: dog}}\nprior: {{enabled: false}}\n"
            "train: {steps: 3, learning_rate: 0.02, mixed_precision: no, sample_every: 0, text_encoder: false}\n"
            'word: {initializer: "{class_noun}"}\nsampling: {steps: 2}\n'
        )
        runs[name] = folder / name
        told = here("train", folder / f"{name}.yaml", "--run-dir", runs[name])
        assert told.code == 0, told.err
    return runs


@pytest.fixture
def drawn(tmp_path):
    """A function that draws one picture by the command, and gives it."""

    def draw(*arguments) -> Image.Image:
        out = tmp_path / f"pictures-{len(list(tmp_path.glob('pictures-*')))}"
        told = here(
            "generate",
            *arguments,
            "--prompt",
            "a photo of sks dog",
            "--num-images",
            1,
            "--steps",
            2,
            "--out",
            out,
            "--precision",
            "no",
        )
        assert (told.code, told.err) == (0, "")
        with Image.open(out / "0000-0.png") as image:
            image.load()
            return image

    return draw


def apart(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of two pictures' pixels, of 255."""
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


def test_methods_are_listed_with_a_sentence_each():
    code, out, err = here("methods")
    assert (code, err) == (0, "")
    names = [line.split(": ")[0] for line in out.splitlines()]
    assert names == ["full", "lora", "textual_inversion", "custom_diffusion"]
    assert all(line.endswith(".") for line in out.splitlines())


def test_generate_takes_an_adapters_strength_and_further_ones_with_weights(adapters, drawn, tiny_model):
    base, trained = drawn(tiny_model), drawn(adapters["lora"])
    assert apart(base, trained) > 3
    off = drawn(adapters["lora"], "--scale", 0)
    assert apart(base, off) == 0
    assert (off.text["model"], off.text["scale"]) == ("lora", "0.0")
    assert not {"scale", "adapters"} & set(trained.text)
    assert apart(trained, drawn(adapters["lora"], "--adapter", f"{adapters['ada']}:0")) == 0
    further = ("--adapter", f"{adapters['ada']}:0.5", "--adapter", adapters["bea"])
    both = drawn(adapters["lora"], *further)
    assert json.loads(both.text["adapters"]) == [["ada", 0.5], ["bea", 1]]
    assert apart(trained, both) > 3
    assert apart(both, drawn(tiny_model, "--adapter", adapters["lora"], *further)) == 0, "on the base model by name"


def test_the_same_word_twice_and_weights_that_are_none_are_one_line(adapters):
    for weight, code, words in [
        ("", 1, "<ada> is in the model's vocabulary already"),
        (":nan", 2, "weight of model is nan"),
    ]:
        told = here("generate", adapters["ada"], "--prompt", "a", "--adapter", f"{adapters['ada']}{weight}")
        assert (told.code, told.out) == (code, "")
        assert words in told.err


def test_fuse_writes_a_pipeline_that_draws_alike(adapters, drawn, tmp_path):
    out = tmp_path / "fused"
    code, told, err = here("fuse", adapters["lora"], "--out", out)
    assert (code, told.splitlines()[0], err) == (0, str(out), "")
    command = shlex.split(told.splitlines()[1].removeprefix("Try: python -m dreambooth "))
    assert command[:3] == ["generate", str(out), "--prompt"]
    settings = ["--steps", "2", "--guidance", "7.5", "--precision", "no"]
    assert command[3:] == ["a photo of sks dog on a beach", *settings], "the run's"
    assert (out / "model_index.json").is_file()
    assert apart(drawn(out), drawn(adapters["lora"])) <= 1
    told = here("fuse", adapters["lora"], "--out", out)
    assert (told.code, told.err) == (2, f"error: {out} is there already and not empty. Give another name (--out).\n")
    half = tmp_path / "half"
    assert here("fuse", adapters["lora"], "--out", half, "--scale", 0.5).code == 0
    assert apart(drawn(half), drawn(adapters["lora"], "--scale", 0.5)) <= 1


def test_what_is_fused_is_drawn_with_the_sampler_of_its_run(adapters, tmp_path):
    run = shutil.copytree(adapters["lora"], tmp_path / "run")
    settings = Config.load(run / "config.yaml", ["sampling.scheduler=ddim", "sampling.guidance_scale=3"])
    (run / "config.yaml").write_text(settings.to_yaml())
    told = here("fuse", run, "--out", tmp_path / "fused").out.splitlines()
    assert told[1].endswith(" --steps 2 --guidance 3 --scheduler ddim --precision no")
    alone = here("fuse", run / "model", "--base-model", settings.base_model, "--out", tmp_path / "alone")
    assert alone == (0, f"{tmp_path / 'alone'}\n", ""), "no settings are known of a folder"


def test_best_is_the_best_of_every_run_that_takes_part(adapters, drawn, tiny_model, tmp_path):
    """With the other run's model as its best, an adapter that is put on top draws as that one."""
    run = shutil.copytree(adapters["ada"], tmp_path / "run")
    shutil.copytree(adapters["bea"] / "model", run / "best")
    write_step(run / "best", 1)
    names = {"dino": "toybox ViT", "clip": "toybox CLIP", "perceptual": "toybox ViT patch distance"}
    found = Measures(0.8, names, 1, tuple(Measure(step, 0.5, 0.6, 0.3, 0.2, 0.4) for step in (0, 1, 3)))
    (run / "measures.json").write_text(json.dumps(asdict(found)))
    on_top = {which: drawn(tiny_model, "--adapter", run, "--which", which) for which in ("last", "best")}
    alone = {name: drawn(tiny_model, "--adapter", adapters[name]) for name in ("ada", "bea")}
    assert apart(on_top["last"], alone["ada"]) == 0
    assert apart(on_top["best"], alone["bea"]) == 0
    assert apart(alone["ada"], alone["bea"]) > 0
    assert "which" not in on_top["last"].text
    assert on_top["best"].text["which"] == "best"


def test_a_base_model_for_a_whole_model_is_refused(tiny_model, tmp_path):
    told = here("generate", tiny_model, "--prompt", "a dog", "--base-model", tiny_model, "--out", tmp_path / "out")
    assert (told.code, told.out) == (2, "")
    assert "tiny-sd is a whole model. Leave --base-model out: only an adapter needs one." in told.err


def test_export_writes_one_file_for_other_programs(adapters, tmp_path):
    out = tmp_path / "dog.safetensors"
    assert here("export", adapters["lora"], "--out", out) == (0, f"{out}\n", "")
    assert {key.rpartition("lora_")[2] for key in load_file(out)} >= {"up.weight", "down.weight"}
    told = here("export", adapters["ada"], "--out", tmp_path / "ada.safetensors")
    assert told.code == 2
    assert "is an adapter of method custom_diffusion. Give a run of method lora." in told.err
    assert "Give a name that ends in .safetensors" in here("export", adapters["lora"], "--out", tmp_path / "a.pt").err
    before = out.read_bytes()
    told = here("export", adapters["lora"], "--out", out)
    assert (told.code, told.err) == (2, f"error: {out} is there already. Give another name (--out).\n")
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["dog.safetensors"]


def test_merge_makes_one_adapter_of_subjects_learned_apart(adapters, drawn, tiny_model, tmp_path):
    (tmp_path / "captions.txt").write_text("a dog in the snow\na photo of the cat\n")
    out = tmp_path / "both"
    told = here("merge", adapters["ada"], adapters["bea"], "--out", out, "--captions", tmp_path / "captions.txt")
    assert told == (0, f"Merged: <ada> dog, <bea> dog\nModel: {out}\n", "")
    assert read_adapter(out).identifiers == ("<ada>", "<bea>")
    drawn(out, "--base-model", tiny_model)
    assert here("fuse", out, "--base-model", tiny_model, "--out", tmp_path / "fused").code == 0
    told = here("generate", out, "--prompt", "a dog", "--out", tmp_path / "out")
    assert told.err.startswith("error: This adapter's base model, tiny-sd, is a folder of the machine where it was")
    told = here("merge", adapters["ada"], adapters["lora"], "--out", tmp_path / "other")
    assert told.code == 2
    assert "is of method lora. Only those of custom_diffusion can be merged." in told.err
    assert not (tmp_path / "other").exists()


def test_merge_takes_folders_whose_base_model_is_a_folder_or_known_from_a_run(adapters, tiny_model, tmp_path):
    (tmp_path / "captions.txt").write_text("a dog in the snow\na photo of the cat\n")
    folders = [adapters["ada"] / "model", adapters["bea"] / "model"]
    for number, (sources, given) in enumerate(
        [
            (folders, ["--base-model", tiny_model]),
            ([folders[0], adapters["bea"]], []),
            ([adapters["ada"], folders[1]], []),
        ]
    ):
        out = tmp_path / f"both-{number}"
        assert here("merge", *sources, *given, "--out", out, "--captions", tmp_path / "captions.txt").code == 0
        assert read_adapter(out).identifiers == ("<ada>", "<bea>")
    told = here("merge", *folders, "--out", tmp_path / "other")
    assert (told.code, "Give that folder (--base-model)" in told.err) == (1, True)
    assert not (tmp_path / "other").exists()


# ---- Published models and class images


def published(hub, config, model, repo_id: str = "anna/dog", private: bool = False) -> None:
    """Put a model on the Hub as publishing does: a pipeline, a card, its settings and its photos."""
    settings = config.model_dump(mode="json") | {"base_model": "anna/base"}
    settings["subject"]["photos"] = "photos"
    files = {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    files |= {f"photos/0{i}.jpg": path.read_bytes() for i, path in enumerate(sorted(config.subject.photos.iterdir()))}
    files |= {"README.md": f"---\ntags: [{TAG}]\n---\n", "config.yaml": to_yaml(settings)}
    hub.add_repo(repo_id, files, private=private)
    hub.add_repo("anna/base", model)


def test_train_repeats_a_published_model(hub, make_config, tiny_model, tmp_path):
    config = make_config(prior={"enabled": False}, train={"steps": 1})
    published(hub, config, tiny_model)
    code, out, err = here("train", "hub:anna/dog", "--run-dir", tmp_path / "run", "--set", "seed=7")
    assert (code, out.splitlines()[0]) == (0, f"Run: {tmp_path / 'run'}"), err
    run = Run.open(tmp_path / "run")
    assert (run.status, run.config.seed, run.config.base_model) == ("finished", 7, "anna/base")
    assert run.config.train == config.train
    assert len(list((run.path / "photos").glob("*.png"))) == 3
    assert run.config.subject.photos.is_relative_to(tmp_path / "cache" / "published" / "anna--dog")
    assert here("train", "hub:anna/dog@main", "--resume", "--set", "seed=7", "--run-dir", tmp_path / "run").code == 0


def test_what_hub_names_must_be_there_and_readable(hub, make_config, tiny_model, tmp_path, monkeypatch):
    anna, bert = hub.add_user("anna", scopes=("read",)), hub.add_user("bert", scopes=("read",))
    published(hub, make_config(), tiny_model, private=True)
    for source, code, words in [
        ("hub:dog", 2, "'hub:dog' names no model. Write hub:USER/NAME"),
        ("hub:anna/dog@", 2, "names no model"),
        ("hub:../../etc/passwd", 2, "names no model"),
        ("hub:..//", 2, "names no model"),
        ("hub:./x", 1, "./x is not on the Hub, or is private"),
        ("hub:anna/none", 1, "anna/none is not on the Hub, or is private"),
        ("hub:anna/dog", 1, "for a private one log in with `hf auth login`"),
        ("hub:anna/base@v9", 1, "anna/base has no revision 'v9'"),
        ("hub:anna/base", 1, "anna/base has no config.yaml"),
    ]:
        told = here("train", source, "--run-dir", tmp_path / "run")
        assert (told.code, told.out) == (code, "")
        assert told.err.startswith("error: ")
        assert words in told.err
    monkeypatch.setenv("HF_TOKEN", bert)
    assert "anna/dog is not on the Hub, or is private" in here("train", "hub:anna/dog").err
    monkeypatch.setenv("HF_TOKEN", anna)
    assert "train.steps = 'no'" in here("train", "hub:anna/dog", "--set", "train.steps=no").err
    assert not (tmp_path / "run").exists()


def test_generate_draws_with_a_published_model_as_its_run_did(hub, make_config, tiny_model, tmp_path):
    published(hub, make_config(sampling={"steps": 3, "guidance_scale": 4.0}), tiny_model)
    for revision in ((), ("--revision", "main")):
        told = here(
            "generate", "anna/dog", *revision, "--prompt", "a sks dog", "--num-images", 1, "--out", tmp_path / "out"
        )
        assert (told.code, told.err) == (0, "")
    with Image.open(tmp_path / "out" / "0001-0.png") as image:
        assert (image.text["steps"], image.text["guidance_scale"], image.text["model"]) == ("3", "4.0", "anna/dog")
    assert "has no revision 'v9'" in here("generate", "anna/dog", "--revision", "v9", "--prompt", "a dog").err


def test_class_images_go_to_the_hub_and_come_back(hub, make_config, tmp_path, monkeypatch):
    config = tmp_path / "c.yaml"
    config.write_text(make_config(train={"steps": 1}, prior={"num_images": 2}).to_yaml())
    push = ("class-images", "push", config, "--repo-id", "dogs")
    assert here(*push).err.startswith("error: There is no Hugging Face token on this machine. Set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", hub.add_user("anna", scopes=("write",)))
    assert "2 of 2 class images are not drawn yet" in here(*push).err
    assert here("train", config).code == 0
    assert here(*push, "--public") == (0, f"{hub.url}/datasets/anna/dogs\n", "")
    assert "anna may not write to bert" in here(*push[:-1], "bert/dogs").err

    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("HF_TOKEN")
    fetch = ("class-images", "fetch", config, "--repo-id", "anna/dogs")
    assert here(*fetch) == (0, "2 class images fetched.\n", "")
    assert here(*fetch, "--set", "prior.num_images=5").out == "0 class images fetched; training draws the other 3.\n"
    told = here(*fetch, "--set", "seed=9")
    assert told.code == 2
    assert "anna/dogs has other class images than these settings ask for: seed (1234 there, 9 here)" in told.err


# ---- evaluate


@pytest.fixture
def prompts_file(tmp_path):
    """Two prompts, as an editor of another system saves them."""
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa photo of {identifier} {class_noun}\r\n\r\n  a sks dog in the snow\r\n")
    return path


def test_evaluate_measures_a_run_and_goes_on_where_it_was(finished, prompts_file):
    run, _, _ = finished
    arguments = ["evaluate", run, "--prompts", prompts_file, "--images-per-prompt", 2]
    code, out, err = here(*arguments)
    assert code == 0, err
    told = Evaluation.load(run / "evaluation")
    assert (told.subject, told.condition, told.model, told.step) == ("sks dog", "with PPL", "my run", 3)
    assert [p.prompt for p in told.prompts] == ["a photo of sks dog", "a sks dog in the snow"]
    lines = out.splitlines()
    assert lines[0].split("  ")[-1] == "measured by"
    pres = next(line for line in lines if line.startswith("PRES (lower is better)  "))
    assert str(told.metrics["pres"]) in pres
    assert pres.endswith("toybox ViT")
    assert f"  {told.ceilings['dino']:.3f}  " in lines[1]
    assert [Path(line).name for line in lines[6:]] == [
        "report.html",
        "report.md",
        "dino_results.csv",
        "clip_results.csv",
        "pres_results.csv",
        "div_results.csv",
        "all_results.csv",
    ]
    assert all(Path(line).is_file() for line in lines[6:])
    assert [line for line in err.splitlines() if line[-1] != "…"] == [
        "draw 6/6",
        "measure 1/3",
        "measure 2/3",
        "measure 3/3",
    ]
    pictures = {path: path.stat().st_mtime_ns for path in (run / "evaluation" / "images").iterdir()}
    assert len(pictures) == 6
    again = here(*arguments)
    assert (again.code, again.out) == (0, out)
    assert {path: path.stat().st_mtime_ns for path in (run / "evaluation" / "images").iterdir()} == pictures


def test_evaluate_measures_the_base_model_on_the_same_subject(finished, prompts_file, tmp_path):
    run, _, _ = finished
    code, _, err = here("evaluate", run, "--base", "--prompts", prompts_file, "--images-per-prompt", 2)
    assert code == 0, err
    base = Evaluation.load(run / "evaluation-base")
    assert (base.condition, base.model, base.step, base.photos) == ("base model", "tiny-sd", 0, 3)
    (one := tmp_path / "one.txt").write_text("a photo of {identifier} {class_noun}")
    code, out, err = here(
        "evaluate", run, "--which", "best", "--prompts", one, "--images-per-prompt", 2, "--out", tmp_path / "out"
    )
    assert code == 0, err
    assert "One prompt, or for PRES one picture, tells no interval." in out
    assert Evaluation.load(tmp_path / "out").condition == "with PPL, best"
    assert f"{tmp_path / 'out' / 'report.html'}" in out.splitlines()


def test_evaluate_says_what_is_wrong_before_it_draws(finished, tmp_path):
    run, _, _ = finished
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "other.txt").write_text("a photo of a dog\n")
    (tmp_path / "field.txt").write_text("a photo of {subject}\n")
    out = tmp_path / "out"
    for arguments, words in [
        ([tmp_path], f"{tmp_path} is not a run: no config.yaml in it."),
        ([run, "--prompts", tmp_path / "none.txt"], "none.txt: no such file. Give a text file with a prompt a line."),
        ([run, "--prompts", tmp_path / "empty.txt"], "empty.txt: holds no prompt. Write a prompt a line."),
        ([run, "--prompts", tmp_path / "other.txt"], "'a photo of a dog' does not name the subject."),
        ([run, "--prompts", tmp_path / "field.txt"], "uses {subject}; only {identifier} and {class_noun}"),
        ([run, "--base", "--which", "best"], "it has no --which."),
        ([run, "--images-per-prompt", 1], "1 is not in the range 2<=x<=1000"),
    ]:
        code, printed, err = here("evaluate", *arguments, "--out", out)
        assert code == (1 if arguments == [tmp_path] else 2), err
        assert printed == ""
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        assert words in err
    assert not out.exists()


def stops_at_ctrl_c(running, begun: str) -> None:
    """Once it has said a line that begins so, it ends in words when Ctrl-C is pressed."""
    assert any(line.startswith(begun) for line in running.stderr), "it ended before it could be stopped"
    running.send_signal(signal.SIGINT)
    code, _, err = result(running)
    assert code == 1
    assert err.splitlines()[-1] == "Stopped; the same command goes on."
    assert "Traceback" not in err


@pytest.mark.slow
def test_evaluate_stops_at_ctrl_c_and_goes_on(finished, prompts_file, tmp_path):
    run, _, _ = finished
    arguments = ["evaluate", run, "--prompts", prompts_file, "--images-per-prompt", 79, "--out", "out"]
    running = process(*arguments, cwd=tmp_path)
    stops_at_ctrl_c(running, "draw 16/160")
    drawn = len(list((tmp_path / "out" / "images").glob("prompt-*.png")))
    assert 16 <= drawn < 158
    assert not (tmp_path / "out" / "metrics.json").exists()


# ---- compare, batch


@pytest.fixture
def batch_file(tiny_model, photo_folder, tmp_path):
    """A quick study of two subjects under one condition, without the base model."""
    for name in ("ida", "rex"):
        shutil.copytree(photo_folder, tmp_path / name)
    path = tmp_path / "dogs.yaml"
    path.write_text(
        "subjects:\n- {name: ida, photos: ida}\n- {name: rex, photos: rex}\n"
        "conditions: {plain: {}}\nevaluate_base: false\nconfig:\n"
        f"  base_model: {tiny_model}\n  device: cpu\n  subject: {{class_noun: dog}}\n  prior: {{enabled: false}}\n"
        "  train: {steps: 3, mixed_precision: no, sample_every: 0}\n  sampling: {steps: 2}\n"
        "  evaluation: {dino: toybox, clip: toybox, perceptual: toybox, class_images: 2, images_per_prompt: 2, "
        'prompts: ["a {identifier} {class_noun}"]}\n'
    )
    return path


@pytest.mark.slow
def test_compare_trains_both_ways_and_tells_where_the_report_is(make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"images_per_prompt": 2, "class_images": 2, "prompts": ["a {identifier} {class_noun}"]}
    Path("pets").mkdir()
    Path("pets/max.yaml").write_text(make_config(evaluation=settings).to_yaml())
    code, out, err = here("compare", "pets/max.yaml", "--set", "train.steps=2", "--set", "seed=5")
    assert code == 0, err
    folder = Path("studies/max")
    assert out.splitlines() == [f"Study: {folder}, 3 models", f"Report: {folder / 'report.html'}"]
    heads = [line for line in err.splitlines() if line.startswith("[")]
    assert heads == ["[1/3] disc, base model", "[2/3] disc, without PPL, seed 5", "[3/3] disc, with PPL, seed 5"]
    assert "train 2/2 instance loss " in err
    assert "Finished" not in err
    assert "Traceback" not in err
    for name in ("report.md", "all_results.csv", "gallery-00.png"):
        assert (folder / name).is_file()
    assert [Run.open(folder / "disc" / f"{name}-5").config.prior.enabled for name in ("without-PPL", "with-PPL")] == [
        False,
        True,
    ]
    code, out, err = here("compare", "pets/max.yaml", "--set", "train.steps=2", "--set", "seed=5")
    assert code == 0
    assert out.splitlines()[0] == f"Study: {folder}, 3 models, 3 of them done already"
    assert err.splitlines() == ["check …"]


@pytest.mark.slow
def test_batch_goes_on_past_a_failure_and_tells_it_again_at_the_end(batch_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ida").write_text("a file where a folder must be")
    code, out, err = here("batch", batch_file, "--out", tmp_path / "out")
    assert code == 1
    assert out.splitlines() == [f"Study: {tmp_path / 'out'}, 2 models", f"Report: {tmp_path / 'out' / 'report.html'}"]
    folder = tmp_path / "out" / "ida" / "plain-1234"
    blocking = f"{tmp_path / 'out' / 'ida'} is a file. Move it away, or choose another folder"
    reason = f"ida, plain, seed 1234: {folder} can't be read or written: {blocking}."
    lines = err.splitlines()
    assert lines.index(f"failed: {reason}") < lines.index("[2/2] rex, plain, seed 1234")
    assert lines[-2:] == ["1 of 2 failed; the same command tries them again:", reason]
    assert Evaluation.load(tmp_path / "out" / "rex" / "plain-1234" / "evaluation").step == 3
    (tmp_path / "out" / "ida").unlink()
    code, out, err = here("batch", batch_file, "--out", tmp_path / "out")
    assert code == 0, err
    assert "2 models, 1 of them done already" in out
    assert "rex" not in err


@pytest.mark.slow
def test_batch_stops_at_ctrl_c_and_the_same_command_goes_on(batch_file, tmp_path):
    arguments = ["batch", batch_file, "--out", "out", "--set", "config.train.steps=100"]
    running = process(*arguments, cwd=tmp_path)
    stops_at_ctrl_c(running, "train 10/100 ")
    assert not (tmp_path / "out" / "rex").exists(), "the next one has not begun"
    run = Run.open(tmp_path / "out" / "ida" / "plain-1234")
    assert run.status == "cancelled"
    code, _, err = result(process(*arguments, cwd=tmp_path))
    assert code == 0, err
    assert [e.step for e in run.events() if isinstance(e, events.Step)] == list(range(1, 101)), "each step once"
    assert (tmp_path / "out" / "rex" / "plain-1234" / "evaluation" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("command", "text", "words"),
    [
        ("batch", None, "s.yaml: no such file."),
        ("batch", "subjects: paper\nfotos: 3", "unknown key 'fotos'"),
        ("batch", "subjects: nowhere", "nowhere' can't be read (No such file or directory)."),
        ("compare", "subject: {photos: nowhere, class_noun: dog}", "nowhere: "),
        ("compare", "subject: {photos: ., class_noun: dog}\nprior: {weight: 0}", "prior.weight is 0"),
    ],
)
def test_what_is_wrong_with_a_study_is_one_line(tmp_path, monkeypatch, command, text, words):
    monkeypatch.chdir(tmp_path)
    if text:
        Path("s.yaml").write_text(text)
    code, out, err = here(command, "s.yaml")
    assert (code, out) == (2, "")
    assert words in err
    assert err.splitlines()[-1].startswith("error: ")
    assert not Path("studies").exists()


# ---- tokens


def test_tokens_judges_words(tiny_model):
    code, out, err = here("tokens", "--base-model", tiny_model, "--check", "sks", "--check", "zzz")
    assert (code, err) == (0, "")
    one, other = out.splitlines()
    assert one.startswith("sks: ")
    assert "It is one token." in one
    assert other.startswith("zzz: ")
    assert "It is 3 tokens: z, z, z" in other


@pytest.mark.slow
def test_tokens_suggests_words_as_a_command_of_its_own(tiny_model, tmp_path):
    code, out, err = result(process("tokens", "--base-model", tiny_model, cwd=tmp_path))
    assert (code, err) == (0, "")
    assert out.startswith("snow: ")


def test_tokens_shows_what_a_word_means_already(tiny_model, tmp_path):
    code, out, _ = here(
        "tokens", "--base-model", tiny_model, "--check", "sks", "--class-noun", "dog", "--preview", tmp_path / "p.jpg"
    )
    assert code == 0
    assert out.splitlines()[-1] == str(tmp_path / "p.jpg")
    with Image.open(tmp_path / "p.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert sheet.width > 6 * 32, "two pictures of three prompts"


# ---- push


@pytest.fixture
def pushed(finished, hub, tmp_path, monkeypatch):
    """A copy of the finished run, and a machine that anna is logged in on."""
    monkeypatch.setenv("HF_TOKEN", hub.add_user("anna"))
    return shutil.copytree(finished[0], tmp_path / "dogs", symlinks=True)


def test_push_tells_where_the_model_is(pushed, hub):
    code, out, err = here("push", pushed, "--repo-id", "dog")
    assert code == 0, err
    assert out == f"Published: {hub.url}/anna/dog (private)\n"
    lines = err.splitlines()
    assert lines[0] == "prepare …"
    assert lines[-1] == "commit …"
    size = sum(blob.size for name, blob in hub.repos["model", "anna/dog"].files.items() if name != ".gitattributes")
    assert f"upload {size / 1e6:.1f}/{size / 1e6:.1f} MB" in lines
    assert hub.repos["model", "anna/dog"].private


def test_push_does_what_it_is_told(pushed, hub):
    shutil.copytree(pushed, pushed.parent / "other", symlinks=True)
    code, out, err = here("push", pushed, "--repo-id", "anna/dog", "--public", "--photos", "--half", "--which", "best")
    assert (code, out) == (0, f"Published: {hub.url}/anna/dog (public)\n"), err
    there = hub.repos["model", "anna/dog"]
    assert not there.private
    assert {"photos/00.png", "photos/01.png", "photos/02.png"} <= set(there.files)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert there.files[weights].size < 0.6 * (pushed / "model" / weights).stat().st_size
    code, _, err = here("push", pushed, "--repo-id", "dog", "--partner", pushed.parent / "other")
    assert code == 2
    assert "is no partner of" in err


def test_a_failed_push_is_one_line_and_the_same_command_goes_on(pushed, hub, monkeypatch):
    hub.fail("POST .*/commit/", 503)
    code, out, err = here("push", pushed, "--repo-id", "dog")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: Could not put anna/dog in place. The Hub is in trouble (503, ")
    assert "Traceback" not in err
    assert here("push", pushed, "--repo-id", "dog").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_ctrl_c_ends_a_push_and_the_same_command_goes_on(pushed, hub):
    weights = {"w": torch.rand(3_000_000, generator=torch.Generator().manual_seed(0))}  # a large file, sent by itself
    save_file(weights, pushed / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    fault = hub.fail("PUT /storage/|POST /cas/v1/xorbs/", "slow", after=2_000_000, times=99)
    running = process("push", pushed, "--repo-id", "dog", cwd=pushed.parent)
    assert fault.arrived.wait(120)
    running.send_signal(signal.SIGINT)
    code, out, err = result(running)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "error: stopped."
    assert "Traceback" not in err
    assert read_state(pushed).state == "interrupted"
    assert not list(pushed.glob(".publish-*"))
    fault.released.set()
    assert here("push", pushed, "--repo-id", "dog").code == 0


def test_push_without_a_login_says_how_to_log_in(pushed, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    code, out, err = here("push", pushed, "--repo-id", "dog")
    assert (code, out) == (1, "")
    assert err == (
        "error: There is no Hugging Face token on this machine. Set HF_TOKEN, or log in with `hf auth login`.\n"
    )
    assert not hub.requests


def test_push_refuses_somebody_elses_name(pushed, hub):
    code, _, err = here("push", pushed, "--repo-id", "bob/dog")
    assert code == 2
    assert err.startswith("error: repo id 'bob/dog': anna may not write to bob.")


# ---- photos check


def test_photos_check_lists_crops_and_advice(photo_folder, tmp_path):
    code, out, err = result(process("photos", "check", photo_folder, "--sheet", "crops.png", cwd=tmp_path))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["photo0.jpg", "photo1.jpg", "photo2.jpg"]
    assert "80 × 64, crop (" in lines[0]
    assert any(line.startswith("warning: photo0.jpg is enlarged from 64 to 512 pixels") for line in lines)
    with Image.open(tmp_path / "crops.png") as sheet:
        assert sheet.width > 3 * 100
    assert [path.name for path in tmp_path.glob("*crops*")] == ["crops.png"]


def test_photos_check_says_what_is_not_taken(photo_folder, tmp_path):
    shutil.copytree(photo_folder, tmp_path / "mixed")
    tiny.photos(tmp_path / "mixed" / "more", 5)
    (tmp_path / "mixed" / "photo0.caption").write_text("a sks dog")
    told = here("photos", "check", tmp_path / "mixed").out
    assert "warning: Passed over: 5 photos in its folder 'more'." in told
    assert "1 of 3 photos have a caption, which subject.captions: true takes." in told


@pytest.mark.parametrize("encode", SAVED.values(), ids=SAVED)
def test_a_file_of_prompts_is_read_as_every_editor_saves_it(tmp_path, encode):
    (tmp_path / "prompts.txt").write_bytes(encode("a sks dog\r\n\r\n  a café \u2028 of sks\r\n"))
    assert options.read_lines(tmp_path / "prompts.txt", "prompt") == ["a sks dog", "a café \u2028 of sks"]


def test_generate_says_what_of_a_prompt_is_not_read(tiny_model, tmp_path):
    prompt = "dog " * 14 + "in the snow"
    told = here("generate", tiny_model, "--prompt", prompt, "--num-images", 1, "--steps", 1, "--out", tmp_path / "out")
    assert told.code == 0
    assert "that the model reads: 'in the snow' is cut off." in told.err


def test_photos_check_measures_against_the_asked_resolution(photo_folder):
    assert "enlarged" not in here("photos", "check", photo_folder, "--resolution", 64).out
    assert "enlarged from 64 to 128" in here("photos", "check", photo_folder, "--resolution", 128).out
