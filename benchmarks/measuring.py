"""What measuring costs while training: shares of a whole toybox training that go into sample pictures and figures.

    python -m benchmarks.measuring [--runs 3]

By the times of the run's own events: a sampling begins with the step (or the stage) before it and ends with its last
figure; drawing ends with its last picture, and what follows is measuring.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.quiet import quiet_third_parties
from dreambooth.runs.directory import Run

SUBJECT = Path(__file__).parent.parent / "dreambooth" / "toybox" / "subjects" / "backpack"


def shares(happened: list) -> tuple[float, float, float]:
    """Seconds of the whole training without class images, and the shares of it that drawing and measuring took."""
    begun = next(e.time for e in happened if isinstance(e, events.Stage) and e.name == "encode")
    drawing = measuring = 0.0
    before = last_picture = begun
    for event in happened:
        if isinstance(event, events.Image):
            drawing += event.time - before
            last_picture = before = event.time
        elif isinstance(event, events.Metric) and event.name == "dino":  # all figures of a step come at once
            measuring += event.time - last_picture
        elif event.time >= begun:
            before = event.time
    whole = happened[-1].time - begun
    return whole, drawing / whole, measuring / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    quiet_third_parties()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs):
            subject = {"photos": str(SUBJECT), "class_noun": "backpack"}
            config = Config.from_dict({"base_model": "toybox", "device": "cpu", "subject": subject, "seed": number})
            found.append(shares(list(Run.create(config, Path(folder) / str(number)).execute())))
            print("{:.1f} s without class images: {:.1%} drawing samples, {:.1%} measuring them".format(*found[-1]))
    whole, drawing, measuring = (statistics.median(column) for column in zip(*found))
    print(f"median of {runs}: {whole:.1f} s, {drawing:.1%} drawing samples, {measuring:.1%} measuring them")


if __name__ == "__main__":
    main()
