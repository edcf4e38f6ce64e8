"""Whether a run fits, and how long it takes, before a weight is loaded: its stages rehearsed on tensors without data.

The base model is built from its config files on PyTorch's fake tensors, which have shapes and dtypes but no storage.
Each stage of a training runs once on them as it will in earnest, while a tracker follows every allocation and every
operation, so that what is counted is what PyTorch would allocate.
"""

from __future__ import annotations

import importlib
import json
import math
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dreambooth.config import Config
from dreambooth.dataset import ENCODE_BATCH
from dreambooth.errors import ConfigError, ModelError
from dreambooth.families import Family, family_of
from dreambooth.generate import MAX_BATCH
from dreambooth.methods import get_method

GIB = 2**30
PROGRAM = 550 * 2**20
"""Resident bytes on a CPU: Python and the libraries 450 MiB, oneDNN's kernels and buffers 100 more (measured)."""
LARGE_BLOCK = 32 * 2**20
"""From this size on a freed block goes back to the system at once (glibc's largest mmap threshold, mallopt(3))."""
FRAGMENTATION = 0.4
"""Room lost between smaller blocks, as a share of them (measured: 0.15 to 0.6, on a CPU, 80 M and 215 M weights)."""
UTILISATION = 0.45
"""Share of the probed layer's speed that whole steps reach."""
OVERHEAD = 4
"""How many tiny operations cost as much as the Python and autograd around each operation of a step. With both figures,
estimates were 0.8 to 1.6 times the measured seconds of steps and of denoising (one CPU core, 4 M and 81 M weights,
batches of 2 to 50, bf16 and float32)."""
UPDATE_8BIT_ON_CPU = 2000
"""Bytes that could be moved while bitsandbytes 0.50 updates one number on a CPU (measured: 50 times plain AdamW)."""
PHOTOS = 5
"""How many photos the time is estimated for (paper: 3 to 5)."""
UPDATE = "the optimizer's update"


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
    seconds: float
    """The whole run's, with every class image drawn anew; right within a factor of about two."""
    resolution: int
    """Side of the training pictures in pixels."""
    gradient_checkpointing: bool
    mixed_precision: str
    """no, bf16 or fp16."""

    def describe(self) -> str:
        """One line for people."""
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in self.parts.items() if size > self.peak_bytes // 50)
        checkpointing = "on" if self.gradient_checkpointing else "off"
        return (
            f"about {_gib(self.peak_bytes)} of memory at most, in {self.stage} ({parts}), and roughly "
            f"{_duration(self.seconds)} for {self.trainable_parameters / 1e6:,.1f} M trained weights at "
            f"{self.resolution} px; mixed precision {self.mixed_precision}, gradient checkpointing {checkpointing}"
        )


def check(config: Config, model: Path, device: torch.device, *, available: int | None = None) -> Estimate:
    """Estimate the run on the base model in the folder `model`; `available` bytes default to what `device` has left.

    `gradient_checkpointing: auto` becomes off where the run fits without, else on. Raises `ConfigError`, with the
    settings that would make it fit, for a run that does not, and `ModelError` for a damaged folder.
    """
    check_optimizer(config.train.optimizer, device)
    precision = resolve_precision(config.train.mixed_precision, device)
    available = available_memory(device) if available is None else available
    rehearsal = Rehearsal(model, device, _probe(device, precision))
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
        f"This run needs about {_gib(estimate.peak_bytes)} of memory on {device.type} ({estimate.stage}), but only "
        f"{_gib(available)} can be had.",
        _advice(rehearsal, config, estimate, available),
    )


# ------------------------------------------------------------------------------------------- what the machine can do


