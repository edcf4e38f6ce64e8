"""Which runs are let in, and which go to make room: what `limits` and `room` say, of the runs that are there."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dreambooth.errors import RunError
from dreambooth.files import shown_size
from dreambooth.runs.directory import Run, list_runs
from dreambooth.runs.owners import mark, mark_of
from dreambooth.runs.worker import Worker
from dreambooth.sharing.publish import read_state
from dreambooth.training import prior
from dreambooth.ui.doors import lines, room
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.owned import OwnedRuns, is_owned, is_readable
from dreambooth.ui.publishing import Publisher

BEHIND_ONE_ADDRESS = 2
"""Times a visitor's bytes that runs of one address which wait or train may come to take: owners are free to make up,
and what theirs were promised would make room of others' runs."""


@dataclass(frozen=True)
class Admission:
    """The limits of one studio."""

    runs: OwnedRuns
    worker: Worker
    settings: StudioSettings
    publisher: Publisher
    deciding: threading.Lock = field(default_factory=threading.Lock)
    """Held while limits are looked at and what follows is done, so that 20 visitors at once can't pass them."""
    asked_from: dict[str, str] = field(default_factory=dict)
    """The addresses that asked for the runs that wait or train, by their ids, since this process began: owners are free
    to make up, and so would be places in the queue."""

    def asked(self, ids: Iterable[str]) -> None:
        """Note where the runs that are about to wait were asked for."""
        self.asked_from.update(dict.fromkeys(ids, lines.caller()))

    def refuse_too_many(self, owner: str, coming: int, size: int) -> None:
        """Raise `RunError` where so many more, which may come to take `size` bytes, may not wait."""
        each, all_ = self.settings.max_waiting, self.settings.max_queue
        if each is not None:
            moving = sum(run.moving for run in list_runs(self.runs.root) if is_owned(run.path, owner))
            if moving + coming > each:
                wait = "waits or runs" if moving == 1 else "wait or run"
                raise RunError(
                    f"{moving} of your trainings {wait} and this asks for {coming} more; {each} at once are the "
                    "limit here.",
                    "Wait for one to finish, or stop it.",
                )
        if all_ is not None and self.worker.waiting + coming > all_:
            waiting = self.worker.waiting
            wait = "1 training waits" if waiting == 1 else f"{waiting} trainings wait"
            raise RunError(f"The queue is full: {wait}.", "Come back later.")
        if address := lines.caller():
            still = {run: who for run, who in self.asked_from.items() if Run(self.runs.root / run).moving}
            self.asked_from.clear()
            self.asked_from.update(still)
            from_there = [run for run, who in still.items() if who == address]
            if all_ is not None and len(from_there) + coming > max(all_ // 2, each or 0):
                one = "1 training that was asked for from your address waits or runs."
                more = f"{len(from_there)} trainings that were asked for from your address wait or run."
                raise RunError(one if len(from_there) == 1 else more, "Wait for one to finish, or stop it.")
            promised = sum(room.promised(Run(self.runs.root / run)) for run in from_there)
            given = self.settings.visitor_gb
            if given is not None and promised + size > BEHIND_ONE_ADDRESS * given * 1e9:
                raise RunError(
                    f"Trainings that were asked for from your address may come to take {shown_size(promised)}, and "
                    f"this one {shown_size(size)} more; {BEHIND_ONE_ADDRESS * given:g} GB at once are the limit here.",
                    "Wait for one to finish, or stop it.",
                )

    def room_for(self, owner: str, coming: int, new: int, needed: Sequence[Run] = ()) -> list[Run]:
        """The runs that make room for `new` ones of this visitor and `coming` bytes, none of which is `needed`.

        Raises `RunError`, which says what helps, where what must be kept leaves no room.
        """
        found = self._plan(mark(owner), coming, new, needed)
        if found.problem:
            raise found.problem
        return [one.run for one in found.doomed]

    def _plan(self, mark: str, coming: int, new: int, needed: Sequence[Run]) -> room.Plan:
        held = [
            room.Held(
                run,
                mark_of(run.path),
                max(run.size, room.promised(run) * run.moving),
                self.is_removable(run) and run not in needed,
            )
            for run in list_runs(self.runs.root)[::-1]
        ]
        return room.plan(held, mark, coming, new, self.settings)

    def is_removable(self, run: Run) -> bool:
        """Whether clean-up may take it: made here, not published or on its way there, neither waiting nor training."""
        return bool(mark_of(run.path)) and not (run.published or run.moving or self.is_uploaded(run))

    def is_uploaded(self, run: Run) -> bool:
        """Whether it, or the run whose card shows it, is on its way to the Hub, from here or from the command line."""
        return any(one in self.publisher or _is_uploading(one) for one in (run, *self.runs.partners(run)))

    def tidy(self, ended: Run) -> None:
        """Free what a run leaves that is of no more use, then the oldest runs where a limit is passed."""
        with self.deciding:
            if ended.status == "finished":
                shutil.rmtree(ended.path / "checkpoints", ignore_errors=True)  # three times its model, never resumed
            for one in self._plan(mark_of(ended.path), 0, 0, [ended]).doomed:
                one.run.delete()
        self.trim_class_images()

    def trim_class_images(self) -> None:
        """Keep all class images within their limit, and those that a run uses, or will when its turn comes."""
        if self.settings.class_images_gb is None:
            return
        moving = [run.config for run in list_runs(self.runs.root) if is_readable(run) and run.moving]

        def in_use(key: dict[str, Any]) -> bool:
            return any(
                key.get("class_prompt") in config.class_prompts and key.get("seed") == config.seed
                for config in moving
                if config.prior.active
            )

        prior.trim(self.settings.class_images_gb * 1e9, in_use)


def _is_uploading(run: Run) -> bool:
    try:
        state = read_state(run.path)
    except RunError:  # damaged: nobody publishes it
        return False
    return state is not None and state.state == "uploading"
