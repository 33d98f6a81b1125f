"""Optimizer states side by side in memory, each still a tensor of its own in ``optimizer.state``.

To hand thousands of small tensors to an op costs more than to update them. So the states of a
group's parameters lie in one flat tensor for each name, which the op gets whole, and
``state[param][name]`` is a view of it. A view that is no longer the one made here (a state that
somebody replaced, also through ``.data``) is noticed by its identity and its address, and its value
is taken over into a new pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchcalc._check import describe
from torchcalc.optim._sharded import local, placed_as, wrap

_LINE = 16  # elements: a cache line of float32


class Slot(NamedTuple):
    """Where a parameter's states are in a pack."""

    shape: torch.Size
    strides: tuple[int, ...] | None  # of the parameter where it is not contiguous
    pack: Pack
    number: int  # of the parameter
    offset: int  # of its elements
    views: tuple[Tensor, ...]  # in the order of the names
    states: tuple[Tensor, ...]  # these, or of shards the whole tensors: what optimizer.state has
    addresses: tuple[int, ...]  # of the views' memory

    def fits(
        self,
        param: Tensor,
        names: tuple[str, ...],
        state: dict[str, Any],
        dtype: torch.dtype | None,
    ) -> bool:
        """Whether the parameter and its state are still those that this slot was made for.

        Anyone may change them in place: a shape and memory order with .data or .to, a state.
        """
        return (
            self.shape == param.shape
            and self.strides == strides_of(param)
            and self.pack.dtype is param.dtype
            and self.pack.state_dtype is (dtype or param.dtype)
            and self.pack.device == param.device
            and self.pack.names == names
            and all(map(is_, map(state.get, names), self.states))
            and tuple(map(Tensor.data_ptr, self.views)) == self.addresses
        )

    def place(self, param: Tensor, position: int, indexes: int) -> list[int]:
        """What the kernels' argument ``places`` holds of a parameter (csrc/ops/optim.h).

        ``position`` is that in its group.
        Bit d of ``indexes``: whether dimension d tells the groups of the penalty.
        """
        shape: tuple[int, ...] = self.shape
        if self.strides is not None:
            order = memory_order(param)
            shape = param.permute(order).shape
            indexes = sum((indexes >> d & 1) << i for i, d in enumerate(order))
        if self.pack.parts > 1:
            shape = (*shape, self.pack.parts)
        return [self.offset * self.pack.parts, self.number, position, len(shape), *shape, indexes]


def strides_of(param: Tensor) -> tuple[int, ...] | None:
    return None if param.is_contiguous() else param.stride()


def memory_order(param: Tensor) -> list[int]:
    """The permutation of dimensions that makes a parameter without gaps contiguous."""
    return sorted(range(param.dim()), key=param.stride, reverse=True)


class Pack:
    """States of parameters of one dtype on one device: a flat tensor for each name.

    Args:
        params: whose states these are; of shards, what this rank has.
        names: of states with an element for each of the parameter's.
        counts: of states with one float32 for each parameter.
        states: their values now; empty where the states start with this step.
        wholes: the parameters themselves.
        dtype: of states with an element for each; None for that of the parameters.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        names: Sequence[str],
        counts: Sequence[str],
        states: Sequence[dict[str, Any]],
        wholes: Sequence[Tensor],
        dtype: torch.dtype | None = None,
    ) -> None:
        offsets = [0]
        for param in params:
            # Aligned, and a line apart: else large states would share their places in the cache.
            lines = -(-param.numel() // _LINE) + 1
            offsets.append(offsets[-1] + lines * _LINE)
        like = params[0]
        self.state_dtype = dtype or like.dtype
        options: dict[str, Any] = {"dtype": self.state_dtype, "device": like.device}
        flat = [torch.zeros(offsets[-1], **options) for _ in names]
        count = [torch.zeros(len(params), dtype=torch.float32, device=like.device) for _ in counts]
        # Of a complex number the kernels see two.
        self.parts = 2 if like.is_complex() else 1
        self.names = (*names, *counts)
        self.dtype, self.device = like.dtype, like.device
        self.flats = [*(torch.view_as_real(f) if like.is_complex() else f for f in flat), *count]
        self.fresh = not states[0]
        self.slots = []
        for index, (param, state, whole) in enumerate(zip(params, states, wholes, strict=True)):
            strides = torch.empty_like(param, device="meta").stride()  # dense, in param's order
            views = (
                *(f.as_strided(param.shape, strides, offsets[index]) for f in flat),
                *(c[index] for c in count),
            )
            if not self.fresh:
                for view, name in zip(views, self.names, strict=True):
                    value = state.get(name)
                    if name in names and isinstance(value, Tensor) and value.shape == whole.shape:
                        value = local(placed_as(whole, value))
                    if name in names and dtype is not None and isinstance(value, Tensor):
                        value = value.to(dtype)  # state_dtype was set on the way
                    view.copy_(check_value(name, value, view))
            self.slots.append(
                Slot(
                    param.shape,
                    strides_of(param),
                    self,
                    index,
                    offsets[index],
                    views,
                    (*(wrap(whole, view) for view in views[: len(names)]), *views[len(names) :]),
                    tuple(map(Tensor.data_ptr, views)),
                )
            )


def check_value(name: str, value: Any, like: Tensor) -> Tensor:
    """A state that fits ``like``, which has its shape, dtype and device."""
    if (
        not isinstance(value, Tensor)
        or value.shape != like.shape
        or value.dtype != like.dtype
        or value.device != like.device
    ):
        raise ValueError(
            f"state {name!r} must be {describe(like)}, got {describe(value)}; where the model "
            "has changed since, load_state_dict(state_dict()) adapts dtype and device"
        )
    return value
