"""What a step consists of: kernel calls, and the memory of their states, found tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchcalc._C import missing
from torchcalc.ops.penalty_prox import is_separable
from torchcalc.optim._plan import Batch, Gradients
from torchcalc.optim._sharded import mesh_dims_across
from torchcalc.optim._state import Pack, Slot
from torchcalc.prox import Penalty

if TYPE_CHECKING:
    from torchcalc.optim._proximal import ProximalOptimizer

_MANY = 4  # packs of a group


def make_batches(
    optimizer: ProximalOptimizer,
    owners: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Gradients,
    names: Sequence[tuple[str, ...]],
    penalties: Sequence[Penalty | None],
) -> list[Batch]:
    """Each tensor is looked at; makes packs for states without one.

    Raises:
        TypeError, ValueError: a parameter, gradient or state is not valid.
    """
    batches: dict[tuple[int, Pack, bool], Batch] = {}
    states = vars(optimizer)["state"]
    begin = 0
    for number, group in enumerate(optimizer.param_groups):
        penalty = penalties[number]
        homeless: dict[Any, list[tuple[int, Tensor]]] = {}  # whose states are in no pack
        end = begin + len(group["params"])
        # Parameters that got their first gradients one by one have packs, and kernel calls, of
        # their own: one for all once all of them have gradients.
        packs = {optimizer.slots[p].pack for p in owners[begin:end] if p in optimizer.slots}
        merge = len(packs) > _MANY and 1 not in missing(grads[begin:end])

        def add(i: int, grad: Tensor, slot: Slot, number: int = number) -> None:
            key = number, slot.pack, is_across(penalties[number], owners[i])
            batch = batches.get(key) or batches.setdefault(key, Batch(*key))
            batch.add(i, params[i], grad, slot)

        for i in range(begin, end):
            param, grad = params[i], grads[i]
            if grad is None:
                continue
            _check_gradient(optimizer, param, grad)
            if penalty is not None:
                optimizer.check_shape(penalty, owners[i])
            state = states.get(owners[i], {})
            slot = optimizer.slots.get(owners[i])
            dtype = optimizer.dtype_of(group, param)
            if slot and not merge and slot.fits(param, names[number], state, dtype):
                add(i, grad, slot)
            else:
                fresh = not any(state.get(name) is not None for name in names[number])
                homeless.setdefault((param.dtype, param.device, fresh), []).append((i, grad))
        for (_, _, fresh), members in homeless.items():
            values = [{} if fresh else states[owners[i]] for i, _ in members]
            shaped, wholes = ([of[i] for i, _ in members] for of in (params, owners))
            dtype = optimizer.dtype_of(group, shaped[0])
            flat = optimizer.names(group)
            pack = Pack(shaped, flat, optimizer.counts, values, wholes, dtype)
            for (i, grad), slot in zip(members, pack.slots, strict=True):
                if fresh:
                    optimizer.start(group, params[i], slot.views)
                add(i, grad, slot)
        begin = end
    for batch in batches.values():
        begin = sum(len(group["params"]) for group in optimizer.param_groups[: batch.group])
        batch.close(owners, params, begin, penalties[batch.group])
    return list(batches.values())


def is_across(penalty: Penalty | None, param: Tensor) -> bool:
    """Whether groups of the penalty lie on several ranks."""
    if penalty is None or (penalty.kernel is not None and is_separable(penalty.kernel)):
        return False
    return bool(mesh_dims_across(param, penalty.indexes(param.shape)))


def _check_gradient(optimizer: ProximalOptimizer, param: Tensor, grad: Tensor) -> None:
    if grad.dtype is not param.dtype or grad.layout is not torch.strided:
        raise TypeError(
            f"{type(optimizer).__name__}: gradients must be dense and of their parameter's "
            f"dtype, {param.dtype}; got {grad.layout}, {grad.dtype}"
        )
    if any(s == 0 and n > 1 for s, n in zip(param.stride(), param.shape, strict=True)):
        raise ValueError(
            f"{type(optimizer).__name__}: params must have memory for each of their elements, got "
            f"shape {tuple(param.shape)} with strides {param.stride()}"
        )
    if grad.shape != param.shape or grad.device != param.device:
        raise ValueError(
            f"{type(optimizer).__name__}: gradients must have the shape of their parameter, "
            f"{tuple(param.shape)}, on {param.device}; got {tuple(grad.shape)} on "
            f"{grad.device}"
        )
