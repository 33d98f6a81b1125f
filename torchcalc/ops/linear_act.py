"""Linear + activation + dropout: y = residual + dropout(f(x W^T + b)), and its derivatives.

x [*, K], weight [N, K], bias [N], residual and y [*, N]; or a product for each of B: x [B, M, K],
weight [B, N, K], bias [B, N]. ``options`` are ``activation, a, b, threshold, samples, block``: the
activation's code with its parameters, and what tells the mask (``_mask.py``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchcalc import _check
from torchcalc.ops._autograd import Function, Kernels, register, register_vmap
from torchcalc.ops._mask import sample_seeds
from torchcalc.ops._vmap import batched_linear, sample_sums, vmap_elementwise, vmap_options
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


def rows(t: Tensor) -> Tensor:
    """[*, N] as a matrix."""
    return t if t.dim() == 2 else t.unsqueeze(0) if t.dim() == 1 else t.flatten(0, -2)


def input_grad(dz: Tensor, weight: Tensor) -> Tensor:
    """Of z = x W^T."""
    # Of one row not dz W: torch has no forward derivative of that under a vectorised jacobian.
    return dz @ weight if dz.dim() > 1 else weight.mT @ dz


def weight_grad(dz: Tensor, x: Tensor, batched: bool) -> Tensor:
    """Of z = x W^T, or of a batch of such."""
    if batched:
        return dz.mT @ x
    if dz.dim() == 1:
        return dz.unsqueeze(1) * x
    return rows(dz).t() @ rows(x)


def bias_grad(dz: Tensor, batched: bool) -> Tensor:
    """Of z = x W^T + b, or of a batch of such."""
    return dz.sum(1) if batched else rows(dz).sum(0)


def linear_tangent(
    x: Tensor, weight: Tensor, t_x: Tensor | None, t_weight: Tensor | None, t_bias: Tensor | None
) -> Tensor:
    """Of z = x W^T + b."""
    t_z = x.new_zeros(*x.shape[:-1], weight.shape[-2])
    if t_x is not None:
        t_z = t_z + t_x @ weight.mT
    if t_weight is not None:
        t_z = t_z + x @ t_weight.mT
    if t_bias is not None:
        t_z = t_z + (t_bias.unsqueeze(1) if weight.dim() == 3 else t_bias)
    return t_z


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


class _LinearAct(Function):
    """y, and with it what is kept: a differentiable output, because second derivatives reach z
    through it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        seed: Tensor | None,
        *options: Any,
        kernels: Kernels,
    ) -> Tensor | tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        saved_as = saved_for(*options[:3], residual is not None, options[3] > 0)
        ctx.options = options
        ctx.saved_as = saved_as
        if saved_as in (NOTHING, SCALED_OUTPUT):
            outputs = kernels.linear_act(x, weight, bias, residual, seed, *options)
            saved = outputs if saved_as == SCALED_OUTPUT else None
        else:
            outputs = kernels.linear_act_keep(x, weight, bias, residual, seed, *options)
            saved = outputs[1]
            if saved_as == BITS:
                ctx.mark_non_differentiable(saved)
        # x and weight are kept only for the gradients that need them, as F.linear does.
        need_x, need_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_weight else None, weight if need_x else None, saved, seed)
        ctx.batched = weight.dim() == 3
        kernels.save_for_forward(ctx, x, weight, saved, seed)
        return outputs  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, c_y: Tensor | None, c_kept: Tensor | None = None) -> tuple[Any, ...]:
        x, weight, saved, seed = ctx.saved_tensors
        options, saved_as = ctx.options, ctx.saved_as
        need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
        batched = ctx.batched
        dz = dbias = None
        if c_y is not None and (need_x or need_weight or need_bias):
            dz, dbias = act_grads(
                c_y, saved, seed, *options, saved_as, bias=need_bias, batched=batched
            )
        if c_kept is not None:
            through_kept = c_kept
            if saved_as == OUTPUT:
                through_kept = act_grad(c_kept, saved, None, *without_mask(options), OUTPUT, 1)
            dz = through_kept if dz is None else dz + through_kept
            dbias = bias_grad(dz, batched) if need_bias else None
        return (
            input_grad(dz, weight) if need_x and dz is not None else None,
            weight_grad(dz, x, batched) if need_weight and dz is not None else None,
            dbias,
            c_y if need_residual else None,
            *[None] * (1 + len(options)),
        )

    @staticmethod
    def tangents(
        ctx: Any,
        saved_for_forward: Any,
        t_x: Tensor | None,
        t_weight: Tensor | None,
        t_bias: Tensor | None,
        t_residual: Tensor | None,
        *_: Any,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        x, weight, saved, seed = saved_for_forward
        options, saved_as = ctx.options, ctx.saved_as
        t_z = linear_tangent(x, weight, t_x, t_weight, t_bias)
        t_y = act_grad(t_z, saved, seed, *options, saved_as, 1)
        if t_residual is not None:
            t_y = t_y + t_residual
        if saved_as in (NOTHING, SCALED_OUTPUT):
            return t_y
        if saved_as == OUTPUT:
            return t_y, act_grad(t_z, saved, None, *without_mask(options), OUTPUT, 1)
        return t_y, t_z if saved_as == INPUT else None


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> Tensor:
    _check.linear_act(x, weight, bias, residual, seed)
    activation, a, b, *mask = options
    return reference.linear_act(x, weight, bias, by_code(activation, a, b), residual, seed, *mask)


# linear_act(x, weight, bias, residual, seed, *options) -> y
linear_act = register("linear_act", _LinearAct, _reference, first=True)
# The same -> (y, kept), for those arguments whose derivative needs more than y.
linear_act_keep = register("linear_act_keep", _LinearAct)


# --- vmap


def _vmap_linear_act(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    size = info.batch_size
    options = args[5:]
    seed = sample_seeds(args[4], in_dims[4], size, options[4])
    (x, weight, bias, residual), back = batched_linear(args[:4], in_dims[:4], size)
    outputs = op(x, weight, bias, residual, seed, *vmap_options(options, size))
    if isinstance(outputs, Tensor):
        return back(outputs), 0
    return tuple(map(back, outputs)), (0, 0)


def _vmap_act_bias_grad(info: Any, in_dims: Any, *args: Any) -> Any:
    dz, _ = vmap_elementwise(_act_grad, 2, info, (*in_dims, None), *args, 1)
    return (dz, sample_sums(dz)), (0, 0)


for _name, _op in (("linear_act", linear_act), ("linear_act_keep", linear_act_keep)):
    register_vmap(_name, partial(_vmap_linear_act, _op))
register_vmap("act", partial(vmap_elementwise, act, 2))
register_vmap("act_grad", partial(vmap_elementwise, _act_grad, 2))
register_vmap("act_bias_grad", _vmap_act_bias_grad)


# --- shapes and costs


def _check_traced(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    seed: Tensor | None,
    options: tuple[Any, ...],
) -> None:
    if weight.dim() == 2:  # else it comes from a vmap of what was checked
        _check.linear_act(x, weight, bias, residual, seed if options[4] == 1 else None)


@torch.library.register_fake("torchcalc::linear_act")
def _(x, weight, bias, residual, seed, *options):  # type: ignore[no-untyped-def]
    _check_traced(x, weight, bias, residual, seed, options)
    return x.new_empty(*x.shape[:-1], weight.shape[-2])


@torch.library.register_fake("torchcalc::linear_act_keep")
def _(x, weight, bias, residual, seed, *options):  # type: ignore[no-untyped-def]
    _check_traced(x, weight, bias, residual, seed, options)
    y = x.new_empty(*x.shape[:-1], weight.shape[-2])
    if saved_for(*options[:3], residual is not None, options[3] > 0) == BITS:
        return y, y.new_empty(*y.shape[:-1], (y.shape[-1] + 7) // 8, dtype=torch.uint8)
    return y, torch.empty_like(y)


@torch.library.register_fake("torchcalc::act")
def _(z, residual, seed, *options):  # type: ignore[no-untyped-def]
    return z.new_empty(z.shape)


@torch.library.register_fake("torchcalc::act_grad")
def _(grad, saved, seed, *options):  # type: ignore[no-untyped-def]
    return grad.new_empty(grad.shape)


@torch.library.register_fake("torchcalc::act_bias_grad")
def _(grad, saved, seed, *options):  # type: ignore[no-untyped-def]
    return grad.new_empty(grad.shape), grad.new_empty(grad.shape[-1])


@register_flop_formula([torch.ops.torchcalc.linear_act, torch.ops.torchcalc.linear_act_keep])
def _(x_shape, weight_shape, *args, **kwargs):  # type: ignore[no-untyped-def]
    return 2 * torch.Size(x_shape).numel() * weight_shape[-2]
