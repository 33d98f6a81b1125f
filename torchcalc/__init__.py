"""The calculus of training as fused, differentiable PyTorch kernels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torchcalc import functional, nn, optim, prox
from torchcalc._version import __version__

if TYPE_CHECKING:
    from torchcalc.fusion import fuse, unfuse

__all__ = ["__version__", "functional", "fuse", "nn", "optim", "prox", "unfuse"]


def __getattr__(name: str) -> Any:
    # What takes long to import, for those who use it.
    if name in ("distributed", "sparsity"):
        return importlib.import_module(f"torchcalc.{name}")
    if name in ("fuse", "unfuse"):
        return getattr(importlib.import_module("torchcalc.fusion"), name)
    raise AttributeError(f"module 'torchcalc' has no attribute {name!r}")
