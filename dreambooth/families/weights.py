"""Numbers in files that strangers made."""

from __future__ import annotations

import torch
from torch import Tensor

NUMBER_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # in which files hold weights


def why_unusable(value: Tensor) -> str:
    """What is wrong with a tensor of a stranger's file as weights, in words that follow its name; "" where nothing."""
    if value.dtype not in NUMBER_TYPES:
        return f"holds numbers of type {str(value.dtype).removeprefix('torch.')}"
    if not value.numel():
        return "holds no numbers"
    return "" if value.isfinite().all() else "holds numbers that are not finite"
