"""The kinds of base models there are; what differs between them stands in one file for each.

Training and methods read a family's fields and never ask for its name.
"""

from __future__ import annotations

import json
from pathlib import Path

from dreambooth.errors import ModelError
from dreambooth.families.family import Family
from dreambooth.families.folder import said_plainly, shown_name, what_helps
from dreambooth.families.stable_diffusion import STABLE_DIFFUSION

FAMILIES = (STABLE_DIFFUSION,)


def family_of(folder: Path) -> Family:
    """The family of the pipeline in `folder`; raises `ModelError` for kinds that are not supported."""
    try:
        name = json.loads((folder / "model_index.json").read_bytes())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{shown_name(folder)}: model_index.json can't be read ({said_plainly(error, folder)}).",
            what_helps(folder, error),
        ) from None
    for family in FAMILIES:
        if family.pipeline.__name__ == name:
            return family
    raise ModelError(
        f"{shown_name(folder)} is a {name}.", f"Supported: {', '.join(f.pipeline.__name__ for f in FAMILIES)}."
    )
