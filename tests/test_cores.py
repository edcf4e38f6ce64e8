"""How many threads compute: as many as others leave room for."""

import sys

import pytest
import torch

from dreambooth import cores
from dreambooth.machine import control_groups


class Machine:
    """A machine of `count` cores whose clock, queue and idle cores the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int):
        self.now = self.waited = self.idle = 0.0
        self.threads = count
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(cores, "_last", cores._Last())
        monkeypatch.setattr(cores.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(cores, "_waited", lambda: self.waited)
        monkeypatch.setattr(cores, "_idle", lambda: self.idle)
        monkeypatch.setattr(cores, "usable_cores", lambda: count)
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(self, "threads", n))

    def passes(self, seconds: float, waiting: float = 0.0, idle: float = 0.0) -> int:
        """Time in which threads waited, and cores were idle, these shares of it; the threads afterwards."""
        self.now += seconds
        self.waited += waiting * seconds
        self.idle += idle * seconds
        changed = cores.share_cores()
        assert changed in (None, self.threads)
        return self.threads


@pytest.fixture
def two(monkeypatch):
    machine = Machine(monkeypatch, 2)
    assert machine.passes(1) == 2
    return machine


def test_alone_every_core_is_used(two):
    assert [two.passes(1, waiting=0.02) for _ in range(5)] == [2] * 5


def test_beside_a_busy_program_one_thread_less_waits_and_it_comes_back(two):
    assert two.passes(1, waiting=0.5) == 1
    assert two.passes(1, waiting=0.02, idle=0.0) == 1
    assert two.passes(1, waiting=0.02, idle=0.5) == 1
    assert two.passes(1, waiting=0.02, idle=0.97) == 2


def test_never_fewer_than_one_nor_more_than_there_are(two):
    assert [two.passes(1, waiting=2.0) for _ in range(3)] == [1] * 3
    assert [two.passes(1, idle=8.0) for _ in range(3)] == [2] * 3


def test_many_cores_keep_all_that_are_free(monkeypatch):
    sixteen = Machine(monkeypatch, 16)
    sixteen.passes(1)
    assert sixteen.passes(1, waiting=0.6) == 8
    assert sixteen.passes(1, waiting=0.02, idle=7.0) == 15
    assert sixteen.passes(1, waiting=0.02, idle=0.1) == 15


def test_it_looks_at_most_twice_a_second(two):
    assert two.passes(0.3, waiting=1.0) == 2
    assert two.passes(0.3, waiting=1.0) == 1


def test_a_number_that_the_user_holds_is_kept(two, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert two.passes(1, waiting=1.0) == 2


def test_a_system_that_does_not_tell_who_waits_keeps_pytorchs_number(two, monkeypatch):
    monkeypatch.setattr(cores, "_waited", lambda: None)
    assert [two.passes(1, idle=2.0) for _ in range(3)] == [2] * 3


def test_a_containers_quota_is_known_before_anything_waits(monkeypatch):
    machine = Machine(monkeypatch, 2)
    machine.threads = 16  # what PyTorch takes of a large host
    assert machine.passes(1) == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 64),
        ({}, 64),
    ],
)
def test_quotas_of_control_groups(files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    own = tmp_path / "own"
    own.write_text("4:cpu,cpuacct:/box\n3:memory:/box\n" if any("cfs" in name for name in files) else "0::/box\n")
    monkeypatch.setattr(cores, "control_groups", lambda name, root: control_groups(name, root, own))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.usable_cores(tmp_path) == expected


def test_what_the_system_tells_grows():
    waited, idle = cores._waited(), cores._idle()
    assert 0 < idle <= cores._idle()
    if sys.platform == "linux":
        assert 0 <= waited <= cores._waited()
    else:
        assert waited is None
