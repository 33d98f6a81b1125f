"""The public ops: differentiable any number of times, in both modes, under vmap and torch.compile.

Every op takes float32, float64, bfloat16 or float16 tensors of any strides, on the CPU, on CUDA
and, through the plain PyTorch reference, on any other device. Bad input raises TypeError or
ValueError and names the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import (
    handle_torch_function,
    has_torch_function_unary,
    has_torch_function_variadic,
)

from torchcalc import _check
from torchcalc._check import (
    MAX_SEED,
    autocast_dtype,
    check_floating,
    check_number,
    check_seed,
    check_shape,
    check_size,
    check_strength,
    dropout_threshold,
    int_seed,
)
from torchcalc.ops import dropout as _dropout_op
from torchcalc.ops import linear_act as _linear_act_op
from torchcalc.ops import prox as _prox_op
from torchcalc.ops._autograd import raise_as_torch
from torchcalc.ops._sharding import replicated

__all__ = [
    "dropout",
    "dropout_mask",
    "linear_act",
    "prox_elastic_net",
    "prox_l2",
    "soft_threshold",
]


def _overridden(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    # As the functions of torch.nn.functional: to torch.fx, to subclasses and modes that override
    # functions, each of these is one function.
    result: Tensor = handle_torch_function(function, args, *args, **kwargs)
    return result


def _seed(op: str, seed: Any, x: Tensor) -> Tensor:
    """The seed as a tensor; drawn by torch's generator where it is None."""
    if seed is None:
        seed = torch.randint(0, MAX_SEED, (1,), dtype=torch.int64, device=x.device)
    elif not isinstance(seed, Tensor):
        # Filled on the device: a copy from here would wait for it, and no CUDA graph takes one.
        seed = torch.full((1,), int_seed(op, seed), dtype=torch.int64, device=x.device)
    return seed if type(x) is Tensor else replicated(seed, x)


def _autocast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    # As torch.autocast: float64 stays.
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.dtype == torch.float64:
        return t
    return t.to(dtype)


def linear_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "gelu",
    *,
    dropout_p: float = 0.0,
    training: bool = True,
    seed: Tensor | int | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    r"""y = residual + dropout(f(x W^T + b)), with one fused epilogue behind the GEMM.

    Backward is one fused pass that gives dz and the bias gradient, then two GEMMs. Kept for it, per
    output element: nothing more than y itself for relu, tanh and sigmoid, the pre-activation z for
    gelu, gelu_tanh and silu, and never the mask. (With a residual, relu, tanh and sigmoid keep
    a = f(z).)

    Args:
        x: [*, in_features].
        weight: [out_features, in_features], in x's dtype and on its device, as are all others.
        bias: [out_features] or None.
        activation: "identity", "relu", "gelu" (exact, erf), "gelu_tanh", "silu", "tanh" or
            "sigmoid".
        dropout_p: probability of dropping an element, in [0, 1].
        training: dropout is the identity unless True.
        seed: of the dropout mask, see :func:`dropout`; ignored where nothing is dropped.
        residual: [*, out_features], added last.

    Returns:
        [*, out_features], contiguous, in x's dtype. Under torch.autocast inputs are cast as for
        ``torch.nn.functional.linear``, and a residual of another dtype is added as PyTorch would.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: a wrong shape, device, activation or probability.

    Source: Hendrycks & Gimpel, "Gaussian error linear units", 2016; Elfwing et al.,
    "Sigmoid-weighted linear units", 2017 (silu).
    """
    if has_torch_function_variadic(x, weight):
        return _overridden(
            linear_act,
            x,
            weight,
            bias,
            activation,
            dropout_p=dropout_p,
            training=training,
            seed=seed,
            residual=residual,
        )
    if torch._C._is_any_autocast_enabled():
        dtype = autocast_dtype(x.device) if isinstance(x, Tensor) else None
        if dtype is not None:
            if isinstance(residual, Tensor) and residual.dtype != dtype:
                added = linear_act(
                    x, weight, bias, activation, dropout_p=dropout_p, training=training, seed=seed
                )
                check_shape("linear_act", "residual", residual, tuple(added.shape), "the output's")
                return residual + added
            x, weight, bias = (_autocast(t, dtype) for t in (x, weight, bias))  # type: ignore[assignment]
    threshold = 0
    if not (type(dropout_p) is float and dropout_p == 0.0):
        threshold = training * dropout_threshold("linear_act", "dropout_p", dropout_p)
    try:
        code = _linear_act_op.CODES[activation]
        drawn = _seed("linear_act", seed, x) if threshold else None
        y: Tensor = _linear_act_op.linear_act(x, weight, bias, residual, drawn, code, threshold)
    except Exception:
        _check.linear_act(x, weight, bias, residual, None)
        if activation not in _linear_act_op.ACTIVATIONS:
            raise ValueError(
                f"linear_act: activation must be one of {', '.join(_linear_act_op.ACTIVATIONS)}, "
                f"got {activation!r}"
            ) from None
        if threshold and isinstance(seed, Tensor):
            check_seed("linear_act", seed, x.device)
        raise
    return y


