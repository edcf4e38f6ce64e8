"""Publishing at full size: memory, and bytes sent where the line breaks in the middle and the command is given again.

    python -m benchmarks.publishing [--work DIR] [--kill]

A run with Stable Diffusion 1.5's architecture in random 16-bit weights (2.1 GB) goes to a Hub on loopback by the real
command and client. When half has arrived every connection breaks (with --kill, the process dies); then the command runs
again. Needs 7 GB of disk and of memory.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.full_size import SUBJECT, build
from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.runs.directory import Run
from tests.hub import LoopbackHub

REPO = "anna/full-size"


def finished_run(folder: Path) -> Run:
    """A run as training leaves it, its model never trained."""
    settings = {"base_model": "toybox", "subject": {"photos": str(SUBJECT), "class_noun": "backpack"}}
    run = Run.create(Config.from_dict(settings), folder)
    torch.set_default_dtype(torch.float16)
    build(run.path / "model")
    shutil.copytree(SUBJECT, run.path / "photos")
    run.append(events.Finished("model", 1.0))
    return run


def push(run: Run, hub: LoopbackHub, token: str, when_half: str = "") -> tuple[int, int]:
    """Give the command once; when half has arrived, "cut" the line or "kill" it. Returns exit code and peak, bytes."""
    command = [sys.executable, "-m", "dreambooth", "push", str(run.path), "--repo-id", REPO]
    half = sum(path.stat().st_size for path in (run.path / "model").rglob("*") if path.is_file()) // 2
    peak = 0
    process = subprocess.Popen(command, env=hub.environment(token))
    while process.poll() is None:
        peak = max(peak, _peak_memory(process.pid))
        if when_half and hub.bytes_received() > half:
            if when_half == "kill":
                process.kill()
            hub.down = True
        time.sleep(0.01)
    return process.returncode, peak


def _peak_memory(pid: int) -> int:
    """The most the process has held so far, bytes. (`ru_maxrss` would count what its parent held when it began.)"""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--kill", action="store_true")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="publishing-", dir=args.work))
    try:
        run = finished_run(work / "run")
        with LoopbackHub(work / "hub", xet=True) as hub:
            token = hub.add_user("anna")
            code, first_peak = push(run, hub, token, "kill" if args.kill else "cut")
            first = hub.bytes_received()
            if code == 0 or not hub.down:
                raise SystemExit("the first attempt was not stopped in the middle")
            hub.down = False
            code, second_peak = push(run, hub, token)
            if code:
                raise SystemExit("the second attempt failed")
            files = hub.repos["model", REPO].files
            size = sum(blob.size for blob in files.values())
            sent = hub.bytes_received()
        print(f"{size / 1e9:.2f} GB in {len(files)} files, peak {max(first_peak, second_peak) / 1e6:.0f} MB of memory")
        print(f"sent {first / 1e9:.2f} GB, stopped, then {(sent - first) / 1e9:.2f} GB: {sent / size:.3f} x size")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
