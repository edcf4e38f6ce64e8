"""Whether a run fits, and how long it takes, before a weight is loaded: its stages rehearsed on tensors without data.

The base model is built from its config files on PyTorch's fake tensors, which have shapes and dtypes but no storage.
Each stage of a training runs once on them as it will in earnest, while a tracker follows every allocation and every
operation, so that what is counted is what PyTorch would allocate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dreambooth.config.names import TOYBOX
from dreambooth.config.presets import usual_preset
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError
from dreambooth.generate import MAX_BATCH
from dreambooth.machine import available_memory, check_optimizer, resolve_precision
from dreambooth.methods import get_method
from dreambooth.rehearsal import LARGE_BLOCK, UTILISATION, Rehearsal, gib, timed, untimed
from dreambooth.training.dataset import ENCODE_BATCH

UPDATE_8BIT_ON_CPU = 2000
"""Bytes that could be moved while bitsandbytes 0.50 updates one number on a CPU (measured: 50 times plain AdamW)."""
PHOTOS = 5
"""How many photos the time is estimated for (paper: 3 to 5)."""
UPDATE = "the optimizer's update"
ENCODERS = {"dino": 21_665_664, "clip": 151_277_313, "perceptual": 2_470_848}
"""Numbers that the encoders hold, 32 bits each: DINO's ViT-S/16, CLIP's ViT-B/32, LPIPS' AlexNet (counted from their
configurations). Any others that are named count as these."""
TOYBOX_ENCODERS = {"dino": 826_496, "clip": 1_578_113, "perceptual": 0}
"""Of the toybox's own; its distance between pictures looks through the same ViT."""
LOOKED_AT = 128
"""Bytes at most for a pixel that is looked at: of the three LPIPS' AlexNet takes most, on a pair (counted layer by
layer: both pictures as read, scaled and normalised, and what its first layer says of them)."""
LOOKED_AT_SIDE = 224
"""Pixels to which DINO and CLIP scale every picture (their published processors)."""
SD15 = {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}
"""Numbers in the parts of Stable Diffusion 1.5 (counted), which stands for a base model that is not on this machine."""
SD15_ADAPTER = 40_000_000
"""Numbers in an adapter of it: twice what Custom Diffusion trains, the largest of the recipes."""
SMALL_FILE, STEP_BYTES, RUN_BYTES = 4096, 400, 2**20
"""Bytes at most of a text or of what a picture says of itself, of what is written of a step, and of all else in a run's
directory (measured: a step takes 200)."""


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to need."""

    peak_bytes: int
    """The most memory at once: the process's on a CPU, on a GPU what PyTorch takes of its memory."""
    stage: str
    """When that is."""
    parts: dict[str, int]
    """What it consists of, in bytes; adds up to `peak_bytes`."""
    stages: dict[str, int]
    """Each stage's own peak, in bytes."""
    trainable_parameters: int
    model_bytes: int
    """What the run saves, in 32 bits: of an adapter what was trained, else the pipeline without a safety checker."""
    seconds: float
    """The whole run's, with every class image drawn anew; right within a factor of about two."""
    resolution: int
    """Side of the training pictures in pixels."""
    gradient_checkpointing: bool
    mixed_precision: str
    """no, bf16 or fp16."""

    def describe(self) -> str:
        """One line for people."""
        parts = ", ".join(f"{name} {gib(size)}" for name, size in self.parts.items() if size > self.peak_bytes // 50)
        checkpointing = "on" if self.gradient_checkpointing else "off"
        return (
            f"about {gib(self.peak_bytes)} of memory at most, in {self.stage} ({parts}), and roughly "
            f"{roughly(self.seconds)} for {self.trainable_parameters / 1e6:,.1f} M trained weights at "
            f"{self.resolution} px; mixed precision {self.mixed_precision}, gradient checkpointing {checkpointing}"
        )


def check(
    config: Config,
    model: Path,
    device: torch.device,
    *,
    available: int | None = None,
    rehearsal: Rehearsal | None = None,
) -> Estimate:
    """Estimate the run on the base model in the folder `model`; `available` bytes default to what `device` has left.

    A `rehearsal` of another run of this model, in the same precision on the same device, need not be made again; where
    none is given, one that this process has made of late is taken.
    `gradient_checkpointing: auto` becomes off where the run fits without, else on. Raises `ConfigError`, with the
    settings that would make it fit, for a run that does not, and `ModelError` for a damaged folder.
    """
    check_optimizer(config.train.optimizer, device)
    precision = resolve_precision(config.train.mixed_precision, device)
    available = available_memory(device) if available is None else available
    rehearsal = rehearsal or timed(model, device, precision)
    changes: dict[str, Any] = {"train.mixed_precision": precision}
    if config.train.resolution == "auto":
        changes["train.resolution"] = rehearsal.family.resolution(model)
    config = _with(config, changes)
    asked = config.train.gradient_checkpointing
    for checkpointing in (False, True) if asked == "auto" else (asked,):
        estimate = _estimate(rehearsal, config, checkpointing)
        if estimate.peak_bytes <= available:
            return estimate
        if estimate.stages[UPDATE] > available:  # where checkpointing changes nothing
            break
    raise ConfigError(
        f"This run needs about {gib(estimate.peak_bytes)} of memory on {device.type} ({estimate.stage}), but only "
        f"{gib(available)} can be had.",
        _advice(rehearsal, config, estimate, available),
    )


# ------------------------------------------------------------------------------------------------------ the estimate


def _estimate(rehearsal: Rehearsal, config: Config, checkpointing: bool) -> Estimate:
    """Every stage's memory and time; `config` has its resolution and precision resolved."""
    train, prior, sampling, on_cuda = config.train, config.prior, config.sampling, rehearsal.device.type == "cuda"
    resolution = train.resolution
    assert resolution != "auto"
    step = rehearsal.step(config, checkpointing)
    crops = train.crops_per_photo * (1 + train.flip)
    encoding = rehearsal.encode(config, min(crops, ENCODE_BATCH))
    class_images = prior.active * prior.num_images * len(config.class_prompts)
    photos = PHOTOS * len(config.subjects) / (1 - train.side_by_side * bool(config.more_subjects))
    encoded = photos * crops + class_images * (1 + train.flip)

    trained = 4 * sum(step.trained)
    state = sum(_state_bytes(size, train.optimizer) for size in step.trained)
    held = {"optimizer state": state, "moving average": trained if train.ema_decay else 0}
    update = {"gradients": trained}
    moved = 2 * (2 * trained + state)  # gradients (clipped), weights and state are read and written
    if train.optimizer == "adamw8bit" and not on_cuda:  # unpacks a tensor's two moments and works on them
        update["optimizer workspace"] = 5 * 4 * max(step.trained)
        moved = UPDATE_8BIT_ON_CPU * sum(step.trained)
    updating = replace(step, peak=update, small=sum(4 * size for size in step.trained if 4 * size < LARGE_BLOCK))
    stages = {"encoding": (encoding, {}), "training": (step, held), UPDATE: (updating, held)}
    seconds = encoding.seconds * encoded / min(crops, ENCODE_BATCH)
    seconds += train.steps * train.gradient_accumulation * step.seconds
    seconds += train.steps * moved / (UTILISATION[rehearsal.device.type] * rehearsal.speed.bandwidth)
    if prior.active:
        drawing = rehearsal.draw(config, prior.batch_size, prior.steps, prior.guidance_scale)
        stages["class images"] = (drawing, {})
        seconds += drawing.seconds * class_images / prior.batch_size
    if train.sample_every:
        pictures = len(config.sample_prompts) * sampling.num_images
        at_once, guidance = min(pictures, MAX_BATCH), sampling.guidance_scale
        drawing = rehearsal.draw(config, at_once, sampling.steps, guidance, "trained")
        stages["sample pictures"] = (drawing, held)
        times = 1 + math.ceil(train.steps / train.sample_every)  # the base model's too
        seconds += drawing.seconds * pictures / at_once * times
        if _is_measured(config):
            encoders = {"encoders": 4 * sum(_encoders(config).values())}
            side = resolution if config.base_model == TOYBOX else max(resolution, LOOKED_AT_SIDE)
            size = LOOKED_AT * side**2 * min(pictures, config.evaluation.batch_size)
            looking = replace(drawing, peak={"activations": size}, small=0)
            stages["measuring sample pictures"] = (looking, held)
            for name, (trace, beside) in stages.items():  # they wait in main memory
                if not on_cuda or trace is looking:
                    stages[name] = (trace, beside | encoders)

    parts = {name: trace.needs(rehearsal.device, held) for name, (trace, held) in stages.items()}
    peaks = {name: sum(sizes.values()) for name, sizes in parts.items()}
    stage = max(peaks, key=peaks.__getitem__)
    return Estimate(
        peak_bytes=peaks[stage],
        stage=stage,
        parts={name: size for name, size in parts[stage].items() if size},
        stages=peaks,
        trainable_parameters=sum(step.trained),
        model_bytes=trained if get_method(config.method).load else rehearsal.model_bytes,
        seconds=seconds,
        resolution=resolution,
        gradient_checkpointing=checkpointing,
        mixed_precision=train.mixed_precision,
    )


# ----------------------------------------------------------------------------------------------------------- the disk


def disk_bytes(config: Config, model: Path | None, photos: int) -> int:
    """Bytes that the directory of a run on the base model in the folder `model` takes at most, beside what was
    uploaded, with `photos` pictures to learn from; where `model` is None, those of Stable Diffusion 1.5.

    Raises `ModelError` for a damaged folder.
    """
    train, is_adapter = config.train, bool(get_method(config.method).load)
    if model is None:
        full = (SD15["unet"], SD15["text_encoder"] * train.text_encoder)
        resolution, whole = 512, 4 * sum(SD15.values())
        sizes: tuple[int, ...] = (SD15_ADAPTER,) if is_adapter else full
    else:
        rehearsal = untimed(model, torch.device("cpu"))
        resolution, whole, sizes = rehearsal.family.resolution(model), rehearsal.model_bytes, rehearsal.trained(config)
    resolution = resolution if train.resolution == "auto" else train.resolution
    trained = 4 * sum(sizes)
    saved = trained if is_adapter else whole
    checkpoint = trained * (2 if train.ema_decay else 1) + sum(_state_bytes(size, train.optimizer) for size in sizes)
    weights = saved + (train.keep_checkpoints + 1) * checkpoint  # the oldest goes once the newest is whole
    if _is_measured(config):
        weights += saved + 2 * trained  # the best model, and before that its weights, which replace those before them
    pictures = photos / (1 - train.side_by_side * bool(config.more_subjects))
    if train.sample_every:
        drawn = len(config.sample_prompts) * config.sampling.num_images
        pictures += drawn * (2 + train.steps // train.sample_every)  # from step 0 to the last
    each = png_bytes(resolution, resolution) + SMALL_FILE
    return round(weights + pictures * each + train.steps * STEP_BYTES + RUN_BYTES)


def png_bytes(width: int, height: int) -> int:
    """Bytes of an RGB picture as PNG at most: its filters and zlib's blocks add less than a hundredth."""
    return round(1.01 * 3 * width * height) + SMALL_FILE


def _is_measured(config: Config) -> bool:
    return config.train.sample_every > 0 and config.evaluation.while_training


def _encoders(config: Config) -> dict[str, int]:
    """How many numbers each encoder holds that measures the sample pictures."""
    own = TOYBOX if config.base_model == TOYBOX else None
    named = config.evaluation.model_dump(include=set(ENCODERS))
    return {
        kind: (TOYBOX_ENCODERS if (own if name == "auto" else name) == TOYBOX else ENCODERS)[kind]
        for kind, name in named.items()
    }


def _state_bytes(size: int, optimizer: str) -> int:
    """What AdamW keeps for a tensor of `size` numbers: two moments, in bitsandbytes' 8 bits with a scale per 256."""
    if optimizer == "adamw8bit" and size >= 4096:
        return 2 * (size + 4 * math.ceil(size / 256))
    return 8 * size


def _advice(rehearsal: Rehearsal, config: Config, estimate: Estimate, available: int) -> str:
    """Which settings would make the run fit, with what each would need: one alone where one does, else several."""

    def after(change: dict[str, Any]) -> Estimate:
        changed = _with(config, change)
        return _estimate(rehearsal, changed, changed.train.gradient_checkpointing is not False)

    weights = list(_weight_remedies(config, rehearsal.device))
    batches = list(_batch_remedies(config, rehearsal.device))
    # The update holds what each trained weight costs: where that alone is too much, smaller batches can't help.
    alone = [*batches, *weights] if estimate.stages[UPDATE] <= available else weights
    fitting = ((change, then) for change in alone if (then := after(change)).peak_bytes <= available)
    if single := list(islice(fitting, 3)):
        return f"Set {', or '.join(f'{_settings(change)} ({_needs(then)})' for change, then in single)}."

    together: dict[str, Any] = {}
    least = estimate
    for change in weights:
        if least.stages[UPDATE] > available:
            together = together | change
            least = after(together)
    for change in [*batches, *weights] if least.stages[UPDATE] <= available else []:
        if least.peak_bytes > available and (then := after(together | change)).peak_bytes < 0.99 * least.peak_bytes:
            together, least = together | change, then
    if least.peak_bytes <= available:
        return f"Set {_settings(together)} ({_needs(least)})."
    tried = f"Even {_settings(together)} would leave it at {gib(least.peak_bytes)}: use" if together else "Use"
    return f"{tried} a smaller base model, or a machine with more memory."


def _weight_remedies(config: Config, device: torch.device) -> Iterator[dict[str, Any]]:
    """Changes that lower what each trained weight costs, or how many are trained; least loss first."""
    if config.train.ema_decay:
        yield {"train.ema_decay": None}
    if config.drift.weight:
        yield {"drift.weight": 0}
    if config.train.optimizer == "adamw":
        try:
            check_optimizer("adamw8bit", device)
        except ConfigError:
            pass  # no remedy where it does not work
        else:
            yield {"train.optimizer": "adamw8bit"}
    if device.type != "cuda" and _is_measured(config):  # there the encoders wait beside all that is trained
        yield {"evaluation.while_training": False}
    if config.train.text_encoder:
        yield {"train.text_encoder": False}
    if config.method == "full" and config.preset == usual_preset(config.base_model):  # another is for full alone
        yield {"method": "lora"}


def _batch_remedies(config: Config, device: torch.device) -> Iterator[dict[str, Any]]:
    """Changes that lower what each picture of a batch costs, or how many there are; least loss first."""
    train = config.train
    if train.gradient_checkpointing is False:
        yield {"train.gradient_checkpointing": True}
    if config.prior.active and config.prior.batch_size > 1:
        yield {"prior.batch_size": 1}
    if device.type == "cuda" and _is_measured(config):
        yield {"evaluation.while_training": False}
    if train.sample_every:
        if config.sampling.num_images > 1:
            yield {"sampling.num_images": 1}
        yield {"train.sample_every": 0}
    if train.mixed_precision == "no" and (auto := resolve_precision("auto", device)) != "no":
        yield {"train.mixed_precision": auto}
    if train.batch_size > 1:
        yield {"train.batch_size": 1}
    assert train.resolution != "auto", "the estimate has settled it"
    grid = 64 if train.resolution >= 128 else 8
    for share in (0.75, 0.5):
        if (side := int(train.resolution * share) // grid * grid) >= 32:  # the least that Config takes
            yield {"train.resolution": side}


def _with(config: Config, changes: dict[str, Any]) -> Config:
    for key, value in changes.items():
        section, _, name = key.partition(".")
        changed = getattr(config, section).model_copy(update={name: value}) if name else value
        config = config.model_copy(update={section: changed})
    return config


def _settings(changes: dict[str, Any]) -> str:
    words = [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _needs(estimate: Estimate) -> str:
    return f"about {gib(estimate.peak_bytes)}, {roughly(estimate.seconds)}"


def roughly(seconds: float) -> str:
    """Seconds in the largest unit that fits, in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
