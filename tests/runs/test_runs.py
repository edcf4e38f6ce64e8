"""Run directories: what they tell, how a failure is kept, and the worker that trains the queued ones."""

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest
import torch
from safetensors import SafetensorError

from dreambooth import events, machine
from dreambooth.errors import ConfigError, ModelError, PhotoError, RunError
from dreambooth.files import atomic_folder
from dreambooth.runs import directory as runs
from dreambooth.runs.directory import Run, list_runs, runs_root
from dreambooth.runs.worker import Worker
from dreambooth.training.checkpoints import list_checkpoints


@pytest.fixture
def quick(make_config):
    """A function that gives a run's config of two steps without class images."""
    return lambda **changes: make_config(
        prior={"enabled": False}, train={"steps": 2} | changes.pop("train", {}), **changes
    )


def leftovers(folder: Path) -> list[str]:
    """Whatever was written half."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if ".dreambooth-" in p.name or p.suffix == ".tmp"]


def failed(run: Run) -> events.Failed:
    last = run.events()[-1]
    assert isinstance(last, events.Failed)
    return last


def test_while_a_run_trains_others_leave_it_the_memory_that_it_was_estimated_to_need(quick, tmp_path):
    promised, size = {}, None
    for event in Run.create(quick(), tmp_path / "run").execute():
        if isinstance(event, events.Metric) and event.name == "estimated_peak_memory_bytes":
            size = round(event.value)
        promised[type(event)] = machine._promised(torch.device("cpu"))
    assert promised[events.Step] == promised[events.Finished] == size > 0
    assert machine._promised(torch.device("cpu")) == 0


# ---- Making and opening


def test_a_new_run_is_a_folder_with_its_config(make_config, tmp_path):
    config = make_config()
    run = Run.create(config, tmp_path / "deep" / "run")
    assert run.config == config
    assert Run.open(run.path).config == config
    assert run.id == "run"
    assert run.status == "queued"
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml"]


def test_an_unnamed_run_is_named_after_its_subject_under_the_runs_folder(make_config, tmp_path):
    config = make_config(subject={"class_noun": "Toy  Röbot/../x", "identifier": "sks"})
    one, other = Run.create(config), Run.create(config)
    assert one.path.parent == runs_root() == tmp_path / "runs"
    assert one.path != other.path
    assert "-sks-toy-r-bot-x-" in one.id
    assert one.id[:8].isdigit()


def test_an_empty_folder_may_become_a_run_and_nothing_else_that_is_there(make_config, tmp_path):
    (tmp_path / "empty").mkdir()
    assert Run.create(make_config(), tmp_path / "empty").status == "queued"
    (tmp_path / "file").write_text("x")
    for taken in (tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(ConfigError, match=r"is there already and not empty\. Choose another --run-dir"):
            Run.create(make_config(), taken)
    assert (tmp_path / "file").read_text() == "x"


def test_a_run_that_can_not_be_written_is_told(make_config, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"can't be read or written: .*/file is a file. Move it away, or choose another"):
        Run.create(make_config(), tmp_path / "file" / "run")
    with pytest.raises(RunError, match="can't be read or written"):
        Run.create(make_config(), Path("/proc/run"))


def test_what_is_no_run_is_not_opened(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError, match=r"is not a run: no config\.yaml in it"):
            Run.open(path)


def test_the_runs_are_listed_newest_first(make_config, tmp_path):
    made = [Run.create(make_config(), tmp_path / "all" / name) for name in ("b", "a", "c")]
    for age, run in enumerate(made):
        os.utime(run.path / "config.yaml", (1000 + age, 1000 + age))
    (tmp_path / "all" / "no run").mkdir()
    (tmp_path / "all" / "file").write_text("x")
    shutil.copytree(made[0].path, tmp_path / "all" / ".dreambooth-partial-0123abcd-d")
    assert [run.id for run in list_runs(tmp_path / "all")] == ["c", "a", "b"]
    assert list_runs(tmp_path / "none") == []


# ---- Where a run stands


@pytest.mark.parametrize(
    ("happened", "status"),
    [
        ([], "queued"),
        ([events.RunQueued()], "queued"),
        ([events.RunQueued(), events.Stage("prepare")], "interrupted"),
        ([events.Stage("prepare"), events.Finished("model", 1.0)], "finished"),
        ([events.Stage("prepare"), events.Failed("RunError", "no")], "failed"),
        ([events.Stage("train"), events.Cancelled(3)], "cancelled"),
        ([events.Cancelled(3), events.RunQueued()], "queued"),
        ([events.Failed("RunError", "no"), events.Stage("prepare")], "interrupted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_status_follows_from_what_happened(make_config, tmp_path, happened, status):
    run = Run.create(make_config(), tmp_path / "run")
    for event in happened:
        run.append(event)
    assert run.status == Run.open(run.path).status == status


def test_a_run_is_running_while_somebody_trains_it(quick, tmp_path):
    run = Run.create(quick(), tmp_path / "run")
    training = run.execute()
    next(training)
    assert run.status == "running"
    assert Run.open(run.path).status == "running", "seen from elsewhere, too"
    training.close()
    assert run.status == "interrupted"


def test_odd_line_separators_in_a_prompt_break_nothing(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "run")
    odd = events.Image("a.png", "one\u2028two\x85three\x0bfour\r\nfive", 0, 1)
    run.append(odd)
    run.append(events.Finished("model", 1.0))
    assert run.events()[0] == odd
    assert run.status == "finished"


def test_a_damaged_config_is_an_error_of_the_library(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "run")
    (run.path / "config.yaml").write_text("base_model: x\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: 'subject' is missing"):
        Run.open(run.path).config  # noqa: B018


@pytest.mark.parametrize("torn", [b"", b'{"event": "st', b"x" * 10_000], ids=["whole", "torn", "torn-long"])
@pytest.mark.parametrize("words", [1, 4060, 4096, 9000])
@pytest.mark.parametrize("lines", [0, 1, 2, 50])
def test_the_newest_event_is_found_from_the_end(tmp_path, lines, words, torn):
    run = Run(tmp_path)
    for number in range(lines):
        run.append(events.Warning(f"{number} {'é' * words}"))
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(torn)
    assert run.last_event() == (run.events() or [None])[-1]


def test_the_status_of_a_long_run_is_told_by_its_last_line_alone(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "run")
    (run.path / "events.jsonl").write_bytes(b"no event\n" * 1_000_000)
    run.append(events.Finished("model", 1.0))
    with mock.patch.object(events, "from_json", wraps=events.from_json) as read:
        assert run.status == "finished"
    assert read.call_count == 1


LOST = {
    "zeros": bytes(40),
    "half a line": b'{"event": "step", "time": 1.0, "st',
    "no text": b"\xff\xfe\x00{}",
    "another file's": b"PK\x03\x04",
    "a newer version's": b'{"event": "wish", "time": 1.0}',
    "more than is known": b'{"event": "stage", "time": 1.0, "name": "train", "total": 4, "colour": "red"}',
    "of another type": b'{"event": "stage", "time": 1.0, "name": ["train"], "total": "4"}',
    "deep": b"[" * 100_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("line", LOST.values(), ids=LOST)
def test_a_damaged_line_is_lost_and_not_the_run(quick, tmp_path, line):
    run = Run.create(quick(), tmp_path / "run")
    first, last = events.Stage("prepare"), events.Cancelled(0)
    run.append(first)
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(line + b"\n")
    assert (run.last_event(), run.status, run.events()) == (first, "interrupted", [first])
    run.append(last)
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(line + b"\n" + line + b"\n")
    assert (run.last_event(), run.status, run.events()) == (last, "cancelled", [first, last])
    told = [event.message for event in run.execute(resume=True) if isinstance(event, events.Warning)]
    assert [message for message in told if "events.jsonl" in message] == [
        "3 lines of events.jsonl are damaged, or of a newer version, and left out."
    ]
    assert run.status == "finished"


def test_where_a_power_cut_left_zeros_the_next_event_takes_their_place(tmp_path):
    run = Run(tmp_path)
    run.append(events.Stage("prepare"))
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(bytes(4096))
    run.append(events.Cancelled(0))
    assert [type(event) for event in run.events()] == [events.Stage, events.Cancelled]


def test_a_run_of_which_no_line_is_whole_is_interrupted(quick, tmp_path):
    run = Run.create(quick(), tmp_path / "run")
    (run.path / "events.jsonl").write_bytes(bytes(9000) + b"\n")
    assert (run.events(), run.last_event(), run.status, run.moving) == ([], None, "interrupted", False)
    assert isinstance(list(run.execute(resume=True))[-1], events.Finished)


def test_a_run_that_ends_between_two_looks_is_never_interrupted(make_config, tmp_path, monkeypatch):
    run = Run.create(make_config(), tmp_path / "run")
    run.append(events.Stage("save"))

    def end(lock: Path) -> bool:
        run.append(events.Finished("model", 1.0))
        return False

    monkeypatch.setattr(runs, "is_held", end)
    assert run.status == "finished"


def test_a_run_whose_last_line_holds_no_number_was_interrupted(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "run")
    run.append(events.Step(1, math.nan, math.nan, None, 1e-3, 0.1))
    assert run.status == "interrupted"


def test_what_changes_where_a_run_stands_is_on_the_disk_when_it_is_told_and_steps_are_not_waited_for(tmp_path):
    run = Run(tmp_path)
    step = events.Step(1, 0.1, 0.1, None, 1e-3, 0.1)
    with mock.patch.object(os, "fsync", wraps=os.fsync) as waited:
        run.append(events.RunQueued())
        assert waited.call_count == 2, "the file and its name"
        for event in (step, events.Progress(1), step):
            run.append(event)
        assert waited.call_count == 2
        for number, event in enumerate((events.Checkpoint("a", 1), events.Cancelled(1), events.Finished("model", 1.0))):
            run.append(event)
            assert waited.call_count == 3 + number


def test_a_run_began_when_it_was_asked_for_whatever_its_folder_is_called(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "my best")
    os.utime(run.path / "config.yaml", (5, 5))
    assert run.began == 5
    (run.path / "events.jsonl").write_bytes(bytes(10) + b"\n")
    run.append(events.RunQueued(time=7.5))
    run.append(events.Stage("prepare", time=9.0))
    assert run.began == 7.5


def test_many_looks_at_once_do_not_pass_for_a_training(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "run")
    run.append(events.Stage("train"))
    (run.path / ".lock").touch()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: run.status, range(100))) == {"interrupted"}


def test_a_published_run_is_known_by_its_file(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "run")
    assert not run.published
    (run.path / "published.json").write_text("{}")
    assert run.published


def test_the_size_of_a_run_leaves_out_the_shared_class_images(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "run")
    before = run.size
    assert before == (run.path / "config.yaml").stat().st_size
    (run.path / "deep").mkdir()
    (run.path / "deep" / "file").write_bytes(bytes(1000))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_bytes(bytes(100_000))
    (run.path / "class_images").symlink_to(tmp_path / "shared", target_is_directory=True)
    assert before + 1000 <= run.size < before + 2000
    assert Run(tmp_path / "none").size == 0


# ---- Deleting


def test_a_run_that_waits_or_trains_is_not_deleted(quick, tmp_path):
    run = Run.create(quick(), tmp_path / "run")
    run.append(events.RunQueued())
    training = run.execute()
    for _ in range(2):
        with pytest.raises(RunError, match=r"waits or trains\. Stop it"):
            run.delete()
        assert run.config
        next(training)
    training.close()
    run.delete()
    assert list(tmp_path.glob("run*")) == list(tmp_path.glob(".run*")) == []
    run.delete()  # twice: nothing happens
    assert not run.path.exists(), "nor does a look make it again"


def test_a_run_with_damaged_events_can_be_deleted(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "run")
    (run.path / "events.jsonl").write_bytes(bytes(100) + b"\n")
    run.delete()
    assert not run.path.exists()


def test_the_runs_can_be_listed_while_some_are_deleted(make_config, tmp_path):
    config = make_config()
    runs = [Run.create(config, tmp_path / f"{number:03d}") for number in range(60)]
    for run in runs:
        run.append(events.Finished("model", 1.0))
    with ThreadPoolExecutor(4) as pool:
        deleting = [pool.submit(run.delete) for run in runs]
        while not all(job.done() for job in deleting):
            assert {run.status for run in list_runs(tmp_path)} <= {"finished", "queued"}
    assert [job.exception() for job in deleting] == [None] * 60
    assert list(tmp_path.iterdir()) == []


# ---- Failures


def test_a_failure_is_kept_in_the_run_and_can_be_put_right(quick, tmp_path, photo_folder):
    photos = tmp_path / "photos"
    run = Run.create(quick(subject={"photos": str(photos)}), tmp_path / "run")
    with pytest.raises(PhotoError, match="photos is not there"):
        list(run.execute())
    last = failed(run)
    assert (last.kind, run.status) == ("PhotoError", "failed")
    assert "photos is not there" in last.message
    assert "Give the folder" in last.hint
    assert not (run.path / "photos").exists()
    assert not (run.path / "model").exists()
    shutil.copytree(photo_folder, photos)
    assert isinstance(list(run.execute(resume=True))[-1], events.Finished)
    assert run.status == "finished"


def no_space(*_arguments, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_for_safetensors(*_arguments, **_options):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def no_space_for_copies(*_arguments, **_options):
    raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writer", "fail", "said"),
    [
        ("torch.save", no_space, "The disk is full. Free some space, then go on with --resume."),
        ("PIL.Image.Image.save", no_space, "The disk is full. Free some space, then go on with --resume."),
        ("shutil.copytree", no_space_for_copies, "The disk is full."),
        ("dreambooth.methods.full.save_file", no_space_for_safetensors, "The disk is full."),
    ],
    ids=["checkpoint", "photos", "copies", "weights"],
)
def test_a_full_disk_is_told_and_leaves_nothing_half_written(quick, tmp_path, monkeypatch, writer, fail, said):
    run = Run.create(quick(train={"steps": 2, "checkpoint_every": 1}), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(writer, fail)
        with pytest.raises(RunError) as caught:
            list(run.execute())
    assert said in str(caught.value)
    assert f"{failed(run).message} {failed(run).hint}" == str(caught.value)
    assert leftovers(run.path) == []
    assert not (run.path / "model").exists()
    if writer == "dreambooth.methods.full.save_file":  # there is room again
        assert isinstance(list(run.execute(resume=True))[-1], events.Finished)


def test_events_that_can_not_be_written_are_told(quick, tmp_path):
    run = Run.create(quick(), tmp_path / "run")
    (run.path / "events.jsonl").mkdir()
    with pytest.raises(
        RunError, match=r"events\.jsonl can't be read or written \(Is a directory\)\. A folder is where"
    ):
        list(run.execute())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), r"The memory ran out. Lower train.batch_size"),
        (MemoryError(), "The memory ran out"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            "memory ran out",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            r"/x can't be read or written .*Get the right to it",
        ),
        (OSError("image file is truncated"), "A file is damaged or of another kind: image file is truncated"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_machine_lacks_is_said_in_plain_words(quick, tmp_path, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    run = Run.create(quick(), tmp_path / "run")
    monkeypatch.setattr(torch.cuda, "is_available", fail)  # wherever it comes from: this is the first thing asked
    with pytest.raises(RunError, match=words):
        list(run.execute())
    assert failed(run).kind == "RunError"


def test_a_bug_is_raised_as_it_is_and_does_not_pass_for_an_interruption(quick, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a bug")

    run = Run.create(quick(), tmp_path / "run")
    monkeypatch.setattr(torch.cuda, "is_available", fail)  # wherever it comes from: this is the first thing asked
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(run.execute())
    assert "ZeroDivisionError: a bug" in failed(run).message


def test_half_a_line_of_a_killed_process_does_not_spoil_the_next_events(quick, tmp_path):
    run = Run.create(quick(base_model="none"), tmp_path / "run")
    run.append(events.Stage("prepare"))
    for _ in range(2):  # before it is queued again, and before it trains
        with (run.path / "events.jsonl").open("a") as file:
            file.write('{"event": "step", "st')
        run.append(events.RunQueued())
    with pytest.raises(ModelError):
        list(run.execute(resume=True))
    assert [type(event) for event in run.events()][:4] == [events.Stage, *[events.RunQueued] * 2, events.Stage]
    assert run.status == "failed"


def test_what_a_killed_process_had_half_written_is_removed(quick, tmp_path):
    run = Run.create(quick(), tmp_path / "run")
    for name in ("partial-0123abcd-photos", "partial-0123abcd-model"):
        (run.path / f".dreambooth-{name}").mkdir()
    for name in ("checkpoints/.dreambooth-partial-0123abcd-step-000001", "samples/.dreambooth-old-0123abcd-old"):
        (run.path / name).mkdir(parents=True)
        (run.path / name / "state.pt").write_bytes(b"half")
    assert isinstance(list(run.execute(resume=True))[-1], events.Finished)
    assert leftovers(run.path) == []
    assert not list(run.path.glob(".*.old"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prepare", "class images", "encode", "train", "save"])
def test_a_run_cut_off_in_any_stage_can_be_resumed(make_config, tmp_path, stage):
    run = Run.create(make_config(prior={"batch_size": 1}, train={"steps": 3}), tmp_path / "run")
    training = run.execute(resume=True)
    for event in training:
        if isinstance(event, events.Stage) and event.name == stage:
            break
    if stage in ("class images", "train"):
        next(training)
    training.close()
    assert run.status == "interrupted"
    assert isinstance(list(run.execute(resume=True))[-1], events.Finished)
    assert leftovers(run.path) == []


# ---- The worker


HAPPENED = threading.Condition()


class Watched(Run):
    """A run that wakes whoever waits when something happens to it."""

    def append(self, event):
        super().append(event)
        with HAPPENED:
            HAPPENED.notify_all()


class Held(Watched):
    """A run that stays at each step, with the worker's thread, until it is let go."""

    let_go: ClassVar[dict[Path, threading.Event]] = {}

    def append(self, event):
        super().append(event)
        if isinstance(event, events.Step):
            assert self.let_go[self.path].wait(300)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def made(quick, root):
    """A function that makes a run of that name."""

    def make(name, kind=Watched, **changes):
        Held.let_go[root / name] = threading.Event()
        return kind.create(quick(**changes), root / name)

    return make


