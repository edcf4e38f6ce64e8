"""What differs between kinds of base models: one frozen record of facts and functions for each.

Training and methods read a family's fields and never ask for its name.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from huggingface_hub import HfApi, auth_check, constants, get_cached_repo_tree, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoFile
from torch import Tensor, nn

from dreambooth.config import MAX_FOREIGN_YAML, TOYBOX
from dreambooth.errors import DreamBoothError, HubError, ModelError, first_line
from dreambooth.hub import Token, redact
from dreambooth.machine import available_memory, one_model_at_a_time
from dreambooth.objectives import Diffusion

PLAIN_ATTENTION_TOKENS = 256
"""Up to so many latent positions a CPU multiplies attention's matrices faster than it runs the fused kernel: a toybox
training step in bf16 takes 78 ms so, 190 ms else (2 cores, `benchmarks/step_speed.py`)."""

MAX_SMALL_FILE = 2**24
"""Bytes of a model's file that holds no weights; the largest, CLIP's vocabulary in `tokenizer.json`, has 4 MB."""

MAX_NUMBER = 10_000
"""The largest number, and the longest list, in a part's configuration: channels, layers, and the scheduler's steps, of
which there are 1,000 in every published Stable Diffusion. A larger one takes gigabytes before any weight is read."""

MAX_VOCABULARY = 100_000
"""The largest vocabulary and token id there; CLIP has 49,408 words."""

MAX_FILES = 20_000
"""Of a repo so many files are looked at: twice as many as there are class images at most (`prior.num_images`)."""

DOWNLOADS = 8
"""Small files fetched at a time. Source: the Hub client's own default."""

SAFETY_CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]
"""What `model_index.json` says of a safety checker; there is no other for these families."""

_SMALL = re.compile(r"[\w.+-]+\.(json|txt|model)")
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(-\d{5}-of-\d{5})?\.(safetensors|bin)")

TOYBOX_FOLDER = Path(__file__).parent / "toybox" / "model"


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
        unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
        return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{folder.name}: its configuration can't be read: {first_line(error)}.", "Download or save it again."
        ) from None


def _sd_tokenize(pipe: DiffusionPipeline, prompts: list[str]) -> Tensor:
    length = pipe.tokenizer.model_max_length
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
    cross_attention=("attn2.to_k", "attn2.to_v"),
)

FAMILIES = (STABLE_DIFFUSION,)


def fetch_model(base_model: str, revision: str | None = None, *, token: Token = None) -> Path:
    """The local folder of a base model: the built-in toybox, a folder, or a Hub repo that is downloaded if need be.

    Raises `ModelError` where there is no such model and `HubError` where the Hub refuses or can't be reached.
    """
    if base_model == TOYBOX:
        return TOYBOX_FOLDER
    folder = Path(os.path.expanduser(base_model))
    if folder.exists():
        if not (folder / "model_index.json").is_file():
            raise ModelError(
                f"{base_model}: no model_index.json in it.", "Give a diffusers pipeline folder or a Hub id."
            )
        return folder.resolve()
    if base_model.count("/") != 1 or base_model.startswith((".", "/", "~")):
        raise ModelError(
            f"{base_model}: no such folder.", "Give toybox, an existing pipeline folder, or a Hub id OWNER/NAME."
        )
    return fetch_from_hub(base_model, revision, token=token)


