"""The check of what a patch encoder is given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from abbe.errors import InputError


def check_patches(name: str, patches: Any) -> NDArray[np.uint8]:
    """The patches as an array. Raises InputError unless they are uint8 [B, H, W, 3]; `name` opens the message."""
    array = np.asarray(patches)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise InputError(f"{name}: patches are {array.dtype} {array.shape}; they must be uint8 [B, H, W, 3]")
    return array
