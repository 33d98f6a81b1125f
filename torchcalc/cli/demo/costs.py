"""What trained models cost where they are used."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchcalc.cli.demo import models
from torchcalc.cli.demo.training import Figures, synchronize

BATCH = 1024  # large enough that the time is that of products, not of calls
_ROUNDS = 101


def size(model: nn.Module) -> Figures:
    parameters = list(model.parameters())
    return {
        "hidden_neurons": sum(models.widths(model)[1:-1]),
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


@torch.inference_mode()
def ms_per_batch(of: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Median time of a forward in eval of BATCH digits, those of ``x`` over and over.

    The models take turns, so that what else the machine does falls on all of them.
    """
    batch = x[torch.arange(BATCH, device=x.device) % len(x)]
    times: dict[str, list[float]] = {name: [] for name in of}
    for model in of.values():
        model.eval()
        model(batch)  # the first call allocates
    for _ in range(_ROUNDS):
        for name, model in of.items():
            synchronize(x.device)
            start = time.perf_counter()
            model(batch)
            synchronize(x.device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(measured) for name, measured in times.items()}
