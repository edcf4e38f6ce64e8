"""Bad input of every kind: one clear line that begins with `error: `, exit code 2 or 1, and nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.test_cli import Result, here, process, result
from tests.models.test_fetch import loopback_hub

QUICK = {
    "device": "cpu",
    "prior": {"enabled": False},
    "train": {"steps": 2, "batch_size": 1, "mixed_precision": "no", "sample_every": 0},
    "sampling": {"steps": 1},
}


@dataclass
class Place:
    """What a case starts from: good photos, a good model, a folder for its own files, and one to work in."""

    photos: Path
    model: Path
    given: Path
    monkeypatch: pytest.MonkeyPatch

    def config(self, text: str | None = None, **changes) -> Path:
        """A config file: `text` as it is, or a quick run's settings with `changes`."""
        settings = QUICK | {
            "base_model": str(self.model),
            "subject": {"photos": str(self.photos), "class_noun": "dog"},
        }
        for key, value in changes.items():
            settings[key] = settings.get(key, {}) | value if isinstance(value, dict) else value
        path = self.given / "c.yaml"
        path.write_text(json.dumps(settings) if text is None else text)  # JSON is YAML
        return path

    def train(self, *arguments, **changes) -> list:
        return ["train", self.config(**changes), "--run-dir", "run", *arguments]

    def train_on(self, **changes) -> list:
        """Train on a copy of the photos that the case may spoil."""
        shutil.copytree(self.photos, self.given / "photos")
        return self.train(subject={"photos": str(self.given / "photos")} | changes)

    def generate(self, *arguments, source: object = None) -> list:
        return [
            "generate",
            source or self.model,
            "--prompt",
            "a dog",
            "--num-images",
            1,
            "--steps",
            1,
            "--out",
            "out",
            *arguments,
        ]

    def check(self, name: str, data: bytes) -> list:
        """Look at a folder with one file."""
        (self.given / "one").mkdir()
        (self.given / "one" / name).write_bytes(data)
        return ["photos", "check", self.given / "one"]

    def file(self) -> Path:
        """A file where a folder would be wanted: nobody can write below it, not even root."""
        (self.given / "file").write_text("x")
        return self.given / "file"

    def text(self, data: bytes) -> Path:
        (self.given / "text.txt").write_bytes(data)
        return self.given / "text.txt"

    def below(self) -> Path:
        """An empty folder among photos."""
        shutil.copytree(self.photos, self.given / "photos")
        (self.given / "photos" / "below").mkdir()
        return self.given / "photos" / "below"

    def damaged(self, name: str, change) -> Path:
        """A copy of the model with one file changed."""
        copy = self.given / "damaged"
        shutil.copytree(self.model, copy)
        (copy / name).write_bytes(change((copy / name).read_bytes()))
        return copy

    def damaged_adapter(self) -> Path:
        """A folder whose adapter.json says nothing."""
        (self.given / "adapter").mkdir()
        (self.given / "adapter" / "adapter.json").write_text("{}")
        return self.given / "adapter"

    def with_variable(self, name: str, value: Path, arguments: list) -> list:
        self.monkeypatch.setenv(name, str(value))
        return arguments

    def run_without_model(self) -> str:
        Path("run").mkdir()
        shutil.copy(self.config(), "run/config.yaml")
        return "run"


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def jpeg(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def huge_png() -> bytes:
    """A few hundred bytes that unpack to 10 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def full_disk(*_arguments, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_full_while(place: Place, writer: str, arguments: list) -> list:
    place.monkeypatch.setattr(writer, full_disk)
    return arguments


def caption_without_identifier(place: Place) -> list:
    arguments = place.train_on(captions=True)
    (place.given / "photos" / "photo1.txt").write_text("a dog in the snow")
    return arguments


def predicts_something_else(place: Place) -> Path:
    return place.damaged("scheduler/scheduler_config.json", lambda data: data.replace(b'"epsilon"', b'"sample"'))


def absent_device() -> str:
    return "mps" if torch.cuda.is_available() else "cuda"


def resumed_with_other_settings(place: Place) -> list:
    place.run_without_model()
    return place.train("--resume", seed=99)


CONFIG = "subject: {photos: p, class_noun: dog}\n"

CASES = {
    # ---- the config
    "no config file": (lambda p: ["train", "none.yaml"], 2, "none.yaml: no such file"),
    "config is a folder": (lambda p: ["train", p.given], 2, "can't be read"),
    "config is a picture": (lambda p: ["train", p.photos / "photo0.jpg"], 2, "can't be read"),
    "empty config": (lambda p: ["train", p.config("")], 2, "holds NoneType, not settings"),
    "no YAML": (lambda p: ["train", p.config("a: [1")], 2, "not valid YAML"),
    "a key twice": (lambda p: ["train", p.config(CONFIG + CONFIG)], 2, "the key 'subject' stands twice"),
    "unknown key": (lambda p: p.train(train={"step": 1}), 2, "unknown key 'train.step'; known here: steps"),
    "wrong type": (lambda p: p.train(train={"steps": "many"}), 2, "train.steps = 'many'"),
    "no photos named": (lambda p: ["train", p.config("subject: {class_noun: dog}")], 2, "'subject.photos' is missing"),
    "unknown preset": (lambda p: p.train(preset="best"), 2, "preset 'best' does not exist. Choose one of"),
    "odd resolution": (lambda p: p.train(train={"resolution": 100}), 2, "multiple of 8"),
    "impossible combination": (lambda p: p.train(train={"mixed_precision": "fp16"}), 2, "fp16 but device is cpu"),
    "override without a value": (lambda p: p.train("--set", "train.steps"), 2, "--set 'train.steps' is not KEY=VALUE"),
    "override of nothing": (lambda p: p.train("--set", "train.stepz=3"), 2, "unknown key 'train.stepz'"),
    "absent device": (lambda p: p.train(device=absent_device()), 2, "Set device: auto or cpu"),
    # ---- prompts
    "prompt without identifier": (
        lambda p: p.train(subject={"instance_prompt": "a dog"}),
        2,
        "does not hold the identifier",
    ),
    "unknown placeholder": (lambda p: p.train(prior={"class_prompt": "a {noun}"}), 2, "uses {noun}; only {class_noun}"),
    "empty prompt": (lambda p: ["generate", p.model, "--prompt", " "], 2, "--prompt is empty"),
    "no prompt": (lambda p: ["generate", p.model], 2, "Missing option '--prompt'"),
    "empty identifier": (lambda p: ["tokens", "--base-model", p.model, "--check", " "], 2, "The identifier is empty"),
    "two words": (lambda p: ["tokens", "--base-model", p.model, "--check", "a b"], 2, "Give one word"),
    "identifier inside another word": (
        lambda p: p.train(subject={"instance_prompt": "a dog under two desks"}),
        2,
        "does not hold the identifier",
    ),
    "captions that are not there": (lambda p: p.train_on(captions=True), 2, "but no photo has a caption"),
    "prompts of another encoding": (
        lambda p: ["merge", p.model, p.model, "--out", "out", "--captions", p.text("собака".encode("cp1251"))],
        2,
        "line 1 is not UTF-8 text; save the file as UTF-8",
    ),
    "config of another encoding": (
        lambda p: ["train", p.text("subject: {class_noun: собака}".encode("cp1251"))],
        2,
        "line 1 is not UTF-8 text",
    ),
    "subject's name beyond what is read": (
        lambda p: p.train(subject={"instance_prompt": "a dog " * 8 + "{identifier}"}),
        2,
        "sks is cut off",
    ),
    "photos one folder too low": (
        lambda p: p.train(subject={"photos": str(p.below())}),
        2,
        "there are 3 in the folder above it. Give",
    ),
    "caption without identifier": (caption_without_identifier, 2, "photo1.txt: does not hold the identifier"),
    # ---- numbers and names on the command line
    "no pictures asked for": (lambda p: p.generate("--num-images", 0), 2, "'--num-images'"),
    "seed too large": (lambda p: p.generate("--seed", 2**32), 2, "'--seed'"),
    "no steps": (lambda p: p.generate("--steps", 0), 2, "'--steps'"),
    "guidance is no number": (lambda p: p.generate("--guidance", "nan"), 2, "--guidance"),
    "unknown sampler": (lambda p: p.generate("--scheduler", "heun"), 2, "--scheduler 'heun'"),
    "unknown command": (lambda p: ["paint"], 2, "No such command 'paint'"),
    "unknown option": (lambda p: p.train("--fast"), 2, "No such option '--fast'"),
    # ---- photos
    "photos missing": (lambda p: p.train(subject={"photos": str(p.given / "none")}), 2, "none is not there"),
    "photos in a file": (lambda p: ["photos", "check", p.file()], 2, "file is a file, not a folder"),
    "no photos in the folder": (lambda p: p.check("notes.txt", b"hello"), 2, "holds no photos"),
    "text named .jpg": (lambda p: p.check("dog.jpg", b"not a photo\n"), 2, "dog.jpg holds text, not a picture"),
    "photo cut short": (lambda p: p.check("dog.jpg", half(jpeg((300, 300)))), 2, "dog.jpg is damaged or cut short"),
    "empty photo": (lambda p: p.check("dog.png", b""), 2, "dog.png is empty (0 bytes)"),
    "tiny photo": (lambda p: p.check("dog.jpg", jpeg((60, 200))), 2, "dog.jpg is too small: 60 x 200 pixels"),
    "decompression bomb": (lambda p: p.check("dog.png", huge_png()), 2, "dog.png has more than 120 megapixels"),
    "line break in a name": (lambda p: p.check("a\nb.jpg", b"text"), 2, "a?b.jpg holds text"),
    "crop of no photo": (lambda p: p.train_on(crops={"cat.jpg": [0, 0, 64, 64]}), 2, "cat.jpg: a crop box is given"),
    # ---- models
    "model missing": (lambda p: p.train(base_model="none"), 1, "none: no such folder"),
    "push of no run": (lambda p: ["push", p.model, "--repo-id", "dog"], 1, "is not a run: no config.yaml in it"),
    "push to nowhere": (lambda p: ["push", p.model], 2, "Missing option '--repo-id'"),
    "push beside no partner": (
        lambda p: ["push", p.run_without_model(), "--repo-id", "dog", "--partner", p.model],
        1,
        "is not a run",
    ),
    "folder without a model": (lambda p: p.generate(source=p.given), 1, "no model_index.json in it"),
    "unsupported model": (
        lambda p: p.train(base_model=str(p.damaged("model_index.json", lambda b: b.replace(b"StableD", b"UnstableD")))),
        1,
        "is a UnstableDiffusionPipeline. Supported: StableDiffusionPipeline.",
    ),
    "weights cut short": (
        lambda p: p.train(base_model=str(p.damaged("unet/diffusion_pytorch_model.safetensors", half))),
        1,
        "damaged can't be loaded: Unable to load weights",
    ),
    "text side cut short": (
        lambda p: ["tokens", "--base-model", p.damaged("text_encoder/model.safetensors", half)],
        1,
        "can't be loaded",
    ),
    "model of another kind of prediction": (
        lambda p: p.train(base_model=str(predicts_something_else(p))),
        1,
        "Supported are epsilon and v_prediction",
    ),
    "hub can't be reached": (lambda p: p.train(base_model="owner/name"), 1, "the Hub can't be reached"),
    "no name of the hub": (lambda p: p.generate(source="a/b/c"), 1, "a/b/c: no such folder"),
    "run without a model": (lambda p: p.generate(source=p.run_without_model()), 1, "run has no finished model"),
    # ---- adapters
    "strength of a whole model": (lambda p: p.generate("--scale", 0.5), 2, "scale is 0.5, but this is a whole model"),
    "strength is no number": (lambda p: p.generate("--scale", "much"), 2, "--scale"),
    "whole model on top": (lambda p: p.generate("--adapter", p.model), 2, "is a whole model. Only adapters can be put"),
    "nothing on top": (lambda p: p.generate("--adapter", "none:0.5"), 1, "none: no such folder"),
    "damaged adapter": (lambda p: p.generate(source=p.damaged_adapter()), 1, "adapter: adapter.json can't be used"),
    "fuse a whole model": (lambda p: ["fuse", p.model, "--out", "out"], 2, "tiny-sd is a whole model already"),
    "fuse into photos": (lambda p: ["fuse", p.model, "--out", p.photos], 2, "disc is there already and not empty"),
    "export a whole model": (lambda p: ["export", p.model, "--out", "a.safetensors"], 2, "tiny-sd is a whole model"),
    "export over a file": (
        lambda p: ["export", p.model, "--out", p.file()],
        2,
        "file is there already. Give another name (--out)",
    ),
    "merge on no base model": (
        lambda p: ["merge", p.model, p.model, "--out", "out", "--base-model", "none"],
        1,
        "none: no such folder",
    ),
    "merge one": (lambda p: ["merge", p.model, "--out", "out"], 2, "1 model is given. Give two or more"),
    "merge whole models": (lambda p: ["merge", p.model, p.model, "--out", "out"], 2, "tiny-sd is of method full"),
    "merge runs without a model": (
        lambda p: ["merge", p.run_without_model(), p.model, "--out", "out"],
        1,
        "run has no finished model",
    ),
    "captions missing": (
        lambda p: ["merge", p.model, p.model, "--out", "out", "--captions", "none.txt"],
        2,
        "Give a text file with a caption a line",
    ),
    # ---- folders and disks
    "run folder in use": (
        lambda p: ["train", p.config(), "--run-dir", p.given],
        2,
        "is there already and not empty",
    ),
    "run folder below a file": (
        lambda p: ["train", p.config(), "--run-dir", p.file() / "run"],
        2,
        "file is a file. Give another folder (--run-dir)",
    ),
    "run folder that is read-only": (
        lambda p: ["train", p.config(), "--run-dir", "/proc/run"],
        1,
        "/proc/run can't be read or written",
    ),
    "nothing to resume": (lambda p: p.train("--resume"), 1, "run is not a run: no config.yaml in it"),
    "resume with other settings": (resumed_with_other_settings, 2, "settings: seed is 1234 there and 99 here."),
    "pictures below a file": (
        lambda p: p.generate("--out", p.file() / "out"),
        2,
        "file is a file. Give another folder (--out)",
    ),
    "a study below a file": (
        lambda p: ["compare", p.config(), "--out", p.file() / "out"],
        2,
        "file is a file. Give another folder (--out)",
    ),
    "runs below a file": (
        lambda p: p.with_variable("DREAMBOOTH_RUNS", p.file() / "runs", ["train", p.config()]),
        2,
        "file is a file. Give another folder (DREAMBOOTH_RUNS, or --run-dir)",
    ),
    "class images below a file": (
        lambda p: p.with_variable("DREAMBOOTH_CACHE", p.file() / "a", p.train(prior={"enabled": True})),
        1,
        "file is a file. Move it away, or choose another folder (DREAMBOOTH_CACHE), then go on with --resume",
    ),
    "a folder without a name": (lambda p: p.generate("--out", ""), 2, "--out is empty"),
    "the home of nobody": (lambda p: p.generate("--out=~nobody-at-all/x"), 2, "'~nobody-at-all/x' is not a path"),
    "pictures where it is read-only": (lambda p: p.generate("--out", "/proc/out"), 1, "/proc/out can't be"),
    "sheet below a file": (
        lambda p: ["photos", "check", p.photos, "--sheet", p.file() / "sheet.png"],
        2,
        "file is a file. Give another folder (--sheet)",
    ),
    "sheet of no known format": (
        lambda p: ["photos", "check", p.photos, "--sheet", "sheet.doc"],
        2,
        "'sheet.doc' does not end in .png, .jpg",
    ),
    "disk full at a checkpoint": (
        lambda p: disk_full_while(p, "torch.save", p.train("--set", "train.checkpoint_every=1")),
        1,
        "The disk is full. Free some space, then go on",
    ),
    "disk full at the photos": (
        lambda p: disk_full_while(p, "PIL.Image.Image.save", p.train()),
        1,
        "The disk is full. Free some space, then go on with --resume.",
    ),
    "disk full at a picture": (
        lambda p: disk_full_while(p, "PIL.Image.Image.save", p.generate()),
        1,
        "The disk is full. Free some space.",
    ),
}
"""name: (what makes the command line, its exit code, words that the line holds)"""

PROGRESS = ("…", "GiB", " s", "loss", "step-000002")
"""Ends of the lines that say how far a training got before it failed."""


@pytest.fixture
def place(photo_folder, tiny_model, tmp_path, monkeypatch) -> Place:
    for name in ("given", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Place(photo_folder, tiny_model, tmp_path / "given", monkeypatch)


def assert_clear(ended: Result, code: int, words: str, *, progress: bool) -> None:
    lines = ended.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, ended.err
    assert words in errors[0]
    assert ended.code == code
    assert lines[-1] == errors[0], "the last thing said"
    assert "Traceback" not in ended.err + ended.out
    told = ("advice: ", "encode ", "train ")
    others = [line for line in lines[:-1] if not (line.endswith(PROGRESS) or line.startswith(told))]
    assert others == []
    assert progress or len(lines) == 1


def assert_nothing_half_written(folder: Path) -> None:
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert not {name for name in left if ".dreambooth-" in name or name.endswith((".tmp", ".incomplete"))}
    assert "run/model" not in left
    assert not (folder / "out").exists() or not any((folder / "out").iterdir())
    assert not list(folder.glob("sheet*"))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gives_one_clear_line_and_leaves_nothing_half_written(name, place):
    setup, code, words = CASES[name]
    arguments = setup(place)
    ended = here(*arguments)
    assert_clear(ended, code, words, progress=arguments[0] == "train")
    assert_nothing_half_written(Path.cwd())


def test_there_are_more_than_thirty_kinds():
    assert len(CASES) > 30
    assert {code for _, code, _ in CASES.values()} == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unknown key", "text named .jpg", "text side cut short"])
def test_a_command_of_its_own_says_the_same(name, place):
    setup, code, words = CASES[name]
    assert_clear(result(process(*setup(place), cwd=Path.cwd())), code, words, progress=False)
    assert_nothing_half_written(Path.cwd())


def test_an_interrupted_download_gives_one_clear_line_and_the_same_command_completes_it(place, tmp_path):
    arguments = place.train(base_model="owner/tiny")
    with loopback_hub(place.model, tmp_path / "hub", place.monkeypatch) as hub:
        hub.cut = "unet/diffusion_pytorch_model.safetensors"
        assert_clear(here(*arguments), 1, "owner/tiny could not be downloaded", progress=True)
        assert_nothing_half_written(Path.cwd())
        assert_nothing_half_written(tmp_path / "hub")
        hub.cut = "nothing"
        assert here(*arguments, "--resume").code == 0
    assert Path("run/model/model_index.json").is_file()
