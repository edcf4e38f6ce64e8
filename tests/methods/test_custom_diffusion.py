"""Custom Diffusion: what it trains, how several add up, and which files are refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.errors import ModelError
from dreambooth.families.load import load_pipeline
from dreambooth.methods.custom_diffusion import FILE, save_weights
from dreambooth.models.adapters import load_model
from tests.methods import attached, claimed, distance, method_settings, pixels, trained

ENDS = ("attn2.to_k.weight", "attn2.to_v.weight")


def custom(make_config, folder, seed=0, identifier="<sks>"):
    config = make_config(**method_settings("custom_diffusion", subject={"identifier": identifier}))
    trained(config, folder, seed)
    return config


def test_keys_values_and_the_word_change_and_nothing_else(make_config, tiny_model, tmp_path):
    custom(make_config, tmp_path / "custom")
    base, _ = load_pipeline(tiny_model)
    pipe, _ = load_model(tmp_path / "custom", tiny_model)
    changed = 0
    for part in ("unet", "vae", "text_encoder"):
        before, after = getattr(base, part).state_dict(), getattr(pipe, part).state_dict()
        for key, value in before.items():
            alike = torch.equal(value, after[key][: len(value)] if "token_embedding" in key else after[key])
            assert alike != (part == "unet" and key.endswith(ENDS)), key
            changed += not alike
    assert changed == 8, "two projections of each of four layers"
    rows = pipe.text_encoder.get_input_embeddings().weight
    assert len(rows) == len(base.text_encoder.get_input_embeddings().weight) + 1


def test_only_these_are_trained(make_config):
    settings = method_settings("custom_diffusion", word={"vectors": 2}, train={"text_learning_rate": 0.25})
    pipe, _, trainable = attached(make_config(**settings))
    projections, words = trainable.parameter_groups
    named = [p for key, p in pipe.unet.named_parameters() if key.endswith(ENDS)]
    assert all(a is b for a, b in zip(projections["params"], named, strict=True))
    assert "lr" not in projections
    assert [p.shape for p in words["params"]] == [(2, 16)]
    assert words["lr"] == 0.25
    free = [p for part in (pipe.unet, pipe.text_encoder, pipe.vae) for p in part.parameters() if p.requires_grad]
    assert {id(p) for p in free} == {id(p) for p in trainable.parameters}


def test_the_weights_of_several_add_up(make_config, tiny_model, tmp_path):
    """W = W₀ + 0.7 (W₁ − W₀) − 0.5 (W₂ − W₀), and each brings its word."""
    for seed, word in enumerate(("<sks>", "<cat-toy>")):
        custom(make_config, tmp_path / word, seed, word)
    base, _ = load_pipeline(tiny_model)
    pipe, _ = load_model(tmp_path / "<sks>", tiny_model, scale=0.7, adapters=[(tmp_path / "<cat-toy>", -0.5)])
    assert {"<sks>", "<cat-toy>"} <= set(pipe.tokenizer.get_vocab())
    first, second = (load_file(tmp_path / word / FILE) for word in ("<sks>", "<cat-toy>"))
    compared = 0
    for key, value in base.unet.state_dict().items():
        if key.endswith(ENDS):
            stem, _, projection = key.removesuffix(".weight").rpartition(".")
            name = f"{stem}.processor.{projection}_custom_diffusion.weight"
            w0, w1, w2 = (w.double().numpy() for w in (value, first[name], second[name]))
            wanted = w0 + 0.7 * (w1 - w0) - 0.5 * (w2 - w0)
            np.testing.assert_allclose(pipe.unet.state_dict()[key].numpy(), wanted, atol=1e-6)
            compared += 1
    assert compared == 8


def test_weight_zero_leaves_the_base_s_projections(make_config, tiny_model, tmp_path):
    custom(make_config, tmp_path / "custom")
    base, none = load_pipeline(tiny_model)[0], load_model(tmp_path / "custom", tiny_model, scale=0.0)[0]
    assert distance(pixels(base, "a photo of a dog"), pixels(none, "a photo of a dog")) == 0


def test_drift_is_the_squared_distance_of_the_projections(make_config):
    """The word has no place in the base model that it could drift from."""
    pipe, _, trainable = attached(make_config(**method_settings("custom_diffusion", drift={"weight": 1.0})))
    before = {key: p.detach().double().numpy().copy() for key, p in pipe.unet.named_parameters()}
    rng = torch.Generator().manual_seed(0)
    for parameter in trainable.parameters:
        parameter.data += torch.randn(parameter.shape, generator=rng)
    wanted = sum(np.square(p.detach().double().numpy() - before[key]).sum() for key, p in pipe.unet.named_parameters())
    assert trainable.drift().item() == pytest.approx(wanted, rel=1e-5)
    trainable.drift().backward()
    assert trainable.parameter_groups[1]["params"][0].grad is None


def test_the_file_has_the_names_that_stock_diffusers_reads(make_config, tmp_path):
    """An empty tensor stands for each layer of self-attention."""
    custom(make_config, tmp_path / "custom")
    layers = [
        f"{block}.attentions.{number}.transformer_blocks.0"
        for block, numbers in {"down_blocks.0": [0], "mid_block": [0], "up_blocks.1": [0, 1]}.items()
        for number in numbers
    ]
    state = load_file(tmp_path / "custom" / FILE)
    trained_keys = {f"{layer}.attn2.processor.to_{x}_custom_diffusion.weight" for layer in layers for x in "kv"}
    assert {key for key, value in state.items() if value.numel()} == trained_keys
    assert {key for key, value in state.items() if not value.numel()} == {f"{x}.attn1.processor" for x in layers}


KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_diffusion.weight"
UNUSABLE = {
    "a layer missing": (lambda state: state.pop(KEY), "does not fit this base model"),
    "another width": (lambda state: state.update({KEY: torch.ones(16, 8)}), "larger or smaller base model"),
    "no numbers": (lambda state: state[KEY].fill_(torch.nan), "not finite"),
    "whole numbers": (lambda state: state.update({KEY: state[KEY].int()}), "holds numbers of type int32"),
    "eight bits": (
        lambda state: state.update({KEY: state[KEY].to(torch.float8_e4m3fn)}),
        "holds numbers of type float8_e4m3fn",
    ),
    "queries": (
        lambda state: state.update({KEY.replace("to_k", "to_q"): torch.ones(16, 16)}),
        "more than keys and values .*to_q_custom",
    ),
}


@pytest.fixture
def foreign(tiny_model, tmp_path):
    """An adapter's folder with a word, and the base model's own keys and values."""
    folder = claimed("custom_diffusion", tiny_model, tmp_path / "custom")
    save_file({"<sks>": torch.ones(1, 16)}, folder / "learned_embeds.safetensors")
    save_weights(*load_pipeline(tiny_model), folder)
    return folder


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_damaged_or_foreign_file_is_told_of(what, foreign, tiny_model, tmp_path):
    change, words = UNUSABLE[what]
    state = load_file(tmp_path / "custom" / FILE)
    change(state)
    save_file(state, tmp_path / "custom" / FILE)
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path / "custom", tiny_model)


def test_a_file_that_is_none_is_told_of(foreign, tiny_model, tmp_path):
    (foreign / FILE).write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="does not fit this base model") as told:
        load_model(foreign, tiny_model)
    assert str(tmp_path) not in str(told.value)


def test_a_word_that_is_missing_is_told_of(foreign, tiny_model):
    (foreign / "learned_embeds.safetensors").unlink()
    with pytest.raises(ModelError, match="names <sks>, but its files hold none"):
        load_model(foreign, tiny_model)
