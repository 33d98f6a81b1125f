"""What the optimizers share: penalties in groups, gathering of tensors, loading of state."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchcalc._check import check_floating, check_number
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


@dataclass
class Batch:
    """The tensors of one kernel call: of one dtype, on one device, each contiguous."""

    fresh: bool  # the states start with this step
    rows: list[list[Tensor]] = field(default_factory=list)  # [param, grad, *states]
    created: list[tuple[dict[str, Any], dict[str, Tensor]]] = field(default_factory=list)
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def columns(self) -> list[list[Tensor]]:
        """params, grads and each of the states as a list."""
        return [list(column) for column in zip(*self.rows)]

    def add(self, row: list[Tensor]) -> None:
        """Takes tensors of any strides as contiguous ones, all in the order of param's memory."""
        param = row[0]
        order = sorted(range(param.dim()), key=param.stride, reverse=True)
        permuted = [t.permute(order) if t.dim() else t for t in row]
        contiguous = [t.contiguous() for t in permuted]
        for k, (original, taken) in enumerate(zip(permuted, contiguous, strict=True)):
            if taken is not original and k != 1:  # the gradient is only read
                self.copies.append((original, taken))
        self.rows.append(contiguous)

    def commit(self) -> None:
        """After the kernel: registers new states and copies back what had to be copied."""
        for state, new in self.created:
            state.update(new)
        for original, updated in self.copies:
            original.copy_(updated)
        # The kernels write behind autograd's back: a graph that saved a parameter is stale now.
        torch.autograd.graph.increment_version([row[0] for row in self.rows])


class ProximalOptimizer(torch.optim.Optimizer):
    """w = prox(update(w)): one fused kernel for the parameters of a group."""

    def __init__(self, params: Any, defaults: dict[str, Any], penalty: Penalty | None) -> None:
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

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The keys of the state that the kernel updates, in the order of its arguments."""
        raise NotImplementedError

    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """The state before the first step."""
        raise NotImplementedError

    def run_kernel(self, group: dict[str, Any], batch: Batch, l1: float, l2: float) -> None:
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        op = type(self).__name__
        if "penalty" in param_group:
            param_group = {**param_group, **plain_penalty(op, param_group["penalty"])}
        super().add_param_group(param_group)
        try:
            self.check_group(self.param_groups[-1])
            for param in self.param_groups[-1]["params"]:
                check_floating(op, "params", param)
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
            state_dict = {**state_dict, "param_groups": merged}
        super().load_state_dict(state_dict)
        for param, state in self.state.items():
            for name, value in state.items():
                if name == "step":  # a number in old checkpoints, on the CPU in torch's default
                    state[name] = torch.as_tensor(value, dtype=torch.float32, device=param.device)
                elif isinstance(value, Tensor):
                    state[name] = torch.empty_like(param).copy_(value)  # with param's strides

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
        work = [(group, self._batches(group)) for group in self.param_groups]
        for group, batches in work:
            l1, l2 = (group["l1"], group["l2"]) if group["penalty"] else (0.0, 0.0)
            for batch in batches:
                self.run_kernel(group, batch, l1, l2)
                batch.commit()
        return loss

    def _batches(self, group: dict[str, Any]) -> Iterable[Batch]:
        self.check_group(group)
        names = self.state_names(group)
        first_name = names[0] if names else None
        states, strided = self.state, torch.strided
        batches: dict[tuple[torch.dtype, torch.device, bool], Batch] = {}
        batch, batch_key = Batch(False), None
        # This loop is half of what a step costs with many small parameters, so it is written for
        # speed: locals, and a look-up of the batch only where it changes.
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            dtype, device = param.dtype, param.device
            if grad.dtype is not dtype or grad.layout is not strided:
                raise TypeError(
                    f"{type(self).__name__}: gradients must be dense and of their parameter's "
                    f"dtype, {dtype}; got {grad.layout}, {grad.dtype}"
                )
            values = state = states[param]
            fresh = first_name is not None and state.get(first_name) is None
            if batch_key != (key := (dtype, device, fresh)):
                batch, batch_key = batches.setdefault(key, Batch(fresh)), key
            if fresh:
                values = self.new_state(param)
                batch.created.append((state, values))
            row = [param, grad]
            for name in names:
                row.append(values[name])
            if param.is_contiguous() and grad.is_contiguous():
                batch.rows.append(row)
            else:
                batch.add(row)
        return batches.values()
