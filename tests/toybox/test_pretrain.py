"""The toybox's training script, each part for real with very few pictures."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from dreambooth.toybox import pretrain, world
from dreambooth.toybox.tokenizer import MAX_LENGTH, RARE_WORDS, build_tokenizer


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(pretrain, "CHUNK", 6)
    monkeypatch.setattr(pretrain, "TEXTURES", 4)


def test_every_part_in_order_gives_a_pipeline_that_stock_diffusers_loads(tmp_path):
    cpu = torch.device("cpu")
    pretrain.render_pictures(tmp_path, 12, processes=1)
    assert [chunk.shape for chunk in pretrain.load_pictures(tmp_path)] == [(6, 128, 128, 3)] * 2
    pretrain.train_vae(tmp_path, 8, cpu, batch=4)
    pretrain.encode_latents(tmp_path, cpu)
    latents = np.load(tmp_path / "latents.npy")
    assert latents.shape == (12, pretrain.LATENT_CHANNELS, 16, 16)
    pretrain.train_base(tmp_path, 8, cpu, batch=4)
    pretrain.export(tmp_path, tmp_path / "model")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a photo of a dog", num_inference_steps=2).images[0]
    assert image.size == (128, 128)
    assert max(p.stat().st_size for p in (tmp_path / "model").rglob("*")) <= 10e6


def test_latents_are_standardised_by_the_vae_itself(tmp_path):
    pretrain.render_pictures(tmp_path, 12, processes=1)
    vae = pretrain.new_vae().eval()
    pictures = pretrain.load_pictures(tmp_path)
    pixels = pretrain.to_pixels(np.concatenate(pictures), torch.device("cpu"))
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        decoded, std = vae.decode(before.mean).sample, before.std
        pretrain._standardise_latents(vae, pictures, torch.device("cpu"))
        after = vae.encode(pixels).latent_dist
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(12), atol=0.1, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(12), atol=0.1, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-4)
    ratio = (after.std / std).mean((0, 2, 3)) * before.mean.std((0, 2, 3))
    torch.testing.assert_close(ratio, torch.ones(12), atol=0.1, rtol=0)


def quick_fit(work, *, samples=240, fail_at=None):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def loss(numpy_rng, torch_rng, progress):
        if fail_at is not None and progress >= fail_at:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, generator=torch_rng)
        return (module(x) - x.sum(1, keepdim=True) * numpy_rng.random()).square().mean()

    return pretrain.fit("toy", module, loss, work, samples=samples, batch=4, lr=1e-2, final_lr=1e-4, decay_from=0.5)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "CHECKPOINT_SECONDS", 0)  # after every step
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = quick_fit(tmp_path / "whole")
    for fail_at in (0.3, 0.8):
        with pytest.raises(KeyboardInterrupt):
            quick_fit(tmp_path / "parts", fail_at=fail_at)
    parts = quick_fit(tmp_path / "parts")
    assert torch.equal(whole.weight, parts.weight)


def test_a_longer_training_goes_on_from_before_the_decay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "CHECKPOINT_SECONDS", 0)
    quick_fit(tmp_path)
    seen = []

    def watch(progress, *arguments):
        seen.append(progress)
        return 1e-3

    monkeypatch.setattr(pretrain, "learning_rate", watch)
    quick_fit(tmp_path, samples=480)
    assert round(seen[0] * 120) == 30, "half of the first training's 60 steps"


def test_a_gradient_that_is_not_finite_stops_it(tmp_path):
    module = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="not finite"):
        pretrain.fit(
            "toy", module, lambda *_: module(torch.ones(1, 1)).sum() * float("nan"), tmp_path,
            samples=8, batch=4, lr=1e-2, final_lr=1e-4, decay_from=0.5,
        )  # fmt: skip


def test_learning_rate_warms_up_holds_and_decays():
    rates = [pretrain.learning_rate(p, 1.0, 0.1, 0.5) for p in (0.0, 0.01, 0.49, 0.75, 1.0)]
    assert rates[0] < 0.1
    assert rates[1:3] == [1.0, 1.0]
    assert rates[3] == pytest.approx(0.55)
    assert rates[4] == pytest.approx(0.1)


def test_the_tokenizer_knows_the_worlds_words_and_rare_ones_as_single_tokens(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    for word in (*world.vocabulary(), *RARE_WORDS):
        assert len(tokenizer.tokenize(word)) == 1, word
    rng = np.random.default_rng(0)
    captions = [world.caption(world.random_scene(rng), rng) for _ in range(300)]
    ids = tokenizer(captions).input_ids
    assert max(map(len, ids)) <= MAX_LENGTH
    rare = set(tokenizer.convert_tokens_to_ids([word + "</w>" for word in RARE_WORDS]))
    assert not rare & {i for row in ids for i in row}, "never trained"
    assert len(tokenizer.tokenize("🐶 Ünïcödé")) > 1, "any text is taken"
