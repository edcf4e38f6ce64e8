"""Which architectures are loaded: those of Stable Diffusion 1 and 2 and of the toybox, whatever the weights are.

A pipeline's folder may be anybody's, and its configuration files say which classes are made, how large, and how often.
So they are read here first, by a list of what is known: classes by name, numbers within bounds, and everything else as
the class itself has it.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

CLASSES = {
    "unet": [("diffusers", "UNet2DConditionModel")],
    "vae": [("diffusers", "AutoencoderKL")],
    "text_encoder": [("transformers", "CLIPTextModel"), ("transformers", "CLIPTextModelWithProjection")],
    "tokenizer": [("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")],
    "scheduler": [
        ("diffusers", f"{name}Scheduler")
        for name in (
            "DDIM",
            "DDPM",
            "DEISMultistep",
            "DPMSolverMultistep",
            "DPMSolverSinglestep",
            "EulerAncestralDiscrete",
            "EulerDiscrete",
            "HeunDiscrete",
            "KDPM2AncestralDiscrete",
            "KDPM2Discrete",
            "LCM",
            "LMSDiscrete",
            "PNDM",
            "TCD",
            "UniPCMultistep",
        )
    ],
}
"""What `model_index.json` may say of a part: library and class. The samplers are diffusers' KarrasDiffusionSchedulers
but the one that needs another package, and those of distilled models; a text encoder's projection is not used."""

_BESIDE = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that are not made by what the index says of them."""

MAX_NUMBER = 10_000
"""The largest number, and the longest list, in a part's configuration: the scheduler's steps, of which there are 1,000
in every published Stable Diffusion."""

MAX_VOCABULARY = 100_000
"""The largest vocabulary and token id there; CLIP has 49,408 words."""

MAX_ADDED_TOKENS = 1_000
"""Words that a tokenizer has beside its vocabulary file's: learned ones, each up to 75 tokens long."""

MAX_HEADER = 2**24
"""Bytes of a weights file's header; that of Stable Diffusion 1.5's denoiser has 80,000."""

SPARE, FEW = 1.1, 100_000
"""Files may hold so many times as many numbers, and so many more, as a configuration describes, and the reverse: there
are buffers in older ones, and a projection that is not used here."""

_FLAG, _NUMBER = "yes or no", "a number"
Bound = tuple[int, int] | frozenset[str | None] | str

# Of a number, and of each in a list, the bounds. The largest that are known, in the unit of Stable Diffusion 1.5 / 2.1:
# 1280 channels, 2 layers a block, 1024 numbers a token, 24 layers and 1024 numbers in the text encoder, 96 latents a
# side. SDXL's text encoder has 32 layers and 1280 numbers; more has no such model.
_UNET: dict[str, Bound] = {
    "sample_size": (1, 128),
    "in_channels": (1, 16),
    "out_channels": (1, 16),
    "block_out_channels": (1, 1280),
    "layers_per_block": (1, 3),
    "cross_attention_dim": (1, 2048),
    "attention_head_dim": (1, 64),
    "num_attention_heads": (1, 64),
    "norm_num_groups": (1, 64),
    "transformer_layers_per_block": (1, 1),
    "down_block_types": frozenset({"DownBlock2D", "CrossAttnDownBlock2D"}),
    "up_block_types": frozenset({"UpBlock2D", "CrossAttnUpBlock2D"}),
    "mid_block_type": frozenset({"UNetMidBlock2DCrossAttn", None}),
    "use_linear_projection": _FLAG,
    "upcast_attention": _FLAG,
    "center_input_sample": _FLAG,
    "flip_sin_to_cos": _FLAG,
    "freq_shift": (0, 1),
    "downsample_padding": (0, 1),
    "mid_block_scale_factor": _NUMBER,
    "norm_eps": _NUMBER,
    "dropout": _NUMBER,
}
_VAE: dict[str, Bound] = {
    "sample_size": (1, 1024),
    "in_channels": (3, 3),
    "out_channels": (3, 3),
    "block_out_channels": (1, 512),
    "layers_per_block": (1, 2),
    "latent_channels": (1, 16),
    "norm_num_groups": (1, 64),
    "down_block_types": frozenset({"DownEncoderBlock2D"}),
    "up_block_types": frozenset({"UpDecoderBlock2D"}),
    "scaling_factor": _NUMBER,
    "shift_factor": _NUMBER,
    "latents_mean": _NUMBER,
    "latents_std": _NUMBER,
    "force_upcast": _FLAG,
    "use_quant_conv": _FLAG,
    "use_post_quant_conv": _FLAG,
    "mid_block_add_attention": _FLAG,
}
_TEXT: dict[str, Bound] = {
    "vocab_size": (1, MAX_VOCABULARY),
    "hidden_size": (1, 1280),
    "intermediate_size": (1, 5120),
    "projection_dim": (0, 1280),
    "num_hidden_layers": (1, 32),
    "num_attention_heads": (1, 20),
    "max_position_embeddings": (1, 256),
    "hidden_act": frozenset({"quick_gelu", "gelu"}),
    "layer_norm_eps": _NUMBER,
    "attention_dropout": _NUMBER,
    "initializer_range": _NUMBER,
    "initializer_factor": _NUMBER,
    "pad_token_id": (-1, MAX_VOCABULARY),
    "bos_token_id": (0, MAX_VOCABULARY),
    "eos_token_id": (0, MAX_VOCABULARY),
}
_MOST_BLOCKS = 4


