"""Proximal operators of penalties."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary

from torchcalc._check import check_floating, check_number, check_strength
from torchcalc.functional._common import overridden
from torchcalc.ops import prox as ops


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
        return overridden(soft_threshold, x, lam)
    return _prox("soft_threshold", x, lam, 0.0, "lam", "l2")


def prox_l2(x: Tensor, lam: Tensor | float) -> Tensor:
    r"""x / (1 + lam) = argmin_y (lam / 2) y^2 + (y - x)^2 / 2, the prox of squared L2.

    Arguments, result and errors as for :func:`soft_threshold`.

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 2.2.
    """
    if has_torch_function_unary(x):
        return overridden(prox_l2, x, lam)
    return _prox("prox_l2", x, 0.0, lam, "l1", "lam")


def prox_elastic_net(x: Tensor, l1: Tensor | float, l2: Tensor | float) -> Tensor:
    r"""S(x, l1) / (1 + l2) = argmin_y l1 |y| + (l2 / 2) y^2 + (y - x)^2 / 2.

    ``l1`` and ``l2`` are each as ``lam`` of :func:`soft_threshold`; so are result and errors.

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 6.5.3; Zou & Hastie, 2005.
    """
    if has_torch_function_unary(x):
        return overridden(prox_elastic_net, x, l1, l2)
    return _prox("prox_elastic_net", x, l1, l2, "l1", "l2")


def _prox(
    op: str, x: Tensor, l1: Tensor | float, l2: Tensor | float, l1_name: str, l2_name: str
) -> Tensor:
    compiling = torch.compiler.is_dynamo_compiling()
    try:
        if type(l1) is type(l2) is float and l1 >= 0 and l2 >= 0 and not compiling:
            y: Tensor = ops.prox(x, None, None, l1, l2)
            return y
        l1, l2 = (float(lam) if type(lam) is int else lam for lam in (l1, l2))
        if compiling:
            # A number that an op takes is a constant of the graph, a tensor is an input.
            l1, l2 = _as_input(op, l1_name, l1, x), _as_input(op, l2_name, l2, x)
        check_floating(op, "x", x)
        l1_tensor, l1_value = check_strength(op, l1_name, l1, x)
        l2_tensor, l2_value = check_strength(op, l2_name, l2, x)
        y = ops.prox(x, l1_tensor, l2_tensor, l1_value, l2_value)
    except Exception:
        check_floating(op, "x", x)
        raise
    return y


def _as_input(op: str, name: str, lam: Tensor | float, x: Tensor) -> Tensor | float:
    if isinstance(lam, Tensor) or lam == 0:
        return lam
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return x.new_ones((), dtype=dtype) * check_number(op, name, lam)
