"""What the page says of the photos."""

from pathlib import Path

from dreambooth.photos.prepare import Crop
from dreambooth.ui.photos.advice import look_at
from tests.pictures import saved, scene

SCRIPT = "<img src=x onerror=alert(1)>.jpg"


def test_a_name_that_is_a_script_is_shown_as_text(photos: list[Path], tmp_path: Path):
    paths = [tmp_path / SCRIPT, tmp_path / f"broken {SCRIPT}"]
    paths[0].write_bytes(photos[0].read_bytes())
    paths[1].write_text("x")
    gallery, findings = look_at(64, [str(path) for path in paths], [None, None])
    assert len(gallery.value) == 2
    assert "&lt;img src=x onerror=alert(1)&gt;.jpg" in findings
    assert "<img src=x" not in findings


def test_findings_stand_beside_the_photos_they_are_about(tmp_path: Path):
    paths = [str(path) for path in saved(tmp_path, [scene(1, 400), scene(2, 400), scene(1, 400)])]
    findings = look_at(512, paths, [None] * 3)[1]
    rows = findings.split("<li><img")[1:]
    assert ["0.png and 2.png look almost the same" in row for row in rows] == [True, False, True]
    assert "Is enlarged from 400 to 512 pixels." in rows[1]
    moved = look_at(512, paths[:2], [None, Crop(0, 0, 100, 100)])[1]
    assert "Is enlarged from 100 to 512 pixels." in moved
