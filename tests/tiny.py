"""Tiny randomly initialised models of the real classes, in the real file layout, and photos to train them on."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

T = TypeVar("T")
WORDS = ("a", "photo", "of", "sks", "ohwx", "dog", "cat", "in", "the", "snow")


def tokenizer(length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer that knows `WORDS` as single tokens and every other word letter by letter."""
    alphabet = [chr(c) for c in range(33, 127)]
    vocab = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(c + "</w>" for c in alphabet)]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = (pieces[0], pieces[1])
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            if merge not in merges:
                merges.append(merge)
                vocab.append(pieces[0])
    return CLIPTokenizer({token: i for i, token in enumerate(vocab)}, merges, model_max_length=length)


def stable_diffusion(folder: Path, prediction: str = "epsilon", seed: int = 0) -> Path:
    """Save a Stable Diffusion pipeline of about 100,000 random weights, 32 px, and return its folder."""
    torch.manual_seed(seed)
    tok = tokenizer()
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
            scaling_factor=0.18215,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tok),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=tok.model_max_length,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        ),
        tokenizer=tok,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type=prediction,
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def dino(folder: Path, patch: int = 16, seed: int = 0) -> Path:
    """The files of facebook/dino-vits16 or, with 8 px patches, dino-vits8: all but the width is as published there.

    vits16 has pytorch_model.bin alone, vits8 a model.safetensors beside it; tensors bear the names they have there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width, positions = 24, (224 // patch) ** 2 + 1
    facts = {
        "architectures": ["ViTModel"],
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": width,
        "image_size": 224,
        "initializer_range": 0.02,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-12,
        "model_type": "vit",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": patch,
        "torch_dtype": "float32",
        "transformers_version": "4.10.0.dev0",
    }
    processor = {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "size": 224,
    }
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, positions, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for layer in range(2):
        linear = {
            **{f"attention.attention.{name}": (width, width) for name in ("query", "key", "value")},
            "attention.output.dense": (width, width),
            "intermediate.dense": (4 * width, width),
            "output.dense": (width, 4 * width),
        }
        shapes |= {f"encoder.layer.{layer}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"encoder.layer.{layer}.{name}.bias": shape[:1] for name, shape in linear.items()}
        for name in ("layernorm_before", "layernorm_after"):
            shapes |= {f"encoder.layer.{layer}.{name}.{part}": (width,) for part in ("weight", "bias")}
    weights = _random(shapes, seed)
    _write_json(folder, {"config.json": facts, "preprocessor_config.json": processor})
    torch.save(weights, folder / "pytorch_model.bin")
    if patch == 8:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def clip(folder: Path, seed: int = 0) -> Path:
    """The files of openai/clip-vit-base-patch32; all but the widths, depths and vocabulary is as published there."""
    folder.mkdir(parents=True, exist_ok=True)
    width, layers = 16, 2
    known = tokenizer().get_vocab()
    special = ["<|startoftext|>", "<|endoftext|>"]  # the last ids, as there: the old configuration relies on it
    words = [*sorted(set(known) - set(special), key=known.__getitem__), *special]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [tuple(pair) for pair in json.loads(tokenizer().backend_tokenizer.to_str())["model"]["merges"]]
    tower = {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-05,
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
    }
    facts = {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 12,
        "text_config": tower
        | {
            "bos_token_id": 0,
            "eos_token_id": 2,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "pad_token_id": 1,
            "vocab_size": len(words),
        },
        "text_config_dict": None,
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": tower | {"image_size": 224, "model_type": "clip_vision_model", "patch_size": 32},
        "vision_config_dict": None,
    }
    processor = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    start, end = ({"content": word} | marks for word in special)
    reading = {
        "unk_token": end | {"__type": "AddedToken"},
        "bos_token": start | {"__type": "AddedToken"},
        "eos_token": end | {"__type": "AddedToken"},
        "pad_token": special[1],
        "add_prefix_space": False,
        "errors": "replace",
        "do_lower_case": True,
        "name_or_path": "openai/clip-vit-base-patch32",
        "model_max_length": 77,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }
    shapes = {
        "logit_scale": (),
        "text_projection.weight": (12, width),
        "visual_projection.weight": (12, width),
        "text_model.embeddings.token_embedding.weight": (len(words), width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 32, 32),
        "vision_model.embeddings.position_embedding.weight": (50, width),
    }
    norms = ["text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    for side in ("text_model", "vision_model"):
        for layer in range(layers):
            inside = f"{side}.encoder.layers.{layer}"
            linear = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
            linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            shapes |= {f"{inside}.{name}.weight": shape for name, shape in linear.items()}
            shapes |= {f"{inside}.{name}.bias": shape[:1] for name, shape in linear.items()}
            norms += [f"{inside}.layer_norm1", f"{inside}.layer_norm2"]
    shapes |= {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}
    weights = _random(shapes, seed)
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    _write_json(
        folder,
        {
            "config.json": facts,
            "preprocessor_config.json": processor,
            "tokenizer_config.json": reading,
            "special_tokens_map.json": {
                "bos_token": start,
                "eos_token": end,
                "unk_token": end,
                "pad_token": special[1],
            },
            "vocab.json": vocabulary,
        },
    )
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    CLIPTokenizer(vocabulary, merges).backend_tokenizer.save(str(folder / "tokenizer.json"))
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=rng) * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, shape in shapes.items()
    }


def _write_json(folder: Path, files: dict[str, dict]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))


def photos(folder: Path, n: int = 3, size: tuple[int, int] = (80, 64)) -> Path:
    """`n` JPEGs of a coloured disc on backgrounds of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[: size[1], : size[0]]
    for i in range(n):
        picture = np.empty((size[1], size[0], 3), np.uint8)
        picture[:] = rng.integers(0, 255, 3)
        x, y = rng.integers(25, 40, 2)
        picture[(xx - x) ** 2 + (yy - y) ** 2 < 18**2] = (220, 40, 30)
        picture = np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"photo{i}.jpg", quality=95)
    return folder


def pixels(picture: Path | Image.Image) -> np.ndarray:
    """A picture's (H, W, 3) values, wide enough to be subtracted."""
    image = picture if isinstance(picture, Image.Image) else Image.open(picture)
    return np.asarray(image.convert("RGB"), np.int16)


def yaml_bomb() -> str:
    """500 bytes of YAML that stand for ten to the eighth keys, which its reader makes one by one."""
    lines = [f"a0: &a0 {{{', '.join(f'k{i}: 1' for i in range(10))}}}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 8)]
    return "\n".join(lines)


def events(run: Path) -> list[dict]:
    """The lines of a run's `events.jsonl`."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def finish(work: Generator[object, None, T]) -> T:
    """What a generator returns in the end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
