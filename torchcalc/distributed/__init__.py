"""Tensor parallelism: torch's styles, for torchcalc's layers."""

from torchcalc.distributed._styles import ColwiseParallel, RowwiseParallel

__all__ = ["ColwiseParallel", "RowwiseParallel"]
