"""Penalties as parameter groups hold them: a name and plain values, fit for any checkpoint.

``penalty`` is the name. The arguments of L1, L2 and ElasticNet stand under ``l1`` and ``l2``, those
of others under ``penalty_<argument>``. A scheduler may change them; each step reads them anew.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
from collections.abc import Hashable
from typing import Any

from torch import Tensor

from torchcalc import prox
from torchcalc._check import check_finite
from torchcalc.ops.penalty_prox import SETS, within
from torchcalc.prox import Penalty

CLASSES: dict[str, type[Penalty]] = {
    made.name: made
    for made in vars(prox).values()
    if inspect.isclass(made) and issubclass(made, Penalty) and not inspect.isabstract(made)
}
_SHARED = ("l1", "l2")  # keys that every group has
# name -> argument -> key
KEYS: dict[str, dict[str, str]] = {
    "l1": {"lam": "l1"},
    "l2": {"lam": "l2"},
    "elastic_net": {"l1": "l1", "l2": "l2"},
}
for _name, _class in CLASSES.items():
    KEYS.setdefault(
        _name, {field.name: f"penalty_{field.name}" for field in dataclasses.fields(_class)}
    )


def check_range(op: str, name: str, value: Any, low: float, high: float = math.inf) -> None:
    """A number in [low, high), or finite and >= low."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if not low <= float(value) < high:
        raise ValueError(f"{op}: {name} must be in [{low}, {high}), got {value}")


def make_plain(group: dict[str, Any]) -> None:
    """numpy's and tensors' numbers become Python's: a checkpoint of them needs no numpy.

    But not lr and betas, which somebody may change in place, as torch's optimizers allow.
    """
    group.update({key: _as_plain(value, key) for key, value in group.items() if key != "params"})


def _as_plain(value: Any, key: str) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_as_plain(v, key) for v in value)
    if isinstance(value, Tensor) and value.numel() == 1:
        return value if key in ("lr", "lr_before", "betas") else value.item()
    if isinstance(value, numbers.Real) and type(value).__module__ != "builtins":
        return float(value)
    return value


def is_key(key: str) -> bool:
    return key == "penalty" or key in _SHARED or key.startswith("penalty_")


def plain(op: str, given: dict[str, Any]) -> dict[str, Any]:
    """The entries of a group for its penalty, from a penalty or from entries like them.

    A name stands for a penalty only where its arguments come with it: so groups and defaults of one
    optimizer can be given to another. A penalty brings its own: those beside it are defaults of
    another one, which torch's classes fill in.
    """
    penalty = given["penalty"]
    shared = dict.fromkeys(_SHARED, 0.0)
    if isinstance(penalty, Penalty):
        if type(penalty) is not CLASSES.get(getattr(penalty, "name", "")):
            raise TypeError(
                f"{op}: penalty must be one of torchcalc.prox, which groups can name, got {penalty}"
            )
        arguments = penalty.arguments()
        for argument, value in arguments.items():
            if isinstance(value, Tensor):
                raise TypeError(
                    f"{op}: penalty must have numbers as strengths, got a tensor as {argument} of "
                    f"{type(penalty).__name__}"
                )
        keys = KEYS[penalty.name]
        return {
            "penalty": penalty.name,
            **shared,
            **{keys[argument]: value for argument, value in arguments.items()},
        }
    own = KEYS.get(penalty, {}) if isinstance(penalty, str) else {}
    if penalty is not None and (not own and penalty not in CLASSES):
        raise TypeError(
            f"{op}: penalty must be a torchcalc.prox penalty, None, or the name of one with its "
            f"arguments, got {penalty!r}"
        )
    check_known(op, penalty, given)
    missing = [key for key in own.values() if given.get(key) is None and not _may_be_none(key)]
    if missing:
        raise TypeError(
            f"{op}: penalty must be a torchcalc.prox penalty, None, or the name of one with its "
            f"arguments, got {penalty!r} without {' and '.join(missing)}"
        )
    found = {key: given[key] for key in own.values() if key in given}
    for key in _SHARED:
        if given.get(key) is not None:
            check_finite(op, key, given[key])
    return {"penalty": penalty, **shared, **{k: given[k] for k in _SHARED if given.get(k)}, **found}


def check_known(op: str, name: Any, given: dict[str, Any]) -> None:
    """Raises where an argument is given that the penalty of this name does not have."""
    own = KEYS.get(name, {}).values() if isinstance(name, str) else ()
    for key, value in given.items():
        if key.startswith("penalty_") and key not in own and value is not None:
            raise TypeError(f"{op}: {key} is no argument of penalty={name!r}")


def _may_be_none(key: str) -> bool:
    return key in ("penalty_k", "penalty_density")


def name_it(op: str, group: dict[str, Any]) -> None:
    """A penalty that was set as an object becomes plain values."""
    if isinstance(group["penalty"], Penalty):
        group.update(plain(op, {"penalty": group["penalty"]}))
        forget_others(group)


def forget_others(group: dict[str, Any]) -> None:
    """Takes out arguments of other penalties, which torch fills in from the defaults."""
    own = KEYS.get(group["penalty"], {}).values() if isinstance(group["penalty"], str) else ()
    for key in [key for key in group if key.startswith("penalty_") and key not in own]:
        del group[key]


def check(op: str, group: dict[str, Any]) -> Penalty | None:
    """The penalty of a group, whose entries schedulers and users may have set; or raises."""
    name = group["penalty"]
    for key in _SHARED:
        check_finite(op, key, group[key])
    if name is None:
        return None
    if not isinstance(name, str) or name not in CLASSES:
        raise TypeError(
            f"{op}: penalty of a group must be None or one of {', '.join(CLASSES)}, got {name!r}"
        )
    values = []
    for key in KEYS[name].values():
        if key not in group and not _may_be_none(key):
            raise ValueError(f"{op}: a group with penalty={name!r} must have {key}")
        value = group.get(key)
        if isinstance(value, Tensor) or not isinstance(value, Hashable | list):
            raise TypeError(f"{op}: {key} must be a number, got {value!r}")
        values.append(tuple(value) if isinstance(value, list) else value)
    try:
        return _made(name, *values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{op}: penalty {error}") from None


@functools.lru_cache(maxsize=1024, typed=True)
def _made(name: str, *values: Any) -> Penalty:
    return CLASSES[name](*values)


def entries(op: str, group: dict[str, Any]) -> dict[str, Any]:
    """Those of a group that are its penalty's."""
    name_it(op, group)
    own = KEYS.get(group["penalty"], {}).values()
    return {key: group[key] for key in ("penalty", *_SHARED, *own) if key in group}


def check_used(op: str, group: dict[str, Any]) -> None:
    """Raises where a strength is given that the penalty does not have."""
    own = KEYS.get(group["penalty"], {}).values()
    for key in _SHARED:
        if group[key] and key not in own:
            raise ValueError(
                f"{op}: {key} must be 0 with penalty={group['penalty']!r}, got {group[key]}"
            )


def bounded_prox(penalty: Penalty, bound: float, v: Tensor, step: Tensor | float) -> Tensor:
    """The prox apart from a kernel's step, no farther from v than the bound; not of half types."""
    v = v if v.dtype.itemsize >= 4 else v.float()
    x = penalty.prox(v, step)
    kernel = penalty.kernel
    if bound == math.inf or (kernel is not None and kernel.kind in SETS):
        return x
    return within(bound, v, x, penalty.indexes(v.shape))
