"""Gated linear units: y = dropout(f(g) * v), z = [g, v] = [x Wg^T + bg, x Wv^T + bv], and their
derivatives.

x [*, K], y [*, N], z [*, 2 N]; weight [2 N, K] = [Wg; Wv] and bias [2 N], or weight and
weight_value [N, K], bias and bias_value [N]; or batches of weights, as linear_act. ``options`` are
linear_act's. Kept is z.
"""

from __future__ import annotations

from collections.abc import Callable
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
from torchcalc.ops.activations import by_code
from torchcalc.ops.gate import gated_grad, gated_grads, gated_tangent, halves
from torchcalc.reference import gated as reference

Grads = tuple[Tensor | None, ...]


def _of_halves(
    grads: Callable[..., Grads],
    dz: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    weight_value: Tensor | None,
    pair: bool,
) -> Grads:
    """dx, dweight, dweight_value, ``grads(dz, x, weight)`` being dx and dW of z = x W^T."""
    if not pair:
        return *grads(dz, x, weight), None
    dg, dv = halves(dz)
    (dx, dweight), (dx_value, dweight_value) = grads(dg, x, weight), grads(dv, x, weight_value)
    return None if dx is None or dx_value is None else dx + dx_value, dweight, dweight_value


def _gradients(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    weight_value: Tensor | None,
    z: Tensor,
    seed: Tensor | None,
    *options: Any,
    batched: bool = False,
) -> Grads:
    *options, pair, bias = options  # type: ignore[assignment]
    dz, dbias = gated_grads(grad, z, seed, *options, bias=bias, batched=batched)
    grads = partial(layer_grads, batched=batched)
    return *_of_halves(grads, dz, x, weight, weight_value, pair), dbias


