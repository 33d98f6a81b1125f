"""The soft threshold beside torch.nn.functional.softshrink; the baseline is a copy of the input."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F

from benchmarks.harness import Config, Roof, Row, Run, Task, size_name
from torchcalc.functional import soft_threshold

LAM = 0.5


def tasks(config: Config) -> list[Task]:
    return [Task("soft threshold, forward", partial(forward, config))]


def forward(config: Config) -> Row:
    x = config.tensor(2**14 if config.quick else 16 * 2**20)
    implementations = {**config.with_compiled(F.softshrink), "torchcalc": soft_threshold}
    contenders: dict[str, Run] = {"x.clone()": x.clone}
    for name, shrink in implementations.items():
        contenders[name] = partial(shrink, x, LAM)
    return config.compare(
        "soft threshold, forward",
        size_name(x.numel()),
        "float32",
        contenders,
        baseline="x.clone()",
        roof=Roof("x.clone()", 2 * x.nbytes, "GB/s"),
    )
