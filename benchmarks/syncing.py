"""What it costs to wait for the disk: steps a second of a toybox training with checkpoints, and one event's writing.

    python -m benchmarks.syncing [--runs 3] [--steps 60] [--folder .]

Trainings that wait and trainings that do not take turns, so that noise of the machine meets both. --folder is on the
disk in question: in a folder that lies in memory nothing is waited for.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.quiet import quiet_third_parties
from dreambooth.runs.directory import Run

SUBJECT = Path(__file__).parent.parent / "dreambooth" / "toybox" / "subjects" / "backpack"
WARM = 8  # steps that set up kernels
APPENDED = 200


def waiting(wanted: bool) -> mock._patch:
    """Whether `os.fsync` does anything while this lasts."""
    return mock.patch("os.fsync", os.fsync if wanted else lambda descriptor: None)


def pace(folder: Path, steps: int) -> float:
    """Steps a second of a training that writes a checkpoint every ten, all stalls counted."""
    config = Config.from_dict(
        {
            "base_model": "toybox",
            "device": "cpu",
            "subject": {"photos": str(SUBJECT), "class_noun": "backpack"},
            "prior": {"enabled": False},
            "train": {"steps": steps, "checkpoint_every": 10, "sample_every": 0},
        }
    )
    happened = list(Run.create(config, folder).execute())
    times = [event.time for event in happened if isinstance(event, events.Step)][WARM:]
    return (len(times) - 1) / (times[-1] - times[0])


def append(folder: Path, make: Callable[[], events.Event]) -> float:
    """Milliseconds of one event's writing, the median."""
    folder.mkdir()
    run, took = Run(folder), []
    for _ in range(APPENDED):
        tick = time.perf_counter()
        run.append(make())
        took.append(1e3 * (time.perf_counter() - tick))
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path())
    asked = parser.parse_args()
    quiet_third_parties()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        root = Path(folder)
        step = append(root / "step", lambda: events.Step(1, 0.1, 0.1, None, 1e-4, 0.1))
        stage = append(root / "stage", lambda: events.Stage("train", 800))
        print(f"an event: {step:.3f} ms of a step, which is not waited for; {stage:.3f} ms of a stage, which is")
        ratios = []
        for number in range(asked.runs):
            found = {}
            for wanted in (True, False) if number % 2 else (False, True):
                with waiting(wanted):
                    found[wanted] = pace(root / f"{number}-{wanted}", asked.steps)
            ratios.append(found[True] / found[False])
            print(f"{found[True]:.2f} steps a second with waiting, {found[False]:.2f} without: × {ratios[-1]:.3f}")
        print(f"median of {asked.runs}: × {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