def fetch_from_hub(
    repo_id: str, revision: str | None = None, *, token: Token = None, max_bytes: float = math.inf
) -> Path:
    """The local folder of a Hub repo's pipeline, downloaded if need be; never a folder of this machine.

    Of the repo come the files that loading reads, its model card and its `config.yaml`, where they are no larger than
    such files are. Kinds that are not supported, and models of more than `max_bytes`, are refused before their weights
    are downloaded. With a visitor's token, or nobody's, the Hub is asked first whether they may read it, and this
    revision of it: that it was downloaded here before, for somebody else, is not enough. Raises as `fetch_model` does.
    """
    with download_told(repo_id, revision, token):
        cache = None
        if token is not None:
            auth_check(repo_id, token=token)
            revision = HfApi().model_info(repo_id, revision=revision, token=token).sha
            cache = visitors_cache()
        get_index = partial(hf_hub_download, repo_id, "model_index.json", revision=revision, token=token)
        _check_small(repo_id, {"model_index.json": get_index(cache_dir=cache, dry_run=True).file_size or 0})
        index = Path(get_index(cache_dir=cache))
        commit, family = index.parent.name, family_of(index.parent)
        get = partial(snapshot_download, repo_id, revision=commit, token=token, cache_dir=cache)
        get(allow_patterns=index.name)  # the list of files comes with it
        try:
            tree = get_cached_repo_tree(repo_id, revision=commit, cache_dir=cache)
        except CachedRepoTreeNotFoundError:
            if token is not None:
                raise
            return index.parent  # without the Hub, what is here is enough
        files = {file.path: file.size for file in tree}
        wanted = loaded_files(family, files)
        _check_small(repo_id, {path: files[path] for path in wanted if not _WEIGHTS.fullmatch(Path(path).name)})
        if (size := sum(files[path] for path in wanted)) > max_bytes:
            raise ModelError(
                f"{repo_id} has {size / 1e9:.1f} GB, more than the {max_bytes / 1e9:.1f} GB that are fetched here.",
                "Choose a smaller one.",
            )
        get(allow_patterns=[index.name, *wanted])
        if about := [name for name in ("README.md", "config.yaml") if files.get(name, math.inf) <= MAX_FOREIGN_YAML]:
            with suppress(LocalEntryNotFoundError):  # out of the Hub's reach a model is one without them, too
                get(allow_patterns=about)
        return index.parent


def visitors_cache() -> Path:
    """Where models are kept that were fetched for a visitor, with their token or nobody's.

    They lie apart since who acts in the machine's own name finds what is in the shared cache without asking the Hub,
    and since nothing but such models may be removed to make room for others.
    """
    return Path(constants.HF_HUB_CACHE).with_name("hub-of-visitors")


def loaded_files(family: Family, paths: Iterable[str]) -> list[str]:
    """Those of a pipeline's files, by their paths in it, that loading it reads; safetensors before older weights.

    None has a name that could stand for others as a pattern.
    """
    by_part: dict[str, list[str]] = {part: [] for part in (*family.parts, "safety_checker", "feature_extractor")}
    for path in paths:
        part, _, name = path.partition("/")
        if part in by_part and (_SMALL.fullmatch(name) or _WEIGHTS.fullmatch(name)):
            by_part[part].append(path)
    wanted = []
    for found in by_part.values():
        newer = any(path.endswith(".safetensors") for path in found)
        wanted += [path for path in found if not (newer and path.endswith(".bin"))]
    return sorted(wanted)


def _check_small(repo_id: str, sizes: dict[str, int]) -> None:
    for path, size in sizes.items():
        if size > MAX_SMALL_FILE:
            raise ModelError(
                f"{repo_id}: {path} has {size:,} bytes, too many for such a file.", "Choose another model."
            )


def list_files(
    repo_id: str, revision: str | None, token: Token, wanted: str, repo_type: str = "model"
) -> tuple[ModelInfo | DatasetInfo, dict[str, int]]:
    """What the Hub says of a repo, and its files' sizes in bytes by path; raises as `fetch_model` does."""
    with download_told(repo_id, revision, token, wanted):
        info = HfApi().repo_info(repo_id, revision=revision, repo_type=repo_type, token=token)
        tree = HfApi().list_repo_tree(repo_id, recursive=True, revision=info.sha, repo_type=repo_type, token=token)
        return info, {file.path: file.size for file in islice(tree, MAX_FILES) if isinstance(file, RepoFile)}


def fetch_files(
    repo_id: str, commit: str, paths: Iterable[str], folder: Path, token: Token, wanted: str, repo_type: str = "model"
) -> None:
    """Download some of a repo's files into an empty `folder`, under their paths in the repo.

    Nothing is left in the cache that all downloads share. Raises as `fetch_model` does.
    """

    def fetch(path: str) -> None:
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{repo_id} has a file that would land elsewhere: {path!r}.", f"Give {wanted}.")
        hf_hub_download(repo_id, path, revision=commit, repo_type=repo_type, local_dir=folder, token=token)

    with download_told(repo_id, commit, token, wanted), ThreadPoolExecutor(DOWNLOADS) as pool:
        list(pool.map(fetch, paths))


