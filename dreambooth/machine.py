"""What this machine can do: its devices, precisions, optimisers and memory, and how fast it is."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from dreambooth.errors import ConfigError, first_line

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PROGRAM = 550 * 2**20
"""Resident bytes on a CPU: Python and the libraries 450 MiB, oneDNN's kernels and buffers 100 more (measured)."""
OVERHEAD = 4
"""How many tiny operations cost as much as the Python and autograd around each operation of a step. With both figures,
estimates were 0.8 to 1.6 times the measured seconds of steps and of denoising (one CPU core, 4 M and 81 M weights,
batches of 2 to 50, bf16 and float32)."""

OWN_GROUPS = Path("/proc/self/cgroup")
"""Names the control groups of this process, a line each (cgroups(7))."""

_LOADING = threading.RLock()
_Arguments = ParamSpec("_Arguments")
_Built = TypeVar("_Built")


def one_model_at_a_time(build: Callable[_Arguments, _Built]) -> Callable[_Arguments, _Built]:
    """The function, waiting while another thread loads or builds a model.

    diffusers, accelerate and transformers change PyTorch's own classes meanwhile; two at once get empty weights, and
    leave the whole process without a way to make others.
    """

    @functools.wraps(build)
    def alone(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Built:
        with _LOADING:
            return build(*args, **kwargs)

    return alone


DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast computes in, by a precision's name; None: all in float32."""


def resolve_device(setting: str) -> torch.device:
    """The device that `device` names; auto is a CUDA GPU where there is one, else the CPU, since nobody has run this
    program on an Apple GPU (mps) yet. Raises `ConfigError` for a device that is absent.

    cuda is the first GPU, or the one that CUDA_VISIBLE_DEVICES lets be seen first; cuda:1 the second, and so on. On
    them float32 is float32 then, in convolutions as in matrix products: by PyTorch's own defaults the former round
    numbers to TF32, and the latter do not.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if setting == "auto":
        setting = "cuda" if present["cuda"] else "cpu"
    kind, _, number = setting.partition(":")
    if not present.get(kind) or not (number.isdecimal() or kind == setting):
        raise ConfigError(f"device is {setting}, which this machine or its PyTorch lacks.", "Set device: auto or cpu.")
    if number and kind == "cuda" and int(number) >= (count := torch.cuda.device_count()):
        seen = f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0 alone"
        raise ConfigError(f"device is {setting}; there is {seen}.", f"Set device: cuda, or one of those ({seen}).")
    if kind == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(setting)


def reset_peak_memory(device: torch.device) -> int:
    """Give back what is not in use, let `peak_memory` count from now where the system allows it; returns the bytes in
    use now: of the process on a CPU, of the accelerator else."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # glibc keeps what was freed; other libraries have no such function
            ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # proc(5): resets the resident set's peak; other systems have no such file
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def peak_memory(device: torch.device) -> int:
    """The most memory in use so far, in bytes: of the process on a CPU, of the accelerator else."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    kilobytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes_or_bytes * (1 if sys.platform == "darwin" else 1024)


def resolve_precision(setting: str, device: torch.device, key: str = "train.mixed_precision") -> str:
    """no, bf16 or fp16 for what `key` says on `device`; raises `ConfigError` for fp16 where there is no CUDA GPU."""
    if setting == "fp16" and device.type != "cuda":
        raise ConfigError(f"{key} is fp16, which needs a CUDA GPU; the device is {device.type}.", f"Set {key}: auto.")
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
            f"train.optimizer is adamw8bit, but bitsandbytes fails on {device.type} here ({first_line(error)}).",
            "Update bitsandbytes, or set train.optimizer: adamw.",
        ) from None


_PROMISED: dict[tuple[str, int], Counter[object]] = {}  # bytes by device, and who was promised them
_PROMISING = threading.Lock()


@contextlib.contextmanager
def memory_promised(device: torch.device, size: int) -> Iterator[None]:
    """Inside the block `available_memory` counts `size` bytes of the device as taken, whether they are yet or not.

    So what this process opens beside a training (another one, the page's models) leaves room for its peak. Nobody waits
    here, and other processes hear nothing of it: of theirs only what is allocated counts.
    """
    who = object()
    with _PROMISING:
        _PROMISED.setdefault(_place(device), Counter())[who] = size
    try:
        yield
    finally:
        with _PROMISING:
            del _PROMISED[_place(device)][who]


def _promised(device: torch.device) -> int:
    with _PROMISING:
        return sum(_PROMISED.get(_place(device), {}).values())


def _place(device: torch.device) -> tuple[str, int]:
    """cuda and cuda:0 are one."""
    return device.type, device.index or 0


def available_memory(
    device: torch.device, cgroups: Path = Path("/sys/fs/cgroup"), *, when_others_ended: bool = False
) -> int:
    """Bytes a run may use: of a GPU's memory beside the CUDA context, else of main memory with what the program has.

    What this process holds on a GPU or has promised (`memory_promised`) is not available, unless it is asked for
    `when_others_ended`, as a run finds it that waits for them; what PyTorch only keeps always is.
    """
    promised = 0 if when_others_ended else _promised(device)
    if device.type == "cuda":
        kept = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return kept if when_others_ended else max(0, kept - max(torch.cuda.memory_allocated(device), promised))
    free = min([psutil.virtual_memory().available, *_cgroup_room(cgroups)])
    held = psutil.Process().memory_info().rss
    return max(0, free + min(PROGRAM, held) - max(0, promised - held))


def _cgroup_room(root: Path, own: Path = OWN_GROUPS) -> Iterator[int]:
    """Bytes left under each memory limit of the control groups (containers) this process is in, version 2 or 1."""
    for folder in control_groups("memory", root, own):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if (folder / limit).is_file() and (most := (folder / limit).read_text().strip()) != "max":
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = (stat.get(f"total_{age}_file", stat[f"{age}_file"]) for age in ("active", "inactive"))
                yield int(most) - int((folder / usage).read_text()) + sum(map(int, cached))  # file cache gives way


def control_groups(controller: str, root: Path, own: Path = OWN_GROUPS) -> Iterator[Path]:
    """The folders below `root` of the control groups whose `controller` limits this process, innermost first."""
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controllers
        group = top / path.lstrip("/")  # inside a container this is not there, and `top` is the container's own
        for folder in [group, *group.parents]:
            yield folder
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


def probe(device: torch.device, precision: str) -> Speed:
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
    waits: dict[str, Callable[[], object]] = {
        "cuda": functools.partial(torch.cuda.synchronize, device),
        "mps": torch.mps.synchronize,
    }
    wait = waits.get(device.type, lambda: None)
    work()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 2 or time.perf_counter() < end:
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)
