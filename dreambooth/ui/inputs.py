"""What events take: every value is looked at before a handler sees it, and its owner found. No error tells or logs one.

Anybody may send anything to any event, hidden or not, by its number. Gradio turns what it gets into what a component
shows, or fails with a trace that quotes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import math
import sys
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import anyio
import gradio as gr
from gradio.block_function import BlockFunction
from gradio.components.api_component import Api
from gradio.exceptions import InvalidPathError
from gradio.helpers import special_args
from gradio.utils import get_function_params
from pydantic import TypeAdapter, ValidationError

from dreambooth.config.yaml_file import MAX_BRACKETS, MAX_FOREIGN_YAML
from dreambooth.errors import ConfigError, PhotoError
from dreambooth.ui import plain_words
from dreambooth.ui.doors.limits import MAX_LETTERS
from dreambooth.ui.doors.lines import address_of
from dreambooth.ui.doors.login import Visitors

HINT = "The table of the API says what each endpoint takes."
BROKEN = "Something went wrong in the server. What it was is in its log. Try again, or tell who runs this studio."
MOST = 2**53
"""Numbers beyond are not exact in a browser (Number.MAX_SAFE_INTEGER, ECMA-262)."""

AT_ONCE = 8
"""Events past the queue that are handled at once for one address, of the 40 threads that there are for everybody's."""


class Page(gr.Blocks):
    """The page, whose handlers get values of the right kind, the visitor's own id as `owner`, and tell errors as
    sentences."""

    def __init__(self, visitors: Visitors, **arguments: Any) -> None:
        self.visitors = visitors
        self._turns = weakref.WeakValueDictionary[str, asyncio.Semaphore]()
        super().__init__(**arguments)

    async def process_api(self, block_fn: BlockFunction | int, *arguments: Any, **named: Any) -> dict[str, Any]:
        """As Gradio does it, but nothing of what was sent comes into the log, nor out of an error that is not ours."""
        try:
            with plain_words():
                return await super().process_api(block_fn, *arguments, **named)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            where = "".join(traceback.format_tb(error.__traceback__))
            print(f"An event failed with {type(error).__name__}, at\n{where}", file=sys.stderr, flush=True)
            raise gr.Error(BROKEN, print_exception=False) from None

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Refuse what a component, or a function's parameter, does not take."""
        check_inputs(block_fn, inputs)
        try:
            processed: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
            return processed
        except gr.Error as error:  # it may quote what was sent, and toasts are HTML
            raise gr.Error(f"{html.escape(str(error.message)[:MAX_LETTERS], quote=False).rstrip('.')}.") from None
        except InvalidPathError:
            raise PhotoError("This is no file that was uploaded here.", "Upload it first.") from None
        except OSError:
            raise
        except Exception:
            raise ConfigError("Something that was sent can't be read.", HINT) from None

    async def call_function(
        self,
        block_fn: BlockFunction | int,
        processed_input: list[Any],
        iterator: AsyncIterator[Any] | None = None,
        requests: Any = None,
        event_id: str | None = None,
        event_data: gr.EventData | None = None,
        in_event_listener: bool = False,
        state: Any = None,
        oauth_token: gr.OAuthToken | None = None,
    ) -> dict[str, Any]:
        """Put the visitor's id in the place of what came as `owner`; were this not called, nobody would own a run."""
        fn = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        async with contextlib.nullcontext() if fn.queue else self._turn(requests):
            if iterator is None:
                check_event(fn, event_data)
                if (place := owner_place(fn)) is not None:
                    (request, token), *_ = special_args(_who, [], requests, None, token=oauth_token)
                    visitor = self.visitors.visitor
                    found = await anyio.to_thread.run_sync(visitor, processed_input[place], request, token)
                    processed_input = [*processed_input[:place], found, *processed_input[place + 1 :]]
            told: dict[str, Any] = await super().call_function(
                fn, processed_input, iterator, requests, event_id, event_data, in_event_listener, state, oauth_token
            )
            return told

    def _turn(self, request: gr.Request | None) -> asyncio.Semaphore:
        """What lets an address have so many events past the queue handled at once; others of it wait."""
        address = address_of(request) if request else ""
        return self._turns.setdefault(address, asyncio.Semaphore(AT_ONCE))


def _who(request: gr.Request, token: gr.OAuthToken | None) -> None:
    """What Gradio is asked for: who calls."""


def owner_place(fn: BlockFunction) -> int | None:
    """Where in a function's inputs the owner is."""
    names = [name for name, *_ in get_function_params(fn.fn)] if fn.fn else []
    return names.index("owner") if "owner" in names else None


def check_event(fn: BlockFunction, event: gr.EventData | None) -> None:
    """Raise `ConfigError` where a handler wants to hear what was clicked, and the event tells nothing of the kind, and
    where there is no handler: what runs in the browser alone can be sent by hand all the same."""
    with contextlib.suppress(Exception):  # it reads the event's data without a look at them
        if fn.fn:
            special_args(fn.fn, [None] * len(fn.inputs), None, event)
            return
    raise ConfigError("The event does not tell what was chosen.", HINT)


# ----------------------------------------------------------------------------------------------------------- one value


