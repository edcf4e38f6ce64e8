"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank matrices beside attention's weights, in the text encoder too."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import peft
import torch
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth.config import Config
from dreambooth.errors import ConfigError, ModelError, first_line
from dreambooth.families import Family
from dreambooth.machine import one_model_at_a_time
from dreambooth.methods import Method, Trainable, freeze, text_learning_rate
from dreambooth.methods.words import PATTERN, load_words, read_words

FILE = "pytorch_lora_weights.safetensors"
"""As stock diffusers calls it; `load_lora_weights` reads it."""
NAME = "default"  # of the adapter while it is trained; peft's

_KEY = re.compile(r"([\w.]+)\.(?:lora(?:_linear_layer)?\.(down|up)\.weight|lora_(magnitude)_vector\.weight)")
_LAYER = ({"down", "up"}, {"down", "up", "magnitude"})  # what a layer has, without DoRA and with it


@one_model_at_a_time
def attach(pipe: DiffusionPipeline, family: Family, config: Config) -> Trainable:
    """Put trainable matrices beside the targets' frozen weights; where they start, the model is the base model."""
    freeze(pipe)
    if config.word.learned:
        _take_word(pipe, family, config)
    targets = {family.denoiser: config.lora.targets or family.lora_targets}
    if config.train.text_encoder:
        targets |= dict.fromkeys(family.text_encoders, family.text_lora_targets)
    modules, groups = {}, []
    for name, layers in targets.items():
        modules[name] = _inject(getattr(pipe, name), name, layers, config)
        trained = [p for p in modules[name].parameters() if p.requires_grad]
        groups.append({"params": trained} | (text_learning_rate(config) if name != family.denoiser else {}))
    scale = (config.lora.alpha or config.lora.rank) / config.lora.rank

    def save(folder: Path, _base: Path) -> None:
        states = {f"{name}_lora_layers": _state(module, scale) for name, module in modules.items()}
        pipe.save_lora_weights(folder, **states)
        if config.word.learned:
            for path in (learned_word(config) or Path()).glob(PATTERN):
                (folder / path.name).write_bytes(path.read_bytes())

    return Trainable(modules, groups, save, _distance(modules, scale) if config.drift.weight else None)


def _inject(module: nn.Module, name: str, targets: Sequence[str], config: Config) -> nn.Module:
    settings = config.lora
    wanted = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha or settings.rank, lora_dropout=settings.dropout,
        use_dora=settings.dora, target_modules=list(targets),
    )  # fmt: skip
    try:
        peft.inject_adapter_in_model(wanted, module, NAME)
    except ValueError as error:  # no layer of these names, or one of a kind that takes none
        raise ConfigError(f"lora.targets: {first_line(error)}", f"Name layers of the {name}.") from None
    g = torch.Generator().manual_seed(config.seed)
    for layer in _layers(module):  # peft's own start, from the run's seed
        down = layer.lora_A[NAME].weight
        down.data = torch.empty(down.shape).uniform_(-1, 1, generator=g).to(down) / math.sqrt(down[0].numel())
    return module


def _layers(module: nn.Module) -> list[LoraLayer]:
    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]


def _state(module: nn.Module, scale: float) -> dict[str, Tensor]:
    """The matrices, (rank, inputs) and (outputs, rank), alpha / rank folded into the latter: no reader needs it."""
    state = {key: value.detach().cpu() for key, value in peft.get_peft_model_state_dict(module).items()}
    return {_name(key): value * scale if "lora_B" in key else value for key, value in state.items()}


def _name(key: str) -> str:
    """What files call a matrix, or with DoRA the lengths, that peft calls `key`; every reader finds it by that name."""
    kind = "lora_linear_layer" if key.startswith("encoder.") else "lora"
    key = key.replace("lora_A", f"{kind}.down").replace("lora_B", f"{kind}.up")
    return _classic(key) + (".weight" if key.endswith("lora_magnitude_vector") else "")


