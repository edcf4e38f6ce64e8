"""Loading a base model that may be anybody's, or saying what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from dreambooth.errors import ModelError
from dreambooth.families import family_of
from dreambooth.families.architectures import (
    MAX_NUMBER,
    MAX_VOCABULARY,
    UnknownArchitectureError,
    check_classes,
    check_tokenizer,
    check_weights,
    facts,
    text_config,
)
from dreambooth.families.family import Family
from dreambooth.families.folder import (
    WEIGHTS,
    is_weights,
    loaded_files,
    said_plainly,
    shown_name,
    variant_of,
    what_helps,
)
from dreambooth.machine import available_memory, one_model_at_a_time

PLAIN_ATTENTION_TOKENS = 256
"""Up to so many latent positions a CPU multiplies attention's matrices faster than it runs the fused kernel: a toybox
training step in bf16 takes 78 ms so, 190 ms else (2 cores, `benchmarks/step_speed.py`)."""
SAFETY_CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]
"""What `model_index.json` says of a safety checker; there is no other for these families."""
_KNOWN = "Models are loaded that are built as Stable Diffusion 1.x or 2.x, or as the toybox."


@one_model_at_a_time
def load_pipeline(folder: Path, *, safety_checker: bool | Path = False) -> tuple[DiffusionPipeline, Family]:
    """Load the pipeline in `folder` on the CPU in float32; with its safety checker, where it has one, only if asked, or
    with the one in the folder `safety_checker`.

    It may be anybody's: nothing outside the folder is read, no class is made that `architectures` does not know, and no
    more memory taken than its weights need. Raises `ModelError` where files are missing or damaged, for other
    architectures, and where the memory is too small.
    """
    family = family_of(folder)
    dropped: dict[str, Any] = {"image_encoder": None}  # of IP-Adapters alone
    own_checker = safety_checker and not isinstance(safety_checker, Path) and _brings_safety_checker(folder)
    _check_parts(folder, family, ("safety_checker", "feature_extractor") if own_checker else ())
    checker = folder / "safety_checker" if own_checker else safety_checker
    dropped |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        if isinstance(checker, Path):
            dropped["safety_checker"], dropped["feature_extractor"] = load_safety_checker(checker)
        own: dict[str, Any] = {name: _load_text_encoder(folder, name) for name in family.text_encoders}
        for name, encoder in zip(family.tokenizers, family.text_encoders, strict=True):
            own[name] = _load_tokenizer(folder, name, own[encoder].config)
        variant = next(filter(None, map(variant_of, folder.iterdir())), None)
        pipe = family.pipeline.from_pretrained(
            folder, dtype=torch.float32, variant=variant, local_files_only=True, **own, **dropped
        )
    except Exception as error:  # damaged files make the libraries raise whatever their code stumbles over
        raise _not_loaded(folder, error) from None
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and (lacking := [key for key, p in part.named_parameters() if p.is_meta]):
            raise ModelError(f"{shown_name(folder)}: the {name} lacks {lacking[0]}.", what_helps(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe, family


def check_architecture(folder: Path, family: Family) -> None:
    """Raise `ModelError` for a pipeline of other classes, or of other sizes, than the known ones have, before any class
    of it is made; for one that can't be read, too."""
    try:
        check_classes(json.loads((folder / "model_index.json").read_bytes()))
        for part in (family.denoiser, *family.text_encoders, "vae"):
            facts(folder, part)
        for part in family.tokenizers:
            check_tokenizer(folder, part)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _not_loaded(folder, error) from None


def _not_loaded(folder: Path, error: Exception) -> ModelError:
    hint = (
        f"{_KNOWN} Choose another model." if isinstance(error, UnknownArchitectureError) else what_helps(folder, error)
    )
    return ModelError(f"{shown_name(folder)} can't be loaded: {said_plainly(error, folder)}.", hint)


