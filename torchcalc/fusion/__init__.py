"""fuse(model): the model's own modules compute with fused ops, and nothing else changes."""

from torchcalc.fusion._fuse import fuse, unfuse
from torchcalc.fusion._report import Fusion, Left, Report

__all__ = ["Fusion", "Left", "Report", "fuse", "unfuse"]
