"""Adapters: what a method trained beside its base model, on disk with its name, and put into a pipeline again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from diffusers import DiffusionPipeline
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from dreambooth.config.names import TOYBOX, name_of
from dreambooth.config.sections import LEARNS_WORD, MethodName
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, ModelError, RunError
from dreambooth.families.family import Family
from dreambooth.families.folder import shown_name, what_helps
from dreambooth.families.load import load_pipeline
from dreambooth.families.words import read_words
from dreambooth.files import atomic_folder, refuse_taken
from dreambooth.hub import Token
from dreambooth.machine import one_model_at_a_time
from dreambooth.methods import get_method, methods
from dreambooth.methods.full import forget_paths, use_classic_names
from dreambooth.methods.method import Trainable
from dreambooth.models.fetch import ADAPTER, TOYBOX_FOLDER, fetch_from_hub, fingerprint

STEP = "step.json"
"""Beside a run's weights: after which step of its training they are these."""


class Adapter(BaseModel):
    """What `adapter.json` says: whose weights lie beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    method: MethodName
    base_model: str
    """toybox, a Hub id, or the name of a folder that only its owner has."""
    revision: str | None
    base_fingerprint: str
    """Of the base model's files, by `fetch.fingerprint`."""
    identifiers: tuple[Annotated[str, StringConstraints(min_length=1, max_length=60)], ...]
    """What the subjects are called in prompts."""


def is_model(folder: Path) -> bool:
    """Whether a whole pipeline or an adapter is in the folder."""
    return (folder / "model_index.json").is_file() or is_adapter(folder)


def is_adapter(folder: Path) -> bool:
    """Whether an adapter is in the folder."""
    return (folder / ADAPTER).is_file()


def save_trained(trainable: Trainable, config: Config, base: Path, folder: Path, step: int) -> None:
    """Write what was trained in `step` steps into the new folder, and of an adapter what it belongs to; `base` is its
    base's folder."""
    trainable.save(folder, base)
    write_step(folder, step)
    if get_method(config.method).load is not None:
        facts = Adapter(
            method=config.method,
            base_model=name_of(config.base_model),
            revision=config.revision,
            base_fingerprint=fingerprint(base),
            identifiers=tuple(s.identifier for s in config.subjects),
        )
        write_adapter(folder, facts)


def write_step(folder: Path, step: int) -> None:
    """Write `step.json`."""
    (folder / STEP).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")


