"""The file that LoRA's matrices are saved in: stock diffusers' layout, written by one way and read with care."""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth.errors import ModelError, first_line
from dreambooth.families.family import Family
from dreambooth.families.folder import what_helps
from dreambooth.families.weights import why_unusable

FILE = "pytorch_lora_weights.safetensors"
"""Stock diffusers' name for it; `load_lora_weights` reads it."""

_KEY = re.compile(r"([\w.]+)\.(?:lora(?:_linear_layer)?\.(down|up)\.weight|lora_(magnitude)_vector\.weight)")
_LAYER = ({"down", "up"}, {"down", "up", "magnitude"})  # what a layer has, without DoRA and with it


def file_key(key: str) -> str:
    """What files call a matrix, or with DoRA the lengths, that peft calls `key`; every reader finds it by that name."""
    kind = "lora_linear_layer" if key.startswith("encoder.") else "lora"
    key = key.replace("lora_A", f"{kind}.down").replace("lora_B", f"{kind}.up")
    return _classic(key) + (".weight" if key.endswith("lora_magnitude_vector") else "")


def _classic(layer: str) -> str:
    """Text encoders' layers have the names of transformers 4, which every reader knows."""
    return f"text_model.{layer}" if layer.startswith("encoder.") else layer


def read_weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """What a folder holds, by layer (unet.….to_k): `down` (rank, inputs), `up` (outputs, rank), with DoRA `magnitude`
    (outputs,). Raises `ModelError` for a damaged file and for one that holds anything else."""
    layers: dict[str, dict[str, Tensor]] = {}
    try:
        for key, value in load_file(folder / FILE).items():
            if not (found := _KEY.fullmatch(key)):
                raise ValueError(f"{key!r:.100} is none of its matrices")
            if why := why_unusable(value):
                raise ValueError(f"{key!r:.100} {why}")
            parts, kind = layers.setdefault(found[1], {}), found[2] or found[3]
            if kind in parts:
                raise ValueError(f"{key!r:.100} is there under another name, too")
            parts[kind] = value
        if not any(all(parts.keys() == whole for parts in layers.values()) for whole in _LAYER) or not layers:
            raise ValueError("matrices are missing")
        if odd := [layer for layer, parts in layers.items() if not _belong_together(**parts)]:
            raise ValueError(f"the matrices of {odd[0]!r:.100} do not belong together")
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{FILE} can't be used ({first_line(error)}).", what_helps(folder / FILE, error)) from None
    return layers


def _belong_together(down: Tensor, up: Tensor, magnitude: Tensor | None = None) -> bool:
    """Whether a layer's matrices are of one rank, and with DoRA of as many outputs."""
    of_one_rank = down.ndim in (2, 4) and up.shape[1:] == (len(down), *[1] * (down.ndim - 2))
    return of_one_rank and (magnitude is None or magnitude.shape == up.shape[:1])


def check_fit(pipe: DiffusionPipeline, family: Family, layers: dict[str, dict[str, Tensor]]) -> None:
    """Raise `ModelError` for matrices of layers that the pipeline lacks, or has larger or smaller; the libraries load
    the others then, and say nothing."""
    names = (family.denoiser, *family.text_encoders)
    weights = {
        f"{name}.{_classic(inner)}": layer.weight.shape
        for name in names
        for inner, layer in getattr(pipe, name).named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    for name, parts in layers.items():
        shape, rank = weights.get(name), len(parts["down"])
        wanted = shape and {
            "down": (rank, *shape[1:]),
            "up": (shape[0], rank, *[1] * (len(shape) - 2)),
            "magnitude": shape[:1],
        }
        if not wanted or any(tuple(value.shape) != tuple(wanted[part]) for part, value in parts.items()):
            raise ModelError(f"{FILE} does not fit this base model ({name}).", "Use the one it was trained on.")
