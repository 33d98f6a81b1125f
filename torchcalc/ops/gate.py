"""The gate of gated linear units: y = dropout(f(g) * v) of z = [g, v], and its derivatives.

z [*, 2 N], y [*, N]; ``options`` are linear_act's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchcalc.ops._autograd import Function, Kernels, register, register_vmap
from torchcalc.ops._linear import bias_grad, rows, sample_bias_grad
from torchcalc.ops._vmap import vmap_elementwise
from torchcalc.ops.act import act, act_grad, without_mask
from torchcalc.ops.activations import INPUT
from torchcalc.ops.dropout import dropout, dropout_mask
from torchcalc.reference.dropout import dropout_scale


def halves(t: Tensor) -> tuple[Tensor, Tensor]:
    """The gate's columns and the value's."""
    gate, value = t.chunk(2, -1)
    return gate, value


def _gated_grad_grad(
    c: Tensor, grad: Tensor, z: Tensor, seed: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    (c_gate, c_value), (gate, value) = halves(c), halves(z)
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
    grad = torch.zeros_like(halves(z)[0])
    t_y: Tensor = gated_grad_grad(t_z, grad, z, seed, *options)[0]
    return t_y


def gated_value(z: Tensor, seed: Tensor | None, *options: Any) -> Tensor:
    """y of z, out of operations."""
    gate, value = halves(z)
    y: Tensor = act(gate, None, None, *without_mask(options)) * value
    threshold, *mask = options[3:]
    if threshold:
        y = dropout(y, None, seed, threshold, *mask, 1, dropout_scale(threshold), 0.0, 0.0)
    return y


# --- vmap


def _vmap_gated_bias_grad(info: Any, in_dims: Any, *args: Any) -> Any:
    dz, _ = vmap_elementwise(gated_grad, 2, info, in_dims, *args)
    return (dz, sample_bias_grad(dz)), (0, 0)


register_vmap("gated_grad", partial(vmap_elementwise, gated_grad, 2))
register_vmap("gated_bias_grad", _vmap_gated_bias_grad)
register_vmap("gated_grad_grad", partial(vmap_elementwise, gated_grad_grad, 3))


# --- shapes


@torch.library.register_fake("torchcalc::gated_grad")
def _(grad, z, seed, *options):  # type: ignore[no-untyped-def]
    return z.new_empty(z.shape)


@torch.library.register_fake("torchcalc::gated_bias_grad")
def _(grad, z, seed, *options):  # type: ignore[no-untyped-def]
    return z.new_empty(z.shape), z.new_empty(z.shape[-1])


@torch.library.register_fake("torchcalc::gated_grad_grad")
def _(c, grad, z, seed, *options):  # type: ignore[no-untyped-def]
    return grad.new_empty(grad.shape), z.new_empty(z.shape)
