"""Two linear layers with an activation between them."""

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
from torchcalc.functional._linear_act import act_of_shard
from torchcalc.ops import mlp as op
from torchcalc.ops.activations import Activation, resolve


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    activation: str | torch.nn.Module | Activation = "gelu",
    *,
    gated: bool = False,
    hidden_dropout_p: float = 0.0,
    dropout_p: float = 0.0,
    training: bool = True,
    seed: Tensor | int | None = None,
    residual: Tensor | None = None,
    shard: Shard | None = None,
    hidden_shard: Shard | None = None,
) -> Tensor:
    r"""y = residual + dropout(h W2^T + b2), h = dropout(f(x W1^T + b1)): the MLP block.

    With ``gated``, h = dropout(f(x Wg^T + bg) * (x Wv^T + bv)) as of :func:`gated_linear`. Kept for
    backward are x and the pre-activations x W1^T + b1, of which h is made again in the pass that
    makes its gradient; or h alone, where it tells f'.

    Args:
        x: [*, in_features].
        weight1: [hidden_features, in_features], in x's dtype and on its device, as are all others;
            gated, [2 hidden_features, in_features], the rows of the gate first.
        bias1: [hidden_features], gated [2 hidden_features], or None.
        weight2: [out_features, hidden_features].
        bias2: [out_features] or None.
        activation: as for :func:`linear_act`.
        gated: whether the hidden layer is a gated linear unit.
        hidden_dropout_p: probability of dropping an element of h.
        dropout_p: probability of dropping an element of the output, before the residual is added.
        training: dropout is the identity unless True.
        seed: of h's mask; the output's mask takes seed + 1 (modulo 2^64). See :func:`dropout`.
        residual: [*, out_features], added last.
        shard, hidden_shard: (shape, offset) of the output's and of h's place in tensors of which
            they are blocks, as for :func:`dropout`.

    Returns:
        [*, out_features], contiguous, in x's dtype; under torch.autocast as :func:`linear_act`.

    Raises:
        TypeError, ValueError: as :func:`linear_act`.

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.3.
    """
    if has_torch_function_variadic(x, weight1, bias1, weight2, bias2, residual):
        return overridden(
            mlp,
            x,
            weight1,
            bias1,
            weight2,
            bias2,
            activation,
            gated=gated,
            hidden_dropout_p=hidden_dropout_p,
            dropout_p=dropout_p,
            training=training,
            seed=seed,
            residual=residual,
            shard=shard,
            hidden_shard=hidden_shard,
        )
    if type(x) is not Tensor and is_sharded(x):
        given = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
        _sharded.expect_all("mlp", **given, residual=residual)
        if autocast_dtype(x.device) is None:
            _check.mlp(x, weight1, bias1, weight2, bias2, residual, gated=gated)
        no_shard("mlp", shard or hidden_shard)
        f, p = resolve("mlp", activation), dropout_p if training else 0.0

        def call(*tensors: Any, **mask: Any) -> Tensor:
            *layers, added = tensors
            return mlp(  # type: ignore[misc]
                *layers,
                activation=f,
                gated=gated,
                hidden_dropout_p=hidden_dropout_p,
                dropout_p=p if mask["shard"] is not None else 0.0,  # else after the sum over ranks
                training=training,
                residual=added,
                **mask,
            )

        act = partial(act_of_shard, "mlp", resolve("mlp", "identity"), p)
        tensors = x, weight1, bias1, weight2, bias2
        drops = training and (hidden_dropout_p != 0 or dropout_p != 0)
        drawn = _sharded.local_seed("mlp", seed, x, drops)
        return _sharded.mlp(call, act, tensors, residual, drawn, gated)
    if torch._C._is_any_autocast_enabled():
        dtype = autocast_dtype(x.device) if isinstance(x, Tensor) else None
        if dtype is not None:
            if isinstance(residual, Tensor) and residual.dtype != dtype:
                added = mlp(
                    x,
                    weight1,
                    bias1,
                    weight2,
                    bias2,
                    activation,
                    gated=gated,
                    hidden_dropout_p=hidden_dropout_p,
                    dropout_p=dropout_p,
                    training=training,
                    seed=seed,
                    shard=shard,
                    hidden_shard=hidden_shard,
                )
                check_shape("mlp", "residual", residual, tuple(added.shape), "the output's")
                return residual + added
            x, weight1, bias1, weight2, bias2 = (  # type: ignore[assignment]
                cast(t, dtype) for t in (x, weight1, bias1, weight2, bias2)
            )
    hidden_threshold = dropout_threshold("mlp", "hidden_dropout_p", hidden_dropout_p)
    threshold = dropout_threshold("mlp", "dropout_p", dropout_p)
    if not training:
        hidden_threshold = threshold = 0
    try:
        _, code, a, b = resolve("mlp", activation)
        if weight1.dim() != 2:  # the op takes batches of them, for vmap
            raise ValueError
        block = hidden_block = None
        if shard is not None:
            block = check_shard("mlp", shard, (*x.shape[:-1], weight2.shape[0]))
        if hidden_shard is not None:
            hidden_block = check_shard("mlp", hidden_shard, (*x.shape[:-1], weight2.shape[1]))
        drawn = seed_tensor("mlp", seed, x) if hidden_threshold or threshold else None
        y: Tensor = op.mlp(
            x,
            weight1,
            bias1,
            weight2,
            bias2,
            residual,
            drawn if hidden_threshold else None,
            drawn + 1 if drawn is not None and threshold else None,
            code,
            a,
            b,
            gated,
            hidden_threshold,
            threshold,
            1,
            hidden_block,
            block,
        )
    except Exception:
        _check.mlp(x, weight1, bias1, weight2, bias2, residual, gated=gated)
        if (hidden_threshold or threshold) and isinstance(seed, Tensor):
            check_seed("mlp", seed, x.device)
        raise
    return y
