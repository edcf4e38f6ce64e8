"""Drawing, and drawing apart: in a process of its own with limits, for models that strangers published.

What a stranger's model does to the libraries that read it is not all foreseen. Apart it can take the memory, the time
and the files that it was given and no more, and what it brings down is that one drawing. The child gets no token and
finds none by its environment, asks the Hub nothing, and what it says is read as JSON and pixels, never unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil
import torch
from PIL import Image

from dreambooth import errors
from dreambooth.config.sections import SamplingConfig
from dreambooth.errors import DreamBoothError, RunError, first_line
from dreambooth.files import scratch_folder
from dreambooth.generate import Picture, Source, generate, open_source
from dreambooth.machine import available_memory, resolve_device

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

WORKING_MEMORY = 6 * 2**30
"""Bytes that drawing apart may take beside the model's files: Python and the libraries take 0.6 GB, CUDA's 3, and four
pictures of 768 px on a CPU some 2."""
PER_FILE_BYTE = 4
"""And for each byte of them: they may hold 16 bits a number where memory holds 32, are mapped while they are read, and
are copied part by part."""
LEAST_MEMORY = 2 * 2**30
"""Below, not even the toybox draws."""
SILENCE = 300
"""Seconds within which a model is loaded, a step done, or pictures decoded: on two cores a step of four pictures of
Stable Diffusion 1.5 takes 100."""
LONGEST = 3600
"""Seconds that a drawing may last."""
MOST_FILE = 2**24
"""Bytes of a file that the child may write; it has no need of any, but CUDA keeps what it compiled."""
WATCH = 0.1
"""Seconds between two looks at the child."""

_MOST_HEADER, _MOST_SIDE, _MOST_WORDS = 2**16, 2048, 500
_KEPT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "SYSTEMROOT",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VIRTUAL_ENV",
)
"""Of the environment; no token, and no place where one is kept."""


class Weights(NamedTuple):
    """What is loaded to draw with: folders of this machine, and how much of adapters takes part."""

    folder: str
    """A pipeline's, or an adapter's."""
    base: str = ""
    """The adapter's base model."""
    scale: float = 1.0
    """How much of the adapter takes part."""
    adapters: tuple[tuple[str, float], ...] = ()
    """Further adapters of the same base model, each with its weight."""
    stranger: bool = False
    """Whether it is drawn with apart."""
    checker: str = ""
    """The folder of the safety checker that looks at its pictures in the place of its own."""

    @property
    def folders(self) -> tuple[str, ...]:
        """All that is read."""
        return tuple(filter(None, (self.folder, self.base, self.checker, *(folder for folder, _ in self.adapters))))


class Order(NamedTuple):
    """A batch of pictures of one prompt, in plain values, since another process may draw it."""

    weights: Weights
    prompt: str
    seed: int
    """Of the first picture; the next ones count on from it."""
    count: int  # type: ignore[assignment]  # of pictures; it hides what tuples count


class Step(NamedTuple):
    """So many denoising steps of the order at hand are done; 0 while its model is loaded."""

    done: int
    total: int


News = Step | list[Picture] | None
"""What drawing tells; nothing where nothing happened for a while."""
Tell = Callable[[Step | list[Picture]], None]


# ----------------------------------------------------------------------------------------------------------------- here


def draw(
    orders: Sequence[Order], sampling: SamplingConfig, negative_prompt: str, safety_checker: bool, tell: Tell
) -> None:
    """Draw the orders one after the other; of each, `tell` hears its steps, then its pictures."""
    device = resolve_device("auto")
    keep = fits({order.weights for order in orders}, device)  # beside a training, in what that leaves
    opened: dict[Weights, Source] = {}
    for order in orders:
        tell(Step(0, sampling.steps))
        if order.weights not in opened:
            if not keep:
                opened.clear()
            opened[order.weights] = _open(order.weights, device, safety_checker, sampling.precision)
        source = opened[order.weights]
        batches = generate(
            source,
            [order.prompt],
            num_images=order.count,
            seed=order.seed,
            sampling=sampling,
            negative_prompt=negative_prompt,
            on_step=lambda done, total: tell(Step(done, total)),
            batch_size=source.batch_that_fits(order.count, "Pictures", sampling),
        )
        tell([picture for batch in batches for picture in batch])


def _open(weights: Weights, device: torch.device, safety_checker: bool, precision: str) -> Source:
    base = Path(weights.base) if weights.base else None
    return open_source(
        weights.folder,
        device=device,
        base=base,
        scale=weights.scale,
        adapters=weights.adapters,
        safety_checker=Path(weights.checker) if weights.checker else safety_checker,
        precision=precision,
    )


