"""SGD with momentum and a proximal step."""

from __future__ import annotations

from typing import Any

import torch

from torchcalc.optim._proximal import ProximalOptimizer, check_range
from torchcalc.optim._state import Batch
from torchcalc.prox import Penalty


class SGD(ProximalOptimizer):
    r"""w = prox(v, lr), v the update of ``torch.optim.SGD``.

    .. code-block:: text

        g = grad + weight_decay w;   b = momentum b + (1 - dampening) g   (b = g at first)
        v = w - lr (g + momentum b) with Nesterov, w - lr b with momentum, w - lr g without
        w = argmin_w  lr penalty(w) + ||w - v||^2 / 2

    With L1 that is S(v, lr lam): weights become exactly zero. State and its keys are
    torch.optim.SGD's, and load both ways.

    Args:
        params: parameters or groups of them, see :func:`torchcalc.optim.groups`.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as for ``torch.optim.SGD``.
        penalty: a ``torchcalc.prox`` penalty or None; a group may have its own. Groups store it as
            plain values: ``penalty`` (its name), ``l1`` and ``l2``, which a scheduler may change.

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
        penalty: Penalty | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults, penalty)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_range("SGD", "momentum", group["momentum"], 0.0)
        check_range("SGD", "dampening", group["dampening"], float("-inf"))
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "SGD: nesterov needs momentum > 0 and dampening = 0, "
                f"got momentum {group['momentum']}, dampening {group['dampening']}"
            )

    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def run_kernel(self, group: dict[str, Any], batch: Batch, l1: float, l2: float) -> None:
        torch.ops.torchcalc.sgd_step(
            batch.params,
            batch.grads,
            *(batch.pack.flats or [None]),
            batch.offsets,
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
            batch.pack.fresh,
            l1,
            l2,
        )
