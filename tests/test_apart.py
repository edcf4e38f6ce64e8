"""Strangers' models draw in a process of their own: the same pictures, and what they do to it is one sentence here."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from dreambooth import apart
from dreambooth.apart import Child, Order, Step, Weights, draw
from dreambooth.config.sections import SamplingConfig
from dreambooth.errors import ConfigError, ModelError, RunError
from tests.families.test_architectures import safety_checker

QUICK = SamplingConfig(steps=2)


def drawn(work, weights: Weights, count: int = 2, prompt: str = "a dog") -> tuple[list, list]:
    """The steps and the pictures that are told."""
    told = []
    work([Order(weights, prompt, 2**32 - 1, count)], QUICK, "a cat", False, told.append)
    return [news for news in told if isinstance(news, Step)], [
        p for news in told if isinstance(news, list) for p in news
    ]


def acting(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the child run `code` in the place of drawing; `out` is where it tells, `asked` what it was asked."""
    begin = "import json, os, sys; sys.path.insert(0, os.environ['PYTHONPATH']); asked = json.loads(sys.stdin.read())\n"
    begin += "out = sys.stdout.buffer\ndef send(kind, said, more=b''):\n    head = json.dumps([kind, said]).encode()\n"
    begin += "    out.write(len(head).to_bytes(4, 'little') + head + more); out.flush()\n"
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: start([sys.executable, "-c", begin + code], **options)
    )


@pytest.mark.slow
def test_pictures_drawn_apart_are_those_that_are_drawn_here(tiny_model: Path):
    (here_steps, here), (there_steps, there) = (
        drawn(work, Weights(str(tiny_model), stranger=True)) for work in (draw, Child().draw)
    )
    assert there_steps == here_steps == [Step(0, 2), Step(1, 2), Step(2, 2)]
    for ours, theirs in zip(here, there, strict=True):
        assert (theirs.prompt, theirs.seed, theirs.problem) == (ours.prompt, ours.seed, ours.problem)
        assert theirs.precision == ours.precision
        assert np.abs(np.asarray(ours.image, np.int16) - np.asarray(theirs.image, np.int16)).max() <= 1
    assert [picture.seed for picture in there] == [2**32 - 1, 0]


@pytest.mark.slow
def test_what_is_wrong_with_a_model_is_told_as_it_is_here(tiny_model: Path, tmp_path: Path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"model_index\.json can't be read") as told:
        drawn(Child().draw, Weights(str(tmp_path)))
    assert told.value.hint
    with pytest.raises(ConfigError, match="The prompt is empty"):
        drawn(Child().draw, Weights(str(tiny_model)), prompt=" ")


@pytest.mark.attack
def test_the_checker_that_is_given_looks_and_what_it_flags_is_held_back(tiny_model: Path, tmp_path: Path):
    weights = Weights(str(tiny_model), checker=str(safety_checker(tmp_path / "checker")))
    assert str(tmp_path / "checker") in weights.folders
    _, passed = drawn(draw, weights, 1)
    strict = safety_checker(tmp_path / "strict", thresholds=-9)
    _, held = drawn(draw, weights._replace(checker=str(strict)), 1)
    assert not passed[0].problem
    assert held[0].problem == "held back by the model's safety checker"
    assert not np.asarray(held[0].image).any()


@pytest.mark.attack
def test_the_child_knows_no_token_and_finds_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OAUTH_CLIENT_SECRET", "hf_secret")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("hf_secret")
    code = """
from huggingface_hub import get_token
found = json.dumps(dict(os.environ)) + str(get_token()) + os.getcwd()
send('error', ['RunError', 'found' if 'secret' in found else 'clean', os.environ['HOME']])
"""
    acting(code, monkeypatch)
    with pytest.raises(RunError, match=r"^clean ") as told:
        drawn(Child().draw, Weights(str(tmp_path)))
    assert not Path(told.value.hint).exists(), "its folder is gone"


ENDS = {
    "killed": ("os.kill(os.getpid(), 9)", r"its process ended \(signal 9\)"),
    "aborted": ("os.abort()", "its process ended .signal 6"),
    "silent end": ("send('step', [1, 2])", r"its process ended \("),
    "no header": ("out.write(b'\\xff' * 99); out.flush()", "its process ended"),
    "no message": ("send('step', {'a': 1})", "its process ended"),
    "a pickle": ("import pickle; out.write(pickle.dumps(print)); out.flush()", "its process ended"),
    "too few pictures": ("send('pictures', []); send('end', [])", "its process ended"),
    "a huge picture": ("send('pictures', [[10**6, 10**6, '', 'no']] * 2); send('end', [])", "its process ended"),
    "cut pictures": ("send('pictures', [[8, 8, '', 'no']] * 2, b'x'); send('end', [])", "its process ended"),
    "an early end": ("send('end', [])", "its process ended"),
    "another error": ("send('error', ['SystemExit', 'x' * 9999, 'y'])", "^x{500} y"),
}


@pytest.mark.attack
@pytest.mark.parametrize("end", ENDS)
def test_whatever_ends_the_child_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str):
    code, words = ENDS[end]
    acting(code, monkeypatch)
    with pytest.raises(RunError, match=words) as told:
        drawn(Child().draw, Weights(str(tmp_path)))
    assert told.value.hint


