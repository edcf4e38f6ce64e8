"""What differs between ways of fine-tuning: a method attaches to a pipeline, and saves and loads what it trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusers import DiffusionPipeline
from torch import nn

from dreambooth.config import Config
from dreambooth.families import Family


@dataclass(frozen=True)
class Trainable:
    """What one training changes."""

    modules: dict[str, nn.Module]
    """The trained modules by the pipeline's attribute that holds them; a checkpoint carries their trained weights."""
    parameter_groups: list[dict]
    """For the optimiser; every `params` list holds float32 parameters."""
    save: Callable[[Path, Path], None]
    """(new folder, base model's folder) -> None: write what generation loads."""
    after_step: Callable[[], None] | None = None
    """Called after every optimiser step, before anything reads the weights."""


@dataclass(frozen=True)
class Method:
    """One way of fine-tuning."""

    name: str
    description: str
    attach: Callable[[DiffusionPipeline, Family, Config], Trainable]
    """Freeze everything, then make trainable what this method trains. Raises `ConfigError` for impossible pairs."""


def get_method(name: str) -> Method:
    """The method of that name; `Config` has checked the name."""
    from dreambooth.methods import full

    return {method.name: method for method in (full.METHOD,)}[name]
