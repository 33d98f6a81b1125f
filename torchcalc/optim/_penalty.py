"""Penalties as parameter groups hold them: a name and numbers, fit for any checkpoint."""

from __future__ import annotations

import math
import numbers
from typing import Any

from torchcalc._check import check_finite
from torchcalc.prox import Penalty
from torchcalc.prox.penalties import STRENGTHS

_KEYS = ("l1", "l2")


def check_range(op: str, name: str, value: Any, low: float, high: float = math.inf) -> None:
    """A number in [low, high), or finite and >= low."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if not low <= float(value) < high:
        raise ValueError(f"{op}: {name} must be in [{low}, {high}), got {value}")


def plain(op: str, given: dict[str, Any]) -> dict[str, Any]:
    """The entries ``penalty``, ``l1``, ``l2`` of a group, from a penalty or from entries like them.

    A name stands for a penalty only where its strengths come with it: so groups and defaults of one
    optimizer can be given to another. A penalty brings its own: those beside it are defaults of
    another one, which torch's classes fill in.
    """
    penalty = given["penalty"]
    if isinstance(penalty, Penalty):
        return {"penalty": penalty.name, **dict(zip(_KEYS, penalty.strengths, strict=True))}
    strengths = {key: given[key] for key in _KEYS if given.get(key) is not None}
    if penalty is not None and (
        not isinstance(penalty, str)
        or penalty not in STRENGTHS
        or not all(key in strengths for key in STRENGTHS[penalty])
    ):
        raise TypeError(
            f"{op}: penalty must be a torchcalc.prox penalty, None, or the name of one with its "
            f"strengths l1 and l2, got {penalty!r}"
        )
    return {"penalty": penalty, **dict.fromkeys(_KEYS, 0.0), **strengths}


def check(op: str, group: dict[str, Any]) -> None:
    """Raises unless a group's entries are valid; schedulers and users may have set them."""
    if group["penalty"] is not None and group["penalty"] not in STRENGTHS:
        raise TypeError(
            f"{op}: penalty of a group must be None or one of {', '.join(STRENGTHS)}, "
            f"got {group['penalty']!r}"
        )
    for key in _KEYS:
        check_finite(op, key, group[key])


def check_used(op: str, group: dict[str, Any]) -> None:
    """Raises where a strength is given that the penalty does not have."""
    for key in _KEYS:
        if group[key] and key not in STRENGTHS.get(group["penalty"], ()):
            raise ValueError(
                f"{op}: {key} must be 0 with penalty={group['penalty']!r}, got {group[key]}"
            )


def strengths(group: dict[str, Any]) -> tuple[float, float]:
    """(l1, l2) of a group's penalty; 0 for what it does not have."""
    own = STRENGTHS.get(group["penalty"], ())
    l1, l2 = (group[key] if key in own else 0.0 for key in _KEYS)
    return l1, l2
