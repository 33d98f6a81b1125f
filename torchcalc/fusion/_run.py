"""What a fused forward calls: layers as modules, dropouts as modules or as p and training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchcalc import functional
from torchcalc.fusion._modules import DROPOUTS, FLOATS

Layer = Any  # nn.Linear or transformers' Conv1D
# nn.Dropout, or the arguments p and training of nn.functional.dropout.
Drop = nn.Module | tuple[float, Any] | None


def _p(drop: Drop) -> float:
    """The probability of dropping an element in this call."""
    if drop is None:
        return 0.0
    if type(drop) is tuple:
        p, training = drop
        return p if training else 0.0
    return drop.p if drop.training else 0.0  # type: ignore[union-attr, return-value]


def weight_of(layer: Layer) -> Tensor:
    """[out, in]; a view, of GPT-2's layers."""
    weight: Tensor = layer.weight
    return weight if isinstance(layer, nn.Linear) else weight.t()


def _fits(residual: Any, x: Tensor, layer: Layer) -> bool:
    """Whether the kernel can add it: it is of the layer's output's shape and dtype."""
    weight: Tensor = layer.weight
    return (
        isinstance(residual, Tensor)
        and (residual.dtype == weight.dtype or torch._C._is_any_autocast_enabled())
        and residual.shape[:-1] == x.shape[:-1]
        and residual.dim() > 0
        and residual.shape[-1] == weight.shape[0 if isinstance(layer, nn.Linear) else 1]
    )


def linear_act(
    layer: Layer, activation: Any, drop: Drop, *, x: Tensor, residual: Any = None
) -> Tensor:
    """residual + dropout(activation(layer(x)))."""
    added = residual if residual is not None and _fits(residual, x, layer) else None
    y = functional.linear_act(
        x,
        weight_of(layer),
        layer.bias,
        activation,
        dropout_p=_p(drop),
        residual=added,
    )
    return y if residual is added else residual + y


def gated(gate: Layer, value: Layer, activation: Any, drop: Drop, *, x: Tensor) -> Tensor:
    """dropout(activation(gate(x)) * value(x))."""
    biases = None if gate.bias is None else (gate.bias, value.bias)
    return functional.gated_linear(
        x,
        (weight_of(gate), weight_of(value)),
        biases,
        activation,
        dropout_p=_p(drop),
    )


def mlp(
    first: Layer,
    activation: Any,
    hidden_drop: Drop,
    second: Layer,
    drop: Drop,
    *,
    x: Tensor,
    residual: Any = None,
) -> Tensor:
    """residual + dropout(second(dropout(activation(first(x)))))."""
    added = residual if residual is not None and _fits(residual, x, second) else None
    y = functional.mlp(
        x,
        weight_of(first),
        first.bias,
        weight_of(second),
        second.bias,
        activation,
        hidden_dropout_p=_p(hidden_drop),
        dropout_p=_p(drop),
        residual=added,
    )
    return y if residual is added else residual + y


def dropout_add(drop: Drop, *, x: Any, residual: Any) -> Any:
    """residual + dropout(x)."""
    p = _p(drop)
    same = isinstance(x, Tensor) and isinstance(residual, Tensor)
    if p == 0 or not (same and x.shape == residual.shape and x.dtype == residual.dtype in FLOATS):
        return residual + dropout(x, p)
    return functional.dropout_add(x, residual, p)


def dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """As torch.nn.functional.dropout, whose turn it is where nothing is dropped."""
    if not training or p == 0 or not isinstance(x, Tensor) or x.dtype not in FLOATS:
        return torch.nn.functional.dropout(x, p, training, inplace)
    return functional.dropout(x, p, True, inplace)


def _forward_of(kind: str) -> Callable[..., Any]:
    fused, plain = getattr(functional, kind), getattr(torch.nn.functional, kind)

    def forward(module: Any, input: Any) -> Any:
        # In all other cases nothing is dropped, or PyTorch says what is wrong.
        drops = module.training and module.p != 0
        of_ours = isinstance(input, Tensor) and input.dtype in FLOATS
        function = fused if drops and of_ours else plain
        return function(input, module.p, module.training, module.inplace)

    return forward


# What dropout modules compute, by the name of the function.
DROPOUT_FORWARDS = {kind: _forward_of(kind) for kind in DROPOUTS.values()}