def read_step(folder: Path) -> int | None:
    """After which step a run's model in `folder` was saved; None where an earlier version saved it, which did not say.

    Raises `RunError` where that is damaged.
    """
    try:
        return int(json.loads((folder / STEP).read_bytes())["step"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{folder.name}/{STEP} can't be read ({error}).", "Train the run anew.") from None


def write_adapter(folder: Path, facts: Adapter) -> None:
    """Write `adapter.json`."""
    (folder / ADAPTER).write_text(facts.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_adapter(folder: Path) -> Adapter:
    """What an adapter's folder says of it. Raises `ModelError` where that is damaged, or weights are missing."""
    try:
        adapter = Adapter.model_validate_json((folder / ADAPTER).read_bytes())
        method = get_method(adapter.method)
        if method.load is None or not any(folder.glob(method.files[0])):
            raise ValueError("its weights are missing")
    except (OSError, ValueError) as error:  # pydantic's are ValueErrors
        said = f"{error.error_count()} errors" if isinstance(error, ValidationError) else error
        raise ModelError(
            f"{shown_name(folder)}: {ADAPTER} can't be used ({said}).", what_helps(folder, error)
        ) from None
    return adapter


def fetch_base(adapter: Adapter, *, token: Token = None, max_bytes: float = math.inf) -> Path:
    """The folder of an adapter's base model, downloaded if need be; never a folder that the adapter, which may be a
    stranger's, names. Raises as `fetch_from_hub` does, and `ModelError` for a base model that only its owner has."""
    if adapter.base_model == TOYBOX:
        return TOYBOX_FOLDER
    if "/" not in adapter.base_model:
        raise ModelError(
            f"This adapter's base model, {adapter.base_model}, is a folder of the machine where it was trained.",
            "Give that folder (--base-model), or publish a fused model instead: `fuse`.",
        )
    return fetch_from_hub(adapter.base_model, adapter.revision, token=token, max_bytes=max_bytes)


def load_model(
    model: Path,
    base: Path | None = None,
    *,
    scale: float = 1.0,
    adapters: Sequence[tuple[Path, float]] = (),
    safety_checker: bool | Path = False,
    token: Token = None,
) -> tuple[DiffusionPipeline, Family]:
    """Load a pipeline's folder, or an adapter's with `scale` of it on its base model, whose folder is `base` if known.

    On top come further `adapters`, each a folder and its weight, of the same base model. On a pipeline that is not
    theirs, such as one that was trained further, LoRAs and words go wherever their shapes fit; Custom Diffusion's
    change is counted from its own base model's weights and goes nowhere else. Raises as `load_pipeline` does,
    `ModelError` where an adapter is damaged or of another base model, and `ConfigError` for weights that can't be and
    for a `scale` or a `base` of a whole model.
    """
    wanted, under = list(adapters), model
    if is_adapter(model):
        wanted.insert(0, (model, scale))
        under = base or fetch_base(read_adapter(model), token=token)
    elif scale != 1:
        raise ConfigError(f"scale is {scale:g}, but this is a whole model.", "Only an adapter can be scaled.")
    elif base is not None:
        raise ConfigError(
            f"A base model is given ({shown_name(base)}), but {shown_name(model)} is a whole model.",
            "Leave --base-model out: only an adapter needs one.",
        )
    for folder, weight in wanted:
        if not math.isfinite(weight):
            raise ConfigError(f"The weight of {shown_name(folder)} is {weight}.", "Give a number, such as 0.8.")
        _check_words(folder)
    _check_base(wanted, under, whole=under == model)
    pipe, family = load_pipeline(under, safety_checker=safety_checker)
    _put_into(pipe, family, wanted)
    return pipe, family


def _check_words(folder: Path) -> None:
    """Raise `ModelError` where a method that learns words holds others than its `adapter.json` names."""
    facts = read_adapter(folder)
    if facts.method in LEARNS_WORD and (words := read_words(folder)).keys() != set(facts.identifiers):
        raise ModelError(
            f"{shown_name(folder)}: {ADAPTER} names {', '.join(facts.identifiers) or 'no word'}, but its files hold "
            f"{', '.join(words) or 'none'}.",
            "Download or save it again.",
        )


def _check_base(adapters: Sequence[tuple[Path, float]], under: Path, *, whole: bool) -> None:
    """Raise `ModelError` for adapters that do not go on the pipeline in `under`; `whole`: it is no adapter's base."""
    found = fingerprint(under) if adapters else ""
    for folder, _ in adapters:
        facts = read_adapter(folder)
        if facts.base_fingerprint == found or (whole and facts.method != "custom_diffusion"):
            continue
        raise ModelError(
            f"{shown_name(folder)} is an adapter of another base model than {shown_name(under)}.",
            "Custom Diffusion goes on its own base model alone."
            if whole
            else "Give the one it was trained on; it may have changed since.",
        )


@one_model_at_a_time
def _put_into(pipe: DiffusionPipeline, family: Family, adapters: Sequence[tuple[Path, float]]) -> None:
    """Load them by kind: those that change weights first, those that stand beside them last."""
    kinds = [(read_adapter(folder).method, folder, weight) for folder, weight in adapters]
    for method in reversed(methods()):
        if chosen := [(folder, weight) for name, folder, weight in kinds if name == method.name]:
            assert method.load, "only adapters are read here"
            method.load(pipe, family, chosen)


def fuse(model: Path, out: Path, base: Path | None = None, *, scale: float = 1.0) -> None:
    """Write an adapter and its base model as one pipeline into the new folder `out`, which needs neither.

    Raises as `load_model` does, and `ConfigError` for what is no adapter, and for an `out` that is taken.
    """
    refuse_taken(out)
    if not is_adapter(model):
        raise ConfigError(f"{shown_name(model)} is a whole model already.", "Give a run that trained an adapter.")
    pipe, family = load_model(model, base, scale=scale, safety_checker=True)
    if read_adapter(model).method == "lora":
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    with atomic_folder(out) as folder:
        pipe.save_pretrained(folder)
        for name in family.text_encoders:
            use_classic_names(folder / name / "model.safetensors")
        forget_paths(folder)