def _gated_linear_grad(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return or_empty(grad, _gradients(grad, *args))


# gated_linear_grad(grad, x, weight, weight_value, z, seed, *options, pair, bias) -> (dx, dweight,
# dweight_value, dbias), in one call: as linear_act_grad. dbias is that of both halves.
gated_linear_grad = register("gated_linear_grad", _gated_linear_grad)


class _GatedLinear(Function):
    """y and z: a differentiable output, because second derivatives reach it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        weight_value: Tensor | None,
        bias: Tensor | None,
        bias_value: Tensor | None,
        seed: Tensor | None,
        *options: Any,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.options = options
        ctx.batched, ctx.is_pair = weight.dim() == 3, weight_value is not None
        outputs: tuple[Tensor, Tensor] = kernels.gated_linear_keep(
            x, weight, weight_value, bias, bias_value, seed, *options
        )
        z = outputs[1]
        need_x, need_weight, need_weight_value = ctx.needs_input_grad[:3]
        ctx.save_for_backward(
            x if need_weight or need_weight_value else None,
            weight if need_x else None,
            weight_value if need_x else None,
            z,
            seed,
        )
        kernels.save_for_forward(ctx, x, weight, weight_value, z, seed)
        return outputs

    @staticmethod
    def backward(ctx: Any, c_y: Tensor | None, c_z: Tensor | None) -> tuple[Any, ...]:
        x, weight, weight_value, z, seed = ctx.saved_tensors
        needs, others = ctx.needs_input_grad[:5], (None,) * (1 + len(ctx.options))
        batched, pair, with_bias = ctx.batched, ctx.is_pair, needs[3] or needs[4]
        gradients: Grads = (None,) * 4
        if c_z is not None:
            dz = c_z if c_y is None else c_z + gated_grad(c_y, z, seed, *ctx.options)
            grads = partial(layer_grads, batched=batched)
            gradients = (
                *_of_halves(grads, dz, x, weight, weight_value, pair),
                bias_grad(dz, batched) if with_bias else None,
            )
        elif c_y is not None:
            args = c_y, x, weight, weight_value, z, seed, *ctx.options, pair, with_bias
            if in_one_call(c_y, batched):
                gradients = gated_linear_grad(*args)
            else:
                gradients = _gradients(*args, batched=batched)
        dx, dweight, dweight_value, dbias = gradients
        dbias_value = None
        if pair and with_bias and dbias is not None:
            dbias, dbias_value = (t.clone() for t in halves(dbias))
        return (
            dx if needs[0] else None,
            dweight if needs[1] else None,
            dweight_value if needs[2] else None,
            dbias if needs[3] else None,
            dbias_value if needs[4] else None,
            *others,
        )

    @staticmethod
    def tangents(
        ctx: Any,
        saved_for_forward: Any,
        t_x: Tensor | None,
        t_weight: Tensor | None,
        t_weight_value: Tensor | None,
        t_bias: Tensor | None,
        t_bias_value: Tensor | None,
        *_: Any,
    ) -> tuple[Tensor, Tensor]:
        x, weight, weight_value, z, seed = saved_for_forward
        t_z = linear_tangent(x, weight, t_x, t_weight, t_bias)
        if weight_value is not None:
            t_value = linear_tangent(x, weight_value, t_x, t_weight_value, t_bias_value)
            t_z = torch.cat([t_z, t_value], -1)
        return gated_tangent(t_z, z, seed, *ctx.options), t_z


def _reference(
    x: Tensor,
    weight: Tensor,
    weight_value: Tensor | None,
    bias: Tensor | None,
    bias_value: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> Tensor:
    _check.gated_linear(x, weight, weight_value, bias, bias_value, seed)
    f, mask = by_code(*options[:3]), options[3:]
    return reference.gated_linear(x, weight, weight_value, bias, bias_value, f, seed, *mask)


# gated_linear(x, weight, weight_value, bias, bias_value, seed, *options) -> y
gated_linear = register("gated_linear", _GatedLinear, _reference, first=True)
# The same -> (y, z).
gated_linear_keep = register("gated_linear_keep", _GatedLinear)


def _vmap_gated_linear(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    size, options = info.batch_size, args[6:]
    seed = sample_seeds(args[5], in_dims[5], size, options[4])
    tensors, back = batched_linear(args[:5], in_dims[:5], size, parameters=(1, 2, 3, 4))
    outputs = op(*tensors, seed, *vmap_options(options, size))
    if isinstance(outputs, Tensor):
        return back(outputs), 0
    return tuple(map(back, outputs)), (0, 0)


def _vmap_gated_linear_grad(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    grad, x, weight, weight_value, z, seed, *options, pair, bias = args
    size = info.batch_size
    dims = in_dims[0], *in_dims[4:6]
    dz, _ = vmap_elementwise(gated_grad, 2, info, dims, grad, z, seed, *options)
    value_dims = in_dims[1], in_dims[3]

    def grads(dz: Tensor, x: Tensor | None, w: Tensor | None) -> Grads:
        return sample_layer_grads(dz, x, w, value_dims if w is weight_value else in_dims[1:3])

    gradients = _of_halves(grads, dz, x, weight, weight_value, pair)
    dbias = sample_bias_grad(dz) if bias else None
    return or_empty(dz, (*gradients, dbias), size), (0, 0, 0, 0)


for _name, _op in (("gated_linear", gated_linear), ("gated_linear_keep", gated_linear_keep)):
    register_vmap(_name, partial(_vmap_gated_linear, _op))
register_vmap("gated_linear_grad", _vmap_gated_linear_grad)


# --- shapes and costs


def _fake_y(
    x: Tensor,
    weight: Tensor,
    weight_value: Tensor | None,
    bias: Tensor | None,
    bias_value: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> Tensor:
    if weight.dim() == 2:  # else it comes from a vmap of what was checked
        one = seed if options[4] == 1 else None
        _check.gated_linear(x, weight, weight_value, bias, bias_value, one)
    features = weight.shape[-2] // (2 if weight_value is None else 1)
    return x.new_empty(*x.shape[:-1], features)


@torch.library.register_fake("torchcalc::gated_linear")
def _(*args):  # type: ignore[no-untyped-def]
    return _fake_y(*args)


@torch.library.register_fake("torchcalc::gated_linear_keep")
def _(*args):  # type: ignore[no-untyped-def]
    y = _fake_y(*args)
    return y, y.new_empty(*y.shape[:-1], 2 * y.shape[-1])


@torch.library.register_fake("torchcalc::gated_linear_grad")
def _(grad, x, weight, weight_value, *args):  # type: ignore[no-untyped-def]
    pair, bias = args[-2:]
    features = grad.shape[-1]
    dx = None if weight is None else grad.new_empty(*grad.shape[:-1], weight.shape[1])
    dweight = dweight_value = None
    if x is not None:
        dweight = grad.new_empty(features if pair else 2 * features, x.shape[-1])
        dweight_value = torch.empty_like(dweight) if pair else None
        if weight is not None:
            dweight = empty_as(weight, grad)
            dweight_value = empty_as(weight_value, grad) if pair else None
    dbias = grad.new_empty(2 * features) if bias else None
    return or_empty(grad, (dx, dweight, dweight_value, dbias))


@register_flop_formula([torch.ops.torchcalc.gated_linear, torch.ops.torchcalc.gated_linear_keep])
def _(x_shape, weight_shape, weight_value_shape=None, *args, **kwargs):  # type: ignore[no-untyped-def]
    features = weight_shape[-2] * (1 if weight_value_shape is None else 2)
    return 2 * torch.Size(x_shape).numel() * features


@register_flop_formula(torch.ops.torchcalc.gated_linear_grad)
def _(grad_shape, x_shape, weight_shape, *args, **kwargs):  # type: ignore[no-untyped-def]
    products = [shape for shape in (x_shape, weight_shape) if shape is not None]
    return sum(4 * torch.Size(grad_shape).numel() * shape[-1] for shape in products)
