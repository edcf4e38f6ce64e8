"""Libraries are kept quiet, for the sake of whoever reads the console."""

from __future__ import annotations

import logging
import os


def quiet_third_parties() -> None:
    """Keep libraries' progress bars and start-up notes off the console, not their errors. Call before other imports."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for name in ("bitsandbytes", "torch.distributed", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from diffusers.utils.logging import disable_progress_bar as diffusers_quiet
    from transformers.utils.logging import disable_progress_bar as transformers_quiet

    diffusers_quiet()
    transformers_quiet()
