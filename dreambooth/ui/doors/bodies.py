"""What may be in a body: JSON as the page sends it, and files in the parts of a form."""

from __future__ import annotations

import json
import re
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from dreambooth.ui.doors import RefusalError

MAX_ITEMS = 20_000
"""The most lists, objects and commas of a request, which cost more than their bytes; the page's are some hundreds."""
MAX_DEPTH = 32
"""How deep lists and objects may lie in each other; the page's settings are six deep."""
MAX_UPLOAD, MAX_PARTS = 512 * 2**20, 100
"""The most bytes, and files, of one upload: twice the photos of a run, of ten megabytes each."""
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # of any scheme; C: of Windows is none


class Parts:
    """A multipart body as it passes: files alone, and not too many. Gradio 6.31 takes 1000, and fields into memory."""

    def __init__(self, content_type: str):
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise RefusalError(415, "An upload is multipart/form-data.")
        self._count, self._name, self._disposition = 0, b"", b""
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": self._in_name,
                "on_header_value": self._in_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
            },
        )

    def see(self, chunk: bytes) -> None:
        """Look at the next bytes. Raises `RefusalError`."""
        try:
            self._parser.write(chunk)
        except MultipartParseError:
            raise RefusalError(400, "The upload can't be read.") from None

    def _begin(self) -> None:
        self._count, self._name, self._value, self._disposition = self._count + 1, b"", b"", b""
        if self._count > MAX_PARTS:
            raise RefusalError(413, f"An upload has at most {MAX_PARTS} files. Send fewer at a time.")

    def _in_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _in_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        if b"filename" not in parse_options_header(self._disposition)[1]:
            raise RefusalError(400, "An upload is of files alone.")


def upload_size(headers: Headers) -> int:
    """The bytes of an upload. Raises `RefusalError` where they are too many, or not told."""
    length = headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,15}", length):
        raise RefusalError(411, "Say how long the upload is (Content-Length).")
    if int(length) > MAX_UPLOAD:
        raise RefusalError(413, f"An upload has at most {MAX_UPLOAD >> 20} MB. Send fewer photos at a time.")
    return int(length)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with every key that is written, also one that is written twice."""


def check_json(body: bytes, strings: bool) -> set[str]:
    """Refuse what is no JSON, too deep, or names an address in a file's place (`strings`: wherever one begins). What is
    left: the sessions that it names."""
    sessions: set[str] = set()
    if not body:
        return sessions
    try:
        waiting = [(json.loads(body, object_pairs_hook=_Pairs), 1)]
    except (ValueError, RecursionError):
        raise RefusalError(400, "The request is no JSON that can be read.") from None
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise RefusalError(400, f"The request's lists lie more than {MAX_DEPTH} deep in each other.")
        if isinstance(value, _Pairs):
            for key, inner in value:
                if key == "session_hash" and inner is not None:
                    if not isinstance(inner, str):
                        raise RefusalError(400, "A session_hash is a text.")
                    sessions.add(inner)
                if (
                    isinstance(inner, str)
                    and ADDRESS.match(inner)
                    and (key == "path" or (key == "url" and not inner.startswith(("http://", "https://"))))
                ):  # a file's `url` is where its sender saw it, of which Gradio makes nothing
                    raise RefusalError(400, "A photo is a file that was uploaded, not an address.")
                waiting.append((inner, depth + 1))
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
        elif strings and isinstance(value, str) and re.match(r"\s*https?:", value, re.IGNORECASE):
            raise RefusalError(400, "A photo is the file itself (data:image/png;base64,…), not an address.")
    return sessions
