"""A training's stages on tensors without data: what PyTorch would allocate, and how long it would take.

The base model is built from its config files on PyTorch's fake tensors, which have shapes and dtypes but no storage.
Each stage (class images, encoding, one step, sample pictures) runs once on them as it will in earnest, and a tracker
follows every allocation and every operation.
"""

from __future__ import annotations

import functools
import importlib
import json
import threading
import time
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import CLIPTextModel

from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, ModelError, first_line
from dreambooth.families import family_of
from dreambooth.families.architectures import text_config
from dreambooth.families.family import Family
from dreambooth.families.folder import what_helps
from dreambooth.families.load import check_architecture, store_matrices_in
from dreambooth.machine import PROGRAM, Speed, available_memory, one_model_at_a_time, probe
from dreambooth.methods import get_method
from dreambooth.methods.method import Trainable, freeze, store_frozen_in

GIB = 2**30
LARGE_BLOCK = 32 * 2**20
"""From this size on a freed block goes back to the system at once (glibc's largest mmap threshold, mallopt(3))."""
FRAGMENTATION = {"cpu": 0.4, "cuda": 0.4, "mps": 0.4}
"""Room lost between smaller blocks, as a share of them, by device. On a CPU measured: 0.15 to 0.6 (glibc, 80 M and
215 M weights). On GPUs never measured (`benchmarks/estimate_on_gpu.py` does): the CPU's share stands for what PyTorch's
allocator loses there, and for workspaces, of which this is known alone: cuBLAS keeps 8 MiB, 32 on Hopper; cuDNN takes
for the time of a convolution what the algorithm that it chooses asks for."""
UTILISATION = {"cpu": 0.45, "cuda": 0.45, "mps": 0.45}
"""Share of the probed layer's speed that whole steps reach, by device; measured on a CPU alone."""
PROBED = 600
"""Seconds for which a measured speed is taken: runs that follow each other find the machine as busy."""

DrawnBy = Literal["base", "trained", "finished"]
"""Who draws: the base model as it is loaded, what is being trained, or a model that is loaded to draw alone, whose
matrices are stored in the precision of the arithmetic."""


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

    def needs(self, device: torch.device, held: dict[str, int] | None = None) -> dict[str, int]:
        """Bytes by what takes them: the program, where it shares the memory, weights, what is `held` beside them, and
        what the stage allocates."""
        program = 0 if device.type == "cuda" else PROGRAM
        lost = round(FRAGMENTATION[device.type] * self.small)
        return {"program": program, "weights": self.weights, **(held or {}), **self.peak, "fragmentation": lost}


class Tracker(TorchDispatchMode):
    """Follows the memory that operations allocate, on fake tensors or real ones, and the time they would take."""

    def __init__(self, weights: Iterable[Tensor], speed: Speed, utilisation: float):
        super().__init__()  # type: ignore[no-untyped-call]
        self.speed, self.utilisation, self.seconds, self._repeats = speed, utilisation, 0.0, 1
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.small = self.small_peak = 0
        self._kinds = {weight.untyped_storage()._cdata: "weights" for weight in weights}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
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
            self.seconds += self._repeats * max(moved, computed) / self.utilisation
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

    def _copies_weight(self, func: Any, args: tuple[Any, ...]) -> bool:
        cast = func is torch.ops.aten._to_copy.default
        return bool(cast and self._kinds.get(args[0].untyped_storage()._cdata) == "weights")


def _flop_formulas() -> dict[str, Any]:
    """PyTorch's, and the same for attention on a CPU, which it leaves out."""
    name, there, aten = "_scaled_dot_product_flash_attention", dict(flop_registry), torch.ops.aten
    for way in ("", "_backward"):
        there[getattr(aten, f"{name}_for_cpu{way}")] = there[getattr(aten, name + way)]
    return there


_FLOPS = _flop_formulas()


