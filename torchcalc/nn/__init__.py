"""torchcalc.functional as modules."""

from torchcalc.nn.modules import Dropout, LinearAct, SoftThreshold

__all__ = ["Dropout", "LinearAct", "SoftThreshold"]
