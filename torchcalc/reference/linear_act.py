"""Linear + activation + dropout + residual in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from torchcalc.reference.activations import apply
from torchcalc.reference.dropout import dropout


def act(
    z: Tensor,
    activation: Any,
    residual: Tensor | None = None,
    seed: Tensor | None = None,
    threshold: int = 0,
    *mask: Any,
) -> Tensor:
    """y = residual + dropout(f(z))."""
    y = apply(z, activation)
    if seed is not None and threshold:
        return dropout(y, residual, seed, threshold, *mask)
    return y if residual is None else residual + y


def linear_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Any,
    residual: Tensor | None = None,
    seed: Tensor | None = None,
    threshold: int = 0,
    *mask: Any,
) -> Tensor:
    """y = residual + dropout(f(x W^T + b)).  x [*, K], weight [N, K], bias [N], residual [*, N]."""
    return act(F.linear(x, weight, bias), activation, residual, seed, threshold, *mask)
