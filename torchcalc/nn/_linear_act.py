"""A linear layer with its activation and dropout."""

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc.nn._layer import _Layer
from torchcalc.ops.activations import Activation


class LinearAct(_Layer):
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
        super().__init__(
            in_features, out_features, bias, activation, dropout_p, device, dtype, halves=1
        )

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
