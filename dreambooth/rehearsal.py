"""A training's stages on tensors without data: what PyTorch would allocate, and how long it would take.

The base model is built from its config files on PyTorch's fake tensors, which have shapes and dtypes but no storage.
Each stage (class images, encoding, one step, sample pictures) runs once on them as it will in earnest, and a tracker
follows every allocation and every operation.
"""

from __future__ import annotations

import importlib
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dreambooth.config import Config
from dreambooth.errors import ModelError, first_line
from dreambooth.families import Family, family_of
from dreambooth.machine import Speed, one_model_at_a_time
from dreambooth.methods import get_method, store_frozen_in

LARGE_BLOCK = 32 * 2**20
"""From this size on a freed block goes back to the system at once (glibc's largest mmap threshold, mallopt(3))."""
UTILISATION = 0.45
"""Share of the probed layer's speed that whole steps reach."""


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
        self._seen: dict[tuple, Trace] = {}

    @property
    def model_bytes(self) -> int:
        """The whole pipeline's size in 32 bits, without a safety checker."""
        parts = (part for part in self.pipe.components.values() if isinstance(part, nn.Module))
        return sum(4 * p.numel() for part in parts for p in part.parameters())

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
        captioned = any(subject.captions for subject in config.subjects)
        prompts = config.instance_prompts[: train.batch_size]
        prompts += [config.instance_prompt] * (train.batch_size - len(prompts) if captioned else 0)
        prompts += config.class_prompts[: train.batch_size] * prior
        batch = train.batch_size * (1 + prior)
        key = ("step", batch, len(prompts), train.gradient_accumulation > 1, checkpointing, *_trained(config))
        return self._once(key, config, lambda: self._step(config, checkpointing, prompts, batch))

    def _step(self, config: Config, checkpointing: bool, prompts: list[str], batch: int) -> Trace:
        family = self.family
        pipe = blank_pipeline(self.model, family, self.fake)
        trainable = get_method(config.method).attach(pipe, family, config)
        store_frozen_in(None if config.train.mixed_precision == "no" else torch.bfloat16, trainable)
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
        beside: Iterable[Tensor] = (),
    ) -> Trace:
        modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        weights = {name: list(chain(part.parameters(), part.buffers())) for name, part in modules.items()}
        weights["beside"] = list(beside)
        tracker = Tracker(chain(*weights.values()), self.speed)
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


def _trained(config: Config) -> tuple:
    """What decides which weights a step trains, and what it holds of them."""
    settings = (config.lora.model_dump_json(), config.word.model_dump_json(), config.drift.weight > 0)
    return config.method, config.train.text_encoder, len(config.subjects), *settings


@one_model_at_a_time
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
            f"{model.name}: its configuration can't be read: {first_line(error)}.", "Download or save it again."
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
