"""Strengths of penalties that change from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchcalc.optim import _penalty
from torchcalc.optim._penalty import check_range


class PenaltySchedule:
    """penalty = fn(t) times the first one, in each group; t counts calls of :meth:`step`.

    Used as a learning-rate scheduler: ``step`` after each step of the optimizer. At construction
    t = 0, and fn(0) holds for the optimizer's first step.

    ::

        schedule = PenaltySchedule(optimizer, lambda t: min(1.0, t / 1000))  # grows for 1000 steps

    Args:
        optimizer: one of torchcalc.optim's; groups without a penalty are left alone.
        fn: t to a factor >= 0, of constraints > 0 (``prox_start`` lets a constraint wait); or a
            list of such functions, one for each group.

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        fn: Callable[[int], float] | list[Callable[[int], float]],
    ) -> None:
        groups = optimizer.param_groups
        self.fns = list(fn) if isinstance(fn, list | tuple) else [fn] * len(groups)
        if len(self.fns) != len(groups):
            raise ValueError(
                f"PenaltySchedule: fn must be one for each of {len(groups)} groups, "
                f"got {len(self.fns)}"
            )
        for f in self.fns:
            if not callable(f):
                raise TypeError(f"PenaltySchedule: fn must be callable, got {f!r}")
        if not all("penalty" in group for group in groups):
            raise TypeError(
                f"PenaltySchedule: optimizer must be one of torchcalc.optim, got {optimizer!r}"
            )
        self.optimizer = optimizer
        self.t = 0
        # Plain values: fit for any checkpoint.
        self.initial = [_penalty.entries(type(optimizer).__name__, group) for group in groups]
        self._apply()

    def step(self) -> None:
        """The next t."""
        self.t += 1
        self._apply()

    def get_last_factor(self) -> list[float]:
        """fn(t) of each group."""
        return [float(fn(self.t)) for fn in self.fns]

    def state_dict(self) -> dict[str, Any]:
        """t and the first penalties; not fn."""
        return {"t": self.t, "initial": [dict(entries) for entries in self.initial]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a ``state_dict``; strengths are set at once."""
        if len(state_dict["initial"]) != len(self.fns):
            raise ValueError(
                f"PenaltySchedule: state_dict must have {len(self.fns)} groups, "
                f"got {len(state_dict['initial'])}"
            )
        self.t = state_dict["t"]
        self.initial = [dict(entries) for entries in state_dict["initial"]]
        self._apply()

    def _apply(self) -> None:
        op = type(self.optimizer).__name__
        scaled: list[dict[str, Any] | None] = []
        for entries, factor in zip(self.initial, self.get_last_factor(), strict=True):
            check_range("PenaltySchedule", "fn(t)", factor, 0.0)
            penalty = _penalty.check(op, entries)
            scaled.append(
                None if penalty is None else _penalty.plain(op, {"penalty": factor * penalty})
            )
        for group, values in zip(self.optimizer.param_groups, scaled, strict=False):
            if values is not None:
                group.update(values)
                _penalty.forget_others(group)
