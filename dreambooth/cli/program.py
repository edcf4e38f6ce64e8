"""How a program of ours starts and ends: the variables it reads, and every failure in a line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from dreambooth.errors import ConfigError, DreamBoothError, first_line
from dreambooth.files import disk_trouble, named_path


def tidy_variables() -> None:
    """Let libraries take an empty variable for unset and `~` for the home folder, as all of ours do."""
    for name in [name for name in os.environ if name.startswith(("GRADIO_", "HF_"))]:
        if not os.environ[name].strip():
            del os.environ[name]
    if "GRADIO_TEMP_DIR" in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = str(named_path(os.environ["GRADIO_TEMP_DIR"].strip(), "GRADIO_TEMP_DIR"))


def prepare_for_the_studio() -> None:
    """See to the variables that the page's library reads when it is imported. Raises `ConfigError` for one with which
    it could not start.

    This machine is excepted from the proxies in the environment, which would be asked for the page that is served here;
    whom else they are not for stays.
    """
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"GRADIO_SERVER_PORT = {port!r} is no port.", "Give a number from 1 to 65535.")
    said = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    excepted = [host.strip() for host in said.split(",") if host.strip()]
    own = ["127.0.0.1", "localhost", "::1", os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")]
    for name in ("no_proxy", "NO_PROXY"):  # libraries differ in which of the two they heed
        os.environ[name] = ",".join(dict.fromkeys([*excepted, *own]))
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, ValueError) as error:  # SOCKS without its library, or no proxy's address
        names = sorted(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy"))
        raise ConfigError(
            f"The proxy in {' or '.join(names)} can't be used ({first_line(error)}).",
            "Give one that begins with http://, or unset the variable.",
        ) from None


def end_in_a_line(work: Callable[[], Any]) -> NoReturn:
    """Do the work and end the program: every expected failure is one line on standard error, and code 2 or 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the console's code page may lack what is in a file's name
            stream.reconfigure(errors="replace")
    try:
        tidy_variables()
        sys.exit(work() or 0)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2; the help, on lines of its own
            error.show()
            sys.exit(2)
        message, code = " ".join(error.format_message().split()), 2
    except (click.Abort, KeyboardInterrupt):
        message, code = "stopped.", 1
    except DreamBoothError as error:
        message, code = str(error), error.exit_code
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        message, code = "{} {}.".format(*disk_trouble(error)), 1
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(code)
