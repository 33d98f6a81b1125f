"""Gated linear units: y = dropout(f(g) * v), z = [g, v] = [x Wg^T + bg, x Wv^T + bv], and their
derivatives.

x [*, K], y [*, N], z [*, 2 N]; weight [2 N, K] = [Wg; Wv] and bias [2 N], or weight and
weight_value [N, K], bias and bias_value [N]; or batches of weights, as linear_act. ``options`` are
linear_act's. Kept is z.
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
from torchcalc.ops.activations import INPUT, by_code
from torchcalc.ops.dropout import dropout, dropout_mask
from torchcalc.ops.linear_act import (
    act,
    act_grad,
    bias_grad,
    input_grad,
    linear_tangent,
    rows,
    weight_grad,
    without_mask,
)
from torchcalc.reference import gated as reference
from torchcalc.reference.dropout import dropout_scale


def _halves(t: Tensor) -> tuple[Tensor, Tensor]:
    """The gate's columns and the value's."""
    gate, value = t.chunk(2, -1)
    return gate, value


def _gated_grad_grad(
    c: Tensor, grad: Tensor, z: Tensor, seed: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    (c_gate, c_value), (gate, value) = _halves(c), _halves(z)
    plain = without_mask(options)

    def derivative(t: Tensor, order: int) -> Tensor:
        result: Tensor = act_grad(t, gate, None, *plain, INPUT, order)
        return result

    d_grad = derivative(c_gate * value, 1) + c_value * act(gate, None, None, *plain)
    d_gate = derivative(grad * c_gate * value, 2) + derivative(grad * c_value, 1)
    gradients = [d_grad, d_gate, derivative(grad * c_gate, 1)]
    threshold, *mask = options[3:]
    if threshold:
        kept, scale = (
            dropout_mask(grad.shape, seed, threshold, *mask, False),
            dropout_scale(threshold),
        )
        gradients = [torch.where(kept, scale * t, torch.zeros_like(t)) for t in gradients]
    return gradients[0], torch.cat(gradients[1:], -1)


# gated_grad_grad(c, grad, z, seed, *options) -> (dgrad, dz): the gradients of gated_grad(grad, z),
# c being the cotangent of its result. One kernel; to differentiate, out of operations.
gated_grad_grad = register("gated_grad_grad", _gated_grad_grad)


class _GatedGrad(Function):
    """dz = mask(scale * grad * [v f'(g), f(g)]); linear in grad, and in z the gradient of a number,
    so that its derivative there is symmetric."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, z: Tensor, seed: Tensor | None, *options: Any, kernels: Kernels
    ) -> Tensor:
        ctx.save_for_backward(grad, z, seed)
        kernels.save_for_forward(ctx, grad, z, seed)
        ctx.options = options
        dz: Tensor = kernels.gated_grad(grad, z, seed, *options)
        return dz

    @staticmethod
    def backward(ctx: Any, c_dz: Tensor) -> tuple[Any, ...]:
        d_grad, d_z = gated_grad_grad(c_dz, *ctx.saved_tensors, *ctx.options)
        return d_grad, d_z, None, *[None] * len(ctx.options)

    @staticmethod
    def tangents(
        ctx: Any, saved_for_forward: Any, t_grad: Tensor | None, t_z: Tensor | None, *_: Any
    ) -> Tensor:
        grad, z, seed = saved_for_forward
        t_dz = torch.zeros_like(z)
        if t_grad is not None:
            t_dz = gated_grad(t_grad, z, seed, *ctx.options)
        if t_z is not None:
            t_dz = t_dz + gated_grad_grad(t_z, grad, z, seed, *ctx.options)[1]
        return t_dz


# gated_grad(grad, z, seed, *options) -> dz
gated_grad = register("gated_grad", _GatedGrad)


def _gated_bias_grad(
    grad: Tensor, z: Tensor, seed: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    dz = gated_grad(grad, z, seed, *options)
    return dz, rows(dz).sum(0)


# gated_grad and its sum over rows in one pass; to differentiate, one after the other.
gated_bias_grad = register("gated_bias_grad", _gated_bias_grad)


def gated_grads(
    grad: Tensor, z: Tensor, seed: Tensor | None, *options: Any, bias: bool, batched: bool
) -> tuple[Tensor, Tensor | None]:
    """dz, and if asked the bias gradient."""
    if bias and not batched:
        both: tuple[Tensor, Tensor] = gated_bias_grad(grad, z, seed, *options)
        return both
    dz = gated_grad(grad, z, seed, *options)
    return dz, bias_grad(dz, batched) if bias else None


def gated_tangent(t_z: Tensor, z: Tensor, seed: Tensor | None, *options: Any) -> Tensor:
    """Of y: linear in z's tangent, as the gradient of gated_grad's grad is in c."""
    grad = torch.zeros_like(_halves(z)[0])
    t_y: Tensor = gated_grad_grad(t_z, grad, z, seed, *options)[0]
    return t_y


def gated_value(z: Tensor, seed: Tensor | None, *options: Any) -> Tensor:
    """y of z, out of operations."""
    gate, value = _halves(z)
    y: Tensor = act(gate, None, None, *without_mask(options)) * value
    threshold, *mask = options[3:]
    if threshold:
        y = dropout(y, None, seed, threshold, *mask, 1, dropout_scale(threshold), 0.0, 0.0)
    return y


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
        need_x, need_weight, need_weight_value, *need_biases = ctx.needs_input_grad[:5]
        batched, with_bias = ctx.batched, any(need_biases)
        dz = dbias = None
        if c_y is not None:
            with_sums = with_bias and c_z is None
            dz, dbias = gated_grads(c_y, z, seed, *ctx.options, bias=with_sums, batched=batched)
        if c_z is not None:
            dz = c_z if dz is None else dz + c_z
        others = [None] * (1 + len(ctx.options))
        if dz is None:
            return *[None] * 5, *others
        if with_bias and dbias is None:
            dbias = bias_grad(dz, batched)
        if not ctx.is_pair:
            dx = input_grad(dz, weight) if need_x else None
            dweight = weight_grad(dz, x, batched) if need_weight else None
            return dx, dweight, None, dbias, None, *others
        dg, dv = _halves(dz if batched else rows(dz))
        dx = None
        if need_x:
            dx = (dg @ weight + dv @ weight_value).reshape(*dz.shape[:-1], weight.shape[-1])
        return (
            dx,
            weight_grad(dg, x, batched) if need_weight else None,
            weight_grad(dv, x, batched) if need_weight_value else None,
            *((None, None) if dbias is None else _halves(dbias)),
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


def _vmap_gated_bias_grad(info: Any, in_dims: Any, *args: Any) -> Any:
    dz, _ = vmap_elementwise(gated_grad, 2, info, in_dims, *args)
    return (dz, sample_sums(dz)), (0, 0)


for _name, _op in (("gated_linear", gated_linear), ("gated_linear_keep", gated_linear_keep)):
    register_vmap(_name, partial(_vmap_gated_linear, _op))
register_vmap("gated_grad", partial(vmap_elementwise, gated_grad, 2))
register_vmap("gated_bias_grad", _vmap_gated_bias_grad)
register_vmap("gated_grad_grad", partial(vmap_elementwise, gated_grad_grad, 3))


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


@torch.library.register_fake("torchcalc::gated_grad")
def _(grad, z, seed, *options):  # type: ignore[no-untyped-def]
    return z.new_empty(z.shape)


@torch.library.register_fake("torchcalc::gated_bias_grad")
def _(grad, z, seed, *options):  # type: ignore[no-untyped-def]
    return z.new_empty(z.shape), z.new_empty(z.shape[-1])


@torch.library.register_fake("torchcalc::gated_grad_grad")
def _(c, grad, z, seed, *options):  # type: ignore[no-untyped-def]
    return grad.new_empty(grad.shape), z.new_empty(z.shape)


@register_flop_formula([torch.ops.torchcalc.gated_linear, torch.ops.torchcalc.gated_linear_keep])
def _(x_shape, weight_shape, weight_value_shape=None, *args, **kwargs):  # type: ignore[no-untyped-def]
    features = weight_shape[-2] * (1 if weight_value_shape is None else 2)
    return 2 * torch.Size(x_shape).numel() * features
