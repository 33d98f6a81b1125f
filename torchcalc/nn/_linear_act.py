"""A linear layer with its activation and dropout."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc._check import check_features, dropout_threshold
from torchcalc.ops.activations import Activation, resolve


class LinearAct(torch.nn.Module):
    r"""y = residual + dropout(f(x W^T + b)): ``torch.nn.Linear`` with a fused epilogue.

    Parameters, attributes, initialisation and the ``state_dict`` are nn.Linear's. It is no instance
    of nn.Linear: what merges or replaces linear layers would take it for one without an activation.
    See :func:`torchcalc.functional.linear_act` for shapes and errors.

    Args:
        in_features, out_features, bias, device, dtype: as for ``torch.nn.Linear``.
        activation: a name or one of torch.nn's activation modules, see
            :func:`torchcalc.functional.linear_act`.
        dropout_p: probability of dropping an element while training.

    Example:
        >>> layer = torchcalc.nn.LinearAct(64, 256, activation="gelu", dropout_p=0.1)
        >>> layer(torch.randn(8, 64)).shape
        torch.Size([8, 256])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | torch.nn.Module | Activation = "gelu",
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        resolved = resolve("LinearAct", activation)
        dropout_threshold("LinearAct", "dropout_p", dropout_p)
        check_features("LinearAct", "in_features", in_features)
        check_features("LinearAct", "out_features", out_features)
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation if isinstance(activation, str) else resolved
        self.dropout_p = dropout_p
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.weight = torch.nn.Parameter(empty(out_features, in_features))
        self.bias: torch.nn.Parameter | None
        self.register_parameter("bias", torch.nn.Parameter(empty(out_features)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises weight and bias as ``torch.nn.Linear`` does."""
        torch.nn.Linear.reset_parameters(self)  # type: ignore[arg-type]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return functional.linear_act(
            x,
            self.weight,
            self.bias,
            self.activation,
            dropout_p=self.dropout_p,
            training=self.training,
            residual=residual,
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation={self.activation!r}, "
            f"dropout_p={self.dropout_p}"
        )