def fits(models: Iterable[Weights], device: torch.device) -> bool:
    """Whether all these models can be open at once, beside what trainings here were promised: files may hold 16 bits a
    weight where memory holds 32."""
    return 2 * _held(models) < available_memory(device)


def _held(models: Iterable[Weights]) -> int:
    """Bytes of the files of weights of all these models."""
    files = [path for model in models for folder in model.folders for path in Path(folder).rglob("*")]
    return sum(path.stat().st_size for path in files if path.suffix in (".safetensors", ".bin"))


# ---------------------------------------------------------------------------------------------------------------- apart


class Child:
    """A process that draws apart, once; `end` ends it whenever, also before it has begun."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._why = ""
        """Why it was killed, in words that follow "The drawing was stopped"."""
        self._heard = 0.0
        self._changing = threading.Lock()

    def draw(
        self, orders: Sequence[Order], sampling: SamplingConfig, negative_prompt: str, safety_checker: bool, tell: Tell
    ) -> None:
        """As `draw` does, and raises what that raises there; `RunError` where the child was stopped or died."""
        memory = memory_for({order.weights for order in orders})
        asked = {
            "orders": orders,
            "sampling": sampling.model_dump(mode="json"),
            "negative_prompt": negative_prompt,
            "safety_checker": safety_checker,
            "memory": memory,
            "seconds": LONGEST,
        }
        with scratch_folder(Path(tempfile.gettempdir())) as folder:
            process = self._start(str(folder))
            if process is None:
                return
            assert process.stdin
            assert process.stdout, "both are pipes"
            watch = threading.Thread(target=self._watch, args=(process, memory), daemon=True)
            watch.start()
            try:
                with contextlib.suppress(OSError):  # it died before it read
                    process.stdin.write(json.dumps(asked).encode())
                    process.stdin.close()
                finished = self._read(process.stdout, orders, tell)
            finally:
                _kill(process)
                process.wait()
                watch.join()
                process.stdout.close()
        if not finished and not self._ended:
            why = self._why or f"its process ended ({_manner(process.returncode)})"
            raise RunError(f"The drawing was stopped: {why}.", "Choose another model, or fewer pictures.")

    def end(self) -> None:
        """End it, if it runs; it does not begin any more."""
        with self._changing:
            self._ended = True
            if self._process:
                _kill(self._process)

    def _start(self, folder: str) -> subprocess.Popen[bytes] | None:
        place = str(Path(__file__).parents[1])
        own = dict.fromkeys(("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME"), folder)
        own |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": place, "PYTHONDONTWRITEBYTECODE": "1"}
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        with self._changing:
            if self._ended:
                return None
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dreambooth.apart"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=kept | own,
            )
            self._heard = time.monotonic()
            return self._process

    def _watch(self, process: subprocess.Popen[bytes], memory: int) -> None:
        """Kill it where it takes too much, or is silent too long; the limits that it sets itself are not everywhere."""
        begun, seen = time.monotonic(), psutil.Process(process.pid)
        while process.poll() is None:
            now = time.monotonic()
            with contextlib.suppress(psutil.Error):
                family = (seen, *seen.children(recursive=True))
                if sum(one.memory_info().rss for one in family) > memory:
                    self._why = f"it took more than the {memory / 1e9:.0f} GB of memory that it may"
            if now - self._heard > SILENCE:
                self._why = f"nothing was heard of it for {SILENCE} seconds"
            elif now - begun > LONGEST:
                self._why = f"it took more than {LONGEST / 60:.0f} minutes"
            if self._why:
                _kill(process)
                return
            time.sleep(WATCH)

    def _read(self, stream: IO[bytes], orders: Sequence[Order], tell: Tell) -> bool:
        """Tell on what the child tells; whether it came to an end."""
        left = list(orders)
        while (news := _receive(stream, left[0].count if left else 0)) is not None:
            self._heard = time.monotonic()
            kind, said = news
            if kind == "step":
                tell(Step(*said))
            elif kind == "error":
                name, message, hint = said
                known = getattr(errors, name, None)
                known = known if isinstance(known, type) and issubclass(known, DreamBoothError) else RunError
                raise known(message, hint)
            elif kind == "pictures" and left:
                order = left.pop(0)
                if len(said) != order.count:
                    return False
                seeds = [(order.seed + i) % 2**32 for i in range(order.count)]
                tell([Picture(image, order.prompt, seed, *words) for seed, (image, *words) in zip(seeds, said)])
            else:
                return kind == "end" and not left
        return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it and what it started, which would keep its memory, and the pipe that is read to its end."""
    started: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        if process.poll() is None:
            started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for one in started:
        with contextlib.suppress(psutil.Error):
            one.kill()


