"""What visitors of a public studio notice of strangers who attack it, and what that costs the machine.

    python -m benchmarks.siege [--seconds 120]

Serves the studio in public mode with the toybox. Twenty visitors, each from an address of their own, look at the page,
add photos, train, watch, draw and list; at the same time one attacker fills the queues under ids that it makes up, one
uploads all the time, and one sends photos that are costly to decode. States how many of the visitors' requests were
refused, how long they took, how much memory and disk there was at most, and whether anybody's run is gone.
"""

import argparse
import io
import json
import os
import random
import secrets
import struct
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from PIL import Image

VISITORS = 20
SAMPLES = Path(__file__).parent.parent / "dreambooth" / "toybox" / "subjects" / "backpack"
PATIENCE = 120


@dataclass
class Report:
    """What was seen."""

    took: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of each of the visitors' requests, by kind."""
    refused: list[str] = field(default_factory=list)
    """What visitors were told in place of an answer."""
    attacks: Counter = field(default_factory=Counter)
    """How the attackers' requests were answered, by kind and status."""
    memory: int = 0
    """Bytes that the server held at most."""
    disk: int = 0
    """Bytes of its runs, caches and temporary files at most."""
    started: int = 0
    gone: list[str] = field(default_factory=list)
    """Runs of visitors that are not there any more."""

    def describe(self) -> str:
        """As lines of text."""
        lines = [f"{sum(map(len, self.took.values()))} requests of visitors, {len(self.refused)} refused"]
        lines += [f"  refused: {said}" for said in self.refused[:10]]
        for kind, took in sorted(self.took.items()):
            ranked = sorted(took)
            lines.append(
                f"  {kind}: {len(ranked)}, median {ranked[len(ranked) // 2]:.2f} s, 95th percentile "
                f"{ranked[int(0.95 * (len(ranked) - 1))]:.2f} s, worst {ranked[-1]:.2f} s"
            )
        lines.append("attacks: " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.attacks.items())))
        lines.append(f"memory {self.memory / 2**30:.2f} GiB at most, disk {self.disk / 1e9:.2f} GB at most")
        lines.append(f"{self.started} runs of visitors, {len(self.gone)} gone")
        return "\n".join(lines)


class Caller:
    """A program that asks the studio from an address of its own."""

    def __init__(self, url: str, address: str) -> None:
        self.owner = secrets.token_urlsafe(24)
        headers = {"X-Forwarded-For": address}  # believed of a proxy on this machine, where one is declared
        self.http = httpx.Client(base_url=url, headers=headers, timeout=PATIENCE)

    def call(self, name: str, **inputs: object) -> list:
        """The last answer of an endpoint; raises `RuntimeError` with what it says in place of one."""
        asked = self.http.post(f"gradio_api/call/v2/{name}", json=inputs)
        if asked.status_code != 200:
            raise RuntimeError(f"{name}: {asked.status_code} {asked.text[:200]}")
        kind = ""
        with self.http.stream("GET", f"gradio_api/call/v2/{name}/{asked.json()['event_id']}") as answer:
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: ") and kind == "complete":
                    return json.loads(line[6:])
                elif line.startswith("data: ") and kind == "error":
                    raise RuntimeError(f"{name}: {line[6:300]}")
        raise RuntimeError(f"{name}: no answer")

    def upload(self, name: str, data: bytes) -> dict:
        """A photo as events take it."""
        sent = self.http.post("gradio_api/upload", files={"files": (name, data, "image/png")})
        if sent.status_code != 200:
            raise RuntimeError(f"upload: {sent.status_code} {sent.text[:200]}")
        [path] = sent.json()
        return {"image": {"path": path, "meta": {"_type": "gradio.FileData"}}, "caption": None}


