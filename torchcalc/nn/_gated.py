"""A gated linear unit with its dropout."""

import math

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc.nn._layer import _Layer
from torchcalc.ops.activations import Activation


class GatedLinear(_Layer):
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
        super().__init__(
            in_features, out_features, bias, activation, dropout_p, device, dtype, halves=2
        )

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
