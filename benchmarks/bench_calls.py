"""What a call costs where there is next to nothing to compute: x [8, 16], weight [16, 16].

Everything in one thread, in microseconds of the caller's time; the baseline is the same in PyTorch.
"no_grad" is measured inside of one ``torch.no_grad()``, entered before the clock starts. "forward +
backward" is ``y.backward(grad)`` and ``.grad = None`` for all leaves (``layers.step``). Kinds of
dropout for images get tensors of their own with as many elements. The compiled rows
compare torchcalc under torch.compile with PyTorch under torch.compile. SGD's step over 1000 small
parameters is in the family optim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import bench_dropout, layers
from benchmarks.harness import SUBJECT, Config, Row, Run, Task
from torchcalc import nn
from torchcalc.functional import dropout, linear_act, soft_threshold

ROWS, FEATURES = 8, 16
P, LAM = 0.1, 0.5
NO_GRAD, BACKWARD = "no_grad", "forward + backward"
DROPOUT_BOUND = (1.4, 1.0)  # of each kind

Layer = Callable[..., Tensor]


@dataclass(frozen=True)
class Call:
    """Two ways to compute the same of x, or of x and weight."""

    name: str
    ours: Callable[[], Layer]  # makes it, where it is measured: modules have parameters
    baseline: str
    theirs: Callable[[], Layer]
    modes: tuple[str, ...] = (NO_GRAD, BACKWARD)
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)  # mode -> must, aim
    operands: int = 1
    compiled_only: bool = False
    eager_only: bool = False
    shape: tuple[int, ...] = (ROWS, FEATURES)  # of x


CALLS = [
    Call(
        "linear_act relu",
        lambda: lambda x, weight: linear_act(x, weight, activation="relu"),
        "F.relu(F.linear)",
        lambda: lambda x, weight: F.relu(F.linear(x, weight)),
        bounds={NO_GRAD: (3.0, 1.5), BACKWARD: (1.5, 1.1)},
        operands=2,
    ),
    Call(
        "linear_act gelu + dropout",
        lambda: lambda x, weight: linear_act(x, weight, dropout_p=P),
        "F.dropout(F.gelu(F.linear))",
        lambda: lambda x, weight: F.dropout(F.gelu(F.linear(x, weight)), P),
        modes=(BACKWARD,),
        bounds={BACKWARD: (0.85, 0.6)},
        operands=2,
    ),
    Call(
        "nn.LinearAct gelu + dropout",
        lambda: nn.LinearAct(FEATURES, FEATURES, activation="gelu", dropout_p=P),
        "nn.Sequential(Linear, GELU, Dropout)",
        lambda: torch.nn.Sequential(
            torch.nn.Linear(FEATURES, FEATURES), torch.nn.GELU(), torch.nn.Dropout(P)
        ),
        modes=(BACKWARD,),
        bounds={BACKWARD: (0.8, 0.6)},
    ),
    Call(
        "dropout",
        lambda: lambda x: dropout(x, P),
        "F.dropout",
        lambda: lambda x: F.dropout(x, P),
        bounds={NO_GRAD: DROPOUT_BOUND, BACKWARD: DROPOUT_BOUND},
    ),
    Call(
        "soft_threshold",
        lambda: lambda x: soft_threshold(x, LAM),
        "F.softshrink",
        lambda: lambda x: F.softshrink(x, LAM),
        bounds={NO_GRAD: (4.0, 1.5), BACKWARD: (1.6, 1.1)},
    ),
    Call(
        "three nn.LinearAct relu",
        lambda: torch.nn.Sequential(
            *(nn.LinearAct(FEATURES, FEATURES, activation="relu") for _ in range(3))
        ),
        "three nn.Linear, nn.ReLU",
        lambda: torch.nn.Sequential(
            *(
                layer
                for _ in range(3)
                for layer in (torch.nn.Linear(FEATURES, FEATURES), torch.nn.ReLU())
            )
        ),
        compiled_only=True,
    ),
]
KIND_SHAPES = {"dropout2d": (2, 4, 4, 4), "dropout3d": (2, 4, 2, 2, 4)}  # as many elements
CALLS += [
    Call(
        name,
        partial(bench_dropout.ours, name),
        f"{name} in PyTorch",
        partial(partial, theirs, p=P),
        modes=(BACKWARD,),
        bounds={BACKWARD: DROPOUT_BOUND},
        operands=2 if name == "dropout_add" else 1,
        eager_only=True,
        shape=KIND_SHAPES.get(name, (ROWS, FEATURES)),
    )
    for name, (theirs, _) in bench_dropout.KINDS.items()
    if name != "dropout"
]


def tasks(config: Config) -> list[Task]:
    eager, compiled = (
        [
            Task(
                f"{call.name}, {mode}" + ", compiled" * compiled,
                partial(row, config, k, mode, compiled),
                alone=False,  # nothing here is large enough for its memory to matter
            )
            for k, call in enumerate(CALLS)
            if not (call.eager_only if compiled else call.compiled_only)
            for mode in call.modes
        ]
        for compiled in (False, True)
    )
    return eager + compiled * config.compile


def row(config: Config, index: int, mode: str, compiled: bool) -> Row:
    """A row of ``CALLS[index]``, whose functions could not be sent to the process that measures."""
    call = CALLS[index]
    prefix = "compiled " * compiled
    bound = None if compiled else call.bounds.get(mode)
    torch._dynamo.reset()  # guards of earlier rows would be asked first
    with torch.set_grad_enabled(mode == BACKWARD):
        return config.compare(
            f"{prefix}{call.name}, {mode}",
            " x ".join(map(str, call.shape)) + f" -> {FEATURES}" * ("inear" in call.name),
            "float32",
            {
                prefix + call.baseline: contender(config, call, call.theirs(), mode, compiled),
                SUBJECT: contender(config, call, call.ours(), mode, compiled),
            },
            baseline=prefix + call.baseline,
            bound=config.bound(*bound) if bound else None,
            one_thread=True,
            calls=True,
        )


def contender(config: Config, call: Call, layer: Layer, mode: str, compiled: bool) -> Run:
    x = config.tensor(*call.shape)
    other = config.tensor(*(call.shape if call.name == "dropout_add" else (FEATURES, FEATURES)))
    operands = [t.requires_grad_() for t in (x, other)[: call.operands]]
    leaves = list(operands)
    if isinstance(layer, torch.nn.Module):
        leaves += layer.to(config.device).parameters()
    if compiled:
        layer = torch.compile(layer, dynamic=False)
    if mode == NO_GRAD:
        return partial(layer, *operands)
    return layers.step(layer, operands, leaves)