@contextmanager
def _norms_in_float32(modules: Iterable[nn.Module]) -> Iterator[None]:
    """What autocast does on CUDA and not on a CPU (PyTorch's list of CUDA ops that autocast to float32).

    The modules' own norms cast, since what is set around a forward pass no longer holds when gradient checkpointing
    comes to repeat it, within `backward()`.
    """
    norms = [part for module in modules for part in module.modules() if isinstance(part, nn.GroupNorm | nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _norm, args: (args[0].float(), *args[1:])) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Rehearsal:
    """The stages of training one base model, without its weights; what was rehearsed once is remembered.

    Its methods take a config whose resolution and precision are resolved.
    """

    def __init__(self, model: Path, device: torch.device, speed: Speed):
        self.model, self.device, self.speed = model, device, speed
        self.family = family_of(model)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.pipe = blank_pipeline(model, self.family, self.fake)
        self._finished: dict[bool, DiffusionPipeline] = {}
        self._seen: dict[tuple[Any, ...], Trace] = {}
        self._sizes: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self._lock = threading.RLock()

    @property
    def model_bytes(self) -> int:
        """The whole pipeline's size in 32 bits, without a safety checker."""
        parts = (part for part in self.pipe.components.values() if isinstance(part, nn.Module))
        return sum(4 * p.numel() for part in parts for p in part.parameters())

    def trained(self, config: Config) -> tuple[int, ...]:
        """How many numbers each tensor holds that a run trains."""
        key = _trained(config)
        with self._lock:
            if key not in self._sizes:
                self._sizes[key] = tuple(p.numel() for p in self._attached(config)[1].parameters)
            return self._sizes[key]

    def draw(self, config: Config, images: int, steps: int, guidance_scale: float, drawn_by: DrawnBy = "base") -> Trace:
        """Draw `images` at once, which the VAE decodes one after the other."""
        batch = images * (2 if guidance_scale > 1 else 1)  # with and without the prompt
        key = ("draw", images, batch, steps, drawn_by, *(_trained(config) if drawn_by == "trained" else ()))
        return self._once(key, config, lambda: self._draw(config, images, batch, steps, drawn_by))

    def _draw(self, config: Config, images: int, batch: int, steps: int, drawn_by: DrawnBy) -> Trace:
        pipe, trainable = self.pipe, None
        if drawn_by == "trained":
            pipe, trainable = self._attached(config)
        elif drawn_by == "finished":
            pipe = self._stored(config.train.mixed_precision != "no")

        def work(tracker: Tracker) -> None:
            ids = self.family.tokenize(pipe, [config.class_prompt] * batch)
            latents, t = self._latents(config, batch)
            with torch.inference_mode(), self._autocast(config):
                conditioning = self.family.encode_text(pipe, ids)
                with tracker.repeated(steps):
                    self.family.predict(pipe, latents, t, conditioning)
                _decode_each(pipe, latents[:images], tracker)

        return self._run(pipe, config, work, beside=trainable.beside if trainable else ())

    def encode(self, config: Config, pictures: int) -> Trace:
        """Encode `pictures` at once."""

        def work(tracker: Tracker) -> None:
            side = config.train.resolution
            assert side != "auto", "the estimate has settled it"
            pixels = torch.empty(pictures, 3, side, side)
            with torch.inference_mode(), self._autocast(config):
                self.family.encode_images(self.pipe, pixels)

        return self._once(("encode", pictures), config, lambda: self._run(self.pipe, config, work))

    def step(self, config: Config, checkpointing: bool) -> Trace:
        """Take one batch forward and backward; each different prompt is encoded once."""
        train, prior = config.train, config.prior.active
        captioned = any(subject.captions for subject in config.subjects)
        prompts = config.instance_prompts[: train.batch_size]
        prompts += [config.instance_prompt] * (train.batch_size - len(prompts) if captioned else 0)
        prompts += config.class_prompts[: train.batch_size] * prior
        batch = train.batch_size * (1 + prior)
        key = ("step", batch, len(prompts), train.gradient_accumulation > 1, checkpointing, *_trained(config))
        return self._once(key, config, lambda: self._step(config, checkpointing, prompts, batch))

    def _step(self, config: Config, checkpointing: bool, prompts: list[str], batch: int) -> Trace:
        family = self.family
        pipe, trainable = self._attached(config)
        for module in trainable.modules.values():
            module.train()
            if checkpointing:
                enable_gradient_checkpointing(module)
        parameters = trainable.parameters
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
            loss = prediction.float().square().mean()
            (loss + trainable.drift() if trainable.drift else loss).backward()

        # On CUDA what a step does not use makes room; elsewhere it would only move from main memory to main memory.
        idle = ["vae", *(() if text_trained else family.text_encoders)] if self.device.type == "cuda" else []
        return self._run(pipe, config, work, idle, parameters, trainable.beside)

    def _attached(self, config: Config) -> tuple[DiffusionPipeline, Trainable]:
        """The pipeline as it is trained."""
        pipe = blank_pipeline(self.model, self.family, self.fake)
        trainable = get_method(config.method).attach(pipe, self.family, config)
        store_frozen_in(None if config.train.mixed_precision == "no" else torch.bfloat16, trainable)
        return pipe, trainable

    def _stored(self, mixed: bool) -> DiffusionPipeline:
        """The pipeline as it is loaded to draw alone."""
        if mixed not in self._finished:
            self._finished[mixed] = pipe = blank_pipeline(self.model, self.family, self.fake)
            freeze(pipe)
            modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
            store_matrices_in(torch.bfloat16 if mixed else None, modules)
        return self._finished[mixed]

    def _once(self, key: tuple[Any, ...], config: Config, rehearse: Callable[[], Trace]) -> Trace:
        key += (config.train.resolution, config.train.mixed_precision)
        with self._lock:  # a page and a training may ask at once
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
        beside: Iterable[Tensor] = (),
    ) -> Trace:
        modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        weights = {name: list(chain(part.parameters(), part.buffers())) for name, part in modules.items()}
        weights["beside"] = list(beside)
        tracker = Tracker(chain(*weights.values()), self.speed, UTILISATION[self.device.type])
        cuda_autocast = self.device.type == "cuda" and config.train.mixed_precision != "no"
        norms = _norms_in_float32(modules.values() if cuda_autocast else ())
        try:
            with self.fake, norms, tracker:
                work(tracker)
        except RuntimeError as error:  # shapes that do not match
            raise ModelError(
                f"{self.model.name} can't be trained: {first_line(error)}.", "Check that its parts belong together."
            ) from None
        kept = sum(tensor.nbytes for name, tensors in weights.items() if name not in idle for tensor in tensors)
        return Trace(dict(tracker.peak), tracker.small_peak, tracker.seconds, kept, tuple(p.numel() for p in trained))

    def _autocast(self, config: Config) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=config.train.mixed_precision != "no")  # fp16 is as large

    def _latents(self, config: Config, batch: int) -> tuple[Tensor, Tensor]:
        side = config.train.resolution // self.pipe.vae_scale_factor
        return torch.empty(batch, self.pipe.vae.config.latent_channels, side, side), torch.zeros(batch).long()