def check_inputs(fn: BlockFunction, inputs: list[Any]) -> None:
    """Raise `ConfigError` for values that are too few, or that no page sends; it never names the value."""
    if fn.cancels or fn.fn is None:
        return
    if len(inputs) < len(fn.inputs):
        raise ConfigError(f"This takes {len(fn.inputs)} values, and {len(inputs)} were sent.", HINT)
    parameters = get_function_params(fn.fn)
    for place, (block, value) in enumerate(zip(fn.inputs, inputs, strict=False)):
        if isinstance(block, Api):
            name, *_, hint = parameters[place]
            _check_parameter(name, hint, value)
        elif not block.stateful:  # of a state Gradio takes what the server has
            check = next((CHECKS[kind] for kind in type(block).__mro__ if kind in CHECKS), _nothing)
            check(str(getattr(block, "label", None) or type(block).__name__), block, value)


def _check_parameter(name: str, hint: Any, value: Any) -> None:
    """A value for a parameter of a function that no component stands for."""
    _check_size(name, value)
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        raise ConfigError(f"{name}: {error.errors(include_input=False)[0]['msg']}.", HINT) from None


def _check_size(name: str, value: Any) -> None:
    """Raise `ConfigError` for more than a stranger's configuration file may hold, and for a number that is none."""
    left, layer, depth = MAX_FOREIGN_YAML, [value], 0
    while layer:
        depth, left = depth + 1, left - len(layer)
        inner: list[Any] = []
        for one in layer:
            if isinstance(one, str):
                left -= len(one)
            elif isinstance(one, Mapping):
                inner += [*one, *one.values()]
            elif isinstance(one, list | tuple):
                inner += one
            elif isinstance(one, int | float):
                _check_number(name, one)
        if left < 0:
            raise ConfigError(f"{name} is too long.", f"Give {MAX_FOREIGN_YAML:,} letters and values at most.")
        if depth > MAX_BRACKETS:
            raise ConfigError(f"{name} is nested too deeply.", f"Give {MAX_BRACKETS} levels at most.")
        layer = inner


def _check_number(name: str, value: float) -> None:
    if not (math.isfinite(value) and abs(value) <= MOST):
        raise ConfigError(f"{name} is not a number that can be used.", "Give another one.")


def _text(name: str, block: Any, value: Any) -> None:
    if not (value is None or isinstance(value, str)):
        raise ConfigError(f"{name} takes a text.", HINT)
    most = getattr(block, "max_length", None) or MAX_LETTERS
    if value and len(value) > most:
        raise ConfigError(f"{name} has {len(value):,} letters.", f"Give {most:,} at most.")


def _number(name: str, block: Any, value: Any) -> None:
    optional = value is None and isinstance(block, gr.Number)
    if not optional and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ConfigError(f"{name} takes a number.", HINT)
    if not optional:
        _check_number(name, value)


def _truth(name: str, block: Any, value: Any) -> None:
    if not (value is None or isinstance(value, bool)):
        raise ConfigError(f"{name} takes true or false.", HINT)


def _choice(name: str, block: Any, value: Any) -> None:
    if isinstance(value, int | float) and not getattr(block, "allow_custom_value", False):  # Gradio looks for it
        _check_number(name, value)
        return
    if not (value is None or isinstance(value, str)):
        raise ConfigError(f"{name} takes one of its choices.", HINT)
    _text(name, None, value)


def _file(name: str, block: Any, value: Any) -> None:
    if value is not None and not (isinstance(value, dict) and isinstance(value.get("path"), str)):
        raise ConfigError(f"{name} takes a file that was uploaded.", HINT)
    _check_size(name, value)


def _files(name: str, block: Any, value: Any) -> None:
    if not isinstance(value, list | None):
        raise ConfigError(f"{name} takes a list of pictures.", HINT)
    for one in value or ():
        if not (isinstance(one, dict) and isinstance(one.get("image"), dict)):
            raise ConfigError(f"{name} takes pictures that were uploaded, each as an image and a caption.", HINT)
        _file(name, block, one["image"])
        _text(f"A caption of {name}", None, one.get("caption"))


def _index(name: str, block: Any, value: Any) -> None:
    if type(value) is not int or not 0 <= value < len(block.samples):
        raise ConfigError(f"{name} takes the number of one of them.", HINT)


def _nothing(name: str, block: Any, value: Any) -> None:
    """A component that shows something, whose value only who makes requests by hand could choose."""
    raise ConfigError(f"{name} can't be sent.", HINT)


CHECKS: dict[type, Callable[[str, Any, Any], None]] = {
    gr.Textbox: _text,
    gr.Button: _text,
    gr.Dropdown: _choice,
    gr.Radio: _choice,
    gr.Checkbox: _truth,
    gr.Number: _number,
    gr.Slider: _number,
    gr.JSON: lambda name, _, value: _check_size(name, value),
    gr.Gallery: _files,
    gr.UploadButton: _file,
    gr.Dataset: _index,
}
"""What each kind of component takes; a kind that is not here takes nothing."""


def said(event: gr.EventData, name: str) -> str:
    """A text that an event tells, which who makes requests by hand chooses; raises `ConfigError` for anything else."""
    value: str | None = getattr(event, name, None)
    _text(name, None, value)
    if value is None:
        raise ConfigError(f"The event tells no {name}.", HINT)
    return value


def numbers(event: gr.EventData, name: str, count: int) -> list[int]:
    """So many whole numbers that an event tells; raises `ConfigError` for anything else."""
    value = getattr(event, name, None)
    found: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    if len(found) != count:
        raise ConfigError(f"The event tells no {name}.", HINT)
    for one in found:
        _number(f"The event's {name}", None, one)
    return [int(one) for one in found]