def _brings_safety_checker(folder: Path) -> bool:
    kind = json.loads((folder / "model_index.json").read_bytes()).get("safety_checker")
    if kind not in (None, [None, None], SAFETY_CHECKER):
        raise ModelError(f"{shown_name(folder)}: its safety checker is {kind!r:.100}.", "Choose another model.")
    return bool(kind == SAFETY_CHECKER)


def _check_parts(folder: Path, family: Family, more: tuple[str, ...] = ()) -> None:
    """Raise `ModelError` for a missing part (transformers, for one, would make up an empty tokenizer), for one that
    would be loaded from elsewhere, and for one that would take gigabytes whatever its weights are."""
    name = shown_name(folder)
    parts = (*family.parts, *more)
    weighty = [part for part in parts if not part.startswith(("tokenizer", "scheduler", "feature_extractor"))]
    for part in parts:
        if not (folder / part).is_dir():
            raise ModelError(f"{name}: no {part} folder in it.", what_helps(folder))
        if (folder / part / "adapter_config.json").exists():  # transformers would load what it names, from anywhere
            raise ModelError(f"{name}: its {part} is an adapter of another model.", "Merge it into the model first.")
    for part in family.tokenizers:
        if not any((folder / part / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise ModelError(f"{name}: no vocabulary in its {part} folder.", what_helps(folder))
    for part in weighty:
        if not any(file.suffix in (".safetensors", ".bin") for file in (folder / part).iterdir()):
            raise ModelError(f"{name}: no weights in its {part} folder.", what_helps(folder))
        if not (folder / part / "config.json").is_file():
            raise ModelError(f"{name}: no config.json in its {part} folder.", what_helps(folder))
    for part in parts:
        for file in (folder / part).glob("*.json"):
            _check_facts(f"{name}: {part}/{file.name}", file)
    check_architecture(folder, family)
    paths = [f"{part}/{file.name}" for part in weighty for file in (folder / part).iterdir()]
    wanted = [folder / path for path in loaded_files(family, paths)]
    if gone := [file for file in wanted if not file.is_file()]:
        raise ModelError(f"{name}: {gone[0].relative_to(folder)} is not there.", what_helps(folder))
    try:
        for part in (family.denoiser, *family.text_encoders, "vae"):
            check_weights(folder, part, [file for file in wanted if file.parent.name == part and is_weights(file)])
    except (UnknownArchitectureError, OSError, ValueError, TypeError) as error:
        raise _not_loaded(folder, error) from None
    held = sum(file.stat().st_size for file in wanted)
    # The run that loads it may be the one that the memory was promised to.
    free = available_memory(torch.device("cpu"), when_others_ended=True) + psutil.swap_memory().free
    if held > free:
        raise ModelError(
            f"{name} has {held / 1e9:.1f} GB of weights; {free / 1e9:.1f} GB of memory are free.",
            "Free some, or choose a smaller model.",
        )


def _check_facts(source: str, file: Path) -> None:
    """Raise `ModelError` for a configuration that asks for too much, or an index that names files of elsewhere."""
    index = ".index." in file.name
    if not (index or file.name.endswith("config.json")):
        return
    try:
        facts = json.loads(file.read_bytes())
        large = _too_large(facts)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{source} is not a valid JSON file.", what_helps(file, error)) from None
    if index:
        shards = facts.get("weight_map") if isinstance(facts, dict) else None
        if not (isinstance(shards, dict) and all(WEIGHTS.fullmatch(str(shard)) for shard in shards.values())):
            raise ModelError(f"{source} names files that are no weights of this model.", "Save it again.")
    elif large:
        raise ModelError(f"{source}: {large}, more than any such model has.", "Choose another model.")


def _too_large(facts: Any, key: str = "") -> str:
    """What is beyond the bounds in a configuration, in words; else empty."""
    most = MAX_VOCABULARY if key == "vocab_size" or key.endswith("_token_id") else MAX_NUMBER
    if isinstance(facts, int | float):
        return f"{key[:60]} is above {most:,}" if facts > most else ""
    if not isinstance(facts, dict | list):
        return ""
    if len(facts) > most:
        return f"{key[:60]} has {len(facts):,} entries"
    inner = facts.items() if isinstance(facts, dict) else ((key, fact) for fact in facts)
    return next((found for name, fact in inner if (found := _too_large(fact, name))), "")


def load_safety_checker(folder: Path) -> tuple[StableDiffusionSafetyChecker, CLIPImageProcessor]:
    """A safety checker and what prepares pictures for it, as Stable Diffusion's is built whatever its size; raises
    `ValueError` for other ones."""
    config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    seen = cast(CLIPVisionConfig, config.vision_config)
    sides = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "image_size": 336,
        "patch_size": 32,
    }
    if large := [name for name, most in sides.items() if not 1 <= getattr(seen, name) <= most]:
        raise ValueError(f"the {large[0]} of its safety checker is {getattr(seen, large[0])!r:.60}")
    if (config.projection_dim or 0) > 1280:
        raise ValueError(f"the projection_dim of its safety checker is {config.projection_dim!r:.60}")
    known = {name: getattr(seen, name) for name in (*sides, "hidden_act", "layer_norm_eps", "num_channels")}
    config = CLIPConfig(vision_config=known, projection_dim=config.projection_dim)
    with torch.device("meta"):
        described = sum(weight.numel() for weight in StableDiffusionSafetyChecker(config).parameters())
    held = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if 2 * described > held:
        raise ValueError(f"the safety checker has {described:,} weights by its config.json and {held:,} bytes of them")
    checker, found = StableDiffusionSafetyChecker.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        variant=variant_of(folder),
        local_files_only=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise ValueError(f"the safety checker lacks {min(found['missing_keys'])}")
    return checker.eval(), CLIPImageProcessor(size=seen.image_size, crop_size=seen.image_size)


def _load_text_encoder(folder: Path, name: str) -> CLIPTextModel:
    """Load it by itself, since a pipeline does not say which weights it made up because the file lacks them."""
    loading: Any = CLIPTextModel.from_pretrained  # whose annotation knows nothing of `output_loading_info`
    encoder, found = loading(
        folder / name,
        config=text_config(folder, name),
        dtype=torch.float32,
        variant=variant_of(folder / name),
        local_files_only=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise ValueError(f"the {name} lacks {min(found['missing_keys'])}")
    return cast(CLIPTextModel, encoder)


def _load_tokenizer(folder: Path, name: str, config: CLIPTextConfig) -> CLIPTokenizer:
    """Load it as CLIP's, whatever its files say that it does to texts, where its encoder has a row for each token."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder / name, local_files_only=True)
    if (highest := max(tokenizer.get_vocab().values())) >= config.vocab_size:
        raise UnknownArchitectureError(
            f"its {name} has a token {highest:,}, its text encoder {config.vocab_size:,} of them"
        )
    if tokenizer.model_max_length > config.max_position_embeddings:
        raise UnknownArchitectureError(
            f"its {name} gives {tokenizer.model_max_length:,} tokens, of which its text encoder reads "
            f"{config.max_position_embeddings:,}"
        )
    return tokenizer


def store_matrices_in(dtype: torch.dtype | None, modules: Iterable[nn.Module]) -> None:
    """Keep the matrices that are not trained in `dtype`, in which autocast computes with them, so that they take half
    the memory and are not cast each time; None: leave all in float32. What comes out is the same to the last bit."""
    layers = (named for module in modules for named in module.named_modules())
    for name, layer in layers if dtype is not None else ():
        own = isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in name  # DoRA measures LoRA's in full
        if own and not layer.weight.requires_grad:
            layer.weight.data = layer.weight.data.to(dtype)


def use_fastest_attention(pipe: DiffusionPipeline, family: Family, tokens: int) -> None:
    """Choose the attention that is faster on the pipeline's device for `tokens` latent positions; results are alike."""
    denoiser = getattr(pipe, family.denoiser)
    if (
        denoiser.device.type == "cpu"
        and tokens <= PLAIN_ATTENTION_TOKENS
        and isinstance(denoiser, UNet2DConditionModel)
    ):
        denoiser.set_attn_processor(AttnProcessor())
