"""LoRA: each setting does what it says, in training and in the file; and which files are refused."""

import math

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from dreambooth import events
from dreambooth.errors import ModelError
from dreambooth.families.load import load_pipeline
from dreambooth.generate import generate, open_source
from dreambooth.methods.lora import _inject
from dreambooth.models.adapters import load_model
from dreambooth.runs.directory import Run
from tests import tiny
from tests.methods import attached, claimed, distance, method_settings, pixels, trained

FILE = "pytorch_lora_weights.safetensors"


def adapted(pipe) -> dict[str, LoraLayer]:
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    layers = ((part, *named) for part, module in parts.items() for named in module.named_modules())
    return {f"{part}.{name}": layer for part, name, layer in layers if isinstance(layer, LoraLayer)}


@pytest.mark.parametrize("rank", [1, 5])
def test_rank_and_targets(rank, make_config, tmp_path):
    """By default they lie beside attention's four projections; each costs rank · (inputs + outputs) numbers."""
    pipe, _, trainable = attached(make_config(**method_settings("lora", lora={"rank": rank})))
    layers = adapted(pipe)
    ends = {".".join(name.split(".")[-2:]).removesuffix(".0").rpartition(".")[2] for name in layers}
    assert ends == {"to_q", "to_k", "to_v", "to_out", "q_proj", "k_proj", "v_proj", "out_proj"}
    sizes = [rank * sum(layer.base_layer.weight.shape) for layer in layers.values()]
    assert sum(p.numel() for p in trainable.parameters) == sum(sizes)
    assert len(layers) == 4 * 8 + 2 * 4

    settings = method_settings("lora", lora={"rank": rank, "targets": ["to_v"]}, train={"text_encoder": False})
    pipe, _, trainable = attached(make_config(**settings))
    assert len(adapted(pipe)) == 8
    assert all(name.endswith("to_v") for name in adapted(pipe))
    assert list(trainable.modules) == ["unet"]


def test_alpha_counts_as_in_peft_and_is_folded_into_the_file(make_config, tmp_path):
    config = make_config(**method_settings("lora", lora={"rank": 4, "alpha": 10.0}))
    layers = adapted(trained(config, tmp_path / "lora"))
    state = load_file(tmp_path / "lora" / FILE)
    for name, layer in layers.items():
        stem = next(key for key in state if key.replace("text_model.", "").startswith(name)).partition(".lora")[0]
        kind = "lora_linear_layer" if name.startswith("text_encoder") else "lora"
        assert layer.scaling["default"] == 2.5
        assert torch.equal(state[f"{stem}.{kind}.down.weight"], layer.lora_A["default"].weight)
        assert torch.equal(state[f"{stem}.{kind}.up.weight"], 2.5 * layer.lora_B["default"].weight)
    assert len(state) == 2 * len(layers), "and nothing else"


@pytest.mark.parametrize("dora", [False, True])
def test_it_starts_as_the_base_model_from_the_run_s_seed(dora, make_config, tiny_model):
    """The start is peft's, uniform within 1 / √inputs, whatever PyTorch's own random state is."""
    base = pixels(load_pipeline(tiny_model)[0], "a photo of sks dog")
    starts = {}
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        torch.manual_seed(len(name))
        config = make_config(seed=seed, **method_settings("lora", lora={"dora": dora}))
        pipe, _, trainable = attached(config)
        assert distance(pixels(pipe, config.instance_prompt), base) <= 1
        starts[name] = torch.cat([parameter.detach().flatten() for parameter in trainable.parameters])
        for layer in adapted(pipe).values():
            down = layer.lora_A["default"].weight
            bound = 1 / math.sqrt(down.shape[1])
            assert 0.9 * bound < down.abs().max() <= bound
    assert torch.equal(starts["a"], starts["again"])
    assert not torch.equal(starts["a"], starts["b"])