def wait_for(condition, what: str) -> None:
    """Until the worker's thread has got there, or five minutes have passed."""
    with HAPPENED:
        assert HAPPENED.wait_for(condition, timeout=300), what


def ended(run: Run) -> bool:
    return run.status in ("finished", "failed", "cancelled")


def steps(run: Run) -> list[int]:
    return [event.step for event in run.events() if isinstance(event, events.Step)]


def count(run: Run, kind: type[events.Event]) -> int:
    return sum(isinstance(event, kind) for event in run.events())


class Ended:
    """What a worker tells of runs that ended."""

    def __init__(self):
        self.ids: list[str] = []

    def __call__(self, run: Run) -> None:
        with HAPPENED:
            self.ids.append(run.id)
            HAPPENED.notify_all()


def test_the_worker_trains_queued_runs_one_after_the_other(made, root):
    first, second = made("1"), made("2", seed=2)
    worker = Worker(root)
    worker.submit(first)
    worker.submit(second)
    assert second.status == "queued"
    wait_for(lambda: ended(first) and ended(second), "the runs have not ended")
    assert (first.status, second.status) == ("finished", "finished")
    assert first.events()[-1].time <= second.events()[1].time, "one at a time, in order"
    assert isinstance(first.events()[0], events.RunQueued)


