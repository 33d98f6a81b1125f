"""Linear + activation + dropout: y = residual + dropout(f(x W^T + b)), and its derivatives.

x [*, K], weight [N, K], bias [N], residual and y [*, N]. ``activation`` travels as its code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchcalc import _check
from torchcalc.ops._autograd import (
    Function,
    Kernels,
    in_front,
    register,
    register_vmap,
    vmap_by_loop,
)
from torchcalc.ops.dropout import dropout_mask
from torchcalc.reference import linear_act as reference
from torchcalc.reference.dropout import dropout_scale

# A name's position is its code in csrc/math/activations.h.
ACTIVATIONS = tuple(reference.ACTIVATIONS)
CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
_IDENTITY = CODES["identity"]
_FROM_OUTPUT = frozenset(CODES[name] for name in reference.FROM_OUTPUT)

# Orders of the derivative that have a kernel; the next is plain PyTorch, which differentiates on.
_KERNEL_ORDERS = 2


def _rows(t: Tensor) -> Tensor:
    """[*, N] as a matrix."""
    return t if t.dim() == 2 else t.unsqueeze(0) if t.dim() == 1 else t.flatten(0, -2)


def _keeps(activation: int, residual: Tensor | None) -> bool:
    """Whether the derivative needs more than y: z, or with a residual a = f(z)."""
    if activation == _IDENTITY:
        return False
    return activation not in _FROM_OUTPUT or residual is not None


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
        activation, order, *rest = ctx.options
        d_grad = d_saved = None
        if ctx.needs_input_grad[0]:
            d_grad = act_grad(c_dz, saved, seed, activation, order, *rest)
        if ctx.needs_input_grad[1]:
            d_saved = act_grad(c_dz * grad, saved, seed, activation, order + 1, *rest)
        return d_grad, d_saved, None, None, None, None, None

    @staticmethod
    def tangents(
        ctx: Any, saved_for_forward: Any, t_grad: Tensor | None, t_saved: Tensor | None, *_: Any
    ) -> Tensor:
        grad, saved, seed = saved_for_forward
        activation, order, *rest = ctx.options
        t_dz = torch.zeros_like(grad)
        if t_grad is not None:
            t_dz = act_grad(t_grad, saved, seed, activation, order, *rest)
        if t_saved is not None:
            t_dz = t_dz + act_grad(grad * t_saved, saved, seed, activation, order + 1, *rest)
        return t_dz


_act_grad = register("act_grad", _ActGrad)


def act_grad(
    grad: Tensor,
    saved: Tensor | None,
    seed: Tensor | None,
    activation: int,
    order: int,
    threshold: int,
    scaled: bool,
) -> Tensor:
    """mask(scale * F_order(u) * grad), order <= 3; saved is u, or with ``scaled`` y = scale u."""
    if order <= _KERNEL_ORDERS:
        dz: Tensor = _act_grad(grad, saved, seed, activation, order, threshold, scaled)
        return dz
    third = reference.THIRD.get(ACTIVATIONS[activation])
    if third is None or saved is None:
        return torch.zeros_like(grad)
    scale = dropout_scale(threshold)
    unscale = 1 / scale if scaled and scale > 0 else 1.0
    dz = grad * third(saved * unscale) * (scale * unscale**2)
    if not threshold:
        return dz
    return torch.where(dropout_mask(grad.shape, seed, threshold), dz, torch.zeros_like(dz))


def _act_bias_grad(
    grad: Tensor,
    saved: Tensor | None,
    seed: Tensor | None,
    activation: int,
    threshold: int,
    scaled: bool,
) -> tuple[Tensor, Tensor]:
    dz = act_grad(grad, saved, seed, activation, 1, threshold, scaled)
    return dz, _rows(dz).sum(0)


# act_grad and its sum over rows in one pass; to differentiate, one after the other.
act_bias_grad = register("act_bias_grad", _act_bias_grad)


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
        activation: int,
        threshold: int,
        *,
        kernels: Kernels,
    ) -> Tensor | tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.options = activation, threshold
        ctx.keeps = _keeps(activation, residual)
        op = kernels.linear_act_keep if ctx.keeps else kernels.linear_act
        outputs = op(x, weight, bias, residual, seed, activation, threshold)
        saved = outputs[1] if ctx.keeps else outputs if activation != _IDENTITY else None
        # x and weight are kept only for the gradients that need them, as F.linear does.
        need_x, need_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_weight else None, weight if need_x else None, saved, seed)
        kernels.save_for_forward(ctx, x, weight, saved, seed)
        return outputs  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, c_y: Tensor | None, c_kept: Tensor | None = None) -> tuple[Any, ...]:
        x, weight, saved, seed = ctx.saved_tensors
        activation, threshold = ctx.options
        need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
        dz = dbias = None
        if c_y is not None and (need_x or need_weight or need_bias):
            if need_bias:
                dz, dbias = act_bias_grad(c_y, saved, seed, activation, threshold, not ctx.keeps)
            else:
                dz = act_grad(c_y, saved, seed, activation, 1, threshold, not ctx.keeps)
        if c_kept is not None:
            through_kept = c_kept
            if activation in _FROM_OUTPUT:
                through_kept = act_grad(c_kept, saved, None, activation, 1, 0, False)
            dz = through_kept if dz is None else dz + through_kept
            dbias = _rows(dz).sum(0) if need_bias else None
        return (
            dz @ weight if need_x and dz is not None else None,
            _rows(dz).t() @ _rows(x) if need_weight and dz is not None else None,
            dbias,
            c_y if need_residual else None,
            None,
            None,
            None,
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
    ) -> Tensor | tuple[Tensor, Tensor]:
        x, weight, saved, seed = saved_for_forward
        activation, threshold = ctx.options
        t_z = x.new_zeros(*x.shape[:-1], weight.shape[0])
        if t_x is not None:
            t_z = t_z + F.linear(t_x, weight)
        if t_weight is not None:
            t_z = t_z + F.linear(x, t_weight)
        if t_bias is not None:
            t_z = t_z + t_bias
        t_y = act_grad(t_z, saved, seed, activation, 1, threshold, not ctx.keeps)
        if t_residual is not None:
            t_y = t_y + t_residual
        if not ctx.keeps:
            return t_y
        if activation in _FROM_OUTPUT:
            return t_y, act_grad(t_z, saved, None, activation, 1, 0, False)
        return t_y, t_z


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    seed: Tensor | None,
    activation: int,
    threshold: int,
) -> Tensor:
    _check.linear_act(x, weight, bias, residual, seed)
    name = ACTIVATIONS[activation]
    return reference.linear_act(x, weight, bias, name, residual, seed, threshold)


# linear_act(x, weight, bias, residual, seed, activation, threshold) -> y
linear_act = register("linear_act", _LinearAct, _reference, first=True)
# The same -> (y, kept), for those arguments whose derivative needs more than y.
linear_act_keep = register("linear_act_keep", _LinearAct)


def _vmap_linear_act(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    x, weight, bias, residual, _, activation, threshold = args
    if threshold or in_dims[1] is not None or in_dims[2] is not None:
        return vmap_by_loop(op, info, in_dims, args)  # a mask or a GEMM for each sample
    x, residual = (in_front(args[i], in_dims[i], info.batch_size) for i in (0, 3))
    outputs = op(x, weight, bias, residual, None, activation, 0)
    return outputs, 0 if isinstance(outputs, Tensor) else (0, 0)


def _vmap_act_grad(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    grad, saved, _, activation, order, threshold, scaled = args
    if threshold:  # the mask starts anew with each sample
        return vmap_by_loop(_act_grad, info, in_dims, args)
    grad, saved = (in_front(args[i], in_dims[i], info.batch_size) for i in (0, 1))
    return _act_grad(grad, saved, None, activation, order, 0, scaled), 0


def _vmap_act_bias_grad(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    grad, saved, seed, activation, threshold, scaled = args
    args = grad, saved, seed, activation, 1, threshold, scaled
    dz, _ = _vmap_act_grad(info, (*in_dims[:4], None, *in_dims[4:]), *args)
    leading = tuple(range(1, dz.dim() - 1))
    return (dz, dz.sum(leading) if leading else dz), (0, 0)


register_vmap("linear_act", lambda *args: _vmap_linear_act(linear_act, *args))
register_vmap("linear_act_keep", lambda *args: _vmap_linear_act(linear_act_keep, *args))
register_vmap("act_grad", _vmap_act_grad)
register_vmap("act_bias_grad", _vmap_act_bias_grad)


# --- shapes and costs


@torch.library.register_fake("torchcalc::linear_act")
def _(x, weight, bias, residual, seed, activation, threshold):  # type: ignore[no-untyped-def]
    _check.linear_act(x, weight, bias, residual, seed)
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("torchcalc::linear_act_keep")
def _(x, weight, bias, residual, seed, activation, threshold):  # type: ignore[no-untyped-def]
    _check.linear_act(x, weight, bias, residual, seed)
    shape = (*x.shape[:-1], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape)


@torch.library.register_fake("torchcalc::act_grad")
def _(grad, saved, seed, activation, order, threshold, scaled):  # type: ignore[no-untyped-def]
    return grad.new_empty(grad.shape)


@torch.library.register_fake("torchcalc::act_bias_grad")
def _(grad, saved, seed, activation, threshold, scaled):  # type: ignore[no-untyped-def]
    return grad.new_empty(grad.shape), grad.new_empty(grad.shape[-1])


@register_flop_formula([torch.ops.torchcalc.linear_act, torch.ops.torchcalc.linear_act_keep])
def _(x_shape, weight_shape, *args, **kwargs):  # type: ignore[no-untyped-def]
    return 2 * torch.Size(x_shape).numel() * weight_shape[0]
