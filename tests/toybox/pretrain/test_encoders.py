"""CLIP and ViT: what their trainings see, and exact resumption where the teacher and its centre are in the module."""

import numpy as np
import pytest
import torch
from transformers import CLIPModel, ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dreambooth.toybox.pretrain import encoders
from dreambooth.toybox.pretrain import fit as fitting
from dreambooth.toybox.tokenizer import build_tokenizer

CPU = torch.device("cpu")


def test_standardised_pictures_are_what_the_processors_make():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    made = encoders.standardise(images, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, CPU)
    expected = (images / 255 - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD
    np.testing.assert_allclose(made.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_crops_cover_the_area_asked_and_lie_inside():
    axis = torch.linspace(-1, 1, 64)
    place = torch.stack([axis.view(1, -1).expand(64, 64), axis.view(-1, 1).expand(64, 64), torch.zeros(64, 64)])
    rng = torch.Generator().manual_seed(0)
    crops = encoders.random_crops(place.repeat(200, 1, 1, 1), 32, (0.1, 0.4), rng)
    assert crops.shape == (200, 3, 32, 32)
    assert crops.abs().max() <= 1
    width, height = ((crops[:, k].amax((1, 2)) - crops[:, k].amin((1, 2))) / 2 * 32 / 31 for k in (0, 1))
    torch.testing.assert_close(width, height, atol=0.01, rtol=0)
    areas = width * height
    assert 0.09 < areas.min() < 0.13
    assert 0.37 < areas.max() < 0.42
    whole = encoders.random_crops(place.repeat(2, 1, 1, 1), 64, (1.0, 1.0), rng)
    torch.testing.assert_close(whole[0], place, atol=1e-4, rtol=0)


def test_views_are_two_large_and_four_small_of_each_picture():
    rng = torch.Generator().manual_seed(0)
    brightness = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1)
    large, small = encoders.views(brightness.expand(3, 3, 64, 64), rng)
    assert (large.shape, small.shape) == ((6, 3, 64, 64), (12, 3, 32, 32))
    assert max(large.abs().max(), small.abs().max()) <= 1.2 + 0.2  # gain 0.8 to 1.2, shift up to 0.2
    means = small.view(4, 3, -1).mean(2)
    assert (means.diff(dim=1) > 0.1).all(), "each picture's views stand in its column"


def test_half_of_the_large_views_have_another_pictures_margin():
    rng = torch.Generator().manual_seed(0)
    own = torch.arange(200.0).view(-1, 1, 1, 1).expand(200, 3, 64, 64) % 2  # neighbours differ
    large, small = encoders.views(own, rng)
    swapped = large.flatten(1).std(1) > 0.1
    assert 0.35 < swapped.float().mean() < 0.65
    assert small.flatten(1).std(1).max() < 1e-5, "small views are all of their own picture"


def test_prototype_scores_are_cosines_in_full_precision():
    torch.manual_seed(0)
    head = encoders.DinoHead(16)
    features = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        said = head(features)
    assert said.shape == (4, encoders.PROTOTYPES)
    assert said.dtype == torch.float32
    assert said.abs().max() <= 1
    torch.testing.assert_close(said, head(features), atol=0.02, rtol=0)


def test_an_interrupted_vit_ends_with_the_same_weights(trained, work, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    drawn, calls = encoders.views, []

    def interrupted(pixels, rng):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return drawn(pixels, rng)

    monkeypatch.setattr(encoders, "views", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoders.train_vit(work, 4, CPU, batch=2)
    encoders.train_vit(work, 4, CPU, batch=2)
    ours, whole = (torch.load(folder / "vit.pt", weights_only=True) for folder in (work, trained))
    assert {name.split(".")[0] for name in ours["module"]} == {"student", "teacher", "centre"}
    assert ours["module"]["centre"].abs().max() > 0
    for part in ("module", "ema"):
        for name, value in whole[part].items():
            assert torch.equal(value, ours[part][name]), name
    saved = [ViTModel.from_pretrained(folder / "vit", add_pooling_layer=False) for folder in (work, trained)]
    assert all(torch.equal(p, q) for p, q in zip(*(model.parameters() for model in saved)))


def test_the_vit_that_is_kept_is_the_teachers_average(trained):
    state = torch.load(trained / "vit.pt", weights_only=True)["ema"]
    saved = ViTModel.from_pretrained(trained / "vit", add_pooling_layer=False)
    assert torch.equal(saved.embeddings.cls_token, state["teacher.vit.embeddings.cls_token"])


def test_clip_trains_both_sides(trained, tmp_path):
    torch.manual_seed(0)
    fresh = encoders.new_clip(len(build_tokenizer(tmp_path))).state_dict()
    saved = CLIPModel.from_pretrained(trained / "clip").state_dict()
    for name in ("text_projection.weight", "visual_projection.weight", "logit_scale"):
        assert not torch.equal(fresh[name], saved[name]), name
