"""Training steps of whole models: untouched, after torchcalc.fuse, and under torch.compile.

A step is forward, backward and torch.optim.AdamW(fused=True), each contender with its own copy of
the same parameters. Beside it, the bytes that autograd keeps from forward to backward.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import torchcalc
from benchmarks.harness import SUBJECT, Bound, Config, Row, Run, Task
from torchcalc.testing.models import FULL, MODELS, TINY, loss_of

# What a step may take of the untouched model's, and what may be kept of its bytes.
MUST = {"bert": 0.93, "gpt2": 0.92, "t5": 0.9, "transformer": 0.9, "vit": 0.97, "llama": 1.0}
MUST_KEEP = {"bert": 0.85, "gpt2": 0.85}
ROUNDS = 7  # a step takes half a second
DTYPES = ("float32", "bfloat16")


def tasks(config: Config) -> list[Task]:
    names = [name for name in MUST if importlib.util.find_spec(MODELS[name].package)]
    steps = [
        Task(f"{name}, {dtype}", partial(step, config, name, dtype))
        for name in names
        for dtype in DTYPES
    ]
    return steps + [Task(f"{name}, bytes", partial(kept, config, name)) for name in names]


def _models(config: Config, name: str) -> tuple[dict[str, nn.Module], dict[str, Tensor], str]:
    size = TINY if config.quick else FULL
    plain = MODELS[name].build(size).to(config.device).train()
    fused = copy.deepcopy(plain)
    torchcalc.fuse(fused)
    inputs = {key: t.to(config.device) for key, t in MODELS[name].inputs(size).items()}
    first = next(iter(inputs.values()))
    sizes = f"{size.layers} x {size.width}, {' x '.join(map(str, first.shape))}"
    return {"eager": plain, SUBJECT: fused}, inputs, sizes


def step(config: Config, name: str, dtype: str) -> Row:
    models, inputs, sizes = _models(config, name)
    if config.compile:
        models["torch.compile"] = torch.compile(copy.deepcopy(models["eager"]))  # type: ignore[assignment]
    return config.compare(
        f"{name}, training step",
        sizes,
        dtype if dtype == "float32" else f"{dtype} autocast",
        {who: one_step(config, model, inputs, dtype) for who, model in models.items()},
        baseline="eager",
        bound=config.bound(MUST[name]),
        rounds=ROUNDS,
    )


def one_step(config: Config, model: nn.Module, inputs: dict[str, Tensor], dtype: str) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    half = dtype == "bfloat16"

    def run() -> None:
        with torch.autocast(config.device.type, torch.bfloat16, enabled=half):
            loss = loss_of(model(**inputs))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def kept(config: Config, name: str) -> Row:
    models, inputs, sizes = _models(config, name)
    figures = {}
    for who, model in models.items():
        figures[who] = [bytes_kept(lambda: loss_of(model(**inputs))) / 2**20]  # noqa: B023
    bound = Bound(MUST_KEEP[name]) if name in MUST_KEEP and not config.quick else None
    return Row(f"{name}, kept for backward", sizes, "float32", figures, "MiB", "eager", bound)


def bytes_kept(forward: Callable[[], Tensor]) -> int:
    """Of every storage that autograd saves, once; parameters are not counted."""
    sizes: dict[int, int] = {}
    alive = []

    def pack(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            alive.append(t)
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = forward()
    del loss
    return sum(sizes.values())