def test_a_running_and_a_waiting_run_can_be_stopped_and_resumed(made, root):
    long = made("long", train={"steps": 100_000, "checkpoint_every": 100_000})
    waiting = made("waiting")
    worker = Worker(root)
    worker.submit(long)
    worker.submit(waiting)
    wait_for(lambda: steps(long), "it takes no step")
    worker.stop(waiting)
    assert (waiting.status, long.status) == ("cancelled", "running"), "at once"
    assert (waiting.events()[-1].step, worker.position(waiting)) == (0, None)
    worker.stop(long)
    wait_for(lambda: ended(long), "it has not stopped")
    assert long.status == "cancelled"
    stopped = long.events()[-1].step
    assert list_checkpoints(long.path / "checkpoints")[-1].name == f"step-{stopped:06d}"
    worker.submit(waiting)
    wait_for(lambda: waiting.status == "finished", "it did not go on")
    worker.stop(waiting)  # a run that is over: nothing happens
    assert waiting.status == "finished"


def test_a_worker_that_is_closed_leaves_a_checkpoint_and_starts_no_other(made, root):
    long, waiting = made("long", train={"steps": 100_000, "checkpoint_every": 100_000}), made("waiting")
    worker = Worker(root)
    worker.submit(long)
    worker.submit(waiting)
    wait_for(lambda: steps(long), "it takes no step")
    worker.close(60)
    assert (long.status, waiting.status) == ("cancelled", "queued")
    assert list_checkpoints(long.path / "checkpoints")[-1].name == f"step-{long.events()[-1].step:06d}"


