"""What anybody can send to any event, hidden or not: what a page sends is taken, all else refused in a sentence."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator
from copy import copy
from typing import Any

import gradio as gr
import pytest
from gradio.components.api_component import Api
from gradio.state_holder import SessionState
from gradio.utils import get_function_params
from starlette.requests import Request

from dreambooth.config.names import TOYBOX
from dreambooth.errors import ConfigError
from dreambooth.runs.owners import new_owner
from dreambooth.ui import inputs
from dreambooth.ui.doors.login import Visitors
from dreambooth.ui.inputs import Page, check_inputs
from dreambooth.ui.page import build
from dreambooth.ui.studio import Studio

ANNA = new_owner()
MARK = "m4rk3d"
JUNK = {
    "a list": [MARK],
    "a dict": {MARK: MARK},
    "a number": 313373.25,
    "a huge number": 10.0**300,
    "null": None,
    "a long text": MARK * 70_000,
    "nan": math.nan,
    "a truth": True,
    "many lists": json.loads("[" * 200 + "]" * 200),
}
QUICK = {"Steps": 1, "Pictures": 1, "Pictures a prompt": 1}
"""So that what is drawn all the same is drawn soon."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    root = tmp_path_factory.mktemp("runs")
    from dreambooth.runs.worker import Worker

    return build(Studio(root, {TOYBOX: TOYBOX}, Worker(root, parallel=0)))


def request(address: str = "127.0.0.1") -> gr.Request:
    """As a page of the studio's own makes it."""
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"origin", b"http://x")]}
    scope["client"] = (address, 1)
    return gr.Request(Request(scope), session_hash="a-page-of-this-test")


def sent(fn: Any) -> list[Any]:
    """What a page sends to an event before anybody has touched it, and an API caller who leaves out what can be."""
    plain = {gr.Dataset: 0, gr.Gallery: None}
    values = [plain.get(type(block), QUICK.get(block.label, block.value)) for block in fn.inputs]
    if any(isinstance(block, Api) for block in fn.inputs):
        values = [default if optional else "a word" for _, optional, default, _ in get_function_params(fn.fn)]
    place = inputs.owner_place(fn)
    return values if place is None else [*values[:place], ANNA, *values[place + 1 :]]


def places(page: Page) -> Iterator[tuple[Any, int]]:
    """Every event and each place that a caller fills in; of those with one handler and one set of inputs the first."""
    different = {(fn.fn, tuple(block._id for block in fn.inputs)): fn for fn in page.fns.values()}
    for fn in different.values():
        for place, block in enumerate(fn.inputs):
            if fn.fn and not block.stateful:
                yield fn, place


def test_no_component_that_only_shows_something_is_an_input(page: Page):
    """Else who makes requests by hand would choose what a link to the page shows to others."""
    kinds = {component["id"]: component["type"] for component in page.config["components"]}
    taken = {kinds[block] for dependency in page.config["dependencies"] for block in dependency["inputs"]}
    assert "html" not in taken
    assert taken == {
        "api",
        "button",
        "checkbox",
        "dataset",
        "dropdown",
        "gallery",
        "json",
        "number",
        "radio",
        "slider",
        "state",
        "textbox",
        "uploadbutton",
    }
    assert "html" in kinds.values(), "else this looked at nothing"


@pytest.mark.attack
def test_one_address_has_so_many_events_past_the_queue_handled_at_once(tmp_path):
    async def look() -> None:
        begun, ended = Counter(), asyncio.Event()

        async def work(request: gr.Request) -> None:
            begun[request.client.host] += 1
            await ended.wait()

        with Page(Visitors(tmp_path)) as page:
            gr.Button().click(work, queue=False)
            gr.Button().click(work)
        past, queued = page.fns.values()

        def ask(fn: Any, address: str) -> asyncio.Task:
            call = page.call_function(fn, [], requests=request(address))
            return asyncio.create_task(call)

        asked = [ask(past, "a") for _ in range(2 * inputs.AT_ONCE)]
        asked += [ask(past, "b"), *(ask(queued, "c") for _ in range(2 * inputs.AT_ONCE))]
        for _ in range(100):
            await asyncio.sleep(0)
        assert begun == {"a": inputs.AT_ONCE, "b": 1, "c": 2 * inputs.AT_ONCE}
        ended.set()
        await asyncio.gather(*asked)
        assert begun["a"] == 2 * inputs.AT_ONCE, "the others had their turns"

    asyncio.run(look())


def test_every_owner_is_found_by_the_page_itself(page: Page):
    boxes = {id(block) for block in page.blocks.values() if getattr(block, "label", "") == "owner"}
    asked = 0
    for fn in page.fns.values():
        given = [place for place, block in enumerate(fn.inputs) if id(block) in boxes]
        if given:
            assert given == [inputs.owner_place(fn)], fn.api_name
            asked += 1
    assert asked > 20


def test_what_the_page_sends_is_taken_everywhere(page: Page):
    for fn in page.fns.values():
        check_inputs(fn, sent(fn))


def test_an_event_of_the_browser_alone_is_refused_in_a_sentence_where_it_is_sent(page: Page):
    without = [fn for fn in page.fns.values() if fn.fn is None and not fn.cancels]
    assert without, "else this looked at nothing"
    for fn in without:
        with pytest.raises(ConfigError, match="does not tell what was chosen"):
            asyncio.run(page.call_function(fn, [None] * len(fn.inputs), requests=request()))


@pytest.mark.slow
def test_what_is_sent_by_hand_is_refused_in_a_sentence_and_not_logged(page: Page, capfd: pytest.CaptureFixture[str]):
    first = SessionState(page)

    def session() -> SessionState:
        """As Gradio makes one for each page that opens, but for the components' settings, which take it long."""
        opened = copy(first)
        opened.blocks_config, opened.config_values = copy(page.default_config), dict(first.config_values)
        opened.state_data, opened._state_ttl = {}, {}
        return opened

    async def send(fn: Any, place: int, what: str) -> None:
        given = sent(fn)
        given[place] = JUNK[what]
        try:
            await page.process_api(fn, given, session(), request())
        except gr.Error as error:
            told.append((f"{fn.api_name}, {what} for input {place}", error))

    async def send_all() -> None:
        for fn, place in places(page):
            for what in JUNK:
                await send(fn, place, what)

    told: list[tuple[str, gr.Error]] = []
    asyncio.run(send_all())
    assert len(told) > 1000
    sentences = [(where, error.message) for where, error in told]
    assert not [where for where, error in told if error.print_exception]
    assert not [where for where, said in sentences if said == inputs.BROKEN]
    assert not [(where, said) for where, said in sentences if len(said.split()) < 3 or len(said) > 3000]
    logged = "".join(capfd.readouterr())
    for secret in ("Traceback", "An event failed", MARK, "313373"):
        assert secret not in logged, logged[:3000]
