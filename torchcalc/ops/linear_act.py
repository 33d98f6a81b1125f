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
from torchcalc.ops._linear import (
    bias_grad,
    empty_as,
    in_one_call,
    layer_grads,
    linear_tangent,
    or_empty,
    sample_bias_grad,
    sample_layer_grads,
)
from torchcalc.ops._mask import sample_seeds
from torchcalc.ops._vmap import batched_linear, vmap_elementwise, vmap_options
from torchcalc.ops.act import (
    act_grad,
    act_grads,
    without_mask,
)
from torchcalc.ops.activations import (
    BITS,
    INPUT,
    NOTHING,
    OUTPUT,
    SCALED_OUTPUT,
    by_code,
    saved_for,
)
from torchcalc.reference import linear_act as reference


def _gradients(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    saved: Tensor | None,
    seed: Tensor | None,
    *options: Any,
    batched: bool = False,
) -> tuple[Tensor | None, ...]:
    *options, bias = options  # type: ignore[assignment]
    dz, dbias = act_grads(grad, saved, seed, *options, bias=bias, batched=batched)
    return *layer_grads(dz, x, weight, batched), dbias


def _linear_act_grad(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return or_empty(grad, _gradients(grad, *args))


# linear_act_grad(grad, x, weight, saved, seed, *options, saved_as, bias) -> (dx, dweight, dbias),
# in one call: without weight no dx is wanted, without x no dweight; what is not wanted is empty.
linear_act_grad = register("linear_act_grad", _linear_act_grad)


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
        options, saved_as, batched = ctx.options, ctx.saved_as, ctx.batched
        need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
        dx = dweight = dbias = None
        if c_kept is not None:
            dz = c_kept
            if saved_as == OUTPUT:
                dz = act_grad(c_kept, saved, None, *without_mask(options), OUTPUT, 1)
            if c_y is not None:
                dz = dz + act_grad(c_y, saved, seed, *options, saved_as, 1)
            dx, dweight = layer_grads(dz, x, weight, batched)
            dbias = bias_grad(dz, batched) if need_bias else None
        elif c_y is not None and (need_x or need_weight or need_bias):
            args = c_y, x, weight, saved, seed, *options, saved_as, need_bias
            if in_one_call(c_y, batched):
                dx, dweight, dbias = linear_act_grad(*args)
            else:
                dx, dweight, dbias = _gradients(*args, batched=batched)
        return (
            dx if need_x else None,
            dweight if need_weight else None,
            dbias if need_bias else None,
            c_y if need_residual else None,
            *(None,) * (1 + len(options)),
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


def _vmap_linear_act_grad(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    grad, x, weight, saved, seed, *options, bias = args
    dims = in_dims[0], *in_dims[3:5]
    dz, _ = vmap_elementwise(act_grad, 2, info, dims, grad, saved, seed, *options, 1)
    dx, dweight = sample_layer_grads(dz, x, weight, in_dims[1:3])
    dbias = sample_bias_grad(dz) if bias else None
    return or_empty(dz, (dx, dweight, dbias), info.batch_size), (0, 0, 0)


for _name, _op in (("linear_act", linear_act), ("linear_act_keep", linear_act_keep)):
    register_vmap(_name, partial(_vmap_linear_act, _op))
register_vmap("linear_act_grad", _vmap_linear_act_grad)


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


@torch.library.register_fake("torchcalc::linear_act_grad")
def _(grad, x, weight, *args):  # type: ignore[no-untyped-def]
    features = grad.shape[-1]
    dx = None if weight is None else grad.new_empty(*grad.shape[:-1], weight.shape[1])
    dweight = None if x is None else grad.new_empty(features, x.shape[-1])
    if dweight is not None and weight is not None:
        dweight = empty_as(weight, grad)
    return or_empty(grad, (dx, dweight, grad.new_empty(features) if args[-1] else None))


@register_flop_formula([torch.ops.torchcalc.linear_act, torch.ops.torchcalc.linear_act_keep])
def _(x_shape, weight_shape, *args, **kwargs):  # type: ignore[no-untyped-def]
    return 2 * torch.Size(x_shape).numel() * weight_shape[-2]


@register_flop_formula(torch.ops.torchcalc.linear_act_grad)
def _(grad_shape, x_shape, weight_shape, *args, **kwargs):  # type: ignore[no-untyped-def]
    products = [shape for shape in (x_shape, weight_shape) if shape is not None]
    return sum(2 * torch.Size(grad_shape).numel() * shape[-1] for shape in products)
