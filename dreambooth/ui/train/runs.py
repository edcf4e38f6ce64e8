"""The visitor's runs in the second tab: what is done with them, and the one that is looked at, live or over."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import gradio as gr

from dreambooth.errors import DreamBoothError
from dreambooth.runs.directory import Run, Status
from dreambooth.ui import charts, in_plain_words, served
from dreambooth.ui.owned import DAMAGED
from dreambooth.ui.report import Digests, Report
from dreambooth.ui.studio import Studio
from dreambooth.ui.train import live as view
from dreambooth.ui.train.curves import curves

GONE, UNREADABLE = -2, -3
"""In place of the size of a run's events, where there is no such run, and where it is damaged."""
NO_RUN = """<div class="empty"><strong>Nothing trains yet.</strong> Add photos in the first tab, then start a training.
It goes on when you close this page, and is here when you come back.</div>"""


@dataclass(frozen=True)
class Live:
    """The view of one run; `watch` fills all but the buttons that ask whether to delete."""

    run: gr.Textbox
    """The id of the run that is looked at; never seen."""
    headline: gr.HTML
    stop: gr.Button
    resume: gr.Button
    delete: gr.Button
    to_pictures: gr.Button
    progress: gr.HTML
    """What is measured."""
    curves: gr.HTML
    samples: gr.HTML
    history: gr.HTML
    seen: gr.State
    """The `Seen` of this page."""


class Seen(NamedTuple):
    """What a page showed last, so that a look at the same again costs and sends nothing."""

    run: str
    size: int = -1
    """Bytes of its events."""
    status: Status | None = None
    pictures: int = -1
    steps: int = -1
    measured: int = -1
    waiting: str = ""
    twin: str = ""
    moving: tuple[tuple[str, Status], ...] = ()
    """The visitor's runs that waited or trained, each with its status."""


def _damaged_summary(run: Run) -> dict[str, Any]:
    return {"id": run.id, "title": view.DAMAGED_TITLE, "status": "damaged", "text": " ".join(DAMAGED)}


