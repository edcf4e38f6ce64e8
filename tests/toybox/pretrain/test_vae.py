"""The autoencoder: its latents are standard, and only what is meant to learn does."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from dreambooth.toybox.pretrain import vae
from dreambooth.toybox.pretrain.data import load_pictures, to_pixels

CPU = torch.device("cpu")


@pytest.fixture
def pixels(work):
    return to_pixels(np.concatenate(load_pictures(work)), CPU)


@torch.no_grad()
def test_standardising_changes_the_latents_and_not_the_pictures(work, pixels):
    torch.manual_seed(1)
    model = vae.new_vae().eval()
    model.quant_conv.bias[vae.LATENT_CHANNELS :] -= 10  # untrained latents hardly vary: the noise of a trained one
    before = model.encode(pixels).latent_dist
    mean, std = before.mean.mean((0, 2, 3), keepdim=True), before.mean.std((0, 2, 3), keepdim=True)
    decoded = model.decode(before.mean).sample
    vae.standardise_latents(model, load_pictures(work), CPU)
    after = model.encode(pixels).latent_dist
    torch.testing.assert_close(after.mean, (before.mean - mean) / std, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after.std, before.std / std, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(model.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_channel_that_is_all_noise_is_made_quiet(pixels):
    torch.manual_seed(1)
    model, unused = vae.new_vae().eval(), 5
    model.quant_conv.bias[vae.LATENT_CHANNELS + unused] = 6.0
    before = model.encode(pixels).latent_dist
    vae.quieten_unused_channels(model)
    after = model.encode(pixels).latent_dist
    others = [k for k in range(vae.LATENT_CHANNELS) if k != unused]
    assert before.std[:, unused].mean() > 10
    torch.testing.assert_close(after.std[:, unused], torch.full_like(after.std[:, unused], np.exp(vae.QUIET / 2)))
    torch.testing.assert_close(after.std[:, others], before.std[:, others])
    torch.testing.assert_close(after.mean, before.mean)


def test_it_starts_almost_noiseless(pixels):
    with torch.no_grad():
        assert vae.new_vae().encode(pixels[:2]).latent_dist.std.mean() < 0.3


@torch.no_grad()
def test_the_trained_one_has_latents_of_mean_zero_and_variance_one(trained):
    pixels = to_pixels(np.concatenate(load_pictures(trained)), CPU)
    latents = AutoencoderKL.from_pretrained(trained / "vae").encode(pixels).latent_dist.mean
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(vae.LATENT_CHANNELS), atol=1e-3, rtol=0)


def test_training_the_decoder_leaves_the_latents_alone(trained):
    before = AutoencoderKL.from_pretrained(trained / "vae").state_dict()
    after = AutoencoderKL.from_pretrained(trained / "decoder").state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"decoder", "post_quant_conv"}


@torch.no_grad()
def test_cached_latents_are_the_posterior_means(trained):
    latents = vae.load_latents(trained)
    assert latents.shape == (12, vae.LATENT_CHANNELS, 16, 16)
    assert latents.dtype == torch.float16
    pixels = to_pixels(np.concatenate(load_pictures(trained)), CPU)
    means = AutoencoderKL.from_pretrained(trained / "vae").encode(pixels).latent_dist.mean
    assert (latents - means).square().mean().sqrt() < 0.03, "bf16"


def test_only_missing_latents_are_encoded_again(trained, tmp_path):
    work = shutil.copytree(trained, tmp_path / "work")
    first, second = sorted((work / "latents").glob("*.npy"))
    wanted = np.load(second)
    np.save(first, np.zeros_like(wanted))
    second.unlink()
    vae.encode_latents(work, CPU)
    assert not np.load(first).any(), "it was there, so it stays"
    assert np.array_equal(np.load(second), wanted)


def test_a_quarter_is_textures_and_half_is_mirrored(work):
    pictures = vae.Pictures(work)
    known = {"texture": list(pictures.textures), "picture": [p for chunk in pictures.rendered for p in chunk]}
    seen = set()
    for i, drawn in enumerate(pictures.draw(40, np.random.default_rng(0))):
        kind = "texture" if i % 4 == 0 else "picture"
        as_is = any(np.array_equal(drawn, k) for k in known[kind])
        assert as_is or any(np.array_equal(drawn[:, ::-1], k) for k in known[kind])
        seen.add((kind, as_is))
    assert len(seen) == 4
    assert np.array_equal(vae.Pictures(work).textures, pictures.textures), "drawn once"


def test_augmented_crops_stay_in_range_and_half_of_them_as_they_are():
    rng = torch.Generator().manual_seed(0)
    crops = torch.rand(400, 3, 4, 4, generator=rng) * 2 - 1
    augmented = vae.augment(crops, rng)
    assert augmented.abs().max() <= 1
    assert 0.4 < (augmented == crops).all((1, 2, 3)).float().mean() < 0.6


def test_the_loss_is_the_sum_that_its_docstring_says():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 3, 6, 5))
    error = a - b
    edges = np.abs(np.diff(error, axis=2)).mean() + np.abs(np.diff(error, axis=3)).mean()
    expected = np.abs(error).mean() + 0.5 * edges + (error**2).mean()
    assert vae.reconstruction_loss(torch.from_numpy(a), torch.from_numpy(b)).item() == pytest.approx(expected)
