"""One resumable-state object: everything a training needs to go on as if it had never stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from dreambooth.errors import RunError
from dreambooth.events import Event
from dreambooth.files import atomic_file, atomic_folder
from dreambooth.machine import available_memory

_BEST = "best.pt"


@dataclass
class Checkpoint:
    """The live objects of a training, saved and restored together.

    No random state is kept: each step draws its randomness from (seed, step) alone.
    """

    weights: list[Tensor]
    """What is trained. Not an `nn.ParameterList`: while another thread loads a model, one can't be made (see
    `machine.one_model_at_a_time`)."""
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler | None
    """Only with fp16."""
    ema: list[Tensor] | None
    base: str = ""
    """The base model's fingerprint: what is trained belongs to it."""
    step: int = 0

    def save(self, folder: Path, keep: int) -> Path:
        """Write `folder/step-000200` whole or not at all, then drop all but the newest `keep`. Returns the new path."""
        return _save(self._state(), folder, keep)

    def to_save(self, folder: Path, keep: int) -> Callable[[], Path]:
        """`save` as it would be now, to be called later from any thread: with a copy in main memory."""
        return _later(self._state(), lambda state: _save(state, folder, keep))

    def to_save_best(self, folder: Path) -> Callable[[], Path]:
        """The writing of the weights, as they are now, to `folder/best.pt`; as `to_save` of a whole checkpoint."""
        return _later(self._model(), lambda state: _save_best(state, folder))

    def load(self, path: Path) -> None:
        """Restore from a folder that `save` wrote; raises `RunError` if it does not fit this training."""
        with _told(path.name):
            state = _read(path / "state.pt", self.base)
            _restore(self.weights, state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            if self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"])
            if self.ema is not None:
                _restore(self.ema, state["ema"])
            self.step = state["step"]

    def load_best(self, folder: Path) -> tuple[int, list[Tensor]] | None:
        """The step and the weights that `to_save_best` wrote last, the weights on the CPU; None where there are none.

        Raises `RunError` if they do not fit this training.
        """
        path = folder / _BEST
        if not path.is_file():
            return None
        with _told(path.name):
            state = _read(path, self.base)
            _check_shapes(self.weights, state["weights"])
            return state["step"], state["weights"]

    def _model(self) -> dict[str, Any]:
        return {"step": self.step, "base": self.base, "weights": [weight.detach() for weight in self.weights]}

    def _state(self) -> dict[str, Any]:
        return self._model() | {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "ema": self.ema,
        }


class Writer:
    """Writes in a thread of its own while the training goes on, one thing at a time and in order.

    What fails there is raised by the next call. The end of the `with` block, and so of the process, waits for what is
    being written.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "dreambooth-disk")
        self._written: Future[Event | None] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def write(self, job: Callable[[], Event | None]) -> Iterator[Event]:
        """Start to write as soon as what is being written is; yields the event of that one."""
        yield from self.wait()
        self._written = self._pool.submit(job)

    def finished(self) -> Iterator[Event]:
        """The event of what was written meanwhile, if it is whole."""
        if self._written and self._written.done():
            yield from self.wait()

    def wait(self) -> Iterator[Event]:
        """Wait until all is written; yields its event."""
        written, self._written = self._written, None
        if written and (event := written.result()):
            yield event


def _later(state: dict[str, Any], save: Callable[[dict[str, Any]], Path]) -> Callable[[], Path]:
    """`save` with a copy of the state; where main memory has no room for one, it is saved at once."""
    room = available_memory(torch.device("cpu"))
    if 2 * sum(tensor.nbytes for tensor in _tensors(state)) > room:
        path = save(state)
        return lambda: path
    copied: dict[str, Any] = _copied(state, {})
    return lambda: save(copied)


def _tensors(state: object) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    for value in state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ():
        yield from _tensors(value)


def _copied(state: Any, known: dict[int, Tensor]) -> Any:
    """The same with copies on the CPU of all its tensors; of one that is there twice, as in 8-bit Adam, one copy."""
    if isinstance(state, Tensor):
        if id(state) not in known:
            known[id(state)] = state.detach().to("cpu", copy=True)
        return known[id(state)]
    if isinstance(state, dict):
        return {key: _copied(value, known) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copied(value, known) for value in state)
    return state


def _save(state: dict[str, Any], folder: Path, keep: int) -> Path:
    final = folder / f"step-{state['step']:06d}"
    with atomic_folder(final) as partial:
        _write(state, partial / "state.pt")
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def _save_best(state: dict[str, Any], folder: Path) -> Path:
    with atomic_file(folder / _BEST) as partial:
        _write(state, partial)
    return folder / _BEST


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever is wrong with the file `name` is told in one line."""
    try:
        yield
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, UnpicklingError) as error:
        # torch's text on an unpickling error is a page of advice on trusting files
        reason = "" if isinstance(error, UnpicklingError) else f" ({' '.join(str(error).split())[:200]})"
        raise RunError(
            f"{name} can't be resumed: it is damaged or of other settings{reason}.",
            "Remove that checkpoint, or train anew.",
        ) from None


def _read(path: Path, base: str) -> dict[str, Any]:
    # Windows can't remove a file that is mapped, and the optimiser keeps what is read here.
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=os.name != "nt")
    if state["base"] != base:
        raise RunError("The base model has changed since this run began.", "Bring the old one back, or train anew.")
    return state


def _check_shapes(weights: list[Tensor], saved: list[Tensor]) -> None:
    if [weight.shape for weight in weights] != [weight.shape for weight in saved]:
        raise ValueError("the weights have other shapes")


def _restore(weights: list[Tensor], saved: list[Tensor]) -> None:
    _check_shapes(weights, saved)
    for weight, value in zip(weights, saved, strict=True):
        weight.data.copy_(value)


def _write(state: dict[str, Any], path: Path) -> None:
    """`torch.save` that says when the disk is full; given a path, it only tells of unexpected positions."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # of closing the archive after a write that failed
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    whole = [path for path in folder.glob("step-*") if (path / "state.pt").is_file()]
    return sorted(whole, key=lambda path: (len(path.name), path.name))  # step-1000000 comes after step-999999
