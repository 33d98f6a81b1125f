"""Graphs of forwards, where one graph is what every call does; and copies to trace."""

from __future__ import annotations

import copy
import inspect
import itertools
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn


class _Proxy(fx.Proxy):
    """``x += y`` changes x: fx itself takes it for x + y."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class Tracer(fx.Tracer):
    """Layers are leaves; what reads a parameter or buffer of one shows in the graph."""

    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        ours = type(module).__module__.startswith("torchcalc.nn.")
        return ours or super().is_leaf_module(module, name)


class Trace:
    """What a module's forward does, if that is the same in training and for all arguments.

    Raises:
        Exception: whatever a forward does that a tracer cannot follow.
        ValueError: it does one thing in one call and another in the next.
    """

    def __init__(self, module: nn.Module) -> None:
        arguments = inspect.signature(module.forward).parameters.values()
        left_out = {p.name: None for p in arguments if p.default is None}
        # Of torch's own layers it is known that what may be left out, masks, goes to attention.
        self.given = left_out if type(module).__module__.startswith("torch.nn.") else None
        self.graph = _trace(module, given=self.given)
        self.outline = _outline(self.graph)
        others = [_trace(module, given=self.given, training=True)]
        if left_out and self.given is None:
            others.append(_trace(module, given=left_out))
        for other in others:
            if _outline(other) != self.outline:
                raise ValueError("the forward has branches")

    def still_holds(self, module: nn.Module) -> bool:
        """Whether another trace is the same: else the forward has read a size that has changed."""
        try:
            return _outline(_trace(module, given=self.given)) == self.outline
        except Exception:  # whatever a forward does when a size is another
            return False


def copied(module: nn.Module, parameters: bool = True) -> nn.Module:
    """A deep copy, with parameters of its own or the same ones.

    Pruning and the older weight_norm leave results in the module, which ``deepcopy`` refuses; each
    call makes them anew.
    """
    memo: dict[int, Any] = {}
    for m in module.modules():
        if not parameters:
            memo.update({id(p): p for p in m.parameters(recurse=False)})
        for value in vars(m).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def _trace(
    module: nn.Module, training: bool = False, given: dict[str, Any] | None = None
) -> fx.Graph:
    scratch = copied(module, parameters=False)  # a forward may keep what it sees
    scratch.train(training)
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fast path of nn.TransformerEncoderLayer is one call for all of its layers.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return Tracer().trace(scratch, given)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _outline(graph: fx.Graph) -> list[Any]:
    """What is done with what; arguments that may be None are None, flags (training) are equal."""
    index: dict[fx.Node, Any] = {}
    outline: list[Any] = []
    places = itertools.count()

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return index[value]
        if isinstance(value, tuple | list):
            return tuple(map(plain, value))
        if isinstance(value, dict):
            return tuple((k, plain(v)) for k, v in value.items())
        if isinstance(value, slice):
            return tuple(map(plain, (value.start, value.stop, value.step)))
        return "a flag" if isinstance(value, bool) else repr(value)

    for node in graph.nodes:
        if node.op == "placeholder":
            index[node] = repr(None) if node.args == (None,) else ("argument", next(places))
        elif getattr(node.target, "__name__", "") != "_assert_is_none":  # of a trace without it
            index[node] = ("node", len(outline))
            outline.append((node.op, node.target, plain(node.args), plain(node.kwargs)))
    return outline
