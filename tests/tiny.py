"""Tiny randomly initialised models of the real classes, in the real file layout, and photos to train them on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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
            block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4, sample_size=32, scaling_factor=0.18215,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        unet=UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            norm_num_groups=4, cross_attention_dim=16, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=tok.model_max_length, bos_token_id=0, eos_token_id=1, pad_token_id=1,
            )
        ),
        tokenizer=tok,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction,
            clip_sample=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


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


def events(run: Path) -> list[dict]:
    """The lines of a run's `events.jsonl`."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
