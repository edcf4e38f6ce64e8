"""The maths of the losses: noise, targets and per-example losses as pure tensor functions.

Shapes: latents (B, C, H, W); timesteps (B,) int64; per-example losses (B,) float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dreambooth.errors import ModelError


@dataclass(frozen=True)
class Diffusion:
    """Denoising diffusion over a discrete schedule, predicting ε or v.

    `alphas_cumprod` (T,) float32 is ᾱ; `prediction` is the scheduler's `prediction_type`.
    """

    alphas_cumprod: Tensor
    prediction: str

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"The base model's scheduler predicts {self.prediction!r}.", "Supported are epsilon and v_prediction."
            )

    def sample_timesteps(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) timesteps, one uniform from each of n equal slices in random order: every batch sees all noise levels.

        Each is uniform over all T on its own; stratifying only lowers the variance of the batch's loss (Kingma et al.
        2021, arXiv 2107.00630, appendix I.1).
        """
        slices = torch.randperm(n, generator=generator)
        u = (slices + torch.rand(n, generator=generator)) / n
        return (u * len(self.alphas_cumprod)).long().clamp_max(len(self.alphas_cumprod) - 1)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = √ᾱ·x₀ + √(1−ᾱ)·ε (Ho et al. 2020, eq. 4)."""
        a, s = self._coefficients(t, x0)
        return a * x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should predict: ε, or v = √ᾱ·ε − √(1−ᾱ)·x₀ (Salimans & Ho 2022, section 4)."""
        if self.prediction == "epsilon":
            return noise
        a, s = self._coefficients(t, x0)
        return a * noise - s * x0

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """(B,) min-SNR-γ weights for this prediction (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""
        a = self.alphas_cumprod.to(t.device)[t]
        snr = a / (1 - a)
        return (gamma / snr).clamp_max(1) if self.prediction == "epsilon" else snr.clamp_max(gamma) / (snr + 1)

    def loss(
        self,
        prediction: Tensor,
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        gamma: float | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(B,) squared error averaged over each example, in float32, min-SNR-weighted where `gamma` is given.

        With `mask`, (B, h, w) of zeros and ones, averaged over the ones.
        """
        error = prediction.float() - self.target(x0, noise, t).float()
        mask = torch.ones_like(error[:, 0]) if mask is None else mask
        losses = (error.square() * mask[:, None]).flatten(1).mean(1) / mask.flatten(1).mean(1)
        return losses if gamma is None else losses * self.weight(t, gamma)

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        a = self.alphas_cumprod.to(like.device)[t].view(-1, *[1] * (like.ndim - 1))
        return a.sqrt().to(like.dtype), (1 - a).sqrt().to(like.dtype)


class DreamBoothLoss(NamedTuple):
    """The loss to minimise and its two parts, each a scalar; `prior` is None without class images."""

    total: Tensor
    instance: Tensor
    prior: Tensor | None


def dreambooth_loss(losses: Tensor, instances: int, prior_weight: float) -> DreamBoothLoss:
    """L = mean(instance losses) + λ · mean(class losses) (paper, eq. 2).

    `losses` (B,): the first `instances` belong to the subject's photos, the rest to class images.
    """
    instance = losses[:instances].mean()
    if instances == len(losses):
        return DreamBoothLoss(instance, instance, None)
    prior = losses[instances:].mean()
    return DreamBoothLoss(instance + prior_weight * prior, instance, prior)
