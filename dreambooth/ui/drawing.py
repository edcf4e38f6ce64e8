"""How the page draws: one drawing at a time, told step by step, stopped between any two steps.

Pictures are drawn in a thread of their own, since a pipeline can't be paused between its steps; on ZeroGPU that thread
is in a process of its own, which has the GPU for as long as `gpu_seconds` says. Strangers' models draw in a child
process (`dreambooth.apart`).
"""

from __future__ import annotations

import functools
import html
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from dreambooth.apart import Child, News, Order, Step, Weights, draw
from dreambooth.config.sections import SamplingConfig
from dreambooth.ui import QUIET, in_plain_words
from dreambooth.ui.doors.lines import DRAWING
from dreambooth.ui.report import duration
from dreambooth.ui.studio import gpu_is_lent

BATCH = 4
"""Pictures drawn at once: few, so that the first are soon there and a small GPU holds them."""
STOPPED = "<div class='drawing' role='status'><p>Stopped. What was drawn is kept.</p></div>"
FAILED = "<div class='drawing' role='status'><p>Not finished: the message says why. What was drawn is kept.</p></div>"
PATIENCE = 0.5
"""Seconds after which a drawing that has nothing new to tell can be stopped all the same."""
LOADING_SECONDS, STEP_SECONDS = 20, 0.1
"""What ZeroGPU is asked for: per model, and per step of a picture. Guesses on the safe side: Stable Diffusion 1.5 loads
in a few seconds and draws tens of steps a second on such a GPU, and only the time that is used counts."""

PENCIL = threading.Lock()
"""Held by who draws, or measures what was drawn; a drawing that was stopped has its memory until its step is over."""
AT_ONCE = 3
"""Drawings that are served at once: one has the pencil while the models of the next ones are got, one of which may have
to be fetched. On ZeroGPU, which has a line of its own for its GPUs, one."""
_END = object()

P = ParamSpec("P")
T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------- drawing


def orders(weights: Weights, prompt: str, seed: int, count: int) -> list[Order]:
    """`count` pictures in batches."""
    return [Order(weights, prompt, (seed + i) % 2**32, min(BATCH, count - i)) for i in range(0, count, BATCH)]


def as_it_happens(work: Callable[[Callable[[T], None]], None]) -> Iterator[T | None]:
    """What `work` tells the function it is given, as it tells it, and None where it is silent for `PATIENCE` seconds.

    `work` runs in a thread. Closing the iterator ends it the next time it tells something; nobody waits for that.
    """
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    left = threading.Event()

    def tell(news: T) -> None:
        if left.is_set():
            raise _StoppedError
        told.put((news, None))

    def run() -> None:
        try:
            work(tell)
        except BaseException as error:
            told.put((_END, error))
        else:
            told.put((_END, None))

    threading.Thread(target=run, name="dreambooth-drawing", daemon=True).start()
    try:
        while True:
            try:
                news, error = told.get(timeout=PATIENCE)
            except queue.Empty:
                yield None
                continue
            if error is not None:
                raise error
            if news is _END:
                return
            yield news
    finally:
        left.set()


class _StoppedError(Exception):
    """Nobody listens any more."""


def gpu_seconds(orders: Sequence[Order], sampling: SamplingConfig, *_: object) -> int:
    """How long a drawing may have a GPU that is lent by the second."""
    steps = sampling.steps * sum(order.count for order in orders)
    return round(LOADING_SECONDS * len({order.weights for order in orders}) + STEP_SECONDS * steps)


