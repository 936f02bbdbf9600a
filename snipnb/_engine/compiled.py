"""Which modules of compiled code there are: none without Numba, which a GPU does not need."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


@cache
def compiled_module(name: str) -> Any:
    """The module of this name next to this one, or None if Numba is missing: everything works without it, only slower."""
    try:
        return import_module(f"snipnb._engine.{name}")
    except ImportError:
        return None


def runs_compiled(name: str, x: Tensor) -> bool:
    """Whether the module of this name is there, and takes numbers like these."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and compiled_module(name) is not None
