"""What each preset would do on GPUs of 12, 16, 24 and 80 GB, by rehearsal: no GPU and no weight is needed.

    python -m benchmarks.gpu_memory [--presets sd15-lora paper] [--write docs/hardware.md]

Prints a table in Markdown; `--write` puts it between the two marks in that file. Nothing here ran on a GPU: Stable
Diffusion 1.5's architecture goes through each stage on tensors without data, as before every training.
"""

import argparse
import re
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch

import dreambooth
from benchmarks.full_size import describe
from dreambooth.config.names import TOYBOX
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError
from dreambooth.machine import Speed
from dreambooth.models.fetch import fetch_model
from dreambooth.rehearsal import GIB, Rehearsal, gib
from dreambooth.training import preflight

PRESETS = sorted(path.stem for path in (Path(dreambooth.__file__).parent / "config" / "presets").glob("*.yaml"))
CARDS = (12, 16, 24, 80)
CONTEXT = 0.6
"""GiB of a card that CUDA's context and a desktop take: a guess, since it depends on driver and card."""
SPEED = Speed(flops=1e14, bandwidth=1e12, call=1e-5)
"""Any: the table tells no times."""
MARKS = "<!-- by benchmarks/gpu_memory.py -->", "<!-- end -->"


def cell(config: Config, rehearsal: Rehearsal, card: int) -> str:
    """What the run takes of the card, with what is turned on for it; else the first advice, and what that takes."""
    available = round((card - CONTEXT) * GIB)
    try:
        found = preflight.check(config, rehearsal.model, rehearsal.device, available=available, rehearsal=rehearsal)
    except ConfigError as error:
        advice = re.match(r"Set (.+?) \(about ([\d.]+ GiB)", error.hint)
        return f"no; `{advice[1]}`: {advice[2]}" if advice else "no"
    return gib(found.peak_bytes) + (", checkpointing" if found.gradient_checkpointing else "")


def table(presets: list[str], stable_diffusion: Path) -> str:
    """One row a preset, one column a card."""
    device = torch.device("cuda")
    rehearsals = {base: Rehearsal(base, device, SPEED) for base in (stable_diffusion, fetch_model(TOYBOX))}
    rows = [["preset", *(f"{card} GB" for card in CARDS)], ["---"] * (1 + len(CARDS))]
    for preset in presets:
        settings = {
            "preset": preset,
            "subject": {"photos": ".", "class_noun": "dog"},
            "train": {"mixed_precision": "bf16"},
        }
        config = Config.from_dict(settings)
        rehearsal = rehearsals[fetch_model(TOYBOX) if config.base_model == TOYBOX else stable_diffusion]
        rows.append([f"`{preset}`", *(cell(config, rehearsal, card) for card in CARDS)])
        print(f"| {' | '.join(rows[-1])} |", flush=True)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    # bitsandbytes would be tried on the GPU that is not here
    with tempfile.TemporaryDirectory() as folder, patch.object(preflight, "check_optimizer", lambda *_: None):
        made = table(args.presets, describe(Path(folder) / "sd15"))
    if args.write:
        before, rest = args.write.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        args.write.write_text(f"{before}{MARKS[0]}\n{made}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
