"""What is saved of a training, as others read it: stock diffusers, and this product from a stranger's hands."""

import json
import subprocess
import sys

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth.errors import ConfigError, ModelError
from dreambooth.families.load import load_pipeline
from dreambooth.models.adapters import fuse, load_model, read_adapter
from tests import tiny
from tests.methods import distance, method_settings, pixels, trained

STOCK = """
import json, sys, torch
from diffusers import StableDiffusionPipeline

base, artefacts = json.loads(sys.stdin.read())
for name, (how, folder, prompt) in artefacts.items():
    pipe = StableDiffusionPipeline.from_pretrained(folder if how == ["pipeline"] else base)
    if "word" in how:
        pipe.load_textual_inversion(folder)
    if "lora" in how:
        pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    if "custom" in how:
        weights = "pytorch_custom_diffusion_weights.safetensors"
        pipe.unet.load_attn_procs(folder, weight_name=weights, _pipeline=pipe)
    image = pipe(prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(3)).images[0]
    image.save(f"{name}.png")
assert not any(module.startswith("dreambooth") for module in sys.modules)
"""
"""A program of stock diffusers alone: it draws with each artefact."""


@pytest.mark.slow
def test_every_artefact_draws_the_same_in_stock_diffusers_without_us(make_config, tiny_model, tmp_path):
    """Each pixel is the same as in the pipeline that was trained; where fusing or diffusers' own layers for Custom
    Diffusion add up in another order, it may be off by one of 256 levels."""
    inverted = str(tmp_path / "word-1")
    kinds = {
        "lora": (["lora"], method_settings("lora")),
        "lora-alpha": (["lora"], method_settings("lora", lora={"rank": 3, "alpha": 7.5, "dropout": 0.5})),
        "lora-dora": (["lora"], method_settings("lora", lora={"dora": True})),
        "lora-denoiser": (["lora"], method_settings("lora", train={"text_encoder": False})),
        "word-1": (["word"], method_settings("textual_inversion")),
        "word-3": (["word"], method_settings("textual_inversion", word={"vectors": 3})),
        "custom": (["word", "custom"], method_settings("custom_diffusion")),
        "pivotal": (["word", "lora"], method_settings("lora", word={"learned": inverted})),
    }
    base, _ = load_pipeline(tiny_model)
    ours, artefacts = {}, {}
    for seed, (name, (how, settings)) in enumerate(kinds.items()):
        config = make_config(**settings)
        ours[name] = pixels(trained(config, tmp_path / name, seed), config.instance_prompt)
        artefacts[name] = (how, str(tmp_path / name), config.instance_prompt)
        reloaded, _ = load_model(tmp_path / name, tiny_model)
        assert distance(pixels(reloaded, config.instance_prompt), ours[name]) == 0, name
        assert distance(pixels(base, "a photo of sks dog"), ours[name]) > 8, f"{name} shows what was trained"
    fused = {f"{name}-fused": name for name in ("lora-dora", "custom", "pivotal")}
    for name, adapter in fused.items():
        fuse(tmp_path / adapter, tmp_path / name, tiny_model)
        artefacts[name] = (["pipeline"], str(tmp_path / name), artefacts[adapter][2])
        ours[name] = ours[adapter]

    told = subprocess.run(
        [sys.executable, "-c", STOCK],
        input=json.dumps([str(tiny_model), artefacts]),
        text=True,
        cwd=tmp_path,
        capture_output=True,
    )
    assert told.returncode == 0, told.stderr
    for name in artefacts:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert distance(tiny.pixels(image), ours[name]) <= (name in {"custom", *fused}), name


