"""What the optimizers share: penalties in groups, gathering of tensors, loading of state."""

from __future__ import annotations

import abc
import math
import numbers
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor

from torchcalc._check import check_floating, check_number
from torchcalc.optim._state import Batch, Pack, Slot
from torchcalc.prox import Penalty
from torchcalc.prox.penalties import NAMES


def plain_penalty(op: str, penalty: Any) -> dict[str, Any]:
    """A penalty as what a parameter group holds: a name and numbers, fit for any checkpoint."""
    if penalty is None:
        return {"penalty": None, "l1": 0.0, "l2": 0.0}
    if not isinstance(penalty, Penalty):
        raise TypeError(f"{op}: penalty must be a torchcalc.prox penalty or None, got {penalty!r}")
    l1, l2 = penalty.strengths
    return {"penalty": penalty.name, "l1": l1, "l2": l2}


def check_range(op: str, name: str, value: Any, low: float, high: float = math.inf) -> None:
    """A number in [low, high), or finite and >= low."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if not low <= float(value) < high:
        raise ValueError(f"{op}: {name} must be in [{low}, {high}), got {value}")


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's: a checkpoint of them needs no numpy."""
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    if isinstance(value, numbers.Real) and type(value).__module__ != "builtins":
        return float(value)
    return value


class ProximalOptimizer(torch.optim.Optimizer, abc.ABC):
    """w = prox(update(w)): one fused kernel for the parameters of a group."""

    counts: tuple[str, ...] = ()  # names of states with one number for each parameter

    def __init__(self, params: Any, defaults: dict[str, Any], penalty: Penalty | None) -> None:
        self._slots: dict[int, list[Slot | None]] = {}  # for each group, by its position
        super().__init__(params, {**defaults, **plain_penalty(type(self).__name__, penalty)})

    def check_group(self, group: dict[str, Any]) -> None:
        """Raises unless the group's values are valid; schedulers and users may have set them."""
        op = type(self).__name__
        check_range(op, "lr", group["lr"], 0.0)
        check_range(op, "weight_decay", group["weight_decay"], 0.0)
        if group["penalty"] is not None and group["penalty"] not in NAMES:
            raise TypeError(
                f"{op}: penalty of a group must be None or one of {', '.join(NAMES)}, "
                f"got {group['penalty']!r}"
            )
        check_number(op, "l1", group["l1"])
        check_number(op, "l2", group["l2"])

    @abc.abstractmethod
    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Names of states with an element for each of the parameter's, in the kernel's order."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Also what loading and copying end with: states are in no pack of this optimizer then.
        super().__setstate__(state)
        self._slots = {}

    @abc.abstractmethod
    def run_kernel(self, group: dict[str, Any], batch: Batch, l1: float, l2: float) -> None:
        """One step of a batch."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        op = type(self).__name__
        if "penalty" in param_group:
            param_group = {**param_group, **plain_penalty(op, param_group["penalty"])}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.check_group(group)
            for param in group["params"]:
                check_floating(op, "params", param)
            if len(set(group["params"])) < len(group["params"]):
                raise ValueError(f"{op}: params has a parameter twice")
            if group["penalty"] is None and (group["l1"] or group["l2"]):
                raise ValueError(f"{op}: l1 and l2 need a penalty, got penalty=None")
            group.update({key: _plain(value) for key, value in group.items() if key != "params"})
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes this optimizer's state, or that of its torch.optim namesake.

        What the state's groups do not have, such as a penalty, stays as it is here.
        """
        saved_groups = state_dict["param_groups"]
        if len(saved_groups) == len(self.param_groups):  # else torch raises
            merged = [
                {**{key: own[key] for key in own if key != "params"}, **saved}
                for own, saved in zip(self.param_groups, saved_groups, strict=True)
            ]
            for group in merged:
                if isinstance(group["lr"], Tensor):
                    group["lr"] = float(group["lr"])
                self.check_group(group)
            self._check_shapes(state_dict["state"], saved_groups)
            state_dict = {**state_dict, "param_groups": merged}
        super().load_state_dict(state_dict)
        for param, state in self.state.items():
            for name, value in state.items():
                if name == "step":  # a number in old checkpoints, on the CPU in torch's default
                    step = torch.as_tensor(value, dtype=torch.float32, device=param.device)
                    state[name] = step.clone()
                elif isinstance(value, Tensor):
                    state[name] = torch.empty_like(param).copy_(value)  # with param's strides

    def _check_shapes(self, saved_states: Any, saved_groups: list[dict[str, Any]]) -> None:
        for own, saved in zip(self.param_groups, saved_groups, strict=True):
            for param, key in zip(own["params"], saved["params"], strict=False):
                for name, value in saved_states.get(key, {}).items():
                    if name in self.counts or not isinstance(value, Tensor):
                        continue
                    if value.shape != param.shape:
                        raise ValueError(
                            f"{type(self).__name__}: state {name!r} of parameter {key} must have "
                            f"shape {tuple(param.shape)}, got {tuple(value.shape)}"
                        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What closure returned, else None.

        Raises:
            TypeError, ValueError: a gradient or a value of a group is not valid; then no parameter
                and no state has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [
            (group, self._batches(position, group))
            for position, group in enumerate(self.param_groups)
        ]
        for group, (batches, commit_states) in work:
            l1, l2 = (group["l1"], group["l2"]) if group["penalty"] else (0.0, 0.0)
            for batch in batches:
                self.run_kernel(group, batch, l1, l2)
                batch.commit()
            commit_states()
        return loss

    def _batches(
        self, position: int, group: dict[str, Any]
    ) -> tuple[Iterable[Batch], Callable[[], None]]:
        """The kernel calls of a group, and what registers its new states after them."""
        self.check_group(group)
        elements = self.names(group)
        names = (*elements, *self.counts)
        params, states, dense = group["params"], self.state, torch.strided
        slots = self._slots.get(position, [])
        if len(slots) != len(params):
            slots = self._slots[position] = [None] * len(params)
        batches: dict[Pack, Batch] = {}
        batch: Batch | None = None
        homeless: dict[Any, list[int]] = {}  # parameters whose states are in no pack
        # This loop is half of what a step costs with many small parameters.
        for i, (param, slot) in enumerate(zip(params, slots, strict=True)):
            grad = param.grad
            if grad is None:
                continue
            dtype = param.dtype
            if grad.dtype is not dtype or grad.layout is not dense:
                raise TypeError(
                    f"{type(self).__name__}: gradients must be dense and of their parameter's "
                    f"dtype, {dtype}; got {grad.layout}, {grad.dtype}"
                )
            state = states[param]
            # Whoever changed a parameter in place (its memory order, with .data or .to) or its
            # state is noticed here, before anything is written.
            if (
                slot is not None
                and slot.param is param
                and slot.numel == param.numel()
                and slot.strides == (None if param.is_contiguous() else param.stride())
                and slot.pack.dtype is dtype
                and slot.pack.device == param.device
                and slot.pack.names == names
                and all(map(is_, map(state.get, names), slot.views))
            ):
                if batch is None or batch.pack is not slot.pack:
                    batch = batches.setdefault(slot.pack, Batch(slot.pack))
                batch.add(param, grad, slot)
            else:
                fresh = not any(state.get(name) is not None for name in names)
                homeless.setdefault((dtype, param.device, fresh), []).append(i)
        moves: list[tuple[int, Slot]] = []
        for (_, _, fresh), members in homeless.items():
            values = [{} if fresh else states[params[i]] for i in members]
            pack = Pack([params[i] for i in members], elements, self.counts, values)
            batch = batches[pack] = Batch(pack)
            for i, slot in zip(members, pack.slots, strict=True):
                batch.add(params[i], params[i].grad, slot)
                moves.append((i, slot))

        def commit_states() -> None:
            for i, slot in moves:
                slots[i] = slot
                states[params[i]].update(zip(names, slot.views, strict=True))
            for batch in batches.values():
                batch.pack.fresh = False

        return batches.values(), commit_states
