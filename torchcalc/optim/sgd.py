"""SGD with momentum and a proximal step."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc.optim._penalty import check_range
from torchcalc.optim._proximal import ProximalOptimizer, given
from torchcalc.prox import Penalty
from torchcalc.reference.optim import SGDRule


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

    A step reads and writes 12 bytes of memory for each float32 parameter, 20 with momentum; a
    penalty on each coordinate adds none.

    Args:
        params: parameters or groups of them, see :func:`torchcalc.optim.groups`.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as for ``torch.optim.SGD``; with
            a penalty and momentum > 0, momentum and dampening must be < 1.
        foreach, fused: ignored: there is one implementation, a fused kernel.
        differentiable: must be False: a step is no function that autograd records.
        penalty: a ``torchcalc.prox`` penalty or None; a group may have its own. Groups store it as
            plain values, which a scheduler may change: ``penalty`` (its name), ``l1`` and ``l2`` of
            L1, L2 and ElasticNet, and the arguments of others as ``penalty_<argument>``.
        prox_start: steps before the penalty acts; groups hold how many are left.
        state_dtype: torch.float32 for states that are more exact than parameters of half types;
            None for the parameters' dtype, as torch has it.
        stochastic_rounding: rounds parameters of half types up or down at random, so that the mean
            is exact; zeros stay zeros. Groups hold the seed, as ``rounding_seed``.
        arguments: these, with ``penalty`` the name of one: what groups and ``defaults`` of another
            optimizer hold.

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it.

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 4.2 (proximal gradient).
    """

    op = "sgd_step"
    takes_sparse = True
    later_options: ClassVar = {"foreach": None, "differentiable": False, "fused": None}

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        penalty: Penalty | str | None = None,
        prox_start: int = 0,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        **arguments: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "prox_start": prox_start,
            "state_dtype": state_dtype,
            "stochastic_rounding": stochastic_rounding,
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

    def rule(self, group: dict[str, Any], fresh: bool) -> SGDRule:
        return SGDRule(
            given(group["lr"]),
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
            fresh,
        )
