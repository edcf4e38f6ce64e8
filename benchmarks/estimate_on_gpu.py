"""On a GPU: what the preflight estimates of a training's memory and time, beside what PyTorch then takes.

    python -m benchmarks.estimate_on_gpu [--set method=lora train.batch_size=2 …] [--steps 20] [--device cuda:1]

Stable Diffusion 1.5's architecture with random weights (5 GB of disk), so nothing is downloaded. Prints the estimate,
`torch.cuda.max_memory_allocated` and `max_memory_reserved`, the share by which the second exceeds the first, and the
seconds. By these figures `FRAGMENTATION` and `UTILISATION` in `dreambooth/rehearsal.py` can be set for a GPU: there
they are a CPU's, since nobody has run this on a GPU yet.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.full_size import SUBJECT, build
from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import override
from dreambooth.events import Metric
from dreambooth.machine import resolve_device
from dreambooth.runs.directory import Run
from dreambooth.training.preflight import gib, roughly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device = resolve_device(args.device)  # says so where there is no GPU
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        build(work / "sd15")
        settings = {
            "base_model": str(work / "sd15"),
            "device": args.device,
            "subject": {"photos": str(SUBJECT), "class_noun": "backpack"},
            "prior": {"num_images": 4, "steps": 5},
            "train": {"steps": args.steps, "sample_every": 0, "checkpoint_every": 10**6},
        }
        config = Config.from_dict(override(settings, tuple(args.set)))
        told, started = {}, time.monotonic()
        for event in Run.create(config, work / "run").execute():
            if isinstance(event, Metric):
                told[event.name] = event.value
        seconds = time.monotonic() - started
        taken, kept = (peak(device) for peak in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved))
    estimate = told["estimated_peak_memory_bytes"]
    print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}: {' '.join(args.set)}")
    print(f"estimated {gib(estimate)}; allocated {gib(taken)}; kept from others {gib(kept)} ({kept / taken - 1:+.0%})")
    print(f"the estimate is {estimate / kept - 1:+.0%} of what is kept")
    print(f"estimated {roughly(told['estimated_seconds'])}; took {roughly(seconds)}, with loading and saving")


if __name__ == "__main__":
    main()
