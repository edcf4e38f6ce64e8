"""How many threads compute, so that they do not wait for each other where the machine is not theirs alone.

PyTorch gives each operation to as many OpenMP threads as there are cores, and an operation ends with the last of them.
Where something else keeps a core busy (the page, a visitor's drawing, another program), one of them waits for its turn,
some milliseconds in each of a step's thousands of operations. Fewer threads do more then: see `python -m
benchmarks.company`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from dreambooth.machine import control_groups

LOOK = 0.5
"""Seconds from one look to the next. A look takes 0.5 ms (measured)."""
WAITED = 0.2
"""From this share of the time on that our threads waited for a core, there are too many of them. Alone on two cores
they waited for 0.01 of it, beside one busy program for 0.5 and more (measured)."""
IDLE = 0.9
"""From this share of a core on that nobody used, there is room for another thread."""


def usable_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may keep busy: by its affinity, and by the quotas of the control groups it is in."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([affinity, *_quotas(groups)])))


def _quotas(root: Path) -> Iterator[float]:
    """Cores by each CPU limit of the control groups (containers) this process is in, version 2 or 1."""
    for folder in control_groups("cpu", root):
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        elif (folder / "cpu.cfs_quota_us").is_file():
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        else:
            continue
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)


class _Last(threading.local):
    """What a thread saw when it looked last; OpenMP keeps the helpers of each thread apart, too."""

    time = -LOOK
    waited: float | None = None
    idle: float | None = None


_last = _Last()


def share_cores() -> int | None:
    """Let this thread's next operations use as many threads as others leave room for; for between pieces of work.

    Returns their number where it has changed. `OMP_NUM_THREADS` keeps PyTorch's own; so does a system that does not say
    who waits (all but Linux). Another number adds up sums in another order, so the last bits of results differ.
    """
    now = time.monotonic()
    if now - _last.time < LOOK or "OMP_NUM_THREADS" in os.environ:
        return None
    past, before, unused = now - _last.time, _last.waited, _last.idle
    _last.time, _last.waited, _last.idle = now, _waited(), _idle()
    if _last.waited is None:
        return None
    threads, most = torch.get_num_threads(), usable_cores()
    wanted = min(threads, most)  # PyTorch's own choice knows no quotas
    if before is not None and unused is not None and _last.idle is not None:
        waited, idle = (_last.waited - before) / past, (_last.idle - unused) / past
        if waited > WAITED:
            wanted = max(1, threads // 2)
        elif waited < WAITED / 2 and idle >= IDLE:
            wanted = max(wanted, min(most, threads + int(idle + 1 - IDLE)))
    if wanted == threads:
        return None
    torch.set_num_threads(wanted)
    return wanted


def _waited() -> float | None:
    """Seconds that this process's threads have waited for a core (proc(5): the second number of each `schedstat`)."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return None
    waited = 0
    for task in os.listdir(tasks):
        with contextlib.suppress(OSError, IndexError):  # a thread that has ended meanwhile
            waited += int((tasks / task / "schedstat").read_text().split()[1])
    return waited / 1e9


def _idle() -> float:
    """Seconds that the machine's cores have had nothing to do, added up."""
    times = psutil.cpu_times()
    return times.idle + getattr(times, "iowait", 0.0)
