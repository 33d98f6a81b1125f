"""How the ops run on sharded tensors (DTensor): which placements of inputs give which of outputs.

An op that draws a mask takes replicated tensors only: the mask is a function of the element's index
in the whole tensor, which a shard does not know.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchcalc.ops.activations import BITS, saved_for

if TYPE_CHECKING:
    from torch.distributed.tensor.placement_types import Placement

    Placements = list[Placement | None]
    Rule = Callable[..., list[tuple[Placements, Placements]]]

_MODULE = "torch.distributed.tensor"
_IDENTITY = 0
_registered = False


def prepare() -> None:
    """Registers the rules as soon as there are DTensors; their module takes long to import."""
    global _registered
    if not _registered and _MODULE in sys.modules:
        _register()  # twice, where two threads come at once, does no harm
        _registered = True


def replicated(seed: Tensor, x: Tensor) -> Tensor:
    """The seed as x is: where that is a DTensor, that of the mesh's first rank on every rank."""
    module = sys.modules.get(_MODULE)
    if module is None or not isinstance(x, module.DTensor) or isinstance(seed, module.DTensor):
        return seed
    everywhere = [module.Replicate()] * x.device_mesh.ndim
    result: Tensor = module.distribute_tensor(seed, x.device_mesh, everywhere)
    return result


def _register() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    ops = torch.ops.torchcalc
    everywhere = Replicate()

    def like(t: Any, placement: Placement | None) -> Placement | None:
        return None if t is None else placement

    def replicate(outputs: int, *args: Any) -> tuple[Placements, Placements]:
        return [everywhere] * outputs, [
            everywhere if hasattr(arg, "placements") else None for arg in args
        ]

    def linear_act(outputs: int) -> Rule:
        def rule(x, weight, bias, residual, seed, *options):  # type: ignore[no-untyped-def]
            activation, _, _, threshold, *_ = options
            args = x, weight, bias, residual, seed, *options
            rules = [replicate(outputs, *args)]
            if threshold:
                return rules

            def add(y: Placement, *inputs: Placement) -> None:
                tensors = (x, weight, bias, residual)
                placements = [like(t, p) for t, p in zip(tensors, inputs, strict=True)]
                results: Placements = [y] * outputs
                rules.append(
                    (results, [*placements, like(seed, everywhere), *(None for _ in options)])
                )

            for dim in range(x.ndim - 1):
                add(Shard(dim), Shard(dim), everywhere, everywhere, Shard(dim))
            features = Shard(x.ndim - 1)
            if outputs == 1 or saved_for(*options[:3], residual is not None, False) != BITS:
                # Else bytes of eight columns would be torn apart.
                add(features, everywhere, Shard(0), Shard(0), features)
            if activation == _IDENTITY and bias is None and residual is None:
                add(Partial(), features, Shard(1), everywhere, everywhere)
            return rules

        return rule

    def act_grad(with_bias: bool) -> Rule:
        def rule(grad, saved, seed, *options):  # type: ignore[no-untyped-def]
            threshold = options[3]
            rules = [replicate(1 + with_bias, grad, saved, seed, *options)]
            dims = 0 if threshold else grad.ndim - (options[6] == BITS)
            for dim in range(dims):
                dz = Shard(dim)
                results: Placements = [dz]
                if with_bias:
                    results.append(Shard(0) if dim == grad.ndim - 1 else Partial())
                inputs: Placements = [dz, like(saved, dz), like(seed, everywhere)]
                rules.append((results, [*inputs, *(None for _ in options)]))
            return rules

        return rule

    def gated_linear(outputs: int) -> Rule:
        # Not by columns: a shard of z would hold other columns than its place in z says.
        def rule(x, *args):  # type: ignore[no-untyped-def]
            parameters, threshold = args[:5], args[8]
            rules = [replicate(outputs, x, *args)]
            for dim in range(0 if threshold else x.ndim - 1):
                results: Placements = [Shard(dim)] * outputs
                inputs: Placements = [Shard(dim), *(like(t, everywhere) for t in parameters)]
                rules.append((results, [*inputs, *(None for _ in args[5:])]))
            return rules

        return rule

    def gated_grad(tensors: int, with_bias: bool = False) -> Rule:
        def rule(*args):  # type: ignore[no-untyped-def]
            grad, threshold = args[0], args[tensors + 4]
            outputs = tensors - 1 + with_bias
            rules = [replicate(outputs, *args)]
            for dim in range(0 if threshold else grad.ndim - 1):
                results: Placements = [Shard(dim)] * (tensors - 1)
                if with_bias:
                    results.append(Partial())
                inputs: Placements = [*[Shard(dim)] * tensors, like(args[tensors], everywhere)]
                rules.append((results, [*inputs, *(None for _ in args[tensors + 1 :])]))
            return rules

        return rule

    def elementwise(outputs: int) -> Rule:
        def rule(*args):  # type: ignore[no-untyped-def]
            *tensors, _, _ = args
            x, *strengths = tensors[-3:]
            rules = [replicate(outputs, *args)]
            for dim in range(x.ndim):
                shard = Shard(dim)
                # Gradients of strengths come after those of all other tensors, if at all.
                absent = [everywhere if t is None else shard for t in strengths][: outputs - 1]
                results: Placements = [*[shard] * (outputs - len(absent)), *absent]
                inputs: Placements = [
                    like(t, shard if t is not None and t.shape == x.shape else everywhere)
                    for t in tensors
                ]
                rules.append((results, [*inputs, None, None]))
            return rules

        return rule

    def masked(*args):  # type: ignore[no-untyped-def]
        return [replicate(1, *args)]

    rules: dict[Any, Rule] = {
        ops.linear_act: linear_act(1),
        ops.linear_act_keep: linear_act(2),
        ops.act_grad: act_grad(False),
        ops.act_bias_grad: act_grad(True),
        ops.gated_linear: gated_linear(1),
        ops.gated_linear_keep: gated_linear(2),
        ops.gated_grad: gated_grad(2),
        ops.gated_bias_grad: gated_grad(2, with_bias=True),
        ops.gated_grad_grad: gated_grad(3),
        ops.dropout: masked,
        ops.dropout_mask: masked,
        ops.prox: elementwise(1),
        ops.prox_grad: elementwise(3),
        ops.prox_x_grad: elementwise(1),
        ops.prox_grad_grad: elementwise(4),
    }
    for op, rule in rules.items():
        register_sharding(op.default)(rule)
