"""Custom Diffusion (Kumari et al. 2023, arXiv 2212.04488): a new word, and how the denoiser reads words.

Trained are the keys and values of cross-attention, beside the word; with class images, which keep the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, ModelError, first_line
from dreambooth.families.family import Family
from dreambooth.families.weights import why_unusable
from dreambooth.families.words import PATTERN, add_words, load_words, save_words
from dreambooth.machine import one_model_at_a_time
from dreambooth.methods.method import Distance, Method, Trainable, freeze, text_learning_rate

FILE = "pytorch_custom_diffusion_weights.safetensors"
"""Stock diffusers' name for it; `pipe.unet.load_attn_procs(folder, weight_name=FILE, _pipeline=pipe)` reads it. Without
`_pipeline`, diffusers 0.42 reads the file and changes nothing."""


def projections(pipe: DiffusionPipeline, family: Family) -> dict[str, nn.Linear]:
    """The denoiser's key and value projections of cross-attention, by name; raises `ConfigError` where it has none."""
    layers = getattr(pipe, family.denoiser).named_modules()
    found = {name: layer for name, layer in layers if family.cross_attention and name.endswith(family.cross_attention)}
    if not found:
        raise ConfigError(f"custom_diffusion needs cross-attention; {family.name} has none.", "Choose method lora.")
    return found


@one_model_at_a_time
def attach(pipe: DiffusionPipeline, family: Family, config: Config) -> Trainable:
    """Make the new words and cross-attention's keys and values trainable, everything else frozen."""
    freeze(pipe)
    words = add_words(pipe, family, config)
    layers = projections(pipe, family)
    weights = [layer.weight.requires_grad_(True) for layer in layers.values()]
    modules = {name: getattr(pipe, name) for name in (family.denoiser, *family.text_encoders)}
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": [words.learned]} | text_learning_rate(config)]
    drift = Distance(weights) if config.drift.weight else None

    def save(folder: Path, _base: Path) -> None:
        save_words(words, config, folder)
        save_weights(pipe, family, folder)

    return Trainable(modules, groups, save, drift, drift.base if drift else ())


def save_weights(pipe: DiffusionPipeline, family: Family, folder: Path) -> None:
    """Write the projections under the names of diffusers' attention processors, with an empty tensor for each layer of
    self-attention, as its loader wants to know of them all."""
    state = {f"{_key(name)}.weight": layer.weight.detach().cpu() for name, layer in projections(pipe, family).items()}
    attention = {name for name, _ in getattr(pipe, family.denoiser).named_modules() if name.endswith("attn1")}
    state |= {f"{name}.processor": torch.empty(0) for name in attention}
    save_file({key: value.contiguous() for key, value in state.items()}, folder / FILE, {"format": "pt"})


def read_weights(folder: Path, layers: dict[str, nn.Linear]) -> dict[str, Tensor]:
    """The projections in a folder, by the names of `layers`. Raises `ModelError` where they do not fit."""
    try:
        state = load_file(folder / FILE)
        found = {name: state.pop(f"{_key(name)}.weight") for name in layers}
    except (OSError, SafetensorError, KeyError) as error:
        said = first_line(error)
        raise ModelError(f"{FILE} does not fit this base model ({said}).", "Use the one it was trained on.") from None
    if more := [key for key, value in state.items() if value.numel()]:
        raise ModelError(f"{FILE} changes more than keys and values ({more[0]!r:.100}).", "Choose another one.")
    if any(value.shape != layers[name].weight.shape for name, value in found.items()):
        raise ModelError(f"{FILE} is of a larger or smaller base model.", "Use the one it was trained on.")
    if why := next(filter(None, map(why_unusable, found.values())), ""):
        raise ModelError(f"{FILE} {why}.", "Train it again.")
    return found


def load(pipe: DiffusionPipeline, family: Family, adapters: Sequence[tuple[Path, float]]) -> None:
    """Put words and projections into the base model's pipeline: W = W₀ + Σ weight · (W of the adapter − W₀)."""
    layers = projections(pipe, family)
    changes = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    for folder, weight in adapters:
        for name, trained in read_weights(folder, layers).items():
            changes[name] += weight * (trained.to(changes[name]) - layers[name].weight.detach())
        load_words(pipe, family, folder)
    for name, layer in layers.items():
        layer.weight.data += changes[name]


def _key(name: str) -> str:
    """down_blocks.0.…attn2.to_k -> down_blocks.0.…attn2.processor.to_k_custom_diffusion."""
    attention, _, projection = name.rpartition(".")
    return f"{attention}.processor.{projection}_custom_diffusion"


METHOD = Method(
    "custom_diffusion",
    "Custom Diffusion",
    "Learns a new word and how pictures answer to words: small, and several subjects fit into one picture.",
    "{word}, and keys and values of the denoiser's cross-attention",
    "2212.04488",
    ("custom-diffusion",),
    attach,
    load,
    (FILE, PATTERN),
)
