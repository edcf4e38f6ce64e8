"""Stable Diffusion 1.x and 2.x, and the toybox, which is built as they are."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor

from dreambooth.errors import ModelError, first_line
from dreambooth.families.family import Family
from dreambooth.families.folder import what_helps
from dreambooth.objectives import Diffusion


def _resolution(folder: Path) -> int:
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_bytes()) for part in ("unet", "vae"))
        side: int = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
        return side
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{folder.name}: its configuration can't be read: {first_line(error)}.", what_helps(folder, error)
        ) from None


def _tokenize(pipe: DiffusionPipeline, prompts: list[str]) -> Tensor:
    length = pipe.tokenizer.model_max_length
    prompts = pipe.maybe_convert_prompt(prompts, pipe.tokenizer)  # a learned word may have several embeddings
    ids: Tensor = pipe.tokenizer(
        prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    return ids


def _encode_images(pipe: DiffusionPipeline, pixels: Tensor) -> tuple[Tensor, Tensor]:
    posterior = pipe.vae.encode(pixels).latent_dist
    return posterior.mean * pipe.vae.config.scaling_factor, posterior.std * pipe.vae.config.scaling_factor


STABLE_DIFFUSION = Family(
    name="Stable Diffusion 1.x/2.x",
    pipeline=StableDiffusionPipeline,
    denoiser="unet",
    text_encoders=("text_encoder",),
    resolution=_resolution,
    objective=lambda pipe: Diffusion(pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type),
    tokenize=_tokenize,
    encode_text=lambda pipe, ids: {"encoder_hidden_states": pipe.text_encoder(ids)[0]},
    encode_images=_encode_images,
    predict=lambda pipe, noisy, t, conditioning: pipe.unet(noisy, t, **conditioning).sample,
    lora_targets=("to_k", "to_q", "to_v", "to_out.0"),
    text_lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
    cross_attention=("attn2.to_k", "attn2.to_v"),
)
