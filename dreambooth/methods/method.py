"""What a way of fine-tuning is: the record, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dreambooth.config.settings import Config
from dreambooth.families.family import Family
from dreambooth.families.load import store_matrices_in

Load = Callable[[DiffusionPipeline, Family, Sequence[tuple[Path, float]]], None]


@dataclass(frozen=True)
class Trainable:
    """What one training changes."""

    modules: dict[str, nn.Module]
    """The modules that gradients pass through, by the pipeline's attribute that holds them."""
    parameter_groups: list[dict[str, Any]]
    """For the optimiser, and for checkpoints; every `params` list holds float32 parameters."""
    save: Callable[[Path, Path], None]
    """(new folder, base model's folder) -> None: write what generation loads."""
    drift: Callable[[], Tensor] | None = None
    """The squared distance of the trained weights from the base model's, a scalar; where `drift.weight` asks for it."""
    beside: Sequence[Tensor] = ()
    """What is held in memory beside the modules' weights: the base's, where `drift` compares with them."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [p for group in self.parameter_groups for p in group["params"]]


@dataclass(frozen=True)
class Method:
    """One way of fine-tuning."""

    name: str
    title: str
    description: str
    """One sentence for people: what is trained, what it costs, what it is best at."""
    trains: str
    """What a card says that it trains; {side} is " and the text encoder" where that is trained too, {word} the new word
    or words."""
    paper: str
    """On arXiv."""
    tags: tuple[str, ...]
    """The Hub's, of what it makes; the first tells it from the others. Source: diffusers' training scripts."""
    attach: Callable[[DiffusionPipeline, Family, Config], Trainable]
    """Freeze everything, then make trainable what this method trains. Raises `ConfigError` for impossible pairs."""
    load: Load | None = None
    """(pipe, family, [(folder that `save` wrote, weight)]) -> None: put the weight's share of what was trained into the
    base model's pipeline. Raises `ModelError`. None where `save` writes a whole pipeline."""
    files: tuple[str, ...] = ()
    """Patterns of the weights' names that `save` writes, of which the first is always there; none of a pipeline's."""


def freeze(pipe: DiffusionPipeline) -> None:
    """Let nothing of the pipeline be trained."""
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False)


def text_learning_rate(config: Config) -> dict[str, float]:
    """What a parameter group of the text side says of its learning rate, where that is its own."""
    own = config.train.text_learning_rate
    return {"lr": own} if own else {}


def store_frozen_in(dtype: torch.dtype | None, trainable: Trainable) -> None:
    """Keep the matrices that are not trained in the forward pass's precision, which would cast them each time."""
    store_matrices_in(dtype, trainable.modules.values())


class Distance:
    """‖θ − θ₀‖², a scalar at each call, θ₀ being the parameters as they were when it was made."""

    def __init__(self, parameters: Iterable[Tensor]):
        self.trained = list(parameters)
        self.base = [p.detach().clone() for p in self.trained]

    def __call__(self) -> Tensor:
        """The squared distance now."""
        pairs = zip(self.trained, self.base, strict=True)
        return torch.stack([(now - then).square().sum() for now, then in pairs]).sum()