def test_a_stopped_run_goes_on_from_its_step(made, root):
    run = made("run", Held, train={"steps": 5, "checkpoint_every": 100})
    worker = Worker(root)
    worker.submit(run)
    wait_for(lambda: steps(run), "it takes no step")
    worker.stop(run)
    Held.let_go[run.path].set()
    wait_for(lambda: ended(run), "it has not stopped")
    worker.submit(run)
    wait_for(lambda: run.status == "finished", "it did not go on")
    assert steps(run) == [1, 2, 3, 4, 5]


def test_a_run_that_fails_does_not_hold_up_the_next(made, root):
    """A refusal, a damaged config and a bug among them."""
    refused, broken, good = made("refused", base_model="none"), made("broken"), made("good")
    (broken.path / "config.yaml").write_text("train: [")

    class Buggy(Watched):
        def append(self, event):
            if isinstance(event, events.Stage):
                raise ZeroDivisionError("a bug")
            super().append(event)

    def after(run):
        raise ZeroDivisionError("another")

    worker = Worker(root, after_run=after)
    for run in (refused, broken, Buggy(made("buggy").path), good):
        worker.submit(run)
    wait_for(lambda: ended(good), "the worker has stopped")
    assert good.status == "finished"
    assert (refused.status, broken.status) == ("failed", "failed")


