"""Gated linear units in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from torchcalc.reference.activations import apply
from torchcalc.reference.dropout import dropout


def gated_linear(
    x: Tensor,
    weight: Tensor,
    weight_value: Tensor | None,
    bias: Tensor | None,
    bias_value: Tensor | None,
    activation: Any,
    seed: Tensor | None = None,
    threshold: int = 0,
    *mask: Any,
) -> Tensor:
    """y = dropout(f(x Wg^T + bg) * (x Wv^T + bv)).  x [*, K]; weight [2 N, K] = [Wg; Wv] and bias
    [2 N], or weight, weight_value [N, K] and bias, bias_value [N]."""
    if weight_value is None:
        gate, value = F.linear(x, weight, bias).chunk(2, -1)
    else:
        gate, value = F.linear(x, weight, bias), F.linear(x, weight_value, bias_value)
    y = apply(gate, activation) * value
    if seed is not None and threshold:
        return dropout(y, None, seed, threshold, *mask)
    return y
