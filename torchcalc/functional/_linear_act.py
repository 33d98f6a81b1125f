"""Linear + activation + dropout."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from torchcalc import _check
from torchcalc._check import (
    autocast_dtype,
    check_seed,
    check_shape,
    check_shard,
    dropout_threshold,
    is_sharded,
)
from torchcalc.functional import _sharded
from torchcalc.functional._autocast import cast
from torchcalc.functional._common import Shard, no_shard, overridden, seed_tensor
from torchcalc.ops import linear_act as op
from torchcalc.ops.act import act
from torchcalc.ops.activations import Activation, resolve


def linear_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | torch.nn.Module | Activation = "gelu",
    *,
    dropout_p: float = 0.0,
    training: bool = True,
    seed: Tensor | int | None = None,
    residual: Tensor | None = None,
    shard: Shard | None = None,
) -> Tensor:
    r"""y = residual + dropout(f(x W^T + b)), with one fused epilogue behind the GEMM.

    Backward is one fused pass that gives dz and the bias gradient, then two GEMMs. Kept for it is
    as little as tells f', and never the mask: where y does, nothing but y (relu, leaky_relu, elu,
    celu, selu, softplus, sigmoid, tanh, softsign; without dropout relu6, hardtanh and hardsigmoid,
    too); where f' has two values and y does not tell which (those three with dropout; relu,
    leaky_relu with a residual or a slope <= 0), one bit an element; where a residual is added to
    others of them, a = f(z); else the pre-activation z = x W^T + b.

    Args:
        x: [*, in_features].
        weight: [out_features, in_features], in x's dtype and on its device, as are all others.
        bias: [out_features] or None.
        activation: a name, which means torch's defaults: "identity", "relu", "relu6",
            "leaky_relu", "relu_squared" (relu(z)^2), "elu", "celu", "selu", "gelu" (exact, erf),
            "gelu_tanh", "quick_gelu" (z sigmoid(1.702 z)), "silu", "mish", "softplus", "sigmoid",
            "tanh", "hardswish", "hardsigmoid", "hardtanh", "softsign"; or the module of torch.nn
            that has that function, whose parameters it takes, as ``nn.LeakyReLU(0.2)``.
        dropout_p: probability of dropping an element, in [0, 1].
        training: dropout is the identity unless True.
        seed: of the dropout mask, see :func:`dropout`; ignored where nothing is dropped.
        residual: [*, out_features], added last.
        shard: (shape, offset), where the output is the block at ``offset`` of a tensor of
            ``shape``, whose mask it is to get its part of; as for :func:`dropout`.

    Returns:
        [*, out_features], contiguous, in x's dtype. Where y is kept for backward it must not be
        changed in place before that, as torch.relu's. Under torch.autocast inputs are cast as for
        ``torch.nn.functional.linear``, and a residual of another dtype is added as PyTorch would.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: a wrong shape, device, activation or probability.

    Source: Hendrycks & Gimpel, "Gaussian error linear units", 2016; Elfwing et al.,
    "Sigmoid-weighted linear units", 2017 (silu); Clevert et al., 2015 (elu); Barron, 2017 (celu);
    Klambauer et al., 2017 (selu); Misra, 2019 (mish); So et al., "Primer", 2021 (relu_squared);
    Howard et al., 2019 (hardswish).
    """
    if has_torch_function_variadic(x, weight, bias, residual):
        return overridden(
            linear_act,
            x,
            weight,
            bias,
            activation,
            dropout_p=dropout_p,
            training=training,
            seed=seed,
            residual=residual,
            shard=shard,
        )
    if type(x) is not Tensor and is_sharded(x):
        p = dropout_p if training else 0.0
        _sharded.expect_all("linear_act", weight=weight, bias=bias, residual=residual)
        if autocast_dtype(x.device) is None:
            _check.linear_act(x, weight, bias, residual, None)
        if p != 0 or _sharded.sums(x, weight):
            return _linear_act_of_shards(
                x, weight, bias, resolve("linear_act", activation), p, seed, residual, shard
            )
    if torch._C._is_any_autocast_enabled():
        dtype = autocast_dtype(x.device) if isinstance(x, Tensor) else None
        if dtype is not None:
            if isinstance(residual, Tensor) and residual.dtype != dtype:
                added = linear_act(
                    x,
                    weight,
                    bias,
                    activation,
                    dropout_p=dropout_p,
                    training=training,
                    seed=seed,
                    shard=shard,
                )
                check_shape("linear_act", "residual", residual, tuple(added.shape), "the output's")
                return residual + added
            x, weight, bias = (cast(t, dtype) for t in (x, weight, bias))  # type: ignore[assignment]
    threshold = 0
    if not (type(dropout_p) is float and dropout_p == 0.0):
        threshold = dropout_threshold("linear_act", "dropout_p", dropout_p)
        if not training:
            threshold = 0
    try:
        if weight.dim() != 2:  # the op takes batches of them, for vmap
            raise ValueError
        _, code, a, b = resolve("linear_act", activation)
        drawn = seed_tensor("linear_act", seed, x) if threshold else None
        block = None
        if shard is not None:
            block = check_shard("linear_act", shard, (*x.shape[:-1], weight.shape[0]))
        y: Tensor = op.linear_act(x, weight, bias, residual, drawn, code, a, b, threshold, 1, block)
    except Exception:
        _check.linear_act(x, weight, bias, residual, None)
        if threshold and isinstance(seed, Tensor):
            check_seed("linear_act", seed, x.device)
        raise
    return y


def _linear_act_of_shards(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    p: float,
    seed: Tensor | int | None,
    residual: Tensor | None,
    shard: Shard | None,
) -> Tensor:
    name = "linear_act"
    no_shard(name, shard)

    def call(
        x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, **mask: Any
    ) -> Tensor:
        return linear_act(x, weight, bias, activation, dropout_p=p, residual=residual, **mask)

    after_sum = partial(act_of_shard, "linear_act", activation, p)
    drawn = _sharded.local_seed("linear_act", seed, x, dropout_threshold(name, "dropout_p", p) > 0)
    return _sharded.linear_act(call, after_sum, x, weight, bias, residual, drawn)


def act_of_shard(
    op_name: str,
    activation: Activation,
    p: float,
    z: Tensor,
    residual: Tensor | None,
    *,
    seed: Tensor | int | None,
    shard: Shard | None,
) -> Tensor:
    """residual + dropout(f(z)), of what ranks have summed."""
    threshold = dropout_threshold(op_name, "dropout_p", p)
    if residual is not None and residual.dtype != z.dtype:  # under autocast
        return residual + act_of_shard(op_name, activation, p, z, None, seed=seed, shard=shard)
    drawn = seed_tensor(op_name, seed, z) if threshold else None
    block = None if shard is None else check_shard(op_name, shard, z.shape)
    y: Tensor = act(z, residual, drawn, *activation[1:], threshold, 1, block)
    return y
