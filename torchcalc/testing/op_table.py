"""Each op once: how to call it, its reference in plain PyTorch, and samples of its input."""

from __future__ import annotations

from torchcalc.testing import _dropout, _gated, _linear_act, _mlp, _optim, _penalties, _prox
from torchcalc.testing._rows import MODES, Op, Sample

__all__ = ["MODES", "OPS", "Op", "Sample"]

OPS: list[Op] = [
    *_linear_act.OPS,
    *_gated.OPS,
    *_mlp.OPS,
    *_dropout.OPS,
    *_prox.OPS,
    *_penalties.OPS,
    *_optim.OPS,
]
