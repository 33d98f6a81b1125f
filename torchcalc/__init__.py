"""The calculus of training as fused, differentiable PyTorch kernels."""

from __future__ import annotations

import importlib
from types import ModuleType

from torchcalc import functional, nn, optim, prox
from torchcalc._version import __version__
from torchcalc.fusion import fuse, unfuse

__all__ = ["__version__", "functional", "fuse", "nn", "optim", "prox", "unfuse"]


def __getattr__(name: str) -> ModuleType:
    if name == "distributed":  # which imports torch.distributed.tensor: for those who use it
        return importlib.import_module("torchcalc.distributed")
    raise AttributeError(f"module 'torchcalc' has no attribute {name!r}")
