"""Two layers: y = residual + dropout(h W2^T + b2), h = dropout(f(x W1^T + b1)), or gated
h = dropout(f(g) v) with [g, v] = x W1^T + b1; and derivatives.

x [*, K], W1 [H, K] (gated [2 H, K]), b1, W2 [N, H], b2 [N], residual and y [*, N]; or batches of
weights, as linear_act. ``options`` are ``activation, a, b, gated, hidden_threshold, threshold,
samples, hidden_block, block``: the hidden layer, and what tells the two masks. Kept is the
pre-activation z = x W1^T + b1, of which backward makes h again in the pass that makes dz; or h
alone, where h tells f'.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchcalc import _check
from torchcalc.ops._autograd import Function, Kernels, in_front, register, register_vmap
from torchcalc.ops._linear import bias_grad, empty_as, input_grad, linear_tangent, weight_grad
from torchcalc.ops._mask import sample_seeds
from torchcalc.ops._vmap import batched_linear
from torchcalc.ops.act import act, act_grad, act_grads
from torchcalc.ops.activations import INPUT, NOTHING, SCALED_OUTPUT, by_code, saved_for
from torchcalc.ops.gate import gated_grads, gated_tangent, gated_value
from torchcalc.reference import gated as gated_reference
from torchcalc.reference import linear_act as reference

_IDENTITY = 0, 0.0, 0.0


def _hidden(options: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of the hidden layer, as linear_act's and gated_linear's."""
    *activation, _, threshold, _, samples, block, _ = options
    return (*activation, threshold, samples, block)