def _defaults(kind: type) -> dict[str, Any]:
    """The arguments of a class's constructor and their values."""
    given = inspect.signature(kind).parameters.values()
    return {one.name: one.default for one in given if one.default is not inspect.Parameter.empty}


_PARTS = {
    "unet": (_UNET, _defaults(UNet2DConditionModel)),
    "vae": (_VAE, _defaults(AutoencoderKL)),
    "text_encoder": (_TEXT, {name: getattr(CLIPTextConfig(), name) for name in _TEXT}),
}


class UnknownArchitectureError(ValueError):
    """A part is none of those that are known; the message goes on behind the model's name."""


def check_classes(index: Mapping[str, Any]) -> None:
    """Raise `UnknownArchitectureError` where a `model_index.json` names a class that is not known for a part."""
    for part, known in CLASSES.items():
        entry = index.get(part)
        if not (isinstance(entry, list) and all(isinstance(name, str) for name in entry) and tuple(entry) in known):
            raise UnknownArchitectureError(f"its {part} is {entry!r:.100}, which is none of those known here")
    for part, entry in index.items():
        if isinstance(entry, list) and any(entry) and part not in (*CLASSES, *_BESIDE):
            raise UnknownArchitectureError(f"it has a {part[:60]}, which is no part of such a model")


def facts(folder: Path, part: str) -> dict[str, Any]:
    """What the configuration of a pipeline's unet, vae or text encoder in `folder` says of how it is built, with what
    it does not say as the class has it.

    Raises `UnknownArchitectureError` for what no known model has, `OSError` and `ValueError` where there is none.
    """
    said = json.loads((folder / part / "config.json").read_bytes())
    if not isinstance(said, dict):
        raise UnknownArchitectureError(f"its {part}/config.json holds no settings")
    if isinstance(said.get("text_config"), dict) and part == "text_encoder":  # as the whole of a CLIP is described
        said = said["text_config"]
    bounds, usual = _PARTS[part]
    for name, value in said.items():
        if name in bounds:
            if value is None and (usual[name] is None or name == "pad_token_id"):
                continue
            if trouble := _trouble(value, bounds[name]):
                raise UnknownArchitectureError(f"the {name[:60]} of its {part} {trouble}")
        elif name in usual and not _same(value, usual[name]):
            raise UnknownArchitectureError(f"the {name[:60]} of its {part} is {value!r:.60}, not {usual[name]!r}")
        elif name == "_attn_implementation_autoset" or value is None:  # transformers 4.46 to 4.51 wrote it; no effect
            continue
        elif "quantization" in name or "attn_implementation" in name:  # they have code fetched, or other classes made
            raise UnknownArchitectureError(f"its {part} has {name[:60]}, which changes how it is built")
    found = usual | {name: value for name, value in said.items() if name in usual}
    for name in ("down_block_types", "up_block_types", "block_out_channels"):
        if name in found and len(found[name]) != len(found["down_block_types"]):
            raise UnknownArchitectureError(f"its {part} has {len(found['down_block_types'])} blocks, but other {name}")
    return found


def _same(value: object, usual: object) -> bool:
    if isinstance(value, list) and isinstance(usual, tuple | list):
        return value == list(usual)
    return isinstance(value, bool) == isinstance(usual, bool) and value == usual