@contextmanager
def download_told(
    repo_id: str, revision: str | None, token: Token, wanted: str = "a diffusers pipeline"
) -> Iterator[None]:
    """What goes wrong inside the block is raised as `download_failure` says, and not the client's own error with it."""
    if token == "":  # nothing must be done for nobody in somebody's name
        raise HubError("There is no Hugging Face token.", "Log in.")
    try:
        yield
    except DreamBoothError:
        raise
    except Exception as error:  # the HTTP library's errors come through, and which library that is changes
        raise download_failure(repo_id, revision, error, token, wanted) from None


def download_failure(
    repo_id: str, revision: str | None, error: Exception, token: Token, wanted: str = "a diffusers pipeline"
) -> DreamBoothError:
    """What to raise for the error that the Hub's client met while it fetched `wanted` from a repo for `token`."""
    # diffusers looks in the cache when the Hub gives no answer, and raises an OSError with the Hub's error as its cause
    wrapped = type(error) is OSError and isinstance(error.__cause__, Exception)
    error = error.__cause__ if wrapped else error
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError):
        accept = f"Accept its terms on https://huggingface.co/{repo_id}"
        hints = {
            None: f"{accept} and log in with `hf auth login`.",
            False: "Choose a model that everybody may read, or log in with an account that accepted its terms.",
        }
        return HubError(f"{repo_id} is gated.", hints.get(token, f"{accept} with the account you are logged in with."))
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{repo_id} has no revision {revision!r}.", "Look at the repo's branches and tags.")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        log_in = "log in with `hf auth login`" if token is None else "log in with an account that may read it"
        return ModelError(
            f"{repo_id} is not on the Hub, or is private.", f"Check the spelling; for a private one {log_in}."
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return ModelError(f"{repo_id} lacks a file: {first_line(error)}.", f"Give a repo with {wanted}.")
    if isinstance(error, LocalEntryNotFoundError) or (wrapped and status is None):
        return HubError(
            f"{repo_id} is not downloaded and the Hub can't be reached.", "Check the connection and try again."
        )
    if status == 401:
        return HubError("The Hub does not accept the login.", "Log in again.")
    if status == 429:
        return HubError(f"The Hub asks for fewer requests than {repo_id} takes.", "Wait a few minutes, then try again.")
    full = isinstance(error, OSError) and error.errno and error.strerror  # its text names the file
    reason = redact(full or first_line(error), token)
    return HubError(f"{repo_id} could not be downloaded: {reason}.", "Try again; files that arrived whole are kept.")


def family_of(folder: Path) -> Family:
    """The family of the pipeline in `folder`; raises `ModelError` for kinds that are not supported."""
    try:
        name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{shown_name(folder)}: model_index.json can't be read ({_plain(error, folder)}).", "Download it again."
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


@one_model_at_a_time
def load_pipeline(
    folder: Path, dtype: torch.dtype = torch.float32, *, safety_checker: bool = False
) -> tuple[DiffusionPipeline, Family]:
    """Load the pipeline in `folder` on the CPU; with its safety checker, where it has one, only if asked.

    It may be anybody's: nothing outside the folder is read, and no more memory taken than its weights need. Raises
    `ModelError` where files are missing or damaged, and where the memory is too small.
    """
    family = family_of(folder)
    dropped: dict[str, Any] = {"image_encoder": None}  # of IP-Adapters alone
    if not (safety_checker and _brings_safety_checker(folder)):
        dropped |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    _check_parts(folder, family, () if "safety_checker" in dropped else ("safety_checker", "feature_extractor"))
    try:
        if "safety_checker" not in dropped:
            _check_described(folder / "safety_checker", StableDiffusionSafetyChecker)
        encoders = {name: _load_text_encoder(folder, name, dtype) for name in family.text_encoders}
        pipe = family.pipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, **encoders, **dropped)
    except Exception as error:  # damaged files make the libraries raise whatever their code stumbles over
        raise ModelError(
            f"{shown_name(folder)} can't be loaded: {_plain(error, folder)}.", "Download or save it again."
        ) from None
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and (lacking := [key for key, p in part.named_parameters() if p.is_meta]):
            raise ModelError(f"{shown_name(folder)}: the {name} lacks {lacking[0]}.", "Download or save it again.")
    pipe.set_progress_bar_config(disable=True)
    return pipe, family


def _plain(error: Exception, folder: Path) -> str:
    """The first line of what a library says, without where on this machine the model lies."""
    said = first_line(error)
    for path in {folder.absolute(), folder.resolve()}:
        said = said.replace(str(path), shown_name(folder))
    for root in (constants.HF_HUB_CACHE, visitors_cache()):
        said = said.replace(str(root), "the cache")
    return said


