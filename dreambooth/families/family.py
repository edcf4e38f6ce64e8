"""What differs between kinds of base models, as one frozen record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusers import DiffusionPipeline
from torch import Tensor

from dreambooth.objectives import Diffusion


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
