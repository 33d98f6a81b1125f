"""FTRL-Proximal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc.ops.penalty_prox import Kernel
from torchcalc.optim._penalty import check_range
from torchcalc.optim._plan import Call
from torchcalc.optim._proximal import ProximalOptimizer, given
from torchcalc.prox import ElasticNet, Penalty
from torchcalc.reference.optim import FTRLRule


class FTRL(ProximalOptimizer):
    r"""w = argmin_w  z w + l1 |w| + (l2 / 2) w^2 + (d / 2) w^2: FTRL-Proximal, for each coordinate.

    .. code-block:: text

        n' = n + grad^2            (n = initial_accumulator_value at first)
        d' = (beta + n'^p) / lr,   p = -lr_power
        z += grad - (d' - d) w;    n = n';   d = d'
        w = -S(z, l1) / (d + l2),   S(z, l1) = sign(z) max(|z| - l1, 0)

    It minimises the sum of all linearised losses so far and l1 |w| + (l2 / 2) w^2, once: l1 does
    not shrink w anew at each step. Weights become exactly zero, on many more coordinates than with
    a proximal step of the last gradient only. z starts so that the first weights are those that
    params have, and 0 where they are 0. d is that of the step before also where lr has changed
    since: weights do not jump with a schedule of lr (those of an implementation that takes n'^p -
    n^p over the new lr are scaled by it). A step with lr = 0 does nothing.

    The l1 of a loss that is a mean is t times as large at step t: let it grow, as with
    ``PenaltySchedule(optimizer, lambda t: t + 1)``.

    McMahan's alpha, beta, lambda_1 and lambda_2 are lr, beta, l1 and l2. TensorFlow's
    ``l2_regularization_strength`` is l2 / 2, and its ``beta`` the same; its own
    ``l2_shrinkage_regularization_strength`` there is none here.

    A step reads and writes 28 bytes of memory for each float32 parameter.

    Args:
        params: parameters or groups of them, see :func:`torchcalc.optim.groups`.
        lr: >= 0, > 0 at first.
        lr_power: <= 0: steps go with the sum of squares to this power; 0 for steps that are equal.
        beta: >= 0.
        l1, l2: >= 0.
        initial_accumulator_value: >= 0; > 0 where beta is 0.
        maximize: maximises instead.
        arguments: ``penalty``, the name that groups and ``defaults`` of another FTRL hold.

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it.

    Source: McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013.
    """

    op = "ftrl_step"
    later_options: ClassVar = {"maximize": False, "differentiable": False, "weight_decay": 0.0}

    def __init__(
        self,
        params: Any,
        lr: float | Tensor,
        lr_power: float = -0.5,
        beta: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        initial_accumulator_value: float = 0.1,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_power": lr_power,
            "beta": beta,
            "initial_accumulator_value": initial_accumulator_value,
            "maximize": maximize,
            **self.later_options,
        }
        super().__init__(params, defaults, ElasticNet.name, {"l1": l1, "l2": l2})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["lr"] == 0:
            self.param_groups.pop()
            raise ValueError("FTRL: lr must be > 0 at first, got 0")
        group["lr_before"] = _copy(group["lr"])

    def check_group(self, group: dict[str, Any]) -> Penalty | None:
        penalty = super().check_group(group)
        if not isinstance(penalty, ElasticNet):
            raise ValueError(f"FTRL: penalty is that of l1 and l2, got {group['penalty']!r}")
        check_range("FTRL", "lr_power", -group["lr_power"], 0.0)
        check_range("FTRL", "beta", group["beta"], 0.0)
        initial = group["initial_accumulator_value"]
        check_range("FTRL", "initial_accumulator_value", initial, 0.0)
        if initial == group["beta"] == 0 and group["lr_power"] < 0:
            raise ValueError("FTRL: initial_accumulator_value must be > 0 where beta is 0, got 0")
        return penalty

    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("z", "n")

    def rule(self, group: dict[str, Any], fresh: bool) -> FTRLRule:
        return FTRLRule(
            given(group["lr"]),
            given(group["lr_before"]),
            group["lr_power"],
            group["beta"],
            group["maximize"],
        )

    def live(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"lr": group["lr"], "lr_before": group["lr_before"]}

    def _run_kernel(self, group: dict[str, Any], call: Call, kernel: Kernel) -> None:
        if given(group["lr"]) != 0:
            super()._run_kernel(group, call, kernel)

    def stepped(self, group: dict[str, Any]) -> None:
        super().stepped(group)
        lr, found_inf = group["lr"], getattr(self, "found_inf", None)
        if found_inf is not None:  # on a device nobody knows here whether there was a step
            before, lr = (
                torch.as_tensor(x, device=found_inf.device) for x in (group["lr_before"], lr)
            )
            lr = torch.where(found_inf != 0, before, lr)
        group["lr_before"] = _copy(lr)

    def start(self, group: dict[str, Any], param: Tensor, states: Sequence[Tensor]) -> None:
        z, n = states
        n.fill_(group["initial_accumulator_value"])
        d = self.rule(group, True).d(group["lr_before"], n)
        # In the widest type: l1 and d may be far apart.
        w = param.double()
        z.copy_(-(w * (d.double() + group["l2"]) + group["l1"] * w.sign()))


def _copy(value: Any) -> Any:
    """Of a tensor, which somebody may change in place."""
    return value.detach().clone() if isinstance(value, Tensor) else value
