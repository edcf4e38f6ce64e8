"""The store behind the Hub's large files, as the xet protocol has it: xorbs of chunks, and shards that say how files
are made of them (https://huggingface.co/docs/xet). Just what the real client needs to upload and to download."""

import struct
from dataclasses import dataclass
from pathlib import Path

ENTRY = 48  # bytes of every entry of a shard
FILES_AT = 48  # a shard's header comes before the files
WITH_VERIFICATION, WITH_SHA256 = 1 << 31, 1 << 30


@dataclass(frozen=True)
class Term:
    """Chunks [start, end) of one xorb: `size` bytes of a file."""

    xorb: str
    size: int
    start: int
    end: int


@dataclass(frozen=True)
class XetFile:
    """How a file is put together."""

    hash: str
    sha256: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        return sum(term.size for term in self.terms)


class XetStore:
    """Xorbs in a folder, files by their hash."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        self.files: dict[str, XetFile] = {}
        self.by_sha256: dict[str, XetFile] = {}

    def add_shard(self, shard: bytes) -> None:
        """Register the files of a shard. LookupError: one needs a xorb that was never uploaded."""
        at = FILES_AT
        while (hash_ := _text(shard, at)) != "f" * 64:
            flags, count = struct.unpack_from("<II", shard, at + 32)
            terms = []
            for entry in range(at + ENTRY, at + ENTRY * (count + 1), ENTRY):
                size, start, end = struct.unpack_from("<III", shard, entry + 36)
                terms.append(Term(_text(shard, entry), size, start, end))
            at += ENTRY * (1 + count * (2 if flags & WITH_VERIFICATION else 1))
            if not flags & WITH_SHA256:
                raise LookupError("the file's sha256 is missing")
            file = XetFile(hash_, _text(shard, at), tuple(terms))
            at += ENTRY
            for term in terms:
                if not (self.folder / term.xorb).is_file():
                    raise LookupError(f"xorb {term.xorb} was never uploaded")
            self.files[file.hash] = self.by_sha256[file.sha256] = file

    def reconstruction(self, hash_: str, first: int, last: int, url: str) -> dict:
        """How to make bytes [first, last] of a file of chunks that are under `url`. IndexError: they are beyond it."""
        terms, fetch, offset, at = [], {}, 0, 0
        for term in self.files[hash_].terms:
            if at + term.size > first and at <= last:
                offset = offset if terms else first - at
                chunks = {"start": term.start, "end": term.end}
                begin, end = self._bytes(term)
                terms.append({"hash": term.xorb, "unpacked_length": term.size, "range": chunks})
                where = {"range": chunks, "url": f"{url}/{term.xorb}", "url_range": {"start": begin, "end": end - 1}}
                fetch.setdefault(term.xorb, []).append(where)
            at += term.size
        if not terms:
            raise IndexError(first)
        return {"offset_into_first_range": offset, "terms": terms, "fetch_info": fetch}

    def _bytes(self, term: Term) -> tuple[int, int]:
        """Where the term's chunks begin and end in the xorb: each has a header of 8 bytes, its length in three."""
        at, bounds = 0, []
        with (self.folder / term.xorb).open("rb") as xorb:
            for _ in range(term.end):
                bounds.append(at)
                xorb.seek(at)
                at += 8 + int.from_bytes(xorb.read(4)[1:], "little")
        return bounds[term.start], at


def _text(data: bytes, at: int) -> str:
    """A hash as text: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", data, at))
