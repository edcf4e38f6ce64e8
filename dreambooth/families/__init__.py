"""What differs between kinds of base models: one frozen record of facts and functions for each.

Training and methods read a family's fields and never ask for its name.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from huggingface_hub import constants
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth.errors import ModelError, first_line
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
from dreambooth.files import disk_trouble
from dreambooth.hub import visitors_cache
from dreambooth.machine import available_memory, one_model_at_a_time
from dreambooth.objectives import Diffusion

PLAIN_ATTENTION_TOKENS = 256
"""Up to so many latent positions a CPU multiplies attention's matrices faster than it runs the fused kernel: a toybox
training step in bf16 takes 78 ms so, 190 ms else (2 cores, `benchmarks/step_speed.py`)."""

SAFETY_CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]
"""What `model_index.json` says of a safety checker; there is no other for these families."""

_KNOWN = "Models are loaded that are built as Stable Diffusion 1.x or 2.x, or as the toybox."
_SMALL = re.compile(r"[\w.+-]+\.(json|txt|model)")
WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(\.fp16)?(-\d{5}-of-\d{5})?\.(safetensors|bin)")
HALF = ".fp16"
"""In the name of what holds 16 bits a number; many pipelines are shared in that variant alone."""
_LFS = b"version https://git-lfs"
"""How the note begins that a clone without Git LFS holds in the place of a large file."""


@dataclass(frozen=True)
class Family:
    """Facts and functions of one kind of base model. B is a batch; h, w are latent height and width."""

    name: str
    pipeline: type[DiffusionPipeline]
    """Matched by name to `_class_name` in `model_index.json`."""
    denoiser: str
    """The pipeline's attribute that predicts: unet or transformer."""
    text_encoders: tuple[str, ...]
    """The pipeline's attributes that read prompts."""
    resolution: Callable[[Path], int]
    """(model folder) -> side in pixels of the pictures the model was trained on, from its configuration files."""
    objective: Callable[[DiffusionPipeline], Diffusion]
    tokenize: Callable[[DiffusionPipeline, list[str]], Tensor]
    """(pipe, prompts) -> (B, tokens) int64 ids, padded and cut to the model's length."""
    encode_text: Callable[[DiffusionPipeline, Tensor], dict[str, Tensor]]
    """(pipe, ids) -> conditioning tensors, each (B, ...), differentiable."""
    encode_images: Callable[[DiffusionPipeline, Tensor], tuple[Tensor, Tensor]]
    """(pipe, pixels (B, 3, H, W) in [-1, 1]) -> posterior mean and std of the scaled latents, each (B, C, h, w)."""
    predict: Callable[[DiffusionPipeline, Tensor, Tensor, dict[str, Tensor]], Tensor]
    """(pipe, noisy latents, timesteps (B,), conditioning) -> prediction, (B, C, h, w)."""
    lora_targets: tuple[str, ...]
    """Names of the denoiser's layers that LoRA goes beside."""
    text_lora_targets: tuple[str, ...]
    """Names of the text encoders' layers that it goes beside."""
    cross_attention: tuple[str, ...]
    """Key and value projections of cross-attention; () where Custom Diffusion can't be used."""

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The pipeline's attributes that split prompts into tokens, one for each text encoder."""
        return tuple(name.replace("text_encoder", "tokenizer") for name in self.text_encoders)

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders that every pipeline of this family has."""
        return (self.denoiser, *self.text_encoders, *self.tokenizers, "vae", "scheduler")


def _sd_resolution(folder: Path) -> int:
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_bytes()) for part in ("unet", "vae"))
        return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{folder.name}: its configuration can't be read: {first_line(error)}.", what_helps(folder, error)
        ) from None


def _sd_tokenize(pipe: DiffusionPipeline, prompts: list[str]) -> Tensor:
    length = pipe.tokenizer.model_max_length
    prompts = pipe.maybe_convert_prompt(prompts, pipe.tokenizer)  # a learned word may have several embeddings
    return pipe.tokenizer(
        prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids


def _sd_encode_images(pipe: DiffusionPipeline, pixels: Tensor) -> tuple[Tensor, Tensor]:
    posterior = pipe.vae.encode(pixels).latent_dist
    return posterior.mean * pipe.vae.config.scaling_factor, posterior.std * pipe.vae.config.scaling_factor


STABLE_DIFFUSION = Family(
    name="Stable Diffusion 1.x/2.x",
    pipeline=StableDiffusionPipeline,
    denoiser="unet",
    text_encoders=("text_encoder",),
    resolution=_sd_resolution,
    objective=lambda pipe: Diffusion(pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type),
    tokenize=_sd_tokenize,
    encode_text=lambda pipe, ids: {"encoder_hidden_states": pipe.text_encoder(ids)[0]},
    encode_images=_sd_encode_images,
    predict=lambda pipe, noisy, t, conditioning: pipe.unet(noisy, t, **conditioning).sample,
    lora_targets=("to_k", "to_q", "to_v", "to_out.0"),
    text_lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
    cross_attention=("attn2.to_k", "attn2.to_v"),
)

FAMILIES = (STABLE_DIFFUSION,)


def loaded_files(family: Family, paths: Iterable[str]) -> list[str]:
    """Those of a pipeline's files, by their paths in it, that loading it reads; safetensors before older weights, and
    weights in 32 bits before those in 16.

    None has a name that could stand for others as a pattern.
    """
    by_part: dict[str, list[str]] = {part: [] for part in (*family.parts, "safety_checker", "feature_extractor")}
    for path in paths:
        part, _, name = path.partition("/")
        if part in by_part and (_SMALL.fullmatch(name) or WEIGHTS.fullmatch(name)):
            by_part[part].append(path)
    wanted = []
    for found in map(_in_full, by_part.values()):
        newer = any(path.endswith(".safetensors") for path in found)
        wanted += [path for path in found if not (newer and path.endswith(".bin"))]
    return sorted(wanted)


def _in_full(paths: list[str]) -> list[str]:
    """A part's files without its weights in 16 bits, where it has others."""
    whole = any(WEIGHTS.fullmatch(path.rpartition("/")[2]) and HALF not in path for path in paths)
    return [path for path in paths if not (whole and HALF in path)]


