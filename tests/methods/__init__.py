"""Each method by itself, on tiny models; what all have in common is in `tests/methods/test_methods.py`."""

from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from dreambooth.config.sections import LEARNS_WORD, SamplingConfig
from dreambooth.config.settings import Config
from dreambooth.families.family import Family
from dreambooth.families.load import load_pipeline
from dreambooth.generate import draw
from dreambooth.methods import get_method
from dreambooth.methods.method import Trainable
from dreambooth.models.adapters import Adapter, save_trained, write_adapter
from dreambooth.models.fetch import fetch_model, fingerprint
from tests import tiny


def method_settings(method: str, **changes) -> dict:
    """What `make_config` takes for a quick run of a method; `changes` as there."""
    word = method in LEARNS_WORD or changes.get("word", {}).get("learned")
    settings = {"method": method} | changes
    settings["train"] = {"text_encoder": method not in LEARNS_WORD} | changes.get("train", {})
    settings["subject"] = {"identifier": "<sks>" if word else "sks"} | changes.get("subject", {})
    return settings


def attached(config: Config) -> tuple[DiffusionPipeline, Family, Trainable]:
    """The base model with what the method trains."""
    pipe, family = load_pipeline(fetch_model(config.base_model))
    return pipe, family, get_method(config.method).attach(pipe, family, config)


def trained(config: Config, folder: Path, seed: int = 0, strength: float = 0.3) -> DiffusionPipeline:
    """Save what training could have made of the method's weights, drawn from `seed`; the pipeline that holds it."""
    pipe, _, trainable = attached(config)
    rng = torch.Generator().manual_seed(seed)
    for parameter in trainable.parameters:
        parameter.data += strength * torch.randn(parameter.shape, generator=rng)
    folder.mkdir(parents=True)
    save_trained(trainable, config, fetch_model(config.base_model), folder, config.train.steps)
    for module in trainable.modules.values():
        module.eval()
    return pipe


def claimed(method: str, base: Path, folder: Path) -> Path:
    """The new folder of what says to be an adapter of `base`; its weights are up to the test."""
    folder.mkdir()
    facts = Adapter(
        method=method, base_model=base.name, revision=None, base_fingerprint=fingerprint(base), identifiers=("<sks>",)
    )
    write_adapter(folder, facts)
    return folder


def pixels(pipe: DiffusionPipeline, prompt: str) -> np.ndarray:
    """The (H, W, 3) values of the picture of seed 3 and two steps."""
    (image,) = draw(pipe, [prompt], [3], SamplingConfig(steps=2))
    return tiny.pixels(image)


def distance(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of two pictures, in steps of their 256 levels."""
    return int(abs(a - b).max())
