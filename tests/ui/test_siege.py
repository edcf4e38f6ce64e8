"""Twenty visitors of a public studio, and three strangers who attack it at the same time."""

from pathlib import Path

import pytest

from benchmarks.siege import VISITORS, besiege
from tests.ui.conftest import serve

pytestmark = pytest.mark.slow

DISK = 3e9
"""Bytes that runs may take here, and that the guard lets uploads take."""
MEMORY = 4 * 2**30
"""Bytes of memory: the program with its libraries takes one, a photo of 120 megapixels while it is decoded one more."""


@pytest.mark.attack
def test_no_visitor_pays_for_what_strangers_do(tiny_model: Path, photo_folder: Path, tmp_path: Path):
    limits = {"public": "true", "disk_gb": str(DISK / 1e9)}
    with serve(tmp_path, tiny_model, photo_folder, **limits, hosts="studio.example") as served:
        report = besiege(served.url, served.process.pid, tmp_path, 15, "tiny-sd")
        assert report.refused == [], report.describe()
        assert report.gone == [], report.describe()
        assert report.started == VISITORS, report.describe()
        assert {kind.split()[0] for kind in report.attacks} == {"fill", "upload", "bomb"}
        assert report.memory < MEMORY, report.describe()
        assert report.disk < DISK, report.describe()
        assert "Traceback" not in served.errors.read_text(), "the console is not clean"
