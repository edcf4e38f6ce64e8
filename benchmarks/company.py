"""Steps a second of a training that is not alone on its cores, with the threads held and with them given way.

    python -m benchmarks.company [--steps 60]

Trains on toybox in a process of its own: alone; beside a program that keeps one core busy; and in a studio that draws
for one visitor again and again while twenty others ask for its state once a second. Each first with as many threads as
there are cores from beginning to end (`OMP_NUM_THREADS`), then as the product does it. Means count every stall.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.studio import ROOT, serve
from dreambooth.cores import usable_cores

SUBJECT = ROOT / "dreambooth" / "toybox" / "subjects" / "backpack"
WARM = 8  # steps that set up kernels
VISITS = """
import sys, threading, time
from gradio_client import Client
url, owner, seconds = sys.argv[1:]
end = time.monotonic() + float(seconds)
client = Client(url, verbose=False, analytics_enabled=False)
def ask():
    while time.monotonic() < end:
        client.predict(owner, api_name="/runs")
        time.sleep(1)
def draw():
    while time.monotonic() < end:
        client.predict(owner, "toybox", "a photo of a dog", "", 25, 3.0, 0, 4, api_name="/generate")
threads = [threading.Thread(target=ask, daemon=True) for _ in range(20)] + [threading.Thread(target=draw, daemon=True)]
for thread in threads: thread.start()
time.sleep(float(seconds))
"""


def environment(held: bool, folder: Path) -> dict[str, str]:
    """What a process with its threads held, or free, starts with; class images are shared."""
    around = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    around |= {"DREAMBOOTH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return around | ({"OMP_NUM_THREADS": str(usable_cores())} if held else {})


def pace(run: Path) -> tuple[float, float, float]:
    """Steps a second in the mean and by the median, and the slowest step's seconds."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    steps = [(line["time"], line["seconds"]) for line in lines if line["event"] == "step"][WARM:]
    whole = steps[-1][0] - steps[0][0]
    took = [seconds for _, seconds in steps[1:]]
    return (len(steps) - 1) / whole, 1 / statistics.median(took), max(took)


def train(folder: Path, held: bool, steps: int) -> Path:
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    config = folder / "config.yaml"
    config.write_text(
        f"base_model: toybox\ndevice: cpu\nsubject: {{photos: {SUBJECT}, class_noun: backpack}}\n"
        f"train: {{steps: {steps}, sample_every: 0, checkpoint_every: 1000000}}\n"
    )
    subprocess.run(
        [sys.executable, "-m", "dreambooth", "train", config, "--run-dir", run],
        env=environment(held, folder),
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return run


@contextmanager
def busy() -> Iterator[None]:
    """A program that keeps one core busy."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        other.kill()
        other.wait()


def train_in_studio(folder: Path, held: bool, steps: int) -> Path:
    """The same in a served studio, with visitors; stopped after `steps`."""
    place = Path(tempfile.mkdtemp(dir=folder))
    server, url, _ = serve(place, environment(held, folder))
    try:
        from gradio_client import Client, handle_file

        owner = f"visitor{time.time_ns()}abcdefgh"
        client = Client(url, verbose=False, analytics_enabled=False)
        photos = [{"image": handle_file(path), "caption": None} for path in sorted(SUBJECT.glob("*.png"))]
        [run] = client.predict(
            owner=owner,
            photos=photos,
            identifier="sks",
            class_noun="backpack",
            recipe="toybox",
            base_model="toybox",
            steps=5000,
            more={"train": {"sample_every": 0}},
            api_name="/start_training",
        )
        path = place / "runs" / run
        crowd = None
        giving_up = time.monotonic() + 900
        while time.monotonic() < giving_up:
            taken = (path / "events.jsonl").read_text().count('"event": "step"') if path.exists() else 0
            if taken and crowd is None:
                crowd = subprocess.Popen([sys.executable, "-c", VISITS, url, owner, "900"])
            if taken >= steps:
                break
            time.sleep(0.2)
        crowd.kill()
        return path
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder, False, WARM + 2)  # class images
        alone = {}
        for case in ("alone", "beside a busy program", "in a studio with visitors"):
            for held in (True, False):
                if case == "alone":
                    run = train(folder, held, steps)
                elif case == "beside a busy program":
                    with busy():
                        run = train(folder, held, steps)
                else:
                    run = train_in_studio(folder, held, steps)
                mean, median, worst = pace(run)
                alone.setdefault(held, mean)
                print(
                    f"{case}, {'threads held' if held else 'giving way'}: {mean:.2f} steps/s in the mean, "
                    f"{median:.2f} by the median, slowest step {worst:.2f} s; {mean / alone[held]:.2f} of alone",
                    flush=True,
                )


if __name__ == "__main__":
    main()