def _classic(layer: str) -> str:
    """Text encoders' layers have the names of transformers 4, which every reader knows."""
    return f"text_model.{layer}" if layer.startswith("encoder.") else layer


def _distance(modules: dict[str, nn.Module], scale: float) -> Callable[[], Tensor]:
    """Σ ‖scale · B A‖², without ever making the product: ⟨BᵀB, AAᵀ⟩."""
    layers = [layer for module in modules.values() for layer in _layers(module)]

    def distance() -> Tensor:
        pairs = [(layer.lora_A[NAME].weight.flatten(1), layer.lora_B[NAME].weight.flatten(1)) for layer in layers]
        return scale**2 * torch.stack([((b.T @ b) * (a @ a.T)).sum() for a, b in pairs]).sum()

    return distance


def learned_word(config: Config) -> Path | None:
    """The folder that holds the word of `word.learned`, a run or what it saved; None where none is given."""
    run = config.word.learned
    return run and (run / "model" if (run / "model").is_dir() else run)


def _take_word(pipe: DiffusionPipeline, family: Family, config: Config) -> None:
    folder = learned_word(config)
    if not (words := read_words(folder)):
        raise ConfigError(f"word.learned: {config.word.learned} holds no learned word.", "Give a finished "
                          "textual_inversion run.")  # fmt: skip
    if lacking := [subject.identifier for subject in config.subjects if subject.identifier not in words]:
        raise ConfigError(f"word.learned: {config.word.learned} has learned {', '.join(words)}, not {lacking[0]}.",
                          "Set subject.identifier to that word.")  # fmt: skip
    load_words(pipe, family, folder)
    freeze(pipe)


def read_weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """What a folder holds, by layer (unet.….to_k): `down` (rank, inputs), `up` (outputs, rank), with DoRA `magnitude`
    (outputs,). Raises `ModelError` for a damaged file and for one that holds anything else."""
    layers: dict[str, dict[str, Tensor]] = {}
    try:
        for key, value in load_file(folder / FILE).items():
            if not (found := _KEY.fullmatch(key)) or not value.is_floating_point() or not value.ndim:
                raise ValueError(f"{key!r:.100} is none of its matrices")
            if not value.isfinite().all():
                raise ValueError(f"{key!r:.100} holds numbers that are not finite")
            layers.setdefault(found[1], {})[found[2] or found[3]] = value
        if not any(all(parts.keys() == whole for parts in layers.values()) for whole in _LAYER) or not layers:
            raise ValueError("matrices are missing")
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{FILE} can't be used ({first_line(error)}).", "Download or save it again.") from None
    return layers


def _check_fit(pipe: DiffusionPipeline, family: Family, layers: dict[str, dict[str, Tensor]]) -> None:
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
            "down": (rank, *shape[1:]), "up": (shape[0], rank, *[1] * (len(shape) - 2)), "magnitude": shape[:1]
        }  # fmt: skip
        if not wanted or any(tuple(value.shape) != tuple(wanted[part]) for part, value in parts.items()):
            raise ModelError(f"{FILE} does not fit this base model ({name}).", "Use the one it was trained on.")


def load(pipe: DiffusionPipeline, family: Family, adapters: Sequence[tuple[Path, float]]) -> None:
    """Put the matrices beside the pipeline's weights, as peft adapters of these weights.

    A weight scales B A; with DoRA, as in peft, not the lengths.
    """
    for folder, _ in adapters:
        _check_fit(pipe, family, read_weights(folder))
    for number, (folder, _) in enumerate(adapters):
        load_words(pipe, family, folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant to be there
            # tensors alone: a file's own notes could ask peft for more than matrices
            pipe.load_lora_weights(load_file(folder / FILE), adapter_name=f"adapter-{number}")
    pipe.set_adapters([f"adapter-{number}" for number in range(len(adapters))], [weight for _, weight in adapters])


METHOD = Method(
    "lora",
    "LoRA",
    "Trains small matrices beside the weights: nearly as faithful, in a file of megabytes that other programs load.",
    attach,
    load,
    (FILE, PATTERN),
)