def test_a_waiting_run_knows_its_place_and_when_it_starts(made, root):
    first, *others = made("0", Held, train={"steps": 4}), *(made(str(number)) for number in range(1, 4))
    worker = Worker(root)
    worker.submit(first)
    wait_for(lambda: steps(first), "it takes no step")
    for run, seconds in zip(others, (100, None, 300), strict=True):
        worker.submit(run, seconds)
    worker.submit(others[0])  # again: it keeps its place
    assert [worker.position(run) for run in (first, *others)] == [None, 1, 2, 3]
    assert worker.waiting == 3
    estimate = next(e.value for e in first.events() if isinstance(e, events.Metric) and "seconds" in e.name)
    began = worker.seconds_until_start(others[0])
    assert 0 <= began <= estimate
    assert began <= worker.seconds_until_start(others[1]) - 90 <= estimate + 100
    assert worker.seconds_until_start(others[2]) is None, "the one before it is of unknown length"
    assert worker.seconds_until_start(first) is None, "it has begun"
    worker.stop(others[1])
    assert [worker.position(run) for run in others] == [1, None, 2]
    assert worker.seconds_until_start(others[2]) >= 90
    for run in others:
        worker.stop(run)
    Held.let_go[first.path].set()
    wait_for(lambda: ended(first), "it has not ended")
    assert worker.waiting == 0


