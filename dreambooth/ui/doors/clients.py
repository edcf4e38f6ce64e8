"""Whose a request is, and what each client has left of its bounds."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shutil
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from starlette.datastructures import Headers
from starlette.types import Scope

from dreambooth.ui.doors import RefusalError
from dreambooth.ui.doors.hosts import is_address

UPLOADS_AN_HOUR = 4 * 2**30
"""The most bytes that one client uploads within an hour: 20 visitors behind one address with 40 photos each."""
MAX_KEPT = 10 * 2**30
"""The most bytes in the folder of uploads and shown pictures, where each stays for a day: half of what the runs get."""
MAX_COMING, KEPT_A_DAY = MAX_KEPT // 4, MAX_KEPT // 2
"""How much of that one client may have on its way at once, and fill in a day."""
MIN_FREE = 2 * 2**30
"""Bytes of the disk that no upload may take: a checkpoint of Stable Diffusion's adapter, and the system's own."""
A_MINUTE = {
    "read": 12_000,
    "act": 6_000,
    "page": 240,
    "session": 240,
    "login": 120,
    "upload": 240,
    "bytes": 100 * 2**20,
}
"""What one client may ask for within a minute, by kind of request, and the bytes of its `act`s. A page is 130 files and
polls once a second: for 20 visitors behind one address, three tabs each, and room to spare. Each tab is a session."""
OF_A_NETWORK = 4
"""Times as much for a whole /48 of IPv6, the most that a customer is given: 2**16 of what counts as a client."""
PAGES_AT_ONCE = 4
"""Of what is `DEAR` that is made for one client at the same time; further ones wait for their turn."""
MAX_SESSION, MAX_SESSIONS = 64, 20_000
"""Characters of a session's name, where Gradio's have a dozen; and how many are known: those last heard of."""
AT_ONCE = 300
"""The most requests of one client that are open; a tab keeps two so."""
MAX_CLIENTS = 10_000
"""How many clients are counted; of more, those that were here longest ago begin anew."""


def client_of(scope: Scope, *, on_a_space: bool) -> str:
    """Whose request it is, as far as addresses tell: who connected, as Uvicorn has it, which believes proxies on
    this machine and in FORWARDED_ALLOW_IPS; on a Space the last in its proxies' list that is none of theirs."""
    address = (scope.get("client") or ("", 0))[0]
    if on_a_space:
        forwarded = Headers(scope=scope).getlist("x-forwarded-for")
        hops = [hop.strip() for value in forwarded for hop in value.split(",")]
        address = next(
            (hop for hop in reversed(hops) if is_address(hop) and ipaddress.ip_address(hop).is_global), address
        )
    if is_address(address) and ipaddress.ip_address(address).version == 6:  # who has one has 2**64 of them
        return str(ipaddress.ip_network((ipaddress.ip_address(address), 64), strict=False))
    return address


class Clients:
    """What each client has left of its bounds, and how much of the disk uploads may take."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic):
        self.folder, self.clock = folder, clock
        self._clients: OrderedDict[str, dict[str, tuple[float, float]]] = OrderedDict()
        self._open: dict[str, int] = {}
        self._kept, self._looked, self._looking = 0, -float("inf"), asyncio.Lock()
        self._coming: Counter[str] = Counter()
        self._sessions: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def take(self, client: str, kind: str, amount: int = 1) -> None:
        """Count it, for the client's network as well. Raises `RefusalError` where that is more than one may: what is
        left grows back evenly."""
        self._take(client, kind, amount)
        if client.endswith("/64"):
            self._take(str(ipaddress.ip_network(client).supernet(new_prefix=48)), kind, amount / OF_A_NETWORK)

    def _take(self, client: str, kind: str, amount: float) -> None:
        by_time = {"uploaded": (UPLOADS_AN_HOUR, 3600, "an hour"), "kept": (KEPT_A_DAY, 24 * 3600, "a day")}
        most, seconds, later = by_time[kind] if kind in by_time else (A_MINUTE[kind], 60, "a minute")
        counts = self._clients.setdefault(client, {})
        self._clients.move_to_end(client)
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        now = self.clock()
        left, then = counts.get(kind, (most, now))
        left = min(most, left + (now - then) * most / seconds)
        if left < amount:
            counts[kind] = (left, now)
            asked = "so much has been uploaded" if kind in by_time else "there have been too many requests"
            raise RefusalError(
                429, f"From your address {asked} that the studio takes no more for now. Try again in {later}."
            )
        counts[kind] = (left - amount, now)

    def see_session(self, client: str, name: str) -> None:
        """Count a session that is new. Raises `RefusalError` where there are too many."""
        if (client, name) not in self._sessions:
            self.take(client, "session")
        self._sessions[client, name] = None
        self._sessions.move_to_end((client, name))
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    async def turn(self, client: str) -> Callable[[], None]:
        """Wait until a page may be made for the client; what then ends its turn."""
        turns = self._turns.setdefault(client, asyncio.Semaphore(PAGES_AT_ONCE))
        await turns.acquire()
        return turns.release

    @contextmanager
    def one_more(self, client: str) -> Iterator[None]:
        """Count an open request. Raises `RefusalError` where there are too many."""
        if self._open.get(client, 0) >= AT_ONCE:
            raise RefusalError(429, "From your address too many requests are open. Close other tabs of the studio.")
        self._open[client] = self._open.get(client, 0) + 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    @asynccontextmanager
    async def room_for(self, client: str, size: int) -> AsyncIterator[None]:
        """Keep room for an upload of `size` bytes. Raises `RefusalError` where there is none, before it arrives."""
        self.take(client, "upload")
        async with self._looking:
            if self.clock() - self._looked > 10:
                self._kept = await asyncio.to_thread(_bytes_in, self.folder)
                self._looked = self.clock()
        coming = sum(self._coming.values()) + size
        self.folder.mkdir(parents=True, exist_ok=True)  # some systems clear their temporary folder
        if shutil.disk_usage(self.folder).free - coming < MIN_FREE:
            raise RefusalError(507, "The studio's disk is nearly full. Whoever runs it has to make room.")
        if self._kept + coming > MAX_KEPT:
            raise RefusalError(507, "The studio has no room for more photos today. Try again tomorrow.")
        if self._coming[client] + size > MAX_COMING:
            raise RefusalError(429, "From your address much is being uploaded. Try again when that has arrived.")
        self.take(client, "uploaded", size)
        self.take(client, "kept", size)
        self._coming[client] += size
        try:
            yield
        finally:
            self._coming[client] -= size
            self._coming += Counter()  # without those of whom nothing is coming
            self._kept += size


def _bytes_in(folder: Path) -> int:
    """What the files below a folder hold, as far as they are still there when they are looked at."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_size
            except OSError:  # just removed
                continue
    return total
