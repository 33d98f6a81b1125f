"""A gated linear unit with its dropout."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc._check import check_features, dropout_threshold
from torchcalc.ops.activations import Activation, resolve


class GatedLinear(torch.nn.Module):
    r"""y = dropout(f(x Wg^T + bg) * (x Wv^T + bv)): GLU, ReGLU, GEGLU, SwiGLU, bilinear.

    See :func:`torchcalc.functional.gated_linear` for shapes and errors.

    Args:
        in_features, out_features: sizes; out_features is y's.
        bias: whether there are biases.
        activation: a name or one of torch.nn's activation modules.
        dropout_p: probability of dropping an element while training.
        device, dtype: as for ``torch.nn.Linear``.

    Attributes:
        weight: [2 out_features, in_features], Wg's rows first.
        bias: [2 out_features], bg first, or None.

    Each half is initialised as a ``torch.nn.Linear(in_features, out_features)`` is.

    Example:
        >>> layer = torchcalc.nn.GatedLinear(64, 256, activation="silu", dropout_p=0.1)
        >>> layer(torch.randn(8, 64)).shape
        torch.Size([8, 256])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | torch.nn.Module | Activation = "silu",
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        resolved = resolve("GatedLinear", activation)
        dropout_threshold("GatedLinear", "dropout_p", dropout_p)
        check_features("GatedLinear", "in_features", in_features)
        check_features("GatedLinear", "out_features", out_features)
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation if isinstance(activation, str) else resolved
        self.dropout_p = dropout_p
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.weight = torch.nn.Parameter(empty(2 * out_features, in_features))
        self.bias: torch.nn.Parameter | None
        bias_parameter = torch.nn.Parameter(empty(2 * out_features)) if bias else None
        self.register_parameter("bias", bias_parameter)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialises each half as ``torch.nn.Linear`` does."""
        n = self.out_features
        for half in (slice(None, n), slice(n, None)):
            torch.nn.init.kaiming_uniform_(self.weight[half], a=math.sqrt(5))
            if self.bias is not None:
                bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
                torch.nn.init.uniform_(self.bias[half], -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gated_linear(
            x,
            self.weight,
            self.bias,
            self.activation,
            dropout_p=self.dropout_p,
            training=self.training,
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation={self.activation!r}, "
            f"dropout_p={self.dropout_p}"
        )
