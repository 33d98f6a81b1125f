"""fuse and unfuse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from torchcalc.fusion import _modules
from torchcalc.fusion._kept import kept_by_dropout
from torchcalc.fusion._looks import Looks
from torchcalc.fusion._pieces import Piece
from torchcalc.fusion._plan import Plan, Rewritten
from torchcalc.fusion._report import Fusion, Left, Report
from torchcalc.fusion._swap import Fused, restore, swap, whatever_size

Model = TypeVar("Model", bound=nn.Module)
Inputs = tuple[Any, ...] | Mapping[str, Any]
_Planned = dict[str, tuple[nn.Module, Rewritten]]

# How far outputs may differ, as a share of the largest: many layers of rounding.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}


def fuse(model: nn.Module, example_inputs: Inputs | None = None) -> Report:
    r"""Makes the modules of a model compute with fused ops, in place, where nothing else changes.

    By the source of each module's forward: where it says linear -> activation -> dropout ->
    + residual (each but the first may be missing, not all), dropout -> + residual,
    activation(linear) * linear, or linear -> activation -> dropout -> linear -> dropout ->
    + residual, in one module or across a module and those that it calls, one call of
    ``torchcalc.functional`` takes its place; so do the dropouts that are left. Activations are told
    by what they compute. Linear layers are nn.Linear and transformers' Conv1D.

    What is used elsewhere, has hooks, is parametrized, quantized or sharded, or has a forward of
    its own, is left alone. Parameters, ``state_dict``, module paths and modules stay the same
    objects; ``training``, dropout probabilities and activations' parameters are looked at in each
    call. So are the modules: once one is replaced, or has got a hook, the original forward runs.
    Tensors of few elements go through PyTorch's operations, whose calls cost less. Masks of dropout
    are other ones than before for the same ``torch.manual_seed``. A module's class becomes a
    subclass of the same name.

    Args:
        model: changed in place; what was fused before is looked at anew.
        example_inputs: a tuple of arguments or a dict of keywords. With them the model runs once
            before and once after, in eval mode and without gradients; blocks whose results do not
            agree are left alone.

    Returns:
        What was fused and what was left, to be printed or read.

    Raises:
        TypeError: model is no nn.Module, or example_inputs neither a tuple nor a dict.
        Any error of the model itself, given the example inputs; it is then unchanged.

    Example:
        >>> model = nn.TransformerEncoderLayer(64, 4)
        >>> print(torchcalc.fuse(model))
    """
    _check_module("fuse", model)
    if example_inputs is not None and not isinstance(example_inputs, tuple | Mapping):
        raise TypeError(
            "fuse: example_inputs must be a tuple of arguments or a dict of keywords, got "
            f"{type(example_inputs).__name__}"
        )
    expected = None if example_inputs is None else _outputs(model, example_inputs)
    unfuse(model)
    plan = Plan()
    planned: _Planned = {}
    for path, module in model.named_modules():
        found = plan.of_module(module, path)
        if found is not None:
            planned[path] = module, found
    _swap_all(planned)
    if example_inputs is not None and not _agree(model, example_inputs, expected):
        for path in _wrong(model, planned, example_inputs, expected):
            plan.left[path] = "gives other results for the example inputs"
            del planned[path]
        _swap_all(planned)
    return _report(model, plan, planned)


def unfuse(model: Model) -> Model:
    """Takes back what :func:`fuse` did to a model, in place; returns the model.

    Raises:
        TypeError: model is no nn.Module.
    """
    _check_module("unfuse", model)
    for module in model.modules():
        restore(module)
    return model


def _check_module(op: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")


def _swap_all(planned: _Planned) -> None:
    # Twice: a Fused holds the classes of modules, which the first round may change.
    for module, found in planned.values():
        swap(module, Fused(found.function, Looks()))
    for module, found in planned.values():
        swap(module, found.fused(module))


def _outputs(model: nn.Module, inputs: Inputs) -> list[Any]:
    """All tensors that the model returns, in eval mode; its modes are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(), whatever_size():
            result = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    finally:
        model.train(modes[0][1])  # for those that do more in train() than to note the mode
        for module, training in modes:
            module.training = training
    return [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]


def _agree(model: nn.Module, inputs: Inputs, expected: Any) -> bool:
    try:
        got = _outputs(model, inputs)
    except Exception:  # which the model did not raise before
        return False
    return len(got) == len(expected) and all(map(_close, got, expected))


def _close(got: Tensor, expected: Tensor) -> bool:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    if not got.is_floating_point() or got.numel() == 0:
        return True
    finite = expected[expected.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 0.0
    tolerance = _TOLERANCES.get(got.dtype, 0.05) * scale
    return torch.allclose(got, expected, rtol=0, atol=tolerance, equal_nan=True)


def _wrong(model: nn.Module, planned: _Planned, inputs: Inputs, expected: Any) -> list[str]:
    """The blocks with which, each by itself, the model computes something else."""
    found = []
    for path, (module, rewritten) in planned.items():
        unfuse(model)
        swap(module, rewritten.fused(module))
        if not _agree(model, inputs, expected):
            found.append(path)
    unfuse(model)
    return found or list(planned)


def _report(model: nn.Module, plan: Plan, planned: _Planned) -> Report:
    passed: set[int] = set()  # modules that nobody calls any more
    fused: list[Fusion] = []
    for path, (module, rewritten) in planned.items():
        seen = set()
        for piece in rewritten.pieces:
            own = {id(place.value) for place in piece.places}
            key = (piece.name, *(place.path for place in piece.places))
            alone = not own and rewritten.gain == 1 and id(module) in passed
            if (own and own <= passed) or alone or (own and key in seen):
                continue  # in an outer module's, or in another branch of this one
            seen.add(key)
            fused.append(_fusion(path, piece))
        passed.update(id(place.value) for p in rewritten.pieces for place in p.places)
    return Report(tuple(fused), tuple(_left(model, plan, planned, passed)))


def _fusion(path: str, piece: Piece) -> Fusion:
    kept = piece.kept or kept_by_dropout(piece.op)
    modules = tuple(place.path for place in piece.places)
    return Fusion(path, piece.op, piece.name, modules, kept.before, kept.after)


def _left(model: nn.Module, plan: Plan, planned: _Planned, passed: set[int]) -> Iterator[Left]:
    unread = [path for path in plan.left if path]
    for path, module in model.named_modules():
        if id(module) in passed or path in planned:
            continue
        what = type(module).__name__
        if path in plan.left:
            yield Left(path, what, plan.left[path])
        elif _modules.is_told(module) and not _is_below(path, unread):
            if _modules.is_linear(module):
                yield Left(path, what, "nothing that can be fused follows it alone")
            else:
                yield Left(path, what, "does not follow a linear layer alone")
    yield from (Left(path, "mlp", why) for path, why in plan.decided.items())


def _is_below(path: str, others: Iterable[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)
