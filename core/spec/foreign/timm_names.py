"""Names and notations of timm that several projects share."""

from __future__ import annotations

import re

from triport.core.errors import UserError
from triport.core.spec.foreign.settings import Settings
from triport.core.spec.spec import RandAugment


def rand_augment(s: Settings, key: str) -> RandAugment:
    """RandAugment as timm writes it: `rand-m9-mstd0.5-inc1`."""
    text = str(s.take(key))
    found = re.fullmatch(r"rand-m(\d+(?:\.\d+)?)(?:-n(\d+))?-mstd(\d+(?:\.\d+)?)-inc1", text)
    if not found:
        raise UserError(f"{s.path}: {key} is '{text}'; here it is of the form rand-m9-mstd0.5-inc1")
    return RandAugment(magnitude=float(found[1]), operations=int(found[2] or 2), deviation=float(found[3]))