def _trouble(value: object, bound: Bound) -> str:
    """What is wrong with a value, in words that follow its name; of a list, with one of it."""
    if isinstance(value, list):
        if not 1 <= len(value) <= (16 if bound == _NUMBER else _MOST_BLOCKS):
            return f"has {len(value):,} entries"
        return next(filter(None, (_trouble(one, bound) for one in value if not isinstance(one, list))), "") or (
            "holds lists" if any(isinstance(one, list) for one in value) else ""
        )
    if bound == _FLAG:
        return "" if isinstance(value, bool) else f"is {value!r:.60}, not {_FLAG}"
    if isinstance(bound, frozenset):
        known = isinstance(value, str | None) and value in bound
        return "" if known else f"is {value!r:.60}, which does not exist in such models"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"is {value!r:.60}, not a number"
    if isinstance(bound, str):  # _NUMBER, any
        return ""
    least, most = bound
    if value > most:
        return f"is above {most:,}"
    return "" if isinstance(value, int) and value >= least else f"is {value!r:.60}, not a whole number from {least:,}"


# ------------------------------------------------------------------------------------------------------------- weights


def text_config(folder: Path, part: str = "text_encoder") -> CLIPTextConfig:
    """A text encoder's configuration, of what is known alone; raises as `facts` does."""
    return _text_config(facts(folder, part))


def _text_config(found: Mapping[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(**{name: found[name] for name in _TEXT})


def check_weights(folder: Path, part: str, files: Iterable[Path]) -> None:
    """Raise `UnknownArchitectureError` where a part's configuration describes other than as many weights as its `files`
    hold, before memory is taken for one: libraries make up what a file lacks, however large.

    A tensor that is missing is left to who loads it. Raises as `facts` does.
    """
    described = _count(part, json.dumps(facts(folder, part)))
    least = most = 0
    for file in files:
        if file.suffix == ".safetensors":
            numbers = count_numbers(file)
            least, most = least + numbers, most + numbers
        else:  # 16 or 32 bits each
            least, most = least + file.stat().st_size // 4, most + file.stat().st_size // 2
    if described > SPARE * most + FEW or least > SPARE * described + FEW:
        raise UnknownArchitectureError(
            f"the {part} has {described:,} weights by its config.json, and its files hold {most:,}"
        )


@functools.lru_cache(maxsize=64)
def _count(part: str, found: str) -> int:
    """How many numbers a part has that is built as the JSON of its `facts` says."""
    said = json.loads(found)
    kind: Any = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}.get(part)
    with torch.device("meta"):
        module: nn.Module = kind(**said) if kind else CLIPTextModel(_text_config(said))
    return sum(weight.numel() for weight in module.parameters())


def count_numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header (8 bytes of length, then JSON).

    Raises `ValueError` for what is none.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"Unable to load weights: {file.name} has a header of {length:,} bytes")
        head = opened.read(length)
    try:
        header = json.loads(head)
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        raise ValueError(f"Unable to load weights: {file.name} is no whole safetensors file") from None


# ----------------------------------------------------------------------------------------------------------- tokenizer


def check_tokenizer(folder: Path, part: str = "tokenizer") -> None:
    """Raise `UnknownArchitectureError` for a tokenizer of more words than any has; damaged files are left to its
    library."""
    for name, key, most in [
        ("vocab.json", "", MAX_VOCABULARY),
        ("added_tokens.json", "", MAX_ADDED_TOKENS),
        ("tokenizer_config.json", "added_tokens_decoder", MAX_ADDED_TOKENS),
        ("tokenizer_config.json", "additional_special_tokens", MAX_ADDED_TOKENS),
        ("tokenizer_config.json", "extra_special_tokens", MAX_ADDED_TOKENS),
        ("special_tokens_map.json", "additional_special_tokens", MAX_ADDED_TOKENS),
        ("special_tokens_map.json", "extra_special_tokens", MAX_ADDED_TOKENS),
        ("tokenizer.json", "added_tokens", MAX_ADDED_TOKENS),
        ("tokenizer.json", "model", MAX_VOCABULARY),
    ]:
        try:
            said = json.loads((folder / part / name).read_bytes())
            words = said.get(key, ()) if key else said
            words = words.get("vocab", ()) if key == "model" else words
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        if isinstance(words, dict | list) and len(words) > most:
            raise UnknownArchitectureError(f"its {part}/{name} has {len(words):,} words, more than {most:,}")
