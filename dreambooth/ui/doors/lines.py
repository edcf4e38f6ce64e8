"""The lines in which calls wait: one for each kind of call, where clients take turns and none has all the places.

Gradio 6.31 has one pool for all that waits, and refuses everybody once it is full; who waits is served in the order of
coming, whoever came how often, and whether or not anybody reads the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import gradio as gr
from fastapi import Request
from gradio.block_function import BlockFunction
from gradio.context import LocalContext
from gradio.data_classes import PredictBodyInternal
from gradio.queueing import Event, Queue
from gradio.server_messages import EventMessage, ProcessCompletedMessage
from gradio.utils import LRUCache, error_payload, run_coro_in_background
from starlette.requests import cookie_parser

from dreambooth.ui.doors.login import COOKIE, checked_cookie

DRAWING = "draw"
"""The line of what is drawn (its `concurrency_id`)."""
OTHERS = 4
"""Times as many calls of other kinds may wait as drawings: they take seconds at most, and a page with several tabs
makes some at once."""
BEHIND_ONE_ADDRESS = 8
"""Times as many calls as of one visitor may wait of one address, which a household or a class may share."""
MOST = 200
"""Calls that may wait in one line: who comes then would not wait so long."""
UNREAD = 60.0
"""Seconds for which an answer may lie unread, before its call is given up; whoever wants one reads on all the time."""
LOOK = 5.0
"""Seconds between looks at what is unread."""
SESSIONS = 20_000
"""Sessions whose answers are kept at once. Of more than Gradio's own 2,000 the first would lose theirs."""


class Lines(Queue):
    """Gradio's queue with bounds of our own: `drawings` of each visitor at once (None: any number), more of all else.

    A call that is refused gets a sentence as its answer, which the page shows as it shows all errors.
    """

    def __init__(self, page: gr.Blocks, drawings: int | None) -> None:
        super().__init__(
            live_updates=True, concurrency_count=page.max_threads, update_intervals=1, max_size=None, blocks=page
        )
        self.drawings = drawings
        self.pending_messages_per_session = LRUCache(SESSIONS)
        self._unread: dict[str, tuple[EventMessage, float]] = {}

    def start(self) -> None:
        """Begin to serve."""
        super().start()  # type: ignore[no-untyped-call]  # Gradio's
        run_coro_in_background(self._give_up_unread)

    async def push(self, body: PredictBodyInternal, request: Request, username: str | None) -> tuple[bool, Any, Any]:
        """Let a call wait for its turn, or answer why it may not."""
        fn = None if body.fn_index is None else self.blocks.fns.get(body.fn_index)
        if fn and (said := self._refusal(fn.concurrency_id, body.session_hash or "", request)):
            return True, await self._answer(said, fn, body, request, username), "success"
        taken, told, state = await super().push(body, request, username)
        if taken and isinstance(told, str) and (event := self.event_ids_to_events.get(told)):
            self._take_turns(event)
        return taken, told, state

    def _refusal(self, line: str, session: str, request: Request) -> str:
        """Why a call may not wait in a line; empty where it may."""
        if line not in self.event_queue_per_concurrency_id:
            return ""
        if len(self.event_queue_per_concurrency_id[line].queue) >= MOST:
            return f"{MOST} calls wait already. Come back later."
        if self.drawings is None:
            return ""
        each = self.drawings * (1 if line == DRAWING else OTHERS)
        visitor, address = _visitor(session, request), address_of(request)
        ahead = [(_visitor(event.session_hash, event.request), address_of(event.request)) for event in self._of(line)]
        what = "drawings wait or are drawn" if line == DRAWING else "calls of this kind wait"
        if ahead.count((visitor, address)) >= each:
            return f"{each} of your {what}, the most at once. Wait for one to finish, or stop it."
        if Counter(one for _, one in ahead)[address] >= each * BEHIND_ONE_ADDRESS:
            return f"{each * BEHIND_ONE_ADDRESS} {what} that come from your address. Try again in a few minutes."
        return ""

    def _of(self, line: str) -> Iterator[Event]:
        """What waits in a line, or is served."""
        yield from self.event_queue_per_concurrency_id[line].queue
        for job in self.active_jobs:
            yield from (event for event in job or () if event.concurrency_id == line)

    async def _answer(
        self, said: str, fn: BlockFunction, body: PredictBodyInternal, request: Request, username: str | None
    ) -> str:
        event = Event(body.session_hash, fn, request, username)
        async with self.pending_message_lock:
            if event.session_hash not in self.pending_messages_per_session:
                self.pending_messages_per_session[event.session_hash] = asyncio.Queue()
            self.pending_event_ids_session.setdefault(event.session_hash, set()).add(event._id)
        told = error_payload(gr.Error(said), self.blocks.show_error)
        self.send_message(event, ProcessCompletedMessage(output=told, title="Error", success=False))
        return event._id

    def _take_turns(self, event: Event) -> None:
        """Put the call that came last before the second ones of others, where it is its address's first, and so on."""
        line, own = self.event_queue_per_concurrency_id[event.concurrency_id].queue, address_of(event.request)
        if event not in line:  # it is being served already
            return
        line.remove(event)
        waiting = Counter(address_of(one.request) for one in line)
        before = Counter(address_of(one.request) for one in self._of(event.concurrency_id)) - waiting
        turn, place = before[own] + waiting[own], len(line)
        for number, one in enumerate(line):
            if before[address_of(one.request)] > turn:
                place = number
                break
            before[address_of(one.request)] += 1
        line.insert(place, event)
        self.broadcast_estimations(event.concurrency_id)

    async def _give_up_unread(self) -> None:
        while not self.stopped:
            await asyncio.sleep(LOOK)
            await self.give_up(time.monotonic())

    async def give_up(self, now: float) -> None:
        """Stop the calls of each session whose oldest answer lies unread since a while before `now`, and forget it."""
        oldest = {
            name: messages._queue[0] for name, messages in self.pending_messages_per_session.items() if messages.qsize()
        }
        self._unread = {
            name: before if (before := self._unread.get(name)) and before[0] is message else (message, now)
            for name, message in oldest.items()
        }
        for name in [name for name, (_, since) in self._unread.items() if now - since > UNREAD]:
            await self.clean_events(session_hash=name)
            self.pending_messages_per_session.pop(name, None)
            self.pending_event_ids_session.pop(name, None)


def address_of(request: Request | gr.Request) -> str:
    """Where a request comes from, as the guard has it."""
    return request.client.host if request.client else ""


def caller() -> str:
    """Where the request comes from whose event is being handled; empty outside of events."""
    request = LocalContext.request.get(None)
    return address_of(request) if request else ""


def _visitor(session: str, request: Request) -> str:
    """A browser by its cookie, else one session of a program."""
    return checked_cookie(cookie_parser(request.headers.get("cookie", "")).get(COOKIE)) or session