def test_dora_takes_the_lengths_of_weights_in_bf16_in_full(make_config, tiny_model, tmp_path):
    """peft rounds them to bf16, by up to 0.002 of themselves, in which a training would not start at the base model;
    of as many numbers as real layers have, their own rounding is nothing. So, too, where a saved one is loaded."""
    config = make_config(**method_settings("lora", lora={"dora": True}))
    torch.manual_seed(0)
    wide = nn.ModuleDict({"to_k": nn.Linear(320, 64)})
    dora = _inject(wide, "unet", ["to_k"], config)["to_k"].lora_magnitude_vector["default"]
    weight = wide["to_k"].base_layer.weight.bfloat16()
    found = dora.get_weight_norm(weight, torch.zeros_like(weight), 1.0, adapter_name="default")
    assert (dora.weight / found - 1).abs().max() < 6e-4
    trained(config, tmp_path / "dora")
    for layer in adapted(load_model(tmp_path / "dora", tiny_model)[0]).values():
        dora, weight = layer.lora_magnitude_vector["adapter-0"], layer.base_layer.weight.bfloat16()
        change = torch.ones_like(weight)
        exact = torch.linalg.norm(weight.double() + 0.5 * change.double(), dim=1)
        assert torch.allclose(dora.get_weight_norm(weight, change, 0.5, adapter_name="x").double(), exact, rtol=1e-6)


