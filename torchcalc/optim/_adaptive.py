"""What optimizers with a step for each coordinate share: the metric and the bound of the prox."""

from __future__ import annotations

import math
from typing import Any

from torchcalc.optim._penalty import check_range
from torchcalc.optim._proximal import ProximalOptimizer
from torchcalc.prox import Penalty

_METRICS = ("adaptive", "lr")
CLIP = 1.25


class AdaptiveOptimizer(ProximalOptimizer):
    """Groups have ``prox_metric`` and ``prox_clip``."""

    def check_group(self, group: dict[str, Any]) -> Penalty | None:
        op = type(self).__name__
        penalty = super().check_group(group)
        check_range(op, "eps", group["eps"], 0.0)
        if group["prox_metric"] not in _METRICS:
            raise ValueError(
                f"{op}: prox_metric must be one of {', '.join(_METRICS)}, "
                f"got {group['prox_metric']!r}"
            )
        if group["prox_clip"] is not None:
            check_range(op, "prox_clip", group["prox_clip"], 1.0)
            if group["prox_clip"] == 1:
                raise ValueError(f"{op}: prox_clip must be > 1 or None, got 1")
        if penalty is not None and not penalty.takes_metric and group["prox_metric"] != "lr":
            raise ValueError(
                f"{op}: prox_metric must be 'lr' with {type(penalty).__name__}, whose prox takes "
                f"one step for all coordinates, got {group['prox_metric']!r}"
            )
        return penalty

    def metric(self, group: dict[str, Any]) -> tuple[bool, float]:
        clip = group["prox_clip"]
        return group["prox_metric"] == "adaptive", math.inf if clip is None else clip
