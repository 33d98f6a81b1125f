"""The MLP block: two linear layers with an activation between them."""

import math
from functools import partial

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc._check import check_features, check_flag, dropout_threshold
from torchcalc.ops.activations import Activation, resolve


class MLP(torch.nn.Module):
    r"""y = residual + dropout(h W2^T + b2), h = dropout(f(x W1^T + b1)).

    With ``gated``, h = dropout(f(x Wg^T + bg) * (x Wv^T + bv)), W1 = [Wg; Wv]. Initialised as two
    ``torch.nn.Linear`` are (three where it is gated). See :func:`torchcalc.functional.mlp` for
    shapes, masks and errors.

    Args:
        in_features, hidden_features: sizes.
        out_features: in_features where it is None.
        activation: a name or one of torch.nn's activation modules.
        gated: whether the hidden layer is a gated linear unit.
        bias: whether the layers have biases.
        hidden_dropout_p, dropout_p: probabilities of dropping an element of h, of the output.
        device, dtype: as for ``torch.nn.Linear``.

    Attributes:
        weight1: [hidden_features, in_features]; gated, [2 hidden_features, in_features].
        bias1: [hidden_features] or [2 hidden_features], or None.
        weight2: [out_features, hidden_features].
        bias2: [out_features] or None.

    Example:
        >>> block = torchcalc.nn.MLP(64, 256, hidden_dropout_p=0.1, dropout_p=0.1)
        >>> x = torch.randn(8, 64)
        >>> block(x, residual=x).shape
        torch.Size([8, 64])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        activation: str | torch.nn.Module | Activation = "gelu",
        *,
        gated: bool = False,
        bias: bool = True,
        hidden_dropout_p: float = 0.0,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        resolved = resolve("MLP", activation)
        dropout_threshold("MLP", "hidden_dropout_p", hidden_dropout_p)
        dropout_threshold("MLP", "dropout_p", dropout_p)
        out_features = in_features if out_features is None else out_features
        check_features("MLP", "in_features", in_features)
        check_features("MLP", "hidden_features", hidden_features)
        check_features("MLP", "out_features", out_features)
        check_flag("MLP", "gated", gated)
        super().__init__()
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.out_features = out_features
        self.activation = activation if isinstance(activation, str) else resolved
        self.gated = gated
        self.hidden_dropout_p = hidden_dropout_p
        self.dropout_p = dropout_p
        empty = partial(torch.empty, device=device, dtype=dtype)
        rows = hidden_features * (2 if gated else 1)
        sizes = {
            "weight1": (rows, in_features),
            "bias1": (rows,),
            "weight2": (self.out_features, hidden_features),
            "bias2": (self.out_features,),
        }
        for name, size in sizes.items():
            given = bias or name.startswith("weight")
            self.register_parameter(name, torch.nn.Parameter(empty(size)) if given else None)
        self.reset_parameters()

    weight1: torch.nn.Parameter
    bias1: torch.nn.Parameter | None
    weight2: torch.nn.Parameter
    bias2: torch.nn.Parameter | None

    def reset_parameters(self) -> None:
        """Initialises weights and biases as ``torch.nn.Linear`` does."""
        for weight, bias in ((self.weight1, self.bias1), (self.weight2, self.bias2)):
            torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            if bias is not None:
                bound = 1 / math.sqrt(weight.shape[1]) if weight.shape[1] > 0 else 0
                torch.nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return functional.mlp(
            x,
            self.weight1,
            self.bias1,
            self.weight2,
            self.bias2,
            self.activation,
            gated=self.gated,
            hidden_dropout_p=self.hidden_dropout_p,
            dropout_p=self.dropout_p,
            training=self.training,
            residual=residual,
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, hidden_features={self.hidden_features}, "
            f"out_features={self.out_features}, activation={self.activation!r}, "
            f"gated={self.gated}, bias={self.bias1 is not None}, "
            f"hidden_dropout_p={self.hidden_dropout_p}, dropout_p={self.dropout_p}"
        )