def _output(options: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of the layer behind it, as linear_act's."""
    *_, threshold, samples, _, block = options
    return (*_IDENTITY, threshold, samples, block)


def _saved_as(options: tuple[Any, ...]) -> int:
    """How the hidden layer's derivative is told: by h, or by z."""
    saved_as = saved_for(*options[:3], False, options[4] > 0)
    return saved_as if saved_as in (NOTHING, SCALED_OUTPUT) and not options[3] else INPUT


def _value(z: Tensor, seed: Tensor | None, gated: bool, *hidden: Any) -> Tensor:
    """h, of z."""
    h: Tensor = gated_value(z, seed, *hidden) if gated else act(z, None, seed, *hidden)
    return h


def _z_grads(
    grad: Tensor,
    z: Tensor,
    seed: Tensor | None,
    gated: bool,
    *hidden: Any,
    bias: bool,
    batched: bool,
) -> tuple[Tensor, Tensor | None]:
    """Of h's gradient dz, and if asked the bias gradient."""
    if gated:
        return gated_grads(grad, z, seed, *hidden, bias=bias, batched=batched)
    return act_grads(grad, z, seed, *hidden, INPUT, bias=bias, batched=batched)


def _mlp_grad(
    grad: Tensor, weight2: Tensor, z: Tensor, hidden_seed: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *activation, gated, threshold, samples, block = options
    hidden = gated, *activation, threshold, samples, block
    batched = weight2.dim() == 3
    dz, _ = _z_grads(
        input_grad(grad, weight2), z, hidden_seed, *hidden, bias=False, batched=batched
    )
    h = _value(z, hidden_seed, *hidden)
    return dz, weight_grad(grad, h, batched, weight2), bias_grad(dz, batched)


# What grad = dy gives through y = h W2^T: dz, dW2 and db1. To differentiate, one after the other.
mlp_grad = register("mlp_grad", _mlp_grad)


class _Mlp(Function):
    """y, and with it what is kept: a differentiable output, as in linear_act."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        residual: Tensor | None,
        hidden_seed: Tensor | None,
        seed: Tensor | None,
        *options: Any,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.options = options
        outputs: tuple[Tensor, Tensor] = kernels.mlp_keep(
            x, weight1, bias1, weight2, bias2, residual, hidden_seed, seed, *options
        )
        kept = outputs[1]
        need = ctx.needs_input_grad
        ctx.save_for_backward(
            x if need[1] else None,
            weight1 if need[0] else None,
            weight2 if any(need[:3]) else None,
            kept,
            hidden_seed,
            seed,
        )
        ctx.batched = weight1.dim() == 3
        kernels.save_for_forward(ctx, x, weight1, weight2, kept, hidden_seed, seed)
        return outputs

    @staticmethod
    def backward(ctx: Any, c_y: Tensor | None, c_kept: Tensor | None) -> tuple[Any, ...]:
        x, weight1, weight2, kept, hidden_seed, seed = ctx.saved_tensors
        options, batched = ctx.options, ctx.batched
        gated, hidden, output = options[3], _hidden(options), _output(options)
        saved_as = _saved_as(options)
        need_x, need_weight1, need_bias1, need_weight2, need_bias2, _ = ctx.needs_input_grad[:6]
        need_hidden = need_x or need_weight1 or need_bias1
        d_out = dz = d_weight2 = db1 = db2 = None
        if c_y is not None and (need_hidden or need_weight2 or need_bias2):
            told = None, seed, *output, NOTHING
            d_out, db2 = act_grads(c_y, *told, bias=need_bias2, batched=batched)
        if saved_as != INPUT:  # kept is h
            d_hidden = _sum(
                input_grad(d_out, weight2) if d_out is not None and need_hidden else None, c_kept
            )
            if d_out is not None and need_weight2:
                d_weight2 = weight_grad(d_out, kept, batched, weight2)
            if d_hidden is not None and need_hidden:
                told = None if saved_as == NOTHING else kept, hidden_seed, *hidden, saved_as
                dz, db1 = act_grads(d_hidden, *told, bias=need_bias1, batched=batched)
        else:
            told = kept, hidden_seed, gated, *hidden
            if d_out is not None and need_hidden and need_weight2:
                gradients = _mlp_grad if batched else mlp_grad
                *activation, threshold, samples, block = hidden
                layer = *activation, gated, threshold, samples, block
                dz, d_weight2, db1 = gradients(d_out, weight2, kept, hidden_seed, *layer)
            elif d_out is not None and need_hidden:
                dz, db1 = _z_grads(
                    input_grad(d_out, weight2), *told, bias=need_bias1, batched=batched
                )
            elif d_out is not None and need_weight2:
                d_weight2 = weight_grad(d_out, _value(*told), batched, weight2)
            if c_kept is not None:
                dz = _sum(dz, c_kept)
                db1 = bias_grad(dz, batched) if need_bias1 and dz is not None else None
        return (
            input_grad(dz, weight1) if need_x and dz is not None else None,
            weight_grad(dz, x, batched, weight1) if need_weight1 and dz is not None else None,
            db1 if need_bias1 else None,
            d_weight2,
            db2,
            c_y if ctx.needs_input_grad[5] else None,
            *[None] * (2 + len(options)),
        )

    @staticmethod
    def tangents(
        ctx: Any,
        saved_for_forward: Any,
        t_x: Tensor | None,
        t_weight1: Tensor | None,
        t_bias1: Tensor | None,
        t_weight2: Tensor | None,
        t_bias2: Tensor | None,
        t_residual: Tensor | None,
        *_: Any,
    ) -> tuple[Tensor, Tensor]:
        x, weight1, weight2, kept, hidden_seed, seed = saved_for_forward
        gated, hidden, output = ctx.options[3], _hidden(ctx.options), _output(ctx.options)
        saved_as = _saved_as(ctx.options)
        t_z = linear_tangent(x, weight1, t_x, t_weight1, t_bias1)
        if gated:
            t_h = gated_tangent(t_z, kept, hidden_seed, *hidden)
        else:
            saved = None if saved_as == NOTHING else kept
            t_h = act_grad(t_z, saved, hidden_seed, *hidden, saved_as, 1)
        h = _value(kept, hidden_seed, gated, *hidden) if saved_as == INPUT else kept
        t_out = linear_tangent(h, weight2, t_h, t_weight2, t_bias2)
        t_y = act_grad(t_out, None, seed, *output, NOTHING, 1) if output[3] else t_out
        if t_residual is not None:
            t_y = t_y + t_residual
        return t_y, t_z if saved_as == INPUT else t_h


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def _reference(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    residual: Tensor | None,
    hidden_seed: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> Tensor:
    hidden, output = _hidden(options), _output(options)
    f, mask = by_code(*hidden[:3]), hidden[3:]
    if options[3]:
        h = gated_reference.gated_linear(x, weight1, None, bias1, None, f, hidden_seed, *mask)
    else:
        h = reference.linear_act(x, weight1, bias1, f, None, hidden_seed, *mask)
    identity = by_code(*output[:3])
    return reference.linear_act(h, weight2, bias2, identity, residual, seed, *output[3:])


# mlp(x, weight1, bias1, weight2, bias2, residual, hidden_seed, seed, *options) -> y
mlp = register("mlp", _Mlp, _reference, first=True)
# The same -> (y, kept).
mlp_keep = register("mlp_keep", _Mlp)


def _vmap(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    size = info.batch_size
    hidden_seed, seed, *options = args[6:]
    *others, samples, hidden_block, block = options
    seeds = [
        sample_seeds(given, dim, size, samples)
        for given, dim in ((hidden_seed, in_dims[6]), (seed, in_dims[7]))
    ]
    tensors, back = batched_linear(args[:6], in_dims[:6], size, parameters=(1, 2, 3, 4))
    outputs = op(*tensors, *seeds, *others, samples * size, hidden_block, block)
    if isinstance(outputs, Tensor):
        return back(outputs), 0
    return tuple(map(back, outputs)), (0, 0)


for _name, _op in (("mlp", mlp), ("mlp_keep", mlp_keep)):
    register_vmap(_name, partial(_vmap, _op))


def _vmap_grad(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    size = info.batch_size
    *hidden, samples, block = args[4:]
    seed = sample_seeds(args[3], in_dims[3], size, samples)
    # dW2 is one for each sample: the weights as a batch.
    weight2 = in_front(args[1], in_dims[1], size)
    tensors = args[0], weight2, args[2]
    dims = in_dims[0], 0, in_dims[2]
    batches, back = batched_linear(tensors, dims, size, parameters=(1,))
    layer = *hidden, samples * size, block
    dz, dweight2, dbias1 = _mlp_grad(*batches, seed, *layer)  # type: ignore[arg-type]
    return (back(dz), dweight2, dbias1), (0, 0, 0)


register_vmap("mlp_grad", _vmap_grad)


def _check_traced(*args: Any) -> None:
    *tensors, hidden_seed, seed = args[:8]
    gated, samples = args[11], args[14]
    if tensors[1].dim() == 2:  # else it comes from a vmap of what was checked
        seeds = (hidden_seed, seed) if samples == 1 else (None, None)
        _check.mlp(*tensors, *seeds, gated=gated)


@torch.library.register_fake("torchcalc::mlp")
def _(*args):  # type: ignore[no-untyped-def]
    _check_traced(*args)
    return args[0].new_empty(*args[0].shape[:-1], args[3].shape[-2])


@torch.library.register_fake("torchcalc::mlp_keep")
def _(*args):  # type: ignore[no-untyped-def]
    _check_traced(*args)
    x, weight1, _, weight2, *_ = args
    lead = x.shape[:-1]
    return x.new_empty(*lead, weight2.shape[-2]), x.new_empty(*lead, weight1.shape[-2])


@torch.library.register_fake("torchcalc::mlp_grad")
def _(grad, weight2, z, *args):  # type: ignore[no-untyped-def]
    return z.new_empty(z.shape), empty_as(weight2, weight2), z.new_empty(z.shape[-1])


@register_flop_formula(torch.ops.torchcalc.mlp_grad)
def _(grad_shape, weight2_shape, *args, **kwargs):  # type: ignore[no-untyped-def]
    return 4 * torch.Size(grad_shape).numel() * weight2_shape[-1]


@register_flop_formula([torch.ops.torchcalc.mlp, torch.ops.torchcalc.mlp_keep])
def _(x_shape, weight1_shape, bias1, weight2_shape, *args, **kwargs):  # type: ignore[no-untyped-def]
    rows = torch.Size(x_shape[:-1]).numel()
    return (
        2 * rows * (weight1_shape[-2] * weight1_shape[-1] + weight2_shape[-2] * weight2_shape[-1])
    )