def resolve_device(setting: str) -> torch.device:
    """The device that `device` names, or the best there is for auto; raises `ConfigError` for one that is absent."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if setting == "auto":
        return torch.device(next(name for name, there in present.items() if there))
    if not present[setting]:
        raise ConfigError(f"device is {setting}, which this machine or its PyTorch lacks.", "Set device: auto or cpu.")
    return torch.device(setting)


def resolve_precision(setting: str, device: torch.device) -> str:
    """no, bf16 or fp16 for `mixed_precision` on `device`; raises `ConfigError` for fp16 where there is no CUDA GPU."""
    if setting == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"train.mixed_precision is fp16, which needs a CUDA GPU; the device is {device.type}.",
            "Set train.mixed_precision: auto.",
        )
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        # oneDNN takes bf16 on every AVX-512 CPU, but is faster with it only where there are instructions for it.
        known = torch.cpu.get_capabilities()
        return "bf16" if any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "no"
    return "no"


def check_optimizer(setting: str, device: torch.device) -> None:
    """Raise `ConfigError` where bitsandbytes' 8-bit AdamW is asked for and one step of it fails on `device`."""
    if setting != "adamw8bit":
        return
    try:
        from bitsandbytes.optim import AdamW8bit

        weight = nn.Parameter(torch.ones(8192, device=device))  # more than the 4,096 numbers that stay in 32 bits
        weight.grad = torch.ones_like(weight)
        AdamW8bit([weight]).step()
    except ImportError:
        raise ConfigError(
            "train.optimizer is adamw8bit, but bitsandbytes is not installed.",
            "Run pip install bitsandbytes, or set train.optimizer: adamw.",
        ) from None
    except (RuntimeError, NotImplementedError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"train.optimizer is adamw8bit, but bitsandbytes fails on {device.type} here ({_first_line(error)}).",
            "Update bitsandbytes, or set train.optimizer: adamw.",
        ) from None


