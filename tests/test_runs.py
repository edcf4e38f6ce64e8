"""Run directories: what they tell, how a failure is kept, and the worker that trains queued runs one at a time."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from dreambooth import events
from dreambooth.checkpoints import list_checkpoints
from dreambooth.errors import ConfigError, ModelError, PhotoError, RunError
from dreambooth.runs import Run, Worker, list_runs, runs_root


@pytest.fixture
def quick(make_config):
    """A function that gives a run's config of two steps without class images."""
    return lambda **changes: make_config(
        prior={"enabled": False}, train={"steps": 2} | changes.pop("train", {}), **changes
    )


def leftovers(folder: Path) -> list[str]:
    """Whatever was written half."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if ".partial" in p.name or p.name.endswith(".tmp")]


def failed(run: Run) -> events.Failed:
    last = run.events()[-1]
    assert isinstance(last, events.Failed)
    return last


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
    with pytest.raises(RunError, match=r"can't be written \(Not a directory\). Choose a folder"):
        Run.create(make_config(), tmp_path / "file" / "run")
    with pytest.raises(RunError, match="can't be written"):
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


@pytest.mark.parametrize(
    ("writer", "fail", "said"),
    [
        ("torch.save", no_space, "The disk is full. Free some space, then go on with --resume."),
        ("PIL.Image.Image.save", no_space, "can't be written (No space left on device). Free some space"),
        ("shutil.copytree", no_space_for_copies, "The disk is full."),
        ("dreambooth.methods.full.save_file", no_space_for_safetensors, "The disk is full."),
    ],
    ids=["checkpoint", "photos", "copies", "weights"],
)
def test_a_full_disk_is_told_and_leaves_nothing_half_written(quick, tmp_path, monkeypatch, writer, fail, said):
    run = Run.create(quick(), tmp_path / "run")
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
    with pytest.raises(RunError, match=r"A file can't be read or written: .*events\.jsonl"):
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
        (PermissionError(errno.EACCES, "Permission denied", "/x"), r"A file can't be read or written: .*'/x'"),
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
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    with pytest.raises(ModelError):
        list(run.execute(resume=True))
    assert [type(event) for event in run.events()][:2] == [events.Stage, events.Stage]
    assert run.status == "failed"


# ---- The worker


HAPPENED = threading.Condition()


class Watched(Run):
    """A run that wakes whoever waits when something happens to it."""

    def append(self, event):
        super().append(event)
        with HAPPENED:
            HAPPENED.notify_all()


def wait_for(condition, what: str) -> None:
    """Until the worker's thread has got there, or a minute has passed."""
    with HAPPENED:
        assert HAPPENED.wait_for(condition, timeout=60), what


def ended(run: Run) -> bool:
    return run.status in ("finished", "failed", "cancelled")


def test_the_worker_trains_queued_runs_one_after_the_other(quick, tmp_path):
    first, second = (Watched.create(quick(seed=seed), tmp_path / str(seed)) for seed in (1, 2))
    worker = Worker()
    worker.submit(first)
    worker.submit(second)
    assert second.status == "queued"
    wait_for(lambda: ended(first) and ended(second), "the runs have not ended")
    assert (first.status, second.status) == ("finished", "finished")
    assert first.events()[-1].time <= second.events()[1].time, "one at a time, in order"
    assert isinstance(first.events()[0], events.RunQueued)


def test_a_running_and_a_waiting_run_can_be_stopped_and_resumed(quick, tmp_path):
    long = Watched.create(quick(train={"steps": 100_000, "checkpoint_every": 100_000}), tmp_path / "long")
    waiting = Watched.create(quick(), tmp_path / "waiting")
    worker = Worker()
    worker.submit(long)
    worker.submit(waiting)
    wait_for(lambda: any(isinstance(event, events.Step) for event in long.events()), "it takes no step")
    worker.stop(waiting)
    worker.stop(long)
    wait_for(lambda: ended(long) and ended(waiting), "they have not stopped")
    assert (long.status, waiting.status) == ("cancelled", "cancelled")
    assert waiting.events()[-1].step == 0
    stopped = long.events()[-1].step
    assert list_checkpoints(long.path / "checkpoints")[-1].name == f"step-{stopped:06d}"
    worker.submit(waiting, resume=True)
    wait_for(lambda: waiting.status == "finished", "it did not go on")
    worker.stop(waiting)  # a run that is over: nothing happens
    assert waiting.status == "finished"


def test_a_run_that_fails_does_not_hold_up_the_next(quick, tmp_path):
    """A refusal, twice queued, a damaged config and a bug among them."""
    refused = Watched.create(quick(base_model="none"), tmp_path / "refused")
    broken, buggy, good = (Watched.create(quick(), tmp_path / name) for name in ("broken", "buggy", "good"))
    (broken.path / "config.yaml").write_text("train: [")

    class Buggy(Watched):
        def execute(self, **_):
            raise ZeroDivisionError("a bug")

    worker = Worker()
    for run in (refused, refused, broken, Buggy(buggy.path), good):
        worker.submit(run)
    wait_for(lambda: ended(good), "the worker has stopped")
    assert good.status == "finished"
    assert (refused.status, broken.status) == ("failed", "failed")
    assert sum(isinstance(event, events.Failed) for event in refused.events()) == 2
