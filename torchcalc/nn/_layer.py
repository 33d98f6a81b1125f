"""What LinearAct and GatedLinear share."""

from __future__ import annotations

import torch

from torchcalc._check import check_features, dropout_threshold
from torchcalc.ops.activations import Activation, resolve


class _Layer(torch.nn.Module):
    """One weight of ``halves`` times out_features rows and its bias, an activation, a dropout."""

    bias: torch.nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        activation: str | torch.nn.Module | Activation,
        dropout_p: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        halves: int,
    ) -> None:
        name = type(self).__name__
        resolved = resolve(name, activation)
        dropout_threshold(name, "dropout_p", dropout_p)
        check_features(name, "in_features", in_features)
        check_features(name, "out_features", out_features)
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation if isinstance(activation, str) else resolved
        self.dropout_p = dropout_p
        rows = halves * out_features
        weight = torch.empty(rows, in_features, device=device, dtype=dtype)
        self.weight = torch.nn.Parameter(weight)
        row = torch.nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", row)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation={self.activation!r}, "
            f"dropout_p={self.dropout_p}"
        )
