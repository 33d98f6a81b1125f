"""Activation + dropout: y = residual + dropout(f(z)), and its derivatives.

z, residual and y [*, N]; ``options`` are linear_act's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchcalc.ops._autograd import Function, Kernels, register, register_vmap
from torchcalc.ops._linear import bias_grad, rows, sample_bias_grad
from torchcalc.ops._vmap import vmap_elementwise
from torchcalc.ops.activations import (
    BITS,
    INPUT,
    NOTHING,
    OUTPUT,
    SCALED_OUTPUT,
    by_code,
    saved_for,
    third_derivative,
)
from torchcalc.ops.dropout import dropout_mask
from torchcalc.reference import linear_act as reference
from torchcalc.reference.dropout import dropout_scale

# Orders of the derivative that have a kernel; the next is plain PyTorch, which differentiates on.
_KERNEL_ORDERS = 2


def without_mask(options: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same, where nothing is dropped."""
    return *options[:3], 0, 1, None


class _ActGrad(Function):
    """dz = mask(scale * F_order(u) * grad); linear in grad.

    Its own derivative is the same op, at the next order where u is concerned.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        saved: Tensor | None,
        seed: Tensor | None,
        *options: Any,
        kernels: Kernels,
    ) -> Tensor:
        ctx.save_for_backward(grad, saved, seed)
        kernels.save_for_forward(ctx, grad, saved, seed)
        ctx.options = options
        dz: Tensor = kernels.act_grad(grad, saved, seed, *options)
        return dz

    @staticmethod
    def backward(ctx: Any, c_dz: Tensor) -> tuple[Any, ...]:
        grad, saved, seed = ctx.saved_tensors
        *options, order = ctx.options
        d_grad = d_saved = None
        if ctx.needs_input_grad[0]:
            d_grad = act_grad(c_dz, saved, seed, *options, order)
        if ctx.needs_input_grad[1]:
            d_saved = act_grad(c_dz * grad, saved, seed, *options, order + 1)
        return d_grad, d_saved, None, *[None] * len(ctx.options)

    @staticmethod
    def tangents(
        ctx: Any, saved_for_forward: Any, t_grad: Tensor | None, t_saved: Tensor | None, *_: Any
    ) -> Tensor:
        grad, saved, seed = saved_for_forward
        *options, order = ctx.options
        t_dz = torch.zeros_like(grad)
        if t_grad is not None:
            t_dz = act_grad(t_grad, saved, seed, *options, order)
        if t_saved is not None:
            t_dz = t_dz + act_grad(grad * t_saved, saved, seed, *options, order + 1)
        return t_dz


_act_grad = register("act_grad", _ActGrad)


def act_grad(grad: Tensor, saved: Tensor | None, seed: Tensor | None, *options: Any) -> Tensor:
    """mask(scale * F_order(u) * grad), u being what ``saved_as`` says, order <= 3.

    ``options``: as everywhere, and ``saved_as, order``.
    """
    activation, a, b, threshold, samples, block, saved_as, order = options
    if order <= _KERNEL_ORDERS:
        dz: Tensor = _act_grad(grad, saved, seed, *options)
        return dz
    from_output = saved_as in (OUTPUT, SCALED_OUTPUT)
    scale = dropout_scale(threshold)
    unscale = 1 / scale if saved_as == SCALED_OUTPUT and scale > 0 else 1.0
    third = None
    if saved is not None and saved_as != BITS:
        third = third_derivative(by_code(activation, a, b), saved * unscale, from_output)
    if third is None:
        return torch.zeros_like(grad)
    dz = grad * third * (scale * unscale**2)
    if not threshold:
        return dz
    kept = dropout_mask(grad.shape, seed, threshold, samples, block, False)
    return torch.where(kept, dz, torch.zeros_like(dz))


class _ActBiasGrad(Function):
    """dz = mask(scale * F_1(u) * grad) and its sum over rows, in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        saved: Tensor | None,
        seed: Tensor | None,
        *options: Any,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, saved, seed)
        kernels.save_for_forward(ctx, grad, saved, seed)
        ctx.options = *options, 1
        both: tuple[Tensor, Tensor] = kernels.act_bias_grad(grad, saved, seed, *options)
        return both

    @staticmethod
    def backward(ctx: Any, c_dz: Tensor | None, c_dbias: Tensor | None) -> tuple[Any, ...]:
        if c_dbias is not None:
            c_dz = c_dbias.expand_as(ctx.saved_tensors[0]) if c_dz is None else c_dz + c_dbias
        if c_dz is None:
            return (None,) * (2 + len(ctx.options))
        return _ActGrad.backward(ctx, c_dz)[:-1]

    @staticmethod
    def tangents(ctx: Any, saved_for_forward: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        t_dz = _ActGrad.tangents(ctx, saved_for_forward, *tangents)
        return t_dz, rows(t_dz).sum(0)


act_bias_grad = register("act_bias_grad", _ActBiasGrad)


def act_grads(
    grad: Tensor,
    saved: Tensor | None,
    seed: Tensor | None,
    *options: Any,
    bias: bool,
    batched: bool,
) -> tuple[Tensor, Tensor | None]:
    """dz, and if asked the bias gradient."""
    if bias and not batched:
        both: tuple[Tensor, Tensor] = act_bias_grad(grad, saved, seed, *options)
        return both
    threshold, saved_as = options[3], options[6]
    dz = act_grad(grad, saved, seed, *options, 1) if threshold or saved_as != NOTHING else grad
    return dz, bias_grad(dz, batched) if bias else None


class _Act(Function):
    """y = residual + dropout(f(z))."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        residual: Tensor | None,
        seed: Tensor | None,
        *options: Any,
        kernels: Kernels,
    ) -> Tensor:
        y: Tensor = kernels.act(z, residual, seed, *options)
        saved_as = saved_for(*options[:3], residual is not None, options[3] > 0)
        if saved_as not in (NOTHING, SCALED_OUTPUT):
            saved_as = INPUT
        saved = {NOTHING: None, INPUT: z, SCALED_OUTPUT: y}[saved_as]
        ctx.options = *options, saved_as, 1
        ctx.save_for_backward(saved, seed)
        kernels.save_for_forward(ctx, saved, seed)
        return y

    @staticmethod
    def backward(ctx: Any, c_y: Tensor) -> tuple[Any, ...]:
        saved, seed = ctx.saved_tensors
        need_z, need_residual = ctx.needs_input_grad[:2]
        dz = act_grad(c_y, saved, seed, *ctx.options) if need_z else None
        return dz, c_y if need_residual else None, None, *[None] * (len(ctx.options) - 2)

    @staticmethod
    def tangents(
        ctx: Any, saved_for_forward: Any, t_z: Tensor | None, t_residual: Tensor | None, *_: Any
    ) -> Tensor | None:
        saved, seed = saved_for_forward
        if t_z is None:
            return t_residual
        t_y = act_grad(t_z, saved, seed, *ctx.options)
        return t_y if t_residual is None else t_y + t_residual


def _act_reference(
    z: Tensor, residual: Tensor | None, seed: Tensor | None, *options: Any
) -> Tensor:
    activation, a, b, *mask = options
    return reference.act(z, by_code(activation, a, b), residual, seed, *mask)


# act(z, residual, seed, *options) -> y
act = register("act", _Act, _act_reference)


# --- vmap


def _vmap_act_bias_grad(info: Any, in_dims: Any, *args: Any) -> Any:
    dz, _ = vmap_elementwise(_act_grad, 2, info, (*in_dims, None), *args, 1)
    return (dz, sample_bias_grad(dz)), (0, 0)


register_vmap("act", partial(vmap_elementwise, act, 2))
register_vmap("act_grad", partial(vmap_elementwise, _act_grad, 2))
register_vmap("act_bias_grad", _vmap_act_bias_grad)


# --- shapes


@torch.library.register_fake("torchcalc::act")
def _(z, residual, seed, *options):  # type: ignore[no-untyped-def]
    return z.new_empty(z.shape)


@torch.library.register_fake("torchcalc::act_grad")
def _(grad, saved, seed, *options):  # type: ignore[no-untyped-def]
    return grad.new_empty(grad.shape)


@torch.library.register_fake("torchcalc::act_bias_grad")
def _(grad, saved, seed, *options):  # type: ignore[no-untyped-def]
    return grad.new_empty(grad.shape), grad.new_empty(grad.shape[-1])
