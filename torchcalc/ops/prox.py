"""prox(x) = S(x, l1) / (1 + l2), the prox of l1 |y| + (l2 / 2) y^2, and its derivatives.

A strength is a tensor or None, and then a number. A tensor has x's shape, or one element, which may
also be in the type that arithmetic is done in. Only tensors get gradients; the kernels leave those
of one-element strengths to be summed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchcalc._check import check_floating
from torchcalc.ops._autograd import (
    Function,
    Kernels,
    in_front,
    register,
    register_vmap,
)
from torchcalc.reference import prox as reference


def _sum_to(grad: Tensor, strength: Tensor | None) -> Tensor | None:
    """The gradient of a strength from the elementwise one."""
    if strength is None:
        return None
    if grad.shape == strength.shape:
        return grad.to(strength.dtype)
    return grad.sum(dtype=strength.dtype).reshape(strength.shape)


def _expand(t: Tensor | None, x: Tensor) -> Tensor | None:
    return None if t is None else t.to(x.dtype).expand(x.shape)


def _dense(tensors: Any, l1_value: float, l2_value: float) -> tuple[Tensor, ...]:
    """Tensors, x, l1, l2 as tensors of x's shape: zeros or the number for what is None."""
    x = tensors[-3]
    numbers = (*(0.0,) * (len(tensors) - 2), l1_value, l2_value)
    return tuple(
        torch.full_like(x, number) if t is None else t.to(x.dtype).expand(x.shape)
        for t, number in zip(tensors, numbers, strict=True)
    )


def _prox_grad_grad(*args: Any) -> tuple[Tensor, ...]:
    """prox_grad_grad as csrc/math/prox.h has it, out of operations that autograd differentiates.

    With y = S r, r = 1 / (1 + l2), and a = 1 where |x| > l1 (else 0).
    """
    *tensors, l1_value, l2_value = args
    cx, c1, c2, grad, x, l1, l2 = _dense(tensors, l1_value, l2_value)
    active = ~(x.abs() - l1 <= 0)
    zero = torch.zeros_like(x)
    # Selections: where the prox is constant, also infinite cotangents give 0.
    cx, c1, c2, grad = (torch.where(active, t, zero) for t in (cx, c1, c2, grad))
    c1 = torch.where(x < 0, -c1, c1)
    sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    soft = torch.where(active, sign * (x.abs() - l1), zero)
    r = 1 / (1 + l2)
    gr2, c2_soft, along = grad * r * r, c2 * soft * r, cx - c1
    empty = x.new_empty(0)
    return (
        (along - c2_soft) * r,
        -gr2 * c2,
        sign * gr2 * c2 if tensors[5] is not None else empty,
        gr2 * (2 * c2_soft - along) if tensors[6] is not None else empty,
    )


class _ProxGrad(Function):
    """(dx, dl1, dl2) = cotangents of prox, elementwise; linear in grad.

    With H the Hessian of the scalar prox in (x, l1, l2), both its VJP and its JVP with respect to
    them are grad * H times a vector: one kernel serves both.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any, kernels: Kernels) -> Any:
        *tensors, ctx.l1_value, ctx.l2_value = args
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        kernels.save_for_forward(ctx, *tensors)
        return kernels.prox_grad(*args)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        grad, x, l1, l2 = ctx.saved_tensors
        cx, c1, c2 = cotangents
        c1, c2 = (c1 if l1 is not None else None), (c2 if l2 is not None else None)
        d_grad, dx, dl1, dl2 = prox_grad_grad(
            cx, c1, c2, grad, x, l1, l2, ctx.l1_value, ctx.l2_value
        )
        return d_grad, dx, _sum_to(dl1, l1), _sum_to(dl2, l2), None, None

    @staticmethod
    def tangents(
        ctx: Any,
        saved: Any,
        t_grad: Tensor | None,
        t_x: Tensor | None,
        t_l1: Tensor | None,
        t_l2: Tensor | None,
        *_: Any,
    ) -> tuple[Tensor, ...]:
        grad, x, l1, l2 = saved
        values = ctx.l1_value, ctx.l2_value
        along = t_x, _expand(t_l1, x), _expand(t_l2, x)
        _, *tangents = prox_grad_grad(*along, grad, x, l1, l2, *values)
        if t_grad is not None:
            linear = prox_grad(t_grad, x, l1, l2, *values)
            tangents = [t + u for t, u in zip(tangents, linear, strict=True)]
        return tuple(tangents)


class _Prox(Function):
    """y = S(x, l1) / (1 + l2)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        l1: Tensor | None,
        l2: Tensor | None,
        l1_value: float,
        l2_value: float,
        *,
        kernels: Kernels,
    ) -> Tensor:
        ctx.save_for_backward(x, l1, l2)
        kernels.save_for_forward(ctx, x, l1, l2)
        ctx.values = l1_value, l2_value
        y: Tensor = kernels.prox(x, l1, l2, l1_value, l2_value)
        return y

    @staticmethod
    def backward(ctx: Any, c_y: Tensor) -> tuple[Any, ...]:
        x, l1, l2 = ctx.saved_tensors
        if l1 is l2 is None or True not in ctx.needs_input_grad[1:]:
            return prox_x_grad(c_y, x, l1, l2, *ctx.values), None, None, None, None
        dx, dl1, dl2 = prox_grad(c_y, x, l1, l2, *ctx.values)
        return dx, _sum_to(dl1, l1), _sum_to(dl2, l2), None, None

    @staticmethod
    def tangents(
        ctx: Any,
        saved: Any,
        t_x: Tensor | None,
        t_l1: Tensor | None,
        t_l2: Tensor | None,
        *_: Any,
    ) -> Tensor:
        x, l1, l2 = saved
        along = t_x, _expand(t_l1, x), _expand(t_l2, x)
        # The gradient of prox_grad with respect to grad, along which it is linear.
        t_y: Tensor = prox_grad_grad(*along, x, x, l1, l2, *ctx.values)[0]
        return t_y


