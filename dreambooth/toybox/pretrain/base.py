"""The UNet and its text encoder, trained together on cached latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedModel

from dreambooth.errors import ModelError
from dreambooth.toybox.pretrain.data import CAPTIONS_PER_PICTURE, SIZE, load_captions
from dreambooth.toybox.pretrain.fit import fit
from dreambooth.toybox.pretrain.vae import LATENT_CHANNELS, load_latents
from dreambooth.toybox.tokenizer import MAX_LENGTH, build_tokenizer


def scheduler_config() -> dict[str, Any]:
    """SD's schedule made noisier and rescaled to zero terminal SNR (Lin et al., arXiv 2305.08891), v-prediction.

    SD's own leaves a signal of 0.068 at the last timestep. Averaged over 16 × 16 latents that tells training the
    picture's mean colour, which sampling from pure noise does not have: a 64-pixel forerunner's contexts came out grey
    from it.
    """
    return dict(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.02,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def new_base(vocabulary_size: int) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """A stock UNet (4.5 M parameters) and CLIP text encoder (0.7 M), freshly initialised."""
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(64, 96, 128),
        norm_num_groups=16,
        cross_attention_dim=128,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=128,
    )
    return unet, CLIPTextModel(config)


def train_base(
    work: Path, samples: int, device: torch.device, batch: int = 64, weights: Path | None = None
) -> nn.Module:
    """Train UNet and text encoder together on cached latents, at a constant rate: call it with more to go on.

    v-prediction, 10 % caption dropout, stratified t. `weights` is a pipeline's folder to begin with instead of chance;
    once there is a checkpoint it plays no part.
    """
    model, loss = _model_and_loss(work, device, batch)
    if weights:
        for part, module in model.items():
            kind = cast(type[PreTrainedModel], type(module))  # or diffusers' like of it
            module.load_state_dict(kind.from_pretrained(weights / part).state_dict())
    return _fit_base("base", model, loss, work, samples=samples, batch=batch, decay_from=1.0)


def anneal_base(work: Path, samples: int, device: torch.device, batch: int = 64) -> nn.Module:
    """Branch off from where `base` is and let the rate fall to a hundredth: what ships. `base` can go on afterwards.

    To anneal a later `base`, remove `anneal.pt` or ask for another number of samples. Raises `ModelError` where
    there is no base.
    """
    if not (work / "base.pt").is_file():
        hint = f"Train it: python -m dreambooth.toybox.pretrain --work {work} base."
        raise ModelError(f"{work / 'base.pt'} is not there, and it is what would be annealed.", hint)
    model, loss = _model_and_loss(work, device, batch)
    # Another seed than the base's: not its first batches once more.
    settings: dict[str, Any] = dict(samples=samples, batch=batch, decay_from=0.0, seed=1, start=work / "base.pt")
    return _fit_base("anneal", model, loss, work, **settings)


def _fit_base(
    name: str, model: nn.ModuleDict, loss: Callable[..., Tensor], work: Path, **settings: Any
) -> nn.ModuleDict:
    trained = fit(name, model, loss, work, lr=2e-3, final_lr=2e-5, **settings)
    for part, module in trained.items():
        cast(PreTrainedModel, module).save_pretrained(work / part)
    return trained


def _model_and_loss(work: Path, device: torch.device, batch: int) -> tuple[nn.ModuleDict, Callable[..., Tensor]]:
    """UNet and text encoder, fresh, and the loss of one batch as `fit` calls it."""
    tokenizer = build_tokenizer(work / "tokenizer")
    latents = load_latents(work)
    texts = [*load_captions(work, "latents"), ""]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.short()
    captions, empty = ids[:-1].view(-1, CAPTIONS_PER_PICTURE, ids.shape[1]), ids[-1]

    torch.manual_seed(0)
    unet, text_encoder = new_base(len(tokenizer))
    unet.set_attn_processor(AttnProcessor())  # 20–30 % faster than SDPA at these sizes on a CPU (measured)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(device)
    alphas = DDIMScheduler(**scheduler_config()).alphas_cumprod.to(device)

    def loss(numpy_rng: np.random.Generator, torch_rng: torch.Generator, progress: float) -> Tensor:
        rows = torch.from_numpy(numpy_rng.integers(len(latents), size=batch))
        x0 = latents[rows].to(device).float()
        chosen = captions[rows, torch.from_numpy(numpy_rng.integers(CAPTIONS_PER_PICTURE, size=batch))]
        dropped = torch.from_numpy(numpy_rng.random(batch) < 0.1)
        tokens = torch.where(dropped[:, None], empty, chosen).long().to(device)
        # Stratified: one number from each of `batch` equal slices, so that every batch sees all noise levels.
        u = (torch.arange(batch, device=device) + torch.rand(batch, generator=torch_rng, device=device)) / batch
        t = _timesteps(u)
        noise = torch.randn(x0.shape, generator=torch_rng, device=device)
        a, s = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            hidden = text_encoder(tokens).last_hidden_state
            v = unet(a * x0 + s * noise, t, hidden).sample
        return F.mse_loss(v.float(), a * noise - s * x0)

    return model, loss


def _timesteps(u: Tensor) -> Tensor:
    """Timesteps for uniform `u` in [0, 1): 70 % of them from 375 to 775 (SNR 0.56 to 0.008), where shapes are decided.

    With all equally often, a model of 135,000 examples had learned every place and not one class.
    """
    below, middle = 0.1875, 0.70
    t = torch.where(
        u < below,
        u / below * 375,
        torch.where(
            u < below + middle,
            375 + (u - below) / middle * 400,
            775 + (u - below - middle) / (1 - below - middle) * 225,
        ),
    )
    return t.long().clamp(max=999)  # the largest u may have been rounded to 1
