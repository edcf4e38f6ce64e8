"""The training pictures: the same at every call, with the captions of their scenes."""

import numpy as np
import torch

from dreambooth.toybox import world
from dreambooth.toybox.pretrain import data


def test_pictures_and_captions_are_the_scenes_in_order(work):
    chunks = data.load_pictures(work)
    assert [chunk.shape for chunk in chunks] == [(6, 128, 128, 3)] * 2
    captions = data.load_captions(work)
    assert len(captions) == 12 * data.CAPTIONS_PER_PICTURE
    for i in (0, 7):
        drawn, texts = data.scene(i)
        assert np.array_equal(chunks[i // 6][i % 6], np.asarray(world.render(drawn, 128)))
        assert captions[4 * i : 4 * i + 4] == texts


def test_only_missing_files_are_rendered_again(work):
    first, second = sorted((work / "pictures").glob("*.npy"))
    wanted = np.load(second)
    np.save(first, np.zeros((6, 128, 128, 3), np.uint8))
    second.unlink()
    data.render_pictures(work, 12, processes=1)
    assert not np.load(first).any(), "it was there, so it stays"
    assert np.array_equal(np.load(second), wanted)


def test_captions_are_those_of_the_chunks_that_are_whole(work):
    (work / "latents").mkdir()
    first, second = sorted((work / "pictures").glob("*.npy"))
    captions = data.load_captions(work)
    np.save(work / "latents" / second.name, np.zeros(1))
    assert data.load_captions(work, "latents") == captions[6 * data.CAPTIONS_PER_PICTURE :]
    first.unlink()  # as if its rendering had been stopped after its captions
    assert data.load_captions(work) == captions[6 * data.CAPTIONS_PER_PICTURE :]


def test_late_scenes_show_two_things_and_say_so():
    early = [data.scene(i)[0] for i in range(data.PAIRS_FROM - 300, data.PAIRS_FROM)]
    assert 0.02 < np.mean([len(scene.subjects) == 2 for scene in early]) < 0.15
    for i in range(data.PAIRS_FROM, data.PAIRS_FROM + 50):
        scene, captions = data.scene(i)
        assert len(scene.subjects) == 2
        for text in captions:
            assert all(subject.class_noun in text.split() for subject in scene.subjects), text


def test_small_pictures_are_means_of_two_by_two_pixels(work):
    small = data.load_small_pictures(work)
    whole = np.concatenate(data.load_pictures(work)).astype(float)
    corners = [whole[:, y::2, x::2] for y in (0, 1) for x in (0, 1)]
    assert small.dtype == np.uint8
    assert np.abs(small - sum(corners) / 4).max() <= 0.5
    data.render_pictures(work, 18, processes=1)
    assert data.load_small_pictures(work).shape == (18, 64, 64, 3), "made anew for more pictures"


def test_pixels_run_from_minus_one_to_one():
    images = np.zeros((2, 4, 6, 3), np.uint8)
    images[1] = 255
    pixels = data.to_pixels(images, torch.device("cpu"))
    assert pixels.shape == (2, 3, 4, 6)
    assert pixels.aminmax() == (-1, 1)
