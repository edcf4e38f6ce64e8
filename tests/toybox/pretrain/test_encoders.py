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


def test_crops_with_less_reach_stay_in_the_middle():
    axis = torch.linspace(-1, 1, 64)
    place = torch.stack([axis.view(1, -1).expand(64, 64), axis.view(-1, 1).expand(64, 64)]).repeat(200, 1, 1, 1)
    wide, narrow = (
        encoders.random_crops(place, 32, (0.1, 0.1), torch.Generator().manual_seed(0), reach)
        .mean((2, 3))
        .abs()
        .max()
        .item()
        for reach in (1.0, 0.5)
    )
    assert narrow == pytest.approx(wide / 2, rel=0.01)


def walls(colours: list[float], thing: float | None = None) -> torch.Tensor:
    """A picture of each colour that grows lighter to the right; with `thing`, a square of that colour in the middle."""
    light = torch.linspace(-0.2, 0.2, 64).view(1, 1, 1, -1)
    made = (torch.tensor(colours).view(-1, 1, 1, 1) + light).expand(-1, 3, 64, 64).clone()
    if thing is not None:
        made[:, :, 24:40, 24:40] = thing
    return made


def test_what_is_behind_is_told_from_the_frame_alone():
    surface, misfit = encoders.behind(walls([-1.0, 1.0], thing=0.0))
    torch.testing.assert_close(surface, walls([-1.0, 1.0]), atol=1e-4, rtol=0)
    assert misfit.max() < 1e-4
    noisy = walls([0.0]) + 0.5 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert encoders.behind(noisy)[1].item() == pytest.approx(0.5, rel=0.1)


def test_plain_pictures_are_those_before_a_wall(work):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    pictures[[1, 4]] = 90
    pictures[4, 20:40, 20:40] = 200
    assert encoders.plain_pictures(pictures).tolist() == [1, 4]
    assert encoders.plain_pictures(pictures[:1]).tolist() == [0], "all, where none is plain"


def test_views_are_two_large_and_four_small_of_each_picture():
    large, small = encoders.views(walls([-1.0, 0.0, 1.0]), torch.Generator().manual_seed(0))
    assert (large.shape, small.shape) == ((6, 3, 64, 64), (12, 3, 32, 32))
    assert max(large.abs().max(), small.abs().max()) <= 1.2 * 1.2 + 0.2  # gain 0.8 to 1.2, shift up to 0.2


def test_a_thing_keeps_its_colour_in_all_its_views_and_its_place_does_not():
    """Red things before two walls: the middle of a view is the thing, its corners are the other picture's wall."""
    pictures = walls([-1.5, 1.5] * 20)
    pictures[:, :, 20:44, 20:44] = torch.tensor([2.0, -1.0, -1.0]).view(3, 1, 1)
    large, _ = encoders.views(pictures, torch.Generator().manual_seed(0))
    middle, corner = large[:, :, 30:34, 30:34].mean((2, 3)), large[:, :, :3, :3].mean((1, 2, 3))
    assert (middle[:, 0] - middle[:, 1] > 1.5).float().mean() > 0.9
    first = corner[:40]  # its pictures are laid over those one further on, of the other wall
    assert (first[::2] > 0).float().mean() > 0.9
    assert (first[1::2] < 0).float().mean() > 0.9


def test_koleo_is_minus_the_mean_log_distance_to_the_nearest():
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, -1.0], [0.6, 0.8]])
    unit = [(1, 0), (0, 1), (0, -1), (0.6, 0.8)]
    nearest = [min(np.hypot(a - c, b - d) for j, (c, d) in enumerate(unit) if j != i) for i, (a, b) in enumerate(unit)]
    assert encoders.koleo(features).item() == pytest.approx(-np.log(nearest).mean(), abs=1e-4)


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
