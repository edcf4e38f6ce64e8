"""The toybox as it ships: its files, and DreamBooth on it from photos to pictures."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from dreambooth.config.settings import Config
from dreambooth.generate import generate, open_source
from dreambooth.models.fetch import TOYBOX_FOLDER
from dreambooth.photos.folder import find_photos
from dreambooth.photos.prepare import prepare_photos
from dreambooth.runs.directory import Run

pytestmark = pytest.mark.slow

SUBJECTS = TOYBOX_FOLDER.parent / "subjects"


def test_files_are_small_and_stock_diffusers_loads_them():
    sizes = [p.stat().st_size for p in TOYBOX_FOLDER.rglob("*") if p.is_file()]
    assert max(sizes) <= 10e6
    assert sum(sizes) <= 20e6
    pipe = StableDiffusionPipeline.from_pretrained(TOYBOX_FOLDER)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a photo of a dog", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (128, 128)


def test_every_sample_subject_has_five_photos_that_the_coach_likes():
    from dreambooth.photos.coach import coach

    folders = sorted(SUBJECTS.iterdir())
    assert len(folders) >= 6
    for folder in folders:
        photos = prepare_photos(find_photos(folder), 128)
        assert len(photos) == 5
        assert coach(photos) == []


def middle_colours(images) -> np.ndarray:
    """A coarse histogram of the colours in the middle of pictures, where the subject is."""
    pixels = np.concatenate([np.asarray(i.convert("RGB"))[40:100, 32:96].reshape(-1, 3) for i in images]) // 43
    return np.bincount(pixels @ (1, 6, 36), minlength=216) / len(pixels)


def test_a_short_training_teaches_the_subjects_colours(tmp_path):
    """60 steps on the teal backpack with a purple pocket: its pictures get more of the photos' colours."""
    folder = SUBJECTS / "backpack"
    settings = {
        "subject": {"photos": str(folder), "class_noun": "backpack"},
        "device": "cpu",
        "prior": {"enabled": False},
        "train": {"steps": 60, "sample_every": 0, "checkpoint_every": 1000},
    }
    run = Run.create(Config.from_dict(settings), tmp_path / "run")
    for _ in run.execute():
        pass
    photos = middle_colours([p.image for p in prepare_photos(find_photos(folder), 128)])

    def overlap(source: str) -> float:
        pictures = [
            p.image for b in generate(open_source(source), ["a photo of sks backpack"], num_images=8) for p in b
        ]
        return float(np.minimum(middle_colours(pictures), photos).sum())

    base, trained = overlap("toybox"), overlap(str(run.path))
    assert trained > base + 0.1, (base, trained)