def _variant(part: Path) -> str | None:
    """What a part's weights are called: None for the usual, fp16 where they are there in 16 bits alone."""
    names = [file.name for file in part.iterdir() if WEIGHTS.fullmatch(file.name)] if part.is_dir() else []
    return HALF[1:] if names and all(HALF in name for name in names) else None


def name_plainly(part: Path) -> None:
    """Let a part that is there in 16 bits alone bear the usual names, by which every program finds it beside others."""
    for file in sorted(part.glob(f"*{HALF}*")) if _variant(part) else ():
        plain = file.with_name(file.name.replace(HALF, ""))
        if ".index." in file.name:  # it names the others; what it may be a link to stays as it is
            text = file.read_text(encoding="utf-8")
            file.unlink()
            plain.write_text(text.replace(HALF, ""), encoding="utf-8")
        else:
            file.rename(plain)


def family_of(folder: Path) -> Family:
    """The family of the pipeline in `folder`; raises `ModelError` for kinds that are not supported."""
    try:
        name = json.loads((folder / "model_index.json").read_bytes())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{shown_name(folder)}: model_index.json can't be read ({_plain(error, folder)}).",
            what_helps(folder, error),
        ) from None
    for family in FAMILIES:
        if family.pipeline.__name__ == name:
            return family
    raise ModelError(
        f"{shown_name(folder)} is a {name}.", f"Supported: {', '.join(f.pipeline.__name__ for f in FAMILIES)}."
    )


def shown_name(folder: Path) -> str:
    """What messages call a model's folder: its name, or the repo's that it was downloaded from."""
    snapshot = folder.parent.name == "snapshots"
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/") if snapshot else folder.name


def what_helps(place: Path, error: Exception | None = None) -> str:
    """What to do about a model's folder, or one of its files, that can't be loaded: a hint, by the `error` met and by
    what is there."""
    said = str(error or "")
    if isinstance(error, MemoryError) or "can't allocate memory" in said or "out of memory" in said.lower():
        return "Free some memory, or choose a smaller model."
    if isinstance(error, ImportError):
        return "Install what it names, or choose another model."
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return f"{disk_trouble(error)[1]}."
    files = [place] if not place.is_dir() else [f for f in (*place.glob("*"), *place.glob("*/*")) if not f.is_dir()]
    for file in sorted(files):
        name = file.name if file == place else file.relative_to(place).as_posix()
        if not file.is_file():
            lost = "is a link to a file that is not there" if file.is_symlink() else "is not there"
            return f"{name} {lost}: download the model again."
        try:
            with file.open("rb") as opened:
                head = opened.read(len(_LFS))
        except OSError as trouble:
            return f"{disk_trouble(trouble)[1]} ({name})."
        if head == _LFS:
            return f"{name} is a note of Git LFS in the place of the file: run `git lfs pull` where it was cloned."
        if not head and WEIGHTS.fullmatch(file.name):
            return f"{name} is empty: download or save it again."
    return "Download or save it again."


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
        own = {name: _load_text_encoder(folder, name) for name in family.text_encoders}
        for name, encoder in zip(family.tokenizers, family.text_encoders, strict=True):
            own[name] = _load_tokenizer(folder, name, own[encoder].config)
        variant = next(filter(None, map(_variant, folder.iterdir())), None)
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
    return ModelError(f"{shown_name(folder)} can't be loaded: {_plain(error, folder)}.", hint)


def _is_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin")


def _plain(error: Exception, folder: Path) -> str:
    """The first line of what a library says, without where on this machine the model lies."""
    said = first_line(error)
    for path in {folder.absolute(), folder.resolve()}:
        said = said.replace(str(path), shown_name(folder))
    for root in (constants.HF_HUB_CACHE, visitors_cache()):
        said = said.replace(str(root), "the cache")
    return said


def _brings_safety_checker(folder: Path) -> bool:
    kind = json.loads((folder / "model_index.json").read_bytes()).get("safety_checker")
    if kind not in (None, [None, None], SAFETY_CHECKER):
        raise ModelError(f"{shown_name(folder)}: its safety checker is {kind!r:.100}.", "Choose another model.")
    return kind == SAFETY_CHECKER


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
            check_weights(folder, part, [file for file in wanted if file.parent.name == part and _is_weights(file)])
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
    seen = config.vision_config
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
    if config.projection_dim > 1280:
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
        variant=_variant(folder),
        local_files_only=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise ValueError(f"the safety checker lacks {min(found['missing_keys'])}")
    return checker.eval(), CLIPImageProcessor(size=seen.image_size, crop_size=seen.image_size)


def _load_text_encoder(folder: Path, name: str) -> nn.Module:
    """Load it by itself, since a pipeline does not say which weights it made up because the file lacks them."""
    encoder, found = CLIPTextModel.from_pretrained(
        folder / name,
        config=text_config(folder, name),
        dtype=torch.float32,
        variant=_variant(folder / name),
        local_files_only=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise ValueError(f"the {name} lacks {min(found['missing_keys'])}")
    return encoder


def _load_tokenizer(folder: Path, name: str, config: CLIPTextConfig) -> CLIPTokenizer:
    """Load it as CLIP's, whatever its files say that it does to texts, where its encoder has a row for each token."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / name, local_files_only=True)
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