def _brings_safety_checker(folder: Path) -> bool:
    kind = json.loads((folder / "model_index.json").read_text()).get("safety_checker")
    if kind not in (None, [None, None], SAFETY_CHECKER):
        raise ModelError(f"{shown_name(folder)}: its safety checker is {kind!r:.100}.", "Choose another model.")
    return kind == SAFETY_CHECKER


def _check_parts(folder: Path, family: Family, more: tuple[str, ...] = ()) -> None:
    """Raise `ModelError` for a missing part (transformers, for one, would make up an empty tokenizer), for one that
    would be loaded from elsewhere, and for one that would take gigabytes whatever its weights are."""
    name, again = shown_name(folder), "Download or save it again."
    parts = (*family.parts, *more)
    weighty = [part for part in parts if not part.startswith(("tokenizer", "scheduler", "feature_extractor"))]
    for part in parts:
        if not (folder / part).is_dir():
            raise ModelError(f"{name}: no {part} folder in it.", again)
        if (folder / part / "adapter_config.json").exists():  # transformers would load what it names, from anywhere
            raise ModelError(f"{name}: its {part} is an adapter of another model.", "Merge it into the model first.")
    for part in family.tokenizers:
        if not any((folder / part / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise ModelError(f"{name}: no vocabulary in its {part} folder.", again)
    for part in weighty:
        if not any(file.suffix in (".safetensors", ".bin") for file in (folder / part).iterdir()):
            raise ModelError(f"{name}: no weights in its {part} folder.", again)
        if not (folder / part / "config.json").is_file():
            raise ModelError(f"{name}: no config.json in its {part} folder.", again)
    for part in parts:
        for file in (folder / part).glob("*.json"):
            _check_facts(f"{name}: {part}/{file.name}", file)
    paths = [f"{part}/{file.name}" for part in weighty for file in (folder / part).iterdir()]
    held = sum((folder / path).stat().st_size for path in loaded_files(family, paths))
    if held > (free := available_memory(torch.device("cpu")) + psutil.swap_memory().free):
        raise ModelError(
            f"{name} has {held / 1e9:.1f} GB of weights; {free / 1e9:.1f} GB of memory are free.",
            "Free some, or choose a smaller model.",
        )


def _check_facts(source: str, file: Path) -> None:
    """Raise `ModelError` for a configuration that asks for too much, or an index that names files of elsewhere."""
    if not file.name.endswith(("config.json", ".index.json")):
        return
    try:
        facts = json.loads(file.read_text())
        large = _too_large(facts)
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"{source} is not a valid JSON file.", "Download or save it again.") from None
    if file.name.endswith(".index.json"):
        shards = facts.get("weight_map") if isinstance(facts, dict) else None
        if not (isinstance(shards, dict) and all(_WEIGHTS.fullmatch(str(shard)) for shard in shards.values())):
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


def _check_described(folder: Path, kind: type[nn.Module]) -> None:
    """Raise `ValueError` where a part's configuration describes more weights than its files hold, 16 bits each.

    transformers makes up what a file lacks, however large.
    """
    with torch.device("meta"):
        part = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    described = sum(weight.numel() for weight in part.parameters())
    held = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if 2 * described > held:
        raise ValueError(f"the {folder.name} has {described:,} weights by its config.json and {held:,} bytes of them")


def _load_text_encoder(folder: Path, name: str, dtype: torch.dtype) -> nn.Module:
    """Load it by itself, since a pipeline does not say which weights it made up because the file lacks them."""
    kind = getattr(transformers, json.loads((folder / "model_index.json").read_text())[name][1])
    _check_described(folder / name, kind)
    encoder, found = kind.from_pretrained(folder / name, dtype=dtype, local_files_only=True, output_loading_info=True)
    if found["missing_keys"]:
        raise ValueError(f"the {name} lacks {min(found['missing_keys'])}")
    return encoder


def use_fastest_attention(pipe: DiffusionPipeline, family: Family, tokens: int) -> None:
    """Choose the attention that is faster on the pipeline's device for `tokens` latent positions; results are alike."""
    denoiser = getattr(pipe, family.denoiser)
    if (
        denoiser.device.type == "cpu"
        and tokens <= PLAIN_ATTENTION_TOKENS
        and isinstance(denoiser, UNet2DConditionModel)
    ):
        denoiser.set_attn_processor(AttnProcessor())
