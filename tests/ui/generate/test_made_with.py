"""What a picture's file says that it was made with."""

from pathlib import Path

import pytest
from PIL import Image

from dreambooth.errors import PhotoError
from dreambooth.ui.generate.made_with import read_settings
from tests.test_generate import checked_model  # noqa: F401


@pytest.mark.attack
def test_a_huge_picture_does_not_write_into_the_log(tmp_path: Path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.new("RGB", (8, 8)).save(tmp_path / "huge.png")
    with pytest.raises(PhotoError, match="does not say how it was made"):
        read_settings(str(tmp_path / "huge.png"))
    assert not [one for one in recwarn if issubclass(one.category, Image.DecompressionBombWarning)]
