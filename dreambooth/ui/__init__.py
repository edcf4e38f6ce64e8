"""The studio's page: a folder for each tab, what they share beside them, and the doors in front.

In each folder `tab.py` lays the tab out and says which handler every event calls; where these are many they have a file
of their own, mostly `actions.py`. Here is what all of them say of events: which are quiet, what a handler gives back,
and errors as sentences.
"""

from __future__ import annotations

import contextlib
import functools
import html
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import gradio as gr

from dreambooth.errors import DreamBoothError

HOUR, DAY = 60 * 60, 24 * 60 * 60
"""In seconds."""

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Arguments of events that only redraw the page: at once, without a spinner, and nothing for API callers."""

Update: TypeAlias = gr.blocks.Block | dict[str, Any]
"""What a handler gives back to change a component: one of its kind that has what is new, `gr.update` or `gr.skip`."""

P = ParamSpec("P")
Given = TypeVar("Given")


def in_plain_words(handler: Callable[P, Given]) -> Callable[P, Given]:
    """The handler with the library's errors, and the system's, shown on the page as a sentence and not printed."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def plain_generator(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            with plain_words():
                yield from handler(*args, **kwargs)

        return cast(Callable[P, Given], plain_generator)  # a generator was given, too

    @functools.wraps(handler)
    def plain(*args: P.args, **kwargs: P.kwargs) -> Given:
        with plain_words():
            return handler(*args, **kwargs)

    return plain


@contextlib.contextmanager
def plain_words() -> Iterator[None]:
    """The library's errors, and the system's, inside the block as Gradio's, which the page shows."""
    try:
        yield
    except DreamBoothError as error:
        sentence = html.escape(str(error), quote=False)  # it may quote a visitor's words, and toasts are HTML
        raise gr.Error(sentence, print_exception=False) from None
    except OSError as error:  # a full disk, say; the reason alone, since the rest is a path of the server
        reason = error.strerror or "a file can't be read or written"
        raise gr.Error(f"The server can't do this now: {reason}.", print_exception=False) from None


def served(component: gr.blocks.Block, path: str | Path) -> str:
    """Where the page gets a file from: a copy in Gradio's folder, which alone is served."""
    copy = component.move_resource_to_block_cache(path)
    assert copy is not None  # as for no path alone
    return copy
