"""The command line, as a person sees it: what is printed, where files land, and how a command ends."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from PIL import Image

from dreambooth import cli, events
from dreambooth.checkpoints import list_checkpoints
from dreambooth.runs import Run

ROOT = Path(__file__).parent.parent


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
    """`python -m dreambooth` in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dreambooth", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


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
        (["train", "--help"], ["CONFIG.yaml", "--set KEY=VALUE", "--run-dir", "--resume"]),
        (["generate", "--help"], ["RUN_OR_MODEL", "--prompt", "--negative-prompt", "--num-images", "--seed", "--out"]),
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
    assert "checkpoint checkpoints/step-000003" in lines
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


def test_ctrl_c_keeps_what_was_learned_and_resume_finishes(config_file, tmp_path):
    arguments = ["train", config_file, "--run-dir", "run", "--set", "train.steps=100"]
    arguments += ["--set", "train.checkpoint_every=1000"]
    running = process(*arguments, cwd=tmp_path)
    assert any(line.startswith("train 10/100 ") for line in running.stderr), "it ended before it could be stopped"
    running.send_signal(signal.SIGINT)
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
    code, _, err = here("train", config_file, "--resume", "--run-dir", tmp_path / "none")
    assert code == 1
    assert err.startswith(f"error: {tmp_path / 'none'} is not a run: no config.yaml in it.")


def test_resume_with_other_settings_names_them_and_what_to_do_works(finished, monkeypatch, tmp_path):
    run, _, config = finished
    code, _, err = here("train", config, "--resume", "--run-dir", run, "--set", "seed=5")
    assert code == 2
    assert err.startswith(f"error: {run} was made with other settings (seed, train differ).")
    saved = run / "config.yaml"
    assert f"Resume with {saved}" in err
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


# ---- generate


def test_generate_writes_marked_pictures_and_names_them(finished, tmp_path):
    run, _, _ = finished
    code, out, err = here(
        "generate", run, "--prompt", "a sks dog", "--prompt", "été", "--num-images", 2, "--seed", 40, "--steps", 3,
        "--guidance", 2.5, "--scheduler", "euler", "--negative-prompt", "snow", "--out", tmp_path / "out",
    )  # fmt: skip
    assert (code, err) == (0, "")
    names = ["0000-40.png", "0001-41.png", "0002-40.png", "0003-41.png"]
    assert out.splitlines() == [str(tmp_path / "out" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    with Image.open(tmp_path / "out" / names[3]) as image:
        assert image.size == (32, 32)
        assert image.text == {
            "prompt": "été", "negative_prompt": "snow", "seed": "41", "model": "my run", "steps": "3",
            "guidance_scale": "2.5", "scheduler": "euler",
        }  # fmt: skip


def test_generate_starts_from_the_runs_own_settings(finished, tmp_path):
    run, _, _ = finished
    assert here("generate", run, "--prompt", "a dog", "--num-images", 1, "--out", tmp_path).code == 0
    with Image.open(tmp_path / "0000-0.png") as image:
        assert (image.text["steps"], image.text["guidance_scale"]) == ("2", "4.0")


def test_generate_takes_a_base_model_too(tiny_model, tmp_path):
    code, _, err = here(
        "generate", tiny_model, "--prompt", "a dog", "--num-images", 1, "--steps", 2, "--out", tmp_path / "out"
    )
    assert (code, err) == (0, "")
    with Image.open(tmp_path / "out" / "0000-0.png") as image:
        assert image.text["model"] == "tiny-sd"


def test_generate_as_a_command_of_its_own(tiny_model, tmp_path):
    code, out, err = result(
        process("generate", tiny_model, "--prompt", "a dog", "--num-images", 1, "--steps", 1, cwd=tmp_path)
    )
    assert (code, err) == (0, "")
    assert out == f"{Path('generated') / '0000-0.png'}\n"
    assert (tmp_path / "generated" / "0000-0.png").is_file()


# ---- tokens


def test_tokens_judges_words(tiny_model):
    code, out, err = here("tokens", "--base-model", tiny_model, "--check", "sks", "--check", "zzz")
    assert (code, err) == (0, "")
    one, other = out.splitlines()
    assert one.startswith("sks: ")
    assert "It is one token." in one
    assert other.startswith("zzz: ")
    assert "It is 3 tokens: z, z, z" in other


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


def test_photos_check_measures_against_the_asked_resolution(photo_folder):
    assert "enlarged" not in here("photos", "check", photo_folder, "--resolution", 64).out
    assert "enlarged from 64 to 128" in here("photos", "check", photo_folder, "--resolution", 128).out