@dataclass(frozen=True)
class Runs:
    """What the tab does with runs that are there; the first ones are named endpoints."""

    studio: Studio
    live: Live
    digests: Digests = field(default_factory=Digests)

    # -- what is done with a run

    @in_plain_words
    def stop_training(self, owner: str, run: str) -> None:
        """Stop a run after its current step."""
        self.studio.stop(owner, run)

    @in_plain_words
    def resume_training(self, owner: str, run: str) -> None:
        """Queue a run again that ended early."""
        self.studio.resume(owner, run)

    @in_plain_words
    def delete_run(self, owner: str, run: str) -> None:
        """Remove a run with all that belongs to it."""
        self.studio.delete(owner, run)

    @in_plain_words
    def runs(self, owner: str) -> list[dict[str, Any]]:
        """This visitor's runs, newest first, and then the damaged ones."""
        runs, damaged = self.studio.own_runs(owner), self.studio.damaged_runs(owner)
        return [*map(self._summary, runs), *map(_damaged_summary, damaged)]

    @in_plain_words
    def run_status(self, owner: str, run: str) -> dict[str, Any]:
        """Where a run of this visitor stands."""
        if self.studio.is_damaged(owner, run):
            return _damaged_summary(Run(self.studio.root / run))
        return self._summary(self.studio.own_run(owner, run))

    def _summary(self, run: Run) -> dict[str, Any]:
        partners, worker = [partner.id for partner in self.studio.partners(run)], self.studio.worker
        return {
            "id": run.id,
            **self.digests.report(run).as_dict(),
            "partner": partners[0] if partners else None,
            "partners": partners,
            "condition": run.config.condition,
            "position": worker.position(run),
            "seconds_until_start": worker.seconds_until_start(run),
        }

    # -- the page

    @in_plain_words
    def refresh(self, owner: str, run: str | None, visited: int | None) -> tuple[str | None, str, int, gr.Button]:
        """List the visitor's runs, keep the chosen one or take the newest; who is known by now may start one."""
        runs = self._own(owner)
        ids = [*(own.id for own, _ in runs), *(own.id for own in self._damaged(owner))]
        chosen = run if run in ids else ids[0] if ids else None
        return chosen, self._history(owner, runs, chosen), (visited or 0) + 1, gr.Button(interactive=True)

    def watch(self, owner: str, run_id: str | None, seen: Seen | None) -> Any:
        """Fill `Live` with what is new in the run's directory since `seen`."""
        if not (run_id or seen):
            return self._nothing()
        damaged = self.studio.is_damaged(owner, run_id)
        gone = Seen(run_id or "", UNREADABLE if damaged else GONE)
        try:
            if run_id:
                return self._look(owner, self.studio.own_run(owner, run_id), seen)
            return self._blank(NO_RUN, None)
        except DreamBoothError as error:  # deleted or damaged: said in its place, for a toast would come every second
            said = html.escape(str(error).replace(str(self.studio.root), "runs"))
            if seen == gone:
                return self._nothing()
            shown = {self.live.delete: gr.Button(visible=damaged)}
            return self._blank(f"<div class='empty'>{said}</div>", gone) | shown
        except FileNotFoundError:  # deleted at this moment
            return self._nothing()

    def _nothing(self) -> list[Any]:
        return [gr.skip()] * len(vars(self.live))

    def _blank(self, headline: str, seen: Seen | None) -> dict[gr.blocks.Block, Any]:
        live = self.live
        new: dict[gr.blocks.Block, Any] = {live.headline: headline, live.seen: seen}
        for button in (live.stop, live.resume, live.delete, live.to_pictures):
            new[button] = gr.Button(visible=False)
        for shown in (live.progress, live.curves, live.samples):
            new[shown] = ""
        return new

    def _look(self, owner: str, run: Run, seen: Seen | None) -> Any:
        live, worker = self.live, self.studio.worker
        before = seen if seen and seen.run == run.id else Seen(run.id)
        report = self.digests.report(run)
        waiting = ""
        if report.status == "queued":
            waiting = view.waiting_text(worker.position(run), worker.seconds_until_start(run))
        moving = tuple((own, Run(self.studio.root / own).status) for own, _ in before.moving)
        if (before.size, before.waiting, before.moving) == (report.size, waiting, moving):
            return self._nothing()
        now = Seen(
            run.id,
            report.size,
            report.status,
            len(report.pictures),
            report.losses.shape[1],
            report.measured,
            waiting,
            before.twin,
            before.moving,
        )
        new: dict[gr.blocks.Block, Any] = {}
        ended_or_measured = before.status != now.status or before.measured != now.measured
        if ended_or_measured:
            new[live.progress] = charts.progress(report)
        if before.pictures != now.pictures or ended_or_measured:
            new[live.samples] = view.samples(report, run.path, self._url)
        if before.status != now.status or before.pictures != now.pictures or before.moving != moving:
            runs = self._own(owner)
            new[live.history] = self._history(owner, runs, run.id)
            now = now._replace(
                moving=tuple((own.id, of_own.status) for own, of_own in runs if of_own.moving),
                twin=view.twin_text([(other, self.digests.report(other)) for other in self.studio.partners(run)]),
            )
        if before.status != now.status:
            new[live.stop] = gr.Button(visible=report.moving)
            new[live.resume] = gr.Button(visible=report.resumable)
            new[live.delete] = gr.Button(visible=not report.moving)
            new[live.to_pictures] = gr.Button(visible=report.status == "finished")
        if before.steps != now.steps:
            new[live.curves] = curves(report)
        return new | {live.headline: view.headline(report, waiting, now.twin), live.seen: now}

    def _own(self, owner: str) -> list[tuple[Run, Report]]:
        return [(run, self.digests.report(run)) for run in self.studio.own_runs(owner)]

    def _damaged(self, owner: str) -> list[Run]:
        return self.studio.damaged_runs(owner)

    def _history(self, owner: str, runs: list[tuple[Run, Report]], chosen: str | None) -> str:
        return view.history(runs, chosen, self._url, self._damaged(owner))

    def _url(self, picture: Path) -> str:
        """Where the browser gets a picture: a copy in Gradio's folder, so that it never serves the runs' folder."""
        return f"gradio_api/file={quote(served(self.live.samples, picture))}"
