"""A studio that looks at photos, and three of them."""

from pathlib import Path

import pytest

from dreambooth.runs.worker import Worker
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.studio import Studio
from tests import tiny


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three photos with room to move a box in, and a text that calls itself one."""
    folder = tiny.photos(tmp_path_factory.mktemp("photos") / "disc", size=(320, 240))
    (folder / "photo3.jpg").write_text("no picture at all")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def studio(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    root = tmp_path_factory.mktemp("runs")
    models = {"tiny": str(tiny_model), "elsewhere": "somebody/model"}
    return Studio(root, models, Worker(root), StudioSettings(public=True))