def memory_for(models: Iterable[Weights]) -> int:
    """Bytes of main memory that a child may take to draw with these models, within what is free; raises `RunError`
    where that is too little for any."""
    memory = min(WORKING_MEMORY + PER_FILE_BYTE * _held(models), available_memory(torch.device("cpu")))
    if memory < LEAST_MEMORY:
        raise RunError(
            f"{memory / 1e9:.1f} GB of memory are free, too little to draw with a stranger's model.",
            "Try again when fewer trainings run.",
        )
    return memory


def _manner(code: int) -> str:
    """How a process ended, for a sentence."""
    return f"signal {-code}" if code < 0 else f"code {code}"


def _send(stream: IO[bytes], kind: str, said: Any, pixels: Sequence[bytes] = ()) -> None:
    head = json.dumps([kind, said]).encode()
    stream.write(len(head).to_bytes(4, "little") + head)
    for data in pixels:
        stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes], most: int) -> tuple[str, Any] | None:
    """What the child sends next; None at its end, and for what `_send` would not send, since it is not to be trusted.

    Of more than `most` pictures none is read. Pictures come as (picture, problem, precision).
    """
    length = int.from_bytes(stream.read(4), "little")
    try:
        kind, said = json.loads(stream.read(length) if length <= _MOST_HEADER else b"")
        if kind == "step":
            done, total = said
            return kind, (int(done), int(total))
        if kind == "error":
            name, message, hint = (str(words)[:_MOST_WORDS] for words in said)
            return kind, (name, message, hint)
        if len(said) > most:
            raise ValueError("more pictures than were asked for")
        return kind, [_picture(stream, *facts) for facts in said]
    except (ValueError, TypeError, RecursionError):
        return None


def _picture(stream: IO[bytes], width: int, height: int, problem: str, precision: str) -> tuple[Image.Image, str, str]:
    if not all(isinstance(side, int) and 0 < side <= _MOST_SIDE for side in (width, height)):
        raise ValueError("no size")
    image = Image.frombytes("RGB", (width, height), stream.read(3 * width * height))
    return image, str(problem)[:_MOST_WORDS], str(precision)[:9]


# ----------------------------------------------------------------------------------------------------------- the child


def main() -> None:
    """Draw what standard input asks for, and tell it on standard output."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no news
    asked = json.loads(sys.stdin.buffer.read())
    _limit(asked["memory"], asked["seconds"])
    orders = [Order(_weights(*weights), *rest) for weights, *rest in asked["orders"]]

    def tell(news: Step | list[Picture]) -> None:
        if isinstance(news, Step):
            _send(told, "step", news)
            return
        images = [picture.image.convert("RGB") for picture in news]
        facts = [(*image.size, picture.problem, picture.precision) for image, picture in zip(images, news, strict=True)]
        _send(told, "pictures", facts, [image.tobytes() for image in images])

    try:
        draw(orders, SamplingConfig(**asked["sampling"]), asked["negative_prompt"], asked["safety_checker"], tell)
    except DreamBoothError as error:
        _send(told, "error", (type(error).__name__, error.message, error.hint))
    except (MemoryError, RuntimeError) as error:
        memory = isinstance(error, MemoryError) or "memory" in first_line(error)
        words = "The memory that it may take ran out" if memory else f"It failed ({type(error).__name__})"
        _send(told, "error", ("RunError", f"{words}, drawing with a stranger's model.", "Choose another one."))
    else:
        _send(told, "end", [])


def _weights(
    folder: str, base: str, scale: float, adapters: list[tuple[str, float]], stranger: bool, checker: str
) -> Weights:
    return Weights(folder, base, scale, tuple((name, weight) for name, weight in adapters), stranger, checker)


def _limit(memory: int, seconds: int) -> None:
    """Set what the system itself sees to, where it does; who watches from outside sees to memory and time as well.

    No limit of the address space: PyTorch and CUDA reserve far more of it than they use. What counts towards
    RLIMIT_DATA is what may be written, threads' stacks too; CUDA maps the whole GPU so, and is watched alone.
    """
    if resource is None:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE, MOST_FILE))
    spent = seconds * (os.cpu_count() or 1)
    resource.setrlimit(resource.RLIMIT_CPU, (spent, spent))
    if sys.platform == "linux" and not torch.cuda.is_available():
        resource.setrlimit(resource.RLIMIT_DATA, (memory + LEAST_MEMORY,) * 2)


if __name__ == "__main__":
    main()
