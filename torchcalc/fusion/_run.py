"""What a fused forward calls: layers as modules, dropouts as modules or as p and training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcalc import functional
from torchcalc._check import FLOATING
from torchcalc.fusion._modules import DROPOUTS
from torchcalc.fusion._swap import FEW
from torchcalc.reference import activations as reference

Layer = Any  # nn.Linear or transformers' Conv1D
# nn.Dropout, or the arguments p and training of nn.functional.dropout.
Drop = Any


def _p(drop: Drop) -> float:
    """The probability of dropping an element in this call."""
    if drop is None:
        return 0.0
    p, training = drop if type(drop) is tuple else (drop.p, drop.training)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return float(p) if training else 0.0


def weight_of(layer: Layer) -> Tensor:
    """[out, in]; a view, of GPT-2's layers."""
    weight: Tensor = layer.weight
    return weight if isinstance(layer, nn.Linear) else weight.t()


_NO = object()  # there is no residual


def _added(before: Any, after: Any, x: Any, layer: Layer) -> Tensor | None:
    """The residual, if the kernel can add it: one of the shape and dtype of the output."""
    residual = after if before is _NO else before
    if not isinstance(residual, Tensor) or residual.dim() == 0:
        return None
    weight = layer.weight
    fits = (
        (residual.dtype == weight.dtype or torch._C._is_any_autocast_enabled())
        and residual.shape[:-1] == x.shape[:-1]
        and residual.shape[-1] == weight.shape[0 if isinstance(layer, nn.Linear) else 1]
        and residual.is_contiguous()  # else the sum would get other strides
    )
    return residual if fits else None


def _sum(before: Any, y: Any, after: Any, added: Tensor | None) -> Any:
    """before + y, or y + after, unless that is in y."""
    if added is not None:
        return y
    if before is not _NO:
        return before + y
    return y if after is _NO else y + after


def _plain(activation: Any, drop: Drop, z: Tensor) -> Tensor:
    """dropout(activation(z)) by PyTorch."""
    if isinstance(activation, str):
        parameters = reference.DEFAULTS.get(activation, ())
        y = reference.ACTIVATIONS[activation](z, *parameters)
    else:
        y = activation(z)
    p = _p(drop)
    return F.dropout(y, p) if p else y


def linear_act(
    layer: Layer, activation: Any, drop: Drop, *, before: Any = _NO, x: Any, after: Any = _NO
) -> Any:
    """before + dropout(activation(layer(x))) + after."""
    added = _added(before, after, x, layer)
    try:
        y = functional.linear_act(
            x, weight_of(layer), layer.bias, activation, dropout_p=_p(drop), residual=added
        )
    except (TypeError, ValueError):  # which is PyTorch's to raise, if it does
        added, y = None, _plain(activation, drop, layer(x))
    return _sum(before, y, after, added)


def gated(gate: Layer, value: Layer, activation: Any, drop: Drop, *, x: Any) -> Any:
    """dropout(activation(gate(x)) * value(x))."""
    biases = [layer.bias for layer in (gate, value)]
    if any(bias is None for bias in biases) and any(bias is not None for bias in biases):
        given = biases[0] if biases[1] is None else biases[1]
        biases = [torch.zeros_like(given) if bias is None else bias for bias in biases]
    try:
        return functional.gated_linear(
            x,
            (weight_of(gate), weight_of(value)),
            None if biases[0] is None else biases,
            activation,
            dropout_p=_p(drop),
        )
    except (TypeError, ValueError):
        return _plain("identity", drop, _plain(activation, None, gate(x)) * value(x))


def mlp(
    first: Layer,
    activation: Any,
    hidden_drop: Drop,
    second: Layer,
    drop: Drop,
    *,
    before: Any = _NO,
    x: Any,
    after: Any = _NO,
) -> Any:
    """before + dropout(second(dropout(activation(first(x))))) + after."""
    added = _added(before, after, x, second)
    try:
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
    except (TypeError, ValueError):
        hidden = _plain(activation, hidden_drop, first(x))
        added, y = None, _plain("identity", drop, second(hidden))
    return _sum(before, y, after, added)


def dropout(drop: Drop, *, x: Any) -> Any:
    """As torch.nn.functional.dropout, whose turn it is where nothing is dropped."""
    assert type(drop) is tuple
    p, training = drop
    function = functional.dropout if training and p != 0 and _pays(x) else F.dropout
    return function(x, p, training)


def dropout_add(drop: Drop, *, before: Any = _NO, x: Any, after: Any = _NO) -> Any:
    """before + dropout(x) + after."""
    p = _p(drop)
    residual = after if before is _NO else before
    if p == 0:
        return _sum(before, x, after, None)
    same = isinstance(x, Tensor) and isinstance(residual, Tensor)
    alike = same and x.shape == residual.shape and x.dtype == residual.dtype
    if alike and _pays(x) and residual.is_contiguous():
        return functional.dropout_add(x, residual, p)
    return _sum(before, dropout((p, True), x=x), after, None)


def _pays(x: Any) -> bool:
    """Whether a fused dropout of x is no slower than PyTorch's, and its result like x."""
    if not isinstance(x, Tensor) or x.dtype not in FLOATING or not x.is_contiguous():
        return False
    # Where it is compiled, a call costs nothing.
    return torch.compiler.is_compiling() or x.numel() >= FEW[True]


def _forward_of(kind: str) -> Callable[..., Any]:
    fused, plain = getattr(functional, kind), getattr(F, kind)

    def forward(module: Any, input: Any) -> Any:
        # In all other cases nothing is dropped, or PyTorch says what is wrong.
        function = fused if module.training and module.p != 0 and _pays(input) else plain
        return function(input, module.p, module.training, module.inplace)

    return forward


# What dropout modules compute, by the name of the function.
DROPOUT_FORWARDS = {kind: _forward_of(kind) for kind in DROPOUTS.values()}
