"""Thin modules over ``torchcalc.functional``."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc._check import check_number, dropout_threshold
from torchcalc.ops.linear_act import ACTIVATIONS


class LinearAct(torch.nn.Module):
    r"""y = residual + dropout(f(x W^T + b)): ``torch.nn.Linear`` with a fused epilogue.

    Parameters, attributes, initialisation and the ``state_dict`` are nn.Linear's. It is no instance
    of nn.Linear: what merges or replaces linear layers would take it for one without an activation.
    See :func:`torchcalc.functional.linear_act` for shapes and errors.

    Args:
        in_features, out_features, bias, device, dtype: as for ``torch.nn.Linear``.
        activation: "identity", "relu", "gelu", "gelu_tanh", "silu", "tanh" or "sigmoid".
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
        activation: str = "gelu",
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"LinearAct: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
            )
        dropout_threshold("LinearAct", "dropout_p", dropout_p)
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
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


class Dropout(torch.nn.Module):
    r"""y_i = x_i / (1 - p) where element i is kept, else 0; the identity in eval mode.

    See :func:`torchcalc.functional.dropout`.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        dropout_threshold("Dropout", "p", p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class SoftThreshold(torch.nn.Module):
    r"""S(x, lam) = sign(x) max(|x| - lam, 0).

    See :func:`torchcalc.functional.soft_threshold`.

    Args:
        lam: a float >= 0; a tensor, which becomes a buffer; or an ``nn.Parameter``, learned.
    """

    lam: Tensor | float

    def __init__(self, lam: Tensor | float = 0.5) -> None:
        super().__init__()
        if isinstance(lam, torch.nn.Parameter):
            self.lam = lam
        elif isinstance(lam, Tensor):
            self.register_buffer("lam", lam)
        else:
            self.lam = check_number("SoftThreshold", "lam", lam)

    def forward(self, x: Tensor) -> Tensor:
        return functional.soft_threshold(x, self.lam)

    def extra_repr(self) -> str:
        return f"lam={tuple(self.lam.shape) if isinstance(self.lam, Tensor) else self.lam}"