def test_a_run_is_not_queued_twice_nor_while_it_trains(made, root):
    run, waiting = made("run", Held), made("waiting")
    worker = Worker(root)
    worker.submit(run)
    wait_for(lambda: steps(run), "it takes no step")
    with pytest.raises(RunError, match="is running"):
        worker.submit(run)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(worker.submit, [waiting] * 20))
    assert (count(run, events.RunQueued), count(waiting, events.RunQueued), worker.waiting) == (1, 1, 1)
    Held.let_go[run.path].set()
    wait_for(lambda: ended(waiting), "it has not ended")
    assert (count(run, events.Finished), count(waiting, events.Finished)) == (1, 1)


@pytest.mark.slow
def test_runs_trained_side_by_side_come_out_as_alone(made, root):
    alone, *both = (
        made(name, kind, train={"steps": 3, "mixed_precision": precision})
        for name, kind, precision in (("alone", Watched, "no"), ("like", Held, "no"), ("other", Held, "bf16"))
    )
    list(alone.execute())
    worker = Worker(root, parallel=2)
    for run in both:
        worker.submit(run)
    wait_for(lambda: all(map(steps, both)), "they do not run side by side")
    for run in both:
        Held.let_go[run.path].set()
    wait_for(lambda: all(map(ended, both)), "they have not ended")
    assert [run.status for run in both] == ["finished", "finished"]
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    expected, like, other = ((run.path / weights).read_bytes() for run in (alone, *both))
    assert expected == like != other


