"""State from elsewhere: of torch's namesakes, of other devices and dtypes, of earlier versions."""

from __future__ import annotations

import inspect
import numbers
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchcalc._check import describe
from torchcalc.optim import _penalty
from torchcalc.optim._sharded import local, placed_as
from torchcalc.optim._state import Pack

if TYPE_CHECKING:
    from torchcalc.optim._proximal import ProximalOptimizer

# What torch's schedulers keep in groups, and names of parameters.
_SCHEDULERS = {"initial_lr", "min_lr", "max_lr", "swa_lr", "base_momentum", "max_momentum"}
_KNOWN = {"params", "param_names", "rounding_seed", *_SCHEDULERS}


def merge(optimizer: ProximalOptimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
    """The state to load, complete and checked."""
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(optimizer.param_groups):
        return None  # torch raises
    merged = [
        {
            **{
                key: own[key]
                for key in own
                if key != "params" and not ("penalty" in saved and key.startswith("penalty_"))
            },
            **saved,
        }
        for own, saved in zip(optimizer.param_groups, saved_groups, strict=True)
    ]
    for own, group in zip(optimizer.param_groups, merged, strict=True):
        _penalty.forget_others(group)
        _penalty.make_plain(group)
        penalty = optimizer.check_group(group)
        if penalty is not None:
            for param in own["params"]:
                optimizer.check_shape(penalty, param)
    _check_states(optimizer, state_dict["state"], merged)
    _warn_of_unknown(optimizer, merged)
    # torch casts states to the dtype of their parameter: those of another are taken from here.
    optimizer.loading = {
        param: state_dict["state"].get(key, {})
        for own, saved in zip(optimizer.param_groups, saved_groups, strict=True)
        for param, key in zip(own["params"], saved["params"], strict=False)
    }
    return {**state_dict, "param_groups": merged}


def _warn_of_unknown(optimizer: ProximalOptimizer, merged: list[dict[str, Any]]) -> None:
    """Of keys that nothing here reads, as those of a later version; they stay in the groups."""
    unknown = {
        key
        for own, group in zip(optimizer.param_groups, merged, strict=True)
        for key in group.keys() - own.keys() - _KNOWN
        if not _penalty.is_key(key)
    }
    op = type(optimizer).__name__
    theirs = getattr(torch.optim, op, None)
    if unknown and theirs is not None:  # of which a later torch may have more
        unknown -= inspect.signature(theirs).parameters.keys()
    if unknown:
        warnings.warn(
            f"{op}: groups of the loaded state have {', '.join(sorted(unknown))}, which nothing "
            "reads here",
            UserWarning,
            stacklevel=2,
        )


def _check_states(
    optimizer: ProximalOptimizer, saved_states: Any, merged: list[dict[str, Any]]
) -> None:
    for own, group in zip(optimizer.param_groups, merged, strict=True):
        elements = optimizer.names(group)
        for param, key in zip(own["params"], group["params"], strict=False):
            for name, value in saved_states.get(key, {}).items():
                is_tensor = isinstance(value, Tensor)
                if name in optimizer.counts:
                    fits = value.numel() == 1 if is_tensor else isinstance(value, numbers.Real)
                    wrong = "" if fits else f"be a number, got {describe(value)}"
                elif is_tensor:
                    fits = value.shape == param.shape
                    wrong = (
                        "" if fits else f"have shape {tuple(param.shape)}, got {tuple(value.shape)}"
                    )
                else:
                    fits = value is None or name not in elements
                    wrong = "" if fits else f"be a tensor, got {describe(value)}"
                if wrong:
                    raise ValueError(
                        f"{type(optimizer).__name__}: state {name!r} of parameter {key} must "
                        f"{wrong}"
                    )


def adapt(optimizer: ProximalOptimizer) -> None:
    """Loaded states as the kernels want them, in memory of their own."""
    states = vars(optimizer)["state"]
    loading, optimizer.loading = optimizer.loading, {}
    for group in optimizer.param_groups:
        elements = optimizer.names(group)
        names = (*elements, *optimizer.counts)
        complete: dict[Any, list[Tensor]] = {}
        for param in group["params"]:
            state = states.get(param, {})
            for name, value in state.items():
                if name in optimizer.counts:  # a number in old checkpoints, on the CPU in torch's
                    value = torch.as_tensor(value, dtype=torch.float32, device=param.device)
                    state[name] = value.reshape(()).clone()  # an old one may have a dimension
                elif name in elements and optimizer.dtype_of(group, param) is not None:
                    state[name] = loading[param][name].to(param.device)
                elif isinstance(value, Tensor) and name not in elements:
                    value = placed_as(param, value)
                    state[name] = torch.empty_like(param).copy_(value)  # with param's strides
            if all(state.get(name) is not None for name in names):
                complete.setdefault((param.dtype, param.device), []).append(param)
        for params in complete.values() if elements else ():
            values = [states[param] for param in params]
            dtype = optimizer.dtype_of(group, params[0])
            parts = [local(param) for param in params]
            pack = Pack(parts, elements, optimizer.counts, values, params, dtype)
            for param, slot in zip(params, pack.slots, strict=True):
                states[param].update(zip(names, slot.states, strict=True))
                optimizer.slots[param] = slot
