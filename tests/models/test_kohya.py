"""The export for other programs, against the published layout and against diffusers' own converter."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dreambooth.errors import ConfigError, ModelError
from dreambooth.families.load import load_pipeline
from dreambooth.models.adapters import fuse
from dreambooth.models.kohya import export_kohya
from tests.methods import claimed, distance, method_settings, pixels, trained

UNET = [
    f"lora_unet_{block}_attentions_{number}_transformer_blocks_0_{attention}_{projection}"
    for block, numbers in {"down_blocks_0": [0], "mid_block": [0], "up_blocks_1": [0, 1]}.items()
    for number in numbers
    for attention in ("attn1", "attn2")
    for projection in ("to_q", "to_k", "to_v", "to_out_0")
]
TEXT = [
    f"lora_te_text_model_encoder_layers_{layer}_self_attn_{projection}_proj"
    for layer in range(2)
    for projection in ("q", "k", "v", "out")
]
"""The tiny model's attention as `networks/lora.py` of kohya-ss/sd-scripts calls it: lora_unet or lora_te, then the
module's path with underscores for dots."""

KINDS = {
    "with the text encoder": (method_settings("lora", lora={"rank": 3, "alpha": 6.0}), UNET + TEXT),
    "the denoiser alone": (method_settings("lora", train={"text_encoder": False}), UNET),
    "DoRA": (method_settings("lora", lora={"rank": 4, "dora": True}), UNET + TEXT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_key_by_key_as_published_and_worth_the_same(kind, make_config, tiny_model, tmp_path):
    """By the formula of the scripts, W + alpha / rank · up down, and LyCORIS's for DoRA, it gives the fused weights."""
    settings, layers = KINDS[kind]
    config = make_config(**settings)
    trained(config, tmp_path / "lora")
    export_kohya(tmp_path / "lora", tmp_path / "out" / "lora.safetensors")
    state = load_file(tmp_path / "out" / "lora.safetensors")
    parts = ["lora_down.weight", "lora_up.weight", "alpha", *(["dora_scale"] if config.lora.dora else [])]
    assert set(state) == {f"{layer}.{part}" for layer in layers for part in parts}

    fuse(tmp_path / "lora", tmp_path / "fused", tiny_model)
    base, fused = weights_by_kohya_name(tiny_model), weights_by_kohya_name(tmp_path / "fused")
    for layer in layers:
        down, up = (state[f"{layer}.lora_{way}.weight"].astype(np.float64) for way in ("down", "up"))
        assert len(down) == up.shape[1] == config.lora.rank
        assert state[f"{layer}.alpha"].shape == ()
        weight = base[layer] + state[f"{layer}.alpha"] / config.lora.rank * (up @ down)
        if config.lora.dora:
            assert state[f"{layer}.dora_scale"].shape == (len(up), 1)
            weight *= state[f"{layer}.dora_scale"] / np.linalg.norm(weight, axis=1, keepdims=True)
        np.testing.assert_allclose(weight, fused[layer], atol=2e-6)
        assert abs(weight - base[layer]).max() > 0.1


def weights_by_kohya_name(folder) -> dict[str, np.ndarray]:
    pipe, _ = load_pipeline(folder)
    named = {}
    for prefix, part in (("lora_unet", pipe.unet), ("lora_te", pipe.text_encoder)):
        for path, module in part.named_modules():
            if isinstance(module, torch.nn.Linear):
                path = f"text_model.{path}" if path.startswith("encoder.") else path  # as transformers 4 called it
                named[f"{prefix}.{path}".replace(".", "_")] = module.weight.detach().double().numpy()
    return named


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_own_converter_reads_it_back(kind, make_config, tiny_model, tmp_path):
    """The picture is the trained pipeline's, pixel by pixel."""
    config = make_config(**KINDS[kind][0])
    wanted = pixels(trained(config, tmp_path / "lora"), config.instance_prompt)
    remarks = export_kohya(tmp_path / "lora", tmp_path / "lora.safetensors")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    if config.lora.dora:  # its load_lora_weights leaves the lengths out; its converter does not, but in another shape
        assert "It is a DoRA" in remarks[0]
        state = {key: torch.from_numpy(value) for key, value in load_file(tmp_path / "lora.safetensors").items()}
        converted, _ = _convert_non_diffusers_lora_to_diffusers(state)
        pipe.load_lora_weights({k: v.flatten() if "magnitude" in k else v for k, v in converted.items()})
    else:
        assert remarks == []
        pipe.load_lora_weights(tmp_path / "lora.safetensors")
    assert distance(pixels(pipe, config.instance_prompt), wanted) == 0


def test_layers_of_any_kind_are_exported(make_config, tiny_model, tmp_path):
    """Convolutions and feed-forward layers, where `lora.targets` asks for them."""
    targets = ["proj_in", "conv1", "ff.net.0.proj", "time_emb_proj"]
    config = make_config(**method_settings("lora", lora={"rank": 2, "targets": targets}, train={"text_encoder": False}))
    wanted = pixels(trained(config, tmp_path / "lora"), config.instance_prompt)
    export_kohya(tmp_path / "lora", tmp_path / "lora.safetensors")
    state = load_file(tmp_path / "lora.safetensors")
    assert state["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"].shape == (2, 16, 3, 3)
    assert state["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"].shape == (16, 2, 1, 1)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    assert distance(pixels(pipe, config.instance_prompt), wanted) == 0


def test_a_learned_word_stays_in_its_own_file(make_config, tmp_path):
    trained(make_config(**method_settings("textual_inversion")), tmp_path / "word")
    settings = method_settings("lora", word={"learned": str(tmp_path / "word")})
    trained(make_config(**settings), tmp_path / "lora")
    remarks = export_kohya(tmp_path / "lora", tmp_path / "lora.safetensors")
    assert len(remarks) == 1
    assert "<sks> is not in this file" in remarks[0]
    assert all(key.startswith("lora_") for key in load_file(tmp_path / "lora.safetensors"))


def test_an_export_writes_over_nothing_and_tells_nothing_of_this_machine(make_config, tmp_path):
    trained(make_config(**method_settings("lora")), tmp_path / "lora")
    out = tmp_path / "exported.safetensors"
    out.write_text("an older one")
    with pytest.raises(ConfigError, match=r"exported\.safetensors is there already"):
        export_kohya(tmp_path / "lora", out)
    assert out.read_text() == "an older one"
    out.unlink()
    export_kohya(tmp_path / "lora", out)
    with safe_open(out, "np") as file:
        assert file.metadata() is None
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [out.name], "no partial file is left"


def test_what_is_no_lora_or_no_file_is_refused(make_config, tiny_model, tmp_path):
    trained(make_config(**method_settings("lora")), tmp_path / "lora")
    trained(make_config(**method_settings("textual_inversion")), tmp_path / "word")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "nothing").mkdir()
    for model, out, words in (
        (tiny_model, "x.safetensors", "is a whole model"),
        (tmp_path / "nothing", "x.safetensors", "is a whole model"),
        (tmp_path / "word", "x.safetensors", "word is an adapter of method textual_inversion"),
        (tmp_path / "lora", "x.ckpt", "is no file to export to"),
        (tmp_path / "lora", "folder.safetensors", "is no file to export to"),
    ):
        with pytest.raises(ConfigError, match=words):
            export_kohya(model, tmp_path / out)
    assert not (tmp_path / "x.safetensors").exists()


UNUSABLE = {
    "no weights": (None, "can't be used"),
    "a part of another program": ({"foo.bar": (2, 16, 16, 2)}, "no name for .'foo.bar'"),
    "a part of another family": ({"transformer.to_q": (2, 16, 16, 2)}, "no name for .'transformer.to_q'"),
    "rank 0": ({"unet.to_q": (0, 16, 16, 0)}, "holds no numbers"),
    "two ranks": ({"unet.to_q": (2, 16, 16, 3)}, "do not belong together"),
}
"""name: (rank and inputs, outputs and rank of each layer; words of the error)"""


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_damaged_or_foreign_lora_is_not_exported(what, tiny_model, tmp_path):
    layers, words = UNUSABLE[what]
    file = claimed("lora", tiny_model, tmp_path / "lora") / "pytorch_lora_weights.safetensors"
    if layers is None:
        file.write_bytes(b"nonsense")
    else:
        matrices = {}
        for layer, (rank, inputs, outputs, of_up) in layers.items():
            matrices[f"{layer}.lora.down.weight"] = np.ones((rank, inputs), np.float32)
            matrices[f"{layer}.lora.up.weight"] = np.ones((outputs, of_up), np.float32)
        save_file(matrices, file)
    with pytest.raises(ModelError, match=words):
        export_kohya(tmp_path / "lora", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