def on_zero_gpu(seconds: Callable[..., int]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a function that needs the GPU for `seconds(*arguments)`: on a ZeroGPU Space it runs where there is one.

    Anywhere else the function stays as it is, and the package `spaces` is not needed.
    """
    if not os.environ.get("SPACES_ZERO_GPU"):
        return lambda function: function
    import spaces

    lent: Callable[[Callable[P, T]], Callable[P, T]] = spaces.GPU(duration=seconds)
    return lent


@on_zero_gpu(gpu_seconds)
@in_plain_words  # here as well, since only Gradio's own errors come out of ZeroGPU's process with their words
def paint(
    orders: Sequence[Order], sampling: SamplingConfig, negative_prompt: str, safety_checker: bool
) -> Iterator[News]:
    """Draw the orders one after the other; of each come its steps, then its pictures."""

    # On ZeroGPU this is a process of its own already, which may have no children and ends when its time is over.
    child = Child() if any(order.weights.stranger for order in orders) and not gpu_is_lent() else None

    def work(tell: Callable[[News], None]) -> None:
        with PENCIL:
            (child.draw if child else draw)(orders, sampling, negative_prompt, safety_checker, tell)

    try:
        yield from as_it_happens(work)
    finally:
        if child:
            child.end()


# --------------------------------------------------------------------------------------------------------- the page


@dataclass
class Progress:
    """How far a drawing is, in words and as a bar."""

    total: int
    """Orders in all."""
    drawn: int = 0
    step: Step | None = None
    """Of the order at hand."""
    began: float = field(default_factory=time.monotonic)
    shown: float = 0.0

    def take(self, news: News) -> bool:
        """Take the news in; whether the page should hear of it now."""
        now = time.monotonic()
        if isinstance(news, Step):
            self.step = news
        elif news is not None:
            self.drawn, self.step = self.drawn + 1, None
        if isinstance(news, Step) and news.done and now - self.shown < PATIENCE / 2:
            return False
        self.shown = now
        return True

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def as_html(self, what: str) -> str:
        """For the page; `what` is being drawn."""
        done, total = self.step or Step(0, 1)
        share = (self.drawn + done / total) / self.total
        words = f"Drawing {what}" if done or self.drawn else f"Getting ready to draw {what}"
        words += f" · step {done} of {total}" if done else ""
        if share > 0.05:
            words += f" · about {duration(self.seconds / share * (1 - share))} left"
        return bar_html(words, share)


def keep_file(component: gr.Component, name: str, write: Callable[[Path], None]) -> str:
    """Write a file where the page gets it from, under a name that nobody guesses, for as long as its other files."""
    file = Path(component.GRADIO_CACHE) / secrets.token_hex(16) / name
    file.parent.mkdir(parents=True)
    write(file)
    kept = component.move_resource_to_block_cache(file)
    assert kept  # as of every file
    return kept


def bar_html(words: str, share: float) -> str:
    """A line of text above a bar that is filled to `share`."""
    percent = round(100 * share)
    return (
        f"<div class='drawing' role='status'><p>{html.escape(words)}</p><div class='bar' role='progressbar' "
        f"aria-label='Drawn' aria-valuenow='{percent}'><span style='width:{percent}%'></span></div></div>"
    )


def problems_html(problems: Sequence[tuple[str, str]]) -> str:
    """What happened to pictures that are not shown, given as (which, problem)."""
    if not problems:
        return ""
    items = "".join(f"<li>{html.escape(which)}: {html.escape(problem)}.</li>" for which, problem in problems)
    return (
        f"<div class='empty'><strong>{len(problems)} not shown.</strong> Another seed or prompt may do better."
        f"<ul>{items}</ul></div>"
    )


def stoppable(button: gr.Button, stop: gr.Button, status: gr.HTML, *, fn: Callable[..., Any], **event: Any) -> gr.State:
    """Let `button` start a drawing, one at a time on this server, and `stop` end it.

    Returns what the page's session knows of `status`, one of the outputs: whether it shows a bar (True), what came of a
    drawing (False), or nothing of one (None).
    """
    place, moving = event["outputs"].index(status), gr.State(None)

    @functools.wraps(fn)
    def told(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        for shown in fn(*args, **kwargs):
            yield *shown, "progressbar" in shown[place]

    def busy(is_busy: bool) -> tuple[gr.Button, gr.Button]:
        return gr.Button(interactive=not is_busy), gr.Button(visible=is_busy)

    def settle(is_moving: bool | None, was_stopped: bool) -> tuple[gr.Button, gr.Button, Any, bool | None]:
        ending = STOPPED if was_stopped else FAILED
        return *busy(False), *((ending, False) if is_moving else (gr.skip(), is_moving))

    # Where the status is off the screen, as on a phone, nothing would seem to happen.
    show = f"() => {{ document.getElementById('{status.elem_id}').scrollIntoView({{block: 'center'}}); return []; }}"
    # Told by the button itself: Gradio 6.31 takes a drawing that was stopped now and then for one that failed.
    stopped = gr.Checkbox(False, label="Stopped", visible="hidden")
    button.click(lambda: (*busy(True), False), None, [button, stop, stopped], js=show, **QUIET)
    event["outputs"] = [*event["outputs"], moving]
    drawing = button.click(
        told,
        **event,
        concurrency_id=DRAWING,
        concurrency_limit=1 if gpu_is_lent() else AT_ONCE,
        show_progress="minimal",
        show_progress_on=status,
    )
    for ended in (drawing.then, drawing.failure):  # Gradio 6.31: `then` follows an end and a stop, but no failure
        ended(settle, [moving, stopped], [button, stop, status, moving], **QUIET)
    stop.click(None, None, stopped, js="() => true", **QUIET)
    stop.click(None, None, None, cancels=drawing)
    return moving