ADAPTER = {
    "method": "lora",
    "base_model": "toybox",
    "revision": None,
    "base_fingerprint": "0" * 64,
    "identifiers": ["sks"],
}
DAMAGED = {
    "no JSON": ("nonsense", "1 errors"),
    "something else": ("[]", "1 errors"),
    "no method": (json.dumps({k: v for k, v in ADAPTER.items() if k != "method"}), "1 errors"),
    "an unknown method": (json.dumps(ADAPTER | {"method": "hypernetwork"}), "1 errors"),
    "more than is known": (json.dumps(ADAPTER | {"code": "import os"}), "1 errors"),
    "a number for a name": (json.dumps(ADAPTER | {"base_model": 7}), "1 errors"),
    "a page for a word": (json.dumps(ADAPTER | {"identifiers": ["x" * 61]}), "1 errors"),
    "a method of whole models": (json.dumps(ADAPTER | {"method": "full"}), "weights are missing"),
    "no weights": (json.dumps(ADAPTER | {"method": "custom_diffusion"}), "weights are missing"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_adapter_is_told_of(what, tmp_path):
    text, words = DAMAGED[what]
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    (tmp_path / "adapter.json").write_text(text)
    with pytest.raises(ModelError, match=f"adapter.json can't be used .*{words}") as told:
        read_adapter(tmp_path)
    assert str(tmp_path) not in str(told.value)


def test_adapters_of_several_methods_take_part_together(make_config, tiny_model, tmp_path):
    """A word, a Custom Diffusion and two LoRAs: each counts, and the order in which they are named does not."""
    kinds = {
        "word": method_settings("textual_inversion", subject={"identifier": "<cat-toy>"}),
        "custom": method_settings("custom_diffusion"),
        "a": method_settings("lora", train={"text_encoder": False}),
        "b": method_settings("lora", lora={"rank": 2}),
    }
    for seed, (name, settings) in enumerate(kinds.items()):
        trained(make_config(**settings), tmp_path / name, seed)
    parts = [(tmp_path / "word", 1.0), (tmp_path / "custom", 0.6), (tmp_path / "a", 0.5), (tmp_path / "b", -0.3)]
    prompt = "a photo of <sks> dog and <cat-toy>"
    together = pixels(load_model(tiny_model, adapters=parts)[0], prompt)
    *others, (first, weight) = parts
    assert (
        distance(pixels(load_model(first, tiny_model, scale=weight, adapters=others[::-1])[0], prompt), together) <= 1
    )
    for name in kinds:
        without = [part for part in parts if part[0].name != name]
        assert distance(pixels(load_model(tiny_model, adapters=without)[0], prompt), together) > 1, name


def test_a_file_s_own_notes_are_not_followed(make_config, tiny_model, tmp_path):
    """A LoRA's header can ask peft for another strength, other layers or files to read; here tensors alone count."""
    config = make_config(**method_settings("lora", train={"text_encoder": False}))
    wanted = pixels(trained(config, tmp_path / "lora"), config.instance_prompt)
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    notes = {"unet.r": 16, "unet.lora_alpha": 1000, "unet.target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
    save_file(load_file(file), file, {"format": "pt", "lora_adapter_metadata": json.dumps(notes)})
    stock = StableDiffusionPipeline.from_pretrained(tiny_model)
    stock.load_lora_weights(tmp_path / "lora")
    assert distance(pixels(stock, config.instance_prompt), wanted) > 1, "a reader of the notes draws something else"
    assert distance(pixels(load_model(tmp_path / "lora", tiny_model)[0], config.instance_prompt), wanted) == 0


def test_an_adapter_of_another_base_model_is_refused(make_config, tiny_model, tmp_path):
    trained(make_config(**method_settings("lora")), tmp_path / "lora")
    other = tiny.stable_diffusion(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="adapter of another base model than other"):
        load_model(tmp_path / "lora", other)


STACKED = {
    "lora": ("lora", {"train": {"text_encoder": False}}),
    "word": ("textual_inversion", {"subject": {"identifier": "<cat-toy>"}}),
    "custom": ("custom_diffusion", {"subject": {"identifier": "<cat-toy>"}}),
}


@pytest.mark.parametrize("kind", STACKED)
def test_an_adapter_of_another_base_model_goes_on_no_other_adapter(kind, make_config, tiny_model, tmp_path):
    method, changes = STACKED[kind]
    other = tiny.stable_diffusion(tmp_path / "other", seed=1)
    trained(make_config(**method_settings("lora")), tmp_path / "own")
    trained(make_config(base_model=str(other), **method_settings(method, **changes)), tmp_path / kind)
    with pytest.raises(ModelError, match=f"{kind} is an adapter of another base model than tiny-sd"):
        load_model(tmp_path / "own", tiny_model, adapters=[(tmp_path / kind, 1.0)])


def test_on_a_whole_model_that_was_trained_further_goes_all_but_custom_diffusion(make_config, tiny_model, tmp_path):
    """A LoRA's product and a word are the same on any weights; Custom Diffusion's projections count from one base."""
    full = tiny.stable_diffusion(tmp_path / "full", seed=1)
    parts = {}
    for kind, (method, changes) in STACKED.items():
        trained(make_config(**method_settings(method, **changes)), tmp_path / kind)
        parts[kind] = (tmp_path / kind, 1.0)
    prompt = "a photo of sks dog and <cat-toy>"
    drawn = pixels(load_model(full)[0], prompt)
    for kind in ("lora", "word"):
        assert distance(pixels(load_model(full, adapters=[parts[kind]])[0], prompt), drawn) > 1
    with pytest.raises(ModelError, match="Custom Diffusion goes on its own base model alone"):
        load_model(full, adapters=[parts["lora"], parts["custom"]])
    assert load_model(tiny_model, adapters=[parts["custom"]]), "its own base, by name"


def test_a_base_model_or_a_strength_of_a_whole_model_is_refused(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"given \(other\), but tiny-sd is a whole model\. Leave --base-model out"):
        load_model(tiny_model, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"scale is 0\.5, but this is a whole model"):
        load_model(tiny_model, scale=0.5)


def test_fusing_writes_over_nothing(make_config, tiny_model, tmp_path):
    trained(make_config(**method_settings("lora")), tmp_path / "lora")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "dear.txt").write_text("mine")
    for out in (tmp_path / "models", tmp_path / "models" / "dear.txt"):
        with pytest.raises(ConfigError, match="is there already"):
            fuse(tmp_path / "lora", out, tiny_model)
    assert (tmp_path / "models" / "dear.txt").read_text() == "mine"
