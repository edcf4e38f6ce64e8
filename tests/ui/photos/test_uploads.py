"""What is kept of uploads, and how much of them is taken."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from dreambooth.errors import PhotoError
from dreambooth.photos.folder import find_photos
from dreambooth.photos.prepare import Crop, checked_crop, prepare_photo, prepare_photos
from dreambooth.photos.read import MIN_SIDE, shown_pixels
from dreambooth.ui.photos import uploads
from dreambooth.ui.photos.uploads import Upload
from dreambooth.ui.studio import Studio
from dreambooth.ui.train.start import start
from tests.ui.studios import ANNA, CAT, settings


@pytest.fixture
def studio(make_studio) -> Studio:
    return make_studio()


@pytest.fixture
def photos(photo_folder: Path) -> list[str]:
    return [str(path) for path in sorted(photo_folder.iterdir())]


def test_photos_are_kept_under_names_of_our_own_and_without_metadata(studio: Studio, tmp_path: Path):
    photo = tmp_path / "<script>alert(1)<:script>.jpg"
    exif = Image.Exif()
    exif[0x010E] = "my garden"
    Image.new("RGB", (80, 64), "red").save(photo, exif=exif)
    runs = start(studio, ANNA, settings(), [str(photo)], ways="two")
    for run in runs:
        [kept] = (run.path / "uploads").iterdir()
        assert kept.name == "00.png"
        assert run.config.subject.photos == kept.parent
        with Image.open(kept) as image:
            assert image.size == (80, 64)
            assert not image.info
            assert not image.getexif()


def test_crop_boxes_mean_the_same_on_the_smaller_photos_that_are_kept(
    studio: Studio, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large = str(tmp_path / "large.png")
    with Image.open(photos[0]) as image:
        image.resize((600, 480), Image.Resampling.BICUBIC).save(large)
    monkeypatch.setattr(uploads, "KEPT_SIDE", 240)
    box = Crop(250, 30, 599, 380)  # a pixel from square, as boxes drawn by hand are
    [run] = start(studio, ANNA, settings(), [photos[1], large], crops=[None, box])
    assert run.config.subject.crops == {"01.png": (125, 15, 299, 189)}
    kept = prepare_photos(find_photos(run.path / "uploads"), 64, run.config.subject.crops)
    assert [photo.chosen for photo in kept] == [False, True]
    difference = ImageChops.difference(kept[1].image, prepare_photo(large, 64, box).image)
    assert max(ImageStat.Stat(difference).mean) < 3


@given(st.integers(64, 5000), st.integers(64, 5000), st.data())
def test_a_scaled_box_is_a_square_inside_the_scaled_photo(width: int, height: int, data: st.DataObject):
    side = data.draw(st.integers(64, min(width, height)))
    left, top = data.draw(st.integers(0, width - side)), data.draw(st.integers(0, height - side))
    scale = min(1.0, 2048 / min(width, height))
    size = (round(width * scale), round(height * scale))
    try:
        box = uploads.scaled(Crop(left, top, left + side, top + side), scale, size, "a.jpg")
    except PhotoError:
        assert side * scale < MIN_SIDE
        return
    assert checked_crop(box, size, "a.jpg") == box
    assert max(abs(box.left - left * scale), abs(box.top - top * scale), abs(box.side - side * scale)) <= 1.5


def test_a_box_that_is_too_small_once_the_photo_is_scaled_is_refused_in_the_uploads_pixels(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Image.new("RGB", (1000, 800)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(uploads, "KEPT_SIDE", 400)
    with pytest.raises(PhotoError, match=r"a\.jpg: the crop box is too small.*at least 128 pixels"):
        start(studio, ANNA, settings(), [str(tmp_path / "a.jpg")], crops=[Crop(0, 0, 120, 120)])
    assert start(studio, ANNA, settings(), [str(tmp_path / "a.jpg")], crops=[Crop(0, 0, 128, 128)])


def test_of_long_photos_the_part_around_the_crop_is_kept(studio: Studio, tmp_path: Path):
    long = str(tmp_path / "long.png")
    with Image.linear_gradient("L") as grey:
        grey.rotate(90).resize((700, 100)).convert("RGB").save(long)
    box = Crop(440, 0, 540, 100)
    [run] = start(studio, ANNA, settings(), [long], crops=[box])
    [kept] = find_photos(run.path / "uploads")
    with Image.open(kept) as image:
        assert image.size == (200, 100)
    crops = run.config.subject.crops
    difference = ImageChops.difference(
        prepare_photo(kept, 64, crops["00.png"]).image, prepare_photo(long, 64, box).image
    )
    assert max(ImageStat.Stat(difference).mean) < 1
    [found] = start(studio, ANNA, settings(), [long])
    left, top, right, bottom = found.config.subject.crops["00.png"]
    assert (right - left, bottom - top) == (100, 100), "found before it is cut, as the page has shown it"


def test_both_sides_of_a_kept_photo_are_bounded(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploads, "KEPT_SIDE", 100)
    for number, size in enumerate([(90, 600), (600, 90), (300, 900), (400, 200), (150, 150), (90, 80)]):
        path = tmp_path / f"{number}.png"
        Image.effect_noise(size, 50).save(path)
        [run] = start(studio, ANNA, settings(), [str(path)])
        with Image.open(run.path / "uploads" / "00.png") as image:
            assert image.size == uploads.kept_size(size)
            assert min(image.size) == min(100, *size)
            assert max(image.size) <= 2 * min(image.size)


def test_a_photo_is_not_named_twice_and_a_request_has_a_budget_of_pixels(
    studio: Studio, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(PhotoError, match=r"photo0\.jpg is there 10 times"):
        start(studio, ANNA, settings(), photos[:1] * 10)
    assert start(studio, ANNA, settings(more_subjects=[CAT]), photos, others=[Upload(photos)]), (
        "one of two subjects may"
    )
    pixels = sum(width * height for width, height in map(shown_pixels, photos))
    monkeypatch.setattr(uploads, "MAX_MEGAPIXELS", pixels / 1e6)
    assert start(studio, ANNA, settings(), photos)
    monkeypatch.setattr(uploads, "MAX_MEGAPIXELS", pixels / 1e6 - 0.001)
    with pytest.raises(PhotoError, match="megapixels together, more than"):
        start(studio, ANNA, settings(), photos)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    assert shown_pixels(tmp_path / "broken.jpg") == (0, 0)