def fitting_batch(
    model: Path,
    device: torch.device,
    precision: str,
    most: int,
    setting: str,
    *,
    resolution: int | None = None,
    guidance_scale: float = 7.5,
    loaded: bool = False,
    beside: int = 0,
    available: int | None = None,
) -> int:
    """How many pictures, `most` at most, the pipeline in the folder `model` can draw at once on `device`.

    That is rehearsed with its matrices stored in `precision` (no, bf16 or fp16), at `resolution` (None: the model's
    own), and remembered: another call takes no time. Where the pipeline is `loaded` on the device, its weights are no
    longer asked for. `beside` are bytes to be held meanwhile (an adapter, a safety checker). `available` bytes default
    to what `device` has left.

    Raises `ConfigError`, which calls the number of pictures at once `setting`, where not even one can be drawn, and
    `ModelError` for a damaged folder.
    """
    rehearsal = untimed(model, device)
    available = available_memory(device) if available is None else available
    resolution = resolution or rehearsal.family.resolution(model)
    asked = Config.from_dict({"subject": {"photos": ".", "class_noun": "thing"}})

    def needed(images: int, precision: str = precision) -> int:
        settings = {"resolution": resolution, "mixed_precision": precision}
        config = asked.model_copy(update={"train": asked.train.model_copy(update=settings)})
        trace = rehearsal.draw(config, images, 1, guidance_scale, "finished")
        return sum(trace.needs(device).values()) + beside - (trace.weights if loaded else 0)

    if needed(most) <= available:
        return most
    if fitting := bisect_right(range(1, most), available, key=needed):
        return fitting
    other = ["free some"]
    if precision == "no" and device.type == "cuda" and not loaded and needed(1, "bf16") <= available:
        other.append("draw in 16 bits (precision auto)")
    if device.type != "cpu":
        other.append("set device: cpu")
    raise ConfigError(
        f"{setting} can't even be 1: a picture of {resolution} px takes about {gib(needed(1))} of memory on "
        f"{device.type}, but only {gib(available)} can be had.",
        f"{', '.join(other).capitalize()}, or use a smaller base model.",
    )