def test_dora_is_the_paper_s_formula(make_config):
    """A layer gives m (W + BA) / ‖W + BA‖ x, norms taken for each output (arXiv 2402.09353, equation 5)."""
    pipe, _, trainable = attached(make_config(**method_settings("lora", lora={"rank": 2, "alpha": 6.0, "dora": True})))
    rng = torch.Generator().manual_seed(0)
    for parameter in trainable.parameters:
        parameter.data += torch.randn(parameter.shape, generator=rng)
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    x = torch.randn(3, 16, generator=rng)
    matrices = (layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    w, a, b = (m.detach().double().numpy() for m in matrices)
    direction = w + 3.0 * b @ a
    length = layer.lora_magnitude_vector["default"].weight.detach().double().numpy()
    wanted = x.double().numpy() @ (length[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)).T
    np.testing.assert_allclose(layer(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dropout_is_for_training_alone_and_repeats(make_config, tmp_path):
    """Resumed or not, a run ends with the same weights; samples are drawn without it, as `generate` draws."""
    settings = method_settings("lora", lora={"dropout": 0.5}, train={"sample_every": 4}, prior={"enabled": False})
    config = make_config(evaluation={"while_training": False}, **settings)
    assert {layer.lora_dropout["default"].p for layer in adapted(attached(config)[0]).values()} == {0.5}
    seen, parts = [], Run.create(config, tmp_path / "parts")
    for event in parts.execute(should_stop=lambda: sum(isinstance(e, events.Step) for e in seen) >= 2):
        seen.append(event)
    assert parts.status == "cancelled"
    list(parts.execute(resume=True))
    happened = list(Run.create(config, tmp_path / "whole").execute())
    whole, parts = (load_file(tmp_path / name / "model" / FILE) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)

    prompt = config.instance_prompt
    sample = next(e for e in happened if isinstance(e, events.Image) and (e.step, e.prompt) == (4, prompt))
    (drawn,) = next(generate(open_source(str(tmp_path / "whole")), [prompt], num_images=1, seed=sample.seed))
    assert distance(tiny.pixels(tmp_path / "whole" / sample.path), tiny.pixels(drawn.image)) <= 1


@pytest.mark.parametrize("dora", [False, True])
def test_scale_is_stock_diffusers_and_zero_is_the_base_model(dora, make_config, tiny_model, tmp_path):
    """With DoRA zero leaves the trained lengths, as it does there."""
    config = make_config(**method_settings("lora", lora={"dora": dora}))
    trained(config, tmp_path / "lora")
    base = pixels(load_pipeline(tiny_model)[0], config.instance_prompt)
    drawn = {}
    for scale in (0.0, 0.4, 1.5):
        stock = StableDiffusionPipeline.from_pretrained(tiny_model)
        stock.load_lora_weights(tmp_path / "lora", adapter_name="dog")
        stock.set_adapters("dog", scale)
        drawn[scale] = pixels(load_model(tmp_path / "lora", tiny_model, scale=scale)[0], config.instance_prompt)
        assert distance(drawn[scale], pixels(stock, config.instance_prompt)) == 0
    assert (distance(drawn[0.0], base) <= 1) == (not dora)
    assert distance(drawn[0.4], drawn[1.5]) > 4


def test_drift_is_the_squared_norm_of_the_products(make_config):
    settings = method_settings("lora", lora={"rank": 3, "alpha": 6.0}, drift={"weight": 1.0})
    settings["lora"]["targets"] = ["to_q", "conv1"]
    pipe, _, trainable = attached(make_config(**settings))
    assert trainable.drift().item() == 0
    rng = torch.Generator().manual_seed(0)
    for parameter in trainable.parameters:
        parameter.data += torch.randn(parameter.shape, generator=rng)
    wanted, gradients = 0.0, []
    for layer in adapted(pipe).values():
        a, b = (m["default"].weight.detach().double().flatten(1).numpy() for m in (layer.lora_A, layer.lora_B))
        wanted += np.square(2.0 * b @ a).sum()
        gradients.append((layer, 8.0 * b.T @ b @ a, 8.0 * b @ a @ a.T))
    assert trainable.drift().item() == pytest.approx(wanted, rel=1e-5)
    trainable.drift().backward()
    for layer, of_a, of_b in gradients:
        for parameter, grad in ((layer.lora_A["default"].weight, of_a), (layer.lora_B["default"].weight, of_b)):
            np.testing.assert_allclose(parameter.grad.flatten(1), grad, rtol=1e-4, atol=1e-3)


LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
"""16 inputs and outputs."""


def lora(layer: str = LAYER, rank: int = 2, inputs: int = 16, outputs: int = 16, up_rank: int | None = None) -> dict:
    up = torch.ones(outputs, up_rank or rank)
    return {f"{layer}.lora.down.weight": torch.ones(rank, inputs), f"{layer}.lora.up.weight": up}


DOWN, UP = lora()
LENGTHS = f"{LAYER}.lora_magnitude_vector.weight"
OTHER = LAYER.replace("to_q", "to_k")
UNUSABLE = {
    "nothing": ({}, "can't be used .matrices are missing"),
    "half of a layer": ({DOWN: torch.ones(2, 16)}, "matrices are missing"),
    "lengths of one layer alone": (lora() | lora(OTHER) | {LENGTHS: torch.ones(16)}, "matrices are missing"),
    "another layout": ({"lora_unet_mid_block.lora_down.weight": torch.ones(2, 16)}, "is none of its matrices"),
    "a pattern for a name": (lora("unet.(a+)+$"), r"unet.\(a\+\)\+\$\S* is none of its matrices"),
    "more than matrices": (lora() | {f"{LAYER}.lora.bias": torch.ones(2)}, "bias' is none of its matrices"),
    "whole numbers": ({key: value.long() for key, value in lora().items()}, "holds numbers of type int64"),
    "eight bits": (lora() | {UP: torch.ones(16, 2).to(torch.float8_e4m3fn)}, "holds numbers of type float8_e4m3fn"),
    "a single number": (lora() | {DOWN: torch.tensor(1.0)}, "do not belong together"),
    "no numbers": (lora() | {UP: torch.full((16, 2), torch.nan)}, "not finite"),
    "rank 0": (lora(rank=0), "holds no numbers"),
    "one layer under two names": (
        lora() | {UP.replace(".lora.", ".lora_linear_layer."): torch.ones(16, 2)},
        "under another name, too",
    ),
    "a layer of another model": (lora(f"{LAYER}.more"), "does not fit this base model"),
    "a layer of no part": (lora("tokenizer.encoder"), "does not fit this base model"),
    "a layer without weights": (lora("unet.mid_block"), "does not fit this base model"),
    "other inputs": (lora(inputs=8), "does not fit this base model .unet.mid_block.*to_q"),
    "other outputs": (lora(outputs=8), "does not fit this base model"),
    "two ranks": (lora(up_rank=3), "to_q' do not belong together"),
    "other lengths": (lora() | {LENGTHS: torch.ones(8)}, "do not belong together"),
    "a kernel for a linear layer": (
        {DOWN: torch.ones(2, 16, 3, 3), UP: torch.ones(16, 2, 1, 1)},
        "does not fit this base model",
    ),
}


@pytest.fixture
def fitting(tiny_model, tmp_path):
    """An adapter's folder with a fitting LoRA of one layer."""
    save_file(lora(), claimed("lora", tiny_model, tmp_path / "lora") / FILE)
    return tmp_path / "lora"


def test_a_lora_of_one_layer_is_enough(fitting, tiny_model):
    assert list(adapted(load_model(fitting, tiny_model)[0])) == [LAYER]


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_damaged_or_foreign_file_is_told_of(what, fitting, tiny_model):
    state, words = UNUSABLE[what]
    save_file(state, fitting / FILE)
    with pytest.raises(ModelError, match=words) as told:
        load_model(fitting, tiny_model)
    assert str(fitting) not in str(told.value)


def test_a_file_that_is_none_is_told_of(fitting, tiny_model):
    for content in (b"", b"nonsense", (fitting / FILE).read_bytes()[:-8]):
        (fitting / FILE).write_bytes(content)
        with pytest.raises(ModelError, match="can't be used"):
            load_model(fitting, tiny_model)