def available_memory(device: torch.device, cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes a run may use: of a GPU's memory beside the CUDA context, else of main memory with what the program has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = min([psutil.virtual_memory().available, *_cgroup_room(cgroups)])
    return free + min(PROGRAM, psutil.Process().memory_info().rss)


def _cgroup_room(root: Path, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Bytes left under each memory limit of the control groups (containers) this process is in, version 2 or 1."""
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        group = top / path.lstrip("/")  # inside a container this is not there, and `top` is the container's own
        for folder in [group, *group.parents]:
            for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
                if (folder / limit).is_file() and (most := (folder / limit).read_text().strip()) != "max":
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    cached = (stat.get(f"total_{age}_file", stat[f"{age}_file"]) for age in ("active", "inactive"))
                    yield int(most) - int((folder / usage).read_text()) + sum(map(int, cached))  # file cache gives way
            if folder == top:
                break


@dataclass(frozen=True)
class Speed:
    """What a device does in a second."""

    flops: float
    """Multiplications and additions of one denoiser layer, forward and backward, in the run's precision."""
    bandwidth: float
    """Bytes read and written by an elementwise operation."""
    call: float
    """Seconds that an operation takes however small it is."""


def _probe(device: torch.device, precision: str) -> Speed:
    """Measure `device`: a normalised convolution as denoisers are made of, an addition in place, and tiny additions."""
    batch, width, side = (4, 128, 16) if device.type == "cpu" else (8, 640, 64)
    pixels = torch.ones(batch, width, side, side, device=device, requires_grad=True)
    kernel = torch.ones(width, width, 3, 3, device=device, requires_grad=True)
    large, small = torch.ones(16 << 20, device=device), torch.ones(8, device=device)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16

    def layer() -> None:
        with torch.autocast(device.type, dtype, enabled=precision != "no"):
            out = F.conv2d(F.silu(F.group_norm(pixels, 16)), kernel, padding=1)
        torch.autograd.grad(out.float().mean(), (pixels, kernel))

    seconds = _fastest(layer, device)
    if device.type == "cpu":  # on a busy machine threads wait for each other, and one alone says more
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        seconds = min(seconds, _fastest(layer, device))
        torch.set_num_threads(threads)
    return Speed(
        3 * 2 * 9 * batch * width**2 * side**2 / seconds,
        2 * large.nbytes / _fastest(lambda: large.add_(1), device),
        OVERHEAD * _fastest(lambda: [small + 1 for _ in range(100)], device) / 100,
    )


def _fastest(work: Callable[[], object], device: torch.device, budget: float = 0.06) -> float:
    """Seconds of the fastest of as many runs as `budget` seconds hold, at least two, after one to warm up."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    work()
    times, end = [], time.perf_counter() + budget
    while len(times) < 2 or time.perf_counter() < end:
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


# ----------------------------------------------------------------------------------------------------- the rehearsal


@dataclass(frozen=True)
class Trace:
    """What one stage allocates beside the weights, and how long it takes."""

    peak: dict[str, int]
    """Bytes of each kind (gradients, 16-bit copies, activations) when together they are most."""
    small: int
    """The most bytes at once in blocks below `LARGE_BLOCK`."""
    seconds: float
    weights: int
    """Bytes of the weights that are on the device meanwhile."""
    trained: tuple[int, ...]
    """How many numbers each trained tensor holds."""


class Tracker(TorchDispatchMode):
    """Follows the memory that operations allocate, on fake tensors or real ones, and the time they would take."""

    def __init__(self, weights: Iterable[Tensor], speed: Speed):
        super().__init__()
        self.speed, self.seconds, self._repeats = speed, 0.0, 1
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.small = self.small_peak = 0
        self._kinds = {weight.untyped_storage()._cdata: "weights" for weight in weights}
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation and account for it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "prim":  # only fake tensors are asked for their device this way
            return out
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for result in results:
            self.follow(result, "16-bit copies" if self._copies_weight(func, args) else "activations")
        if not func.is_view:
            operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            moved = sum(t.nbytes for t in operands + results) / self.speed.bandwidth
            count = _FLOPS.get(func._overloadpacket)
            computed = count(*args, **kwargs, out_val=out) / self.speed.flops if count else 0
            self.seconds += self._repeats * max(moved, computed) / UTILISATION
        self.seconds += self._repeats * self.speed.call
        return out

    def follow(self, tensor: Tensor, kind: str) -> None:
        """Count `tensor`'s memory as `kind` until it is freed; gradients, already counted, change their kind."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive and kind == "gradients":
            self.live[self._kinds[key]] -= size
        elif key in self._kinds:
            return
        else:
            self._alive[key] = weakref.ref(storage, lambda _: self._freed(key, size))
            self.small += size if size < LARGE_BLOCK else 0
            self.small_peak = max(self.small, self.small_peak)
        self._kinds[key] = kind
        self.live[kind] += size
        if self.live.total() >= self.peak.total():
            self.peak = self.live.copy()

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """What runs inside takes its time `times` over."""
        self._repeats *= times
        yield
        self._repeats //= times

    def _freed(self, key: int, size: int) -> None:
        del self._alive[key]
        self.live[self._kinds.pop(key)] -= size
        self.small -= size if size < LARGE_BLOCK else 0

    def _copies_weight(self, func, args) -> bool:
        cast = func is torch.ops.aten._to_copy.default
        return cast and self._kinds.get(args[0].untyped_storage()._cdata) == "weights"


def _flop_formulas() -> dict:
    """PyTorch's, and the same for attention on a CPU, which it leaves out."""
    name, there, aten = "_scaled_dot_product_flash_attention", dict(flop_registry), torch.ops.aten
    for way in ("", "_backward"):
        there[getattr(aten, f"{name}_for_cpu{way}")] = there[getattr(aten, name + way)]
    return there


_FLOPS = _flop_formulas()


class _NormsInFloat32(TorchFunctionMode):
    """What autocast does on CUDA and not on a CPU (PyTorch's list of CUDA ops that autocast to float32)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.group_norm, F.layer_norm):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


class Rehearsal:
    """The stages of training one base model, without its weights; what was rehearsed once is remembered.

    Its methods take a config whose resolution and precision are resolved.
    """

    def __init__(self, model: Path, device: torch.device, speed: Speed):
        self.model, self.device, self.speed = model, device, speed
        self.family = family_of(model)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.pipe = blank_pipeline(model, self.family, self.fake)
        self._seen: dict[tuple, Trace] = {}

    def draw(self, config: Config, images: int, steps: int, guidance_scale: float) -> Trace:
        """Draw `images` at once, as class images and sample pictures are."""
        batch = images * (2 if guidance_scale > 1 else 1)  # with and without the prompt

        def work(tracker: Tracker) -> None:
            ids = self.family.tokenize(self.pipe, [config.class_prompt] * batch)
            latents, t = self._latents(config, batch)
            with torch.inference_mode(), self._autocast(config):
                conditioning = self.family.encode_text(self.pipe, ids)
                with tracker.repeated(steps):
                    self.family.predict(self.pipe, latents, t, conditioning)
                self.pipe.vae.decode(latents[:images])

        return self._once(("draw", images, batch, steps), config, lambda: self._run(self.pipe, config, work))

    def encode(self, config: Config, pictures: int) -> Trace:
        """Encode `pictures` at once."""

        def work(tracker: Tracker) -> None:
            pixels = torch.empty(pictures, 3, config.train.resolution, config.train.resolution)
            with torch.inference_mode(), self._autocast(config):
                self.family.encode_images(self.pipe, pixels)

        return self._once(("encode", pictures), config, lambda: self._run(self.pipe, config, work))

    def step(self, config: Config, checkpointing: bool) -> Trace:
        """Take one batch forward and backward; each different prompt is encoded once."""
        train, prior = config.train, config.prior.active
        prompts = [config.instance_prompt] * (train.batch_size if config.subject.captions else 1)
        prompts += [config.class_prompt] * prior
        batch = train.batch_size * (1 + prior)
        key = ("step", batch, len(prompts), train.gradient_accumulation > 1, train.text_encoder, checkpointing)
        return self._once(key, config, lambda: self._step(config, checkpointing, prompts, batch))

    def _step(self, config: Config, checkpointing: bool, prompts: list[str], batch: int) -> Trace:
        family = self.family
        pipe = blank_pipeline(self.model, family, self.fake)
        trainable = get_method(config.method).attach(pipe, family, config)
        for module in trainable.modules.values():
            module.train()
            if checkpointing:
                enable_gradient_checkpointing(module)
        parameters = [p for group in trainable.parameter_groups for p in group["params"]]
        text_trained = any(name in trainable.modules for name in family.text_encoders)

        def work(tracker: Tracker) -> None:
            for p in parameters:
                p.register_post_accumulate_grad_hook(lambda p: tracker.follow(p.grad, "gradients"))
                if config.train.gradient_accumulation > 1:  # all batches but the first find gradients already there
                    p.grad = torch.empty_like(p)
                    tracker.follow(p.grad, "gradients")
            with self._autocast(config):
                with torch.set_grad_enabled(text_trained):
                    encoded = family.encode_text(pipe, family.tokenize(pipe, prompts))
                where = torch.zeros(batch, dtype=torch.long)
                conditioning = {name: value[where] for name, value in encoded.items()}
                prediction = family.predict(pipe, *self._latents(config, batch), conditioning)
            prediction.float().square().mean().backward()

        # On CUDA what a step does not use makes room; elsewhere it would only move from main memory to main memory.
        idle = ["vae", *(() if text_trained else family.text_encoders)] if self.device.type == "cuda" else []
        return self._run(pipe, config, work, idle, parameters)

    def _once(self, key: tuple, config: Config, rehearse: Callable[[], Trace]) -> Trace:
        key += (config.train.resolution, config.train.mixed_precision)
        if key not in self._seen:
            self._seen[key] = rehearse()
        return self._seen[key]

    def _run(
        self,
        pipe: DiffusionPipeline,
        config: Config,
        work: Callable[[Tracker], None],
        idle: Iterable[str] = (),
        trained: Iterable[nn.Parameter] = (),
    ) -> Trace:
        modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        weights = {name: list(chain(part.parameters(), part.buffers())) for name, part in modules.items()}
        tracker = Tracker(chain(*weights.values()), self.speed)
        cuda_autocast = self.device.type == "cuda" and config.train.mixed_precision != "no"
        try:
            with self.fake, tracker, _NormsInFloat32() if cuda_autocast else nullcontext():
                work(tracker)
        except RuntimeError as error:  # shapes that do not match
            raise ModelError(
                f"{self.model.name} can't be trained: {_first_line(error)}.", "Check that its parts belong together."
            ) from None
        kept = sum(tensor.nbytes for name, tensors in weights.items() if name not in idle for tensor in tensors)
        return Trace(dict(tracker.peak), tracker.small_peak, tracker.seconds, kept, tuple(p.numel() for p in trained))

    def _autocast(self, config: Config) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=config.train.mixed_precision != "no")  # fp16 is as large

    def _latents(self, config: Config, batch: int) -> tuple[Tensor, Tensor]:
        side = config.train.resolution // self.pipe.vae_scale_factor
        return torch.empty(batch, self.pipe.vae.config.latent_channels, side, side), torch.zeros(batch).long()


def blank_pipeline(model: Path, family: Family, fake: FakeTensorMode) -> DiffusionPipeline:
    """The pipeline in the folder `model` with modules on fake tensors; raises `ModelError` for a damaged folder."""
    try:
        index = json.loads((model / "model_index.json").read_text())
        parts: dict[str, Any] = {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
        for name, entry in index.items():
            if isinstance(entry, list):
                left_out = name in ("safety_checker", "feature_extractor") or entry[0] is None
                parts[name] = None if left_out else _blank_component(model / name, *entry, fake)
        return family.pipeline(**parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(
            f"{model.name}: its configuration can't be read: {_first_line(error)}.", "Download or save it again."
        ) from None


def _blank_component(folder: Path, library: str, name: str, fake: FakeTensorMode) -> Any:
    if library not in ("diffusers", "transformers"):  # any module could be named there
        raise ValueError(f"{folder.name} is of {library}, which is not supported")
    if not folder.is_dir():  # else it would be looked for on the Hub
        raise FileNotFoundError(f"{folder.name} is missing")
    kind = getattr(importlib.import_module(library), name)
    if not issubclass(kind, nn.Module):
        return kind.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):  # skips the initialisation
        if library == "diffusers":
            module = kind.from_config(kind.load_config(folder, local_files_only=True))
        else:
            module = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    return module._apply(lambda tensor: FakeTensor(fake, tensor.detach(), torch.device("cpu"))).eval()


def enable_gradient_checkpointing(module: nn.Module) -> None:
    """The one switch under the names that diffusers, transformers 5 and transformers 4 give it."""
    names = ("enable_gradient_checkpointing", "activation_checkpointing_enable", "gradient_checkpointing_enable")
    next(getattr(module, name) for name in names if hasattr(module, name))()


# ------------------------------------------------------------------------------------------------------ the estimate


def _estimate(rehearsal: Rehearsal, config: Config, checkpointing: bool) -> Estimate:
    """Every stage's memory and time; `config` has its resolution and precision resolved."""
    train, prior, sampling, on_cuda = config.train, config.prior, config.sampling, rehearsal.device.type == "cuda"
    step = rehearsal.step(config, checkpointing)
    crops = train.crops_per_photo * (1 + train.flip)
    encoding = rehearsal.encode(config, min(crops, ENCODE_BATCH))
    encoded = PHOTOS * crops + prior.active * prior.num_images * (1 + train.flip)

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
    seconds += train.steps * moved / (UTILISATION * rehearsal.speed.bandwidth)
    if prior.active:
        drawing = rehearsal.draw(config, prior.batch_size, prior.steps, prior.guidance_scale)
        stages["class images"] = (drawing, {})
        seconds += drawing.seconds * prior.num_images / prior.batch_size
    if train.sample_every:
        prompts = {config.instance_prompt, config.class_prompt, *map(config.subject.fill, sampling.prompts)}
        pictures = len(prompts) * sampling.num_images
        drawing = rehearsal.draw(config, min(pictures, MAX_BATCH), sampling.steps, sampling.guidance_scale)
        stages["sample pictures"] = (drawing, held)
        seconds += drawing.seconds * pictures / min(pictures, MAX_BATCH) * math.ceil(train.steps / train.sample_every)

    parts = {
        name: {"program": 0 if on_cuda else PROGRAM, "weights": trace.weights, **held, **trace.peak}
        | {"fragmentation": round(FRAGMENTATION * trace.small)}
        for name, (trace, held) in stages.items()
    }
    peaks = {name: sum(sizes.values()) for name, sizes in parts.items()}
    stage = max(peaks, key=peaks.get)
    return Estimate(
        peak_bytes=peaks[stage],
        stage=stage,
        parts={name: size for name, size in parts[stage].items() if size},
        stages=peaks,
        trainable_parameters=sum(step.trained),
        seconds=seconds,
        resolution=train.resolution,
        gradient_checkpointing=checkpointing,
        mixed_precision=train.mixed_precision,
    )


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

    together, least = {}, estimate
    for change in weights:
        if least.stages[UPDATE] > available:
            together = together | change
            least = after(together)
    for change in [*batches, *weights] if least.stages[UPDATE] <= available else []:
        if least.peak_bytes > available and (then := after(together | change)).peak_bytes < 0.99 * least.peak_bytes:
            together, least = together | change, then
    if least.peak_bytes <= available:
        return f"Set {_settings(together)} ({_needs(least)})."
    tried = f"Even {_settings(together)} would leave it at {_gib(least.peak_bytes)}: use" if together else "Use"
    return f"{tried} a smaller base model, or a machine with more memory."


def _weight_remedies(config: Config, device: torch.device) -> Iterator[dict[str, Any]]:
    """Changes that lower what each trained weight costs, or how many are trained; least loss first."""
    if config.train.ema_decay:
        yield {"train.ema_decay": None}
    if config.train.optimizer == "adamw":
        try:
            check_optimizer("adamw8bit", device)
        except ConfigError:
            pass  # no remedy where it does not work
        else:
            yield {"train.optimizer": "adamw8bit"}
    if config.train.text_encoder:
        yield {"train.text_encoder": False}


def _batch_remedies(config: Config, device: torch.device) -> Iterator[dict[str, Any]]:
    """Changes that lower what each picture of a batch costs, or how many there are; least loss first."""
    train = config.train
    if train.gradient_checkpointing is False:
        yield {"train.gradient_checkpointing": True}
    if config.prior.active and config.prior.batch_size > 1:
        yield {"prior.batch_size": 1}
    if train.sample_every:
        if config.sampling.num_images > 1:
            yield {"sampling.num_images": 1}
        yield {"train.sample_every": 0}
    if train.mixed_precision == "no" and (auto := resolve_precision("auto", device)) != "no":
        yield {"train.mixed_precision": auto}
    if train.batch_size > 1:
        yield {"train.batch_size": 1}
    grid = 64 if train.resolution >= 128 else 8
    for share in (0.75, 0.5):
        if (side := int(train.resolution * share) // grid * grid) >= 32:  # the least that Config takes
            yield {"train.resolution": side}


def _with(config: Config, changes: dict[str, Any]) -> Config:
    for key, value in changes.items():
        section, name = key.split(".")
        config = config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})
    return config


def _settings(changes: dict[str, Any]) -> str:
    words = [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _needs(estimate: Estimate) -> str:
    return f"about {_gib(estimate.peak_bytes)}, {_duration(estimate.seconds)}"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size < GIB else f"{size / GIB:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".: ")