def _reference_prox(
    x: Tensor, l1: Tensor | None, l2: Tensor | None, l1_value: float, l2_value: float
) -> Tensor:
    check_floating("prox", "x", x)
    return reference.prox(x, l1_value if l1 is None else l1, l2_value if l2 is None else l2)


# prox(x, l1, l2, l1_value, l2_value) -> y; the numbers count where there is no tensor.
prox = register("prox", _Prox, _reference_prox)
# prox_grad(grad, x, l1, l2, l1_value, l2_value) -> (dx, dl1, dl2)
prox_grad = register("prox_grad", _ProxGrad)
# The same, but for dx alone.
prox_x_grad = register("prox_x_grad", lambda *args: prox_grad(*args)[0])
# prox_grad_grad(cx, c1, c2, grad, x, l1, l2, l1_value, l2_value) -> (dgrad, dx, dl1, dl2)
prox_grad_grad = register("prox_grad_grad", _prox_grad_grad)


def _vmap(op: Callable[..., Any], info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    *tensors, l1_value, l2_value = args
    batched: list[Any] = [
        in_front(t, d, info.batch_size) for t, d in zip(tensors, in_dims, strict=False)
    ]
    shape = batched[-3].shape

    def expand(t: Tensor | None) -> Tensor | None:
        if t is not None and t.shape != shape:  # a one-element strength for each sample
            t = t.to(batched[-3].dtype).reshape(-1, *(1 for _ in shape[1:])).expand(shape)
        return t

    outputs = op(*map(expand, batched), l1_value, l2_value)
    if isinstance(outputs, Tensor):
        return outputs, 0
    return outputs, tuple(0 if o.shape == shape else None for o in outputs)


for _name, _op in {
    "prox": prox,
    "prox_grad": prox_grad,
    "prox_x_grad": prox_x_grad,
    "prox_grad_grad": prox_grad_grad,
}.items():
    register_vmap(_name, lambda info, dims, *args, op=_op: _vmap(op, info, dims, *args))


def _empty_unless(strength: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(x.shape if strength is not None else (0,))


@torch.library.register_fake("torchcalc::prox")
def _(x, l1, l2, l1_value, l2_value):  # type: ignore[no-untyped-def]
    check_floating("prox", "x", x)
    return x.new_empty(x.shape)


@torch.library.register_fake("torchcalc::prox_grad")
def _(grad, x, l1, l2, l1_value, l2_value):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), _empty_unless(l1, x), _empty_unless(l2, x)


@torch.library.register_fake("torchcalc::prox_x_grad")
def _(grad, x, l1, l2, l1_value, l2_value):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.register_fake("torchcalc::prox_grad_grad")
def _(cx, c1, c2, grad, x, l1, l2, l1_value, l2_value):  # type: ignore[no-untyped-def]
    like_x = x.new_empty(x.shape)
    return like_x, x.new_empty(x.shape), _empty_unless(l1, x), _empty_unless(l2, x)
