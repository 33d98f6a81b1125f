"""python -m torchcalc fuse: what fuse does with a model, and what a training step takes."""

from __future__ import annotations

import copy
import importlib.util
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import torchcalc
from torchcalc.testing.models import FULL, MODELS, Size, loss_of

SMALL = Size(width=256, heads=8, layers=2, batch=8, tokens=64, image=64, patch=8)
SIZES = {"small": SMALL, "full": FULL}
_WARM_UP = 3  # steps that do not count


def missing(name: str) -> str | None:
    """The package that the model needs and that is not installed."""
    package = MODELS[name].package
    return None if importlib.util.find_spec(package) else package


def run(name: str, size: str, rounds: int) -> int:
    """Prints the report and the times."""
    torch.manual_seed(0)
    model = MODELS[name]
    plain = model.build(SIZES[size]).train()
    inputs = model.inputs(SIZES[size])
    fused = copy.deepcopy(plain)
    print(torchcalc.fuse(fused, inputs))
    models = {"before": plain, "after": fused}
    times = _steps(models, inputs, rounds)
    ratio = median(b / a for a, b in zip(times["before"], times["after"], strict=True))
    print(f"\nTraining step, median of {rounds} in turns, {torch.get_num_threads()} threads:")
    for when, taken in times.items():
        print(f"  {when:<6}  {1e3 * median(taken):8.2f} ms")
    print(f"  after / before: {ratio:.3f}")
    return 0


def _steps(
    models: dict[str, nn.Module], inputs: dict[str, Tensor], rounds: int
) -> dict[str, list[float]]:
    optimizers: dict[str, Any] = {
        when: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        for when, model in models.items()
    }
    times: dict[str, list[float]] = {when: [] for when in models}
    for k in range(_WARM_UP + rounds):
        for when in list(models)[:: 1 if k % 2 else -1]:
            start = time.perf_counter()
            loss_of(models[when](**inputs)).backward()  # type: ignore[no-untyped-call]
            optimizers[when].step()
            optimizers[when].zero_grad()
            if k >= _WARM_UP:
                times[when].append(time.perf_counter() - start)
    return times
