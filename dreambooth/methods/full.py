"""Full fine-tuning, as in the paper: every weight of the denoiser and, if asked, of the text encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from dreambooth.config.settings import Config
from dreambooth.families.family import Family
from dreambooth.families.folder import name_plainly
from dreambooth.files import copy_or_link
from dreambooth.methods.method import Distance, Method, Trainable, freeze, text_learning_rate


def attach(pipe: DiffusionPipeline, family: Family, config: Config) -> Trainable:
    """Make the denoiser's (and text encoders') weights trainable, everything else frozen."""
    names = (family.denoiser, *(family.text_encoders if config.train.text_encoder else ()))
    freeze(pipe)
    modules = {name: getattr(pipe, name).requires_grad_(True) for name in names}
    groups: list[dict[str, Any]] = [{"params": list(module.parameters())} for module in modules.values()]
    for group in groups[1:]:
        group |= text_learning_rate(config)
    drift = Distance(p for group in groups for p in group["params"]) if config.drift.weight else None

    def save(folder: Path, base: Path) -> None:
        """Write a whole pipeline: the trained components, and the base's own files for all others."""
        for name in modules:
            getattr(pipe, name).save_pretrained(folder / name)
            if name in family.text_encoders:
                use_classic_names(folder / name / "model.safetensors")
        index = json.loads((base / "model_index.json").read_bytes())
        for name, entry in index.items():
            if isinstance(entry, list) and entry[0] is not None and name not in modules:
                shutil.copytree(base / name, folder / name, copy_function=copy_or_link)
                name_plainly(folder / name)
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        forget_paths(folder)

    return Trainable(modules, groups, save, drift, drift.base if drift else ())


def use_classic_names(file: Path) -> None:
    """Give a saved CLIP text encoder the parameter names of transformers 4, which 5 reads too.

    transformers 5 writes them without `text_model.`; older versions would then load random weights without an error.
    """
    state = load_file(file)
    save_file({f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}, file, {"format": "pt"})


def forget_paths(folder: Path) -> None:
    """Take the paths of this machine, which diffusers notes as `_name_or_path`, out of a saved pipeline's configs."""
    for file in (folder / "model_index.json", *folder.glob("*/*config.json")):
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


METHOD = Method(
    "full",
    "DreamBooth",
    "Trains every weight, as the paper does: most faithful, with the largest file.",
    "every weight of the denoiser{side}",
    "2208.12242",
    ("dreambooth",),
    attach,
)