@pytest.mark.attack
@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        (
            {"WORKING_MEMORY": 10**8, "LEAST_MEMORY": 0, "PER_FILE_BYTE": 0},
            "x = b'1' * 2**29; import time; time.sleep(600)",
            "it took more than the 0 GB",
        ),
        (
            {"WORKING_MEMORY": 10**8, "LEAST_MEMORY": 0, "PER_FILE_BYTE": 0},
            "import subprocess; "
            "subprocess.run([sys.executable, '-c', 'x = b\"1\" * 2**29; import time; time.sleep(60)'])",
            "it took more than the 0 GB",
        ),
        ({"SILENCE": 1}, "import time; time.sleep(600)", "nothing was heard of it for 1 seconds"),
        (
            {"LONGEST": 1},
            "import time\nwhile True: send('step', [0, 1]); time.sleep(0.01)",
            "it took more than 0 minutes",
        ),
    ],
)
def test_a_child_that_takes_too_much_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limits, code, words):
    for name, value in limits.items():
        monkeypatch.setattr(apart, name, value)
    monkeypatch.setattr(apart, "available_memory", lambda device: 2**40)
    acting(code, monkeypatch)
    with pytest.raises(RunError, match=f"The drawing was stopped: {words}"):
        drawn(Child().draw, Weights(str(tmp_path)))


@pytest.mark.slow
@pytest.mark.attack
def test_the_child_limits_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Where the system does: files, memory and processor time, before anything of the model is read."""
    code = """
from dreambooth import apart
import resource as r
apart._limit(asked['memory'], 7)
kinds = (r.RLIMIT_FSIZE, r.RLIMIT_CORE, r.RLIMIT_CPU, r.RLIMIT_DATA)
try:
    open('x', 'wb').write(bytes(2**25))
    wrote = 'wrote'
except OSError:
    wrote = 'refused'
try:
    bytearray(asked['memory'] * 2)
    took = 'took'
except MemoryError:
    took = 'refused'
send('error', ['RunError', f'{wrote} {took} ' + str([r.getrlimit(kind)[1] for kind in kinds]), 'x'])
"""
    acting(code, monkeypatch)
    monkeypatch.setattr(apart, "available_memory", lambda device: 4 * 2**30)
    with pytest.raises(RunError) as told:
        drawn(Child().draw, Weights(str(tmp_path)))
    said = told.value.message
    limits = [apart.MOST_FILE, 0, 7 * os.cpu_count(), 4 * 2**30 + apart.LEAST_MEMORY]
    assert said == f"refused refused {limits}" if sys.platform == "linux" else said.startswith("refused ")


def test_where_next_to_no_memory_is_free_it_does_not_begin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(apart, "available_memory", lambda device: 10**9)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(RunError, match=r"1\.0 GB of memory are free, too little to draw with a stranger's model"):
        drawn(Child().draw, Weights(str(tmp_path)))


def test_a_child_that_is_stopped_ends_at_once_and_silently(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    acting("import time; send('step', [os.getpid(), 1]); time.sleep(600)", monkeypatch)
    child, started, pids = Child(), threading.Event(), []
    asked = [Order(Weights(str(tmp_path)), "a dog", 0, 1)], QUICK, "", False
    work = threading.Thread(target=lambda: child.draw(*asked, lambda step: (pids.append(step.done), started.set())))
    work.start()
    assert started.wait(60)
    child.end()
    work.join(60)
    assert not work.is_alive()
    assert not psutil.pid_exists(pids[0])
    child.draw(*asked, pytest.fail)  # not begun any more
    child.end()


def test_what_is_sent_is_received():
    stream = io.BytesIO()
    picture = Image.new("RGB", (3, 2), "red")
    apart._send(stream, "step", (1, 2))
    apart._send(stream, "pictures", [(3, 2, "", "no")], [picture.tobytes()])
    apart._send(stream, "end", [])
    stream.seek(0)
    assert apart._receive(stream, 1) == ("step", (1, 2))
    kind, [(image, *words)] = apart._receive(stream, 1)
    assert (kind, image.tobytes(), words) == ("pictures", picture.tobytes(), ["", "no"])
    assert apart._receive(stream, 0) == ("end", [])
    assert apart._receive(stream, 0) is None


@pytest.mark.attack
def test_no_more_pictures_are_read_than_were_asked_for():
    stream = io.BytesIO()
    apart._send(stream, "pictures", [(2, 2, "", "no")] * 3, [bytes(12)] * 3)
    stream.seek(0)
    assert apart._receive(stream, 2) is None
    assert len(stream.read()) == 3 * 12, "not one"
    stream.seek(0)
    assert len(apart._receive(stream, 3)[1]) == 3


def test_an_order_is_the_same_behind_json():
    weights = Weights("a", "b", 0.5, (("c", 0.1), ("d", 0.2)), True, "e")
    asked, *rest = json.loads(json.dumps(Order(weights, "p", 1, 2)))
    assert Order(apart._weights(*asked), *rest) == Order(weights, "p", 1, 2)