def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, *, seed: Tensor | int | None = None
) -> Tensor:
    r"""y_i = x_i / (1 - q) where element i is kept, else 0, with q = round(65536 p) / 65536.

    The mask is a pure function of (seed, i), i being the row-major index: the same on every device,
    for every dtype, memory layout and number of threads. It is not stored; backward draws it
    again. E[y] = x exactly, unless q is 1. Dropped elements are 0 even where x is NaN or infinite.

    Args:
        x: of any shape.
        p: probability of dropping an element, in [0, 1]; a multiple of 1/65536 after rounding.
        training: returns x itself unless True.
        seed: an int, or an int64 tensor of one element on x's device; drawn with ``torch.randint``
            where it is None, so that ``torch.manual_seed`` governs it. Under vmap,
            randomness="same" shares the mask and "different" takes one seed a sample.

    Returns:
        Of x's shape, contiguous.

    Raises:
        TypeError, ValueError: as :func:`linear_act`.

    Source: Srivastava et al., "Dropout", JMLR 2014; Salmon et al., "Parallel random numbers: as
    easy as 1, 2, 3", SC11 (Philox4x32-10).
    """
    if has_torch_function_unary(x):
        return _overridden(dropout, x, p, training, seed=seed)
    threshold = dropout_threshold("dropout", "p", p)
    if not training or threshold == 0:
        check_floating("dropout", "x", x)
        return x
    try:
        y: Tensor = _dropout_op.dropout(x, _seed("dropout", seed, x), threshold)
    except Exception:
        check_floating("dropout", "x", x)
        if isinstance(seed, Tensor):
            check_seed("dropout", seed, x.device)
        raise
    return y


def dropout_mask(
    shape: int | Sequence[int],
    p: float = 0.5,
    *,
    seed: Tensor | int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""mask_i = True where :func:`dropout` with the same p and seed keeps element i.

    Args:
        shape: of the result.
        p: probability of dropping an element, in [0, 1].
        seed: as for :func:`dropout`.
        device: of the result; the seed's where it is None and seed is a tensor, else the default.

    Returns:
        Bool [*shape], True = kept.

    Raises:
        TypeError, ValueError: as :func:`linear_act`.
    """
    op = "dropout_mask"
    size = check_size(op, shape)
    threshold = dropout_threshold(op, "p", p)
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else None
    drawn = _seed(op, seed, torch.empty(0, device=device))
    check_seed(op, drawn, torch.empty(0, device=device).device)
    if threshold == 0:
        return torch.ones(size, dtype=torch.bool, device=drawn.device)
    try:
        mask: Tensor = _dropout_op.dropout_mask(size, drawn, threshold)
    except RuntimeError as error:
        raise_as_torch(error, (drawn,))
        raise
    return mask


def soft_threshold(x: Tensor, lam: Tensor | float) -> Tensor:
    r"""S(x, lam) = sign(x) max(|x| - lam, 0) = argmin_y lam |y| + (y - x)^2 / 2, the prox of L1.

    Exactly 0 where |x| <= lam. Differentiable in x and, where it is a tensor, in lam.

    Args:
        x: of any shape.
        lam: a float >= 0, or a tensor in x's dtype that broadcasts to x, whose values are not
            inspected. Where x is of a half type, one of one element may be float32.

    Returns:
        Of x's shape, contiguous. NaN in x or lam gives NaN.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: lam is negative or NaN, does not broadcast to x or is on another device.

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 6.5.2.
    """
    if has_torch_function_unary(x):
        return _overridden(soft_threshold, x, lam)
    return _prox("soft_threshold", x, lam, 0.0, "lam", "l2")


def prox_l2(x: Tensor, lam: Tensor | float) -> Tensor:
    r"""x / (1 + lam) = argmin_y (lam / 2) y^2 + (y - x)^2 / 2, the prox of squared L2.

    Arguments, result and errors as for :func:`soft_threshold`.

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 2.2.
    """
    if has_torch_function_unary(x):
        return _overridden(prox_l2, x, lam)
    return _prox("prox_l2", x, 0.0, lam, "l1", "lam")


def prox_elastic_net(x: Tensor, l1: Tensor | float, l2: Tensor | float) -> Tensor:
    r"""S(x, l1) / (1 + l2) = argmin_y l1 |y| + (l2 / 2) y^2 + (y - x)^2 / 2.

    ``l1`` and ``l2`` are each as ``lam`` of :func:`soft_threshold`; so are result and errors.

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 6.5.3; Zou & Hastie, 2005.
    """
    if has_torch_function_unary(x):
        return _overridden(prox_elastic_net, x, l1, l2)
    return _prox("prox_elastic_net", x, l1, l2, "l1", "l2")


def _prox(
    op: str, x: Tensor, l1: Tensor | float, l2: Tensor | float, l1_name: str, l2_name: str
) -> Tensor:
    compiling = torch.compiler.is_dynamo_compiling()
    try:
        if type(l1) is type(l2) is float and l1 >= 0 and l2 >= 0 and not compiling:
            y: Tensor = _prox_op.prox(x, None, None, l1, l2)
            return y
        l1, l2 = (float(lam) if type(lam) is int else lam for lam in (l1, l2))
        if compiling:
            # A number that an op takes is a constant of the graph, a tensor is an input.
            l1, l2 = _as_input(op, l1_name, l1, x), _as_input(op, l2_name, l2, x)
        check_floating(op, "x", x)
        l1_tensor, l1_value = check_strength(op, l1_name, l1, x)
        l2_tensor, l2_value = check_strength(op, l2_name, l2, x)
        y = _prox_op.prox(x, l1_tensor, l2_tensor, l1_value, l2_value)
    except Exception:
        check_floating(op, "x", x)
        raise
    return y


def _as_input(op: str, name: str, lam: Tensor | float, x: Tensor) -> Tensor | float:
    if isinstance(lam, Tensor) or lam == 0:
        return lam
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return x.new_ones((), dtype=dtype) * check_number(op, name, lam)
