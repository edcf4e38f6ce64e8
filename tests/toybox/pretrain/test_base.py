"""The UNet and text encoder: their schedule, and that both are trained."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from dreambooth.errors import ModelError
from dreambooth.toybox.pretrain import base
from dreambooth.toybox.tokenizer import build_tokenizer


def test_the_last_timestep_is_pure_noise():
    scheduler = DDIMScheduler(**base.scheduler_config())
    assert scheduler.alphas_cumprod[-1] == 0
    assert scheduler.alphas_cumprod[0] > 0.99


def test_seventy_percent_of_the_timesteps_are_where_shapes_are_decided():
    u = torch.linspace(0, 1, 10_001)
    t = base._timesteps(u)
    assert t.dtype == torch.int64
    assert (t[0], t[-1]) == (0, 999), "a uniform number can round to 1"
    assert (t.diff() >= 0).all()
    share = ((t >= 375) & (t < 775)).float().mean().item()
    assert abs(share - 0.7) < 0.001


def test_training_can_begin_with_a_pipelines_weights(trained, exported, tmp_path):
    work = shutil.copytree(trained, tmp_path / "work")
    for name in ("base.pt", "anneal.pt", "base-constant.pt"):
        (work / name).unlink()
    model = base.train_base(work, 0, torch.device("cpu"), weights=exported / "model")
    shipped = UNet2DConditionModel.from_pretrained(exported / "model" / "unet").state_dict()
    assert all(torch.equal(value, shipped[key]) for key, value in model["unet"].state_dict().items())


def test_annealing_branches_off_the_base_and_ships(trained, exported):
    trunk, branch = (torch.load(trained / name, weights_only=True) for name in ("base.pt", "anneal.pt"))
    assert (trunk["step"], branch["step"]) == (2, 2)
    assert branch["optimizers"][1]["state"][0]["step"] == 4, "the base's two steps and its own"
    unet = UNet2DConditionModel.from_pretrained(exported / "model" / "unet")
    assert torch.equal(unet.conv_in.weight, branch["ema"]["unet.conv_in.weight"].half().float())


def test_nothing_is_annealed_without_a_base(tmp_path):
    with pytest.raises(ModelError, match=r"base\.pt is not there"):
        base.anneal_base(tmp_path, 8, torch.device("cpu"))


def test_unet_and_text_encoder_are_both_trained(trained, tmp_path):
    torch.manual_seed(0)
    fresh = base.new_base(len(build_tokenizer(tmp_path)))
    for new, kind, name in zip(fresh, (UNet2DConditionModel, CLIPTextModel), ("unet", "text_encoder")):
        saved = kind.from_pretrained(trained / name).state_dict()
        changed = [not torch.equal(value, saved[key]) for key, value in new.state_dict().items() if value.ndim >= 2]
        assert np.mean(changed) > 0.9, name
