"""Gated linear units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from torchcalc import _check
from torchcalc._check import autocast_dtype, check_seed, check_shard, dropout_threshold, is_sharded
from torchcalc.functional import _sharded
from torchcalc.functional._autocast import cast
from torchcalc.functional._common import Shard, no_shard, seed_tensor
from torchcalc.ops import gated as op
from torchcalc.ops.activations import Activation, resolve

Pair = tuple[Tensor, Tensor] | list[Tensor]


def _pair(name: str, given: Any) -> tuple[Any, Any]:
    """The one tensor and None, or the gate's and the value's."""
    if not isinstance(given, tuple | list):
        return given, None
    if len(given) != 2 or not all(hasattr(t, "__torch_function__") for t in given):
        raise TypeError(
            f"gated_linear: {name} must be a Tensor or a pair of Tensors, the gate's and the "
            f"value's, got a {type(given).__name__} of {[type(t).__name__ for t in given]}"
        )
    return given[0], given[1]


def _as_weights(weight_value: Any, bias: Any, bias_value: Any) -> tuple[Any, Any]:
    """A bias, or a pair of them, the other way: as the weights are given."""
    if weight_value is None:
        return torch.cat([bias, bias_value]), None
    gate, value = bias.chunk(2)
    return gate, value


def gated_linear(
    x: Tensor,
    weight: Tensor | Pair,
    bias: Tensor | Pair | None = None,
    activation: str | torch.nn.Module | Activation = "silu",
    *,
    dropout_p: float = 0.0,
    training: bool = True,
    seed: Tensor | int | None = None,
    shard: Shard | None = None,
) -> Tensor:
    r"""y = dropout(f(x Wg^T + bg) * (x Wv^T + bv)): the gated linear unit behind its GEMM.

    By activation: "sigmoid" is GLU, "relu" ReGLU, "gelu" GEGLU, "silu" SwiGLU, "identity" the
    bilinear layer. Kept for backward are x and the pre-activations, [*, 2 out_features]; backward
    is one fused pass that gives both gradients and both bias gradients, then the GEMMs.

    Args:
        x: [*, in_features].
        weight: [2 out_features, in_features], the rows of the gate Wg first; or the pair Wg, Wv of
            [out_features, in_features]. In x's dtype and on its device, as are all others.
        bias: [2 out_features], or the pair bg, bv of [out_features], or None.
        activation: f, as for :func:`linear_act`.
        dropout_p: probability of dropping an element of y, in [0, 1].
        training: dropout is the identity unless True.
        seed: of the mask, which is that of a tensor of y's shape, see :func:`dropout`; ignored
            where nothing is dropped.
        shard: (shape, offset) of the output's place in a tensor, as for :func:`linear_act`.

    Returns:
        [*, out_features], contiguous, in x's dtype; under torch.autocast as :func:`linear_act`.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: a wrong shape, device, activation or probability.

    ``torch.nn.functional.glu`` has the value first and the gate behind it.

    Source: Dauphin et al., "Language modeling with gated convolutional networks", 2017 (GLU);
    Shazeer, "GLU variants improve transformer", 2020.
    """
    gate, value = _pair("weight", weight)
    bias_gate, bias_value = _pair("bias", bias)
    given = [t for t in (x, gate, value, bias_gate, bias_value) if t is not None]
    if has_torch_function_variadic(*given):
        result: Tensor = handle_torch_function(
            gated_linear,
            given,
            x,
            weight,
            bias,
            activation,
            dropout_p=dropout_p,
            training=training,
            seed=seed,
            shard=shard,
        )
        return result
    if type(x) is not Tensor and is_sharded(x):
        p = dropout_p if training else 0.0
        _sharded.expect_all("gated_linear", weight=gate, bias=bias_gate)
        _sharded.expect_all("gated_linear", weight=value, bias=bias_value)
        if autocast_dtype(x.device) is None:
            _check.gated_linear(x, gate, value, bias_gate, bias_value, None)
        return _gated_linear_of_shards(
            x,
            [gate, value],
            [bias_gate, bias_value],
            resolve("gated_linear", activation),
            p,
            seed,
            shard,
        )
    tensors = x, gate, value, bias_gate, bias_value
    if torch._C._is_any_autocast_enabled():
        dtype = autocast_dtype(x.device) if isinstance(x, Tensor) else None
        if dtype is not None:
            tensors = tuple(cast(t, dtype) for t in tensors)  # type: ignore[assignment]
    threshold = 0
    if not (type(dropout_p) is float and dropout_p == 0.0):
        threshold = dropout_threshold("gated_linear", "dropout_p", dropout_p)
        if not training:
            threshold = 0
    try:
        if gate.dim() != 2:  # the op takes batches of them, for vmap
            raise ValueError
        _, code, a, b = resolve("gated_linear", activation)
        if bias is not None and (value is None) != (bias_value is None):
            _check.gated_linear(*tensors, None)
            tensors = *tensors[:3], *_as_weights(*tensors[2:])
        drawn = seed_tensor("gated_linear", seed, x) if threshold else None
        block = None
        if shard is not None:
            features = gate.shape[0] // (2 if value is None else 1)
            block = check_shard("gated_linear", shard, (*x.shape[:-1], features))
        y: Tensor = op.gated_linear(*tensors, drawn, code, a, b, threshold, 1, block)
    except Exception:
        _check.gated_linear(*tensors, None)
        if threshold and isinstance(seed, Tensor):
            check_seed("gated_linear", seed, x.device)
        raise
    return y


def _gated_linear_of_shards(
    x: Tensor,
    weights: list[Tensor | None],
    biases: list[Tensor | None],
    activation: Activation,
    p: float,
    seed: Tensor | int | None,
    shard: Shard | None,
) -> Tensor:
    name = "gated_linear"
    no_shard(name, shard)
    (weight, weight_value), (bias, bias_value) = weights, biases
    if bias is not None and (weight_value is None) != (bias_value is None):
        _check.gated_linear(x, weight, weight_value, bias, bias_value, None)
        biases = list(_as_weights(weight_value, bias, bias_value))

    def one_or_pair(tensors: list[Tensor]) -> Any:
        return tensors[0] if len(tensors) == 1 else tensors or None

    def call(x: Tensor, weights: list[Tensor], biases: list[Tensor], **mask: Any) -> Tensor:
        weight, bias = one_or_pair(weights), one_or_pair(biases)
        return gated_linear(x, weight, bias, activation, dropout_p=p, **mask)

    return _sharded.gated_linear(
        call,
        x,
        [w for w in weights if w is not None],
        [b for b in biases if b is not None],
        _sharded.local_seed(name, seed, x, dropout_threshold(name, "dropout_p", p) > 0),
    )
