"""What differs between kinds of base models: one frozen record of facts and functions for each.

Training and methods read a family's fields and never ask for its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from huggingface_hub import HfApi, auth_check, constants, get_cached_repo_tree, hf_hub_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoFile
from safetensors import SafetensorError
from torch import Tensor, nn

from dreambooth.config import TOYBOX
from dreambooth.errors import DreamBoothError, HubError, ModelError, first_line
from dreambooth.hub import Token, redact
from dreambooth.machine import one_model_at_a_time
from dreambooth.objectives import Diffusion

PLAIN_ATTENTION_TOKENS = 256
"""Up to so many latent positions a CPU multiplies attention's matrices faster than it runs the fused kernel: a toybox
training step in bf16 takes 78 ms so, 190 ms else (2 cores, `benchmarks/step_speed.py`)."""

MAX_FILES = 20_000
"""Of a repo so many files are looked at: twice as many as there are class images at most (`prior.num_images`)."""

DOWNLOADS = 8
"""Small files fetched at a time. Source: the Hub client's own default."""

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


def fetch_from_hub(repo_id: str, revision: str | None = None, *, token: Token = None) -> Path:
    """The local folder of a Hub repo's pipeline, downloaded if need be; never a folder of this machine.

    Its model card and `config.yaml` come with it, where it has them. Kinds that are not supported are refused before
    their weights are downloaded. With a visitor's token, or nobody's, the Hub is asked first whether they may read it:
    that it was downloaded here before, for somebody else, is not enough. Raises as `fetch_model` does.
    """
    with download_told(repo_id, revision, token):
        cache = _cache_for(repo_id, token)
        index = hf_hub_download(repo_id, "model_index.json", revision=revision, token=token, cache_dir=cache)
        family_of(Path(index).parent)
        folder = Path(DiffusionPipeline.download(repo_id, revision=revision, token=token, cache_dir=cache))
        with suppress(CachedRepoTreeNotFoundError, EntryNotFoundError):  # without the Hub, what is here is enough
            there = {file.path for file in get_cached_repo_tree(repo_id, revision=folder.name, cache_dir=cache)}
            for name in there & {"README.md", "config.yaml"}:
                if not (folder / name).is_file():
                    hf_hub_download(repo_id, name, revision=folder.name, token=token, cache_dir=cache)
        return folder


def _cache_for(repo_id: str, token: Token) -> Path | None:
    """Where what `token` may read of a repo is kept; None for the cache that all programs of this machine share.

    What a visitor reads, and not everybody may, is kept apart: who acts in the machine's own name finds what is in the
    shared cache without asking the Hub. Raises the Hub client's own errors where the repo may not be read.
    """
    if token is None:
        return None
    try:
        auth_check(repo_id, token=False)
        return None
    except RepositoryNotFoundError:  # a gated repo, too
        auth_check(repo_id, token=token)
        return Path(constants.HF_HUB_CACHE).with_name("hub-of-visitors")


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
    reason = redact(first_line(error), token)
    return HubError(f"{repo_id} could not be downloaded: {reason}.", "Try again; files that arrived whole are kept.")


def family_of(folder: Path) -> Family:
    """The family of the pipeline in `folder`; raises `ModelError` for kinds that are not supported."""
    try:
        name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{shown_name(folder)}: model_index.json can't be read ({first_line(error)}).", "Download it again."
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

    Raises `ModelError` where files are missing or damaged.
    """
    family = family_of(folder)
    _check_parts(folder, family)
    dropped = (
        {} if safety_checker else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    )
    try:
        encoders = {name: _load_text_encoder(folder, name, dtype) for name in family.text_encoders}
        pipe = family.pipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, **encoders, **dropped)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{shown_name(folder)} can't be loaded: {first_line(error)}.", "Download or save it again."
        ) from None
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and (lacking := [key for key, p in part.named_parameters() if p.is_meta]):
            raise ModelError(f"{shown_name(folder)}: the {name} lacks {lacking[0]}.", "Download or save it again.")
    pipe.set_progress_bar_config(disable=True)
    return pipe, family


def _check_parts(folder: Path, family: Family) -> None:
    """Raise `ModelError` for a missing part; transformers, for one, would make up an empty tokenizer."""
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in family.text_encoders]
    for name in (family.denoiser, *family.text_encoders, *tokenizers, "vae", "scheduler"):
        if not (folder / name).is_dir():
            raise ModelError(f"{shown_name(folder)}: no {name} folder in it.", "Download or save it again.")
    for name in tokenizers:
        if not any((folder / name / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise ModelError(f"{shown_name(folder)}: no vocabulary in its {name} folder.", "Download or save it again.")
    for name in (family.denoiser, *family.text_encoders, "vae"):
        if not any(file.suffix in (".safetensors", ".bin") for file in (folder / name).iterdir()):
            raise ModelError(f"{shown_name(folder)}: no weights in its {name} folder.", "Download or save it again.")


def _load_text_encoder(folder: Path, name: str, dtype: torch.dtype) -> nn.Module:
    """Load it by itself, since a pipeline does not say which weights it made up because the file lacks them."""
    kind = getattr(transformers, json.loads((folder / "model_index.json").read_text())[name][1])
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
