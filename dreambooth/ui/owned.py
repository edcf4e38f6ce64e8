"""Whose run is whose, which can still be read, and which were trained beside each other."""

from __future__ import annotations

import contextlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from dreambooth.errors import ConfigError, RunError
from dreambooth.runs.directory import Run, list_runs
from dreambooth.runs.owners import checked_owner, mark, mark_of

DAMAGED = (
    "This run is damaged: its settings can't be read.",
    "Another version made it, or the disk failed. All that can be done with it is to delete it.",
)
"""What is said of a run whose `config.yaml` is lost or damaged."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()-]{0,99}")  # ours, and what people call a copy


@dataclass(frozen=True)
class OwnedRuns:
    """The runs of all visitors, each of whom sees and opens their own."""

    root: Path

    def own_run(self, owner: str, run_id: str | None) -> Run:
        """The run of that id if it is this visitor's; raises `RunError` that does not tell whether it exists, and for a
        damaged one of theirs."""
        run = self.any_own_run(owner, run_id)
        if not is_readable(run):  # in words of our own: the reason names the file's path
            raise RunError(*DAMAGED)
        return run

    def own_runs(self, owner: str) -> list[Run]:
        """This visitor's runs, newest first, without the damaged ones."""
        owner = checked_owner(owner)
        return [run for run in list_runs(self.root) if self._is_own(run.id, owner) and is_readable(run)]

    def damaged_runs(self, owner: str) -> list[Run]:
        """This visitor's runs whose settings are lost, damaged or another version's; they can only be deleted."""
        owner = checked_owner(owner)
        own = [Run(path) for path in sorted(self.root.glob("[!.]*"), reverse=True) if self._is_own(path.name, owner)]
        return [run for run in own if not is_readable(run)]

    def is_damaged(self, owner: str, run_id: str | None) -> bool:
        """Whether this is one of the visitor's `damaged_runs`."""
        with contextlib.suppress(RunError):
            return not is_readable(self.any_own_run(owner, run_id))
        return False

    def any_own_run(self, owner: str, run_id: str | None) -> Run:
        """As `own_run`, but also one that is damaged."""
        owner = checked_owner(owner)
        if isinstance(run_id, str) and self._is_own(run_id, owner):
            return Run(self.root / run_id)
        raise RunError("You have no such run.", "Choose one from the list, or train one first.")

    def _is_own(self, run_id: str, owner: str) -> bool:
        return _RUN_ID.fullmatch(run_id) is not None and is_owned(self.root / run_id, owner)

    def partner(self, run: Run) -> Run | None:
        """The other run of a pair that was trained both ways, while it is there; of several the first."""
        return next(iter(self.partners(run)), None)

    def finished_partner(self, run: Run) -> Run | None:
        """The first finished of the runs that were trained beside this one: its card shows it."""
        return next((other for other in self.partners(run) if other.status == "finished"), None)

    def partners(self, run: Run) -> list[Run]:
        """The runs that were trained beside this one and differ in their condition alone, while they are there."""
        others = [Run(self.root / name) for name in _partners_of(run) if _RUN_ID.fullmatch(name)]
        own = mark_of(run.path)
        return [
            other
            for other in others
            if run.id in _partners_of(other)
            and is_readable(other)
            and own
            and hmac.compare_digest(own, mark_of(other.path))
        ]


def is_owned(path: Path, owner: str) -> bool:
    """Whether the run in this folder is that visitor's."""
    return hmac.compare_digest(mark_of(path), mark(owner))


def is_readable(run: Run) -> bool:
    """Whether its settings can be read."""
    try:
        return bool(run.config)
    except ConfigError:
        return False


def _partners_of(run: Run) -> list[str]:
    """The ids in a run's `partner`, one a line."""
    try:
        return (run.path / "partner").read_text("utf-8", "replace").split()
    except (FileNotFoundError, NotADirectoryError):
        return []
