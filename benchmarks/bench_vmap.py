"""torch.func over small models and over samples, beside the same with eager modules.

Ensembles are models of ``torch.func.stack_module_state``, each with a mask of its own. Time is the
caller's: there is little to compute, and a loop over models or samples would show.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from benchmarks.harness import SUBJECT, Config, Row, Run, Task
from torchcalc import nn

P = 0.1
FEATURES, OUT = 64, 10
ROWS, HIDDEN, MODELS = 64, 256, 8
SMALL_ROWS, SMALL_HIDDEN, SMALL_MODELS = 16, 32, 32
SAMPLES = 64
MUST = 1.0


def tasks(config: Config) -> list[Task]:
    makers: dict[str, Callable[[Config, str], Run]] = {
        f"{MODELS} models, grad of vmap": grad_of_vmap,
        f"{MODELS} models, vmap of grad": vmap_of_grad,
        f"ensemble of {SMALL_MODELS}, forward": forward,
        f"ensemble of {SMALL_MODELS}, vmap of grad": small_grad,
        f"per-sample gradients of {SAMPLES}": per_sample,
    }
    return [
        Task(name, partial(row, config, name, make), alone=False) for name, make in makers.items()
    ]


def row(config: Config, name: str, make: Callable[[Config, str], Run]) -> Row:
    small = make in (forward, small_grad)
    rows, hidden = (SMALL_ROWS, SMALL_HIDDEN) if small else (ROWS, HIDDEN)
    return config.compare(
        name,
        f"{SAMPLES if make is per_sample else rows} x {FEATURES} -> {hidden} -> {OUT}",
        "float32",
        {contender: make(config, contender) for contender in ("eager", SUBJECT)},
        baseline="eager",
        bound=config.bound(MUST),
        calls=True,
    )


def model(config: Config, contender: str, hidden: int) -> torch.nn.Module:
    if contender == SUBJECT:
        layers = [nn.LinearAct(FEATURES, hidden, activation="gelu", dropout_p=P)]
    else:
        layers = [torch.nn.Linear(FEATURES, hidden), torch.nn.GELU(), torch.nn.Dropout(P)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(hidden, OUT)).to(config.device)


class Ensemble:
    """Stacked parameters, the call of one of them, and x."""

    def __init__(self, config: Config, contender: str, count: int, rows: int, hidden: int) -> None:
        models = [model(config, contender, hidden) for _ in range(count)]
        self.params, _ = stack_module_state(models)
        self.params = {name: p.detach() for name, p in self.params.items()}
        self.one = models[0]
        self.x = config.tensor(rows, FEATURES)

    def call(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = functional_call(self.one, params, (x,))
        return y

    def loss(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return self.call(params, x).square().mean()


def grad_of_vmap(config: Config, contender: str) -> Run:
    all_ = Ensemble(config, contender, MODELS, ROWS, HIDDEN)
    losses = vmap(all_.loss, in_dims=(0, None), randomness="different")
    return partial(grad(lambda params, x: losses(params, x).sum()), all_.params, all_.x)


def vmap_of_grad(config: Config, contender: str) -> Run:
    return _vmap_of_grad(Ensemble(config, contender, MODELS, ROWS, HIDDEN))


def small_grad(config: Config, contender: str) -> Run:
    return _vmap_of_grad(Ensemble(config, contender, SMALL_MODELS, SMALL_ROWS, SMALL_HIDDEN))


def _vmap_of_grad(all_: Ensemble) -> Run:
    grads = vmap(grad(all_.loss), in_dims=(0, None), randomness="different")
    return partial(grads, all_.params, all_.x)


def forward(config: Config, contender: str) -> Run:
    all_ = Ensemble(config, contender, SMALL_MODELS, SMALL_ROWS, SMALL_HIDDEN)
    outputs = vmap(all_.call, in_dims=(0, None), randomness="different")
    return partial(torch.no_grad()(outputs), all_.params, all_.x)


def per_sample(config: Config, contender: str) -> Run:
    one = Ensemble(config, contender, 1, SAMPLES, HIDDEN)
    params = {name: p[0] for name, p in one.params.items()}
    grads = vmap(grad(one.loss), in_dims=(None, 0), randomness="different")
    return partial(grads, params, one.x)
