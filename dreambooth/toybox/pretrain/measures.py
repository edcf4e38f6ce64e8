"""How alike pictures are: measures on arrays, and looks (judge, CLIP, ViT, pixels) that give pictures features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor, ViTConfig, ViTImageProcessor, ViTModel

from dreambooth.toybox.pretrain.data import to_pixels, to_small
from dreambooth.toybox.pretrain.judge import Judge

Look = Callable[[np.ndarray], np.ndarray]
"""From (N, S, S, 3) uint8 pictures, S a multiple of 64, to (N, D) features of unit length."""


# ---------------------------------------------------------------------------------------------------------- measures


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB, for (N, H, W, 3) uint8."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    return float(np.mean(10 * np.log10(255**2 / error.mean((1, 2, 3)))))


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that one of `positive` exceeds one of `negative`; a tie counts half (Mann–Whitney)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / 2 / len(ordered))


def identity_auc(features: np.ndarray, things: np.ndarray, classes: np.ndarray) -> float:
    """AUC of cosines: pairs of pictures of one thing against pairs of other things of its class, over all classes."""
    once = np.triu(np.ones((len(things),) * 2, bool), 1)
    same, kin = things[:, None] == things, classes[:, None] == classes
    cosines = features @ features.T
    return auc(cosines[once & same], cosines[once & kin & ~same])


def spread(features: np.ndarray) -> float:
    """Mean distance, 1 - cosine, of all pairs of (N, D) unit features."""
    return float(1 - (features @ features.T)[np.triu_indices(len(features), 1)].mean())


def pixel_spread(pictures: np.ndarray) -> float:
    """Mean distance, RMS of 0 to 255, of all pairs of pictures at 32 px."""
    small = to_small(pictures).reshape(-1, 32, 2, 32, 2, 3).mean((2, 4)).reshape(len(pictures), -1)
    a, b = np.triu_indices(len(small), 1)
    return float(np.sqrt(((small[a] - small[b]) ** 2).mean(1)).mean())


def hues(pictures: np.ndarray) -> np.ndarray:
    """A histogram, (24,) summing to 1, of the hues in the middle of pictures, where the subject stands.

    Each pixel counts by its chroma, since a drawn style pales what it draws: real sketches of the sample subjects are
    told from those of other things of their class with an AUC of .94 so, of .6 by histograms of RGB (measured).
    """
    middle = pictures[:, 40:100, 32:96].reshape(-1, 64, 3)
    hue, saturation, value = np.moveaxis(np.asarray(Image.fromarray(middle).convert("HSV"), np.float64), 2, 0)
    counts = np.bincount((hue * 24 // 256).astype(int).ravel(), (saturation * value).ravel(), minlength=24)
    shares: np.ndarray = counts / max(counts.sum(), 1e-9)
    return shares


def unsettled(pictures: np.ndarray) -> np.ndarray:
    """The share of each picture's pixels, (N,), at 64 px, that are neither flat nor an edge.

    The world paints flat surfaces with sharp edges; a mottled surface is neither. A pixel counts where its larger step,
    to the right or down, in the channel that changes most, is over 6 and under 30 of 255. Of (6, 30), (10, 50) and
    three pairs at 128 px this one tells a picture from itself through the VAE least and from a base model's drawing
    most (measured): it sees surfaces rather than the VAE's softer edges.
    """
    small = to_small(pictures).astype(np.float64)
    down, right = np.abs(np.diff(small, axis=1))[:, :, :-1], np.abs(np.diff(small, axis=2))[:, :-1]
    step = np.maximum(down, right).max(-1)
    shares: np.ndarray = ((step > 6) & (step < 30)).mean((1, 2))
    return shares


def colours(pictures: np.ndarray) -> np.ndarray:
    """How many colours each picture, (N,), has in its middle, where the subject stands.

    That many equally frequent ones would be as various: e to the entropy of its histogram of 16 × 16 × 16 bins of RGB.
    """
    middle = pictures[:, 40:100, 32:96].reshape(len(pictures), -1, 3).astype(np.int64) >> 4
    bins = middle @ (256, 16, 1)
    shares = [np.unique(row, return_counts=True)[1] / len(row) for row in bins]
    return np.array([np.exp(-(share * np.log(share)).sum()) for share in shares])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """What two histograms share, 0 to 1."""
    return float(np.minimum(a, b).sum())


# ------------------------------------------------------------------------------------------------- encoders as looks


def _look(features: Callable[[np.ndarray], Tensor]) -> Look:
    @torch.inference_mode()
    def look(pictures: np.ndarray) -> np.ndarray:
        parts = np.array_split(pictures, -(-len(pictures) // 64))
        return torch.cat([F.normalize(features(part), dim=1) for part in parts]).numpy()

    return look


def judge_look(judge: Judge) -> Look:
    """The features that the judge decides by."""
    return _look(lambda pictures: judge.features(to_pixels(to_small(pictures), torch.device("cpu"))))


def vit_look(folder: Path, *, trained: bool = True) -> Look:
    """The class token of the ViT in `folder`, or of the random weights that its training began with."""
    processor = ViTImageProcessor.from_pretrained(folder)
    torch.manual_seed(0)
    config = ViTConfig.from_pretrained(folder)
    vit = ViTModel.from_pretrained(folder, add_pooling_layer=False) if trained else ViTModel(config, False)
    vit.eval()
    return _look(lambda pictures: vit(**processor(list(pictures), return_tensors="pt")).last_hidden_state[:, 0])


def clip_looks(folder: Path) -> tuple[Look, Callable[[list[str]], np.ndarray]]:
    """The CLIP in `folder`: image features, and the unit mean of some prompts' text features, (D,)."""
    processor, clip = CLIPProcessor.from_pretrained(folder), CLIPModel.from_pretrained(folder).eval()

    def image(pictures: np.ndarray) -> Tensor:
        pixels = processor(images=list(pictures), return_tensors="pt").pixel_values
        features: Tensor = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        return features

    @torch.inference_mode()
    def text(prompts: list[str]) -> np.ndarray:
        inputs = processor(text=prompts, padding=True, truncation=True, return_tensors="pt")
        features = F.normalize(clip.text_projection(clip.text_model(**inputs).pooler_output), dim=1)
        return F.normalize(features.mean(0), dim=0).numpy()

    return _look(image), text


def centred_pixels(pictures: np.ndarray) -> np.ndarray:
    """A look without an encoder: the pixels at 64 px, less the mean picture."""
    flat = to_small(pictures).reshape(len(pictures), -1).astype(np.float64)
    centred = flat - flat.mean(0)
    looks: np.ndarray = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return looks
