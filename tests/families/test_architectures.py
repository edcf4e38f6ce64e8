"""A stranger's pipeline is built only as the known ones are; what its files say otherwise is refused, or not heeded."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from dreambooth.errors import ModelError
from dreambooth.families import architectures, load
from dreambooth.families.architectures import CLASSES, check_classes, count_numbers, facts
from dreambooth.families.load import check_architecture, load_pipeline, load_safety_checker
from dreambooth.families.stable_diffusion import STABLE_DIFFUSION
from dreambooth.machine import Speed
from dreambooth.models.fetch import TOYBOX_FOLDER
from dreambooth.rehearsal import Rehearsal, blank_pipeline

SD_1 = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
        "vocab_size": 49408,
    },
}
"""The configurations of Stable Diffusion 1.5, whose weights are 860, 84 and 123 million."""
SD_2 = {
    "unet": SD_1["unet"]
    | {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "dual_cross_attention": False,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "sample_size": 96,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "vae": SD_1["vae"] | {"scaling_factor": 0.18215, "sample_size": 768},
    "text_encoder": SD_1["text_encoder"]
    | {
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "projection_dim": 512,
    },
}
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.mark.parametrize("known", [SD_1, SD_2], ids=["1.5", "2.1"])
def test_stable_diffusion_is_known(tmp_path, known):
    for part, settings in known.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(settings))
        found = facts(tmp_path, part)
        assert {name: found[name] for name in settings if name in found} == {
            name: value for name, value in settings.items() if name in found
        }
        held = tmp_path / "one.safetensors"
        count = architectures._count(part, json.dumps(architectures.facts(tmp_path, part)))
        held.write_bytes(header({"all": [count]}))
        architectures.check_weights(tmp_path, part, [held])
        assert round(count / 1e6) in {"unet": (860, 866), "vae": (84,), "text_encoder": (123, 340)}[part]


@pytest.mark.parametrize("folder", ["toybox", "tiny"])
def test_the_toybox_and_what_training_saves_are_known(tiny_model, folder):
    check_architecture(TOYBOX_FOLDER if folder == "toybox" else tiny_model, STABLE_DIFFUSION)


def header(shapes: dict[str, list[int]]) -> bytes:
    """A safetensors file that is nothing but its header."""
    told = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    )
    return len(told).to_bytes(8, "little") + told.encode()


# ---- What is refused


def with_index(**changes):
    def change(folder: Path) -> None:
        file = folder / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def with_fact(name, **changes):
    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return change


def with_words(name: str, key: str, count: int):
    words = {f"word{n}": 100 + n for n in range(count)}
    return lambda folder: (folder / "tokenizer" / name).write_text(json.dumps({key: words} if key else words))


ATTACKS = {
    "another tokenizer": (with_index(tokenizer=["transformers", "PreTrainedTokenizerFast"]), "its tokenizer is"),
    "any class": (with_index(text_encoder=["transformers", "LlamaForCausalLM"]), "its text_encoder is"),
    "a class of another part": (with_index(unet=["diffusers", "UNet3DConditionModel"]), "its unet is"),
    "another autoencoder": (with_index(vae=["diffusers", "ConsistencyDecoderVAE"]), "its vae is"),
    "another scheduler": (with_index(scheduler=["diffusers", "DPMSolverSDEScheduler"]), "its scheduler is"),
    "no list": (with_index(scheduler={"diffusers": 1}), "its scheduler is"),
    "deep blocks": (with_fact("unet/config.json", transformer_layers_per_block=400), "is above 1"),
    "deep blocks, listed": (with_fact("unet/config.json", transformer_layers_per_block=[1, [9]]), "holds lists"),
    "deep decoder": (with_fact("unet/config.json", reverse_transformer_layers_per_block=[[9] * 9]), "not None"),
    "many layers": (with_fact("unet/config.json", layers_per_block=100), "layers_per_block of its unet is above 3"),
    "many blocks": (with_fact("unet/config.json", down_block_types=["DownBlock2D"] * 9), "has 9 entries"),
    "uneven blocks": (with_fact("unet/config.json", up_block_types=["UpBlock2D"] * 3), "has 2 blocks, but other up_"),
    "other blocks": (with_fact("vae/config.json", up_block_types=["AttnUpDecoderBlock2D"] * 3), "does not exist"),
    "another condition": (with_fact("unet/config.json", encoder_hid_dim=8000), "encoder_hid_dim of its unet is 8000"),
    "classes": (with_fact("unet/config.json", num_class_embeds=9_999), "num_class_embeds of its unet is 9999"),
    "huge pictures": (with_fact("unet/config.json", sample_size=4000), "sample_size of its unet is above 128"),
    "many heads": (with_fact("unet/config.json", attention_head_dim=1280), "attention_head_dim of its unet is above"),
    "deep vae": (with_fact("vae/config.json", layers_per_block=9_999), "layers_per_block of its vae is above 2"),
    "deep text": (with_fact("text_encoder/config.json", num_hidden_layers=9_999), "num_hidden_layers of its text_enc"),
    "no number": (with_fact("unet/config.json", sample_size=True), "is True, not a number"),
    "half a number": (with_fact("unet/config.json", layers_per_block=1.5), "not a whole number"),
    "nothing": (with_fact("unet/config.json", norm_num_groups=0), "not a whole number from 1"),
    "not finite": (with_fact("unet/config.json", norm_eps=float("nan")), "is nan, not a number"),
    "a word": (with_fact("text_encoder/config.json", hidden_act="xielu"), "is 'xielu', which does not exist"),
    "quantized": (with_fact("text_encoder/config.json", quantization_config={"quant_method": "hqq"}), "quantization"),
    "a kernel": (with_fact("text_encoder/config.json", _attn_implementation="a/kernel"), "_attn_implementation"),
    "no settings": (lambda f: (f / "unet/config.json").write_text("[]"), "unet/config.json holds no settings"),
    "vocabulary": (with_words("vocab.json", "", 100_001), "tokenizer/vocab.json has 100,001 words"),
    "added words": (with_words("added_tokens.json", "", 1_001), "tokenizer/added_tokens.json has 1,001 words"),
    "words added to the settings": (
        with_words("tokenizer_config.json", "added_tokens_decoder", 1_001),
        "has 1,001 words, more than 1,000",
    ),
    "words added to both": (with_words("tokenizer.json", "added_tokens", 1_001), "tokenizer.json has 1,001 words"),
}


@pytest.mark.attack
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_no_known_model_has_is_refused_before_a_class_is_made(tiny_model, tmp_path, monkeypatch, attack):
    change, words = ATTACKS[attack]
    shutil.copytree(tiny_model, tmp_path / "model")
    check_architecture(tmp_path / "model", STABLE_DIFFUSION)
    change(tmp_path / "model")
    for name in ("_load_text_encoder", "_load_tokenizer", "check_weights"):
        monkeypatch.setattr(load, name, None)
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", None)
    for read in (load_pipeline, lambda folder: blank_pipeline(folder, STABLE_DIFFUSION, None)):
        with pytest.raises(ModelError) as told:
            read(tmp_path / "model")
        assert words in told.value.message
        assert "Choose another model" in told.value.hint


def test_what_libraries_drop_does_not_hinder(tiny_model, tmp_path):
    """Older programs wrote more, and newer ones will."""
    shutil.copytree(tiny_model, tmp_path / "model")
    with_fact("unet/config.json", _name_or_path="x", decay=0.9999, inv_gamma=1.0, use_ema_warmup=False)(
        tmp_path / "model"
    )
    with_fact("text_encoder/config.json", torch_dtype="float16", id2label={"0": "a"}, bad_words_ids=None)(
        tmp_path / "model"
    )
    with_fact(
        "text_encoder/config.json", _attn_implementation_autoset=True, quantization_config=None, pad_token_id=None
    )(tmp_path / "model")
    with_index(text_encoder=["transformers", "CLIPTextModelWithProjection"])(tmp_path / "model")
    assert Rehearsal(tmp_path / "model", torch.device("cpu"), Speed(1.0, 1.0, 1.0)).model_bytes > 0
    for name in {name for _, name in CLASSES["scheduler"]} - {"LMSDiscreteScheduler"}:  # which needs SciPy
        with_index(scheduler=["diffusers", name], tokenizer=["transformers", "CLIPTokenizerFast"])(tmp_path / "model")
        with_fact("scheduler/scheduler_config.json", _class_name=name)(tmp_path / "model")
        pipe, _ = load_pipeline(tmp_path / "model")
        assert type(pipe.scheduler).__name__ == name


@pytest.mark.attack
@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 1280, "num_attention_heads": 20},
        {"num_hidden_layers": 32, "intermediate_size": 5120},
    ],
)
def test_a_part_has_as_many_weights_as_its_files(tiny_model, tmp_path, change):
    shutil.copytree(tiny_model, tmp_path / "model")
    with_fact("text_encoder/config.json", **change)(tmp_path / "model")
    with pytest.raises(ModelError, match=r"the text_encoder has [\d,]+ weights by its config.json, and its files hold"):
        load_pipeline(tmp_path / "model")


@pytest.mark.attack
def test_a_file_of_more_than_the_part_needs_is_refused(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / UNET)
    save_file(weights | {"more": torch.zeros(50_000)}, tmp_path / "model" / UNET, {"format": "pt"})
    assert load_pipeline(tmp_path / "model"), "a few numbers more, as buffers are"
    save_file(weights | {"more": torch.zeros(500_000)}, tmp_path / "model" / UNET, {"format": "pt"})
    with pytest.raises(ModelError, match=r"the unet has .* weights by its config\.json, and its files hold"):
        load_pipeline(tmp_path / "model")


@pytest.mark.attack
@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 7 + b"\0" + b"{}",
        (2**25).to_bytes(8, "little") + b"{}",
        b"\x02" + bytes(7) + b"[]",
        b"\x09" + bytes(7) + b'{"x": 12}',
        (4).to_bytes(8, "little") + b"[[[[",
    ],
)
def test_a_damaged_header_is_told(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"^Unable to load weights: x\.safetensors"):
        count_numbers(tmp_path / "x.safetensors")


# ---- What is not heeded


@pytest.mark.attack
def test_a_tokenizers_file_has_no_say_in_what_happens_to_texts(tiny_model, tmp_path):
    """Each of these makes ten letters of one; six make a prompt of megabytes."""
    shutil.copytree(tiny_model, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer" / "tokenizer.json"
    grows = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "Sequence", "normalizers": [grows] * 4}})
    )
    with_fact("tokenizer/tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")(tmp_path / "model")
    theirs, ours = (load_pipeline(folder)[0].tokenizer for folder in (tmp_path / "model", tiny_model))
    prompt = "a photo of a cat"
    assert theirs(prompt).input_ids == ours(prompt).input_ids


@pytest.mark.attack
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_words("added_tokens.json", "", 900), "has a token 1,109"),
        (with_words("added_tokens.json", "", 0), ""),
        (with_fact("tokenizer/tokenizer_config.json", model_max_length=77), "gives 77 tokens"),
        (with_fact("tokenizer/tokenizer_config.json", model_max_length=8), ""),
    ],
)
def test_a_tokenizer_gives_no_token_that_its_encoder_has_no_row_for(tiny_model, tmp_path, change, words):
    """On a GPU that would end all that the process draws and trains."""
    shutil.copytree(tiny_model, tmp_path / "model")
    change(tmp_path / "model")
    if not words:
        assert load_pipeline(tmp_path / "model")
        return
    with pytest.raises(ModelError, match=words):
        load_pipeline(tmp_path / "model")


# ---- Safety checkers


def safety_checker(folder: Path, thresholds: float = 9.0, **vision: int) -> Path:
    """A tiny safety checker of random weights; above what thresholds a picture is flagged decides."""
    torch.manual_seed(0)
    sides = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    } | vision
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=sides, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(thresholds)
    checker.special_care_embeds_weights.data.fill_(thresholds)
    checker.save_pretrained(folder)
    return folder


def test_a_safety_checker_is_loaded_as_it_was_saved(tmp_path):
    folder = safety_checker(tmp_path / "checker")
    checker, extractor = load_safety_checker(folder)
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(weight, saved[name]) for name, weight in checker.named_parameters() if name in saved)
    assert len(saved) >= len(list(checker.parameters()))
    pictures = extractor([torch.zeros(3, 50, 60).byte().numpy().transpose(1, 2, 0)], return_tensors="pt")
    assert pictures.pixel_values.shape == (1, 3, 32, 32)
    assert CLIPImageProcessor().image_mean == extractor.image_mean


@pytest.mark.attack
@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 9_999},
        {"hidden_size": 9_984},
        {"image_size": 8_000},
        {"intermediate_size": 100_000},
        {"num_hidden_layers": 32},
    ],
)
def test_a_safety_checker_that_would_take_the_memory_is_refused(tmp_path, change):
    folder = safety_checker(tmp_path / "checker")
    for name in ("vision_config", "vision_config_dict"):
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {name: settings["vision_config"] | change}))
        with pytest.raises(ValueError, match=f"{re.escape(next(iter(change)))} of its safety|has .* weights by its"):
            load_safety_checker(folder)
        (folder / "config.json").write_text(json.dumps(settings))


def test_the_index_names_the_known_parts_and_no_other():
    index = {part: list(known[0]) for part, known in CLASSES.items()}
    check_classes(index | {"image_encoder": [None, None], "other": [None, None], "requires_safety_checker": True})
    check_classes(index | {"feature_extractor": ["transformers", "CLIPFeatureExtractor"]})
    with pytest.raises(ValueError, match="its vae is None"):
        check_classes({name: entry for name, entry in index.items() if name != "vae"})
    with pytest.raises(ValueError, match="it has a other, which is no part of such a model"):
        check_classes(index | {"other": ["diffusers", "FluxPipeline"]})
