"""Which kernel calls make up a step: found once, and used again as long as nothing has changed.

To look at each parameter in turn costs more than to update a small one. So what a step needs is
kept, and the next one asks about all parameters at once whether it still holds: are parameters,
states and the set of gradients the same objects? The kernels themselves refuse tensors whose shape,
dtype, device or memory order is no longer what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from torchcalc._C import missing, same, same_values
from torchcalc.optim._state import Pack, Slot, memory_order
from torchcalc.prox import Penalty

Gradients = list[Tensor | None]
States = dict[Tensor, dict[str, Any]]


class Call:
    """The tensors of one kernel call, contiguous."""

    def __init__(self, batch: Batch, params: list[Tensor], grads: list[Tensor]) -> None:
        self.params, self.grads = params, grads
        self.originals = params
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.states, self.places = batch.pack.flats, batch.places
        self.fresh = batch.pack.fresh
        if batch.arranged:
            self._arrange(batch.slots)
        if batch.pack.parts > 1:
            self.params = [torch.view_as_real(p) for p in self.params]
            self.grads = [torch.view_as_real(g.resolve_conj()) for g in self.grads]

    def _arrange(self, slots: Sequence[Slot]) -> None:
        """Takes tensors of any strides as contiguous ones, in the order of param's memory."""
        self.params = list(self.params)
        for i, (param, grad, slot) in enumerate(zip(self.params, self.grads, slots, strict=True)):
            if slot.strides is not None:
                order = memory_order(param)
                param, grad = param.permute(order), grad.permute(order)
            self.params[i], self.grads[i] = param.contiguous(), grad.contiguous()
            if self.params[i] is not param:  # it has gaps
                self.copies.append((param, self.params[i]))

    def check(self, counts: int) -> None:
        """Raises what the kernel would raise, and writes nothing."""
        torch.ops.torchcalc.optim_check(self.params, self.grads, self.states, counts, self.places)

    def commit(self) -> None:
        """After the kernel: copies back what had to be copied, and marks what was written."""
        for original, updated in self.copies:
            original.copy_(updated)
        # The kernels write behind autograd's back: a graph that saved what they wrote is stale now.
        torch.autograd.graph.increment_version(self.params)
        torch.autograd.graph.increment_version(self.states)  # and with them their views


class Batch:
    """The parameters of a group whose states are in one pack: what one kernel call takes.

    ``across``: these have groups of the penalty that lie on several ranks.
    """

    def __init__(self, group: int, pack: Pack, across: bool) -> None:
        self.group, self.pack, self.across = group, pack, across  # the group's position
        self.members: list[int] = []  # positions among the parameters of all groups
        self.slots: list[Slot] = []
        self.arranged = False  # some tensor is not contiguous

    def add(self, position: int, param: Tensor, grad: Tensor, slot: Slot) -> None:
        self.members.append(position)
        self.slots.append(slot)
        self.arranged |= slot.strides is not None or not grad.is_contiguous()

    def close(
        self,
        owners: Sequence[Tensor],
        params: Sequence[Tensor],
        begin: int,
        penalty: Penalty | None,
    ) -> None:
        """After the last add; the group's parameters begin at position ``begin``.

        Raises ValueError where a parameter does not suit the penalty.
        """
        self.positions = [i - begin for i in self.members]
        self.positions = [i - begin for i in self.members]
        places = [
            n
            for i, slot in zip(self.members, self.slots, strict=True)
            for n in slot.place(
                params[i], i - begin, penalty.indexes(owners[i].shape) if penalty else 0
            )
        ]
        self.places = torch.tensor(places, dtype=torch.int64, device="cpu")
        pick = itemgetter(*self.members)
        self._pick = pick if len(self.members) > 1 else lambda items: (pick(items),)

    def register(self, owners: Sequence[Tensor], states: States) -> None:
        """After the kernel: the states are those of the parameters from now on."""
        names = self.pack.names
        self._states = [states[owners[i]] for i in self.members]
        for state, slot in zip(self._states, self.slots, strict=True):
            if not same([state.get(name) for name in names], slot.states):
                state.update(zip(names, slot.states, strict=True))
        self._registered = [
            (
                name,
                [slot.states[i] for slot in self.slots],
                [slot.views[i] for slot in self.slots],
                [slot.addresses[i] for slot in self.slots],
            )
            for i, name in enumerate(names)
        ]
        self.pack.fresh = False

    def holds(self, looked_at: bool) -> bool:
        """Whether the states are still those registered; their addresses too if ``looked_at``."""
        return all(
            same_values(self._states, name, states)
            and not (looked_at and list(map(Tensor.data_ptr, views)) != addresses)
            for name, states, views, addresses in self._registered
        )

    def call(self, params: Sequence[Tensor], grads: Gradients) -> Call:
        return Call(self, list(self._pick(params)), list(self._pick(grads)))

    def arrange_holds(self, params: Sequence[Tensor]) -> bool:
        """What a kernel cannot see of tensors that were made contiguous for it."""
        return not self.arranged or all(
            slot.shape == params[i].shape
            and (slot.strides is None or slot.strides == params[i].stride())
            for i, slot in zip(self.members, self.slots, strict=True)
        )


class Plan:
    """The batches of a step, and what they depend on.

    ``owners`` are the parameters of all groups; ``sizes`` and ``names`` of each group how many it
    has and the names of their states, with what tells how its penalty makes groups.
    """

    def __init__(
        self,
        owners: list[Tensor],
        sizes: list[int],
        names: list[Any],
        grads: Gradients,
        batches: list[Batch],
    ) -> None:
        self.batches = batches
        self.owners, self._sizes, self._names = owners, sizes, names
        self._missing = missing(grads)

    def register(self, states: States) -> None:
        """After the kernels: the states of the batches are those of the parameters."""
        for batch in self.batches:
            batch.register(self.owners, states)
        self._keys, self._values = list(states), list(states.values())

    def holds(
        self,
        owners: list[Tensor],
        sizes: list[int],
        names: list[Any],
        params: Sequence[Tensor],
        grads: Gradients,
        states: States,
        looked_at: bool,
    ) -> bool:
        """Whether the next step can use it; what it does not see, the kernels do.

        ``looked_at``: somebody has had the states in his hands since the last step.
        """
        return (
            sizes == self._sizes
            and names == self._names
            and same(owners, self.owners)
            and missing(grads) == self._missing
            and same(states, self._keys)
            and same(states.values(), self._values)
            and all(
                batch.holds(looked_at) and batch.arrange_holds(params) for batch in self.batches
            )
        )
