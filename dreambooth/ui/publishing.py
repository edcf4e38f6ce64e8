"""Publishing apart from whoever asked for it: in threads of the server, which go on when the page is closed."""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
from pathlib import Path

from dreambooth.errors import DreamBoothError, RunError
from dreambooth.hub import Account, redact
from dreambooth.runs.directory import Run
from dreambooth.sharing.publish import Publication, publish

PARALLEL = 2
"""Uploads at a time: one more does not make a line faster, and each may take minutes."""
MOST = 20
"""Uploads that may wait or run; who comes then is asked to come back."""


class Publisher:
    """Publishes runs, two at a time; how it goes stands in each run's directory, and tokens stay in memory."""

    def __init__(self) -> None:
        self._slots = threading.Semaphore(PARALLEL)
        self._changed = threading.Lock()
        self._jobs: set[Path] = set()

    def submit(self, run: Run, wanted: Publication, account: Account, partner: Run | None = None) -> None:
        """Publish a finished run as soon as a thread is free; raises `RunError` while that goes on already."""
        with self._changed:
            if run.path in self._jobs:
                raise RunError("This run is being published already.", "Wait for its end.")
            if len(self._jobs) >= MOST:
                raise RunError(f"{MOST} runs are being published here.", "Try again in a few minutes.")
            self._jobs.add(run.path)
        threading.Thread(
            target=self._publish, args=(run, wanted, account, partner), name=f"dreambooth-publish-{run.id}", daemon=True
        ).start()

    def __contains__(self, run: Run) -> bool:
        """Whether it waits here, or is being published."""
        return run.path in self._jobs

    def _publish(self, run: Run, wanted: Publication, account: Account, partner: Run | None) -> None:
        try:
            with self._slots, contextlib.closing(publish(run, wanted, account, partner=partner)) as events:
                for _ in events:
                    pass
        except DreamBoothError:
            pass  # it stands in the run's directory, where the page looks
        except Exception:  # a bug must not keep the next ones waiting
            trace = redact(traceback.format_exc(), account.token)
            logging.getLogger(__name__).error("Run %s could not be published.\n%s", run.id, trace)
        finally:
            with self._changed:
                self._jobs.discard(run.path)