def test_a_run_trains_no_longer_than_the_limit_at_a_time(made, root):
    run = made("run", train={"steps": 50})
    Worker(root, max_seconds=1e-6).submit(run)
    wait_for(lambda: ended(run), "it has not ended")
    assert run.status == "cancelled"
    assert [e.message for e in run.events() if isinstance(e, events.Warning) and "limit" in e.message]
    assert not steps(run), "it was over when the pictures were being encoded"


# ---- The worker after a crash


@pytest.mark.slow
def test_a_new_worker_goes_on_with_what_waits_in_the_order_of_asking(made, root):
    asked = {name: made(name) for name in ("b", "a", "c")}
    for number, run in enumerate(asked.values()):
        run.append(events.RunQueued(time=1000.0 + number))
    by_hand, stopped, damaged = made("by-hand"), made("stopped"), made("damaged")
    stopped.append(events.Cancelled(0))
    (damaged.path / "events.jsonl").write_bytes(bytes(10) + b"\n")
    for leftover in (".dreambooth-deleted-0123abcd-x", ".dreambooth-partial-0123abcd-old", ".of somebody.deleted"):
        (root / leftover).mkdir()
    after = Ended()
    with atomic_folder(root / "new") as new:
        Worker(root, after_run=after)
        assert new.is_dir(), "another process may be making it"
    wait_for(lambda: len(after.ids) == 3, "they have not ended")
    assert after.ids == ["b", "a", "c"]
    assert {run.status for run in asked.values()} == {"finished"}
    assert (by_hand.events(), stopped.status) == ([], "cancelled")
    assert [path.name for path in root.glob(".*")] == [".of somebody.deleted"], "not of ours"


@pytest.mark.slow
def test_two_workers_do_not_train_a_run_twice(made, root):
    runs = [made(str(number)) for number in range(3)]
    for run in runs:
        run.append(events.RunQueued())
    workers = [Worker(root, after_run=Ended()) for _ in range(2)]
    wait_for(lambda: all(map(ended, runs)) and not any(w.waiting for w in workers), "they have not ended")
    for run in runs:
        assert (count(run, events.Finished), count(run, events.Failed)) == (1, 0)


def test_a_run_that_another_process_trains_is_left_to_it(made, root):
    run = made("run")
    training = run.execute()
    next(training)
    waiting = made("waiting")
    waiting.append(events.RunQueued())
    with pytest.raises(RunError, match="is being trained by another process"):
        Worker(root, parallel=0).stop(run)
    training.close()
    with waiting._held():  # between its turn and its first event
        after = Ended()
        Worker(root, after_run=after)
        wait_for(lambda: after.ids == ["waiting"], "it is not skipped")
        assert count(waiting, events.Failed) == 0


CHILD = """
import sys, threading
from pathlib import Path
from dreambooth import events, machine
from dreambooth.runs.directory import Run
from dreambooth.runs.worker import Worker

class Told(Run):
    def append(self, event):
        super().append(event)
        if isinstance(event, events.Checkpoint):
            print("trains", flush=True)
            threading.Event().wait()

root = Path(sys.argv[1])
worker = Worker(root)
for name in ("first", "b", "c", "a"):
    worker.submit(Told(root / name))
threading.Event().wait()
"""


@pytest.mark.slow
def test_kill_9_while_one_trains_and_three_wait_loses_none(made, root):
    first, *waiting = made("first", train={"steps": 4}), made("b"), made("c"), made("a")
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        giving_up = threading.Timer(300, child.kill)
        giving_up.start()
        assert child.stdout.readline() == "trains\n"
        giving_up.cancel()
        assert (first.status, *(run.status for run in waiting)) == ("running", "queued", "queued", "queued")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert first.status == "interrupted"
    before = steps(first)
    after = Ended()
    worker = Worker(root, after_run=after)
    worker.submit(first)
    wait_for(lambda: len(after.ids) == 4, "they have not ended")
    assert after.ids == ["b", "c", "a", "first"]
    assert {run.status for run in (first, *waiting)} == {"finished"}
    assert before[:2] == [1, 2], "the checkpoint is written while it trains on"
    assert steps(first)[len(before) :] == [3, 4], "it went on from its checkpoint"
