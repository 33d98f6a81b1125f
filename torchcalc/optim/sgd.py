"""SGD with momentum and a proximal step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchcalc.ops.penalty_prox import Kernel
from torchcalc.optim._penalty import check_range
from torchcalc.optim._plan import Call
from torchcalc.optim._proximal import ProximalOptimizer
from torchcalc.prox import Penalty
from torchcalc.reference.optim import sgd_prox_step


class SGD(ProximalOptimizer):
    r"""w = prox(v, tau), v the update of ``torch.optim.SGD``, tau the step in the long run.

    .. code-block:: text

        g = grad + weight_decay w;   b = momentum b + (1 - dampening) g   (b = g at first)
        v = w - lr (g + momentum b) with Nesterov, w - lr b with momentum, w - lr g without
        w = argmin_w  penalty(w) + ||w - v||^2 / (2 tau)
        tau = lr (1 - dampening) / (1 - momentum) with momentum, lr without

    tau is what momentum makes of lr: a gradient g that stays the same moves w by tau g a step, with
    Nesterov too. So fixed points solve 0 in grad f + d penalty; with lr in the place of tau they
    would be those of a penalty 1 / (1 - momentum) times weaker. With L1, w is S(v, tau lam):
    weights become exactly zero. State and its keys are torch.optim.SGD's, and load both ways.

    Args:
        params: parameters or groups of them, see :func:`torchcalc.optim.groups`.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as for ``torch.optim.SGD``; with
            a penalty and momentum > 0, momentum and dampening must be < 1.
        penalty: a ``torchcalc.prox`` penalty or None; a group may have its own. Groups store it as
            plain values, which a scheduler may change: ``penalty`` (its name), ``l1`` and ``l2`` of
            L1, L2 and ElasticNet, and the arguments of others as ``penalty_<argument>``.
        arguments: these, with ``penalty`` the name of one: what groups and ``defaults`` of another
            optimizer hold.

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it.

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 4.2 (proximal gradient).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        penalty: Penalty | str | None = None,
        **arguments: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults, penalty, arguments)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]  # a schedule may set momentum to 0 later
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            self.param_groups.pop()
            raise ValueError(
                "SGD: nesterov needs momentum > 0 and dampening = 0, "
                f"got momentum {group['momentum']}, dampening {group['dampening']}"
            )

    def check_group(self, group: dict[str, Any]) -> Penalty | None:
        penalty = super().check_group(group)
        check_range("SGD", "momentum", group["momentum"], 0.0)
        check_range("SGD", "dampening", group["dampening"], -math.inf)
        if group["penalty"] is not None and group["momentum"] != 0:
            # Else the step in the long run is no positive number.
            check_range("SGD", "momentum with a penalty", group["momentum"], 0.0, 1.0)
            check_range("SGD", "dampening with a penalty", group["dampening"], -math.inf, 1.0)
        return penalty

    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def run_kernel(self, group: dict[str, Any], call: Call, kernel: Kernel) -> None:
        torch.ops.torchcalc.sgd_step(
            call.params,
            call.grads,
            call.states,
            call.places,
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
            call.fresh,
            kernel[0],
            kernel[1:],
        )

    def prox_step(self, group: dict[str, Any], state: Sequence[Tensor]) -> Tensor | float:
        return sgd_prox_step(group["lr"], group["momentum"], group["dampening"])
