"""The photo coach is fair: it finds what is wrong with a set, and leaves good photos alone."""

import functools
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from dreambooth.photos.coach import coach
from dreambooth.photos.folder import find_photos
from dreambooth.photos.prepare import prepare_photo, prepare_photos
from tests.pictures import encoded, saved, scene

DATASET = Path(__file__).parents[3] / "shared" / "dreambooth-dataset"
SUBJECTS = sorted(path for path in DATASET.iterdir() if path.is_dir()) if DATASET.is_dir() else []


def codes(folder: Path, images: list[Image.Image], resolution: int = 256) -> list[str]:
    return [finding.code for finding in coach(prepare_photos(saved(folder, images), resolution))]


def test_a_good_set_gets_no_findings(tmp_path):
    assert codes(tmp_path, [scene(seed) for seed in range(5)]) == []


def test_the_number_of_photos(tmp_path):
    assert [finding.code for finding in coach([])] == ["too_few"]
    assert codes(tmp_path, [scene(0), scene(1)]) == ["too_few"]
    assert codes(tmp_path, [scene(seed) for seed in range(7)]) == ["too_many"]


@functools.cache
def copies() -> dict[str, Image.Image]:
    original = scene(0)
    return {
        "itself": original,
        "recompressed": Image.open(io.BytesIO(encoded(original, "JPEG", quality=30))),
        "cropped": original.resize((512, 512), Image.Resampling.LANCZOS, box=(5, 15, 490, 500)),
        "a moment later": original.resize((512, 512), Image.Resampling.LANCZOS, box=(30, 0, 512, 482)),
        "brighter": ImageEnhance.Brightness(original).enhance(1.15),
        "turned": original.rotate(1.5).resize((512, 512), box=(15, 15, 497, 497)),
    }


@pytest.mark.parametrize("kind", ["itself", "recompressed", "cropped", "a moment later", "brighter", "turned"])
def test_a_copy_is_found(tmp_path, kind):
    prepared = prepare_photos(saved(tmp_path, [scene(0), scene(1), copies()[kind], scene(2)]), 256)
    (finding,) = coach(prepared)
    assert (finding.code, finding.photos) == ("near_duplicate", (0, 2))
    assert "0.png and 2.png" in finding.message


def moved(image: Image.Image, length: int) -> Image.Image:
    """Blur as a hand that moves sideways does."""
    values = np.cumsum(np.asarray(image, dtype=np.float64), axis=1)
    return Image.fromarray(((values[:, length:] - values[:, :-length]) / length).astype(np.uint8))


def test_blur_of_focus_and_of_movement_is_found(tmp_path):
    images = [scene(0), scene(1).filter(ImageFilter.GaussianBlur(3)), moved(scene(2), 12), scene(3)]
    findings = coach(prepare_photos(saved(tmp_path, images), 256))
    assert [(finding.code, finding.photos) for finding in findings] == [("blurred", (1,)), ("blurred", (2,))]


def test_small_dark_pale_and_long_photos_are_found(tmp_path):
    dark = ImageEnhance.Brightness(scene(1)).enhance(0.12)
    pale = Image.blend(scene(2), Image.new("RGB", (512, 512), "white"), 0.9)
    long = scene(3, 1100).crop((0, 0, 1100, 400))
    prepared = prepare_photos(saved(tmp_path, [scene(0, 200), dark, pale, long]), 256)
    found = [(finding.code, finding.severity, finding.photos) for finding in coach(prepared)]
    assert found == [
        ("small", "tip", (0,)),
        ("dark", "warning", (1,)),
        ("pale", "warning", (2,)),
        ("extreme_aspect", "tip", (3,)),
    ]
    (finding,) = [f for f in coach([prepare_photo(tmp_path / "0.png", 512)]) if f.code == "small"]
    assert finding.severity == "warning"
    assert "from 200 to 512" in finding.message
    chosen = prepare_photo(tmp_path / "3.png", 256, (0, 0, 400, 400))
    assert "extreme_aspect" not in [f.code for f in coach([chosen])]


def test_an_animation_is_found(tmp_path):
    (path,) = saved(tmp_path, [scene(0)], save_all=True, append_images=[scene(1)])
    assert [finding.code for finding in coach([prepare_photo(path, 256)])] == ["too_few", "animated"]


def test_the_same_background_everywhere_is_found(tmp_path):
    wall = [(190, 80, 40), (186, 84, 46), (194, 76, 38), (190, 80, 40)]
    images = [scene(seed, background=colour) for seed, colour in enumerate(wall)]
    assert codes(tmp_path, images) == ["same_background"]
    assert codes(tmp_path, [*images, scene(9)]) == ["same_background"]
    assert codes(tmp_path, [*images[:3], scene(8), scene(9)]) == []


def test_the_same_view_everywhere_is_found(tmp_path):
    images = [scene(0) for _ in range(4)]
    for number, image in enumerate(images):  # a tall lamp that stands somewhere else every time
        ImageDraw.Draw(image).rectangle((60 + 120 * number, 140, 85 + 120 * number, 360), fill="silver")
    assert "same_pose" in codes(tmp_path, images)


@pytest.mark.parametrize("subject", [Path("made-up"), *SUBJECTS], ids=lambda folder: folder.name)
def test_good_photos_and_the_papers_own_are_not_called_blurred_or_copies(tmp_path, subject):
    if subject == Path("made-up"):
        saved(tmp_path, [scene(seed, 800) for seed in range(10, 15)])
    prepared = prepare_photos(find_photos(tmp_path if subject == Path("made-up") else subject), 256)
    found = {finding.code for finding in coach(prepared)}
    assert found <= {"same_background", "same_pose"}
    assert ("same_background" in found) == (subject.name in ("berry_bowl", "dog6", "red_cartoon"))