def besiege(url: str, process: int, folder: Path, seconds: float, base_model: str) -> Report:
    """Let visitors and attackers loose on the studio at `url` for so long; all its files are in `folder`."""
    report, over, lock = Report(), threading.Event(), threading.Lock()
    runs: list[tuple[Caller, str]] = []

    @contextmanager
    def timed(kind: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except (RuntimeError, httpx.HTTPError) as error:
            with lock:
                report.refused.append(f"{kind}: {type(error).__name__} {error}"[:300])
        finally:
            with lock:
                report.took.setdefault(kind, []).append(time.perf_counter() - began)

    def visit(number: int) -> None:
        caller, chance = Caller(url, f"198.51.100.{number + 1}"), random.Random(number)
        run, photos = "", []
        while not over.wait(chance.uniform(0.5, 2)):
            with timed("page"):
                caller.http.get("/").raise_for_status()
            if not photos:
                with timed("upload"):
                    photos = [caller.upload(path.name, path.read_bytes()) for path in sorted(SAMPLES.glob("*.png"))[:3]]
            if photos and not run:
                with timed("check photos"):
                    caller.call("check_photos", photos=photos)
                with timed("start training"):
                    [[run]] = caller.call(
                        "start_training",
                        owner=caller.owner,
                        photos=photos,
                        identifier=f"word{number}",
                        class_noun="backpack",
                        base_model=base_model,
                        steps=2,
                        prior=False,
                        seed=number,
                        more={"train": {"sample_every": 0}},
                    )
                    runs.append((caller, run))
            with timed("list runs"):
                caller.call("runs", owner=caller.owner)
            if run:
                with timed("run status"):
                    caller.call("run_status", owner=caller.owner, run=run)
            if not over.is_set():
                with timed("draw a picture"):
                    caller.call(
                        "generate",
                        owner=caller.owner,
                        model=base_model,
                        prompt="a photo of a backpack",
                        steps=2,
                        count=1,
                        seed=number,
                    )

    def attack(kind: str, number: int, act: Callable[[Caller], object]) -> None:
        caller = Caller(url, f"203.0.113.{number}")
        while not over.wait(0.02):
            caller.owner, answer = secrets.token_urlsafe(24), "unanswered"
            with suppress(httpx.HTTPError):
                answer = act(caller)
            with lock:
                report.attacks[f"{kind} {answer}"] += 1

    def fill(caller: Caller) -> int:
        """Ask for the longest drawing, and read no answer; now and then for a training."""
        photo = caller.upload("a.png", first) if random.random() < 0.1 else None
        if photo:
            asked = {"owner": caller.owner, "photos": [photo], "identifier": "sks", "class_noun": "dog", "steps": 3000}
            return caller.http.post("gradio_api/call/v2/start_training", json=asked).status_code
        asked = {"owner": caller.owner, "model": base_model, "prompt": "a dog", "steps": 100, "count": 16}
        return caller.http.post("gradio_api/call/v2/generate", json=asked).status_code

    def pile_up(caller: Caller) -> int:
        files = {"files": (f"{secrets.token_hex(8)}.png", os.urandom(4_000_000), "image/png")}
        return caller.http.post("gradio_api/upload", files=files).status_code

    def bomb(caller: Caller) -> int:
        try:
            photo = caller.upload("bomb.png", secrets.choice(bombs))
        except RuntimeError:
            return 413
        asked = secrets.choice(
            [
                ("check_photos", {"photos": [photo]}),
                (
                    "start_training",
                    {"owner": caller.owner, "photos": [photo], "identifier": "sks", "class_noun": "dog"},
                ),
                ("copy_settings", {"owner": caller.owner, "picture": photo["image"]}),
            ]
        )
        return caller.http.post(f"gradio_api/call/v2/{asked[0]}", json=asked[1]).status_code

    def watch() -> None:
        server = psutil.Process(process)
        while not over.wait(0.2):
            with suppress(psutil.Error):
                held = [server, *server.children(recursive=True)]
                report.memory = max(report.memory, sum(one.memory_info().rss for one in held))
            report.disk = max(report.disk, bytes_in(folder))

    first, bombs = next(iter(sorted(SAMPLES.glob("*.png")))).read_bytes(), list(costly_photos())
    besiegers = [(attack, ("fill", 1, fill)), (attack, ("upload", 2, pile_up)), (attack, ("bomb", 3, bomb))]
    threads = [threading.Thread(target=visit, args=(number,)) for number in range(VISITORS)]
    threads += [threading.Thread(target=what, args=args) for what, args in besiegers]
    threads.append(threading.Thread(target=watch))
    for thread in threads:
        thread.start()
    over.wait(seconds)
    over.set()
    for thread in threads:
        thread.join()
    report.started = len(runs)
    for caller, run in runs:
        try:
            there = [one["id"] for one in caller.call("runs", owner=caller.owner)[0]]
        except (RuntimeError, httpx.HTTPError) as error:
            there = [str(error)]
        report.gone += [run] * (run not in there)
    return report


def costly_photos() -> Iterator[bytes]:
    """Small files of many pixels, or of many passes over them."""

    def png(width: int, height: int) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        packer, row = zlib.compressobj(9), bytes(1 + width)
        pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    yield png(10_000, 11_900)
    yield png(64, 200_000)
    yield png(60_000, 60)
    yield png(20_000, 20_000)
    file = io.BytesIO()
    Image.new("L", (2000, 2000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    scan = data.rindex(b"\xff\xda")
    yield data[:-2] + data[scan:-2] * 500 + data[-2:]


def bytes_in(folder: Path) -> int:
    """What the files below a folder hold."""
    total = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(inside, name)).st_size
    return total


def main() -> None:
    from benchmarks.studio import serve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, url, _ = serve(
            Path(folder), os.environ | {"DREAMBOOTH_PUBLIC": "true", "DREAMBOOTH_HOSTS": "studio.example"}
        )
        try:
            print(besiege(url, server.pid, Path(folder), args.seconds, "toybox").describe())
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main()
