"""Autograd Functions of prox(x) = S(x, l1) / (1 + l2), the prox of l1 |y| + (l2 / 2) y^2.

A strength is a tensor (of one element or of x's shape) or None, and then a number. Only tensors get
gradients; the kernels leave those of one-element strengths to be summed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchcalc.ops._autograd import Function, apply, jvp, vjp
from torchcalc.reference import prox as reference


class _Elementwise(Function):
    """What the three Functions share. Inputs: tensors, x, l1, l2 (tensors or None), two numbers."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.l1_value, ctx.l2_value = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


def _vmap(function: type[_Elementwise], info: Any, in_dims: Any, args: Any) -> tuple[Any, Any]:
    *tensors, l1_value, l2_value = args
    x, x_dim = tensors[-3], in_dims[len(tensors) - 3]
    shape = list(x.shape)
    if x_dim is not None:
        shape.pop(x_dim)

    def expand(t: Tensor | None, dim: int | None) -> Tensor | None:
        if t is None:
            return None
        if dim is None:
            return t.expand(info.batch_size, *shape)
        t = t.movedim(dim, 0)
        if list(t.shape[1:]) != shape:  # a one-element strength for each sample
            t = t.reshape(-1, *(1 for _ in shape))
        return t.expand(info.batch_size, *shape)

    expanded = [expand(t, d) for t, d in zip(tensors, in_dims[: len(tensors)], strict=True)]
    outputs = apply(function, *expanded, l1_value, l2_value)
    if isinstance(outputs, Tensor):
        return outputs, 0
    return outputs, tuple(0 if o.dim() == len(shape) + 1 and o.shape[0] else None for o in outputs)


def _sum_to(grad: Tensor, strength: Tensor | None) -> Tensor | None:
    """The gradient of a strength from the elementwise one."""
    if strength is None:
        return None
    return grad if grad.shape == strength.shape else grad.sum().reshape(strength.shape)


def _expand(t: Tensor | None, x: Tensor) -> Tensor | None:
    return None if t is None else t.expand(x.shape)


def _dense(ctx: Any, saved: Any) -> tuple[Tensor, ...]:
    """ProxGradGrad's seven inputs as tensors of x's shape."""
    x = saved[4]
    numbers = (0.0, 0.0, 0.0, 0.0, 0.0, ctx.l1_value, ctx.l2_value)
    return tuple(
        torch.full_like(x, number) if t is None else t.expand(x.shape)
        for t, number in zip(saved, numbers, strict=True)
    )


class ProxGradGrad(_Elementwise):
    """Cotangents of (grad, x, l1, l2) for those of ProxGrad's results; derived by the reference."""

    @staticmethod
    def forward(
        cx: Tensor | None,
        c1: Tensor | None,
        c2: Tensor | None,
        grad: Tensor,
        x: Tensor,
        l1: Tensor | None,
        l2: Tensor | None,
        l1_value: float,
        l2_value: float,
    ) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = torch.ops.torchcalc.prox_grad_grad(
            cx, c1, c2, grad, x, l1, l2, l1_value, l2_value
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        dense = _dense(ctx, ctx.saved_tensors)
        x = dense[4]
        given = tuple(
            torch.zeros_like(x) if c is None or c.shape != x.shape else c for c in cotangents
        )
        grads = vjp(reference.prox_grad_grad, dense, given)
        return (
            *(
                _sum_to(g, t) if t is not None else None
                for g, t in zip(grads, ctx.saved_tensors, strict=True)
            ),
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return _vmap(ProxGradGrad, info, in_dims, args)

    @staticmethod
    def tangents(ctx: Any, saved: Any, *tangents: Any) -> tuple[Tensor, ...]:
        dense = _dense(ctx, saved)
        dense_tangents = tuple(
            torch.zeros_like(x) if t is None else t.expand(x.shape)
            for t, x in zip(tangents[:7], dense, strict=True)
        )
        results = jvp(reference.prox_grad_grad, dense, dense_tangents)
        wanted = (True, True, saved[5] is not None, saved[6] is not None)
        return tuple(r if w else r.new_empty(0) for r, w in zip(results, wanted, strict=True))


class ProxGrad(_Elementwise):
    """(dx, dl1, dl2) = cotangents of prox, elementwise; linear in grad.

    With H the Hessian of the scalar prox in (x, l1, l2), both its VJP and its JVP with respect to
    them are grad * H times a vector: one kernel serves both.
    """

    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor,
        l1: Tensor | None,
        l2: Tensor | None,
        l1_value: float,
        l2_value: float,
    ) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = torch.ops.torchcalc.prox_grad(
            grad, x, l1, l2, l1_value, l2_value
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        grad, x, l1, l2 = ctx.saved_tensors
        cx, c1, c2 = cotangents
        c1, c2 = (c1 if l1 is not None else None), (c2 if l2 is not None else None)
        d_grad, dx, dl1, dl2 = apply(
            ProxGradGrad, cx, c1, c2, grad, x, l1, l2, ctx.l1_value, ctx.l2_value
        )
        return d_grad, dx, _sum_to(dl1, l1), _sum_to(dl2, l2), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return _vmap(ProxGrad, info, in_dims, args)

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
        _, *tangents = apply(ProxGradGrad, *along, grad, x, l1, l2, *values)
        if t_grad is not None:
            linear = apply(ProxGrad, t_grad, x, l1, l2, *values)
            tangents = [t + u for t, u in zip(tangents, linear, strict=True)]
        return tuple(tangents)


class Prox(_Elementwise):
    """y = S(x, l1) / (1 + l2)."""

    @staticmethod
    def forward(
        x: Tensor, l1: Tensor | None, l2: Tensor | None, l1_value: float, l2_value: float
    ) -> Tensor:
        y: Tensor = torch.ops.torchcalc.prox(x, l1, l2, l1_value, l2_value)
        return y

    @staticmethod
    def backward(ctx: Any, c_y: Tensor | None) -> tuple[Any, ...]:
        if c_y is None:
            return (None,) * 5
        x, l1, l2 = ctx.saved_tensors
        dx, dl1, dl2 = apply(ProxGrad, c_y, x, l1, l2, ctx.l1_value, ctx.l2_value)
        return dx, _sum_to(dl1, l1), _sum_to(dl2, l2), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return _vmap(Prox, info, in_dims, args)

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
        # The gradient of ProxGrad with respect to grad, along which it is linear.
        t_y: Tensor = apply(ProxGradGrad, *along, x, x, l1, l2, ctx.l1_value, ctx.l2_value)[0]
        return t_y


def prox(
    x: Tensor, l1: Tensor | None, l2: Tensor | None, l1_value: float = 0.0, l2_value: float = 0.0
) -> Tensor:
    """S(x, l1) / (1 + l2); ``l1_value`` and ``l2_value`` count where there is no tensor."""
    y: Tensor = apply(Prox, x, l1, l2, l1_value, l2_value)
    return y


def _empty_unless(strength: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(x.shape if strength is not None else (0,))


@torch.library.register_fake("torchcalc::prox")
def _(x, l1, l2, l1_value, l2_value):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.register_fake("torchcalc::prox_grad")
def _(grad, x, l1, l2, l1_value, l2_value):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), _empty_unless(l1, x), _empty_unless(l2, x)


@torch.library.register_fake("torchcalc::prox_grad_grad")
def _(cx, c1, c2, grad, x, l1, l2, l1_value, l2_value):  # type: ignore[no-untyped-def]
    like_x = x.new_empty(x.shape)
    return like_x, x.new_empty(x.shape), _empty_unless(l1, x), _empty_unless(l2, x)
