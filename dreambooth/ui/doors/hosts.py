"""Under which names the studio may be asked, and from the pages of which sites."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders

from dreambooth.ui.doors import RefusalError
from dreambooth.ui.doors.limits import StudioSettings

PROXIED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers by which a proxy or a tunnel is known."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(\d{1,5}))?")


class Hosts:
    """The names under which the studio may be asked."""

    def __init__(self, settings: StudioSettings, environment: Mapping[str, str] = os.environ):
        listens = environment.get("GRADIO_SERVER_NAME", "127.0.0.1").strip("[]").lower()
        self.space = bool(environment.get("SPACE_ID"))
        self.widely = self.space or not (listens == "localhost" or _is_loopback(listens))
        """Whether other machines reach it without a proxy on this one."""
        own = {"localhost", listens}
        if self.widely:
            own |= {name for host in [socket.gethostname().lower()] for name in (host, f"{host}.local")}
        spaces = (host.strip().lower() for host in environment.get("SPACE_HOST", "").split(","))
        self.declared = {host for host in (*settings.hosts, *spaces) if host}
        """Names, some with a port, by which others ask for it, whatever a proxy in between makes of them."""
        self.tools = environment.get("GRADIO_MCP_SERVER", "").lower() == "true"
        """Whether it is an MCP server as well, as Gradio reads it."""
        self.prefix = urlsplit(environment.get("GRADIO_ROOT_PATH", "")).path.rstrip("/")
        self._names = own

    def declare(self, url: str) -> None:
        """Add the host of a link that Gradio made to the studio (`GRADIO_SHARE`)."""
        self.declared.add(urlsplit(url).netloc.lower())

    def knows(self, host: str) -> bool:
        """Whether a Host header is one of the studio's. No other site can be at an address in numbers, as it can be at
        a name of its own that leads here; so where the studio listens to other machines, every such address is."""
        found = _HOST.fullmatch(host.lower())
        if not found:
            return False
        name = found[1].strip("[]").rstrip(".")
        if name in self._names or name in {declared.partition(":")[0] for declared in self.declared}:
            return True
        return _is_loopback(name) or (self.widely and is_address(name))

    def is_own(self, origin: str, host: str) -> bool:
        """Whether a page at `origin` is the studio's, asked for as `host`: there, or at a declared name."""
        try:
            scheme, netloc = urlsplit(origin)[:2]
        except ValueError:
            return False
        netloc = netloc.lower()
        return scheme in ("http", "https") and (netloc == host.lower() or netloc in self.declared)

    def check(self, headers: MutableHeaders) -> None:
        """Refuse names that are not the studio's: a site's own that leads to this address ("DNS rebinding"), or a
        tunnel's that nobody told of. What a proxy forwards counts as well, since Gradio builds its links from it."""
        hosts = headers.getlist("host") + [
            host.strip() for value in headers.getlist("x-forwarded-host") for host in value.split(",")
        ]
        del headers["x-gradio-server"]  # of Gradio's own Node server, which is not used
        if len(headers.getlist("host")) != 1 or not all(map(self.knows, hosts)):
            unknown = next((host for host in hosts if not self.knows(host)), "")
            shown = unknown[:100] if _HOST.fullmatch(unknown.lower()) else "that name"
            raise RefusalError(
                403, f"This studio is not known as {shown}. Whoever runs it lists its names in DREAMBOOTH_HOSTS."
            )
        if not (self.space or self.declared) and any(name in headers for name in PROXIED):
            raise RefusalError(
                403,
                "This came through a proxy or a tunnel, and the studio knows of none. Whoever runs it lists the "
                "name under which browsers reach it in DREAMBOOTH_HOSTS.",
            )

    def is_foreign(self, headers: MutableHeaders) -> bool:
        """Whether a page of another site sent this, as browsers tell."""
        if any(not self.is_own(origin, headers["host"]) for origin in headers.getlist("origin")):
            return True
        return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def is_address(name: str) -> bool:
    """Whether a text is an address in numbers."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return is_address(name) and ipaddress.ip_address(name).is_loopback
