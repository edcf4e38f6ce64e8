"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank matrices beside attention's weights, in the text encoder too."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import peft
import torch
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, first_line
from dreambooth.families.family import Family
from dreambooth.families.words import PATTERN, check_learned_word, learned_word, load_words, write_words
from dreambooth.machine import one_model_at_a_time
from dreambooth.methods.lora_file import FILE, check_fit, file_key, read_weights
from dreambooth.methods.method import Method, Trainable, freeze, text_learning_rate

NAME = "default"  # of the adapter while it is trained; peft's


@one_model_at_a_time
def attach(pipe: DiffusionPipeline, family: Family, config: Config) -> Trainable:
    """Put trainable matrices beside the targets' frozen weights; where they start, the model is the base model."""
    freeze(pipe)
    words = check_learned_word(config) if config.word.learned else {}
    if words:
        load_words(pipe, family, learned_word(config))  # its embeddings are frozen
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
        write_words(words, folder)

    return Trainable(modules, groups, save, _distance(modules, scale) if config.drift.weight else None)


def _inject(module: nn.Module, name: str, targets: Sequence[str], config: Config) -> nn.Module:
    settings = config.lora
    wanted = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,  # type: ignore[arg-type]  # any number will do
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        target_modules=list(targets),
    )
    _check_targets(module, name, targets, dora=settings.dora)
    try:
        peft.inject_adapter_in_model(wanted, module, NAME)
    except ValueError as error:  # a layer of a kind that takes none
        raise ConfigError(f"lora.targets: {first_line(error)}", f"Name layers of the {name}.") from None
    g = torch.Generator().manual_seed(config.seed)
    for layer in _layers(module):  # peft's own start, from the run's seed
        down = cast(Tensor, layer.lora_A[NAME].weight)
        down.data = torch.empty(down.shape).uniform_(-1, 1, generator=g).to(down) / math.sqrt(down[0].numel())
    _measure_lengths_in_full(module)
    return module


def _measure_lengths_in_full(module: nn.Module) -> None:
    """Let DoRA take lengths in float32 of the weights that it finds: peft rounds them to the precision of the forward
    pass, so that in bf16 a training starts at 1 ± 0.002 of the base model's weights."""

    def lengths(weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None) -> Tensor:
        found: Tensor = torch.linalg.norm(weight.float() + scaling * lora_weight.float(), dim=1)
        return found

    for part in module.modules():
        if isinstance(part, DoraLinearLayer):
            part.get_weight_norm = lengths


def _check_targets(module: nn.Module, name: str, targets: Sequence[str], *, dora: bool) -> None:
    """Raise `ConfigError` for a target that no layer bears, and with DoRA for one that is a convolution."""
    for target in targets:
        found = [layer for key, layer in module.named_modules() if key == target or key.endswith(f".{target}")]
        if not found:
            raise ConfigError(
                f"lora.targets: the {name} has no layer {target!r}.", "Correct the name, or leave it out."
            )
        if dora and not all(isinstance(layer, nn.Linear) for layer in found):
            raise ConfigError(
                f"lora.dora: {target!r} is no linear layer.", "Leave it out of lora.targets, or dora off."
            )


def _layers(module: nn.Module) -> list[LoraLayer]:
    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]


def _state(module: nn.Module, scale: float) -> dict[str, Tensor]:
    """The matrices, (rank, inputs) and (outputs, rank), alpha / rank folded into the latter: no reader needs it."""
    state = {key: value.detach().cpu() for key, value in peft.get_peft_model_state_dict(module).items()}
    return {file_key(key): value * scale if "lora_B" in key else value for key, value in state.items()}


def _distance(modules: dict[str, nn.Module], scale: float) -> Callable[[], Tensor]:
    """Σ ‖scale · B A‖², without ever making the product: ⟨BᵀB, AAᵀ⟩."""
    layers = [layer for module in modules.values() for layer in _layers(module)]

    def distance() -> Tensor:
        ab = [(cast(Tensor, layer.lora_A[NAME].weight), cast(Tensor, layer.lora_B[NAME].weight)) for layer in layers]
        pairs = [(a.flatten(1), b.flatten(1)) for a, b in ab]
        return scale**2 * torch.stack([((b.T @ b) * (a @ a.T)).sum() for a, b in pairs]).sum()

    return distance


def load(pipe: DiffusionPipeline, family: Family, adapters: Sequence[tuple[Path, float]]) -> None:
    """Put the matrices beside the pipeline's weights, as peft adapters of these weights.

    A weight scales B A; with DoRA, as in peft, not the lengths.
    """
    for folder, _ in adapters:
        check_fit(pipe, family, read_weights(folder))
    for number, (folder, _) in enumerate(adapters):
        load_words(pipe, family, folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant to be there
            # tensors alone: a file's own notes could ask peft for more than matrices
            pipe.load_lora_weights(load_file(folder / FILE), adapter_name=f"adapter-{number}")
    for name in (family.denoiser, *family.text_encoders):
        _measure_lengths_in_full(getattr(pipe, name))
    pipe.set_adapters([f"adapter-{number}" for number in range(len(adapters))], [weight for _, weight in adapters])


METHOD = Method(
    "lora",
    "LoRA",
    "Trains small matrices beside the weights: nearly as faithful, in a file of megabytes that other programs load.",
    "matrices beside the weights of the denoiser{side}",
    "2106.09685",
    ("lora", "template:sd-lora", "dreambooth"),
    attach,
    load,
    (FILE, PATTERN),
)
