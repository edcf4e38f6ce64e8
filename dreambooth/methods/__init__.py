"""What differs between ways of fine-tuning: a method attaches to a pipeline, and saves and loads what it trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dreambooth.config.settings import Config
from dreambooth.families import Family, store_matrices_in

Load = Callable[[DiffusionPipeline, Family, Sequence[tuple[Path, float]]], None]


@dataclass(frozen=True)
class Trainable:
    """What one training changes."""

    modules: dict[str, nn.Module]
    """The modules that gradients pass through, by the pipeline's attribute that holds them."""
    parameter_groups: list[dict]
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
    attach: Callable[[DiffusionPipeline, Family, Config], Trainable]
    """Freeze everything, then make trainable what this method trains. Raises `ConfigError` for impossible pairs."""
    load: Load | None = None
    """(pipe, family, [(folder that `save` wrote, weight)]) -> None: put the weight's share of what was trained into the
    base model's pipeline. Raises `ModelError`. None where `save` writes a whole pipeline."""
    files: tuple[str, ...] = ()
    """Patterns of the weights' names that `save` writes, of which the first is always there; none of a pipeline's."""


def get_method(name: str) -> Method:
    """The method of that name; `Config` has checked the name."""
    return {method.name: method for method in methods()}[name]


def methods() -> tuple[Method, ...]:
    """All methods, the paper's first."""
    from dreambooth.methods import custom_diffusion, full, lora, textual_inversion

    return (full.METHOD, lora.METHOD, textual_inversion.METHOD, custom_diffusion.METHOD)


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


NUMBER_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # in which files hold weights


def why_unusable(value: Tensor) -> str:
    """What is wrong with a tensor of a stranger's file as weights, in words that follow its name; "" where nothing."""
    if value.dtype not in NUMBER_TYPES:
        return f"holds numbers of type {str(value.dtype).removeprefix('torch.')}"
    if not value.numel():
        return "holds no numbers"
    return "" if value.isfinite().all() else "holds numbers that are not finite"


class Distance:
    """‖θ − θ₀‖², a scalar at each call, θ₀ being the parameters as they were when it was made."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.trained = list(parameters)
        self.base = [p.detach().clone() for p in self.trained]

    def __call__(self) -> Tensor:
        """The squared distance now."""
        pairs = zip(self.trained, self.base, strict=True)
        return torch.stack([(now - then).square().sum() for now, then in pairs]).sum()
