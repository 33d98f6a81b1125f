"""Proximal operators of penalties."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary

from torchcalc._check import (
    check_finite,
    check_floating,
    check_number,
    check_strength,
    describe,
)
from torchcalc.functional._common import overridden
from torchcalc.ops import penalty_prox as ops_penalty
from torchcalc.ops import prox as ops

if TYPE_CHECKING:
    from torchcalc.prox import Penalty


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


_EVERYTHING = (-math.inf, math.inf)


def prox(v: Tensor, penalty: Penalty, step: Tensor | float = 1.0) -> Tensor:
    r"""argmin_x penalty(x) + sum (x - v)^2 / (2 step), the prox of a penalty of ``torchcalc.prox``.

    Differentiable any number of times in v, in ``step`` and in the penalty's strengths, where they
    are tensors: almost everywhere, that is where no coordinate is at a threshold.

    Args:
        v: of any shape.
        penalty: of ``torchcalc.prox``. Its strengths may be tensors, of one element or, where it is
            a sum over coordinates, of a shape that broadcasts to v; their values are not inspected.
            To torch.compile those that are numbers are constants; one that changes is to be a
            tensor.
        step: a float >= 0, where 0 leaves v as it is, unless the penalty is a constraint; or a
            tensor of positive numbers in v's dtype, or in float32 where v is of a half type, that
            broadcasts to v: a step for each coordinate.

    Returns:
        Of v's shape and dtype; computed in float32 where that is a half type. NaN in a coordinate
        gives NaN in all that depends on it.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: step is negative or NaN or does not broadcast to v; v does not fall into the
            penalty's groups.
        NotImplementedError: a gradient through NMSparse or TopK, which is not differentiable.

    Source: Parikh & Boyd, "Proximal algorithms", 2014; each penalty names its own.
    """
    if has_torch_function_unary(v):
        return overridden(prox, v, penalty, step)
    try:
        kernel, indexes = penalty.kernel, penalty.indexes
    except AttributeError:
        kernel = indexes = None
    if indexes is None or isinstance(penalty, type):
        raise TypeError(
            f"prox: penalty must be a torchcalc.prox penalty, got {penalty!r}"
        ) from None
    check_floating("prox", "v", v)
    opmath = v.dtype if v.dtype.itemsize >= 4 else torch.float32
    if isinstance(step, Tensor):
        if not penalty.takes_metric and step.numel() != 1:
            raise ValueError(
                f"prox: step must be a number for {type(penalty).__name__}, whose prox in another "
                f"metric has no closed form, got {describe(step)}"
            )
        steps: Tensor | None = _as_steps(step, v, opmath)
        value = 0.0
    else:
        steps, value = None, check_finite("prox", "step", step)
        if penalty.is_constraint:  # the same with any one step for all
            value = 1.0
        elif torch.compiler.is_dynamo_compiling() and value != 1:
            # A number that an op takes is a constant of the graph, a tensor is an input. The
            # default stays a constant: it costs no reading.
            steps, value = (v.new_ones((), dtype=opmath) * value).expand(v.shape), 0.0
    which = indexes(v.shape)
    if kernel is None:
        for lam in penalty.arguments().values():
            _as_strength(penalty, lam, v, opmath)
        if steps is None and value == 0:
            return v.clone()
        y = penalty.apply(v.to(opmath), value if steps is None else steps.reshape(-1)[0])
        return y.to(v.dtype)
    if not penalty.is_differentiable:
        ops_penalty.check_constant(v, steps)
    numbers = [_as_strength(penalty, t, v, opmath) for t in kernel[1:]]
    if kernel.kind == ops_penalty.PLAIN and not penalty.is_constraint and kernel[6:] == _EVERYTHING:
        *_, l1, l2, _, _ = numbers
        if steps is None:
            return prox_elastic_net(v, value * l1, value * l2)
        if steps.dtype == v.dtype:
            return prox_elastic_net(v, steps * l1, steps * l2)
    if any(isinstance(t, Tensor) for t in numbers):
        kernel = ops_penalty.Kernel._make((kernel.kind, *numbers))
        return ops_penalty.formula(v, value if steps is None else steps, kernel, which)
    x: Tensor = ops_penalty.penalty_prox(v, steps, value, kernel.kind, numbers, which)
    return x


def _broadcast(op: str, name: str, t: Tensor, v: Tensor) -> Tensor:
    try:
        return t.expand(v.shape)
    except RuntimeError:
        raise ValueError(
            f"{op}: {name} must broadcast to the shape of v, {tuple(v.shape)}, got {tuple(t.shape)}"
        ) from None


def _as_steps(step: Tensor, v: Tensor, opmath: torch.dtype) -> Tensor:
    if step.dtype != opmath:
        check_floating("prox", "step", step, like=v)
    if step.device != v.device:
        raise ValueError(f"prox: step must be on {v.device}, got {describe(step)}")
    return _broadcast("prox", "step", step.to(opmath), v)


def _as_strength(
    penalty: Penalty, value: Tensor | float, v: Tensor, opmath: torch.dtype
) -> Tensor | float:
    if not isinstance(value, Tensor):
        return value
    op = f"prox of {type(penalty).__name__}"
    if value.dtype not in (v.dtype, opmath):
        raise TypeError(f"{op}: strengths must have v's dtype, {v.dtype}, got {describe(value)}")
    if value.device != v.device:
        raise ValueError(f"{op}: strengths must be on {v.device}, got {describe(value)}")
    if value.numel() == 1:
        return value.to(opmath).reshape(())
    if not penalty.is_separable:
        raise ValueError(f"{op}: strengths must have one element, got {describe(value)}")
    return _broadcast(op, "strengths", value.to(opmath), v)


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
