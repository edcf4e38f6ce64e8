"""What the studio clears away, at its start and every hour: temporary files of any process of it, dead ones too, what
killed ones left beside the runs, and class images above a limit."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from dreambooth.files import cache_home, clear_leftovers
from dreambooth.ui import DAY, HOUR
from dreambooth.ui.studio import Studio


def own_temp_folder(root: Path) -> Path:
    """Where the studio whose runs are in `root` keeps uploads and shown pictures: apart from those of other studios and
    programs, and the same after a restart, so that pages that are open find theirs again."""
    name = f"studio-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}"
    return Path(get_upload_folder()).resolve() / name


def keep_house(studio: Studio, page: gr.Blocks, folder: Path) -> None:
    """Clear away in a thread what is old in the temporary `folder`, leftovers and class images, now and each hour."""

    def work() -> None:
        while True:
            try:
                clear_old(folder)
                for place in (studio.root, cache_home()):
                    clear_leftovers(place)
                clear_unnamed(page)
                studio.admission.trim_class_images()
            except Exception:  # the next hour is another chance
                logging.getLogger(__name__).exception("Something could not be cleared away.")
            time.sleep(HOUR)

    threading.Thread(target=work, name="dreambooth-housekeeping", daemon=True).start()


def clear_old(folder: Path) -> None:
    """Remove the files below `folder` that are there for more than a day, and folders that are empty for an hour."""
    now = time.time()
    for inside, _, names in os.walk(folder, topdown=False):
        for name in names:
            with contextlib.suppress(OSError):
                if now - _since(os.path.join(inside, name)) > DAY:
                    os.remove(os.path.join(inside, name))
        with contextlib.suppress(OSError):  # not empty
            if Path(inside) != folder and now - os.lstat(inside).st_mtime > HOUR:
                os.rmdir(inside)


def clear_unnamed(page: gr.Blocks) -> None:
    """Remove the uploads of more than an hour ago that no event has named since: nobody does anything with them."""
    uploads, *others = page.temp_file_sets
    named = set().union(*(set(files) for files in others))
    for path in set(uploads) - named:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - _since(path) <= HOUR:
                continue
            os.remove(path)
        uploads.discard(path)


def _since(path: str) -> float:
    """Since when a file is there; a copy has the time of its original as that of its last change."""
    facts = os.lstat(path)
    return max(facts.st_mtime, facts.st_ctime)
