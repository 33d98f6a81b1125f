"""Smaller dense models that compute the same."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from torchcalc.sparsity._flow import Facts, Flow, Space
from torchcalc.sparsity._layers import CONVOLUTIONS, at_least_one, layer_of
from torchcalc.sparsity._trace import Trace, copied

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def compact(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """A copy of a model without the features that its output does not depend on.

    A neuron or channel goes where all that read it have only zeros for it, and where it is the
    same number for every input: then that number, times the weights that read it, goes into the
    next bias. So the zeros of :class:`torchcalc.prox.GroupL2`, L1 and others become time and
    memory. In eval the outputs are those of the model, up to rounding. (In training a dropout draws
    other masks for fewer features.)

    It follows chains of nn.Linear, :class:`torchcalc.nn.LinearAct`, GatedLinear, MLP, convolutions
    and batch normalisations, through activations, dropout, pooling, flattening, sums and products
    (residual branches stay in step). Constants other than 0 do not go through the zeros of a
    padding. Nothing is removed where something else reads or makes a feature: LayerNorm, GroupNorm
    and softmax, whose statistics would change; attention; grouped convolutions; the model's inputs
    and outputs; layers called twice, with hooks, or with parameters that are tied, that a forward
    reads itself, or that are made of others (``prune.remove`` and ``remove_parametrizations`` end
    that). A model whose forward cannot be traced (:mod:`torch.fx`), or has other branches in
    training or without an optional argument, is compacted child by child.

    Args:
        model: is left as it is.
        example_inputs: a tensor, or a tuple of arguments; if given, the outputs of both models are
            compared. Without them, a BatchNorm1d behind a linear layer is taken to see
            [batch, features], and a convolution a batch: give them where that is not so.

    Returns:
        A model of the same class, in the same mode, with parameters of its own: make a new
        optimizer for them. Each layer keeps at least one feature.

    Raises:
        TypeError: model is no module.
        RuntimeError: the outputs differ.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compact: model must be a torch.nn.Module, got {type(model).__name__}")
    smaller = copied(model)
    facts = Facts(_untouchable(smaller), set())
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    with torch.no_grad():
        if example_inputs is not None:
            dims: dict[str, int] = {}
            expected = _run(model, inputs, dims)
            for name, dim in dims.items():
                seen = smaller.get_submodule(name)
                if isinstance(seen, nn.BatchNorm1d) and dim > 2:
                    facts.sequences.add(seen)
                elif isinstance(seen, CONVOLUTIONS) and dim < seen.weight.dim():  # no batch
                    facts.opaque.add(seen)
        _compact(smaller, facts)
        if example_inputs is not None:
            _compare(expected, _run(smaller, inputs))
    return smaller


def _compact(module: nn.Module, facts: Facts) -> None:
    layer = layer_of(module)
    if layer is not None:  # on its own: only what it has within
        if module not in facts.opaque and hasattr(layer, "compact"):
            device = next(module.parameters()).device
            layer.compact(torch.full((layer.columns,), math.nan, device=device))
        return
    if hasattr(module, "parametrizations"):
        return
    try:
        trace = Trace(module)
    except Exception:  # whatever a forward does that a tracer cannot follow
        _compact_children(module, facts)
        return
    before = _attributes(module)
    while _remove(module, trace.graph, facts):
        pass
    if not trace.still_holds(module):
        for m, own in before:
            vars(m).update(own)
        _compact_children(module, facts)
        return
    # What the tracer took as a whole may have something to remove within.
    for name in {n.target for n in trace.graph.nodes if n.op == "call_module"}:
        leaf = module.get_submodule(str(name))
        if leaf is not module and next(leaf.children(), None) is not None:
            _compact(leaf, facts)


def _compact_children(module: nn.Module, facts: Facts) -> None:
    """Each on its own: what comes in and goes out stays."""
    children = [
        child
        for given in module.children()
        for child in (given.children() if type(given) in _CONTAINERS else (given,))
    ]
    seen: set[nn.Module] = set()
    for child in dict.fromkeys(children):
        facts.opaque.update(seen.intersection(child.modules()))
        seen.update(child.modules())
    for child in dict.fromkeys(children):
        _compact(child, facts)


def _attributes(module: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """To put them back."""
    return [
        (m, {k: copy.copy(v) if type(v) is dict else v for k, v in vars(m).items()})
        for m in module.modules()
    ]


def _remove(module: nn.Module, graph: fx.Graph, facts: Facts) -> bool:
    """One round; whether anything was removed."""
    flow = Flow(module, graph, facts)
    removed = False
    for layer, inputs in flow.inner:
        removed |= layer.compact(inputs)
    if removed:
        return True  # what the spaces know is no longer so
    for space in flow.spaces():
        if not space.frozen and space.readers:
            removed |= _shrink(space)
            if removed:
                return True
    return False


def _shrink(space: Space) -> bool:
    needed = space.needed()
    kept = at_least_one(needed)
    if len(kept) == space.size:
        return False
    for layer, constants, times in space.readers:
        columns = (kept[:, None] * times + torch.arange(times, device=kept.device)).flatten()
        layer.keep_columns(columns, constants.repeat_interleave(times))
    for norm in space.norms:
        norm.keep(kept)
    for maker in space.makers:
        maker.keep_rows(kept)
    return True


def _untouchable(model: nn.Module) -> set[nn.Module]:
    """Modules whose parameters are also another's, are made of others, or that are looked into."""
    owners: dict[int, list[nn.Module]] = {}
    found = set()
    for module in model.modules():
        for tensor in itertools.chain(module.parameters(False), module.buffers(False)):
            owners.setdefault(id(tensor), []).append(module)
        hooks = (
            *(module._forward_hooks, module._forward_pre_hooks),
            *(module._backward_hooks, module._backward_pre_hooks),
        )
        if any(hooks) or hasattr(module, "parametrizations"):
            found.add(module)
    for shared in owners.values():
        if len(shared) > 1:
            found.update(shared)
    return found


def _run(model: nn.Module, inputs: tuple[Any, ...], dims: dict[str, int] | None = None) -> Any:
    """The outputs in eval; ``dims`` gets those of what convolutions and BatchNorm1d's see."""
    scratch = copied(model, parameters=False).eval()  # a forward may change buffers

    def note(name: str, given: tuple[Any, ...]) -> None:
        if dims is not None and given:
            dims[name] = given[0].dim()

    for name, m in scratch.named_modules():
        if isinstance(m, (nn.BatchNorm1d, *CONVOLUTIONS)):
            m.register_forward_pre_hook(lambda _, given, name=name: note(name, given))
    own = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), inputs)  # or its inputs
    return scratch(*own)


def _compare(expected: Any, found: Any) -> None:
    outputs = _tensors(expected)
    # Sums are in another order.
    close = max((torch.finfo(t.dtype).eps for t in outputs if t.is_floating_point()), default=0.0)
    close = max(1e-3, 16 * close)
    finite = [t[t.isfinite()].abs() for t in outputs]
    largest = max((float(t.max()) for t in finite if t.numel()), default=0.0)
    try:
        torch.testing.assert_close(
            _tensors(found), outputs, rtol=close, atol=close * largest + 1e-6, equal_nan=True
        )
    except AssertionError as error:
        raise RuntimeError(
            "compact: the smaller model has other outputs; its forward uses features in a way "
            f"that its trace does not show. {error}"
        ) from None


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
