"""The UNet and text encoder: their schedule, and that both are trained."""

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

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


def test_unet_and_text_encoder_are_both_trained(trained, tmp_path):
    torch.manual_seed(0)
    fresh = base.new_base(len(build_tokenizer(tmp_path)))
    for new, kind, name in zip(fresh, (UNet2DConditionModel, CLIPTextModel), ("unet", "text_encoder")):
        saved = kind.from_pretrained(trained / name).state_dict()
        changed = [not torch.equal(value, saved[key]) for key, value in new.state_dict().items() if value.ndim >= 2]
        assert np.mean(changed) > 0.9, name
