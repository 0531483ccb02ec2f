"""Units of length, so that a type checker sees where two of them meet."""

from __future__ import annotations

from typing import NewType

MPP = NewType("MPP", float)
"""micrometres per pixel"""
Micrometres = NewType("Micrometres", float)
Px0 = NewType("Px0", float)
"""pixels at level 0"""