def untimed(model: Path, device: torch.device) -> Rehearsal:
    """A rehearsal that is asked for sizes alone, and remembered: its seconds mean nothing."""
    return _untimed(model, device, _changed(model))


def timed(model: Path, device: torch.device, precision: str) -> Rehearsal:
    """A rehearsal at the speed that `device` has in `precision` (no, bf16 or fp16), remembered for `PROBED` seconds."""
    return _timed(model, device, precision, _changed(model), time.monotonic() // PROBED)


Changed = tuple[tuple[str, int, int], ...]


def _changed(model: Path) -> Changed:
    """The pipeline's files: each one's name, its size, and when it was last written; links to nothing are passed over,
    since whether a part that is needed is missing is told by what reads it."""
    there = (path for pattern in ("*", "*/*") for path in sorted(model.glob(pattern)) if path.exists())
    files = ((path, path.stat()) for path in there)
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in files)


@functools.lru_cache(maxsize=4)
def _untimed(model: Path, device: torch.device, _changed: Changed) -> Rehearsal:
    return Rehearsal(model, device, Speed(1.0, 1.0, 1.0))


@functools.lru_cache(maxsize=4)
def _timed(model: Path, device: torch.device, precision: str, _changed: Changed, _when: float) -> Rehearsal:
    return Rehearsal(model, device, probe(device, precision))


def gib(size: float) -> str:
    """Bytes in GiB, in words."""
    return f"{size / GIB:.2f} GiB" if size < GIB else f"{size / GIB:.1f} GiB"


def _decode_each(pipe: DiffusionPipeline, latents: Tensor, tracker: Tracker) -> None:
    """Allocate what a VAE does that decodes picture by picture (diffusers' slicing): the first, and then the last."""
    count = len(latents)
    picture = pipe.vae.decode(latents[:1]).sample
    if count > 1:
        before = picture.new_empty(count - 2, *picture.shape[1:])
        with tracker.repeated(count - 1):
            last = pipe.vae.decode(latents[:1]).sample
        together = picture.new_empty(count, *picture.shape[1:])  # beside each by itself
        del before, last, together


def _trained(config: Config) -> tuple[Any, ...]:
    """What decides which weights a step trains, and what it holds of them."""
    settings = (config.lora.model_dump_json(), config.word.model_dump_json(), config.drift.weight > 0)
    return config.method, config.train.text_encoder, len(config.subjects), *settings


@one_model_at_a_time
def blank_pipeline(model: Path, family: Family, fake: FakeTensorMode) -> DiffusionPipeline:
    """The pipeline in the folder `model` with modules on fake tensors; raises `ModelError` for a damaged folder, and
    for classes or sizes that are not known."""
    check_architecture(model, family)
    try:
        index = json.loads((model / "model_index.json").read_bytes())
        parts = {}
        for name in family.parts:
            library, kind = index[name]
            parts[name] = _blank_component(model / name, library, kind, fake)
        return family.pipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(
            f"{model.name}: its configuration can't be read: {first_line(error)}.", what_helps(model, error)
        ) from None


def _blank_component(folder: Path, library: str, name: str, fake: FakeTensorMode) -> Any:
    if not folder.is_dir():  # else it would be looked for on the Hub
        raise FileNotFoundError(f"{folder.name} is missing")
    kind = getattr(importlib.import_module(library), name)
    if not issubclass(kind, nn.Module):
        return kind.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):  # skips the initialisation
        if library == "diffusers":
            module = kind.from_config(kind.load_config(folder, local_files_only=True))
        else:
            module = CLIPTextModel(text_config(folder.parent, folder.name))  # as it is loaded
    return module._apply(lambda tensor: FakeTensor(fake, tensor.detach(), torch.device("cpu"))).eval()


def enable_gradient_checkpointing(module: nn.Module) -> None:
    """The one switch under the names that diffusers, transformers 5 and transformers 4 give it."""
    names = ("enable_gradient_checkpointing", "activation_checkpointing_enable", "gradient_checkpointing_enable")
    next(getattr(module, name) for name in names if hasattr(module, name))()
