"""One training run and what is measured in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcalc.cli.demo.digits import Split

_CURVE_POINTS = 60

Figures = dict[str, float]


@dataclass
class Run:
    """One model of one seed after training."""

    model: nn.Module
    ms_per_step: float
    saved_bytes_per_step: int
    steps: list[int]  # at which the curves below were measured; the last is the end
    accuracy: list[float]  # on the test set, in [0, 1]
    zero_fraction: list[float]  # of the weight matrices' elements, in [0, 1]

    @property
    def figures(self) -> Figures:
        """What report.json holds of a run."""
        return {
            "accuracy": self.accuracy[-1],
            "zero_fraction": self.zero_fraction[-1],
            "ms_per_step": self.ms_per_step,
            "saved_bytes_per_step": self.saved_bytes_per_step,
        }


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Split, Split],
    batches: Tensor,
    seed: int,
    advance: Callable[[int], None],
) -> Run:
    """Trains in place, one step a row of ``batches``; ``advance(n)`` after every n steps."""
    train_set, test_set = data
    saved = saved_bytes(model, train_set.x[batches[0]], train_set.y[batches[0]])
    run = Run(model, 0.0, saved, [0], [accuracy(model, test_set)], [zero_fraction(model)])
    torch.manual_seed(seed)  # of dropout
    pause = max(1, len(batches) // _CURVE_POINTS)
    milliseconds = []
    for step, batch in enumerate(batches, 1):
        x, y = train_set.x[batch], train_set.y[batch]
        synchronize(x.device)
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        synchronize(x.device)
        milliseconds.append(1e3 * (time.perf_counter() - start))
        if step % pause == 0 or step == len(batches):
            advance(step - run.steps[-1])
            run.steps.append(step)
            run.accuracy.append(accuracy(model, test_set))
            run.zero_fraction.append(zero_fraction(model))
    run.ms_per_step = statistics.median(milliseconds)
    return run


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """Share of digits named rightly, without dropout."""
    model.eval()
    hits = int((model(data.x).argmax(dim=1) == data.y).sum())
    model.train()
    return hits / len(data.y)


@torch.no_grad()
def zero_fraction(model: nn.Module) -> float:
    """Share of exact zeros among the elements of the weight matrices."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices)
    return zeros / sum(matrix.numel() for matrix in matrices)


def saved_bytes(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Bytes that autograd keeps from one step's forward, loss included, to its backward.

    Counted are the storages of all tensors saved for backward, each storage once: a view shares its
    base's. Storages of parameters are left out, since they are there anyway; so are temporaries
    that forward frees again, gradients and the optimizer's state.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(x), y)
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del loss  # until here: while its graph lives no address is used twice
    return sum(kept.values())
