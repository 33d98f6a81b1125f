"""What autograd keeps for backward of a piece and of what it stands for, measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from torchcalc import functional
from torchcalc.fusion import _run
from torchcalc.fusion._terms import Computed

_TOKENS = 64
_P = 0.1  # of dropping: any will do


@dataclass(frozen=True)
class Kept:
    """Bytes for a token, of what is made in the piece: in PyTorch, fused, fused in two layers."""

    before: float
    after: float
    in_layers: float


@dataclass(frozen=True)
class _Case:
    """A piece: linear_act of one layer, gated of two side by side, mlp of two in a row."""

    op: str
    shapes: tuple[tuple[int, int, bool], ...]  # [out, in] of each weight, and whether with a bias
    dtype: torch.dtype
    act: str  # as linear_act takes it
    computed: str  # what the model computes for it, which may keep more
    hidden_drop: bool
    drop: bool
    residual: bool


_IDENTITY = Computed(lambda x: x, "x")
_known: dict[_Case, Kept] = {}


def kept(op: str, layers: list[Any], act: Any, hidden_drop: Any, drop: Any, residual: bool) -> Kept:
    """Of terms, by running their operations on tensors without memory."""
    modules = [layer.place.value for layer in layers]
    weights = [_run.weight_of(module) for module in modules]
    shapes = tuple(
        (*weight.shape, module.bias is not None)
        for weight, module in zip(weights, modules, strict=True)
    )
    computed = _IDENTITY if act is None else act.told.computed
    drops = hidden_drop is not None, drop is not None
    name = "identity" if act is None else act.name
    case = _Case(op, shapes, weights[0].dtype, name, computed.text, *drops, residual)
    if case not in _known:
        _known[case] = _measure(case, computed.evaluate)
    return _known[case]


def _measure(case: _Case, activation: Callable[[Tensor], Tensor]) -> Kept:
    with _tensors_without_memory():
        layers = [_layer(case, *shape) for shape in case.shapes]
        x = _made(case, _TOKENS, case.shapes[0][1]) * 1
        residual = _made(case, _TOKENS, case.shapes[-1][0]) * 1 if case.residual else None
        given = [x, residual, *(t for layer in layers for t in layer)]
        ways = [
            partial(_plain, case, layers, activation, x, residual),
            partial(_fused, case, layers, x, residual),
            partial(_in_layers, case, layers, x, residual),
        ]
        return Kept(*(_bytes_kept(way, given) / _TOKENS for way in ways))


@contextmanager
def _tensors_without_memory() -> Iterator[None]:
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device("cpu"),
        FakeTensorMode(),
    ):
        yield


def _made(case: _Case, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=case.dtype, requires_grad=True)


def _layer(case: _Case, out: int, features: int, bias: bool) -> tuple[Tensor, Tensor | None]:
    return _made(case, out, features), _made(case, out) if bias else None


def _plain(case: _Case, layers: Any, act: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    h = act(F.linear(x, *layers[0]))
    if case.op == "gated":
        h = h * F.linear(x, *layers[1])
    if case.op == "mlp":
        h = F.dropout(h, _P) if case.hidden_drop else h
        h = F.linear(h, *layers[1])
    h = F.dropout(h, _P) if case.drop else h
    return h if residual is None else residual + h


def _fused(case: _Case, layers: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    p = _P if case.drop else 0.0
    if case.op == "gated":
        weights, biases = zip(*layers, strict=True)
        pair = None if biases[0] is None else biases
        return functional.gated_linear(x, weights, pair, case.act, dropout_p=p)
    if case.op == "mlp":
        hidden_p = _P if case.hidden_drop else 0.0
        (w1, b1), (w2, b2) = layers
        return functional.mlp(
            x,
            w1,
            b1,
            w2,
            b2,
            case.act,
            hidden_dropout_p=hidden_p,
            dropout_p=p,
            residual=residual,
        )
    weight, bias = layers[0]
    return functional.linear_act(x, weight, bias, case.act, dropout_p=p, residual=residual)


def _in_layers(case: _Case, layers: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    if case.op != "mlp":
        return _fused(case, layers, x, residual)
    hidden_p, p = (_P if drop else 0.0 for drop in (case.hidden_drop, case.drop))
    (w1, b1), (w2, b2) = layers
    h = functional.linear_act(x, w1, b1, case.act, dropout_p=hidden_p)
    return functional.linear_act(h, w2, b2, "identity", dropout_p=p, residual=residual)


def _bytes_kept(run: Callable[[], Tensor], given: list[Tensor | None]) -> int:
    """Of all storages but those of what is given."""
    known = {t.untyped_storage()._cdata for t in given if t is not None}
    sizes: dict[int, int] = {}
    alive = []  # so that no two have the same address

    def pack(t: Tensor) -> Tensor:
        alive.append(t)
        sizes[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    del result
    return sum(size for storage, size in sizes.items() if storage not in known)


_DIMENSIONS = {"dropout1d": 3, "dropout2d": 4}  # of what they take


@functools.cache
def kept_by_dropout(op: str) -> Kept:
    """Bytes for an element, by dropout alone or with a residual."""
    name = op.removesuffix("_add")
    shape = (_TOKENS, 64, 8, 8, 8)[: _DIMENSIONS.get(name, 5)]
    with _tensors_without_memory():
        x = torch.empty(shape, requires_grad=True) * 1
        plain, fused = (getattr(library, name) for library in (F, functional))
        ways = (partial(plain, x, _P, training=True), partial(fused, x, _P, training=True))
        before, after = (_bytes_kept(way, [x]) / x.numel() for way in ways)
    return Kept(before, after, after)
