"""Crop boxes: where they go, and whose they are."""

from pathlib import Path

import pytest
from PIL import Image

from dreambooth.errors import PhotoError
from dreambooth.photos.prepare import SHOWN, Crop, prepare_photo
from dreambooth.photos.sheets import show_crop
from dreambooth.ui.photos import crops
from tests.pictures import saved


@pytest.mark.parametrize("size", [(1600, 1200), (900, 1400), (80, 64), (64, 64)])
def test_a_box_goes_to_the_sliders_and_back(size: tuple[int, int]):
    for place in ((100, 0, 0), (70, 100, 100), (40, 50, 25), (5, 0, 100)):
        box = crops.crop_at(size, *place)
        assert box.right - box.left == box.bottom - box.top >= 64
        assert min(box) >= 0
        assert box.right <= size[0]
        assert box.bottom <= size[1]
        again = crops.crop_at(size, *crops.place_of(box, size))
        assert max(abs(a - b) for a, b in zip(box, again, strict=True)) <= 2


def test_a_box_is_centred_where_it_is_clicked_but_stays_inside():
    box = Crop(0, 0, 100, 100)
    assert crops.centred_at(box, (400, 300), (200, 150)) == Crop(150, 100, 250, 200)
    assert crops.centred_at(box, (400, 300), (399, 0)) == Crop(300, 0, 400, 100)


def test_boxes_belong_to_photos_and_not_to_places():
    kept = {"b": Crop(0, 0, 64, 64), "gone": Crop(1, 1, 65, 65)}
    photos = [("a", None), ("b", None)]
    assert crops.aligned(photos, kept) == [None, kept["b"]]
    assert crops.aligned(photos, kept, [[1, 2, 65, 66], None]) == [Crop(1, 2, 65, 66), None]
    assert crops.aligned(None, kept) == []
    assert crops.forget(photos, kept, "b")[:2] == ({"b": kept["b"]}, "b")
    assert crops.forget(photos, kept, "gone")[:2] == ({"b": kept["b"]}, None)
    with pytest.raises(PhotoError, match="Crop box 1"):
        crops.aligned(photos, kept, [None, [0, 0, True, 64]])


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 512)])
def test_outside_the_box_a_photo_is_dimmed(size: tuple[int, int], tmp_path: Path):
    [path] = saved(tmp_path, [Image.new("RGB", size, "white")])
    shown = show_crop(prepare_photo(path, 64, (0, 0, 64, 64)))
    assert max(shown.size) == SHOWN
    assert shown.getpixel((shown.width - 1, shown.height - 1)) == (89, 89, 89)
    if min(size) > 64:
        assert shown.getpixel((20, 20)) == (255, 255, 255)
