"""Room on the disk: what runs take and may come to take, and which of them make room for a new one.

A visitor's own runs go first, then those of whoever holds most; none goes for another visitor's sake before it is a day
old, so that nobody loses to a newcomer what they made today.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dreambooth.errors import RunError
from dreambooth.files import shown_size
from dreambooth.runs.directory import Run
from dreambooth.ui import DAY, HOUR
from dreambooth.ui.doors.limits import StudioSettings

OWN_FOR = DAY
"""Seconds for which no run makes room for another visitor's."""


@dataclass(frozen=True)
class Held:
    """What a run takes of the disk, and whose it is."""

    run: Run
    mark: str
    """What the run keeps of its owner's id; empty for one of the command line's."""
    size: int
    """Bytes; while it waits or trains what it may come to take."""
    removable: bool

    @property
    def last(self) -> float:
        """When something last happened to it, in seconds since the epoch."""
        try:
            return (self.run.path / "events.jsonl").stat().st_mtime
        except FileNotFoundError:  # it is being removed
            return time.time()


@dataclass
class Plan:
    """Which runs make room, and why that is not enough where it is not."""

    doomed: list[Held] = field(default_factory=list)
    problem: RunError | None = None

    def left(self, held: Iterable[Held]) -> list[Held]:
        """Those that stay."""
        return [one for one in held if one not in self.doomed]

    def free(self, excess: float, candidates: Iterable[Held]) -> float:
        """Give up the removable ones, in their order, until there is no excess; returns what is left of it, bytes."""
        for one in candidates:
            if excess > 0 and one.removable and one not in self.doomed:
                self.doomed.append(one)
                excess -= one.size
        return excess


def promise(run: Run, size: int) -> None:
    """Note how many bytes a new run may come to take."""
    (run.path / "bytes").write_text(str(size))


def promised(run: Run) -> int:
    """What was noted; 0 where nothing was."""
    try:
        return int((run.path / "bytes").read_text())
    except (OSError, ValueError):
        return 0


def plan(held: Sequence[Held], mark: str, coming: int, new: int, settings: StudioSettings) -> Plan:
    """What makes room for `coming` bytes and `new` runs of the visitor whose runs bear `mark`.

    `held` are all runs, oldest first.
    """
    found, own = Plan(), [one for one in held if one.mark == mark]
    if settings.max_runs is not None and (too_many := len(own) + new - settings.max_runs) > 0:
        found.doomed = [one for one in own if one.removable][:too_many]
        if len(found.doomed) < too_many:
            found.problem = RunError(
                f"You have {len(own)} runs, the most that are kept here, and each waits, trains or is published.",
                "Delete one first.",
            )
    if settings.visitor_gb is not None:
        taken = sum(one.size for one in found.left(own))
        if found.free(taken + coming - settings.visitor_gb * 1e9, own) > 0:
            found.problem = found.problem or RunError(
                f"Your runs take {shown_size(taken)} and this may take {shown_size(coming)} more, of the "
                f"{settings.visitor_gb:g} GB that a visitor has here.",
                "Wait until those that train have ended, or delete one that you no longer need.",
            )
    if settings.disk_gb is not None:
        excess = sum(one.size for one in found.left(held)) + coming - settings.disk_gb * 1e9
        excess = found.free(excess, own)
        while excess > 0 and (oldest := _oldest_of_whoever_holds_most(found.left(held), mark)):
            excess = found.free(excess, [oldest])
        if excess > 0:
            found.problem = found.problem or _full(excess, found.left(held))
    return found


def _oldest_of_whoever_holds_most(held: Sequence[Held], newcomer: str) -> Held | None:
    taken = Counter[str]()
    for one in held:
        taken[one.mark] += one.size
    old = [one for one in held if one.removable and one.mark != newcomer and time.time() - one.last > OWN_FOR]
    return max(old, key=lambda one: (taken[one.mark], -one.last), default=None)


def _full(excess: float, held: Sequence[Held]) -> RunError:
    """What to say where nothing may be removed as yet: when that will be otherwise, as far as can be told."""
    for one in sorted((one for one in held if one.removable), key=lambda one: one.last):
        excess -= one.size
        if excess <= 0:
            hours = max(1, math.ceil((one.last + OWN_FOR - time.time()) / HOUR))
            return RunError(
                "The studio's disk is full with others' runs of this day, each of which is kept for a day.",
                f"Come back in {hours} hour{'' if hours == 1 else 's'}.",
            )
    return RunError(
        "The studio's disk is full with runs that wait, train or are published.",
        "Delete runs of yours that you no longer need, or come back later.",
    )
