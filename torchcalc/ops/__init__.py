"""Derivatives, vmap rules and fake kernels of torch.ops.torchcalc (private)."""

import torch

from torchcalc.ops import act, dropout, gate, gated, linear_act, mlp, optim, prox
from torchcalc.ops._library import NATIVE

__all__ = ["act", "dropout", "gate", "gated", "is_native", "linear_act", "mlp", "optim", "prox"]


def is_native(device: torch.device) -> bool:
    """Whether there are kernels for it; elsewhere the ops run ``torchcalc.reference``."""
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.init()  # type: ignore[no-untyped-call] # loads them
    return device.type in NATIVE
