"""A LoRA as one file in the layout of kohya-ss' training scripts, which A1111, ComfyUI and most other programs read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dreambooth.errors import ConfigError, ModelError
from dreambooth.families.folder import shown_name
from dreambooth.families.words import read_words
from dreambooth.files import atomic_file, refuse_taken
from dreambooth.methods.lora_file import FILE, read_weights
from dreambooth.models.adapters import is_adapter, read_adapter

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
"""How names of the pipeline's parts begin there: `networks/lora.py` of kohya-ss/sd-scripts, for SD 1.x and 2.x."""


def export_kohya(model: Path, out: Path) -> list[str]:
    """Write the LoRA in the adapter's folder `model` to the file `out`, whole or not at all.

    Each layer has `lora_down` (rank, inputs) and `lora_up` (outputs, rank), an `alpha` that equals the rank, so that
    strength 1 is the strength it was trained with, and with DoRA a `dora_scale` (outputs, 1), LyCORIS's for lengths
    along the output axis. Returns sentences on what the file does not hold and who reads it otherwise; a learned word
    stays in its own file. Raises `ConfigError` for what is no LoRA, for a name that is taken or no file's, and
    `ModelError` for a damaged one.
    """
    refuse_taken(out)
    if not is_adapter(model) or (method := read_adapter(model).method) != "lora":
        what = f"an adapter of method {method}" if is_adapter(model) else "a whole model"
        raise ConfigError(f"{shown_name(model)} is {what}.", "Give a run of method lora.")
    if out.suffix != ".safetensors" or out.is_dir():
        raise ConfigError(f"{out} is no file to export to.", "Give a name that ends in .safetensors.")
    layers = read_weights(model)
    state: dict[str, Tensor] = {}
    for layer, parts in layers.items():
        state |= _entries(layer, parts)
    with atomic_file(out) as partial:
        save_file(state, partial)
    return _remarks(model, dora=any("magnitude" in parts for parts in layers.values()))


def _entries(layer: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer's tensors by their names there: lora_unet_down_blocks_0_…_to_k.lora_down.weight.

    Raises `ModelError` for a layer of a part that has no name there.
    """
    part, _, inner = layer.partition(".")
    if part not in PREFIXES:
        raise ModelError(
            f"{FILE} has a layer that other programs have no name for ({layer!r:.100}).",
            f"A LoRA of {' and '.join(PREFIXES)} can be exported.",
        )
    name = f"{PREFIXES[part]}_{inner.replace('.', '_')}"
    down, up = parts["down"].contiguous(), parts["up"].contiguous()
    entries = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    entries[f"{name}.alpha"] = torch.tensor(float(len(down)))
    if "magnitude" in parts:
        magnitude = parts["magnitude"]
        entries[f"{name}.dora_scale"] = magnitude.reshape(-1, *[1] * (down.ndim - 1)).contiguous()
    return entries


def _remarks(model: Path, dora: bool) -> list[str]:
    remarks = []
    if words := read_words(model):
        remarks.append(
            f"The learned word {', '.join(words)} is not in this file: copy its learned_embeds file into the other "
            "program's folder of embeddings, which calls it by the file's name."
        )
    if dora:
        remarks.append(
            "It is a DoRA: ComfyUI draws nearly the same, A1111 and diffusers' load_lora_weights do not take its "
            "lengths as trained. Fuse it, or train without lora.dora, for these."
        )
    return remarks
